/* Prices of a stage, and the table over sets of members and prefixes of the block list. See plan_cut.h. */
#include "broker/plan_cut.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const kind_names[] = {"patch", "vision", "change", "splice", "llm", "head"};
_Static_assert(sizeof kind_names / sizeof *kind_names == BTC_PLAN_KINDS, "a name a kind");

const char *btc_plan_kind_name(btc_plan_kind k) {
  return k >= 0 && k < BTC_PLAN_KINDS ? kind_names[k] : "?";
}

bool btc_plan_kind_of(const char *block, btc_plan_kind *kind) {
  size_t n = strcspn(block, " ");
  for (int k = 0; k < BTC_PLAN_KINDS; k++)
    if (strlen(kind_names[k]) == n && strncmp(block, kind_names[k], n) == 0) {
      *kind = (btc_plan_kind)k;
      return true;
    }
  return false;
}

/* ---- prices ---- */

static bool measured(double ms) {
  return ms > 0 && isfinite(ms);
}

/* Milliseconds a unit of price, per kind. A kind's measured time is the mean of its blocks; what is not measured costs what the
 * member's measured kinds cost on average. */
static void rates(const btc_plan_model *model, const btc_plan_member *m, double rate[BTC_PLAN_KINDS]) {
  double price[BTC_PLAN_KINDS] = {0}, known_ms = 0, known_price = 0;
  int count[BTC_PLAN_KINDS] = {0};
  for (int b = 0; b < model->blocks; b++) {
    price[model->block[b].kind] += model->block[b].price;
    count[model->block[b].kind]++;
  }
  for (int k = 0; k < BTC_PLAN_KINDS; k++)
    if (measured(m->ms[k]) && price[k] > 0) {
      known_ms += m->ms[k] * count[k];
      known_price += price[k];
    }
  double average = known_price > 0 ? known_ms / known_price : model->ms_per_price;
  for (int k = 0; k < BTC_PLAN_KINDS; k++) rate[k] = measured(m->ms[k]) && price[k] > 0 ? m->ms[k] * count[k] / price[k] : average;
}

void btc_plan_prefix(const btc_plan_model *model, const btc_plan_member *m, double *out) {
  double rate[BTC_PLAN_KINDS], sum = 0;
  rates(model, m, rate);
  for (int b = 0; b < model->blocks; b++) {
    out[b] = sum;
    sum += model->block[b].price * rate[model->block[b].kind];
  }
  out[model->blocks] = sum;
}

double btc_plan_stage_ms(const btc_plan_model *model, const btc_plan_member *m, int first, int last) {
  double rate[BTC_PLAN_KINDS], sum = 0;
  rates(model, m, rate);
  for (int b = first; b < last; b++) sum += model->block[b].price * rate[model->block[b].kind];
  return sum;
}

int64_t btc_plan_stage_bytes(const btc_plan_model *model, int first, int last) {
  int64_t held = model->fixed_bytes, work = 0;
  for (int b = first; b < last; b++) {
    const btc_plan_block *k = &model->block[b];
    held += k->weight_bytes + model->slots * k->kv_bytes;
    if (k->work_bytes > work) work = k->work_bytes;
  }
  return held + work;
}

void btc_plan_pipe_sums(btc_plan_pipe *p) {
  double sum = 0;
  p->slowest_ms = 0;
  for (int i = 0; i < p->stages; i++) {
    sum += p->stage[i].ms;
    if (p->stage[i].ms > p->slowest_ms) p->slowest_ms = p->stage[i].ms;
  }
  p->imbalance = sum > 0 ? p->slowest_ms * p->stages / sum - 1 : 0;
}

/* ---- the table ---- */

static bool get_memory(btc_cut *c) {
  size_t row = (size_t)c->model->blocks + 1, sets = (size_t)1 << c->n;
  c->prefix = btc_alloc((size_t)c->n * row, sizeof *c->prefix);
  c->bytes = btc_alloc(row, sizeof *c->bytes);
  c->best = btc_alloc(sets * row, sizeof *c->best);
  c->from = btc_alloc_zero(sets * row, sizeof *c->from);
  c->who = btc_alloc_zero(sets * row, sizeof *c->who);
  return c->prefix && c->bytes && c->best && c->from && c->who;
}

void btc_cut_free(btc_cut *c) {
  free(c->prefix);
  free(c->bytes);
  free(c->best);
  free(c->from);
  free(c->who);
  *c = (btc_cut){0};
}

/* Gives member w the last stage of blocks [0,j), from every i that its memory allows and that could still be better. */
static void extend(btc_cut *c, unsigned set, int w, int j) {
  const int row = c->model->blocks + 1;
  const double *before = c->best + (size_t)(set & ~(1u << w)) * row, *ms = c->prefix + (size_t)w * row;
  double *best = c->best + (size_t)set * row + j;
  const int64_t memory = c->member[w]->memory_bytes - c->model->fixed_bytes;
  int64_t work = 0;
  for (int i = j - 1; i >= 0; i--) {
    if (c->model->block[i].work_bytes > work) work = c->model->block[i].work_bytes;
    double t = ms[j] - ms[i];
    if (c->bytes[j] - c->bytes[i] + work > memory || t >= *best) return; /* further back only grows both */
    double slowest = before[i] > t ? before[i] : t;
    if (slowest >= *best) continue;
    *best = slowest;
    c->from[(size_t)set * row + j] = (uint16_t)i;
    c->who[(size_t)set * row + j] = (uint8_t)w;
  }
}

btc_status btc_cut_solve(const btc_plan_model *model, const btc_plan_member *const *members, int n, btc_cut *c, btc_error *err) {
  *c = (btc_cut){.model = model, .n = n};
  if (!get_memory(c)) {
    btc_cut_free(c);
    return btc_fail(err, BTC_ERR_NOMEM, "not enough memory to plan %d members", n);
  }
  const int row = model->blocks + 1;
  c->bytes[0] = 0;
  for (int b = 0; b < model->blocks; b++)
    c->bytes[b + 1] = c->bytes[b] + model->block[b].weight_bytes + model->slots * model->block[b].kv_bytes;
  for (int w = 0; w < n; w++) {
    c->member[w] = members[w];
    btc_plan_prefix(model, members[w], c->prefix + (size_t)w * row);
  }
  for (size_t k = 0; k < ((size_t)1 << n) * row; k++) c->best[k] = INFINITY;
  c->best[0] = 0; /* nobody holds nothing */
  for (unsigned set = 1; set < 1u << n; set++)
    for (int j = 1; j < row; j++)
      for (int w = 0; w < n; w++)
        if (set >> w & 1) extend(c, set, w, j);
  return BTC_OK;
}

double btc_cut_slowest(const btc_cut *c, unsigned set) {
  size_t row = (size_t)c->model->blocks; /* of a cut that was made: NOLINT(clang-analyzer-core.NullDereference) */
  return c->best[(size_t)set * (row + 1) + row];
}

void btc_cut_pipe(const btc_cut *c, unsigned set, btc_plan_pipe *out) {
  *out = (btc_plan_pipe){.stages = __builtin_popcount(set)};
  snprintf(out->fingerprint, sizeof out->fingerprint, "%s", c->model->fingerprint);
  int j = c->model->blocks;
  for (int s = out->stages - 1; s >= 0; s--) {
    size_t at = (size_t)set * (c->model->blocks + 1) + j;
    int i = c->from[at], w = c->who[at];
    btc_plan_stage *st = &out->stage[s];
    st->first = i;
    st->last = j;
    snprintf(st->member, sizeof st->member, "%s", c->member[w]->name);
    st->ms = btc_plan_stage_ms(c->model, c->member[w], i, j);
    st->bytes = btc_plan_stage_bytes(c->model, i, j);
    set &= ~(1u << w);
    j = i;
  }
  btc_plan_pipe_sums(out);
}

bool btc_plan_cut(const btc_plan_model *model, const btc_plan_member *const *members, int n, btc_plan_pipe *out) {
  btc_cut c;
  if (n < 1 || n > BTC_PLAN_STAGES || model->blocks < 1 || btc_cut_solve(model, members, n, &c, NULL) != BTC_OK) return false;
  const unsigned all = (1u << n) - 1;
  bool fits = isfinite(btc_cut_slowest(&c, all));
  if (fits) btc_cut_pipe(&c, all, out);
  btc_cut_free(&c);
  return fits;
}
