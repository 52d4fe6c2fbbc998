/*
 * What a broker orders a member to form: refused with a reason, or ranks that divide the model and orders that hold together.
 * Input: mode, then an envelope (even); or the numbers of a good order, then (place, byte) pairs that are changed in it (odd).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/wire.h"
#include "worker/member_order.h"
#include "worker/pipe.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { BLOCKS = 12, CHANGE = 5, MOST = 4096 };

static bool ends(const char *text, size_t room) {
  return memchr(text, 0, room) != NULL;
}

static void check(const shard_order *rank, const shard_order *driver) {
  if (rank->ranks < 1 || rank->ranks > PIPE_MAX_RANKS || rank->rank >= rank->ranks || driver->rank != rank->ranks) abort();
  if (rank->entry >= rank->ranks || rank->form_ms < 1 || rank->frame_ms < 1) abort();
  if (rank->next_port < 1 || rank->next_port > 65535 || driver->entry_port < 1 || driver->entry_port > 65535) abort();
  if (!ends(rank->next_host, sizeof rank->next_host) || !ends(driver->next_host, sizeof driver->next_host) ||
      !ends(driver->entry_host, sizeof driver->entry_host) || !ends(driver->shrink, sizeof driver->shrink))
    abort();
  if (rank->outside != (rank->rank > 0) || rank->epoch != driver->epoch) abort();
}

static void try_order(const Btc__PipeForm *f) {
  const member_self self = {.name = "w1", .model_class = "m", .blocks = BLOCKS, .change = CHANGE};
  shard_order rank, driver;
  memset(&rank, 0xa5, sizeof rank);
  memset(&driver, 0xa5, sizeof driver);
  const char *why = member_order_read(f, &self, &rank, &driver);
  if (why && !*why) abort();
  if (why) return;
  uint32_t at = 0;
  for (size_t i = 0; i < f->n_ranks; i++) {
    if (f->ranks[i]->first != at || f->ranks[i]->last <= at) abort();
    at = f->ranks[i]->last;
  }
  if (at != BLOCKS) abort();
  check(&rank, &driver);
}

static void try_envelope(const uint8_t *data, size_t size) {
  Btc__Envelope *e;
  btc_error err;
  if (btc_wire_unpack(data, size, &e, &err) != BTC_OK) return;
  if (e->body_case == BTC__ENVELOPE__BODY_PIPE_FORM) try_order(e->pipe_form);
  btc_wire_free(&e);
}

/* As the broker would send it, but for numbers taken from the input: rank, then where each range ends. */
static size_t good_order(const uint8_t *data, size_t size, uint8_t out[MOST]) {
  static uint8_t secret[BTC_LINK_SECRET];
  Btc__PipeForm f = BTC__PIPE_FORM__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_PIPE_FORM);
  Btc__PipeRank rank[PIPE_MAX_RANKS + 2], *list[PIPE_MAX_RANKS + 2];
  size_t n = data[0] % (PIPE_MAX_RANKS + 3);
  f.rank = data[1] % 20;
  for (size_t i = 0; i < n; i++) {
    btc__pipe_rank__init(&rank[i]);
    rank[i].worker = (char *)(i == f.rank ? "w1" : "w2");
    rank[i].endpoint = (char *)"10.0.0.1:7420";
    rank[i].first = i ? rank[i - 1].last : 0;
    rank[i].last = i + 1 == n ? BLOCKS : 2 + i < size ? data[2 + i] : rank[i].first + 1;
    list[i] = &rank[i];
  }
  f.pipe = (char *)"p1";
  f.epoch = 7;
  f.ranks = list;
  f.n_ranks = n;
  f.model_class = (char *)"m";
  f.secret.data = secret;
  f.secret.len = sizeof secret;
  f.out_of_memory = (char *)(data[1] & 128 ? "rank 0, w2: not enough memory" : "");
  e.pipe_form = &f;
  e.req_id = 1;
  size_t bytes = btc__envelope__get_packed_size(&e);
  return bytes <= MOST ? btc__envelope__pack(&e, out) : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static uint8_t order[MOST];
  if (size < 1) return 0;
  if (!(data[0] & 1)) {
    try_envelope(data + 1, size - 1);
    return 0;
  }
  if (size < 4) return 0;
  size_t n = good_order(data + 1, size - 1, order);
  for (size_t i = 4 + data[1] % 19u; i + 2 < size && n; i += 3) order[(data[i] | (size_t)data[i + 1] << 8) % n] = data[i + 2];
  try_envelope(order, n);
  return 0;
}
