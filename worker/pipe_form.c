/*
 * Epochs. Forming one: every rank is alive and open; all get the order (epoch, secret, where the next rank listens), connect to the
 * next and wait for the previous; the driver closes the ring. Whoever fails at it makes the attempt fail, never hang.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "pipe_parts.h"

enum { ATTEMPTS = 6, GRIEF_MS = 300 };

/* A link that closed tells of a death before the system does. To form again with the dying would only fail. */
void pipe_wait_for_death(pipe_driver *p) {
  int64_t end = btc_now_ns() + (int64_t)GRIEF_MS * 1000000;
  while (p->cause.code == BTC_ERR_IO && !p->dead && btc_now_ns() < end) {
    pipe_watch(p);
    if (!p->dead) poll(NULL, 0, 2);
  }
}

/* The largest tensor that can travel: a full group of prompts as long as the context, or of images. */
static uint64_t frame_bound(const pipe_driver *p) {
  const btc_model *m = p->m;
  int64_t side = m->cfg->vision.image, images = m->cfg->num_video_frames > 2 ? m->cfg->num_video_frames : 2;
  int64_t most = m->cfg->llm.context * m->width;
  int64_t pixels = images * 3 * side * side, features = images * m->tokens * m->hidden;
  if (pixels > most) most = pixels;
  if (features > most) most = features;
  if (m->cfg->llm.vocab > most) most = m->cfg->llm.vocab;
  uint64_t bytes = 4 * (uint64_t)p->o.batch * (uint64_t)(most + m->cfg->llm.context + m->tokens + 64);
  return bytes < BTC_LINK_MAX_BYTES ? bytes : BTC_LINK_MAX_BYTES;
}

static btc_status wait_open(pipe_driver *p, btc_error *err) {
  for (;;) {
    int open = 0;
    if (pipe_has_fault(p))
      return btc_fail(err, p->fault ? p->cause.code : BTC_ERR_CANCELLED, "%s", p->fault ? p->cause.message : "stopped on request");
    for (int r = 0; r < p->n_ranks; r++) open += p->rank[r].open;
    if (open == p->n_ranks) return BTC_OK;
    struct pollfd f[2 * PIPE_MAX_RANKS];
    int n = 0;
    for (int r = 0; r < p->n_ranks; r++) {
      f[n++] = (struct pollfd){.fd = p->rank[r].control, .events = POLLIN};
      f[n++] = (struct pollfd){.fd = p->rank[r].pidfd, .events = POLLIN};
    }
    poll(f, (nfds_t)n, 20);
  }
}

static void give_orders(pipe_driver *p, const btc_link_id *id, uint64_t bound) {
  for (int r = 0; r < p->n_ranks; r++) {
    shard_order o = {.version = SHARD_VERSION,
                     .rank = (uint32_t)r,
                     .ranks = (uint32_t)p->n_ranks,
                     .next_port = r + 1 < p->n_ranks ? p->rank[r + 1].port : p->port,
                     .form_ms = p->o.form_ms,
                     .frame_ms = p->o.step_ms,
                     .epoch = p->epoch,
                     .max_bytes = bound};
    memcpy(o.secret, id->secret, sizeof o.secret);
    pipe_rank_order(p, r, &o);
  }
}

static btc_status close_ring(pipe_driver *p, const btc_link_id *base, uint64_t bound, btc_error *err) {
  btc_link_limits l = btc_link_limits_default();
  btc_link_wait w = {.deadline_ns = btc_now_ns() + (int64_t)p->o.form_ms * 1000000, .stop = pipe_has_fault, .ctx = p};
  btc_link_id id = *base;
  l.max_bytes = (size_t)bound;
  l.frame_ms = p->o.step_ms;
  /* the driver accepts first: the last rank can then turn to the one before it, and so on */
  id.from = (uint32_t)p->n_ranks - 1;
  id.to = (uint32_t)p->n_ranks;
  btc_status st = btc_link_accept(p->listen_fd, &id, &l, &w, &p->in, err);
  id.from = (uint32_t)p->n_ranks;
  id.to = 0;
  if (st == BTC_OK) st = btc_shard_connect(p->rank[0].port, &id, &l, &w, &p->out, err);
  while (st == BTC_OK) {
    int ready = 0;
    for (int r = 0; r < p->n_ranks; r++) ready += p->rank[r].ready_epoch == p->epoch;
    if (ready == p->n_ranks) return BTC_OK;
    if (btc_now_ns() > w.deadline_ns)
      return btc_fail(err, BTC_ERR_IO, "%d of %d ranks were not ready in time", p->n_ranks - ready, p->n_ranks);
    if (pipe_has_fault(p)) return btc_fail(err, BTC_ERR_IO, "%s", p->cause.message);
    struct pollfd f[PIPE_MAX_RANKS];
    for (int r = 0; r < p->n_ranks; r++) f[r] = (struct pollfd){.fd = p->rank[r].control, .events = POLLIN};
    poll(f, (nfds_t)p->n_ranks, 20);
  }
  return st;
}

static btc_status attempt(pipe_driver *p, btc_error *err) {
  btc_link_id id = {.ranks = (uint32_t)p->n_ranks};
  btc_status st = BTC_OK;
  p->fault = p->dead = false;
  p->abandoned = p->epoch;
  for (int r = 0; st == BTC_OK && r < p->n_ranks; r++)
    if (!p->rank[r].pid) st = pipe_rank_start(p, r, err);
  if (st == BTC_OK) st = wait_open(p, err);
  if (st != BTC_OK) return st;
  if (getrandom(id.secret, sizeof id.secret, 0) != sizeof id.secret)
    return btc_fail(err, BTC_ERR_IO, "no random bytes: %s", strerror(errno));
  id.epoch = ++p->epoch; /* never used again, whatever becomes of the attempt */
  p->step = 0;
  p->reserved = 0;
  p->reserved_images = 0;
  p->reserved_prompt = 0;
  uint64_t bound = frame_bound(p);
  give_orders(p, &id, bound);
  st = close_ring(p, &id, bound, err);
  if (st == BTC_ERR_CANCELLED && p->fault) st = btc_fail(err, BTC_ERR_IO, "%s", p->cause.message);
  return st;
}

btc_status pipe_form(pipe_driver *p, btc_error *err) {
  int64_t start = p->fault ? p->fault_ns : btc_now_ns();
  btc_status st = BTC_ERR_IO;
  for (int i = 0; i < ATTEMPTS; i++) {
    if (p->fault && i) pipe_wait_for_death(p);
    for (int r = 0; r < p->n_ranks; r++)
      if (p->rank[r].page) p->rank[r].page->cancel = 1;
    btc_link_close(&p->in);
    btc_link_close(&p->out);
    st = attempt(p, err);
    if (st == BTC_OK) {
      p->form_ms = (double)(btc_now_ns() - start) * 1e-6;
      return BTC_OK;
    }
    pipe_break(p, st, "%s", err->message);
    if (st != BTC_ERR_IO) break; /* stopped, no memory, a model that does not open: trying again changes nothing */
  }
  return st;
}
