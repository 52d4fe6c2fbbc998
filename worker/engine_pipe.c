/*
 * The engine with a model that is cut over several processes (pipe.h): of this machine, which it starts itself, or of several
 * workers, whose agents do. Items join at any time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine_items.h"
#include "engine/stage.h"
#include "link_nccl.h"
#include "measure.h"
#include "pipe.h"
#include "shard.h"

typedef struct pipe_engine {
  worker_engine base;
  pipe_driver *p;
  engine_items items;
} pipe_engine;

static void on_done(void *ctx, void *tag, btc_result *r) {
  pipe_engine *e = ctx;
  e->items.failing = pipe_is_failing(e->p);
  engine_items_done(&e->items, tag, r);
}

static void on_note(void *ctx, const char *text) {
  const worker_sink *sink = ((pipe_engine *)ctx)->items.sink;
  if (sink && sink->note) sink->note(sink->ctx, text);
}

static size_t room(const worker_engine *base) {
  return (size_t)pipe_room(((const pipe_engine *)base)->p);
}

static size_t open_items(const worker_engine *base) {
  return (size_t)pipe_open(((const pipe_engine *)base)->p);
}

static btc_status add(worker_engine *base, const worker_item *item, uint64_t ticket, const worker_sink *sink, btc_error *err) {
  pipe_engine *e = (pipe_engine *)base;
  open_item *o;
  btc_status st = engine_items_add(&e->items, item, ticket, sink, &o, err);
  if (st != BTC_OK || !o) return st;
  st = pipe_submit(e->p, &o->it.ask, o, err);
  if (st != BTC_OK) engine_items_cancel(o);
  return st;
}

static btc_status step(worker_engine *base, const worker_sink *sink, btc_error *err) {
  pipe_engine *e = (pipe_engine *)base;
  e->items.sink = sink;
  btc_status st = pipe_step(e->p, err);
  e->items.sink = NULL;
  return st;
}

static size_t devices(const worker_engine *base, btc_device_info *out, size_t room) {
  return pipe_devices(((const pipe_engine *)base)->p, out, room);
}

static void destroy(worker_engine *base) {
  pipe_engine *e = (pipe_engine *)base;
  pipe_destroy(&e->p);
  engine_items_close(&e->items);
  measure_free(&e->base.caps);
  free(e);
}

static pipe_options options_of(pipe_engine *e, const btc_worker_options *o) {
  pipe_options po = pipe_options_default();
  po.device = o->device;
  po.threads = o->threads;
  po.max_tokens = o->max_tokens;
  po.slots = o->batch;
  po.precision = engine_precision(o);
  pipe_tensors_named(o->tensors, &po.tensors); /* the command line has checked it */
  po.progress = &e->base.progress;
  po.done = on_done;
  po.note = on_note;
  po.ctx = e;
  return po;
}

static btc_status new_engine(const btc_worker_options *o, pipe_engine **out, btc_error *err) {
  if (!o->model) return btc_fail(err, BTC_ERR_ARG, "no model: give one with -m DIR or BTCCHAT_MODEL");
  pipe_engine *e = *out = btc_alloc_zero(1, sizeof *e);
  if (!e) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  e->base = (worker_engine){
      .batch = o->batch, .room = room, .open = open_items, .add = add, .step = step, .devices = devices, .destroy = destroy};
  return BTC_OK;
}

static btc_status open_items_of(pipe_engine *e, const btc_worker_options *o, btc_error *err) {
  btc_status st =
      engine_items_open(&e->items, pipe_model(e->p), pipe_precision(e->p), o, (size_t)pipe_room(e->p), &e->base.progress, err);
  if (st != BTC_OK) return st;
  btc_shard_drop_weights(pipe_model(e->p)); /* the fingerprint may have read them all */
  engine_items_name(&e->items, &e->base);
  return BTC_OK;
}

static btc_status finish(pipe_engine *e, btc_status st, worker_engine **out) {
  if (st == BTC_OK)
    *out = &e->base;
  else if (e)
    destroy(&e->base);
  return st;
}

/* ---- ranks of this machine ---- */

static btc_status open_pipe(pipe_engine *e, const btc_worker_options *o, btc_error *err) {
  int cuts[PIPE_MAX_RANKS + 1];
  btc_model *m = NULL;
  pipe_options po = options_of(e, o);
  btc_status st = btc_model_open(o->model, &m, err);
  if (st == BTC_OK) st = pipe_even_cuts(m, o->pipe, cuts, err);
  btc_model_close(&m);
  return st == BTC_OK ? pipe_create(o->model, cuts, o->pipe, &po, &e->p, err) : st;
}

btc_status engine_pipe_create(const btc_worker_options *o, worker_engine **out, btc_error *err) {
  pipe_engine *e = NULL;
  *out = NULL;
  btc_status st = new_engine(o, &e, err);
  if (st == BTC_OK) st = open_pipe(e, o, err);
  if (st == BTC_OK && e) st = open_items_of(e, o, err);
  return finish(e, st, out);
}

/* ---- ranks of other workers ---- */

static btc_status measure(pipe_engine *e, const btc_worker_options *o, btc_error *err) {
  const measure_options mo = {.device = o->device,
                              .threads = o->threads,
                              .bf16 = pipe_precision(e->p) == BTC_PRECISION_BF16,
                              .slots = o->batch,
                              .max_tokens = o->max_tokens,
                              .places = pipe_places(e->p),
                              .class = e->base.model_class};
  btc_status st = measure_member(pipe_model(e->p), &mo, &e->base.caps, err);
  btc_shard_drop_weights(pipe_model(e->p));
  return st;
}

/* Whether other ranks' tensors can come to our GPU by NCCL. An error only when that is asked for. */
static btc_status look_for_nccl(pipe_engine *e, const btc_worker_options *o, btc_error *err) {
  pipe_tensors tensors;
  btc_device_info info;
  pipe_tensors_named(o->tensors, &tensors);
  if (tensors == PIPE_TENSORS_TCP || (tensors == PIPE_TENSORS_AUTO && strncmp(o->device, "cuda", 4) != 0)) return BTC_OK;
  btc_status st = btc_device_query(btc_device_index(o->device), &info, err);
  if (strncmp(o->device, "cuda", 4) != 0) st = btc_fail(err, BTC_ERR_UNSUPPORTED, "device %s is no GPU", o->device);
  if (st == BTC_OK) {
    e->base.caps.nccl = link_nccl_version(err);
    snprintf(e->base.caps.card, sizeof e->base.caps.card, "%s", info.card);
  }
  if (e->base.caps.nccl || tensors == PIPE_TENSORS_AUTO) return BTC_OK;
  return btc_fail_prefix(err, "tensors cannot go by NCCL");
}

btc_status engine_member_create(const btc_worker_options *o, worker_engine **out, btc_error *err) {
  pipe_engine *e = NULL;
  *out = NULL;
  btc_status st = new_engine(o, &e, err);
  if (st == BTC_OK) {
    pipe_options po = options_of(e, o);
    st = pipe_create_remote(o->model, WORKER_CHILD_CONTROL, WORKER_CHILD_LINKS, &po, &e->p, err);
  }
  if (!e) return st;
  if (st == BTC_OK) st = open_items_of(e, o, err);
  if (st == BTC_OK) st = measure(e, o, err);
  if (st == BTC_OK && o->memory_mib * 1048576 >= (double)e->base.caps.whole_bytes) {
    destroy(&e->base);
    return engine_model_create(o, out, err);
  }
  if (st == BTC_OK) st = look_for_nccl(e, o, err);
  if (st == BTC_OK) e->base.wake_fd = pipe_wake_fd(e->p);
  return finish(e, st, out);
}
