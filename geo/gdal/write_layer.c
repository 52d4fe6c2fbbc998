/* Records to features: a GeoPackage with its style and the table of the scene, and GeoJSON as RFC 7946 wants it. */
#define _GNU_SOURCE
#include <cpl_string.h>
#include <gdal.h>
#include <math.h>
#include <ogr_api.h>
#include <ogr_srs_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "geo/layer.h"
#include "geo/gdal/write.h"

enum { PER_TRANSACTION = 20000, PIECES = 8 /* of a window's side, when straight lines bend in longitude and latitude */ };

typedef struct field {
  const char *name, *key; /* of the layer and of the record; key "a.b": b of the object a; "window.0": its first number */
  OGRFieldType type;
  OGRFieldSubType subtype;
} field;

static const field fields[] = {
    {"id", "id", OFTString, OFSTNone},
    {"status", "status", OFTString, OFSTNone},
    {"reason", "reason", OFTString, OFSTNone},
    {"message", "message", OFTString, OFSTNone},
    {"caption", "caption", OFTString, OFSTNone},
    {"changed", "changed", OFTInteger, OFSTBoolean},
    {"score", "score", OFTReal, OFSTNone},
    {"logprob", "logprob", OFTReal, OFSTNone},
    {"before_date", "dates.before", OFTString, OFSTNone},
    {"after_date", "dates.after", OFTString, OFSTNone},
    {"x", "window.0", OFTInteger64, OFSTNone},
    {"y", "window.1", OFTInteger64, OFSTNone},
    {"width", "window.2", OFTInteger64, OFSTNone},
    {"height", "window.3", OFTInteger64, OFSTNone},
};
enum { FIELDS = sizeof fields / sizeof fields[0] };

static void add_field(OGRLayerH layer, const char *name, OGRFieldType type, OGRFieldSubType subtype) {
  OGRFieldDefnH f = OGR_Fld_Create(name, type);
  OGR_Fld_SetSubType(f, subtype);
  OGR_L_CreateField(layer, f, TRUE);
  OGR_Fld_Destroy(f);
}

/* ---- a record ---- */

static const json_t *value_of(const json_t *record, const char *key) {
  const char *dot = strchr(key, '.');
  if (!dot) return json_object_get(record, key);
  char outer[32];
  snprintf(outer, sizeof outer, "%.*s", (int)(dot - key), key);
  const json_t *o = json_object_get(record, outer);
  return json_is_array(o) ? json_array_get(o, strtoul(dot + 1, NULL, 10)) : json_object_get(o, dot + 1);
}

static void set_field(OGRFeatureH f, int i, const json_t *v) {
  if (json_is_string(v))
    OGR_F_SetFieldString(f, i, json_string_value(v));
  else if (json_is_boolean(v))
    OGR_F_SetFieldInteger(f, i, json_is_true(v));
  else if (json_is_integer(v))
    OGR_F_SetFieldInteger64(f, i, json_integer_value(v));
  else if (json_is_real(v))
    OGR_F_SetFieldDouble(f, i, json_real_value(v));
  else
    OGR_F_SetFieldNull(f, i);
}

/* pieces: of each side of the ring. NULL when the record has no ring. */
static OGRGeometryH polygon_of(const json_t *record, int pieces) {
  const json_t *ring = json_array_get(json_object_get(json_object_get(record, "geometry"), "coordinates"), 0);
  size_t n = json_array_size(ring);
  if (n < 4) return NULL;
  OGRGeometryH line = OGR_G_CreateGeometry(wkbLinearRing), polygon = OGR_G_CreateGeometry(wkbPolygon);
  for (size_t i = 0; i < n; i++) {
    const json_t *p = json_array_get(ring, i), *next = json_array_get(ring, i + 1 < n ? i + 1 : i);
    double x = json_number_value(json_array_get(p, 0)), y = json_number_value(json_array_get(p, 1));
    double dx = json_number_value(json_array_get(next, 0)) - x, dy = json_number_value(json_array_get(next, 1)) - y;
    for (int k = 0; k < (i + 1 < n ? pieces : 1); k++) OGR_G_AddPoint_2D(line, x + dx * k / pieces, y + dy * k / pieces);
  }
  OGR_G_AddGeometryDirectly(polygon, line);
  return polygon;
}

static btc_status add_feature(OGRLayerH layer, const json_t *record, int pieces, const char *path, btc_error *err) {
  OGRFeatureH f = OGR_F_Create(OGR_L_GetLayerDefn(layer));
  for (int i = 0; i < FIELDS; i++) set_field(f, i, value_of(record, fields[i].key));
  OGRGeometryH g = polygon_of(record, pieces);
  if (g) OGR_F_SetGeometryDirectly(f, g);
  bool good = OGR_L_CreateFeature(layer, f) == OGRERR_NONE;
  OGR_F_Destroy(f);
  btc_status st = geo_write_complaint(path, err);
  return st == BTC_OK && !good ? btc_fail(err, BTC_ERR_IO, "cannot write '%s'", path) : st;
}

static btc_status add_features(GDALDatasetH ds, OGRLayerH layer, const char *records, int pieces, const char *path,
                               btc_error *err) {
  bool transactions = GDALDatasetTestCapability(ds, ODsCTransactions);
  FILE *in = fopen(records, "r");
  char *line = NULL;
  size_t room = 0;
  if (!in) return btc_fail(err, BTC_ERR_IO, "cannot read '%s'", records);
  btc_status st = BTC_OK;
  ssize_t len;
  if (transactions) GDALDatasetStartTransaction(ds, FALSE);
  for (long n = 1; st == BTC_OK && (len = getline(&line, &room, in)) > 0; n++) {
    json_t *record = json_loadb(line, (size_t)len, 0, NULL);
    st = record ? add_feature(layer, record, pieces, path, err)
                : btc_fail(err, BTC_ERR_FORMAT, "'%s': line %ld is no JSON", records, n);
    json_decref(record);
    if (!transactions || n % PER_TRANSACTION) continue;
    GDALDatasetCommitTransaction(ds);
    GDALDatasetStartTransaction(ds, FALSE);
  }
  if (transactions) GDALDatasetCommitTransaction(ds);
  free(line);
  fclose(in);
  return st == BTC_OK ? geo_write_complaint(path, err) : st;
}

/* ---- GeoPackage ---- */

/* QGIS looks for a layer's style in this table, whose columns are its own. */
static void add_style(GDALDatasetH ds) {
  static const char *const texts[] = {"f_table_catalog", "f_table_schema", "f_table_name", "f_geometry_column",
                                      "styleName",       "styleQML",       "styleSLD"};
  static const char *const values[] = {"", "", BTC_LAYER_NAME, "geom", "btcchat", btc_style_layer_qml, ""};
  char **options = CSLSetNameValue(NULL, "FID", "id");
  OGRLayerH t = GDALDatasetCreateLayer(ds, "layer_styles", NULL, wkbNone, options);
  CSLDestroy(options);
  if (!t) return;
  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) add_field(t, texts[i], OFTString, OFSTNone);
  add_field(t, "useAsDefault", OFTInteger, OFSTBoolean);
  add_field(t, "description", OFTString, OFSTNone);
  add_field(t, "owner", OFTString, OFSTNone);
  add_field(t, "ui", OFTString, OFSTNone);
  add_field(t, "update_time", OFTDateTime, OFSTNone);
  OGRFeatureH f = OGR_F_Create(OGR_L_GetLayerDefn(t));
  for (int i = 0; i < (int)(sizeof texts / sizeof texts[0]); i++) OGR_F_SetFieldString(f, i, values[i]);
  OGR_F_SetFieldInteger(f, OGR_F_GetFieldIndex(f, "useAsDefault"), 1);
  OGR_F_SetFieldString(f, OGR_F_GetFieldIndex(f, "description"), "windows by what changed");
  OGR_F_SetFieldString(f, OGR_F_GetFieldIndex(f, "owner"), "");
  OGR_F_SetFieldString(f, OGR_F_GetFieldIndex(f, "update_time"), "2000/01/01 00:00:00"); /* the same run, the same bytes */
  (void)!OGR_L_CreateFeature(t, f);
  OGR_F_Destroy(f);
}

static void add_scene(GDALDatasetH ds, const json_t *scene) {
  OGRLayerH t = GDALDatasetCreateLayer(ds, "scene", NULL, wkbNone, NULL);
  if (!t) return;
  add_field(t, "key", OFTString, OFSTNone);
  add_field(t, "value", OFTString, OFSTNone);
  const char *key;
  json_t *v;
  json_object_foreach((json_t *)(uintptr_t)scene, key, v) {
    OGRFeatureH f = OGR_F_Create(OGR_L_GetLayerDefn(t));
    OGR_F_SetFieldString(f, 0, key);
    if (json_is_string(v)) OGR_F_SetFieldString(f, 1, json_string_value(v));
    (void)!OGR_L_CreateFeature(t, f);
    OGR_F_Destroy(f);
  }
}

static OGRSpatialReferenceH reference_of(const char *wkt) {
  if (!*wkt) return NULL;
  OGRSpatialReferenceH s = OSRNewSpatialReference(wkt);
  if (s) OSRSetAxisMappingStrategy(s, OAMS_TRADITIONAL_GIS_ORDER);
  return s;
}

static OGRLayerH create(GDALDatasetH ds, OGRSpatialReferenceH srs, char **options) {
  OGRLayerH layer = ds ? GDALDatasetCreateLayer(ds, BTC_LAYER_NAME, srs, wkbPolygon, options) : NULL;
  for (int i = 0; layer && i < FIELDS; i++) add_field(layer, fields[i].name, fields[i].type, fields[i].subtype);
  return layer;
}

btc_status geo_write_gpkg(const char *records, const char *path, const char *wkt, const json_t *scene, btc_error *err) {
  OGRSpatialReferenceH srs = reference_of(wkt);
  GDALDatasetH ds = GDALCreate(GDALGetDriverByName("GPKG"), path, 0, 0, 0, GDT_Unknown, NULL);
  OGRLayerH layer = create(ds, srs, NULL);
  btc_status st = geo_write_complaint(path, err);
  if (st == BTC_OK && !layer) st = btc_fail(err, BTC_ERR_IO, "cannot write '%s'", path);
  if (st == BTC_OK) st = add_features(ds, layer, records, 1, path, err);
  if (st == BTC_OK) {
    add_style(ds);
    add_scene(ds, scene);
  }
  if (ds) GDALClose(ds);
  if (srs) OSRRelease(srs);
  return st == BTC_OK ? geo_write_complaint(path, err) : st;
}

/* ---- GeoJSON ---- */

/* The driver turns to WGS 84, cuts at the antimeridian and winds rings as RFC 7946 says. */
btc_status geo_write_geojson(const char *records, const char *path, const char *wkt, btc_error *err) {
  OGRSpatialReferenceH srs = reference_of(wkt);
  int pieces = srs && OSRIsGeographic(srs) ? 1 : PIECES;
  char **options = CSLSetNameValue(NULL, "RFC7946", "YES");
  GDALDatasetH ds = GDALCreate(GDALGetDriverByName("GeoJSON"), path, 0, 0, 0, GDT_Unknown, NULL);
  OGRLayerH layer = create(ds, srs, options);
  CSLDestroy(options);
  btc_status st = geo_write_complaint(path, err);
  if (st == BTC_OK && !layer) st = btc_fail(err, BTC_ERR_IO, "cannot write '%s'", path);
  if (st == BTC_OK) st = add_features(ds, layer, records, pieces, path, err);
  if (ds) GDALClose(ds);
  if (srs) OSRRelease(srs);
  return st == BTC_OK ? geo_write_complaint(path, err) : st;
}
