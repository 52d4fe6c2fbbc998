/*
 * Products of a few rows in f32 arithmetic with weights of any stored type: `--dtype f32`, and the rounding of both operands where
 * the weights are not kept as bf16. A warp takes two rows of w and up to eight rows of x; lane l adds columns 8 l .. 8 l + 7 of
 * every 256, each lane's sum in the order of the columns, then the lanes by a fixed tree. Bound by memory for one row of x
 * (at 16 bytes a lane four loads are in flight), by L1 for eight. At most 128 registers, no spills.
 */
#include "kernels/cuda/matvec.h"

enum { WARPS = 8, THREADS = WARPS * 32, ROWS = 2, PIECE = 8, SPAN = 32 * PIECE };

/* Elements column .. column+7 of a row, zeros from k on. */
BTC_DEVICE void load_eight(float *v, const void *p, btc_cuda_type type, int64_t row_at, int column, int k, bool wide, bool round) {
  if (wide && column < k) {
    if (type == BTC_CUDA_F32) {
      const float *x = static_cast<const float *>(p) + row_at + column;
      float4 a = *reinterpret_cast<const float4 *>(x), b = *reinterpret_cast<const float4 *>(x + 4);
      v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else {
      uint4 u = *reinterpret_cast<const uint4 *>(static_cast<const uint16_t *>(p) + row_at + column);
      uint32_t words[4] = {u.x, u.y, u.z, u.w};
      BTC_UNROLL
      for (int i = 0; i < PIECE; i++) {
        uint16_t half = static_cast<uint16_t>(words[i / 2] >> i % 2 * 16);
        v[i] = type == BTC_CUDA_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
      }
    }
  } else {
    BTC_UNROLL
    for (int i = 0; i < PIECE; i++) {
      int64_t at = row_at + column + i;
      if (column + i >= k)
        v[i] = 0.0f;
      else if (type == BTC_CUDA_F32)
        v[i] = static_cast<const float *>(p)[at];
      else
        v[i] = type == BTC_CUDA_BF16 ? bf16_to_f32(static_cast<const uint16_t *>(p)[at])
                                     : f16_to_f32(static_cast<const uint16_t *>(p)[at]);
    }
  }
  if (!round) return;
  BTC_UNROLL
  for (int i = 0; i < PIECE; i++) v[i] = bf16_to_f32(f32_to_bf16(v[i]));
}

template <btc_cuda_type TYPE, int M>
BTC_DEVICE void add_columns(float (*sum)[M], const matvec_job &j, int row, int x_row, int column) {
  float w[ROWS][PIECE];
  BTC_UNROLL
  for (int r = 0; r < ROWS; r++) {
    int64_t from = row + r < j.n ? row + r : j.n - 1; /* a row behind the last one repeats it and is not stored */
    load_eight(w[r], j.w, TYPE, from * j.pitch, column, j.k, j.wide, j.round);
  }
  BTC_UNROLL
  for (int i = 0; i < M; i++) {
    if (x_row + i >= j.m) continue;
    float x[PIECE];
    load_eight(x, j.x, j.x_type, static_cast<int64_t>(x_row + i) * j.k, column, j.k, j.wide, j.round);
    BTC_UNROLL
    for (int r = 0; r < ROWS; r++) BTC_UNROLL
    for (int c = 0; c < PIECE; c++) sum[r][i] = fmaf(w[r][c], x[c], sum[r][i]);
  }
}

/* Block (ROWS * WARPS rows of w, M rows of x). */
template <btc_cuda_type TYPE, int M>
static __global__ void __launch_bounds__(THREADS, 2) matvec_f32(matvec_job j) {
  int lane = static_cast<int>(threadIdx.x) % 32;
  int row = (static_cast<int>(blockIdx.x) * WARPS + static_cast<int>(threadIdx.x) / 32) * ROWS;
  int x_row = static_cast<int>(blockIdx.y) * M;
  if (row >= j.n) return;
  float sum[ROWS][M];
  BTC_UNROLL
  for (int r = 0; r < ROWS; r++) BTC_UNROLL
  for (int i = 0; i < M; i++) sum[r][i] = 0.0f;
  int column = lane * PIECE;
  for (; column + SPAN < j.k; column += 2 * SPAN) {
    add_columns<TYPE, M>(sum, j, row, x_row, column);
    add_columns<TYPE, M>(sum, j, row, x_row, column + SPAN);
  }
  if (column < j.k) add_columns<TYPE, M>(sum, j, row, x_row, column);
  BTC_UNROLL
  for (int r = 0; r < ROWS; r++) BTC_UNROLL
  for (int i = 0; i < M; i++) {
    float dot = warp_sum(sum[r][i]);
    if (lane == 0 && row + r < j.n && x_row + i < j.m) store_product(j, x_row + i, row + r, dot);
  }
}

template <btc_cuda_type TYPE, int M>
static int launch(const matvec_job *j, btc_cuda_stream s) {
  dim3 grid(static_cast<unsigned>((j->n + ROWS * WARPS - 1) / (ROWS * WARPS)), static_cast<unsigned>((j->m + M - 1) / M));
  return BTC_LAUNCH((matvec_f32<TYPE, M>), grid, dim3(THREADS), 0, s, *j);
}

template <btc_cuda_type TYPE>
static int launch_rows(const matvec_job *j, btc_cuda_stream s) {
  return j->m == 1 ? launch<TYPE, 1>(j, s) : launch<TYPE, 8>(j, s);
}

int btc_cuda_matvec_f32(const matvec_job *j, btc_cuda_stream s) {
  if (j->w_type == BTC_CUDA_F32) return launch_rows<BTC_CUDA_F32>(j, s);
  return j->w_type == BTC_CUDA_BF16 ? launch_rows<BTC_CUDA_BF16>(j, s) : launch_rows<BTC_CUDA_F16>(j, s);
}
