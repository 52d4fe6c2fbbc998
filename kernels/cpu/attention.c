/* Bidirectional attention. A task is one head's block of queries; heads wider than the blocked kernel go row-wise. */
#include "isa.h"

typedef struct job {
  const btc_cpu *c;
  const btc_cpu_attention *a;
  int64_t blocks, queries; /* blocks a head, queries a block */
} job;

static void attend_task(void *arg, int64_t task, int worker) {
  const job *j = arg;
  const btc_cpu_attention *a = j->a;
  int64_t block = task % j->blocks, head = task / j->blocks % a->heads, seq = task / j->blocks / a->heads;
  int64_t query = block * j->queries, rows = btc_min64(a->t - query, j->queries);
  const btc_cpu_isa *isa = j->c->isa;
  (j->c->pairs  ? isa->attend_pairs
   : j->c->bf16 ? isa->attend_rounded
                : isa->attend)(a, seq, head, query, rows, btc_cpu_scratch(j->c, worker));
}

static void attend_wide_task(void *arg, int64_t task, int worker) {
  (void)worker;
  const job *j = arg;
  const btc_cpu_attention *a = j->a;
  int64_t block = task % j->blocks, head = task / j->blocks % a->heads, seq = task / j->blocks / a->heads;
  int64_t query = block * j->queries, row0 = seq * a->t, c = head * a->d;
  btc_cpu_rows r = {.q = a->q + (row0 + query) * a->q_stride + c,
                    .o = a->o + (row0 + query) * a->o_stride + c,
                    .k = a->k + row0 * a->k_stride + c,
                    .v = a->v + row0 * a->v_stride + c,
                    .type = BTC_CPU_F32,
                    .q_stride = a->q_stride,
                    .o_stride = a->o_stride,
                    .k_stride = a->k_stride,
                    .v_stride = a->v_stride,
                    .rows = btc_min64(a->t - query, j->queries),
                    .count = a->t,
                    .d = a->d,
                    .scale = a->scale};
  j->c->isa->attend_rows(&r);
}

void btc_cpu_attend(btc_cpu *c, const btc_cpu_attention *a) {
  bool wide = a->d > ATTENTION_WIDTH;
  job j = {.c = c, .a = a, .queries = wide ? CAUSAL_QUERIES : ATTENTION_QUERIES};
  j.blocks = btc_ceil_div(a->t, j.queries);
  btc_pool_run(c->pool, a->n_seq * a->heads * j.blocks, wide ? attend_wide_task : attend_task, &j);
}
