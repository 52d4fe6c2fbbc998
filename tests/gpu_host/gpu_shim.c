/* The host shim as the device: memory is memory, launches are calls. */
#define _POSIX_C_SOURCE 200809L

#include "gpu.h"
#include "kernels/cuda/shim/shim_test.h"

bool gpu_present(void) {
  return true;
}

bool gpu_is_shim(void) {
  return true;
}

void *gpu_memory(size_t bytes) {
  void *p = NULL;
  if (posix_memalign(&p, 256, bytes) != 0) fail_msg("no memory for %zu bytes", bytes);
  return p;
}

void gpu_memory_free(void *p) {
  free(p);
}

void gpu_copy_in(void *device, const void *host, size_t bytes) {
  btc_shim_settled();
  memcpy(device, host, bytes);
}

void gpu_copy_out(void *host, const void *device, size_t bytes) {
  memcpy(host, device, bytes);
}

void gpu_check(int launch, const char *what) {
  if (launch != 0) fail_msg("%s: error %d: %s", what, launch, btc_shim_message());
}
