/*
 * The CUDA backend's inside. cuda.c maps the operators, cuda_device.c owns the device (its errors and memory),
 * cuda_constant.c what was brought to it, cuda_product.c the matrix products of cuBLASLt, cuda_together.c those of the same rows,
 * cuda_items.c the rows of many items and recorded steps, cuda_parcel.c pictures and what travels beside the operators. Private to
 * ops/.
 *
 * Everything but parcels is put on one stream, so operators, copies and constants are in the order of the calls. The first failure
 * is kept in `failed`; from then on operators do nothing, and btc_backend_finish says it. Thread: the backend's.
 */
#ifndef BTC_OPS_CUDA_PARTS_H
#define BTC_OPS_CUDA_PARTS_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "kernels/cuda/cuda.h"
#include "ops/backend.h"

/* A constant by its address on the host. exact: its bytes; product: in the type products compute in, rows padded with zeros to
 * pitch columns. Either may be NULL. */
typedef struct cuda_constant {
  const void *host;
  void *exact, *product;
  uint16_t *rounded; /* a vector in bf16 where that loses nothing, else NULL; NULL in f32 */
  int64_t rows, cols, pitch;
  btc_dtype dtype;
  bool exact_within, product_within; /* in memory that belongs to another one; `rounded` with `exact` */
} cuda_constant;

typedef struct cuda_plan cuda_plan; /* one product's algorithm */

/* Memory of the host that copies are made from: ordinary memory where it cannot be pinned, and then they are slower. */
typedef struct cuda_staging {
  char *at;
  bool pinned;
} cuda_staging;

enum { CUDA_RECORDINGS = 64, CUDA_PLANS = 1024, CUDA_TABLES = 4, CUDA_STAGING_BYTES = 16 << 20 };

typedef struct cuda_recording {
  uint64_t key;
  cudaGraphExec_t exec;
} cuda_recording;

typedef struct cuda_backend {
  btc_backend *base;
  int device;
  bool bf16;
  btc_device_info info;        /* as it was when it was opened */
  cudaStream_t stream, copies; /* the operators'; what travels beside them (cuda_parcel.c) */
  btc_error failed;            /* code BTC_OK: nothing */
  bool lost;
  /* constants: open addressing, a power of two, at most half full */
  cuda_constant *constant;
  size_t n_constants, cap_constants;
  cuda_staging staging[2]; /* of constants */
  cudaEvent_t staging_free[2];
  int next_staging;
  /* pictures */
  void *resize_scratch;
  /* products */
  const struct cuda_lt *lt;
  cublasLtHandle_t handle;
  cuda_plan *plan; /* [CUDA_PLANS] by shape */
  void *operand;   /* rows of x in the products' type */
  float *dot;      /* results before their epilogue */
  /* items: one block on the device, written in one of several on the host (pinned) */
  btc_backend_options o;
  cuda_staging table_copy[CUDA_TABLES];
  char *table_host /* the one that is written */, *table;
  cudaEvent_t table_sent[CUDA_TABLES];
  int table_at;
  size_t table_bytes;
  int64_t n_items, n_rows, window_first, window_rows, capacity, max_rows;
  btc_kv kv; /* shape of the items' keys and values */
  void *decode_scratch;
  uint32_t *decode_done; /* counts, zero between launches */
  size_t decode_bytes;
  int32_t *ids; /* for btc_op_embed */
  /* recordings */
  cuda_recording recording[CUDA_RECORDINGS];
  int n_recordings, recording_now;  /* index, or -1 */
  uint64_t issued[CUDA_RECORDINGS]; /* keys of the latest sequences that were issued plainly */
  int next_issued;
  bool no_recording; /* capture failed, without overlap too: steps are issued plainly */
} cuda_backend;

/* What of cuBLASLt is used; loaded when a backend is created, so that the program starts without the library. */
typedef struct cuda_lt {
  cublasStatus_t (*create)(cublasLtHandle_t *);
  cublasStatus_t (*destroy)(cublasLtHandle_t);
  cublasStatus_t (*desc_create)(cublasLtMatmulDesc_t *, cublasComputeType_t, cudaDataType_t);
  cublasStatus_t (*desc_destroy)(cublasLtMatmulDesc_t);
  cublasStatus_t (*desc_set)(cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, const void *, size_t);
  cublasStatus_t (*layout_create)(cublasLtMatrixLayout_t *, cudaDataType, uint64_t, uint64_t, int64_t);
  cublasStatus_t (*layout_destroy)(cublasLtMatrixLayout_t);
  cublasStatus_t (*preference_create)(cublasLtMatmulPreference_t *);
  cublasStatus_t (*preference_destroy)(cublasLtMatmulPreference_t);
  cublasStatus_t (*preference_set)(cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, const void *, size_t);
  cublasStatus_t (*heuristic)(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int,
                              cublasLtMatmulHeuristicResult_t *, int *);
  cublasStatus_t (*check)(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                          cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t *,
                          cublasLtMatmulHeuristicResult_t *);
  cublasStatus_t (*matmul)(cublasLtHandle_t, cublasLtMatmulDesc_t, const void *, const void *, cublasLtMatrixLayout_t, const void *,
                           cublasLtMatrixLayout_t, const void *, const void *, cublasLtMatrixLayout_t, void *,
                           cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t *, void *, size_t, cudaStream_t);
} cuda_lt;
btc_status cuda_lt_load(const cuda_lt **out, btc_error *err); /* cuda_lt.c; tests bring their own */

/* ---- cuda_device.c ---- */
btc_status cuda_status_of(int rc); /* NOMEM, DEVICE when nothing works any more, else INTERNAL */
/* Classifies and keeps a failure; true when rc is success. */
bool cuda_note(cuda_backend *c, int rc, const char *call, const char *file, int line);
bool cuda_note_lt(cuda_backend *c, cublasStatus_t rc, const char *call, const char *file, int line);
/* Waits for what comes before the event, a minute at most: copies take milliseconds. False: a failure, which is kept. */
bool cuda_await(cuda_backend *c, cudaEvent_t event);
#define CUDA_TRY(c, call) cuda_note((c), (int)(call), #call, __FILE__, __LINE__)
#define LT_TRY(c, call) cuda_note_lt((c), (call), #call, __FILE__, __LINE__)
btc_status cuda_failure(const cuda_backend *c, btc_error *err); /* what is kept, as a result */
btc_status cuda_open(cuda_backend *c, const char *kind, btc_error *err);
btc_status cuda_alloc(btc_backend *b, size_t bytes, void **out, btc_error *err);
void cuda_free(btc_backend *b, void *p);
/* Pinned memory, or ordinary memory and a remark. NOMEM, DEVICE. */
btc_status cuda_staging_take(cuda_backend *c, size_t bytes, cuda_staging *out, btc_error *err);
void cuda_staging_free(cuda_staging *s);
void cuda_copy_2d(btc_backend *b, void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, int64_t rows);

/* ---- cuda_constant.c ---- */
btc_status cuda_hold(btc_backend *b, const btc_weight *w, bool product, btc_error *err);
btc_status cuda_hold_together(btc_backend *b, const btc_weight *w, int n, bool product, btc_error *err);
void cuda_constants_close(cuda_backend *c);
const cuda_constant *cuda_find(const cuda_backend *c, const void *host); /* NULL: not held */
const uint16_t *cuda_rounded(const cuda_backend *c, const float *p);     /* the same in bf16; NULL: that would lose something */
const float *cuda_vector(cuda_backend *c, const float *p);               /* a held vector's place; other memory as it is */
/* Whether matrices and biases lie one after another, and then all of them as one constant. */
bool cuda_together(const cuda_backend *c, const btc_products *p, cuda_constant *whole);

/* ---- cuda_use.c ---- */
bool cuda_use(const btc_backend *b, btc_device_info *out); /* as btc_backend_device */
bool cuda_use_now(btc_device_info *info);                  /* the device of info->index; false: it does not answer */
void cuda_read_use(btc_device_info *info);                 /* free_bytes and busy of info->index, as far as they can be had */

/* NVIDIA's management library, as far as it is used; loaded when it is first asked. */
typedef struct cuda_nvml {
  int (*find)(const char *bus, void **device); /* 0 is success, here and below */
  int (*busy)(void *device, unsigned percent[2]);
} cuda_nvml;
const cuda_nvml *cuda_nvml_load(void); /* cuda_nvml.c; NULL: not on this machine. Any thread; tests bring their own */

/* ---- cuda_product.c ---- */
btc_status cuda_products_open(cuda_backend *c, btc_error *err);
void cuda_products_close(cuda_backend *c);
void cuda_matmul(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e);
void cuda_matvec(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e);
/* The same of a constant, with the epilogue's vectors as the caller knows them. */
void cuda_multiply_many(cuda_backend *c, const cuda_constant *k, float *y, const float *x, int64_t m, const btc_epilogue *e);
void cuda_multiply_few(cuda_backend *c, const cuda_constant *k, float *y, const btc_cuda_rows *x, const btc_epilogue *e);
btc_cuda_matrix cuda_matrix(const cuda_backend *c, const cuda_constant *k); /* as the few-row products take it */

/* ---- cuda_together.c ---- */
btc_product_part cuda_products_part(const btc_backend *b, const btc_products *p, int i);
void cuda_products(btc_backend *b, const btc_products *p);
void cuda_products_gated(btc_backend *b, float *out, const btc_products *p);
/* Rows of p for a few-row product with k, normalised before it where it cannot do that itself. */
btc_cuda_rows cuda_few_rows(btc_backend *b, const btc_products *p, const cuda_constant *k);

/* ---- cuda_parcel.c ---- */
btc_status cuda_pictures_open(cuda_backend *c, btc_error *err);
void cuda_pictures_close(cuda_backend *c);
btc_status cuda_parcel_create(btc_backend *b, size_t bytes, btc_parcel **out, btc_error *err);
void cuda_parcel_destroy(btc_backend *b, btc_parcel **p);
void cuda_send(btc_backend *b, btc_parcel *p, const void *src, size_t bytes);
void cuda_resize_normalise(btc_backend *b, float *pixels, const btc_picture *p, int64_t n, int64_t side, const btc_shades *s);

/* ---- cuda_items.c ---- */
btc_status cuda_items_open(cuda_backend *c, btc_error *err);
void cuda_items_close(cuda_backend *c);
void cuda_set_items(btc_backend *b, const btc_items *items);
void cuda_attention_items(btc_backend *b, const btc_attention_items *a);
bool cuda_products_attend(btc_backend *b, const btc_products *p, const btc_attention_items *a);
void cuda_embed_items(btc_backend *b, float *y, const btc_weight *table);
bool cuda_sequence_begin(btc_backend *b, uint64_t key);
bool cuda_sequence_end(btc_backend *b);

#endif
