/* Norms and the cosine map: a task is a run of rows. */
#include "isa.h"

typedef struct job {
  const btc_cpu *c;
  float *y, *cosine;
  const float *x, *x2, *weight, *bias;
  int64_t m, n, rows_a_task;
  float eps;
} job;

/* Below some 16 thousand elements a task costs less than its hand-out. */
static void run_rows(btc_cpu *c, job *j, btc_pool_task task) {
  j->c = c;
  j->rows_a_task = btc_ceil_div(16384, j->n);
  btc_pool_run(c->pool, btc_ceil_div(j->m, j->rows_a_task), task, j);
}

static int64_t end_row(const job *j, int64_t task) {
  return btc_min64((task + 1) * j->rows_a_task, j->m);
}

static void layernorm_task(void *arg, int64_t task, int worker) {
  (void)worker;
  const job *j = arg;
  for (int64_t i = task * j->rows_a_task; i < end_row(j, task); i++)
    j->c->isa->layernorm(j->y + i * j->n, j->x + i * j->n, j->n, j->weight, j->bias, j->eps);
}

static void rmsnorm_task(void *arg, int64_t task, int worker) {
  (void)worker;
  const job *j = arg;
  for (int64_t i = task * j->rows_a_task; i < end_row(j, task); i++)
    j->c->isa->rmsnorm(j->y + i * j->n, j->x + i * j->n, j->n, j->weight, j->eps);
}

static void cosine_task(void *arg, int64_t task, int worker) {
  (void)worker;
  const job *j = arg;
  for (int64_t i = task * j->rows_a_task; i < end_row(j, task); i++) {
    float cosine = j->c->isa->cosine_concat(j->y + 2 * i * j->n, j->x + i * j->n, j->x2 + i * j->n, j->n);
    if (j->cosine) j->cosine[i] = cosine;
  }
}

void btc_cpu_layernorm(btc_cpu *c, float *y, const float *x, int64_t m, int64_t n, const float *weight, const float *bias,
                       float eps) {
  job j = {.y = y, .x = x, .weight = weight, .bias = bias, .m = m, .n = n, .eps = eps};
  run_rows(c, &j, layernorm_task);
}

void btc_cpu_rmsnorm(btc_cpu *c, float *y, const float *x, int64_t m, int64_t n, const float *weight, float eps) {
  job j = {.y = y, .x = x, .weight = weight, .m = m, .n = n, .eps = eps};
  run_rows(c, &j, rmsnorm_task);
}

void btc_cpu_cosine_concat(btc_cpu *c, float *z, float *cosine, const float *s1, const float *s2, int64_t t, int64_t width) {
  job j = {.y = z, .cosine = cosine, .x = s1, .x2 = s2, .m = t, .n = width};
  run_rows(c, &j, cosine_task);
}
