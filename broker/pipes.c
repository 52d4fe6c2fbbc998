/* Who leads, when it is planned, and the watch over living pipes. See pipes.h for states and limits. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/pipes_parts.h"

enum { LEAD_TTL_MS = 5000, LEAD_EACH_MS = 1000, SETTLE_MS = 300, PLAN_EACH_MS = 60000, LOAD_EACH_MS = 2000 };

/* ---- planning ---- */

static bool same_cut(const btc_plan_pipe *a, const btc_plan_pipe *b) {
  if (a->stages != b->stages || strcmp(a->fingerprint, b->fingerprint) != 0) return false;
  for (int i = 0; i < a->stages; i++)
    if (strcmp(a->stage[i].member, b->stage[i].member) != 0 || a->stage[i].first != b->stage[i].first ||
        a->stage[i].last != b->stage[i].last)
      return false;
  return true;
}

static int shared(const btc_plan_pipe *a, const btc_plan_pipe *b) {
  int n = 0;
  for (int i = 0; i < a->stages; i++)
    for (int k = 0; k < b->stages; k++) n += strcmp(a->stage[i].member, b->stage[k].member) == 0;
  return n;
}

/* The broken pipe that has most members in common goes on under its name; else a new one. */
static pipeline *place_for(btc_broker *b, const btc_plan_pipe *want) {
  pipeline *best = NULL;
  for (pipeline *p = b->pipes->list; p; p = p->next)
    if (p->st == PIPE_BROKEN && shared(&p->plan.pipe, want) > (best ? shared(&best->plan.pipe, want) : 0)) best = p;
  if (best) return best;
  pipeline *p = btc_alloc_zero(1, sizeof *p);
  if (!p) return NULL;
  bool taken = true;
  for (int i = 1; taken; i++) {
    taken = false;
    snprintf(p->id, sizeof p->id, "p%d", i);
    for (pipeline *o = b->pipes->list; o; o = o->next) taken |= strcmp(o->id, p->id) == 0;
  }
  p->next = b->pipes->list;
  return b->pipes->list = p;
}

static void adopt(btc_broker *b, const btc_plan *plan) {
  for (int i = plan->replicas; i < plan->pipes; i++) {
    const btc_plan_pipe *want = &plan->pipe[i];
    pipeline *p = b->pipes->list;
    while (p && (p->st == PIPE_BROKEN || !same_cut(&p->plan.pipe, want))) p = p->next;
    if (p || !(p = place_for(b, want))) continue;
    p->plan.pipe = *want;
    for (int k = 0; k < want->stages; k++) {
      btc_session *s = btc_session_named(b, want->stage[k].member);
      p->plan.incarnation[k] = s ? s->incarnation : 0;
    }
    btc_pipe_plan_again(b, p);
  }
}

/* Pipes that the plan has not: told to stop, and gone. First those: their members are wanted elsewhere. */
static void dissolve(btc_broker *b, const btc_plan *plan, bool broken) {
  pipeline *next;
  for (pipeline *p = b->pipes->list; p; p = next) {
    bool wanted = false;
    next = p->next;
    for (int i = plan->replicas; i < plan->pipes; i++) wanted |= same_cut(&p->plan.pipe, &plan->pipe[i]);
    if ((p->st == PIPE_BROKEN) != broken || (wanted && !broken)) continue;
    btc_pipe_dissolve(b, p, "another plan");
  }
}

/* What is planned is old when someone came, went, or a pipe changed meanwhile. */
static uint64_t what_is_there(const btc_broker *b) {
  uint64_t sum = b->pipes->members;
  for (const pipeline *p = b->pipes->list; p; p = p->next) sum = (sum ^ (p->epoch << 3 ^ (uint64_t)p->st)) * 0x100000001b3u;
  return sum;
}

static void start_planning(btc_broker *b, int64_t now) {
  static btc_plan_pipe held[BTC_PLAN_MEMBERS];
  int n = 0;
  btc_error err;
  for (const pipeline *p = b->pipes->list; p && n < BTC_PLAN_MEMBERS; p = p->next)
    if (p->st != PIPE_BROKEN) held[n++] = p->plan.pipe;
  b->pipes->dirty = false;
  b->pipes->plan_ns = now + PLAN_EACH_MS * MS;
  b->pipes->planned_from = what_is_there(b);
  if (btc_planning_start(b, held, n, &b->pipes->planning, &err) == BTC_OK) return;
  BTC_LOG_LIMITED(BTC_LOG_WARN, "plan-failed", "msg=\"%s\"", err.message);
}

/* Takes what was planned, if it is ready and nothing has changed since it was begun. */
static void take_plan(btc_broker *b) {
  btc_plan next;
  btc_error err;
  if (!btc_planning_ready(b->pipes->planning)) return;
  btc_status st = btc_planning_end(&b->pipes->planning, &next, &err);
  if (st != BTC_OK) {
    BTC_LOG_LIMITED(BTC_LOG_WARN, "plan-failed", "msg=\"%s\"", err.message);
    return;
  }
  if (b->pipes->leader && b->pipes->loaded && !b->pipes->reload && what_is_there(b) == b->pipes->planned_from) {
    dissolve(b, &next, false);
    adopt(b, &next);
    dissolve(b, &next, true); /* broken ones that nothing continues */
  } else {
    b->pipes->dirty = true;
  }
  btc_plan_free(&next);
}

/* ---- leading ---- */

static void on_pipes(void *ctx, const redisReply *r) {
  btc_broker *b = ctx;
  b->pipes->loading = false;
  if (btc_broker_refused("btc_pipes", r) || !b->pipes->leader) return;
  for (size_t i = 0; r->type == REDIS_REPLY_ARRAY && i < r->elements; i++) {
    const redisReply *e = r->element[i];
    pipeline *p = btc_alloc_zero(1, sizeof *p);
    if (!p) return;
    snprintf(p->id, sizeof p->id, "%s", btc_answer_text(e, 0));
    p->epoch = strtoull(btc_answer_text(e, 1), NULL, 10);
    bool readable = btc_pipe_plan_read(btc_answer_text(e, 5), &p->plan);
    p->st = strcmp(btc_answer_text(e, 2), "ACTIVE") == 0   ? PIPE_ACTIVE
            : strcmp(btc_answer_text(e, 2), "BROKEN") == 0 ? PIPE_BROKEN
                                                           : PIPE_FORM;
    p->next = b->pipes->list;
    b->pipes->list = p;
    if (!readable || p->st == PIPE_FORM) btc_pipe_break(b, p, "its leader was lost while it formed");
  }
  b->pipes->loaded = true;
  b->pipes->dirty = true;
  b->pipes->plan_ns = btc_loop_now_ns(b->loop) + PLAN_EACH_MS * MS;
  /* members of living pipes have this long to come over from the broker that was lost */
  b->pipes->grace_ns = btc_loop_now_ns(b->loop) + (r->elements ? 2 * b->o->dead_ms : 0) * MS;
}

static void on_lead(void *ctx, const redisReply *r) {
  btc_broker *b = ctx;
  b->pipes->asking = false;
  bool leads = !btc_answer_failed(r) && r->type == REDIS_REPLY_INTEGER && r->integer == 1;
  if (!leads && b->pipes->leader) {
    btc_pipes_forget(b);
    btc_metrics_pipes(b->metrics, NULL, 0);
  }
  b->pipes->leader = leads;
}

static void lead(btc_broker *b, int64_t now) {
  char ttl[16];
  if (now >= b->pipes->lead_ns && !b->pipes->asking) {
    snprintf(ttl, sizeof ttl, "%d", LEAD_TTL_MS);
    b->pipes->lead_ns = now + LEAD_EACH_MS * MS;
    b->pipes->asking = btc_store_call(b->store, on_lead, b, "btc_lead", "plan", b->name, ttl, NULL);
  }
  if (b->pipes->leader && !b->pipes->loaded && !b->pipes->loading)
    b->pipes->loading = btc_store_call(b->store, on_pipes, b, "btc_pipes", NULL);
}

static void watch(btc_broker *b, pipeline *p, int64_t now) {
  char cause[160];
  if (p->st != PIPE_FORM && p->st != PIPE_ACTIVE) return;
  for (int i = 0; i < p->plan.pipe.stages && now >= b->pipes->grace_ns; i++) {
    if (btc_pipe_present(b, p, i)) continue;
    snprintf(cause, sizeof cause, "rank %d, worker %s, is gone", i, p->plan.pipe.stage[i].member);
    btc_pipe_break(b, p, cause);
    return;
  }
  btc_pipe_activate(b, p); /* again, when the answer was lost */
  if (p->st != PIPE_FORM || p->going || now < p->deadline_ns) return;
  int late = -1;
  for (int i = 0; i < p->plan.pipe.stages; i++) {
    btc_session *s = btc_pipe_member(b, p, i);
    if (p->ready >> i & 1) continue;
    late = i;
    if (s) s->pipe->strikes++;
  }
  snprintf(cause, sizeof cause, "rank %d, worker %s, was not ready in %lld ms", late,
           late < 0 ? "?" : p->plan.pipe.stage[late].member, (long long)b->o->pipe_form_ms);
  btc_pipe_break(b, p, cause);
}

/* Stage times and busy shares, for `pipes` of every broker. */
static void write_load(btc_broker *b, const pipeline *p) {
  char text[BTC_PLAN_STAGES * 64] = "", epoch[24];
  for (int i = 0; i < p->plan.pipe.stages; i++) {
    btc_session *s = btc_pipe_member(b, p, i);
    bool known = s && s->pipe->load.epoch == p->epoch && strcmp(s->pipe->load.pipe, p->id) == 0;
    size_t at = strlen(text);
    snprintf(text + at, sizeof text - at, "%.6g %.6g ", known ? s->pipe->load.ms : 0, known ? s->pipe->load.busy : 0);
  }
  snprintf(epoch, sizeof epoch, "%" PRIu64, p->epoch);
  btc_store_call(b->store, NULL, NULL, "btc_pipe_load", p->id, epoch, text, NULL);
}

/* For /metrics: pipes of this leader, with what their ranks say now. */
static void count_pipes(btc_broker *b) {
  static btc_metric_pipe rows[BTC_PLAN_MEMBERS];
  size_t n = 0;
  for (const pipeline *p = b->pipes->list; p && n < BTC_PLAN_MEMBERS; p = p->next) {
    btc_metric_pipe *row = &rows[n++];
    double busy = 0;
    int known = 0;
    *row = (btc_metric_pipe){.epoch = p->epoch, .active = p->st == PIPE_ACTIVE, .stages = p->plan.pipe.stages, .bubble = -1};
    snprintf(row->id, sizeof row->id, "%s", p->id);
    for (int i = 0; i < row->stages; i++) {
      const btc_session *s = btc_pipe_member(b, p, i);
      if (!s || s->pipe->load.epoch != p->epoch) continue;
      row->ms[i] = s->pipe->load.ms;
      row->busy[i] = s->pipe->load.busy;
      busy += row->busy[i];
      known += row->busy[i] > 0;
    }
    if (known && known == row->stages) row->bubble = 1 - busy / known;
  }
  btc_metrics_pipes(b->metrics, rows, n);
}

static uint64_t who_is_there(const btc_broker *b) {
  uint64_t sum = 0;
  for (const btc_session *s = b->sessions; s; s = s->next)
    if (btc_pipe_takes_part(s)) sum += s->id * 0x9e3779b97f4a7c15u | 1;
  return sum;
}

void btc_pipes_tick(btc_broker *b) {
  struct btc_pipes *ps = b->pipes;
  int64_t now = btc_loop_now_ns(b->loop);
  uint64_t members = who_is_there(b);
  if (b->draining) return;           /* its members go to other brokers, and their pipes with them */
  if (!members && !ps->list) return; /* nobody knows of pipes: neither do we */
  lead(b, now);
  if (ps->reload) btc_pipes_forget(b);
  if (!ps->leader || !ps->loaded) return;
  if (members != ps->members) { /* several come together: plan once */
    ps->members = members;
    ps->dirty = true;
    if (ps->replan_ns < now + SETTLE_MS * MS) ps->replan_ns = now + SETTLE_MS * MS;
  }
  bool asked = false;
  for (pipeline *p = ps->list; p; p = p->next) {
    watch(b, p, now);
    asked |= p->st == PIPE_ASKED;
  }
  bool due = (ps->dirty && now >= ps->replan_ns) || now >= ps->plan_ns;
  take_plan(b);
  if (due && now >= ps->grace_ns && !asked && !ps->reload && !ps->planning) start_planning(b, now);
  if (now < ps->load_ns) return;
  ps->load_ns = now + LOAD_EACH_MS * MS;
  count_pipes(b);
  for (pipeline *p = ps->list; p; p = p->next)
    if (p->st == PIPE_ACTIVE) write_load(b, p);
}

btc_status btc_pipes_create(btc_broker *b, btc_error *err) {
  b->pipes = btc_alloc_zero(1, sizeof *b->pipes);
  if (!b->pipes) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory");
  return BTC_OK;
}

void btc_pipes_destroy(btc_broker *b) {
  if (b->pipes) {
    btc_planning_end(&b->pipes->planning, NULL, NULL);
    btc_pipes_forget(b);
  }
  free(b->pipes);
  b->pipes = NULL;
}
