/*
 * A small shift between the two images, by phase correlation (Kuglin and Hines, 1975): the cross-power spectra of up to nine
 * windows, each normalised to phases, are averaged, low-passed by a Gaussian of one pixel and transformed back; the peak is the
 * shift, refined by a Gaussian through its neighbours.
 */
#ifndef GEO_GDAL_SHIFT_H
#define GEO_GDAL_SHIFT_H

#include "geo/gdal/pixels.h"

typedef struct shift {
  bool found;        /* false: no window has enough valid pixels in both images */
  double x, y;       /* after(column + x, row + y) shows what before(column, row) shows; grid pixels */
  double confidence; /* height of the peak, 0..1: 1 for copies, below 0.03 for images that have nothing in common */
} shift;

enum { SHIFT_LEAST_SIDE = 64, SHIFT_MOST_SIDE = 256 }; /* of the windows; found are shifts of up to a quarter of one */

/* outline: the common ground, n points in grid pixels. p: room for SHIFT_MOST_SIDE^2 pixels. Windows that cannot be decoded are
 * left out. Only OOM fails. */
btc_status shift_measure(const placed images[2], const grid *g, double outline[][2], int n, pixels *p, shift *s,
                         btc_geo_failure *f);

#endif
