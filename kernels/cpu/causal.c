/*
 * Causal attention over a cache of keys and values, and the cache's filling. A row's keys are taken in blocks that start at fixed
 * positions, so a row's sums are the same in a prefill, in a prefill after a kept prefix, and in a decode step.
 */
#include "isa.h"

typedef struct store_job {
  const btc_cpu *c;
  const btc_cpu_kv *kv;
  int64_t pos, k_stride, v_stride, m;
  const float *k, *v;
} store_job;

static void store_task(void *arg, int64_t head, int worker) {
  (void)worker;
  const store_job *j = arg;
  int64_t d = j->kv->d;
  size_t size = btc_cpu_type_size(j->kv->type);
  for (int64_t i = 0; i < j->m; i++) {
    size_t at = (size_t)((head * j->kv->capacity + j->pos + i) * d) * size;
    j->c->isa->store_kv((char *)j->kv->k + at, j->kv->type, j->k + i * j->k_stride + head * d, d);
    j->c->isa->store_kv((char *)j->kv->v + at, j->kv->type, j->v + i * j->v_stride + head * d, d);
  }
}

void btc_cpu_kv_store(btc_cpu *c, const btc_cpu_kv *kv, int64_t pos, const float *k, int64_t k_stride, const float *v,
                      int64_t v_stride, int64_t m) {
  store_job j = {c, kv, pos, k_stride, v_stride, m, k, v};
  if (m >= 16) {
    btc_pool_run(c->pool, kv->kv_heads, store_task, &j);
    return;
  }
  for (int64_t h = 0; h < kv->kv_heads; h++) store_task(&j, h, 0);
}

typedef struct job {
  const btc_cpu *c;
  const btc_cpu_kv *kv;
  const float *q;
  float *o;
  int64_t q_stride, m, pos, heads;
  float scale;
} job;

static void attend_task(void *arg, int64_t task, int worker) {
  (void)worker;
  const job *j = arg;
  /* The longest rows come first: the last tasks to finish are short ones. */
  int64_t head = task % j->heads, block = btc_ceil_div(j->m, CAUSAL_QUERIES) - 1 - task / j->heads, first = block * CAUSAL_QUERIES;
  int64_t d = j->kv->d, group = j->heads / j->kv->kv_heads;
  size_t at = (size_t)(head / group * j->kv->capacity * d) * btc_cpu_type_size(j->kv->type);
  btc_cpu_rows r = {.q = j->q + first * j->q_stride + head * d,
                    .o = j->o + first * j->heads * d + head * d,
                    .k = (const char *)j->kv->k + at,
                    .v = (const char *)j->kv->v + at,
                    .type = j->kv->type,
                    .q_stride = j->q_stride,
                    .o_stride = j->heads * d,
                    .k_stride = d,
                    .v_stride = d,
                    .rows = btc_min64(j->m - first, CAUSAL_QUERIES),
                    .count = j->pos + first + 1,
                    .step = 1,
                    .d = d,
                    .scale = j->scale};
  j->c->isa->attend_rows(&r);
}

void btc_cpu_attend_causal(btc_cpu *c, float *o, const float *q, int64_t q_stride, int64_t m, int64_t pos, int64_t heads,
                           const btc_cpu_kv *kv, float scale) {
  job j = {c, kv, q, o, q_stride, m, pos, heads, scale};
  btc_pool_run(c->pool, heads * btc_ceil_div(m, CAUSAL_QUERIES), attend_task, &j);
}
