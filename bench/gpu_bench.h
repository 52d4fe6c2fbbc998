/* What the measuring programs of a card share: checked calls, random operands and event-timed medians. They end with status 1 and a
 * sentence when a call fails. */
#ifndef BENCH_GPU_BENCH_H
#define BENCH_GPU_BENCH_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static inline void check_cuda(cudaError_t e, const char *what) {
  if (e == cudaSuccess) return;
  fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(e));
  exit(1);
}

static inline void check_lt(cublasStatus_t e, const char *what) {
  if (e == CUBLAS_STATUS_SUCCESS) return;
  fprintf(stderr, "%s: cuBLASLt status %d\n", what, (int)e);
  exit(1);
}

static inline int gpu_compare(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

/* Median milliseconds of work(ctx, i) on the default stream, of `runs` (at most 64) after `warm` that do not count. */
static inline double gpu_median_ms(void (*work)(void *, int), void *ctx, int warm, int runs) {
  cudaEvent_t begin, end;
  float ms[64];
  check_cuda(cudaEventCreate(&begin), "cudaEventCreate");
  check_cuda(cudaEventCreate(&end), "cudaEventCreate");
  for (int i = 0; i < warm + runs; i++) {
    check_cuda(cudaEventRecord(begin, NULL), "cudaEventRecord");
    work(ctx, i);
    check_cuda(cudaEventRecord(end, NULL), "cudaEventRecord");
    check_cuda(cudaEventSynchronize(end), "cudaEventSynchronize");
    if (i >= warm) check_cuda(cudaEventElapsedTime(&ms[i - warm], begin, end), "cudaEventElapsedTime");
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  qsort(ms, (size_t)runs, sizeof ms[0], gpu_compare);
  return ms[runs / 2];
}

static inline void *gpu_take(size_t bytes) {
  void *p = NULL;
  check_cuda(cudaMalloc(&p, bytes), "cudaMalloc");
  return p;
}

/* n random bf16 in [-1, 1) on the device (1.m with a random sign and an exponent just below one): zeros draw less power and run
 * faster. The caller frees with cudaFree. */
static inline void *gpu_random(size_t n, uint64_t seed) {
  uint16_t *host = malloc(n * sizeof *host);
  void *device = gpu_take(n * sizeof *host);
  if (!host) {
    fputs("out of memory\n", stderr);
    exit(1);
  }
  for (size_t i = 0; i < n; i++) {
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    uint64_t r = seed >> 33;
    host[i] = (uint16_t)((r & 1) << 15 | (126 - (r >> 1 & 3)) << 7 | (r >> 3 & 127));
  }
  check_cuda(cudaMemcpy(device, host, n * sizeof *host, cudaMemcpyHostToDevice), "cudaMemcpy to the device");
  free(host);
  return device;
}

#endif
