/*
 * Row statistics. A row is cut into pieces of 128 columns, four a lane; eight warps have every eighth piece each. A warp adds the
 * columns of each lane in order, then its lanes by a fixed tree, and the eight sums are added in order: a row's bits depend on its
 * width only.
 *
 * The row is read once and held in registers: its statistics need it two or three times, and the L1 that would hold the rows of all
 * blocks is smaller than they are. Few rows, as those of a decode step, take the eight warps of a block each, which is soonest
 * done. Many rows take a warp each that plays all eight: no warp then waits for another, and eight times the rows are on their way
 * from memory. Both give the same bits. Rows wider than what registers hold are read again.
 */
#include "kernels/cuda/row.h"

enum { WARPS = ROW_WARPS, PIECE = 128, STEP = ROW_STEP, ROWS = 4 /* of a block of warps with a row each */, MANY_ROWS = 2048 };

/* The block's sum, in every thread. `parts` [WARPS] must not be in use by an earlier sum that some thread still reads. */
BTC_DEVICE float block_sum(float x, float *parts) {
  leave_part(x, parts);
  __syncthreads();
  return add_parts(parts);
}

/* How a row lies in threads. HELD: pieces a thread holds; 0: any number, read again. SUMS: of the eight warps' sums that it makes:
 * 1 of a block that has one row, or all 8. */
template <int HELD, int SUMS>
struct held {
  static constexpr int PIECES = HELD > 0 ? HELD : 1;
  static constexpr int THREADS = SUMS == 1 ? WARPS * 32 : ROWS * 32;
  float4 v[PIECES];
  const float *row;
  int64_t n, first; /* this thread's first column */
  bool aligned;
};

template <int HELD, int SUMS>
BTC_DEVICE int64_t column(const held<HELD, SUMS> &h, int k) {
  return h.first + static_cast<int64_t>(k) * (STEP / SUMS);
}

/* Whether there is a piece k; of those that are held, some may lie behind the row's end. */
template <int HELD, int SUMS>
BTC_DEVICE bool has(const held<HELD, SUMS> &h, int k) {
  return HELD > 0 ? k < HELD : column(h, k) < h.n;
}

template <int HELD, int SUMS>
BTC_DEVICE float4 piece(const held<HELD, SUMS> &h, int k) {
  return HELD > 0 ? h.v[k % held<HELD, SUMS>::PIECES] : load4(h.row, column(h, k), h.n, h.aligned);
}

template <int HELD, int SUMS>
BTC_DEVICE void take(held<HELD, SUMS> *h, const float *row, int64_t n) {
  h->row = row;
  h->n = n;
  h->first = (SUMS == 1 ? static_cast<int64_t>(threadIdx.x) : threadIdx.x % 32) * 4;
  h->aligned = rows_aligned(n);
  BTC_UNROLL
  for (int k = 0; k < HELD; k++) h->v[k] = load4(row, column(*h, k), n, h->aligned);
}

/* The row's sum, in each of its threads, of what its threads added up. parts: as block_sum's. */
template <int SUMS>
BTC_DEVICE float row_sum(const float (&sum)[SUMS], float *parts) {
  if (SUMS == 1) return block_sum(sum[0], parts);
  float all = 0.0f;
  BTC_UNROLL
  for (int w = 0; w < SUMS; w++) all += warp_sum(sum[w]);
  return all;
}

template <int SUMS>
BTC_DEVICE int64_t row_number() {
  return SUMS == 1 ? static_cast<int64_t>(blockIdx.x) : static_cast<int64_t>(blockIdx.x) * ROWS + threadIdx.x / 32;
}

/* y may be x: a thread reads and writes the same columns, and all sums are done when it writes. */
template <int HELD, int SUMS>
static __global__ void __launch_bounds__((held<HELD, SUMS>::THREADS))
    layernorm(float *y, uint16_t *y_bf16, const float *x, int64_t m, int64_t n, const float *weight, const float *bias, float eps) {
  BTC_SHARED(float, sums, WARPS);
  BTC_SHARED(float, deviations, WARPS);
  const int64_t row = row_number<SUMS>(), at = row * n;
  if (row >= m) return; /* whole warps, of those that have rows of their own */
  held<HELD, SUMS> h;
  take(&h, x + at, n);
  float sum[SUMS] = {}, deviation[SUMS] = {};
  BTC_UNROLL
  for (int k = 0; has(h, k); k++) {
    const float4 v = piece(h, k);
    if (column(h, k) < n) sum[k % SUMS] += (v.x + v.y) + (v.z + v.w);
  }
  const float mean = row_sum(sum, sums) / static_cast<float>(n);
  BTC_UNROLL
  for (int k = 0; has(h, k); k++) {
    const int64_t j = column(h, k);
    float4 v = piece(h, k);
    v = make_float4(v.x - mean, j + 1 < n ? v.y - mean : 0.0f, j + 2 < n ? v.z - mean : 0.0f, j + 3 < n ? v.w - mean : 0.0f);
    if (j < n) deviation[k % SUMS] = squares(deviation[k % SUMS], v);
  }
  const float scale = 1.0f / sqrtf(row_sum(deviation, deviations) / static_cast<float>(n) + eps);
  BTC_UNROLL
  for (int k = 0; has(h, k); k++) {
    const int64_t j = column(h, k);
    if (j >= n) continue;
    float4 v = piece(h, k), w = load4(weight, j, n, true), b = load4(bias, j, n, true);
    v = make_float4(fmaf((v.x - mean) * scale, w.x, b.x), fmaf((v.y - mean) * scale, w.y, b.y),
                    fmaf((v.z - mean) * scale, w.z, b.z), fmaf((v.w - mean) * scale, w.w, b.w));
    if (y) store4(y + at, j, n, h.aligned, v);
    if (y_bf16) store4(y_bf16 + at, j, n, h.aligned, v);
  }
}

template <int HELD, int SUMS>
static __global__ void __launch_bounds__((held<HELD, SUMS>::THREADS))
    rmsnorm(float *y, uint16_t *y_bf16, const float *x, int64_t m, int64_t n, const float *weight, float eps) {
  BTC_SHARED(float, parts, WARPS);
  const int64_t row = row_number<SUMS>(), at = row * n;
  if (row >= m) return;
  held<HELD, SUMS> h;
  take(&h, x + at, n);
  float sum[SUMS] = {};
  BTC_UNROLL
  for (int k = 0; has(h, k); k++)
    if (column(h, k) < n) sum[k % SUMS] = squares(sum[k % SUMS], piece(h, k));
  const float scale = rms_scale(row_sum(sum, parts), n, eps);
  BTC_UNROLL
  for (int k = 0; has(h, k); k++) {
    const int64_t j = column(h, k);
    if (j >= n) continue;
    const float4 v = rms_norm4(piece(h, k), scale, load4(weight, j, n, true));
    if (y) store4(y + at, j, n, h.aligned, v);
    if (y_bf16) store4(y_bf16 + at, j, n, h.aligned, v);
  }
}

template <int HELD>
static __global__ void __launch_bounds__((held<HELD, 1>::THREADS))
    cosine_concat(float *z, uint16_t *z_bf16, float *cosine, const float *s1, const float *s2, int64_t c) {
  BTC_SHARED(float, dots, WARPS);
  BTC_SHARED(float, firsts, WARPS);
  BTC_SHARED(float, seconds, WARPS);
  const int64_t t = blockIdx.x;
  held<HELD, 1> a, b;
  take(&a, s1 + t * c, c);
  take(&b, s2 + t * c, c);
  float dot = 0.0f, first = 0.0f, second = 0.0f;
  BTC_UNROLL
  for (int k = 0; has(a, k); k++) {
    if (column(a, k) >= c) continue;
    float4 u = piece(a, k), v = piece(b, k);
    dot = fmaf(u.w, v.w, fmaf(u.z, v.z, fmaf(u.y, v.y, fmaf(u.x, v.x, dot))));
    first = squares(first, u);
    second = squares(second, v);
  }
  dot = block_sum(dot, dots);
  first = fmaxf(sqrtf(block_sum(first, firsts)), 1e-8f);
  second = fmaxf(sqrtf(block_sum(second, seconds)), 1e-8f);
  const float similar = dot / first / second; /* two divisions: the product of tiny norms would vanish */
  if (cosine && threadIdx.x == 0) cosine[t] = similar;
  for (int half = 0; half < 2; half++) {
    const int64_t at = (2 * t + half) * c;
    BTC_UNROLL
    for (int k = 0; has(a, k); k++) {
      const int64_t j = column(a, k);
      if (j >= c) continue;
      float4 v = half ? piece(b, k) : piece(a, k);
      v = make_float4(v.x + similar, v.y + similar, v.z + similar, v.w + similar);
      if (z) store4(z + at, j, c, a.aligned, v);
      if (z_bf16) store4(z_bf16 + at, j, c, a.aligned, v);
    }
  }
}

/* ---- launches ---- */

template <int SUMS>
static unsigned blocks_for(int64_t m) {
  return static_cast<unsigned>(SUMS == 1 ? m : (m + ROWS - 1) / ROWS);
}

template <int HELD, int SUMS>
static int launch_layernorm(float *y, uint16_t *y_bf16, const float *x, int64_t m, int64_t n, const float *weight,
                            const float *bias, float eps, btc_cuda_stream s) {
  return BTC_LAUNCH((layernorm<HELD, SUMS>), blocks_for<SUMS>(m), (held<HELD, SUMS>::THREADS), 0, s, y, y_bf16, x, m, n, weight,
                    bias, eps);
}

template <int HELD, int SUMS>
static int launch_rmsnorm(float *y, uint16_t *y_bf16, const float *x, int64_t m, int64_t n, const float *weight, float eps,
                          btc_cuda_stream s) {
  return BTC_LAUNCH((rmsnorm<HELD, SUMS>), blocks_for<SUMS>(m), (held<HELD, SUMS>::THREADS), 0, s, y, y_bf16, x, m, n, weight, eps);
}

/* The widths of the model: 1152 of the tower, 2560 of the language model, 4608 of the projector. */
int btc_cuda_layernorm(float *y, uint16_t *y_bf16, const float *x, int64_t m, int64_t n, const float *weight, const float *bias,
                       float eps, btc_cuda_stream s) {
  if (m <= 0) return 0;
  if (m >= MANY_ROWS && n <= 9 * PIECE) return launch_layernorm<9, 8>(y, y_bf16, x, m, n, weight, bias, eps, s);
  if (m >= MANY_ROWS && n <= 20 * PIECE) return launch_layernorm<20, 8>(y, y_bf16, x, m, n, weight, bias, eps, s);
  if (n <= 3 * STEP) return launch_layernorm<3, 1>(y, y_bf16, x, m, n, weight, bias, eps, s);
  if (n <= 5 * STEP) return launch_layernorm<5, 1>(y, y_bf16, x, m, n, weight, bias, eps, s);
  return launch_layernorm<0, 1>(y, y_bf16, x, m, n, weight, bias, eps, s);
}

int btc_cuda_rmsnorm(float *y, uint16_t *y_bf16, const float *x, int64_t m, int64_t n, const float *weight, float eps,
                     btc_cuda_stream s) {
  if (m <= 0) return 0;
  if (m >= MANY_ROWS && n <= 20 * PIECE) return launch_rmsnorm<20, 8>(y, y_bf16, x, m, n, weight, eps, s);
  if (n <= 3 * STEP) return launch_rmsnorm<3, 1>(y, y_bf16, x, m, n, weight, eps, s);
  return launch_rmsnorm<0, 1>(y, y_bf16, x, m, n, weight, eps, s);
}

int btc_cuda_cosine_concat(float *z, uint16_t *z_bf16, float *cosine, const float *s1, const float *s2, int64_t t, int64_t c,
                           btc_cuda_stream s) {
  if (t <= 0) return 0;
  const auto grid = static_cast<unsigned>(t);
  if (c <= 3 * STEP) return BTC_LAUNCH(cosine_concat<3>, grid, (held<3, 1>::THREADS), 0, s, z, z_bf16, cosine, s1, s2, c);
  return BTC_LAUNCH(cosine_concat<0>, grid, (held<0, 1>::THREADS), 0, s, z, z_bf16, cosine, s1, s2, c);
}
