/*
 * norm.cu against the plain operators. Tolerance: a sum of n floats by 4-wide threads and trees adds at most n/1024 + 4 + 5 + 8
 * roundings a term; statistics of values in [-1, 1) then move an output by a few of those, relative to the output's own size.
 */
#include "gpu.h"

typedef struct sizes {
  int64_t m, n;
} sizes;

static const sizes shapes[] = {{1, 1},    {3, 5},    {2, 64},   {5, 72},   {3, 1023}, {2, 1152},
                               {2, 1025}, {1, 2560}, {2, 4608}, {1, 4611}, {1, 5120}, {2, 5121}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static double bound_of(int64_t n) {
  return (20 + (double)n / 256) * UNIT * 8;
}

static void check_rows(gpu_array *y, gpu_array *h, const float *want, int64_t n, double bound, const char *what) {
  gpu_get(y);
  gpu_get(h);
  for (int64_t i = 0; i < n; i++) assert_close(gpu_f32(y)[i], want[i], bound * (1 + fabs((double)want[i])), what, i);
  assert_rounded(h, y->host, n, what);
}

static void norm(sizes z, bool rms, float offset) {
  gpu_case("rows %lld, columns %lld", (long long)z.m, (long long)z.n);
  int64_t all = z.m * z.n;
  gpu_array x = gpu_random(all), w = gpu_random(z.n), c = gpu_random(z.n), y = gpu_new((size_t)all * 4, 0),
            h = gpu_new((size_t)all * 2, 0);
  for (int64_t i = 0; i < all; i++) gpu_f32(&x)[i] += offset;
  gpu_put(&x);
  float *want = malloc((size_t)all * sizeof *want);
  assert_non_null(want);
  btc_backend b = plain_backend(BTC_COMPUTE_F32);
  if (rms) {
    btc_ops_plain.rmsnorm(&b, want, x.host, z.m, z.n, w.host, 1e-5f);
    GPU(btc_cuda_rmsnorm(y.device, h.device, x.device, z.m, z.n, w.device, 1e-5f, NULL));
  } else {
    btc_ops_plain.layernorm(&b, want, x.host, z.m, z.n, w.host, c.host, 1e-6f);
    GPU(btc_cuda_layernorm(y.device, h.device, x.device, z.m, z.n, w.device, c.device, 1e-6f, NULL));
  }
  /* The offset's rounding is divided by the spread, which is at least about 1/4 for more than a few columns. */
  check_rows(&y, &h, want, all, bound_of(z.n) * (1 + 8 * fabs((double)offset)), rms ? "rmsnorm" : "layernorm");
  float *once = malloc((size_t)all * sizeof *once); /* in place gives the same bits */
  assert_non_null(once);
  memcpy(once, y.host, (size_t)all * sizeof *once);
  if (rms)
    GPU(btc_cuda_rmsnorm(x.device, NULL, x.device, z.m, z.n, w.device, 1e-5f, NULL));
  else
    GPU(btc_cuda_layernorm(x.device, NULL, x.device, z.m, z.n, w.device, c.device, 1e-6f, NULL));
  gpu_get(&x);
  assert_same_bits(x.host, once, all, "in place");
  free(once);
  free(want);
  gpu_array *arrays[] = {&x, &w, &c, &y, &h};
  for (int i = 0; i < 5; i++) gpu_free(arrays[i]);
}

static void test_norms_layernorm_equals_plain(void **state) {
  (void)state;
  GPU_REQUIRED();
  for (int i = 0; i < SHAPES; i++) {
    if (shapes[i].n < 5) continue; /* one column has no spread: its output is the bias, checked below */
    norm(shapes[i], false, 0);
    norm(shapes[i], false, 10);
  }
}

static void test_norms_rmsnorm_equals_plain(void **state) {
  (void)state;
  GPU_REQUIRED();
  for (int i = 0; i < SHAPES; i++) norm(shapes[i], true, 0);
}

/* A constant row has no variance: the output is the bias. */
static void test_norms_constant_row(void **state) {
  (void)state;
  GPU_REQUIRED();
  enum { N = 37 };
  gpu_array x = gpu_random(N), w = gpu_random(N), c = gpu_random(N);
  for (int i = 0; i < N; i++) gpu_f32(&x)[i] = 0.5f;
  gpu_put(&x);
  GPU(btc_cuda_layernorm(x.device, NULL, x.device, 1, N, w.device, c.device, 1e-6f, NULL));
  gpu_get(&x);
  assert_same_bits(x.host, c.host, N, "constant row");
  gpu_free(&x);
  gpu_free(&w);
  gpu_free(&c);
}

/* The bits of a row do not depend on the rows beside it. */
static void test_norms_row_alone(void **state) {
  (void)state;
  GPU_REQUIRED();
  enum { M = 7, N = 1156 };
  gpu_array x = gpu_random(M * N), w = gpu_random(N), c = gpu_random(N), y = gpu_new(M * N * 4, 0), one = gpu_new(N * 4, 0);
  GPU(btc_cuda_layernorm(y.device, NULL, x.device, M, N, w.device, c.device, 1e-6f, NULL));
  gpu_get(&y);
  for (int i = 0; i < M; i++) {
    GPU(btc_cuda_layernorm(one.device, NULL, (float *)x.device + i * N, 1, N, w.device, c.device, 1e-6f, NULL));
    gpu_get(&one);
    assert_same_bits(one.host, gpu_f32(&y) + i * N, N, "row alone");
  }
  gpu_array *arrays[] = {&x, &w, &c, &y, &one};
  for (int i = 0; i < 5; i++) gpu_free(arrays[i]);
}

/* Many rows are computed another way than few, and wide ones another way than narrow ones, to the same bits. */
static void many(int64_t n, bool rms) {
  enum { M = 2050, FEW = 5 }; /* of both sides of norm.cu's limit, and a block with rows missing */
  gpu_case("rows %d, columns %lld, rms %d", M, (long long)n, rms);
  gpu_array x = gpu_random(M * n), w = gpu_random(n), c = gpu_random(n), y = gpu_new((size_t)(M * n) * 4, 0),
            h = gpu_new((size_t)(M * n) * 2, 0), few = gpu_new((size_t)(FEW * n) * 4, 0);
  static const int64_t at[] = {0, 1021, M - FEW};
  if (rms)
    GPU(btc_cuda_rmsnorm(y.device, h.device, x.device, M, n, w.device, 1e-5f, NULL));
  else
    GPU(btc_cuda_layernorm(y.device, h.device, x.device, M, n, w.device, c.device, 1e-6f, NULL));
  gpu_get(&y);
  gpu_get(&h);
  for (int i = 0; i < 3; i++) {
    const float *from = (float *)x.device + at[i] * n;
    if (rms)
      GPU(btc_cuda_rmsnorm(few.device, NULL, from, FEW, n, w.device, 1e-5f, NULL));
    else
      GPU(btc_cuda_layernorm(few.device, NULL, from, FEW, n, w.device, c.device, 1e-6f, NULL));
    gpu_get(&few);
    assert_same_bits(few.host, gpu_f32(&y) + at[i] * n, FEW * n, "few of many rows");
  }
  assert_rounded(&h, y.host, M * n, "many rows");
  if (rms)
    GPU(btc_cuda_rmsnorm(x.device, NULL, x.device, M, n, w.device, 1e-5f, NULL));
  else
    GPU(btc_cuda_layernorm(x.device, NULL, x.device, M, n, w.device, c.device, 1e-6f, NULL));
  gpu_get(&x);
  assert_same_bits(x.host, y.host, M * n, "in place");
  gpu_array *arrays[] = {&x, &w, &c, &y, &h, &few};
  for (int i = 0; i < 6; i++) gpu_free(arrays[i]);
}

static void test_norms_many_rows_have_the_bits_of_few(void **state) {
  (void)state;
  GPU_REQUIRED();
  static const int64_t widths[] = {1, 127, 260, 1152, 1153, 2560};
  for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
    many(widths[i], false);
    many(widths[i], true);
  }
}

static void cosine(sizes s, bool zero) {
  gpu_case("tokens %lld, channels %lld", (long long)s.m, (long long)s.n);
  gpu_array a = gpu_random(s.m * s.n), c = gpu_random(s.m * s.n), z = gpu_new((size_t)(2 * s.m * s.n) * 4, 0),
            h = gpu_new((size_t)(2 * s.m * s.n) * 2, 0), cs = gpu_new((size_t)s.m * 4, 0);
  if (zero) memset(a.host, 0, (size_t)s.n * 4); /* the first token: the clamp by 1e-8 */
  gpu_put(&a);
  float *want = malloc((size_t)(2 * s.m * s.n + s.m) * sizeof *want), *want_cos = want + 2 * s.m * s.n;
  assert_non_null(want);
  btc_backend b = plain_backend(BTC_COMPUTE_F32);
  btc_ops_plain.cosine_concat(&b, want, want_cos, a.host, c.host, s.m, s.n);
  GPU(btc_cuda_cosine_concat(z.device, h.device, cs.device, a.device, c.device, s.m, s.n, NULL));
  check_rows(&z, &h, want, 2 * s.m * s.n, bound_of(s.n), "cosine_concat");
  gpu_get(&cs);
  for (int64_t i = 0; i < s.m; i++) assert_close(gpu_f32(&cs)[i], want_cos[i], bound_of(s.n), "cosine", i);
  free(want);
  gpu_array *arrays[] = {&a, &c, &z, &h, &cs};
  for (int i = 0; i < 5; i++) gpu_free(arrays[i]);
}

static void test_norms_cosine_concat_equals_plain(void **state) {
  (void)state;
  GPU_REQUIRED();
  for (int i = 0; i < SHAPES; i++) {
    cosine(shapes[i], false);
    cosine(shapes[i], true);
  }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_norms_layernorm_equals_plain),
    cmocka_unit_test(test_norms_rmsnorm_equals_plain),
    cmocka_unit_test(test_norms_constant_row),
    cmocka_unit_test(test_norms_row_alone),
    cmocka_unit_test(test_norms_many_rows_have_the_bits_of_few),
    cmocka_unit_test(test_norms_cosine_concat_equals_plain),
};

BTC_TEST_MAIN(tests)
