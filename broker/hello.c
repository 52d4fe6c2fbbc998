/* One btc_hello decides whether a name is free; the same call again keeps it ours. */
#define _GNU_SOURCE
#include "hello.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pipes.h"
#include "session.h"

enum { MAX_HELD = 4096, MAX_CREDITS = 65536, TAKEN_RETRY_MS = 1000, OUTBOX_MESSAGES = 4096, OUTBOX_BYTES = 64 << 20 };

typedef struct question {
  btc_broker *b;
  uint64_t session;
} question;

static int64_t ttl_ms(const btc_broker *b) {
  return 3 * b->o->dead_ms;
}

static int64_t wall_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static json_t *devices_json(const btc_session *s) {
  json_t *list = json_array();
  for (size_t i = 0; list && s->devices && i < s->devices->n; i++) {
    const Btc__Device *d = s->devices->list[i];
    json_array_append_new(
        list, json_pack("{s:s, s:I, s:I, s:o}", "name", d->name, "memory_bytes", (json_int_t)d->memory_bytes, "free_bytes",
                        (json_int_t)d->free_bytes, "busy", d->busy_known ? json_real(d->busy) : json_null()));
  }
  return list;
}

/* What `workers` shows, as JSON. */
static char *vitals(const btc_broker *b, const btc_session *s) {
  int64_t age_ms = (btc_loop_now_ns(b->loop) - s->born_ns) / 1000000, silent_ms = (btc_loop_now_ns(b->loop) - s->seen_ns) / 1000000;
  json_t *o =
      json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:f, s:I, s:I, s:I, s:o}", "state",
                s->draining  ? "draining"
                : s->suspect ? "silent"
                             : "up",
                "engine", s->engine, "model_name", s->model_name, "model_class", s->model_class, "program", s->program, "credits",
                (json_int_t)s->capacity, "in_hand", (json_int_t)s->owed, "items_done", (json_int_t)s->items_done, "items_per_s",
                s->items_per_s, "rss_bytes", (json_int_t)s->rss_bytes, "born_ms", (json_int_t)(wall_ms() - age_ms), "seen_ms",
                (json_int_t)(wall_ms() - silent_ms), "devices", devices_json(s));
  char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
  json_decref(o);
  return text;
}

static bool ask(btc_broker *b, btc_session *s, btc_redis_answer answer) {
  question *q = btc_alloc_zero(1, sizeof *q);
  char *info = vitals(b, s);
  bool sent = false;
  if (q && info) {
    *q = (question){b, s->id};
    sent = btc_store_hello(b->store, s->name, s->incarnation, ttl_ms(b), b->name, info, answer, q);
  }
  free(info);
  if (!sent) free(q);
  return sent;
}

static bool taken(const redisReply *r) {
  return strcmp(btc_answer_text(r, 0), "TAKEN") == 0;
}

/* ---- staying ---- */

static void on_refreshed(void *ctx, const redisReply *r) {
  question *q = ctx;
  btc_session *s = btc_session_find(q->b, q->session);
  if (!btc_broker_refused("btc_hello", r) && s && taken(r)) btc_session_close(q->b, s, "a newer incarnation has the name");
  free(q);
}

void btc_hello_refresh(btc_broker *b, btc_session *s) {
  int64_t period = b->o->dead_ms < 2000 ? b->o->dead_ms : 2000;
  s->refresh_ns = btc_loop_now_ns(b->loop) + period * 1000000;
  ask(b, s, on_refreshed);
}

/* ---- beginning ---- */

static void welcome(btc_broker *b, btc_session *s) {
  Btc__Welcome w = BTC__WELCOME__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_WELCOME);
  w.session = s->id;
  w.heartbeat_ms = (uint32_t)b->o->heartbeat_ms;
  w.lease_ms = (uint32_t)b->o->lease_ms;
  w.max_attempts = 3;
  w.broker = b->name;
  e.req_id = s->hello_req; /* names the Hello that it answers */
  e.session = s->id;
  e.welcome = &w;
  btc_broker_send(b, b->workers, &s->peer, &e);
}

/* The name's earlier sessions with us. One of the same incarnation: the worker came back by another connection, and what it holds
 * is compared with Redis. One of an older incarnation: its process is gone. */
static void end_older(btc_broker *b, btc_session *s) {
  btc_session *next;
  for (btc_session *o = b->sessions; o; o = next) {
    next = o->next;
    if (o == s || strcmp(o->name, s->name) != 0 || o->state == BTC_SESSION_HELLO) continue;
    /* A Hello says nothing of whether it hears us: it has two fifths of the time to show it, or one that hears nothing and says
     * Hello again and again would keep its chunks for ever. */
    if (o->incarnation == s->incarnation && o->heard_ns < s->heard_ns) {
      int64_t least_ns = s->heard_ns - b->o->dead_ms * 600000;
      s->heard_ns = o->heard_ns > least_ns ? o->heard_ns : least_ns;
    }
    if (o->incarnation != s->incarnation) btc_store_call(b->store, NULL, NULL, "btc_reap_owner", o->wid, NULL);
    btc_session_close(b, o, "said Hello again");
  }
}

static void on_hello(void *ctx, const redisReply *r) {
  question *q = ctx;
  btc_broker *b = q->b;
  btc_session *s = btc_session_find(b, q->session);
  free(q);
  if (!s) return;
  if (btc_broker_refused("btc_hello", r)) {
    btc_session_close(b, s, "Redis is away");
  } else if (taken(r)) {
    char text[256];
    snprintf(text, sizeof text, "a worker named %s is alive with broker %s", s->name, btc_answer_text(r, 1));
    btc_broker_nack(b, b->workers, &s->peer, s->hello_req, BTC__NACK_CODE__NACK_BUSY, text, TAKEN_RETRY_MS);
    btc_session_close(b, s, text);
  } else {
    BTC_FAILPOINT("after_hello");
    s->heard_ns = btc_loop_now_ns(b->loop);
    end_older(b, s);
    btc_log(BTC_LOG_INFO, "worker-up", "worker=%s incarnation=%" PRIu64 " session=%" PRIx64 " class=%s credits=%u held=%zu",
            s->name, s->incarnation, s->id, s->model_class, s->capacity, s->n_held);
    welcome(b, s);
    btc_hand_sync(b, s);
  }
}

static bool valid(const Btc__Hello *h, const char **why) {
  if (!btc_name_valid(h->worker))
    *why = "the worker's name must have 1 to 64 of the characters A-Z a-z 0-9 . _ -";
  else if (!h->incarnation)
    *why = "the incarnation must not be 0";
  else if (strlen(h->model_class) >= BTC_CLASS || !btc_class_valid(h->model_class))
    *why = "the model class must have at most 128 of the characters A-Z a-z 0-9 . _ : -";
  else if (!h->credits || h->credits > MAX_CREDITS)
    *why = "credits must be 1 to 65536";
  else if (h->n_held > MAX_HELD)
    *why = "too many held chunks";
  else
    return true;
  return false;
}

/* At most max bytes, cut between characters. */
static char *cut(const char *text, size_t max) {
  size_t n = strlen(text);
  return btc_strndup(text, btc_utf8_valid(text, n < max ? n : max));
}

static btc_session *make(btc_broker *b, const btc_message *m) {
  const Btc__Hello *h = m->envelope->hello;
  btc_session *s = btc_alloc_zero(1, sizeof *s);
  btc_error err;
  if (!s) return NULL;
  s->id = btc_broker_random(b) | 1;
  s->incarnation = h->incarnation;
  snprintf(s->name, sizeof s->name, "%s", h->worker);
  snprintf(s->wid, sizeof s->wid, "%s#%" PRIu64, h->worker, h->incarnation);
  snprintf(s->model_class, sizeof s->model_class, "%s", h->model_class);
  memcpy(s->key, m->key, sizeof s->key);
  s->engine = cut(h->engine, 64);
  s->model_name = cut(h->model_name, 128);
  s->program = cut(h->program, 64);
  s->held = btc_alloc_zero(h->n_held + 1, sizeof *s->held);
  s->peer = m->from;
  s->hello_req = m->envelope->req_id;
  s->capacity = h->credits;
  s->born_ns = s->seen_ns = s->heard_ns = btc_loop_now_ns(b->loop);
  s->next = b->sessions;
  b->sessions = s;
  b->n_sessions++;
  if (!s->engine || !s->model_name || !s->program || !s->held ||
      btc_outbox_create(OUTBOX_MESSAGES, OUTBOX_BYTES, &s->outbox, &err) != BTC_OK) {
    btc_session_close(b, s, "out of memory");
    return NULL;
  }
  for (size_t i = 0; i < h->n_held; i++) s->held[i] = (btc_store_lease){h->held[i]->cid, h->held[i]->token, 0};
  s->n_held = h->n_held;
  btc_session_devices(s, h->devices, h->n_devices);
  s->pipe = btc_pipe_caps_of(h);
  s->asks_not = s->pipe != NULL;
  return s;
}

/* A Hello again over the same connection: our answer is late or was lost. What it holds can only have become less. */
static bool is_repeated(btc_broker *b, const btc_message *m) {
  const Btc__Hello *h = m->envelope->hello;
  for (btc_session *s = b->sessions; s; s = s->next) {
    if (!btc_peer_id_equal(&s->peer, &m->from) || s->incarnation != h->incarnation || strcmp(s->name, h->worker) != 0 || s->reaping)
      continue;
    s->hello_req = m->envelope->req_id;
    s->seen_ns = btc_loop_now_ns(b->loop);
    if (s->state != BTC_SESSION_HELLO) welcome(b, s);
    return true;
  }
  return false;
}

void btc_hello_take(btc_broker *b, btc_message *m) {
  const Btc__Hello *h = m->envelope->hello;
  uint64_t req = m->envelope->req_id;
  const char *why = NULL;
  if (!valid(h, &why)) {
    btc_broker_nack(b, b->workers, &m->from, req, BTC__NACK_CODE__NACK_BAD, why, 0);
    return;
  }
  btc_session *other = btc_session_named(b, h->worker);
  if (other && strcmp(other->key, m->key) != 0) {
    btc_broker_nack(b, b->workers, &m->from, req, BTC__NACK_CODE__NACK_DENIED, "this name is connected with another key", 0);
    return;
  }
  if (is_repeated(b, m)) return;
  if (b->draining || !btc_redis_is_up(b->redis) || b->n_sessions >= BTC_SESSIONS) {
    why = b->draining ? "the broker stops" : b->n_sessions >= BTC_SESSIONS ? "too many workers" : "Redis is away";
    btc_broker_nack(b, b->workers, &m->from, req, BTC__NACK_CODE__NACK_BUSY, why, TAKEN_RETRY_MS);
    return;
  }
  btc_session *s = make(b, m);
  if (s && !ask(b, s, on_hello)) btc_session_close(b, s, "Redis is away");
}
