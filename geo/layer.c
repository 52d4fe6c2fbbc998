/* The client's half of layer.h: one question to the helper. */
#include "geo/layer.h"

#include "geo/process.h"

enum { PATIENCE_MS = 6 * 3600 * 1000 /* millions of windows on a slow disk; the user may stop it before */ };

static json_t *map_of(const btc_layer_request *r) {
  const double *g = r->geotransform;
  return json_pack("{s:s, s:s, s:I, s:I, s:[f,f,f,f,f,f]}", "raw", r->raw, "tif", r->tif, "width", (json_int_t)r->width, "height",
                   (json_int_t)r->height, "geotransform", g[0], g[1], g[2], g[3], g[4], g[5]);
}

btc_status btc_layer_write(const btc_layer_request *r, bool (*cancelled)(void *ctx), void *ctx, btc_geo_failure *f) {
  json_t *question = json_pack("{s:s, s:s, s:s?, s:s, s:O?}", "records", r->records, "gpkg", r->gpkg, "geojson", r->geojson, "crs",
                               r->crs_wkt, "scene", r->scene);
  if (question && r->raw) {
    json_t *map = map_of(r);
    if (!map || json_object_set_new(question, "map", map) != 0) {
      json_decref(question);
      question = NULL;
    }
  }
  if (!question) return btc_geo_fail(f, BTC_GEO_INTERNAL, BTC_ERR_ARG, "a path or the scene's CRS is not UTF-8 text");
  geo_process p = {.fd = -1};
  json_t *answer = NULL;
  btc_status st = geo_process_start((const char *const[]){"write", NULL}, &p, f);
  if (st == BTC_OK) {
    st = geo_process_ask(&p, question, NULL, 0, PATIENCE_MS, cancelled, ctx, &answer, f);
    json_decref(answer);
    geo_process_stop(&p);
  }
  json_decref(question);
  return st;
}
