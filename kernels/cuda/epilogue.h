/* What happens to a sum before it is stored (cuda.h, btc_cuda_epilogue): shared by the products and btc_cuda_epilogue_apply. */
#ifndef BTC_KERNELS_CUDA_EPILOGUE_H
#define BTC_KERNELS_CUDA_EPILOGUE_H

#include "kernels/cuda/device.h"

BTC_DEVICE float activate(float x, btc_cuda_act act) {
  switch (act) {
    case BTC_CUDA_GELU_TANH:
      return 0.5f * x * (1.0f + tanhf(0.79788456f * fmaf(0.044715f * x * x, x, x)));
    case BTC_CUDA_GELU_ERF:
      return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case BTC_CUDA_RELU:
      return x < 0.0f ? 0.0f : x; /* a NaN passes */
    case BTC_CUDA_NONE:
      break;
  }
  return x;
}

/* exp by its exact library function: the gate's own error then stays within a few units in the last place. */
BTC_DEVICE float silu_times(float g, float u) {
  return g / (1.0f + expf(-g)) * u;
}

/* The value of row m, column n of a product of `width` columns. */
BTC_DEVICE float finish(float dot, const btc_cuda_epilogue &e, int64_t m, int64_t n, int64_t width) {
  float v = e.scale ? dot * e.scale[n] : dot;
  if (e.bias) v += e.bias[n];
  if (!e.residual) return activate(v, e.act);
  float r = e.residual[(e.residual_rows > 0 ? m % e.residual_rows : m) * width + n];
  return e.residual_first ? activate(v + r, e.act) : activate(v, e.act) + r;
}

#endif
