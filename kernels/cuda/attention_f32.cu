/*
 * Attention in f32 arithmetic: what `--dtype f32` runs, so that captions equal the processor's. Queries, keys, values and weights
 * stay f32, every product is a fused multiply-add. The path is for agreement, not for speed: about 64 GFLOP a pair of images, a few
 * milliseconds at a third of the f32 roof.
 *
 * A block of 4 warps takes 32 query rows, a warp eight of them; keys come 32 at a time into shared memory as f32. For scores a lane
 * is a key, for sums a lane is a column (every 32nd), and weights pass through shared memory between the two. A row in shared
 * memory is an odd number of 16-byte pieces, so that 8 lanes reading pieces of 8 rows hit all banks. NC: columns a lane.
 *
 * At most 168 registers, so that three blocks share a multiprocessor, no spills; 4 KiB and 96 rows of at most 528 bytes of shared
 * memory (width 128; 304 at 72).
 *
 * The row promise: a row walks over its keys from 0 on, 32 at a time; a block it does not see multiplies its sums by one.
 */
#include "kernels/cuda/attention.h"

enum { WARPS = 4, THREADS = WARPS * 32, ROWS = 8 /* a warp */, QUERIES = WARPS * ROWS, KEYS = 32 };

/* Floats of a row in shared memory. */
static __host__ __device__ inline int row_floats(int d) {
  return ((d + 3) / 4 | 1) * 4;
}

BTC_DEVICE void load_rows(float *dst, const char *src, btc_cuda_type type, int64_t stride, bool wide, int first, int rows,
                          int count, int d) {
  int pieces = (d + 3) / 4, row_size = row_floats(d);
  for (int i = static_cast<int>(threadIdx.x); i < rows * pieces; i += THREADS) {
    int row = i / pieces, column = i % pieces * 4, n = first + row < count ? d - column : 0;
    int64_t at = n > 0 ? (first + row) * stride + column : 0;
    *reinterpret_cast<float4 *>(dst + row * row_size + column) = load_four(src, type, at, n, wide);
  }
}

/* s[r] = query row r of this warp times this lane's key. */
BTC_DEVICE void scores(float *s, const float *q, const float *k, int row_size, int pieces) {
  BTC_UNROLL
  for (int r = 0; r < ROWS; r++) s[r] = 0.0f;
  for (int c = 0; c < pieces; c++) {
    float4 x = *reinterpret_cast<const float4 *>(k + c * 4);
    BTC_UNROLL
    for (int r = 0; r < ROWS; r++) {
      float4 y = *reinterpret_cast<const float4 *>(q + r * row_size + c * 4);
      s[r] = fmaf(x.x, y.x, s[r]);
      s[r] = fmaf(x.y, y.y, s[r]);
      s[r] = fmaf(x.z, y.z, s[r]);
      s[r] = fmaf(x.w, y.w, s[r]);
    }
  }
}

template <int NC>
struct rows_so_far {
  float o[ROWS][NC];
  float top[ROWS], sum[ROWS]; /* the same in all lanes */
};

/* Scores to weights, handed over in `weights` [ROWS][KEYS]; sums so far are brought to the new top. */
template <int NC>
BTC_DEVICE void weigh(rows_so_far<NC> *a, const float *s, float *weights, const attention_view &v, int row, int key, float factor) {
  int lane = static_cast<int>(threadIdx.x) % 32;
  BTC_UNROLL
  for (int r = 0; r < ROWS; r++) {
    float score = key + lane < key_limit(v, row + r) ? s[r] : -INFINITY;
    float top = fmaxf(a->top[r], warp_max(score)), shrink = fast_exp2((a->top[r] - top) * factor);
    float weight = fast_exp2((score - top) * factor);
    weights[r * KEYS + lane] = weight;
    a->sum[r] = fmaf(a->sum[r], shrink, warp_sum(weight));
    a->top[r] = top;
    BTC_UNROLL
    for (int n = 0; n < NC; n++) a->o[r][n] *= shrink;
  }
}

template <int NC>
BTC_DEVICE void add_values(rows_so_far<NC> *a, const float *weights, const float *values, int row_size, int d) {
  int lane = static_cast<int>(threadIdx.x) % 32;
  for (int j = 0; j < KEYS; j += 4) {
    float w[ROWS][4];
    BTC_UNROLL
    for (int r = 0; r < ROWS; r++) {
      float4 x = *reinterpret_cast<const float4 *>(weights + r * KEYS + j);
      w[r][0] = x.x;
      w[r][1] = x.y;
      w[r][2] = x.z;
      w[r][3] = x.w;
    }
    BTC_UNROLL
    for (int i = 0; i < 4; i++) BTC_UNROLL
    for (int n = 0; n < NC; n++) {
      float x = n * 32 + lane < d ? values[(j + i) * row_size + n * 32 + lane] : 0.0f;
      BTC_UNROLL
      for (int r = 0; r < ROWS; r++) a->o[r][n] = fmaf(w[r][i], x, a->o[r][n]);
    }
  }
}

template <int NC>
BTC_DEVICE void store_rows(const rows_so_far<NC> &a, const attention_view &v, int row) {
  int lane = static_cast<int>(threadIdx.x) % 32;
  BTC_UNROLL
  for (int r = 0; r < ROWS; r++) {
    if (row + r >= v.rows) continue;
    float share = 1.0f / a.sum[r];
    BTC_UNROLL
    for (int n = 0; n < NC; n++) {
      int c = n * 32 + lane;
      if (c < v.d) store_one(v, row + r, c, a.o[r][n] * share);
    }
  }
}

template <int NC>
static __global__ void __launch_bounds__(THREADS, 3) attend_f32(attention_job job) {
  BTC_DYNAMIC_SHARED(float, shared);
  attention_view v = view_of(job);
  int first = static_cast<int>(blockIdx.x) * QUERIES;
  if (first >= v.rows) return;
  int row_size = row_floats(v.d), warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  float *q = shared, *k = q + QUERIES * row_size, *values = k + KEYS * row_size;
  float *weights = values + KEYS * row_size + warp * ROWS * KEYS;
  int row = first + warp * ROWS, last = first + QUERIES < v.rows ? first + QUERIES : v.rows;
  int keys = key_limit(v, last - 1);
  load_rows(q, v.q, v.q_type, v.q_stride, v.wide_q, first, QUERIES, v.rows, v.d);
  rows_so_far<NC> a;
  BTC_UNROLL
  for (int r = 0; r < ROWS; r++) {
    a.top[r] = -INFINITY;
    a.sum[r] = 0.0f;
    BTC_UNROLL
    for (int n = 0; n < NC; n++) a.o[r][n] = 0.0f;
  }
  for (int key = 0; key < keys; key += KEYS) {
    __syncthreads();
    load_rows(k, v.k, v.kv_type, v.k_stride, v.wide_kv, key, KEYS, v.keys, v.d);
    load_rows(values, v.v, v.kv_type, v.v_stride, v.wide_kv, key, KEYS, v.keys, v.d);
    __syncthreads();
    float s[ROWS];
    scores(s, q + warp * ROWS * row_size, k + lane * row_size, row_size, (v.d + 3) / 4);
    weigh<NC>(&a, s, weights, v, row, key, v.scale * BTC_LOG2_E);
    __syncwarp();
    add_values<NC>(&a, weights, values, row_size, v.d);
    __syncwarp();
  }
  store_rows<NC>(a, v, row);
}

template <int NC>
static int launch(const attention_job *j, int d, btc_cuda_stream s) {
  size_t bytes = sizeof(float) * static_cast<size_t>((QUERIES + 2 * KEYS) * row_floats(d) + QUERIES * KEYS);
  int status = BTC_ALLOW_SHARED(attend_f32<NC>, bytes);
  if (status != 0) return status;
  return BTC_LAUNCH((attend_f32<NC>), attention_grid(j, QUERIES), dim3(THREADS), bytes, s, *j);
}

int btc_cuda_attend_f32(const attention_job *j, btc_cuda_stream s) {
  int d = static_cast<int>(j->causal ? j->kv.d : j->all.d);
  switch ((d + 31) / 32) {
    case 1:
      return launch<1>(j, d, s);
    case 2:
      return launch<2>(j, d, s);
    case 3:
      return launch<3>(j, d, s);
    default:
      return launch<4>(j, d, s);
  }
}
