/*
 * Change extraction (spec 1.3) of pairs, some at once: positions, L attention layers, cosine map, fusion. Its quirks are the
 * reference's and must stay: values are projected with to_k, per-image blocks carry one more residual, joint blocks add the
 * original inputs, the cosine is added to all channels, the "LN" block holds no layer norm.
 *
 * The first images of all pairs lie one after another, and behind them the second ones: so per-image blocks are one run over all
 * images, and what belongs to a pair is two runs of rows.
 */
#include "forward.h"

#include <math.h>
#include <stdio.h>

#define CE_EPS 1e-5f

/* Floats of one attention block over so many rows of width w: q, k, o, the feed-forward middle, and u. */
static int64_t attention_scratch(const btc_model *m, int64_t rows, int64_t w) {
  const btc_change *c = &m->change;
  return rows * (3 * c->attention_width + c->ff_width + w);
}

int64_t btc_change_scratch(const btc_model *m, int64_t pairs) {
  const btc_change *ch = &m->change;
  if (ch->layers < 0) return 0;
  int64_t rows = pairs * m->tokens, c = m->hidden;
  int64_t layers = ch->layers ? attention_scratch(m, 2 * rows, c) + rows * 2 * c * 2 : 0; /* J and its input */
  int64_t fuse = rows * (2 * c + c + ch->half + 9 * ch->half + ch->half) + rows;
  return rows * 4 * c + (layers > fuse ? layers : fuse);
}

/* y = norm2(ff(u) + u), u = norm1(attention(x) + x) over n sequences; y [n*T, w] may not be x. */
static void attention_block(const btc_run *r, const btc_change_attention *b, int64_t n, int64_t w, const float *x, float *y,
                            float *scratch) {
  const btc_model *m = r->m;
  const int64_t rows = n * m->tokens, a = m->change.attention_width, d = a / m->change.heads;
  float *q = scratch, *k = q + rows * a, *o = k + rows * a, *mid = o + rows * a, *u = mid + rows * m->change.ff_width;
  btc_op_matmul(r->be, q, x, rows, &b->to_q, &(btc_epilogue){.y_packed = true});
  btc_op_matmul(r->be, k, x, rows, &b->to_k, &(btc_epilogue){.y_packed = true});
  btc_op_attention(r->be, &(btc_attention){.q = q,
                                           .k = k,
                                           .v = k,
                                           .o = o,
                                           .q_stride = a,
                                           .k_stride = a,
                                           .v_stride = a,
                                           .o_stride = a,
                                           .n_seq = n,
                                           .t = m->tokens,
                                           .heads = m->change.heads,
                                           .d = d,
                                           .scale = 1.0f / sqrtf((float)d),
                                           .packed = true});
  btc_op_matmul(r->be, u, o, rows, &b->to_out.w, &(btc_epilogue){.bias = b->to_out.bias, .residual = x, .x_packed = true});
  btc_op_layernorm(r->be, u, u, rows, w, b->norm1.weight, b->norm1.bias, CE_EPS);
  btc_op_matmul(r->be, mid, u, rows, &b->ff1.w, &(btc_epilogue){.bias = b->ff1.bias, .act = BTC_ACT_RELU, .y_packed = true});
  btc_op_matmul(r->be, y, mid, rows, &b->ff2.w, &(btc_epilogue){.bias = b->ff2.bias, .residual = u, .x_packed = true});
  btc_op_layernorm(r->be, y, y, rows, w, b->norm2.weight, b->norm2.bias, CE_EPS);
}

/* b: the inputs with their positions; s: the state, which changes; [2, n, T, C] both. */
static void layer(const btc_run *r, int64_t i, int64_t n, const float *b, float *s, float *scratch) {
  const btc_model *m = r->m;
  const btc_change_layer *l = &m->change.layer[i];
  const int64_t rows = n * m->tokens, c = m->hidden, half = rows * c;
  const size_t row = (size_t)c * sizeof *s;
  float *both = scratch, *joint = both + 2 * half, *rest = joint + 2 * half;
  char name[48];
  attention_block(r, &l->per_image, 2 * n, c, s, joint, rest);
  btc_op_add(r->be, s, joint, s, 2 * half);
  snprintf(name, sizeof name, "ce.layer%lld.per_image1", (long long)i);
  btc_tap_emit(r, name, s, rows, c);
  btc_op_copy_2d(r->be, both, 2 * row, s, row, row, rows);
  btc_op_copy_2d(r->be, both + c, 2 * row, s + half, row, row, rows);
  attention_block(r, &l->joint, n, 2 * c, both, joint, rest);
  snprintf(name, sizeof name, "ce.layer%lld.joint", (long long)i);
  btc_tap_emit(r, name, joint, rows, 2 * c);
  btc_op_copy_2d(r->be, s, row, joint, 2 * row, row, rows);
  btc_op_copy_2d(r->be, s + half, row, joint + c, 2 * row, row, rows);
  btc_op_add(r->be, s, s, b, 2 * half);
}

/* Cosine, Conv1 and the residual block: s -> out. */
static void fuse(const btc_run *r, const float *s, const btc_stage_item *items, int64_t n, float *out, float *scratch) {
  const btc_model *m = r->m;
  const btc_change *ch = &m->change;
  const int64_t t = m->tokens, rows = n * t, c = m->hidden, g = m->cfg->vision.grid, half = ch->half;
  float *z = scratch, *y = z + rows * 2 * c, *a = y + rows * c, *wide = a + rows * half, *b = wide + rows * 9 * half,
        *cos = b + rows * half;
  btc_op_cosine_concat(r->be, z, cos, s, s + rows * c, rows, c);
  for (int64_t i = 0; i < n; i++)
    if (items[i].cosine) btc_op_copy(r->be, items[i].cosine, cos + i * t, (size_t)t * sizeof *cos);
  btc_tap_emit(r, "ce.cos", cos, rows, 1);
  btc_op_matmul(r->be, y, z, rows, &ch->conv1.w, &(btc_epilogue){.bias = ch->conv1.bias, .x_packed = true});
  btc_tap_emit(r, "ce.conv1", y, rows, c);
  btc_op_matmul(r->be, a, y, rows, &ch->left0.w,
                &(btc_epilogue){.scale = ch->left0.scale, .bias = ch->left0.shift, .act = BTC_ACT_RELU});
  btc_op_unfold_3x3(r->be, wide, a, n, g, half);
  btc_op_matmul(
      r->be, b, wide, rows, &ch->left3.w,
      &(btc_epilogue){.scale = ch->left3.scale, .bias = ch->left3.shift, .act = BTC_ACT_RELU, .x_packed = true, .y_packed = true});
  btc_op_matmul(r->be, out, b, rows, &ch->left6.w,
                &(btc_epilogue){.scale = ch->left6.scale,
                                .bias = ch->left6.shift,
                                .residual = y,
                                .residual_first = true,
                                .act = BTC_ACT_RELU,
                                .x_packed = true});
  btc_tap_emit(r, "ce.out", out, rows, c);
}

/* b [2, n, T, C]: the first images of all pairs, then the second ones, with their positions. */
static void begin(const btc_run *r, const float *x, int64_t n, float *b) {
  const int64_t one = r->m->tokens * r->m->hidden;
  const size_t image = (size_t)one * sizeof *b;
  for (int64_t k = 0; k < 2 && n > 1; k++) btc_op_copy_2d(r->be, b + k * n * one, image, x + k * one, 2 * image, image, n);
  btc_op_add_repeated(r->be, b, n > 1 ? b : x, r->m->change.position, 2 * n * one, one);
}

void btc_change_forward(const btc_run *r, const float *x, const btc_stage_item *items, int64_t n, float *out) {
  const btc_model *m = r->m;
  const int64_t rows = n * m->tokens, c = m->hidden, half = rows * c;
  float *b = r->scratch, *s = b + 2 * half, *rest = s + 2 * half;
  begin(r, x, n, b);
  btc_tap_emit(r, "ce.b1", b, rows, c);
  btc_tap_emit(r, "ce.b2", b + half, rows, c);
  btc_op_copy(r->be, s, b, (size_t)(2 * half) * sizeof *s);
  for (int64_t i = 0; i < m->change.layers; i++) layer(r, i, n, b, s, rest);
  btc_tap_emit(r, "ce.s1", s, rows, c);
  btc_tap_emit(r, "ce.s2", s + half, rows, c);
  fuse(r, s, items, n, out, rest);
}
