/*
 * A worker or client played by a test, message by message: one DEALER to a broker, nothing repeated and nothing answered by itself.
 */
#ifndef TEST_FAKE_PEER_H
#define TEST_FAKE_PEER_H

#include "net/socket.h"

typedef struct fake_peer {
  void *zmq, *socket;
  char name[64];
  uint64_t incarnation, session, last_req;
} fake_peer;

fake_peer *peer_open(const char *endpoint);
void peer_close(fake_peer **p);

/* Sends e with the peer's session and a fresh req_id, which it returns; waits until there is a connection. */
uint64_t peer_send(fake_peer *p, Btc__Envelope *e);
/* One raw frame. */
void peer_send_bytes(fake_peer *p, const void *data, size_t len);
/* The next message of any kind before test_now_ms() is end_ms; NULL: none came. btc_wire_free it. */
Btc__Envelope *peer_take_any(fake_peer *p, int64_t end_ms);
/* The next message with this body within ms, others are dropped; NULL: none came. btc_wire_free it. */
Btc__Envelope *peer_take(fake_peer *p, Btc__Envelope__BodyCase body, int ms);
/* Fails the test when there is none in 30 s. */
Btc__Envelope *peer_expect(fake_peer *p, Btc__Envelope__BodyCase body);
/* An Ack, Nack or Reply that names req_id, in 30 s; fails the test when it is of another kind. */
Btc__Envelope *peer_answer(fake_peer *p, uint64_t req_id, Btc__Envelope__BodyCase body);

/* ---- workers ---- */
/* Says Hello and keeps the session of the Welcome. held may be NULL. */
void peer_hello(fake_peer *p, const char *name, uint64_t incarnation, uint32_t credits, const Btc__Held *held, size_t n_held);
/* The same without looking at the answer; returns its req_id. */
uint64_t peer_say_hello(fake_peer *p, const char *name, uint64_t incarnation, uint32_t credits, const Btc__Held *held,
                        size_t n_held);
void peer_ack(fake_peer *p, uint64_t req_id);
/* A heartbeat that names one chunk (or none), without waiting for its acknowledgement. */
uint64_t peer_beat(fake_peer *p, const Btc__Chunk *c, uint32_t started, uint64_t progress);
/* Results of the items `mask` of a chunk, all with this outcome; returns the req_id. */
uint64_t peer_results(fake_peer *p, const Btc__Chunk *c, uint32_t mask, Btc__Outcome outcome);
/* The next Grant, acknowledged; its one chunk is grant->grant->chunks[0]. */
Btc__Envelope *peer_grant(fake_peer *p);

#endif
