/* Projector `single` (spec 1.4): 2x2 space to channel, layer norm, two linear layers with exact GELU between. */
#include "forward.h"

int64_t btc_projector_scratch(const btc_model *m, int64_t images) {
  return images * m->block_tokens * (8 * m->hidden + m->width);
}

void btc_projector_forward(const btc_run *r, const float *x, int64_t n, float *out) {
  const btc_model *m = r->m;
  const btc_projector *p = &m->projector;
  const int64_t rows = n * m->block_tokens, wide = 4 * m->hidden;
  float *a = r->scratch, *b = a + rows * wide, *mid = b + rows * wide;
  btc_op_space_to_depth(r->be, a, x, n, m->cfg->vision.grid, m->hidden);
  btc_op_layernorm_packed(r->be, b, a, rows, wide, p->norm.weight, p->norm.bias, 1e-5f);
  btc_op_matmul(r->be, mid, b, rows, &p->fc1.w,
                &(btc_epilogue){.bias = p->fc1.bias, .act = BTC_ACT_GELU_ERF, .x_packed = true, .y_packed = true});
  btc_op_matmul(r->be, out, mid, rows, &p->fc2.w, &(btc_epilogue){.bias = p->fc2.bias, .x_packed = true});
}
