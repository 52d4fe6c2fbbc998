/* The engine with a model: one session, items in batches. Failures are sorted into the item's own (never tried again) and passing
 * ones. */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "item.h"

typedef struct model_engine {
  worker_engine base;
  btc_model *m;
  btc_session *s;
  char *roots;
  record_model record;
  work_item *items;    /* [batch] */
  btc_item *asks;      /* [batch] */
  btc_result *results; /* [batch] */
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
  if (r->status == BTC_ERR_NOMEM) return true;
  if (r->status != BTC_ERR_IO || it->bad || r->phase != BTC_PHASE_IMAGE) return false;
  return !read_fails_for_good(it->paths[0]) && !read_fails_for_good(it->paths[1]);
}

static btc_status answer(const model_engine *e, work_item *it, worker_answer *a, btc_error *err) {
  *a = (worker_answer){.outcome = BTC__OUTCOME__OUTCOME_OK, .reason = ""};
  if (it->result.status != BTC_OK) {
    a->outcome = passing(it, &a->reason) ? BTC__OUTCOME__OUTCOME_TRANSIENT : BTC__OUTCOME__OUTCOME_PERMANENT;
    a->message = btc_strdup(it->result.error.message);
  }
  a->record = item_record(e->m, &e->record, it);
  a->id = it->id;
  it->id = NULL;
  if (a->record && (a->message || it->result.status == BTC_OK)) return BTC_OK;
  worker_answer_clear(a);
  return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
}

static btc_status run(worker_engine *base, const worker_item *items, size_t n, const worker_sink *sink, btc_error *err) {
  model_engine *e = (model_engine *)base;
  btc_status st = BTC_OK;
  size_t made = 0;
  for (; st == BTC_OK && made < n; made++) {
    st = item_from_spec(&e->items[made], items[made].spec, items[made].params, err);
    if (st == BTC_OK) item_refuse_outside(&e->items[made], e->roots);
  }
  if (st == BTC_OK) {
    st = item_run(e->s, e->items, n, e->asks, e->results, err);
    if (st == BTC_ERR_NOMEM) st = BTC_OK; /* each result says so, and what was done before is good */
  }
  for (size_t i = 0; st == BTC_OK && i < n; i++) {
    worker_answer a;
    st = answer(e, &e->items[i], &a, err);
    if (st == BTC_OK) sink->done(sink->ctx, i, &a);
  }
  for (size_t i = 0; i < made; i++) item_clear(&e->items[i]);
  return st;
}

static void destroy(worker_engine *base) {
  model_engine *e = (model_engine *)base;
  btc_session_destroy(&e->s);
  btc_model_close(&e->m);
  free(e->items);
  free(e->asks);
  free(e->results);
  free(e->roots);
  free(e);
}

static btc_status open_session(model_engine *e, const btc_worker_options *o, btc_error *err) {
  btc_session_options so = btc_session_options_default();
  so.device = o->device;
  so.threads = o->threads;
  so.precision = !strcmp(o->dtype, "f32") ? BTC_PRECISION_F32 : !strcmp(o->dtype, "bf16") ? BTC_PRECISION_BF16 : BTC_PRECISION_AUTO;
  so.max_batch = o->batch;
  so.max_tokens = o->max_tokens;
  so.progress = &e->base.progress;
  return btc_session_create(e->m, &so, &e->s, err);
}

static btc_status open_all(model_engine *e, const btc_worker_options *o, btc_error *err) {
  size_t batch = (size_t)o->batch;
  e->roots = btc_strdup(o->roots);
  e->items = btc_alloc_zero(batch, sizeof *e->items);
  e->asks = btc_alloc_zero(batch, sizeof *e->asks);
  e->results = btc_alloc_zero(batch, sizeof *e->results);
  if (!e->items || !e->asks || !e->results || (o->roots && !e->roots)) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  btc_status st = btc_model_open(o->model, &e->m, err);
  if (st == BTC_OK) st = open_session(e, o, err);
  if (st == BTC_OK) st = record_model_fill(e->m, e->s, &e->record, err);
  return st;
}

btc_status engine_model_create(const btc_worker_options *o, worker_engine **out, btc_error *err) {
  *out = NULL;
  if (!o->model) return btc_fail(err, BTC_ERR_ARG, "no model: give one with -m DIR or BTCCHAT_MODEL");
  model_engine *e = btc_alloc_zero(1, sizeof *e);
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
