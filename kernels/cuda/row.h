/*
 * One row in the hands of a block of 256 threads: norm.cu, and the products that normalise a row before they read it. Thread t owns
 * the columns t*4 + k*1024 (+0..3) whatever the row's alignment, adds them in that order, then warps and the block add by a fixed
 * tree: what a row becomes depends on its width only.
 */
#ifndef BTC_KERNELS_CUDA_ROW_H
#define BTC_KERNELS_CUDA_ROW_H

#include "kernels/cuda/device.h"

enum { ROW_THREADS = 256, ROW_WARPS = ROW_THREADS / 32, ROW_STEP = ROW_THREADS * 4 };

/* Columns j..j+3 of a row of n; those past the end are 0. WHOLE: rows have 4 k columns and begin on 16 bytes, known when it is
 * compiled, so that no branch stands between the loads. */
template <bool WHOLE = false>
BTC_DEVICE float4 load4(const float *row, int64_t j, int64_t n, bool aligned = true) {
  if (WHOLE || (aligned && j + 4 <= n)) return *reinterpret_cast<const float4 *>(row + j);
  float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (j < n) v.x = row[j];
  if (j + 1 < n) v.y = row[j + 1];
  if (j + 2 < n) v.z = row[j + 2];
  if (j + 3 < n) v.w = row[j + 3];
  return v;
}

BTC_DEVICE void store4(float *row, int64_t j, int64_t n, bool aligned, float4 v) {
  if (aligned && j + 4 <= n) {
    *reinterpret_cast<float4 *>(row + j) = v;
    return;
  }
  if (j < n) row[j] = v.x;
  if (j + 1 < n) row[j + 1] = v.y;
  if (j + 2 < n) row[j + 2] = v.z;
  if (j + 3 < n) row[j + 3] = v.w;
}

BTC_DEVICE void store4(uint16_t *row, int64_t j, int64_t n, bool aligned, float4 v) {
  if (aligned && j + 4 <= n) {
    *reinterpret_cast<uint2 *>(row + j) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
    return;
  }
  if (j < n) row[j] = f32_to_bf16(v.x);
  if (j + 1 < n) row[j + 1] = f32_to_bf16(v.y);
  if (j + 2 < n) row[j + 2] = f32_to_bf16(v.z);
  if (j + 3 < n) row[j + 3] = f32_to_bf16(v.w);
}

/* Rows may start anywhere when n is odd: then one column at a time. */
BTC_DEVICE bool rows_aligned(int64_t n) {
  return n % 4 == 0;
}

/* A block's sum in two halves: each warp leaves its own in parts [ROW_WARPS]; behind a barrier everybody adds them. */
BTC_DEVICE void leave_part(float x, float *parts) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
}

BTC_DEVICE float add_parts(const float *parts) {
  float sum = 0.0f;
  BTC_UNROLL
  for (int w = 0; w < ROW_WARPS; w++) sum += parts[w];
  return sum;
}

BTC_DEVICE float squares(float sum, float4 v) {
  return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
}

/* This thread's part of the sum of a row's squares. */
template <bool WHOLE = false>
BTC_DEVICE float row_squares(const float *row, int64_t n, bool aligned = true) {
  float sum = 0.0f;
  for (int64_t j = threadIdx.x * 4; j < n; j += ROW_STEP) sum = squares(sum, load4<WHOLE>(row, j, n, aligned));
  return sum;
}

/* What a root-mean-square norm multiplies a row by before its weight. */
BTC_DEVICE float rms_scale(float sum, int64_t n, float eps) {
  return 1.0f / sqrtf(sum / static_cast<float>(n) + eps);
}

BTC_DEVICE float4 rms_norm4(float4 v, float scale, float4 w) {
  return make_float4(v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w);
}

#endif
