/*
 * What the attention kernels share: which rows and keys one block works on, and loads of either type. A kernel takes a job and
 * looks at nothing else, so bidirectional and causal attention are the same code with another limit a row.
 */
#ifndef BTC_KERNELS_CUDA_ATTENTION_H
#define BTC_KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/device.h"

#define BTC_LOG2_E 1.4426950408889634f

typedef struct attention_job {
  bool causal;
  btc_cuda_attention all; /* bidirectional */
  btc_cuda_causal items;  /* causal, with kv */
  btc_cuda_kv kv;
} attention_job;

/* One query head of one sequence or item. Strides are in elements. wide_*: rows are made of whole 16-byte pieces. */
typedef struct attention_view {
  const char *q, *k, *v;
  char *o;
  btc_cuda_type q_type, kv_type, o_type;
  int64_t q_stride, k_stride, v_stride, o_stride;
  int rows, keys, d;
  int first; /* position of row 0 when causal */
  bool causal, wide_q, wide_kv;
  float scale;
} attention_view;

BTC_DEVICE int type_bytes(btc_cuda_type t) {
  return t == BTC_CUDA_F32 ? 4 : 2;
}

BTC_DEVICE bool whole_pieces(const void *p, int64_t stride, int d, btc_cuda_type t) {
  int bytes = type_bytes(t);
  return (reinterpret_cast<uintptr_t>(p) | static_cast<uintptr_t>(stride * bytes) | static_cast<uintptr_t>(d * bytes)) % 16 == 0;
}

BTC_DEVICE attention_view view_all(const btc_cuda_attention &a, int sequence, int head) {
  int64_t row = static_cast<int64_t>(sequence) * a.t, channel = head * a.d;
  attention_view v;
  v.q_type = v.kv_type = a.in;
  v.o_type = a.out;
  v.q = static_cast<const char *>(a.q) + (row * a.q_stride + channel) * type_bytes(a.in);
  v.k = static_cast<const char *>(a.k) + (row * a.k_stride + channel) * type_bytes(a.in);
  v.v = static_cast<const char *>(a.v) + (row * a.v_stride + channel) * type_bytes(a.in);
  v.o = static_cast<char *>(a.o) + (row * a.o_stride + channel) * type_bytes(a.out);
  v.q_stride = a.q_stride;
  v.k_stride = a.k_stride;
  v.v_stride = a.v_stride;
  v.o_stride = a.o_stride;
  v.rows = v.keys = static_cast<int>(a.t);
  v.d = static_cast<int>(a.d);
  v.first = 0;
  v.causal = false;
  v.scale = a.scale;
  return v;
}

BTC_DEVICE attention_view view_item(const btc_cuda_causal &a, const btc_cuda_kv &kv, int item, int head) {
  int64_t row = a.first_row[item], width = a.heads * kv.d;
  int64_t at = head / (a.heads / kv.kv_heads) * kv.capacity * kv.d;
  attention_view v;
  v.q_type = BTC_CUDA_F32;
  v.kv_type = kv.type;
  v.o_type = a.out;
  v.q = reinterpret_cast<const char *>(a.q + row * a.q_stride + head * kv.d);
  v.k = static_cast<const char *>(kv.k[item]) + at * type_bytes(kv.type);
  v.v = static_cast<const char *>(kv.v[item]) + at * type_bytes(kv.type);
  v.o = static_cast<char *>(a.o) + (row * width + head * kv.d) * type_bytes(a.out);
  v.q_stride = a.q_stride;
  v.k_stride = v.v_stride = kv.d;
  v.o_stride = width;
  v.rows = a.rows ? a.rows[item] : static_cast<int>(a.first_row[item + 1] - row);
  v.first = a.pos[item];
  v.keys = v.first + v.rows;
  v.d = static_cast<int>(kv.d);
  v.causal = true;
  v.scale = a.scale;
  return v;
}

/* Block (tile, head, sequence or item). */
BTC_DEVICE attention_view view_of(const attention_job &j) {
  int head = static_cast<int>(blockIdx.y), which = static_cast<int>(blockIdx.z);
  attention_view v = j.causal ? view_item(j.items, j.kv, which, head) : view_all(j.all, which, head);
  v.wide_q = whole_pieces(v.q, v.q_stride, v.d, v.q_type);
  v.wide_kv = whole_pieces(v.k, v.k_stride, v.d, v.kv_type) && whole_pieces(v.v, v.v_stride, v.d, v.kv_type);
  return v;
}

/* Keys that row `row` sees: 0 .. limit-1. Rows behind the last one (a tile's tail) see more than there are; they are not stored. */
BTC_DEVICE int key_limit(const attention_view &v, int row) {
  return v.causal ? v.first + row + 1 : v.keys;
}

BTC_DEVICE float load_one(const void *p, btc_cuda_type t, int64_t i) {
  return t == BTC_CUDA_F32 ? static_cast<const float *>(p)[i] : bf16_to_f32(static_cast<const uint16_t *>(p)[i]);
}

/* n (at most 4) elements from element i on, zeros behind them. */
BTC_DEVICE float4 load_four(const void *p, btc_cuda_type t, int64_t i, int n, bool wide) {
  if (wide && n >= 4) {
    if (t == BTC_CUDA_F32) return *reinterpret_cast<const float4 *>(static_cast<const float *>(p) + i);
    uint2 u = *reinterpret_cast<const uint2 *>(static_cast<const uint16_t *>(p) + i);
    return make_float4(bf16_low(u.x), bf16_high(u.x), bf16_low(u.y), bf16_high(u.y));
  }
  float x[4];
  BTC_UNROLL
  for (int j = 0; j < 4; j++) x[j] = j < n ? load_one(p, t, i + j) : 0.0f;
  return make_float4(x[0], x[1], x[2], x[3]);
}

/* Column c of an output row. A zero gets no sign: whether a block of keys that the row does not see was walked over must not show.
 */
BTC_DEVICE void store_one(const attention_view &v, int row, int c, float a) {
  int64_t at = row * v.o_stride + c;
  if (v.o_type == BTC_CUDA_F32)
    reinterpret_cast<float *>(v.o)[at] = a + 0.0f;
  else
    reinterpret_cast<uint16_t *>(v.o)[at] = f32_to_bf16(a + 0.0f);
}

/* Columns c and c+1, as far as they are below d; c is even. */
BTC_DEVICE void store_two(const attention_view &v, int row, int c, float a, float b) {
  char *o = v.o + (row * v.o_stride + c) * type_bytes(v.o_type);
  if (c + 1 >= v.d || reinterpret_cast<uintptr_t>(o) % static_cast<unsigned>(2 * type_bytes(v.o_type)) != 0) {
    if (c < v.d) store_one(v, row, c, a);
    if (c + 1 < v.d) store_one(v, row, c + 1, b);
  } else if (v.o_type == BTC_CUDA_F32) {
    *reinterpret_cast<float2 *>(o) = make_float2(a + 0.0f, b + 0.0f);
  } else {
    *reinterpret_cast<uint32_t *>(o) = pack_bf16(a + 0.0f, b + 0.0f);
  }
}

/* The launchers of the two families; blocks of `rows` query rows are laid out by attention_grid. d is 1..128. */
int btc_cuda_attend_mma(const attention_job *j, btc_cuda_stream s);
int btc_cuda_attend_f32(const attention_job *j, btc_cuda_stream s);

static inline dim3 attention_grid(const attention_job *j, int64_t rows) {
  int64_t most = j->causal ? j->items.max_rows : j->all.t;
  int64_t heads = j->causal ? j->items.heads : j->all.heads, n = j->causal ? j->items.items : j->all.n_seq;
  return dim3(static_cast<unsigned>((most + rows - 1) / rows), static_cast<unsigned>(heads), static_cast<unsigned>(n));
}

#endif
