/* Stored number formats to f32 and bf16, several elements a thread: 16 bytes read at once where the address allows it. */
#include "kernels/cuda/device.h"

enum { THREADS = 256, EACH = 8 }; /* elements a thread */

template <btc_cuda_type T>
BTC_DEVICE float stored(const void *x, int64_t i) {
  if (T == BTC_CUDA_F32) return static_cast<const float *>(x)[i];
  uint16_t h = static_cast<const uint16_t *>(x)[i];
  return T == BTC_CUDA_F16 ? f16_to_f32(h) : bf16_to_f32(h);
}

template <btc_cuda_type T>
BTC_DEVICE void load_block(float v[EACH], const void *x, int64_t i) {
  if (T == BTC_CUDA_F32) {
    const float4 *p = reinterpret_cast<const float4 *>(static_cast<const float *>(x) + i);
    float4 a = p[0], b = p[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    return;
  }
  uint4 p = *reinterpret_cast<const uint4 *>(static_cast<const uint16_t *>(x) + i);
  uint32_t words[4] = {p.x, p.y, p.z, p.w};
  BTC_UNROLL
  for (int k = 0; k < 4; k++) {
    v[2 * k] = T == BTC_CUDA_F16 ? f16_to_f32(static_cast<uint16_t>(words[k])) : bf16_low(words[k]);
    v[2 * k + 1] = T == BTC_CUDA_F16 ? f16_to_f32(static_cast<uint16_t>(words[k] >> 16)) : bf16_high(words[k]);
  }
}

BTC_DEVICE void store_block(float *y, int64_t i, const float v[EACH]) {
  float4 *p = reinterpret_cast<float4 *>(y + i);
  p[0] = make_float4(v[0], v[1], v[2], v[3]);
  p[1] = make_float4(v[4], v[5], v[6], v[7]);
}

BTC_DEVICE void store_block(uint16_t *y, int64_t i, const float v[EACH]) {
  *reinterpret_cast<uint4 *>(y + i) =
      make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

BTC_DEVICE void store_one(float *y, float v) {
  *y = v;
}

BTC_DEVICE void store_one(uint16_t *y, float v) {
  *y = f32_to_bf16(v);
}

template <btc_cuda_type T, typename Out>
static __global__ void __launch_bounds__(THREADS) convert(Out *y, const void *x, int64_t n, bool aligned) {
  int64_t i = (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) * EACH;
  if (aligned && i + EACH <= n) {
    float v[EACH];
    load_block<T>(v, x, i);
    store_block(y, i, v);
  } else {
    const int64_t end = i + EACH < n ? i + EACH : n;
    for (; i < end; i++) store_one(y + i, stored<T>(x, i));
  }
}

template <typename Out>
static int launch(Out *y, const void *x, btc_cuda_type t, int64_t n, btc_cuda_stream s) {
  if (n <= 0) return 0;
  /* Rows of odd widths, and tensors in the middle of a file, begin anywhere. */
  const bool aligned = (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y)) % 16 == 0;
  unsigned grid = static_cast<unsigned>((n + THREADS * EACH - 1) / (THREADS * EACH));
  if (t == BTC_CUDA_F32) return BTC_LAUNCH((convert<BTC_CUDA_F32, Out>), grid, THREADS, 0, s, y, x, n, aligned);
  if (t == BTC_CUDA_F16) return BTC_LAUNCH((convert<BTC_CUDA_F16, Out>), grid, THREADS, 0, s, y, x, n, aligned);
  return BTC_LAUNCH((convert<BTC_CUDA_BF16, Out>), grid, THREADS, 0, s, y, x, n, aligned);
}

int btc_cuda_to_f32(float *y, const void *x, btc_cuda_type t, int64_t n, btc_cuda_stream s) {
  return launch(y, x, t, n, s);
}

int btc_cuda_to_bf16(uint16_t *y, const void *x, btc_cuda_type t, int64_t n, btc_cuda_stream s) {
  return launch(y, x, t, n, s);
}
