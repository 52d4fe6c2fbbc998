/*
 * Windows through the batcher. Its reading thread asks for a window's images (load below), so that decoding the next windows goes
 * on beside the model; how far ahead is bounded by the batcher's table. Windows with nothing to caption end in that thread.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/batcher.h"
#include "engine/prompt.h"
#include "geo/heat.h"
#include "scene.h"

enum { GIVE_UP = 5 /* windows in a row whose decoder died: the scene's reader stops there too (scene.h) */ };

typedef struct scene_slot {
  scene_runner *r;
  bool used;
  int64_t index;
  btc_item item;
  btc_window_pixels px;    /* the reading thread's until the item is answered */
  btc_geo_failure failure; /* reason NONE: reading did not fail */
} scene_slot;

struct scene_runner {
  scene_job job;
  record_model model;
  btc_batcher *b;
  int64_t grid; /* cells a side */
  scene_slot *slots;
  int n_slots, dead_in_row;
  uint16_t *cells; /* [grid, grid] */
  btc_status status;
  btc_error err;
};

/* ---- reading ---- */

static btc_status load(void *ctx, int i, btc_pixels *out, btc_error *err) {
  scene_slot *s = ctx;
  const scene_plan *p = s->r->job.plan;
  btc_window w = btc_grid_window(&p->grid, s->index);
  if (i == 0) {
    btc_status st = btc_window_read(p->scene, &w, p->o->max_nodata, s->r->grid, &s->px, &s->failure);
    if (st != BTC_OK) return btc_fail(err, st, "%s", s->failure.error.message);
    if (s->px.verdict != BTC_VERDICT_CAPTION) return btc_fail(err, BTC_ERR_UNSUPPORTED, "nothing to caption");
  }
  uint8_t **rgb = i ? &s->px.after : &s->px.before;
  *out = (btc_pixels){.width = w.width, .height = w.height, .rgb = *rgb};
  *rgb = NULL;
  return BTC_OK;
}

/* ---- records ---- */

static char *make_record(const scene_runner *r, const scene_slot *s, const btc_result *result) {
  const char *prompt = r->job.prompt ? r->job.prompt : btc_prompt_caption;
  scene_id id;
  char *line;
  scene_window_id(&r->job.plan->grid, s->index, id);
  if (s->px.verdict != BTC_VERDICT_CAPTION)
    line = record_skipped(&r->model, id, prompt, NULL, btc_verdict_reason(s->px.verdict), btc_verdict_message(&s->px),
                          s->px.verdict == BTC_VERDICT_UNCHANGED);
  else if (s->failure.reason != BTC_GEO_NONE)
    line = record_failed(&r->model, id, prompt, NULL, btc_geo_reason_text(s->failure.reason), s->failure.error.message);
  else
    line = record_line(r->job.m, &r->model, id, prompt, NULL, true, result);
  return scene_record_place(r->job.plan, s->index, line);
}

/* The window's part of the change map; NULL: it has none. */
static const uint16_t *make_cells(scene_runner *r, const scene_slot *s, const btc_result *result) {
  bool same = s->px.verdict == BTC_VERDICT_UNCHANGED;
  if (!same && (s->px.verdict != BTC_VERDICT_CAPTION || result->status != BTC_OK || !result->cosine)) return NULL;
  for (int64_t i = 0; i < r->grid * r->grid; i++)
    r->cells[i] = !s->px.cell[i] ? BTC_HEAT_NONE : same ? 0 : btc_heat_cell(result->cosine[i]);
  return r->cells;
}

/* ---- the run ---- */

static void stop(scene_runner *r, btc_status st, const btc_error *err) {
  if (r->status != BTC_OK) return;
  r->status = st;
  r->err = *err;
}

static void count_deaths(scene_runner *r, const scene_slot *s) {
  btc_geo_reason why = s->failure.reason;
  bool dead = why == BTC_GEO_CRASH || why == BTC_GEO_TIMEOUT || why == BTC_GEO_OOM || why == BTC_GEO_INTERNAL;
  btc_error err;
  r->dead_in_row = dead ? r->dead_in_row + 1 : 0;
  if (r->dead_in_row < GIVE_UP) return;
  btc_fail(&err, BTC_ERR_IO, "the decoder died on %d windows in a row: %s", GIVE_UP, s->failure.error.message);
  stop(r, BTC_ERR_IO, &err);
}

static void finish(scene_runner *r, scene_slot *s, const btc_result *result) {
  bool skipped = s->px.verdict != BTC_VERDICT_CAPTION, failed = !skipped && result->status != BTC_OK;
  btc_error err;
  char *record = make_record(r, s, result);
  btc_status st = record ? r->job.take(r->job.ctx, s->index, record, make_cells(r, s, result), failed, !skipped && !failed, &err)
                         : btc_fail(&err, BTC_ERR_NOMEM, "out of memory");
  free(record);
  if (st != BTC_OK) stop(r, st, &err);
  count_deaths(r, s);
}

/* After an interruption or a stop, what is answered only because of it is not finished. */
static void on_done(void *ctx, void *tag, btc_result *result) {
  scene_runner *r = ctx;
  scene_slot *s = tag;
  bool cancelled = result->status == BTC_ERR_CANCELLED || s->failure.reason == BTC_GEO_CANCELLED;
  bool doubtful = cli_interrupted && result->status != BTC_OK && s->px.verdict == BTC_VERDICT_CAPTION;
  if (r->status == BTC_OK && !cancelled && !doubtful) finish(r, s, result);
  btc_window_pixels_clear(&s->px);
  btc_result_clear(result);
  s->used = false;
}

static scene_slot *free_slot(scene_runner *r) {
  int i = 0;
  while (i < r->n_slots && r->slots[i].used) i++;
  return i < r->n_slots ? &r->slots[i] : NULL;
}

static btc_status submit(scene_runner *r, int64_t index, btc_error *err) {
  scene_slot *s = free_slot(r);
  if (!s) return btc_fail(err, BTC_ERR_INTERNAL, "no slot for a window");
  *s = (scene_slot){.r = r, .used = true, .index = index};
  set_sampling(&r->job.plan->o->model, &s->item);
  s->item.n_images = 2;
  s->item.load = load;
  s->item.load_ctx = s;
  s->item.question = r->job.prompt;
  return btc_batcher_submit(r->b, &s->item, s, err);
}

btc_status scene_runner_run(scene_runner *r, btc_error *err) {
  bool more = true;
  btc_status st = BTC_OK;
  r->dead_in_row = 0;
  while (st == BTC_OK && r->status == BTC_OK && (more || btc_batcher_open(r->b))) {
    while (st == BTC_OK && more && btc_batcher_room(r->b)) {
      int64_t index = r->job.next(r->job.ctx);
      if (index < 0) more = false;
      if (index >= 0) st = submit(r, index, err);
    }
    if (st == BTC_OK) st = btc_batcher_step(r->b, err);
    if (r->job.tick) r->job.tick(r->job.ctx);
  }
  if (r->status != BTC_OK) {
    st = r->status;
    *err = r->err;
  }
  return cli_interrupted && st != BTC_OK ? BTC_ERR_CANCELLED : st;
}

/* ---- life ---- */

static void on_note(void *ctx, const char *text) {
  (void)ctx;
  fprintf(stderr, "btcchat: %s\n", text);
}

static btc_status open_all(scene_runner *r, btc_error *err) {
  const model_options *o = &r->job.plan->o->model;
  btc_model_info info;
  btc_model_get_info(r->job.m, &info);
  if (info.change_layers < 0) return btc_fail(err, BTC_ERR_MODEL, "the model has no change module: it captions no pairs");
  r->grid = info.grid;
  btc_batcher_options bo = {.device = chosen_device(o),
                            .threads = (int)o->threads,
                            .slots = (int)o->batch,
                            .max_tokens = (int)o->max_tokens,
                            .cancel = &cli_interrupted,
                            .done = on_done,
                            .note = on_note,
                            .ctx = r};
  bo.precision = !strcmp(o->dtype, "f32") ? BTC_PRECISION_F32 : !strcmp(o->dtype, "bf16") ? BTC_PRECISION_BF16 : BTC_PRECISION_AUTO;
  btc_status st = btc_batcher_create(r->job.m, &bo, &r->b, err);
  if (st == BTC_OK) st = record_model_fill(r->job.m, btc_batcher_precision(r->b), &r->model, err);
  if (st != BTC_OK) return st;
  r->n_slots = btc_batcher_room(r->b);
  r->slots = btc_alloc_zero((size_t)r->n_slots, sizeof *r->slots);
  r->cells = btc_alloc((size_t)(r->grid * r->grid), sizeof *r->cells);
  return r->slots && r->cells ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
}

btc_status scene_runner_create(const scene_job *job, scene_runner **out, btc_error *err) {
  *out = NULL;
  scene_runner *r = btc_alloc_zero(1, sizeof *r);
  if (!r) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  r->job = *job;
  btc_status st = open_all(r, err);
  if (st == BTC_OK)
    *out = r;
  else
    scene_runner_destroy(&r);
  return st;
}

const record_model *scene_runner_model(const scene_runner *r) {
  return &r->model;
}

void scene_runner_destroy(scene_runner **rp) {
  scene_runner *r = *rp;
  btc_error gone;
  if (!r) return;
  stop(r, btc_fail(&gone, BTC_ERR_CANCELLED, "stopped"), &gone); /* what is still open is not finished */
  btc_batcher_destroy(&r->b);
  free(r->slots);
  free(r->cells);
  free(r);
  *rp = NULL;
}
