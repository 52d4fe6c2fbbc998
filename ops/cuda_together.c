/*
 * Products of the same rows on a CUDA device. Matrices that lie one after another are one matrix, so that one launch makes all of
 * a row's parts, side by side: fewer launches, each with more to read. Where they do not, one after the other as on a host.
 */
#include "ops/cuda_parts.h"

static bool is_bf16(const cuda_backend *c, bool packed) {
  return packed && c->bf16;
}

btc_product_part cuda_products_part(const btc_backend *b, const btc_products *p, int i) {
  const cuda_backend *c = b->self;
  cuda_constant whole;
  int64_t before = 0;
  for (int k = 0; k < i; k++) before += p->w[k]->rows;
  const bool together = cuda_together(c, p, &whole);
  const int64_t at = together ? before : p->m * before;
  return (btc_product_part){.at = is_bf16(c, p->y_packed) ? (float *)((uint16_t *)p->y + at) : p->y + at,
                            .stride = together ? whole.rows : p->w[i]->rows};
}

static void normalise(btc_backend *b, const btc_products *p) {
  btc_op_rmsnorm_packed(b, p->normed, p->x, p->m, p->w[0]->cols, p->norm, p->eps);
}

btc_cuda_rows cuda_few_rows(btc_backend *b, const btc_products *p, const cuda_constant *k) {
  cuda_backend *c = b->self;
  const btc_cuda_matrix w = cuda_matrix(c, k);
  btc_cuda_rows rows = {.x = p->x,
                        .type = is_bf16(c, !p->norm && p->x_packed) ? BTC_CUDA_BF16 : BTC_CUDA_F32,
                        .m = p->m,
                        .norm = p->norm ? cuda_vector(c, p->norm) : NULL,
                        .eps = p->eps};
  if (!p->norm || btc_cuda_matvec_norms(&rows, &w, c->bf16)) return rows;
  normalise(b, p);
  return (btc_cuda_rows){.x = p->normed, .type = is_bf16(c, true) ? BTC_CUDA_BF16 : BTC_CUDA_F32, .m = p->m};
}

/* One matrix, or all of them as one. */
static void multiply(btc_backend *b, const btc_products *p, const cuda_constant *k, float *y, const float *bias) {
  cuda_backend *c = b->self;
  const btc_epilogue e = {.bias = bias, .x_packed = p->norm || p->x_packed, .y_packed = p->y_packed};
  if (p->few && k && k->product) {
    const btc_cuda_rows rows = cuda_few_rows(b, p, k);
    cuda_multiply_few(c, k, y, &rows, &e);
  } else {
    cuda_multiply_many(c, k, y, p->norm ? p->normed : p->x, p->m, &e);
  }
}

void cuda_products(btc_backend *b, const btc_products *p) {
  cuda_backend *c = b->self;
  cuda_constant whole;
  if (p->norm && !p->few) normalise(b, p);
  if (cuda_together(c, p, &whole)) {
    multiply(b, p, &whole, p->y, p->bias[0]);
    return;
  }
  for (int i = 0; i < p->n; i++) multiply(b, p, cuda_find(c, p->w[i]->data), cuda_products_part(b, p, i).at, p->bias[i]);
}

/* Gate and up of few rows in one launch, nothing of them in memory. */
static bool gate_few(btc_backend *b, float *out, const btc_products *p) {
  cuda_backend *c = b->self;
  cuda_constant whole;
  if (!p->few || p->bias[0] || !cuda_together(c, p, &whole)) return false;
  const btc_cuda_matrix w = cuda_matrix(c, &whole);
  const btc_cuda_rows rows = cuda_few_rows(b, p, &whole);
  if (c->failed.code == BTC_OK)
    CUDA_TRY(c, btc_cuda_matvec_gated(c->bf16 ? NULL : out, c->bf16 ? (uint16_t *)out : NULL, &rows, &w, c->bf16, c->stream));
  return true;
}

/* Of many rows gate and up pass through memory in bf16, as PyTorch's do: half of what the step between them and the next product
 * moves. Those of few rows stay in f32, whether they pass through memory or not. */
void cuda_products_gated(btc_backend *b, float *out, const btc_products *p) {
  cuda_backend *c = b->self;
  btc_products made = *p;
  if (gate_few(b, out, p)) return;
  made.y_packed = !p->few;
  cuda_products(b, &made);
  const btc_product_part gate = cuda_products_part(b, &made, 0), up = cuda_products_part(b, &made, 1);
  const btc_cuda_gate job = {.gate = gate.at,
                             .up = up.at,
                             .type = is_bf16(c, made.y_packed) ? BTC_CUDA_BF16 : BTC_CUDA_F32,
                             .gate_stride = gate.stride,
                             .up_stride = up.stride};
  if (c->failed.code == BTC_OK)
    CUDA_TRY(c, btc_cuda_silu_mul(c->bf16 ? NULL : out, c->bf16 ? (uint16_t *)out : NULL, &job, p->m, p->w[0]->rows, c->stream));
}
