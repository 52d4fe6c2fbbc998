/*
 * Image files to pixels, exactly as the reference's Pillow does (spec 3): PNG and JPEG to 8-bit RGB, pad, bicubic resize,
 * normalise. Also the PNG writer used for the change map.
 */
#ifndef BTC_IMAGE_H
#define BTC_IMAGE_H

#include "base/base.h"

#define BTC_IMAGE_MAX_SIDE 65500              /* pixels, either side (libjpeg's own bound) */
#define BTC_IMAGE_MAX_FILE_BYTES (1ull << 31) /* largest file we read */

typedef struct btc_image {
  int64_t width, height; /* pixels */
  uint8_t *rgb;          /* [height, width, 3], malloc'ed; freed by btc_image_free */
} btc_image;

typedef enum btc_image_mode { BTC_IMAGE_SQUASH, BTC_IMAGE_PAD } btc_image_mode;

typedef struct btc_image_limits {
  int64_t max_pixels; /* decoded pixels of one image, default 1e9 (a 30,000 x 30,000 image is fine) */
  size_t max_bytes; /* private memory while decoding and resizing, default 512 MiB; larger needs are met by streaming or refused */
  bool as_is;       /* btc_image_load: a picture that a device takes (btc_picture_fits) comes at its own size, default false */
} btc_image_limits;
btc_image_limits btc_image_limits_default(void); /* also what a NULL `lim` means below */

/* Whole image to RGB at its own size. For tools and tests; memory 3 bytes a pixel, refused (LIMIT) above limits. */
btc_status btc_image_decode_file(const char *path, const btc_image_limits *lim, btc_image *out, btc_error *err);
btc_status btc_image_decode_memory(const void *data, size_t len, const char *label, const btc_image_limits *lim, btc_image *out,
                                   btc_error *err);
void btc_image_free(btc_image *im); /* sets the pointer to NULL */

/* File to side x side RGB: decode rows as they come, pad with (127,127,127) if asked (spec 3.2), Pillow bicubic (spec 3.3).
 * Memory is bounded by limits whatever the image's size: rows stream through the horizontal pass. *width and *height (may be NULL)
 * receive the file's own size. Errors name the file: NOT_FOUND, IO, FORMAT (not an image, truncated, corrupt), UNSUPPORTED
 * (another image format, by name), LIMIT. A file cut short anywhere is an error, as is a JPEG with damage that libjpeg would paint
 * over. FIFOs and devices are refused, never waited for. out.rgb is malloc'ed [side, side, 3] (lim.as_is: or of the picture's own
 * size, neither padded nor resized), NULL on error. Any thread. */
btc_status btc_image_load(const char *path, int64_t side, btc_image_mode mode, const btc_image_limits *lim, btc_image *out,
                          int64_t *width, int64_t *height, btc_error *err);
btc_status btc_image_load_memory(const void *data, size_t len, const char *label, int64_t side, btc_image_mode mode,
                                 const btc_image_limits *lim, btc_image *out, int64_t *width, int64_t *height, btc_error *err);

/* Pillow's 8-bit bicubic resize, horizontal pass first (spec 3.3), of a whole image in memory. */
btc_status btc_image_resize(const btc_image *in, int64_t width, int64_t height, btc_image *out, btc_error *err);
/* Square of side max(w,h) with background (127,127,127) (spec 3.2). */
btc_status btc_image_pad(const btc_image *in, btc_image *out, btc_error *err);

/* Normalised pixels [3, side, side] by a 256-entry table per channel (spec 3.1 steps 3-5): f=float32((double)u8*rescale);
 * (f-mean)/std. */
void btc_image_normalise(const btc_image *im, double rescale, const float mean[3], const float std[3], float *out);

/* Encodes an 8-bit RGB image as PNG into malloc'ed bytes. */
btc_status btc_image_encode_png(const btc_image *im, uint8_t **data, size_t *len, btc_error *err);

#endif
