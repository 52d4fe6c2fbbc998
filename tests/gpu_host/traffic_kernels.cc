#include "traffic_kernels.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/mma.h"

static void words(float *y, int stride) {
  BTC_SHARED(float, tile, 32 * 33);
  int i = static_cast<int>(threadIdx.x);
  y[i] = tile[i * stride];
}

int traffic_words(float *y, int stride) {
  return BTC_LAUNCH(words, 1, 32, 0, nullptr, y, stride);
}

static void pieces(float *y, int stride) {
  BTC_SHARED(float4, tile, 32 * 8);
  int i = static_cast<int>(threadIdx.x);
  float4 v = tile[i * stride];
  y[i] = v.x;
}

int traffic_pieces(float *y, int stride) {
  return BTC_LAUNCH(pieces, 1, 32, 0, nullptr, y, stride);
}

static void matrices(uint32_t *y, int pitch) {
  BTC_SHARED(uint16_t, tile, 32 * 72);
  uint32_t r[4];
  ldmatrix_x4(r, tile + static_cast<int>(threadIdx.x) * pitch);
  y[threadIdx.x] = r[0];
}

int traffic_matrices(unsigned *y, int pitch) {
  return BTC_LAUNCH(matrices, 1, 32, 0, nullptr, y, pitch);
}

static void global(float *y, const float *x, int stride) {
  int i = static_cast<int>(threadIdx.x);
  y[i] = x[i * stride];
}

int traffic_global(float *y, const float *x, int stride) {
  return BTC_LAUNCH(global, 1, 32, 0, nullptr, y, x, stride);
}
