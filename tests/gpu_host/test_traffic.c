/*
 * How the warps of each kernel use shared and global memory, at the model's widths: conflicts of banks and sectors a request, by
 * place in the source. Prints a table (ctest -R test_traffic -V); tests hold the kernels to bounds. See
 * kernels/cuda/shim/traffic.h.
 */
#include "gpu.h"
#include "kernels/cuda/shim/shim_test.h"
#include "traffic_kernels.h"

typedef struct sums {
  int64_t requests, taken, least; /* of shared memory or global memory */
} sums;

typedef struct found {
  sums kind[2]; /* global, shared */
  double worst; /* of shared memory: passes at one place in the kernel, for each that is needed */
  bool printed;
} found;

static void add_row(void *context, const btc_shim_traffic *r) {
  found *f = context;
  sums *s = &f->kind[r->shared != 0];
  double ratio = (double)r->taken / (double)r->least;
  s->requests += r->requests;
  s->taken += r->taken;
  s->least += r->least;
  if (r->shared && ratio > f->worst) f->worst = ratio;
  if (!f->printed)
    printf("%-6s %-5s %5s %8s %6s %6s %5s  %s\n", "memory", "", "bytes", "requests", "each", "least", "worst", "where");
  f->printed = true;
  printf("%-6s %-5s %5d %8lld %6.2f %6.2f %5d  %s\n", r->shared ? "shared" : "global", r->write ? "write" : "read", r->bytes,
         (long long)r->requests, (double)r->taken / (double)r->requests, (double)r->least / (double)r->requests, r->worst,
         r->where);
}

static found counted(const char *what) {
  found f = {0};
  btc_shim_traffic_end();
  printf("-- %s\n", what);
  btc_shim_traffic_each(add_row, &f);
  return f;
}

#define COUNT(call) (btc_shim_traffic_begin(), GPU(call), counted(#call))

static void test_traffic_of_banks(void **state) {
  (void)state;
  float y[32];
  unsigned words[32];
  static const int passes[][2] = {{0, 1}, {1, 1}, {2, 2}, {4, 4}, {32, 32}, {33, 1}};
  for (size_t i = 0; i < sizeof passes / sizeof passes[0]; i++)
    assert_int_equal(COUNT(traffic_words(y, passes[i][0])).kind[1].taken, passes[i][1]);
  assert_int_equal(COUNT(traffic_pieces(y, 1)).kind[1].taken, 4);
  assert_int_equal(COUNT(traffic_pieces(y, 8)).kind[1].taken, 32);
  assert_int_equal(COUNT(traffic_matrices(words, 8)).kind[1].taken, 4);
  assert_int_equal(COUNT(traffic_matrices(words, 64)).kind[1].taken, 32);
  assert_int_equal(COUNT(traffic_matrices(words, 72)).kind[1].taken, 4);
}

static void test_traffic_of_sectors(void **state) {
  (void)state;
  static float x[32 * 8 + 8] __attribute__((aligned(32))), y[32] __attribute__((aligned(32)));
  static const int sectors[][2] = {{0, 1}, {1, 4}, {2, 8}, {8, 32}};
  for (size_t i = 0; i < sizeof sectors / sizeof sectors[0]; i++) {
    found f = COUNT(traffic_global(y, x, sectors[i][0]));
    assert_int_equal(f.kind[0].requests, 2);
    assert_int_equal(f.kind[0].taken, 4 + sectors[i][1]); /* and the store of y */
  }
  assert_int_equal(COUNT(traffic_global(y, x + 1, 1)).kind[0].taken, 4 + 5);
}

/* ---- kernels: what they take now, so that no change makes it more unseen; a smaller figure is welcome, and then the bound ---- */

/* passes: at the worst place of shared memory; sectors: of all global accesses, for each that their bytes would fill. */
static void assert_within(found f, double passes, double sectors) {
  const sums *global = &f.kind[0];
  double ratio = (double)global->taken / (double)global->least;
  printf("shared memory: %.2f at worst, bound %.2f; global memory: %.2f, bound %.2f\n", f.worst, passes, ratio, sectors);
  assert_true(f.worst <= passes + 0.005);
  assert_true(ratio <= sectors + 0.005);
}

static btc_dtype dtype_of(btc_cuda_type t) {
  return t == BTC_CUDA_F32 ? BTC_F32 : BTC_BF16;
}

static found attention(btc_cuda_type in) {
  enum { T = 128, D = 72, HEADS = 2, STRIDE = 1152 };
  gpu_array q = gpu_stored(dtype_of(in), T * STRIDE), k = gpu_stored(dtype_of(in), T * STRIDE), o = gpu_new(T * STRIDE * 4, 0);
  btc_cuda_attention a = {q.device, k.device, k.device, o.device, in, in, STRIDE, STRIDE, STRIDE, STRIDE, 1, T, HEADS, D, 0.1f};
  found f = COUNT(btc_cuda_attend(&a, NULL));
  gpu_free(&q);
  gpu_free(&k);
  gpu_free(&o);
  return f;
}

static void test_traffic_attention(void **state) {
  (void)state;
  assert_within(attention(BTC_CUDA_F32), 1.6, 1);
  assert_within(attention(BTC_CUDA_BF16), 1, 1.35);
}

/* One item of 200 positions in a cache of bf16, four heads of 128 on one of keys. */
typedef struct cache {
  gpu_array k, v, k_at, v_at, ints, q, o, done, scratch;
  btc_cuda_kv kv;
  btc_cuda_causal a;
} cache;

enum { POSITIONS = 200, HEADS = 4, HEAD = 128 };

static cache new_cache(int rows) {
  cache c = {.k = gpu_stored(BTC_BF16, 256 * HEAD), .v = gpu_stored(BTC_BF16, 256 * HEAD)};
  c.k_at = gpu_new(sizeof(void *), 0);
  c.v_at = gpu_new(sizeof(void *), 0);
  *(void **)c.k_at.host = c.k.device;
  *(void **)c.v_at.host = c.v.device;
  gpu_put(&c.k_at);
  gpu_put(&c.v_at);
  c.ints = gpu_ints((const int32_t[]){0, rows, POSITIONS - rows}, 3);
  c.q = gpu_random(rows * HEADS * HEAD);
  c.o = gpu_new((size_t)rows * HEADS * HEAD * 4, 0);
  c.done = gpu_ints((const int32_t[]){0}, 1);
  c.scratch = gpu_new(btc_cuda_decode_scratch(1, HEADS, HEAD, 256), 0);
  c.kv = (btc_cuda_kv){c.k_at.device, c.v_at.device, BTC_CUDA_BF16, 1, 256, HEAD};
  const int32_t *ints = c.ints.device;
  c.a = (btc_cuda_causal){c.q.device, c.o.device, BTC_CUDA_BF16, HEADS * HEAD, HEADS, 1, rows, ints, ints + 1, ints + 2, 0.1f, 1};
  return c;
}

static void free_cache(cache *c) {
  gpu_array *all[] = {&c->k, &c->v, &c->k_at, &c->v_at, &c->ints, &c->q, &c->o, &c->done, &c->scratch};
  for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) gpu_free(all[i]);
}

static void test_traffic_cache_attention(void **state) {
  (void)state;
  cache c = new_cache(64);
  assert_within(COUNT(btc_cuda_attend_causal(&c.a, &c.kv, NULL)), 1, 1.35);
  free_cache(&c);
  c = new_cache(1);
  assert_within(COUNT(btc_cuda_attend_decode(&c.a, &c.kv, 256, c.done.device, c.scratch.device, NULL)), 2, 1.0);
  free_cache(&c);
}

typedef enum work { PLAIN, NORMED, GATED } work;

static found product(btc_cuda_type type, int64_t m, int round, work kind) {
  enum { N = 64, K = 2048 };
  gpu_array w = gpu_stored(BTC_BF16, N * K), rows = gpu_stored(dtype_of(type), m * K), y = gpu_new((size_t)(m * N) * 4, 0);
  gpu_array norm = gpu_random(K);
  btc_cuda_matrix matrix = {w.device, BTC_CUDA_BF16, N, K, 0};
  btc_cuda_rows x = {rows.device, type, m, kind == NORMED ? norm.device : NULL, 1e-6f};
  found f = kind == GATED ? COUNT(btc_cuda_matvec_gated(y.device, NULL, &x, &matrix, round, NULL))
                          : COUNT(btc_cuda_matvec(y.device, NULL, &x, &matrix, NULL, round, NULL));
  gpu_free(&w);
  gpu_free(&rows);
  gpu_free(&y);
  gpu_free(&norm);
  return f;
}

static void test_traffic_matvec(void **state) {
  (void)state;
  assert_within(product(BTC_CUDA_BF16, 1, 1, PLAIN), 1, 1);
  assert_within(product(BTC_CUDA_F32, 8, 1, PLAIN), 2, 1.5);
  assert_within(product(BTC_CUDA_BF16, 32, 1, PLAIN), 2, 1);
  assert_within(product(BTC_CUDA_F32, 4, 0, PLAIN), 1, 1.8);
  assert_within(product(BTC_CUDA_F32, 1, 1, NORMED), 1.15, 1);
  assert_within(product(BTC_CUDA_BF16, 1, 1, GATED), 1, 1);
  assert_within(product(BTC_CUDA_BF16, 8, 1, GATED), 2, 1);
}

static void test_traffic_rows(void **state) {
  (void)state;
  enum { M = 4, N = 1152, ALL = M * N };
  gpu_array x = gpu_random(2 * ALL), y = gpu_new(2 * ALL * 4, 0), h = gpu_new(2 * ALL * 2, 0), w = gpu_random(2 * N);
  gpu_array pos = gpu_ints((const int32_t[]){3, 1, 0, 2}, 4);
  assert_within(COUNT(btc_cuda_layernorm(y.device, h.device, x.device, M, N, w.device, w.device, 1e-5f, NULL)), 1, 1);
  assert_within(COUNT(btc_cuda_rmsnorm(y.device, h.device, x.device, M, N, w.device, 1e-5f, NULL)), 1, 1);
  assert_within(COUNT(btc_cuda_cosine_concat(y.device, h.device, NULL, x.device, (float *)x.device + ALL, M, N, NULL)), 1, 1);
  assert_within(COUNT(btc_cuda_epilogue_apply(y.device, h.device, x.device, M, N,
                                              &(btc_cuda_epilogue){.bias = w.device, .act = BTC_CUDA_GELU_TANH}, NULL)),
                1, 1.9);
  assert_within(COUNT(btc_cuda_add(y.device, x.device, x.device, ALL, NULL)), 1, 1);
  assert_within(COUNT(btc_cuda_silu_mul(y.device, h.device,
                                        &(btc_cuda_gate){x.device, (float *)x.device + N, BTC_CUDA_F32, 2 * N, 2 * N}, M, N, NULL)),
                1, 1);
  assert_within(COUNT(btc_cuda_rope(x.device, N, M, 9, 128, pos.device, w.device, w.device, NULL)), 1, 1);
  assert_within(COUNT(btc_cuda_to_bf16(h.device, x.device, BTC_CUDA_F32, ALL, NULL)), 1, 1.7);
  assert_within(COUNT(btc_cuda_embed(y.device, x.device, BTC_CUDA_F32, N, pos.device, M, NULL)), 1, 1);
  assert_within(COUNT(btc_cuda_unfold_patches(y.device, h.device, x.device, 1, 28, 14, 2, NULL)), 1, 1.4);
  assert_within(COUNT(btc_cuda_unfold_3x3(y.device, h.device, x.device, 1, 3, 64, NULL)), 1, 1.5);
  assert_within(COUNT(btc_cuda_space_to_depth(y.device, x.device, 1, 4, 128, NULL)), 1, 1);
  gpu_free(&x);
  gpu_free(&y);
  gpu_free(&h);
  gpu_free(&w);
  gpu_free(&pos);
}

static void test_traffic_sampling(void **state) {
  (void)state;
  enum { VOCABULARY = 8192 };
  gpu_array logits = gpu_random(VOCABULARY), picks = gpu_new(sizeof(btc_cuda_pick), 0),
            settings = gpu_new(sizeof(btc_cuda_sampling), 0);
  gpu_array scratch = gpu_new(btc_cuda_sample_scratch(1, VOCABULARY), 0);
  *(btc_cuda_sampling *)settings.host = (btc_cuda_sampling){0.7f, 0.9f, 50, 0, 0.5};
  gpu_put(&settings);
  assert_within(COUNT(btc_cuda_sample(picks.device, logits.device, VOCABULARY, 1, VOCABULARY, NULL, NULL, NULL)), 1, 1);
  assert_within(
      COUNT(btc_cuda_sample(picks.device, logits.device, VOCABULARY, 1, VOCABULARY, settings.device, scratch.device, NULL)), 1,
      1.2);
  gpu_free(&logits);
  gpu_free(&picks);
  gpu_free(&settings);
  gpu_free(&scratch);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_traffic_of_banks),  cmocka_unit_test(test_traffic_of_sectors),
    cmocka_unit_test(test_traffic_attention), cmocka_unit_test(test_traffic_cache_attention),
    cmocka_unit_test(test_traffic_matvec),    cmocka_unit_test(test_traffic_rows),
    cmocka_unit_test(test_traffic_sampling),
};

BTC_TEST_MAIN(tests)
