/*
 * JPEG to rows, as Pillow 10.4 opens JPEG files (spec 3.3, last line): libjpeg's defaults, so the accurate integer IDCT and
 * fancy upsampling; EXIF orientation and profiles are not looked at. libjpeg repairs damaged files with grey blocks and a
 * warning; here such a warning is an error, because a caption of a grey picture is worse than none.
 */
#include "image_internal.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

/* Encoders write about 10 scans. A file may claim thousands over one large picture, each costing a pass over all of it. */
#define MAX_SCANS 200

typedef struct jpeg_decoder {
  struct jpeg_decompress_struct lib;
  struct jpeg_error_mgr errors;
  struct jpeg_source_mgr source;
  struct jpeg_progress_mgr progress;
  jmp_buf escape;
  btc_image_reader *reader;
  btc_image_job *job;
  btc_image_sink *sink;
  bool ended;   /* the file ended before the picture */
  bool in_scan; /* pixels are being decoded: from here on skipped bytes mean lost pixels */
  bool too_many_scans;
  uint8_t *rows; /* [rec_outbuf_height, width, output components] */
  uint8_t *rgb;  /* [width, 3], for CMYK */
  char reason[JMSG_LENGTH_MAX];
} jpeg_decoder;

/* ---- libjpeg's callbacks ---- */

static void on_error(j_common_ptr lib) {
  jpeg_decoder *d = lib->client_data;
  lib->err->format_message(lib, d->reason);
  longjmp(d->escape, 1);
}

/* Level -1 is a warning. Only those about the header's taste are let through. */
static void on_message(j_common_ptr lib, int level) {
  jpeg_decoder *d = lib->client_data;
  if (level >= 0) return;
  int code = lib->err->msg_code;
  if (code == JWRN_JFIF_MAJOR || code == JWRN_ADOBE_XFORM) return;
  if (code == JWRN_EXTRANEOUS_DATA && !d->in_scan) return;
  on_error(lib);
}

static void on_output(j_common_ptr lib) {
  (void)lib;
}

static void on_progress(j_common_ptr lib) {
  jpeg_decoder *d = lib->client_data;
  if (d->lib.input_scan_number <= MAX_SCANS) return;
  d->too_many_scans = true;
  longjmp(d->escape, 1);
}

static void source_begin_end(j_decompress_ptr lib) {
  (void)lib;
}

static boolean source_fill(j_decompress_ptr lib) {
  jpeg_decoder *d = lib->client_data;
  d->reader->at = d->reader->end;
  if (!btc_image_reader_fill(d->reader)) {
    d->ended = true;
    longjmp(d->escape, 1);
  }
  d->source.next_input_byte = d->reader->at;
  d->source.bytes_in_buffer = (size_t)(d->reader->end - d->reader->at);
  return TRUE;
}

static void source_skip(j_decompress_ptr lib, long n) {
  jpeg_decoder *d = lib->client_data;
  while (n > 0) {
    if (d->source.bytes_in_buffer == 0) source_fill(lib);
    size_t take = d->source.bytes_in_buffer < (size_t)n ? d->source.bytes_in_buffer : (size_t)n;
    d->source.next_input_byte += take;
    d->source.bytes_in_buffer -= take;
    n -= (long)take;
  }
}

static void install_callbacks(jpeg_decoder *d) {
  d->source = (struct jpeg_source_mgr){.next_input_byte = d->reader->at,
                                       .bytes_in_buffer = (size_t)(d->reader->end - d->reader->at),
                                       .init_source = source_begin_end,
                                       .fill_input_buffer = source_fill,
                                       .skip_input_data = source_skip,
                                       .resync_to_restart = jpeg_resync_to_restart,
                                       .term_source = source_begin_end};
  d->lib.src = &d->source;
  d->progress.progress_monitor = on_progress;
  d->lib.progress = &d->progress;
}

/* ---- errors ---- */

static btc_status code_of(int message) {
  switch (message) {
    case JERR_OUT_OF_MEMORY:
      return BTC_ERR_NOMEM;
    case JERR_IMAGE_TOO_BIG:
    case JERR_WIDTH_OVERFLOW:
    case JERR_NO_BACKING_STORE:
      return BTC_ERR_LIMIT;
    case JERR_SOF_UNSUPPORTED:
    case JERR_BAD_PRECISION:
    case JERR_ARITH_NOTIMPL:
    case JERR_NOT_COMPILED:
    case JERR_NOTIMPL:
    case JERR_FRACT_SAMPLE_NOTIMPL:
    case JERR_CCIR601_NOTIMPL:
    case JERR_CONVERSION_NOTIMPL:
    case JERR_COMPONENT_COUNT:
      return BTC_ERR_UNSUPPORTED;
    default:
      return BTC_ERR_FORMAT;
  }
}

static btc_status failure(const jpeg_decoder *d) {
  const char *label = d->job->label;
  btc_error *err = d->job->err;
  if (d->reader->error) return btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", label, strerror(d->reader->error));
  if (d->ended) return btc_fail(err, BTC_ERR_FORMAT, "'%s' is a truncated JPEG: the file ends too early", label);
  if (d->too_many_scans) return btc_fail(err, BTC_ERR_LIMIT, "'%s' is a JPEG of more than %d scans", label, MAX_SCANS);
  btc_status status = code_of(d->errors.msg_code);
  const char *what = status == BTC_ERR_FORMAT ? "a corrupt JPEG" : "a JPEG that cannot be decoded";
  return btc_fail(err, status, "'%s' is %s: %s", label, what, d->reason);
}

/* ---- decoding ---- */

static int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

/* libjpeg holds the coefficients of the whole picture, 2 bytes each, when they come in several scans. */
static btc_status claim_coefficients(jpeg_decoder *d) {
  if (!jpeg_has_multiple_scans(&d->lib)) return BTC_OK;
  uint64_t bytes = 0;
  for (int i = 0; i < d->lib.num_components; i++) {
    const jpeg_component_info *c = &d->lib.comp_info[i];
    int64_t across = round_up(c->width_in_blocks, c->h_samp_factor), down = round_up(c->height_in_blocks, c->v_samp_factor);
    bytes += (uint64_t)across * (uint64_t)down * sizeof(JBLOCK);
  }
  return btc_image_claim(d->job, bytes, "a JPEG in several scans, which must be decoded whole,");
}

static btc_status read_header(jpeg_decoder *d) {
  jpeg_read_header(&d->lib, TRUE);
  btc_status status = btc_image_check_size(d->job, d->lib.image_width, d->lib.image_height);
  if (status == BTC_OK) status = claim_coefficients(d);
  if (status != BTC_OK) return status;
  switch (d->lib.num_components) {
    case 1:
      d->lib.out_color_space = JCS_GRAYSCALE;
      return BTC_OK;
    case 3:
      d->lib.out_color_space = JCS_RGB;
      return BTC_OK;
    case 4:
      d->lib.out_color_space = JCS_CMYK;
      return BTC_OK;
    default:
      return btc_fail(d->job->err, BTC_ERR_UNSUPPORTED, "'%s' is a JPEG of %d components; 1, 3 and 4 are read", d->job->label,
                      d->lib.num_components);
  }
}

/* Pillow takes every CMYK JPEG for an inverted one, as Adobe writes them: ink = 255 - sample. Then per channel
 * (255 - K) - muldiv255(C, 255 - K), where 255 - K is the fourth sample itself. */
static void cmyk_to_rgb(const uint8_t *in, int64_t pixels, uint8_t *out) {
  for (int64_t x = 0; x < pixels; x++, in += 4, out += 3) {
    int light = in[3];
    for (int c = 0; c < 3; c++) {
      int product = (255 - in[c]) * light + 128;
      out[c] = (uint8_t)(light - (((product >> 8) + product) >> 8)); /* never negative: muldiv255 is at most `light` */
    }
  }
}

static btc_status allocate_rows(jpeg_decoder *d) {
  uint64_t row = (uint64_t)d->lib.output_width * (uint64_t)d->lib.output_components;
  uint64_t rows = (uint64_t)d->lib.rec_outbuf_height;
  btc_status status = btc_image_claim(d->job, row * rows + (uint64_t)d->lib.output_width * 3, "the rows of a JPEG");
  if (status != BTC_OK) return status;
  d->rows = btc_alloc((size_t)rows, (size_t)row);
  d->rgb = btc_alloc((size_t)d->lib.output_width, 3);
  if (!d->rows || !d->rgb) return btc_fail(d->job->err, BTC_ERR_NOMEM, "no memory to decode '%s'", d->job->label);
  return BTC_OK;
}

static void read_rows(jpeg_decoder *d) {
  enum { MOST_ROWS = 16 };
  JSAMPROW rows[MOST_ROWS];
  int64_t width = d->lib.output_width;
  size_t stride = (size_t)width * (size_t)d->lib.output_components;
  int at_once = d->lib.rec_outbuf_height < MOST_ROWS ? d->lib.rec_outbuf_height : MOST_ROWS;
  for (int i = 0; i < at_once; i++) rows[i] = d->rows + (size_t)i * stride;
  while (d->lib.output_scanline < d->lib.output_height) {
    JDIMENSION got = jpeg_read_scanlines(&d->lib, rows, (JDIMENSION)at_once);
    for (JDIMENSION i = 0; i < got; i++) {
      const uint8_t *row = rows[i];
      if (d->lib.out_color_space == JCS_CMYK) {
        cmyk_to_rgb(row, width, d->rgb);
        row = d->rgb;
      }
      d->sink->row(d->sink, row);
    }
  }
  jpeg_finish_decompress(&d->lib); /* to the end-of-image marker: a file cut behind its pixels is damaged too */
}

/* libjpeg's errors come back to the setjmp here; all state lives in *d, so nothing needs to be volatile. */
static btc_status decode(jpeg_decoder *d) {
  if (setjmp(d->escape)) return failure(d);
  jpeg_create_decompress(&d->lib);
  install_callbacks(d);
  btc_status status = read_header(d);
  if (status != BTC_OK) return status;
  size_t left = d->job->lim.max_bytes;
  d->lib.mem->max_memory_to_use = left < (size_t)INT64_MAX ? (long)left : INT64_MAX;
  d->in_scan = true;
  jpeg_start_decompress(&d->lib);
  status = allocate_rows(d);
  int channels = d->lib.out_color_space == JCS_GRAYSCALE ? 1 : 3;
  if (status == BTC_OK) status = d->sink->begin(d->sink, d->job, d->lib.output_width, d->lib.output_height, channels);
  if (status == BTC_OK) read_rows(d);
  return status;
}

btc_status btc_jpeg_decode(btc_image_reader *r, btc_image_job *job, btc_image_sink *sink) {
  jpeg_decoder *d = btc_alloc_zero(1, sizeof *d);
  if (!d) return btc_fail(job->err, BTC_ERR_NOMEM, "no memory to decode '%s'", job->label);
  d->reader = r, d->job = job, d->sink = sink;
  d->lib.err = jpeg_std_error(&d->errors);
  d->errors.error_exit = on_error;
  d->errors.emit_message = on_message;
  d->errors.output_message = on_output;
  d->lib.client_data = d;
  btc_status status = decode(d);
  jpeg_destroy_decompress(&d->lib);
  free(d->rows);
  free(d->rgb);
  free(d);
  return status;
}
