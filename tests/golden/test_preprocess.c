/* Every value of vectors/preprocess: decoded files, squash and pad to 384, resizes of made-up images, the pixel table. */
#include "engine/image.h"
#include "test.h"

#include <jansson.h>
#include <stdio.h>

static json_t *load_vectors(void) {
  skip_without_shared();
  json_error_t error;
  json_t *root = json_load_file(shared_path("vectors/preprocess/preprocess.json"), 0, &error);
  if (!root) fail_msg("preprocess.json: %s", error.text);
  return root;
}

static const char *text(const json_t *object, const char *key) {
  const char *value = json_string_value(json_object_get(object, key));
  assert_non_null(value);
  return value;
}

static const char *vector_path(const char *file) {
  static char path[4096];
  char relative[1024];
  snprintf(relative, sizeof relative, "vectors/preprocess/%s", file);
  snprintf(path, sizeof path, "%s", shared_path(relative));
  return path;
}

static void assert_hash(const char *what, const char *name, const btc_image *im, const char *expected) {
  char hex[65];
  btc_sha256_hex(im->rgb, (size_t)(im->width * im->height * 3), hex);
  if (strcmp(hex, expected) != 0) fail_msg("%s of %s differs: %s, expected %s", what, name, hex, expected);
}

static void assert_ok(const char *name, btc_status status, const btc_error *err) {
  if (status != BTC_OK) fail_msg("%s: %s", name, err->message);
}

static void test_preprocess_decoded_files(void **state) {
  (void)state;
  json_t *root = load_vectors(), *entry;
  size_t i;
  assert_true(json_array_size(json_object_get(root, "files")) > 0);
  json_array_foreach(json_object_get(root, "files"), i, entry) {
    const char *file = text(entry, "file");
    json_t *size = json_object_get(entry, "size");
    btc_error err = {0};
    btc_image im;
    assert_ok(file, btc_image_decode_file(vector_path(file), NULL, &im, &err), &err);
    assert_int_equal(im.width, json_integer_value(json_array_get(size, 0)));
    assert_int_equal(im.height, json_integer_value(json_array_get(size, 1)));
    assert_hash("rgb", file, &im, text(entry, "rgb_sha256"));
    btc_image_free(&im);
  }
  json_decref(root);
}

static void check_loaded(const json_t *root, btc_image_mode mode, const char *key) {
  json_t *entry;
  size_t i;
  json_array_foreach(json_object_get(root, "files"), i, entry) {
    const char *file = text(entry, "file");
    json_t *size = json_object_get(entry, "size");
    btc_error err = {0};
    btc_image im;
    int64_t width = 0, height = 0;
    assert_ok(file, btc_image_load(vector_path(file), 384, mode, NULL, &im, &width, &height, &err), &err);
    assert_int_equal(width, json_integer_value(json_array_get(size, 0)));
    assert_int_equal(height, json_integer_value(json_array_get(size, 1)));
    assert_int_equal(im.width, 384);
    assert_int_equal(im.height, 384);
    assert_hash(key, file, &im, text(entry, key));
    btc_image_free(&im);
  }
}

static void test_preprocess_squash_384(void **state) {
  (void)state;
  json_t *root = load_vectors();
  check_loaded(root, BTC_IMAGE_SQUASH, "squash384_sha256");
  json_decref(root);
}

static void test_preprocess_pad_384(void **state) {
  (void)state;
  json_t *root = load_vectors();
  check_loaded(root, BTC_IMAGE_PAD, "pad127_384_sha256");
  json_decref(root);
}

/* Padding and resizing in memory must give what the streaming path gives. */
static void test_preprocess_pad_in_memory(void **state) {
  (void)state;
  json_t *root = load_vectors(), *entry;
  size_t i;
  json_array_foreach(json_object_get(root, "files"), i, entry) {
    const char *file = text(entry, "file");
    btc_error err = {0};
    btc_image im, padded, small;
    assert_ok(file, btc_image_decode_file(vector_path(file), NULL, &im, &err), &err);
    assert_ok(file, btc_image_pad(&im, &padded, &err), &err);
    assert_int_equal(padded.width, json_integer_value(json_array_get(json_object_get(entry, "pad127_size"), 0)));
    assert_ok(file, btc_image_resize(&padded, 384, 384, &small, &err), &err);
    assert_hash("padded and resized", file, &small, text(entry, "pad127_384_sha256"));
    btc_image_free(&im);
    btc_image_free(&padded);
    btc_image_free(&small);
  }
  json_decref(root);
}

static void test_preprocess_full_results(void **state) {
  (void)state;
  json_t *root = load_vectors(), *entry;
  size_t i;
  assert_true(json_array_size(json_object_get(root, "full")) > 0);
  json_array_foreach(json_object_get(root, "full"), i, entry) {
    const char *file = text(entry, "file");
    btc_image_mode mode = strcmp(text(entry, "mode"), "pad") == 0 ? BTC_IMAGE_PAD : BTC_IMAGE_SQUASH;
    btc_error err = {0};
    btc_image im;
    uint8_t *raw = NULL;
    size_t len = 0;
    assert_ok(file, btc_file_read(vector_path(text(entry, "raw")), 1 << 20, &raw, &len, &err), &err);
    assert_ok(file, btc_image_load(vector_path(file), 384, mode, NULL, &im, NULL, NULL, &err), &err);
    assert_int_equal(len, 384 * 384 * 3);
    for (size_t k = 0; k < len; k++) {
      if (im.rgb[k] != raw[k]) fail_msg("%s: byte %zu is %d, expected %d", file, k, im.rgb[k], raw[k]);
    }
    btc_image_free(&im);
    free(raw);
  }
  json_decref(root);
}

static btc_image made_up(const char *recipe, int64_t width, int64_t height) {
  btc_image im = {width, height, malloc((size_t)(width * height * 3))};
  assert_non_null(im.rgb);
  if (strncmp(recipe, "lcg ", 4) == 0) {
    uint32_t x = (uint32_t)strtoul(recipe + 4, NULL, 10);
    for (int64_t i = 0; i < width * height * 3; i++) {
      x = 1664525u * x + 1013904223u;
      im.rgb[i] = (uint8_t)(x >> 24);
    }
    return im;
  }
  assert_string_equal(recipe, "ramp");
  for (int64_t y = 0; y < height; y++) {
    for (int64_t x = 0; x < width; x++) {
      for (int64_t c = 0; c < 3; c++) im.rgb[(y * width + x) * 3 + c] = (uint8_t)(3 * x + 5 * y + 40 * c + (x * y >> 4));
    }
  }
  return im;
}

static void test_preprocess_resize_cases(void **state) {
  (void)state;
  json_t *root = load_vectors(), *entry, *value;
  size_t i, k;
  assert_true(json_array_size(json_object_get(root, "resize")) > 0);
  json_array_foreach(json_object_get(root, "resize"), i, entry) {
    json_t *in_size = json_object_get(entry, "in"), *out_size = json_object_get(entry, "out");
    btc_image in = made_up(text(entry, "image"), json_integer_value(json_array_get(in_size, 0)),
                           json_integer_value(json_array_get(in_size, 1)));
    btc_image out;
    btc_error err = {0};
    char name[128];
    snprintf(name, sizeof name, "%s %lldx%lld", text(entry, "image"), (long long)in.width, (long long)in.height);
    assert_ok(name,
              btc_image_resize(&in, json_integer_value(json_array_get(out_size, 0)),
                               json_integer_value(json_array_get(out_size, 1)), &out, &err),
              &err);
    json_array_foreach(json_object_get(entry, "data"), k, value) {
      if (out.rgb[k] != json_integer_value(value)) fail_msg("%s: byte %zu is %d", name, k, out.rgb[k]);
    }
    assert_hash("resize", name, &out, text(entry, "sha256"));
    btc_image_free(&in);
    btc_image_free(&out);
  }
  json_decref(root);
}

/* Order of the planes and the exact float32 of every sample value (spec 3.1 steps 3 to 5). */
static void test_preprocess_pixel_table(void **state) {
  (void)state;
  json_t *root = load_vectors(), *table = json_object_get(root, "pixel_table_f32_hex");
  assert_int_equal(json_array_size(table), 256);
  uint8_t rgb[256 * 3];
  float out[3 * 256];
  for (int v = 0; v < 256; v++) rgb[3 * v] = (uint8_t)v, rgb[3 * v + 1] = (uint8_t)(255 - v), rgb[3 * v + 2] = (uint8_t)(v ^ 0x55);
  const float half[3] = {0.5f, 0.5f, 0.5f};
  btc_image_normalise(&(btc_image){.width = 16, .height = 16, .rgb = rgb}, 0.00392156862745098, half, half, out);
  for (int v = 0; v < 256; v++) {
    for (int c = 0; c < 3; c++) {
      uint32_t bits;
      memcpy(&bits, &out[c * 256 + v], sizeof bits);
      const char *hex = json_string_value(json_array_get(table, rgb[3 * v + c]));
      if (bits != strtoul(hex, NULL, 16)) fail_msg("value %d, channel %d: %08x, expected %s", rgb[3 * v + c], c, bits, hex);
    }
  }
  json_decref(root);
}

/* clang-format off: ctest wants one entry a line */
static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_preprocess_decoded_files), cmocka_unit_test(test_preprocess_squash_384),
    cmocka_unit_test(test_preprocess_pad_384),       cmocka_unit_test(test_preprocess_pad_in_memory),
    cmocka_unit_test(test_preprocess_full_results),  cmocka_unit_test(test_preprocess_resize_cases),
    cmocka_unit_test(test_preprocess_pixel_table),
};
/* clang-format on */

BTC_TEST_MAIN(tests)
