/* Stored number formats: sizes, names and exact conversions, one element at a time. */
#include <string.h>

#include "ops/ops.h"

size_t btc_dtype_size(btc_dtype t) {
  static const size_t sizes[] = {[BTC_F32] = 4, [BTC_F16] = 2, [BTC_BF16] = 2, [BTC_I64] = 8};
  return sizes[t];
}

const char *btc_dtype_name(btc_dtype t) {
  static const char *const names[] = {[BTC_F32] = "f32", [BTC_F16] = "f16", [BTC_BF16] = "bf16", [BTC_I64] = "i64"};
  return names[t];
}

static uint32_t float_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

static float bits_float(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

uint16_t btc_f32_to_bf16(float x) {
  uint32_t u = float_bits(x);
  /* Rounding could carry a NaN's payload into infinity: keep its top half and make it quiet. */
  if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
  return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

float btc_bf16_to_f32(uint16_t x) {
  return bits_float((uint32_t)x << 16);
}

float btc_f16_to_f32(uint16_t x) {
  uint32_t sign = (uint32_t)(x & 0x8000) << 16, exponent = x >> 10 & 31, mantissa = x & 0x3ff;
  if (exponent == 31) return bits_float(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
  if (exponent) return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
  float subnormal = (float)mantissa * 0x1p-24f; /* exact: 10 bits */
  return sign ? -subnormal : subnormal;
}

void btc_to_f32(float *dst, const void *src, btc_dtype t, size_t n) {
  const unsigned char *bytes = src;
  if (t == BTC_F32) {
    memcpy(dst, src, n * sizeof *dst);
    return;
  }
  for (size_t i = 0; i < n; i++) {
    uint16_t h;
    memcpy(&h, bytes + 2 * i, sizeof h);
    dst[i] = t == BTC_F16 ? btc_f16_to_f32(h) : btc_bf16_to_f32(h);
  }
}
