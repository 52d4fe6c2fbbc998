/* The common grid: see grid.h. */
#define _GNU_SOURCE
#include "geo/gdal/grid.h"

#include <cpl_error.h>
#include <cpl_string.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const double no_place[6] = {0, 1, 0, 0, 0, 1};

/* ---- the grid ---- */

static btc_status by_pixels(const image *before, const image *after, grid *g, btc_geo_failure *f) {
  if (before->width != after->width || before->height != after->height)
    return btc_geo_fail(f, BTC_GEO_DIMS, BTC_ERR_ARG,
                        "without georeferences the two images must have equal size: '%s' is %d x %d, '%s' is %d x %d",
                        before->label, before->width, before->height, after->label, after->width, after->height);
  g->georeferenced = false;
  g->srs = NULL;
  g->gsd = 0;
  memcpy(g->gt, no_place, sizeof no_place);
  return BTC_OK;
}

static btc_status resample(const image *before, double gsd_m, int max_side, grid *g, btc_geo_failure *f) {
  if (!(before->gsd_x > 0 && before->gsd_y > 0))
    return btc_geo_fail(f, BTC_GEO_BAD_REQUEST, BTC_ERR_ARG, "'%s' has no known size of a pixel in metres, so --gsd cannot be met",
                        before->label);
  double sx = gsd_m / before->gsd_x, sy = gsd_m / before->gsd_y;
  if (fabs(sx - 1) < 1e-6 && fabs(sy - 1) < 1e-6) return BTC_OK;
  double w = ceil(before->width / sx - 1e-6), h = ceil(before->height / sy - 1e-6);
  if (w > max_side || h > max_side)
    return btc_geo_fail(f, BTC_GEO_DIMS, BTC_ERR_LIMIT, "at %.6g m a pixel the grid has %.0f x %.0f pixels, more than %d a side",
                        gsd_m, w, h, max_side);
  g->width = w < 1 ? 1 : (int)w;
  g->height = h < 1 ? 1 : (int)h;
  g->gt[1] *= sx, g->gt[4] *= sx;
  g->gt[2] *= sy, g->gt[5] *= sy;
  g->gsd = gsd_m;
  return BTC_OK;
}

btc_status grid_make(const image *before, const image *after, double gsd_m, bool pixels, int max_side, grid *g,
                     btc_geo_failure *f) {
  *g = (grid){.width = before->width, .height = before->height, .georeferenced = true, .gsd = (before->gsd_x + before->gsd_y) / 2};
  memcpy(g->gt, before->gt, sizeof g->gt);
  if (pixels || (!before->georeferenced && !after->georeferenced)) {
    if (gsd_m > 0) return btc_geo_fail(f, BTC_GEO_BAD_REQUEST, BTC_ERR_ARG, "--gsd needs georeferenced images");
    return by_pixels(before, after, g, f);
  }
  if (!before->georeferenced || !after->georeferenced)
    return btc_geo_fail(f, BTC_GEO_BAD_REQUEST, BTC_ERR_ARG,
                        "'%s' is georeferenced and '%s' is not: give it a world file, or compare by pixels (--pixels)",
                        before->georeferenced ? before->label : after->label, before->georeferenced ? after->label : before->label);
  g->srs = before->srs ? before->srs : after->srs;
  if (g->srs && (!before->srs || !after->srs))
    snprintf(g->note, sizeof g->note, "the %s image names no CRS: it is taken to be that of the other",
             before->srs ? "after" : "before");
  if (!before->srs && g->srs) {
    double gx, gy;
    image_gsd(g->gt, g->srs, g->width / 2.0, g->height / 2.0, &gx, &gy);
    g->gsd = (gx + gy) / 2;
  }
  return gsd_m > 0 ? resample(before, gsd_m, max_side, g, f) : BTC_OK;
}

/* ---- putting an image on it ---- */

/* Whole-pixel offset of an image on the grid, if all its corners agree with one to within 0.02 pixels. */
static bool lies_on_grid(const grid *g, const image *im, int *off_x, int *off_y) {
  double inverse[6], gt[6];
  memcpy(gt, g->georeferenced ? im->gt : no_place, sizeof gt);
  if (!GDALInvGeoTransform(gt, inverse)) return false;
  for (int i = 0; i < 4; i++) {
    double gx = i & 1 ? g->width : 0, gy = i & 2 ? g->height : 0, x, y, px, py;
    GDALApplyGeoTransform((double *)g->gt, gx, gy, &x, &y);
    GDALApplyGeoTransform(inverse, x, y, &px, &py);
    double dx = px - gx, dy = py - gy;
    if (!(fabs(dx) < 1e9 && fabs(dy) < 1e9)) return false;
    if (i == 0) *off_x = (int)lround(dx), *off_y = (int)lround(dy);
    if (fabs(dx - *off_x) > 0.02 || fabs(dy - *off_y) > 0.02) return false;
  }
  return true;
}

static bool same_crs(const grid *g, const image *im) {
  return !g->georeferenced || !g->srs || !im->srs || g->srs == im->srs || OSRIsSame(g->srs, im->srs);
}

static bool make_transformers(const grid *g, placed *p) {
  double gt[6];
  memcpy(gt, g->georeferenced ? p->im->gt : no_place, sizeof gt);
  double sx = (double)p->im->width / GDALGetRasterXSize(p->view), sy = (double)p->im->height / GDALGetRasterYSize(p->view);
  gt[1] *= sx, gt[4] *= sx;
  gt[2] *= sy, gt[5] *= sy;
  bool cross = !same_crs(g, p->im);
  /* two empty references say that the CRS is one; NULL crashes GDAL 3.6 */
  OGRSpatialReferenceH none = cross ? NULL : OSRNewSpatialReference(NULL);
  p->exact = GDALCreateGenImgProjTransformer4(cross ? p->im->srs : none, gt, cross ? g->srs : none, g->gt, NULL);
  if (none) OSRDestroySpatialReference(none);
  if (p->exact) p->approx = GDALCreateApproxTransformer(GDALGenImgProjTransform, p->exact, GRID_ERROR_PIXELS);
  return p->approx != NULL;
}

static void drop_transformers(placed *p) {
  if (p->approx) GDALDestroyApproxTransformer(p->approx);
  if (p->exact) GDALDestroyGenImgProjTransformer(p->exact);
  p->approx = p->exact = NULL;
}

bool grid_to_view(const placed *p, const grid *g, int n, double *x, double *y, int *ok) {
  double z[GRID_MAX_POINTS] = {0};
  if (n > GRID_MAX_POINTS) return false;
  GDALSetGenImgProjTransformerDstGeoTransform(p->exact, g->gt);
  GDALGenImgProjTransform(p->exact, TRUE, n, x, y, z, ok);
  int good = 0;
  for (int i = 0; i < n; i++) good += ok[i] = ok[i] && isfinite(x[i]) && isfinite(y[i]);
  return good > 0;
}

/* Pixels of the view a grid pixel, the least over some places: what is read must not be coarser than the grid. */
static double measure_scale(const placed *p, const grid *g) {
  double best = HUGE_VAL;
  for (int i = 0; i < 9; i++) {
    const int column = i % 3, row = i / 3;
    double cx = g->width * column / 2.0, cy = g->height * row / 2.0;
    double x[3] = {cx, cx + 1, cx}, y[3] = {cy, cy, cy + 1};
    int ok[3];
    if (!grid_to_view(p, g, 3, x, y, ok) || !(ok[0] && ok[1] && ok[2])) continue;
    double across = hypot(x[1] - x[0], y[1] - y[0]), down = hypot(x[2] - x[0], y[2] - y[0]);
    if (fmin(across, down) < best) best = fmin(across, down);
  }
  return isfinite(best) && best > 0 ? best : 1;
}

/* The coarsest overview that is still as fine as the grid. */
static int choose_overview(const image *im, double scale) {
  GDALRasterBandH band = GDALGetRasterBand(im->ds, im->band[0]);
  int chosen = -1;
  double most = 1;
  for (int i = 0; i < GDALGetOverviewCount(band); i++) {
    GDALRasterBandH o = GDALGetOverview(band, i);
    if (!o || GDALGetRasterBandXSize(o) < 1) continue;
    double factor = (double)im->width / GDALGetRasterBandXSize(o);
    if (factor <= scale * 1.01 && factor > most) most = factor, chosen = i;
  }
  return chosen;
}

static void use_overview(const grid *g, placed *p, const char *name, int level) {
  char option[32];
  snprintf(option, sizeof option, "OVERVIEW_LEVEL=%d", level);
  const char *const drivers[] = {p->im->driver, NULL}, *const siblings[] = {NULL}, *const options[] = {option, NULL};
  GDALDatasetH o = GDALOpenEx(name, GDAL_OF_RASTER | GDAL_OF_READONLY, drivers, options, siblings);
  if (!o) return; /* the full image serves as well, only slower */
  GDALDatasetH before = p->view;
  drop_transformers(p);
  p->view = o;
  if (make_transformers(g, p)) return;
  drop_transformers(p);
  GDALClose(o);
  p->view = before;
  make_transformers(g, p);
}

btc_status grid_place(const grid *g, const image *im, double shift_x, double shift_y, placed *p, btc_geo_failure *f) {
  *p = (placed){.im = im, .view = im->ds, .scale = 1, .shift_x = shift_x, .shift_y = shift_y};
  p->direct = shift_x == 0 && shift_y == 0 && same_crs(g, im) && lies_on_grid(g, im, &p->off_x, &p->off_y);
  CPLErrorReset();
  if (!make_transformers(g, p)) {
    btc_status st = image_fail(im, "cannot be put on the grid of the before image", f);
    grid_unplace(p);
    return st;
  }
  if (p->direct) return BTC_OK;
  p->scale = measure_scale(p, g);
  int level = p->scale >= 2 ? choose_overview(im, p->scale) : -1;
  if (level >= 0) use_overview(g, p, GDALGetDescription(im->ds), level);
  double left = measure_scale(p, g);
  p->alg = im->palette ? GRA_NearestNeighbour : left > 2 ? GRA_Average : GRA_Bilinear;
  if (!p->exact) return btc_geo_fail(f, BTC_GEO_INTERNAL, BTC_ERR_INTERNAL, "'%s': no transformation", im->label);
  return BTC_OK;
}

void grid_unplace(placed *p) {
  drop_transformers(p);
  if (p->im && p->view && p->view != p->im->ds) GDALClose(p->view);
  *p = (placed){0};
}
