/* See cells.h. */
#include "geo/cells.h"

#include <stdio.h>
#include <string.h>

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static uint8_t byte_of(const uint16_t *cells, size_t i) {
  return (uint8_t)(i % 2 ? cells[i / 2] >> 8 : cells[i / 2]);
}

char *btc_cells_encode(const uint16_t *cells, size_t n) {
  size_t bytes = 2 * n;
  char *out = btc_alloc((bytes + 2) / 3 * 4 + 1, 1), *w = out;
  for (size_t i = 0; out && i < bytes; i += 3) {
    size_t left = bytes - i < 3 ? bytes - i : 3;
    uint32_t v = (uint32_t)byte_of(cells, i) << 16;
    if (left > 1) v |= (uint32_t)byte_of(cells, i + 1) << 8;
    if (left > 2) v |= byte_of(cells, i + 2);
    for (size_t k = 0; k < 4; k++) *w++ = k <= left ? digits[v >> (18 - 6 * k) & 63] : '=';
  }
  if (out) *w = 0;
  return out;
}

size_t btc_cells_count(const char *text) {
  size_t n = strlen(text), pad = n && text[n - 1] == '=' ? 1 : 0;
  if (n > 1 && text[n - 2] == '=') pad++;
  return n % 4 ? 0 : (n / 4 * 3 - pad) / 2;
}

bool btc_cells_decode(const char *text, uint16_t *cells, size_t n) {
  size_t len = strlen(text), bytes = 2 * n, pad = (3 - bytes % 3) % 3, at = 0;
  uint32_t bits = 0;
  if (len != (bytes + 2) / 3 * 4) return false;
  memset(cells, 0, n * sizeof *cells);
  for (size_t i = 0; i < len; i++) {
    const char *d = strchr(digits, text[i]);
    if (i >= len - pad ? text[i] != '=' : !d) return false;
    bits = bits << 6 | (i >= len - pad ? 0 : (uint32_t)(d - digits));
    if (i % 4 != 3) continue;
    for (int k = 16; k >= 0 && at < bytes; k -= 8, at++) cells[at / 2] |= (uint16_t)((bits >> k & 0xff) << (at % 2 ? 8 : 0));
    bits = 0;
  }
  return true;
}

btc_status btc_scene_options_bands(const char *text, btc_scene_options *o, btc_error *err) {
  int used = 0, b[3];
  if (!text) return BTC_OK;
  // NOLINTNEXTLINE(cert-err34-c): the widths bound the numbers
  if (sscanf(text, "%9d,%9d,%9d%n", b, b + 1, b + 2, &used) != 3 || text[used] || b[0] < 1 || b[1] < 1 || b[2] < 1)
    return btc_fail(err, BTC_ERR_ARG, "bands '%s' are not three band numbers like 4,3,2", text);
  memcpy(o->bands, b, sizeof b);
  return BTC_OK;
}

btc_status btc_scene_options_stretch(const char *text, btc_scene_options *o, btc_error *err) {
  static const char *const kinds[] = {"auto", "none", "joint", "each"};
  int used = 0;
  if (!text) return BTC_OK;
  for (int i = 0; i < 4; i++) {
    if (strcmp(text, kinds[i]) != 0) continue;
    o->stretch = (btc_scene_stretch_kind)i;
    return BTC_OK;
  }
  o->stretch = BTC_STRETCH_RANGE;
  // NOLINTNEXTLINE(cert-err34-c): what is too large becomes infinite, and LOW < HIGH is asked for
  bool two = sscanf(text, "%lf,%lf%n", &o->stretch_min, &o->stretch_max, &used) == 2 && !text[used];
  if (two && o->stretch_min < o->stretch_max) return BTC_OK;
  return btc_fail(err, BTC_ERR_ARG, "stretch '%s' is none of auto, none, joint, each, LOW,HIGH", text);
}

btc_status btc_scene_options_shift(const char *text, btc_scene_options *o, btc_error *err) {
  static const char *const kinds[] = {"none", "estimate", "apply"};
  if (!text) return BTC_OK;
  for (int i = 0; i < 3; i++) {
    if (strcmp(text, kinds[i]) != 0) continue;
    o->shift = (btc_scene_shift_kind)i;
    return BTC_OK;
  }
  return btc_fail(err, BTC_ERR_ARG, "shift '%s' is none of none, estimate, apply", text);
}

static btc_status number(const json_t *o, const char *key, double low, double high, double *out, btc_error *err) {
  const json_t *v = json_object_get(o, key);
  if (!v) return BTC_OK;
  double x = json_number_value(v);
  if (!json_is_number(v) || !(x >= low && x <= high))
    return btc_fail(err, BTC_ERR_ARG, "scene: '%s' is not a number in its range", key);
  *out = x;
  return BTC_OK;
}

btc_status btc_scene_options_json(const json_t *o, btc_scene_options *out, double *max_nodata, btc_error *err) {
  if (o && !json_is_object(o)) return btc_fail(err, BTC_ERR_ARG, "scene: not an object");
  btc_status st = btc_scene_options_bands(json_string_value(json_object_get(o, "bands")), out, err);
  if (st == BTC_OK) st = btc_scene_options_stretch(json_string_value(json_object_get(o, "stretch")), out, err);
  if (st == BTC_OK) st = btc_scene_options_shift(json_string_value(json_object_get(o, "shift")), out, err);
  if (st == BTC_OK) st = number(o, "gsd_m", 0, 100000, &out->gsd_m, err);
  if (st == BTC_OK) st = number(o, "max_nodata", 0, 1, max_nodata, err);
  out->pixels = json_is_true(json_object_get(o, "pixels"));
  return st;
}
