/*
 * Pillow's 8-bit bicubic resize (spec 3.3) as a stream: rows go in from the top, each is filtered horizontally at once, and an
 * output row is made as soon as the last row its vertical window needs is there. Only that window is kept, so that the memory
 * does not depend on the picture's height. All arithmetic on pixels is in 32-bit integers, where the order of additions does
 * not matter; the results are those of Pillow bit for bit.
 */
#include "image_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PRECISION_BITS 22 /* spec 3.3: 32 - 8 - 2 */
#define PAD_VALUE 127     /* spec 3.2: int(0.5 * 255) */
/* Samples taken at once by the horizontal filter: a multiple of 3 channels and of 8 lanes. */
#define H_BLOCK 24
#define FEW_TAPS 4 /* what an axis that grows needs */
/* Samples taken at once by the vertical filter. */
#define V_BLOCK 32

/* The weights of one axis. Output o is the sum over k < count[o] of q[o * stride + k] * in[start[o] + k]. For the horizontal
 * axis every weight stands once per channel and zeros fill the last block, so the loop runs over interleaved samples. */
typedef struct axis {
  int64_t out, window; /* outputs; largest count, in pixels */
  int64_t stride;
  int32_t *start, *count; /* [out], in pixels */
  int32_t *q;             /* [out, stride] */
} axis;

struct btc_resizer {
  btc_resize_plan plan;
  axis h, v;
  int64_t first, last;    /* outputs of the horizontal filter that see the picture; the others are background */
  int64_t next_row;       /* canvas row that comes next */
  int64_t next_out;       /* output row not yet made */
  int64_t samples;        /* of one filtered row: out_width * channels */
  int64_t row_stride;     /* samples rounded up to whole V_BLOCKs */
  uint8_t *line;          /* [canvas_width * channels + H_BLOCK]: the current row between background */
  uint8_t *background;    /* [row_stride]: a filtered row of background */
  uint8_t *ring;          /* [v.window, row_stride]: the latest filtered rows, row y in slot y % v.window */
  const uint8_t **window; /* [v.window]: rows of one output, top to bottom */
  uint8_t *grey;          /* [row_stride]: an output row of one channel before it is replicated */
  uint8_t *out;
  void (*filter_h)(const struct btc_resizer *r, uint8_t *out);
  void (*filter_v)(const struct btc_resizer *r, const int32_t *q, int64_t taps, uint8_t *out);
};

/* ---- weights ---- */

static double bicubic(double x) {
  const double a = -0.5;
  if (x < 0.0) x = -x;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

/* Largest number of input pixels an output can need. */
static int64_t axis_window(int64_t in, int64_t out) {
  if (in == out) return 1;
  double scale = (double)in / (double)out;
  int64_t taps = (int64_t)ceil(2.0 * fmax(scale, 1.0)) * 2 + 1;
  return taps < in ? taps : in;
}

static int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

static int32_t fixed_point(double w) {
  return (int32_t)(w * (1 << PRECISION_BITS) + (w < 0 ? -0.5 : 0.5));
}

/* Weights of output o into w[window]; returns their number and the first input in *start. */
static int32_t bicubic_weights(int64_t in, int64_t out, int64_t o, double *w, int32_t *start) {
  double scale = (double)in / (double)out, filter_scale = fmax(scale, 1.0), support = 2.0 * filter_scale;
  double center = ((double)o + 0.5) * scale, inverse = 1.0 / filter_scale, sum = 0.0;
  int64_t lo = (int64_t)(center - support + 0.5), hi = (int64_t)(center + support + 0.5);
  if (lo < 0) lo = 0;
  if (hi > in) hi = in;
  for (int64_t k = 0; k < hi - lo; k++) {
    w[k] = bicubic(((double)(k + lo) - center + 0.5) * inverse);
    sum += w[k];
  }
  for (int64_t k = 0; k < hi - lo; k++) {
    if (sum != 0.0) w[k] /= sum;
  }
  *start = (int32_t)lo;
  return (int32_t)(hi - lo);
}

static bool axis_init(axis *a, int64_t in, int64_t out, int repeat, int64_t block) {
  a->out = out;
  a->window = axis_window(in, out);
  a->stride = round_up(a->window * repeat, block);
  a->start = btc_alloc((size_t)out, sizeof *a->start);
  a->count = btc_alloc((size_t)out, sizeof *a->count);
  a->q = btc_alloc_zero((size_t)out, (size_t)a->stride * sizeof *a->q);
  double *w = btc_alloc((size_t)a->window, sizeof *w);
  bool ok = a->start && a->count && a->q && w;
  for (int64_t o = 0; ok && o < out; o++) {
    if (in == out) { /* the pass is skipped: one weight of exactly 1 */
      w[0] = 1.0, a->start[o] = (int32_t)o, a->count[o] = 1;
    } else {
      a->count[o] = bicubic_weights(in, out, o, w, &a->start[o]);
    }
    int32_t *q = a->q + o * a->stride;
    for (int64_t k = 0; k < a->count[o] * repeat; k++) q[k] = fixed_point(w[k / repeat]);
  }
  free(w);
  return ok;
}

static void axis_clear(axis *a) {
  free(a->start);
  free(a->count);
  free(a->q);
}

/* ---- the two filters ---- */

static inline __attribute__((always_inline)) uint8_t clip(int32_t sum) {
  int32_t v = sum >> PRECISION_BITS;
  return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* The sums of FEW_TAPS pixels, as in enlarging: too few to be worth a block and its folding. Weights past the count are 0. */
static inline __attribute__((always_inline)) void few_taps(const uint8_t *p, const int32_t *q, int channels, uint8_t *out) {
  for (int c = 0; c < channels; c++) {
    int32_t sum = 1 << (PRECISION_BITS - 1);
    for (int k = 0; k < FEW_TAPS; k++) sum += q[k * channels + c] * p[k * channels + c];
    out[c] = clip(sum);
  }
}

/* Outputs first..last-1 of r->line. Lane j of the accumulator always belongs to channel j % channels, also while folding it to
 * three lanes. */
static inline __attribute__((always_inline)) void filter_h_body(const btc_resizer *r, int channels, uint8_t *out) {
  for (int64_t o = r->first; o < r->last; o++) {
    const uint8_t *p = r->line + (int64_t)r->h.start[o] * channels;
    const int32_t *q = r->h.q + o * r->h.stride;
    int64_t n = (int64_t)r->h.count[o] * channels;
    if (n <= FEW_TAPS * channels) {
      few_taps(p, q, channels, out + o * channels);
      continue;
    }
    int32_t acc[H_BLOCK] = {0};
    for (; n > 0; n -= H_BLOCK, p += H_BLOCK, q += H_BLOCK) {
      for (int j = 0; j < H_BLOCK; j++) acc[j] += q[j] * p[j];
    }
    for (int half = H_BLOCK / 2; half >= 3; half /= 2) {
      for (int j = 0; j < half; j++) acc[j] += acc[j + half];
    }
    if (channels == 1) acc[0] += acc[1] + acc[2];
    for (int c = 0; c < channels; c++) out[o * channels + c] = clip(acc[c] + (1 << (PRECISION_BITS - 1)));
  }
}

static inline __attribute__((always_inline)) void filter_v_body(const btc_resizer *r, const int32_t *q, int64_t taps,
                                                                uint8_t *out) {
  for (int64_t x = 0; x < r->samples; x += V_BLOCK) {
    int32_t acc[V_BLOCK];
    for (int j = 0; j < V_BLOCK; j++) acc[j] = 1 << (PRECISION_BITS - 1);
    for (int64_t k = 0; k < taps; k++) {
      const uint8_t *p = r->window[k] + x;
      for (int j = 0; j < V_BLOCK; j++) acc[j] += q[k] * p[j];
    }
    int64_t n = r->samples - x < V_BLOCK ? r->samples - x : V_BLOCK;
    uint8_t result[V_BLOCK];
    for (int j = 0; j < V_BLOCK; j++) result[j] = clip(acc[j]);
    memcpy(out + x, result, (size_t)n);
  }
}

static void filter_h_plain(const btc_resizer *r, uint8_t *out) {
  if (r->plan.channels == 3)
    filter_h_body(r, 3, out);
  else
    filter_h_body(r, 1, out);
}

static void filter_v_plain(const btc_resizer *r, const int32_t *q, int64_t taps, uint8_t *out) {
  filter_v_body(r, q, taps, out);
}

#if defined(__x86_64__)
/* The same loops where the compiler may use a 32-bit vector multiply, which baseline x86-64 lacks. */
__attribute__((target("avx2"))) static void filter_h_avx2(const btc_resizer *r, uint8_t *out) {
  if (r->plan.channels == 3)
    filter_h_body(r, 3, out);
  else
    filter_h_body(r, 1, out);
}

__attribute__((target("avx2"))) static void filter_v_avx2(const btc_resizer *r, const int32_t *q, int64_t taps, uint8_t *out) {
  filter_v_body(r, q, taps, out);
}
#endif

static void choose_filters(btc_resizer *r) {
  r->filter_h = filter_h_plain;
  r->filter_v = filter_v_plain;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) {
    r->filter_h = filter_h_avx2;
    r->filter_v = filter_v_avx2;
  }
#endif
}

/* ---- the stream ---- */

static uint64_t axis_bytes(int64_t in, int64_t out, int repeat, int64_t block) {
  int64_t window = axis_window(in, out);
  return (uint64_t)out * (uint64_t)(round_up(window * repeat, block) + 2) * sizeof(int32_t) + (uint64_t)window * sizeof(double);
}

uint64_t btc_resizer_bytes(const btc_resize_plan *p) {
  uint64_t row = (uint64_t)round_up(p->out_width * p->channels, V_BLOCK);
  uint64_t window = (uint64_t)axis_window(p->canvas_height, p->out_height);
  return sizeof(btc_resizer) + axis_bytes(p->canvas_width, p->out_width, p->channels, H_BLOCK) +
         axis_bytes(p->canvas_height, p->out_height, 1, 1) + (uint64_t)(p->canvas_width * p->channels + H_BLOCK) +
         (window + 2) * row + window * sizeof(uint8_t *);
}

static bool resizer_alloc(btc_resizer *r) {
  const btc_resize_plan *p = &r->plan;
  if (!axis_init(&r->h, p->canvas_width, p->out_width, p->channels, H_BLOCK)) return false;
  if (!axis_init(&r->v, p->canvas_height, p->out_height, 1, 1)) return false;
  r->samples = p->out_width * p->channels;
  r->row_stride = round_up(r->samples, V_BLOCK);
  r->line = btc_alloc_zero((size_t)(p->canvas_width * p->channels + H_BLOCK), 1);
  r->background = btc_alloc_zero((size_t)r->row_stride, 1);
  r->ring = btc_alloc_zero((size_t)r->v.window, (size_t)r->row_stride);
  r->window = btc_alloc((size_t)r->v.window, sizeof *r->window);
  r->grey = btc_alloc((size_t)r->row_stride, 1);
  return r->line && r->background && r->ring && r->window && r->grey;
}

static void write_row(btc_resizer *r, int64_t o) {
  int64_t width = r->plan.out_width;
  uint8_t *out = r->out + o * width * 3;
  const int32_t *q = r->v.q + o * r->v.stride;
  if (r->plan.channels == 3) {
    r->filter_v(r, q, r->v.count[o], out);
    return;
  }
  r->filter_v(r, q, r->v.count[o], r->grey);
  for (int64_t x = 0; x < width; x++) out[3 * x] = out[3 * x + 1] = out[3 * x + 2] = r->grey[x];
}

/* Makes every output row whose window ends above canvas row next_row. */
static void emit(btc_resizer *r) {
  int64_t top = r->plan.top, bottom = top + r->plan.height;
  for (; r->next_out < r->plan.out_height; r->next_out++) {
    int64_t lo = r->v.start[r->next_out], taps = r->v.count[r->next_out];
    if (lo + taps > r->next_row) return;
    for (int64_t k = 0; k < taps; k++) {
      int64_t y = lo + k;
      r->window[k] = y < top || y >= bottom ? r->background : r->ring + (y % r->v.window) * r->row_stride;
    }
    write_row(r, r->next_out);
  }
}

btc_resizer *btc_resizer_create(const btc_resize_plan *plan, uint8_t *out) {
  btc_resizer *r = btc_alloc_zero(1, sizeof *r);
  if (!r) return NULL;
  r->plan = *plan;
  r->out = out;
  if (!resizer_alloc(r)) {
    btc_resizer_destroy(&r);
    return NULL;
  }
  choose_filters(r);
  memset(r->line, PAD_VALUE, (size_t)(plan->canvas_width * plan->channels));
  r->last = plan->out_width;
  r->filter_h(r, r->background);
  for (int64_t i = 0; i < r->v.window; i++) memcpy(r->ring + i * r->row_stride, r->background, (size_t)r->row_stride);
  while (r->first < r->last && r->h.start[r->first] + r->h.count[r->first] <= plan->left) r->first++;
  while (r->last > r->first && r->h.start[r->last - 1] >= plan->left + plan->width) r->last--;
  r->next_row = plan->top;
  emit(r);
  return r;
}

void btc_resizer_push(btc_resizer *r, const uint8_t *row) {
  const btc_resize_plan *p = &r->plan;
  uint8_t *slot = r->ring + (r->next_row % r->v.window) * r->row_stride;
  if (p->canvas_width == p->out_width) {
    memcpy(slot + p->left * p->channels, row, (size_t)(p->width * p->channels));
  } else {
    memcpy(r->line + p->left * p->channels, row, (size_t)(p->width * p->channels));
    r->filter_h(r, slot);
  }
  r->next_row++;
  if (r->next_row == p->top + p->height) r->next_row = p->canvas_height; /* what is left is background */
  emit(r);
}

void btc_resizer_destroy(btc_resizer **r) {
  if (!*r) return;
  axis_clear(&(*r)->h);
  axis_clear(&(*r)->v);
  free((*r)->line);
  free((*r)->background);
  free((*r)->ring);
  free(((*r)->window));
  free((*r)->grey);
  free(*r);
  *r = NULL;
}

static bool side_ok(int64_t n) {
  return n >= 1 && n <= BTC_IMAGE_MAX_SIDE;
}

btc_status btc_image_resize(const btc_image *in, int64_t width, int64_t height, btc_image *out, btc_error *err) {
  *out = (btc_image){0};
  if (!side_ok(in->width) || !side_ok(in->height) || !side_ok(width) || !side_ok(height)) {
    return btc_fail(err, BTC_ERR_ARG, "cannot resize %lld x %lld pixels to %lld x %lld: sides go from 1 to %d",
                    (long long)in->width, (long long)in->height, (long long)width, (long long)height, BTC_IMAGE_MAX_SIDE);
  }
  btc_resize_plan plan = {.width = in->width,
                          .height = in->height,
                          .canvas_width = in->width,
                          .canvas_height = in->height,
                          .out_width = width,
                          .out_height = height,
                          .channels = 3};
  uint8_t *rgb = btc_alloc((size_t)(width * height), 3);
  btc_resizer *r = rgb ? btc_resizer_create(&plan, rgb) : NULL;
  if (!r) {
    free(rgb);
    return btc_fail(err, BTC_ERR_NOMEM, "no memory to resize an image to %lld x %lld pixels", (long long)width, (long long)height);
  }
  for (int64_t y = 0; y < in->height; y++) btc_resizer_push(r, in->rgb + y * in->width * 3);
  btc_resizer_destroy(&r);
  *out = (btc_image){.width = width, .height = height, .rgb = rgb};
  return BTC_OK;
}
