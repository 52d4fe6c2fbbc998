/*
 * The common grid, and how each image is put on it: directly, where its pixels lie on the grid's to within 0.02 of a pixel, or
 * warped.
 */
#ifndef GEO_GDAL_GRID_H
#define GEO_GDAL_GRID_H

#include <gdalwarper.h>

#include "geo/gdal/image.h"

#define GRID_ERROR_PIXELS 0.125 /* of positions, against the exact transformation */
#define GRID_MAX_POINTS 128

typedef struct grid {
  int width, height;
  double gt[6];
  bool georeferenced;
  OGRSpatialReferenceH srs; /* borrowed from an image; NULL: none */
  double gsd;               /* metres, mean of both directions; 0: not known */
  char note[256];
} grid;

typedef struct placed {
  const image *im;
  bool direct;
  int off_x, off_y;  /* direct: grid pixel (x, y) is the image's (x + off_x, y + off_y) */
  GDALDatasetH view; /* warped: the image, or that of its overviews that is read; owned if it is not im->ds */
  GDALResampleAlg alg;
  void *exact, *approx;    /* transformers, view pixels <-> grid pixels of the window at (0, 0) */
  double scale;            /* image pixels a grid pixel */
  double shift_x, shift_y; /* grid pixel (x, y) is taken from where the image would have (x + shift_x, y + shift_y) */
} placed;

/* The grid of the before image, or one of gsd_m metres. pixels: georeferences do not count. */
btc_status grid_make(const image *before, const image *after, double gsd_m, bool pixels, int max_side, grid *g, btc_geo_failure *f);

/* place_image makes the transformers and chooses the overview; shifts other than 0 make it a warped one. */
btc_status grid_place(const grid *g, const image *im, double shift_x, double shift_y, placed *p, btc_geo_failure *f);
void grid_unplace(placed *p);

/* The after image's ground as a polygon in grid pixels, cut to the grid. Share of the grid's area; 0: they do not meet. */
double grid_overlap(const grid *g, const placed *after, double points[GRID_MAX_POINTS][2], int *n);

/* Width of a column stripe such that a row of windows of it stays in cache_bytes of decoded blocks (scene.h). */
int grid_stripe(const grid *g, const placed images[2], int64_t cache_bytes);

/* Grid pixel -> pixels of the view. False: it has no place there. */
bool grid_to_view(const placed *p, const grid *g, int n, double *x, double *y, int *ok);

#endif
