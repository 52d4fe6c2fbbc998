/*
 * The decoder: one `open` request with the two files and shared memory as descriptors, then `read` requests until the other end
 * closes. What PROJ needs of its database is opened before the sandbox; the images are only touched inside it.
 */
#define _GNU_SOURCE
#include <cpl_conv.h>
#include <cpl_error.h>
#include <gdal.h>
#include <gdal_frmts.h>
#include <ogr_srs_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "geo/frame.h"
#include "geo/gdal/fdfs.h"
#include "geo/gdal/grid.h"
#include "geo/gdal/modes.h"
#include "geo/gdal/sandbox.h"
#include "geo/gdal/shift.h"
#include "geo/gdal/stretch.h"
#include "geo/scene_wire.h"

enum {
  CPU_S = 7 * 24 * 3600, /* of a decoder's whole life; a call's time is the parent's to watch */
  ALARM_S = 900          /* of one call, should the parent be gone */
};

typedef struct decoder {
  char label[2][1024];
  image images[2];
  grid g;
  placed placed[2];
  double overlap[GRID_MAX_POINTS][2]; /* the common ground */
  int n_overlap;
  double overlap_share;
  shift shift;
  bool shift_estimated, shift_applied;
  stretch s;
  pixels p;
  uint8_t *shared; /* SCENE_WIRE_BYTES */
} decoder;

/* ---- requests ---- */

static const char *text_of(const json_t *o, const char *key) {
  const char *s = json_string_value(json_object_get(o, key));
  return s ? s : "";
}

static double number_of(const json_t *o, const char *key) {
  return json_number_value(json_object_get(o, key));
}

static void numbers_of(const json_t *o, const char *key, double *out, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = json_number_value(json_array_get(json_object_get(o, key), i));
}

static void silent(CPLErr level, CPLErrorNum number, const char *message) {
  (void)level, (void)number, (void)message; /* kept by GDAL as the last error, which is all that is asked for */
}

/* Opens PROJ's database, which stays open for this thread. */
static void warm_up(void) {
  OGRSpatialReferenceH a = OSRNewSpatialReference(NULL), b = OSRNewSpatialReference(NULL);
  if (OSRImportFromEPSG(a, 4326) == OGRERR_NONE && OSRImportFromEPSG(b, 32633) == OGRERR_NONE) {
    OGRCoordinateTransformationH t = OCTNewCoordinateTransformation(a, b);
    double x = 50, y = 15;
    if (t) OCTTransform(t, 1, &x, &y, NULL);
    if (t) OCTDestroyCoordinateTransformation(t);
  }
  OSRDestroySpatialReference(a);
  OSRDestroySpatialReference(b);
}

static void start_gdal(const json_t *q) {
  char cache[32];
  snprintf(cache, sizeof cache, "%lld", (long long)number_of(q, "cache_bytes"));
  CPLSetConfigOption("GDAL_CACHEMAX", cache);
  CPLSetConfigOption("GDAL_PAM_ENABLED", "NO");
  CPLSetConfigOption("GDAL_DISABLE_READDIR_ON_OPEN", "EMPTY_DIR");
  CPLSetConfigOption("GDAL_NUM_THREADS", "1");
  CPLSetConfigOption("OSR_USE_APPROX_TMERC", "NO");
  CPLSetConfigOption("GDAL_ERROR_ON_LIBJPEG_WARNING", "TRUE"); /* a truncated JPEG is no grey picture */
  CPLSetErrorHandler(silent);
  /* these and no others: no virtual rasters, no plugins; MEM is for our own windows (no name of a file leads to it: image_open) */
  GDALRegister_GTiff();
  GDALRegister_JP2OpenJPEG();
  GDALRegister_PNG();
  GDALRegister_JPEG();
  GDALRegister_MEM();
  warm_up();
}

static btc_status enter(const json_t *q, btc_geo_failure *f) {
  const sandbox_options o = {.memory_bytes = (int64_t)number_of(q, "memory_bytes"),
                             .cpu_s = CPU_S,
                             .network = json_is_true(json_object_get(q, "network"))};
  btc_error err;
  return sandbox_enter(&o, &err) == BTC_OK ? BTC_OK : btc_geo_fail(f, BTC_GEO_INTERNAL, err.code, "%s", err.message);
}

static btc_status open_images(decoder *d, const json_t *q, btc_geo_failure *f) {
  image_limits lim = {.max_pixels = (int64_t)number_of(q, "max_pixels"),
                      .max_block_bytes = (int64_t)number_of(q, "max_block_bytes"),
                      .max_side = (int)number_of(q, "max_side"),
                      .max_bands = (int)number_of(q, "max_bands"),
                      .max_ratio = number_of(q, "max_ratio")};
  double bands[3], world[6];
  numbers_of(q, "bands", bands, 3);
  const int wanted[3] = {(int)bands[0], (int)bands[1], (int)bands[2]};
  btc_status st = BTC_OK;
  for (size_t i = 0; st == BTC_OK && i < 2; i++) {
    const json_t *o = json_array_get(json_object_get(q, "images"), i);
    bool has_world = json_array_size(json_object_get(o, "world")) == 6;
    if (has_world) numbers_of(o, "world", world, 6);
    snprintf(d->label[i], sizeof d->label[i], "%s", text_of(o, "label"));
    st = image_open(&d->images[i], text_of(o, "name"), text_of(o, "driver"), d->label[i], (int64_t)number_of(o, "bytes"), wanted,
                    has_world ? world : NULL, &lim, f);
  }
  return st;
}

/* Where the after image lies on the grid, with its shift undone if that is asked for. */
static btc_status align(decoder *d, const json_t *q, btc_geo_failure *f) {
  btc_scene_shift_kind kind = (btc_scene_shift_kind)number_of(q, "shift");
  d->overlap_share = grid_overlap(&d->g, &d->placed[1], d->overlap, &d->n_overlap);
  if (d->overlap_share <= 0)
    return btc_geo_fail(f, BTC_GEO_NO_OVERLAP, BTC_ERR_UNSUPPORTED, "'%s' and '%s' show no common ground", d->label[0],
                        d->label[1]);
  if (kind == BTC_SHIFT_NONE) return BTC_OK;
  btc_status st = shift_measure(d->placed, &d->g, d->overlap, d->n_overlap, &d->p, &d->shift, f);
  d->shift_estimated = st == BTC_OK && d->shift.found;
  bool apply = d->shift_estimated && kind == BTC_SHIFT_APPLY && d->shift.confidence >= BTC_SCENE_MIN_CONFIDENCE;
  if (st != BTC_OK || !apply) return st;
  grid_unplace(&d->placed[1]);
  d->shift_applied = true;
  st = grid_place(&d->g, &d->images[1], d->shift.x, d->shift.y, &d->placed[1], f);
  if (st == BTC_OK) d->overlap_share = grid_overlap(&d->g, &d->placed[1], d->overlap, &d->n_overlap);
  return st;
}

static btc_status place_images(decoder *d, const json_t *q, btc_geo_failure *f) {
  btc_status st = grid_make(&d->images[0], &d->images[1], number_of(q, "gsd_m"), json_is_true(json_object_get(q, "pixels")),
                            (int)number_of(q, "max_side"), &d->g, f);
  for (int i = 0; st == BTC_OK && i < 2; i++) st = grid_place(&d->g, &d->images[i], 0, 0, &d->placed[i], f);
  if (st == BTC_OK) st = align(d, q, f);
  if (st != BTC_OK) return st;
  double percent[2], range[2];
  numbers_of(q, "percentiles", percent, 2);
  numbers_of(q, "range", range, 2);
  return stretch_make(d->images, (btc_scene_stretch_kind)number_of(q, "stretch"), percent, range, &d->s, f);
}

/* ---- answers ---- */

static json_t *array_of(const double *v, size_t n) {
  json_t *a = json_array();
  for (size_t i = 0; i < n; i++) json_array_append_new(a, json_real(v[i]));
  return a;
}

static void epsg_of(OGRSpatialReferenceH srs, char out[32]) {
  const char *name = srs ? OSRGetAuthorityName(srs, NULL) : NULL, *code = srs ? OSRGetAuthorityCode(srs, NULL) : NULL;
  out[0] = 0;
  if (name && code && !strcmp(name, "EPSG")) snprintf(out, 32, "EPSG:%.20s", code);
}

/* TIFFTAG_DATETIME "2019:05:31 10:20:30" as "2019-05-31T10:20:30"; "" when it is none. */
static void date_of(GDALDatasetH ds, char out[24]) {
  const char *s = GDALGetMetadataItem(ds, "TIFFTAG_DATETIME", NULL);
  unsigned d[6];
  int used = 0;
  out[0] = 0;
  // NOLINTNEXTLINE(cert-err34-c): the widths bound the numbers
  if (!s || sscanf(s, "%4u:%2u:%2u %2u:%2u:%2u%n", d, d + 1, d + 2, d + 3, d + 4, d + 5, &used) != 6 || s[used]) return;
  for (int i = 0; i < 6; i++)
    if ((!d[i] && (i == 1 || i == 2)) || d[i] > 9999) return;
  if (d[1] <= 12 && d[2] <= 31 && d[3] < 24 && d[4] < 60 && d[5] <= 60)
    snprintf(out, 24, "%04u-%02u-%02uT%02u:%02u:%02u", d[0] % 10000, d[1] % 100, d[2] % 100, d[3] % 100, d[4] % 100, d[5] % 100);
}

static json_t *image_answer(const decoder *d, int i) {
  const image *im = &d->images[i];
  GDALRasterBandH band = GDALGetRasterBand(im->ds, im->band[0]);
  int bw, bh;
  char epsg[32], date[24];
  GDALGetBlockSize(band, &bw, &bh);
  epsg_of(im->srs, epsg);
  date_of(im->ds, date);
  json_t *o =
      json_pack("{s:s,s:s,s:I,s:i,s:i,s:i,s:[i,i,i],s:i,s:i,s:i,s:b,s:b,s:b,s:s,s:s,s:f,s:b,s:b,s:b}", "driver", im->driver,
                "dtype", GDALGetDataTypeName(im->type), "file_bytes", (json_int_t)im->file_bytes, "width", im->width, "height",
                im->height, "bands", im->bands, "band", im->band[0], im->band[1], im->band[2], "block_width", bw, "block_height",
                bh, "overviews", GDALGetOverviewCount(band), "georeferenced", im->georeferenced, "has_crs", im->srs != NULL,
                "world_file", im->world_file, "epsg", epsg, "date", date, "gsd_m", (im->gsd_x + im->gsd_y) / 2, "has_nodata",
                im->mask == IMAGE_NODATA, "has_mask", im->mask == IMAGE_MASK, "direct", d->placed[i].direct);
  if (!o) return NULL;
  json_object_set_new(o, "geotransform", array_of(im->gt, 6));
  json_object_set_new(o, "low", array_of(d->s.low[i], 3));
  json_object_set_new(o, "high", array_of(d->s.high[i], 3));
  if (im->mask == IMAGE_NODATA) json_object_set_new(o, "nodata", json_real(im->nodata[0]));
  return o;
}

static json_t *open_answer(decoder *d, const json_t *q, btc_geo_failure *f) {
  char epsg[32], *wkt = NULL;
  const char *const wkt2[] = {"FORMAT=WKT2_2019", NULL};
  epsg_of(d->g.srs, epsg);
  if (d->g.srs) OSRExportToWktEx(d->g.srs, &wkt, wkt2);
  json_t *polygon = json_array();
  for (int i = 0; i < d->n_overlap; i++) json_array_append_new(polygon, array_of(d->overlap[i], 2));
  json_t *o = json_pack("{s:i,s:i,s:b,s:s,s:s,s:f,s:o,s:f,s:i,s:i,s:s,s:[o,o]}", "width", d->g.width, "height", d->g.height,
                        "georeferenced", d->g.georeferenced, "crs_wkt", wkt ? wkt : "", "epsg", epsg, "gsd_m", d->g.gsd, "overlap",
                        polygon, "overlap_share", d->overlap_share, "stripe_width",
                        grid_stripe(&d->g, d->placed, (int64_t)number_of(q, "cache_bytes")), "stretch", (int)d->s.kind, "note",
                        d->g.note, "images", image_answer(d, 0), image_answer(d, 1));
  CPLFree(wkt);
  if (o) json_object_set_new(o, "geotransform", array_of(d->g.gt, 6));
  const double measured[3] = {d->shift.x, d->shift.y, d->shift.confidence};
  if (o && d->shift_estimated) json_object_set_new(o, "shift", array_of(measured, 3));
  if (o) json_object_set_new(o, "shift_applied", json_boolean(d->shift_applied));
  if (!o) btc_geo_fail(f, BTC_GEO_DECODE, BTC_ERR_FORMAT, "'%s': its texts are not UTF-8", d->label[0]);
  return o;
}

static json_t *on_open(decoder *d, geo_frame *frame, btc_geo_failure *f) {
  const json_t *q = json_object_get(frame->message, "open");
  btc_error err;
  int files = frame->n_fds - 1;
  size_t fd = 0;
  btc_status st = BTC_OK;
  if (files < 0 || fdfs_install(&err) != BTC_OK) st = btc_geo_fail(f, BTC_GEO_INTERNAL, BTC_ERR_ARG, "no descriptors came along");
  if (st == BTC_OK) d->shared = mmap(NULL, SCENE_WIRE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, frame->fds[0], 0);
  if (d->shared == MAP_FAILED) st = btc_geo_fail(f, BTC_GEO_OOM, BTC_ERR_NOMEM, "not enough memory for windows");
  for (int i = 0; st == BTC_OK && i < 2; i++) {
    const char *name = text_of(json_array_get(json_object_get(q, "images"), (size_t)i), "name");
    if (strncmp(name, FDFS_PREFIX, strlen(FDFS_PREFIX)) != 0) continue; /* a network path */
    if ((int)fd >= files || fdfs_add(i, name, frame->fds[1 + fd], &err) != BTC_OK)
      st = btc_geo_fail(f, BTC_GEO_INTERNAL, BTC_ERR_ARG, "a file's descriptor did not come along");
    fd++;
  }
  frame->n_fds = 0; /* kept open */
  if (st == BTC_OK) start_gdal(q);
  if (st == BTC_OK && !pixels_create(&d->p, (int64_t)BTC_SCENE_MAX_WINDOW * BTC_SCENE_MAX_WINDOW))
    st = btc_geo_fail(f, BTC_GEO_OOM, BTC_ERR_NOMEM, "not enough memory for windows");
  if (st == BTC_OK) st = enter(q, f);
  if (st == BTC_OK) st = open_images(d, q, f);
  if (st == BTC_OK) st = place_images(d, q, f);
  return st == BTC_OK ? open_answer(d, q, f) : NULL;
}

static json_t *on_read(decoder *d, const json_t *q, btc_geo_failure *f) {
  double v[4];
  numbers_of(q, "read", v, 4);
  int x = (int)v[0], y = (int)v[1], w = (int)v[2], h = (int)v[3];
  if (w < 1 || h < 1 || w > BTC_SCENE_MAX_WINDOW || h > BTC_SCENE_MAX_WINDOW) {
    btc_geo_fail(f, BTC_GEO_BAD_REQUEST, BTC_ERR_ARG, "a window of %d x %d pixels", w, h);
    return NULL;
  }
  for (int i = 0; i < 2; i++) {
    if (pixels_read(&d->placed[i], &d->g, x, y, w, h, &d->p, f) != BTC_OK) return NULL;
    stretch_apply(&d->s, i, &d->images[i], &d->p, d->shared + SCENE_WIRE_RGB(i));
    memcpy(d->shared + SCENE_WIRE_VALID(i), d->p.valid, (size_t)w * (size_t)h);
  }
  return json_pack("{s:b}", "read", 1);
}

int geo_decode_main(int socket, int argc, char **argv) {
  static decoder d;
  geo_frame frame;
  btc_error err;
  (void)argc, (void)argv;
  for (bool opened = false; geo_frame_receive(socket, 0, NULL, NULL, &frame, &err) == BTC_OK;) {
    btc_geo_failure f = {.reason = BTC_GEO_INTERNAL};
    bool open = json_object_get(frame.message, "open") != NULL;
    alarm(ALARM_S);
    json_t *answer = NULL;
    if (open != !opened)
      btc_geo_fail(&f, BTC_GEO_BAD_REQUEST, BTC_ERR_ARG, "requests out of order");
    else
      answer = open ? on_open(&d, &frame, &f) : on_read(&d, frame.message, &f);
    opened = opened || (open && answer);
    if (!answer)
      answer = json_pack("{s:s,s:s}", "reason", btc_geo_reason_text(f.reason), "message",
                         *f.error.message ? f.error.message : "no reason was given");
    if (!answer) answer = json_pack("{s:s,s:s}", "reason", "decode", "message", "texts in the file are not UTF-8");
    geo_frame_clear(&frame);
    alarm(0);
    btc_status sent = answer ? geo_frame_send(socket, answer, NULL, 0, 0, &err) : BTC_ERR_NOMEM;
    json_decref(answer);
    if (sent != BTC_OK || !opened) return 1;
  }
  return 0;
}
