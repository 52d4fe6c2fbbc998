#include "shim_kernels.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/mma.h"

template <bool BARRIER>
static void reverse(int *y, const int *x, int n) {
  BTC_SHARED(int, tile, 256);
  int i = static_cast<int>(threadIdx.x);
  tile[i] = x[i];
  if (BARRIER) __syncthreads();
  y[i] = tile[n - 1 - i];
}

int shim_reverse(int *y, const int *x, int n) {
  return BTC_LAUNCH(reverse<true>, 1, static_cast<unsigned>(n), 0, nullptr, y, x, n);
}

int shim_reverse_no_barrier(int *y, const int *x, int n) {
  return BTC_LAUNCH(reverse<false>, 1, static_cast<unsigned>(n), 0, nullptr, y, x, n);
}

static void early_exit(int) {
  if (threadIdx.x == 0) return;
  __syncthreads();
}

int shim_early_exit(int n) {
  return BTC_LAUNCH(early_exit, 1, static_cast<unsigned>(n), 0, nullptr, n);
}

static void branch_barrier(int) {
  if (threadIdx.x % 2)
    __syncthreads();
  else
    __syncthreads();
}

int shim_branch_barrier(int n) {
  return BTC_LAUNCH(branch_barrier, 1, static_cast<unsigned>(n), 0, nullptr, n);
}

static void branch_shuffle(int n) {
  if (threadIdx.x % 2)
    __shfl_xor_sync(BTC_FULL_WARP, n, 1);
  else
    __shfl_xor_sync(BTC_FULL_WARP, n, 1);
}

int shim_branch_shuffle(int n) {
  return BTC_LAUNCH(branch_shuffle, 1, static_cast<unsigned>(n), 0, nullptr, n);
}

static void outside_mask(int n) {
  if (threadIdx.x < 16) __shfl_sync(0xffff, n, 20);
}

int shim_outside_mask(void) {
  return BTC_LAUNCH(outside_mask, 1, 32, 0, nullptr, 0);
}

static void poison(float *y) {
  BTC_SHARED(float, fixed, 8);
  BTC_DYNAMIC_SHARED(float, moving);
  y[0] = fixed[7];
  y[1] = moving[7];
}

int shim_poison(float *y) {
  return BTC_LAUNCH(poison, 1, 1, 32, nullptr, y);
}

static void behind_dynamic(size_t bytes) {
  BTC_DYNAMIC_SHARED(volatile char, all);
  all[bytes] = 1;
}

int shim_behind_dynamic(size_t bytes) {
  return BTC_LAUNCH(behind_dynamic, 1, 1, bytes, nullptr, bytes);
}

static void too_much_static(int n) {
  BTC_SHARED(char, large, 40000);
  BTC_SHARED(char, more, 10000);
  large[n] = more[n] = 0;
}

int shim_too_much_static(void) {
  return BTC_LAUNCH(too_much_static, 1, 1, 0, nullptr, 0);
}

int shim_grid_of_zero(void) {
  return BTC_LAUNCH(early_exit, 0, 1, 0, nullptr, 0);
}

static void nothing(int) {
}

int shim_much_dynamic(size_t allowed, size_t used) {
  int status = BTC_ALLOW_SHARED(nothing, allowed);
  return status != 0 ? status : BTC_LAUNCH(nothing, 1, 1, used, nullptr, 0);
}

static void static_and_dynamic(int n) {
  BTC_SHARED(char, large, 40000);
  large[n] = 0;
}

int shim_static_and_dynamic(size_t bytes) {
  int status = BTC_ALLOW_SHARED(static_and_dynamic, bytes);
  return status != 0 ? status : BTC_LAUNCH(static_and_dynamic, 1, 1, bytes, nullptr, 0);
}

static void matrix_row(int skew) {
  BTC_SHARED(uint32_t, tile, 8 * 8);
  uint32_t r[2];
  ldmatrix_x2(r, tile + threadIdx.x % 8 * 4 + skew);
}

int shim_matrix_row(int skew) {
  return BTC_LAUNCH(matrix_row, 1, 32, 0, nullptr, skew);
}

static void vector(float *y, const float *x) {
  *reinterpret_cast<float4 *>(y) = *reinterpret_cast<const float4 *>(x);
}

int shim_vector(float *y, const float *x) {
  return BTC_LAUNCH(vector, 1, 1, 0, nullptr, y, x);
}

static void scan(int *y, const int *x) {
  BTC_SHARED(int, first, 1);
  int i = static_cast<int>(threadIdx.x), sum = x[i];
  for (unsigned step = 1; step < 32; step *= 2) {
    int below = __shfl_up_sync(BTC_FULL_WARP, sum, step);
    if (i % 32 >= static_cast<int>(step)) sum += below;
  }
  if (i == 31) first[0] = sum;
  btc_named_barrier(1, 64);
  y[i] = sum + (i >= 32 ? first[0] : 0);
}

int shim_scan(int *y, const int *x) {
  return BTC_LAUNCH(scan, 1, 64, 0, nullptr, y, x);
}

static void copies(int *y, const int *x, int waited) {
  BTC_SHARED(int, tile, 32);
  int i = static_cast<int>(threadIdx.x);
  btc_shim_cp_async(&tile[i], x + i, 4, i < 30 ? 4 : 0);
  btc_shim_cp_async_commit();
  if (waited) btc_shim_cp_async_wait(0);
  __syncthreads();
  y[i] = tile[31 - i];
}

int shim_copies(int *y, const int *x, int waited) {
  return BTC_LAUNCH(copies, 1, 32, 0, nullptr, y, x, waited);
}

static void votes(unsigned *y) {
  unsigned i = threadIdx.x, odd = __ballot_sync(BTC_FULL_WARP, i % 2);
  unsigned sum = i;
  if (i < 16) /* half a warp on its own */
    for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(0xffff, sum, step);
  y[i] = i < 16 ? sum : odd;
}

static __global__ void early(int *y, int awaiting) {
  let_next_begin();
  if (static_cast<int>(threadIdx.x) < awaiting) await_launch_before();
  y[threadIdx.x] = 1;
}

int shim_early(int *y, int awaiting) {
  return BTC_LAUNCH_EARLY(early, 1, 32, 0, nullptr, y, awaiting);
}

int shim_late(int *y) {
  return BTC_LAUNCH(early, 1, 32, 0, nullptr, y, 0);
}

int shim_votes(unsigned *y) {
  return BTC_LAUNCH(votes, 1, 32, 0, nullptr, y);
}

/* Each thread's part is written by it alone and read by thread 0 of the block that arrives last. */
static void last_block(int *sum, int *parts, unsigned *arrived, const int *x) {
  BTC_SHARED(unsigned, before, 1);
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  parts[i] = 2 * x[i];
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) before[0] = atomicInc(arrived, gridDim.x - 1);
  __syncthreads();
  if (before[0] != gridDim.x - 1) return;
  __threadfence();
  if (threadIdx.x != 0) return;
  int all = 0;
  for (unsigned j = 0; j < gridDim.x * blockDim.x; j++) all += parts[j];
  *sum = all;
}

int shim_last_block(int *sum, int *parts, unsigned *arrived, const int *x, int blocks) {
  return BTC_LAUNCH(last_block, static_cast<unsigned>(blocks), 64, 0, nullptr, sum, parts, arrived, x);
}
