/* STAC ItemCollections (GeoJSON), as far as pairs need them. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "archive_stac.h"
#include "base/json.h"

static const btc_json_limits limits = {.max_bytes = BTC_ARCHIVE_MAX_BYTES, .max_values = 20000000};

static const char *text(const json_t *o, const char *key) {
  return json_string_value(json_object_get(o, key));
}

static const char *href_of(const json_t *item, const char *asset) {
  static const char *const names[] = {"visual", "rendered", "data"};
  const json_t *assets = json_object_get(item, "assets");
  if (asset) return text(json_object_get(assets, asset), "href");
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    const char *href = text(json_object_get(assets, names[i]), "href");
    if (href) return href;
  }
  return NULL;
}

/* Numbers and texts both occur. */
static void path_row(const json_t *v, char *out, size_t len) {
  if (json_is_integer(v))
    snprintf(out, len, "%03lld", (long long)json_integer_value(v));
  else
    snprintf(out, len, "%s", json_is_string(v) ? json_string_value(v) : "");
}

/* n finite numbers, of ground or pixels. */
static bool numbers_of(const json_t *array, size_t n, double *x) {
  for (size_t i = 0; i < n; i++) {
    x[i] = json_number_value(json_array_get(array, i));
    if (!json_is_number(json_array_get(array, i)) || !(fabs(x[i]) < 1e9)) return false;
  }
  return true;
}

/* proj:bbox, or what proj:shape (rows, columns) covers under proj:transform (affine, row by row, not turned). */
static bool box_of(const json_t *properties, double x[4]) {
  const json_t *box = json_object_get(properties, "proj:bbox");
  double t[6], shape[2];
  if (json_array_size(box) == 4) return numbers_of(box, 4, x);
  if (!numbers_of(json_object_get(properties, "proj:transform"), 6, t) ||
      !numbers_of(json_object_get(properties, "proj:shape"), 2, shape) || t[1] != 0 || t[3] != 0)
    return false;
  double right = t[2] + t[0] * shape[1], bottom = t[5] + t[4] * shape[0];
  x[0] = fmin(t[2], right);
  x[1] = fmin(t[5], bottom);
  x[2] = fmax(t[2], right);
  x[3] = fmax(t[5], bottom);
  return true;
}

/* Catalogues without a tiling: images of exactly one extent in one projection show one place. */
static bool extent_of(const json_t *properties, char tile[256]) {
  const json_t *epsg = json_object_get(properties, "proj:epsg");
  const char *code = text(properties, "proj:code");
  char number[24] = "";
  double x[4];
  if (!box_of(properties, x)) return false;
  if (json_is_integer(epsg)) snprintf(number, sizeof number, "EPSG:%lld", (long long)json_integer_value(epsg));
  snprintf(tile, 256, "%.64s/%.9g,%.9g,%.9g,%.9g", code ? code : number, x[0], x[1], x[2], x[3]);
  return code || *number;
}

static bool tile_of(const json_t *properties, char tile[256]) {
  const char *code = text(properties, "grid:code"), *mgrs = text(properties, "s2:mgrs_tile");
  char path[32], row[32];
  if (code || mgrs) {
    snprintf(tile, 256, "%s", code ? code : mgrs);
    return *tile != 0;
  }
  path_row(json_object_get(properties, "landsat:wrs_path"), path, sizeof path);
  path_row(json_object_get(properties, "landsat:wrs_row"), row, sizeof row);
  snprintf(tile, 256, "%s%s", path, row);
  return (*path && *row) || extent_of(properties, tile);
}

static void bbox_of(const json_t *item, btc_archive_image *im) {
  const json_t *b = json_object_get(item, "bbox");
  im->has_bbox = json_array_size(b) == 4;
  for (size_t i = 0; im->has_bbox && i < 4; i++) {
    im->has_bbox = json_is_number(json_array_get(b, i));
    im->bbox[i] = json_number_value(json_array_get(b, i));
  }
}

static btc_status add_item(const json_t *item, const char *folder, const char *asset, btc_archive *out, btc_error *err) {
  const json_t *properties = json_object_get(item, "properties"), *cloud = json_object_get(properties, "eo:cloud_cover");
  const char *id = text(item, "id"), *href = href_of(item, asset), *when = text(properties, "datetime");
  char tile[256];
  btc_archive_image im = {.tile = tile, .name = (char *)id, .cloud = json_is_number(cloud) ? json_number_value(cloud) : -1};
  if (!when) when = text(properties, "start_datetime");
  const char *lacks = !id                                                  ? "no id"
                      : !href || !*href                                    ? "no asset of the names looked for"
                      : !when || !btc_archive_date(when, im.date, &im.day) ? "no date"
                      : !tile_of(properties, tile)                         ? "no tile"
                                                                           : NULL;
  if (lacks) {
    btc_archive_leave_out(out, id ? id : "an item", lacks);
    return BTC_OK;
  }
  bbox_of(item, &im);
  char *path = strstr(href, "://") ? btc_strdup(href) : btc_path_join(folder, href);
  im.path = path;
  btc_status st = path ? btc_archive_add(out, &im, err) : btc_fail(err, BTC_ERR_NOMEM, "no memory for the list of images");
  free(path);
  return st;
}

btc_status btc_archive_read_stac(const char *path, const char *asset, btc_archive *out, btc_error *err) {
  json_t *o = NULL;
  char *folder = NULL, *real = realpath(path, NULL);
  btc_status st = btc_json_read(path, &limits, &o, err);
  const json_t *features = json_object_get(o, "features");
  if (st == BTC_OK && !json_is_array(features))
    st = btc_fail(err, BTC_ERR_FORMAT, "'%s' is no ItemCollection: it has no array 'features'", path);
  if (st == BTC_OK) {
    char *slash = real ? strrchr(real, '/') : NULL;
    folder = slash ? btc_strndup(real, slash == real ? 1 : (size_t)(slash - real)) : btc_strdup("");
    if (!folder) st = btc_fail(err, BTC_ERR_NOMEM, "no memory for '%s'", path);
  }
  for (size_t i = 0; st == BTC_OK && i < json_array_size(features); i++)
    st = add_item(json_array_get(features, i), folder, asset, out, err);
  json_decref(o);
  free(folder);
  free(real);
  return st;
}
