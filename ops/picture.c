/*
 * Pictures to a tower's pixels by plain loops over integers: the ground truth of kernels/cuda/resize.cu and of the streaming
 * resizer of engine/image_resize.c, and what host backends do. It owns no memory, so filtered rows are computed as often as they
 * are needed; what already is the square, which is what a host is given, takes a table of shades. See ops.h.
 */
#include <math.h>

#include "ops/backend.h"

enum { PRECISION_BITS = 22, BACKGROUND = 127 }; /* spec 3.3, 3.2 */

bool btc_picture_fits(int64_t width, int64_t height, int64_t side) {
  const int64_t most = BTC_PICTURE_SQUARES * side;
  return width >= 1 && height >= 1 && width <= most && height <= most && width * height <= most * side;
}

size_t btc_picture_bytes(int64_t side) {
  return (size_t)(BTC_PICTURE_SQUARES * side * side) * 3;
}

static double bicubic(double x) {
  const double a = -0.5;
  if (x < 0.0) x = -x;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

/* The inputs [start, start + count) of one output of an axis, and what their weights are made of. */
typedef struct window {
  int64_t start, count;
  double center, inverse, sum;
  bool same; /* the axis keeps its length: one weight of exactly 1 */
} window;

static double raw_weight(const window *w, int64_t k) {
  return bicubic(((double)(k + w->start) - w->center + 0.5) * w->inverse);
}

static window window_of(int64_t in, int64_t out, int64_t o) {
  if (in == out) return (window){.start = o, .count = 1, .same = true};
  const double scale = (double)in / (double)out, filter_scale = fmax(scale, 1.0), support = 2.0 * filter_scale;
  window w = {.center = ((double)o + 0.5) * scale, .inverse = 1.0 / filter_scale};
  int64_t low = (int64_t)(w.center - support + 0.5), high = (int64_t)(w.center + support + 0.5);
  w.start = low < 0 ? 0 : low;
  w.count = (high > in ? in : high) - w.start;
  for (int64_t k = 0; k < w.count; k++) w.sum += raw_weight(&w, k);
  return w;
}

static int32_t weight(const window *w, int64_t k) {
  if (w->same) return 1 << PRECISION_BITS;
  double x = raw_weight(w, k);
  if (w->sum != 0.0) x /= w->sum;
  return (int32_t)(x * (1 << PRECISION_BITS) + (x < 0 ? -0.5 : 0.5));
}

static uint8_t clip(int32_t sum) {
  const int32_t v = sum >> PRECISION_BITS;
  return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* A picture on its canvas. */
typedef struct canvas {
  const btc_picture *p;
  int64_t width, height, left, top;
} canvas;

static uint8_t sample(const canvas *c, int64_t y, int64_t x, int channel) {
  const int64_t row = y - c->top, column = x - c->left;
  const bool inside = row >= 0 && row < c->p->height && column >= 0 && column < c->p->width;
  return inside ? c->p->rgb[(row * c->p->width + column) * 3 + channel] : BACKGROUND;
}

static uint8_t filter_row(const canvas *c, const window *h, int64_t y, int channel) {
  int32_t sum = 1 << (PRECISION_BITS - 1);
  for (int64_t k = 0; k < h->count; k++) sum += weight(h, k) * sample(c, y, h->start + k, channel);
  return clip(sum);
}

static uint8_t filter(const canvas *c, const window *v, const window *h, int channel) {
  int32_t sum = 1 << (PRECISION_BITS - 1);
  for (int64_t k = 0; k < v->count; k++) sum += weight(v, k) * filter_row(c, h, v->start + k, channel);
  return clip(sum);
}

static void make_shades(const btc_shades *s, int channel, float table[256]) {
  for (int v = 0; v < 256; v++) table[v] = ((float)((double)v * s->rescale) - s->mean[channel]) / s->std[channel];
}

static void resize(float *pixels, const canvas *c, int64_t side, float shade[3][256]) {
  for (int64_t y = 0; y < side; y++) {
    const window v = window_of(c->height, side, y);
    for (int64_t x = 0; x < side; x++) {
      const window h = window_of(c->width, side, x);
      for (int channel = 0; channel < 3; channel++)
        pixels[(channel * side + y) * side + x] = shade[channel][filter(c, &v, &h, channel)];
    }
  }
}

void btc_normalise(float *out, const uint8_t *rgb, int64_t n, const btc_shades *s) {
  for (int channel = 0; channel < 3; channel++) {
    float shade[256];
    make_shades(s, channel, shade);
    for (int64_t i = 0; i < n; i++) out[channel * n + i] = shade[rgb[3 * i + channel]];
  }
}

void btc_resize_normalise(float *pixels, const btc_picture *p, int64_t side, const btc_shades *s) {
  float shade[3][256];
  if (p->width == side && p->height == side) {
    btc_normalise(pixels, p->rgb, side * side, s);
    return;
  }
  for (int channel = 0; channel < 3; channel++) make_shades(s, channel, shade[channel]);
  canvas c = {.p = p, .width = p->width, .height = p->height};
  if (p->pad) {
    c.width = c.height = p->width > p->height ? p->width : p->height;
    c.left = (c.width - p->width) / 2;
    c.top = (c.height - p->height) / 2;
  }
  resize(pixels, &c, side, shade);
}
