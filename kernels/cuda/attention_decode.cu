/*
 * Attention of one query row an item (decode): bound by the reading of keys and values, each read once for all query heads of its
 * group. An item's keys are cut into splits of 64, whatever their number and whatever the other items; a block takes one split of
 * one kv head of one item, and the last of them to be done joins the splits of a row, in the order of the keys whoever it is. So a
 * row's bits depend on its own item only. Who is last is told by a count, which that block sets back to zero: a second launch would
 * cost more than the one round to L2 that the count does.
 *
 * A lane holds 16 bytes of a key's row, LANES lanes a row; eight groups of LANES lanes take eight keys each, all of whose loads are
 * issued before the first use: 64 rows of K and 64 of V, 32 KiB in flight a block at width 128 in bf16. nvcc 13.0: at most 168
 * registers with one head a group, 225 with four at a time, no spills, 128 threads a block at that width;
 * so three (two) blocks a multiprocessor, 96 (64) KiB in flight, against the 32 KiB that 4.3 TB/s want of each of 132
 * multiprocessors at 1 us of latency. Bytes of a step: 2 * kv_heads * (pos + 1) * d * 2 a layer, 2.8 MB an item at position 273
 * with 20 heads of 128.
 *
 * Positions and cache pointers are read on the device: a captured launch goes on being right when they change. Blocks behind an
 * item's length end at once.
 */
#include "kernels/cuda/attention.h"

enum { SPLIT = 64, GROUPS = 8, KEYS_EACH = SPLIT / GROUPS, MAX_WIDTH = 128 };

typedef struct decode_job {
  btc_cuda_causal a;
  btc_cuda_kv kv;
  int splits;
  uint32_t *done; /* [items, kv_heads]: splits that have written the following; zero between launches */
  float *sums;    /* [items, heads, splits, d]: weighted values, not yet divided */
  float *tops;    /* [items, heads, splits, 2]: greatest score (times scale * log2(e)), sum of weights */
} decode_job;

/* 16 bytes as floats: four f32 or eight bf16. */
template <typename T>
struct piece {
  static constexpr int N = 16 / sizeof(T);
};

BTC_DEVICE void widen(float *x, const uint4 &u, float) {
  x[0] = bits_float(u.x);
  x[1] = bits_float(u.y);
  x[2] = bits_float(u.z);
  x[3] = bits_float(u.w);
}

BTC_DEVICE void widen(float *x, const uint4 &u, uint16_t) {
  x[0] = bf16_low(u.x);
  x[1] = bf16_high(u.x);
  x[2] = bf16_low(u.y);
  x[3] = bf16_high(u.y);
  x[4] = bf16_low(u.z);
  x[5] = bf16_high(u.z);
  x[6] = bf16_low(u.w);
  x[7] = bf16_high(u.w);
}

/* Elements `column`.. of a row of d, zeros behind the row. WIDE: rows are made of whole 16-byte pieces. */
template <typename T, bool WIDE>
BTC_DEVICE uint4 load_piece(const T *row, int column, int d) {
  if constexpr (WIDE) {
    return load_once<false>(row + column, column < d);
  } else {
    union {
      T x[piece<T>::N];
      uint4 u;
    } p;
    BTC_UNROLL
    for (int i = 0; i < piece<T>::N; i++) p.x[i] = column + i < d ? row[column + i] : static_cast<T>(0);
    return p.u;
  }
}

/* This lane's pieces of the queries of `heads` heads, zeros behind their ends, by way of shared memory: of whole rows at once. */
template <int N, int LANES, int HEADS>
BTC_DEVICE void load_queries(float (*q)[N], float *shared, const float *rows, int heads, int d) {
  constexpr int WIDTH = LANES * N;
  for (int i = static_cast<int>(threadIdx.x); i < HEADS * WIDTH; i += LANES * GROUPS)
    shared[i] = i / WIDTH < heads && i % WIDTH < d ? rows[i / WIDTH * d + i % WIDTH] : 0.0f;
  __syncthreads();
  const float *piece = shared + static_cast<int>(threadIdx.x) % LANES * N;
  BTC_UNROLL
  for (int h = 0; h < HEADS; h++) BTC_UNROLL
  for (int c = 0; c < N; c += 4) {
    float4 x = *reinterpret_cast<const float4 *>(piece + h * WIDTH + c);
    q[h][c] = x.x, q[h][c + 1] = x.y, q[h][c + 2] = x.z, q[h][c + 3] = x.w;
  }
}

/* This thread's pieces of the first n of a split's keys and values. */
template <typename T, int LANES, bool WIDE>
BTC_DEVICE void load_split(uint4 *k, uint4 *v, const T *keys, const T *values, int n, int d) {
  int column = static_cast<int>(threadIdx.x) % LANES * piece<T>::N, group = static_cast<int>(threadIdx.x) / LANES;
  BTC_UNROLL
  for (int i = 0; i < KEYS_EACH; i++)
    k[i] = load_piece<T, WIDE>(keys + (i * GROUPS + group) * d, i * GROUPS + group < n ? column : d, d);
  BTC_UNROLL
  for (int i = 0; i < KEYS_EACH; i++)
    v[i] = load_piece<T, WIDE>(values + (i * GROUPS + group) * d, i * GROUPS + group < n ? column : d, d);
}

/* Scores of this group's keys with each head, into s[HEADS][SPLIT]. */
template <typename T, int LANES, int HEADS>
BTC_DEVICE void score_keys(float *s, const float (*q)[piece<T>::N], const uint4 *k, float factor) {
  int lane = static_cast<int>(threadIdx.x) % LANES, group = static_cast<int>(threadIdx.x) / LANES;
  BTC_UNROLL
  for (int i = 0; i < KEYS_EACH; i++) {
    float x[piece<T>::N];
    widen(x, k[i], T());
    BTC_UNROLL
    for (int h = 0; h < HEADS; h++) {
      float dot = 0.0f;
      BTC_UNROLL
      for (int c = 0; c < piece<T>::N; c++) dot = fmaf(q[h][c], x[c], dot);
      BTC_UNROLL
      for (int step = LANES / 2; step > 0; step /= 2) dot += __shfl_xor_sync(BTC_FULL_WARP, dot, step);
      if (lane == 0) s[h * SPLIT + i * GROUPS + group] = dot * factor;
    }
  }
}

/* Scores of a head's n keys to weights, in place; a warp a head. Says top and sum. */
BTC_DEVICE void weigh_split(float *s, int n, float *top_and_sum) {
  int lane = static_cast<int>(threadIdx.x) % 32;
  float a = lane < n ? s[lane] : -INFINITY, b = lane + 32 < n ? s[lane + 32] : -INFINITY;
  float top = warp_max(fmaxf(a, b));
  a = fast_exp2(a - top);
  b = fast_exp2(b - top);
  s[lane] = a;
  s[lane + 32] = b;
  float sum = warp_sum(a + b);
  if (lane != 0) return;
  top_and_sum[0] = top;
  top_and_sum[1] = sum;
}

/* Weighted values of this group's keys into sums[GROUPS][HEADS][LANES * N]. */
template <typename T, int LANES, int HEADS>
BTC_DEVICE void sum_values(float *sums, const float *s, const uint4 *v) {
  constexpr int N = piece<T>::N;
  int lane = static_cast<int>(threadIdx.x) % LANES, group = static_cast<int>(threadIdx.x) / LANES;
  float o[HEADS][N];
  BTC_UNROLL
  for (int h = 0; h < HEADS; h++) BTC_UNROLL
  for (int c = 0; c < N; c++) o[h][c] = 0.0f;
  BTC_UNROLL
  for (int i = 0; i < KEYS_EACH; i++) {
    float x[N];
    widen(x, v[i], T());
    BTC_UNROLL
    for (int h = 0; h < HEADS; h++) {
      float weight = s[h * SPLIT + i * GROUPS + group];
      BTC_UNROLL
      for (int c = 0; c < N; c++) o[h][c] = fmaf(weight, x[c], o[h][c]);
    }
  }
  BTC_UNROLL
  for (int h = 0; h < HEADS; h++) BTC_UNROLL
  for (int c = 0; c < N; c += 4)
    *reinterpret_cast<float4 *>(sums + ((group * HEADS + h) * LANES + lane) * N + c) =
        make_float4(o[h][c], o[h][c + 1], o[h][c + 2], o[h][c + 3]);
}

/* The groups' sums in their order. */
template <int WIDTH, int HEADS, int THREADS>
BTC_DEVICE void store_split(const decode_job &j, const float *sums, int64_t row, int heads, int n_splits, int d) {
  for (int i = static_cast<int>(threadIdx.x); i < HEADS * WIDTH; i += THREADS) {
    int h = i / WIDTH, c = i % WIDTH;
    if (h >= heads || c >= d) continue;
    float x = 0.0f;
    BTC_UNROLL
    for (int g = 0; g < GROUPS; g++) x += sums[(g * HEADS + h) * WIDTH + c];
    j.sums[((row + h) * n_splits + blockIdx.x) * d + c] = x;
  }
}

BTC_DEVICE int64_t row_of(const decode_job &j, int item) {
  return j.a.first_row ? j.a.first_row[item] : item;
}

/* ---- joining ---- */

BTC_DEVICE void store_row(const decode_job &j, int item, int head, int c, float o) {
  int64_t to = (row_of(j, item) * j.a.heads + head) * j.kv.d + c;
  if (j.a.out == BTC_CUDA_F32)
    static_cast<float *>(j.a.o)[to] = o;
  else
    static_cast<uint16_t *>(j.a.o)[to] = f32_to_bf16(o);
}

/* Column c of a head's row, of n splits. Other blocks have written them: past L1, which may not know. */
BTC_DEVICE float join_column(const decode_job &j, int64_t row, int n, int c) {
  const float *tops = j.tops + row * j.splits * 2, *sums = j.sums + row * j.splits * j.kv.d + c;
  float top = -INFINITY, sum = 0.0f, o = 0.0f;
  for (int i = 0; i < n; i++) top = fmaxf(top, __ldcg(tops + i * 2));
  for (int i = 0; i < n; i++) {
    float weight = fast_exp2(__ldcg(tops + i * 2) - top);
    sum = fmaf(weight, __ldcg(tops + i * 2 + 1), sum);
    o = fmaf(weight, __ldcg(sums + i * j.kv.d), o);
  }
  return o / sum;
}

/* Whether this block is the last of an item's kv head to be here, and all that the others wrote is there for it. All threads. */
BTC_DEVICE bool last_of(uint32_t *done, int n) {
  BTC_SHARED(int, last, 1);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last[0] = atomicAdd(done, 1u) == static_cast<uint32_t>(n - 1);
    if (last[0]) *done = 0;
    __threadfence();
  }
  __syncthreads();
  return last[0] != 0;
}

/* The rows of `members` heads from `head` on. */
BTC_DEVICE void join_splits(const decode_job &j, int item, int head, int members, int n) {
  int d = static_cast<int>(j.kv.d);
  for (int i = static_cast<int>(threadIdx.x); i < members * d; i += static_cast<int>(blockDim.x))
    store_row(j, item, head + i / d, i % d, join_column(j, item * j.a.heads + head + i / d, n, i % d));
}

/* Blocks a multiprocessor: 0 leaves it to the compiler, which then finds three without spilling; elsewhere as few as it takes. */
template <typename T, int LANES, int HEADS, bool WIDE>
static __global__ void __launch_bounds__(LANES *GROUPS, WIDE &&HEADS == 1 ? 0 : 1) decode_splits(decode_job j) {
  constexpr int N = piece<T>::N, THREADS = LANES * GROUPS, WIDTH = LANES * N;
  BTC_SHARED(float, s, HEADS *SPLIT);
  BTC_SHARED(float, sums, GROUPS *HEADS *WIDTH);
  int item = static_cast<int>(blockIdx.z), kv_head = static_cast<int>(blockIdx.y), first = static_cast<int>(blockIdx.x) * SPLIT;
  let_next_begin();
  int d = static_cast<int>(j.kv.d), count = j.a.pos[item] + 1;
  if (first >= count) {
    await_launch_before();
    return;
  }
  int n = count - first < SPLIT ? count - first : SPLIT, thread = static_cast<int>(threadIdx.x);
  int64_t at = (kv_head * j.kv.capacity + first) * d;
  const T *keys = static_cast<const T *>(j.kv.k[item]) + at, *values = static_cast<const T *>(j.kv.v[item]) + at;
  /* Only the last split has a key that the launch before has just stored: the others are asked for before it has ended. The second
   * branch is always taken; without it the compiler would let the wait behind it go first. */
  uint4 k[KEYS_EACH], v[KEYS_EACH];
  if (first + SPLIT >= count) await_launch_before();
  if (j.kv.k) load_split<T, LANES, WIDE>(k, v, keys, values, n, d);
  await_launch_before();
  int members = static_cast<int>(j.a.heads / j.kv.kv_heads), n_splits = j.splits;
  const float *q_row = j.a.q + row_of(j, item) * j.a.q_stride;
  for (int h0 = 0; h0 < members; h0 += HEADS) {
    int head = kv_head * members + h0, heads = members - h0 < HEADS ? members - h0 : HEADS;
    int64_t row = item * j.a.heads + head;
    float q[HEADS][N];
    load_queries<N, LANES, HEADS>(q, sums, q_row + head * d, heads, d);
    score_keys<T, LANES, HEADS>(s, q, k, j.a.scale * BTC_LOG2_E);
    __syncthreads();
    for (int h = thread / 32; h < heads; h += THREADS / 32)
      weigh_split(s + h * SPLIT, n, j.tops + ((row + h) * n_splits + blockIdx.x) * 2);
    __syncthreads();
    sum_values<T, LANES, HEADS>(sums, s, v);
    __syncthreads();
    store_split<WIDTH, HEADS, THREADS>(j, sums, row, heads, n_splits, d);
    __syncthreads();
  }
  int n_live = (count + SPLIT - 1) / SPLIT;
  if (last_of(j.done + item * j.kv.kv_heads + kv_head, n_live)) join_splits(j, item, kv_head * members, members, n_live);
}

static int64_t splits_of(int64_t max_pos) {
  return (max_pos + SPLIT - 1) / SPLIT;
}

size_t btc_cuda_decode_scratch(int64_t items, int64_t heads, int64_t d, int64_t max_pos) {
  return static_cast<size_t>(items * heads * splits_of(max_pos) * (d + 2)) * sizeof(float);
}

/* Heads of a group share loads; four at a time keep their queries and sums in registers. */
template <typename T, int LANES>
static int launch(const decode_job &j, btc_cuda_stream s) {
  dim3 grid(static_cast<unsigned>(j.splits), static_cast<unsigned>(j.kv.kv_heads), static_cast<unsigned>(j.a.items));
  dim3 block(LANES * GROUPS);
  if (j.kv.d * static_cast<int64_t>(sizeof(T)) % 16 != 0)
    return BTC_LAUNCH_EARLY((decode_splits<T, LANES, 1, false>), grid, block, 0, s, j);
  if (j.a.heads == j.kv.kv_heads) return BTC_LAUNCH_EARLY((decode_splits<T, LANES, 1, true>), grid, block, 0, s, j);
  return BTC_LAUNCH_EARLY((decode_splits<T, LANES, 4, true>), grid, block, 0, s, j);
}

int btc_cuda_attend_decode(const btc_cuda_causal *a, const btc_cuda_kv *kv, int64_t max_pos, uint32_t *done, void *scratch,
                           btc_cuda_stream s) {
  if (a->items == 0) return 0;
  if (kv->d < 1 || kv->d > MAX_WIDTH || max_pos < 1 || max_pos > (1 << 28) || a->items > 65535 || kv->kv_heads < 1 ||
      kv->kv_heads > 65535 || a->heads % kv->kv_heads != 0 || kv->type == BTC_CUDA_F16 || a->out == BTC_CUDA_F16)
    return 1; /* cudaErrorInvalidValue */
  decode_job j = {*a, *kv, static_cast<int>(splits_of(max_pos)), done, static_cast<float *>(scratch), nullptr};
  j.tops = j.sums + a->items * a->heads * j.splits * kv->d;
  if (kv->type == BTC_CUDA_F32)
    return kv->d <= 32 ? launch<float, 8>(j, s) : kv->d <= 64 ? launch<float, 16>(j, s) : launch<float, 32>(j, s);
  return kv->d <= 32 ? launch<uint16_t, 4>(j, s) : kv->d <= 64 ? launch<uint16_t, 8>(j, s) : launch<uint16_t, 16>(j, s);
}
