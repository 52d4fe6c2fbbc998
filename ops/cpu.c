/* The fast CPU backend: maps the contracts of ops.h onto kernels/cpu. No arithmetic here. */
#include <stdio.h>

#include "kernels/cpu/kernels.h"
#include "ops/backend.h"

_Static_assert((int)BTC_F32 == BTC_CPU_F32 && (int)BTC_F16 == BTC_CPU_F16 && (int)BTC_BF16 == BTC_CPU_BF16,
               "the types have the same numbers");
_Static_assert((int)BTC_ACT_NONE == BTC_CPU_NONE && (int)BTC_ACT_GELU_TANH == BTC_CPU_GELU_TANH &&
                   (int)BTC_ACT_GELU_ERF == BTC_CPU_GELU_ERF && (int)BTC_ACT_RELU == BTC_CPU_RELU,
               "the activations have the same numbers");

bool btc_cpu_has_bf16(void) {
  return btc_cpu_multiplies_bf16();
}

static btc_status cpu_create(btc_backend *b, const btc_backend_options *o, btc_error *err) {
  btc_cpu *c;
  btc_status s = btc_cpu_create(b->threads, o->max_cols, o->compute == BTC_COMPUTE_BF16, &c, err);
  if (s != BTC_OK) return s;
  b->self = c;
  snprintf(b->description, sizeof b->description, "cpu, %d thread%s, %s, %s", b->threads, b->threads == 1 ? "" : "s",
           btc_cpu_isa_name(c), o->compute == BTC_COMPUTE_BF16 ? "bf16" : "f32");
  return BTC_OK;
}

static void cpu_destroy(btc_backend *b) {
  btc_cpu_destroy(b->self);
}

static btc_cpu_matrix matrix(const btc_weight *w) {
  return (btc_cpu_matrix){w->data, (btc_cpu_type)w->dtype, w->rows, w->cols};
}

static btc_cpu_epilogue epilogue(const btc_epilogue *e) {
  if (!e) return (btc_cpu_epilogue){0};
  return (btc_cpu_epilogue){e->bias, e->scale, e->residual, (btc_cpu_act)e->act, e->residual_first};
}

static btc_cpu_kv cache(const btc_kv *kv) {
  return (btc_cpu_kv){kv->k, kv->v, (btc_cpu_type)kv->dtype, kv->kv_heads, kv->capacity, kv->d};
}

/* Rows of one product: those that a repeated residual has, and then the same again. */
static int64_t rows_at_once(const btc_epilogue *e, int64_t m) {
  return e && e->residual && e->residual_rows && e->residual_rows < m ? e->residual_rows : m;
}

static void cpu_matmul(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e) {
  btc_cpu_matrix matrix_w = matrix(w);
  btc_cpu_epilogue last = epilogue(e);
  const int64_t most = rows_at_once(e, m);
  for (int64_t i = 0; i < m; i += most)
    btc_cpu_matmul(b->self, y + i * w->rows, x + i * w->cols, m - i < most ? m - i : most, &matrix_w, &last);
}

static void cpu_matvec(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e) {
  btc_cpu_matrix matrix_w = matrix(w);
  btc_cpu_epilogue last = epilogue(e);
  const int64_t most = rows_at_once(e, m);
  for (int64_t i = 0; i < m; i += most)
    btc_cpu_matvec(b->self, y + i * w->rows, x + i * w->cols, m - i < most ? m - i : most, &matrix_w, &last);
}

static void cpu_layernorm(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, const float *bias,
                          float eps) {
  btc_cpu_layernorm(b->self, y, x, m, n, weight, bias, eps);
}

static void cpu_rmsnorm(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, float eps) {
  btc_cpu_rmsnorm(b->self, y, x, m, n, weight, eps);
}

static void cpu_attention(btc_backend *b, const btc_attention *a) {
  btc_cpu_attention job = {a->q,        a->k,     a->v, a->o,     a->q_stride, a->k_stride, a->v_stride,
                           a->o_stride, a->n_seq, a->t, a->heads, a->d,        a->scale};
  btc_cpu_attend(b->self, &job);
}

static void cpu_kv_store(btc_backend *b, const btc_kv *kv, int64_t pos, const float *k, int64_t k_stride, const float *v,
                         int64_t v_stride, int64_t m) {
  btc_cpu_kv c = cache(kv);
  btc_cpu_kv_store(b->self, &c, pos, k, k_stride, v, v_stride, m);
}

static void cpu_attention_causal(btc_backend *b, float *o, const float *q, int64_t q_stride, int64_t m, int64_t pos, int64_t heads,
                                 const btc_kv *kv, float scale) {
  btc_cpu_kv c = cache(kv);
  btc_cpu_attend_causal(b->self, o, q, q_stride, m, pos, heads, &c, scale);
}

static void cpu_rope(btc_backend *b, float *x, int64_t stride, int64_t m, int64_t heads, int64_t d, int64_t pos, const float *cos,
                     const float *sin) {
  btc_cpu_rope(b->self, x, stride, m, heads, d, pos, cos, sin);
}

static void cpu_add(btc_backend *b, float *y, const float *a, const float *c, int64_t n) {
  btc_cpu_add(b->self, y, a, c, n);
}

static void cpu_silu_mul(btc_backend *b, float *y, const float *gate, const float *up, int64_t n) {
  btc_cpu_silu_mul(b->self, y, gate, up, n);
}

static void cpu_unfold_patches(btc_backend *b, float *dst, const float *x, int64_t n, int64_t side, int64_t p, int64_t g) {
  for (int64_t i = 0; i < n; i++) btc_cpu_unfold_patches(b->self, dst + i * g * g * 3 * p * p, x + i * 3 * side * side, side, p, g);
}

static void cpu_unfold_3x3(btc_backend *b, float *dst, const float *x, int64_t n, int64_t g, int64_t c) {
  for (int64_t i = 0; i < n; i++) btc_cpu_unfold_3x3(b->self, dst + i * g * g * 9 * c, x + i * g * g * c, g, c);
}

static void cpu_space_to_depth(btc_backend *b, float *dst, const float *x, int64_t n, int64_t g, int64_t c) {
  const int64_t half = (g + 1) / 2;
  for (int64_t i = 0; i < n; i++) btc_cpu_space_to_depth(b->self, dst + i * half * half * 4 * c, x + i * g * g * c, g, c);
}

static void cpu_cosine_concat(btc_backend *b, float *z, float *cos, const float *s1, const float *s2, int64_t t, int64_t c) {
  btc_cpu_cosine_concat(b->self, z, cos, s1, s2, t, c);
}

static void cpu_embed(btc_backend *b, float *y, const btc_weight *table, const int32_t *ids, int64_t m) {
  btc_cpu_matrix matrix_w = matrix(table);
  btc_cpu_embed(b->self, y, &matrix_w, ids, m);
}

const btc_ops_table btc_ops_cpu = {
    .kind = "cpu",
    .create = cpu_create,
    .destroy = cpu_destroy,
    .matmul = cpu_matmul,
    .matvec = cpu_matvec,
    .layernorm = cpu_layernorm,
    .rmsnorm = cpu_rmsnorm,
    .attention = cpu_attention,
    .kv_store = cpu_kv_store,
    .attention_causal = cpu_attention_causal,
    .rope = cpu_rope,
    .add = cpu_add,
    .silu_mul = cpu_silu_mul,
    .unfold_patches = cpu_unfold_patches,
    .unfold_3x3 = cpu_unfold_3x3,
    .space_to_depth = cpu_space_to_depth,
    .cosine_concat = cpu_cosine_concat,
    .embed = cpu_embed,
};
