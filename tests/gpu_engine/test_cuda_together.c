/*
 * Products of the same rows over ops/cuda*.c: held together they are one product, and what they make is what each would; memory
 * holds no weight twice; and how many kernels a decode step of a layer is.
 */
#define _GNU_SOURCE
#include "test.h"

#include "engine/forward.h"
#include "tests/gpu_host/fake/fake.h"
#include "tests/unit/ops_fixture.h"
#include "tiny_checkpoint.h"

enum { PARTS = 3 };

typedef struct shape {
  int64_t m, cols, rows[PARTS];
  btc_dtype type[PARTS];
  bool bias, coarse, few; /* coarse: biases that bf16 holds */
  btc_compute compute;
} shape;

typedef struct group {
  btc_weight w[PARTS], bias[PARTS];
  void *data[PARTS];
  float *vector[PARTS];
  float *x;
  int64_t all;
} group;

static void *stored(btc_dtype t, int64_t n) {
  uint16_t *half = malloc((size_t)n * 4);
  float *full = (float *)half;
  assert_non_null(half);
  for (int64_t i = 0; i < n; i++) {
    if (t == BTC_F32)
      full[i] = random_float();
    else
      half[i] = t == BTC_BF16 ? btc_f32_to_bf16(random_float()) : (uint16_t)(0x2c00 + random_u32() % 0xfff); /* f16: 0.06 to 1 */
  }
  return half;
}

static group make(const shape *s) {
  group g = {.x = malloc((size_t)(s->m * s->cols) * sizeof *g.x)};
  assert_non_null(g.x);
  for (int64_t i = 0; i < s->m * s->cols; i++) g.x[i] = btc_bf16_to_f32(btc_f32_to_bf16(random_float()));
  for (int i = 0; i < PARTS; i++) {
    g.data[i] = stored(s->type[i], s->rows[i] * s->cols);
    g.vector[i] = stored(BTC_F32, s->rows[i]);
    for (int64_t k = 0; k < s->rows[i] && s->coarse; k++) g.vector[i][k] = btc_bf16_to_f32(btc_f32_to_bf16(g.vector[i][k]));
    g.w[i] = (btc_weight){g.data[i], s->type[i], s->rows[i], s->cols};
    g.bias[i] = (btc_weight){g.vector[i], BTC_F32, 1, s->rows[i]};
    g.all += s->rows[i];
  }
  return g;
}

static void clear(group *g) {
  for (int i = 0; i < PARTS; i++) {
    free(g->data[i]);
    free(g->vector[i]);
  }
  free(g->x);
}

static btc_backend *open_backend(const char *kind, btc_compute compute) {
  btc_error err = {0};
  btc_backend *b = NULL;
  const btc_backend_options o = {.kind = kind, .max_cols = 512, .compute = compute, .threads = 1};
  if (btc_backend_create(&o, &b, &err) != BTC_OK) fail_msg("%s", err.message);
  return b;
}

static float *room(btc_backend *b, int64_t n) {
  void *p = NULL;
  btc_error err = {0};
  assert_int_equal(btc_backend_alloc(b, (size_t)n * sizeof(float), &p, &err), BTC_OK);
  return p;
}

/* Part i of y in float32, dense. */
static float *part(btc_backend *b, const btc_products *p, int i) {
  const btc_product_part at = btc_products_part(b, p, i);
  const int64_t rows = p->w[i]->rows;
  const bool half = p->y_packed && !btc_backend_on_host(b) && strstr(btc_backend_describe(b), "bf16");
  const size_t size = half ? 2 : 4;
  char *stored_part = malloc((size_t)(p->m * rows) * size);
  float *out = malloc((size_t)(p->m * rows) * sizeof *out);
  assert_true(stored_part && out);
  btc_op_copy_2d(b, stored_part, (size_t)rows * size, at.at, (size_t)at.stride * size, (size_t)rows * size, p->m);
  assert_int_equal(btc_backend_finish(b, &(btc_error){0}), BTC_OK);
  btc_to_f32(out, stored_part, half ? BTC_BF16 : BTC_F32, (size_t)(p->m * rows));
  free(stored_part);
  return out;
}

static btc_products products_of(btc_backend *b, const shape *s, const group *g) {
  btc_products p = {.n = PARTS, .m = s->m, .few = s->few, .y_packed = s->bias && !s->few, .y = room(b, s->m * g->all)};
  float *x = room(b, s->m * s->cols);
  btc_op_copy(b, x, g->x, (size_t)(s->m * s->cols) * sizeof *x);
  p.x = x;
  for (int i = 0; i < PARTS; i++) {
    p.w[i] = &g->w[i];
    p.bias[i] = s->bias ? g->vector[i] : NULL;
  }
  return p;
}

/* A sum of cols products below 1, at most 3 for its bias; then perhaps rounded to bf16. */
static void compare(const float *got, const float *want, const shape *s, int64_t n, bool half) {
  for (int64_t i = 0; i < n; i++) {
    const double bound = (double)s->cols * (double)s->cols * UNIT + (half ? 0x1p-8 * fabs((double)want[i]) : 0) + 4 * UNIT;
    if (!(fabs((double)got[i] - (double)want[i]) <= bound)) fail_msg("element %lld is %g, want %g", (long long)i, got[i], want[i]);
  }
}

/* launches: how many products, of ours or the library's, the device makes of it. */
static void check(shape s, bool together, int64_t launches) {
  btc_error err = {0};
  group g = make(&s);
  btc_backend *plain = open_backend("plain", s.compute), *cuda = open_backend("cuda", s.compute);
  const int64_t before = fake_held();
  int64_t bytes = 0;
  const int64_t size = s.compute == BTC_COMPUTE_BF16 ? 2 : 4, step = 16 / size, pitch = (s.cols + step - 1) / step * step;
  if (!together) assert_int_equal(btc_backend_hold(cuda, &g.w[1], true, &err), BTC_OK);
  assert_int_equal(btc_backend_hold_together(cuda, g.w, PARTS, true, &err), BTC_OK);
  if (s.bias) assert_int_equal(btc_backend_hold_together(cuda, g.bias, PARTS, false, &err), BTC_OK);
  for (int i = 0; i < PARTS; i++)
    bytes += s.rows[i] * pitch * size + (s.bias ? s.rows[i] * (s.coarse && s.compute == BTC_COMPUTE_BF16 ? 6 : 4) : 0);
  assert_int_equal(fake_held() - before, bytes);
  btc_products want = products_of(plain, &s, &g), got = products_of(cuda, &s, &g);
  fake.launches = fake.n_products = 0;
  btc_op_products(cuda, &got);
  assert_int_equal(s.few ? fake.launches : fake.n_products, launches);
  btc_op_products(plain, &want);
  for (int i = 0; i < PARTS; i++) {
    assert_int_equal(btc_products_part(cuda, &got, i).stride, together ? g.all : s.rows[i]);
    float *a = part(cuda, &got, i), *b = part(plain, &want, i);
    compare(a, b, &s, s.m * s.rows[i], got.y_packed && s.compute == BTC_COMPUTE_BF16);
    free(a);
    free(b);
  }
  btc_backend_free(cuda, got.y);
  btc_backend_free(cuda, (void *)(uintptr_t)got.x);
  btc_backend_free(plain, want.y);
  btc_backend_free(plain, (void *)(uintptr_t)want.x);
  btc_backend_destroy(&cuda);
  btc_backend_destroy(&plain);
  clear(&g);
}

#define ALL(t) \
  { t, t, t }

static void test_cuda_together_many_rows(void **state) {
  (void)state;
  const btc_compute bf16 = BTC_COMPUTE_BF16, f32 = BTC_COMPUTE_F32;
  check((shape){19, 64, {24, 16, 16}, ALL(BTC_BF16), .compute = bf16}, true, 1);
  check((shape){19, 64, {24, 16, 16}, ALL(BTC_BF16), .compute = f32}, true, 1);
  check((shape){5, 61, {7, 9, 3}, ALL(BTC_BF16), .compute = bf16}, true, 1);
  check((shape){5, 61, {7, 9, 3}, {BTC_F32, BTC_F16, BTC_BF16}, .compute = f32}, true, 1);
  check((shape){6, 40, {8, 5, 6}, {BTC_F32, BTC_F16, BTC_BF16}, .compute = bf16}, true, 1);
}

static void test_cuda_together_with_biases(void **state) {
  (void)state;
  const btc_compute bf16 = BTC_COMPUTE_BF16, f32 = BTC_COMPUTE_F32;
  check((shape){9, 64, {24, 16, 7}, ALL(BTC_BF16), .bias = true, .coarse = true, .compute = bf16}, true, 1);
  check((shape){9, 64, {24, 16, 7}, ALL(BTC_BF16), .bias = true, .compute = bf16}, true, 1); /* not in bf16: added after */
  check((shape){9, 60, {5, 16, 7}, ALL(BTC_F32), .bias = true, .compute = f32}, true, 1);
}

static void test_cuda_together_few_rows(void **state) {
  (void)state;
  const btc_compute bf16 = BTC_COMPUTE_BF16, f32 = BTC_COMPUTE_F32;
  check((shape){1, 64, {24, 16, 16}, ALL(BTC_BF16), .few = true, .compute = bf16}, true, 1);
  check((shape){3, 61, {7, 9, 3}, ALL(BTC_BF16), .few = true, .compute = bf16}, true, 1);
  check((shape){2, 61, {7, 9, 3}, {BTC_F32, BTC_F16, BTC_BF16}, .bias = true, .few = true, .compute = f32}, true, 1);
}

/* One was there before: it is not brought again, and the products are made one after the other. */
static void test_cuda_together_falls_back(void **state) {
  (void)state;
  check((shape){4, 61, {7, 9, 3}, ALL(BTC_BF16), .bias = true, .coarse = true, .compute = BTC_COMPUTE_BF16}, false, 3);
  check((shape){4, 64, {7, 9, 3}, ALL(BTC_F32), .bias = true, .few = true, .compute = BTC_COMPUTE_F32}, false, 3);
}

/* Every call that can fail while constants are brought, failing: said, and nothing is left behind (ASan). */
static void test_cuda_together_every_failure_of_holding(void **state) {
  (void)state;
  const shape s = {4, 61, {7, 9, 3}, {BTC_F32, BTC_BF16, BTC_F16}, .bias = true, .coarse = true, .compute = BTC_COMPUTE_BF16};
  group g = make(&s);
  int failed = 0;
  for (int at = 1; at < 200; at++) {
    btc_error err = {0};
    char fail[32];
    btc_backend *b = open_backend("cuda", s.compute);
    snprintf(fail, sizeof fail, "%d:2", at); /* out of memory */
    setenv("FAKE_CUDA_FAIL", fail, 1);
    btc_status st = btc_backend_hold_together(b, g.w, PARTS, true, &err);
    if (st == BTC_OK) st = btc_backend_hold_together(b, g.bias, PARTS, false, &err);
    unsetenv("FAKE_CUDA_FAIL");
    btc_backend_destroy(&b);
    assert_int_equal(fake_held(), 0);
    if (st == BTC_OK) break;
    assert_true(err.message[0]);
    failed++;
  }
  assert_true(failed >= 10 && failed < 199);
  clear(&g);
}

/* Of a whole model: what a plan of memory counts is what is there. In f32, where no bias has a rounded copy. */
static void test_cuda_together_holds_what_is_counted(void **state) {
  (void)state;
  btc_error err = {0};
  btc_model *m = NULL;
  assert_int_equal(btc_model_open(tiny_checkpoint(), &m, &err), BTC_OK);
  btc_backend *b = open_backend("cuda", BTC_COMPUTE_F32);
  const int64_t before = fake_held();
  assert_int_equal(btc_stage_hold(m, 0, btc_block_count(m), b, &err), BTC_OK);
  assert_int_equal(fake_held() - before, btc_stage_held_bytes(m, BTC_COMPUTE_F32));
  btc_backend_destroy(&b);
  btc_model_close(&m);
}

/* Kernels of a decode step of n items over the decoder's layers alone; and that they compute what the CPU's do. */
static int64_t decode_launches(const btc_model *m, int n, btc_compute compute, int64_t *layers) {
  enum { MOST = 8 };
  btc_error err = {0};
  int first = 0, last = btc_block_count(m) - 1;
  while (btc_block_at(m, first).kind != BTC_BLOCK_LLM) first++;
  *layers = last - first;
  float *h = malloc((size_t)(n * m->width) * sizeof *h), *out[2];
  btc_stage_item items[MOST] = {{0}};
  for (int64_t i = 0; i < n * m->width; i++) h[i] = random_float();
  for (int i = 0; i < n; i++) items[i] = (btc_stage_item){.positions = 1, .slot = i};
  for (int k = 0; k < 2; k++) {
    btc_stage *s = NULL;
    const btc_stage_options o = {.backend = k ? "cuda" : "cpu", .threads = 1, .compute = compute, .slots = MOST};
    out[k] = malloc((size_t)(n * m->width) * sizeof *h);
    assert_int_equal(btc_stage_create(m, first, last, &o, &s, &err), BTC_OK);
    assert_int_equal(btc_stage_reserve(s, items, n, 16, &err), BTC_OK);
    fake.launches = 0;
    assert_int_equal(btc_stage_decode(s, items, n, h, out[k], &err), BTC_OK);
    btc_stage_destroy(&s);
  }
  for (int64_t i = 0; i < n * m->width; i++)
    if (!(fabs((double)out[0][i] - (double)out[1][i]) < (compute == BTC_COMPUTE_BF16 ? 0.1 : 1e-3)))
      fail_msg("element %lld is %g, the CPU's %g", (long long)i, (double)out[1][i], (double)out[0][i]);
  free(h);
  free(out[0]);
  free(out[1]);
  return fake.launches;
}

static void check_launches(const char *checkpoint, int n, btc_compute compute, int64_t each) {
  btc_error err = {0};
  btc_model *m = NULL;
  int64_t layers = 0;
  assert_int_equal(btc_model_open(checkpoint, &m, &err), BTC_OK);
  const int64_t launches = decode_launches(m, n, compute, &layers);
  if (launches != each * layers)
    fail_msg("%lld launches of %lld layers, want %lld each", (long long)launches, (long long)layers, (long long)each);
  btc_model_close(&m);
}

/* q/k/v with norm, rotation and storing; attention; o; gate/up with norm and SiLU; down. */
static void test_cuda_together_launches_of_a_decode_layer(void **state) {
  (void)state;
  const char *wide = tiny_checkpoint_of_heads(3, 1); /* 16 channels each */
  for (int n = 1; n <= 4; n++) check_launches(wide, n, BTC_COMPUTE_BF16, 5);
  check_launches(wide, 5, BTC_COMPUTE_BF16, 7); /* more rows, whose norms are launches of their own */
  check_launches(wide, 1, BTC_COMPUTE_F32, 7);
  check_launches(tiny_checkpoint(), 1, BTC_COMPUTE_BF16, 6); /* heads of 8 channels are rotated by a launch of its own */
  check_launches(tiny_checkpoint(), 8, BTC_COMPUTE_BF16, 8);
  check_launches(tiny_checkpoint(), 8, BTC_COMPUTE_F32, 7);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_cuda_together_many_rows),
    cmocka_unit_test(test_cuda_together_with_biases),
    cmocka_unit_test(test_cuda_together_few_rows),
    cmocka_unit_test(test_cuda_together_falls_back),
    cmocka_unit_test(test_cuda_together_every_failure_of_holding),
    cmocka_unit_test(test_cuda_together_holds_what_is_counted),
    cmocka_unit_test(test_cuda_together_launches_of_a_decode_layer),
};

BTC_TEST_MAIN(tests)
