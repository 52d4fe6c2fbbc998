/* Rotary positions, and where keys and values lie in the cache: kv_cache.cu, and the products that store what they make. */
#ifndef BTC_KERNELS_CUDA_CACHE_H
#define BTC_KERNELS_CUDA_CACHE_H

#include "kernels/cuda/device.h"

BTC_DEVICE void put(void *cache, btc_cuda_type t, int64_t i, float v) {
  if (t == BTC_CUDA_F32)
    static_cast<float *>(cache)[i] = v;
  else
    static_cast<uint16_t *>(cache)[i] = f32_to_bf16(v);
}

/* Where channel c of head h at position pos lies in an item's cache. */
BTC_DEVICE int64_t slot(const btc_cuda_kv &kv, int64_t h, int64_t pos, int64_t c) {
  return (h * kv.capacity + pos) * kv.d + c;
}

/* Channels j and j + d/2 of a head at position pos, rotated. */
BTC_DEVICE float2 rotate(float low, float high, const float *cos, const float *sin, int64_t angle) {
  const float c = cos[angle], s = sin[angle];
  return make_float2(low * c - high * s, high * c + low * s);
}

#endif
