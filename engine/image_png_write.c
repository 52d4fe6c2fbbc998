/*
 * An RGB picture as a PNG in memory. Default filters and compression: the pictures are small maps, and size beats speed.
 */
#include "image.h"

#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

typedef struct png_encoder {
  png_structp png;
  png_infop info;
  uint8_t *data;
  size_t len, room;
  bool no_memory;
  char reason[200];
} png_encoder;

static void on_error(png_structp png, png_const_charp text) {
  png_encoder *e = png_get_error_ptr(png);
  strncpy(e->reason, text ? text : "unknown error", sizeof e->reason - 1);
  png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp text) {
  (void)png, (void)text;
}

static png_voidp on_alloc(png_structp png, png_alloc_size_t size) {
  png_encoder *e = png_get_mem_ptr(png);
  void *p = btc_alloc(size, 1);
  if (!p) e->no_memory = true;
  return p;
}

static void on_free(png_structp png, png_voidp p) {
  (void)png;
  free(p);
}

static void on_write(png_structp png, png_bytep bytes, size_t n) {
  png_encoder *e = png_get_io_ptr(png);
  if (n > e->room - e->len) {
    size_t room = (e->len + n) * 2;
    uint8_t *data = btc_realloc(e->data, room, 1);
    if (!data) {
      e->no_memory = true;
      png_error(png, "out of memory");
    }
    e->data = data, e->room = room;
  }
  memcpy(e->data + e->len, bytes, n);
  e->len += n;
}

static void on_flush(png_structp png) {
  (void)png;
}

/* libpng's errors come back to the setjmp here; all state lives in *e, so nothing needs to be volatile. */
static bool encode(png_encoder *e, const btc_image *im) {
  if (setjmp(png_jmpbuf(e->png))) return false;
  e->info = png_create_info_struct(e->png);
  if (!e->info) return false;
  png_set_write_fn(e->png, e, on_write, on_flush);
  png_set_IHDR(e->png, e->info, (png_uint_32)im->width, (png_uint_32)im->height, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(e->png, e->info);
  for (int64_t y = 0; y < im->height; y++) png_write_row(e->png, im->rgb + y * im->width * 3);
  png_write_end(e->png, NULL);
  return true;
}

btc_status btc_image_encode_png(const btc_image *im, uint8_t **data, size_t *len, btc_error *err) {
  *data = NULL, *len = 0;
  if (im->width < 1 || im->height < 1 || im->width > BTC_IMAGE_MAX_SIDE || im->height > BTC_IMAGE_MAX_SIDE) {
    return btc_fail(err, BTC_ERR_ARG, "cannot write %lld x %lld pixels as PNG: sides go from 1 to %d", (long long)im->width,
                    (long long)im->height, BTC_IMAGE_MAX_SIDE);
  }
  png_encoder e = {0};
  e.png = png_create_write_struct_2(PNG_LIBPNG_VER_STRING, &e, on_error, on_warning, &e, on_alloc, on_free);
  bool ok = e.png && encode(&e, im);
  png_destroy_write_struct(&e.png, &e.info);
  if (!ok) {
    free(e.data);
    if (e.no_memory || !e.reason[0]) return btc_fail(err, BTC_ERR_NOMEM, "no memory to write a PNG");
    return btc_fail(err, BTC_ERR_INTERNAL, "cannot write a PNG: %s", e.reason);
  }
  *data = e.data, *len = e.len;
  return BTC_OK;
}
