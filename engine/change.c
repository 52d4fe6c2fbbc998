/*
 * Change extraction (spec 1.3) of one pair: positions, L attention layers, cosine map, fusion. Its quirks are the
 * reference's and must stay: values are projected with to_k, per-image blocks carry one more residual, joint blocks add the
 * original inputs, the cosine is added to all channels, the "LN" block holds no layer norm.
 */
#include "forward.h"

#include <math.h>
#include <stdio.h>

#define CE_EPS 1e-5f

/* Scratch of one attention block of width w: q, k, o and the feed-forward middle share rows; a, u full width. */
static int64_t attention_scratch(const btc_model *m, int64_t w) {
  const btc_change *c = &m->change;
  return m->tokens * (3 * c->attention_width + c->ff_width + w);
}

int64_t btc_change_scratch(const btc_model *m) {
  const btc_change *ch = &m->change;
  if (ch->layers < 0) return 0;
  int64_t t = m->tokens, c = m->hidden;
  int64_t layers = ch->layers ? attention_scratch(m, 2 * c) + t * 2 * c * 2 : 0; /* J and its input */
  int64_t fuse = t * (2 * c + c + ch->half + 9 * ch->half + ch->half) + t;
  return t * 4 * c + (layers > fuse ? layers : fuse);
}

/* y = norm2(ff(u) + u), u = norm1(attention(x) + x); y [T, w] may not be x. */
static void attention_block(const btc_run *r, const btc_change_attention *b, int64_t w, const float *x, float *y, float *scratch) {
  const btc_model *m = r->m;
  const int64_t t = m->tokens, a = m->change.attention_width, d = a / m->change.heads;
  float *q = scratch, *k = q + t * a, *o = k + t * a, *mid = o + t * a, *u = mid + t * m->change.ff_width;
  btc_op_matmul(r->be, q, x, t, &b->to_q, &(btc_epilogue){0});
  btc_op_matmul(r->be, k, x, t, &b->to_k, &(btc_epilogue){0});
  btc_op_attention(r->be, &(btc_attention){.q = q,
                                           .k = k,
                                           .v = k,
                                           .o = o,
                                           .q_stride = a,
                                           .k_stride = a,
                                           .v_stride = a,
                                           .o_stride = a,
                                           .n_seq = 1,
                                           .t = t,
                                           .heads = m->change.heads,
                                           .d = d,
                                           .scale = 1.0f / sqrtf((float)d)});
  btc_op_matmul(r->be, u, o, t, &b->to_out.w, &(btc_epilogue){.bias = b->to_out.bias, .residual = x});
  btc_op_layernorm(r->be, u, u, t, w, b->norm1.weight, b->norm1.bias, CE_EPS);
  btc_op_matmul(r->be, mid, u, t, &b->ff1.w, &(btc_epilogue){.bias = b->ff1.bias, .act = BTC_ACT_RELU});
  btc_op_matmul(r->be, y, mid, t, &b->ff2.w, &(btc_epilogue){.bias = b->ff2.bias, .residual = u});
  btc_op_layernorm(r->be, y, y, t, w, b->norm2.weight, b->norm2.bias, CE_EPS);
}

/* dst [T, 2C] = concat of the channels of a and b, each [T, C] */
static void concat(const btc_run *r, float *dst, const float *a, const float *b, int64_t t, int64_t c) {
  const size_t row = (size_t)c * sizeof *dst;
  btc_op_copy_2d(r->be, dst, 2 * row, a, row, row, t);
  btc_op_copy_2d(r->be, dst + c, 2 * row, b, row, row, t);
}

static void layer(const btc_run *r, int64_t i, const float *b1, const float *b2, float *s1, float *s2, float *scratch) {
  const btc_model *m = r->m;
  const btc_change_layer *l = &m->change.layer[i];
  const int64_t t = m->tokens, c = m->hidden, n = t * c;
  float *both = scratch, *joint = both + 2 * n, *rest = joint + 2 * n;
  char name[48];
  attention_block(r, &l->per_image, c, s1, joint, rest);
  btc_op_add(r->be, s1, joint, s1, n);
  attention_block(r, &l->per_image, c, s2, joint, rest);
  btc_op_add(r->be, s2, joint, s2, n);
  snprintf(name, sizeof name, "ce.layer%lld.per_image1", (long long)i);
  btc_tap_emit(r, name, s1, t, c);
  concat(r, both, s1, s2, t, c);
  attention_block(r, &l->joint, 2 * c, both, joint, rest);
  snprintf(name, sizeof name, "ce.layer%lld.joint", (long long)i);
  btc_tap_emit(r, name, joint, t, 2 * c);
  const size_t row = (size_t)c * sizeof *s1;
  btc_op_copy_2d(r->be, s1, row, joint, 2 * row, row, t);
  btc_op_copy_2d(r->be, s2, row, joint + c, 2 * row, row, t);
  btc_op_add(r->be, s1, s1, b1, n);
  btc_op_add(r->be, s2, s2, b2, n);
}

/* Cosine, Conv1 and the residual block: s1, s2 -> out. */
static void fuse(const btc_run *r, const float *s1, const float *s2, float *out, float *cosine, float *scratch) {
  const btc_model *m = r->m;
  const btc_change *ch = &m->change;
  const int64_t t = m->tokens, c = m->hidden, g = m->cfg->vision.grid, half = ch->half;
  float *z = scratch, *y = z + t * 2 * c, *a = y + t * c, *wide = a + t * half, *b = wide + t * 9 * half, *cos = b + t * half;
  btc_op_cosine_concat(r->be, z, cos, s1, s2, t, c);
  if (cosine) btc_op_copy(r->be, cosine, cos, (size_t)t * sizeof *cos);
  btc_tap_emit(r, "ce.cos", cos, t, 1);
  btc_op_matmul(r->be, y, z, t, &ch->conv1.w, &(btc_epilogue){.bias = ch->conv1.bias});
  btc_tap_emit(r, "ce.conv1", y, t, c);
  btc_op_matmul(r->be, a, y, t, &ch->left0.w,
                &(btc_epilogue){.scale = ch->left0.scale, .bias = ch->left0.shift, .act = BTC_ACT_RELU});
  btc_op_unfold_3x3(r->be, wide, a, g, half);
  btc_op_matmul(r->be, b, wide, t, &ch->left3.w,
                &(btc_epilogue){.scale = ch->left3.scale, .bias = ch->left3.shift, .act = BTC_ACT_RELU});
  btc_op_matmul(r->be, out, b, t, &ch->left6.w,
                &(btc_epilogue){
                    .scale = ch->left6.scale, .bias = ch->left6.shift, .residual = y, .residual_first = true, .act = BTC_ACT_RELU});
  btc_tap_emit(r, "ce.out", out, t, c);
}

void btc_change_forward(const btc_run *r, const float *x1, const float *x2, float *out, float *cosine) {
  const btc_model *m = r->m;
  const int64_t t = m->tokens, c = m->hidden, n = t * c;
  float *b1 = r->scratch, *b2 = b1 + n, *s1 = b2 + n, *s2 = s1 + n, *rest = s2 + n;
  btc_op_add(r->be, b1, x1, m->change.position, n);
  btc_op_add(r->be, b2, x2, m->change.position, n);
  btc_tap_emit(r, "ce.b1", b1, t, c);
  btc_tap_emit(r, "ce.b2", b2, t, c);
  btc_op_copy(r->be, s1, b1, (size_t)(2 * n) * sizeof *s1);
  for (int64_t i = 0; i < m->change.layers; i++) layer(r, i, b1, b2, s1, s2, rest);
  btc_tap_emit(r, "ce.s1", s1, t, c);
  btc_tap_emit(r, "ce.s2", s2, t, c);
  fuse(r, s1, s2, out, cosine, rest);
}
