/* Operators that move elements and compute nothing: a task is one row of the grid, or one row of a table. */
#include <string.h>

#include "isa.h"

typedef struct job {
  const btc_cpu *c;
  float *dst;
  const float *x;
  int64_t side, p, g, channels;
} job;

static void patches_task(void *arg, int64_t r, int worker) {
  (void)worker;
  const job *j = arg;
  float *to = j->dst + r * j->g * 3 * j->p * j->p;
  for (int64_t c = 0; c < j->g; c++)
    for (int64_t ch = 0; ch < 3; ch++)
      for (int64_t ky = 0; ky < j->p; ky++, to += j->p)
        memcpy(to, j->x + (ch * j->side + j->p * r + ky) * j->side + j->p * c, (size_t)j->p * sizeof *to);
}

void btc_cpu_unfold_patches(btc_cpu *c, float *dst, const float *x, int64_t side, int64_t p, int64_t g) {
  job j = {.c = c, .dst = dst, .x = x, .side = side, .p = p, .g = g};
  btc_pool_run(c->pool, g, patches_task, &j);
}

static void unfold_3x3_task(void *arg, int64_t r, int worker) {
  (void)worker;
  const job *j = arg;
  int64_t g = j->g, channels = j->channels;
  float *to = j->dst + r * g * channels * 9;
  for (int64_t q = 0; q < g; q++, to += channels * 9)
    for (int64_t ky = 0; ky < 3; ky++)
      for (int64_t kx = 0; kx < 3; kx++) {
        int64_t row = r + ky - 1, col = q + kx - 1;
        bool inside = row >= 0 && row < g && col >= 0 && col < g;
        const float *from = j->x + (inside ? (row * g + col) * channels : 0);
        for (int64_t ch = 0; ch < channels; ch++) to[ch * 9 + ky * 3 + kx] = inside ? from[ch] : 0;
      }
}

void btc_cpu_unfold_3x3(btc_cpu *c, float *dst, const float *x, int64_t g, int64_t channels) {
  job j = {.c = c, .dst = dst, .x = x, .g = g, .channels = channels};
  btc_pool_run(c->pool, g, unfold_3x3_task, &j);
}

static void space_to_depth_task(void *arg, int64_t column, int worker) {
  (void)worker;
  const job *j = arg;
  int64_t g = j->g, half = (g + 1) / 2;
  size_t bytes = (size_t)j->channels * sizeof(float);
  float *to = j->dst + column * half * 4 * j->channels;
  for (int64_t i = 0; i < half; i++)
    for (int64_t q = 0; q < 4; q++, to += j->channels) {
      int64_t row = 2 * i + q / 2, col = 2 * column + q % 2;
      if (row < g && col < g)
        memcpy(to, j->x + (row * g + col) * j->channels, bytes);
      else
        memset(to, 0, bytes);
    }
}

void btc_cpu_space_to_depth(btc_cpu *c, float *dst, const float *x, int64_t g, int64_t channels) {
  job j = {.c = c, .dst = dst, .x = x, .g = g, .channels = channels};
  btc_pool_run(c->pool, (g + 1) / 2, space_to_depth_task, &j);
}

void btc_cpu_embed(btc_cpu *c, float *y, const btc_cpu_matrix *table, const int32_t *ids, int64_t m) {
  size_t row = (size_t)table->k * btc_cpu_type_size(table->type);
  for (int64_t i = 0; i < m; i++)
    c->isa->widen(y + i * table->k, (const char *)table->data + (size_t)ids[i] * row, table->type, table->k);
}
