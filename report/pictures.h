/*
 * Pictures of a gallery: the two dates of a pair, or of a window of a scene, no larger than a given side and with the shape of the
 * original, and the change map of a window. Memory: that of one decoded pair (engine/image.h's limits), whatever the images' size.
 * Scenes are read by the sandboxed decoder; the last one stays open. Thread: one.
 */
#ifndef BTC_PICTURES_H
#define BTC_PICTURES_H

#include "engine/image.h"

typedef struct btc_pictures btc_pictures;

btc_status btc_pictures_create(int64_t side, btc_pictures **out, btc_error *err);
void btc_pictures_destroy(btc_pictures **p);

typedef struct btc_pair_source {
  const char *before, *after;
  const int64_t *window;                 /* [4] x, y, width, height of two scenes; NULL: two whole images */
  const struct btc_scene_options *scene; /* how the scene was read (geo/scene.h), the same for all windows; NULL: by default */
} btc_pair_source;

/* out[0] before, out[1] after; btc_image_free each. Both are empty on failure. Errors name the file. */
btc_status btc_pictures_read(btc_pictures *p, const btc_pair_source *s, btc_image out[2], btc_error *err);

/* The change map of a window out of a scene's map (NAME.heat.tif), in the colours of engine/heatmap.h. scene_width: pixels of the
 * scene's grid. *top: the largest change in it, 0..1. */
btc_status btc_pictures_heat(btc_pictures *p, const char *tif, int64_t scene_width, const int64_t window[4], btc_image *out,
                             double *top, btc_error *err);
/* The same from cosines [g, g]. */
btc_status btc_pictures_colour(const float *cosine, int64_t g, btc_image *out, double *top, btc_error *err);

/* Writes an 8-bit RGB image as a JPEG file (quality 0..100), which must not be there. IO, NOMEM. */
btc_status btc_jpeg_write(const btc_image *im, const char *path, int quality, btc_error *err);

#endif
