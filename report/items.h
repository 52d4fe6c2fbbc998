/*
 * Where the images of a record are: records bring ids, manifests and scenes know the files. Memory does not grow with the manifest
 * (a scratch database). Thread: one.
 */
#ifndef BTC_ITEMS_H
#define BTC_ITEMS_H

#include <jansson.h>

#include "base/base.h"

typedef struct btc_items btc_items;

typedef struct btc_item_files {
  const char *before, *after; /* borrowed until the next call */
  bool has_window;
  int64_t window[4];
} btc_item_files;

/* Reads a whole manifest; bad lines are left out, of ids that come twice the first stays. */
btc_status btc_items_open(const char *manifest, btc_items **out, btc_error *err);
btc_status btc_items_find(btc_items *t, const char *id, bool *found, btc_item_files *out, btc_error *err);
void btc_items_close(btc_items **t);

/* What a GeoPackage of `scene` says of its scene: an object of texts (docs/formats.md, table scene), or FORMAT. *out: json_decref.
 */
btc_status btc_scene_table_read(const char *gpkg, json_t **out, btc_error *err);

/* Rings in longitude and latitude out of the GeoJSON of `scene`, whose features stand one a line in the order of the records. */
typedef struct btc_rings btc_rings;
btc_status btc_rings_open(const char *geojson, btc_rings **out, btc_error *err);
/* The ring of this id if it is the next one; else NULL, and the next one stays. json_decref it. */
json_t *btc_rings_take(btc_rings *r, const char *id);
void btc_rings_close(btc_rings **r);

#endif
