/*
 * The change map as a picture: where the two dates differ, in colour over the later date, with a legend. For people; the
 * numbers behind it are the cosines of spec 1.3 step 3.
 */
#ifndef BTC_HEATMAP_H
#define BTC_HEATMAP_H

#include "engine/image.h"

#define BTC_HEATMAP_MAX_SIDE 4096  /* pixels, of the output */
#define BTC_HEATMAP_MAX_GRID 1024  /* cells a side */
#define BTC_HEATMAP_LEGEND_SIDE 96 /* pixels: smaller pictures have no room for a legend */
/* Change that gets the brightest colour at least: below it, differences are noise, and a pair without change stays dark. */
#define BTC_HEATMAP_MIN_SCALE 0.05f

/* cos: [g, g] row-major cosines in -1..1 (values a rounding error outside are clamped), row 0 at the top. The change of a cell is
 * (1 - cos) / 2, 0 (same) to 1 (opposite). It is interpolated smoothly between cell centres and coloured on a scale from 0
 * to the largest change of the map (BTC_HEATMAP_MIN_SCALE at least), dark violet to pale yellow: brightness grows all along,
 * so the ramp also reads in grey and with any kind of colour blindness.
 * after: the later date, any size, squashed to the square as the model sees it; shown in muted grey where nothing changed.
 * NULL: the colours alone. It is only read.
 * *out: side x side pixels with, from BTC_HEATMAP_LEGEND_SIDE on, a legend below (0, the ramp, the largest value of the scale)
 * of btc_heatmap_legend_height(side) more rows. out->rgb is malloc'ed, the caller frees with btc_image_free; NULL on error.
 * Errors: ARG (grid or side out of bounds, a cosine that is not a number), NOMEM. Any thread; no state. */
btc_status btc_heatmap_render(const float *cos, int64_t g, const btc_image *after, int64_t side, btc_image *out, btc_error *err);

/* Rows the legend takes below a picture of this side; 0 where there is none. */
int64_t btc_heatmap_legend_height(int64_t side);

/* The colour of t in 0..1 (clamped). */
void btc_heatmap_colour(float t, uint8_t rgb[3]);

#endif
