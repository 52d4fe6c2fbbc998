/* The common ground of two images, and in which order windows are best read: parts of grid.h. */
#include <math.h>
#include <string.h>

#include "geo/gdal/grid.h"

enum { SIDE_POINTS = 24 /* of each side of the image: what bends between them is not seen */ };

/* Keeps the side where sign * (coordinate `axis` - at) >= 0 (Sutherland and Hodgman's step). */
static int cut(double in[][2], int n, int axis, double at, double sign, double out[][2]) {
  int m = 0;
  for (int i = 0; i < n && m < GRID_MAX_POINTS - 1; i++) {
    const double *a = in[i], *b = in[(i + 1) % n];
    double da = sign * (a[axis] - at), db = sign * (b[axis] - at);
    if (da >= 0) memcpy(out[m++], a, sizeof out[0]);
    if ((da >= 0) == (db >= 0)) continue;
    double t = da / (da - db);
    for (int k = 0; k < 2; k++) out[m][k] = a[k] + t * (b[k] - a[k]);
    m++;
  }
  return m;
}

/* The image's outline in grid pixels. */
static int outline(const grid *g, const placed *p, double points[][2]) {
  double x[4 * SIDE_POINTS], y[4 * SIDE_POINTS], z[4 * SIDE_POINTS] = {0};
  int ok[4 * SIDE_POINTS], n = 0;
  double w = GDALGetRasterXSize(p->view), h = GDALGetRasterYSize(p->view);
  for (int i = 0; i < 4 * SIDE_POINTS; i++) {
    double t = (double)(i % SIDE_POINTS) / SIDE_POINTS;
    int side = i / SIDE_POINTS;
    x[i] = side == 0 ? t * w : side == 1 ? w : side == 2 ? (1 - t) * w : 0;
    y[i] = side == 0 ? 0 : side == 1 ? t * h : side == 2 ? h : (1 - t) * h;
  }
  GDALSetGenImgProjTransformerDstGeoTransform(p->exact, (double *)g->gt);
  GDALGenImgProjTransform(p->exact, FALSE, 4 * SIDE_POINTS, x, y, z, ok);
  for (int i = 0; i < 4 * SIDE_POINTS; i++) {
    if (!ok[i] || !isfinite(x[i]) || !isfinite(y[i])) continue;
    points[n][0] = x[i] - p->shift_x;
    points[n++][1] = y[i] - p->shift_y;
  }
  return n;
}

double grid_overlap(const grid *g, const placed *after, double points[GRID_MAX_POINTS][2], int *n) {
  double a[GRID_MAX_POINTS][2], b[GRID_MAX_POINTS][2], twice = 0;
  int m = outline(g, after, a);
  m = cut(a, m, 0, 0, 1, b);
  m = cut(b, m, 0, g->width, -1, a);
  m = cut(a, m, 1, 0, 1, b);
  m = cut(b, m, 1, g->height, -1, points);
  for (int i = 0; i < m; i++) {
    const double *p = points[i], *q = points[(i + 1) % m];
    twice += p[0] * q[1] - p[1] * q[0];
  }
  *n = m;
  return m < 3 ? 0 : fmin(1, fabs(twice) / 2 / ((double)g->width * g->height));
}

/* Bytes of decoded blocks under one grid column of so many rows. Strips go over the whole width whatever is asked for. */
static double column_bytes(const placed *p, int rows, bool *strips) {
  const image *im = p->im;
  GDALRasterBandH band = GDALGetRasterBand(p->view, im->band[0]);
  int bw, bh;
  GDALGetBlockSize(band, &bw, &bh);
  *strips = bw >= GDALGetRasterXSize(p->view);
  double scale = p->direct ? 1 : fmax(p->scale * GDALGetRasterXSize(p->view) / im->width, 1e-3);
  return (rows * scale + 2.0 * bh) * scale * im->bands * GDALGetDataTypeSizeBytes(GDALGetRasterDataType(band));
}

int grid_stripe(const grid *g, const placed images[2], int64_t cache_bytes) {
  enum { ROWS = 512, LEAST = 2048 };
  bool strips[2];
  double bytes = column_bytes(&images[0], ROWS, &strips[0]) + column_bytes(&images[1], ROWS, &strips[1]);
  double width = 0.8 * (double)cache_bytes / bytes;
  if ((strips[0] && strips[1]) || width >= g->width) return g->width;
  return width < LEAST ? LEAST : (int)width;
}
