/* Phase correlation: see shift.h. */
#include "geo/gdal/shift.h"

#include <kiss_fftnd.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PLACES = 3 /* a side */ };
#define MOST_MISSING 0.1 /* of a window's pixels */
#define FLOOR 0.01       /* of the mean amplitude: a frequency of this much counts half */

typedef struct correlation {
  int side;
  double total;                   /* weight of all phases */
  float *hann, *low_pass;         /* [side], [side, side] */
  kiss_fft_cpx *image[2], *cross; /* [side, side] */
  kiss_fftnd_cfg forward, inverse;
} correlation;

static void destroy(correlation *c) {
  free(c->hann);
  free(c->low_pass);
  free(c->image[0]);
  free(c->image[1]);
  free(c->cross);
  kiss_fft_free(c->forward);
  kiss_fft_free(c->inverse);
}

static void fill_low_pass(correlation *c) {
  double width = c->side / 6.0; /* one pixel, transformed */
  for (int i = 0; i < c->side * c->side; i++) {
    int ky = i / c->side, kx = i % c->side;
    ky -= ky > c->side / 2 ? c->side : 0;
    kx -= kx > c->side / 2 ? c->side : 0;
    c->low_pass[i] = (float)exp(-(kx * kx + ky * ky) / (2 * width * width));
  }
}

static bool create(correlation *c, int side) {
  const int dims[2] = {side, side};
  size_t n = (size_t)side * (size_t)side;
  *c = (correlation){.side = side, .hann = btc_alloc((size_t)side, sizeof(float)), .cross = btc_alloc_zero(n, sizeof *c->cross)};
  for (int i = 0; i < 2; i++) c->image[i] = btc_alloc(n, sizeof *c->image[i]);
  c->forward = kiss_fftnd_alloc(dims, 2, 0, NULL, NULL);
  c->inverse = kiss_fftnd_alloc(dims, 2, 1, NULL, NULL);
  c->low_pass = btc_alloc(n, sizeof(float));
  if (!c->hann || !c->low_pass || !c->cross || !c->image[0] || !c->image[1] || !c->forward || !c->inverse) return false;
  for (int i = 0; i < side; i++) c->hann[i] = (float)(0.5 - 0.5 * cos(2 * M_PI * (i + 0.5) / side));
  fill_low_pass(c);
  return true;
}

/* Brightness about its mean, fading to nothing at the window's edge; missing pixels count as mean. False: too many are missing. */
static bool prepare(const correlation *c, const placed *pl, const pixels *p, kiss_fft_cpx *out) {
  int n = c->side * c->side, bands = pl->im->palette ? 1 : pl->im->n_bands, valid = 0;
  double sum = 0;
  for (int i = 0; i < n; i++) {
    double v = 0;
    for (int b = 0; b < bands; b++) v += pl->im->palette ? p->palette[3 * i] : (double)p->band[b][i];
    out[i] = (kiss_fft_cpx){(float)v, 0};
    if (p->valid[i]) sum += v, valid++;
  }
  if (valid < (1 - MOST_MISSING) * n) return false;
  float mean = (float)(sum / valid);
  for (int i = 0; i < n; i++) out[i].r = p->valid[i] ? (out[i].r - mean) * c->hann[i / c->side] * c->hann[i % c->side] : 0;
  return true;
}

/* Adds the phases of after * conj(before). Frequencies that hold little, so mostly noise of rounding, count less. */
static void correlate(correlation *c) {
  int n = c->side * c->side;
  double sum = 0;
  for (int i = 0; i < 2; i++) kiss_fftnd(c->forward, c->image[i], c->image[i]);
  for (int i = 0; i < n; i++) {
    kiss_fft_cpx b = c->image[0][i], a = c->image[1][i], cross = {a.r * b.r + a.i * b.i, a.i * b.r - a.r * b.i};
    c->image[0][i] = cross;
    sum += (double)hypotf(cross.r, cross.i);
  }
  float least = (float)(FLOOR * sum / n);
  for (int i = 0; i < n && least > 0; i++) {
    kiss_fft_cpx cross = c->image[0][i];
    float size = hypotf(cross.r, cross.i), weight = c->low_pass[i];
    c->cross[i].r += weight * cross.r / (size + least);
    c->cross[i].i += weight * cross.i / (size + least);
    c->total += (double)(weight * size / (size + least));
  }
}

/* The phases back to shifts, [side, side], 1 at the peak of identical windows. */
static void transform_back(correlation *c) {
  kiss_fftnd(c->inverse, c->cross, c->image[0]);
  for (int i = 0; i < c->side * c->side; i++) c->image[0][i].r /= (float)c->total;
}

static double at(const correlation *c, int x, int y) {
  int s = c->side;
  return fmax((double)c->image[0][((y + s) % s) * s + (x + s) % s].r, 1e-9);
}

/* Vertex of the parabola through three logarithms, within half a pixel. */
static double vertex(double left, double middle, double right) {
  double l = log(left), m = log(middle), r = log(right), bend = l - 2 * m + r;
  return bend < 0 ? fmax(-0.5, fmin(0.5, (l - r) / (2 * bend))) : 0;
}

static void find_peak(const correlation *c, shift *s) {
  int reach = c->side / 4, bx = 0, by = 0;
  for (int y = -reach; y <= reach; y++)
    for (int x = -reach; x <= reach; x++)
      if (at(c, x, y) > at(c, bx, by)) bx = x, by = y;
  double dx = vertex(at(c, bx - 1, by), at(c, bx, by), at(c, bx + 1, by));
  double dy = vertex(at(c, bx, by - 1), at(c, bx, by), at(c, bx, by + 1));
  *s = (shift){.found = true, .x = bx + dx, .y = by + dy, .confidence = fmin(1, at(c, bx, by))};
}

static btc_status add_window(correlation *c, const placed images[2], const grid *g, int x, int y, pixels *p) {
  btc_geo_failure ignored = {0};
  for (int i = 0; i < 2; i++) {
    btc_status st = pixels_read(&images[i], g, x, y, c->side, c->side, p, &ignored);
    if (st != BTC_OK) return st == BTC_ERR_NOMEM ? st : BTC_OK;
    if (!prepare(c, &images[i], p, c->image[i])) return BTC_OK;
  }
  correlate(c);
  return BTC_OK;
}

btc_status shift_measure(const placed images[2], const grid *g, double outline[][2], int n, pixels *p, shift *s,
                         btc_geo_failure *f) {
  double low[2] = {g->width, g->height}, high[2] = {0, 0};
  *s = (shift){0};
  for (int i = 0; i < n; i++)
    for (int k = 0; k < 2; k++) low[k] = fmin(low[k], outline[i][k]), high[k] = fmax(high[k], outline[i][k]);
  double w = floor(high[0] - low[0]), h = floor(high[1] - low[1]);
  int side = SHIFT_MOST_SIDE;
  while (side >= SHIFT_LEAST_SIDE && (side > w || side > h)) side /= 2;
  if (side < SHIFT_LEAST_SIDE) return BTC_OK;
  correlation c;
  btc_status st = create(&c, side) ? BTC_OK : BTC_ERR_NOMEM;
  for (int i = 0; st == BTC_OK && i < PLACES * PLACES; i++) {
    const int column = i % PLACES, row = i / PLACES;
    int x = (int)(low[0] + (w - side) * column / (PLACES - 1)), y = (int)(low[1] + (h - side) * row / (PLACES - 1));
    st = add_window(&c, images, g, x, y, p);
  }
  if (st == BTC_OK && c.total > 0) {
    transform_back(&c);
    find_peak(&c, s);
  }
  destroy(&c);
  return st == BTC_OK ? st : btc_geo_fail(f, BTC_GEO_OOM, st, "not enough memory to estimate the shift");
}
