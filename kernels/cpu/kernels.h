/*
 * kernels/cpu: operators over raw pointers for one machine's processors. Knows no tensors and no model. ops/cpu.c maps the
 * contracts of ops.h onto it; shapes, units and the row promise are stated there.
 *
 * A btc_cpu owns a thread pool and all scratch; one caller at a time uses it. Nothing here allocates after btc_cpu_create.
 */
#ifndef BTC_KERNELS_CPU_H
#define BTC_KERNELS_CPU_H

#include "base/base.h"

typedef enum btc_cpu_type { BTC_CPU_F32, BTC_CPU_F16, BTC_CPU_BF16 } btc_cpu_type;
typedef enum btc_cpu_act { BTC_CPU_NONE, BTC_CPU_GELU_TANH, BTC_CPU_GELU_ERF, BTC_CPU_RELU } btc_cpu_act;

/* y = act(dot * scale[n] + bias[n]) + residual[m,n], or the residual inside act when residual_first. NULL members are skipped. */
typedef struct btc_cpu_epilogue {
  const float *bias, *scale, *residual;
  btc_cpu_act act;
  bool residual_first;
} btc_cpu_epilogue;

/* A stored matrix [n, k], row-major, any alignment. */
typedef struct btc_cpu_matrix {
  const void *data;
  btc_cpu_type type;
  int64_t n, k;
} btc_cpu_matrix;

typedef struct btc_cpu btc_cpu;

/* max_k: the largest k of any product. bf16: round both operands of products to bf16. */
btc_status btc_cpu_create(int threads, int64_t max_k, bool bf16, btc_cpu **out, btc_error *err);
void btc_cpu_destroy(btc_cpu *c);
const char *btc_cpu_isa_name(const btc_cpu *c); /* "avx2+fma", ... */
/* AVX512-BF16 is there, and the system saves its registers. Any thread. */
bool btc_cpu_multiplies_bf16(void);

/* gemm.c, matvec.c: y[m, w.n] = epilogue(x[m, w.k] w^T) */
void btc_cpu_matmul(btc_cpu *c, float *y, const float *x, int64_t m, const btc_cpu_matrix *w, const btc_cpu_epilogue *e);
void btc_cpu_matvec(btc_cpu *c, float *y, const float *x, int64_t m, const btc_cpu_matrix *w, const btc_cpu_epilogue *e);

/* norm.c */
void btc_cpu_layernorm(btc_cpu *c, float *y, const float *x, int64_t m, int64_t n, const float *weight, const float *bias,
                       float eps);
void btc_cpu_rmsnorm(btc_cpu *c, float *y, const float *x, int64_t m, int64_t n, const float *weight, float eps);
void btc_cpu_cosine_concat(btc_cpu *c, float *z, float *cosine, const float *s1, const float *s2, int64_t t, int64_t width);

/* attention.c: all t keys of the own sequence */
typedef struct btc_cpu_attention {
  const float *q, *k, *v;
  float *o;
  int64_t q_stride, k_stride, v_stride, o_stride;
  int64_t n_seq, t, heads, d;
  float scale;
} btc_cpu_attention;
void btc_cpu_attend(btc_cpu *c, const btc_cpu_attention *a);

/* causal.c: keys and values of one item, [kv_heads, capacity, d] in f32 or bf16 */
typedef struct btc_cpu_kv {
  void *k, *v;
  btc_cpu_type type;
  int64_t kv_heads, capacity, d;
} btc_cpu_kv;
void btc_cpu_kv_store(btc_cpu *c, const btc_cpu_kv *kv, int64_t pos, const float *k, int64_t k_stride, const float *v,
                      int64_t v_stride, int64_t m);
void btc_cpu_attend_causal(btc_cpu *c, float *o, const float *q, int64_t q_stride, int64_t m, int64_t pos, int64_t heads,
                           const btc_cpu_kv *kv, float scale);

/* elementwise.c */
void btc_cpu_rope(btc_cpu *c, float *x, int64_t stride, int64_t m, int64_t heads, int64_t d, int64_t pos, const float *cos,
                  const float *sin);
void btc_cpu_add(btc_cpu *c, float *y, const float *a, const float *b, int64_t n);
void btc_cpu_silu_mul(btc_cpu *c, float *y, const float *gate, const float *up, int64_t n);

/* layout.c */
void btc_cpu_unfold_patches(btc_cpu *c, float *dst, const float *x, int64_t side, int64_t p, int64_t g);
void btc_cpu_unfold_3x3(btc_cpu *c, float *dst, const float *x, int64_t g, int64_t channels);
void btc_cpu_space_to_depth(btc_cpu *c, float *dst, const float *x, int64_t g, int64_t channels);
void btc_cpu_embed(btc_cpu *c, float *y, const btc_cpu_matrix *table, const int32_t *ids, int64_t m);

#endif
