/* The change map of a scene: values on the right ground, no seams, nodata where there is none, equal in bands. */
#include "test.h"

#include <math.h>

#include "geo/heat.h"

enum { G = 16 };

typedef struct fixture {
  btc_grid grid;
  btc_heat_size size;
  double (*value)(double x, double y); /* of the ground at a pixel of the scene; negative: no data */
  int64_t missing;                     /* a window without cells, -1: none */
  float *map;
  int64_t rows;
} fixture;

static btc_status cells(void *ctx, int64_t index, uint16_t *out, bool *has, btc_error *err) {
  fixture *f = ctx;
  (void)err;
  btc_window w = btc_grid_window(&f->grid, index);
  *has = index != f->missing;
  for (int64_t i = 0; i < G * G; i++) {
    double v = f->value((double)w.x + ((double)(i % G) + 0.5) * (double)w.width / G,
                        (double)w.y + ((double)(i / G) + 0.5) * (double)w.height / G);
    out[i] = v < 0 ? BTC_HEAT_NONE : btc_heat_cell((float)(1 - 2 * v));
  }
  return BTC_OK;
}

static btc_status row(void *ctx, const float *r, btc_error *err) {
  fixture *f = ctx;
  (void)err;
  memcpy(f->map + f->rows++ * f->size.width, r, (size_t)f->size.width * sizeof *r);
  return BTC_OK;
}

static void make(fixture *f, int64_t w, int64_t h, int64_t tile, int64_t overlap, double (*value)(double, double)) {
  btc_error err;
  *f = (fixture){.value = value, .missing = -1};
  assert_int_equal(btc_grid_make(w, h, tile, overlap, &f->grid, &err), BTC_OK);
  f->size = btc_heat_size_of(&f->grid, G);
  f->map = calloc((size_t)(f->size.width * f->size.height), sizeof *f->map);
}

static void render(fixture *f) {
  btc_error err;
  f->rows = 0;
  assert_int_equal(btc_heat_make(&f->grid, G, &(btc_heat_source){cells, row, f}, &err), BTC_OK);
  assert_int_equal(f->rows, f->size.height);
}

static double ramp(double x, double y) {
  return 0.1 + x / 4000 + y / 8000;
}

static double square(double x, double y) {
  return x >= 700 && x < 900 && y >= 300 && y < 500 ? 0.8 : 0.05;
}

static double half(double x, double y) {
  (void)y;
  return x < 500 ? -1 : 0.5;
}

static void test_heat_of_a_ramp_is_the_ramp(void **state) {
  (void)state;
  fixture f;
  make(&f, 1700, 1300, 256, 64, ramp);
  render(&f);
  for (int64_t y = 1; y < f.size.height - 1; y++) {
    for (int64_t x = 1; x < f.size.width - 1; x++) {
      double want = ramp(((double)x + 0.5) * f.size.pixel, ((double)y + 0.5) * f.size.pixel);
      /* bilinear reading is exact on a ramp but for the half cell at a window's edge, whose weight is next to nothing */
      assert_true(fabs(f.map[y * f.size.width + x] - want) < 1e-3);
    }
  }
  free(f.map);
}

static void test_heat_stands_on_its_ground(void **state) {
  (void)state;
  fixture f;
  make(&f, 1700, 1300, 256, 64, square);
  render(&f);
  for (int64_t y = 0; y < f.size.height; y++) {
    for (int64_t x = 0; x < f.size.width; x++) {
      double px = ((double)x + 0.5) * f.size.pixel, py = ((double)y + 0.5) * f.size.pixel, cell = f.size.pixel;
      bool inside = px > 700 + cell && px < 900 - cell && py > 300 + cell && py < 500 - cell;
      bool outside = px < 700 - cell || px > 900 + cell || py < 300 - cell || py > 500 + cell;
      if (inside) assert_true(f.map[y * f.size.width + x] > 0.79f);
      if (outside) assert_true(f.map[y * f.size.width + x] < 0.06f);
    }
  }
  free(f.map);
}

static void test_heat_leaves_out_what_has_no_data(void **state) {
  (void)state;
  fixture f;
  make(&f, 1024, 512, 256, 0, half);
  f.missing = 3;
  render(&f);
  for (int64_t x = 0; x < f.size.width; x++) {
    float v = f.map[5 * f.size.width + x];
    double px = ((double)x + 0.5) * f.size.pixel;
    bool none = px < 500 || px > 768;
    if (fabs(px - 500) > f.size.pixel) assert_true(none ? v == BTC_HEAT_NODATA : fabsf(v - 0.5f) < 1e-4f);
  }
  free(f.map);
}

static void test_heat_map_lies_in_the_scene(void **state) {
  (void)state;
  static const int64_t sides[] = {41, 255, 256, 257, 300, 1000, 4097};
  for (size_t i = 0; i < sizeof sides / sizeof sides[0]; i++) {
    fixture f;
    make(&f, sides[i], 2 * sides[i], 256, 64, ramp);
    assert_true(((double)f.size.width - 0.5) * f.size.pixel <= (double)sides[i]);
    assert_true(((double)f.size.width + 0.5) * f.size.pixel >= (double)sides[i]);
    render(&f);
    for (int64_t k = 0; k < f.size.width * f.size.height; k++) assert_true(f.map[k] >= 0);
    free(f.map);
  }
}

static void test_heat_cells_hold_their_range(void **state) {
  (void)state;
  assert_int_equal(btc_heat_cell(1), 0);
  assert_int_equal(btc_heat_cell(-1), BTC_HEAT_TOP);
  assert_int_equal(btc_heat_cell(1.001f), 0);
  assert_int_equal(btc_heat_cell(-2), BTC_HEAT_TOP);
  assert_int_equal(btc_heat_cell(NAN), BTC_HEAT_NONE);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_heat_of_a_ramp_is_the_ramp),       cmocka_unit_test(test_heat_stands_on_its_ground),
    cmocka_unit_test(test_heat_leaves_out_what_has_no_data), cmocka_unit_test(test_heat_map_lies_in_the_scene),
    cmocka_unit_test(test_heat_cells_hold_their_range),
};

BTC_TEST_MAIN(tests)
