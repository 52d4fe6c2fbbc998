/*
 * The reference backend: every operator as the loops of its formula, one thread, sums in double. It is the ground truth of the
 * fast backends' tests and stays when they change. Do not make it faster.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ops/backend.h"

static btc_status plain_create(btc_backend *b, const btc_backend_options *o, btc_error *err) {
  (void)o, (void)err;
  b->threads = 1;
  snprintf(b->description, sizeof b->description, "plain, 1 thread, %s", b->compute == BTC_COMPUTE_BF16 ? "bf16" : "f32");
  return BTC_OK;
}

static void plain_destroy(btc_backend *b) {
  (void)b;
}

static float stored_at(const void *data, btc_dtype t, int64_t i) {
  float x;
  btc_to_f32(&x, (const char *)data + (size_t)i * btc_dtype_size(t), t, 1);
  return x;
}

static float operand(const btc_backend *b, float x) {
  return b->compute == BTC_COMPUTE_BF16 ? btc_bf16_to_f32(btc_f32_to_bf16(x)) : x;
}

static double activate(double x, btc_act act) {
  switch (act) {
    case BTC_ACT_GELU_TANH:
      return 0.5 * x * (1 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    case BTC_ACT_GELU_ERF:
      return 0.5 * x * (1 + erf(x * 0.70710678118654752440));
    case BTC_ACT_RELU:
      return x < 0 ? 0 : x; /* a NaN passes, as in torch */
    case BTC_ACT_NONE:
      break;
  }
  return x;
}

static float finish(double dot, const btc_epilogue *e, int64_t m, int64_t n, int64_t width) {
  if (!e) return (float)dot;
  int64_t row = e->residual_rows ? m % e->residual_rows : m;
  double residual = e->residual ? e->residual[row * width + n] : 0;
  double v = dot * (e->scale ? e->scale[n] : 1) + (e->bias ? e->bias[n] : 0);
  return (float)(e->residual_first ? activate(v + residual, e->act) : activate(v, e->act) + residual);
}

static void plain_matmul(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t n = 0; n < w->rows; n++) {
      double dot = 0;
      for (int64_t k = 0; k < w->cols; k++)
        dot += (double)operand(b, x[i * w->cols + k]) * operand(b, stored_at(w->data, w->dtype, n * w->cols + k));
      y[i * w->rows + n] = finish(dot, e, i, n, w->rows);
    }
}

static void plain_layernorm(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, const float *bias,
                            float eps) {
  (void)b;
  for (int64_t i = 0; i < m; i++) {
    const float *row = x + i * n;
    double mean = 0, variance = 0;
    for (int64_t j = 0; j < n; j++) mean += row[j];
    mean /= (double)n;
    for (int64_t j = 0; j < n; j++) variance += (row[j] - mean) * (row[j] - mean);
    double scale = 1 / sqrt(variance / (double)n + eps);
    for (int64_t j = 0; j < n; j++) y[i * n + j] = (float)((row[j] - mean) * scale * weight[j] + bias[j]);
  }
}

static void plain_rmsnorm(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, float eps) {
  (void)b;
  for (int64_t i = 0; i < m; i++) {
    double squares = 0;
    for (int64_t j = 0; j < n; j++) squares += (double)x[i * n + j] * x[i * n + j];
    double scale = 1 / sqrt(squares / (double)n + eps);
    for (int64_t j = 0; j < n; j++) y[i * n + j] = (float)(x[i * n + j] * scale * weight[j]);
  }
}

/* One query row over keys 0..count-1; key j starts at element j*stride of k and v. Scores are computed twice rather than kept:
 * this file owns no memory. */
typedef struct keys {
  const void *k, *v;
  btc_dtype dtype;
  int64_t k_stride, v_stride, count, d;
} keys;

static double score(const float *q, const keys *s, int64_t j, float scale) {
  double dot = 0;
  for (int64_t c = 0; c < s->d; c++) dot += (double)q[c] * stored_at(s->k, s->dtype, j * s->k_stride + c);
  return dot * scale;
}

static void attend_row(float *o, const float *q, const keys *s, float scale) {
  double top = -INFINITY, sum = 0;
  for (int64_t j = 0; j < s->count; j++) top = fmax(top, score(q, s, j, scale));
  for (int64_t j = 0; j < s->count; j++) sum += exp(score(q, s, j, scale) - top);
  for (int64_t c0 = 0; c0 < s->d; c0 += 64) {
    int64_t width = s->d - c0 < 64 ? s->d - c0 : 64;
    double acc[64] = {0};
    for (int64_t j = 0; j < s->count; j++) {
      double p = exp(score(q, s, j, scale) - top) / sum;
      for (int64_t c = 0; c < width; c++) acc[c] += p * stored_at(s->v, s->dtype, j * s->v_stride + c0 + c);
    }
    for (int64_t c = 0; c < width; c++) o[c0 + c] = (float)acc[c];
  }
}

static void plain_attention(btc_backend *b, const btc_attention *a) {
  (void)b;
  for (int64_t s = 0; s < a->n_seq; s++)
    for (int64_t h = 0; h < a->heads; h++) {
      int64_t row0 = s * a->t, c = h * a->d;
      keys all = {a->k + row0 * a->k_stride + c, a->v + row0 * a->v_stride + c, BTC_F32, a->k_stride, a->v_stride, a->t, a->d};
      for (int64_t i = row0; i < row0 + a->t; i++)
        attend_row(a->o + i * a->o_stride + c, a->q + i * a->q_stride + c, &all, a->scale);
    }
}

static void store(void *dst, btc_dtype t, int64_t i, float x) {
  if (t == BTC_F32)
    ((float *)dst)[i] = x;
  else
    ((uint16_t *)dst)[i] = btc_f32_to_bf16(x);
}

static void plain_kv_store(btc_backend *b, const btc_kv *kv, int64_t pos, const float *k, int64_t k_stride, const float *v,
                           int64_t v_stride, int64_t m) {
  (void)b;
  for (int64_t i = 0; i < m; i++)
    for (int64_t h = 0; h < kv->kv_heads; h++)
      for (int64_t c = 0; c < kv->d; c++) {
        int64_t at = (h * kv->capacity + pos + i) * kv->d + c;
        store(kv->k, kv->dtype, at, k[i * k_stride + h * kv->d + c]);
        store(kv->v, kv->dtype, at, v[i * v_stride + h * kv->d + c]);
      }
}

static void plain_attention_causal(btc_backend *b, float *o, const float *q, int64_t q_stride, int64_t m, int64_t pos,
                                   int64_t heads, const btc_kv *kv, float scale) {
  (void)b;
  size_t head_bytes = (size_t)(kv->capacity * kv->d) * btc_dtype_size(kv->dtype);
  for (int64_t i = 0; i < m; i++)
    for (int64_t h = 0; h < heads; h++) {
      size_t at = (size_t)(h / (heads / kv->kv_heads)) * head_bytes;
      keys seen = {(char *)kv->k + at, (char *)kv->v + at, kv->dtype, kv->d, kv->d, pos + i + 1, kv->d};
      attend_row(o + (i * heads + h) * kv->d, q + i * q_stride + h * kv->d, &seen, scale);
    }
}

static void plain_rope(btc_backend *b, float *x, int64_t stride, int64_t m, int64_t heads, int64_t d, int64_t pos, const float *cos,
                       const float *sin) {
  (void)b;
  int64_t half = d / 2;
  for (int64_t i = 0; i < m; i++)
    for (int64_t h = 0; h < heads; h++)
      for (int64_t j = 0; j < half; j++) {
        float *low = x + i * stride + h * d + j, *high = low + half;
        double c = cos[(pos + i) * half + j], s = sin[(pos + i) * half + j], l = *low, u = *high;
        *low = (float)(l * c - u * s);
        *high = (float)(u * c + l * s);
      }
}

static void plain_add(btc_backend *b, float *y, const float *a, const float *c, int64_t n) {
  (void)b;
  for (int64_t i = 0; i < n; i++) y[i] = a[i] + c[i];
}

static void plain_silu_mul(btc_backend *b, float *y, const float *gate, const float *up, int64_t n) {
  (void)b;
  for (int64_t i = 0; i < n; i++) y[i] = (float)(gate[i] / (1 + exp(-(double)gate[i])) * up[i]);
}

static void plain_unfold_patches(btc_backend *b, float *dst, const float *x, int64_t n, int64_t side, int64_t p, int64_t g) {
  (void)b;
  for (int64_t i = 0; i < n; i++, x += 3 * side * side)
    for (int64_t r = 0; r < g; r++)
      for (int64_t c = 0; c < g; c++)
        for (int64_t ch = 0; ch < 3; ch++)
          for (int64_t ky = 0; ky < p; ky++)
            for (int64_t kx = 0; kx < p; kx++) *dst++ = x[(ch * side + p * r + ky) * side + p * c + kx];
}

static void plain_unfold_3x3(btc_backend *b, float *dst, const float *x, int64_t n, int64_t g, int64_t c) {
  (void)b;
  for (int64_t i = 0; i < n; i++, x += g * g * c)
    for (int64_t r = 0; r < g; r++)
      for (int64_t q = 0; q < g; q++)
        for (int64_t ch = 0; ch < c; ch++)
          for (int64_t ky = r - 1; ky <= r + 1; ky++)
            for (int64_t kx = q - 1; kx <= q + 1; kx++)
              *dst++ = ky < 0 || ky >= g || kx < 0 || kx >= g ? 0 : x[(ky * g + kx) * c + ch];
}

static void plain_space_to_depth(btc_backend *b, float *dst, const float *x, int64_t n, int64_t g, int64_t c) {
  (void)b;
  int64_t half = (g + 1) / 2;
  for (int64_t m = 0; m < n; m++, x += g * g * c)
    for (int64_t j = 0; j < half; j++)
      for (int64_t i = 0; i < half; i++)
        for (int64_t q = 0; q < 4; q++) {
          int64_t row = 2 * i + q / 2, col = 2 * j + q % 2;
          for (int64_t ch = 0; ch < c; ch++) *dst++ = row < g && col < g ? x[(row * g + col) * c + ch] : 0;
        }
}

static void plain_cosine_concat(btc_backend *b, float *z, float *cos, const float *s1, const float *s2, int64_t t, int64_t c) {
  (void)b;
  for (int64_t i = 0; i < t; i++) {
    double dot = 0, n1 = 0, n2 = 0;
    for (int64_t j = 0; j < c; j++) {
      double u = s1[i * c + j], v = s2[i * c + j];
      dot += u * v;
      n1 += u * u;
      n2 += v * v;
    }
    double cosine = dot / (fmax(sqrt(n1), 1e-8) * fmax(sqrt(n2), 1e-8));
    if (cos) cos[i] = (float)cosine;
    for (int64_t j = 0; j < c; j++) {
      z[i * 2 * c + j] = (float)(s1[i * c + j] + cosine);
      z[i * 2 * c + c + j] = (float)(s2[i * c + j] + cosine);
    }
  }
}

static void plain_embed(btc_backend *b, float *y, const btc_weight *table, const int32_t *ids, int64_t m) {
  (void)b;
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < table->cols; j++)
      y[i * table->cols + j] = stored_at(table->data, table->dtype, ids[i] * table->cols + j);
}

const btc_ops_table btc_ops_plain = {
    .kind = "plain",
    .create = plain_create,
    .destroy = plain_destroy,
    .matmul = plain_matmul,
    .matvec = plain_matmul,
    .layernorm = plain_layernorm,
    .rmsnorm = plain_rmsnorm,
    .attention = plain_attention,
    .kv_store = plain_kv_store,
    .attention_causal = plain_attention_causal,
    .rope = plain_rope,
    .add = plain_add,
    .silu_mul = plain_silu_mul,
    .unfold_patches = plain_unfold_patches,
    .unfold_3x3 = plain_unfold_3x3,
    .space_to_depth = plain_space_to_depth,
    .cosine_concat = plain_cosine_concat,
    .embed = plain_embed,
};
