/*
 * The agent and its broker: one DEALER to one broker of the list at a time. Only answers to what we said prove that the link works
 * both ways; without one for five heartbeats the next broker gets a Hello that names what is held. Whatever changes state lies in
 * the outbox until it is answered, across brokers.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "agent_member.h"
#include "base/failpoint.h"

enum {
  DEAD_BEATS = 5,
  HELLO_MS = 500,
  CONNECT_MS = 20,
  PATIENT_MS = 2000 /* for a Welcome, however short the heartbeats */,
  BEAT_GAP_MS = 50,
  WAITS_MS = 60000,
  RESULT_AGE_MS = 20,
  HWM = 4096,
  HELD_MANY = 256
};
enum { OUTBOX_MESSAGES = 1024, OUTBOX_BYTES = 32 << 20, RESULTS_BYTES = 1 << 20 };
#define UNKEPT (UINT64_C(1) << 63) /* req_ids outside the outbox: Hello and heartbeats, which the next one replaces */

/* What is lost comes again, or is replaced by the next. False: there is no connection yet. */
static bool send_now(agent *a, Btc__Envelope *e) {
  e->session = a->session;
  return a->socket && btc_socket_send(a->socket, NULL, e, NULL) == BTC_OK;
}

/* ---- Hello ---- */

static size_t list_held(const agent *a, Btc__Held *held, Btc__Held **list, size_t most) {
  size_t n = 0;
  for (ledger_chunk *c = ledger_first(a->ledger); c && n < most; c = c->next) {
    if (c->revoked || !c->cid) continue;
    btc__held__init(&held[n]);
    held[n].cid = c->cid;
    held[n].token = c->token;
    list[n] = &held[n];
    n++;
  }
  return n;
}

/* Plans its own repetition, soon when it could not leave because the connection is being made. */
static void say_hello(agent *a) {
  bool sent = false;
  Btc__Hello hello = BTC__HELLO__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_HELLO);
  size_t most = ledger_chunks(a->ledger) + 1;
  Btc__Held *held = btc_alloc(most, sizeof *held), **list = btc_alloc(most, sizeof *list);
  if (held && list) {
    hello.worker = a->name;
    hello.incarnation = a->incarnation;
    hello.program = "btcchat " BTC_VERSION;
    hello.model_class = a->model_class;
    hello.model_name = a->model_name;
    hello.engine = (char *)a->o->engine;
    hello.credits = (uint32_t)a->credits;
    hello.held = list;
    hello.n_held = list_held(a, held, list, most);
    hello.devices = a->devices.list;
    hello.n_devices = a->devices.n;
    member_fill_hello(a, &hello);
    e.hello = &hello;
    e.req_id = UNKEPT | ++a->beats;
    sent = send_now(a, &e);
  }
  free(held);
  free(list);
  btc_timer_after_ms(a->hello_timer, sent ? HELLO_MS : CONNECT_MS);
}

static bool on_message(void *ctx);

static void disconnect(agent *a) {
  if (a->socket) btc_loop_remove_zmq(a->loop, a->socket);
  btc_socket_close(&a->socket);
  a->session = 0;
}

void link_connect(agent *a) {
  btc_error err;
  disconnect(a);
  a->answered_ns = btc_loop_now_ns(a->loop);
  btc_status st = btc_socket_connect_dealer(a->zmq, a->brokers[a->broker], a->keys, HWM, &a->socket, &err);
  if (st == BTC_OK) st = btc_loop_add_zmq(a->loop, a->socket, on_message, a, &err);
  if (st != BTC_OK) {
    agent_fail(a, st, "%s", err.message);
    return;
  }
  say_hello(a);
}

static bool silent(const agent *a) {
  int64_t most_ms = DEAD_BEATS * a->heartbeat_ms;
  if (!a->session && most_ms < PATIENT_MS) most_ms = PATIENT_MS;
  return btc_loop_now_ns(a->loop) - a->answered_ns > most_ms * AGENT_MS;
}

/* Said at once, and then once a minute: it may last for days. */
static void say_waiting(agent *a, const char *event, const char *why) {
  int64_t now = btc_loop_now_ns(a->loop);
  if (a->waits_ns && now - a->waits_ns < WAITS_MS * AGENT_MS) return;
  a->waits_ns = now;
  agent_log(a, event, "broker=%s why=\"%s\"", a->brokers[a->broker], why);
}

static void say_silent(agent *a) {
  if (a->welcomed)
    say_waiting(a, "broker-silent", "no answer");
  else if (a->keys)
    say_waiting(a, "broker-silent",
                "no answer: is a broker running there, does its allow-list hold our key, and is --server-key its key?");
  else
    say_waiting(a, "broker-silent", "no answer: is a broker running there, and without keys?");
}

static void try_next_broker(agent *a) {
  a->broker = (a->broker + 1) % a->n_brokers;
  link_connect(a);
}

static void on_hello_timer(void *ctx) {
  agent *a = ctx;
  if (a->session) return;
  if (!a->socket) {
    link_connect(a);
  } else if (silent(a)) {
    say_silent(a);
    try_next_broker(a);
  } else {
    say_hello(a);
  }
}

static void on_welcome(agent *a, const Btc__Welcome *w) {
  bool fresh = a->session != w->session;
  a->answered_ns = btc_loop_now_ns(a->loop);
  a->session = w->session;
  a->waits_ns = 0;
  a->heartbeat_ms = w->heartbeat_ms >= 10 && w->heartbeat_ms <= 60000 ? w->heartbeat_ms : AGENT_HEARTBEAT_MS;
  btc_timer_stop(a->hello_timer);
  if (fresh) btc_outbox_hurry(a->outbox);
  link_want_beat(a);
  if (fresh)
    agent_log(a, "welcome", "broker=%s held=%zu unanswered=%zu", a->brokers[a->broker], ledger_chunks(a->ledger),
              btc_outbox_count(a->outbox));
  if (a->welcomed) return;
  a->welcomed = true;
  printf("ready name=%s\n", a->name);
  fflush(stdout);
}

/* ---- heartbeats ---- */

static size_t list_progress(const agent *a, Btc__ChunkProgress *chunks, Btc__ChunkProgress **list, size_t most) {
  size_t n = 0;
  for (ledger_chunk *c = ledger_first(a->ledger); c && n < most; c = c->next) {
    if (c->revoked || !c->cid) continue;
    btc__chunk_progress__init(&chunks[n]);
    chunks[n].cid = c->cid;
    chunks[n].token = c->token;
    chunks[n].started_mask = c->started_mask;
    chunks[n].progress = a->progress; /* a chunk that waits behind others is as alive as they are */
    list[n] = &chunks[n];
    n++;
  }
  return n;
}

static void say_heartbeat(agent *a) {
  Btc__Heartbeat beat = BTC__HEARTBEAT__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_HEARTBEAT);
  size_t most = ledger_chunks(a->ledger) + 1;
  Btc__ChunkProgress *chunks = btc_alloc(most, sizeof *chunks), **list = btc_alloc(most, sizeof *list);
  engine_update_rate(a);
  if (chunks && list) {
    beat.seq = ++a->beats;
    beat.free_items = (uint32_t)engine_free_items(a);
    beat.chunks = list;
    beat.n_chunks = list_progress(a, chunks, list, most);
    beat.rss_bytes = engine_resident_bytes(a);
    beat.items_done = a->items_done;
    beat.items_per_s = a->items_per_s;
    beat.devices = a->devices.list;
    beat.n_devices = a->devices.n;
    member_fill_beat(a, &beat);
    beat.deaf_ms = (uint32_t)((btc_loop_now_ns(a->loop) - a->answered_ns) / AGENT_MS);
    beat.draining = a->phase > AGENT_WORKING || engine_hopeless(a); /* no grants, please */
    e.heartbeat = &beat;
    e.req_id = UNKEPT | a->beats;
    send_now(a, &e);
  }
  free(chunks);
  free(list);
}

static void plan_beat(agent *a) {
  btc_timer_set(a->beat_timer, a->beat_ns + (a->beat_wanted ? BEAT_GAP_MS : a->heartbeat_ms) * AGENT_MS);
}

void link_want_beat(agent *a) {
  if (a->beat_wanted) return;
  a->beat_wanted = true;
  plan_beat(a);
}

static void on_beat(void *ctx) {
  agent *a = ctx;
  a->beat_wanted = false;
  a->beat_ns = btc_loop_now_ns(a->loop);
  if (a->session && silent(a)) {
    say_silent(a);
    try_next_broker(a);
  } else if (a->session) {
    say_heartbeat(a);
  }
  plan_beat(a);
}

/* ---- grants ---- */

static bool keep_release(agent *a, Btc__Held **held, size_t n) {
  Btc__Release release = BTC__RELEASE__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_RELEASE);
  btc_error err;
  e.release = &release;
  release.chunks = held;
  release.n_chunks = n;
  if (btc_outbox_add(a->outbox, &e, NULL, &err) == BTC_OK) return true;
  agent_log(a, "release-not-kept", "why=\"%s\"", err.message);
  return false;
}

static void acknowledge(agent *a, uint64_t req_id) {
  Btc__Ack ack = BTC__ACK__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_ACK);
  if (!req_id) return;
  e.ack = &ack;
  ack.req_id = &req_id;
  ack.n_req_id = 1;
  send_now(a, &e);
}

static void refuse(agent *a, uint64_t req_id, Btc__NackCode code, const char *why) {
  Btc__Nack nack = BTC__NACK__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_NACK);
  if (!req_id) return;
  e.nack = &nack;
  nack.req_id = req_id;
  nack.code = code;
  nack.message = (char *)why;
  send_now(a, &e);
}

/* Not acknowledged when something could neither be taken nor handed back: the grant then comes again. */
static void on_grant(agent *a, uint64_t req_id, const Btc__Grant *g) {
  bool settled = true, bad = false;
  BTC_FAILPOINT("worker_granted");
  const bool takes = a->phase == AGENT_WORKING && !engine_hopeless(a) && !member_refuses(a);
  for (size_t i = 0; i < g->n_chunks; i++) {
    Btc__Held back = BTC__HELD__INIT, *list = &back;
    back.cid = g->chunks[i]->cid;
    back.token = g->chunks[i]->token;
    ledger_added added = takes ? ledger_add(a->ledger, g->chunks[i]) : LEDGER_FULL;
    if (added == LEDGER_FULL && a->phase >= AGENT_LEAVING) added = LEDGER_KNOWN; /* Bye hands it back */
    if (added == LEDGER_FULL) settled = keep_release(a, &list, 1) && settled;
    bad = bad || added == LEDGER_BAD;
  }
  if (bad)
    refuse(a, req_id, BTC__NACK_CODE__NACK_BAD, "a chunk without number, token or items, or with items out of range");
  else if (settled)
    acknowledge(a, req_id);
  BTC_FAILPOINT("worker_grant_acked");
}

static void on_revoke(agent *a, uint64_t req_id, const Btc__Revoke *r) {
  for (size_t i = 0; i < r->n_chunks; i++) ledger_revoke(a->ledger, r->chunks[i]->cid, r->chunks[i]->token);
  agent_log(a, "revoked", "chunks=%zu why=\"%s\"", r->n_chunks, r->why);
  acknowledge(a, req_id);
  link_want_beat(a);
}

/* Releases at most HELD_MANY chunks; returns how many. */
static size_t release_some(agent *a, bool idle_only) {
  Btc__Held held[HELD_MANY], *list[HELD_MANY];
  ledger_chunk *chunks[HELD_MANY];
  size_t n = 0;
  for (ledger_chunk *c = ledger_first(a->ledger); c && n < HELD_MANY; c = c->next) {
    if (c->revoked || !c->cid || (!c->waiting && !c->given) || (idle_only && c->given)) continue;
    btc__held__init(&held[n]);
    held[n].cid = c->cid;
    held[n].token = c->token;
    chunks[n] = c;
    list[n] = &held[n];
    n++;
  }
  if (n) keep_release(a, list, n); /* if not, the end of the lease or Bye does it */
  for (size_t i = 0; i < n; i++) ledger_drop(a->ledger, chunks[i]);
  return n;
}

void link_release_chunks(agent *a, bool idle_only) {
  size_t n, all = 0;
  link_send_results(a, true); /* what is done goes before what is not */
  while ((n = release_some(a, idle_only)) > 0) all += n;
  if (all) agent_log(a, "released", "chunks=%zu", all);
}

/* ---- results ---- */

static btc_status keep_results(agent *a, ledger_chunk *c, size_t *n, btc_error *err) {
  Btc__Results results = BTC__RESULTS__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_RESULTS);
  size_t bytes = 0;
  for (*n = 0; *n < c->n_results && bytes < RESULTS_BYTES; ++*n) bytes += strlen(c->results[*n]->record);
  if (*n > 1 && bytes > RESULTS_BYTES) --*n; /* each may have a MiB, a message must stay under 8 */
  e.results = &results;
  results.cid = c->cid;
  results.token = c->token;
  results.jid = c->jid;
  results.lo = c->lo;
  results.items = c->results;
  results.n_items = *n;
  return btc_outbox_add(a->outbox, &e, c, err);
}

void link_send_results(agent *a, bool all) {
  ledger_chunk *c;
  btc_error err;
  size_t n;
  int64_t now = btc_loop_now_ns(a->loop);
  while ((c = ledger_ripe(a->ledger, now, RESULT_AGE_MS * AGENT_MS, all))) {
    btc_status st = keep_results(a, c, &n, &err);
    if (st == BTC_ERR_LIMIT && btc_outbox_count(a->outbox)) return; /* full: an answer makes room */
    if (st != BTC_OK)
      agent_log(a, "results-lost", "cid=%llu why=\"%s\"", (unsigned long long)c->cid, err.message); /* the lease brings them back */
    BTC_FAILPOINT("worker_results_kept");
    ledger_queued(a->ledger, c, n, st == BTC_OK);
  }
}

/* ---- answers ---- */

static void settle(agent *a, uint64_t req_id) {
  void *chunk = NULL;
  if (req_id & UNKEPT || !btc_outbox_settle(a->outbox, req_id, &chunk)) return;
  if (chunk) ledger_answered(a->ledger, chunk);
  BTC_FAILPOINT("worker_answered");
}

static void hello_again(agent *a, int64_t delay_ms) {
  a->session = 0;
  if (delay_ms && a->n_brokers > 1) { /* another one may be less busy */
    disconnect(a);
    a->broker = (a->broker + 1) % a->n_brokers;
  }
  btc_timer_after_ms(a->hello_timer, delay_ms);
}

static void on_nack(agent *a, const Btc__Nack *n) {
  int64_t retry_ms = n->retry_ms < 50 ? 50 : n->retry_ms > 5000 ? 5000 : n->retry_ms;
  a->answered_ns = btc_loop_now_ns(a->loop);
  if (n->code != BTC__NACK_CODE__NACK_BUSY || !(n->req_id & UNKEPT))
    agent_log(a, "refused", "code=%d why=\"%s\"", (int)n->code, n->message);
  switch (n->code) {
    case BTC__NACK_CODE__NACK_SESSION:
      if (a->session) hello_again(a, 0);
      break;
    case BTC__NACK_CODE__NACK_BUSY:
      if (!(n->req_id & UNKEPT))
        btc_outbox_delay(a->outbox, n->req_id, a->answered_ns, retry_ms);
      else if (!a->session) {
        say_waiting(a, "not-yet", n->message); /* a worker of our name is alive, or Redis is away */
        hello_again(a, retry_ms);
      }
      break;
    case BTC__NACK_CODE__NACK_VERSION:
    case BTC__NACK_CODE__NACK_DENIED:
      agent_fail(a, BTC_ERR_UNSUPPORTED, "the broker at %s refuses this worker: %s", a->brokers[a->broker], n->message);
      break;
    default:
      settle(a, n->req_id);
      break; /* it will never be taken: sending it again is of no use */
  }
}

static void on_ack(agent *a, const Btc__Ack *ack) {
  a->answered_ns = btc_loop_now_ns(a->loop);
  for (size_t i = 0; i < ack->n_req_id; i++) settle(a, ack->req_id[i]);
}

static void dispatch(agent *a, const btc_message *m) {
  const Btc__Envelope *e = m->envelope;
  switch (e->body_case) {
    case BTC__ENVELOPE__BODY_ACK:
      on_ack(a, e->ack);
      break;
    case BTC__ENVELOPE__BODY_NACK:
      on_nack(a, e->nack);
      break;
    case BTC__ENVELOPE__BODY_WELCOME:
      on_welcome(a, e->welcome);
      break;
    case BTC__ENVELOPE__BODY_GRANT:
      on_grant(a, e->req_id, e->grant);
      break;
    case BTC__ENVELOPE__BODY_REVOKE:
      on_revoke(a, e->req_id, e->revoke);
      break;
    case BTC__ENVELOPE__BODY_PIPE_FORM:
    case BTC__ENVELOPE__BODY_PIPE_GO:
    case BTC__ENVELOPE__BODY_PIPE_ABORT:
      acknowledge(a, e->req_id);
      member_take(a, e);
      break;
    case BTC__ENVELOPE__BODY_DRAIN_REQUEST:
      acknowledge(a, e->req_id);
      agent_drain(a, e->drain_request->grace_ms ? e->drain_request->grace_ms : a->o->grace_ms, "the broker asks");
      break;
    default:
      refuse(a, e->req_id, BTC__NACK_CODE__NACK_UNKNOWN, "a worker does not know this message");
  }
}

static bool on_message(void *ctx) {
  agent *a = ctx;
  btc_message m;
  if (!a->socket || !btc_socket_take(a->socket, false, NULL, &m)) return false;
  if (m.envelope)
    dispatch(a, &m);
  else
    refuse(a, m.req_id, BTC__NACK_CODE__NACK_BAD, m.error.message);
  btc_message_clear(&m);
  return true;
}

/* ---- life ---- */

void link_bye(agent *a, const char *why) {
  Btc__Bye bye = BTC__BYE__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_BYE);
  e.bye = &bye;
  bye.why = (char *)why;
  btc_outbox_add(a->outbox, &e, NULL, NULL);
  BTC_FAILPOINT("worker_bye");
}

static void on_wake(void *ctx) {
  (void)ctx; /* the work is done before the loop sleeps */
}

static void plan(btc_timer *t, int64_t due_ns) {
  if (due_ns == INT64_MAX)
    btc_timer_stop(t);
  else
    btc_timer_set(t, due_ns);
}

void link_flush(agent *a) {
  int64_t due = INT64_MAX;
  if (a->session) due = btc_outbox_flush(a->outbox, a->socket, NULL, a->session, btc_loop_now_ns(a->loop), NULL);
  plan(a->outbox_timer, due);
  /* a full outbox is not waited for: its answers wake the loop */
  plan(a->results_timer, btc_outbox_full(a->outbox) ? INT64_MAX : ledger_ripe_at(a->ledger, RESULT_AGE_MS * AGENT_MS));
}

btc_status link_open(agent *a, btc_error *err) {
  btc_status st = agent_split_brokers(a, err);
  if (st == BTC_OK && (a->o->keys || a->o->server_key)) {
    if (!a->o->keys || !a->o->server_key)
      return btc_fail(err, BTC_ERR_ARG, "CURVE needs both our secret key and the server's public key");
    st = btc_keys_load(a->o->keys, a->o->server_key, NULL, &a->keys, err);
  }
  if (st == BTC_OK) st = btc_outbox_create(OUTBOX_MESSAGES, OUTBOX_BYTES, &a->outbox, err);
  if (st != BTC_OK) return st;
  a->heartbeat_ms = AGENT_HEARTBEAT_MS;
  a->beat_timer = btc_timer_create(a->loop, on_beat, a);
  a->hello_timer = btc_timer_create(a->loop, on_hello_timer, a);
  a->outbox_timer = btc_timer_create(a->loop, on_wake, a);
  a->results_timer = btc_timer_create(a->loop, on_wake, a);
  if (!a->beat_timer || !a->hello_timer || !a->outbox_timer || !a->results_timer || !(a->zmq = zmq_ctx_new()))
    return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  return BTC_OK;
}

void link_close(agent *a) {
  disconnect(a);
  if (a->zmq) zmq_ctx_term(a->zmq);
  btc_outbox_destroy(&a->outbox, NULL);
  btc_keys_destroy(&a->keys);
  free(a->broker_list);
}
