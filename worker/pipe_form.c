/*
 * Epochs. Forming one: every rank is alive and open; all get the order (epoch, secret, where the next rank listens), connect to the
 * next and wait for the previous; the driver closes the ring. Whoever fails at it makes the attempt fail, never hang.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "pipe_parts.h"

enum {
  ATTEMPTS = 6,
  NCCL_ATTEMPTS = 2,
  GRIEF_MS = 1000 /* a process that ends on a busy machine closes its links long before it is gone */
};

/* A link that closed tells of a death before the system does. To form again with the dying would only fail. */
void pipe_wait_for_death(pipe_driver *p) {
  int64_t end = btc_now_ns() + (int64_t)GRIEF_MS * 1000000;
  while (p->cause.code == BTC_ERR_IO && !p->dead && btc_now_ns() < end) {
    pipe_watch(p);
    if (!p->dead) poll(NULL, 0, 2);
  }
}

void pipe_close_links(pipe_driver *p) {
  btc_link_close(&p->in);
  btc_link_close(&p->out);
  btc_link_close(&p->side);
}

static btc_status wait_open(pipe_driver *p, btc_error *err) {
  for (;;) {
    int open = 0;
    if (pipe_has_fault(p))
      return btc_fail(err, p->fault ? p->cause.code : BTC_ERR_CANCELLED, "%s", p->fault ? p->cause.message : "stopped on request");
    for (int r = 0; r < p->n_ranks; r++) open += p->rank[r].process.open;
    if (open == p->n_ranks) return BTC_OK;
    struct pollfd f[2 * PIPE_MAX_RANKS];
    int n = 0;
    for (int r = 0; r < p->n_ranks; r++) {
      f[n++] = (struct pollfd){.fd = p->rank[r].process.control, .events = POLLIN};
      f[n++] = (struct pollfd){.fd = p->rank[r].process.pidfd, .events = POLLIN};
    }
    poll(f, (nfds_t)n, 20);
  }
}

static void put_host(char *at, size_t len, int32_t *to_port, int port) {
  snprintf(at, len, "127.0.0.1");
  *to_port = port;
}

static shard_order base_order(const pipe_driver *p, const uint8_t secret[BTC_LINK_SECRET]) {
  shard_order o = {.version = SHARD_VERSION,
                   .told = SHARD_FORM,
                   .ranks = (uint32_t)p->n_ranks,
                   .entry = (uint32_t)p->entry,
                   .form_ms = p->o.form_ms,
                   .frame_ms = p->o.step_ms,
                   .nccl = p->nccl,
                   .epoch = p->epoch,
                   .max_bytes = shard_frame_bound(p->m, p->o.slots)};
  memcpy(o.secret, secret, sizeof o.secret);
  return o;
}

static void give_orders(const pipe_driver *p, const shard_order *base) {
  for (int r = 0; r < p->n_ranks; r++) {
    shard_order o = *base;
    o.rank = (uint32_t)r;
    put_host(o.next_host, sizeof o.next_host, &o.next_port, r + 1 < p->n_ranks ? p->rank[r + 1].process.port : p->port);
    shard_process_order(&p->rank[r].process, &o);
  }
}

btc_status pipe_close_ring(pipe_driver *p, const shard_order *o, int listen_fd, btc_error *err) {
  btc_link_limits l = btc_link_limits_default();
  btc_link_wait w = {.deadline_ns = btc_now_ns() + (int64_t)o->form_ms * 1000000, .stop = pipe_has_fault, .ctx = p};
  btc_link_id id = {.epoch = o->epoch, .from = o->ranks - 1, .to = o->ranks, .ranks = o->ranks};
  memcpy(id.secret, o->secret, sizeof id.secret);
  l.max_bytes = (size_t)o->max_bytes;
  l.frame_ms = o->frame_ms;
  /* the driver accepts first: the last rank can then turn to the one before it, and so on */
  btc_status st = btc_link_accept(listen_fd, &id, &l, &w, &p->in, err);
  id.from = o->ranks;
  id.to = 0;
  if (st == BTC_OK) st = btc_shard_connect(o->next_host, o->next_port, &id, &l, &w, &p->out, err);
  if (st != BTC_OK || !o->entry) return st;
  id.to = o->entry;
  return btc_shard_connect(o->entry_host, o->entry_port, &id, &l, &w, &p->side, err);
}

static btc_status wait_ready(pipe_driver *p, btc_error *err) {
  int64_t end = btc_now_ns() + (int64_t)p->o.form_ms * 1000000;
  for (;;) {
    int ready = 0;
    for (int r = 0; r < p->n_ranks; r++) ready += p->rank[r].process.ready_epoch == p->epoch;
    if (ready == p->n_ranks) return BTC_OK;
    if (btc_now_ns() > end)
      return btc_fail(err, BTC_ERR_IO, "%d of %d ranks were not ready in time", p->n_ranks - ready, p->n_ranks);
    if (pipe_has_fault(p))
      return btc_fail(err, p->fault ? BTC_ERR_IO : BTC_ERR_CANCELLED, "%s", p->fault ? p->cause.message : "stopped on request");
    struct pollfd f[PIPE_MAX_RANKS];
    for (int r = 0; r < p->n_ranks; r++) f[r] = (struct pollfd){.fd = p->rank[r].process.control, .events = POLLIN};
    poll(f, (nfds_t)p->n_ranks, 20);
  }
}

/* Why NCCL cannot take the tensors of these ranks; "": it can. */
static void why_not_nccl(const pipe_driver *p, char *why, size_t len) {
  *why = 0;
  for (int r = 0; r < p->n_ranks; r++) {
    const shard_process *k = &p->rank[r].process, *first = &p->rank[0].process;
    if (!k->nccl) {
      snprintf(why, len, "rank %d: %s", r, k->no_nccl);
      return;
    }
    if (k->nccl != first->nccl) snprintf(why, len, "ranks 0 and %d have versions %d and %d of NCCL", r, first->nccl, k->nccl);
    for (int other = 0; other < r && p->o.tensors != PIPE_TENSORS_NCCL; other++)
      if (!strcmp(k->card, p->rank[other].process.card)) snprintf(why, len, "ranks %d and %d share a card", other, r);
  }
}

static btc_status choose_tensors(pipe_driver *p, int attempt, btc_error *err) {
  p->nccl = false;
  p->no_nccl[0] = 0;
  if (p->n_ranks == 1 || p->o.tensors == PIPE_TENSORS_TCP) return BTC_OK;
  why_not_nccl(p, p->no_nccl, sizeof p->no_nccl);
  if (!p->no_nccl[0] && p->o.tensors == PIPE_TENSORS_AUTO && (attempt >= NCCL_ATTEMPTS || p->futile > NCCL_ATTEMPTS))
    snprintf(p->no_nccl, sizeof p->no_nccl, "it has failed %d times", NCCL_ATTEMPTS);
  p->nccl = !p->no_nccl[0];
  if (p->nccl || p->o.tensors == PIPE_TENSORS_AUTO) return BTC_OK;
  return btc_fail(err, BTC_ERR_UNSUPPORTED, "tensors cannot go by NCCL: %s", p->no_nccl);
}

static btc_status attempt(pipe_driver *p, int number, btc_error *err) {
  uint8_t secret[BTC_LINK_SECRET];
  btc_status st = BTC_OK;
  p->fault = p->dead = false;
  p->abandoned = p->epoch;
  for (int r = 0; st == BTC_OK && r < p->n_ranks; r++)
    if (!p->rank[r].process.pid) st = pipe_rank_start(p, r, err);
  if (st == BTC_OK) st = wait_open(p, err);
  if (st == BTC_OK) st = choose_tensors(p, number, err);
  if (st != BTC_OK) return st;
  if (getrandom(secret, sizeof secret, 0) != sizeof secret)
    return btc_fail(err, BTC_ERR_IO, "no random bytes: %s", strerror(errno));
  p->epoch++; /* never used again, whatever becomes of the attempt */
  p->towers = p->entry + 1;
  shard_order base = base_order(p, secret);
  give_orders(p, &base);
  put_host(base.next_host, sizeof base.next_host, &base.next_port, p->rank[0].process.port);
  put_host(base.entry_host, sizeof base.entry_host, &base.entry_port, p->rank[p->entry].process.port);
  st = pipe_close_ring(p, &base, p->listen_fd, err);
  if (st == BTC_OK) st = wait_ready(p, err);
  if (st == BTC_ERR_CANCELLED && p->fault) st = btc_fail(err, BTC_ERR_IO, "%s", p->cause.message);
  return st;
}

btc_status pipe_form(pipe_driver *p, btc_error *err) {
  int64_t start = p->fault ? p->fault_ns : btc_now_ns();
  btc_status st = BTC_ERR_IO;
  for (int i = 0; i < ATTEMPTS; i++) {
    if (p->fault && i) pipe_wait_for_death(p);
    for (int r = 0; r < p->n_ranks; r++)
      if (p->rank[r].process.page) p->rank[r].process.page->cancel = 1;
    pipe_close_links(p);
    pipe_start_epoch(p);
    st = attempt(p, i, err);
    if (st == BTC_OK) {
      p->formed = true;
      p->form_ms = (double)(btc_now_ns() - start) * 1e-6;
      return BTC_OK;
    }
    pipe_break(p, st, "%s", err->message);
    if (st != BTC_ERR_IO && !p->dead) break; /* stopped, no memory, a model that does not open: trying again changes nothing */
  }
  return st;
}
