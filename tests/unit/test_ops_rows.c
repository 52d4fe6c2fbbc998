/* Norms, elementwise and layout operators, number formats and the backend's options. */
#include "ops_fixture.h"

static btc_backend *fast, *plain;

static int setup(void **state) {
  (void)state;
  fast = backend_new("cpu", 2, BTC_COMPUTE_F32, 64);
  plain = backend_new("plain", 1, BTC_COMPUTE_F32, 64);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  btc_backend_destroy(&fast);
  btc_backend_destroy(&plain);
  return 0;
}

static const int64_t widths[] = {1, 2, 7, 8, 15, 33, 100, 1152, 4608};
enum { WIDTHS = sizeof widths / sizeof widths[0] };

/* The mean of n values below 2 is exact to (n/16 + 8) UNIT relative to their mean magnitude, the deviation to the same relative;
 * the row is then up to sqrt(n) when all its weight is in one element, but here about 2 to 4. */
static double norm_bound(int64_t n, double value) {
  return UNIT * ((double)n / 8 + 16) * (fabs(value) + 2);
}

static void test_ops_layernorm_follows_plain(void **state) {
  (void)state;
  for (int w = 0; w < WIDTHS; w++) {
    int64_t n = widths[w], m = 23;
    float *x = buffer_random(m * n), *weight = buffer_random(n), *bias = buffer_random(n), *want = buffer_new(m * n),
          *got = buffer_new(m * n);
    for (int64_t i = 0; i < m * n; i++) x[i] += 0.5f; /* a mean that matters */
    btc_op_layernorm(plain, want, x, m, n, weight, bias, 1e-5f);
    btc_op_layernorm(fast, got, x, m, n, weight, bias, 1e-5f);
    for (int64_t i = 0; i < m * n; i++) assert_close(got[i], want[i], n == 2 ? 1e-4 : norm_bound(n, want[i]), "layernorm", i);
    btc_op_layernorm(fast, x, x, m, n, weight, bias, 1e-5f);
    assert_same_bits(x, got, m * n, "in place");
    buffer_free(x, m * n);
    buffer_free(weight, n);
    buffer_free(bias, n);
    buffer_free(want, m * n);
    buffer_free(got, m * n);
  }
}

static void test_ops_rmsnorm_follows_plain(void **state) {
  (void)state;
  for (int w = 0; w < WIDTHS; w++) {
    int64_t n = widths[w], m = 23;
    float *x = buffer_random(m * n), *weight = buffer_random(n), *want = buffer_new(m * n), *got = buffer_new(m * n);
    btc_op_rmsnorm(plain, want, x, m, n, weight, 1e-5f);
    btc_op_rmsnorm(fast, got, x, m, n, weight, 1e-5f);
    for (int64_t i = 0; i < m * n; i++) assert_close(got[i], want[i], norm_bound(n, want[i]), "rmsnorm", i);
    btc_op_rmsnorm(fast, x, x, m, n, weight, 1e-5f);
    assert_same_bits(x, got, m * n, "in place");
    buffer_free(x, m * n);
    buffer_free(weight, n);
    buffer_free(want, m * n);
    buffer_free(got, m * n);
  }
}

static void test_ops_cosine_concat_follows_plain(void **state) {
  (void)state;
  for (int w = 0; w < WIDTHS; w++) {
    int64_t n = widths[w], t = 19;
    float *s1 = buffer_random(t * n), *s2 = buffer_random(t * n), *want = buffer_new(2 * t * n), *got = buffer_new(2 * t * n);
    float *cosine_want = buffer_new(t), *cosine_got = buffer_new(t);
    memset(s1, 0, (size_t)n * sizeof *s1);          /* a zero row: cosine 0, not NaN */
    memcpy(s2 + n, s1 + n, (size_t)n * sizeof *s1); /* equal rows: cosine 1 */
    btc_op_cosine_concat(plain, want, cosine_want, s1, s2, t, n);
    btc_op_cosine_concat(fast, got, cosine_got, s1, s2, t, n);
    assert_true(cosine_got[0] == 0);
    assert_close(cosine_got[1], 1, norm_bound(n, 0), "equal rows", 1);
    for (int64_t i = 0; i < t; i++) assert_close(cosine_got[i], cosine_want[i], norm_bound(n, 0), "cosine", i);
    for (int64_t i = 0; i < 2 * t * n; i++) assert_close(got[i], want[i], norm_bound(n, 0), "concat", i);
    float *again = buffer_new(2 * t * n);
    btc_op_cosine_concat(fast, again, NULL, s1, s2, t, n);
    assert_same_bits(again, got, 2 * t * n, "without the map");
    buffer_free(again, 2 * t * n);
    buffer_free(s1, t * n);
    buffer_free(s2, t * n);
    buffer_free(want, 2 * t * n);
    buffer_free(got, 2 * t * n);
    buffer_free(cosine_want, t);
    buffer_free(cosine_got, t);
  }
}

/* Each row alone, in another position and with other threads, bit for bit. */
static void test_ops_norm_rows_are_independent(void **state) {
  (void)state;
  enum { M = 40, N = 1001 };
  float *x = buffer_random(M * N), *weight = buffer_random(N), *bias = buffer_random(N), *want = buffer_new(M * N),
        *got = buffer_new(M * N);
  for (int threads = 1; threads <= 3; threads++) {
    btc_backend *b = backend_new("cpu", threads, BTC_COMPUTE_F32, 64);
    btc_op_layernorm(fast, want, x, M, N, weight, bias, 1e-6f);
    for (int64_t i = 0; i < M; i++) btc_op_layernorm(b, got + i * N, x + i * N, 1, N, weight, bias, 1e-6f);
    assert_same_bits(got, want, M * N, "layernorm");
    btc_op_rmsnorm(fast, want, x, M, N, weight, 1e-6f);
    for (int64_t i = 0; i < M; i += 4) btc_op_rmsnorm(b, got + i * N, x + i * N, 4, N, weight, 1e-6f);
    assert_same_bits(got, want, M * N, "rmsnorm");
    btc_backend_destroy(&b);
  }
  buffer_free(x, M * N);
  buffer_free(weight, N);
  buffer_free(bias, N);
  buffer_free(want, M * N);
  buffer_free(got, M * N);
}

static void test_ops_add_and_silu_follow_plain(void **state) {
  (void)state;
  static const int64_t sizes[] = {1, 3, 8, 16385, 40000};
  for (int s = 0; s < 5; s++) {
    int64_t n = sizes[s];
    float *a = buffer_random(n), *c = buffer_random(n), *want = buffer_new(n), *got = buffer_new(n);
    for (int64_t i = 0; i < n; i++) a[i] *= 20;
    btc_op_add(plain, want, a, c, n);
    btc_op_add(fast, got, a, c, n);
    assert_same_bits(got, want, n, "add");
    btc_op_silu_mul(plain, want, a, c, n);
    btc_op_silu_mul(fast, got, a, c, n);
    /* e^x to 4 UNIT relative, four more roundings, all relative to the result */
    for (int64_t i = 0; i < n; i++) assert_close(got[i], want[i], 12 * UNIT * fabs((double)want[i]) + 1e-37, "silu", i);
    btc_op_silu_mul(fast, a, a, c, n);
    assert_same_bits(a, got, n, "silu in place");
    btc_op_add(fast, want, got, c, n);
    btc_op_add(fast, got, got, c, n);
    assert_same_bits(got, want, n, "add in place");
    buffer_free(a, n);
    buffer_free(c, n);
    buffer_free(want, n);
    buffer_free(got, n);
  }
}

static void test_ops_add_repeated_is_add_of_each_time(void **state) {
  (void)state;
  enum { TIMES = 3 };
  for (int64_t n = 1; n < 40; n += 6) {
    float *a = buffer_random(TIMES * n), *c = buffer_random(n), *want = buffer_new(TIMES * n), *got = buffer_new(TIMES * n);
    for (int64_t i = 0; i < TIMES; i++) btc_op_add(plain, want + i * n, a + i * n, c, n);
    btc_op_add_repeated(plain, got, a, c, TIMES * n, n);
    assert_same_bits(got, want, TIMES * n, "plain");
    btc_op_add_repeated(fast, a, a, c, TIMES * n, n);
    assert_same_bits(a, want, TIMES * n, "cpu, in place");
    buffer_free(a, TIMES * n);
    buffer_free(c, n);
    buffer_free(want, TIMES * n);
    buffer_free(got, TIMES * n);
  }
}

/* The gate's ends: no overflow on the way, exact zeros far left, NaN kept. */
static void test_ops_silu_extremes(void **state) {
  (void)state;
  const float gate[] = {-1e30f, -200, -90, -87, 0, 87, 90, 1e30f, NAN}, up[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
  float y[9];
  btc_op_silu_mul(fast, y, gate, up, 9);
  for (int i = 0; i < 3; i++) assert_true(y[i] <= 0 && y[i] > -1e-30f);
  assert_true(y[4] == 0 && y[5] == 87 && y[6] == 90 && y[7] == 1e30f);
  assert_true(isnan(y[8]));
}

static void test_ops_layout_follows_plain(void **state) {
  (void)state;
  for (int round = 0; round < 20; round++) {
    int64_t g = random_size(1, 9), c = random_size(1, 40), p = random_size(1, 6), side = g * p + random_size(0, 5),
            half = (g + 1) / 2;
    int64_t n = random_size(1, 4), sizes[3] = {g * g * 3 * p * p, g * g * c * 9, half * half * 4 * c};
    float *image = buffer_random(n * 3 * side * side), *x = buffer_random(n * g * g * c);
    for (int op = 0; op < 3; op++) {
      float *want = buffer_new(n * sizes[op]), *got = buffer_new(n * sizes[op]), *one = buffer_new(sizes[op]);
      for (int b = 0; b < 2; b++) {
        if (op == 0) btc_op_unfold_patches(b ? fast : plain, b ? got : want, image, n, side, p, g);
        if (op == 1) btc_op_unfold_3x3(b ? fast : plain, b ? got : want, x, n, g, c);
        if (op == 2) btc_op_space_to_depth(b ? fast : plain, b ? got : want, x, n, g, c);
      }
      assert_same_bits(got, want, n * sizes[op], "layout");
      if (op == 0) btc_op_unfold_patches(fast, one, image + (n - 1) * 3 * side * side, 1, side, p, g);
      if (op == 1) btc_op_unfold_3x3(fast, one, x + (n - 1) * g * g * c, 1, g, c);
      if (op == 2) btc_op_space_to_depth(fast, one, x + (n - 1) * g * g * c, 1, g, c);
      assert_same_bits(got + (n - 1) * sizes[op], one, sizes[op], "the last one alone");
      buffer_free(want, n * sizes[op]);
      buffer_free(got, n * sizes[op]);
      buffer_free(one, sizes[op]);
    }
    buffer_free(image, n * 3 * side * side);
    buffer_free(x, n * g * g * c);
  }
}

/* The order of tokens and channels of spec 1.4, by hand: a 3x3 grid of one channel, numbered row by row from 1. */
static void test_ops_space_to_depth_order(void **state) {
  (void)state;
  const float x[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, want[16] = {1, 2, 4, 5, 7, 8, 0, 0, 3, 0, 6, 0, 9, 0, 0, 0};
  float got[16];
  btc_op_space_to_depth(plain, got, x, 1, 3, 1);
  assert_same_bits(got, want, 16, "plain");
  btc_op_space_to_depth(fast, got, x, 1, 3, 1);
  assert_same_bits(got, want, 16, "cpu");
}

static void test_ops_embed_widens_rows(void **state) {
  (void)state;
  static const btc_dtype types[] = {BTC_F32, BTC_F16, BTC_BF16};
  for (int t = 0; t < 3; t++)
    for (int64_t cols = 1; cols < 40; cols += 6) {
      btc_weight table = weight_random(types[t], 13, cols, t);
      const int32_t ids[] = {12, 0, 5, 5};
      float *want = buffer_new(4 * cols), *got = buffer_new(4 * cols);
      btc_op_embed(plain, want, &table, ids, 4);
      btc_op_embed(fast, got, &table, ids, 4);
      assert_same_bits(got, want, 4 * cols, btc_dtype_name(types[t]));
      buffer_free(want, 4 * cols);
      buffer_free(got, 4 * cols);
      weight_free(&table, t);
    }
}

/* Every half float, through the vector kernel: normal, subnormal, infinite, NaN. */
static void test_ops_f16_every_value(void **state) {
  (void)state;
  uint16_t *all = malloc(65536 * sizeof *all);
  float *got = buffer_new(65536);
  for (int i = 0; i < 65536; i++) all[i] = (uint16_t)i;
  btc_weight table = {all, BTC_F16, 1, 65536};
  const int32_t id = 0;
  btc_op_embed(fast, got, &table, &id, 1);
  for (int i = 0; i < 65536; i++) {
    int exponent = i >> 10 & 31, mantissa = i & 1023;
    double magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY)
                       : exponent     ? ldexp(1024 + mantissa, exponent - 25)
                                      : ldexp(mantissa, -24);
    float want = (float)(i & 0x8000 ? -magnitude : magnitude), scalar = btc_f16_to_f32((uint16_t)i);
    assert_true(isnan(want) ? isnan(scalar) && isnan(got[i])
                            : scalar == want && got[i] == want && !signbit(want) == !signbit(got[i]));
  }
  buffer_free(got, 65536);
  free(all);
}

static void test_ops_bf16_rounds_to_even(void **state) {
  (void)state;
  assert_int_equal(btc_f32_to_bf16(1.0f), 0x3f80);
  assert_int_equal(btc_f32_to_bf16(0x1.01p0f), 0x3f80);        /* halfway, down to even */
  assert_int_equal(btc_f32_to_bf16(0x1.03p0f), 0x3f82);        /* halfway, up to even */
  assert_int_equal(btc_f32_to_bf16(0x1.010002p0f), 0x3f81);    /* just above halfway */
  assert_int_equal(btc_f32_to_bf16(-0x1.fffffep127f), 0xff80); /* carries into infinity */
  assert_int_equal(btc_f32_to_bf16(INFINITY), 0x7f80);
  assert_true(isnan(btc_bf16_to_f32(btc_f32_to_bf16(NAN))));
  uint32_t low_payload = 0x7f800001;
  float x;
  memcpy(&x, &low_payload, sizeof x);
  assert_true(isnan(btc_bf16_to_f32(btc_f32_to_bf16(x))));
}

static void test_ops_backend_options(void **state) {
  (void)state;
  btc_backend *b = (btc_backend *)1;
  btc_error err;
  btc_backend_options o = {.kind = "tpu", .threads = 1, .max_cols = 8};
  assert_int_equal(btc_backend_create(&o, &b, &err), BTC_ERR_ARG);
  assert_null(b);
  assert_non_null(strstr(err.message, "tpu"));
  o.kind = NULL;
  assert_int_equal(btc_backend_create(&o, &b, NULL), BTC_ERR_ARG);
  o.kind = "cpu";
  o.threads = 257;
  assert_int_equal(btc_backend_create(&o, &b, &err), BTC_ERR_ARG);
  o.threads = -1;
  assert_int_equal(btc_backend_create(&o, &b, &err), BTC_ERR_ARG);
  o.threads = 0;
  o.max_cols = 0;
  assert_int_equal(btc_backend_create(&o, &b, &err), BTC_ERR_LIMIT);
  o.max_cols = INT64_MAX;
  assert_int_equal(btc_backend_create(&o, &b, &err), BTC_ERR_LIMIT);
  o.max_cols = 8;
  assert_int_equal(btc_backend_create(&o, &b, &err), BTC_OK);
  assert_in_range(btc_backend_threads(b), 1, 256);
  assert_non_null(strstr(btc_backend_describe(b), "cpu, "));
  btc_backend_destroy(&b);
  assert_null(b);
  btc_backend_destroy(&b);
}

static int allocations_left;
static bool fail_nth(size_t bytes) {
  (void)bytes;
  return allocations_left-- > 0;
}

static void test_ops_backend_survives_no_memory(void **state) {
  (void)state;
  btc_backend_options o = {.kind = "cpu", .threads = 2, .max_cols = 64};
  btc_status s = BTC_ERR_NOMEM;
  int n = 0;
  for (; s == BTC_ERR_NOMEM && n < 20; n++) {
    btc_backend *b;
    btc_error err;
    allocations_left = n;
    btc_alloc_hook = fail_nth;
    s = btc_backend_create(&o, &b, &err);
    btc_alloc_hook = NULL;
    btc_backend_destroy(&b);
  }
  assert_int_equal(s, BTC_OK);
  assert_in_range(n, 4, 19); /* backend, kernels, rows, scratch, pool */
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(test_ops_layernorm_follows_plain, setup, teardown),
    cmocka_unit_test_setup_teardown(test_ops_rmsnorm_follows_plain, setup, teardown),
    cmocka_unit_test_setup_teardown(test_ops_cosine_concat_follows_plain, setup, teardown),
    cmocka_unit_test_setup_teardown(test_ops_norm_rows_are_independent, setup, teardown),
    cmocka_unit_test_setup_teardown(test_ops_add_repeated_is_add_of_each_time, setup, teardown),
    cmocka_unit_test_setup_teardown(test_ops_add_and_silu_follow_plain, setup, teardown),
    cmocka_unit_test_setup_teardown(test_ops_silu_extremes, setup, teardown),
    cmocka_unit_test_setup_teardown(test_ops_layout_follows_plain, setup, teardown),
    cmocka_unit_test_setup_teardown(test_ops_space_to_depth_order, setup, teardown),
    cmocka_unit_test_setup_teardown(test_ops_embed_widens_rows, setup, teardown),
    cmocka_unit_test_setup_teardown(test_ops_f16_every_value, setup, teardown),
    cmocka_unit_test(test_ops_bf16_rounds_to_even),
    cmocka_unit_test(test_ops_backend_options),
    cmocka_unit_test(test_ops_backend_survives_no_memory),
};
BTC_TEST_MAIN(tests)
