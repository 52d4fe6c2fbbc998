/* ZeroMQ sockets with the project's options: see socket.h. */
#define _GNU_SOURCE
#include "net/socket.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

/* ---- which endpoints are reachable from this machine only ---- */

static bool is_loopback_host(const char *host, size_t len) {
  if (len == 5 && memcmp(host, "[::1]", 5) == 0) return true;
  if (len == 9 && memcmp(host, "localhost", 9) == 0) return true;
  if (len < 4 || memcmp(host, "127.", 4) != 0) return false;
  for (size_t i = 0; i < len; i++)
    if (host[i] != '.' && (host[i] < '0' || host[i] > '9')) return false; /* 127.example.org is somebody else */
  return true;
}

/* libzmq wraps 70000 around to 4464. */
static bool is_port(const char *s) {
  if (strcmp(s, "*") == 0) return true;
  size_t len = strlen(s);
  long port = len >= 1 && len <= 5 && strspn(s, "0123456789") == len ? strtol(s, NULL, 10) : 0;
  return port >= 1 && port <= 65535;
}

static btc_status check_endpoint(const char *endpoint, bool keys, btc_error *err) {
  if (!strncmp(endpoint, "ipc://", 6) || !strncmp(endpoint, "inproc://", 9)) return BTC_OK;
  const char *host = endpoint + 6, *port = strrchr(endpoint, ':');
  if (strncmp(endpoint, "tcp://", 6) != 0 || port <= host || !is_port(port + 1))
    return btc_fail(err, BTC_ERR_ARG, "endpoint '%s': must be tcp://HOST:PORT (1 to 65535) or ipc://PATH", endpoint);
  if (keys || is_loopback_host(host, (size_t)(port - host))) return BTC_OK;
  return btc_fail(
      err, BTC_ERR_ARG,
      "endpoint '%s': without keys only loopback (127.0.0.1, [::1]) and ipc:// are allowed, since anybody could read and "
      "write; make keys with 'btcchat keygen' and give them with --keys",
      endpoint);
}

/* ---- making sockets ---- */

static btc_status set_int(void *s, int option, int value, btc_error *err) {
  if (zmq_setsockopt(s, option, &value, sizeof value) == 0) return BTC_OK;
  return btc_fail(err, BTC_ERR_INTERNAL, "ZeroMQ option %d: %s", option, zmq_strerror(errno));
}

/* Heartbeats notice a dead link in 3 s; the I/O thread answers them even when the program hangs, so they say nothing about it. */
static btc_status set_common(void *s, const char *endpoint, int hwm, btc_error *err) {
  const char *host = strncmp(endpoint, "tcp://", 6) == 0 ? endpoint + 6 : "0";
  const struct {
    int option, value;
  } options[] = {{ZMQ_SNDHWM, hwm},
                 {ZMQ_RCVHWM, hwm},
                 {ZMQ_LINGER, 0},
                 {ZMQ_HEARTBEAT_IVL, 1000},
                 {ZMQ_HEARTBEAT_TIMEOUT, 3000},
                 {ZMQ_HEARTBEAT_TTL, 3000},
                 {ZMQ_HANDSHAKE_IVL, 5000},
                 {ZMQ_TCP_KEEPALIVE, 1},
                 {ZMQ_IPV6, host[0] < '0' || host[0] > '9'}}; /* names and [..]; a dotted address stays as it is */
  btc_status st = BTC_OK;
  for (size_t i = 0; st == BTC_OK && i < sizeof options / sizeof options[0]; i++)
    st = set_int(s, options[i].option, options[i].value, err);
  int64_t most = BTC_WIRE_MAX_BYTES;
  if (st == BTC_OK && zmq_setsockopt(s, ZMQ_MAXMSGSIZE, &most, sizeof most) != 0)
    st = btc_fail(err, BTC_ERR_INTERNAL, "ZeroMQ option: %s", zmq_strerror(errno));
  return st;
}

static btc_status make(void *zmq, int type, const char *endpoint, const btc_keys *keys, int hwm, void **out, btc_error *err) {
  *out = NULL;
  if (hwm < 1) return btc_fail(err, BTC_ERR_ARG, "endpoint '%s': at least one message must be allowed in its queue", endpoint);
  btc_status st = check_endpoint(endpoint, keys != NULL, err);
  if (st != BTC_OK) return st;
  void *s = zmq_socket(zmq, type);
  if (!s) return btc_fail(err, errno == EMFILE ? BTC_ERR_LIMIT : BTC_ERR_IO, "cannot make a socket: %s", zmq_strerror(errno));
  st = set_common(s, endpoint, hwm, err);
  if (st == BTC_OK && keys) st = btc_keys_apply(keys, s, type == ZMQ_ROUTER, err);
  if (st != BTC_OK) btc_socket_close(&s);
  *out = s;
  return st;
}

static btc_status refuse(const char *verb, const char *endpoint, btc_error *err) {
  btc_status st = errno == EINVAL || errno == ENODEV || errno == ENAMETOOLONG ? BTC_ERR_ARG : BTC_ERR_IO;
  return btc_fail(err, st, "cannot %s '%s': %s", verb, endpoint, zmq_strerror(errno));
}

btc_status btc_socket_bind_router(void *zmq, const char *endpoint, const btc_keys *keys, int hwm, void **out, btc_error *err) {
  btc_status st = make(zmq, ZMQ_ROUTER, endpoint, keys, hwm, out, err);
  if (st == BTC_OK) st = set_int(*out, ZMQ_ROUTER_MANDATORY, 1, err); /* a full or gone peer is an error, not silence */
  if (st == BTC_OK && zmq_bind(*out, endpoint) != 0) st = refuse("listen on", endpoint, err);
  if (st != BTC_OK) btc_socket_close(out);
  return st;
}

btc_status btc_socket_connect_dealer(void *zmq, const char *endpoint, const btc_keys *keys, int hwm, void **out, btc_error *err) {
  btc_status st = make(zmq, ZMQ_DEALER, endpoint, keys, hwm, out, err);
  if (st == BTC_OK) st = set_int(*out, ZMQ_IMMEDIATE, 1, err); /* nothing is queued for a broker that is not there */
  if (st == BTC_OK) st = set_int(*out, ZMQ_RECONNECT_IVL, 100, err);
  if (st == BTC_OK) st = set_int(*out, ZMQ_RECONNECT_IVL_MAX, 5000, err);
  if (st == BTC_OK && zmq_connect(*out, endpoint) != 0) st = refuse("connect to", endpoint, err);
  if (st != BTC_OK) btc_socket_close(out);
  return st;
}

const char *btc_socket_endpoint(void *socket, char *buf, size_t len) {
  if (len) buf[0] = 0;
  zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, buf, &len);
  return buf;
}

void btc_socket_close(void **socket) {
  if (*socket) zmq_close(*socket);
  *socket = NULL;
}

/* ---- sending ---- */

static void free_bytes(void *data, void *hint) {
  (void)hint;
  free(data);
}

static btc_status send_failed(btc_error *err) {
  if (errno == EHOSTUNREACH) return btc_fail(err, BTC_ERR_NOT_FOUND, "the peer is gone");
  if (errno == EAGAIN) return btc_fail(err, BTC_ERR_LIMIT, "the peer's queue is full, or it is not connected");
  return btc_fail(err, BTC_ERR_IO, "cannot send: %s", zmq_strerror(errno));
}

btc_status btc_socket_send_bytes(void *socket, const btc_peer_id *to, uint8_t *data, size_t len, btc_error *err) {
  zmq_msg_t m;
  if (zmq_msg_init_data(&m, data, len, free_bytes, NULL) != 0) {
    free(data);
    return btc_fail(err, BTC_ERR_NOMEM, "cannot send: out of memory");
  }
  int rc = to ? zmq_send(socket, to->bytes, to->len, ZMQ_SNDMORE | ZMQ_DONTWAIT) : 0;
  if (rc >= 0) rc = zmq_msg_send(&m, socket, ZMQ_DONTWAIT);
  if (rc >= 0) return BTC_OK;
  btc_status st = send_failed(err);
  zmq_msg_close(&m);
  return st;
}

btc_status btc_socket_send(void *socket, const btc_peer_id *to, const Btc__Envelope *e, btc_error *err) {
  uint8_t *data;
  size_t len;
  btc_status st = btc_wire_pack(e, &data, &len, err);
  return st == BTC_OK ? btc_socket_send_bytes(socket, to, data, len, err) : st;
}

/* ---- taking ---- */

static void set_peer(btc_message *m, zmq_msg_t *frame, const btc_keys *keys) {
  const char *user = zmq_msg_gets(frame, "User-Id");
  if (user && strlen(user) < sizeof m->key) memcpy(m->key, user, strlen(user) + 1);
  m->role = keys ? btc_keys_role(keys, m->key) : BTC_ROLE_ANY; /* with keys but no User-Id nobody vouched for the peer: NONE */
}

static void read_envelope(btc_message *m, zmq_msg_t *frame) {
  const uint8_t *data = zmq_msg_data(frame);
  size_t len = zmq_msg_size(frame);
  if (btc_wire_unpack(data, len, &m->envelope, &m->error) == BTC_OK)
    m->req_id = m->envelope->req_id;
  else
    m->req_id = btc_wire_req_id(data, len);
}

bool btc_socket_take(void *socket, bool router, const btc_keys *keys, btc_message *out) {
  *out = (btc_message){0};
  zmq_msg_t frame;
  zmq_msg_init(&frame);
  int n = 0, want = router ? 2 : 1;
  bool more = true, got = false;
  while (more && zmq_msg_recv(&frame, socket, ZMQ_DONTWAIT) >= 0) { /* the frames of a message arrive together */
    got = true;
    more = zmq_msg_more(&frame);
    if (router && n == 0 && zmq_msg_size(&frame) <= sizeof out->from.bytes) {
      out->from.len = (uint8_t)zmq_msg_size(&frame);
      memcpy(out->from.bytes, zmq_msg_data(&frame), out->from.len);
    }
    if (n == want - 1) {
      set_peer(out, &frame, router ? keys : NULL);
      if (!more) read_envelope(out, &frame);
    }
    n++;
  }
  zmq_msg_close(&frame);
  if (got && n != want) btc_fail(&out->error, BTC_ERR_FORMAT, "message: %d frames in place of %d", n, want);
  if (got && router && !out->from.len) { /* nobody to answer to */
    btc_wire_free(&out->envelope);
    btc_fail(&out->error, BTC_ERR_FORMAT, "message: a routing id of more than %zu bytes", sizeof out->from.bytes);
  }
  return got;
}

void btc_message_clear(btc_message *m) {
  btc_wire_free(&m->envelope);
  *m = (btc_message){0};
}
