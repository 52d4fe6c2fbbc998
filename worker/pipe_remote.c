/* Epochs that an agent orders: its packets, and what it is told. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "pipe_parts.h"

/* Whoever reads our reports may be slow or gone: then the agent's own deadline ends the epoch. */
static void report(const pipe_driver *p, shard_said said, const char *why) {
  shard_report r = {.version = SHARD_VERSION, .said = said, .epoch = p->epoch};
  if (why) {
    r.status = p->cause.code;
    snprintf(r.message, sizeof r.message, "%.*s", (int)sizeof r.message - 1, why);
  }
  if (send(p->control, &r, sizeof r, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) return;
}

/* Ends an epoch because the agent knows more: nothing is reported. */
static void end_epoch(pipe_driver *p, const char *why) {
  p->told_broken = p->epoch;
  pipe_break(p, BTC_ERR_IO, "%s", why);
}

static void obey(pipe_driver *p, const shard_order *o) {
  switch ((shard_told)o->told) {
    case SHARD_FORM:
      if (o->epoch <= p->order.epoch) break;
      p->order = *o;
      p->order.next_host[sizeof o->next_host - 1] = p->order.entry_host[sizeof o->entry_host - 1] = 0;
      p->order.shrink[sizeof o->shrink - 1] = 0;
      p->ordered = true;
      end_epoch(p, "a new epoch is formed");
      break;
    case SHARD_STOP:
      if (o->epoch >= p->order.epoch) p->ordered = false;
      if (o->epoch >= p->epoch) end_epoch(p, "the broker ended the epoch");
      break;
    case SHARD_GO:
      p->go = o->epoch;
      break;
    case SHARD_DROP:
      p->dropped = true;
      break;
  }
}

void pipe_remote_watch(pipe_driver *p) {
  shard_order o;
  while (recv(p->control, &o, sizeof o, MSG_DONTWAIT) == (ssize_t)sizeof o && o.version == SHARD_VERSION) obey(p, &o);
}

/* A rank of the epoch before had no memory: the broker brings word of it with the next order. */
static btc_status shrink(pipe_driver *p, btc_error *err) {
  btc_error why;
  if (!p->order.shrink[0]) return BTC_OK;
  btc_fail(&why, BTC_ERR_NOMEM, "%s", p->order.shrink);
  return pipe_shrink(p, &why, err);
}

static btc_status begin(pipe_driver *p, btc_error *err) {
  const shard_order *o = &p->order;
  p->ordered = p->fault = p->dead = false;
  p->epoch = o->epoch;
  p->fault_ns = btc_now_ns();
  p->n_ranks = (int)o->ranks;
  p->entry = (int)o->entry;
  p->towers = p->entry + 1;
  pipe_start_epoch(p);
  shard_order ring = *o;
  ring.max_bytes = shard_frame_bound(p->m, p->o.slots);
  btc_status st = pipe_make_groups(p, p->n_ranks, err);
  return st == BTC_OK ? pipe_close_ring(p, &ring, p->links_fd, err) : st;
}

btc_status pipe_remote_form(pipe_driver *p, bool *idle, btc_error *err) {
  btc_error failed;
  btc_status all = BTC_OK;
  pipe_remote_watch(p);
  if (p->fault && p->told_broken < p->epoch) {
    p->told_broken = p->epoch;
    report(p, SHARD_BROKEN, p->cause.message);
  }
  if (p->fault || p->ordered) pipe_close_links(p);
  if (p->ordered) {
    int64_t start = btc_now_ns();
    if (p->open) all = shrink(p, err);
    btc_status st = begin(p, &failed);
    p->form_ms = (double)(btc_now_ns() - start) * 1e-6;
    if (st == BTC_OK)
      report(p, SHARD_READY, NULL);
    else if (!p->fault)
      pipe_break(p, st, "%s", failed.message); /* reported in the next turn */
  }
  *idle = p->fault && !p->ordered;
  p->formed = !p->fault && p->in && p->go == p->epoch;
  return all;
}
