/*
 * What the broker orders, and what it is told. States of a member:
 *
 *   IDLE ──PipeForm──▶ FORMING ──our processes are linked: PipeReady──▶ READY ──PipeGo──▶ ACTIVE
 *    ▲──PipeAbort, a newer PipeForm, or something broke: PipeBroken─────┴────────────────────┘
 *
 * The rank's process keeps its weights while its range stays the same. The driver keeps its items as long as we stay rank 0; they
 * are handed back when another worker drives, or when no pipe came about for RELEASE_MS.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent_member_parts.h"
#include "base/failpoint.h"

enum { RELEASE_MS = 10000 };

bool member_drives(const member *m) {
  return m->st != MEMBER_IDLE && m->rank == 0;
}

bool member_waits(const agent *a) {
  const member *m = a->member;
  return m && m->on && !(m->st == MEMBER_ACTIVE && m->rank == 0);
}

bool member_idle_too_long(const agent *a) {
  return btc_loop_now_ns(a->loop) - a->member->idle_ns > (int64_t)RELEASE_MS * AGENT_MS;
}

/* Items that come while the pipe of which we are rank 0 is formed again are kept for it, for a while. */
bool member_refuses(const agent *a) {
  const member *m = a->member;
  return m && m->on && (m->rank > 0 || !m->epoch || (m->st != MEMBER_ACTIVE && member_idle_too_long(a)));
}

/* The links of the epoch end, on our side. */
static void stop_epoch(agent *a) {
  member *m = a->member;
  if (m->st == MEMBER_IDLE) return;
  shard_order o = {.version = SHARD_VERSION, .told = SHARD_STOP, .epoch = m->epoch};
  if (m->shard.page) m->shard.page->cancel = 1;
  shard_process_order(&m->shard, &o);
  if (member_drives(m)) member_tell_driver(m, SHARD_STOP);
  if (m->st == MEMBER_ACTIVE) m->idle_ns = btc_loop_now_ns(a->loop);
  m->st = MEMBER_IDLE;
  link_want_beat(a);
}

/* ---- what the broker is told ---- */

static void say_ready(agent *a) {
  member *m = a->member;
  Btc__PipeReady ready = BTC__PIPE_READY__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_PIPE_READY);
  btc_error err;
  e.pipe_ready = &ready;
  ready.pipe = m->id;
  ready.epoch = m->epoch;
  ready.rank = m->rank;
  ready.free_slots = (uint32_t)a->batch;
  if (btc_outbox_add(a->outbox, &e, NULL, &err) != BTC_OK) agent_log(a, "pipe-not-said", "why=\"%s\"", err.message);
  BTC_FAILPOINT("member_ready");
}

static void say_broken(agent *a, const char *pipe, uint64_t epoch, uint32_t rank, btc_status st, const char *cause) {
  Btc__PipeBroken broken = BTC__PIPE_BROKEN__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_PIPE_BROKEN);
  char text[400];
  btc_error err;
  snprintf(text, sizeof text, "%s", cause);
  child_clean_text(text);
  e.pipe_broken = &broken;
  broken.pipe = (char *)pipe;
  broken.epoch = epoch;
  broken.rank = rank;
  broken.cause = text;
  broken.out_of_memory = st == BTC_ERR_NOMEM;
  agent_log(a, "pipe-broken", "pipe=%s epoch=%llu why=\"%s\"", pipe, (unsigned long long)epoch, text);
  if (btc_outbox_add(a->outbox, &e, NULL, &err) != BTC_OK) agent_log(a, "pipe-not-said", "why=\"%s\"", err.message);
}

void member_broken(agent *a, btc_status st, const char *cause) {
  member *m = a->member;
  if (m->st == MEMBER_IDLE) return;
  stop_epoch(a);
  say_broken(a, m->id, m->epoch, m->rank, st, cause);
}

/* ---- forming ---- */

/* Orders go out when whoever gets them is there. */
void member_try_order(agent *a) {
  member *m = a->member;
  if (m->st != MEMBER_FORMING || m->ordered || !m->shard.open || (m->rank == 0 && (!a->child_ready || m->control < 0))) return;
  m->ordered = true;
  shard_process_order(&m->shard, &m->shard_order);
  if (m->rank) return;
  m->driver_order.next_port = m->shard.port;
  member_tell_driver(m, SHARD_FORM);
}

void member_try_ready(agent *a) {
  member *m = a->member;
  if (m->st != MEMBER_FORMING || !m->shard_ready || (m->rank == 0 && !m->driver_ready)) return;
  m->st = MEMBER_READY;
  agent_log(a, "pipe-ready", "pipe=%s epoch=%llu rank=%u blocks=%d-%d", m->id, (unsigned long long)m->epoch, m->rank, m->first,
            m->last - 1);
  say_ready(a);
}

/* Another worker drives, or nobody: what we have goes back. */
void member_hand_back(agent *a, const char *why) {
  member *m = a->member;
  if (!ledger_open(a->ledger)) return;
  agent_log(a, "pipe-hands-back", "items=%zu why=\"%s\"", ledger_open(a->ledger), why);
  link_release_chunks(a, false);
  member_tell_driver(m, SHARD_DROP);
}

static void on_form(agent *a, const Btc__PipeForm *f) {
  member *m = a->member;
  shard_order rank, driver;
  btc_error err;
  if (!m || !m->on || f->epoch <= m->epoch) return;
  const member_self self = {.name = a->name, .model_class = a->model_class, .blocks = m->blocks, .change = m->change};
  const char *why = member_order_read(f, &self, &rank, &driver);
  if (why) {
    say_broken(a, f->pipe, f->epoch, f->rank, BTC_ERR_ARG, why);
    return;
  }
  stop_epoch(a);
  if (f->rank) member_hand_back(a, "another worker drives the pipe");
  snprintf(m->id, sizeof m->id, "%s", f->pipe);
  m->epoch = f->epoch;
  m->rank = f->rank;
  m->ranks = (uint32_t)f->n_ranks;
  m->ordered = m->shard_ready = m->driver_ready = false;
  m->st = MEMBER_FORMING;
  m->shard_order = rank;
  m->driver_order = driver;
  BTC_FAILPOINT("member_form");
  int first = (int)f->ranks[f->rank]->first, last = (int)f->ranks[f->rank]->last;
  bool kept = m->shard.pid && m->first == first && m->last == last;
  agent_log(a, "pipe-form", "pipe=%s epoch=%llu rank=%u ranks=%u blocks=%d-%d weights=%s tensors=%s", m->id,
            (unsigned long long)m->epoch, m->rank, m->ranks, first, last - 1, kept ? "kept" : "new", f->nccl ? "nccl" : "links");
  if (!kept && member_start_shard(a, first, last, &err) != BTC_OK)
    member_broken(a, err.code, err.message);
  else
    member_try_order(a);
}

static void on_go(agent *a, const Btc__PipeGo *g) {
  member *m = a->member;
  if (!m || m->st != MEMBER_READY || g->epoch != m->epoch) return;
  m->st = MEMBER_ACTIVE;
  m->load_ns = 0;
  m->seen_ns = btc_loop_now_ns(a->loop);
  agent_log(a, "pipe-active", "pipe=%s epoch=%llu rank=%u", m->id, (unsigned long long)m->epoch, m->rank);
  if (m->rank == 0) member_tell_driver(m, SHARD_GO);
  link_want_beat(a);
}

static void on_abort(agent *a, const Btc__PipeAbort *x) {
  member *m = a->member;
  if (!m || m->st == MEMBER_IDLE || x->epoch != m->epoch) return;
  agent_log(a, "pipe-aborted", "pipe=%s epoch=%llu why=\"%s\"", m->id, (unsigned long long)m->epoch, x->why);
  stop_epoch(a);
}

/* What ends an epoch may be the echo of what our own processes said before, by way of a neighbour: they are heard first, or the
   reason that only they know (a rank without memory) is lost. */
void member_take(agent *a, const Btc__Envelope *e) {
  if (a->member && a->member->on) member_listen(a);
  if (e->body_case == BTC__ENVELOPE__BODY_PIPE_FORM) on_form(a, e->pipe_form);
  if (e->body_case == BTC__ENVELOPE__BODY_PIPE_GO) on_go(a, e->pipe_go);
  if (e->body_case == BTC__ENVELOPE__BODY_PIPE_ABORT) on_abort(a, e->pipe_abort);
}
