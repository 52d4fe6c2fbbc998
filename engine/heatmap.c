/*
 * Change map to picture. Interpolation is Catmull-Rom between cell centres: 27 cells over 384 pixels look like tiles with
 * nearest neighbour and like diamonds with bilinear. The later date is turned to muted grey below the colours, because any
 * hue of its own (vegetation above all) would read as part of the ramp.
 */
#include "heatmap.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GLYPH_WIDTH 5
#define GLYPH_HEIGHT 7
#define BAR_ROWS 7 /* of the legend, in dots; a dot is dot_size() pixels */
#define MARGIN 4

/* ---- colours ---- */

/* Even steps of lightness from 7 % to 96 %, hue turning once from violet over red to yellow. */
static const uint8_t ramp[9][3] = {{22, 14, 54},  {62, 18, 104},  {108, 26, 118}, {156, 38, 106}, {200, 58, 78},
                                   {232, 94, 46}, {248, 142, 30}, {251, 194, 64}, {252, 246, 168}};

void btc_heatmap_colour(float t, uint8_t rgb[3]) {
  const int steps = (int)(sizeof ramp / sizeof ramp[0]) - 1;
  if (!(t > 0.0f)) t = 0.0f;
  if (t > 1.0f) t = 1.0f;
  float at = t * (float)steps;
  int i = (int)at < steps ? (int)at : steps - 1;
  float f = at - (float)i;
  for (int c = 0; c < 3; c++) rgb[c] = (uint8_t)((float)ramp[i][c] * (1 - f) + (float)ramp[i + 1][c] * f + 0.5f);
}

/* Colour over the grey of the photo: faint where little changed, strong but never opaque at the top, so that the new building
 * stays visible below its colour. */
static void blend(float t, const uint8_t *photo, uint8_t rgb[3]) {
  uint8_t colour[3];
  btc_heatmap_colour(t, colour);
  float grey = 0.8f * (0.299f * photo[0] + 0.587f * photo[1] + 0.114f * photo[2]);
  float alpha = 0.8f * t * (2.0f - t);
  for (int c = 0; c < 3; c++) rgb[c] = (uint8_t)(grey * (1 - alpha) + colour[c] * alpha + 0.5f);
}

/* ---- values ---- */

static float change_of(float cosine) {
  float v = (1.0f - cosine) / 2.0f;
  return v < 0.0f ? 0.0f : v > 1.0f ? 1.0f : v;
}

/* One output sample's four cells and weights along one axis; cells past the edge repeat the edge. */
typedef struct tap {
  int32_t cell[4];
  float weight[4];
} tap;

static void fill_taps(tap *taps, int64_t side, int64_t g) {
  for (int64_t o = 0; o < side; o++) {
    double at = ((double)o + 0.5) * (double)g / (double)side - 0.5, floor_at = floor(at);
    float f = (float)(at - floor_at);
    taps[o].weight[0] = ((-0.5f * f + 1.0f) * f - 0.5f) * f;
    taps[o].weight[1] = (1.5f * f - 2.5f) * f * f + 1.0f;
    taps[o].weight[2] = ((-1.5f * f + 2.0f) * f + 0.5f) * f;
    taps[o].weight[3] = (0.5f * f - 0.5f) * f * f;
    for (int k = 0; k < 4; k++) {
      int64_t cell = (int64_t)floor_at - 1 + k;
      taps[o].cell[k] = (int32_t)(cell < 0 ? 0 : cell >= g ? g - 1 : cell);
    }
  }
}

/* change [g, g] -> one row of `side` values at height y; column is scratch [g]. */
static void interpolate_row(const float *change, int64_t g, const tap *y, const tap *x, int64_t side, float *column, float *row) {
  for (int64_t i = 0; i < g; i++) {
    column[i] = 0.0f;
    for (int k = 0; k < 4; k++) column[i] += y->weight[k] * change[y->cell[k] * g + i];
  }
  for (int64_t o = 0; o < side; o++) {
    row[o] = 0.0f;
    for (int k = 0; k < 4; k++) row[o] += x[o].weight[k] * column[x[o].cell[k]];
  }
}

/* ---- legend ---- */

typedef struct glyph {
  char letter;
  uint8_t rows[GLYPH_HEIGHT]; /* bit 4 is the leftmost dot */
} glyph;

static const glyph font[] = {
    {'0', {14, 17, 19, 21, 25, 17, 14}}, {'1', {4, 12, 4, 4, 4, 4, 14}},  {'2', {14, 17, 1, 6, 8, 16, 31}},
    {'3', {30, 1, 1, 14, 1, 1, 30}},     {'4', {2, 6, 10, 18, 31, 2, 2}}, {'5', {31, 16, 30, 1, 1, 17, 14}},
    {'6', {6, 8, 16, 30, 17, 17, 14}},   {'7', {31, 1, 2, 4, 8, 8, 8}},   {'8', {14, 17, 17, 14, 17, 17, 14}},
    {'9', {14, 17, 17, 15, 1, 2, 12}},   {'.', {0, 0, 0, 0, 0, 12, 12}},
};

static int64_t dot_size(int64_t side) {
  return side < 384 ? 1 : side / 192;
}

int64_t btc_heatmap_legend_height(int64_t side) {
  return side < BTC_HEATMAP_LEGEND_SIDE ? 0 : (BAR_ROWS + 2 * MARGIN) * dot_size(side);
}

static void fill_rect(btc_image *im, int64_t x, int64_t y, int64_t width, int64_t height, const uint8_t rgb[3]) {
  for (int64_t j = y; j < y + height; j++) {
    for (int64_t i = x; i < x + width; i++) memcpy(im->rgb + (j * im->width + i) * 3, rgb, 3);
  }
}

static void draw_text(btc_image *im, const char *text, int64_t x, int64_t y, int64_t dot) {
  static const uint8_t ink[3] = {235, 235, 235};
  for (; *text; text++, x += (GLYPH_WIDTH + 1) * dot) {
    for (size_t f = 0; f < sizeof font / sizeof font[0]; f++) {
      if (font[f].letter != *text) continue;
      for (int n = 0; n < GLYPH_WIDTH * GLYPH_HEIGHT; n++) {
        int row = n / GLYPH_WIDTH, col = n % GLYPH_WIDTH;
        if (font[f].rows[row] >> (GLYPH_WIDTH - 1 - col) & 1) fill_rect(im, x + col * dot, y + row * dot, dot, dot, ink);
      }
    }
  }
}

/* "0 [ramp] 0.43" in the rows below the square. */
static void draw_legend(btc_image *im, int64_t side, float scale) {
  static const uint8_t paper[3] = {28, 28, 32};
  int64_t height = btc_heatmap_legend_height(side), dot = dot_size(side), y = side + MARGIN * dot;
  if (height == 0) return;
  char text[8];
  snprintf(text, sizeof text, "%.2f", (double)scale);
  int64_t text_width = (int64_t)strlen(text) * (GLYPH_WIDTH + 1) * dot;
  int64_t left = (2 * MARGIN + GLYPH_WIDTH) * dot, right = side - 2 * MARGIN * dot - text_width;
  fill_rect(im, 0, side, side, height, paper);
  draw_text(im, "0", MARGIN * dot, y, dot);
  draw_text(im, text, right + MARGIN * dot, y, dot);
  for (int64_t x = left; x < right; x++) {
    uint8_t rgb[3];
    btc_heatmap_colour((float)(x - left) / (float)(right - left - 1), rgb);
    fill_rect(im, x, y, 1, BAR_ROWS * dot, rgb);
  }
}

/* ---- the picture ---- */

static btc_status check(const float *cos, int64_t g, int64_t side, btc_error *err) {
  if (g < 1 || g > BTC_HEATMAP_MAX_GRID) {
    return btc_fail(err, BTC_ERR_ARG, "change map: a grid of %lld cells a side; 1 to %d are drawn", (long long)g,
                    BTC_HEATMAP_MAX_GRID);
  }
  if (side < 1 || side > BTC_HEATMAP_MAX_SIDE) {
    return btc_fail(err, BTC_ERR_ARG, "change map: a side of %lld pixels; 1 to %d are drawn", (long long)side,
                    BTC_HEATMAP_MAX_SIDE);
  }
  for (int64_t i = 0; i < g * g; i++) {
    if (!isfinite(cos[i])) {
      return btc_fail(err, BTC_ERR_ARG, "change map: the cosine of row %lld, column %lld is not a number", (long long)(i / g),
                      (long long)(i % g));
    }
  }
  return BTC_OK;
}

/* photo: [side, side, 3] or NULL. values: scratch for the change [g, g], a column [g] and a row [side]. */
static void draw(btc_image *out, int64_t side, const uint8_t *photo, const float *cos, int64_t g, const tap *taps, float *values) {
  float *column = values + g * g, *row = column + g, scale = BTC_HEATMAP_MIN_SCALE;
  for (int64_t i = 0; i < g * g; i++) {
    values[i] = change_of(cos[i]);
    if (values[i] > scale) scale = values[i];
  }
  for (int64_t y = 0; y < side; y++) {
    interpolate_row(values, g, &taps[y], taps, side, column, row);
    uint8_t *rgb = out->rgb + y * side * 3;
    for (int64_t x = 0; x < side; x++, rgb += 3) {
      float t = row[x] / scale;
      t = t < 0.0f ? 0.0f : t > 1.0f ? 1.0f : t;
      if (photo)
        blend(t, photo + (y * side + x) * 3, rgb);
      else
        btc_heatmap_colour(t, rgb);
    }
  }
  draw_legend(out, side, scale);
}

btc_status btc_heatmap_render(const float *cos, int64_t g, const btc_image *after, int64_t side, btc_image *out, btc_error *err) {
  *out = (btc_image){0};
  btc_status status = check(cos, g, side, err);
  if (status != BTC_OK) return status;
  btc_image photo = {0};
  if (after) status = btc_image_resize(after, side, side, &photo, err);
  if (status != BTC_OK) return status;
  btc_image im = {.width = side, .height = side + btc_heatmap_legend_height(side)};
  im.rgb = btc_alloc((size_t)(im.width * im.height), 3);
  tap *taps = btc_alloc((size_t)side, sizeof *taps);
  float *values = btc_alloc((size_t)(g * g + g + side), sizeof *values);
  if (im.rgb && taps && values) {
    fill_taps(taps, side, g);
    draw(&im, side, photo.rgb, cos, g, taps, values);
    *out = im;
  } else {
    status = btc_fail(err, BTC_ERR_NOMEM, "no memory to draw a change map of %lld x %lld pixels", (long long)side, (long long)side);
    free(im.rgb);
  }
  free(taps);
  free(values);
  btc_image_free(&photo);
  return status;
}
