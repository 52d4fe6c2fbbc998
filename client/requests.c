/* The typed calls of client.h. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "call.h"

enum { RESULTS_BYTES = 4 << 20, BYTES_PER_S = 20000000, BASE_MS = 1000 };

/* ---- submit ---- */

static btc_status make_key(char key[40], btc_error *err) {
  uint8_t bytes[16];
  if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes) return btc_fail(err, BTC_ERR_IO, "no random bytes");
  key[0] = 'r';
  for (int i = 0; i < 16; i++) snprintf(key + 1 + 2 * i, 3, "%02x", bytes[i]);
  return BTC_OK;
}

static const char *or_empty(const char *s) {
  return s ? s : "";
}

static void fill_submit(Btc__Submit *m, const btc_submission *s, const char *key) {
  m->key = (char *)key;
  m->tenant = (char *)or_empty(s->tenant);
  m->priority = s->priority;
  m->model_class = (char *)or_empty(s->model_class);
  m->params = (char *)or_empty(s->params);
  m->route = (char *)or_empty(s->route);
  m->delay_ms = s->delay_ms;
  m->strict = s->strict;
  m->base_dir = (char *)or_empty(s->base_dir);
  if (s->manifest) {
    m->manifest = s->manifest->path;
    m->manifest_sha256 = (char *)s->manifest->sha256;
    m->manifest_items = s->manifest->items;
    m->duplicates = s->manifest->duplicates;
    m->n_duplicates = s->manifest->n_duplicates;
  } else {
    m->items = (char **)(void *)s->items;
    m->n_items = s->n_items;
  }
}

btc_status btc_client_submit(btc_client *c, const btc_submission *s, char jid[BTC_CLIENT_JID], bool *existed, btc_error *err) {
  Btc__Submit m = BTC__SUBMIT__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_SUBMIT), *reply;
  char made_up[40];
  btc_status st = BTC_OK;
  if (!s->manifest && (s->n_items < 1 || s->n_items > BTC_CLIENT_MAX_INLINE))
    return btc_fail(err, BTC_ERR_ARG, "%zu items; 1 to %d can be given without a manifest file", s->n_items, BTC_CLIENT_MAX_INLINE);
  if (!s->key) st = make_key(made_up, err);
  if (st != BTC_OK) return st;
  fill_submit(&m, s, s->key ? s->key : made_up);
  e.submit = &m;
  int64_t extra_ms = s->manifest ? (int64_t)(s->manifest->bytes / BYTES_PER_S) * 1000 + BASE_MS : 0;
  st = btc_client_call(c, &e, BTC__ENVELOPE__BODY_REPLY, extra_ms, &reply, err);
  if (st != BTC_OK) return st;
  if (strlen(reply->reply->jid) >= BTC_CLIENT_JID || !*reply->reply->jid)
    st = btc_fail(err, BTC_ERR_FORMAT, "the broker answered with no job's name");
  else
    memcpy(jid, reply->reply->jid, strlen(reply->reply->jid) + 1);
  if (existed) *existed = reply->reply->existed;
  btc_wire_free(&reply);
  return st;
}

/* ---- control ---- */

btc_status btc_client_command(btc_client *c, Btc__Verb verb, const char *jid, const char *filter, uint64_t *count, btc_error *err) {
  Btc__JobCommand m = BTC__JOB_COMMAND__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_JOB_COMMAND), *reply;
  m.verb = verb;
  m.jid = (char *)jid;
  m.filter = (char *)or_empty(filter);
  e.job_command = &m;
  btc_status st = btc_client_call(c, &e, BTC__ENVELOPE__BODY_REPLY, 0, &reply, err);
  if (st != BTC_OK) return st;
  if (count) *count = reply->reply->count;
  btc_wire_free(&reply);
  return BTC_OK;
}

btc_status btc_client_drain(btc_client *c, const char *worker, int64_t grace_ms, btc_error *err) {
  Btc__DrainWorker m = BTC__DRAIN_WORKER__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_DRAIN_WORKER), *reply;
  m.worker = (char *)worker;
  m.grace_ms = (uint32_t)grace_ms;
  e.drain_worker = &m;
  btc_status st = btc_client_call(c, &e, BTC__ENVELOPE__BODY_REPLY, 0, &reply, err);
  btc_wire_free(&reply);
  return st;
}

/* ---- questions ---- */

btc_status btc_client_status(btc_client *c, const char *jid, uint32_t limit, Btc__Envelope **reply, btc_error *err) {
  Btc__StatusRequest m = BTC__STATUS_REQUEST__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_STATUS_REQUEST);
  m.jid = (char *)jid;
  m.limit = limit;
  e.status_request = &m;
  btc_status st = btc_client_call(c, &e, BTC__ENVELOPE__BODY_STATUS_REPLY, 0, reply, err);
  if (st == BTC_OK && *jid && (*reply)->status_reply->n_jobs == 0) {
    btc_wire_free(reply);
    st = btc_fail(err, BTC_ERR_NOT_FOUND, "job '%.100s': no such job", jid);
  }
  return st;
}

btc_status btc_client_results(btc_client *c, const char *jid, const char *cursor, Btc__Envelope **reply, btc_error *err) {
  Btc__ResultsRequest m = BTC__RESULTS_REQUEST__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_RESULTS_REQUEST);
  m.jid = (char *)jid;
  m.cursor = (char *)cursor;
  m.max_bytes = RESULTS_BYTES;
  e.results_request = &m;
  return btc_client_call(c, &e, BTC__ENVELOPE__BODY_RESULTS_REPLY, 0, reply, err);
}

btc_status btc_client_dead(btc_client *c, const char *jid, uint64_t after, uint32_t limit, Btc__Envelope **reply, btc_error *err) {
  Btc__DeadRequest m = BTC__DEAD_REQUEST__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_DEAD_REQUEST);
  m.jid = (char *)jid;
  m.after = after;
  m.limit = limit;
  e.dead_request = &m;
  return btc_client_call(c, &e, BTC__ENVELOPE__BODY_DEAD_REPLY, 0, reply, err);
}

btc_status btc_client_workers(btc_client *c, Btc__Envelope **reply, btc_error *err) {
  Btc__WorkersRequest m = BTC__WORKERS_REQUEST__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_WORKERS_REQUEST);
  e.workers_request = &m;
  return btc_client_call(c, &e, BTC__ENVELOPE__BODY_WORKERS_REPLY, 0, reply, err);
}

btc_status btc_client_pipes(btc_client *c, Btc__Envelope **reply, btc_error *err) {
  Btc__PipesRequest m = BTC__PIPES_REQUEST__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_PIPES_REQUEST);
  e.pipes_request = &m;
  return btc_client_call(c, &e, BTC__ENVELOPE__BODY_PIPES_REPLY, 0, reply, err);
}
