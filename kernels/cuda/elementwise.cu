/*
 * Sums, gates, epilogues and rotations: four elements of a row a thread, 16 bytes at once where every row starts on 16 bytes and
 * the caller's strides keep it so; one at a time at a row's end and elsewhere.
 */
#include "kernels/cuda/epilogue.h"

enum { THREADS = 256 };

static unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + THREADS - 1) / THREADS);
}

static bool aligned16(const void *p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

BTC_DEVICE int64_t thread_number() {
  return static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
}

BTC_DEVICE void store_both(float *y, uint16_t *y_bf16, int64_t i, float v) {
  if (y) y[i] = v;
  if (y_bf16) y_bf16[i] = f32_to_bf16(v);
}

BTC_DEVICE void store_both(float *y, uint16_t *y_bf16, int64_t i, const float v[4]) {
  if (y) *reinterpret_cast<float4 *>(y + i) = make_float4(v[0], v[1], v[2], v[3]);
  if (y_bf16) *reinterpret_cast<uint2 *>(y_bf16 + i) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
}

/* ---- epilogue ---- */

template <bool WIDE>
static __global__ void __launch_bounds__(THREADS)
    epilogue(float *y, uint16_t *y_bf16, const float *dot, int64_t m, int64_t n, btc_cuda_epilogue e) {
  const int64_t groups = (n + 3) / 4, i = thread_number();
  if (i >= m * groups) return;
  const int64_t row = i / groups, j = i % groups * 4, at = row * n + j;
  if (WIDE) {
    float4 d = *reinterpret_cast<const float4 *>(dot + at);
    float v[4] = {finish(d.x, e, row, j, n), finish(d.y, e, row, j + 1, n), finish(d.z, e, row, j + 2, n),
                  finish(d.w, e, row, j + 3, n)};
    store_both(y, y_bf16, at, v);
  } else {
    for (int64_t k = 0; k < 4 && j + k < n; k++) store_both(y, y_bf16, at + k, finish(dot[at + k], e, row, j + k, n));
  }
}

int btc_cuda_epilogue_apply(float *y, uint16_t *y_bf16, const float *dot, int64_t m, int64_t n, const btc_cuda_epilogue *e,
                            btc_cuda_stream s) {
  if (m <= 0) return 0;
  unsigned grid = blocks_for(m * ((n + 3) / 4));
  if (n % 4 == 0) return BTC_LAUNCH(epilogue<true>, grid, THREADS, 0, s, y, y_bf16, dot, m, n, *e);
  return BTC_LAUNCH(epilogue<false>, grid, THREADS, 0, s, y, y_bf16, dot, m, n, *e);
}

/* ---- add ---- */

/* Block: 1024 elements of one of the times that b, of n elements, is added; `blocks` of them a time. WIDE: each time begins on 16
 * bytes. */
template <bool WIDE>
static __global__ void __launch_bounds__(THREADS) add(float *y, const float *a, const float *b, int64_t n, unsigned blocks) {
  const int64_t from = blockIdx.x / blocks * n; /* where this time begins */
  int64_t i = (static_cast<int64_t>(blockIdx.x % blocks) * THREADS + threadIdx.x) * 4;
  if (WIDE && i + 4 <= n) {
    float4 u = *reinterpret_cast<const float4 *>(a + from + i), v = *reinterpret_cast<const float4 *>(b + i);
    *reinterpret_cast<float4 *>(y + from + i) = make_float4(u.x + v.x, u.y + v.y, u.z + v.z, u.w + v.w);
  } else {
    for (int64_t end = i + 4 < n ? i + 4 : n; i < end; i++) y[from + i] = a[from + i] + b[i];
  }
}

int btc_cuda_add_repeated(float *y, const float *a, const float *b, int64_t n, int64_t period, btc_cuda_stream s) {
  if (n <= 0) return 0;
  const unsigned blocks = blocks_for((period + 3) / 4), grid = static_cast<unsigned>(n / period) * blocks;
  if (n == period || period % 4 == 0) return BTC_LAUNCH(add<true>, grid, THREADS, 0, s, y, a, b, period, blocks);
  return BTC_LAUNCH(add<false>, grid, THREADS, 0, s, y, a, b, period, blocks);
}

int btc_cuda_add(float *y, const float *a, const float *b, int64_t n, btc_cuda_stream s) {
  return btc_cuda_add_repeated(y, a, b, n, n, s);
}

/* ---- silu(gate) * up ---- */

BTC_DEVICE float widen(float x) {
  return x;
}

BTC_DEVICE float widen(uint16_t x) {
  return bf16_to_f32(x);
}

BTC_DEVICE float4 load_four(const float *p) {
  return *reinterpret_cast<const float4 *>(p);
}

BTC_DEVICE float4 load_four(const uint16_t *p) {
  uint2 u = *reinterpret_cast<const uint2 *>(p);
  return make_float4(bf16_low(u.x), bf16_high(u.x), bf16_low(u.y), bf16_high(u.y));
}

template <typename T, bool WIDE>
static __global__ void __launch_bounds__(THREADS) silu_mul(float *y, uint16_t *y_bf16, btc_cuda_gate job, int64_t m, int64_t n) {
  const int64_t groups = (n + 3) / 4, i = thread_number();
  if (i >= m * groups) return;
  const int64_t row = i / groups, j = i % groups * 4, at = row * n + j;
  const T *g = static_cast<const T *>(job.gate) + row * job.gate_stride + j,
          *u = static_cast<const T *>(job.up) + row * job.up_stride + j;
  if (WIDE) {
    float4 a = load_four(g), b = load_four(u);
    float v[4] = {silu_times(a.x, b.x), silu_times(a.y, b.y), silu_times(a.z, b.z), silu_times(a.w, b.w)};
    store_both(y, y_bf16, at, v);
  } else {
    for (int64_t k = 0; k < 4 && j + k < n; k++) store_both(y, y_bf16, at + k, silu_times(widen(g[k]), widen(u[k])));
  }
}

template <typename T>
static int launch_silu(float *y, uint16_t *y_bf16, const btc_cuda_gate *g, int64_t m, int64_t n, btc_cuda_stream s) {
  unsigned grid = blocks_for(m * ((n + 3) / 4));
  if (n % 4 == 0 && g->gate_stride % 4 == 0 && g->up_stride % 4 == 0 && aligned16(g->gate) && aligned16(g->up))
    return BTC_LAUNCH((silu_mul<T, true>), grid, THREADS, 0, s, y, y_bf16, *g, m, n);
  return BTC_LAUNCH((silu_mul<T, false>), grid, THREADS, 0, s, y, y_bf16, *g, m, n);
}

int btc_cuda_silu_mul(float *y, uint16_t *y_bf16, const btc_cuda_gate *g, int64_t m, int64_t n, btc_cuda_stream s) {
  if (m <= 0) return 0;
  return g->type == BTC_CUDA_F32 ? launch_silu<float>(y, y_bf16, g, m, n, s) : launch_silu<uint16_t>(y, y_bf16, g, m, n, s);
}

/* ---- rotary positions ---- */

static __global__ void __launch_bounds__(THREADS) rope(float *x, int64_t stride, int64_t m, int64_t heads, int64_t d,
                                                       const int32_t *row_pos, const float *cos, const float *sin) {
  const int64_t half = d / 2, i = thread_number();
  if (i >= m * heads * half) return;
  const int64_t j = i % half, h = i / half % heads, row = i / half / heads;
  const int64_t angle = row_pos[row] * half + j;
  float *low = x + row * stride + h * d + j, *high = low + half;
  const float c = cos[angle], s = sin[angle], l = *low, u = *high;
  *low = l * c - u * s;
  *high = u * c + l * s;
}

int btc_cuda_rope(float *x, int64_t stride, int64_t m, int64_t heads, int64_t d, const int32_t *row_pos, const float *cos,
                  const float *sin, btc_cuda_stream s) {
  if (m <= 0 || d < 2) return 0;
  return BTC_LAUNCH(rope, blocks_for(m * heads * (d / 2)), THREADS, 0, s, x, stride, m, heads, d, row_pos, cos, sin);
}
