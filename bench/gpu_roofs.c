/*
 * What this card can do at best, for bench/gpu.sh: gpu_roofs [DEVICE]. The rate of a large bf16 product (cuBLASLt, f32 sums, random
 * operands: zeros draw less power and run faster) and the bandwidth of a large copy on the device, bytes read plus bytes written.
 * Medians of repeated, event-timed runs. Prints one JSON object; exit status 1 with the reason when there is no such device or a
 * call fails.
 */
#include "gpu_bench.h"

enum {
  SIDE = 8192, /* of the product's matrices: 1.1 Tflop, 400 MB, far more than the caches hold */
  WARM = 5,
  RUNS = 31, /* medians over RUNS after WARM that do not count */
};
#define COPY_BYTES ((size_t)1 << 31)
#define WORKSPACE ((size_t)64 << 20)

typedef struct product {
  cublasLtHandle_t lt;
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t layout;
  cublasLtMatmulAlgo_t algo;
  void *a, *b, *c, *workspace;
} product;

static void run_product(void *ctx, int run) {
  (void)run;
  product *p = ctx;
  const float one = 1, zero = 0;
  check_lt(cublasLtMatmul(p->lt, p->desc, &one, p->a, p->layout, p->b, p->layout, &zero, p->c, p->layout, p->c, p->layout, &p->algo,
                          p->workspace, WORKSPACE, NULL),
           "cublasLtMatmul");
}

static double product_tflops(void) {
  product p = {0};
  cublasLtMatmulPreference_t preference;
  cublasLtMatmulHeuristicResult_t found;
  cublasOperation_t transposed = CUBLAS_OP_T;
  size_t workspace = WORKSPACE;
  int n = 0;
  p.a = gpu_random((size_t)SIDE * SIDE, 1);
  p.b = gpu_random((size_t)SIDE * SIDE, 2);
  check_cuda(cudaMalloc(&p.c, (size_t)SIDE * SIDE * 2), "cudaMalloc");
  check_cuda(cudaMalloc(&p.workspace, WORKSPACE), "cudaMalloc");
  check_lt(cublasLtCreate(&p.lt), "cublasLtCreate");
  check_lt(cublasLtMatmulDescCreate(&p.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  check_lt(cublasLtMatmulDescSetAttribute(p.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed),
           "cublasLtMatmulDescSetAttribute");
  check_lt(cublasLtMatrixLayoutCreate(&p.layout, CUDA_R_16BF, SIDE, SIDE, SIDE), "cublasLtMatrixLayoutCreate");
  check_lt(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  check_lt(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace),
           "cublasLtMatmulPreferenceSetAttribute");
  check_lt(cublasLtMatmulAlgoGetHeuristic(p.lt, p.desc, p.layout, p.layout, p.layout, p.layout, preference, 1, &found, &n),
           "cublasLtMatmulAlgoGetHeuristic");
  if (n < 1) {
    fputs("gpu_roofs: cuBLASLt has no algorithm for a bf16 product\n", stderr);
    exit(1);
  }
  p.algo = found.algo;
  double ms = gpu_median_ms(run_product, &p, WARM, RUNS);
  cublasLtMatmulPreferenceDestroy(preference);
  cublasLtMatrixLayoutDestroy(p.layout);
  cublasLtMatmulDescDestroy(p.desc);
  cublasLtDestroy(p.lt);
  cudaFree(p.a);
  cudaFree(p.b);
  cudaFree(p.c);
  cudaFree(p.workspace);
  return 2.0 * SIDE * SIDE * SIDE / ms * 1e-9;
}

static void run_copy(void *ctx, int run) {
  void **buffers = ctx;
  check_cuda(cudaMemcpyAsync(buffers[run & 1], buffers[~run & 1], COPY_BYTES, cudaMemcpyDeviceToDevice, NULL), "cudaMemcpyAsync");
}

static double copy_gbs(void) {
  void *buffers[2] = {NULL, NULL};
  for (int i = 0; i < 2; i++) {
    check_cuda(cudaMalloc(&buffers[i], COPY_BYTES), "cudaMalloc");
    check_cuda(cudaMemset(buffers[i], 0x5a + i, COPY_BYTES), "cudaMemset");
  }
  double ms = gpu_median_ms(run_copy, buffers, WARM, RUNS);
  cudaFree(buffers[0]);
  cudaFree(buffers[1]);
  return 2.0 * (double)COPY_BYTES / ms * 1e-6;
}

int main(int argc, char **argv) {
  int device = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 0, driver = 0;
  struct cudaDeviceProp prop;
  check_cuda(cudaSetDevice(device), "cudaSetDevice");
  check_cuda(cudaGetDeviceProperties(&prop, device), "cudaGetDeviceProperties");
  check_cuda(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  double tflops = product_tflops(), gbs = copy_gbs();
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  printf(
      "{\"device\":\"%s\",\"compute_capability\":\"%d.%d\",\"multiprocessors\":%d,\"memory_gb\":%.1f,\"driver\":%d,\"cublaslt\":%"
      "zu,"
      "\"bf16_tflops\":%.1f,\"copy_gbs\":%.0f}\n",
      prop.name, prop.major, prop.minor, prop.multiProcessorCount, (double)prop.totalGlobalMem * 1e-9, driver, cublasLtGetVersion(),
      tflops, gbs);
  return 0;
}
