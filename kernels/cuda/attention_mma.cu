/*
 * Attention on the tensor cores: bf16 queries, keys, values and weights, f32 sums, softmax online in f32 (the method of
 * FlashAttention-2, Dao 2023). A block of 4 warps takes 64 or 128 query rows, a warp 16 or 32 of them with all keys, 64 keys at a
 * time; keys and values of the next 64 arrive by cp.async while the present ones are used.
 *
 * Widths are handled in pieces of 8 columns (16 bytes). D8 pieces are computed, so a head of 72 costs nine of them and no padding:
 * q k^T takes four steps of 16 columns and one of 8. A row in shared memory is an odd number of pieces, so that the eight rows of
 * an ldmatrix fall into different banks.
 *
 * sm_80 and sm_90, nvcc 13.0 -Xptxas -v: nothing spills.
 *   D8 = 9 (vision): 32 rows a warp; 72 f32 of output, 64 of scores and 36 words of queries a thread, 255 registers, so two
 *   blocks a multiprocessor; 54 KiB of shared memory each. 32 rows rather than 16 because a warp reads all keys and values from
 *   shared memory: 128 bytes a 16x8x16 product instead of 256, which that memory's 128 bytes a cycle could not feed.
 *   One image and head: 4 * 729^2 * 72 operations; 6 tiles of 128 rows and 12 of 64 keys would compute 768 x 768. Warps without
 *   rows are left out, and so is the half of a block of keys that none of a warp's rows sees: 736 x 736 are computed.
 *   The roof is that of mma.sync, on sm_90 some 60 % of wgmma's (a lead, not measured here).
 *   D8 = 16 (language model, width 128): 16 rows a warp; 64 f32 of output, 32 of scores, at most 214 registers; 85 KiB.
 *
 * The row promise: a row walks over its keys from 0 on in blocks of 64, whoever stands beside it; a block it does not see
 * multiplies its sums by one and adds zeros.
 */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/mma.h"

enum { WARPS = 4, THREADS = WARPS * 32, KEYS = 64, KEY_TILES = KEYS / 8, PIECE = 16 };

template <int D8>
struct shape {
  static constexpr int M = D8 > 9 ? 1 : 2; /* 16-row tiles a warp */
  static constexpr int QUERIES = WARPS * 16 * M;
  static constexpr int ROW = (D8 | 1) * PIECE; /* bytes of a row in shared memory */
  static constexpr int STEPS = D8 / 2;         /* of 16 columns; and one of 8 when D8 is odd */
  static constexpr int BYTES = (QUERIES + 4 * KEYS) * ROW;
};

template <int D8>
struct accumulators {
  float o[shape<D8>::M][D8][4];
  float top[shape<D8>::M][2], sum[shape<D8>::M][2]; /* of rows g and g+8; sum: this lane's columns only */
};

template <int D8>
struct queries {
  uint32_t step[shape<D8>::M][shape<D8>::STEPS > 0 ? shape<D8>::STEPS : 1][4];
  uint32_t last[shape<D8>::M][2];
};

/* Rows first .. first+rows-1 of a matrix into shared memory as bf16; zeros beyond row `count` and column d. */
template <int D8>
BTC_DEVICE void load_tile(char *dst, const char *src, btc_cuda_type type, int64_t stride, bool wide, int first, int rows, int count,
                          int d) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * D8; i += THREADS) {
    int row = i / D8, piece = i % D8, column = piece * 8;
    char *to = dst + row * shape<D8>::ROW + piece * PIECE;
    int n = first + row < count ? d - column : 0; /* elements there are, from `column` on */
    int64_t at = n > 0 ? (first + row) * stride + column : 0;
    if (type == BTC_CUDA_BF16 && wide) {
      cp_async_16(to, src + at * 2, n > 0 ? PIECE : 0);
      continue;
    }
    float4 a = load_four(src, type, at, n, wide), b = load_four(src, type, at + 4, n - 4, wide);
    *reinterpret_cast<uint4 *>(to) = make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w));
  }
}

/* This thread's number, computed anew where it is asked for: the places of nine copies kept over the loop would not fit in the
 * registers beside the sums. */
BTC_DEVICE int thread_anew() {
  int thread = static_cast<int>(threadIdx.x);
#ifdef __CUDACC__
  asm volatile("" : "+r"(thread));
#endif
  return thread;
}

/* The same of KEYS rows of bf16 in whole pieces, without a branch in the loop: a quarter of the instructions, which counts because
 * there are nine of these copies for 152 products. */
template <int D8>
BTC_DEVICE void copy_tile(char *dst, const char *src, int64_t stride, int first, int count, int d) {
  constexpr int PIECES = KEYS * D8;
  const char *from = src + first * stride * 2;
  int row_bytes = static_cast<int>(stride) * 2, thread = thread_anew();
  BTC_UNROLL
  for (int u = 0; u < (PIECES + THREADS - 1) / THREADS; u++) {
    int i = thread + u * THREADS, row = i / D8, piece = i % D8;
    if ((u + 1) * THREADS > PIECES && i >= PIECES) continue;
    bool there = first + row < count && piece * 8 < d;
    cp_async_16(dst + row * shape<D8>::ROW + piece * PIECE, there ? from + row * row_bytes + piece * PIECE : src,
                there ? PIECE : 0);
  }
}

/* Keys and values of block `block` into its half of the buffer. */
template <int D8, bool COPIED>
BTC_DEVICE void load_keys(char *buffer, const attention_view &v, int block) {
  char *k = buffer + block % 2 * 2 * KEYS * shape<D8>::ROW, *values = k + KEYS * shape<D8>::ROW;
  if constexpr (COPIED) {
    copy_tile<D8>(k, v.k, v.k_stride, block * KEYS, v.keys, v.d);
    copy_tile<D8>(values, v.v, v.v_stride, block * KEYS, v.keys, v.d);
  } else {
    load_tile<D8>(k, v.k, v.kv_type, v.k_stride, v.wide_kv, block * KEYS, KEYS, v.keys, v.d);
    load_tile<D8>(values, v.v, v.kv_type, v.v_stride, v.wide_kv, block * KEYS, KEYS, v.keys, v.d);
  }
}

template <int D8>
BTC_DEVICE void take_queries(queries<D8> *q, const char *tile, int warp_row) {
  int lane = static_cast<int>(threadIdx.x) % 32, matrix = lane / 8;
  BTC_UNROLL
  for (int m = 0; m < shape<D8>::M; m++) {
    const char *row = tile + (warp_row + m * 16 + matrix % 2 * 8 + lane % 8) * shape<D8>::ROW;
    BTC_UNROLL
    for (int c = 0; c < shape<D8>::STEPS; c++) ldmatrix_x4(q->step[m][c], row + (2 * c + matrix / 2) * PIECE);
    if constexpr (D8 % 2 != 0) ldmatrix_x2(q->last[m], row + (D8 - 1) * PIECE);
  }
}

/* s = q k^T of the warp's rows with 8 * TILES keys. */
template <int D8, int TILES>
BTC_DEVICE void multiply_keys(float (*s)[TILES][4], const queries<D8> &q, const char *k) {
  int lane = static_cast<int>(threadIdx.x) % 32, matrix = lane / 8;
  BTC_UNROLL
  for (int m = 0; m < shape<D8>::M; m++) BTC_UNROLL
  for (int n = 0; n < TILES; n++) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
  BTC_UNROLL
  for (int c = 0; c < shape<D8>::STEPS; c++) BTC_UNROLL
  for (int n = 0; n < TILES; n += 2) {
    uint32_t b[4];
    ldmatrix_x4(b, k + (n * 8 + matrix / 2 * 8 + lane % 8) * shape<D8>::ROW + (2 * c + matrix % 2) * PIECE);
    BTC_UNROLL
    for (int m = 0; m < shape<D8>::M; m++) {
      mma_16816(s[m][n], q.step[m][c], b);
      mma_16816(s[m][n + 1], q.step[m][c], b + 2);
    }
  }
  if constexpr (D8 % 2 != 0) {
    BTC_UNROLL
    for (int n = 0; n < TILES; n += 4) {
      uint32_t b[4];
      ldmatrix_x4(b, k + (n * 8 + lane) * shape<D8>::ROW + (D8 - 1) * PIECE);
      BTC_UNROLL
      for (int m = 0; m < shape<D8>::M; m++) BTC_UNROLL
      for (int i = 0; i < 4; i++) mma_1688(s[m][n + i], q.last[m], b + i);
    }
  }
}

/* Scores of keys a row does not see become minus infinity. row: of the view, of this lane's first row; key: of the block's first.
 */
template <int M, int TILES>
BTC_DEVICE void hide_keys(float (*s)[TILES][4], const attention_view &v, int row, int key) {
  int column = key + static_cast<int>(threadIdx.x) % 4 * 2;
  BTC_UNROLL
  for (int m = 0; m < M; m++) BTC_UNROLL
  for (int half = 0; half < 2; half++) {
    int limit = key_limit(v, row + m * 16 + half * 8);
    BTC_UNROLL
    for (int n = 0; n < TILES; n++) {
      if (column + n * 8 >= limit) s[m][n][half * 2] = -INFINITY;
      if (column + n * 8 + 1 >= limit) s[m][n][half * 2 + 1] = -INFINITY;
    }
  }
}

/* Scores to weights exp(scale * (score - top)) in place; sums so far are brought to the new top. factor: scale * log2(e). */
template <int D8, int TILES>
BTC_DEVICE void weigh(float (*s)[TILES][4], accumulators<D8> *a, float factor) {
  BTC_UNROLL
  for (int m = 0; m < shape<D8>::M; m++) BTC_UNROLL
  for (int half = 0; half < 2; half++) {
    float top = a->top[m][half];
    BTC_UNROLL
    for (int n = 0; n < TILES; n++) top = fmaxf(top, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
    top = fmaxf(top, __shfl_xor_sync(BTC_FULL_WARP, top, 1));
    top = fmaxf(top, __shfl_xor_sync(BTC_FULL_WARP, top, 2));
    float shrink = fast_exp2((a->top[m][half] - top) * factor), shift = -top * factor, sum = 0.0f;
    BTC_UNROLL
    for (int n = 0; n < TILES; n++) BTC_UNROLL
    for (int i = half * 2; i < half * 2 + 2; i++) {
      s[m][n][i] = fast_exp2(fmaf(s[m][n][i], factor, shift));
      sum += s[m][n][i];
    }
    a->top[m][half] = top;
    a->sum[m][half] = fmaf(a->sum[m][half], shrink, sum);
    BTC_UNROLL
    for (int n = 0; n < D8; n++) {
      a->o[m][n][half * 2] *= shrink;
      a->o[m][n][half * 2 + 1] *= shrink;
    }
  }
}

/* o += p v. The accumulator of two key tiles is, rounded, the left operand of 16 keys. */
template <int D8, int TILES>
BTC_DEVICE void multiply_values(accumulators<D8> *a, float (*p)[TILES][4], const char *v) {
  int lane = static_cast<int>(threadIdx.x) % 32, matrix = lane / 8;
  BTC_UNROLL
  for (int n = 0; n < TILES; n += 2) {
    uint32_t left[shape<D8>::M][4];
    BTC_UNROLL
    for (int m = 0; m < shape<D8>::M; m++) BTC_UNROLL
    for (int i = 0; i < 4; i++) left[m][i] = pack_bf16(p[m][n + i / 2][i % 2 * 2], p[m][n + i / 2][i % 2 * 2 + 1]);
    const char *row = v + (n * 8 + matrix % 2 * 8 + lane % 8) * shape<D8>::ROW;
    BTC_UNROLL
    for (int c = 0; c + 1 < D8; c += 2) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, row + (c + matrix / 2) * PIECE);
      BTC_UNROLL
      for (int m = 0; m < shape<D8>::M; m++) {
        mma_16816(a->o[m][c], left[m], b);
        mma_16816(a->o[m][c + 1], left[m], b + 2);
      }
    }
    if constexpr (D8 % 2 != 0) {
      uint32_t b[2];
      ldmatrix_x2_trans(b, row + (D8 - 1) * PIECE);
      BTC_UNROLL
      for (int m = 0; m < shape<D8>::M; m++) mma_16816(a->o[m][D8 - 1], left[m], b);
    }
  }
}

template <int D8>
BTC_DEVICE void store_rows(const accumulators<D8> &a, const attention_view &v, int row) {
  int column = static_cast<int>(threadIdx.x) % 4 * 2;
  BTC_UNROLL
  for (int m = 0; m < shape<D8>::M; m++) BTC_UNROLL
  for (int half = 0; half < 2; half++) {
    float sum = a.sum[m][half];
    sum += __shfl_xor_sync(BTC_FULL_WARP, sum, 1);
    sum += __shfl_xor_sync(BTC_FULL_WARP, sum, 2);
    float share = 1.0f / sum;
    int to = row + m * 16 + half * 8;
    if (to >= v.rows) continue;
    BTC_UNROLL
    for (int n = 0; n < D8; n++) store_two(v, to, n * 8 + column, a.o[m][n][half * 2] * share, a.o[m][n][half * 2 + 1] * share);
  }
}

/* 8 * TILES keys more for one warp, those of a block from its first on. row: this lane's first; warp_row: the warp's first. */
template <int D8, int TILES>
BTC_DEVICE void add_keys(accumulators<D8> *a, const queries<D8> &q, const attention_view &v, const char *tile, int warp_row,
                         int row, int key) {
  float s[shape<D8>::M][TILES][4];
  multiply_keys<D8, TILES>(s, q, tile);
  if (key + TILES * 8 > key_limit(v, warp_row)) hide_keys<shape<D8>::M, TILES>(s, v, row, key);
  weigh<D8, TILES>(s, a, v.scale * BTC_LOG2_E);
  multiply_values<D8, TILES>(a, s, tile + KEYS * shape<D8>::ROW);
}

/* COPIED: keys and values are bf16 in whole pieces. */
template <int D8, bool COPIED>
static __global__ void __launch_bounds__(THREADS, 2) attend_mma(attention_job job) {
  using S = shape<D8>;
  BTC_DYNAMIC_SHARED(char, shared);
  char *buffer = shared + S::QUERIES * S::ROW;
  attention_view v = view_of(job);
  int first = static_cast<int>(blockIdx.x) * S::QUERIES;
  if (first >= v.rows) return;
  int warp_row = static_cast<int>(threadIdx.x) / 32 * 16 * S::M, row = first + warp_row + static_cast<int>(threadIdx.x) % 32 / 4;
  int last = first + S::QUERIES < v.rows ? first + S::QUERIES : v.rows; /* one behind the block's last row */
  int blocks = (key_limit(v, last - 1) + KEYS - 1) / KEYS;
  int warp_limit = first + warp_row < v.rows ? key_limit(v, first + warp_row + 16 * S::M - 1) : 0; /* keys the warp's rows see */
  load_tile<D8>(shared, v.q, v.q_type, v.q_stride, v.wide_q, first, S::QUERIES, v.rows, v.d);
  load_keys<D8, COPIED>(buffer, v, 0);
  cp_async_commit();
  queries<D8> q;
  accumulators<D8> a;
  BTC_UNROLL
  for (int m = 0; m < S::M; m++) {
    BTC_UNROLL
    for (int n = 0; n < D8; n++) a.o[m][n][0] = a.o[m][n][1] = a.o[m][n][2] = a.o[m][n][3] = 0.0f;
    a.top[m][0] = a.top[m][1] = -INFINITY;
    a.sum[m][0] = a.sum[m][1] = 0.0f;
  }
  for (int block = 0; block < blocks; block++) {
    cp_async_wait<0>();
    __syncthreads(); /* this block has landed, and nobody reads the other half any more */
    if (block == 0) take_queries<D8>(&q, shared, warp_row);
    if (block + 1 < blocks) load_keys<D8, COPIED>(buffer, v, block + 1);
    cp_async_commit();
    const char *tile = buffer + block % 2 * 2 * KEYS * S::ROW;
    if (warp_limit > block * KEYS + KEYS / 2)
      add_keys<D8, KEY_TILES>(&a, q, v, tile, first + warp_row, row, block * KEYS);
    else if (warp_limit > block * KEYS)
      add_keys<D8, KEY_TILES / 2>(&a, q, v, tile, first + warp_row, row, block * KEYS);
  }
  store_rows<D8>(a, v, row);
}

/* By the contract of cuda.h caches are aligned; what a caller of btc_cuda_attend gives may be anything. */
static bool copied(const attention_job *j) {
  const btc_cuda_attention *a = &j->all;
  if (j->causal) return j->kv.type == BTC_CUDA_BF16 && j->kv.d % 8 == 0;
  uintptr_t pointers = reinterpret_cast<uintptr_t>(a->k) | reinterpret_cast<uintptr_t>(a->v);
  return pointers % PIECE == 0 && a->d % 8 == 0 && a->k_stride % 8 == 0 && a->v_stride % 8 == 0;
}

template <int D8, bool COPIED>
static int launch_as(const attention_job *j, btc_cuda_stream s) {
  int status = BTC_ALLOW_SHARED((attend_mma<D8, COPIED>), shape<D8>::BYTES);
  if (status != 0) return status;
  return BTC_LAUNCH((attend_mma<D8, COPIED>), attention_grid(j, shape<D8>::QUERIES), dim3(THREADS), shape<D8>::BYTES, s, *j);
}

template <int D8>
static int launch(const attention_job *j, btc_cuda_stream s) {
  return copied(j) ? launch_as<D8, true>(j, s) : launch_as<D8, false>(j, s);
}

int btc_cuda_attend_mma(const attention_job *j, btc_cuda_stream s) {
  int64_t d = j->causal ? j->kv.d : j->all.d;
  if (d <= 32) return launch<4>(j, s);
  if (d <= 64) return launch<8>(j, s);
  if (d <= 72) return launch<9>(j, s);
  return launch<16>(j, s);
}
