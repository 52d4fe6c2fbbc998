/* What a scene and its decoder share: one block of memory for the pixels of a window, largest size, in fixed places.
 */
#ifndef GEO_SCENE_WIRE_H
#define GEO_SCENE_WIRE_H

#include <jansson.h>

#include "geo/scene.h"

#define SCENE_WIRE_PIXELS ((size_t)BTC_SCENE_MAX_WINDOW * BTC_SCENE_MAX_WINDOW)
#define SCENE_WIRE_RGB(i) ((size_t)(i)*3 * SCENE_WIRE_PIXELS)       /* of image i: [h, w, 3] */
#define SCENE_WIRE_VALID(i) ((6 + (size_t)(i)) * SCENE_WIRE_PIXELS) /* [h, w] */
#define SCENE_WIRE_BYTES (8 * SCENE_WIRE_PIXELS)

/* What the decoder says of a scene. False: it makes no sense. info->crs_wkt is the caller's to free either way. */
bool scene_info_read(const json_t *o, btc_scene_info *info);

#endif
