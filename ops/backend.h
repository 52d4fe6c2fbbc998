/*
 * Private to ops/: one backend is one table of operators. ops.c dispatches through it; plain.c and cpu.c each fill one; cuda.c is
 * one more table. A table's functions have the contracts of ops.h; those behind the line may be NULL: then memory is the host's.
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
  void (*unfold_patches)(btc_backend *b, float *dst, const float *x, int64_t n, int64_t side, int64_t p, int64_t g);
  void (*unfold_3x3)(btc_backend *b, float *dst, const float *x, int64_t n, int64_t g, int64_t c);
  void (*space_to_depth)(btc_backend *b, float *dst, const float *x, int64_t n, int64_t g, int64_t c);
  void (*cosine_concat)(btc_backend *b, float *z, float *cos, const float *s1, const float *s2, int64_t t, int64_t c);
  void (*embed)(btc_backend *b, float *y, const btc_weight *table, const int32_t *ids, int64_t m);
  /* ---- a device's own ---- */
  btc_status (*alloc)(btc_backend *b, size_t bytes, void **out, btc_error *err);
  void (*free)(btc_backend *b, void *p);
  btc_status (*hold)(btc_backend *b, const btc_weight *w, bool product, btc_error *err);
  btc_status (*finish)(btc_backend *b, btc_error *err);
  bool (*device)(const btc_backend *b, btc_device_info *out);
  void (*copy_2d)(btc_backend *b, void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, int64_t rows);
  bool (*sequence_begin)(btc_backend *b, uint64_t key);
  bool (*sequence_end)(btc_backend *b);
  void (*layernorm_packed)(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, const float *bias,
                           float eps);
  void (*rmsnorm_packed)(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, float eps);
  void (*add_repeated)(btc_backend *b, float *y, const float *a, const float *c, int64_t n, int64_t period);
  btc_status (*hold_together)(btc_backend *b, const btc_weight *w, int n, bool product, btc_error *err);
  btc_product_part (*products_part)(const btc_backend *b, const btc_products *p, int i);
  void (*products)(btc_backend *b, const btc_products *p);
  void (*products_gated)(btc_backend *b, float *out, const btc_products *p);
  /* false: nothing was done, and the two are done one after the other. May be NULL. */
  bool (*products_attend)(btc_backend *b, const btc_products *p, const btc_attention_items *a);
  void (*set_items)(btc_backend *b, const btc_items *items);
  void (*attention_items)(btc_backend *b, const btc_attention_items *a);
  void (*embed_items)(btc_backend *b, float *y, const btc_weight *table);
  btc_status (*parcel_create)(btc_backend *b, size_t bytes, btc_parcel **out, btc_error *err);
  void (*parcel_destroy)(btc_backend *b, btc_parcel **p);
  void (*send)(btc_backend *b, btc_parcel *p, const void *src, size_t bytes);
  void (*resize_normalise)(btc_backend *b, float *pixels, const btc_picture *p, int64_t n, int64_t side, const btc_shades *s);
  void (*pick)(btc_backend *b, btc_pick *picks, const float *logits, int64_t stride, int64_t m, int64_t vocab);
} btc_ops_table;

struct btc_backend {
  const btc_ops_table *table;
  void *self; /* the backend's own state */
  btc_compute compute;
  int threads;
  int64_t rows;    /* see btc_backend_rows */
  btc_items items; /* host backends: what set_items was given */
  char description[192];
  char remark[160]; /* see btc_backend_remark; empty: nothing */
  bool remarked;
};

/* picture.c: btc_op_resize_normalise of host backends, one picture */
void btc_resize_normalise(float *pixels, const btc_picture *p, int64_t side, const btc_shades *s);

extern const btc_ops_table btc_ops_plain;
extern const btc_ops_table btc_ops_cpu;

#ifdef BTC_HAVE_CUDA
extern const btc_ops_table btc_ops_cuda;
/* As btc_device_count and btc_device_query of ops.h. */
int btc_cuda_device_count(btc_error *err);
btc_status btc_cuda_device_query(int index, btc_device_info *out, btc_error *err);
#endif

#endif
