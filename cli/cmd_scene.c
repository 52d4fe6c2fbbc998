/* btcchat scene: two scenes of one place to GIS layers of what changed. */
#define _GNU_SOURCE
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "progress.h"
#include "scene.h"

static int run(int argc, char **argv);

const cli_command cmd_scene = {
    .name = "scene",
    .arguments = "BEFORE AFTER",
    .summary = "captions what changed between two scenes (GeoTIFF, JPEG 2000, ...) window by window, into layers for a GIS",
    .details =
        "BEFORE and AFTER are georeferenced images of one place: GeoTIFF (COG), JPEG 2000, PNG or JPEG with world files, of 8 or "
        "16 bits\n"
        "or float. AFTER is put on the pixel grid of BEFORE, whatever its CRS, resolution and extent. Writes OUT.gpkg and beside "
        "it\n"
        "OUT.geojson, OUT.jsonl, OUT.heat.tif (change map) and QGIS styles. May be killed at any moment: the same command goes on.",
    .run = run,
};

enum { SYNC_S = 2, SAMPLES = 4 };

/* ---- the run into the journal ---- */

typedef struct scene_work {
  const scene_plan *plan;
  btc_journal *journal;
  int64_t at; /* of the order of visits */
  int64_t failed, before, done;
  int64_t start_ns, synced_ns;
  progress bar;
} scene_work;

static int64_t next_open(void *ctx) {
  scene_work *w = ctx;
  const btc_grid *g = &w->plan->grid;
  while (w->at < g->count) {
    int64_t index = btc_grid_visit(g, w->plan->info->stripe_width, w->at++);
    if (!btc_journal_has(w->journal, (uint64_t)index)) return index;
  }
  return -1;
}

static btc_status keep(void *ctx, int64_t index, const char *record, const uint16_t *cells, bool failed, bool captioned,
                       btc_error *err) {
  scene_work *w = ctx;
  (void)captioned;
  btc_status st = btc_journal_append(w->journal, (uint64_t)index, record, cells, err);
  w->failed += failed;
  w->done++;
  int64_t now = btc_now_ns();
  if (st != BTC_OK || now - w->synced_ns < SYNC_S * INT64_C(1000000000)) return st;
  w->synced_ns = now;
  return btc_journal_sync(w->journal, err);
}

static void show(scene_work *w, bool last) {
  double seconds = (double)(btc_now_ns() - w->start_ns) * 1e-9, rate = seconds > 0 ? (double)w->done / seconds : 0;
  progress_state s = {.total = (uint64_t)w->plan->grid.count, .done = (uint64_t)(w->before + w->done - w->failed)};
  s.failed = (uint64_t)w->failed;
  s.items_per_s = rate;
  if (rate > 0) s.eta_s = (double)(w->plan->grid.count - w->before - w->done) / rate;
  progress_show(&w->bar, &s, last);
}

static void tick(void *ctx) {
  show(ctx, false);
}

/* ---- the estimate ---- */

typedef struct scene_sample {
  const scene_plan *plan;
  int64_t asked, captioned;
} scene_sample;

/* Windows from all over the scene. */
static int64_t next_sample(void *ctx) {
  scene_sample *s = ctx;
  int64_t count = s->plan->grid.count, n = count < SAMPLES ? count : SAMPLES;
  return s->asked < n ? (2 * s->asked++ + 1) * count / (2 * n) : -1;
}

static btc_status count_sample(void *ctx, int64_t index, const char *record, const uint16_t *cells, bool failed, bool captioned,
                               btc_error *err) {
  (void)index, (void)record, (void)cells, (void)failed, (void)err;
  ((scene_sample *)ctx)->captioned += captioned;
  return BTC_OK;
}

static double peak_mb(const btc_grid *g) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  double decoder = (double)btc_scene_options_defaults().cache_bytes, journal = (double)g->count * 8;
  return (double)u.ru_maxrss / 1024 + (decoder + journal) / 1048576;
}

static void print_estimate(const scene_plan *p, int64_t outside, double per_window_s) {
  const btc_grid *g = &p->grid;
  const btc_scene_info *i = p->info;
  double seconds = per_window_s * (double)(g->count - outside);
  char duration[32];
  if (p->o->json) {
    json_t *o =
        json_pack("{s:i,s:i,s:s?,s:f,s:f,s:I,s:I,s:I,s:I,s:I,s:I,s:f}", "width", i->width, "height", i->height, "crs",
                  *i->epsg ? i->epsg : NULL, "gsd_m", i->gsd_m, "overlap_share", i->overlap_share, "tile", (json_int_t)g->tile,
                  "overlap", (json_int_t)(g->tile - g->step), "columns", (json_int_t)g->columns, "rows", (json_int_t)g->rows,
                  "windows", (json_int_t)g->count, "no_overlap", (json_int_t)outside, "memory_mb", peak_mb(g));
    json_object_set_new(o, "window_s", per_window_s > 0 ? json_real(per_window_s) : json_null());
    json_object_set_new(o, "seconds", per_window_s > 0 ? json_real(seconds) : json_null());
    json_object_set_new(o, "after_direct", json_boolean(i->after.direct));
    char *text = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(9));
    if (text) puts(text);
    free(text);
    json_decref(o);
    return;
  }
  printf("scene    %d x %d pixels, %s", i->width, i->height,
         *i->epsg      ? i->epsg
         : *i->crs_wkt ? "a CRS without EPSG code"
                       : "no CRS");
  if (i->gsd_m > 0) printf(", %.4g m a pixel", i->gsd_m);
  printf("; after image %s; %.1f %% common ground\n", i->after.direct ? "on the same grid" : "warped", i->overlap_share * 100);
  if (i->shift_estimated)
    printf("shift    %.2f, %.2f pixels, confidence %.2f, %s\n", i->shift_x, i->shift_y, i->shift_confidence,
           i->shift_applied ? "undone" : "not undone");
  printf("windows  %lld (%lld columns, %lld rows) of %lld pixels a side, %lld shared", (long long)g->count, (long long)g->columns,
         (long long)g->rows, (long long)g->tile, (long long)(g->tile - g->step));
  if (i->gsd_m > 0) printf(", %.4g m of ground", i->gsd_m * (double)g->tile);
  printf("; %lld outside the common ground\n", (long long)outside);
  printf("memory   about %.0f MB\n", peak_mb(g));
  if (per_window_s > 0)
    printf("time     about %s (%.3g s a window, from %d windows)\n", duration_text(seconds, duration, sizeof duration),
           per_window_s, SAMPLES);
  else
    printf("time     not known: none of the windows that were tried has anything to caption\n");
}

static int dry_run(const scene_plan *p, btc_model *m, const char *prompt) {
  scene_sample s = {.plan = p};
  scene_job job = {.plan = p, .m = m, .prompt = prompt, .next = next_sample, .take = count_sample, .ctx = &s};
  scene_runner *r;
  btc_error err;
  btc_status st = scene_runner_create(&job, &r, &err);
  int64_t start = btc_now_ns();
  if (st == BTC_OK) st = scene_runner_run(r, &err);
  double per_window_s = s.captioned ? (double)(btc_now_ns() - start) * 1e-9 / (double)s.captioned : 0;
  if (st == BTC_OK) print_estimate(p, scene_plan_outside(p), per_window_s);
  scene_runner_destroy(&r);
  if (st == BTC_ERR_CANCELLED) return CLI_INTERRUPTED;
  if (st != BTC_OK) cli_error("%s", err.message);
  return st == BTC_OK ? CLI_OK : CLI_FAILED;
}

/* ---- the whole thing ---- */

static int make_work_folder(const scene_options *o, const scene_files *f) {
  struct stat s;
  if (!o->overwrite && stat(f->out_gpkg, &s) == 0 && stat(f->journal, &s) != 0) {
    cli_error("'%s' is there already, which is the end of a run: --overwrite makes it anew", f->out_gpkg);
    return CLI_FAILED;
  }
  if (mkdir(f->work, 0777) == 0 || errno == EEXIST) return CLI_OK;
  cli_error("cannot make the folder '%s': %s", f->work, strerror(errno));
  return CLI_FAILED;
}

static void print_summary(const scene_plan *p, const scene_files *f, const scene_counts *c, double seconds) {
  const long long total = (long long)p->grid.count,
                  skipped = (long long)c->skipped[1] + (long long)c->skipped[2] + (long long)c->skipped[3];
  if (!p->o->json) {
    cli_error(
        "%lld windows: %lld captioned, %lld of them changed; %lld left out (%lld unchanged, %lld nodata, %lld no-overlap); "
        "%lld failed",
        total, (long long)c->ok, (long long)c->changed, skipped, (long long)c->skipped[BTC_VERDICT_UNCHANGED],
        (long long)c->skipped[BTC_VERDICT_NODATA], (long long)c->skipped[BTC_VERDICT_NO_OVERLAP], (long long)c->failed);
    puts(f->out_gpkg);
    return;
  }
  json_t *o =
      json_pack("{s:I,s:I,s:I,s:{s:I,s:I,s:I},s:I,s:f,s:s,s:s,s:s?,s:s}", "windows", (json_int_t)total, "ok", (json_int_t)c->ok,
                "changed", (json_int_t)c->changed, "skipped", "unchanged", (json_int_t)c->skipped[BTC_VERDICT_UNCHANGED], "nodata",
                (json_int_t)c->skipped[BTC_VERDICT_NODATA], "no-overlap", (json_int_t)c->skipped[BTC_VERDICT_NO_OVERLAP], "failed",
                (json_int_t)c->failed, "seconds", seconds, "gpkg", f->out_gpkg, "records", f->out_records, "geojson",
                *p->info->crs_wkt ? f->out_geojson : NULL, "heat", f->out_tif);
  char *text = o ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
  if (text) puts(text);
  free(text);
  json_decref(o);
}

/* Says why a run stopped, and what it left. */
static int stopped(const scene_work *w, btc_status st, const btc_error *err) {
  const char *again = "the same command goes on from there";
  uint64_t finished = w->journal ? btc_journal_finished(w->journal) : 0;
  if (st == BTC_ERR_CANCELLED || (cli_interrupted && st != BTC_OK)) {
    cli_error("interrupted: %llu of %lld windows are finished; %s", (unsigned long long)finished, (long long)w->plan->grid.count,
              again);
    return CLI_INTERRUPTED;
  }
  cli_error("%s", err->message);
  if (finished)
    cli_error("%llu of %lld windows are finished; %s", (unsigned long long)finished, (long long)w->plan->grid.count, again);
  return CLI_FAILED;
}

static int caption_scene(const scene_plan *p, const scene_files *f, btc_model *m, const char *prompt) {
  scene_work w = {.plan = p, .start_ns = btc_now_ns()};
  scene_job job = {.plan = p, .m = m, .prompt = prompt, .next = next_open, .take = keep, .tick = tick, .ctx = &w};
  scene_runner *r = NULL;
  scene_counts counts = {0};
  btc_model_info info;
  btc_error err;
  char key[65];
  btc_model_get_info(m, &info);
  btc_status st = scene_runner_create(&job, &r, &err);
  if (st == BTC_OK) {
    scene_plan_key(p, scene_runner_model(r), prompt, key);
    st = btc_journal_open(f->journal, key, (uint64_t)p->grid.count, (uint32_t)(info.grid * info.grid), p->o->restart, &w.journal,
                          &err);
    if (st == BTC_ERR_ARG) btc_fail(&err, st, "'%s' holds another run's windows: --restart throws them away", f->work);
  }
  if (st == BTC_OK) {
    w.before = (int64_t)btc_journal_finished(w.journal);
    if (w.before) cli_error("%lld of %lld windows are finished: going on", (long long)w.before, (long long)p->grid.count);
    progress_begin(&w.bar);
    w.start_ns = btc_now_ns();
    st = scene_runner_run(r, &err);
    show(&w, true);
  }
  record_model model;
  if (st == BTC_OK) model = *scene_runner_model(r);
  scene_runner_destroy(&r); /* its memory is not needed for the outputs */
  if (st == BTC_OK) st = btc_journal_sync(w.journal, &err);
  if (st == BTC_OK) st = scene_write(p, f, w.journal, info.grid, &model, prompt, &counts, &err);
  int code = CLI_OK;
  if (st == BTC_OK) {
    scene_files_remove(f, true);
    print_summary(p, f, &counts, (double)(btc_now_ns() - w.start_ns) * 1e-9);
    code = counts.failed ? CLI_SOME_FAILED : CLI_OK;
  } else {
    code = stopped(&w, st, &err);
  }
  btc_journal_close(&w.journal);
  if (st != BTC_OK) rmdir(f->work); /* when nothing came of it */
  return code;
}

static int queue_scene(const scene_plan *p, const scene_files *f, const char *prompt) {
  scene_counts counts = {0};
  int64_t start = btc_now_ns();
  int code = scene_queue_run(p, f, &p->o->queue, prompt, &counts);
  if (code != CLI_OK) return code;
  print_summary(p, f, &counts, (double)(btc_now_ns() - start) * 1e-9);
  return counts.failed ? CLI_SOME_FAILED : CLI_OK;
}

static int run_scene(const scene_options *o) {
  scene_plan plan = {0};
  scene_files files = {0};
  btc_model *m = NULL;
  const char *prompt = NULL;
  char *owned = NULL;
  int code = chosen_device(&o->model) ? CLI_OK : CLI_USAGE;
  if (code == CLI_OK && !o->dry_run) code = scene_files_make(o->out, &files);
  if (code == CLI_OK && !o->dry_run) code = make_work_folder(o, &files);
  bool folder = code == CLI_OK && !o->dry_run;
  if (code == CLI_OK) code = read_prompt(&o->model, &prompt, &owned);
  if (code == CLI_OK) code = scene_plan_make(o, &plan);
  bool away = o->queue.broker && !o->dry_run;
  if (code == CLI_OK && !away) code = open_model(&o->model, &m);
  if (code != CLI_OK) {
    if (folder) rmdir(files.work); /* an empty one only */
  } else if (o->dry_run) {
    code = dry_run(&plan, m, prompt);
  } else {
    code = away ? queue_scene(&plan, &files, prompt) : caption_scene(&plan, &files, m, prompt);
  }
  btc_model_close(&m);
  scene_plan_clear(&plan);
  scene_files_clear(&files);
  free(owned);
  return code;
}

#define FLAG(n, t, h) \
  { .name = n, .type = CLI_FLAG, .target = &(t), .help = h }
#define TEXT(n, t, v, h) \
  { .name = n, .type = CLI_TEXT, .target = &(t), .value = v, .help = h }

static int run(int argc, char **argv) {
  scene_options o = {.model = model_options_default,
                     .tile = 256,
                     .queue = broker_options_default,
                     .overlap = 64,
                     .max_nodata = 0.5,
                     .stretch = "auto",
                     .shift = "none"};
  cli_option table[] = {
      {.name = "output",
       .letter = 'o',
       .type = CLI_TEXT,
       .target = &o.out,
       .value = "OUT.gpkg",
       .help = "what to write; its name names the other files"},
      {.name = "tile",
       .type = CLI_INT,
       .target = &o.tile,
       .value = "N",
       .help = "side of a window, pixels (default 256, as in training)",
       .low = 8,
       .high = BTC_GRID_MAX_TILE},
      {.name = "overlap",
       .type = CLI_INT,
       .target = &o.overlap,
       .value = "N",
       .help = "pixels that neighbouring windows share (default 64)",
       .low = 0,
       .high = BTC_GRID_MAX_TILE},
      {.name = "gsd",
       .type = CLI_REAL,
       .target = &o.gsd_m,
       .value = "M",
       .help = "metres a pixel of the grid, 0 = those of BEFORE (default 0; models were trained at 0.5)",
       .low = 0,
       .high = 100000},
      {.name = "max-nodata",
       .type = CLI_REAL,
       .target = &o.max_nodata,
       .value = "P",
       .help = "leave out windows that lack a larger share of pixels (default 0.5)",
       .low = 0,
       .high = 1},
      TEXT("bands", o.bands, "R,G,B", "band numbers from 1 (default: by colour, else the first three)"),
      TEXT("stretch", o.stretch, "S", "values to 8 bits: auto, none, joint or each (2 to 98 percent), or LOW,HIGH (default auto)"),
      {.name = "shift",
       .type = CLI_CHOICE,
       .target = &o.shift,
       .value = "S",
       .help = "estimate a small shift between the images, or apply it too (default none)",
       .choices = "none|estimate|apply"},
      TEXT("before-date", o.before_date, "DATE", "2019-05-31 or 2019-05-31T10:20:30 (default: the file's TIFFTAG_DATETIME)"),
      TEXT("after-date", o.after_date, "DATE", "the same for AFTER"),
      FLAG("pixels", o.pixels, "leave georeferences aside: images of equal size"),
      TEXT("roots", o.roots, "DIRS", "colon-separated folders that the images must lie in (default: anywhere)"),
      FLAG("allow-vsi", o.allow_vsi, "take GDAL's network paths like /vsicurl/"),
      TEXT("broker", o.queue.broker, "LIST",
           "caption over the queue of these brokers, which see images and OUT under the same paths"),
      TEXT("keys", o.queue.keys, "FILE", "for --broker: secret key file of 'btcchat keygen' (default none: loopback only)"),
      TEXT("server-key", o.queue.server_key, "FILE", "for --broker: the brokers' public key file"),
      FLAG("dry-run", o.dry_run, "print grid, windows, memory and time, and write nothing"),
      FLAG("restart", o.restart, "throw away what a stopped run has finished"),
      FLAG("overwrite", o.overwrite, "replace outputs that are there"),
      FLAG("json", o.json, "summary (or --dry-run) as one JSON object"),
      MODEL_OPTION_ROWS(o.model),
      PROMPT_OPTION_ROWS(o.model),
      ANSWER_OPTION_ROWS(o.model),
      {.name = "batch",
       .letter = 'b',
       .type = CLI_INT,
       .target = &o.model.batch,
       .value = "N",
       .help = "windows computed together (default 8)",
       .low = 1,
       .high = 256},
  };
  char **args;
  int n, code;
  o.model.batch = 8;
  o.queue.broker = NULL;
  if (!cli_parse(&cmd_scene, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n != 2) return cli_usage_error(&cmd_scene, "two images expected, before and after; got %d", n);
  if (!o.out && !o.dry_run) return cli_usage_error(&cmd_scene, "where to? give -o OUT.gpkg");
  if (o.overlap >= o.tile)
    return cli_usage_error(&cmd_scene, "--overlap %lld must be less than --tile %lld", (long long)o.overlap, (long long)o.tile);
  o.before = args[0];
  o.after = args[1];
  signal(SIGXFSZ, SIG_IGN); /* a limit on file sizes is then an error like a full disk */
  return run_scene(&o);
}
