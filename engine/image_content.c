/* See image_content.h. */
#include "image_content.h"

#include <stdlib.h>
#include <string.h>

#include "image_internal.h"
#include "ops/ops.h"

/* Larger files are decoded as they are read and are not looked up. */
#define MOST_BYTES ((size_t)64 << 20)

/* The whole file; NULL when it is too large or not to be read, and then btc_image_load says why. */
static uint8_t *read_file(const char *path, size_t *len) {
  btc_image_reader r;
  btc_error err;
  uint8_t *data = NULL;
  size_t room = 0;
  bool good = true;
  *len = 0;
  if (btc_image_reader_open(&r, path, &err) != BTC_OK) return NULL;
  do {
    size_t n = (size_t)(r.end - r.at);
    if (*len + n > room) {
      room = 2 * (*len + n);
      uint8_t *grown = room <= 2 * MOST_BYTES ? btc_realloc(data, room, 1) : NULL;
      if (!(good = grown != NULL)) break;
      data = grown;
    }
    if (n) memcpy(data + *len, r.at, n);
    *len += n;
  } while (btc_image_reader_fill(&r));
  good = good && !r.error && *len && *len <= MOST_BYTES;
  btc_image_reader_close(&r);
  if (good) return data;
  free(data);
  return NULL;
}

void btc_image_content_read(const char *path, btc_image_mode mode, btc_image_content *out) {
  btc_sha256 h;
  size_t len;
  uint8_t *data = read_file(path, &len);
  *out = (btc_image_content){.data = data, .len = len};
  if (!out->data) return;
  btc_sha256_init(&h);
  btc_sha256_update(&h, out->data, out->len);
  btc_sha256_final(&h, out->key);
  out->key[32] = (uint8_t)mode;
}

void btc_image_content_take(btc_image *pixels, btc_image_mode mode, btc_image_content *out) {
  enum { PIXELS = 0x80 }; /* no file's key is one of pixels */
  const int64_t size[2] = {pixels->width, pixels->height};
  btc_sha256 h;
  *out = (btc_image_content){.data = pixels->rgb, .width = size[0], .height = size[1]};
  out->len = (size_t)(size[0] * size[1] * 3);
  btc_sha256_init(&h);
  btc_sha256_update(&h, size, sizeof size);
  btc_sha256_update(&h, out->data, out->len);
  btc_sha256_final(&h, out->key);
  out->key[32] = (uint8_t)(mode | PIXELS);
  *pixels = (btc_image){0};
}

static btc_status fit(const btc_image_content *c, int64_t side, btc_image_mode mode, btc_image *out, btc_error *err) {
  const btc_image whole = {.width = c->width, .height = c->height, .rgb = c->data};
  btc_image square = {0};
  *out = (btc_image){0};
  if (mode == BTC_IMAGE_SQUASH) return btc_image_resize(&whole, side, side, out, err);
  btc_status st = btc_image_pad(&whole, &square, err);
  if (st == BTC_OK) st = btc_image_resize(&square, side, side, out, err);
  btc_image_free(&square);
  return st;
}

void btc_image_content_free(btc_image_content *c) {
  free(c->data);
  *c = (btc_image_content){0};
}

btc_status btc_image_content_decode(btc_image_content *c, const char *path, int64_t side, btc_image_mode mode, bool as_is,
                                    btc_image *out, bool *changed, btc_error *err) {
  btc_status st = BTC_ERR_FORMAT;
  btc_image_limits lim = btc_image_limits_default();
  lim.as_is = as_is;
  *changed = false;
  if (c->width && as_is && btc_picture_fits(c->width, c->height, side)) {
    *out = (btc_image){.width = c->width, .height = c->height, .rgb = c->data};
    c->data = NULL;
    return BTC_OK;
  }
  if (c->width) return fit(c, side, mode, out, err);
  if (c->data) st = btc_image_load_memory(c->data, c->len, path, side, mode, &lim, out, NULL, NULL, err);
  if (st == BTC_OK) return st;
  st = btc_image_load(path, side, mode, &lim, out, NULL, NULL, err);
  *changed = st == BTC_OK && c->data;
  return st;
}
