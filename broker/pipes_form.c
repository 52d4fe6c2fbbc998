/* One pipe through its states: what its ranks are told, what they say, and the calls that make each step count. See pipes.h. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "broker/pipes_parts.h"

enum { NCCL_FAILURES = 2, RETRY_MS = 250, RETRY_MAX_MS = 30000, NOT_LEADING_MS = 500, LASTED_MS = 60000 };

typedef struct step { /* a call on its way */
  btc_broker *b;
  char id[33];
  uint64_t epoch;
} step;

/* ---- finding ---- */

bool btc_pipe_takes_part(const btc_session *s) {
  return s->pipe && s->state == BTC_SESSION_LIVE && !s->reaping && !s->draining;
}

static pipeline *find(const btc_broker *b, const char *id, uint64_t epoch) {
  for (pipeline *p = b->pipes->list; p; p = p->next)
    if (p->epoch == epoch && strcmp(p->id, id) == 0) return p;
  return NULL;
}

static bool is_rank(const btc_session *s, const pipeline *p, int rank) {
  return s->pipe && !s->reaping && !s->draining && s->incarnation == p->plan.incarnation[rank] &&
         strcmp(s->name, p->plan.pipe.stage[rank].member) == 0;
}

btc_session *btc_pipe_member(const btc_broker *b, const pipeline *p, int rank) {
  for (btc_session *s = b->sessions; s; s = s->next)
    if (is_rank(s, p, rank) && s->state == BTC_SESSION_LIVE) return s;
  return NULL;
}

/* Also true while it says Hello again: nothing has happened to the process that holds the blocks. */
bool btc_pipe_present(const btc_broker *b, const pipeline *p, int rank) {
  for (const btc_session *s = b->sessions; s; s = s->next)
    if (is_rank(s, p, rank)) return true;
  return false;
}

void btc_pipe_drop(btc_broker *b, pipeline *p) {
  pipeline **at = &b->pipes->list;
  while (*at && *at != p) at = &(*at)->next;
  if (*at) *at = p->next;
  free(p);
}

void btc_pipes_forget(btc_broker *b) {
  while (b->pipes->list) btc_pipe_drop(b, b->pipes->list);
  b->pipes->loaded = b->pipes->reload = false;
}

static step *new_step(btc_broker *b, const char *id, uint64_t epoch) {
  step *s = btc_alloc_zero(1, sizeof *s);
  if (!s) return NULL;
  s->b = b;
  s->epoch = epoch;
  snprintf(s->id, sizeof s->id, "%s", id);
  return s;
}

/* The epoch moved on without us: another broker leads, and what we remember is old. */
static bool stale(btc_broker *b, const char *what, const redisReply *r) {
  if (btc_broker_refused(what, r)) return true;
  if (strcmp(btc_answer_text(r, 0), "OK") == 0) return false;
  btc_log(BTC_LOG_WARN, "pipe-stale", "call=%s answer=%s epoch=%s", what, btc_answer_text(r, 0), btc_answer_text(r, 1));
  b->pipes->reload = true;
  return true;
}

/* ---- to members ---- */

static void tell(btc_session *s, Btc__Envelope *e) {
  btc_error err;
  if (btc_outbox_add(s->outbox, e, NULL, &err) != BTC_OK) BTC_LOG_LIMITED(BTC_LOG_WARN, "pipe-outbox-full", "worker=%s", s->name);
  s->outbox_ns = 0;
}

static void tell_abort(btc_broker *b, const pipeline *p, const char *why) {
  Btc__PipeAbort m = BTC__PIPE_ABORT__INIT;
  m.pipe = (char *)p->id;
  m.epoch = p->epoch;
  m.why = (char *)why;
  for (int i = 0; i < p->plan.pipe.stages; i++) {
    Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_PIPE_ABORT);
    btc_session *s = btc_pipe_member(b, p, i);
    e.pipe_abort = &m;
    if (s) tell(s, &e);
  }
}

static void send_go(btc_broker *b, const pipeline *p) {
  Btc__PipeGo m = BTC__PIPE_GO__INIT;
  m.pipe = (char *)p->id;
  m.epoch = p->epoch;
  for (int i = 0; i < p->plan.pipe.stages; i++) {
    Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_PIPE_GO);
    btc_session *s = btc_pipe_member(b, p, i);
    e.pipe_go = &m;
    if (s) tell(s, &e);
  }
}

/* Do all ranks have the same NCCL, and cards of their own? After two epochs that failed over it the links take the tensors. */
static bool can_use_nccl(const btc_broker *b, const pipeline *p) {
  const btc_pipe_caps *caps[BTC_PLAN_STAGES];
  const int n = p->plan.pipe.stages;
  if (n < 2 || p->nccl_failures >= NCCL_FAILURES) return false;
  for (int i = 0; i < n; i++) {
    const btc_session *s = btc_pipe_member(b, p, i);
    if (!s || !s->pipe->nccl) return false;
    caps[i] = s->pipe;
    for (int k = 0; k < i; k++)
      if (caps[k]->nccl != caps[i]->nccl || !strcmp(caps[k]->card, caps[i]->card)) return false;
  }
  return true;
}

static void send_form(btc_broker *b, pipeline *p) {
  Btc__PipeForm m = BTC__PIPE_FORM__INIT;
  Btc__PipeRank rank[BTC_PLAN_STAGES], *list[BTC_PLAN_STAGES];
  uint8_t secret[32];
  if (getrandom(secret, sizeof secret, 0) != (ssize_t)sizeof secret) return; /* the deadline tries again */
  for (int i = 0; i < p->plan.pipe.stages; i++) {
    btc_session *s = btc_pipe_member(b, p, i);
    btc__pipe_rank__init(&rank[i]);
    rank[i].worker = (char *)p->plan.pipe.stage[i].member;
    rank[i].endpoint = s ? s->pipe->endpoint : (char *)"";
    rank[i].first = (uint32_t)p->plan.pipe.stage[i].first;
    rank[i].last = (uint32_t)p->plan.pipe.stage[i].last;
    list[i] = &rank[i];
  }
  m.pipe = (char *)p->id;
  m.epoch = p->epoch;
  m.ranks = list;
  m.n_ranks = (size_t)p->plan.pipe.stages;
  m.model_class = (char *)p->plan.pipe.fingerprint;
  m.secret.data = secret;
  m.secret.len = sizeof secret;
  m.deadline_ms = (uint32_t)b->o->pipe_form_ms;
  m.out_of_memory = p->oom;
  m.nccl = p->nccl;
  for (int i = 0; i < p->plan.pipe.stages; i++) {
    Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_PIPE_FORM);
    btc_session *s = btc_pipe_member(b, p, i);
    m.rank = (uint32_t)i;
    e.pipe_form = &m;
    if (s) tell(s, &e);
  }
  p->oom[0] = 0;
}

/* ---- the states ---- */

static void on_state(void *ctx,
                     const redisReply *r) { /* FORM, BROKEN: nothing waits for it, and planning is by epoch, not by state */
  step *s = ctx;
  stale(s->b, "btc_pipe_state", r);
  free(s);
}

static void on_gone(void *ctx, const redisReply *r) {
  step *s = ctx;
  if (stale(s->b, "btc_pipe_state", r)) s->b->pipes->reload = true; /* or it would be shown forever */
  free(s);
}

static bool set_state(btc_broker *b, const pipeline *p, const char *st, const char *msg, btc_redis_answer answer) {
  char epoch[24];
  step *s = new_step(b, p->id, p->epoch);
  snprintf(epoch, sizeof epoch, "%" PRIu64, p->epoch);
  if (s && btc_store_call(b->store, answer, s, "btc_pipe_state", p->id, epoch, st, msg, NULL)) return true;
  free(s);
  return false;
}

void btc_pipe_break(btc_broker *b, pipeline *p, const char *cause) {
  char quoted[512];
  if (p->st == PIPE_BROKEN) return;
  btc_log(BTC_LOG_WARN, "pipe-broken", "pipe=%s epoch=%" PRIu64 " cause=%s", p->id, p->epoch,
          btc_log_quote(quoted, sizeof quoted, cause));
  tell_abort(b, p, cause);
  const int64_t now = btc_loop_now_ns(b->loop);
  p->failures = p->st == PIPE_ACTIVE ? 0 : p->failures + 1;
  if (p->st == PIPE_ACTIVE && now - p->active_ns > LASTED_MS * MS)
    p->ooms = p->nccl_failures = 0;
  else
    p->nccl_failures += p->nccl;
  if (p->oom[0]) p->failures = p->ooms++; /* the first at once; a pipe that never has enough is not formed all day */
  p->st = PIPE_BROKEN;
  p->going = false;
  set_state(b, p, "BROKEN", cause, on_state);
  int64_t wait = p->failures ? (int64_t)RETRY_MS << (p->failures < 8 ? p->failures : 8) : 0;
  b->pipes->replan_ns = now + (wait < RETRY_MAX_MS ? wait : RETRY_MAX_MS) * MS;
  b->pipes->dirty = true;
}

static void on_planned(void *ctx, const redisReply *r) {
  step *s = ctx;
  btc_broker *b = s->b;
  pipeline *p = find(b, s->id, s->epoch);
  free(s);
  if (!p || p->st != PIPE_ASKED) return;
  if (btc_answer_failed(r)) { /* it may have happened: what Redis holds is read again */
    btc_broker_refused("btc_pipe_plan", r);
    b->pipes->reload = true;
    return;
  }
  if (stale(b, "btc_pipe_plan", r)) return;
  p->epoch = strtoull(btc_answer_text(r, 1), NULL, 10);
  p->st = PIPE_FORM;
  p->deadline_ns = btc_loop_now_ns(b->loop) + b->o->pipe_form_ms * MS;
  p->nccl = can_use_nccl(b, p);
  btc_log(BTC_LOG_INFO, "pipe-form", "pipe=%s epoch=%" PRIu64 " stages=%d slowest_ms=%.1f tensors=%s", p->id, p->epoch,
          p->plan.pipe.stages, p->plan.pipe.slowest_ms, p->nccl ? "nccl" : "links");
  set_state(b, p, "FORM", "", on_state);
  send_form(b, p);
}

void btc_pipe_plan_again(btc_broker *b, pipeline *p) {
  char epoch[24];
  char *text = btc_pipe_plan_text(&p->plan);
  step *s = new_step(b, p->id, p->epoch);
  snprintf(epoch, sizeof epoch, "%" PRIu64, p->epoch);
  p->st = PIPE_ASKED;
  p->ready = 0;
  p->going = false;
  if (!text || !s || !btc_store_call(b->store, on_planned, s, "btc_pipe_plan", p->id, epoch, text, NULL)) {
    free(s);
    b->pipes->reload = true;
  }
  free(text);
}

static void on_active(void *ctx, const redisReply *r) {
  step *s = ctx;
  btc_broker *b = s->b;
  pipeline *p = find(b, s->id, s->epoch);
  free(s);
  if (p) p->going = false;
  if (stale(b, "btc_pipe_state", r) || !p || p->st != PIPE_FORM) return;
  p->st = PIPE_ACTIVE;
  p->failures = 0;
  p->active_ns = btc_loop_now_ns(b->loop);
  btc_log(BTC_LOG_INFO, "pipe-active", "pipe=%s epoch=%" PRIu64, p->id, p->epoch);
  send_go(b, p);
}

void btc_pipe_activate(btc_broker *b, pipeline *p) {
  if (p->st == PIPE_FORM && !p->going && p->ready == (1u << p->plan.pipe.stages) - 1)
    p->going = set_state(b, p, "ACTIVE", "", on_active);
}

/* Is it about a pipe of ours in which the sender is a rank? Others are acknowledged and dropped: they are of an old epoch. */
static pipeline *about(btc_broker *b, const btc_session *s, const char *id, uint64_t epoch, int *rank) {
  pipeline *p = find(b, id, epoch);
  for (*rank = 0; p && *rank < p->plan.pipe.stages; ++*rank)
    if (strcmp(p->plan.pipe.stage[*rank].member, s->name) == 0) return p;
  return NULL;
}

void btc_pipes_ready(btc_broker *b, btc_session *s, uint64_t req_id, const Btc__PipeReady *m) {
  int rank;
  pipeline *p = about(b, s, m->pipe, m->epoch, &rank);
  btc_session_ack(b, s, req_id);
  if (!p || p->st != PIPE_FORM || m->rank != (uint32_t)rank) return;
  p->ready |= 1u << rank;
  if (s->pipe) s->pipe->strikes = 0;
  btc_pipe_activate(b, p);
}

void btc_pipes_broken(btc_broker *b, btc_session *s, uint64_t req_id, const Btc__PipeBroken *m) {
  char cause[384];
  int rank;
  if (!b->pipes->leader || !b->pipes->loaded) { /* whoever leads next would believe that it works */
    btc_broker_nack(b, b->workers, &s->peer, req_id, BTC__NACK_CODE__NACK_BUSY, "nobody leads the pipes here", NOT_LEADING_MS);
    return;
  }
  pipeline *p = about(b, s, m->pipe, m->epoch, &rank);
  btc_session_ack(b, s, req_id);
  if (!p) return;
  snprintf(cause, sizeof cause, "rank %u, as %s says: %.256s", m->rank, s->name, m->cause);
  /* others may have been quicker to say that their links closed */
  if (m->out_of_memory) snprintf(p->oom, sizeof p->oom, "rank %u, %.64s: %.200s", m->rank, s->name, m->cause);
  if (p->st == PIPE_BROKEN || p->st == PIPE_ASKED) return;
  btc_pipe_break(b, p, cause);
}

void btc_pipe_dissolve(btc_broker *b, pipeline *p, const char *why) {
  tell_abort(b, p, why);
  if (!set_state(b, p, "GONE", "", on_gone)) b->pipes->reload = true;
  btc_log(BTC_LOG_INFO, "pipe-gone", "pipe=%s epoch=%" PRIu64, p->id, p->epoch);
  btc_pipe_drop(b, p);
}
