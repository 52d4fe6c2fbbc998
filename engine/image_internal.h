/*
 * What the image files of this folder share and nobody else sees. Data flow: a reader hands out bytes, a decoder (PNG or JPEG)
 * turns them into rows of 8-bit samples, a sink takes the rows one after another: either the whole picture or the resizer.
 * Rows have 1 channel (grey) or 3 (RGB); grey stays one channel until the end because every channel is treated alike.
 */
#ifndef BTC_IMAGE_INTERNAL_H
#define BTC_IMAGE_INTERNAL_H

#include "engine/image.h"

/* One file on its way in: its name for messages, its limits, and the memory claimed so far against them. */
typedef struct btc_image_job {
  const char *label;
  btc_image_limits lim;
  size_t claimed_bytes;
  btc_error *err;
} btc_image_job;

/* Counts bytes about to be allocated against lim.max_bytes: LIMIT, naming `what` needs them, when they do not fit. */
btc_status btc_image_claim(btc_image_job *job, uint64_t bytes, const char *what);
/* LIMIT when a side or the number of pixels is over its bound, FORMAT when there are none. */
btc_status btc_image_check_size(btc_image_job *job, int64_t width, int64_t height);

/* ---- image_reader.c: bytes of a file or of memory, in order ---- */

typedef struct btc_image_reader {
  const uint8_t *at, *end; /* bytes had and not yet taken; borrowed by the decoder, which moves `at` */
  uint8_t *buffer;         /* of a file; NULL when reading memory */
  int fd;                  /* -1 when reading memory */
  int error;               /* errno of a failed read, else 0 */
} btc_image_reader;

/* Opens a regular file without ever waiting (a FIFO is refused, not read). Errors name the path. */
btc_status btc_image_reader_open(btc_image_reader *r, const char *path, btc_error *err);
void btc_image_reader_open_memory(btc_image_reader *r, const void *data, size_t len);
/* Gets more bytes once at == end. False at the end of the file and on a read error (r->error). */
bool btc_image_reader_fill(btc_image_reader *r);
void btc_image_reader_close(btc_image_reader *r);

typedef enum btc_image_kind { BTC_IMAGE_KIND_PNG, BTC_IMAGE_KIND_JPEG } btc_image_kind;

/* Tells the format from the first bytes (at..end, nothing is taken). Anything else is an error that says what the file is. */
btc_status btc_image_sniff(const btc_image_reader *r, btc_image_job *job, btc_image_kind *kind);

/* ---- sinks and decoders ---- */

/* begin is called once, then row `height` times, top to bottom, if begin returned BTC_OK. The row is borrowed for the call. */
typedef struct btc_image_sink {
  btc_status (*begin)(struct btc_image_sink *s, btc_image_job *job, int64_t width, int64_t height, int channels);
  void (*row)(struct btc_image_sink *s, const uint8_t *row); /* [width, channels] */
} btc_image_sink;

/* The whole stream into the sink, as Pillow 10.4 reads it (spec 3.1 step 1). Any damage is an error, never grey rows. */
btc_status btc_png_decode(btc_image_reader *r, btc_image_job *job, btc_image_sink *sink);
btc_status btc_jpeg_decode(btc_image_reader *r, btc_image_job *job, btc_image_sink *sink);

/* ---- image_resize.c ---- */

typedef struct btc_resizer btc_resizer;

/* Where the picture lies on its canvas and how large the canvas becomes. Canvas pixels outside the picture are 127 (spec 3.2);
 * they cost no memory. */
typedef struct btc_resize_plan {
  int64_t width, height;               /* of the picture: the rows that will be pushed */
  int64_t left, top;                   /* of the picture on the canvas */
  int64_t canvas_width, canvas_height; /* both at least the picture's */
  int64_t out_width, out_height;
  int channels; /* of the pushed rows: 1 or 3 */
} btc_resize_plan;

/* Bytes btc_resizer_create will allocate. */
uint64_t btc_resizer_bytes(const btc_resize_plan *plan);
/* out: [out_height, out_width, 3], borrowed until destroy. NULL when there is no memory. */
btc_resizer *btc_resizer_create(const btc_resize_plan *plan, uint8_t *out);
/* One row of the picture; after the last one `out` is complete. */
void btc_resizer_push(btc_resizer *r, const uint8_t *row);
void btc_resizer_destroy(btc_resizer **r);

#endif
