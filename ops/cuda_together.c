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

void cuda_products(btc_backend *b, const btc_products *p) {
  cuda_backend *c = b->self;
  cuda_constant whole;
  const float *x = p->norm ? p->normed : p->x;
  btc_epilogue e = {.x_packed = p->norm || p->x_packed, .y_packed = p->y_packed};
  if (p->norm) btc_op_rmsnorm_packed(b, p->normed, p->x, p->m, p->w[0]->cols, p->norm, p->eps);
  if (cuda_together(c, p, &whole)) {
    e.bias = p->bias[0];
    cuda_multiply(c, &whole, p->y, x, p->m, &e, p->few);
    return;
  }
  for (int i = 0; i < p->n; i++) {
    e.bias = p->bias[i];
    cuda_multiply(c, cuda_find(c, p->w[i]->data), cuda_products_part(b, p, i).at, x, p->m, &e, p->few);
  }
}

/* Of many rows gate and up pass through memory in bf16, as PyTorch's do: half of what the step between them and the next product
 * moves. Those of few rows stay in f32: they are small. */
void cuda_products_gated(btc_backend *b, float *out, const btc_products *p) {
  cuda_backend *c = b->self;
  btc_products made = *p;
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
