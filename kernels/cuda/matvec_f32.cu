/*
 * Products of a few rows in f32 arithmetic with weights of any stored type: `--dtype f32`, and the rounding of both operands where
 * the weights are not kept as bf16. A warp takes two rows of w (neighbours, or the two that one result is made of) and up to eight
 * rows of x; lane l adds columns 8 l .. 8 l + 7 of
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

/* Rows of w of a warp: the second of the last one of an odd number repeats it and is not stored. */
struct row_pair {
  int x, y;
};

BTC_DEVICE row_pair rows_of(const matvec_job &j, int pair) {
  const int half = static_cast<int>(j.kv.d) / 2;
  if (j.kind == MATVEC_GATED) return {pair, pair + j.n / 2};
  if (j.kind == MATVEC_ROTATED) return {pair / half * 2 * half + pair % half, pair / half * 2 * half + pair % half + half};
  return {2 * pair, 2 * pair + 1 < j.n ? 2 * pair + 1 : j.n - 1};
}

template <btc_cuda_type TYPE, int M>
BTC_DEVICE void add_columns(float (*sum)[M], const matvec_job &j, row_pair rows, int x_row, int column) {
  float w[ROWS][PIECE];
  load_eight(w[0], j.w, TYPE, static_cast<int64_t>(rows.x) * j.pitch, column, j.k, j.wide, j.round);
  load_eight(w[1], j.w, TYPE, static_cast<int64_t>(rows.y) * j.pitch, column, j.k, j.wide, j.round);
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
  int pair = static_cast<int>(blockIdx.x) * WARPS + static_cast<int>(threadIdx.x) / 32;
  int x_row = static_cast<int>(blockIdx.y) * M;
  if (pair * ROWS >= j.n) return;
  row_pair rows = rows_of(j, pair);
  float sum[ROWS][M];
  BTC_UNROLL
  for (int r = 0; r < ROWS; r++) BTC_UNROLL
  for (int i = 0; i < M; i++) sum[r][i] = 0.0f;
  int column = lane * PIECE;
  for (; column + SPAN < j.k; column += 2 * SPAN) {
    add_columns<TYPE, M>(sum, j, rows, x_row, column);
    add_columns<TYPE, M>(sum, j, rows, x_row, column + SPAN);
  }
  if (column < j.k) add_columns<TYPE, M>(sum, j, rows, x_row, column);
  BTC_UNROLL
  for (int i = 0; i < M; i++) {
    float a = warp_sum(sum[0][i]), b = warp_sum(sum[1][i]);
    if (lane != 0 || x_row + i >= j.m) continue;
    if (j.kind != MATVEC_PLAIN) {
      finish_pair(j, x_row + i, rows.x, a, b);
      continue;
    }
    finish_product(j, x_row + i, rows.x, a);
    if (rows.y != rows.x) finish_product(j, x_row + i, rows.y, b);
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
