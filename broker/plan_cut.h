/*
 * The exact core of the planner, over at most BTC_PLAN_STAGES members: best[set][j] is the least possible slowest stage when the
 * members of the set, one contiguous stage each, in any order, hold blocks [0,j). One table answers for every subset. Private to
 * broker/plan*.c.
 */
#ifndef BTC_BROKER_PLAN_CUT_H
#define BTC_BROKER_PLAN_CUT_H

#include "broker/plan.h"

typedef struct btc_cut {
  const btc_plan_model *model;
  const btc_plan_member *member[BTC_PLAN_STAGES];
  int n;
  double *prefix; /* [n][blocks + 1] milliseconds of blocks [0,j) */
  int64_t *bytes; /* [blocks + 1] weights, keys and values of blocks [0,j) */
  double *best;   /* [1 << n][blocks + 1]; INFINITY: does not fit */
  uint16_t *from; /* [1 << n][blocks + 1] where the last stage begins */
  uint8_t *who;   /* [1 << n][blocks + 1] and who holds it */
} btc_cut;

btc_status btc_cut_solve(const btc_plan_model *model, const btc_plan_member *const *members, int n, btc_cut *out, btc_error *err);
double btc_cut_slowest(const btc_cut *c, unsigned set); /* of the whole model over these members; INFINITY: does not fit */
void btc_cut_pipe(const btc_cut *c, unsigned set, btc_plan_pipe *out);
void btc_cut_free(btc_cut *c);

/* Fills slowest_ms and imbalance from the stages. */
void btc_plan_pipe_sums(btc_plan_pipe *p);
/* out[blocks + 1]: milliseconds of blocks [0,j) on a member. */
void btc_plan_prefix(const btc_plan_model *model, const btc_plan_member *m, double *out);

#endif
