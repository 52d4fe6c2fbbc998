/* Projector `single` (spec 1.4): 2x2 space to channel, layer norm, two linear layers with exact GELU between. */
#include "forward.h"

int64_t btc_projector_scratch(const btc_model *m) {
  return m->block_tokens * (4 * m->hidden + m->width);
}

void btc_projector_forward(const btc_run *r, const float *x, float *out) {
  const btc_model *m = r->m;
  const btc_projector *p = &m->projector;
  const int64_t t = m->block_tokens, wide = 4 * m->hidden;
  float *a = r->scratch, *b = a + t * wide;
  btc_op_space_to_depth(r->be, a, x, m->cfg->vision.grid, m->hidden);
  btc_op_layernorm(r->be, a, a, t, wide, p->norm.weight, p->norm.bias, 1e-5f); /* in place, so it is not packed */
  btc_op_matmul(r->be, b, a, t, &p->fc1.w, &(btc_epilogue){.bias = p->fc1.bias, .act = BTC_ACT_GELU_ERF});
  btc_op_matmul(r->be, out, b, t, &p->fc2.w, &(btc_epilogue){.bias = p->fc2.bias});
}
