/*
 * Rearrangements: a block a row of the output, threads along it, so that writes are coalesced; what is read again sits in the
 * cache. Writing each element once costs the same whatever the order of reads, which is why none of these goes through shared
 * memory.
 */
#include "kernels/cuda/device.h"

enum { THREADS = 256 };

BTC_DEVICE void store_both(float *y, uint16_t *y_bf16, int64_t i, float v) {
  if (y) y[i] = v;
  if (y_bf16) y_bf16[i] = f32_to_bf16(v);
}

/* Block: one patch. Column j of its row is (channel, ky, kx). */
static __global__ void __launch_bounds__(THREADS)
    unfold_patches(float *dst, uint16_t *dst_bf16, const float *x, int side, int p, int g) {
  const int64_t patch = blockIdx.x, image = patch / (g * g);
  const int r = static_cast<int>(patch % (g * g)) / g, c = static_cast<int>(patch % (g * g)) % g, width = 3 * p * p;
  for (int j = static_cast<int>(threadIdx.x); j < width; j += THREADS) {
    const int channel = j / (p * p), ky = j / p % p, kx = j % p;
    const float v = x[((image * 3 + channel) * side + p * r + ky) * side + p * c + kx];
    store_both(dst, dst_bf16, patch * width + j, v);
  }
}

int btc_cuda_unfold_patches(float *dst, uint16_t *dst_bf16, const float *x, int64_t images, int64_t side, int64_t p, int64_t g,
                            btc_cuda_stream s) {
  if (images <= 0) return 0;
  return BTC_LAUNCH(unfold_patches, static_cast<unsigned>(images * g * g), THREADS, 0, s, dst, dst_bf16, x, static_cast<int>(side),
                    static_cast<int>(p), static_cast<int>(g));
}

/* Block: one place of one map. Column j of its row is (channel, ky, kx). */
static __global__ void __launch_bounds__(THREADS) unfold_3x3(float *dst, uint16_t *dst_bf16, const float *x, int g, int c) {
  const int64_t place = blockIdx.x, map = place / (g * g);
  const int r = static_cast<int>(place % (g * g)) / g, q = static_cast<int>(place % (g * g)) % g;
  for (int j = static_cast<int>(threadIdx.x); j < 9 * c; j += THREADS) {
    const int channel = j / 9, y = r + j % 9 / 3 - 1, z = q + j % 3 - 1;
    const bool inside = y >= 0 && y < g && z >= 0 && z < g;
    store_both(dst, dst_bf16, place * 9 * c + j, inside ? x[((map * g + y) * g + z) * c + channel] : 0.0f);
  }
}

int btc_cuda_unfold_3x3(float *dst, uint16_t *dst_bf16, const float *x, int64_t n, int64_t g, int64_t c, btc_cuda_stream s) {
  if (n <= 0) return 0;
  return BTC_LAUNCH(unfold_3x3, static_cast<unsigned>(n * g * g), THREADS, 0, s, dst, dst_bf16, x, static_cast<int>(g),
                    static_cast<int>(c));
}

/* Block: one output token of one map, columns first: token jj*half + ii. */
static __global__ void __launch_bounds__(THREADS) space_to_depth(float *dst, const float *x, int g, int c) {
  const int half = (g + 1) / 2;
  const int64_t token = blockIdx.x, map = token / (half * half);
  const int jj = static_cast<int>(token % (half * half)) / half, ii = static_cast<int>(token % (half * half)) % half;
  for (int j = static_cast<int>(threadIdx.x); j < 4 * c; j += THREADS) {
    const int quarter = j / c, row = 2 * ii + quarter / 2, column = 2 * jj + quarter % 2;
    const bool inside = row < g && column < g;
    dst[token * 4 * c + j] = inside ? x[((map * g + row) * g + column) * c + j % c] : 0.0f;
  }
}

int btc_cuda_space_to_depth(float *dst, const float *x, int64_t n, int64_t g, int64_t c, btc_cuda_stream s) {
  if (n <= 0) return 0;
  const int64_t half = (g + 1) / 2;
  return BTC_LAUNCH(space_to_depth, static_cast<unsigned>(n * half * half), THREADS, 0, s, dst, x, static_cast<int>(g),
                    static_cast<int>(c));
}

static __global__ void __launch_bounds__(THREADS)
    embed(float *y, const void *table, btc_cuda_type t, int64_t cols, const int32_t *ids) {
  let_next_begin();
  await_launch_before();
  const int64_t from = ids[blockIdx.x] * cols, to = blockIdx.x * cols;
  for (int64_t j = threadIdx.x; j < cols; j += THREADS) {
    float v;
    if (t == BTC_CUDA_F32) {
      v = static_cast<const float *>(table)[from + j];
    } else {
      uint16_t h = static_cast<const uint16_t *>(table)[from + j];
      v = t == BTC_CUDA_F16 ? f16_to_f32(h) : bf16_to_f32(h);
    }
    y[to + j] = v;
  }
}

int btc_cuda_embed(float *y, const void *table, btc_cuda_type t, int64_t cols, const int32_t *ids, int64_t m, btc_cuda_stream s) {
  if (m <= 0) return 0;
  return BTC_LAUNCH_EARLY(embed, static_cast<unsigned>(m), THREADS, 0, s, y, table, t, cols, ids);
}
