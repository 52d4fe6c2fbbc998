/*
 * matvec*.cu against the plain product: odd sizes, every stored type, epilogues, and a row's bits alone and among others.
 *
 * Bounds. Elements are in [-1, 1), so a sum of k products is at most k in magnitude; it is made in chains of at most k / 16 + 32
 * additions (16 in one mma.sync, k / 128 of those in a warp, eight warps; or k / 32 in a lane and a tree of five).
 */
#include "gpu.h"

typedef struct sizes {
  int64_t m, n, k;
} sizes;

static const sizes all_sizes[] = {{1, 1, 1},     {1, 17, 8},     {3, 16, 7},   {8, 40, 64},   {9, 33, 72},
                                  {16, 15, 500}, {17, 31, 1024}, {32, 16, 65}, {33, 18, 136}, {1, 5, 2560},
                                  {2, 64, 1096}, {7, 3, 2051},   {5, 20, 4104}};

typedef struct product {
  gpu_array w, x;
  btc_cuda_matrix matrix;
  btc_cuda_type x_type;
} product;

static int matvec(float *y, uint16_t *y_bf16, const void *x, btc_cuda_type x_type, int64_t m, const btc_cuda_matrix *w,
                  const btc_cuda_epilogue *e, int round) {
  const btc_cuda_rows rows = {.x = x, .type = x_type, .m = m};
  return btc_cuda_matvec(y, y_bf16, &rows, w, e, round, NULL);
}

static product make_product(const sizes *s, btc_dtype w, btc_cuda_type x) {
  product p = {.w = gpu_stored(w, s->n * s->k), .x = gpu_stored(x == BTC_CUDA_F32 ? BTC_F32 : BTC_BF16, s->m * s->k), .x_type = x};
  p.matrix = (btc_cuda_matrix){.data = p.w.device, .type = (btc_cuda_type)w, .rows = s->n, .cols = s->k};
  return p;
}

static void free_product(product *p) {
  gpu_free(&p->w);
  gpu_free(&p->x);
}

static float *plain_product(const product *p, const sizes *s, bool round, const btc_epilogue *e) {
  float *x = malloc((size_t)(s->m * s->k) * sizeof *x), *y = malloc((size_t)(s->m * s->n) * sizeof *y);
  assert_true(x && y);
  btc_to_f32(x, p->x.host, p->x_type == BTC_CUDA_F32 ? BTC_F32 : BTC_BF16, (size_t)(s->m * s->k));
  btc_weight w = {p->w.host, (btc_dtype)p->matrix.type, s->n, s->k};
  btc_backend b = plain_backend(round ? BTC_COMPUTE_BF16 : BTC_COMPUTE_F32);
  b.table->matvec(&b, y, x, s->m, &w, e);
  free(x);
  return y;
}

static double bound_of(int64_t k) {
  return ((double)k / 16 + 32) * UNIT * (double)k;
}

static void check(const sizes *s, btc_dtype w, btc_cuda_type x, bool round) {
  gpu_case("m %lld, n %lld, k %lld, weights %d, x %d, rounded %d", (long long)s->m, (long long)s->n, (long long)s->k, (int)w,
           (int)x, round);
  product p = make_product(s, w, x);
  gpu_array y = gpu_new((size_t)(s->m * s->n) * 4, 0), h = gpu_new((size_t)(s->m * s->n) * 2, 0);
  GPU(matvec(y.device, h.device, p.x.device, x, s->m, &p.matrix, NULL, round));
  gpu_get(&y);
  gpu_get(&h);
  float *want = plain_product(&p, s, round, NULL);
  for (int64_t i = 0; i < s->m * s->n; i++) assert_close(gpu_f32(&y)[i], want[i], bound_of(s->k), "matvec", i);
  assert_rounded(&h, y.host, s->m * s->n, "matvec");
  free(want);
  gpu_free(&y);
  gpu_free(&h);
  free_product(&p);
}

static void test_matvec_equals_plain(void **state) {
  (void)state;
  GPU_REQUIRED();
  for (size_t i = 0; i < sizeof all_sizes / sizeof all_sizes[0]; i++)
    for (int w = BTC_F32; w <= BTC_BF16; w++)
      for (int round = 0; round < 2; round++)
        check(&all_sizes[i], (btc_dtype)w, (i + (size_t)w) % 2 ? BTC_CUDA_BF16 : BTC_CUDA_F32, round);
}

/* Enough rows of w that a block takes 32 of them. */
static void test_matvec_of_a_tall_matrix(void **state) {
  (void)state;
  GPU_REQUIRED();
  check(&(sizes){9, 4241, 40}, BTC_BF16, BTC_CUDA_F32, true);
  check(&(sizes){19, 4230, 24}, BTC_BF16, BTC_CUDA_BF16, true);
}

/* Row i of m rows and that row among `few` (1: alone). */
static void check_rows(int64_t n, int64_t k, btc_dtype w, bool round, int64_t few) {
  enum { M = 32 };
  gpu_case("m 32 and %lld, n %lld, k %lld, weights %d, rounded %d", (long long)few, (long long)n, (long long)k, (int)w, round);
  sizes s = {M, n, k};
  product p = make_product(&s, w, BTC_CUDA_F32);
  gpu_array alone = gpu_new((size_t)(M * n) * 4, 0);
  for (int64_t i = 0; i < M; i += few)
    GPU(matvec((float *)alone.device + i * n, NULL, (float *)p.x.device + i * k, p.x_type, few, &p.matrix, NULL, round));
  gpu_get(&alone);
  static const int64_t rows[] = {2, 7, 9, 17, 32};
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    int64_t m = rows[i], first = M - m;
    gpu_array y = gpu_new((size_t)(m * n) * 4, 0);
    GPU(matvec(y.device, NULL, (float *)p.x.device + first * k, p.x_type, m, &p.matrix, NULL, round));
    gpu_get(&y);
    assert_same_bits(y.host, gpu_f32(&alone) + first * n, m * n, "rows together");
    gpu_free(&y);
  }
  gpu_free(&alone);
  free_product(&p);
}

static void test_matvec_row_does_not_see_others(void **state) {
  (void)state;
  GPU_REQUIRED();
  check_rows(37, 1160, BTC_BF16, true, 1);
  check_rows(21, 333, BTC_BF16, true, 1);
  check_rows(4224, 24, BTC_BF16, true, 8); /* 32 rows of w a block from nine rows on */
  check_rows(35, 1160, BTC_BF16, false, 1);
  check_rows(18, 200, BTC_F32, true, 1);
  check_rows(18, 77, BTC_F16, false, 1);
}

/* f32 rows that are rounded on the way are the rounded rows. */
static void test_matvec_rounds_as_the_producer_does(void **state) {
  (void)state;
  GPU_REQUIRED();
  sizes s = {4, 24, 192};
  product p = make_product(&s, BTC_BF16, BTC_CUDA_F32);
  gpu_array h = gpu_new((size_t)(s.m * s.k) * 2, 0), a = gpu_new((size_t)(s.m * s.n) * 4, 0),
            b = gpu_new((size_t)(s.m * s.n) * 4, 0);
  for (int64_t i = 0; i < s.m * s.k; i++) ((uint16_t *)h.host)[i] = btc_f32_to_bf16(gpu_f32(&p.x)[i]);
  gpu_put(&h);
  GPU(matvec(a.device, NULL, p.x.device, BTC_CUDA_F32, s.m, &p.matrix, NULL, 1));
  GPU(matvec(b.device, NULL, h.device, BTC_CUDA_BF16, s.m, &p.matrix, NULL, 1));
  gpu_get(&a);
  gpu_get(&b);
  assert_same_bits(a.host, b.host, s.m * s.n, "rounded rows");
  gpu_free(&h);
  gpu_free(&a);
  gpu_free(&b);
  free_product(&p);
}

/* What lies between the rows is not a part of the product. */
static void check_padded(sizes s, int64_t pitch, btc_dtype w, bool round) {
  gpu_case("m %lld, n %lld, k %lld, pitch %lld, weights %d, rounded %d", (long long)s.m, (long long)s.n, (long long)s.k,
           (long long)pitch, (int)w, round);
  const size_t size = btc_dtype_size(w), row = (size_t)s.k * size;
  product p = make_product(&s, w, BTC_CUDA_F32);
  gpu_array padded = gpu_new((size_t)(s.n * pitch) * size, 0), a = gpu_new((size_t)(s.m * s.n) * 4, 0),
            b = gpu_new((size_t)(s.m * s.n) * 4, 0); /* NaN between the rows */
  for (int64_t i = 0; i < s.n; i++)
    memcpy((char *)padded.host + (size_t)(i * pitch) * size, (char *)p.w.host + (size_t)i * row, row);
  gpu_put(&padded);
  GPU(matvec(a.device, NULL, p.x.device, BTC_CUDA_F32, s.m, &p.matrix, NULL, round));
  p.matrix.data = padded.device;
  p.matrix.pitch = pitch;
  GPU(matvec(b.device, NULL, p.x.device, BTC_CUDA_F32, s.m, &p.matrix, NULL, round));
  gpu_get(&a);
  gpu_get(&b);
  assert_same_bits(b.host, a.host, s.m * s.n, "padded rows");
  gpu_free(&padded);
  gpu_free(&a);
  gpu_free(&b);
  free_product(&p);
}

static void test_matvec_of_padded_rows(void **state) {
  (void)state;
  GPU_REQUIRED();
  check_padded((sizes){3, 21, 77}, 80, BTC_BF16, true);
  check_padded((sizes){2, 18, 72}, 88, BTC_BF16, true);
  check_padded((sizes){1, 19, 37}, 40, BTC_F32, false);
  check_padded((sizes){9, 5, 64}, 68, BTC_F32, true);
}

/* Any of bias, scale, residual; every activation; the residual in place. */
static void check_epilogue(btc_act act, bool bias, bool scale, bool residual, bool first, btc_dtype w) {
  sizes s = {3, 19, 48};
  product p = make_product(&s, w, BTC_CUDA_F32);
  gpu_array vb = gpu_random(s.n), vs = gpu_random(s.n), y = gpu_random(s.m * s.n);
  btc_cuda_epilogue e = {
      bias ? vb.device : NULL, scale ? vs.device : NULL, residual ? y.device : NULL, 0, (btc_cuda_act)act, first};
  btc_epilogue plain = {.bias = bias ? vb.host : NULL,
                        .scale = scale ? vs.host : NULL,
                        .residual = residual ? y.host : NULL,
                        .act = act,
                        .residual_first = first};
  float *want = plain_product(&p, &s, true, &plain);
  GPU(matvec(y.device, NULL, p.x.device, BTC_CUDA_F32, s.m, &p.matrix, &e, 1));
  gpu_get(&y);
  /* Activations steepen by at most 1.2; a few roundings of numbers up to |want| + 2. */
  for (int64_t i = 0; i < s.m * s.n; i++)
    assert_close(gpu_f32(&y)[i], want[i], 1.2 * bound_of(s.k) + 16 * UNIT * (fabs(want[i]) + 2), "epilogue", i);
  free(want);
  gpu_free(&vb);
  gpu_free(&vs);
  gpu_free(&y);
  free_product(&p);
}

static void test_matvec_epilogue_equals_plain(void **state) {
  (void)state;
  GPU_REQUIRED();
  for (int act = BTC_ACT_NONE; act <= BTC_ACT_RELU; act++)
    for (int bits = 0; bits < 16; bits++)
      check_epilogue((btc_act)act, bits & 1, bits & 2, bits & 4, bits & 8, bits % 3 ? BTC_BF16 : BTC_F32);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_matvec_equals_plain),
    cmocka_unit_test(test_matvec_of_a_tall_matrix),
    cmocka_unit_test(test_matvec_row_does_not_see_others),
    cmocka_unit_test(test_matvec_rounds_as_the_producer_does),
    cmocka_unit_test(test_matvec_of_padded_rows),
    cmocka_unit_test(test_matvec_epilogue_equals_plain),
};

BTC_TEST_MAIN(tests)
