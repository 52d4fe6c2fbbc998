/* See stretch.h. */
#include "geo/gdal/stretch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PLACES = 8 /* a side */, SIDE = 64, MOST = PLACES * PLACES * SIDE * SIDE };

typedef struct sample {
  float *values[3];
  size_t n;
} sample;

static bool sample_create(sample *s) {
  *s = (sample){0};
  for (int b = 0; b < 3; b++)
    if (!(s->values[b] = btc_alloc(MOST, sizeof(float)))) return false;
  return true;
}

static void sample_destroy(sample *s) {
  for (int b = 0; b < 3; b++) free(s->values[b]);
}

/* Small squares on a regular lattice: of a large file only their blocks are decoded. */
static btc_status take(const image *im, sample *s, pixels *p, btc_geo_failure *f) {
  int w = im->width < SIDE ? im->width : SIDE, h = im->height < SIDE ? im->height : SIDE;
  for (int k = 0; k < PLACES * PLACES; k++) {
    int x = (int)((int64_t)(im->width - w) * (k % PLACES) / (PLACES - 1)),
        y = (int)((int64_t)(im->height - h) * (k / PLACES) / (PLACES - 1));
    btc_status st = pixels_read_image(im, x, y, w, h, p, f);
    if (st == BTC_ERR_NOMEM) return st;
    if (st != BTC_OK) continue; /* a broken block costs the windows that need it, not the scene */
    for (int i = 0; i < w * h; i++) {
      if (!p->valid[i]) continue;
      for (int b = 0; b < 3; b++) s->values[b][s->n] = p->band[b < im->n_bands ? b : 0][i];
      s->n++;
    }
  }
  return BTC_OK;
}

static int ascending(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static void percentiles_of(float *v, size_t n, const double percent[2], double *low, double *high) {
  *low = 0;
  *high = 255;
  if (!n) return;
  qsort(v, n, sizeof *v, ascending);
  *low = (double)v[(size_t)(percent[0] / 100 * (double)(n - 1))];
  *high = (double)v[(size_t)(percent[1] / 100 * (double)(n - 1))];
  if (!(*high > *low)) *high = *low + 1;
}

static bool meet(const stretch *s) {
  for (int b = 0; b < 3; b++)
    if (s->low[0][b] > s->high[1][b] || s->low[1][b] > s->high[0][b]) return false;
  return true;
}

/* Both dates' samples as one, each counted alike. */
static btc_status join(const sample both[2], const double percent[2], stretch *s, btc_geo_failure *f) {
  size_t n = both[0].n + both[1].n;
  float *all = btc_alloc(n + 1, sizeof *all);
  if (!all) return btc_geo_fail(f, BTC_GEO_OOM, BTC_ERR_NOMEM, "not enough memory for percentiles");
  for (int b = 0; b < 3; b++) {
    memcpy(all, both[0].values[b], both[0].n * sizeof *all);
    memcpy(all + both[0].n, both[1].values[b], both[1].n * sizeof *all);
    percentiles_of(all, n, percent, &s->low[0][b], &s->high[0][b]);
    s->low[1][b] = s->low[0][b];
    s->high[1][b] = s->high[0][b];
  }
  free(all);
  return BTC_OK;
}

static btc_status measure(const image images[2], const double percent[2], stretch *s, btc_geo_failure *f) {
  sample both[2] = {0};
  pixels p = {0};
  btc_status st = BTC_OK;
  if (!sample_create(&both[0]) || !sample_create(&both[1]) || !pixels_create(&p, SIDE * SIDE))
    st = btc_geo_fail(f, BTC_GEO_OOM, BTC_ERR_NOMEM, "not enough memory for percentiles");
  for (int i = 0; st == BTC_OK && i < 2; i++) st = take(&images[i], &both[i], &p, f);
  for (int i = 0; st == BTC_OK && i < 2; i++) {
    for (int b = 0; b < 3; b++) percentiles_of(both[i].values[b], both[i].n, percent, &s->low[i][b], &s->high[i][b]);
  }
  if (st == BTC_OK && s->kind == BTC_STRETCH_AUTO) s->kind = meet(s) ? BTC_STRETCH_JOINT : BTC_STRETCH_EACH;
  if (st == BTC_OK && s->kind == BTC_STRETCH_JOINT) st = join(both, percent, s, f);
  sample_destroy(&both[0]);
  sample_destroy(&both[1]);
  pixels_destroy(&p);
  return st;
}

btc_status stretch_make(const image images[2], btc_scene_stretch_kind kind, const double percentiles[2], const double range[2],
                        stretch *s, btc_geo_failure *f) {
  *s = (stretch){.kind = kind};
  if (kind == BTC_STRETCH_AUTO && images[0].plain_8bit && images[1].plain_8bit) s->kind = BTC_STRETCH_NONE;
  bool fixed = s->kind == BTC_STRETCH_NONE || s->kind == BTC_STRETCH_RANGE;
  for (int i = 0; i < 6; i++) {
    s->low[i / 3][i % 3] = s->kind == BTC_STRETCH_RANGE ? range[0] : 0;
    s->high[i / 3][i % 3] = s->kind == BTC_STRETCH_RANGE ? range[1] : 255;
  }
  return fixed ? BTC_OK : measure(images, percentiles, s, f);
}

static uint8_t to_byte(float v, double low, double scale) {
  double x = ((double)v - low) * scale + 0.5;
  return x < 0 ? 0 : x > 255 ? 255 : (uint8_t)x;
}

void stretch_apply(const stretch *s, int which, const image *im, const pixels *p, uint8_t *rgb) {
  double scale[3];
  for (int b = 0; b < 3; b++) scale[b] = 255 / (s->high[which][b] - s->low[which][b]);
  for (int64_t i = 0; i < (int64_t)p->width * p->height; i++) {
    for (int b = 0; b < 3; b++) {
      uint8_t v = 0;
      if (p->valid[i] && im->palette)
        v = p->palette[3 * i + b];
      else if (p->valid[i])
        v = to_byte(p->band[b < im->n_bands ? b : 0][i], s->low[which][b], scale[b]);
      rgb[3 * i + b] = v;
    }
  }
}
