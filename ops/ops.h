/*
 * ops: tensors and the operators of the model over a backend (cpu here; cuda later). engine/ sees only this header.
 *
 * Activations are float32, row-major and dense, [rows, width] unless said otherwise. Matrices (btc_weight) stay in the
 * dtype and place of the checkpoint file. Small vectors (biases, norms, positions) are float32.
 *
 * Promise of every operator (performance.md): each row of an output is a function of its own inputs only, bit for bit. It does
 * not depend on how many other rows are computed with it, on where they stand, or on the number of threads.
 * No operator allocates after btc_backend_create; scratch is sized there or lives on the stack.
 *
 * Thread: one btc_backend is used by one thread at a time (it runs its own pool of threads). Weights may be shared.
 * Shapes are the caller's duty (they were checked when the checkpoint was opened); operators assert nothing about sizes
 * beyond what is stated and accept any positive size, odd tails included.
 */
#ifndef BTC_OPS_H
#define BTC_OPS_H

#include <stddef.h>
#include <stdint.h>

#include "base/base.h"

typedef enum btc_dtype { BTC_F32, BTC_F16, BTC_BF16, BTC_I64 } btc_dtype;
size_t btc_dtype_size(btc_dtype t);      /* bytes per element */
const char *btc_dtype_name(btc_dtype t); /* "f32", "f16", "bf16", "i64" */

/* Converts n elements of a stored dtype (f32, f16, bf16) to float32; exact. src need not be aligned. */
void btc_to_f32(float *dst, const void *src, btc_dtype t, size_t n);
/* Rounds to nearest even; NaN stays NaN. */
uint16_t btc_f32_to_bf16(float x);
float btc_bf16_to_f32(uint16_t x);
float btc_f16_to_f32(uint16_t x);

/* A stored matrix [rows = outputs, cols = inputs], row-major as in the file, borrowed from the mmap for the backend's life. */
typedef struct btc_weight {
  const void *data;
  btc_dtype dtype;
  int64_t rows, cols;
} btc_weight;

typedef enum btc_act { BTC_ACT_NONE, BTC_ACT_GELU_TANH, BTC_ACT_GELU_ERF, BTC_ACT_RELU } btc_act;

/* What happens to a product before it is stored: y = act(dot * scale[n] + bias[n]) + residual[m,n]. NULL members are skipped.
 * residual_first: y = act(dot * scale[n] + bias[n] + residual[m,n]) instead (change extraction, spec 1.3 step 6).
 * residual may be y itself. */
typedef struct btc_epilogue {
  const float *bias;     /* [n] */
  const float *scale;    /* [n] */
  const float *residual; /* [m, n] */
  btc_act act;
  bool residual_first;
} btc_epilogue;

/* BTC_COMPUTE_F32: stored weights widened exactly, float32 products and sums.
 * BTC_COMPUTE_BF16: both operands of every matrix product rounded to bf16, float32 sums (spec 1.7). Those of bidirectional
 * attention (queries, keys, values, weights) are rounded too where the processor multiplies pairs of bf16, and stay float32
 * elsewhere. */
typedef enum btc_compute { BTC_COMPUTE_F32, BTC_COMPUTE_BF16 } btc_compute;

typedef struct btc_backend btc_backend;

typedef struct btc_backend_options {
  const char *kind; /* "cpu" (the fast path) or "plain" (the reference loops, slow: ground truth) */
  int threads;      /* 1..256; 0 = all processors the process may run on */
  btc_compute compute;
  int64_t max_cols; /* largest `cols` of any weight and any unfold; scratch is sized by it */
} btc_backend_options;

btc_status btc_backend_create(const btc_backend_options *o, btc_backend **out, btc_error *err);
void btc_backend_destroy(btc_backend **b);              /* NULL is fine; sets *b to NULL */
const char *btc_backend_describe(const btc_backend *b); /* e.g. "cpu, 2 threads, avx2+fma, f32"; lives as long as b */
int btc_backend_threads(const btc_backend *b);
/* true when this CPU multiplies bf16 natively, so that bf16 is the right default. Any thread. */
bool btc_cpu_has_bf16(void);

/* ---- products ---- */

/* y[m, w.rows] = epilogue(x[m, w.cols] * w^T). For many rows (vision, prefill). x and y must not overlap. */
void btc_op_matmul(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e);
/* The same mathematics for few rows (decode): reads each weight once for all m rows. Its sums run in another order than
 * btc_op_matmul's; the row promise holds within each of the two. */
void btc_op_matvec(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e);

/* ---- norms (statistics in float32) ---- */
/* y = (x-mean)/sqrt(var+eps)*weight+bias per row; biased variance. y may be x. Spec 1.2, 1.3, 1.4. */
void btc_op_layernorm(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, const float *bias,
                      float eps);
/* y = x*rsqrt(mean(x^2)+eps)*weight per row. y may be x. Spec 1.6. */
void btc_op_rmsnorm(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, float eps);

/* ---- attention ---- */
/* Bidirectional, over n_seq independent sequences of t tokens. q,k,v,o are [n_seq*t, ...] with row strides in elements;
 * head h owns channels [h*d, h*d+d). o = softmax(q k^T * scale) v. v may be k. o must overlap nothing. Spec 1.2, 1.3. */
typedef struct btc_attention {
  const float *q, *k, *v;
  float *o;
  int64_t q_stride, k_stride, v_stride, o_stride;
  int64_t n_seq, t, heads, d;
  float scale;
} btc_attention;
void btc_op_attention(btc_backend *b, const btc_attention *a);

/* Keys and values of one layer of one item: [kv_heads, capacity, d] each, in kv dtype (f32 or bf16). */
typedef struct btc_kv {
  void *k, *v;
  btc_dtype dtype;
  int64_t kv_heads, capacity, d;
} btc_kv;

/* Stores rows k[m, kv_heads*d], v[m, kv_heads*d] (row strides in elements) at positions [pos, pos+m). */
void btc_op_kv_store(btc_backend *b, const btc_kv *kv, int64_t pos, const float *k, int64_t k_stride, const float *v,
                     int64_t v_stride, int64_t m);
/* Causal attention of one item: query row i (position pos+i) sees keys [0, pos+i]. q [m, heads*d], o [m, heads*d].
 * Query head h reads kv head h / (heads/kv_heads). Spec 1.6. A query row's result does not depend on m. */
void btc_op_attention_causal(btc_backend *b, float *o, const float *q, int64_t q_stride, int64_t m, int64_t pos, int64_t heads,
                             const btc_kv *kv, float scale);

/* Half-split rotary embedding in place on x[m, heads*d] (row stride in elements); cos/sin [max_pos, d/2]; row i has
 * position pos+i. Spec 1.6. */
void btc_op_rope(btc_backend *b, float *x, int64_t stride, int64_t m, int64_t heads, int64_t d, int64_t pos, const float *cos,
                 const float *sin);

/* ---- elementwise ---- */
void btc_op_add(btc_backend *b, float *y, const float *a, const float *c, int64_t n); /* y = a + c; y may be a or c */
void btc_op_silu_mul(btc_backend *b, float *y, const float *gate, const float *up,
                     int64_t n); /* y = silu(gate)*up; in place allowed */

/* ---- layout ---- */
/* Patches of one image: dst[g*g, 3*p*p], row t = r*g+c holds x[ch][p*r+ky][p*c+kx] in (ch,ky,kx) order, as the rows of the
 * patch convolution's weight. x [3, side, side]; pixels beyond g*p are not read. Spec 1.2 step 1. */
void btc_op_unfold_patches(btc_backend *b, float *dst, const float *x, int64_t side, int64_t p, int64_t g);
/* 3x3 neighbourhoods, zero padding 1: dst[g*g, c*9] in (channel,ky,kx) order from x[g*g, c]. Spec 1.3 step 6. */
void btc_op_unfold_3x3(btc_backend *b, float *dst, const float *x, int64_t g, int64_t c);
/* 2x2 space to channel with one zero row/column appended when g is odd: dst[h*h, 4*c], h=(g+1)/2, column-major tokens. Spec 1.4. */
void btc_op_space_to_depth(btc_backend *b, float *dst, const float *x, int64_t g, int64_t c);
/* z[t, 2c] = concat(s1[t], s2[t]) + cosine(s1[t], s2[t]); the cosine also goes to cos[t] if not NULL. eps 1e-8. Spec 1.3 steps 3-4.
 */
void btc_op_cosine_concat(btc_backend *b, float *z, float *cos, const float *s1, const float *s2, int64_t t, int64_t c);
/* y[m, n] = rows of a stored table; ids in [0, table.rows). Spec 4.4. */
void btc_op_embed(btc_backend *b, float *y, const btc_weight *table, const int32_t *ids, int64_t m);

#endif
