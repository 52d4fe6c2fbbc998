/*
 * Products of a few rows with a bf16 matrix (decode): bound by the one reading of the weights. The tensor cores do the arithmetic,
 * because plain multiply-adds fall behind the memory from about eight rows on (8 rows: 77 a cycle and multiprocessor at 4.3 TB/s,
 * of 128, and as many shared-memory reads), and because a column of mma.sync does not know its neighbours: one row and 32 rows run
 * the same instructions, so a row's bits do not depend on m.
 *
 * Weights are the left operand: a warp takes 16 (or 32) rows of w and, of their columns, every eighth step of 64; the block's eight
 * warps are added at the end, in their order. The order of a sum is thus: steps of a warp, then warps; it depends on k alone.
 * Which columns of k a lane's words stand for is free as long as both operands agree, so a lane loads 16 bytes of a row, eight
 * columns, and uses them as the fragments of two products (words 0, 1 and words 2, 3): no shared memory, no shuffles, no
 * conversion.
 *
 * Weights are asked for in pairs of steps (128 columns of 16 rows a warp: 4 KiB). For up to eight rows of x the next two pairs are
 * on their way while one is multiplied, and the first two before anything of x is read: 128 KiB a multiprocessor, where 4.3 TB/s at
 * 1 us want 32 KiB; otherwise one pair. [2560, k] at 16 rows a block is 160 blocks of 8 warps, not more than fit the card.
 * nvcc 13.0: 128 registers at most up to eight rows of x, so two blocks a multiprocessor; up to 255 for more; no spills. x is read
 * through L1 and L2: m * 4 / (16 * T * 2) of the weights' bytes in f32, half of that in bf16; so more rows of w a block (T = 2) for
 * more than eight rows of x where w has rows enough to fill the card.
 *
 * The rows of w need not be neighbours: a block takes half of them at one place and half at another, where a result is made of two
 * sums (a gate and what it lets through, two channels that are rotated). Up to NORM_ROWS rows of x are normalised by every block
 * for itself, in shared memory, while its first weights are on their way: a launch less, for m * 4 / 32 of the weights' bytes more
 * from L2.
 */
#include "kernels/cuda/matvec.h"
#include "kernels/cuda/mma.h"
#include "kernels/cuda/row.h"

enum {
  WARPS = 8,
  THREADS = WARPS * 32,
  NORM_ROWS = 4,
  NORM_BYTES = 40 << 10, /* of normalised rows; the sums take 5 KiB of the 48 that every launch may have */
  NORM_PAD = 32          /* columns between them, so that two rows' pieces lie in other banks */
};
enum { HALF = 32 /* columns of k one 16-byte piece a lane covers */, STEP = 2 * HALF, STEPS = 2 };
static_assert(WARPS == static_cast<int>(ROW_WARPS), "a row is normalised by as many threads as in norm.cu");

/* The block's rows of w: 8 T from `low` on, and 8 T from `high` on; those from an end on are not there. */
struct tile {
  int low, low_end, high, high_end;
};

template <int T>
BTC_DEVICE tile tile_of(const matvec_job &j) {
  const int b = static_cast<int>(blockIdx.x), d = static_cast<int>(j.kv.d), n = j.n, rows = 8 * T;
  if (j.kind == MATVEC_GATED) return {b * rows, n / 2, n / 2 + b * rows, n};
  if (j.kind == MATVEC_PLAIN) return {2 * b * rows, n, 2 * b * rows + rows, n};
  const int a_head = d / 2 / rows, low = b / a_head * d + b % a_head * rows;
  return {low, n, low + d / 2, n};
}

/* Where this lane's rows g and g+8 of each 16 begin. A row that is not there repeats the last one and is not stored. */
template <int T>
struct row_starts {
  int64_t at[T][2];
};

template <int T>
BTC_DEVICE row_starts<T> starts_of(const matvec_job &j, const tile &rows) {
  row_starts<T> starts;
  const int g = static_cast<int>(threadIdx.x) % 32 / 4;
  BTC_UNROLL
  for (int t = 0; t < T; t++) BTC_UNROLL
  for (int half = 0; half < 2; half++) {
    const int i = t * 16 + half * 8, low = rows.low + i + g, high = rows.high + i - 8 * T + g;
    const int row = i < 8 * T ? (low < rows.low_end ? low : rows.low_end - 1) : (high < rows.high_end ? high : rows.high_end - 1);
    starts.at[t][half] = static_cast<int64_t>(row) * j.pitch;
  }
  return starts;
}

/* Two steps of 16 T rows of w: this lane's pieces of rows g and g+8. */
template <int T>
struct weights {
  uint4 at[STEPS * 2][T][2];
};

/* What the operands are, known when the loads are compiled so that all of a pair's go out together. NARROW: rows that are not whole
 * in 16-byte pieces, x of either type; slow. NORMED: x lies in shared memory, normalised. */
enum form { NARROW, WIDE_F32, WIDE_BF16, NORMED };

/* Eight columns of a row, zeros from k on. */
BTC_DEVICE uint4 load_narrow(const matvec_job &j, const void *p, btc_cuda_type type, int64_t row_at, int column) {
  uint32_t half[8];
  BTC_UNROLL
  for (int i = 0; i < 8; i++) {
    int64_t at = row_at + column + i;
    if (column + i >= j.k)
      half[i] = 0;
    else
      half[i] = type == BTC_CUDA_F32 ? f32_to_bf16(static_cast<const float *>(p)[at]) : static_cast<const uint16_t *>(p)[at];
  }
  return make_uint4(half[0] | half[1] << 16, half[2] | half[3] << 16, half[4] | half[5] << 16, half[6] | half[7] << 16);
}

template <form F>
BTC_DEVICE uint4 load_w(const matvec_job &j, int64_t at, int column) {
  if constexpr (F == NARROW) return load_narrow(j, j.w, BTC_CUDA_BF16, at, column);
  return load_weights(static_cast<const uint16_t *>(j.w) + at + column, column < j.k);
}

/* Eight columns of a row of x as bf16. A row that is not there reads row 0 and is zeroed after: loads without a branch go out
 * together. x is what a launch before has written, perhaps while this one runs already: no read-only loads. */
template <form F>
BTC_DEVICE uint4 load_x(const matvec_job &j, const uint16_t *normed, int row, int column) {
  bool there = row < j.m && column < j.k;
  int64_t at = there ? static_cast<int64_t>(row) * j.k + column : 0;
  uint4 u;
  if constexpr (F == NORMED) {
    u = *reinterpret_cast<const uint4 *>(normed + (there ? row * (j.k + NORM_PAD) + column : 0));
    return there ? u : make_uint4(0, 0, 0, 0);
  }
  if constexpr (F == NARROW) {
    u = load_narrow(j, j.x, j.x_type, at - (there ? column : 0), there ? column : 0);
  } else if constexpr (F == WIDE_BF16) {
    u = *reinterpret_cast<const uint4 *>(static_cast<const uint16_t *>(j.x) + at);
  } else {
    const float4 *x = reinterpret_cast<const float4 *>(static_cast<const float *>(j.x) + at);
    float4 a = x[0], b = x[1];
    u = make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w));
  }
  return there ? u : make_uint4(0, 0, 0, 0);
}

/* First column of piece `piece` of a warp's pair of steps `pair`. */
BTC_DEVICE int first_column(int pair, int piece) {
  int warp = static_cast<int>(threadIdx.x) / 32, t = static_cast<int>(threadIdx.x) % 4;
  return ((pair * STEPS + piece / 2) * WARPS + warp) * STEP + piece % 2 * HALF + t * 8;
}

template <form F, int T>
BTC_DEVICE void load_pair(weights<T> *w, const matvec_job &j, const row_starts<T> &rows, int pair) {
  BTC_UNROLL
  for (int p = 0; p < STEPS * 2; p++) BTC_UNROLL
  for (int t = 0; t < T; t++) BTC_UNROLL
  for (int half = 0; half < 2; half++) w->at[p][t][half] = load_w<F>(j, rows.at[t][half], first_column(pair, p));
}

template <form F, int T, int X8>
BTC_DEVICE void multiply_pair(float (*sum)[X8][4], const weights<T> &w, const matvec_job &j, const uint16_t *normed, int x_row,
                              int pair) {
  BTC_UNROLL
  for (int i = 0; i < X8; i++) {
    uint4 x[STEPS * 2];
    BTC_UNROLL
    for (int p = 0; p < STEPS * 2; p++) x[p] = load_x<F>(j, normed, x_row + i * 8, first_column(pair, p));
    BTC_UNROLL
    for (int p = 0; p < STEPS * 2; p++) {
      uint32_t low[2] = {x[p].x, x[p].y}, high[2] = {x[p].z, x[p].w};
      BTC_UNROLL
      for (int t = 0; t < T; t++) {
        const uint4 &a = w.at[p][t][0], &b = w.at[p][t][1];
        uint32_t first[4] = {a.x, b.x, a.y, b.y}, second[4] = {a.z, b.z, a.w, b.w};
        mma_16816(sum[t][i], first, low);
        mma_16816(sum[t][i], second, high);
      }
    }
  }
}

/* The rows of x as btc_cuda_rmsnorm would have stored them, NORM_PAD columns apart. */
BTC_DEVICE void normalise_rows(uint16_t *to, const matvec_job &j) {
  BTC_SHARED(float, parts, NORM_ROWS *ROW_WARPS);
  const float *x = static_cast<const float *>(j.x);
  for (int i = 0; i < j.m; i++) leave_part(row_squares<true>(x + static_cast<int64_t>(i) * j.k, j.k), parts + i * ROW_WARPS);
  __syncthreads();
  for (int i = 0; i < j.m; i++) {
    const float scale = rms_scale(add_parts(parts + i * ROW_WARPS), j.k, j.eps), *row = x + static_cast<int64_t>(i) * j.k;
    for (int c = static_cast<int>(threadIdx.x) * 4; c < j.k; c += ROW_STEP) {
      const float4 v = rms_norm4(load4<true>(row, c, j.k), scale, load4<true>(j.norm, c, j.k));
      *reinterpret_cast<uint2 *>(to + i * (j.k + NORM_PAD) + c) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
    }
  }
  __syncthreads();
}

/* The warps' sums, in their order. */
template <int PITCH, int COLUMNS>
BTC_DEVICE float add_warps(const float *sums, int x, int row) {
  float dot = 0.0f;
  BTC_UNROLL
  for (int w = 0; w < WARPS; w++) dot += sums[(w * COLUMNS + x) * PITCH + row];
  return dot;
}

template <int T, int X8>
BTC_DEVICE void join_warps(float (*sum)[X8][4], const matvec_job &j, const tile &rows, int first_x) {
  constexpr int ROWS = 16 * T, COLUMNS = 8 * X8, PITCH = ROWS + 4 /* lanes of one store: 4 columns of 2 t, 8 rows: all banks */;
  BTC_SHARED(float, sums, WARPS *COLUMNS *PITCH);
  int warp = static_cast<int>(threadIdx.x) / 32, g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
  BTC_UNROLL
  for (int r = 0; r < T; r++) BTC_UNROLL
  for (int i = 0; i < X8; i++) BTC_UNROLL
  for (int c = 0; c < 4; c++) sums[(warp * COLUMNS + i * 8 + 2 * t + c % 2) * PITCH + r * 16 + c / 2 * 8 + g] = sum[r][i][c];
  __syncthreads();
  const int each = j.kind == MATVEC_PLAIN ? ROWS : ROWS / 2; /* results of a row of x */
  for (int i = static_cast<int>(threadIdx.x); i < each * COLUMNS; i += THREADS) {
    int row = i % each, x = i / each;
    if (rows.low + row >= rows.low_end || first_x + x >= j.m) continue;
    float dot = add_warps<PITCH, COLUMNS>(sums, x, row);
    if (j.kind == MATVEC_PLAIN)
      finish_product(j, first_x + x, rows.low + row, dot);
    else
      finish_pair(j, first_x + x, rows.low + row, dot, add_warps<PITCH, COLUMNS>(sums, x, row + ROWS / 2));
  }
}

/* Block (16 T rows of w, 8 X8 rows of x). */
template <form F, int T, int X8>
static __global__ void __launch_bounds__(THREADS, F == NARROW || T * X8 > (F == WIDE_F32 ? 1 : 2) ? 1 : 2)
    matvec_mma(matvec_job j) {
  let_next_begin();
  int g = static_cast<int>(threadIdx.x) % 32 / 4, x_row = static_cast<int>(blockIdx.y) * 8 * X8;
  int pairs = (j.k + STEP * WARPS * STEPS - 1) / (STEP * WARPS * STEPS);
  const tile rows = tile_of<T>(j);
  const row_starts<T> starts = starts_of<T>(j, rows);
  weights<T> even, odd;
  if (j.w) { /* Weights first: they wait for nothing. Without a branch the compiler lets the wait below go before them. */
    load_pair<F, T>(&even, j, starts, 0);
    if constexpr (T >= X8) load_pair<F, T>(&odd, j, starts, 1);
  }
  await_launch_before();
  BTC_DYNAMIC_SHARED(uint16_t, normed);
  if constexpr (F == NORMED) normalise_rows(normed, j);
  float sum[T][X8][4];
  BTC_UNROLL
  for (int t = 0; t < T; t++) BTC_UNROLL
  for (int i = 0; i < X8; i++) sum[t][i][0] = sum[t][i][1] = sum[t][i][2] = sum[t][i][3] = 0.0f;
  for (int pair = 0; pair < pairs; pair += 2) { /* behind the end: zeros, nothing is read */
    if constexpr (T < X8) load_pair<F, T>(&odd, j, starts, pair + 1);
    multiply_pair<F, T, X8>(sum, even, j, normed, x_row + g, pair);
    load_pair<F, T>(&even, j, starts, pair + 2);
    multiply_pair<F, T, X8>(sum, odd, j, normed, x_row + g, pair + 1);
    if constexpr (T >= X8) load_pair<F, T>(&odd, j, starts, pair + 3);
  }
  join_warps<T, X8>(sum, j, rows, x_row);
}

static size_t normed_bytes(const matvec_job *j) {
  return static_cast<size_t>(j->m) * static_cast<size_t>(j->k + NORM_PAD) * sizeof(uint16_t);
}

bool btc_cuda_matvec_mma_norms(const matvec_job *j) {
  return j->wide && reinterpret_cast<uintptr_t>(j->norm) % 16 == 0 && j->m <= NORM_ROWS && normed_bytes(j) <= NORM_BYTES;
}

template <form F, int T, int X8>
static int launch(const matvec_job *j, btc_cuda_stream s) {
  const int results = j->kind == MATVEC_PLAIN ? j->n : j->n / 2, each = j->kind == MATVEC_PLAIN ? 16 * T : 8 * T;
  dim3 grid(static_cast<unsigned>((results + each - 1) / each), static_cast<unsigned>((j->m + 8 * X8 - 1) / (8 * X8)));
  return BTC_LAUNCH_EARLY((matvec_mma<F, T, X8>), grid, dim3(THREADS), F == NORMED ? normed_bytes(j) : 0, s, *j);
}

template <form F, int T>
static int launch_rows(const matvec_job *j, btc_cuda_stream s) {
  return j->m <= 16 ? launch<F, T, 2>(j, s) : launch<F, T, 4>(j, s);
}

template <form F>
static int launch_wide(const matvec_job *j, btc_cuda_stream s) {
  bool tall = j->n >= 16 * 2 * 132; /* enough blocks of 32 rows for every multiprocessor of an H200 */
  if (j->kind == MATVEC_ROTATED && j->kv.d % 32 != 0) tall = false; /* sixteen channels and those they are rotated with */
  if (j->m <= 8) return launch<F, 1, 1>(j, s);
  return tall ? launch_rows<F, 2>(j, s) : launch_rows<F, 1>(j, s);
}

int btc_cuda_matvec_mma(const matvec_job *j, btc_cuda_stream s) {
  if (j->norm) return launch<NORMED, 1, 1>(j, s);
  if (!j->wide) return j->m <= 8 ? launch<NARROW, 1, 1>(j, s) : launch_rows<NARROW, 1>(j, s);
  return j->x_type == BTC_CUDA_F32 ? launch_wide<WIDE_F32>(j, s) : launch_wide<WIDE_BF16>(j, s);
}
