/*
 * Private to ops/: one backend is one table of operators. ops.c dispatches through it; plain.c and cpu.c each fill one; a CUDA
 * backend is one more table. A table's functions have the contracts of ops.h.
 */
#ifndef BTC_OPS_BACKEND_H
#define BTC_OPS_BACKEND_H

#include "ops/ops.h"

typedef struct btc_ops_table {
  const char *kind;
  /* Sets b->self and b->description; on failure leaves nothing behind. */
  btc_status (*create)(btc_backend *b, const btc_backend_options *o, btc_error *err);
  void (*destroy)(btc_backend *b);
  void (*matmul)(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e);
  void (*matvec)(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e);
  void (*layernorm)(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, const float *bias,
                    float eps);
  void (*rmsnorm)(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, float eps);
  void (*attention)(btc_backend *b, const btc_attention *a);
  void (*kv_store)(btc_backend *b, const btc_kv *kv, int64_t pos, const float *k, int64_t k_stride, const float *v,
                   int64_t v_stride, int64_t m);
  void (*attention_causal)(btc_backend *b, float *o, const float *q, int64_t q_stride, int64_t m, int64_t pos, int64_t heads,
                           const btc_kv *kv, float scale);
  void (*rope)(btc_backend *b, float *x, int64_t stride, int64_t m, int64_t heads, int64_t d, int64_t pos, const float *cos,
               const float *sin);
  void (*add)(btc_backend *b, float *y, const float *a, const float *c, int64_t n);
  void (*silu_mul)(btc_backend *b, float *y, const float *gate, const float *up, int64_t n);
  void (*unfold_patches)(btc_backend *b, float *dst, const float *x, int64_t side, int64_t p, int64_t g);
  void (*unfold_3x3)(btc_backend *b, float *dst, const float *x, int64_t g, int64_t c);
  void (*space_to_depth)(btc_backend *b, float *dst, const float *x, int64_t g, int64_t c);
  void (*cosine_concat)(btc_backend *b, float *z, float *cos, const float *s1, const float *s2, int64_t t, int64_t c);
  void (*embed)(btc_backend *b, float *y, const btc_weight *table, const int32_t *ids, int64_t m);
} btc_ops_table;

struct btc_backend {
  const btc_ops_table *table;
  void *self; /* the backend's own state */
  btc_compute compute;
  int threads;
  char description[128];
};

extern const btc_ops_table btc_ops_plain;
extern const btc_ops_table btc_ops_cpu;

#endif
