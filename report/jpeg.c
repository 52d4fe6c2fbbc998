/* JPEG files out of pixels, with libjpeg's errors as ours. */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#include "pictures.h"

typedef struct jpeg_trap {
  struct jpeg_error_mgr mgr; /* first: libjpeg hands back this pointer */
  jmp_buf back;
  char text[JMSG_LENGTH_MAX];
} jpeg_trap;

static void on_error(j_common_ptr c) {
  jpeg_trap *t = (jpeg_trap *)c->err;
  c->err->format_message(c, t->text);
  longjmp(t->back, 1);
}

static void on_message(j_common_ptr c) {
  (void)c; /* libraries do not print */
}

static bool compress(const btc_image *im, FILE *f, int quality, jpeg_trap *trap) {
  struct jpeg_compress_struct c;
  c.err = jpeg_std_error(&trap->mgr);
  trap->mgr.error_exit = on_error;
  trap->mgr.output_message = on_message;
  if (setjmp(trap->back)) {
    jpeg_destroy_compress(&c);
    return false;
  }
  jpeg_create_compress(&c);
  jpeg_stdio_dest(&c, f);
  c.image_width = (JDIMENSION)im->width;
  c.image_height = (JDIMENSION)im->height;
  c.input_components = 3;
  c.in_color_space = JCS_RGB;
  jpeg_set_defaults(&c);
  jpeg_set_quality(&c, quality, TRUE);
  c.optimize_coding = TRUE;
  jpeg_start_compress(&c, TRUE);
  while (c.next_scanline < c.image_height) {
    JSAMPROW row = im->rgb + (size_t)c.next_scanline * (size_t)im->width * 3;
    jpeg_write_scanlines(&c, &row, 1);
  }
  jpeg_finish_compress(&c);
  jpeg_destroy_compress(&c);
  return true;
}

btc_status btc_jpeg_write(const btc_image *im, const char *path, int quality, btc_error *err) {
  jpeg_trap trap = {.text = ""};
  FILE *f = fopen(path, "wxe");
  if (!f) return btc_fail(err, BTC_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
  bool good = compress(im, f, quality, &trap);
  int failed = ferror(f);
  if (fclose(f) != 0 || failed || !good)
    return btc_fail(err, BTC_ERR_IO, "cannot write '%s': %s", path, good ? strerror(errno) : trap.text);
  return BTC_OK;
}
