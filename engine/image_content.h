/*
 * An image by its content: the bytes of its file, or its pixels, read once, a key under which results of equal bytes may be shared,
 * and the pixels. Private to engine/ and worker/. Any thread.
 */
#ifndef BTC_IMAGE_CONTENT_H
#define BTC_IMAGE_CONTENT_H

#include "image.h"

enum { BTC_IMAGE_KEY = 33 }; /* SHA-256 of the bytes, then how they become pixels */

typedef struct btc_image_content {
  uint8_t *data; /* NULL: not to be read, or larger than 64 MiB; then there is no key */
  size_t len;
  int64_t width, height; /* of pixels: data is [height, width, 3]; 0: data is a file's bytes */
  uint8_t key[BTC_IMAGE_KEY];
} btc_image_content;

/* Cannot fail: what is wrong with the file is said when it is decoded. */
void btc_image_content_read(const char *path, btc_image_mode mode, btc_image_content *out);
/* Takes the pixels, which then have no other owner. */
void btc_image_content_take(btc_image *pixels, btc_image_mode mode, btc_image_content *out);
void btc_image_content_free(btc_image_content *c);

/* As btc_image_load, with its limits' as_is; pixels given in memory may be taken from *c. Bytes that do not decode are read once
 * more by path, so that the error is the one that everybody gives; if that succeeds the file has changed meanwhile: *changed, and
 * the pixels do not belong to the key. */
btc_status btc_image_content_decode(btc_image_content *c, const char *path, int64_t side, btc_image_mode mode, bool as_is,
                                    btc_image *out, bool *changed, btc_error *err);

#endif
