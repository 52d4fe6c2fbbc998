/*
 * PNG to rows, as Pillow 10.4 opens PNG files (spec 3.1 step 1): no gamma, no colour profile, no compositing. libpng only
 * inflates, unfilters and unpacks; what a sample means is decided here. Ancillary chunks (profiles, texts, animation frames)
 * are skipped unread, so that a bomb in one of them costs nothing.
 */
#include "image_internal.h"

#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

typedef struct png_decoder {
  png_structp png;
  png_infop info;
  btc_image_reader *reader;
  btc_image_job *job;
  btc_image_sink *sink;
  int64_t width, height;
  int depth, color, channels; /* as in the file; channels: what the sink gets, 1 or 3 */
  size_t row_bytes;           /* of one row as libpng delivers it */
  uint8_t table[256][3];      /* samples of up to 8 bits -> grey in [0], or the palette */
  uint8_t *raw;               /* [row_bytes], or the whole picture when interlaced */
  uint8_t *row;               /* [width, channels] after conversion */
  bool ended, no_memory;      /* why libpng's error handler was called, if it was for one of these */
  char reason[200];           /* libpng's text */
} png_decoder;

/* ---- libpng's callbacks ---- */

static void on_error(png_structp png, png_const_charp text) {
  png_decoder *d = png_get_error_ptr(png);
  strncpy(d->reason, text ? text : "unknown error", sizeof d->reason - 1);
  png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp text) {
  (void)png, (void)text; /* about ancillary chunks and sloppy encoders: the pixels are sound */
}

static png_voidp on_alloc(png_structp png, png_alloc_size_t size) {
  png_decoder *d = png_get_mem_ptr(png);
  void *p = btc_alloc(size, 1);
  if (!p) d->no_memory = true;
  return p;
}

static void on_free(png_structp png, png_voidp p) {
  (void)png;
  free(p);
}

static void on_read(png_structp png, png_bytep out, size_t n) {
  png_decoder *d = png_get_io_ptr(png);
  btc_image_reader *r = d->reader;
  while (n > 0) {
    if (r->at == r->end && !btc_image_reader_fill(r)) {
      d->ended = true;
      png_error(png, "the file ends too early");
    }
    size_t have = (size_t)(r->end - r->at), take = have < n ? have : n;
    memcpy(out, r->at, take);
    r->at += take, out += take, n -= take;
  }
}

static btc_status failure(const png_decoder *d) {
  const char *label = d->job->label;
  if (d->no_memory) return btc_fail(d->job->err, BTC_ERR_NOMEM, "no memory to decode '%s'", label);
  if (d->reader->error) return btc_fail(d->job->err, BTC_ERR_IO, "cannot read '%s': %s", label, strerror(d->reader->error));
  if (d->ended) return btc_fail(d->job->err, BTC_ERR_FORMAT, "'%s' is a truncated PNG: the file ends too early", label);
  return btc_fail(d->job->err, BTC_ERR_FORMAT, "'%s' is a corrupt PNG: %s", label, d->reason);
}

/* ---- samples ---- */

/* Grey of 1, 2 or 4 bits is scaled to 0..255. A palette index past the end of PLTE is black, as in Pillow. */
static void fill_table(png_decoder *d) {
  png_colorp palette;
  int entries = 0;
  if (d->color != PNG_COLOR_TYPE_PALETTE) {
    int top = (1 << d->depth) - 1;
    for (int v = 0; v <= top && d->depth <= 8; v++) d->table[v][0] = (uint8_t)(v * 255 / top);
    return;
  }
  png_get_PLTE(d->png, d->info, &palette, &entries);
  for (int i = 0; i < entries && i < 256; i++) {
    d->table[i][0] = palette[i].red, d->table[i][1] = palette[i].green, d->table[i][2] = palette[i].blue;
  }
}

/* `keep` samples out of every `step` bytes; `width` bytes a sample, of which the high one counts. */
static void gather(const uint8_t *in, int64_t pixels, int step, int sample, int keep, uint8_t *out) {
  for (int64_t x = 0; x < pixels; x++, in += step) {
    for (int c = 0; c < keep; c++) *out++ = in[c * sample];
  }
}

/* One row as libpng delivers it to what the sink takes; returns where that is. */
static const uint8_t *convert(png_decoder *d, const uint8_t *in) {
  int sample = d->depth == 16 ? 2 : 1;
  switch (d->color) {
    case PNG_COLOR_TYPE_GRAY:
      if (d->depth == 8) return in;
      for (int64_t x = 0; x < d->width; x++) {
        if (sample == 1)
          d->row[x] = d->table[in[x]][0];
        else
          d->row[x] = in[2 * x] ? 255 : in[2 * x + 1]; /* Pillow's I;16 to RGB clips instead of scaling */
      }
      return d->row;
    case PNG_COLOR_TYPE_PALETTE:
      for (int64_t x = 0; x < d->width; x++) memcpy(d->row + 3 * x, d->table[in[x]], 3);
      return d->row;
    case PNG_COLOR_TYPE_GRAY_ALPHA:
      gather(in, d->width, 2 * sample, sample, 1, d->row);
      return d->row;
    case PNG_COLOR_TYPE_RGB:
      if (sample == 1) return in;
      gather(in, d->width, 6, 2, 3, d->row);
      return d->row;
    default:
      gather(in, d->width, 4 * sample, sample, 3, d->row);
      return d->row;
  }
}

/* ---- decoding ---- */

static btc_status read_header(png_decoder *d) {
  png_set_read_fn(d->png, d, on_read);
  png_set_user_limits(d->png, PNG_UINT_31_MAX, PNG_UINT_31_MAX); /* we say ourselves what is too large, and how much so */
  png_set_keep_unknown_chunks(d->png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
  png_set_crc_action(d->png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
  png_read_info(d->png, d->info);
  d->width = png_get_image_width(d->png, d->info);
  d->height = png_get_image_height(d->png, d->info);
  btc_status status = btc_image_check_size(d->job, d->width, d->height);
  if (status != BTC_OK) return status;
  d->depth = png_get_bit_depth(d->png, d->info);
  d->color = png_get_color_type(d->png, d->info);
  d->channels = d->color == PNG_COLOR_TYPE_GRAY || d->color == PNG_COLOR_TYPE_GRAY_ALPHA ? 1 : 3;
  fill_table(d);
  if (d->depth < 8) png_set_packing(d->png);
  return BTC_OK;
}

static btc_status allocate_rows(png_decoder *d, bool interlaced) {
  uint64_t rows = interlaced ? (uint64_t)d->height : 1;
  uint64_t own = (uint64_t)d->width * (uint64_t)d->channels;
  btc_status status = btc_image_claim(d->job, rows * d->row_bytes + own,
                                      interlaced ? "an interlaced PNG, which must be decoded whole," : "the rows of a PNG");
  if (status != BTC_OK) return status;
  d->raw = btc_alloc_zero((size_t)rows, d->row_bytes);
  d->row = btc_alloc((size_t)own, 1);
  if (!d->raw || !d->row) return btc_fail(d->job->err, BTC_ERR_NOMEM, "no memory to decode '%s'", d->job->label);
  return BTC_OK;
}

static void read_rows(png_decoder *d, int passes) {
  bool interlaced = passes > 1;
  for (int pass = 0; interlaced && pass < passes; pass++) {
    for (int64_t y = 0; y < d->height; y++) png_read_row(d->png, d->raw + (size_t)y * d->row_bytes, NULL);
  }
  for (int64_t y = 0; y < d->height; y++) {
    if (!interlaced) png_read_row(d->png, d->raw, NULL);
    d->sink->row(d->sink, convert(d, d->raw + (interlaced ? (size_t)y * d->row_bytes : 0)));
  }
  png_read_end(d->png, NULL); /* to IEND: a file cut behind its pixels is damaged too */
}

/* libpng's errors come back to the setjmp here; all state lives in *d, so nothing needs to be volatile. */
static btc_status decode(png_decoder *d) {
  if (setjmp(png_jmpbuf(d->png))) return failure(d);
  d->info = png_create_info_struct(d->png);
  if (!d->info) return failure(d);
  btc_status status = read_header(d);
  if (status != BTC_OK) return status;
  int passes = png_set_interlace_handling(d->png);
  png_read_update_info(d->png, d->info);
  d->row_bytes = png_get_rowbytes(d->png, d->info);
  status = allocate_rows(d, passes > 1);
  if (status == BTC_OK) status = d->sink->begin(d->sink, d->job, d->width, d->height, d->channels);
  if (status == BTC_OK) read_rows(d, passes);
  return status;
}

btc_status btc_png_decode(btc_image_reader *r, btc_image_job *job, btc_image_sink *sink) {
  png_decoder d = {.reader = r, .job = job, .sink = sink};
  d.png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, &d, on_error, on_warning, &d, on_alloc, on_free);
  if (!d.png) return btc_fail(job->err, BTC_ERR_NOMEM, "no memory to decode '%s'", job->label);
  btc_status status = decode(&d);
  png_destroy_read_struct(&d.png, &d.info, NULL);
  free(d.raw);
  free(d.row);
  return status;
}
