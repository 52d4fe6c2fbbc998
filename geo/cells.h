/* Change cells (heat.h) as text, for records that travel: base64 (RFC 4648) of 16-bit values, low byte first. And the options of a
 * scene as JSON, for windows that travel. Thread: any. */
#ifndef BTC_GEO_CELLS_H
#define BTC_GEO_CELLS_H

#include <jansson.h>

#include "geo/scene.h"

char *btc_cells_encode(const uint16_t *cells, size_t n);            /* malloc'ed; NULL: no memory */
bool btc_cells_decode(const char *text, uint16_t *cells, size_t n); /* false: not the text of n cells */
size_t btc_cells_count(const char *text);                           /* cells that a text of its length may hold */

/* Options as people write them: "4,3,2"; "auto", "none", "joint", "each" or "LOW,HIGH"; "none", "estimate" or "apply". NULL: as
 * they are. ARG names what is wrong. */
btc_status btc_scene_options_bands(const char *text, btc_scene_options *o, btc_error *err);
btc_status btc_scene_options_stretch(const char *text, btc_scene_options *o, btc_error *err);
btc_status btc_scene_options_shift(const char *text, btc_scene_options *o, btc_error *err);

/* An object with any of bands, stretch, shift (texts), gsd_m, max_nodata (numbers), pixels (boolean); NULL: all defaults. Other
 * keys are left alone. ARG. */
btc_status btc_scene_options_json(const json_t *o, btc_scene_options *out, double *max_nodata, btc_error *err);

#endif
