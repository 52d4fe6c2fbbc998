/* cuBLASLt as far as ops/cuda_product.c uses it: products by plain loops. A call that a real library would refuse is refused. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fake_parts.h"
#include "kernels/cuda/shim/shim_test.h"
#include "ops/cuda_parts.h"

enum { PICKY = 77 };

typedef struct fake_desc {
  cublasOperation_t transposed;
  cublasLtEpilogue_t epilogue;
  const void *bias;
  cudaDataType bias_type;
} fake_desc;

typedef struct fake_layout {
  cudaDataType type;
  int64_t rows, cols, ld; /* column-major */
} fake_layout;

static cublasStatus_t create(cublasLtHandle_t *h) {
  *h = (cublasLtHandle_t)malloc(1);
  return *h ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

static cublasStatus_t destroy(cublasLtHandle_t h) {
  free(h);
  return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t desc_create(cublasLtMatmulDesc_t *d, cublasComputeType_t compute, cudaDataType_t scale) {
  if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  fake_desc *f = calloc(1, sizeof *f);
  *d = (cublasLtMatmulDesc_t)f;
  return f ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

static cublasStatus_t desc_destroy(cublasLtMatmulDesc_t d) {
  free(d);
  return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t desc_set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a, const void *v, size_t bytes) {
  fake_desc *f = (fake_desc *)d;
  switch (a) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      memcpy(&f->transposed, v, bytes);
      return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      memcpy(&f->epilogue, v, bytes);
      return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      memcpy(&f->bias, v, bytes);
      return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      memcpy(&f->bias_type, v, bytes);
      return CUBLAS_STATUS_SUCCESS;
    default:
      return CUBLAS_STATUS_INVALID_VALUE;
  }
}

static cublasStatus_t layout_create(cublasLtMatrixLayout_t *l, cudaDataType type, uint64_t rows, uint64_t cols, int64_t ld) {
  fake_layout *f = calloc(1, sizeof *f);
  *l = (cublasLtMatrixLayout_t)f;
  if (!f) return CUBLAS_STATUS_ALLOC_FAILED;
  *f = (fake_layout){type, (int64_t)rows, (int64_t)cols, ld};
  return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t layout_destroy(cublasLtMatrixLayout_t l) {
  free(l);
  return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t preference_create(cublasLtMatmulPreference_t *p) {
  *p = (cublasLtMatmulPreference_t)malloc(1);
  return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t preference_destroy(cublasLtMatmulPreference_t p) {
  free(p);
  return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t preference_set(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t a, const void *v,
                                     size_t n) {
  (void)p;
  (void)n;
  if (a == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
    return *(const uint64_t *)v ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS;
  return CUBLAS_STATUS_SUCCESS;
}

static bool has_bias(const fake_desc *d) {
  return d->epilogue == CUBLASLT_EPILOGUE_BIAS || d->epilogue == CUBLASLT_EPILOGUE_RELU_BIAS ||
         d->epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;
}

/* FAKE_CUBLAS_PLAIN: nothing can be fused, so that the way without is taken. FAKE_CUBLAS_NONE: nothing at all is offered. A bias
 * has a place and the result's type. The first proposal is one that does not run with one row. */
static cublasStatus_t heuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t y, cublasLtMatmulPreference_t p, int want,
                                cublasLtMatmulHeuristicResult_t *found, int *n) {
  (void)h, (void)a, (void)b, (void)c, (void)p;
  *n = 0;
  if (getenv("FAKE_CUBLAS_NONE")) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (has_bias((fake_desc *)d) && !((fake_desc *)d)->bias) return CUBLAS_STATUS_INVALID_VALUE;
  if (has_bias((fake_desc *)d) && ((fake_desc *)d)->bias_type != ((fake_layout *)y)->type) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (getenv("FAKE_CUBLAS_PLAIN") && ((fake_desc *)d)->epilogue != CUBLASLT_EPILOGUE_DEFAULT) return CUBLAS_STATUS_NOT_SUPPORTED;
  for (*n = 0; *n < 2 && *n < want; ++*n) {
    memset(&found[*n], 0, sizeof *found);
    found[*n].algo.data[0] = *n == 0 ? PICKY : 1;
  }
  return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t check(cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                            cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t y, const cublasLtMatmulAlgo_t *algo,
                            cublasLtMatmulHeuristicResult_t *r) {
  (void)h, (void)d, (void)a, (void)c, (void)y;
  r->workspaceSize = 0;
  return algo->data[0] == PICKY && ((fake_layout *)b)->cols == 1 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
}

static float element(const void *p, cudaDataType type, int64_t i) {
  return type == CUDA_R_16BF ? btc_bf16_to_f32(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

static float finish(const fake_desc *d, float x, int64_t row) {
  if (has_bias(d)) x += element(d->bias, d->bias_type, row);
  if (d->epilogue == CUBLASLT_EPILOGUE_RELU || d->epilogue == CUBLASLT_EPILOGUE_RELU_BIAS) return x > 0 ? x : 0;
  if (d->epilogue == CUBLASLT_EPILOGUE_GELU || d->epilogue == CUBLASLT_EPILOGUE_GELU_BIAS)
    return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
  return x;
}

/* One row of x against all of w; both widened. */
static cublasStatus_t matmul(cublasLtHandle_t h, cublasLtMatmulDesc_t md, const void *alpha, const void *w,
                             cublasLtMatrixLayout_t lw, const void *x, cublasLtMatrixLayout_t lx, const void *beta, const void *c,
                             cublasLtMatrixLayout_t lc, void *y, cublasLtMatrixLayout_t ly, const cublasLtMatmulAlgo_t *algo,
                             void *workspace, size_t bytes, cudaStream_t s) {
  (void)h, (void)lc, (void)workspace;
  if (fake_is_recording()) { /* a real one is recorded; these loops would run now */
    fake_spoil_recording();
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  const fake_desc *d = (const fake_desc *)md;
  const fake_layout *fw = (const fake_layout *)lw, *fx = (const fake_layout *)lx, *fy = (const fake_layout *)ly;
  const int64_t k = fw->rows, n = fw->cols, m = fx->cols;
  if (bytes || algo->data[0] == PICKY || d->transposed != CUBLAS_OP_T || fx->rows != k || fy->rows != n || fy->cols != m ||
      fw->type != fx->type || (uintptr_t)w % 16 || (uintptr_t)x % 16)
    return CUBLAS_STATUS_INVALID_VALUE;
  fake_reach(s);
  if (fake.n_products < FAKE_PRODUCTS) fake.product[fake.n_products] = (fake_product){m, n, k};
  fake.n_products++;
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      float sum = 0;
      for (int64_t q = 0; q < k; q++) sum += element(w, fw->type, j * fw->ld + q) * element(x, fx->type, i * fx->ld + q);
      sum *= *(const float *)alpha;
      if (*(const float *)beta != 0) sum += *(const float *)beta * element(c, fy->type, i * fy->ld + j);
      sum = finish(d, sum, j);
      if (fy->type == CUDA_R_16BF)
        ((uint16_t *)y)[i * fy->ld + j] = btc_f32_to_bf16(sum);
      else
        ((float *)y)[i * fy->ld + j] = sum;
    }
  btc_shim_foreign(y, (size_t)((m - 1) * fy->ld + n) * (fy->type == CUDA_R_16BF ? sizeof(uint16_t) : sizeof(float)));
  return CUBLAS_STATUS_SUCCESS;
}

btc_status cuda_lt_load(const cuda_lt **out, btc_error *err) {
  static const cuda_lt functions = {create,         destroy,           desc_create,        desc_destroy,   desc_set,  layout_create,
                                    layout_destroy, preference_create, preference_destroy, preference_set, heuristic, check,
                                    matmul};
  (void)err;
  *out = &functions;
  return BTC_OK;
}
