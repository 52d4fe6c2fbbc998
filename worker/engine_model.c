/* The engine with a model: a batcher, which items join at any time. */
#include <stdlib.h>
#include <string.h>

#include "engine/batcher.h"
#include "engine_items.h"

typedef struct model_engine {
  worker_engine base;
  btc_model *m;
  btc_batcher *b;
  engine_items items;
} model_engine;

static void on_done(void *ctx, void *tag, btc_result *r) {
  engine_items_done(&((model_engine *)ctx)->items, tag, r);
}

static void on_note(void *ctx, const char *text) {
  const worker_sink *sink = ((model_engine *)ctx)->items.sink;
  if (sink && sink->note) sink->note(sink->ctx, text);
}

static size_t room(const worker_engine *base) {
  return (size_t)btc_batcher_room(((const model_engine *)base)->b);
}

static size_t open_items(const worker_engine *base) {
  return (size_t)btc_batcher_open(((const model_engine *)base)->b);
}

static btc_status add(worker_engine *base, const worker_item *item, uint64_t ticket, const worker_sink *sink, btc_error *err) {
  model_engine *e = (model_engine *)base;
  open_item *o;
  btc_status st = engine_items_add(&e->items, item, ticket, sink, &o, err);
  if (st != BTC_OK || !o) return st;
  st = btc_batcher_submit(e->b, &o->it.ask, o, err);
  if (st != BTC_OK) engine_items_cancel(o);
  return st;
}

static btc_status step(worker_engine *base, const worker_sink *sink, btc_error *err) {
  model_engine *e = (model_engine *)base;
  e->items.sink = sink;
  btc_status st = btc_batcher_step(e->b, err);
  e->items.sink = NULL;
  return st;
}

static size_t devices(const worker_engine *base, btc_device_info *out, size_t room) {
  return room && btc_batcher_device(((const model_engine *)base)->b, out);
}

static void destroy(worker_engine *base) {
  model_engine *e = (model_engine *)base;
  btc_batcher_destroy(&e->b);
  engine_items_close(&e->items);
  btc_model_close(&e->m);
  free(e);
}

static btc_status open_all(model_engine *e, const btc_worker_options *o, btc_error *err) {
  btc_batcher_options bo = {.device = o->device, .threads = o->threads, .slots = o->batch, .max_tokens = o->max_tokens};
  bo.precision = engine_precision(o);
  bo.progress = &e->base.progress;
  bo.done = on_done;
  bo.note = on_note;
  bo.ctx = e;
  btc_status st = btc_model_open(o->model, &e->m, err);
  if (st == BTC_OK) st = btc_batcher_create(e->m, &bo, &e->b, err);
  if (st != BTC_OK) return st;
  return engine_items_open(&e->items, e->m, btc_batcher_precision(e->b), o, (size_t)btc_batcher_room(e->b), &e->base.progress, err);
}

btc_precision engine_precision(const btc_worker_options *o) {
  return !strcmp(o->dtype, "f32") ? BTC_PRECISION_F32 : !strcmp(o->dtype, "bf16") ? BTC_PRECISION_BF16 : BTC_PRECISION_AUTO;
}

btc_status engine_model_create(const btc_worker_options *o, worker_engine **out, btc_error *err) {
  *out = NULL;
  if (!o->model) return btc_fail(err, BTC_ERR_ARG, "no model: give one with -m DIR or BTCCHAT_MODEL");
  model_engine *e = btc_alloc_zero(1, sizeof *e);
  if (!e) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  e->base = (worker_engine){
      .batch = o->batch, .room = room, .open = open_items, .add = add, .step = step, .devices = devices, .destroy = destroy};
  btc_status st = open_all(e, o, err);
  if (st != BTC_OK) {
    destroy(&e->base);
    return st;
  }
  engine_items_name(&e->items, &e->base);
  *out = &e->base;
  return st;
}
