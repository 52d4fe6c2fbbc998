/* Change cells as text, and a scene's options as JSON. */
#include "test.h"

#include "geo/cells.h"

static void test_cells_come_back(void **state) {
  (void)state;
  for (size_t n = 1; n < 80; n++) {
    uint16_t in[80], out[80];
    for (size_t i = 0; i < n; i++) in[i] = (uint16_t)(i * 40503u + n * 977u);
    char *text = btc_cells_encode(in, n);
    assert_int_equal(btc_cells_count(text), n);
    assert_true(btc_cells_decode(text, out, n));
    assert_memory_equal(in, out, n * sizeof *in);
    assert_false(btc_cells_decode(text, out, n + 2));
    text[1] = '!';
    assert_false(btc_cells_decode(text, out, n));
    free(text);
  }
}

static void test_cells_are_base64_low_byte_first(void **state) {
  (void)state;
  const uint16_t cells[] = {0x6261, 0x6463, 0x6665, 0x0001};
  char *text = btc_cells_encode(cells, 4);
  assert_string_equal(text, "YWJjZGVmAQA="); /* "abcdef", 1, 0 */
  free(text);
}

static void test_cells_refuse_what_is_none(void **state) {
  (void)state;
  uint16_t out[4];
  assert_int_equal(btc_cells_count(""), 0);
  assert_int_equal(btc_cells_count("AAA"), 0);
  assert_false(btc_cells_decode("AA=A", out, 1));
  assert_false(btc_cells_decode("====", out, 1));
  assert_false(btc_cells_decode("AA==", out, 1)); /* one byte */
  assert_true(btc_cells_decode("AAA=", out, 1));
}

static btc_status parse(const char *text, btc_scene_options *o, double *max_nodata) {
  btc_error err;
  json_t *j = json_loads(text, 0, NULL);
  assert_non_null(j);
  *o = (btc_scene_options){0};
  *max_nodata = 0.5;
  btc_status st = btc_scene_options_json(j, o, max_nodata, &err);
  json_decref(j);
  return st;
}

static void test_scene_options_are_read(void **state) {
  (void)state;
  btc_scene_options o;
  double m;
  assert_int_equal(
      parse("{\"bands\":\"4,3,2\",\"stretch\":\"10,20.5\",\"shift\":\"apply\",\"gsd_m\":0.5,\"max_nodata\":0.25,\"pixels\":true}",
            &o, &m),
      BTC_OK);
  assert_int_equal(o.bands[0], 4);
  assert_int_equal(o.bands[2], 2);
  assert_int_equal(o.stretch, BTC_STRETCH_RANGE);
  assert_true(o.stretch_min == 10 && o.stretch_max == 20.5 && o.gsd_m == 0.5 && m == 0.25 && o.pixels);
  assert_int_equal(o.shift, BTC_SHIFT_APPLY);
  assert_int_equal(parse("{\"stretch\":\"each\"}", &o, &m), BTC_OK);
  assert_int_equal(o.stretch, BTC_STRETCH_EACH);
  static const char *const wrong[] = {"{\"bands\":\"4,3\"}",    "{\"bands\":\"0,1,2\"}", "{\"bands\":\"1,2,3,4\"}",
                                      "{\"stretch\":\"best\"}", "{\"stretch\":\"5,5\"}", "{\"stretch\":\"1,2x\"}",
                                      "{\"shift\":\"yes\"}",    "{\"gsd_m\":-1}",        "{\"gsd_m\":\"1\"}",
                                      "{\"max_nodata\":1.5}"};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) assert_int_equal(parse(wrong[i], &o, &m), BTC_ERR_ARG);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_cells_come_back),
    cmocka_unit_test(test_cells_are_base64_low_byte_first),
    cmocka_unit_test(test_cells_refuse_what_is_none),
    cmocka_unit_test(test_scene_options_are_read),
};

BTC_TEST_MAIN(tests)
