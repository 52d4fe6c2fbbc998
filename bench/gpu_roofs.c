/*
 * What this card can do at best, for bench/gpu.sh: gpu_roofs [DEVICE]. The rate of a large bf16 product (cuBLASLt, f32 sums, random
 * operands: zeros draw less power and run faster) and the bandwidth of a large copy on the device, bytes read plus bytes written.
 * Medians of repeated, event-timed runs. Prints one JSON object; exit status 1 with the reason when there is no such device or a
 * call fails.
 */
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum {
  SIDE = 8192, /* of the product's matrices: 1.1 Tflop, 400 MB, far more than the caches hold */
  WARM = 5,
  RUNS = 31, /* medians over RUNS after WARM that do not count */
};
#define COPY_BYTES ((size_t)1 << 31)
#define WORKSPACE ((size_t)64 << 20)

static void check_cuda(cudaError_t e, const char *what) {
  if (e == cudaSuccess) return;
  fprintf(stderr, "gpu_roofs: %s: %s\n", what, cudaGetErrorString(e));
  exit(1);
}

static void check_lt(cublasStatus_t e, const char *what) {
  if (e == CUBLAS_STATUS_SUCCESS) return;
  fprintf(stderr, "gpu_roofs: %s: cuBLASLt status %d\n", what, (int)e);
  exit(1);
}

static int compare(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

/* Median milliseconds of work(ctx, i) on the default stream. */
static double median_ms(void (*work)(void *, int), void *ctx) {
  cudaEvent_t begin, end;
  float ms[RUNS];
  check_cuda(cudaEventCreate(&begin), "cudaEventCreate");
  check_cuda(cudaEventCreate(&end), "cudaEventCreate");
  for (int i = 0; i < WARM + RUNS; i++) {
    check_cuda(cudaEventRecord(begin, NULL), "cudaEventRecord");
    work(ctx, i);
    check_cuda(cudaEventRecord(end, NULL), "cudaEventRecord");
    check_cuda(cudaEventSynchronize(end), "cudaEventSynchronize");
    if (i >= WARM) check_cuda(cudaEventElapsedTime(&ms[i - WARM], begin, end), "cudaEventElapsedTime");
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  qsort(ms, RUNS, sizeof ms[0], compare);
  return ms[RUNS / 2];
}

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

/* A matrix of random bf16 in [-1, 1) on the device: 1.m with a random sign and an exponent just below one. */
static void *random_matrix(uint64_t seed) {
  size_t n = (size_t)SIDE * SIDE;
  uint16_t *host = malloc(n * sizeof *host);
  void *device = NULL;
  if (!host) {
    fputs("gpu_roofs: out of memory\n", stderr);
    exit(1);
  }
  for (size_t i = 0; i < n; i++) {
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    uint64_t r = seed >> 33;
    host[i] = (uint16_t)((r & 1) << 15 | (126 - (r >> 1 & 3)) << 7 | (r >> 3 & 127));
  }
  check_cuda(cudaMalloc(&device, n * sizeof *host), "cudaMalloc");
  check_cuda(cudaMemcpy(device, host, n * sizeof *host, cudaMemcpyHostToDevice), "cudaMemcpy to the device");
  free(host);
  return device;
}

static double product_tflops(void) {
  product p = {0};
  cublasLtMatmulPreference_t preference;
  cublasLtMatmulHeuristicResult_t found;
  cublasOperation_t transposed = CUBLAS_OP_T;
  size_t workspace = WORKSPACE;
  int n = 0;
  p.a = random_matrix(1);
  p.b = random_matrix(2);
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
  double ms = median_ms(run_product, &p);
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
  double ms = median_ms(run_copy, buffers);
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
