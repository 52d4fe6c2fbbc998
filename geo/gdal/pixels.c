/* See pixels.h. */
#define _GNU_SOURCE
#include "geo/gdal/pixels.h"

#include <cpl_conv.h>
#include <cpl_error.h>
#include <cpl_string.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WARP_BYTES = 64 << 20 };

bool pixels_create(pixels *p, int64_t most) {
  *p = (pixels){.palette = btc_alloc((size_t)most, 3), .valid = btc_alloc((size_t)most, 1)};
  bool good = p->palette && p->valid;
  for (int i = 0; i < 3; i++) good = (p->band[i] = btc_alloc((size_t)most, sizeof(float))) && good;
  if (!good) pixels_destroy(p);
  return good;
}

void pixels_destroy(pixels *p) {
  for (int i = 0; i < 3; i++) free(p->band[i]);
  free(p->palette);
  free(p->valid);
  *p = (pixels){0};
}

/* ---- which pixels count ---- */

static bool is_nodata(float v, double nodata) {
  return isnan(v) ? isnan(nodata) : v == (float)nodata;
}

/* What floats say: a pixel without any finite value, or with nodata in all bands, does not count. */
static void judge(const image *im, pixels *p) {
  for (int64_t i = 0; i < (int64_t)p->width * p->height; i++) {
    int finite = 0, none = 0;
    for (int b = 0; b < im->n_bands; b++) {
      finite += isfinite(p->band[b][i]) != 0;
      none += im->mask == IMAGE_NODATA && is_nodata(p->band[b][i], im->nodata[b]);
    }
    if (finite < im->n_bands || none == im->n_bands) p->valid[i] = 0;
  }
}

static void colour(const image *im, pixels *p) {
  for (int64_t i = 0; i < (int64_t)p->width * p->height; i++) {
    const GDALColorEntry *e = GDALGetColorEntry(im->palette, (int)p->band[0][i]);
    p->palette[3 * i] = e ? (uint8_t)e->c1 : 0;
    p->palette[3 * i + 1] = e ? (uint8_t)e->c2 : 0;
    p->palette[3 * i + 2] = e ? (uint8_t)e->c3 : 0;
  }
}

static void finish(const image *im, pixels *p) {
  judge(im, p);
  if (im->palette) colour(im, p);
}

/* ---- straight from the file ---- */

/* A part of the image to a place in the window. */
static btc_status copy_part(const image *im, int sx, int sy, int w, int h, pixels *p, int at, btc_geo_failure *f) {
  CPLErr e = CE_None;
  CPLErrorReset();
  for (int b = 0; e == CE_None && b < im->n_bands; b++)
    e = GDALRasterIO(GDALGetRasterBand(im->ds, im->band[b]), GF_Read, sx, sy, w, h, p->band[b] + at, w, h, GDT_Float32, 0,
                     p->width * (int)sizeof(float));
  if (e == CE_None && im->mask == IMAGE_MASK) {
    GDALRasterBandH mask =
        im->alpha ? GDALGetRasterBand(im->ds, im->alpha) : GDALGetMaskBand(GDALGetRasterBand(im->ds, im->band[0]));
    e = GDALRasterIO(mask, GF_Read, sx, sy, w, h, p->valid + at, w, h, GDT_Byte, 0, p->width);
  }
  if (e != CE_None) return image_fail(im, "cannot be read", f);
  for (int y = 0; y < h; y++)
    for (int x = 0; x < w; x++) {
      uint8_t *v = &p->valid[at + y * p->width + x];
      *v = im->mask != IMAGE_MASK || *v;
    }
  return BTC_OK;
}

static void empty(const image *im, int w, int h, pixels *p) {
  p->width = w;
  p->height = h;
  memset(p->valid, 0, (size_t)w * (size_t)h);
  for (int b = 0; b < im->n_bands; b++) memset(p->band[b], 0, (size_t)w * (size_t)h * sizeof(float));
}

btc_status pixels_read_image(const image *im, int x, int y, int w, int h, pixels *p, btc_geo_failure *f) {
  empty(im, w, h, p);
  btc_status st = copy_part(im, x, y, w, h, p, 0, f);
  if (st == BTC_OK) finish(im, p);
  return st;
}

static btc_status read_direct(const placed *pl, int x, int y, int w, int h, pixels *p, btc_geo_failure *f) {
  const image *im = pl->im;
  int64_t sx = (int64_t)x + pl->off_x, sy = (int64_t)y + pl->off_y, left = sx < 0 ? -sx : 0, top = sy < 0 ? -sy : 0;
  int64_t right = sx + w > im->width ? im->width - sx : w, bottom = sy + h > im->height ? im->height - sy : h;
  empty(im, w, h, p);
  if (left >= right || top >= bottom) return BTC_OK;
  btc_status st =
      copy_part(im, (int)(sx + left), (int)(sy + top), (int)(right - left), (int)(bottom - top), p, (int)(top * w + left), f);
  if (st == BTC_OK) finish(im, p);
  return st;
}

/* ---- warped ---- */

/* The window as a data set in memory: the bands, and one for where they are valid. */
static GDALDatasetH window_of(const image *im, pixels *p) {
  GDALDatasetH ds = GDALCreate(GDALGetDriverByName("MEM"), "", p->width, p->height, 0, GDT_Float32, NULL);
  bool good = ds != NULL;
  for (int b = 0; good && b <= im->n_bands; b++) {
    void *data = b < im->n_bands ? (void *)p->band[b] : p->valid;
    char address[64];
    int n = CPLPrintPointer(address, data, sizeof address - 1);
    address[n] = 0;
    char **o = CSLSetNameValue(NULL, "DATAPOINTER", address);
    good = GDALAddBand(ds, b < im->n_bands ? GDT_Float32 : GDT_Byte, o) == CE_None;
    CSLDestroy(o);
  }
  if (good || !ds) return ds;
  GDALClose(ds);
  return NULL;
}

static GDALWarpOptions *warp_options(const placed *pl, GDALDatasetH to) {
  const image *im = pl->im;
  GDALWarpOptions *o = GDALCreateWarpOptions();
  int n = im->n_bands;
  o->hSrcDS = pl->view;
  o->hDstDS = to;
  o->nBandCount = n;
  o->panSrcBands = CPLMalloc(sizeof(int) * (size_t)n);
  o->panDstBands = CPLMalloc(sizeof(int) * (size_t)n);
  for (int b = 0; b < n; b++) {
    o->panSrcBands[b] = im->band[b];
    o->panDstBands[b] = b + 1;
  }
  o->nDstAlphaBand = n + 1;
  if (im->alpha) o->nSrcAlphaBand = im->alpha;
  if (im->mask == IMAGE_NODATA) {
    o->padfSrcNoDataReal = CPLMalloc(sizeof(double) * (size_t)n);
    for (int b = 0; b < n; b++) o->padfSrcNoDataReal[b] = im->nodata[b];
    o->papszWarpOptions = CSLSetNameValue(o->papszWarpOptions, "UNIFIED_SRC_NODATA", "YES");
  }
  o->papszWarpOptions = CSLSetNameValue(o->papszWarpOptions, "INIT_DEST", "0");
  o->papszWarpOptions = CSLSetNameValue(o->papszWarpOptions, "DST_ALPHA_MAX", "1");
  o->eWorkingDataType = GDT_Float32;
  o->eResampleAlg = pl->alg;
  o->dfWarpMemoryLimit = WARP_BYTES;
  o->pfnTransformer = GDALApproxTransform;
  o->pTransformerArg = pl->approx;
  return o;
}

static btc_status read_warped(const placed *pl, const grid *g, int x, int y, int w, int h, pixels *p, btc_geo_failure *f) {
  double gt[6], fx = x + pl->shift_x, fy = y + pl->shift_y;
  memcpy(gt, g->gt, sizeof gt);
  gt[0] += fx * gt[1] + fy * gt[2];
  gt[3] += fx * gt[4] + fy * gt[5];
  empty(pl->im, w, h, p);
  CPLErrorReset();
  GDALDatasetH to = window_of(pl->im, p);
  if (!to) return btc_geo_fail(f, BTC_GEO_OOM, BTC_ERR_NOMEM, "not enough memory for a window");
  GDALSetGenImgProjTransformerDstGeoTransform(pl->exact, gt);
  GDALWarpOptions *o = warp_options(pl, to);
  GDALWarpOperationH op = GDALCreateWarpOperation(o);
  CPLErr e = op ? GDALChunkAndWarpImage(op, 0, 0, w, h) : CE_Failure;
  if (op) GDALDestroyWarpOperation(op);
  GDALDestroyWarpOptions(o);
  GDALFlushCache(to);
  GDALClose(to);
  GDALSetGenImgProjTransformerDstGeoTransform(pl->exact, (double *)g->gt);
  if (e != CE_None) return image_fail(pl->im, "cannot be warped", f);
  for (int64_t i = 0; i < (int64_t)w * h; i++) p->valid[i] = p->valid[i] != 0;
  bool judged = pl->im->mask != IMAGE_NODATA; /* the warper has left nodata out; a blend may equal it by chance */
  if (judged) judge(pl->im, p);
  if (pl->im->palette) colour(pl->im, p);
  return BTC_OK;
}

btc_status pixels_read(const placed *pl, const grid *g, int x, int y, int w, int h, pixels *p, btc_geo_failure *f) {
  return pl->direct ? read_direct(pl, x, y, w, h, p, f) : read_warped(pl, g, x, y, w, h, p, f);
}
