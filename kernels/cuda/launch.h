/*
 * Launches on a device (nvcc's side of device.h; the shim has its own).
 *
 * BTC_LAUNCH: the kernel begins when all before it on its stream has ended.
 * BTC_LAUNCH_EARLY: from sm_90 on the kernel's blocks begin while the last ones of the launch before still run (programmatic
 * dependent launch), so that what a launch costs, and the first reading of weights, pass behind that one's end. In exchange every
 * thread of the kernel calls await_launch_before(). Before that call a thread reads only what no launch that may still run writes:
 * weights, tables that a copy brought before the step, keys and values of earlier steps; it writes nothing. A launch that is no
 * early one, a copy and the beginning of a recorded step wait for all before them as ever. Because every thread of every early
 * launch waits, all launches before the one awaited have ended as well. Both give the launch's cudaError_t as an int. kernel: a
 * name, or (name<a, b>) in parentheses.
 */
#ifndef BTC_KERNELS_CUDA_LAUNCH_H
#define BTC_KERNELS_CUDA_LAUNCH_H

#include <cuda_runtime.h>

#include "kernels/cuda/cuda.h"

template <typename... P, typename... A>
static int btc_launch_early(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, btc_cuda_stream s, A... args) {
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t c = {};
  c.gridDim = grid;
  c.blockDim = block;
  c.dynamicSmemBytes = smem;
  c.stream = s;
  c.attrs = &early;
  c.numAttrs = btc_cuda_overlaps() ? 1 : 0;
  return static_cast<int>(cudaLaunchKernelEx(&c, kernel, static_cast<P>(args)...));
}

/* The tool takes a header for plain C++. */
/* clang-format off */
#define BTC_LAUNCH(kernel, grid, block, smem, stream, ...) \
  ((kernel)<<<(grid), (block), (smem), (stream)>>>(__VA_ARGS__), static_cast<int>(cudaGetLastError()))
/* clang-format on */
#define BTC_LAUNCH_EARLY(kernel, grid, block, smem, stream, ...) \
  btc_launch_early((kernel), (grid), (block), (smem), (stream), __VA_ARGS__)

#endif
