/* What the two families of few-row products share: their operands. */
#ifndef BTC_KERNELS_CUDA_MATVEC_H
#define BTC_KERNELS_CUDA_MATVEC_H

#include "kernels/cuda/epilogue.h"

typedef struct matvec_job {
  const void *w, *x;
  float *y;         /* may be NULL */
  uint16_t *y_bf16; /* may be NULL */
  btc_cuda_type w_type, x_type;
  int m, n, k; /* x [m, k], w [n, k], y [m, n] */
  int pitch;   /* of w's rows */
  bool wide;   /* rows of w and x are made of whole 16-byte pieces */
  bool round;
  btc_cuda_epilogue e;
} matvec_job;

/* Weights are read once: they go past L1, which keeps x. */
BTC_DEVICE uint4 load_weights(const void *p) {
#ifdef __CUDACC__
  uint4 u;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(u.x), "=r"(u.y), "=r"(u.z), "=r"(u.w) : "l"(p));
  return u;
#else
  return __ldg(static_cast<const uint4 *>(p));
#endif
}

BTC_DEVICE void store_product(const matvec_job &j, int row, int column, float dot) {
  float y = finish(dot, j.e, row, column, j.n);
  int64_t at = static_cast<int64_t>(row) * j.n + column;
  if (j.y) j.y[at] = y;
  if (j.y_bf16) j.y_bf16[at] = f32_to_bf16(y);
}

/* bf16 weights with x rounded to bf16: tensor cores. */
int btc_cuda_matvec_mma(const matvec_job *j, btc_cuda_stream s);
/* Everything else: fused multiply-adds in f32. */
int btc_cuda_matvec_f32(const matvec_job *j, btc_cuda_stream s);

#endif
