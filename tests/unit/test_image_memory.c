/* Memory while loading: bounded whatever a file claims, and clean when there is none. */
#define _GNU_SOURCE
#include "image_files.h"

#include <unistd.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

/* ---- peak memory ---- */

static long peak_kib(void) {
  FILE *f = fopen("/proc/self/status", "r");
  char line[256];
  long kib = -1;
  while (f && fgets(line, sizeof line, f)) sscanf(line, "VmHWM: %ld", &kib);
  if (f) fclose(f);
  return kib;
}

/* Sets the peak back to what is held now, so that earlier tests of this process do not count. */
static void reset_peak(void) {
  FILE *f = fopen("/proc/self/clear_refs", "w");
  if (f) {
    fputs("5", f);
    fclose(f);
  }
}

/* Rows deflated into IDAT chunks of one file, without libpng and without the picture in memory. */
static void write_grey_png(const char *path, uint32_t side) {
  FILE *f = fopen(path, "wb");
  assert_non_null(f);
  bytes head = start_png(side, side, 8, PNG_COLOR_TYPE_GRAY, false);
  z_stream z = {0};
  assert_int_equal(deflateInit2(&z, 1, Z_DEFLATED, 15, 9, Z_RLE), Z_OK);
  uint8_t *row = malloc(side + 1), packed[1 << 14];
  assert_non_null(row);
  row[0] = 0;
  for (uint32_t y = 0; y <= side; y++) {
    memset(row + 1, (int)((uint64_t)y * 256 / side), side);
    z.next_in = row, z.avail_in = y < side ? side + 1 : 0;
    do {
      z.next_out = packed, z.avail_out = sizeof packed;
      deflate(&z, y < side ? Z_NO_FLUSH : Z_FINISH);
      size_t n = sizeof packed - z.avail_out;
      if (n) add_chunk(&head, "IDAT", packed, n);
      fwrite(head.data, 1, head.len, f);
      head.len = 0;
    } while (z.avail_out == 0);
  }
  deflateEnd(&z);
  add_chunk(&head, "IEND", NULL, 0);
  fwrite(head.data, 1, head.len, f);
  assert_int_equal(fclose(f), 0);
  free(head.data);
  free(row);
}

static void test_image_memory_30000_pixels_square(void **state) {
  (void)state;
  if (SANITIZED) skip(); /* 900 million pixels take minutes there */
  const char *path = tmp_path("large.png");
  write_grey_png(path, 30000);
  reset_peak();
  long before = peak_kib();
  btc_image im;
  btc_error err = {0};
  int64_t width = 0, height = 0;
  if (btc_image_load(path, 384, BTC_IMAGE_SQUASH, NULL, &im, &width, &height, &err) != BTC_OK) fail_msg("%s", err.message);
  long after = peak_kib();
  unlink(path);
  if (after - before > 100 << 10) fail_msg("peak grew from %ld to %ld KiB", before, after);
  assert_int_equal(width, 30000);
  assert_int_equal(height, 30000);
  for (int y = 0; y < 384; y++) { /* the ramp of the file */
    int got = im.rgb[(y * 384 + 200) * 3], expected = (2 * y + 1) * 256 / 768;
    if (abs(got - expected) > 1) fail_msg("row %d is %d, expected %d", y, got, expected);
  }
  btc_image_free(&im);
}

/* ---- files that need more than the limit ---- */

static void assert_over_limit(const bytes *file, const char *word) {
  btc_image im;
  btc_error err = {0};
  reset_peak();
  long before = peak_kib();
  btc_status status = btc_image_load_memory(file->data, file->len, "some.name", 384, BTC_IMAGE_SQUASH, NULL, &im, NULL, NULL, &err);
  if (status != BTC_ERR_LIMIT) fail_msg("status %s: %s", btc_status_text(status), err.message);
  if (!strstr(err.message, word) || !strstr(err.message, "some.name")) fail_msg("'%s' does not say '%s'", err.message, word);
  if (!SANITIZED) assert_true(peak_kib() - before < 50 << 10);
}

static void test_image_memory_large_interlaced_png_is_refused(void **state) {
  (void)state;
  bytes file = start_png(30000, 30000, 8, PNG_COLOR_TYPE_GRAY, true);
  add_chunk(&file, "IDAT", "x\x9c", 2);
  add_chunk(&file, "IEND", NULL, 0);
  assert_over_limit(&file, "interlaced");
  free(file.data);
}

/* A small picture whose frame header claims 30,000 x 30,000. */
static void test_image_memory_large_progressive_jpeg_is_refused(void **state) {
  (void)state;
  bytes file = make_rgb_jpeg(16, 16, true);
  size_t at = 0;
  while (at + 9 < file.len && !(file.data[at] == 0xff && file.data[at + 1] == 0xc2)) at++;
  assert_true(at + 9 < file.len);
  const uint8_t side[] = {30000 >> 8, 30000 & 255, 30000 >> 8, 30000 & 255};
  memcpy(file.data + at + 5, side, 4);
  assert_over_limit(&file, "several scans");
  free(file.data);
}

static void test_image_memory_many_scans_are_refused(void **state) {
  (void)state;
  jpeg_scan_info scans[64 * 4];
  int n = 0;
  for (int coefficient = 0; coefficient < 64; coefficient++) {
    for (int low = 3; low >= 0; low--) {
      scans[n++] =
          (jpeg_scan_info){.comps_in_scan = 1, .Ss = coefficient, .Se = coefficient, .Ah = low == 3 ? 0 : low + 1, .Al = low};
    }
  }
  uint8_t *rows = noise(64 * 64, 4);
  jpeg_recipe r = {.width = 64,
                   .height = 64,
                   .components = 1,
                   .in = JCS_GRAYSCALE,
                   .stored = JCS_GRAYSCALE,
                   .scans = scans,
                   .scan_count = n,
                   .rows = rows};
  bytes file = make_jpeg(&r);
  assert_over_limit(&file, "scans");
  free(file.data);
  free(rows);
}

static void test_image_memory_whole_picture_over_limit(void **state) {
  (void)state;
  bytes file = make_rgb_png(100, 100, false);
  btc_image_limits limits = btc_image_limits_default();
  btc_image im;
  btc_error err = {0};
  limits.max_bytes = 30000;
  assert_int_equal(btc_image_decode_memory(file.data, file.len, "some.name", &limits, &im, &err), BTC_ERR_LIMIT);
  assert_non_null(strstr(err.message, "whole picture"));
  limits.max_bytes = 40000;
  assert_int_equal(btc_image_decode_memory(file.data, file.len, "some.name", &limits, &im, &err), BTC_OK);
  btc_image_free(&im);
  limits.max_bytes = 0;
  assert_int_equal(btc_image_load_memory(file.data, file.len, "some.name", 28, BTC_IMAGE_PAD, &limits, &im, NULL, NULL, &err),
                   BTC_ERR_LIMIT);
  free(file.data);
}

/* 30 texts of 7 MiB out of 30 KiB each, every one below libpng's own limit: never inflated. */
static void test_image_memory_bombs_in_side_chunks_are_skipped(void **state) {
  (void)state;
  size_t size = (size_t)7 << 20;
  uint8_t *zeros = calloc(size, 1);
  uLongf len = compressBound(size);
  uint8_t *packed = malloc(len + 3);
  assert_true(zeros && packed);
  memcpy(packed, "a\0\0", 3); /* keyword, compression method */
  assert_int_equal(compress2(packed + 3, &len, zeros, size, 1), Z_OK);
  free(zeros);
  bytes plain = make_rgb_png(16, 16, false), bomb = {0};
  bytes_add(&bomb, plain.data, 33);
  for (int i = 0; i < 30; i++) add_chunk(&bomb, "zTXt", packed, len + 3);
  bytes_add(&bomb, plain.data + 33, plain.len - 33);
  reset_peak();
  long before = peak_kib();
  btc_image im;
  assert_int_equal(btc_image_decode_memory(bomb.data, bomb.len, "x", NULL, &im, NULL), BTC_OK);
  if (!SANITIZED) assert_true(peak_kib() - before < 5 << 10);
  btc_image_free(&im);
  free(packed);
  free(plain.data);
  free(bomb.data);
}

/* ---- no memory at all ---- */

static int allocations_left;

static bool count_down(size_t size) {
  (void)size;
  return allocations_left-- > 0;
}

typedef btc_status attempt(const void *what, btc_error *err);

/* Runs with 0, 1, 2... allocations allowed until it succeeds. What leaks on the way is for the sanitizer build to say. */
static void assert_clean_without_memory(attempt *run, const void *what, int at_least) {
  btc_status status = BTC_ERR_NOMEM;
  int n = 0;
  for (; status != BTC_OK && n < 200; n++) {
    btc_error err = {0};
    allocations_left = n;
    btc_alloc_hook = count_down;
    status = run(what, &err);
    btc_alloc_hook = NULL;
    if (status != BTC_OK && (status != BTC_ERR_NOMEM || !err.message[0]))
      fail_msg("%d: %s: %s", n, btc_status_text(status), err.message);
  }
  assert_int_equal(status, BTC_OK);
  if (n <= at_least) fail_msg("only %d allocations seen", n - 1);
}

static btc_status attempt_load(const void *what, btc_error *err) {
  btc_image im;
  btc_status status = btc_image_load(what, 28, BTC_IMAGE_PAD, NULL, &im, NULL, NULL, err);
  if (status != BTC_OK) assert_null(im.rgb);
  btc_image_free(&im);
  return status;
}

static btc_status attempt_decode(const void *what, btc_error *err) {
  btc_image im;
  btc_status status = btc_image_decode_file(what, NULL, &im, err);
  if (status != BTC_OK) assert_null(im.rgb);
  btc_image_free(&im);
  return status;
}

static btc_status attempt_pad_and_encode(const void *what, btc_error *err) {
  btc_image padded;
  uint8_t *data = NULL;
  size_t len;
  btc_status status = btc_image_pad(what, &padded, err);
  if (status == BTC_OK) status = btc_image_encode_png(&padded, &data, &len, err);
  if (status != BTC_OK) assert_null(data);
  btc_image_free(&padded);
  free(data);
  return status;
}

static void test_image_memory_lack_is_reported(void **state) {
  (void)state;
  bytes files[] = {make_rgb_png(40, 30, false), make_rgb_png(40, 30, true), make_rgb_jpeg(40, 30, false)};
  for (int i = 0; i < 3; i++) {
    const char *path = write_file("file", files[i].data, files[i].len);
    assert_clean_without_memory(attempt_load, path, 10);
    assert_clean_without_memory(attempt_decode, path, 3);
    free(files[i].data);
  }
  uint8_t *rgb = noise(50 * 20 * 3, 6);
  assert_clean_without_memory(attempt_pad_and_encode, &(btc_image){50, 20, rgb}, 5);
  free(rgb);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_image_memory_30000_pixels_square),
    cmocka_unit_test(test_image_memory_large_interlaced_png_is_refused),
    cmocka_unit_test(test_image_memory_large_progressive_jpeg_is_refused),
    cmocka_unit_test(test_image_memory_many_scans_are_refused),
    cmocka_unit_test(test_image_memory_whole_picture_over_limit),
    cmocka_unit_test(test_image_memory_bombs_in_side_chunks_are_skipped),
    cmocka_unit_test(test_image_memory_lack_is_reported),
};

BTC_TEST_MAIN(tests)
