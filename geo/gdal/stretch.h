/* Values to 8 bits: which become 0 and 255. */
#ifndef GEO_GDAL_STRETCH_H
#define GEO_GDAL_STRETCH_H

#include "geo/gdal/pixels.h"
#include "geo/scene.h"

typedef struct stretch {
  btc_scene_stretch_kind kind; /* never AUTO */
  double low[2][3], high[2][3];
} stretch;

/* Percentiles out of 64 places of each image. */
btc_status stretch_make(const image images[2], btc_scene_stretch_kind kind, const double percentiles[2], const double range[2],
                        stretch *s, btc_geo_failure *f);

/* RGB [height, width, 3]; 0 where not valid. */
void stretch_apply(const stretch *s, int which, const image *im, const pixels *p, uint8_t *rgb);

#endif
