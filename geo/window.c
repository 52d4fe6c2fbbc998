/* See window.h. */
#include "geo/window.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *btc_verdict_reason(btc_verdict v) {
  static const char *const reasons[] = {"", "unchanged", "nodata", "no-overlap"};
  return reasons[v];
}

const char *btc_verdict_message(const btc_window_pixels *p) {
  static const char *const messages[] = {"", "both images have the same pixels", "too many pixels are missing in one of the images",
                                         "outside the ground that both images show"};
  return messages[p->verdict];
}

void btc_window_pixels_clear(btc_window_pixels *p) {
  free(p->before);
  free(p->after);
  free(p->cell);
  *p = (btc_window_pixels){0};
}

/* ---- common ground ---- */

typedef struct ring {
  int n;
  double p[2 * BTC_SCENE_MAX_OVERLAP_POINTS + 16][2]; /* a cut by a line adds at most one point for each two */
} ring;

/* Keeps the side where sign * (coordinate `axis` - at) >= 0 (Sutherland and Hodgman's step). */
static void cut(const ring *in, int axis, double at, double sign, ring *out) {
  const int most = (int)(sizeof out->p / sizeof out->p[0]);
  out->n = 0;
  for (int i = 0; i < in->n && out->n < most - 1; i++) {
    const double *a = in->p[i], *b = in->p[(i + 1) % in->n];
    double da = sign * (a[axis] - at), db = sign * (b[axis] - at);
    if (da >= 0) memcpy(out->p[out->n++], a, sizeof out->p[0]);
    if ((da >= 0) == (db >= 0)) continue;
    double t = da / (da - db);
    for (int k = 0; k < 2; k++) out->p[out->n][k] = a[k] + t * (b[k] - a[k]);
    out->n++;
  }
}

static double area_of(const ring *r) {
  double twice = 0;
  for (int i = 0; i < r->n; i++) {
    const double *a = r->p[i], *b = r->p[(i + 1) % r->n];
    twice += a[0] * b[1] - a[1] * b[0];
  }
  return fabs(twice) / 2;
}

double btc_window_overlap(const btc_scene_info *info, const btc_window *w) {
  ring a = {.n = info->overlap_points}, b;
  memcpy(a.p, info->overlap, (size_t)info->overlap_points * sizeof a.p[0]);
  cut(&a, 0, (double)w->x, 1, &b);
  cut(&b, 0, (double)(w->x + w->width), -1, &a);
  cut(&a, 1, (double)w->y, 1, &b);
  cut(&b, 1, (double)(w->y + w->height), -1, &a);
  double share = area_of(&a) / ((double)w->width * (double)w->height);
  return share > 1 ? 1 : share;
}

/* ---- pixels ---- */

/* Hides in both what either lacks, counts it, and marks the cells that are at least half there. */
static void join(const btc_window *w, const uint8_t *valid_before, const uint8_t *valid_after, int64_t cells, uint32_t *there,
                 btc_window_pixels *p) {
  int64_t missing = 0, pixels = w->width * w->height;
  for (int64_t y = 0, i = 0; y < w->height; y++) {
    int64_t row = y * cells / w->height * cells;
    for (int64_t x = 0; x < w->width; x++, i++) {
      if (valid_before[i] && valid_after[i]) {
        there[row + x * cells / w->width] += 2;
      } else {
        memset(p->before + 3 * i, 0, 3);
        memset(p->after + 3 * i, 0, 3);
        missing++;
      }
      there[cells * cells + row + x * cells / w->width]++;
    }
  }
  for (int64_t c = 0; c < cells * cells; c++) p->cell[c] = there[c] >= there[cells * cells + c];
  p->missing = (double)missing / (double)pixels;
}

btc_status btc_window_read(btc_scene *s, const btc_window *w, double max_missing, int64_t cells, btc_window_pixels *out,
                           btc_geo_failure *f) {
  size_t pixels = (size_t)(w->width * w->height), grid = (size_t)(cells * cells);
  *out = (btc_window_pixels){0};
  if (btc_window_overlap(btc_scene_get_info(s), w) < 1e-6) {
    out->verdict = BTC_VERDICT_NO_OVERLAP;
    out->missing = 1;
    return BTC_OK;
  }
  uint8_t *valid = btc_alloc(2 * pixels, 1);
  uint32_t *there = btc_alloc_zero(2 * grid, sizeof *there); /* per cell: twice the pixels that are there; all pixels */
  out->before = btc_alloc(3 * pixels, 1);
  out->after = btc_alloc(3 * pixels, 1);
  out->cell = btc_alloc(grid, 1);
  const bool room = valid && there && out->before && out->after && out->cell;
  btc_status st = BTC_OK;
  if (!room)
    st = btc_geo_fail(f, BTC_GEO_OOM, BTC_ERR_NOMEM, "not enough memory for a window");
  else
    st = btc_scene_read(s, (int)w->x, (int)w->y, (int)w->width, (int)w->height, out->before, out->after, valid, valid + pixels, f);
  if (room && st == BTC_OK) {
    join(w, valid, valid + pixels, cells, there, out);
    if (out->missing > max_missing || out->missing >= 1)
      out->verdict = BTC_VERDICT_NODATA;
    else if (memcmp(out->before, out->after, 3 * pixels) == 0)
      out->verdict = BTC_VERDICT_UNCHANGED;
  } else {
    btc_window_pixels_clear(out);
  }
  free(valid);
  free(there);
  return st;
}
