/*
 * Vision tower (spec 1.2): patch embedding, learned positions, pre-norm blocks. The blocks beyond the selected hidden state and
 * post_layernorm are never computed. Images are taken a few at a time, so that scratch stays bounded while the products keep
 * enough rows to run at full speed.
 */
#include "forward.h"

#include <math.h>

int64_t btc_patch_scratch(const btc_model *m, int64_t images_at_once) {
  return images_at_once * m->tokens * m->patch.w.cols;
}

int64_t btc_vision_scratch(const btc_model *m, int64_t images_at_once) {
  int64_t rows = images_at_once * m->tokens, c = m->hidden, mlp = m->cfg->vision.mlp;
  int64_t attention = 5 * c, feed_forward = c + mlp; /* never alive together */
  return rows * (attention > feed_forward ? attention : feed_forward);
}

void btc_patch_forward(const btc_run *r, const float *pixels, int64_t images, float *h) {
  const btc_model *m = r->m;
  const btc_vision_config *v = &m->cfg->vision;
  btc_tap_emit(r, "pixels", pixels, images, 3 * v->image * v->image);
  const btc_epilogue e = {.bias = m->patch.bias, .residual = m->position, .residual_rows = m->tokens, .x_packed = true};
  for (int64_t i = 0; i < images; i += r->images_at_once) {
    int64_t n = images - i < r->images_at_once ? images - i : r->images_at_once;
    btc_op_unfold_patches(r->be, r->scratch, pixels + i * 3 * v->image * v->image, n, v->image, v->patch, v->grid);
    btc_op_matmul(r->be, h + i * m->tokens * m->hidden, r->scratch, n * m->tokens, &m->patch.w, &e);
  }
  btc_tap_emit(r, "tower.embed", h, images * m->tokens, m->hidden);
  if (v->blocks == 0) btc_tap_emit(r, "tower.selected", h, images * m->tokens, m->hidden);
}

static void block(const btc_run *r, const btc_vision_block *b, int64_t images, float *h) {
  const btc_model *m = r->m;
  const btc_vision_config *v = &m->cfg->vision;
  const int64_t c = m->hidden, d = c / v->heads, rows = images * m->tokens, n = rows * c;
  float *a = r->scratch, *made = a + n, *o = made + 3 * n, *mid = a + n;
  const btc_products p = {.n = 3,
                          .w = {&b->q.w, &b->k.w, &b->v.w},
                          .bias = {b->q.bias, b->k.bias, b->v.bias},
                          .x = a,
                          .m = rows,
                          .y = made,
                          .x_packed = true,
                          .y_packed = true};
  const btc_product_part q = btc_products_part(r->be, &p, 0), k = btc_products_part(r->be, &p, 1),
                         val = btc_products_part(r->be, &p, 2);
  btc_op_layernorm_packed(r->be, a, h, rows, c, b->ln1.weight, b->ln1.bias, v->eps);
  btc_op_products(r->be, &p);
  btc_op_attention(r->be, &(btc_attention){.q = q.at,
                                           .k = k.at,
                                           .v = val.at,
                                           .o = o,
                                           .q_stride = q.stride,
                                           .k_stride = k.stride,
                                           .v_stride = val.stride,
                                           .o_stride = c,
                                           .n_seq = images,
                                           .t = m->tokens,
                                           .heads = v->heads,
                                           .d = d,
                                           .scale = 1.0f / sqrtf((float)d),
                                           .packed = true});
  btc_op_matmul(r->be, h, o, rows, &b->out.w, &(btc_epilogue){.bias = b->out.bias, .residual = h, .x_packed = true});
  btc_op_layernorm_packed(r->be, a, h, rows, c, b->ln2.weight, b->ln2.bias, v->eps);
  btc_op_matmul(r->be, mid, a, rows, &b->fc1.w,
                &(btc_epilogue){.bias = b->fc1.bias, .act = BTC_ACT_GELU_TANH, .x_packed = true, .y_packed = true});
  btc_op_matmul(r->be, h, mid, rows, &b->fc2.w, &(btc_epilogue){.bias = b->fc2.bias, .residual = h, .x_packed = true});
}

void btc_vision_forward(const btc_run *r, int64_t index, int64_t images, float *h) {
  const btc_model *m = r->m;
  const int64_t most = r->images_at_once;
  for (int64_t i = 0; i < images; i += most) {
    int64_t n = images - i < most ? images - i : most;
    block(r, &m->vision[index], n, h + i * m->tokens * m->hidden);
  }
  if (index == 0) btc_tap_emit(r, "tower.block1", h, images * m->tokens, m->hidden);
  if (index == m->cfg->vision.blocks - 1) btc_tap_emit(r, "tower.selected", h, images * m->tokens, m->hidden);
}
