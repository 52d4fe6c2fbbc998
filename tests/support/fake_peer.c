/* The other end of a broker's sockets. */
#include "fake_peer.h"

#include <inttypes.h>
#include <stdio.h>
#include <zmq.h>

#include "daemon.h"
#include "test.h"

enum { WAIT_MS = 30000 }; /* a wait that ends well ends at once; the machine may be busy */

fake_peer *peer_open(const char *endpoint) {
  fake_peer *p = calloc(1, sizeof *p);
  btc_error err;
  assert_non_null(p);
  p->zmq = zmq_ctx_new();
  if (btc_socket_connect_dealer(p->zmq, endpoint, NULL, 1000, &p->socket, &err) != BTC_OK) fail_msg("%s", err.message);
  return p;
}

void peer_close(fake_peer **peer) {
  fake_peer *p = *peer;
  *peer = NULL;
  if (!p) return;
  btc_socket_close(&p->socket);
  zmq_ctx_term(p->zmq);
  free(p);
}

static void send_packed(fake_peer *p, const void *data, size_t len) {
  for (int64_t end = test_now_ms() + WAIT_MS; zmq_send(p->socket, data, len, ZMQ_DONTWAIT) < 0; test_sleep_ms(5))
    if (test_now_ms() > end) fail_msg("no connection to the broker");
}

void peer_send_bytes(fake_peer *p, const void *data, size_t len) {
  send_packed(p, data, len);
}

uint64_t peer_send(fake_peer *p, Btc__Envelope *e) {
  uint8_t *data;
  size_t len;
  btc_error err;
  if (e->body_case != BTC__ENVELOPE__BODY_ACK) e->req_id = ++p->last_req;
  e->session = p->session;
  if (btc_wire_pack(e, &data, &len, &err) != BTC_OK) fail_msg("%s", err.message);
  send_packed(p, data, len);
  free(data);
  return e->req_id;
}

Btc__Envelope *peer_take_any(fake_peer *p, int64_t end_ms) {
  btc_message m;
  while (!btc_socket_take(p->socket, false, NULL, &m)) {
    zmq_pollitem_t item = {p->socket, 0, ZMQ_POLLIN, 0};
    int64_t left = end_ms - test_now_ms();
    if (left <= 0 || zmq_poll(&item, 1, left) < 0) return NULL;
  }
  if (!m.envelope) fail_msg("the broker sent what is no envelope: %s", m.error.message);
  return m.envelope;
}

Btc__Envelope *peer_take(fake_peer *p, Btc__Envelope__BodyCase body, int ms) {
  int64_t end = test_now_ms() + ms;
  for (Btc__Envelope *e; (e = peer_take_any(p, end)); btc_wire_free(&e))
    if (e->body_case == body) return e;
  return NULL;
}

Btc__Envelope *peer_expect(fake_peer *p, Btc__Envelope__BodyCase body) {
  Btc__Envelope *e = peer_take(p, body, WAIT_MS);
  if (!e) fail_msg("no %s came", btc_wire_body_name(body));
  return e;
}

static bool names(const Btc__Envelope *e, uint64_t req_id) {
  switch (e->body_case) {
    case BTC__ENVELOPE__BODY_ACK:
      for (size_t i = 0; i < e->ack->n_req_id; i++)
        if (e->ack->req_id[i] == req_id) return true;
      return false;
    case BTC__ENVELOPE__BODY_NACK:
      return e->nack->req_id == req_id;
    case BTC__ENVELOPE__BODY_REPLY:
      return e->reply->in_reply_to == req_id;
    case BTC__ENVELOPE__BODY_STATUS_REPLY:
      return e->status_reply->in_reply_to == req_id;
    case BTC__ENVELOPE__BODY_DEAD_REPLY:
      return e->dead_reply->in_reply_to == req_id;
    case BTC__ENVELOPE__BODY_WORKERS_REPLY:
      return e->workers_reply->in_reply_to == req_id;
    default:
      return false;
  }
}

Btc__Envelope *peer_answer(fake_peer *p, uint64_t req_id, Btc__Envelope__BodyCase body) {
  int64_t end = test_now_ms() + WAIT_MS;
  for (Btc__Envelope *e; (e = peer_take_any(p, end)); btc_wire_free(&e)) {
    if (!names(e, req_id)) continue;
    if (e->body_case != body)
      fail_msg("message %" PRIu64 " was answered by %s (%s)", req_id, btc_wire_body_name(e->body_case),
               e->body_case == BTC__ENVELOPE__BODY_NACK ? e->nack->message : "");
    return e;
  }
  fail_msg("message %" PRIu64 " was not answered", req_id);
  return NULL;
}

/* ---- workers ---- */

uint64_t peer_say_hello(fake_peer *p, const char *name, uint64_t incarnation, uint32_t credits, const Btc__Held *held,
                        size_t n_held) {
  Btc__Hello hello = BTC__HELLO__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_HELLO);
  Btc__Held *list[64];
  for (size_t i = 0; i < n_held; i++) list[i] = (Btc__Held *)&held[i];
  hello.worker = (char *)name;
  hello.incarnation = incarnation;
  hello.model_class = (char *)"stub";
  hello.engine = (char *)"stub";
  hello.credits = credits;
  hello.held = list;
  hello.n_held = n_held;
  e.hello = &hello;
  p->session = 0;
  return peer_send(p, &e);
}

void peer_hello(fake_peer *p, const char *name, uint64_t incarnation, uint32_t credits, const Btc__Held *held, size_t n_held) {
  peer_say_hello(p, name, incarnation, credits, held, n_held);
  Btc__Envelope *e = peer_expect(p, BTC__ENVELOPE__BODY_WELCOME);
  p->session = e->welcome->session;
  assert_true(p->session != 0);
  btc_wire_free(&e);
}

void peer_ack(fake_peer *p, uint64_t req_id) {
  Btc__Ack ack = BTC__ACK__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_ACK);
  ack.req_id = &req_id;
  ack.n_req_id = 1;
  e.ack = &ack;
  peer_send(p, &e);
}

uint64_t peer_beat(fake_peer *p, const Btc__Chunk *c, uint32_t started, uint64_t progress) {
  Btc__Heartbeat beat = BTC__HEARTBEAT__INIT;
  Btc__ChunkProgress one = BTC__CHUNK_PROGRESS__INIT, *list = &one;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_HEARTBEAT);
  if (c) {
    one.cid = c->cid;
    one.token = c->token;
    one.started_mask = started;
    one.progress = progress;
    beat.chunks = &list;
    beat.n_chunks = 1;
  }
  e.heartbeat = &beat;
  return peer_send(p, &e);
}

uint64_t peer_results(fake_peer *p, const Btc__Chunk *c, uint32_t mask, Btc__Outcome outcome) {
  Btc__Results results = BTC__RESULTS__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_RESULTS);
  Btc__ItemResult item[32], *list[32];
  char id[32][32], record[32][128];
  for (uint32_t off = 0; off < 32; off++) {
    if (!(mask >> off & 1)) continue;
    size_t i = results.n_items++;
    bool ok = outcome == BTC__OUTCOME__OUTCOME_OK;
    btc__item_result__init(&item[i]);
    snprintf(id[i], sizeof id[i], "i%" PRIu64, c->lo + off);
    snprintf(record[i], sizeof record[i], "{\"v\":1,\"id\":\"%s\",\"status\":\"%s\"}", id[i], ok ? "ok" : "failed");
    item[i].off = off;
    item[i].outcome = outcome;
    item[i].id = id[i];
    item[i].record = record[i];
    item[i].reason = (char *)(ok ? "" : "decode");
    item[i].message = (char *)(ok ? "" : "no image");
    list[i] = &item[i];
  }
  results.cid = c->cid;
  results.token = c->token;
  results.jid = c->jid;
  results.lo = c->lo;
  results.items = list;
  e.results = &results;
  return peer_send(p, &e);
}

Btc__Envelope *peer_grant(fake_peer *p) {
  Btc__Envelope *e = peer_expect(p, BTC__ENVELOPE__BODY_GRANT);
  assert_int_equal(e->grant->n_chunks, 1);
  peer_ack(p, e->req_id);
  return e;
}
