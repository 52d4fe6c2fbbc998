/* layout.cu against the plain operators, bit for bit: nothing is computed. */
#include "gpu.h"

/* got holds `count` results of n floats, one an input of `step` floats. */
typedef void rearrange(btc_backend *b, float *dst, const float *x, const void *shape);

static void check(gpu_array *got, gpu_array *half, rearrange *plain, const void *shape, const float *x, int64_t step, int64_t n,
                  int64_t count, const char *what) {
  btc_backend b = plain_backend(BTC_COMPUTE_F32);
  float *want = malloc((size_t)n * sizeof *want);
  assert_non_null(want);
  gpu_get(got);
  if (half) gpu_get(half);
  for (int64_t i = 0; i < count; i++) {
    plain(&b, want, x + i * step, shape);
    assert_same_bits(gpu_f32(got) + i * n, want, n, what);
  }
  if (half) assert_rounded(half, got->host, n * count, what);
  free(want);
}

typedef struct patches {
  int64_t side, p, g;
} patches;

static void plain_patches(btc_backend *b, float *dst, const float *x, const void *shape) {
  const patches *s = shape;
  btc_ops_plain.unfold_patches(b, dst, x, 1, s->side, s->p, s->g);
}

static void test_layout_unfold_patches(void **state) {
  (void)state;
  GPU_REQUIRED();
  static const patches shapes[] = {{14, 14, 1}, {31, 5, 6}, {60, 14, 4}, {9, 1, 9}};
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
    patches s = shapes[i];
    gpu_case("side %lld, patch %lld, grid %lld", (long long)s.side, (long long)s.p, (long long)s.g);
    int64_t step = 3 * s.side * s.side, n = s.g * s.g * 3 * s.p * s.p, images = 1 + (int64_t)i % 3;
    gpu_array x = gpu_random(images * step), y = gpu_new((size_t)(images * n) * 4, 0), h = gpu_new((size_t)(images * n) * 2, 0);
    GPU(btc_cuda_unfold_patches(y.device, h.device, x.device, images, s.side, s.p, s.g, NULL));
    check(&y, &h, plain_patches, &s, x.host, step, n, images, "unfold_patches");
    gpu_free(&x);
    gpu_free(&y);
    gpu_free(&h);
  }
}

typedef struct map {
  int64_t g, c;
} map;
static const map maps[] = {{1, 1}, {2, 3}, {5, 7}, {6, 64}, {3, 130}};

static void plain_3x3(btc_backend *b, float *dst, const float *x, const void *shape) {
  const map *s = shape;
  btc_ops_plain.unfold_3x3(b, dst, x, 1, s->g, s->c);
}

static void plain_depth(btc_backend *b, float *dst, const float *x, const void *shape) {
  const map *s = shape;
  btc_ops_plain.space_to_depth(b, dst, x, 1, s->g, s->c);
}

static void test_layout_unfold_3x3(void **state) {
  (void)state;
  GPU_REQUIRED();
  for (size_t i = 0; i < sizeof maps / sizeof maps[0]; i++) {
    map s = maps[i];
    gpu_case("grid %lld, channels %lld", (long long)s.g, (long long)s.c);
    int64_t step = s.g * s.g * s.c, n = 9 * step, count = 1 + (int64_t)i % 2;
    gpu_array x = gpu_random(count * step), y = gpu_new((size_t)(count * n) * 4, 0), h = gpu_new((size_t)(count * n) * 2, 0);
    GPU(btc_cuda_unfold_3x3(y.device, h.device, x.device, count, s.g, s.c, NULL));
    check(&y, &h, plain_3x3, &s, x.host, step, n, count, "unfold_3x3");
    gpu_free(&x);
    gpu_free(&y);
    gpu_free(&h);
  }
}

static void test_layout_space_to_depth(void **state) {
  (void)state;
  GPU_REQUIRED();
  for (size_t i = 0; i < sizeof maps / sizeof maps[0]; i++) {
    map s = maps[i];
    gpu_case("grid %lld, channels %lld", (long long)s.g, (long long)s.c);
    int64_t half = (s.g + 1) / 2, step = s.g * s.g * s.c, n = half * half * 4 * s.c, count = 1 + (int64_t)i % 2;
    gpu_array x = gpu_random(count * step), y = gpu_new((size_t)(count * n) * 4, 0);
    GPU(btc_cuda_space_to_depth(y.device, x.device, count, s.g, s.c, NULL));
    check(&y, NULL, plain_depth, &s, x.host, step, n, count, "space_to_depth");
    gpu_free(&x);
    gpu_free(&y);
  }
}

static void test_layout_embed(void **state) {
  (void)state;
  GPU_REQUIRED();
  enum { ROWS = 11, COLS = 301, M = 5 };
  static const int32_t ids[M] = {0, 10, 3, 3, 7};
  for (int t = BTC_F32; t <= BTC_BF16; t++) {
    gpu_array table = gpu_stored((btc_dtype)t, ROWS * COLS), y = gpu_new(M * COLS * 4, 0), id = gpu_ints(ids, M);
    float want[M * COLS];
    btc_backend b = plain_backend(BTC_COMPUTE_F32);
    btc_weight w = {table.host, (btc_dtype)t, ROWS, COLS};
    btc_ops_plain.embed(&b, want, &w, ids, M);
    GPU(btc_cuda_embed(y.device, table.device, (btc_cuda_type)t, COLS, id.device, M, NULL));
    gpu_get(&y);
    assert_same_bits(y.host, want, M * COLS, "embed");
    gpu_free(&table);
    gpu_free(&y);
    gpu_free(&id);
  }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_layout_unfold_patches),
    cmocka_unit_test(test_layout_unfold_3x3),
    cmocka_unit_test(test_layout_space_to_depth),
    cmocka_unit_test(test_layout_embed),
};

BTC_TEST_MAIN(tests)
