/* btcchat report: a gallery of records. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "geo/cells.h"
#include "geo/scene.h"
#include "model_options.h"
#include "progress.h"
#include "report/card.h"
#include "report/gallery.h"
#include "report/items.h"
#include "report/pictures.h"
#include "report/results.h"

static int run(int argc, char **argv);

const cli_command cmd_report = {
    .name = "report",
    .arguments = "DIR|FILE.jsonl|OUT.gpkg",
    .summary = "makes a gallery of records: a page that works from disk, without a network",
    .details =
        "Takes the folder of `run`, a file of records, or a GeoPackage of `scene` with the files beside it, and writes a folder "
        "with index.html: before and\n"
        "after under a slider, change map, caption, score, filters, a map, and accept/reject labels that can be exported. Images "
        "are found through the\n"
        "manifest (of `run` by itself, else --manifest) or through the scene. Change maps come from the scene's map, or with "
        "--heatmaps from the model.\n"
        "Exit code 3 when images could not be read (the page says why) or lines are no records.",
    .run = run,
};

typedef struct report_command {
  model_options model;
  const char *out, *title, *manifest, *before, *after, *tiles;
  bool replace, heatmaps, changed;
  int64_t side, limit;
  /* what the records stand on */
  btc_results_files files;
  btc_items *items;
  btc_rings *rings;
  json_t *scene;          /* table of the GeoPackage, or NULL */
  btc_scene_options read; /* how it was read */
  char stem[PATH_MAX], heat[PATH_MAX + 16];
  btc_model *engine;
  btc_session *session;
  btc_pictures *pictures;
  uint64_t no_images;
  char first_problem[BTC_ERROR_TEXT];
} report_command;

static int said(const btc_error *err) {
  if (cli_interrupted) return CLI_INTERRUPTED;
  cli_error("%s", err->message);
  return CLI_FAILED;
}

/* ---- what there is ---- */

static btc_status find_manifest(report_command *c, const char *where, btc_error *err) {
  char path[PATH_MAX + 32];
  json_t *job = NULL;
  if (c->manifest) return btc_items_open(c->manifest, &c->items, err);
  snprintf(path, sizeof path, "%s/.btcchat/job.json", where);
  if (access(path, F_OK) != 0) return BTC_OK;
  btc_status st = btc_json_read(path, &btc_json_config_limits, &job, err);
  if (st == BTC_OK && *btc_results_text(job, "manifest")) st = btc_items_open(btc_results_text(job, "manifest"), &c->items, err);
  json_decref(job);
  return st;
}

/* The images as the model saw them: bands, stretch, shift. Tables of older programs have only the size of a pixel. */
static btc_status read_options(report_command *c, btc_error *err) {
  const char *text = btc_results_text(c->scene, "options");
  json_t *o = NULL;
  double max_nodata;
  c->read = btc_scene_options_defaults();
  c->read.gsd_m = strtod(btc_results_text(c->scene, "gsd_m"), NULL);
  if (!*text) return BTC_OK;
  btc_status st = btc_json_parse(text, strlen(text), "options of the scene", &btc_json_config_limits, &o, err);
  if (st == BTC_OK) st = btc_scene_options_json(o, &c->read, &max_nodata, err);
  json_decref(o);
  return st;
}

/* A scene is one file of records with a GeoPackage of the same name beside it. */
static btc_status find_scene(report_command *c, btc_error *err) {
  char path[PATH_MAX + 16];
  size_t n = strlen(c->files.path[0]);
  if (c->files.n != 1 || n < 7 || n >= PATH_MAX) return BTC_OK;
  snprintf(c->stem, sizeof c->stem, "%.*s", (int)(n - strlen(".jsonl")), c->files.path[0]);
  snprintf(path, sizeof path, "%s.gpkg", c->stem);
  if (access(path, F_OK) != 0) return BTC_OK;
  btc_status st = btc_scene_table_read(path, &c->scene, err);
  if (st == BTC_OK) st = read_options(c, err);
  if (st != BTC_OK) return st;
  if (c->before) json_object_set_new(c->scene, "before", json_string(c->before));
  if (c->after) json_object_set_new(c->scene, "after", json_string(c->after));
  snprintf(c->heat, sizeof c->heat, "%s.heat.tif", c->stem);
  if (access(c->heat, F_OK) != 0) c->heat[0] = 0;
  snprintf(path, sizeof path, "%s.geojson", c->stem);
  return access(path, F_OK) == 0 ? btc_rings_open(path, &c->rings, err) : BTC_OK;
}

static int open_engine(report_command *c) {
  btc_error err;
  if (!c->heatmaps) return CLI_OK;
  int code = open_model(&c->model, &c->engine);
  if (code != CLI_OK) return code;
  return btc_session_create(c->engine, NULL, &c->session, &err) == BTC_OK ? CLI_OK : said(&err);
}

/* ---- one record ---- */

typedef struct loaded {
  btc_image image[2], heat;
  double top;
} loaded;

static void loaded_free(loaded *l) {
  btc_image_free(&l->image[0]);
  btc_image_free(&l->image[1]);
  btc_image_free(&l->heat);
}

/* false: this record has none. */
static bool source_of(report_command *c, const json_t *record, btc_item_files *files, btc_pair_source *s, btc_error *err) {
  const json_t *window = json_object_get(record, "window");
  bool found = false;
  *s = (btc_pair_source){0};
  *files = (btc_item_files){0};
  if (c->scene && json_array_size(window) == 4) {
    for (size_t i = 0; i < 4; i++) files->window[i] = json_integer_value(json_array_get(window, i));
    files->before = btc_results_text(c->scene, "before");
    files->after = btc_results_text(c->scene, "after");
    files->has_window = found = true;
    s->scene = &c->read;
  } else if (c->items && btc_items_find(c->items, btc_results_text(record, "id"), &found, files, err) != BTC_OK) {
    found = false;
  }
  s->before = files->before;
  s->after = files->after;
  s->window = files->has_window ? files->window : NULL;
  return found;
}

/* The change grid that a worker put into a record of a window: 16-bit cells, see geo/heat.h. */
static btc_status heat_of_record(const char *text, loaded *l, btc_error *err) {
  size_t n = btc_cells_count(text), g = 1;
  while (g * g < n) g++;
  if (g * g > n) g--; /* the count is an upper bound by the text's length */
  if (g < 1 || g > 512) return BTC_OK;
  uint16_t *cells = btc_alloc(g * g, sizeof *cells);
  float *cosine = btc_alloc(g * g, sizeof *cosine);
  btc_status st = cells && cosine ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "no memory for a change map");
  if (cells && cosine && btc_cells_decode(text, cells, g * g)) {
    for (size_t i = 0; i < g * g; i++) cosine[i] = cells[i] == 65535 ? 1 : 1 - 2 * (float)cells[i] / 65534;
    st = btc_pictures_colour(cosine, (int64_t)g, &l->heat, &l->top, err);
  }
  free(cells);
  free(cosine);
  return st;
}

static btc_status heat_of_model(report_command *c, const btc_pair_source *s, loaded *l, btc_error *err) {
  const char *images[] = {s->before, s->after};
  btc_item item = {.images = images, .n_images = 2};
  btc_result r = {0};
  btc_status st = btc_session_run(c->session, &item, 1, &r, err);
  if (st == BTC_OK && r.cosine) st = btc_pictures_colour(r.cosine, r.grid, &l->heat, &l->top, err);
  btc_result_clear(&r);
  return st;
}

static btc_status load_pictures(report_command *c, const json_t *record, loaded *l, bool *has, btc_error *err) {
  btc_item_files files;
  btc_pair_source s;
  *has = source_of(c, record, &files, &s, err);
  if (!*has) return BTC_OK;
  const char *cells = btc_results_text(record, "heat");
  btc_status st = btc_pictures_read(c->pictures, &s, l->image, err);
  if (st != BTC_OK || strcmp(btc_results_text(record, "status"), "ok") != 0) return st;
  if (*cells) return heat_of_record(cells, l, err);
  if (s.window && *c->heat) {
    int64_t width = strtoll(btc_results_text(c->scene, "width"), NULL, 10);
    return btc_pictures_heat(c->pictures, c->heat, width, s.window, &l->heat, &l->top, err);
  }
  return c->session && !s.window ? heat_of_model(c, &s, l, err) : BTC_OK;
}

static void count_missing(report_command *c, const json_t *record, json_t *card, const char *why) {
  json_object_set_new(card, "problem", json_string(why));
  if (strcmp(btc_results_text(record, "status"), "ok") != 0) return; /* its reason is the record's */
  if (c->no_images++ == 0) snprintf(c->first_problem, sizeof c->first_problem, "%s", why);
}

static btc_status add_record(report_command *c, btc_gallery *g, const json_t *record, bool plane, btc_error *err) {
  loaded l = {0};
  btc_error why = {0};
  bool has;
  json_t *ring = c->rings ? btc_rings_take(c->rings, btc_results_text(record, "id")) : NULL;
  if (c->changed && !json_is_true(json_object_get(record, "changed"))) {
    json_decref(ring);
    return BTC_OK;
  }
  json_t *card = btc_card_of(record, ring, plane);
  json_decref(ring);
  if (!card) return btc_fail(err, BTC_ERR_NOMEM, "no memory for a record");
  btc_status st = load_pictures(c, record, &l, &has, &why);
  if (st != BTC_OK)
    count_missing(c, record, card, why.message);
  else if (!has && (c->items || c->scene))
    count_missing(c, record, card, "its images are not in the manifest");
  const btc_gallery_pictures p = {.before = &l.image[0], .after = &l.image[1], .heat = &l.heat, .top = l.top};
  st = btc_gallery_add(g, card, &p, err);
  loaded_free(&l);
  return st;
}

/* ---- all of them ---- */

/* Reading records is quick beside reading images: counting them first tells how long it will take. */
static uint64_t count_records(const report_command *c) {
  btc_results *r = NULL;
  json_t *record = NULL;
  uint64_t n = 0;
  btc_status st = btc_results_open(&c->files, &r, NULL);
  while (st == BTC_OK && n < (uint64_t)c->limit && !cli_interrupted && btc_results_next(r, &record, NULL) == BTC_OK && record) {
    n += !c->changed || json_is_true(json_object_get(record, "changed"));
    json_decref(record);
  }
  btc_results_close(&r);
  return n;
}

static btc_status add_records(report_command *c, btc_gallery *g, btc_results *r, bool plane, bool *cut, btc_error *err) {
  progress bar;
  json_t *record = NULL;
  btc_status st;
  const uint64_t total = count_records(c);
  progress_begin(&bar);
  while ((st = btc_results_next(r, &record, err)) == BTC_OK && record) {
    *cut = btc_gallery_count(g) >= (uint64_t)c->limit;
    if (!*cut) st = add_record(c, g, record, plane, err);
    json_decref(record);
    if (st == BTC_OK && cli_interrupted) st = btc_fail(err, BTC_ERR_CANCELLED, "interrupted");
    if (*cut || st != BTC_OK) break;
    progress_show(&bar, &(progress_state){.total = total, .done = btc_gallery_count(g)}, false);
  }
  progress_break(&bar);
  return st;
}

static int write_gallery(report_command *c, const char *where) {
  const bool plane = c->scene && !c->rings;
  const btc_gallery_options o = {.title = c->title ? c->title : where, .tiles = c->tiles, .replace = c->replace, .plane = plane};
  btc_gallery *g = NULL;
  btc_results *r = NULL;
  btc_error err = {0};
  const char *first = "";
  bool cut = false;
  btc_status st = btc_gallery_create(c->out, &o, &g, &err);
  if (st == BTC_OK) st = btc_results_open(&c->files, &r, &err);
  if (st == BTC_OK) st = add_records(c, g, r, plane, &cut, &err);
  if (st == BTC_OK) st = btc_gallery_publish(g, &err);
  uint64_t n = g ? btc_gallery_count(g) : 0, bad = r ? btc_results_bad(r, &first) : 0;
  int code = st == BTC_OK ? CLI_OK : said(&err);
  if (st == BTC_OK) {
    fprintf(stderr, "btcchat: %" PRIu64 " records in '%s/index.html'%s\n", n, c->out, cut ? "; there are more: see --limit" : "");
    if (!c->items && !c->scene) fprintf(stderr, "btcchat: without images: no manifest is known (--manifest)\n");
    if (c->no_images) cli_error("images of %" PRIu64 " records are missing; the first: %s", c->no_images, c->first_problem);
    if (bad) cli_error("%" PRIu64 " lines are no result records; the first: %s", bad, first);
    if (c->no_images || bad) code = CLI_SOME_FAILED;
  }
  btc_results_close(&r);
  btc_gallery_close(&g);
  return code;
}

static int report(report_command *c, const char *where) {
  btc_error err = {0};
  btc_status st = btc_results_find(where, &c->files, &err);
  if (st == BTC_OK) st = find_manifest(c, where, &err);
  if (st == BTC_OK && !c->items) st = find_scene(c, &err);
  if (st == BTC_OK) st = btc_pictures_create(c->side, &c->pictures, &err);
  int code = st == BTC_OK ? open_engine(c) : said(&err);
  if (code == CLI_OK) code = write_gallery(c, where);
  btc_pictures_destroy(&c->pictures);
  if (c->session) btc_session_destroy(&c->session);
  if (c->engine) btc_model_close(&c->engine);
  btc_rings_close(&c->rings);
  btc_items_close(&c->items);
  json_decref(c->scene);
  btc_results_files_free(&c->files);
  return code;
}

static int run(int argc, char **argv) {
  report_command c = {.model = model_options_default, .side = 512, .limit = 100000};
  cli_option table[] = {
      {.name = "output",
       .letter = 'o',
       .type = CLI_TEXT,
       .target = &c.out,
       .value = "DIR",
       .help = "the gallery's folder (needed)"},
      {.name = "title", .type = CLI_TEXT, .target = &c.title, .value = "TEXT", .help = "of the page (default: what it is made of)"},
      {.name = "manifest",
       .type = CLI_TEXT,
       .target = &c.manifest,
       .value = "FILE",
       .help = "where the images of the records are (default: that of the run)"},
      {.name = "before",
       .type = CLI_TEXT,
       .target = &c.before,
       .value = "F.tif",
       .help = "the scene's before image, if it was moved"},
      {.name = "after", .type = CLI_TEXT, .target = &c.after, .value = "F.tif", .help = "its after image"},
      {.name = "side",
       .type = CLI_INT,
       .target = &c.side,
       .value = "PX",
       .help = "longest side of the pictures, pixels (default 512)",
       .low = 64,
       .high = 2048},
      {.name = "limit",
       .type = CLI_INT,
       .target = &c.limit,
       .value = "N",
       .help = "records at most (default 100000)",
       .low = 1,
       .high = BTC_GALLERY_MAX_RECORDS},
      {.name = "changed", .type = CLI_FLAG, .target = &c.changed, .help = "only records whose verdict is a change"},
      {.name = "heatmaps", .type = CLI_FLAG, .target = &c.heatmaps, .help = "run the model again for change maps of pairs"},
      {.name = "tiles",
       .type = CLI_TEXT,
       .target = &c.tiles,
       .value = "URL",
       .help = "tiles of the map, https://.../{z}/{x}/{y}.png: the page then asks that server"},
      {.name = "replace", .type = CLI_FLAG, .target = &c.replace, .help = "put it in the place of a gallery that is there"},
      MODEL_OPTION_ROWS(c.model),
  };
  char **args;
  int n, code;
  if (!cli_parse(&cmd_report, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n != 1) return cli_usage_error(&cmd_report, "one folder or file of records expected, got %d", n);
  if (!c.out || !*c.out) return cli_usage_error(&cmd_report, "-o DIR is needed");
  return report(&c, args[0]);
}
