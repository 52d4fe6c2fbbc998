/* What a sample of a PNG or JPEG becomes, and the resize against a plain reference on shapes no golden file has. */
#include "image_files.h"

#include <math.h>

static btc_image decode(bytes b) {
  btc_image im;
  btc_error err = {0};
  if (btc_image_decode_memory(b.data, b.len, "made up", NULL, &im, &err) != BTC_OK) fail_msg("%s", err.message);
  free(b.data);
  return im;
}

static btc_image noise_image(int64_t width, int64_t height, uint32_t seed) {
  return (btc_image){width, height, noise((size_t)(width * height * 3), seed)};
}

static void assert_same(const btc_image *a, const btc_image *b) {
  assert_int_equal(a->width, b->width);
  assert_int_equal(a->height, b->height);
  assert_memory_equal(a->rgb, b->rgb, (size_t)(a->width * a->height * 3));
}

/* ---- PNG samples ---- */

static void test_image_grey16_is_clipped(void **state) {
  (void)state;
  const uint8_t rows[] = {0, 0, 0, 1, 0, 254, 0, 255, 1, 0, 255, 255};
  btc_image im = decode(make_png(&(png_recipe){.width = 6, .height = 1, .color = PNG_COLOR_TYPE_GRAY, .depth = 16, .rows = rows}));
  const uint8_t expected[] = {0, 1, 254, 255, 255, 255};
  for (int i = 0; i < 18; i++) assert_int_equal(im.rgb[i], expected[i / 3]);
  btc_image_free(&im);
}

static void test_image_other_16_bit_keeps_the_high_byte(void **state) {
  (void)state;
  const uint8_t rows[] = {1, 200, 2, 201, 3, 202, 4, 203};
  btc_image im =
      decode(make_png(&(png_recipe){.width = 1, .height = 1, .color = PNG_COLOR_TYPE_RGB_ALPHA, .depth = 16, .rows = rows}));
  assert_memory_equal(im.rgb, ((uint8_t[]){1, 2, 3}), 3);
  btc_image_free(&im);
  im = decode(make_png(&(png_recipe){.width = 2, .height = 1, .color = PNG_COLOR_TYPE_GRAY_ALPHA, .depth = 16, .rows = rows}));
  assert_memory_equal(im.rgb, ((uint8_t[]){1, 1, 1, 3, 3, 3}), 6);
  btc_image_free(&im);
}

static void test_image_low_depths_are_scaled(void **state) {
  (void)state;
  const uint8_t rows[] = {0x1b};
  btc_image im = decode(make_png(&(png_recipe){.width = 8, .height = 1, .color = PNG_COLOR_TYPE_GRAY, .depth = 1, .rows = rows}));
  for (int i = 0; i < 8; i++) assert_int_equal(im.rgb[3 * i], 0x1b >> (7 - i) & 1 ? 255 : 0);
  btc_image_free(&im);
  im = decode(make_png(&(png_recipe){.width = 4, .height = 1, .color = PNG_COLOR_TYPE_GRAY, .depth = 2, .rows = rows}));
  for (int i = 0; i < 4; i++) assert_int_equal(im.rgb[3 * i], 85 * i);
  btc_image_free(&im);
  im = decode(make_png(&(png_recipe){.width = 2, .height = 1, .color = PNG_COLOR_TYPE_GRAY, .depth = 4, .rows = rows}));
  assert_int_equal(im.rgb[0], 17);
  assert_int_equal(im.rgb[3], 187);
  btc_image_free(&im);
}

static void test_image_palette_index_past_the_end_is_black(void **state) {
  (void)state;
  const uint8_t rows[] = {0, 2, 3, 255};
  btc_image im = decode(make_png(
      &(png_recipe){.width = 4, .height = 1, .color = PNG_COLOR_TYPE_PALETTE, .depth = 8, .palette_entries = 3, .rows = rows}));
  assert_memory_equal(im.rgb, ((uint8_t[]){0, 255, 7, 2, 253, 7, 0, 0, 0, 0, 0, 0}), 12);
  btc_image_free(&im);
}

static void test_image_interlaced_equals_plain(void **state) {
  (void)state;
  static const struct {
    int color, depth;
  } kinds[] = {{0, 1}, {0, 2}, {0, 4}, {0, 8}, {0, 16}, {2, 8}, {2, 16}, {3, 1}, {3, 4}, {3, 8}, {4, 8}, {4, 16}, {6, 8}, {6, 16}};
  static const uint32_t sizes[][2] = {{1, 1}, {2, 5}, {9, 1}, {33, 17}};
  uint8_t *rows = noise(33 * 17 * 8, 5);
  for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
    for (size_t s = 0; s < 4; s++) {
      png_recipe r = {.width = sizes[s][0], .height = sizes[s][1], .color = kinds[k].color, .depth = kinds[k].depth, .rows = rows};
      if (r.color == PNG_COLOR_TYPE_PALETTE) r.palette_entries = 1 << r.depth;
      btc_image plain = decode(make_png(&r));
      r.interlaced = true;
      btc_image interlaced = decode(make_png(&r));
      assert_same(&plain, &interlaced);
      btc_image_free(&plain);
      btc_image_free(&interlaced);
    }
  }
  free(rows);
}

static void test_image_png_round_trip(void **state) {
  (void)state;
  static const int64_t sizes[][2] = {{1, 1}, {65, 3}, {3, 65}, {200, 131}};
  for (size_t s = 0; s < 4; s++) {
    btc_image in = noise_image(sizes[s][0], sizes[s][1], 9);
    bytes file = {0};
    btc_error err = {0};
    assert_int_equal(btc_image_encode_png(&in, &file.data, &file.len, &err), BTC_OK);
    btc_image back = decode(file);
    assert_same(&in, &back);
    btc_image_free(&in);
    btc_image_free(&back);
  }
  uint8_t *data;
  size_t len;
  assert_int_equal(btc_image_encode_png(&(btc_image){.width = 0, .height = 4}, &data, &len, NULL), BTC_ERR_ARG);
}

/* ---- JPEG samples ---- */

static void assert_flat_cmyk(J_COLOR_SPACE stored, const uint8_t sample[4], const uint8_t rgb[3]) {
  uint8_t rows[64 * 4];
  for (int i = 0; i < 64; i++) memcpy(rows + 4 * i, sample, 4);
  btc_image im =
      decode(make_jpeg(&(jpeg_recipe){.width = 8, .height = 8, .components = 4, .in = JCS_CMYK, .stored = stored, .rows = rows}));
  for (int i = 0; i < 64 * 3; i++) {
    if (abs(im.rgb[i] - rgb[i % 3]) > 2) fail_msg("sample %d is %d, expected %d", i, im.rgb[i], rgb[i % 3]);
  }
  btc_image_free(&im);
}

/* Adobe's inverted inks: 255 is none. */
static void test_image_cmyk_jpeg_is_inverted(void **state) {
  (void)state;
  const J_COLOR_SPACE stored[] = {JCS_CMYK, JCS_YCCK};
  for (int i = 0; i < 2; i++) {
    assert_flat_cmyk(stored[i], (uint8_t[]){255, 255, 255, 255}, (uint8_t[]){255, 255, 255});
    assert_flat_cmyk(stored[i], (uint8_t[]){255, 255, 255, 0}, (uint8_t[]){0, 0, 0});
    assert_flat_cmyk(stored[i], (uint8_t[]){0, 255, 255, 255}, (uint8_t[]){0, 255, 255});
    assert_flat_cmyk(stored[i], (uint8_t[]){255, 0, 128, 200}, (uint8_t[]){200, 0, 100});
  }
}

static void test_image_grey_jpeg_has_equal_channels(void **state) {
  (void)state;
  uint8_t *rows = noise(40 * 30, 3);
  btc_image im = decode(make_jpeg(
      &(jpeg_recipe){.width = 40, .height = 30, .components = 1, .in = JCS_GRAYSCALE, .stored = JCS_GRAYSCALE, .rows = rows}));
  for (int i = 0; i < 40 * 30; i++) {
    assert_int_equal(im.rgb[3 * i], im.rgb[3 * i + 1]);
    assert_int_equal(im.rgb[3 * i], im.rgb[3 * i + 2]);
    assert_true(abs(im.rgb[3 * i] - rows[i]) < 8);
  }
  free(rows);
  btc_image_free(&im);
}

/* ---- resize ---- */

static double cubic(double x) {
  x = fabs(x);
  if (x < 1) return ((-0.5 + 2) * x - (-0.5 + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

/* One pass of spec 3.3 as written there, over `lines` lines of `in` samples that lie `step` apart. */
static void reference_pass(const uint8_t *src, uint8_t *dst, int64_t in, int64_t out, int64_t lines, int64_t step, int64_t src_line,
                           int64_t dst_line) {
  double scale = (double)in / (double)out, fs = scale > 1 ? scale : 1, support = 2 * fs;
  for (int64_t line = 0; line < lines; line++) {
    for (int64_t o = 0; o < out; o++) {
      double center = ((double)o + 0.5) * scale, sum = 0;
      int64_t lo = (int64_t)(center - support + 0.5), hi = (int64_t)(center + support + 0.5);
      lo = lo < 0 ? 0 : lo, hi = hi > in ? in : hi;
      if (in == out) lo = o, hi = o + 1;
      for (int64_t k = lo; k < hi; k++) sum += in == out ? 1 : cubic(((double)k - center + 0.5) * (1 / fs));
      int64_t acc = 1 << 21;
      for (int64_t k = lo; k < hi; k++) {
        double w = (in == out ? 1 : cubic(((double)k - center + 0.5) * (1 / fs))) / sum;
        acc += (int64_t)(w * (1 << 22) + (w < 0 ? -0.5 : 0.5)) * src[line * src_line + k * step];
      }
      acc >>= 22;
      dst[line * dst_line + o * step] = (uint8_t)(acc < 0 ? 0 : acc > 255 ? 255 : acc);
    }
  }
}

static btc_image reference_resize(const btc_image *in, int64_t width, int64_t height) {
  uint8_t *middle = malloc((size_t)(width * in->height * 3)), *out = malloc((size_t)(width * height * 3));
  assert_non_null(middle);
  assert_non_null(out);
  for (int64_t c = 0; c < 3; c++) {
    reference_pass(in->rgb + c, middle + c, in->width, width, in->height, 3, in->width * 3, width * 3);
    reference_pass(middle + c, out + c, in->height, height, width, width * 3, 3, 3);
  }
  free(middle);
  return (btc_image){width, height, out};
}

static void test_image_resize_equals_the_plain_reference(void **state) {
  (void)state;
  static const int64_t shapes[][4] = {{1, 1, 1, 1},     {1, 1, 5, 3},   {2, 3, 11, 1},   {9, 8, 8, 9},    {10, 11, 11, 11},
                                      {31, 33, 33, 31}, {41, 7, 3, 50}, {47, 50, 9, 2},  {100, 3, 99, 4}, {257, 5, 17, 5},
                                      {5, 300, 5, 13},  {640, 2, 1, 2}, {127, 90, 60, 1}};
  for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
    const int64_t *n = shapes[s];
    btc_image in = noise_image(n[0], n[1], (uint32_t)s), out, expected = reference_resize(&in, n[2], n[3]);
    assert_int_equal(btc_image_resize(&in, n[2], n[3], &out, NULL), BTC_OK);
    assert_same(&expected, &out);
    btc_image_free(&in);
    btc_image_free(&out);
    btc_image_free(&expected);
  }
}

/* The stream pads virtually and keeps grey as one channel; the functions in memory do neither. */
static void test_image_load_equals_decode_pad_resize(void **state) {
  (void)state;
  static const uint32_t sizes[][2] = {{1, 1}, {1, 40}, {40, 1}, {2, 3}, {56, 56}, {57, 90}, {300, 56}, {56, 300}, {500, 7}};
  static const int64_t sides[] = {1, 7, 56, 100};
  for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
    for (int kind = 0; kind < 8; kind++) {
      bool pad = kind & 1, grey = kind & 2;
      int64_t side = sides[(s + (size_t)kind / 2) % 4], width = 0, height = 0;
      uint8_t *rows = noise((size_t)sizes[s][0] * sizes[s][1] * 3, (uint32_t)(s * 8));
      bytes file = make_png(&(png_recipe){.width = sizes[s][0],
                                          .height = sizes[s][1],
                                          .depth = 8,
                                          .color = grey ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB,
                                          .rows = rows});
      btc_image loaded, whole, padded, expected;
      assert_int_equal(btc_image_load_memory(file.data, file.len, "x", side, pad ? BTC_IMAGE_PAD : BTC_IMAGE_SQUASH, NULL, &loaded,
                                             &width, &height, NULL),
                       BTC_OK);
      assert_int_equal(width, sizes[s][0]);
      assert_int_equal(height, sizes[s][1]);
      whole = decode(file);
      assert_int_equal(btc_image_pad(&whole, &padded, NULL), BTC_OK);
      assert_int_equal(btc_image_resize(pad ? &padded : &whole, side, side, &expected, NULL), BTC_OK);
      assert_same(&expected, &loaded);
      btc_image_free(&loaded);
      btc_image_free(&whole);
      btc_image_free(&padded);
      btc_image_free(&expected);
      free(rows);
    }
  }
}

static void test_image_pad_centres_on_127(void **state) {
  (void)state;
  uint8_t rgb[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  btc_image out;
  assert_int_equal(btc_image_pad(&(btc_image){.width = 4, .height = 1, .rgb = rgb}, &out, NULL), BTC_OK);
  assert_int_equal(out.width, 4);
  assert_int_equal(out.height, 4);
  assert_memory_equal(out.rgb + 12, rgb, 12); /* (4 - 1) / 2 rows above */
  for (int i = 0; i < 12; i++) assert_true(out.rgb[i] == 127 && out.rgb[24 + i] == 127);
  btc_image_free(&out);
}

static void test_image_normalise_writes_planes(void **state) {
  (void)state;
  uint8_t rgb[] = {0, 51, 102, 255, 204, 153};
  const float mean[] = {0.1f, 0.2f, 0.3f}, std[] = {1.0f, 2.0f, 4.0f};
  float out[6];
  btc_image_normalise(&(btc_image){.width = 2, .height = 1, .rgb = rgb}, 1.0 / 255, mean, std, out);
  for (int c = 0; c < 3; c++) {
    for (int i = 0; i < 2; i++) assert_true(out[2 * c + i] == ((float)(rgb[3 * i + c] * (1.0 / 255)) - mean[c]) / std[c]);
  }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_image_grey16_is_clipped),
    cmocka_unit_test(test_image_other_16_bit_keeps_the_high_byte),
    cmocka_unit_test(test_image_low_depths_are_scaled),
    cmocka_unit_test(test_image_palette_index_past_the_end_is_black),
    cmocka_unit_test(test_image_interlaced_equals_plain),
    cmocka_unit_test(test_image_png_round_trip),
    cmocka_unit_test(test_image_cmyk_jpeg_is_inverted),
    cmocka_unit_test(test_image_grey_jpeg_has_equal_channels),
    cmocka_unit_test(test_image_resize_equals_the_plain_reference),
    cmocka_unit_test(test_image_load_equals_decode_pad_resize),
    cmocka_unit_test(test_image_pad_centres_on_127),
    cmocka_unit_test(test_image_normalise_writes_planes),
};

BTC_TEST_MAIN(tests)
