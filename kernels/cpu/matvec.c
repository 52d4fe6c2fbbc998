/*
 * Products of few rows (decode). The weights stream from memory once for up to MATVEC_ROWS rows; a task is MATVEC_NB weight rows,
 * so each thread reads long contiguous runs.
 */
#include "isa.h"

typedef struct job {
  const btc_cpu *c;
  const btc_cpu_matrix *w;
  const btc_cpu_epilogue *e;
  const float *x;
  float *y;
  int64_t first, rows;
} job;

static const float *offset(const float *p, int64_t by) {
  return p ? p + by : NULL;
}

static void dots_task(void *arg, int64_t task, int worker) {
  const job *j = arg;
  int64_t k = j->w->k, n = j->w->n, n0 = task * MATVEC_NB, width = btc_min64(n - n0, MATVEC_NB);
  float *sums = btc_cpu_scratch(j->c, worker);
  const char *w = (const char *)j->w->data + (size_t)(n0 * k) * btc_cpu_type_size(j->w->type);
  j->c->isa->dots(sums, MATVEC_NB, j->x, k, j->rows, w, j->w->type, j->c->bf16, k, width, k);
  btc_cpu_epilogue e = *j->e;
  e.scale = offset(e.scale, n0);
  e.bias = offset(e.bias, n0);
  e.residual = offset(e.residual, j->first * n + n0);
  j->c->isa->finish(j->y + j->first * n + n0, n, sums, MATVEC_NB, j->rows, width, &e);
}

void btc_cpu_matvec(btc_cpu *c, float *y, const float *x, int64_t m, const btc_cpu_matrix *w, const btc_cpu_epilogue *e) {
  static const btc_cpu_epilogue none;
  job j = {.c = c, .w = w, .e = e ? e : &none, .y = y};
  int64_t most = btc_min64(MATVEC_ROWS, (int64_t)(c->rows_floats / (size_t)w->k));
  for (j.first = 0; j.first < m; j.first += most) {
    j.rows = btc_min64(m - j.first, most);
    j.x = x + j.first * w->k;
    if (c->bf16) {
      c->isa->round_bf16(c->rows, j.x, j.rows * w->k);
      j.x = c->rows;
    }
    btc_pool_run(c->pool, btc_ceil_div(w->n, MATVEC_NB), dots_task, &j);
  }
}
