/*
 * Row statistics: one block a row, as row.h says. The first pass brings the row into L1/L2, where the second and third find it.
 */
#include "kernels/cuda/row.h"

enum { THREADS = ROW_THREADS, WARPS = ROW_WARPS, STEP = ROW_STEP };

/* The block's sum, in every thread. `parts` [WARPS] must not be in use by an earlier sum that some thread still reads. */
BTC_DEVICE float block_sum(float x, float *parts) {
  leave_part(x, parts);
  __syncthreads();
  return add_parts(parts);
}

/* y may be x: a thread reads and writes the same columns, and all sums are done when it writes. */
static __global__ void __launch_bounds__(THREADS)
    layernorm(float *y, uint16_t *y_bf16, const float *x, int64_t n, const float *weight, const float *bias, float eps) {
  BTC_SHARED(float, sums, WARPS);
  BTC_SHARED(float, deviations, WARPS);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * n;
  const float *row = x + at;
  const bool aligned = rows_aligned(n);
  float sum = 0.0f;
  for (int64_t j = threadIdx.x * 4; j < n; j += STEP) {
    float4 v = load4(row, j, n, aligned);
    sum += (v.x + v.y) + (v.z + v.w);
  }
  const float mean = block_sum(sum, sums) / static_cast<float>(n);
  float deviation = 0.0f;
  for (int64_t j = threadIdx.x * 4; j < n; j += STEP) {
    float4 v = load4(row, j, n, aligned);
    v = make_float4(v.x - mean, j + 1 < n ? v.y - mean : 0.0f, j + 2 < n ? v.z - mean : 0.0f, j + 3 < n ? v.w - mean : 0.0f);
    deviation = squares(deviation, v);
  }
  const float scale = 1.0f / sqrtf(block_sum(deviation, deviations) / static_cast<float>(n) + eps);
  for (int64_t j = threadIdx.x * 4; j < n; j += STEP) {
    float4 v = load4(row, j, n, aligned), w = load4(weight, j, n, true), b = load4(bias, j, n, true);
    v = make_float4(fmaf((v.x - mean) * scale, w.x, b.x), fmaf((v.y - mean) * scale, w.y, b.y),
                    fmaf((v.z - mean) * scale, w.z, b.z), fmaf((v.w - mean) * scale, w.w, b.w));
    if (y) store4(y + at, j, n, aligned, v);
    if (y_bf16) store4(y_bf16 + at, j, n, aligned, v);
  }
}

static __global__ void __launch_bounds__(THREADS)
    rmsnorm(float *y, uint16_t *y_bf16, const float *x, int64_t n, const float *weight, float eps) {
  BTC_SHARED(float, parts, WARPS);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * n;
  const float *row = x + at;
  const bool aligned = rows_aligned(n);
  const float scale = rms_scale(block_sum(row_squares(row, n, aligned), parts), n, eps);
  for (int64_t j = threadIdx.x * 4; j < n; j += STEP) {
    const float4 v = rms_norm4(load4(row, j, n, aligned), scale, load4(weight, j, n, true));
    if (y) store4(y + at, j, n, aligned, v);
    if (y_bf16) store4(y_bf16 + at, j, n, aligned, v);
  }
}

static __global__ void __launch_bounds__(THREADS)
    cosine_concat(float *z, uint16_t *z_bf16, float *cosine, const float *s1, const float *s2, int64_t c) {
  BTC_SHARED(float, dots, WARPS);
  BTC_SHARED(float, firsts, WARPS);
  BTC_SHARED(float, seconds, WARPS);
  const int64_t t = blockIdx.x;
  const float *a = s1 + t * c, *b = s2 + t * c;
  const bool aligned = rows_aligned(c);
  float dot = 0.0f, first = 0.0f, second = 0.0f;
  for (int64_t j = threadIdx.x * 4; j < c; j += STEP) {
    float4 u = load4(a, j, c, aligned), v = load4(b, j, c, aligned);
    dot = fmaf(u.w, v.w, fmaf(u.z, v.z, fmaf(u.y, v.y, fmaf(u.x, v.x, dot))));
    first = squares(first, u);
    second = squares(second, v);
  }
  dot = block_sum(dot, dots);
  first = fmaxf(sqrtf(block_sum(first, firsts)), 1e-8f);
  second = fmaxf(sqrtf(block_sum(second, seconds)), 1e-8f);
  const float similar = dot / first / second; /* two divisions: the product of tiny norms would vanish */
  if (cosine && threadIdx.x == 0) cosine[t] = similar;
  for (int half = 0; half < 2; half++) {
    const float *from = half ? b : a;
    const int64_t at = (2 * t + half) * c;
    for (int64_t j = threadIdx.x * 4; j < c; j += STEP) {
      float4 v = load4(from, j, c, aligned);
      v = make_float4(v.x + similar, v.y + similar, v.z + similar, v.w + similar);
      if (z) store4(z + at, j, c, aligned, v);
      if (z_bf16) store4(z_bf16 + at, j, c, aligned, v);
    }
  }
}

int btc_cuda_layernorm(float *y, uint16_t *y_bf16, const float *x, int64_t m, int64_t n, const float *weight, const float *bias,
                       float eps, btc_cuda_stream s) {
  if (m <= 0) return 0;
  return BTC_LAUNCH(layernorm, static_cast<unsigned>(m), THREADS, 0, s, y, y_bf16, x, n, weight, bias, eps);
}

int btc_cuda_rmsnorm(float *y, uint16_t *y_bf16, const float *x, int64_t m, int64_t n, const float *weight, float eps,
                     btc_cuda_stream s) {
  if (m <= 0) return 0;
  return BTC_LAUNCH(rmsnorm, static_cast<unsigned>(m), THREADS, 0, s, y, y_bf16, x, n, weight, eps);
}

int btc_cuda_cosine_concat(float *z, uint16_t *z_bf16, float *cosine, const float *s1, const float *s2, int64_t t, int64_t c,
                           btc_cuda_stream s) {
  if (t <= 0) return 0;
  return BTC_LAUNCH(cosine_concat, static_cast<unsigned>(t), THREADS, 0, s, z, z_bf16, cosine, s1, s2, c);
}
