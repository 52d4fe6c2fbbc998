/* Rotary embedding, sums, gated activation. */
#include "isa.h"

enum { RUN = 16384 }; /* elements of a task; below this the hand-out costs more than the work */

typedef struct job {
  const btc_cpu *c;
  float *y;
  const float *a, *b;
  int64_t n;
} job;

static void add_task(void *arg, int64_t task, int worker) {
  (void)worker;
  const job *j = arg;
  int64_t at = task * RUN;
  j->c->isa->add(j->y + at, j->a + at, j->b + at, btc_min64(j->n - at, RUN));
}

static void silu_mul_task(void *arg, int64_t task, int worker) {
  (void)worker;
  const job *j = arg;
  int64_t at = task * RUN;
  j->c->isa->silu_mul(j->y + at, j->a + at, j->b + at, btc_min64(j->n - at, RUN));
}

void btc_cpu_add(btc_cpu *c, float *y, const float *a, const float *b, int64_t n) {
  job j = {c, y, a, b, n};
  btc_pool_run(c->pool, btc_ceil_div(n, RUN), add_task, &j);
}

void btc_cpu_silu_mul(btc_cpu *c, float *y, const float *gate, const float *up, int64_t n) {
  job j = {c, y, gate, up, n};
  btc_pool_run(c->pool, btc_ceil_div(n, RUN), silu_mul_task, &j);
}

typedef struct rope_job {
  const btc_cpu *c;
  float *x;
  int64_t stride, m, heads, d, pos, rows_a_task;
  const float *cos, *sin;
} rope_job;

static void rope_task(void *arg, int64_t task, int worker) {
  (void)worker;
  const rope_job *j = arg;
  int64_t end = btc_min64((task + 1) * j->rows_a_task, j->m);
  for (int64_t i = task * j->rows_a_task; i < end; i++) {
    int64_t at = (j->pos + i) * (j->d / 2);
    j->c->isa->rope(j->x + i * j->stride, j->heads, j->d, j->cos + at, j->sin + at);
  }
}

void btc_cpu_rope(btc_cpu *c, float *x, int64_t stride, int64_t m, int64_t heads, int64_t d, int64_t pos, const float *cos,
                  const float *sin) {
  rope_job j = {c, x, stride, m, heads, d, pos, btc_ceil_div(RUN, heads * d), cos, sin};
  btc_pool_run(c->pool, btc_ceil_div(m, j.rows_a_task), rope_task, &j);
}
