/*
 * The change map of a whole scene out of the cells of its windows: rows of float32, top to bottom, in bounded memory.
 *
 * A window's g x g cells stand at the centres of its g x g parts. A pixel of the map is as large as such a part, and its value is
 * the mean over the windows it lies in, each read bilinearly between its cells and weighted by sin^2 from its edges to its middle:
 * near an edge a model sees half of what is there, and a weight that is zero at the edge leaves no seam. Thread: any.
 */
#ifndef BTC_GEO_HEAT_H
#define BTC_GEO_HEAT_H

#include "grid.h"

#define BTC_HEAT_NONE 65535   /* a cell without data */
#define BTC_HEAT_TOP 65534    /* a cell of value 1 */
#define BTC_HEAT_NODATA -1.0f /* a pixel without data */

typedef struct btc_heat_size {
  int64_t width, height; /* pixels of the map, whose centres all lie in the scene: its edge is met within half a pixel */
  double pixel;          /* side in pixels of the scene */
} btc_heat_size;
btc_heat_size btc_heat_size_of(const btc_grid *grid, int64_t g);

/* Value 0 (same) to 1 of a cosine, as a cell. */
uint16_t btc_heat_cell(float cosine);

typedef struct btc_heat_source {
  /* Fills cells [g, g] of a window; *has false: it has none. */
  btc_status (*cells)(void *ctx, int64_t index, uint16_t *cells, bool *has, btc_error *err);
  /* Takes a row [width] of the map; rows come in order. */
  btc_status (*row)(void *ctx, const float *row, btc_error *err);
  void *ctx;
} btc_heat_source;

/* Stops at the first error of either function. */
btc_status btc_heat_make(const btc_grid *grid, int64_t g, const btc_heat_source *s, btc_error *err);

#endif
