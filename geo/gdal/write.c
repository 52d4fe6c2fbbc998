/* See write.h. */
#define _GNU_SOURCE
#include "geo/gdal/write.h"

#include <cpl_conv.h>
#include <cpl_error.h>
#include <gdal.h>
#include <signal.h>
#include <stdio.h>

#include "geo/frame.h"
#include "geo/gdal/modes.h"

static char complaint[512];

static void on_error(CPLErr level, CPLErrorNum number, const char *message) {
  (void)number;
  if (level >= CE_Failure && !complaint[0]) snprintf(complaint, sizeof complaint, "%s", message);
}

btc_status geo_write_complaint(const char *path, btc_error *err) {
  if (!complaint[0]) return BTC_OK;
  btc_status st = btc_fail(err, BTC_ERR_IO, "cannot write '%s': %s", path, complaint);
  complaint[0] = 0;
  return st;
}

static btc_status write_all(const json_t *q, btc_error *err) {
  const char *records = json_string_value(json_object_get(q, "records")), *wkt = json_string_value(json_object_get(q, "crs"));
  const char *gpkg = json_string_value(json_object_get(q, "gpkg")), *geojson = json_string_value(json_object_get(q, "geojson"));
  const json_t *map = json_object_get(q, "map");
  if (!records || !wkt || !gpkg) return btc_fail(err, BTC_ERR_ARG, "a request without records, layer or CRS");
  btc_status st = geo_write_gpkg(records, gpkg, wkt, json_object_get(q, "scene"), err);
  if (st == BTC_OK && geojson) st = geo_write_geojson(records, geojson, wkt, err);
  if (st == BTC_OK && map) st = geo_write_map(map, wkt, err);
  return st;
}

int geo_write_main(int fd, int argc, char **argv) {
  (void)argc;
  (void)argv;
  geo_frame f;
  btc_error err;
  signal(SIGXFSZ, SIG_IGN); /* a limit on file sizes is an error like a full disk */
  signal(SIGPIPE, SIG_IGN);
  if (geo_frame_receive(fd, 0, NULL, NULL, &f, &err) != BTC_OK) return 1;
  CPLSetConfigOption("GDAL_CACHEMAX", "64");
  CPLSetConfigOption("GDAL_PAM_ENABLED", "NO");        /* no .aux.xml beside the outputs */
  CPLSetConfigOption("OGR_SQLITE_SYNCHRONOUS", "OFF"); /* the program syncs the finished file before it renames it */
  CPLSetErrorHandler(on_error);
  GDALAllRegister();
  btc_status st = write_all(f.message, &err);
  json_t *answer = st == BTC_OK ? json_pack("{s:b}", "written", 1)
                                : json_pack("{s:s, s:s}", "reason", btc_geo_reason_text(BTC_GEO_INTERNAL), "message", err.message);
  geo_frame_clear(&f);
  btc_status sent = answer ? geo_frame_send(fd, answer, NULL, 0, 0, &err) : BTC_ERR_NOMEM;
  json_decref(answer);
  return sent == BTC_OK ? 0 : 1;
}
