/* Pictures to pixels on host backends, bit for bit the streaming resizer's and the normalisation after it. */
#include "engine/image_internal.h"
#include "ops_fixture.h"

static const btc_shades shades = {0.00392156862745098, {0.5f, 0.48145466f, 0.40821073f}, {0.5f, 0.26862954f, 0.27577711f}};

static uint8_t *noise(int64_t width, int64_t height) {
  uint8_t *rgb = malloc((size_t)(width * height) * 3);
  assert_non_null(rgb);
  for (int64_t i = 0; i < width * height * 3; i++) rgb[i] = (uint8_t)(random_u32() % 3 ? random_u32() : random_u32() % 2 * 255);
  return rgb;
}

/* The way of a file: rows through the resizer, then the formula of the normalisation. */
static float *expected(const btc_picture *p, int64_t side) {
  btc_resize_plan plan = {.width = p->width,
                          .height = p->height,
                          .canvas_width = p->width,
                          .canvas_height = p->height,
                          .out_width = side,
                          .out_height = side,
                          .channels = 3};
  if (p->pad) {
    plan.canvas_width = plan.canvas_height = p->width > p->height ? p->width : p->height;
    plan.left = (plan.canvas_width - p->width) / 2;
    plan.top = (plan.canvas_height - p->height) / 2;
  }
  const int64_t n = side * side;
  uint8_t *rgb = malloc((size_t)n * 3);
  float *out = malloc((size_t)n * 3 * sizeof *out);
  btc_resizer *r = btc_resizer_create(&plan, rgb);
  assert_non_null(r);
  for (int64_t y = 0; y < p->height; y++) btc_resizer_push(r, p->rgb + y * p->width * 3);
  btc_resizer_destroy(&r);
  for (int c = 0; c < 3; c++)
    for (int64_t i = 0; i < n; i++)
      out[c * n + i] = ((float)((double)rgb[3 * i + c] * shades.rescale) - shades.mean[c]) / shades.std[c];
  free(rgb);
  return out;
}

static void check(int64_t width, int64_t height, bool pad, int64_t side) {
  const int64_t n = 3 * side * side;
  uint8_t *rgb = noise(width, height);
  const btc_picture p = {.rgb = rgb, .width = width, .height = height, .pad = pad};
  float *want = expected(&p, side);
  for (int k = 0; k < 2; k++) {
    btc_backend *b = backend_new(k ? "plain" : "cpu", 1, BTC_COMPUTE_F32, 8);
    float *got = buffer_new(n);
    btc_op_resize_normalise(b, got, &p, 1, side, &shades);
    assert_same_bits(got, want, n, "pixels");
    buffer_free(got, n);
    btc_backend_destroy(&b);
  }
  free(want);
  free(rgb);
}

static void test_ops_pictures_squash_equals_the_resizer(void **state) {
  (void)state;
  check(1, 1, false, 5);
  check(14, 14, false, 14);
  check(14, 33, false, 14);
  check(31, 17, false, 40);
  check(97, 61, false, 23);
  check(120, 3, false, 13);
}

static void test_ops_pictures_pad_equals_the_resizer(void **state) {
  (void)state;
  check(1, 1, true, 5);
  check(14, 9, true, 14);
  check(50, 21, true, 19);
  check(1, 40, true, 12);
  check(36, 37, true, 15);
}

static void test_ops_pictures_that_fit(void **state) {
  (void)state;
  assert_true(btc_picture_fits(1, 1, 10));
  assert_true(btc_picture_fits(20, 20, 10));
  assert_true(btc_picture_fits(40, 10, 10));
  assert_false(btc_picture_fits(21, 20, 10));
  assert_false(btc_picture_fits(41, 1, 10));
  assert_false(btc_picture_fits(1, 41, 10));
  assert_false(btc_picture_fits(0, 5, 10));
  assert_int_equal(btc_picture_bytes(10), 1200); /* as many as the square's floats */
}

/* Nothing travels on a host: there are no parcels. */
static void test_ops_pictures_host_has_no_parcels(void **state) {
  (void)state;
  btc_error err;
  btc_parcel *p = (btc_parcel *)&err;
  btc_backend *b = backend_new("cpu", 1, BTC_COMPUTE_F32, 8);
  assert_int_equal(btc_parcel_create(b, 100, &p, &err), BTC_OK);
  assert_null(p);
  btc_op_send(b, p, "x", 1);
  btc_parcel_destroy(b, &p);
  assert_null(btc_backend_remark(b));
  btc_backend_destroy(&b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_ops_pictures_squash_equals_the_resizer),
    cmocka_unit_test(test_ops_pictures_pad_equals_the_resizer),
    cmocka_unit_test(test_ops_pictures_that_fit),
    cmocka_unit_test(test_ops_pictures_host_has_no_parcels),
};

BTC_TEST_MAIN(tests)
