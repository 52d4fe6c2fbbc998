/* Whether launches may overlap: the one thing that kernels/cuda remembers. */
#include <atomic>

#include "kernels/cuda/device.h"

static std::atomic<bool> allowed{true};

void btc_cuda_overlap(int allow) {
  allowed.store(allow != 0, std::memory_order_relaxed);
}

#ifdef __CUDACC__
int btc_cuda_overlaps(void) {
  int device = 0, major = 0;
  return allowed.load(std::memory_order_relaxed) && cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9;
}
#else
int btc_cuda_overlaps(void) {
  return allowed.load(std::memory_order_relaxed);
}
#endif
