/* The change map: raw rows -> tiled GeoTIFF -> Cloud-Optimised GeoTIFF (whose driver only copies). A row at a time, so that memory
 * does not grow with the scene. */
#include <cpl_conv.h>
#include <cpl_string.h>
#include <gdal.h>
#include <ogr_srs_api.h>
#include <stdio.h>
#include <stdlib.h>

#include "geo/heat.h"
#include "geo/gdal/write.h"

typedef struct map_request {
  const char *raw, *tif, *wkt;
  int width, height;
  double geotransform[6];
} map_request;

static btc_status read_request(const json_t *map, const char *wkt, map_request *r, btc_error *err) {
  json_int_t width = json_integer_value(json_object_get(map, "width")), height = json_integer_value(json_object_get(map, "height"));
  const json_t *g = json_object_get(map, "geotransform");
  *r = (map_request){
      .raw = json_string_value(json_object_get(map, "raw")), .tif = json_string_value(json_object_get(map, "tif")), .wkt = wkt};
  if (!r->raw || !r->tif || width < 1 || width > INT32_MAX || height < 1 || height > INT32_MAX || json_array_size(g) != 6)
    return btc_fail(err, BTC_ERR_ARG, "a change map without files, size or place");
  r->width = (int)width;
  r->height = (int)height;
  for (size_t i = 0; i < 6; i++) r->geotransform[i] = json_number_value(json_array_get(g, i));
  return BTC_OK;
}

static void describe(GDALDatasetH ds, const map_request *r) {
  double g[6];
  for (int i = 0; i < 6; i++) g[i] = r->geotransform[i];
  GDALSetGeoTransform(ds, g);
  OGRSpatialReferenceH srs = *r->wkt ? OSRNewSpatialReference(r->wkt) : NULL;
  if (srs) {
    OSRSetAxisMappingStrategy(srs, OAMS_TRADITIONAL_GIS_ORDER);
    GDALSetSpatialRef(ds, srs);
    OSRRelease(srs);
  }
  GDALRasterBandH band = GDALGetRasterBand(ds, 1);
  GDALSetRasterNoDataValue(band, (double)BTC_HEAT_NODATA);
  GDALSetDescription(band, "change, 0 (same) to 1");
  GDALSetMetadataItem(ds, "TIFFTAG_SOFTWARE", "btcchat", NULL);
}

static btc_status copy_rows(GDALDatasetH ds, const map_request *r, btc_error *err) {
  FILE *in = fopen(r->raw, "rb");
  float *row = malloc((size_t)r->width * sizeof *row);
  btc_status st = in && row ? BTC_OK : btc_fail(err, BTC_ERR_IO, "cannot read '%s'", r->raw);
  for (int y = 0; st == BTC_OK && y < r->height; y++) {
    if (fread(row, sizeof *row, (size_t)r->width, in) != (size_t)r->width)
      st = btc_fail(err, BTC_ERR_IO, "'%s' ends before row %d", r->raw, y);
    else if (GDALRasterIO(GDALGetRasterBand(ds, 1), GF_Write, 0, y, r->width, 1, row, r->width, 1, GDT_Float32, 0, 0) != CE_None)
      st = geo_write_complaint(r->tif, err);
  }
  free(row);
  if (in) fclose(in);
  return st;
}

static btc_status make_tiled(const map_request *r, const char *path, btc_error *err) {
  char **options = CSLSetNameValue(NULL, "TILED", "YES");
  options = CSLSetNameValue(options, "COMPRESS", "DEFLATE");
  options = CSLSetNameValue(options, "BIGTIFF", "IF_SAFER");
  GDALDatasetH ds = GDALCreate(GDALGetDriverByName("GTiff"), path, r->width, r->height, 1, GDT_Float32, options);
  CSLDestroy(options);
  if (!ds) return geo_write_complaint(r->tif, err);
  describe(ds, r);
  btc_status st = copy_rows(ds, r, err);
  GDALClose(ds);
  return st == BTC_OK ? geo_write_complaint(r->tif, err) : st;
}

static btc_status make_cog(const map_request *r, const char *tiled, btc_error *err) {
  GDALDatasetH from = GDALOpen(tiled, GA_ReadOnly);
  if (!from) return geo_write_complaint(r->tif, err);
  char **options = CSLSetNameValue(NULL, "COMPRESS", "DEFLATE");
  options = CSLSetNameValue(options, "PREDICTOR", "YES");
  options = CSLSetNameValue(options, "BLOCKSIZE", "256");
  options = CSLSetNameValue(options, "OVERVIEW_RESAMPLING", "AVERAGE");
  options = CSLSetNameValue(options, "BIGTIFF", "IF_SAFER");
  GDALDatasetH to = GDALCreateCopy(GDALGetDriverByName("COG"), r->tif, from, FALSE, options, NULL, NULL);
  CSLDestroy(options);
  if (to) GDALClose(to);
  GDALClose(from);
  btc_status st = geo_write_complaint(r->tif, err);
  return st == BTC_OK && !to ? btc_fail(err, BTC_ERR_IO, "cannot write '%s'", r->tif) : st;
}

btc_status geo_write_map(const json_t *map, const char *wkt, btc_error *err) {
  map_request r;
  btc_status st = read_request(map, wkt, &r, err);
  if (st != BTC_OK) return st;
  const char *tiled = CPLSPrintf("%s.tiled", r.tif);
  char *path = CPLStrdup(tiled);
  st = make_tiled(&r, path, err);
  if (st == BTC_OK) st = make_cog(&r, path, err);
  remove(path);
  CPLFree(path);
  return st;
}
