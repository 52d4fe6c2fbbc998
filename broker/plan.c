/*
 * Grouping members into replicas and pipelines. Up to BTC_PLAN_STAGES left-over members of a site are grouped exactly, by a table
 * over their subsets. More are split into hands of that many, in several orders; each hand is grouped exactly, what a hand leaves
 * over is dealt again, and the best order wins. See plan.h for the contract.
 */
#include "broker/plan.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/plan_cut.h"

typedef struct list {
  const btc_plan_member *m[BTC_PLAN_MEMBERS];
  int n;
} list;

/* ---- the plan as a growing thing ---- */

static btc_status plan_create(int members, btc_plan *p, btc_error *err) {
  *p = (btc_plan){0};
  p->pipe = btc_alloc((size_t)members + 1, sizeof *p->pipe);
  p->spare = btc_alloc((size_t)members + 1, sizeof *p->spare);
  if (p->pipe && p->spare) return BTC_OK;
  btc_plan_free(p);
  return btc_fail(err, BTC_ERR_NOMEM, "not enough memory to plan %d members", members);
}

void btc_plan_free(btc_plan *p) {
  free(p->pipe);
  free(p->spare);
  *p = (btc_plan){0};
}

static double pipe_rate(const btc_plan_pipe *p) {
  return p->slowest_ms > 0 ? 1000 / p->slowest_ms : 0;
}

static void add_pipe(btc_plan *p, const btc_plan_pipe *pipe) {
  p->pipe[p->pipes++] = *pipe; /* NOLINT(clang-analyzer-core.NullDereference): plan_create has made room for all members */
  p->items_per_s += pipe_rate(pipe);
}

static void add_spare(btc_plan *p, const btc_plan_member *m) {
  snprintf(p->spare[p->spares++], sizeof *p->spare, "%s", m->name);
}

static int by_place(const void *a, const void *b) {
  const btc_plan_pipe *x = a, *y = b;
  if ((x->stages == 1) != (y->stages == 1)) return x->stages == 1 ? -1 : 1;
  return strcmp(x->stage[0].member, y->stage[0].member); /* a member is in one pipe: names decide always */
}

static int by_text(const void *a, const void *b) {
  return strcmp(a, b);
}

static void finish(btc_plan *p) {
  if (!p->pipe || !p->spare) return; /* plan_create has made both */
  qsort(p->pipe, (size_t)p->pipes, sizeof *p->pipe, by_place);
  qsort(p->spare, (size_t)p->spares, sizeof *p->spare, by_text);
  p->replicas = 0;
  for (int i = 0; i < p->pipes; i++) p->replicas += p->pipe[i].stages == 1;
}

/* ---- one hand: at most BTC_PLAN_STAGES members, exactly ---- */

/* A set is a pipeline when the model fits it and fits no set with one member less. */
static bool minimal(const btc_cut *c, unsigned set) {
  if (!isfinite(btc_cut_slowest(c, set))) return false;
  for (int w = 0; w < c->n; w++)
    if (set >> w & 1 && isfinite(btc_cut_slowest(c, set & ~(1u << w)))) return false;
  return true;
}

/* value[set]: most items/s of the set's members; take[set]: the pipeline that holds its lowest member (0: that one stays spare). */
static void group_table(const btc_cut *c, double value[], uint8_t take[]) {
  double rate[1 << BTC_PLAN_STAGES];
  for (unsigned s = 0; s < 1u << c->n; s++) {
    double slowest = s ? btc_cut_slowest(c, s) : INFINITY;
    rate[s] = s && minimal(c, s) && slowest > 0 ? 1000 / slowest : 0;
  }
  value[0] = 0;
  for (unsigned s = 1; s < 1u << c->n; s++) {
    const unsigned low = s & -s, rest = s ^ low;
    value[s] = value[rest];
    take[s] = 0;
    for (unsigned sub = rest;; sub = (sub - 1) & rest) {
      unsigned pipe = sub | low;
      if (rate[pipe] > 0 && value[s ^ pipe] + rate[pipe] > value[s] * (1 + 1e-12)) {
        value[s] = value[s ^ pipe] + rate[pipe];
        take[s] = (uint8_t)pipe;
      }
      if (!sub) break;
    }
  }
}

static btc_status plan_hand(const btc_plan_model *model, const btc_plan_member *const *m, int n, btc_plan *p, list *left,
                            btc_error *err) {
  double value[1 << BTC_PLAN_STAGES];
  uint8_t take[1 << BTC_PLAN_STAGES];
  btc_cut c;
  btc_status st = btc_cut_solve(model, m, n, &c, err);
  if (st != BTC_OK) return st;
  group_table(&c, value, take);
  for (unsigned s = (1u << n) - 1; s;) {
    unsigned pipe = take[s];
    if (!pipe) {
      left->m[left->n++] = m[__builtin_ctz(s)];
      s &= s - 1;
      continue;
    }
    btc_plan_pipe made;
    btc_cut_pipe(&c, pipe, &made);
    add_pipe(p, &made);
    s ^= pipe;
  }
  btc_cut_free(&c);
  return BTC_OK;
}

/* ---- many members ---- */

static int by_memory(const void *a, const void *b) {
  const btc_plan_member *x = *(const btc_plan_member *const *)a, *y = *(const btc_plan_member *const *)b;
  if (x->memory_bytes != y->memory_bytes) return x->memory_bytes > y->memory_bytes ? -1 : 1;
  return strcmp(x->name, y->name);
}

static int by_speed(const void *a, const void *b) {
  const btc_plan_member *x = *(const btc_plan_member *const *)a, *y = *(const btc_plan_member *const *)b;
  double s = 0, t = 0;
  for (int k = 0; k < BTC_PLAN_KINDS; k++) {
    s += x->ms[k];
    t += y->ms[k];
  }
  if (s != t) return s < t ? -1 : 1;
  return strcmp(x->name, y->name);
}

typedef enum order { MEMORY_ALIKE, MEMORY_MIXED, SPEED_ALIKE, SPEED_MIXED, ORDERS } order;

/* Deals the members of `from` into hands of one size: neighbours of an order together, or spread over all hands. */
static void deal(const list *from, order o, int hands, list *to) {
  list sorted = *from;
  qsort(sorted.m, (size_t)sorted.n, sizeof sorted.m[0], o == MEMORY_ALIKE || o == MEMORY_MIXED ? by_memory : by_speed);
  *to = sorted;
  if (o == MEMORY_ALIKE || o == SPEED_ALIKE) return;
  to->n = 0;
  for (int h = 0; h < hands; h++)
    for (int i = h; i < sorted.n; i += hands) to->m[to->n++] = sorted.m[i];
}

static btc_status plan_order(const btc_plan_model *model, const list *all, order o, btc_plan *p, list *left, btc_error *err) {
  list now = *all;
  for (;;) {
    const int hands = (now.n + BTC_PLAN_STAGES - 1) / BTC_PLAN_STAGES;
    list dealt;
    deal(&now, o, hands, &dealt);
    left->n = 0;
    for (int h = 0, at = 0; h < hands; h++) {
      int n = (dealt.n - at) / (hands - h) + ((dealt.n - at) % (hands - h) != 0);
      btc_status st = plan_hand(model, dealt.m + at, n, p, left, err);
      if (st != BTC_OK) return st;
      at += n;
    }
    if (left->n == now.n || left->n == 0) return BTC_OK; /* every round builds something, or is the last */
    now = *left;
  }
}

/* Members of one model and site that hold no whole model. */
static btc_status plan_site(const btc_plan_model *model, const list *all, btc_plan *p, btc_error *err) {
  btc_plan best = {.items_per_s = -1}, one;
  list best_left = {.n = 0}, left = {.n = 0};
  btc_status st = BTC_OK;
  const int orders = all->n <= BTC_PLAN_STAGES ? 1 : ORDERS;
  for (int o = 0; o < orders && st == BTC_OK; o++) {
    if ((st = plan_create(all->n, &one, err)) != BTC_OK) break;
    st = plan_order(model, all, (order)o, &one, &left, err);
    if (st == BTC_OK && one.items_per_s > best.items_per_s * (1 + 1e-12)) {
      btc_plan worse = best;
      best = one;
      one = worse;
      best_left = left;
    }
    btc_plan_free(&one);
  }
  for (int i = 0; st == BTC_OK && i < best.pipes; i++) add_pipe(p, &best.pipe[i]);
  for (int i = 0; st == BTC_OK && i < best_left.n; i++) add_spare(p, best_left.m[i]);
  btc_plan_free(&best);
  return st;
}

static const btc_plan_model *model_of(const btc_plan_input *in, const char *fingerprint) {
  for (int i = 0; i < in->models; i++)
    if (strcmp(in->model[i].fingerprint, fingerprint) == 0) return &in->model[i];
  return NULL;
}

static void add_replica(btc_plan *p, const btc_plan_model *model, const btc_plan_member *m) {
  btc_plan_pipe r = {.stages = 1, .stage[0] = {.last = model->blocks}};
  snprintf(r.fingerprint, sizeof r.fingerprint, "%s", model->fingerprint);
  snprintf(r.stage[0].member, sizeof r.stage[0].member, "%s", m->name);
  r.stage[0].ms = btc_plan_stage_ms(model, m, 0, model->blocks);
  r.stage[0].bytes = btc_plan_stage_bytes(model, 0, model->blocks);
  btc_plan_pipe_sums(&r);
  add_pipe(p, &r);
}

/* Adds pipes and spares for the members of `todo` (any order; sorted here by name). */
static btc_status plan_members(const btc_plan_input *in, list *todo, btc_plan *p, btc_error *err) {
  list rest = {.n = 0};
  for (int i = 0; i < todo->n; i++) {
    const btc_plan_model *model = model_of(in, todo->m[i]->fingerprint);
    if (!model)
      add_spare(p, todo->m[i]);
    else if (todo->m[i]->memory_bytes >= btc_plan_stage_bytes(model, 0, model->blocks))
      add_replica(p, model, todo->m[i]);
    else
      rest.m[rest.n++] = todo->m[i];
  }
  while (rest.n) {
    list site = {.n = 0}, others = {.n = 0};
    for (int i = 0; i < rest.n; i++) {
      bool same = strcmp(rest.m[i]->site, rest.m[0]->site) == 0 && strcmp(rest.m[i]->fingerprint, rest.m[0]->fingerprint) == 0;
      list *to = same ? &site : &others;
      to->m[to->n++] = rest.m[i];
    }
    btc_status st = plan_site(model_of(in, site.m[0]->fingerprint), &site, p, err);
    if (st != BTC_OK) return st;
    rest = others;
  }
  return BTC_OK;
}

static int by_name(const void *a, const void *b) {
  return strcmp((*(const btc_plan_member *const *)a)->name, (*(const btc_plan_member *const *)b)->name);
}

static btc_status sorted_members(const btc_plan_input *in, list *all, btc_error *err) {
  if (in->members < 0 || in->members > BTC_PLAN_MEMBERS)
    return btc_fail(err, BTC_ERR_ARG, "%d members: at most %d are planned", in->members, BTC_PLAN_MEMBERS);
  for (int i = 0; i < in->models; i++)
    if (in->model[i].blocks < 1 || in->model[i].blocks > BTC_PLAN_BLOCKS)
      return btc_fail(err, BTC_ERR_ARG, "a model of %d blocks: 1 to %d are planned", in->model[i].blocks, BTC_PLAN_BLOCKS);
  all->n = in->members;
  for (int i = 0; i < all->n; i++) {
    const btc_plan_member *m = all->m[i] = &in->member[i];
    if (strlen(m->name) >= sizeof((btc_plan_stage *)0)->member || strlen(m->fingerprint) >= sizeof((btc_plan_pipe *)0)->fingerprint)
      return btc_fail(err, BTC_ERR_ARG, "a member's name or fingerprint is too long: '%.64s'", m->name);
  }
  qsort(all->m, (size_t)all->n, sizeof all->m[0], by_name);
  for (int i = 1; i < all->n; i++)
    if (strcmp(all->m[i - 1]->name, all->m[i]->name) == 0)
      return btc_fail(err, BTC_ERR_ARG, "two members are named '%s'", all->m[i]->name);
  return BTC_OK;
}

btc_status btc_plan_make(const btc_plan_input *in, btc_plan *out, btc_error *err) {
  list all = {0};
  *out = (btc_plan){0};
  btc_status st = sorted_members(in, &all, err);
  if (st == BTC_OK) st = plan_create(all.n, out, err);
  if (st == BTC_OK) st = plan_members(in, &all, out, err);
  if (st == BTC_OK)
    finish(out);
  else
    btc_plan_free(out);
  return st;
}

/* ---- hysteresis ---- */

/* Takes the member out of the list. */
static const btc_plan_member *take_member(list *all, const char *name) {
  for (int i = 0; i < all->n; i++)
    if (strcmp(all->m[i]->name, name) == 0) {
      const btc_plan_member *m = all->m[i];
      memmove(all->m + i, all->m + i + 1, (size_t)(all->n - i - 1) * sizeof all->m[0]);
      all->n--;
      return m;
    }
  return NULL;
}

/* Keeps the pipe with today's times, if it can go on as it is; its members leave the list then. */
static bool keep_pipe(const btc_plan_input *in, const btc_plan_pipe *old, list *all, btc_plan *p) {
  const btc_plan_model *model = model_of(in, old->fingerprint);
  btc_plan_pipe now = *old;
  list left = *all;
  int at = 0;
  for (int s = 0; s < now.stages; s++) {
    btc_plan_stage *stage = &now.stage[s];
    const btc_plan_member *m = take_member(&left, stage->member);
    if (!m || !model || strcmp(m->fingerprint, old->fingerprint) != 0) return false;
    if (stage->first != at || stage->last <= at || stage->last > model->blocks) return false;
    stage->bytes = btc_plan_stage_bytes(model, stage->first, stage->last);
    if (stage->bytes > m->memory_bytes) return false;
    stage->ms = btc_plan_stage_ms(model, m, stage->first, stage->last);
    at = stage->last;
  }
  if (!model || at != model->blocks) return false;
  btc_plan_pipe_sums(&now);
  add_pipe(p, &now);
  *all = left;
  return true;
}

static bool same_assignment(const btc_plan *a, const btc_plan *b) {
  if (a->pipes != b->pipes) return false;
  for (int i = 0; i < a->pipes; i++) {
    const btc_plan_pipe *x = &a->pipe[i], *y = &b->pipe[i];
    if (x->stages != y->stages || strcmp(x->fingerprint, y->fingerprint) != 0) return false;
    for (int s = 0; s < x->stages; s++)
      if (strcmp(x->stage[s].member, y->stage[s].member) != 0 || x->stage[s].first != y->stage[s].first ||
          x->stage[s].last != y->stage[s].last)
        return false;
  }
  return true;
}

btc_status btc_plan_revise(const btc_plan_input *in, const btc_plan *current, double gain, btc_plan *out, bool *changed,
                           btc_error *err) {
  list all;
  btc_plan fresh;
  *changed = false;
  *out = (btc_plan){0};
  btc_status st = btc_plan_make(in, &fresh, err); /* checks the input too */
  if (st != BTC_OK) return st;
  if ((st = sorted_members(in, &all, err)) == BTC_OK) st = plan_create(all.n, out, err);
  for (int i = 0; st == BTC_OK && i < current->pipes; i++) keep_pipe(in, &current->pipe[i], &all, out);
  if (st == BTC_OK) st = plan_members(in, &all, out, err);
  if (st != BTC_OK) {
    btc_plan_free(&fresh);
    btc_plan_free(out);
    return st;
  }
  finish(out);
  if (fresh.items_per_s > out->items_per_s * (1 + gain)) {
    btc_plan worse = *out;
    *out = fresh;
    fresh = worse;
  }
  btc_plan_free(&fresh);
  *changed = !same_assignment(current, out);
  return BTC_OK;
}
