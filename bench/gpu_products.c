/*
 * What cuBLASLt does at best with the products of gpu_shapes.h, for bench/gpu.sh: gpu_products [DEVICE]. The backend gives the
 * library no workspace and no reduction, and uses one algorithm for any number of rows (ops/cuda_product.c); here it may take 32
 * MiB and any reduction, and its first proposals for just this number of rows are timed. Prints a JSON object a product.
 */
#include "gpu_bench.h"
#include "gpu_shapes.h"

enum { PROPOSALS = 8, WARM = 2, RUNS = 7 };
#define WORKSPACE ((size_t)32 << 20)

typedef struct product {
  cublasLtHandle_t lt;
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t w, x, y;
  cublasLtMatmulAlgo_t algo;
  void *w_data, *x_data, *y_data, *workspace;
  float added; /* of y itself */
} product;

static void multiply(void *ctx, int run) {
  (void)run;
  product *p = ctx;
  const float one = 1;
  check_lt(cublasLtMatmul(p->lt, p->desc, &one, p->w_data, p->w, p->x_data, p->x, &p->added, p->y_data, p->y, p->y_data, p->y,
                          &p->algo, p->workspace, WORKSPACE, NULL),
           "cublasLtMatmul");
}

#define SET(p, name, value) \
  check_lt(cublasLtMatmulDescSetAttribute((p)->desc, (name), &(value), sizeof(value)), "cublasLtMatmulDescSetAttribute")

/* Row-major matrices are column-major ones transposed: y^T = w x^T. */
static void describe(product *p, const gpu_shape *s, void *bias) {
  const cublasOperation_t transposed = CUBLAS_OP_T;
  const cudaDataType_t type = s->y_bf16 ? CUDA_R_16BF : CUDA_R_32F;
  const cublasLtEpilogue_t epilogue = s->gelu   ? CUBLASLT_EPILOGUE_GELU_BIAS
                                      : s->bias ? CUBLASLT_EPILOGUE_BIAS
                                                : CUBLASLT_EPILOGUE_DEFAULT;
  check_lt(cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  SET(p, CUBLASLT_MATMUL_DESC_TRANSA, transposed);
  SET(p, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
  if (s->bias) {
    SET(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    SET(p, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type);
  }
  check_lt(cublasLtMatrixLayoutCreate(&p->w, CUDA_R_16BF, (uint64_t)s->k, (uint64_t)s->n, s->k), "cublasLtMatrixLayoutCreate");
  check_lt(cublasLtMatrixLayoutCreate(&p->x, CUDA_R_16BF, (uint64_t)s->k, (uint64_t)s->m, s->k), "cublasLtMatrixLayoutCreate");
  check_lt(cublasLtMatrixLayoutCreate(&p->y, type, (uint64_t)s->n, (uint64_t)s->m, s->n), "cublasLtMatrixLayoutCreate");
}

static int propose(const product *p, cublasLtMatmulHeuristicResult_t found[PROPOSALS]) {
  cublasLtMatmulPreference_t want;
  const size_t workspace = WORKSPACE;
  int n = 0;
  check_lt(cublasLtMatmulPreferenceCreate(&want), "cublasLtMatmulPreferenceCreate");
  check_lt(cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace),
           "cublasLtMatmulPreferenceSetAttribute");
  check_lt(cublasLtMatmulAlgoGetHeuristic(p->lt, p->desc, p->w, p->x, p->y, p->y, want, PROPOSALS, found, &n),
           "cublasLtMatmulAlgoGetHeuristic");
  cublasLtMatmulPreferenceDestroy(want);
  return n;
}

static void time_product(product *p, const gpu_shape *s) {
  cublasLtMatmulHeuristicResult_t found[PROPOSALS];
  const size_t y_bytes = (size_t)(s->m * s->n) * (s->y_bf16 ? 2 : 4);
  double best = 0;
  int chosen = -1;
  void *bias = gpu_take((size_t)s->n * sizeof(float));
  check_cuda(cudaMemset(bias, 0, (size_t)s->n * sizeof(float)), "cudaMemset");
  p->w_data = gpu_random((size_t)(s->n * s->k), 1);
  p->x_data = gpu_random((size_t)(s->m * s->k), 2);
  p->y_data = gpu_take(y_bytes);
  check_cuda(cudaMemset(p->y_data, 0, y_bytes), "cudaMemset");
  p->added = s->added ? 1 : 0;
  describe(p, s, bias);
  const int n = propose(p, found);
  for (int i = 0; i < n; i++) {
    if (found[i].state != CUBLAS_STATUS_SUCCESS) continue;
    p->algo = found[i].algo;
    const double ms = gpu_median_ms(multiply, p, WARM, RUNS);
    if (chosen < 0 || ms < best) best = ms, chosen = i;
  }
  if (chosen < 0) {
    printf("{\"free\":\"%s\",\"proposals\":%d}\n", s->name, n);
  } else {
    printf("{\"free\":\"%s\",\"proposals\":%d,\"chosen\":%d,\"workspace\":%zu,\"ms\":%.4f,\"tflops\":%.2f}\n", s->name, n, chosen,
           found[chosen].workspaceSize, best, 2e-9 * (double)s->m * (double)s->n * (double)s->k / best);
  }
  fflush(stdout);
  cublasLtMatmulDescDestroy(p->desc);
  cublasLtMatrixLayoutDestroy(p->w);
  cublasLtMatrixLayoutDestroy(p->x);
  cublasLtMatrixLayoutDestroy(p->y);
  void *const all[] = {bias, p->w_data, p->x_data, p->y_data};
  for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) cudaFree(all[i]);
}

int main(int argc, char **argv) {
  product p = {0};
  check_cuda(cudaSetDevice(argc > 1 ? (int)strtol(argv[1], NULL, 10) : 0), "cudaSetDevice");
  check_lt(cublasLtCreate(&p.lt), "cublasLtCreate");
  p.workspace = gpu_take(WORKSPACE);
  for (int i = 0; i < GPU_SHAPES; i++) time_product(&p, &gpu_shapes[i]);
  cublasLtDestroy(p.lt);
  cudaFree(p.workspace);
  return 0;
}
