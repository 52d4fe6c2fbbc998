/* See grid.h. */
#include "grid.h"

static int64_t along(int64_t length, int64_t tile, int64_t step) {
  return length <= tile ? 1 : (length - tile + step - 1) / step + 1;
}

btc_status btc_grid_make(int64_t width, int64_t height, int64_t tile, int64_t overlap, btc_grid *out, btc_error *err) {
  if (width < 1 || height < 1 || width > INT32_MAX || height > INT32_MAX)
    return btc_fail(err, BTC_ERR_ARG, "a scene of %lld x %lld pixels cannot be cut into windows", (long long)width,
                    (long long)height);
  if (tile < 1 || tile > BTC_GRID_MAX_TILE)
    return btc_fail(err, BTC_ERR_ARG, "a window of %lld pixels a side is not between 1 and %d", (long long)tile, BTC_GRID_MAX_TILE);
  if (overlap < 0 || overlap >= tile)
    return btc_fail(err, BTC_ERR_ARG, "an overlap of %lld pixels is not between 0 and the window's %lld", (long long)overlap,
                    (long long)tile);
  int64_t shorter = width < height ? width : height, side = tile < shorter ? tile : shorter;
  if (overlap >= side) overlap = side - 1;
  *out = (btc_grid){.width = width, .height = height, .tile = side, .step = side - overlap};
  out->columns = along(width, side, out->step);
  out->rows = along(height, side, out->step);
  out->count = out->columns * out->rows;
  if (out->count <= BTC_GRID_MAX_WINDOWS) return BTC_OK;
  return btc_fail(err, BTC_ERR_LIMIT,
                  "the scene has %lld windows, over the most there may be, %d: take larger ones or less overlap",
                  (long long)out->count, BTC_GRID_MAX_WINDOWS);
}

btc_window btc_grid_window(const btc_grid *g, int64_t index) {
  int64_t x = index % g->columns * g->step, y = index / g->columns * g->step;
  if (x > g->width - g->tile) x = g->width - g->tile;
  if (y > g->height - g->tile) y = g->height - g->tile;
  return (btc_window){.x = x, .y = y, .width = g->tile, .height = g->tile};
}

int64_t btc_grid_visit(const btc_grid *g, int64_t stripe, int64_t k) {
  int64_t wide = stripe > g->tile ? (stripe - g->tile) / g->step + 1 : 1, first = k / (wide * g->rows) * wide;
  int64_t columns = g->columns - first < wide ? g->columns - first : wide, rest = k - first * g->rows;
  return rest / columns * g->columns + first + rest % columns;
}
