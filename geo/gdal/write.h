/* The helper's write mode: what geo/layer.h asks for. Runs in a process of its own because GDAL does; it opens only what it was
 * told and what the program wrote itself, so it needs no sandbox. */
#ifndef GDAL_WRITE_H
#define GDAL_WRITE_H

#include <jansson.h>

#include "geo/geo.h"

/* Features of the records file into one layer file; see write_layer.c. */
btc_status geo_write_gpkg(const char *records, const char *path, const char *wkt, const json_t *scene, btc_error *err);
btc_status geo_write_geojson(const char *records, const char *path, const char *wkt, btc_error *err);

/* The change map; see write_map.c. map: the request's object. */
btc_status geo_write_map(const json_t *map, const char *wkt, btc_error *err);

/* The first thing that GDAL complained of since the last call, as an error of `path`; OK when it did not. Its functions do not all
 * return that a disk was full. */
btc_status geo_write_complaint(const char *path, btc_error *err);

#endif
