/*
 * The ZeroMQ sockets of the project, with the options that keep them honest (queue.md 2.14): ROUTER_MANDATORY, bounded queues,
 * ZMTP heartbeats, LINGER 0, MAXMSGSIZE, and CURVE when there are keys. A socket belongs to the thread that made it.
 *
 * Without keys a socket binds and connects to loopback and ipc only; anything else is refused (BTC_ERR_ARG) with a sentence that
 * says how to make keys. A DEALER whose key was refused does not come back by itself: close it and connect a new one.
 */
#ifndef BTC_NET_SOCKET_H
#define BTC_NET_SOCKET_H

#include "net/keys.h"
#include "proto/wire.h"

typedef struct btc_peer_id { /* routing id that the ROUTER gave; binary */
  uint8_t len, bytes[32];
} btc_peer_id;

typedef struct btc_message {
  btc_peer_id from;        /* ROUTER only */
  char key[41];            /* peer's CURVE public key (Z85) as authenticated, "" without CURVE */
  btc_role role;           /* of that key now (NONE: taken off the list since it connected); BTC_ROLE_ANY without CURVE */
  uint64_t req_id;         /* of the envelope, also of one that could not be taken, so that a Nack can name it; 0 when unknown */
  Btc__Envelope *envelope; /* NULL: no envelope that we read, and `error` says why (UNSUPPORTED: a version we do not speak) */
  btc_error error;
} btc_message;

/* endpoint: tcp://127.0.0.1:7411, tcp://[::1]:*, ipc://... ; port * takes a free one, see btc_socket_endpoint. keys NULL: no CURVE.
 * hwm: messages queued for each peer. */
btc_status btc_socket_bind_router(void *zmq, const char *endpoint, const btc_keys *keys, int hwm, void **out, btc_error *err);
btc_status btc_socket_connect_dealer(void *zmq, const char *endpoint, const btc_keys *keys, int hwm, void **out, btc_error *err);
const char *btc_socket_endpoint(void *socket, char *buf, size_t len);
void btc_socket_close(void **socket);

/* Sends without waiting. to: NULL for a DEALER. BTC_ERR_LIMIT: the peer's queue is full, or a DEALER has no connection (nothing was
 * sent); BTC_ERR_NOT_FOUND: no such peer any more. */
btc_status btc_socket_send(void *socket, const btc_peer_id *to, const Btc__Envelope *e, btc_error *err);
/* The same with bytes that are packed already; takes ownership of data (malloc'ed), also on failure. */
btc_status btc_socket_send_bytes(void *socket, const btc_peer_id *to, uint8_t *data, size_t len, btc_error *err);
/* Takes one message without waiting; false when there is none. The caller clears it with btc_message_clear. keys: where roles are
 * looked up, at every message, so that a reloaded allow-list holds for connections that are open; NULL without CURVE. A body that
 * this version does not know arrives with envelope->body_case BTC__ENVELOPE__BODY__NOT_SET: answer Nack{UNKNOWN}. */
bool btc_socket_take(void *socket, bool router, const btc_keys *keys, btc_message *out);
void btc_message_clear(btc_message *m);
bool btc_peer_id_equal(const btc_peer_id *a, const btc_peer_id *b);

#endif
