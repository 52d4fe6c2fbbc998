/* The engine with a model: a batcher, which items join at any time. Failures are sorted into the item's own (never tried again) and
 * passing ones. */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/batcher.h"
#include "item.h"
#include "window.h"

typedef struct open_item {
  work_item it;
  uint64_t ticket;
  bool used;
} open_item;

typedef struct model_engine {
  worker_engine base;
  btc_model *m;
  btc_batcher *b;
  char *roots;
  window_reader *windows;
  record_model record;
  open_item *items; /* [n_items] */
  size_t n_items;
  const worker_sink *sink; /* of the step that runs */
} model_engine;

/* An image that could not be read: is it the item's fault? The system is asked again, since a refusal or a folder stays what it is,
 * while a sick disk or file server may recover. */
static bool read_fails_for_good(const char *path) {
  char byte;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  ssize_t n = fd < 0 ? -1 : read(fd, &byte, 1);
  int why = errno;
  if (fd >= 0) close(fd);
  return n < 0 && (why == EACCES || why == EPERM || why == EISDIR || why == ENXIO || why == ELOOP || why == ENAMETOOLONG);
}

static bool passing(const work_item *it, const char **reason) {
  const btc_result *r = &it->result;
  *reason = item_reason(it);
  if (it->window && it->window->failure.reason != BTC_GEO_NONE) { /* a decoder that died may do better; a file stays what it is */
    btc_geo_reason why = it->window->failure.reason;
    return why == BTC_GEO_TIMEOUT || why == BTC_GEO_OOM || why == BTC_GEO_CRASH || why == BTC_GEO_INTERNAL;
  }
  if (r->status == BTC_ERR_NOMEM) return true;
  if (r->status != BTC_ERR_IO || it->bad || r->phase != BTC_PHASE_IMAGE) return false;
  return !read_fails_for_good(it->paths[0]) && !read_fails_for_good(it->paths[1]);
}

btc_status engine_answer(const btc_model *m, const record_model *record, work_item *it, worker_answer *a, btc_error *err) {
  *a = (worker_answer){.outcome = BTC__OUTCOME__OUTCOME_OK, .reason = ""};
  if (item_failed(it)) {
    a->outcome = passing(it, &a->reason) ? BTC__OUTCOME__OUTCOME_TRANSIENT : BTC__OUTCOME__OUTCOME_PERMANENT;
    a->message = btc_strdup(it->result.error.message);
  }
  a->record = item_record(m, record, it);
  a->id = it->id;
  it->id = NULL;
  if (a->record && (a->message || !item_failed(it))) return BTC_OK;
  worker_answer_clear(a);
  return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
}

/* An answer for which there is no memory still says so. */
static void say(model_engine *e, work_item *it, uint64_t ticket, const worker_sink *sink) {
  worker_answer a;
  btc_error err;
  btc_status st = engine_answer(e->m, &e->record, it, &a, &err);
  if (st != BTC_OK) {
    a = (worker_answer){.outcome = BTC__OUTCOME__OUTCOME_TRANSIENT, .reason = "oom", .message = btc_strdup(err.message)};
    a.id = it->id;
    it->id = NULL;
  }
  sink->done(sink->ctx, ticket, &a);
}

static void on_done(void *ctx, void *tag, btc_result *r) {
  model_engine *e = ctx;
  open_item *o = tag;
  o->it.result = *r;
  if (e->sink) say(e, &o->it, o->ticket, e->sink);
  item_clear(&o->it);
  o->used = false;
}

static size_t room(const worker_engine *base) {
  return (size_t)btc_batcher_room(((const model_engine *)base)->b);
}

static size_t open_items(const worker_engine *base) {
  return (size_t)btc_batcher_open(((const model_engine *)base)->b);
}

static btc_status add(worker_engine *base, const worker_item *item, uint64_t ticket, const worker_sink *sink, btc_error *err) {
  model_engine *e = (model_engine *)base;
  size_t i = 0;
  while (i < e->n_items && e->items[i].used) i++;
  if (i == e->n_items) return btc_fail(err, BTC_ERR_LIMIT, "the engine has no room for another item");
  open_item *o = &e->items[i];
  btc_status st = item_from_spec(&o->it, item->spec, item->params, err);
  if (st == BTC_OK) st = item_take_window(&o->it, item->spec, item->params, e->windows, err);
  if (st == BTC_OK) item_refuse_outside(&o->it, e->roots);
  if (st == BTC_OK && !o->it.bad) {
    o->ticket = ticket;
    o->used = true;
    item_fill_ask(&o->it);
    st = btc_batcher_submit(e->b, &o->it.ask, o, err);
    if (st == BTC_OK) return BTC_OK;
    o->used = false;
  } else if (st == BTC_OK) {
    say(e, &o->it, ticket, sink);
  }
  item_clear(&o->it);
  return st;
}

static btc_status step(worker_engine *base, const worker_sink *sink, btc_error *err) {
  model_engine *e = (model_engine *)base;
  e->sink = sink;
  btc_status st = btc_batcher_step(e->b, err);
  e->sink = NULL;
  return st;
}

static void destroy(worker_engine *base) {
  model_engine *e = (model_engine *)base;
  btc_batcher_destroy(&e->b);
  window_reader_destroy(&e->windows);
  btc_model_close(&e->m);
  free(e->items);
  free(e->roots);
  free(e);
}

static btc_status open_batcher(model_engine *e, const btc_worker_options *o, btc_error *err) {
  btc_batcher_options bo = {.device = o->device, .threads = o->threads, .slots = o->batch, .max_tokens = o->max_tokens};
  bo.precision = !strcmp(o->dtype, "f32") ? BTC_PRECISION_F32 : !strcmp(o->dtype, "bf16") ? BTC_PRECISION_BF16 : BTC_PRECISION_AUTO;
  bo.progress = &e->base.progress;
  bo.done = on_done;
  bo.ctx = e;
  btc_status st = btc_batcher_create(e->m, &bo, &e->b, err);
  if (st != BTC_OK) return st;
  e->n_items = (size_t)btc_batcher_room(e->b);
  e->items = btc_alloc_zero(e->n_items, sizeof *e->items);
  return e->items ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
}

static btc_status open_all(model_engine *e, const btc_worker_options *o, btc_error *err) {
  e->roots = btc_strdup(o->roots);
  if (o->roots && !e->roots) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  btc_status st = btc_model_open(o->model, &e->m, err);
  if (st == BTC_OK) st = open_batcher(e, o, err);
  btc_model_info info = {0};
  if (st == BTC_OK) btc_model_get_info(e->m, &info);
  if (st == BTC_OK && !(e->windows = window_reader_create(o->roots, info.grid, &e->base.progress)))
    st = btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  if (st == BTC_OK) st = record_model_fill(e->m, btc_batcher_precision(e->b), &e->record, err);
  return st;
}

btc_status engine_model_create(const btc_worker_options *o, worker_engine **out, btc_error *err) {
  *out = NULL;
  if (!o->model) return btc_fail(err, BTC_ERR_ARG, "no model: give one with -m DIR or BTCCHAT_MODEL");
  model_engine *e = btc_alloc_zero(1, sizeof *e);
  if (!e) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  e->base = (worker_engine){.batch = o->batch, .room = room, .open = open_items, .add = add, .step = step, .destroy = destroy};
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
