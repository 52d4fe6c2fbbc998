/* Matrix products of the fast backend against the plain loops, and the row promise of ops.h, bit for bit. */
#include "ops_fixture.h"

typedef struct problem {
  int64_t m, n, k;
  btc_weight w;
  int skew;
  float *x, *bias, *scale, *residual;
} problem;

static problem problem_new(btc_dtype type, int64_t m, int64_t n, int64_t k, int skew) {
  problem p = {.m = m, .n = n, .k = k, .skew = skew};
  p.w = weight_random(type, n, k, skew);
  p.x = buffer_random(m * k);
  p.bias = buffer_random(n);
  p.scale = buffer_random(n);
  p.residual = buffer_random(m * n);
  return p;
}

static void problem_free(problem *p) {
  weight_free(&p->w, p->skew);
  buffer_free(p->x, p->m * p->k);
  buffer_free(p->bias, p->n);
  buffer_free(p->scale, p->n);
  buffer_free(p->residual, p->m * p->n);
}

typedef void product(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e);

/* A sum of k products in any order, each product and each sum rounded once, is off by at most (k+1) UNIT sum|x w|; bf16 operands
 * are rounded alike on both sides. The epilogue's factor is below 1, its activations have slopes below 1.13 and are exact to 4 UNIT
 * of a value that is below sum|x w| + 2. A dropped product would be off by about sum|x w| / k: far more while k < 2000. */
static double bound(const problem *p, int64_t i, int64_t n) {
  double magnitude = 0;
  for (int64_t k = 0; k < p->k; k++) {
    float w;
    btc_to_f32(&w, (const char *)p->w.data + (size_t)(n * p->k + k) * btc_dtype_size(p->w.dtype), p->w.dtype, 1);
    magnitude += fabs((double)p->x[i * p->k + k] * w);
  }
  return 1.13 * (double)(p->k + 3) * UNIT * 1.01 * magnitude + 8 * UNIT * (magnitude + 2);
}

static void compare(product *op, btc_backend *fast, btc_backend *plain, const problem *p, const btc_epilogue *e, const char *what) {
  float *want = buffer_new(p->m * p->n), *got = buffer_new(p->m * p->n);
  op(plain, want, p->x, p->m, &p->w, e);
  op(fast, got, p->x, p->m, &p->w, e);
  for (int64_t i = 0; i < p->m; i++)
    for (int64_t n = 0; n < p->n; n++) assert_close(got[i * p->n + n], want[i * p->n + n], bound(p, i, n), what, i * p->n + n);
  buffer_free(want, p->m * p->n);
  buffer_free(got, p->m * p->n);
}

static const btc_dtype types[] = {BTC_F32, BTC_F16, BTC_BF16};
static const btc_compute computes[] = {BTC_COMPUTE_F32, BTC_COMPUTE_BF16};
static const int64_t shapes[][3] = {{1, 1, 1},     {9, 100, 36}, {2, 3, 5},      {7, 17, 33},
                                    {13, 64, 256}, {6, 65, 257}, {29, 130, 600}, {70, 40, 30}};

static void check_shapes(product *op) {
  for (size_t c = 0; c < 2; c++) {
    btc_backend *fast = backend_new("cpu", 2, computes[c], 600), *plain = backend_new("plain", 1, computes[c], 600);
    for (size_t t = 0; t < 3; t++)
      for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        char what[96];
        problem p = problem_new(types[t], shapes[s][0], shapes[s][1], shapes[s][2], (int)(s % 4));
        snprintf(what, sizeof what, "[%lld,%lld]x[%lld] %s, mode %zu", (long long)p.m, (long long)p.k, (long long)p.n,
                 btc_dtype_name(types[t]), c);
        compare(op, fast, plain, &p, NULL, what);
        problem_free(&p);
      }
    btc_backend_destroy(&fast);
    btc_backend_destroy(&plain);
  }
}

static void test_ops_matmul_follows_plain(void **state) {
  (void)state;
  check_shapes(btc_op_matmul);
}

static void test_ops_matvec_follows_plain(void **state) {
  (void)state;
  check_shapes(btc_op_matvec);
}

static void check_random_shapes(product *op, int64_t most_rows) {
  btc_backend *fast = backend_new("cpu", 3, BTC_COMPUTE_F32, 700), *plain = backend_new("plain", 1, BTC_COMPUTE_F32, 700);
  for (int round = 0; round < 25; round++) {
    problem p = problem_new(types[random_u32() % 3], random_size(1, most_rows), random_size(1, 150), random_size(1, 700),
                            (int)(random_u32() % 8));
    char what[64];
    snprintf(what, sizeof what, "round %d: m %lld n %lld k %lld", round, (long long)p.m, (long long)p.n, (long long)p.k);
    compare(op, fast, plain, &p, NULL, what);
    problem_free(&p);
  }
  btc_backend_destroy(&fast);
  btc_backend_destroy(&plain);
}

static void test_ops_matmul_random_shapes(void **state) {
  (void)state;
  check_random_shapes(btc_op_matmul, 60);
}

static void test_ops_matvec_random_shapes(void **state) {
  (void)state;
  check_random_shapes(btc_op_matvec, 9);
}

static void check_epilogues(product *op) {
  btc_backend *fast = backend_new("cpu", 2, BTC_COMPUTE_F32, 40), *plain = backend_new("plain", 1, BTC_COMPUTE_F32, 40);
  problem p = problem_new(BTC_BF16, 11, 77, 40, 0);
  for (int bits = 0; bits < 16; bits++)
    for (int act = BTC_ACT_NONE; act <= BTC_ACT_RELU; act++) {
      btc_epilogue e = {.bias = bits & 1 ? p.bias : NULL,
                        .scale = bits & 2 ? p.scale : NULL,
                        .residual = bits & 4 ? p.residual : NULL,
                        .residual_first = bits & 8,
                        .act = (btc_act)act};
      char what[48];
      snprintf(what, sizeof what, "parts %d, activation %d", bits, act);
      compare(op, fast, plain, &p, &e, what);
    }
  problem_free(&p);
  btc_backend_destroy(&fast);
  btc_backend_destroy(&plain);
}

static void test_ops_matmul_epilogues(void **state) {
  (void)state;
  check_epilogues(btc_op_matmul);
}

static void test_ops_matvec_epilogues(void **state) {
  (void)state;
  check_epilogues(btc_op_matvec);
}

static void check_residual_in_place(product *op) {
  btc_backend *fast = backend_new("cpu", 2, BTC_COMPUTE_F32, 300);
  problem p = problem_new(BTC_F32, 20, 90, 300, 1);
  btc_epilogue apart = {.residual = p.residual, .bias = p.bias};
  float *want = buffer_new(p.m * p.n), *got = buffer_new(p.m * p.n);
  op(fast, want, p.x, p.m, &p.w, &apart);
  memcpy(got, p.residual, (size_t)(p.m * p.n) * sizeof *got);
  btc_epilogue within = {.residual = got, .bias = p.bias};
  op(fast, got, p.x, p.m, &p.w, &within);
  assert_same_bits(got, want, p.m * p.n, "residual in place");
  buffer_free(want, p.m * p.n);
  buffer_free(got, p.m * p.n);
  problem_free(&p);
  btc_backend_destroy(&fast);
}

static void test_ops_products_residual_in_place(void **state) {
  (void)state;
  check_residual_in_place(btc_op_matmul);
  check_residual_in_place(btc_op_matvec);
}

/* A residual of fewer rows is that of every so many rows of the product, bit for bit. */
static void check_residual_repeated(product *op, const char *kind) {
  enum { ROWS = 7 };
  btc_backend *b = backend_new(kind, 2, BTC_COMPUTE_F32, 60);
  problem p = problem_new(BTC_BF16, 3 * ROWS + 2, 50, 60, 1); /* and not a whole number of times */
  btc_epilogue e = {.residual = p.residual, .bias = p.bias, .act = BTC_ACT_RELU};
  float *want = buffer_new(p.m * p.n), *got = buffer_new(p.m * p.n);
  for (int64_t i = 0; i < p.m; i += ROWS) op(b, want + i * p.n, p.x + i * p.k, p.m - i < ROWS ? p.m - i : ROWS, &p.w, &e);
  e.residual_rows = ROWS;
  op(b, got, p.x, p.m, &p.w, &e);
  assert_same_bits(got, want, p.m * p.n, kind);
  buffer_free(want, p.m * p.n);
  buffer_free(got, p.m * p.n);
  problem_free(&p);
  btc_backend_destroy(&b);
}

static void test_ops_products_residual_repeated(void **state) {
  (void)state;
  for (int i = 0; i < 2; i++) {
    check_residual_repeated(btc_op_matmul, i ? "plain" : "cpu");
    check_residual_repeated(btc_op_matvec, i ? "plain" : "cpu");
  }
}

/* Row i computed among m rows, alone, and in another position, by 1, 2 and 3 threads. */
static void check_row_promise(product *op, btc_compute compute, btc_dtype type, int64_t m, int64_t n, int64_t k) {
  problem p = problem_new(type, m, n, k, 2);
  btc_epilogue e = {.bias = p.bias, .act = BTC_ACT_GELU_TANH};
  float *want = buffer_new(m * n), *got = buffer_new(m * n);
  for (int threads = 1; threads <= 3; threads++) {
    btc_backend *b = backend_new("cpu", threads, compute, k);
    op(b, threads == 1 ? want : got, p.x, m, &p.w, &e);
    if (threads > 1) assert_same_bits(got, want, m * n, "threads");
    for (int64_t first = 0; first < m; first += first < 9 ? 1 : m / 7 + 1)
      for (int64_t rows = 1; rows <= 9 && first + rows <= m; rows += threads == 1 ? 1 : 4) {
        op(b, got, p.x + first * k, rows, &p.w, &e);
        assert_same_bits(got, want + first * n, rows * n, "rows");
      }
    btc_backend_destroy(&b);
  }
  buffer_free(want, m * n);
  buffer_free(got, m * n);
  problem_free(&p);
}

static void check_row_promises(product *op, int64_t m) {
  for (size_t c = 0; c < 2; c++)
    for (size_t t = 0; t < 3; t++) {
      check_row_promise(op, computes[c], types[t], m, 100, 300);
      check_row_promise(op, computes[c], types[t], 9, 67, 37);
    }
}

static void test_ops_matmul_rows_are_independent(void **state) {
  (void)state;
  check_row_promises(btc_op_matmul, 50);
  /* more rows than one packed chunk holds */
  check_row_promise(btc_op_matmul, BTC_COMPUTE_F32, BTC_BF16, 800, 20, 260);
  check_row_promise(btc_op_matmul, BTC_COMPUTE_BF16, BTC_BF16, 800, 20, 260);
}

static void test_ops_matvec_rows_are_independent(void **state) {
  (void)state;
  check_row_promises(btc_op_matvec, 9);
  check_row_promise(btc_op_matvec, BTC_COMPUTE_F32, BTC_BF16, 70, 20, 260);
  check_row_promise(btc_op_matvec, BTC_COMPUTE_BF16, BTC_BF16, 70, 20, 260);
}

/* A row of infinities and NaN must neither crash nor reach another row. */
static void check_bad_row(product *op, btc_compute compute) {
  btc_backend *b = backend_new("cpu", 2, compute, 50);
  problem p = problem_new(BTC_BF16, 8, 30, 50, 0);
  float *want = buffer_new(8 * 30), *got = buffer_new(8 * 30);
  op(b, want, p.x, 8, &p.w, NULL);
  for (int k = 0; k < 50; k++) p.x[3 * 50 + k] = k % 3 ? INFINITY : NAN;
  op(b, got, p.x, 8, &p.w, NULL);
  assert_same_bits(got, want, 3 * 30, "rows before");
  assert_same_bits(got + 4 * 30, want + 4 * 30, 4 * 30, "rows after");
  for (int n = 0; n < 30; n++) assert_true(isnan(got[3 * 30 + n]));
  buffer_free(want, 8 * 30);
  buffer_free(got, 8 * 30);
  problem_free(&p);
  btc_backend_destroy(&b);
}

static void test_ops_products_keep_nan_in_its_row(void **state) {
  (void)state;
  for (size_t c = 0; c < 2; c++) {
    check_bad_row(btc_op_matmul, computes[c]);
    check_bad_row(btc_op_matvec, computes[c]);
  }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_ops_matmul_follows_plain),
    cmocka_unit_test(test_ops_matvec_follows_plain),
    cmocka_unit_test(test_ops_matmul_random_shapes),
    cmocka_unit_test(test_ops_matvec_random_shapes),
    cmocka_unit_test(test_ops_matmul_epilogues),
    cmocka_unit_test(test_ops_matvec_epilogues),
    cmocka_unit_test(test_ops_products_residual_in_place),
    cmocka_unit_test(test_ops_products_residual_repeated),
    cmocka_unit_test(test_ops_matmul_rows_are_independent),
    cmocka_unit_test(test_ops_matvec_rows_are_independent),
    cmocka_unit_test(test_ops_products_keep_nan_in_its_row),
};
BTC_TEST_MAIN(tests)
