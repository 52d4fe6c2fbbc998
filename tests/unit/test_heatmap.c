/* The change map: size, colours, where things lie, and what is refused. */
#include "engine/heatmap.h"
#include "test.h"

#include <math.h>

static float lightness(const uint8_t *rgb) {
  return 0.2126f * powf(rgb[0] / 255.0f, 2.2f) + 0.7152f * powf(rgb[1] / 255.0f, 2.2f) + 0.0722f * powf(rgb[2] / 255.0f, 2.2f);
}

static btc_image render(const float *cos, int64_t g, const btc_image *after, int64_t side) {
  btc_image out;
  btc_error err = {0};
  if (btc_heatmap_render(cos, g, after, side, &out, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_int_equal(out.width, side);
  assert_int_equal(out.height, side + btc_heatmap_legend_height(side));
  return out;
}

static const uint8_t *pixel(const btc_image *im, int64_t x, int64_t y) {
  return im->rgb + (y * im->width + x) * 3;
}

static void test_heatmap_ramp_grows_lighter(void **state) {
  (void)state;
  uint8_t rgb[3], low[3], high[3];
  float last = -1.0f;
  for (int i = 0; i <= 100; i++) {
    btc_heatmap_colour((float)i / 100.0f, rgb);
    assert_true(lightness(rgb) > last);
    last = lightness(rgb);
  }
  assert_true(last > 0.8f);
  btc_heatmap_colour(-3.0f, low);
  btc_heatmap_colour(NAN, rgb);
  assert_memory_equal(rgb, low, 3);
  btc_heatmap_colour(7.0f, high);
  btc_heatmap_colour(1.0f, rgb);
  assert_memory_equal(rgb, high, 3);
}

/* Row-major, row 0 at the top: the brightest spot is in the middle of the changed cell. */
static void test_heatmap_changed_cell_is_where_it_belongs(void **state) {
  (void)state;
  float cos[9 * 9];
  for (int i = 0; i < 81; i++) cos[i] = 1.0f;
  cos[2 * 9 + 6] = 0.0f;
  btc_image im = render(cos, 9, NULL, 90);
  assert_int_equal(im.height, 90); /* too small for a legend */
  uint8_t top[3], bottom[3];
  btc_heatmap_colour(1.0f, top);
  btc_heatmap_colour(0.0f, bottom);
  assert_true(lightness(pixel(&im, 65, 25)) > 0.95f * lightness(top));
  assert_memory_equal(pixel(&im, 25, 65), bottom, 3);
  assert_memory_equal(pixel(&im, 89, 89), bottom, 3);
  btc_image_free(&im);
}

static void test_heatmap_no_change_leaves_grey_photo(void **state) {
  (void)state;
  float cos[4] = {1.0f, 1.0f, 1.0000001f, 1.0f};
  uint8_t rgb[4 * 4 * 3];
  for (int i = 0; i < 48; i++) rgb[i] = (uint8_t)(5 * i);
  btc_image after = {4, 4, rgb}, im = render(cos, 2, &after, 200);
  for (int64_t i = 0; i < 200 * 200; i++) {
    assert_int_equal(im.rgb[3 * i], im.rgb[3 * i + 1]);
    assert_int_equal(im.rgb[3 * i], im.rgb[3 * i + 2]);
  }
  for (int i = 0; i < 48; i++) assert_int_equal(rgb[i], (uint8_t)(5 * i));
  btc_image_free(&im);
}

/* Differences far below the smallest scale are noise and must not glow. */
static void test_heatmap_noise_stays_dark(void **state) {
  (void)state;
  float cos[4] = {1.0f, 0.999f, 0.998f, 1.0f};
  btc_image im = render(cos, 2, NULL, 64);
  for (int64_t i = 0; i < 64 * 64; i++) assert_true(lightness(im.rgb + 3 * i) < 0.05f);
  btc_image_free(&im);
}

static void test_heatmap_values_out_of_range_are_clamped(void **state) {
  (void)state;
  float far[4] = {-5.0f, 9.0f, 1.0f, 1.0f}, near[4] = {-1.0f, 1.0f, 1.0f, 1.0f};
  btc_image a = render(far, 2, NULL, 96), b = render(near, 2, NULL, 96);
  assert_memory_equal(a.rgb, b.rgb, (size_t)(a.width * a.height * 3));
  btc_image_free(&a);
  btc_image_free(&b);
}

static void test_heatmap_legend_shows_the_ramp(void **state) {
  (void)state;
  float cos[1] = {0.14f};
  for (int64_t side = BTC_HEATMAP_LEGEND_SIDE; side <= 800; side += 101) {
    btc_image im = render(cos, 1, NULL, side);
    assert_true(im.height > side);
    int64_t y = side + (im.height - side) / 2;
    float first = lightness(pixel(&im, side / 4, y)), last = lightness(pixel(&im, side / 2, y));
    assert_true(first > 0.0f && last > first);
    btc_image_free(&im);
  }
}

static void test_heatmap_bad_input_is_refused(void **state) {
  (void)state;
  float cos[4] = {1.0f, NAN, 1.0f, 1.0f};
  btc_image out;
  btc_error err = {0};
  assert_int_equal(btc_heatmap_render(cos, 2, NULL, 64, &out, &err), BTC_ERR_ARG);
  assert_non_null(strstr(err.message, "row 0, column 1"));
  assert_null(out.rgb);
  cos[1] = 1.0f;
  assert_int_equal(btc_heatmap_render(cos, 0, NULL, 64, &out, &err), BTC_ERR_ARG);
  assert_int_equal(btc_heatmap_render(cos, BTC_HEATMAP_MAX_GRID + 1, NULL, 64, &out, &err), BTC_ERR_ARG);
  assert_int_equal(btc_heatmap_render(cos, 2, NULL, 0, &out, &err), BTC_ERR_ARG);
  assert_int_equal(btc_heatmap_render(cos, 2, NULL, BTC_HEATMAP_MAX_SIDE + 1, &out, NULL), BTC_ERR_ARG);
}

static int allocations_left;

static bool count_down(size_t size) {
  (void)size;
  return allocations_left-- > 0;
}

static void test_heatmap_survives_lack_of_memory(void **state) {
  (void)state;
  float cos[4] = {1.0f, 0.2f, 1.0f, 0.0f};
  uint8_t rgb[12] = {0};
  btc_image after = {2, 2, rgb}, out;
  btc_status status = BTC_ERR_NOMEM;
  int n = 0;
  for (; status != BTC_OK && n < 100; n++) {
    btc_error err = {0};
    allocations_left = n;
    btc_alloc_hook = count_down;
    status = btc_heatmap_render(cos, 2, &after, 64, &out, &err);
    btc_alloc_hook = NULL;
    if (status != BTC_OK) {
      assert_int_equal(status, BTC_ERR_NOMEM);
      assert_null(out.rgb);
    }
  }
  assert_int_equal(status, BTC_OK);
  assert_true(n > 3);
  btc_image_free(&out);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_heatmap_ramp_grows_lighter),
    cmocka_unit_test(test_heatmap_changed_cell_is_where_it_belongs),
    cmocka_unit_test(test_heatmap_no_change_leaves_grey_photo),
    cmocka_unit_test(test_heatmap_noise_stays_dark),
    cmocka_unit_test(test_heatmap_values_out_of_range_are_clamped),
    cmocka_unit_test(test_heatmap_legend_shows_the_ramp),
    cmocka_unit_test(test_heatmap_bad_input_is_refused),
    cmocka_unit_test(test_heatmap_survives_lack_of_memory),
};

BTC_TEST_MAIN(tests)
