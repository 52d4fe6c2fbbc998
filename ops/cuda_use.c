/* How full and how busy a CUDA device is. Nothing here touches the backend's own state, so any thread may ask at any time. */
#include "ops/cuda_parts.h"

static double busy_of(int device) {
  char bus[32];
  void *handle = NULL;
  unsigned percent[2] = {0};
  const cuda_nvml *nvml = cuda_nvml_load();
  if (!nvml || cudaDeviceGetPCIBusId(bus, (int)sizeof bus, device) != cudaSuccess) return -1;
  if (nvml->find(bus, &handle) != 0 || nvml->busy(handle, percent) != 0) return -1;
  return percent[0] <= 100 ? (double)percent[0] / 100 : -1;
}

void cuda_read_use(btc_device_info *info) {
  info->busy = busy_of(info->index);
  (void)cudaGetLastError(); /* of this thread: not the next launch's */
}

/* The current device belongs to a thread, and whoever asks may never have chosen one. */
bool cuda_use_now(btc_device_info *info) {
  size_t free_bytes = 0, total = 0;
  if (cudaSetDevice(info->index) != cudaSuccess || cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) {
    (void)cudaGetLastError();
    return false;
  }
  info->free_bytes = free_bytes;
  cuda_read_use(info);
  return true;
}

bool cuda_use(const btc_backend *b, btc_device_info *out) {
  const cuda_backend *c = b->self;
  *out = c->info;
  return cuda_use_now(out);
}
