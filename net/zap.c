/*
 * The ZAP handler (ZeroMQ RFC 27): a thread that answers on inproc://zeromq.zap.01 whether a key may connect. The User-Id it gives
 * a connection is the peer's public key; what the key may do is looked up at each message (socket.c). Without this thread libzmq
 * lets every key in, but then there is no User-Id, and socket.c gives such peers no role.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "net/keys.h"

enum { VERSION, REQUEST_ID, DOMAIN, ADDRESS, IDENTITY, MECHANISM, CREDENTIALS, FRAMES };

struct btc_zap {
  pthread_t thread;
  const btc_keys *keys;
  void *handler, *stop_in, *stop_out; /* REP; a PAIR whose one end belongs to the thread */
};

typedef struct request {
  char frame[FRAMES][256];
  size_t len[FRAMES];
  int n; /* FRAMES, or something else when the request is none */
} request;

static bool receive(void *socket, request *r) {
  int more = 1;
  size_t size = sizeof more;
  for (r->n = 0; more; r->n++) {
    char spare[256], *to = r->n < FRAMES ? r->frame[r->n] : spare;
    int got = zmq_recv(socket, to, sizeof spare - 1, 0);
    if (got < 0) return false;
    if (r->n < FRAMES) {
      r->len[r->n] = (size_t)got < sizeof spare - 1 ? (size_t)got : sizeof spare - 1;
      to[r->len[r->n]] = 0;
    }
    zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size);
  }
  return true;
}

static void answer(void *socket, const request *r, bool allowed, const char *key) {
  const char *code = allowed ? "200" : "400", *text = allowed ? "OK" : "this key is not on the allow-list";
  zmq_send(socket, "1.0", 3, ZMQ_SNDMORE);
  zmq_send(socket, r->frame[REQUEST_ID], r->len[REQUEST_ID], ZMQ_SNDMORE);
  zmq_send(socket, code, 3, ZMQ_SNDMORE);
  zmq_send(socket, text, strlen(text), ZMQ_SNDMORE);
  zmq_send(socket, key, allowed ? strlen(key) : 0, ZMQ_SNDMORE);
  zmq_send(socket, "", 0, 0);
}

static void judge(const btc_zap *z) {
  request r;
  char key[41] = "";
  if (!receive(z->handler, &r)) return;
  bool well_formed =
      r.n == FRAMES && !strcmp(r.frame[VERSION], "1.0") && !strcmp(r.frame[MECHANISM], "CURVE") && r.len[CREDENTIALS] == 32;
  if (r.n <= REQUEST_ID) r.len[REQUEST_ID] = 0;
  if (well_formed) zmq_z85_encode(key, (const uint8_t *)r.frame[CREDENTIALS], 32);
  answer(z->handler, &r, well_formed && btc_keys_role(z->keys, key) != BTC_ROLE_NONE, key);
}

static void *serve(void *ctx) {
  btc_zap *z = ctx;
  zmq_pollitem_t items[] = {{.socket = z->handler, .events = ZMQ_POLLIN}, {.socket = z->stop_in, .events = ZMQ_POLLIN}};
  for (;;) {
    if (zmq_poll(items, 2, -1) < 0 && errno != EINTR) break;
    if (items[1].revents) break;
    if (items[0].revents) judge(z);
  }
  zmq_close(z->handler);
  zmq_close(z->stop_in);
  return NULL;
}

static void *bound(void *zmq, int type, const char *endpoint, bool bind) {
  const int none = 0;
  void *s = zmq_socket(zmq, type);
  if (s && zmq_setsockopt(s, ZMQ_LINGER, &none, sizeof none) == 0 && (bind ? zmq_bind(s, endpoint) : zmq_connect(s, endpoint)) == 0)
    return s;
  int why = errno;
  if (s) zmq_close(s);
  errno = why;
  return NULL;
}

btc_status btc_zap_start(void *zmq, btc_keys *k, btc_zap **out, btc_error *err) {
  btc_zap *z = *out = btc_alloc_zero(1, sizeof *z);
  if (!z) return btc_fail(err, BTC_ERR_NOMEM, "key handler: out of memory");
  char endpoint[64];
  snprintf(endpoint, sizeof endpoint, "inproc://btcchat.zap.stop.%p", (void *)z);
  z->keys = k;
  if ((z->handler = bound(zmq, ZMQ_REP, "inproc://zeromq.zap.01", true)) && (z->stop_in = bound(zmq, ZMQ_PAIR, endpoint, true)) &&
      (z->stop_out = bound(zmq, ZMQ_PAIR, endpoint, false)) && (errno = pthread_create(&z->thread, NULL, serve, z)) == 0)
    return BTC_OK;
  btc_fail(err, BTC_ERR_IO, "cannot start the key handler: %s", zmq_strerror(errno));
  if (z->handler) zmq_close(z->handler);
  if (z->stop_in) zmq_close(z->stop_in);
  if (z->stop_out) zmq_close(z->stop_out);
  free(z);
  *out = NULL;
  return BTC_ERR_IO;
}

void btc_zap_stop(btc_zap **zap) {
  btc_zap *z = *zap;
  *zap = NULL;
  if (!z) return;
  zmq_send(z->stop_out, "", 0, 0);
  pthread_join(z->thread, NULL);
  zmq_close(z->stop_out);
  free(z);
}
