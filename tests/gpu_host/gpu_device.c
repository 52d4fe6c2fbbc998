/* A real device. */
#include <cuda_runtime_api.h>

#include "gpu.h"

bool gpu_present(void) {
  int n = 0;
  return cudaGetDeviceCount(&n) == cudaSuccess && n > 0;
}

bool gpu_is_shim(void) {
  return false;
}

void gpu_check(int launch, const char *what) {
  cudaError_t e = (cudaError_t)launch;
  if (e == cudaSuccess) e = cudaDeviceSynchronize();
  if (e != cudaSuccess) fail_msg("%s: error %d: %s", what, (int)e, cudaGetErrorString(e));
}

void *gpu_memory(size_t bytes) {
  void *p = NULL;
  gpu_check((int)cudaMalloc(&p, bytes), "cudaMalloc");
  return p;
}

void gpu_memory_free(void *p) {
  cudaFree(p);
}

void gpu_copy_in(void *device, const void *host, size_t bytes) {
  gpu_check((int)cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice), "cudaMemcpy to the device");
}

void gpu_copy_out(void *host, const void *device, size_t bytes) {
  gpu_check((int)cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy to the host");
}
