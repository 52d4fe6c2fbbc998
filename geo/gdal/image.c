/* Opening one image: see image.h. */
#define _GNU_SOURCE
#include "geo/gdal/image.h"

#include <cpl_error.h>
#include <cpl_string.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "geo/gdal/fdfs.h"

btc_status image_fail(const image *im, const char *what, btc_geo_failure *f) {
  bool oom = CPLGetLastErrorNo() == CPLE_OutOfMemory;
  const char *said = CPLGetLastErrorMsg(), *name = strstr(said, FDFS_PREFIX);
  if (name && name == said) { /* our own name for the file means nothing to anybody */
    const char *after = strchr(said, ':');
    if (after) said = after + 1 + strspn(after + 1, " ");
  }
  return btc_geo_fail(f, oom ? BTC_GEO_OOM : BTC_GEO_DECODE, oom ? BTC_ERR_NOMEM : BTC_ERR_FORMAT, "'%s': %s: %s", im->label, what,
                      *said ? said : "GDAL gives no reason");
}

/* ---- limits ---- */

static btc_status too_much(const image *im, btc_geo_failure *f, const char *what, double have, double most) {
  return btc_geo_fail(f, BTC_GEO_DIMS, BTC_ERR_LIMIT, "'%s': %s %.6g, more than the %.6g allowed", im->label, what, have, most);
}

static int64_t block_bytes(const image *im, int n_bands) {
  int bw, bh;
  int64_t most = 0;
  const char *interleave = GDALGetMetadataItem(im->ds, "INTERLEAVE", "IMAGE_STRUCTURE");
  int64_t together = interleave && EQUAL(interleave, "PIXEL") ? n_bands : 1;
  for (int b = 1; b <= n_bands; b++) {
    GDALRasterBandH band = GDALGetRasterBand(im->ds, b);
    GDALGetBlockSize(band, &bw, &bh);
    int64_t bytes = (int64_t)bw * bh * GDALGetDataTypeSizeBytes(GDALGetRasterDataType(band)) * together;
    if (bytes > most) most = bytes;
  }
  return most;
}

static btc_status hold_against(const image *im, const image_limits *lim, btc_geo_failure *f) {
  int side = im->width > im->height ? im->width : im->height;
  if (im->width < 1 || im->height < 1 || im->bands < 1)
    return btc_geo_fail(f, BTC_GEO_DECODE, BTC_ERR_FORMAT, "'%s' has no pixels or no bands", im->label);
  if (side > lim->max_side) return too_much(im, f, "pixels a side are", side, lim->max_side);
  int64_t pixels = (int64_t)im->width * im->height;
  if (pixels > lim->max_pixels) return too_much(im, f, "pixels are", (double)pixels, (double)lim->max_pixels);
  if (im->bands > lim->max_bands) return too_much(im, f, "bands are", im->bands, lim->max_bands);
  int64_t block = block_bytes(im, im->bands);
  if (block > lim->max_block_bytes)
    return too_much(im, f, "bytes of a decoded block are", (double)block, (double)lim->max_block_bytes);
  double raw = (double)pixels * im->bands * GDALGetDataTypeSizeBytes(GDALGetRasterDataType(GDALGetRasterBand(im->ds, 1)));
  double ratio = im->file_bytes > 0 ? raw / (double)im->file_bytes : 0;
  if (raw > (double)IMAGE_RATIO_FREE_BYTES && ratio > lim->max_ratio)
    return too_much(im, f, "decoded bytes to bytes of the file are", ratio, lim->max_ratio);
  return BTC_OK;
}

/* ---- bands ---- */

static int band_of_colour(const image *im, GDALColorInterp colour) {
  for (int b = 1; b <= im->bands; b++)
    if (GDALGetRasterColorInterpretation(GDALGetRasterBand(im->ds, b)) == colour) return b;
  return 0;
}

static void default_bands(image *im) {
  int red = band_of_colour(im, GCI_RedBand), green = band_of_colour(im, GCI_GreenBand), blue = band_of_colour(im, GCI_BlueBand);
  int colours = im->bands - (im->alpha == im->bands); /* an alpha band stands last where it is no colour */
  im->n_bands = 3;
  if (red && green && blue)
    im->band[0] = red, im->band[1] = green, im->band[2] = blue;
  else if (colours >= 3)
    im->band[0] = 1, im->band[1] = 2, im->band[2] = 3;
  else
    im->band[0] = im->band[1] = im->band[2] = 1, im->n_bands = 1;
}

static btc_status choose_bands(image *im, const int wanted[3], btc_geo_failure *f) {
  im->alpha = band_of_colour(im, GCI_AlphaBand);
  default_bands(im);
  if (wanted[0] || wanted[1] || wanted[2]) {
    for (int i = 0; i < 3; i++) {
      if (wanted[i] < 1 || wanted[i] > im->bands)
        return btc_geo_fail(f, BTC_GEO_BAD_REQUEST, BTC_ERR_ARG, "'%s' has bands 1 to %d, no band %d", im->label, im->bands,
                            wanted[i]);
      im->band[i] = wanted[i];
    }
    im->n_bands = wanted[0] == wanted[1] && wanted[1] == wanted[2] ? 1 : 3;
  }
  im->type = GDALGetRasterDataType(GDALGetRasterBand(im->ds, im->band[0]));
  for (int i = 0; i < im->n_bands; i++) {
    GDALDataType type = GDALGetRasterDataType(GDALGetRasterBand(im->ds, im->band[i]));
    if (type < GDT_Byte || type > GDT_Float64)
      return btc_geo_fail(f, BTC_GEO_DECODE, BTC_ERR_UNSUPPORTED, "'%s': band %d holds %s, which is not read", im->label,
                          im->band[i], GDALGetDataTypeName(type));
    if (type != im->type) im->type = GDT_Float64; /* holds any of them */
  }
  return BTC_OK;
}

/* ---- which pixels count ---- */

static void find_mask(image *im) {
  GDALRasterBandH first = GDALGetRasterBand(im->ds, im->band[0]);
  int flags = GDALGetMaskFlags(first);
  im->mask = IMAGE_ALL_VALID;
  if (im->alpha || (flags & GMF_PER_DATASET)) {
    im->mask = IMAGE_MASK;
    return;
  }
  im->has_nodata = true;
  for (int i = 0; i < im->n_bands; i++) {
    int has = 0;
    im->nodata[i] = GDALGetRasterNoDataValue(GDALGetRasterBand(im->ds, im->band[i]), &has);
    im->has_nodata = im->has_nodata && has;
  }
  if (im->has_nodata) im->mask = IMAGE_NODATA;
}

static void find_depth(image *im) {
  GDALRasterBandH first = GDALGetRasterBand(im->ds, im->band[0]);
  const char *bits = GDALGetMetadataItem(first, "NBITS", "IMAGE_STRUCTURE");
  im->palette = im->n_bands == 1 ? GDALGetRasterColorTable(first) : NULL;
  im->plain_8bit = im->type == GDT_Byte && (!bits || EQUAL(bits, "8") || im->palette);
}

/* ---- where it lies ---- */

void image_gsd(const double gt[6], OGRSpatialReferenceH srs, double px, double py, double *gsd_x, double *gsd_y) {
  double ux = 0, uy = 0;
  *gsd_x = *gsd_y = 0;
  if (!srs) return;
  if (OSRIsGeographic(srs)) {
    /* metres a degree on the WGS 84 ellipsoid at this latitude */
    double lat = (gt[3] + px * gt[4] + py * gt[5]) * OSRGetAngularUnits(srs, NULL);
    if (!(fabs(lat) <= 1.5708)) return;
    const double a = 6378137.0, e2 = 0.00669437999014, s = sin(lat), q = 1 - e2 * s * s;
    ux = a / sqrt(q) * cos(lat) * OSRGetAngularUnits(srs, NULL);
    uy = a * (1 - e2) / (q * sqrt(q)) * OSRGetAngularUnits(srs, NULL);
  } else if (OSRIsProjected(srs)) {
    ux = uy = OSRGetLinearUnits(srs, NULL);
  }
  *gsd_x = hypot(gt[1] * ux, gt[4] * uy);
  *gsd_y = hypot(gt[2] * ux, gt[5] * uy);
}

static bool usable(const double gt[6]) {
  for (int i = 0; i < 6; i++)
    if (!isfinite(gt[i])) return false;
  return gt[1] * gt[5] - gt[2] * gt[4] != 0;
}

static btc_status find_place(image *im, const double *world, btc_geo_failure *f) {
  static const double none[6] = {0, 1, 0, 0, 0, 1};
  im->georeferenced = GDALGetGeoTransform(im->ds, im->gt) == CE_None;
  if (im->georeferenced && !usable(im->gt))
    return btc_geo_fail(f, BTC_GEO_DECODE, BTC_ERR_FORMAT, "'%s': its geotransform has no inverse", im->label);
  if (!im->georeferenced && world) {
    memcpy(im->gt, world, sizeof im->gt);
    im->georeferenced = im->world_file = true;
  }
  if (!im->georeferenced && GDALGetGCPCount(im->ds) > 0)
    return btc_geo_fail(
        f, BTC_GEO_BAD_REQUEST, BTC_ERR_UNSUPPORTED,
        "'%s' is placed by ground control points only: warp it to a grid first (gdalwarp), or compare by pixels (--pixels)",
        im->label);
  OGRSpatialReferenceH srs = GDALGetSpatialRef(im->ds);
  if (im->georeferenced && srs && (im->srs = OSRClone(srs))) OSRSetAxisMappingStrategy(im->srs, OAMS_TRADITIONAL_GIS_ORDER);
  if (!im->georeferenced) memcpy(im->gt, none, sizeof none);
  image_gsd(im->gt, im->srs, im->width / 2.0, im->height / 2.0, &im->gsd_x, &im->gsd_y);
  return BTC_OK;
}

btc_status image_open(image *im, const char *name, const char *driver, const char *label, int64_t file_bytes, const int wanted[3],
                      const double *world, const image_limits *lim, btc_geo_failure *f) {
  const char *const drivers[] = {driver, NULL};
  const char *const no_siblings[] = {NULL};
  const char *const internal_only[] = {"GEOREF_SOURCES=INTERNAL", NULL};
  *im = (image){.label = label, .file_bytes = file_bytes};
  CPLErrorReset();
  im->ds = GDALOpenEx(name, GDAL_OF_RASTER | GDAL_OF_READONLY | GDAL_OF_VERBOSE_ERROR, drivers,
                      strcmp(driver, "GTiff") == 0 ? internal_only : NULL, no_siblings);
  if (!im->ds) return image_fail(im, "cannot be opened", f);
  snprintf(im->driver, sizeof im->driver, "%s", driver);
  im->width = GDALGetRasterXSize(im->ds);
  im->height = GDALGetRasterYSize(im->ds);
  im->bands = GDALGetRasterCount(im->ds);
  btc_status st = hold_against(im, lim, f);
  if (st == BTC_OK) st = choose_bands(im, wanted, f);
  if (st == BTC_OK) {
    find_mask(im);
    find_depth(im);
    st = find_place(im, world, f);
  }
  if (st != BTC_OK) image_close(im);
  return st;
}

void image_close(image *im) {
  if (im->srs) OSRDestroySpatialReference(im->srs);
  if (im->ds) GDALClose(im->ds);
  im->srs = NULL;
  im->ds = NULL;
}
