/*
 * What anybody may send to a link that has said hello: frames cut anywhere, damaged, of other epochs. Input: pieces, each with a
 * length and a way: raw bytes, or a body that gets a good head. What arrives must be a good frame of ours, in order.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "worker/link.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

enum { HEAD = 48, LIMIT = 4096, WAIT_MS = 2000 };

static int listen_fd, port;
static const btc_link_id id = {.epoch = 7, .from = 0, .to = 1, .ranks = 2, .secret = {1, 2, 3}};

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  btc_error err;
  (void)argc;
  (void)argv;
  if (btc_link_listen("127.0.0.1", &listen_fd, &port, &err) == BTC_OK) return 0;
  fprintf(stderr, "%s\n", err.message);
  exit(1);
}

static btc_link_limits limits(void) {
  btc_link_limits l = btc_link_limits_default();
  l.max_bytes = LIMIT;
  return l;
}

static void *connect_side(void *out) {
  btc_link_wait w = {.deadline_ns = btc_now_ns() + (int64_t)WAIT_MS * 1000000};
  btc_link_limits l = limits();
  btc_error err;
  if (btc_link_connect("127.0.0.1", port, &id, &l, &w, out, &err) != BTC_OK) fprintf(stderr, "%s\n", err.message);
  return NULL;
}

static void put(uint8_t *p, uint64_t v, int n) {
  for (int i = 0; i < n; i++) p[i] = (uint8_t)(v >> 8 * i);
}

/* A frame with good checksums; the epoch may be another, the length may lie. */
static size_t frame(uint8_t *out, const uint8_t *body, size_t n, uint8_t way, uint64_t step) {
  memset(out, 0, HEAD);
  put(out, 0x46435442, 4);
  put(out + 4, way & 8 ? 2 : 1, 2);
  put(out + 6, way >> 4, 2);
  put(out + 8, way & 2 ? 6 : 7, 8);
  put(out + 16, step, 8);
  put(out + 24, way & 4 ? (uint64_t)n << 20 : n, 8);
  put(out + 36, btc_link_crc32c(0, body, n), 4);
  put(out + 44, btc_link_crc32c(0, out, 44), 4);
  memcpy(out + HEAD, body, n);
  return HEAD + n;
}

static size_t send_pieces(int fd, const uint8_t *data, size_t size) {
  uint8_t out[HEAD + 256];
  size_t good = 0;
  for (uint64_t step = 1; size >= 2; step++) {
    uint8_t way = data[0];
    size_t n = data[1] < size - 2 ? data[1] : size - 2;
    const uint8_t *body = data + 2;
    size_t len = way & 1 ? frame(out, body, n, way, step) : n;
    if (send(fd, way & 1 ? out : body, len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) break;
    good += (way & 1) != 0;
    data += 2 + n;
    size -= 2 + n;
  }
  return good;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  btc_link *in = NULL, *out = NULL;
  btc_link_wait w = {.deadline_ns = btc_now_ns() + (int64_t)WAIT_MS * 1000000};
  btc_link_limits l = limits();
  btc_error err = {0};
  pthread_t thread;
  if (pthread_create(&thread, NULL, connect_side, &out) != 0) return 0;
  btc_status st = btc_link_accept(listen_fd, &id, &l, &w, &in, &err);
  pthread_join(thread, NULL);
  if (st == BTC_OK && out) {
    size_t most = send_pieces(btc_link_fd(out), data, size), got = 0;
    btc_link_close(&out);
    for (;;) {
      btc_link_head h;
      const uint8_t *body;
      size_t n;
      err.message[0] = 0;
      st = btc_link_receive(in, &h, &body, &n, &w, &err);
      if (st != BTC_OK) break;
      if (n > LIMIT || ++got > most + size) abort();
      for (size_t i = 0, sum = 0; i < n; i++) sum += body[i];
    }
    if (!err.message[0]) abort();
  }
  btc_link_close(&in);
  btc_link_close(&out);
  return 0;
}
