/* See engine_items.h. */
#define _GNU_SOURCE
#include "engine_items.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "window.h"

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

static btc_status answer_of(const btc_model *m, const record_model *record, work_item *it, worker_answer *a, btc_error *err) {
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
static void say(const engine_items *e, work_item *it, uint64_t ticket, const worker_sink *sink) {
  worker_answer a;
  btc_error err;
  btc_status st = BTC_OK;
  if (e->failing) {
    a = (worker_answer){.outcome = BTC__OUTCOME__OUTCOME_TRANSIENT, .reason = "internal", .id = it->id};
    a.message = btc_strdup(it->result.error.message);
    it->id = NULL;
  } else {
    st = answer_of(e->m, &e->record, it, &a, &err);
  }
  if (st != BTC_OK) {
    a = (worker_answer){.outcome = BTC__OUTCOME__OUTCOME_TRANSIENT, .reason = "oom", .message = btc_strdup(err.message)};
    a.id = it->id;
    it->id = NULL;
  }
  sink->done(sink->ctx, ticket, &a);
}

btc_status engine_items_open(engine_items *e, btc_model *m, btc_precision p, const btc_worker_options *o, size_t n,
                             uint64_t *progress, btc_error *err) {
  const char *roots = o->roots;
  e->m = m;
  e->n = n;
  e->roots = btc_strdup(roots);
  e->list = btc_alloc_zero(n, sizeof *e->list);
  btc_model_info info;
  btc_model_get_info(m, &info);
  e->windows = window_reader_create(roots, info.grid, progress);
  if (!e->list || !e->windows || (roots && !e->roots)) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  e->recognised = o->known && btc_checkpoint_recognise(m->ckpt, o->known);
  btc_status st = record_model_fill(m, p, &e->record, err);
  return st == BTC_OK ? btc_checkpoint_known(m->ckpt, e->known, err) : st;
}

void engine_items_close(engine_items *e) {
  for (size_t i = 0; e->list && i < e->n; i++)
    if (e->list[i].used) item_clear(&e->list[i].it);
  window_reader_destroy(&e->windows);
  free(e->list);
  free(e->roots);
}

btc_status engine_items_add(engine_items *e, const worker_item *item, uint64_t ticket, const worker_sink *sink, open_item **out,
                            btc_error *err) {
  size_t i = 0;
  *out = NULL;
  while (i < e->n && e->list[i].used) i++;
  if (i == e->n) return btc_fail(err, BTC_ERR_LIMIT, "the engine has no room for another item");
  open_item *o = &e->list[i];
  btc_status st = item_from_spec(&o->it, item->spec, item->params, err);
  if (st == BTC_OK) st = item_take_window(&o->it, item->spec, item->params, e->windows, err);
  if (st == BTC_OK) item_refuse_outside(&o->it, e->roots);
  if (st == BTC_OK && !o->it.bad) {
    o->ticket = ticket;
    o->used = true;
    item_fill_ask(&o->it);
    *out = o;
    return BTC_OK;
  }
  if (st == BTC_OK) say(e, &o->it, ticket, sink);
  item_clear(&o->it);
  return st;
}

void engine_items_cancel(open_item *o) {
  item_clear(&o->it);
  o->used = false;
}

void engine_items_done(engine_items *e, open_item *o, const btc_result *r) {
  o->it.result = *r;
  if (e->sink && r->status != BTC_ERR_DEVICE) say(e, &o->it, o->ticket, e->sink);
  engine_items_cancel(o);
}

void engine_items_name(const engine_items *e, worker_engine *base) {
  snprintf(base->model_name, sizeof base->model_name, "%s", e->record.name);
  snprintf(base->model_class, sizeof base->model_class, "%s-%s", e->record.fingerprint, e->record.dtype);
  snprintf(base->known, sizeof base->known, "%s", e->known);
  base->recognised = e->recognised;
}
