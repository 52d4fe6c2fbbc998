/* Keys and values into the cache: a thread an element of a row, neighbours in memory on both sides. */
#include "kernels/cuda/cache.h"

enum { THREADS = 256 };

static unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + THREADS - 1) / THREADS);
}

static __global__ void __launch_bounds__(THREADS)
    kv_store(btc_cuda_kv kv, const int32_t *row_item, const int32_t *row_pos, const float *k, int64_t k_stride, const float *v,
             int64_t v_stride, int64_t m) {
  const int64_t width = kv.kv_heads * kv.d, i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= m * width) return;
  const int64_t row = i / width, channel = i % width, to = slot(kv, channel / kv.d, row_pos[row], channel % kv.d);
  put(kv.k[row_item[row]], kv.type, to, k[row * k_stride + channel]);
  put(kv.v[row_item[row]], kv.type, to, v[row * v_stride + channel]);
}

int btc_cuda_kv_store(const btc_cuda_kv *kv, const int32_t *row_item, const int32_t *row_pos, const float *k, int64_t k_stride,
                      const float *v, int64_t v_stride, int64_t m, btc_cuda_stream s) {
  if (m <= 0) return 0;
  return BTC_LAUNCH(kv_store, blocks_for(m * kv->kv_heads * kv->d), THREADS, 0, s, *kv, row_item, row_pos, k, k_stride, v, v_stride,
                    m);
}

typedef struct rows {
  float *q;
  const float *k, *v, *cos, *sin;
  const int32_t *item, *pos;
  int64_t q_stride, k_stride, v_stride, heads, m;
} rows;

/* A thread takes one rotated pair of a query head, or of a key head with the value's two channels beside it. */
static __global__ void __launch_bounds__(THREADS) rope_store(rows r, btc_cuda_kv kv) {
  const int64_t half = kv.d / 2, heads = r.heads + kv.kv_heads, i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= r.m * heads * half) return;
  const int64_t j = i % half, h = i / half % heads, row = i / half / heads, pos = r.pos[row];
  if (h < r.heads) {
    float *low = r.q + row * r.q_stride + h * kv.d + j, *high = low + half;
    const float2 turned = rotate(*low, *high, r.cos, r.sin, pos * half + j);
    *low = turned.x;
    *high = turned.y;
    return;
  }
  const int64_t head = h - r.heads, item = r.item[row], to = slot(kv, head, pos, j);
  const float *k = r.k + row * r.k_stride + head * kv.d + j, *v = r.v + row * r.v_stride + head * kv.d + j;
  const float2 turned = rotate(k[0], k[half], r.cos, r.sin, pos * half + j);
  put(kv.k[item], kv.type, to, turned.x);
  put(kv.k[item], kv.type, to + half, turned.y);
  put(kv.v[item], kv.type, to, v[0]);
  put(kv.v[item], kv.type, to + half, v[half]);
}

int btc_cuda_rope_store(float *q, int64_t q_stride, int64_t heads, const float *k, int64_t k_stride, const float *v,
                        int64_t v_stride, int64_t m, const btc_cuda_kv *kv, const int32_t *row_item, const int32_t *row_pos,
                        const float *cos, const float *sin, btc_cuda_stream s) {
  if (m <= 0) return 0;
  rows r = {q, k, v, cos, sin, row_item, row_pos, q_stride, k_stride, v_stride, heads, m};
  return BTC_LAUNCH(rope_store, blocks_for(m * (heads + kv->kv_heads) * (kv->d / 2)), THREADS, 0, s, r, *kv);
}
