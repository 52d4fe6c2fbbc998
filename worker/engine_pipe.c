/* The engine with a model that is cut over several processes of this machine (pipe.h). Takes batches. */
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/stage.h"
#include "item.h"
#include "pipe.h"
#include "shard.h"
#include "window.h"

typedef struct pipe_engine {
  worker_engine base;
  pipe_driver *p;
  char *roots;
  window_reader *windows;
  record_model record;
  work_item *items;    /* [batch] */
  btc_item *asks;      /* [batch] */
  btc_result *results; /* [batch] */
} pipe_engine;

/* The items that have something to compute, in one run of the pipeline. */
static btc_status caption(pipe_engine *e, size_t n, btc_error *err) {
  size_t m = 0;
  for (size_t i = 0; i < n; i++) {
    if (e->items[i].bad) continue;
    item_fill_ask(&e->items[i]);
    e->asks[m++] = e->items[i].ask;
  }
  btc_status st = m ? pipe_run(e->p, e->asks, m, e->results, err) : BTC_OK;
  m = 0;
  for (size_t i = 0; i < n; i++)
    if (!e->items[i].bad) e->items[i].result = e->results[m++];
  return st;
}

/* A pipeline that broke for good leaves its items to the caller, who reports them as passing failures. */
static btc_status run(worker_engine *base, const worker_item *items, size_t n, const worker_sink *sink, btc_error *err) {
  pipe_engine *e = (pipe_engine *)base;
  btc_status st = BTC_OK;
  size_t made = 0;
  for (; st == BTC_OK && made < n; made++) {
    st = item_from_spec(&e->items[made], items[made].spec, items[made].params, err);
    if (st == BTC_OK) st = item_take_window(&e->items[made], items[made].spec, items[made].params, e->windows, err);
    if (st == BTC_OK) item_refuse_outside(&e->items[made], e->roots);
  }
  if (st == BTC_OK) st = caption(e, n, err);
  for (size_t i = 0; st == BTC_OK && i < n; i++) {
    worker_answer a;
    st = engine_answer(pipe_model(e->p), &e->record, &e->items[i], &a, err);
    if (st == BTC_OK) sink->done(sink->ctx, i, &a);
  }
  for (size_t i = 0; i < made; i++) item_clear(&e->items[i]);
  return st;
}

static void destroy(worker_engine *base) {
  pipe_engine *e = (pipe_engine *)base;
  pipe_destroy(&e->p);
  window_reader_destroy(&e->windows);
  free(e->items);
  free(e->asks);
  free(e->results);
  free(e->roots);
  free(e);
}

static btc_status open_pipe(pipe_engine *e, const btc_worker_options *o, btc_error *err) {
  int cuts[PIPE_MAX_RANKS + 1];
  btc_model *m = NULL;
  pipe_options po = pipe_options_default();
  po.device = o->device;
  po.threads = o->threads;
  po.max_tokens = o->max_tokens;
  po.groups = o->pipe + 1;
  po.batch = (o->batch + po.groups - 1) / po.groups;
  po.precision = !strcmp(o->dtype, "f32") ? BTC_PRECISION_F32 : !strcmp(o->dtype, "bf16") ? BTC_PRECISION_BF16 : BTC_PRECISION_AUTO;
  po.progress = &e->base.progress;
  btc_status st = btc_model_open(o->model, &m, err);
  if (st == BTC_OK) st = pipe_even_cuts(m, o->pipe, cuts, err);
  btc_model_close(&m);
  return st == BTC_OK ? pipe_create(o->model, cuts, o->pipe, &po, &e->p, err) : st;
}

static btc_status open_all(pipe_engine *e, const btc_worker_options *o, btc_error *err) {
  size_t batch = (size_t)o->batch;
  e->roots = btc_strdup(o->roots);
  e->items = btc_alloc_zero(batch, sizeof *e->items);
  e->asks = btc_alloc_zero(batch, sizeof *e->asks);
  e->results = btc_alloc_zero(batch, sizeof *e->results);
  if (!e->items || !e->asks || !e->results || (o->roots && !e->roots)) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  btc_status st = open_pipe(e, o, err);
  btc_model_info info = {0};
  if (st == BTC_OK) btc_model_get_info(pipe_model(e->p), &info);
  if (st == BTC_OK && !(e->windows = window_reader_create(o->roots, info.grid, &e->base.progress)))
    st = btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  if (st == BTC_OK) st = record_model_fill(pipe_model(e->p), pipe_precision(e->p), &e->record, err);
  if (st == BTC_OK) btc_shard_drop_weights(pipe_model(e->p)); /* the fingerprint read them all */
  return st;
}

btc_status engine_pipe_create(const btc_worker_options *o, worker_engine **out, btc_error *err) {
  *out = NULL;
  if (!o->model) return btc_fail(err, BTC_ERR_ARG, "no model: give one with -m DIR or BTCCHAT_MODEL");
  pipe_engine *e = btc_alloc_zero(1, sizeof *e);
  if (!e) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  e->base = (worker_engine){.batch = o->batch, .run = run, .destroy = destroy};
  btc_status st = open_all(e, o, err);
  if (st == BTC_OK) {
    snprintf(e->base.model_name, sizeof e->base.model_name, "%s", e->record.name);
    snprintf(e->base.model_class, sizeof e->base.model_class, "%s-%s", e->record.fingerprint, e->record.dtype);
    *out = &e->base;
  } else {
    destroy(&e->base);
  }
  return st;
}
