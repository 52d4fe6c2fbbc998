/* What the two families of few-row products share: their operands, and what becomes of a sum. */
#ifndef BTC_KERNELS_CUDA_MATVEC_H
#define BTC_KERNELS_CUDA_MATVEC_H

#include "kernels/cuda/cache.h"
#include "kernels/cuda/epilogue.h"

/* PLAIN: an epilogue. The others are made of two sums, of rows of w that lie apart: a block takes as many rows of each kind. */
typedef enum matvec_kind { MATVEC_PLAIN, MATVEC_GATED, MATVEC_ROTATED } matvec_kind;

typedef struct matvec_job {
  const void *w, *x;
  float *y;         /* may be NULL */
  uint16_t *y_bf16; /* may be NULL */
  btc_cuda_type w_type, x_type;
  int m, n, k;                /* x [m, k], w [n, k] */
  int pitch;                  /* of w's rows */
  bool wide;                  /* rows of w and x are made of whole 16-byte pieces */
  bool round;                 /* operands to bf16 */
  const float *norm;          /* [k]: x is normalised first; NULL: it is not */
  float eps;                  /* of the norm */
  matvec_kind kind;           /* what is stored: */
  btc_cuda_epilogue e;        /* PLAIN: y [m, n]; GATED: y [m, n/2] */
  btc_cuda_kv kv;             /* ROTATED: y [m, heads*d] at y_stride, and the cache */
  btc_cuda_rotation rotation; /* ROTATED */
  int64_t y_stride;
} matvec_job;

/* Sixteen bytes of weights, or zeros when they are not there. */
BTC_DEVICE uint4 load_weights(const void *p, bool there) {
  return load_once<true>(p, there);
}

BTC_DEVICE void store_product(const matvec_job &j, int64_t at, float y) {
  if (j.y) j.y[at] = y;
  if (j.y_bf16) j.y_bf16[at] = f32_to_bf16(y);
}

BTC_DEVICE void finish_product(const matvec_job &j, int x_row, int row, float dot) {
  store_product(j, static_cast<int64_t>(x_row) * j.n + row, finish(dot, j.e, x_row, row, j.n));
}

/* Channels c and c + d/2 of a head of queries, keys or values, whose rows of w `low` is one of. */
BTC_DEVICE void finish_rotated(const matvec_job &j, int x_row, int low, float a, float b) {
  const int d = static_cast<int>(j.kv.d), c = low % d, half = d / 2;
  const int64_t pos = j.rotation.row_pos[x_row];
  int64_t head = low / d;
  const bool value = head >= j.rotation.heads + j.kv.kv_heads;
  const float2 turned = value ? make_float2(a, b) : rotate(a, b, j.rotation.cos, j.rotation.sin, pos * half + c);
  if (head < j.rotation.heads) {
    float *q = j.y + x_row * j.y_stride + low;
    q[0] = turned.x;
    q[half] = turned.y;
    return;
  }
  const int64_t item = j.rotation.row_item[x_row];
  head -= j.rotation.heads + (value ? j.kv.kv_heads : 0);
  void *cache = value ? j.kv.v[item] : j.kv.k[item];
  const int64_t to = slot(j.kv, head, pos, c);
  put(cache, j.kv.type, to, turned.x);
  put(cache, j.kv.type, to + half, turned.y);
}

/* What is made of the sums of two rows of w, the first of them row `low`. */
BTC_DEVICE void finish_pair(const matvec_job &j, int x_row, int low, float a, float b) {
  if (j.kind == MATVEC_GATED)
    store_product(j, static_cast<int64_t>(x_row) * (j.n / 2) + low, silu_times(a, b));
  else
    finish_rotated(j, x_row, low, a, b);
}

/* bf16 weights with x rounded to bf16: tensor cores. */
int btc_cuda_matvec_mma(const matvec_job *j, btc_cuda_stream s);
bool btc_cuda_matvec_mma_norms(const matvec_job *j); /* whether it normalises itself; j->norm is there */
/* Everything else: fused multiply-adds in f32. No norms. */
int btc_cuda_matvec_f32(const matvec_job *j, btc_cuda_stream s);

#endif
