/* Pixels of an image on the grid: a window of floats and which of them count. */
#ifndef GEO_GDAL_PIXELS_H
#define GEO_GDAL_PIXELS_H

#include "geo/gdal/grid.h"

typedef struct pixels {
  int width, height;
  float *band[3];   /* [height, width]; band 1 and 2 are band 0 where the image has one, or has a palette */
  uint8_t *palette; /* [height, width, 3] in place of bands, for images with a palette */
  uint8_t *valid;   /* [height, width]: 1 or 0 */
} pixels;

/* Room for windows of up to so many pixels; false: no memory. */
bool pixels_create(pixels *p, int64_t most);
void pixels_destroy(pixels *p);

/* The window of the grid; outside the image nothing is valid. */
btc_status pixels_read(const placed *pl, const grid *g, int x, int y, int w, int h, pixels *p, btc_geo_failure *f);

/* A window of the image itself that lies inside it, for statistics. */
btc_status pixels_read_image(const image *im, int x, int y, int w, int h, pixels *p, btc_geo_failure *f);

#endif
