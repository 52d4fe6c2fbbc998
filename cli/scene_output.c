/*
 * The files of a finished scene. All are made in the work folder, synced, and only then renamed, the GeoPackage last: where it is,
 * all are. The journal stays until then, so that a full disk costs the outputs' minutes and not the run's hours.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/prompt.h"
#include "geo/heat.h"
#include "geo/layer.h"
#include "scene.h"

/* ---- names ---- */

static char *text(const char *a, const char *b) {
  char *out;
  return asprintf(&out, "%s%s", a, b) < 0 ? NULL : out;
}

int scene_files_make(const char *out, scene_files *f) {
  size_t n = strlen(out);
  *f = (scene_files){0};
  if (n < 6 || strcmp(out + n - 5, ".gpkg") != 0 || out[n - 6] == '/') {
    cli_error("scene: -o '%s' does not end in NAME.gpkg", out);
    return CLI_USAGE;
  }
  char *stem = btc_strndup(out, n - 5);
  if (!stem) return CLI_FAILED;
  f->work = text(stem, ".scene-work");
  f->out_gpkg = text(stem, ".gpkg");
  f->out_geojson = text(stem, ".geojson");
  f->out_records = text(stem, ".jsonl");
  f->out_tif = text(stem, ".heat.tif");
  f->out_qml = text(stem, ".qml");
  f->out_heat_qml = text(stem, ".heat.qml");
  free(stem);
  const char *work = f->work ? f->work : "";
  f->journal = text(work, "/journal");
  f->records = text(work, "/records.jsonl");
  f->raw = text(work, "/heat.raw");
  f->gpkg = text(work, "/layer.gpkg");
  f->geojson = text(work, "/layer.geojson");
  f->tif = text(work, "/heat.tif");
  char *const all[] = {f->work,    f->out_gpkg, f->out_geojson, f->out_records, f->out_tif, f->out_qml, f->out_heat_qml,
                       f->journal, f->records,  f->raw,         f->gpkg,        f->geojson, f->tif};
  for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
    if (!all[i]) return CLI_FAILED;
  return CLI_OK;
}

void scene_files_clear(scene_files *f) {
  char *const all[] = {f->work,    f->out_gpkg, f->out_geojson, f->out_records, f->out_tif, f->out_qml, f->out_heat_qml,
                       f->journal, f->records,  f->raw,         f->gpkg,        f->geojson, f->tif};
  for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
  *f = (scene_files){0};
}

void scene_files_remove(const scene_files *f, bool all) {
  static const char *const leavings[] = {"", "-journal", "-wal", "-shm", ".tiled", ".ovr.tmp", ".msk.tmp"}; /* SQLite's, GDAL's */
  const char *const made[] = {f->records, f->raw, f->gpkg, f->geojson, f->tif};
  for (size_t i = 0; i < sizeof made / sizeof made[0]; i++) {
    for (size_t k = 0; k < sizeof leavings / sizeof leavings[0]; k++) {
      char *path = text(made[i], leavings[k]);
      if (path) unlink(path);
      free(path);
    }
  }
  if (!all) return;
  unlink(f->journal);
  rmdir(f->work);
}

/* ---- records ---- */

static void count(const json_t *record, scene_counts *c) {
  const char *status = json_string_value(json_object_get(record, "status"));
  const char *reason = json_string_value(json_object_get(record, "reason"));
  if (!status) return;
  c->ok += !strcmp(status, "ok");
  c->failed += !strcmp(status, "failed");
  c->changed += json_is_true(json_object_get(record, "changed"));
  for (int v = BTC_VERDICT_UNCHANGED; reason && v <= BTC_VERDICT_NO_OVERLAP; v++)
    c->skipped[v] += !strcmp(status, "skipped") && !strcmp(reason, btc_verdict_reason((btc_verdict)v));
}

static btc_status write_records(const scene_plan *p, const scene_files *f, btc_journal *j, scene_counts *c, btc_error *err) {
  FILE *out = fopen(f->records, "w");
  if (!out) return btc_fail(err, BTC_ERR_IO, "cannot write '%s': %s", f->records, strerror(errno));
  btc_status st = BTC_OK;
  bool good = true;
  for (int64_t i = 0; st == BTC_OK && good && i < p->grid.count; i++) {
    char *line;
    if ((st = btc_journal_read(j, (uint64_t)i, &line, NULL, NULL, err)) != BTC_OK) break;
    json_t *record = json_loads(line, 0, NULL);
    count(record, c);
    json_decref(record);
    good = fprintf(out, "%s\n", line) > 0;
    free(line);
  }
  if (fclose(out) != 0) good = false;
  return st == BTC_OK && !good ? btc_fail(err, BTC_ERR_IO, "cannot write '%s': %s", f->records, strerror(errno)) : st;
}

/* ---- change map ---- */

typedef struct raw_map {
  btc_journal *j;
  FILE *out;
  const char *path;
  size_t width;
} raw_map;

static btc_status read_cells(void *ctx, int64_t index, uint16_t *cells, bool *has, btc_error *err) {
  const raw_map *m = ctx;
  if (cli_interrupted) return btc_fail(err, BTC_ERR_CANCELLED, "interrupted");
  return btc_journal_read(m->j, (uint64_t)index, NULL, cells, has, err);
}

static btc_status write_row(void *ctx, const float *row, btc_error *err) {
  const raw_map *m = ctx;
  if (fwrite(row, sizeof *row, m->width, m->out) == m->width) return BTC_OK;
  return btc_fail(err, BTC_ERR_IO, "cannot write '%s': %s", m->path, strerror(errno));
}

static btc_status write_raw(const scene_plan *p, const scene_files *f, btc_journal *j, int64_t cells, btc_error *err) {
  raw_map m = {.j = j, .out = fopen(f->raw, "w"), .path = f->raw, .width = (size_t)btc_heat_size_of(&p->grid, cells).width};
  if (!m.out) return btc_fail(err, BTC_ERR_IO, "cannot write '%s': %s", f->raw, strerror(errno));
  btc_status st = btc_heat_make(&p->grid, cells, &(btc_heat_source){.cells = read_cells, .row = write_row, .ctx = &m}, err);
  if (fclose(m.out) != 0 && st == BTC_OK) st = btc_fail(err, BTC_ERR_IO, "cannot write '%s': %s", f->raw, strerror(errno));
  return st;
}

/* ---- layers ---- */

static void set(json_t *o, const char *key, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void set(json_t *o, const char *key, const char *fmt, ...) {
  char value[4096];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(value, sizeof value, fmt, ap);
  va_end(ap);
  json_t *v = json_string(value);
  json_object_set_new(o, key, v ? v : json_string("?")); /* a path that is not UTF-8 */
}

static json_t *describe(const scene_plan *p, const scene_files *f, const record_model *model, const char *prompt) {
  const btc_scene_info *i = p->info;
  const double *g = i->geotransform;
  const char *slash = strrchr(f->out_tif, '/');
  json_t *o = json_object();
  set(o, "before", "%s", p->o->before);
  set(o, "after", "%s", p->o->after);
  set(o, "before_date", "%s", p->dates[0]);
  set(o, "after_date", "%s", p->dates[1]);
  set(o, "width", "%d", i->width);
  set(o, "height", "%d", i->height);
  set(o, "geotransform", "%.17g %.17g %.17g %.17g %.17g %.17g", g[0], g[1], g[2], g[3], g[4], g[5]);
  set(o, "crs", "%s", *i->epsg ? i->epsg : *i->crs_wkt ? "WKT" : "");
  set(o, "gsd_m", "%.12g", i->gsd_m);
  set(o, "tile", "%lld", (long long)p->grid.tile);
  set(o, "overlap", "%lld", (long long)(p->grid.tile - p->grid.step));
  set(o, "windows", "%lld", (long long)p->grid.count);
  set(o, "model", "%s", model->name);
  set(o, "fingerprint", "%s", model->fingerprint);
  set(o, "dtype", "%s", model->dtype);
  set(o, "prompt", "%s", prompt ? prompt : btc_prompt_caption);
  set(o, "heat", "%s", slash ? slash + 1 : f->out_tif);
  json_t *options = scene_plan_options(p->o);
  char *text = options ? json_dumps(options, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
  set(o, "options", "%s", text ? text : "{}");
  json_decref(options);
  free(text);
  if (i->shift_estimated) set(o, "shift", "%.3f %.3f %.3f", i->shift_x, i->shift_y, i->shift_confidence);
  return o;
}

static bool stop_asked(void *ctx) {
  (void)ctx;
  return cli_interrupted;
}

static btc_status write_layers(const scene_plan *p, const scene_files *f, int64_t cells, const record_model *model,
                               const char *prompt, btc_error *err) {
  btc_heat_size size = btc_heat_size_of(&p->grid, cells);
  btc_geo_failure why = {0};
  json_t *scene = describe(p, f, model, prompt);
  btc_layer_request r = {.records = f->records,
                         .gpkg = f->gpkg,
                         .geojson = *p->info->crs_wkt ? f->geojson : NULL,
                         .crs_wkt = p->info->crs_wkt,
                         .scene = scene,
                         .raw = f->raw,
                         .tif = f->tif,
                         .width = size.width,
                         .height = size.height};
  for (int i = 0; i < 6; i++) r.geotransform[i] = p->info->geotransform[i] * (i % 3 ? size.pixel : 1);
  btc_status st = btc_layer_write(&r, stop_asked, NULL, &why);
  json_decref(scene);
  return st == BTC_OK ? st : btc_fail(err, st, "%s", why.error.message);
}

/* ---- publishing ---- */

static btc_status sync_path(const char *path, btc_error *err) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  bool good = fd >= 0 && fsync(fd) == 0;
  int why = errno;
  if (fd >= 0) close(fd);
  return good ? BTC_OK : btc_fail(err, BTC_ERR_IO, "cannot sync '%s': %s", path, strerror(why));
}

static btc_status sync_folder(const char *file, btc_error *err) {
  const char *slash = strrchr(file, '/');
  char *dir = slash ? btc_strndup(file, slash == file ? 1 : (size_t)(slash - file)) : btc_strdup(".");
  if (!dir) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  btc_status st = sync_path(dir, err);
  free(dir);
  return st;
}

static btc_status publish(const scene_plan *p, const scene_files *f, btc_error *err) {
  bool placed = *p->info->crs_wkt != 0;
  const char *const pairs[][2] = {
      {f->tif, f->out_tif}, {f->records, f->out_records}, {placed ? f->geojson : NULL, f->out_geojson}, {f->gpkg, f->out_gpkg}};
  enum { N = sizeof pairs / sizeof pairs[0] };
  btc_status st = BTC_OK;
  for (int i = 0; st == BTC_OK && i < N; i++)
    if (pairs[i][0]) st = sync_path(pairs[i][0], err);
  if (st == BTC_OK) st = btc_file_publish(f->out_qml, btc_style_layer_qml, strlen(btc_style_layer_qml), err);
  if (st == BTC_OK) st = btc_file_publish(f->out_heat_qml, btc_style_heat_qml, strlen(btc_style_heat_qml), err);
  if (st == BTC_OK && !placed) unlink(f->out_geojson); /* of an earlier run */
  for (int i = 0; st == BTC_OK && i < N; i++)
    if (pairs[i][0] && rename(pairs[i][0], pairs[i][1]) != 0)
      st = btc_fail(err, BTC_ERR_IO, "cannot rename to '%s': %s", pairs[i][1], strerror(errno));
  return st == BTC_OK ? sync_folder(f->out_gpkg, err) : st;
}

btc_status scene_write(const scene_plan *p, const scene_files *f, btc_journal *j, int64_t cells, const record_model *model,
                       const char *prompt, scene_counts *counts, btc_error *err) {
  *counts = (scene_counts){0};
  scene_files_remove(f, false); /* of a run that was killed here */
  btc_status st = write_records(p, f, j, counts, err);
  if (st == BTC_OK) st = write_raw(p, f, j, cells, err);
  if (st == BTC_OK) st = write_layers(p, f, cells, model, prompt, err);
  if (st == BTC_OK) st = publish(p, f, err);
  if (st != BTC_OK) scene_files_remove(f, false);
  return st;
}
