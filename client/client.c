/*
 * The client's connection and its one way of asking: see client.h and call.h. A broker that is silent for SILENCE_MS is left for
 * the next one of the list (or, when there is only one, connected to anew: a connection whose key was refused never comes back by
 * itself).
 */
#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <zmq.h>

#include "call.h"
#include "net/socket.h"

#define MS INT64_C(1000000)
enum {
  MAX_BROKERS = 16,
  HWM = 64,
  SLICE_MS = 50,
  SILENCE_MS = 3000,
  FIRST_WAIT_MS = 500,
  LONGEST_WAIT_MS = 8000,
  MAX_TIMEOUT_MS = 86400000
};

struct btc_client {
  void *zmq, *dealer;
  btc_keys *keys;
  char *list, *broker[MAX_BROKERS]; /* list is cut into them */
  int n_brokers, at;
  int64_t timeout_ms;
  const volatile int *cancel;
  uint64_t last_id;
  bool unreachable;
};

/* ---- opening ---- */

static btc_status split_brokers(btc_client *c, const char *list, btc_error *err) {
  c->list = btc_strdup(list);
  if (!c->list) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  char *save = NULL;
  for (char *word = strtok_r(c->list, ", ", &save); word; word = strtok_r(NULL, ", ", &save)) {
    if (c->n_brokers == MAX_BROKERS) return btc_fail(err, BTC_ERR_ARG, "more than %d brokers in '%.200s'", MAX_BROKERS, list);
    c->broker[c->n_brokers++] = word;
  }
  return c->n_brokers ? BTC_OK : btc_fail(err, BTC_ERR_ARG, "no broker in '%.200s'", list);
}

static btc_status connect_next(btc_client *c, btc_error *err) {
  btc_socket_close(&c->dealer);
  return btc_socket_connect_dealer(c->zmq, c->broker[c->at], c->keys, HWM, &c->dealer, err);
}

static btc_status open_parts(btc_client *c, const btc_client_options *o, btc_error *err) {
  btc_status st = split_brokers(c, o->brokers, err);
  if (st == BTC_OK && !o->keys != !o->server_key) st = btc_fail(err, BTC_ERR_ARG, "--keys and --server-key go together");
  if (st == BTC_OK && o->keys) st = btc_keys_load(o->keys, o->server_key, NULL, &c->keys, err);
  if (st == BTC_OK && !(c->zmq = zmq_ctx_new())) st = btc_fail(err, BTC_ERR_IO, "cannot start ZeroMQ: %s", zmq_strerror(errno));
  /* every endpoint is tried once, so that a bad one is told at once and not when its turn comes */
  for (c->at = c->n_brokers - 1; st == BTC_OK && c->at >= 0; c->at--) st = connect_next(c, err);
  c->at = 0;
  return st;
}

btc_status btc_client_open(const btc_client_options *o, btc_client **out, btc_error *err) {
  btc_client *c = *out = btc_alloc_zero(1, sizeof *c);
  if (!c) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  c->timeout_ms = o->timeout_ms < 0 ? 0 : o->timeout_ms > MAX_TIMEOUT_MS ? MAX_TIMEOUT_MS : o->timeout_ms;
  c->cancel = o->cancel;
  uint32_t random = 1;
  if (getrandom(&random, sizeof random, GRND_NONBLOCK) < 0) random = (uint32_t)btc_now_ns();
  c->last_id = (uint64_t)random << 16;
  btc_status st = open_parts(c, o, err);
  if (st != BTC_OK) btc_client_close(out);
  return st;
}

void btc_client_close(btc_client **client) {
  btc_client *c = *client;
  *client = NULL;
  if (!c) return;
  btc_socket_close(&c->dealer);
  if (c->zmq) zmq_ctx_term(c->zmq);
  btc_keys_destroy(&c->keys);
  free(c->list);
  free(c);
}

bool btc_client_unreachable(const btc_client *c) {
  return c->unreachable;
}

/* ---- one call ---- */

typedef struct call {
  btc_client *c;
  Btc__Envelope *e;
  Btc__Envelope__BodyCase want;
  Btc__Envelope **reply;
  btc_error *err;
  int64_t deadline, due, wait_ms; /* when it is sent again, and what comes after that */
  int64_t busy_ms;                /* the next wait when it is busy again */
  int64_t heard;                  /* when this broker was connected to, or last answered */
  btc_error busy;                 /* its words, when that was the last answer */
} call;

static uint64_t answers(const Btc__Envelope *e) {
  switch (e->body_case) {
    case BTC__ENVELOPE__BODY_NACK:
      return e->nack->req_id;
    case BTC__ENVELOPE__BODY_REPLY:
      return e->reply->in_reply_to;
    case BTC__ENVELOPE__BODY_STATUS_REPLY:
      return e->status_reply->in_reply_to;
    case BTC__ENVELOPE__BODY_RESULTS_REPLY:
      return e->results_reply->in_reply_to;
    case BTC__ENVELOPE__BODY_DEAD_REPLY:
      return e->dead_reply->in_reply_to;
    case BTC__ENVELOPE__BODY_WORKERS_REPLY:
      return e->workers_reply->in_reply_to;
    case BTC__ENVELOPE__BODY_PIPES_REPLY:
      return e->pipes_reply->in_reply_to;
    default:
      return 0;
  }
}

/* "Later" waits as long as the broker asks, and longer each time, so that many clients do not knock together. */
static void back_off(call *k, uint32_t retry_ms, const char *why) {
  int64_t wait = retry_ms > 0 ? (int64_t)retry_ms : FIRST_WAIT_MS;
  if (wait < k->busy_ms) wait = k->busy_ms;
  k->due = k->heard = btc_now_ns() + wait * MS; /* its silence counts from then on */
  k->busy_ms = wait >= LONGEST_WAIT_MS / 2 ? LONGEST_WAIT_MS : 2 * wait;
  k->wait_ms = FIRST_WAIT_MS; /* it was heard: what comes next is no repetition */
  btc_fail(&k->busy, BTC_ERR_LIMIT, "%s", *why ? why : "the broker is busy");
}

static btc_status on_nack(call *k, const Btc__Nack *n, bool *over) {
  *over = true;
  switch (n->code) {
    case BTC__NACK_CODE__NACK_BUSY:
      *over = false;
      back_off(k, n->retry_ms, n->message);
      return BTC_OK;
    case BTC__NACK_CODE__NACK_SESSION:
      *over = false;
      back_off(k, 0, n->message);
      return BTC_OK;
    case BTC__NACK_CODE__NACK_VERSION:
      return btc_fail(k->err, BTC_ERR_UNSUPPORTED, "the broker speaks another version: %s", n->message);
    case BTC__NACK_CODE__NACK_DENIED:
      return btc_fail(k->err, BTC_ERR_IO, "the broker refuses: %s", *n->message ? n->message : "this key has no right to do that");
    case BTC__NACK_CODE__NACK_UNKNOWN:
      return btc_fail(k->err, BTC_ERR_UNSUPPORTED, "the broker does not know this request: it is of another version");
    default:
      return btc_fail(k->err, BTC_ERR_ARG, "%s", *n->message ? n->message : "the broker refuses the request");
  }
}

static btc_status on_answer(call *k, Btc__Envelope *e, bool *over) {
  *over = true;
  if (e->body_case == BTC__ENVELOPE__BODY_NACK) return on_nack(k, e->nack, over);
  if (e->body_case == BTC__ENVELOPE__BODY_REPLY && !e->reply->ok) {
    const Btc__Reply *r = e->reply;
    if (r->retry_ms) {
      *over = false;
      back_off(k, r->retry_ms, r->message);
      return BTC_OK;
    }
    bool missing = strstr(r->message, "no such") || strstr(r->message, "no worker");
    return btc_fail(k->err, missing ? BTC_ERR_NOT_FOUND : BTC_ERR_ARG, "%s",
                    *r->message ? r->message : "the broker refuses the request");
  }
  if (e->body_case != k->want)
    return btc_fail(k->err, BTC_ERR_UNSUPPORTED, "the broker answered with '%s'", btc_wire_body_name(e->body_case));
  return BTC_OK;
}

/* Takes what has come. *over: the call has its end. Answers to earlier calls, and to repetitions of this one, are dropped. */
static btc_status take_answers(call *k, bool *over) {
  btc_message m;
  btc_status st = BTC_OK;
  while (!*over && btc_socket_take(k->c->dealer, false, NULL, &m)) {
    if (!m.envelope && m.error.code == BTC_ERR_UNSUPPORTED) {
      *over = true;
      st = btc_fail(k->err, BTC_ERR_UNSUPPORTED, "the broker '%s' speaks another version: %s", k->c->broker[k->c->at],
                    m.error.message);
    } else if (m.envelope && answers(m.envelope) == k->e->req_id) {
      k->heard = btc_now_ns();
      st = on_answer(k, m.envelope, over);
      if (*over && st == BTC_OK) {
        *k->reply = m.envelope;
        m.envelope = NULL;
      }
    }
    btc_message_clear(&m);
  }
  return st;
}

static btc_status nobody(call *k) {
  const btc_client *c = k->c;
  k->c->unreachable = strstr(k->busy.message, "Redis is away") != NULL;
  if (k->busy.message[0])
    return btc_fail(k->err, BTC_ERR_LIMIT, "%s (tried for %" PRId64 " s)", k->busy.message, c->timeout_ms / 1000);
  k->c->unreachable = true;
  return btc_fail(k->err, BTC_ERR_IO, "no answer from %s%s within %.3g s: is a broker running there%s?",
                  c->n_brokers > 1 ? "any broker, the last one being " : "", c->broker[c->at], (double)c->timeout_ms / 1000,
                  c->keys ? ", does its allow-list hold our key, and is --server-key its key" : ", and without keys");
}

static btc_status send_when_due(call *k, int64_t now) {
  btc_client *c = k->c;
  if (now - k->heard > SILENCE_MS * MS) {
    c->at = (c->at + 1) % c->n_brokers;
    btc_status st = connect_next(c, k->err);
    if (st != BTC_OK) return st;
    k->heard = k->due = now;
  }
  if (now < k->due) return BTC_OK;
  btc_status st = btc_socket_send(c->dealer, NULL, k->e, k->err);
  if (st == BTC_ERR_LIMIT) { /* not connected yet */
    k->due = now + SLICE_MS / 2 * MS;
    return BTC_OK;
  }
  if (st != BTC_OK) return st;
  k->due = now + k->wait_ms * MS;
  k->wait_ms = k->wait_ms >= LONGEST_WAIT_MS / 2 ? LONGEST_WAIT_MS : 2 * k->wait_ms;
  return BTC_OK;
}

static btc_status run_call(call *k) {
  btc_client *c = k->c;
  for (bool over = false;;) {
    if (c->cancel && *c->cancel) return btc_fail(k->err, BTC_ERR_CANCELLED, "interrupted");
    int64_t now = btc_now_ns();
    if (now >= k->deadline) return nobody(k);
    btc_status st = send_when_due(k, now);
    if (st != BTC_OK) return st;
    zmq_pollitem_t item = {.socket = c->dealer, .events = ZMQ_POLLIN};
    int64_t until = k->due < k->deadline ? k->due : k->deadline, wait_ms = (until - btc_now_ns()) / MS + 1;
    zmq_poll(&item, 1, wait_ms < 0 ? 0 : wait_ms > SLICE_MS ? SLICE_MS : (long)wait_ms);
    st = take_answers(k, &over);
    if (over) return st;
  }
}

btc_status btc_client_call(btc_client *c, Btc__Envelope *e, Btc__Envelope__BodyCase want, int64_t extra_ms, Btc__Envelope **reply,
                           btc_error *err) {
  btc_error own = {0};
  int64_t now = btc_now_ns();
  call k = {
      .c = c, .e = e, .want = want, .reply = reply, .err = err ? err : &own, .due = now, .heard = now, .wait_ms = FIRST_WAIT_MS};
  uint8_t *data;
  size_t len;
  *reply = NULL;
  c->unreachable = false;
  e->req_id = ++c->last_id;
  btc_status st = btc_wire_pack(e, &data, &len, k.err); /* what never fits is told before the waiting begins */
  free(data);
  if (st != BTC_OK) return st;
  k.deadline = now + (c->timeout_ms + extra_ms) * MS;
  return run_call(&k);
}
