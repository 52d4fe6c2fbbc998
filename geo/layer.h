/*
 * GIS layers of a finished scene, written by the helper program (btcchat-geo write): records in, GeoPackage, GeoJSON and the change
 * map as Cloud-Optimised GeoTIFF out. Formats: docs/formats.md, "Scenes".
 */
#ifndef BTC_GEO_LAYER_H
#define BTC_GEO_LAYER_H

#include <jansson.h>

#include "geo/geo.h"

#define BTC_LAYER_NAME "changes"

/* All borrowed. Paths are of files that do not exist yet; after a failure what was begun is to be removed by the caller. */
typedef struct btc_layer_request {
  const char *records; /* JSONL, as documented */
  const char *gpkg;
  const char *geojson; /* NULL: none, for scenes without a CRS */
  const char *crs_wkt; /* of the scene, or "" */
  const json_t *scene; /* object of strings: the table "scene" */
  const char *raw;     /* float32 rows of the change map in this machine's byte order; NULL: no map */
  const char *tif;
  int64_t width, height;  /* of the map */
  double geotransform[6]; /* of the map */
} btc_layer_request;

/* Blocks until all is written and closed (not synced). cancelled is asked some ten times a second; NULL: never. */
btc_status btc_layer_write(const btc_layer_request *r, bool (*cancelled)(void *ctx), void *ctx, btc_geo_failure *f);

/* QGIS styles as QML: of the layer and of the map. */
extern const char btc_style_layer_qml[], btc_style_heat_qml[];

#endif
