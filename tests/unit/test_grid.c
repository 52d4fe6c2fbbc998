/* Windows of a scene: all ground covered, none outside, neighbours share what was asked, every one visited once. */
#include "test.h"

#include "geo/grid.h"

static btc_grid make(int64_t w, int64_t h, int64_t tile, int64_t overlap) {
  btc_grid g;
  btc_error err;
  if (btc_grid_make(w, h, tile, overlap, &g, &err) != BTC_OK) fail_msg("%s", err.message);
  return g;
}

static void check_cover(int64_t w, int64_t h, int64_t tile, int64_t overlap) {
  btc_grid g = make(w, h, tile, overlap);
  uint8_t *seen = calloc((size_t)(w * h), 1);
  for (int64_t i = 0; i < g.count; i++) {
    btc_window win = btc_grid_window(&g, i);
    assert_int_equal(win.width, g.tile);
    assert_int_equal(win.height, g.tile);
    assert_true(win.x >= 0 && win.y >= 0 && win.x + win.width <= w && win.y + win.height <= h);
    if (i % g.columns) assert_true(btc_grid_window(&g, i - 1).x + g.tile - win.x >= (overlap < g.tile ? overlap : g.tile - 1));
    for (int64_t y = win.y; y < win.y + win.height; y++) memset(seen + y * w + win.x, 1, (size_t)win.width);
  }
  for (int64_t i = 0; i < w * h; i++) assert_int_equal(seen[i], 1);
  free(seen);
}

static void test_grid_covers_every_pixel_inside(void **state) {
  (void)state;
  static const int64_t cases[][4] = {{1000, 700, 256, 64}, {256, 256, 256, 64}, {257, 256, 256, 0}, {41, 90, 256, 64},
                                     {1, 1, 8, 0},         {513, 300, 100, 99}, {512, 512, 256, 0}, {300, 30, 64, 63}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) check_cover(cases[i][0], cases[i][1], cases[i][2], cases[i][3]);
}

static void test_grid_shifts_the_last_windows_inward(void **state) {
  (void)state;
  btc_grid g = make(1000, 600, 256, 56);
  assert_int_equal(g.columns, 5);
  assert_int_equal(g.rows, 3);
  btc_window last = btc_grid_window(&g, g.count - 1);
  assert_int_equal(last.x, 744);
  assert_int_equal(last.y, 344);
}

static void test_grid_visits_every_window_once_in_stripes(void **state) {
  (void)state;
  static const int64_t stripes[] = {1, 256, 600, 1024, 100000};
  btc_grid g = make(3000, 900, 256, 64);
  for (size_t s = 0; s < sizeof stripes / sizeof stripes[0]; s++) {
    uint8_t *seen = calloc((size_t)g.count, 1);
    int64_t left = 0;
    for (int64_t k = 0; k < g.count; k++) {
      int64_t i = btc_grid_visit(&g, stripes[s], k);
      assert_in_range(i, 0, g.count - 1);
      assert_int_equal(seen[i]++, 0);
      btc_window w = btc_grid_window(&g, i);
      if (w.y == 0 && w.x > left + stripes[s]) left = w.x;
      if (stripes[s] >= g.tile) assert_true(w.x + w.width - left <= stripes[s] + g.step + g.tile);
    }
    free(seen);
  }
}

static void test_grid_refuses_what_cannot_be(void **state) {
  (void)state;
  btc_grid g;
  btc_error err;
  assert_int_equal(btc_grid_make(0, 10, 8, 0, &g, &err), BTC_ERR_ARG);
  assert_int_equal(btc_grid_make(10, 10, 0, 0, &g, &err), BTC_ERR_ARG);
  assert_int_equal(btc_grid_make(10, 10, 8, 8, &g, &err), BTC_ERR_ARG);
  assert_int_equal(btc_grid_make(10, 10, BTC_GRID_MAX_TILE + 1, 0, &g, &err), BTC_ERR_ARG);
  assert_int_equal(btc_grid_make(100000, 100000, 16, 15, &g, &err), BTC_ERR_LIMIT);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_grid_covers_every_pixel_inside),
    cmocka_unit_test(test_grid_shifts_the_last_windows_inward),
    cmocka_unit_test(test_grid_visits_every_window_once_in_stripes),
    cmocka_unit_test(test_grid_refuses_what_cannot_be),
};

BTC_TEST_MAIN(tests)
