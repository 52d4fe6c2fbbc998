/* Keys and values into the cache: a thread an element of a row, neighbours in memory on both sides. */
#include "kernels/cuda/device.h"

enum { THREADS = 256 };

static unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + THREADS - 1) / THREADS);
}

BTC_DEVICE void put(void *cache, btc_cuda_type t, int64_t i, float v) {
  if (t == BTC_CUDA_F32)
    static_cast<float *>(cache)[i] = v;
  else
    static_cast<uint16_t *>(cache)[i] = f32_to_bf16(v);
}

/* Where channel c of head h at position pos lies in an item's cache. */
BTC_DEVICE int64_t slot(const btc_cuda_kv &kv, int64_t h, int64_t pos, int64_t c) {
  return (h * kv.capacity + pos) * kv.d + c;
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
  const float c = r.cos[pos * half + j], s = r.sin[pos * half + j];
  if (h < r.heads) {
    float *low = r.q + row * r.q_stride + h * kv.d + j, *high = low + half;
    const float l = *low, u = *high;
    *low = l * c - u * s;
    *high = u * c + l * s;
    return;
  }
  const int64_t head = h - r.heads, item = r.item[row], to = slot(kv, head, pos, j);
  const float *k = r.k + row * r.k_stride + head * kv.d + j, *v = r.v + row * r.v_stride + head * kv.d + j;
  const float l = k[0], u = k[half];
  put(kv.k[item], kv.type, to, l * c - u * s);
  put(kv.k[item], kv.type, to + half, u * c + l * s);
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
