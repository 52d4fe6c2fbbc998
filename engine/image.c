/*
 * The image functions of image.h: ties readers, decoders and sinks together. Owns the limits; knows no file format.
 */
#include "image_internal.h"

#include <stdlib.h>
#include <string.h>

#include "ops/ops.h"

btc_image_limits btc_image_limits_default(void) {
  return (btc_image_limits){.max_pixels = 1000000000, .max_bytes = (size_t)512 << 20};
}

btc_status btc_image_claim(btc_image_job *job, uint64_t bytes, const char *what) {
  size_t left = job->lim.max_bytes - job->claimed_bytes;
  if (bytes > left) {
    return btc_fail(job->err, BTC_ERR_LIMIT, "'%s': %s needs %llu MiB of memory, over the limit of %llu MiB", job->label, what,
                    (unsigned long long)((bytes + job->claimed_bytes + 0xfffff) >> 20),
                    (unsigned long long)job->lim.max_bytes >> 20);
  }
  job->claimed_bytes += (size_t)bytes;
  return BTC_OK;
}

btc_status btc_image_check_size(btc_image_job *job, int64_t width, int64_t height) {
  if (width < 1 || height < 1) return btc_fail(job->err, BTC_ERR_FORMAT, "'%s' has no pixels", job->label);
  if (width > BTC_IMAGE_MAX_SIDE || height > BTC_IMAGE_MAX_SIDE) {
    return btc_fail(job->err, BTC_ERR_LIMIT, "'%s' has %lld x %lld pixels, over the limit of %d a side", job->label,
                    (long long)width, (long long)height, BTC_IMAGE_MAX_SIDE);
  }
  if (width * height > job->lim.max_pixels) {
    return btc_fail(job->err, BTC_ERR_LIMIT, "'%s' has %lld x %lld pixels, over the limit of %lld in all", job->label,
                    (long long)width, (long long)height, (long long)job->lim.max_pixels);
  }
  return BTC_OK;
}

/* Where the bytes come from: a path, or memory with a label. */
typedef struct origin {
  const char *path; /* NULL: memory */
  const void *data;
  size_t len;
  const char *label;
} origin;

static btc_status run(const origin *from, const btc_image_limits *lim, btc_image_sink *sink, btc_error *err) {
  btc_image_job job = {.label = from->path ? from->path : from->label, .lim = lim ? *lim : btc_image_limits_default(), .err = err};
  btc_image_reader reader;
  btc_status status = BTC_OK;
  if (from->path)
    status = btc_image_reader_open(&reader, from->path, err);
  else
    btc_image_reader_open_memory(&reader, from->data, from->len);
  if (status != BTC_OK) return status;
  btc_image_kind kind = BTC_IMAGE_KIND_PNG;
  status = btc_image_sniff(&reader, &job, &kind);
  if (status == BTC_OK) {
    status = kind == BTC_IMAGE_KIND_PNG ? btc_png_decode(&reader, &job, sink) : btc_jpeg_decode(&reader, &job, sink);
  }
  btc_image_reader_close(&reader);
  return status;
}

/* ---- the whole picture ---- */

typedef struct whole_sink {
  btc_image_sink base; /* first: the decoder's pointer is ours */
  btc_image im;
  int channels;
  uint8_t *next; /* row to be written */
} whole_sink;

static btc_status whole_begin(btc_image_sink *s, btc_image_job *job, int64_t width, int64_t height, int channels) {
  whole_sink *w = (whole_sink *)s;
  btc_status status = btc_image_claim(job, (uint64_t)width * (uint64_t)height * 3, "the whole picture");
  if (status != BTC_OK) return status;
  w->im = (btc_image){.width = width, .height = height, .rgb = btc_alloc((size_t)(width * height), 3)};
  w->channels = channels;
  w->next = w->im.rgb;
  return w->im.rgb ? BTC_OK : btc_fail(job->err, BTC_ERR_NOMEM, "no memory to decode '%s'", job->label);
}

static void keep_row(uint8_t *out, const uint8_t *row, int64_t width, int channels) {
  if (channels == 3)
    memcpy(out, row, (size_t)width * 3);
  else
    for (int64_t x = 0; x < width; x++) memset(out + 3 * x, row[x], 3);
}

static void whole_row(btc_image_sink *s, const uint8_t *row) {
  whole_sink *w = (whole_sink *)s;
  keep_row(w->next, row, w->im.width, w->channels);
  w->next += w->im.width * 3;
}

static btc_status decode_whole(const origin *from, const btc_image_limits *lim, btc_image *out, btc_error *err) {
  whole_sink sink = {.base = {whole_begin, whole_row}};
  btc_status status = run(from, lim, &sink.base, err);
  if (status != BTC_OK) btc_image_free(&sink.im);
  *out = status == BTC_OK ? sink.im : (btc_image){0};
  return status;
}

btc_status btc_image_decode_file(const char *path, const btc_image_limits *lim, btc_image *out, btc_error *err) {
  return decode_whole(&(origin){.path = path}, lim, out, err);
}

btc_status btc_image_decode_memory(const void *data, size_t len, const char *label, const btc_image_limits *lim, btc_image *out,
                                   btc_error *err) {
  return decode_whole(&(origin){.data = data, .len = len, .label = label}, lim, out, err);
}

void btc_image_free(btc_image *im) {
  free(im->rgb);
  im->rgb = NULL;
}

/* ---- the model's square ---- */

typedef struct square_sink {
  btc_image_sink base; /* first: the decoder's pointer is ours */
  int64_t side;
  btc_image_mode mode;
  int64_t width, height; /* of the file's picture */
  uint8_t *rgb;
  btc_resizer *resizer; /* NULL: it is kept as it is */
  uint8_t *next;        /* row to be kept */
  int channels;
} square_sink;

static btc_status keep_begin(square_sink *q, btc_image_job *job, int channels) {
  btc_status status = btc_image_claim(job, (uint64_t)q->width * (uint64_t)q->height * 3, "the picture");
  if (status != BTC_OK) return status;
  q->rgb = q->next = btc_alloc((size_t)(q->width * q->height), 3);
  q->channels = channels;
  return q->rgb ? BTC_OK : btc_fail(job->err, BTC_ERR_NOMEM, "no memory to decode '%s'", job->label);
}

static btc_status square_begin(btc_image_sink *s, btc_image_job *job, int64_t width, int64_t height, int channels) {
  square_sink *q = (square_sink *)s;
  q->width = width, q->height = height;
  if (job->lim.as_is && btc_picture_fits(width, height, q->side)) return keep_begin(q, job, channels);
  btc_resize_plan plan = {.width = width,
                          .height = height,
                          .canvas_width = width,
                          .canvas_height = height,
                          .out_width = q->side,
                          .out_height = q->side,
                          .channels = channels};
  if (q->mode == BTC_IMAGE_PAD) { /* spec 3.2 */
    plan.canvas_width = plan.canvas_height = width > height ? width : height;
    plan.left = (plan.canvas_width - width) / 2;
    plan.top = (plan.canvas_height - height) / 2;
  }
  uint64_t bytes = btc_resizer_bytes(&plan) + (uint64_t)q->side * (uint64_t)q->side * 3;
  btc_status status = btc_image_claim(job, bytes, "the resize");
  if (status != BTC_OK) return status;
  q->rgb = btc_alloc((size_t)(q->side * q->side), 3);
  q->resizer = q->rgb ? btc_resizer_create(&plan, q->rgb) : NULL;
  return q->resizer ? BTC_OK : btc_fail(job->err, BTC_ERR_NOMEM, "no memory to resize '%s'", job->label);
}

static void square_row(btc_image_sink *s, const uint8_t *row) {
  square_sink *q = (square_sink *)s;
  if (q->resizer) {
    btc_resizer_push(q->resizer, row);
    return;
  }
  keep_row(q->next, row, q->width, q->channels);
  q->next += q->width * 3;
}

static btc_status load_square(const origin *from, square_sink *sink, const btc_image_limits *lim, btc_image *out, int64_t *width,
                              int64_t *height, btc_error *err) {
  *out = (btc_image){0};
  if (sink->side < 1 || sink->side > BTC_IMAGE_MAX_SIDE) {
    return btc_fail(err, BTC_ERR_ARG, "cannot resize to a side of %lld pixels: it goes from 1 to %d", (long long)sink->side,
                    BTC_IMAGE_MAX_SIDE);
  }
  btc_status status = run(from, lim, &sink->base, err);
  const bool kept = !sink->resizer;
  btc_resizer_destroy(&sink->resizer);
  if (status != BTC_OK) {
    free(sink->rgb);
    return status;
  }
  *out = (btc_image){.width = kept ? sink->width : sink->side, .height = kept ? sink->height : sink->side, .rgb = sink->rgb};
  if (width) *width = sink->width;
  if (height) *height = sink->height;
  return BTC_OK;
}

btc_status btc_image_load(const char *path, int64_t side, btc_image_mode mode, const btc_image_limits *lim, btc_image *out,
                          int64_t *width, int64_t *height, btc_error *err) {
  square_sink sink = {.base = {square_begin, square_row}, .side = side, .mode = mode};
  return load_square(&(origin){.path = path}, &sink, lim, out, width, height, err);
}

btc_status btc_image_load_memory(const void *data, size_t len, const char *label, int64_t side, btc_image_mode mode,
                                 const btc_image_limits *lim, btc_image *out, int64_t *width, int64_t *height, btc_error *err) {
  square_sink sink = {.base = {square_begin, square_row}, .side = side, .mode = mode};
  return load_square(&(origin){.data = data, .len = len, .label = label}, &sink, lim, out, width, height, err);
}

/* ---- pictures in memory ---- */

btc_status btc_image_pad(const btc_image *in, btc_image *out, btc_error *err) {
  *out = (btc_image){0};
  int64_t side = in->width > in->height ? in->width : in->height;
  if (in->width < 1 || in->height < 1 || side > BTC_IMAGE_MAX_SIDE) {
    return btc_fail(err, BTC_ERR_ARG, "cannot pad %lld x %lld pixels: sides go from 1 to %d", (long long)in->width,
                    (long long)in->height, BTC_IMAGE_MAX_SIDE);
  }
  int64_t left = (side - in->width) / 2, top = (side - in->height) / 2;
  uint8_t *rgb = btc_alloc((size_t)(side * side), 3);
  if (!rgb)
    return btc_fail(err, BTC_ERR_NOMEM, "no memory to pad an image to %lld x %lld pixels", (long long)side, (long long)side);
  memset(rgb, 127, (size_t)(side * side) * 3);
  for (int64_t y = 0; y < in->height; y++) {
    memcpy(rgb + ((top + y) * side + left) * 3, in->rgb + y * in->width * 3, (size_t)in->width * 3);
  }
  *out = (btc_image){.width = side, .height = side, .rgb = rgb};
  return BTC_OK;
}

void btc_image_normalise(const btc_image *im, double rescale, const float mean[3], const float std[3], float *out) {
  btc_normalise(out, im->rgb, im->width * im->height,
                &(btc_shades){rescale, {mean[0], mean[1], mean[2]}, {std[0], std[1], std[2]}});
}
