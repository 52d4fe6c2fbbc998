/* Image files made on the spot for the image tests: PNG of any kind through libpng, JPEG through libjpeg, in memory or on disk. */
#ifndef BTC_TEST_IMAGE_FILES_H
#define BTC_TEST_IMAGE_FILES_H

#include "engine/image.h"
#include "test.h"

#include <png.h>
#include <stdio.h>
#include <zlib.h>

#include <jpeglib.h>

typedef struct bytes {
  uint8_t *data; /* malloc'ed, freed by the test */
  size_t len;
} bytes;

static inline void bytes_add(bytes *b, const void *data, size_t len) {
  b->data = realloc(b->data, b->len + len + 1);
  assert_non_null(b->data);
  memcpy(b->data + b->len, data, len);
  b->len += len;
}

static inline uint8_t *noise(size_t len, uint32_t seed) {
  uint8_t *p = malloc(len + 1);
  assert_non_null(p);
  for (size_t i = 0; i < len; i++) {
    seed = 1664525u * seed + 1013904223u;
    p[i] = (uint8_t)(seed >> 24);
  }
  return p;
}

/* ---- PNG ---- */

typedef struct png_recipe {
  uint32_t width, height;
  int color, depth;
  bool interlaced;
  int palette_entries; /* of a palette picture: entry i is (i, 255 - i, 7) */
  const uint8_t *rows; /* as in the file: packed, big-endian; [height, row bytes] */
} png_recipe;

static inline void png_to_bytes(png_structp png, png_bytep data, size_t len) {
  bytes_add(png_get_io_ptr(png), data, len);
}

static inline size_t png_row_bytes(const png_recipe *r) {
  static const int channels[] = {1, 0, 3, 1, 2, 0, 4};
  return ((size_t)r->width * (size_t)channels[r->color] * (size_t)r->depth + 7) / 8;
}

static inline bytes make_png(const png_recipe *r) {
  bytes out = {0};
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
  png_infop info = png_create_info_struct(png);
  png_set_write_fn(png, &out, png_to_bytes, NULL);
  png_set_IHDR(png, info, r->width, r->height, r->depth, r->color, r->interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE, 0, 0);
  png_color palette[256];
  for (int i = 0; i < r->palette_entries; i++) palette[i] = (png_color){(png_byte)i, (png_byte)(255 - i), 7};
  if (r->palette_entries) png_set_PLTE(png, info, palette, r->palette_entries);
  png_set_check_for_invalid_index(png, -1); /* some tests want indices past the palette */
  png_write_info(png, info);
  png_bytepp rows = malloc(r->height * sizeof *rows);
  assert_non_null(rows);
  for (uint32_t y = 0; y < r->height; y++) rows[y] = (png_bytep)r->rows + y * png_row_bytes(r);
  png_write_image(png, rows);
  png_write_end(png, NULL);
  png_destroy_write_struct(&png, &info);
  free(rows);
  return out;
}

/* An RGB picture of noise. */
static inline bytes make_rgb_png(uint32_t width, uint32_t height, bool interlaced) {
  uint8_t *rows = noise((size_t)width * height * 3, width * 31 + height);
  bytes out = make_png(&(png_recipe){
      .width = width, .height = height, .color = PNG_COLOR_TYPE_RGB, .depth = 8, .interlaced = interlaced, .rows = rows});
  free(rows);
  return out;
}

static inline void put_be32(uint8_t *p, uint32_t v) {
  p[0] = (uint8_t)(v >> 24), p[1] = (uint8_t)(v >> 16), p[2] = (uint8_t)(v >> 8), p[3] = (uint8_t)v;
}

static inline void add_chunk(bytes *b, const char *name, const void *data, size_t len) {
  uint8_t word[4];
  put_be32(word, (uint32_t)len);
  bytes_add(b, word, 4);
  size_t start = b->len;
  bytes_add(b, name, 4);
  if (len) bytes_add(b, data, len);
  put_be32(word, (uint32_t)crc32(0, b->data + start, (uInt)(len + 4)));
  bytes_add(b, word, 4);
}

/* Signature and IHDR of a picture whose rows are for the caller to add. */
static inline bytes start_png(uint32_t width, uint32_t height, int depth, int color, bool interlaced) {
  bytes b = {0};
  uint8_t ihdr[13] = {0};
  put_be32(ihdr, width);
  put_be32(ihdr + 4, height);
  ihdr[8] = (uint8_t)depth, ihdr[9] = (uint8_t)color, ihdr[12] = interlaced;
  bytes_add(&b, "\x89PNG\r\n\x1a\n", 8);
  add_chunk(&b, "IHDR", ihdr, sizeof ihdr);
  return b;
}

/* ---- JPEG ---- */

typedef struct jpeg_recipe {
  uint32_t width, height;
  int components;
  J_COLOR_SPACE in, stored;
  bool progressive;
  int restart_interval;
  const jpeg_scan_info *scans; /* NULL: the usual ones */
  int scan_count;
  const uint8_t *rows; /* [height, width, components] */
} jpeg_recipe;

static inline bytes make_jpeg(const jpeg_recipe *r) {
  struct jpeg_compress_struct lib;
  struct jpeg_error_mgr errors;
  unsigned char *data = NULL;
  unsigned long len = 0;
  lib.err = jpeg_std_error(&errors);
  jpeg_create_compress(&lib);
  jpeg_mem_dest(&lib, &data, &len);
  lib.image_width = r->width, lib.image_height = r->height;
  lib.input_components = r->components, lib.in_color_space = r->in;
  jpeg_set_defaults(&lib);
  jpeg_set_colorspace(&lib, r->stored);
  jpeg_set_quality(&lib, 100, TRUE);
  if (r->progressive) jpeg_simple_progression(&lib);
  if (r->scans) lib.scan_info = r->scans, lib.num_scans = r->scan_count;
  lib.restart_interval = (unsigned)r->restart_interval;
  jpeg_start_compress(&lib, TRUE);
  for (uint32_t y = 0; y < r->height; y++) {
    JSAMPROW row = (JSAMPROW)r->rows + (size_t)y * r->width * (size_t)r->components;
    jpeg_write_scanlines(&lib, &row, 1);
  }
  jpeg_finish_compress(&lib);
  jpeg_destroy_compress(&lib);
  bytes out = {0};
  bytes_add(&out, data, len);
  free(data);
  return out;
}

static inline bytes make_rgb_jpeg(uint32_t width, uint32_t height, bool progressive) {
  uint8_t *rows = noise((size_t)width * height * 3, width * 17 + height);
  bytes out = make_jpeg(&(jpeg_recipe){.width = width,
                                       .height = height,
                                       .components = 3,
                                       .in = JCS_RGB,
                                       .stored = JCS_YCbCr,
                                       .progressive = progressive,
                                       .rows = rows});
  free(rows);
  return out;
}

/* ---- files ---- */

/* "tmp dir/name"; the text lives until the next call. */
static inline const char *tmp_path(const char *name) {
  static char path[256];
  snprintf(path, sizeof path, "%s/%s", test_tmp_dir(), name);
  return path;
}

static inline const char *write_file(const char *name, const void *data, size_t len) {
  const char *path = tmp_path(name);
  FILE *f = fopen(path, "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(data, 1, len, f), len);
  assert_int_equal(fclose(f), 0);
  return path;
}

#endif
