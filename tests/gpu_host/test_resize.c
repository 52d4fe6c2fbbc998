/* resize.cu against engine/image_resize.c and the CPU's normalisation, bit for bit. */
#include "engine/image_internal.h"
#include "gpu.h"

static const float mean[3] = {0.5f, 0.48145466f, 0.40821073f}, deviation[3] = {0.5f, 0.26862954f, 0.27577711f};

/* As btc_image_normalise: a table of 256 shades a channel. */
static void normalise(float *out, const uint8_t *rgb, int64_t n, double rescale) {
  for (int c = 0; c < 3; c++)
    for (int64_t i = 0; i < n; i++) out[c * n + i] = ((float)((double)rgb[3 * i + c] * rescale) - mean[c]) / deviation[c];
}

static void check(int64_t width, int64_t height, int channels, bool pad, int64_t side) {
  gpu_case("%lld x %lld, channels %d, pad %d, side %lld", (long long)width, (long long)height, channels, pad, (long long)side);
  int64_t canvas = width > height ? width : height, pixels = side * side;
  btc_resize_plan plan = {.width = width,
                          .height = height,
                          .canvas_width = width,
                          .canvas_height = height,
                          .out_width = side,
                          .out_height = side,
                          .channels = channels};
  if (pad) {
    plan.canvas_width = plan.canvas_height = canvas;
    plan.left = (canvas - width) / 2;
    plan.top = (canvas - height) / 2;
  }
  gpu_array in = gpu_new((size_t)(width * height * channels), 0);
  for (size_t i = 0; i < in.bytes; i++)
    ((uint8_t *)in.host)[i] = (uint8_t)(random_u32() % 3 ? random_u32() : random_u32() % 2 * 255);
  gpu_put(&in);
  uint8_t *rgb = malloc((size_t)pixels * 3);
  float *want = malloc((size_t)pixels * 3 * sizeof *want);
  btc_resizer *r = btc_resizer_create(&plan, rgb);
  assert_non_null(r);
  for (int64_t y = 0; y < height; y++) btc_resizer_push(r, (uint8_t *)in.host + y * width * channels);
  btc_resizer_destroy(&r);
  normalise(want, rgb, pixels, 0.00392156862745098);

  btc_cuda_picture p = {in.device, width, height, plan.left, plan.top, plan.canvas_width, plan.canvas_height, channels};
  gpu_array scratch = gpu_new(btc_cuda_resize_scratch(&p, side), 0), out = gpu_new((size_t)pixels * 12, 0);
  GPU(btc_cuda_resize(out.device, &p, side, 0.00392156862745098, mean, deviation, scratch.device, NULL));
  gpu_get(&out);
  assert_same_bits(out.host, want, 3 * pixels, "pixels");
  free(rgb);
  free(want);
  gpu_free(&in);
  gpu_free(&scratch);
  gpu_free(&out);
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
    cmocka_unit_test(test_resize_squash_equals_cpu),
    cmocka_unit_test(test_resize_pad_equals_cpu),
    cmocka_unit_test(test_resize_random_sizes),
};

BTC_TEST_MAIN(tests)
