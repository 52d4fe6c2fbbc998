/* The CUDA backend: maps the contracts of ops.h onto kernels/cuda. No arithmetic here. */
#include <stddef.h>
#include <stdlib.h>

#include "ops/cuda_parts.h"

_Static_assert((int)BTC_F32 == BTC_CUDA_F32 && (int)BTC_F16 == BTC_CUDA_F16 && (int)BTC_BF16 == BTC_CUDA_BF16,
               "the types have the same numbers");
_Static_assert((int)BTC_ACT_NONE == BTC_CUDA_NONE && (int)BTC_ACT_GELU_TANH == BTC_CUDA_GELU_TANH &&
                   (int)BTC_ACT_GELU_ERF == BTC_CUDA_GELU_ERF && (int)BTC_ACT_RELU == BTC_CUDA_RELU,
               "the activations have the same numbers");

_Static_assert(sizeof(btc_pick) == sizeof(btc_cuda_pick) && offsetof(btc_pick, broken) == offsetof(btc_cuda_pick, broken) &&
                   offsetof(btc_pick, logprob) == offsetof(btc_cuda_pick, logprob),
               "picks lie in memory alike");

/* ---- life ---- */

static void cuda_destroy(btc_backend *b) {
  cuda_backend *c = b->self;
  if (c->stream) (void)cudaStreamSynchronize(c->stream);
  cuda_pictures_close(c);
  cuda_items_close(c);
  cuda_products_close(c);
  cuda_constants_close(c);
  for (int i = 0; i < 2; i++) {
    if (c->staging_free[i]) (void)cudaEventDestroy(c->staging_free[i]);
    cuda_staging_free(&c->staging[i]);
  }
  if (c->stream) (void)cudaStreamDestroy(c->stream);
  free(c);
  b->self = NULL;
}

static btc_status cuda_create(btc_backend *b, const btc_backend_options *o, btc_error *err) {
  cuda_backend *c = btc_alloc_zero(1, sizeof *c);
  if (!c) return btc_fail(err, BTC_ERR_NOMEM, "no memory for a backend");
  c->base = b;
  c->o = *o;
  c->bf16 = o->compute == BTC_COMPUTE_BF16;
  c->recording_now = -1;
  b->self = c;
  b->rows = BTC_DEVICE_ROWS;
  btc_status st = cuda_open(c, o->kind, err);
  if (st == BTC_OK) st = cuda_products_open(c, err);
  if (st == BTC_OK) st = cuda_items_open(c, err);
  if (st == BTC_OK) st = cuda_pictures_open(c, err);
  if (st != BTC_OK) cuda_destroy(b);
  return st;
}

/* A lost device stays lost; anything else was about the work that was started, and is forgotten when it has been said. */
static btc_status cuda_finish(btc_backend *b, btc_error *err) {
  cuda_backend *c = b->self;
  if (!c->lost) CUDA_TRY(c, cudaStreamSynchronize(c->stream));
  btc_status st = cuda_failure(c, err);
  if (!c->lost) c->failed = (btc_error){0};
  return st;
}

/* ---- operators: nothing is started after a failure ---- */

#define START(c, call)                                 \
  do {                                                 \
    if ((c)->failed.code == BTC_OK) CUDA_TRY(c, call); \
  } while (0)

static uint16_t *packed_place(const cuda_backend *c, float *y) {
  return c->bf16 ? (uint16_t *)y : NULL;
}

static void cuda_layernorm(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, const float *bias,
                           float eps) {
  cuda_backend *c = b->self;
  START(c, btc_cuda_layernorm(y, NULL, x, m, n, cuda_vector(c, weight), cuda_vector(c, bias), eps, c->stream));
}

static void cuda_layernorm_packed(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight,
                                  const float *bias, float eps) {
  cuda_backend *c = b->self;
  uint16_t *packed = packed_place(c, y);
  START(c, btc_cuda_layernorm(packed ? NULL : y, packed, x, m, n, cuda_vector(c, weight), cuda_vector(c, bias), eps, c->stream));
}

static void cuda_rmsnorm(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, float eps) {
  cuda_backend *c = b->self;
  START(c, btc_cuda_rmsnorm(y, NULL, x, m, n, cuda_vector(c, weight), eps, c->stream));
}

static void cuda_rmsnorm_packed(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, float eps) {
  cuda_backend *c = b->self;
  uint16_t *packed = packed_place(c, y);
  START(c, btc_cuda_rmsnorm(packed ? NULL : y, packed, x, m, n, cuda_vector(c, weight), eps, c->stream));
}

static void cuda_attention(btc_backend *b, const btc_attention *a) {
  cuda_backend *c = b->self;
  btc_cuda_type t = a->packed && c->bf16 ? BTC_CUDA_BF16 : BTC_CUDA_F32;
  btc_cuda_attention job = {.q = a->q,
                            .k = a->k,
                            .v = a->v,
                            .o = a->o,
                            .in = t,
                            .out = t,
                            .q_stride = a->q_stride,
                            .k_stride = a->k_stride,
                            .v_stride = a->v_stride,
                            .o_stride = a->o_stride,
                            .n_seq = a->n_seq,
                            .t = a->t,
                            .heads = a->heads,
                            .d = a->d,
                            .scale = a->scale};
  START(c, btc_cuda_attend(&job, c->stream));
}

static void cuda_add(btc_backend *b, float *y, const float *a, const float *d, int64_t n) {
  cuda_backend *c = b->self;
  START(c, btc_cuda_add(y, cuda_vector(c, a), cuda_vector(c, d), n, c->stream));
}

static void cuda_silu_mul(btc_backend *b, float *y, const float *gate, const float *up, int64_t n) {
  cuda_backend *c = b->self;
  btc_cuda_gate job = {.gate = gate, .up = up, .gate_stride = n, .up_stride = n, .type = BTC_CUDA_F32};
  START(c, btc_cuda_silu_mul(y, NULL, &job, 1, n, c->stream));
}

static void cuda_add_repeated(btc_backend *b, float *y, const float *a, const float *d, int64_t n, int64_t period) {
  cuda_backend *c = b->self;
  START(c, btc_cuda_add_repeated(y, cuda_vector(c, a), cuda_vector(c, d), n, period, c->stream));
}

static void cuda_unfold_patches(btc_backend *b, float *dst, const float *x, int64_t n, int64_t side, int64_t p, int64_t g) {
  cuda_backend *c = b->self;
  uint16_t *packed = packed_place(c, dst);
  START(c, btc_cuda_unfold_patches(packed ? NULL : dst, packed, x, n, side, p, g, c->stream));
}

static void cuda_unfold_3x3(btc_backend *b, float *dst, const float *x, int64_t n, int64_t g, int64_t channels) {
  cuda_backend *c = b->self;
  uint16_t *packed = packed_place(c, dst);
  START(c, btc_cuda_unfold_3x3(packed ? NULL : dst, packed, x, n, g, channels, c->stream));
}

static void cuda_space_to_depth(btc_backend *b, float *dst, const float *x, int64_t n, int64_t g, int64_t channels) {
  cuda_backend *c = b->self;
  START(c, btc_cuda_space_to_depth(dst, x, n, g, channels, c->stream));
}

static void cuda_cosine_concat(btc_backend *b, float *z, float *cos, const float *s1, const float *s2, int64_t t, int64_t n) {
  cuda_backend *c = b->self;
  uint16_t *packed = packed_place(c, z);
  START(c, btc_cuda_cosine_concat(packed ? NULL : z, packed, cos, s1, s2, t, n, c->stream));
}

/* ids are the caller's host memory, as everywhere: they travel in front of the kernel. */
static void cuda_embed(btc_backend *b, float *y, const btc_weight *table, const int32_t *ids, int64_t m) {
  cuda_backend *c = b->self;
  const cuda_constant *k = cuda_find(c, table->data);
  for (int64_t i = 0; i < m && k; i += c->o.max_positions) {
    int64_t n = m - i < c->o.max_positions ? m - i : c->o.max_positions;
    START(c, cudaMemcpyAsync(c->ids, ids + i, (size_t)n * sizeof *ids, cudaMemcpyHostToDevice, c->stream));
    START(c, btc_cuda_embed(y + i * table->cols, k->exact, (btc_cuda_type)table->dtype, table->cols, c->ids, n, c->stream));
  }
}

static void cuda_pick(btc_backend *b, btc_pick *picks, const float *logits, int64_t stride, int64_t m, int64_t vocab) {
  cuda_backend *c = b->self;
  START(c, btc_cuda_sample((btc_cuda_pick *)picks, logits, stride, m, vocab, NULL, NULL, c->stream));
}

const btc_ops_table btc_ops_cuda = {
    .kind = "cuda",
    .create = cuda_create,
    .destroy = cuda_destroy,
    .matmul = cuda_matmul,
    .matvec = cuda_matvec,
    .layernorm = cuda_layernorm,
    .rmsnorm = cuda_rmsnorm,
    .attention = cuda_attention,
    .add = cuda_add,
    .silu_mul = cuda_silu_mul,
    .unfold_patches = cuda_unfold_patches,
    .unfold_3x3 = cuda_unfold_3x3,
    .space_to_depth = cuda_space_to_depth,
    .cosine_concat = cuda_cosine_concat,
    .embed = cuda_embed,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .hold = cuda_hold,
    .finish = cuda_finish,
    .device = cuda_use,
    .copy_2d = cuda_copy_2d,
    .sequence_begin = cuda_sequence_begin,
    .sequence_end = cuda_sequence_end,
    .layernorm_packed = cuda_layernorm_packed,
    .rmsnorm_packed = cuda_rmsnorm_packed,
    .add_repeated = cuda_add_repeated,
    .hold_together = cuda_hold_together,
    .products_part = cuda_products_part,
    .products = cuda_products,
    .products_gated = cuda_products_gated,
    .products_attend = cuda_products_attend,
    .set_items = cuda_set_items,
    .attention_items = cuda_attention_items,
    .embed_items = cuda_embed_items,
    .parcel_create = cuda_parcel_create,
    .parcel_destroy = cuda_parcel_destroy,
    .send = cuda_send,
    .resize_normalise = cuda_resize_normalise,
    .pick = cuda_pick,
};
