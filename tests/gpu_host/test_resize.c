/* resize.cu against engine/image_resize.c and the CPU's normalisation, bit for bit. */
#include "engine/image_internal.h"
#include "gpu.h"

static const float mean[3] = {0.5f, 0.48145466f, 0.40821073f}, deviation[3] = {0.5f, 0.26862954f, 0.27577711f};

/* As btc_image_normalise: a table of 256 shades a channel. */
static void normalise(float *out, const uint8_t *rgb, int64_t n, double rescale) {
  for (int c = 0; c < 3; c++)
    for (int64_t i = 0; i < n; i++) out[c * n + i] = ((float)((double)rgb[3 * i + c] * rescale) - mean[c]) / deviation[c];
}

typedef struct sizes {
  int64_t width, height;
  int channels;
  bool pad;
} sizes;

static btc_resize_plan plan_of(const sizes *z, int64_t side) {
  btc_resize_plan plan = {.width = z->width,
                          .height = z->height,
                          .canvas_width = z->width,
                          .canvas_height = z->height,
                          .out_width = side,
                          .out_height = side,
                          .channels = z->channels};
  if (z->pad) {
    plan.canvas_width = plan.canvas_height = z->width > z->height ? z->width : z->height;
    plan.left = (plan.canvas_width - z->width) / 2;
    plan.top = (plan.canvas_height - z->height) / 2;
  }
  return plan;
}

/* What the CPU makes of it: want [3, side, side]. */
static void make_wanted(float *want, const btc_resize_plan *plan, const uint8_t *in) {
  const int64_t side = plan->out_width;
  uint8_t *rgb = malloc((size_t)(side * side) * 3);
  btc_resizer *r = btc_resizer_create(plan, rgb);
  assert_non_null(r);
  for (int64_t y = 0; y < plan->height; y++) btc_resizer_push(r, in + y * plan->width * plan->channels);
  btc_resizer_destroy(&r);
  normalise(want, rgb, side * side, 0.00392156862745098);
  free(rgb);
}

static void check_all(const sizes *z, int n, int64_t side) {
  const int64_t pixels = 3 * side * side;
  gpu_array in[BTC_CUDA_PICTURES];
  btc_cuda_picture p[BTC_CUDA_PICTURES];
  float *want = malloc((size_t)(n * pixels) * sizeof *want);
  size_t bytes = 0;
  gpu_case("%d pictures, the first %lld x %lld, channels %d, pad %d, side %lld", n, (long long)z->width, (long long)z->height,
           z->channels, z->pad, (long long)side);
  assert_non_null(want);
  for (int i = 0; i < n; i++) {
    const btc_resize_plan plan = plan_of(&z[i], side);
    in[i] = gpu_new((size_t)(z[i].width * z[i].height * z[i].channels), 0);
    for (size_t k = 0; k < in[i].bytes; k++)
      ((uint8_t *)in[i].host)[k] = (uint8_t)(random_u32() % 3 ? random_u32() : random_u32() % 2 * 255);
    gpu_put(&in[i]);
    make_wanted(want + i * pixels, &plan, in[i].host);
    p[i] = (btc_cuda_picture){in[i].device, z[i].width,        z[i].height,        plan.left,
                              plan.top,     plan.canvas_width, plan.canvas_height, z[i].channels};
    bytes += btc_cuda_resize_scratch(&p[i], side);
  }
  gpu_array scratch = gpu_new(bytes, 0), out = gpu_new((size_t)(n * pixels) * 4, 0);
  GPU(btc_cuda_resize(out.device, p, n, side, 0.00392156862745098, mean, deviation, scratch.device, NULL));
  gpu_get(&out);
  assert_same_bits(out.host, want, n * pixels, "pixels");
  free(want);
  gpu_free(&scratch);
  gpu_free(&out);
  for (int i = 0; i < n; i++) gpu_free(&in[i]);
}

static void check(int64_t width, int64_t height, int channels, bool pad, int64_t side) {
  check_all(&(sizes){width, height, channels, pad}, 1, side);
}

static void test_resize_squash_equals_cpu(void **state) {
  (void)state;
  GPU_REQUIRED();
  check(256, 256, 3, false, 84);
  check(97, 301, 3, false, 42);
  check(31, 17, 3, false, 63); /* grows both ways */
  check(42, 70, 3, false, 42); /* one axis stays */
  check(1, 1, 3, false, 14);
  check(640, 3, 3, false, 28);
  check(113, 90, 1, false, 42);
  check(256, 256, 3, false, 384); /* what most pictures are */
  check(5, 3, 3, false, 1);
  check(2, 2, 3, false, 5); /* windows cut off on both sides */
}

/* More rows than blocks. */
static void test_resize_tall_equals_cpu(void **state) {
  (void)state;
  GPU_REQUIRED();
  check(2, 2049, 3, false, 3);
  check(1, 4100, 1, false, 2);
  check(1, 2300, 3, true, 2);
}

/* Pictures of one call, each of another size and kind, are those of calls of their own. */
static void test_resize_pictures_together_equal_cpu(void **state) {
  (void)state;
  GPU_REQUIRED();
  static const sizes some[BTC_CUDA_PICTURES] = {{31, 17, 3, false}, {1, 1, 3, true},    {100, 37, 1, true}, {42, 42, 3, false},
                                                {3, 140, 3, true},  {97, 60, 1, false}, {42, 20, 3, true},  {2, 2100, 3, false}};
  for (int n = 2; n <= BTC_CUDA_PICTURES; n += 3) check_all(some, n, 42);
  check_all(some, BTC_CUDA_PICTURES, 5);
}

static void test_resize_pad_equals_cpu(void **state) {
  (void)state;
  GPU_REQUIRED();
  check(100, 37, 3, true, 42);
  check(37, 100, 3, true, 42);
  check(37, 38, 3, true, 70);
  check(1, 50, 1, true, 28);
  check(42, 20, 3, true, 42); /* only padded */
}

static void test_resize_random_sizes(void **state) {
  (void)state;
  GPU_REQUIRED();
  for (int i = 0; i < 20; i++) {
    int64_t width = random_size(1, 150), height = random_size(1, 150);
    check(width, height, random_u32() % 2 ? 3 : 1, random_u32() % 2, random_size(1, 60));
  }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_resize_squash_equals_cpu), cmocka_unit_test(test_resize_pad_equals_cpu),
    cmocka_unit_test(test_resize_tall_equals_cpu),   cmocka_unit_test(test_resize_pictures_together_equal_cpu),
    cmocka_unit_test(test_resize_random_sizes),
};

BTC_TEST_MAIN(tests)
