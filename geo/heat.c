/* See heat.h. */
#include "heat.h"

#include <math.h>
#include <stdlib.h>

enum { BAND = 64 /* rows of the map made at once: a window is read about twice, memory stays small */ };

typedef struct heat_band {
  const btc_grid *grid;
  int64_t g;
  btc_heat_size size;
  int64_t top, rows;
  double *sum, *weight; /* [BAND, width] */
  float *row;           /* [width] */
  uint16_t *cells;      /* [g, g] */
} heat_band;

btc_heat_size btc_heat_size_of(const btc_grid *grid, int64_t g) {
  btc_heat_size s = {.pixel = (double)grid->tile / (double)g};
  s.width = (int64_t)floor((double)grid->width / s.pixel + 0.5 - 1e-6);
  s.height = (int64_t)floor((double)grid->height / s.pixel + 0.5 - 1e-6);
  return s;
}

uint16_t btc_heat_cell(float cosine) {
  double v = (1.0 - (double)cosine) / 2.0;
  if (!isfinite(v)) return BTC_HEAT_NONE;
  v = v < 0 ? 0 : v > 1 ? 1 : v;
  return (uint16_t)lround(v * BTC_HEAT_TOP);
}

/* Never quite zero, so that a pixel that only one window covers has a weight to be divided by. */
static double edge_weight(double t) {
  double s = sin(t * 3.14159265358979323846);
  return s * s + 1e-6;
}

/* Bilinear over the cells that have data; false when the nearest one has none. u, v: in cells, from the centre of the first. */
static bool sample(const uint16_t *cells, int64_t g, double u, double v, double *out) {
  int64_t nearest_x = (int64_t)floor(u + 0.5), nearest_y = (int64_t)floor(v + 0.5), x = (int64_t)floor(u), y = (int64_t)floor(v);
  nearest_x = nearest_x < 0 ? 0 : nearest_x >= g ? g - 1 : nearest_x;
  nearest_y = nearest_y < 0 ? 0 : nearest_y >= g ? g - 1 : nearest_y;
  if (cells[nearest_y * g + nearest_x] == BTC_HEAT_NONE) return false;
  double fx = u - (double)x, fy = v - (double)y, sum = 0, weights = 0;
  for (int k = 0; k < 4; k++) {
    int64_t cx = x + (k & 1), cy = y + (k >> 1);
    cx = cx < 0 ? 0 : cx >= g ? g - 1 : cx;
    cy = cy < 0 ? 0 : cy >= g ? g - 1 : cy;
    double w = ((k & 1) ? fx : 1 - fx) * ((k >> 1) ? fy : 1 - fy);
    if (cells[cy * g + cx] == BTC_HEAT_NONE) continue;
    sum += w * cells[cy * g + cx];
    weights += w;
  }
  *out = sum / weights / BTC_HEAT_TOP;
  return true;
}

/* First pixel whose centre is at or after `from`, in pixels of the scene. */
static int64_t first_pixel(double from, double pixel) {
  int64_t i = (int64_t)ceil(from / pixel - 0.5 - 1e-9);
  return i < 0 ? 0 : i;
}

static void add_row(heat_band *b, const btc_window *w, int64_t y) {
  double pixel = b->size.pixel, in_y = ((double)y + 0.5) * pixel - (double)w->y, value;
  double weight_y = edge_weight(in_y / (double)w->height);
  int64_t end = first_pixel((double)(w->x + w->width), pixel);
  for (int64_t x = first_pixel((double)w->x, pixel); x < end && x < b->size.width; x++) {
    double in_x = ((double)x + 0.5) * pixel - (double)w->x;
    if (!sample(b->cells, b->g, in_x / pixel - 0.5, in_y / pixel - 0.5, &value)) continue;
    double weight = weight_y * edge_weight(in_x / (double)w->width);
    b->sum[(y - b->top) * b->size.width + x] += weight * value;
    b->weight[(y - b->top) * b->size.width + x] += weight;
  }
}

static btc_status add_windows(heat_band *b, const btc_heat_source *s, btc_error *err) {
  const btc_grid *grid = b->grid;
  double low = (double)b->top * b->size.pixel, high = (double)(b->top + b->rows) * b->size.pixel;
  for (int64_t i = 0; i < grid->count; i++) {
    btc_window w = btc_grid_window(grid, i);
    bool has = false;
    if ((double)(w.y + w.height) < low || (double)w.y > high) {
      i += grid->columns - 1; /* none of this row of windows */
      continue;
    }
    btc_status st = s->cells(s->ctx, i, b->cells, &has, err);
    if (st != BTC_OK) return st;
    int64_t y = first_pixel((double)w.y, b->size.pixel), end = first_pixel((double)(w.y + w.height), b->size.pixel);
    for (y = y < b->top ? b->top : y; has && y < end && y < b->top + b->rows; y++) add_row(b, &w, y);
  }
  return BTC_OK;
}

static btc_status hand_out(heat_band *b, const btc_heat_source *s, btc_error *err) {
  btc_status st = BTC_OK;
  for (int64_t y = 0; st == BTC_OK && b->row && y < b->rows; y++) {
    for (int64_t x = 0; x < b->size.width; x++) {
      double *sum = &b->sum[y * b->size.width + x], *weight = &b->weight[y * b->size.width + x];
      b->row[x] = *weight > 0 ? (float)(*sum / *weight) : BTC_HEAT_NODATA;
      *sum = *weight = 0;
    }
    st = s->row(s->ctx, b->row, err);
  }
  return st;
}

btc_status btc_heat_make(const btc_grid *grid, int64_t g, const btc_heat_source *s, btc_error *err) {
  heat_band b = {.grid = grid, .g = g, .size = btc_heat_size_of(grid, g)};
  size_t pixels = (size_t)(BAND * b.size.width);
  b.sum = btc_alloc_zero(pixels, sizeof *b.sum);
  b.weight = btc_alloc_zero(pixels, sizeof *b.weight);
  b.row = btc_alloc((size_t)b.size.width, sizeof *b.row);
  b.cells = btc_alloc((size_t)(g * g), sizeof *b.cells);
  btc_status st = BTC_OK;
  if (!b.sum || !b.weight || !b.row || !b.cells)
    st = btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a change map of %lld pixels a row", (long long)b.size.width);
  for (; st == BTC_OK && b.top < b.size.height; b.top += BAND) {
    b.rows = b.size.height - b.top < BAND ? b.size.height - b.top : BAND;
    st = add_windows(&b, s, err);
    if (st == BTC_OK) st = hand_out(&b, s, err);
  }
  free(b.sum);
  free(b.weight);
  free(b.row);
  free(b.cells);
  return st;
}
