/* Files that are missing, no images, cut short, corrupt or too large: one clear message each, nothing on stderr, no waiting. */
#define _GNU_SOURCE
#include "image_files.h"

#include <sys/stat.h>
#include <unistd.h>

/* Loads and decodes; both must fail alike, name the file and leave nothing behind. */
static void assert_refused(const void *data, size_t len, btc_status expected, const char *word) {
  btc_error err = {0};
  btc_image im = {0};
  btc_status status = btc_image_load_memory(data, len, "some.name", 28, BTC_IMAGE_PAD, NULL, &im, NULL, NULL, &err);
  assert_null(im.rgb);
  if (status != expected)
    fail_msg("%zu bytes: status %s (%s), expected %s", len, btc_status_text(status), err.message, btc_status_text(expected));
  assert_int_equal(err.code, status);
  if (!strstr(err.message, "some.name")) fail_msg("'%s' does not name the file", err.message);
  if (word && !strstr(err.message, word)) fail_msg("'%s' does not say '%s'", err.message, word);
  assert_int_equal(btc_image_decode_memory(data, len, "some.name", NULL, &im, NULL), expected);
  assert_null(im.rgb);
}

static void assert_path_refused(const char *path, btc_status expected, const char *word) {
  btc_error err = {0};
  btc_image im = {0};
  btc_status status = btc_image_load(path, 28, BTC_IMAGE_SQUASH, NULL, &im, NULL, NULL, &err);
  if (status != expected) fail_msg("%s: status %s (%s)", path, btc_status_text(status), err.message);
  assert_null(im.rgb);
  if (!strstr(err.message, path) || !strstr(err.message, word)) fail_msg("'%s' lacks the path or '%s'", err.message, word);
}

/* ---- paths ---- */

static void test_image_errors_missing_file(void **state) {
  (void)state;
  assert_path_refused(tmp_path("missing.png"), BTC_ERR_NOT_FOUND, "No such file");
}

static void test_image_errors_directory(void **state) {
  (void)state;
  assert_path_refused(test_tmp_dir(), BTC_ERR_IO, "directory");
}

static void test_image_errors_fifo_is_not_waited_for(void **state) {
  (void)state;
  const char *path = tmp_path("fifo.png");
  assert_int_equal(mkfifo(path, 0600), 0);
  alarm(20); /* the failure to guard against is a hang */
  assert_path_refused(path, BTC_ERR_IO, "regular file");
  alarm(0);
}

static void test_image_errors_empty_file(void **state) {
  (void)state;
  assert_path_refused(write_file("empty.png", "", 0), BTC_ERR_FORMAT, "empty");
}

/* A sparse file: the size is refused before anything is read. */
static void test_image_errors_file_of_too_many_bytes(void **state) {
  (void)state;
  const char *path = write_file("huge.png", "x", 1);
  if (truncate(path, (off_t)BTC_IMAGE_MAX_FILE_BYTES + 1) != 0) skip();
  assert_path_refused(path, BTC_ERR_LIMIT, "bytes");
}

/* A file, not memory, goes through the reader's buffer many times. */
static void test_image_errors_cut_file_larger_than_the_buffer(void **state) {
  (void)state;
  bytes files[] = {make_rgb_png(300, 200, false), make_rgb_jpeg(500, 400, false)};
  for (int i = 0; i < 2; i++) {
    assert_true(files[i].len > 150000);
    btc_image im;
    assert_int_equal(
        btc_image_load(write_file("whole", files[i].data, files[i].len), 28, BTC_IMAGE_SQUASH, NULL, &im, NULL, NULL, NULL),
        BTC_OK);
    btc_image_free(&im);
    assert_path_refused(write_file("cut", files[i].data, 140000), BTC_ERR_FORMAT, "truncated");
    free(files[i].data);
  }
}

/* ---- other kinds of file ---- */

static void test_image_errors_say_what_the_file_is(void **state) {
  (void)state;
  static const struct {
    const char *start;
    size_t len;
    btc_status status;
    const char *word;
  } kinds[] = {
      {"II*\0\10\0\0\0", 8, BTC_ERR_UNSUPPORTED, "TIFF"},
      {"MM\0*\0\0\0\10", 8, BTC_ERR_UNSUPPORTED, "TIFF"},
      {"MM\0+\0\10\0\0", 8, BTC_ERR_UNSUPPORTED, "BigTIFF"},
      {"GIF89a\1\0\1\0", 10, BTC_ERR_UNSUPPORTED, "GIF"},
      {"BM\x46\0\0\0\0\0\0\0\x36\0\0\0", 14, BTC_ERR_UNSUPPORTED, "BMP"},
      {"RIFF\x1a\0\0\0WEBPVP8 ", 16, BTC_ERR_UNSUPPORTED, "WebP"},
      {"\0\0\0\x0cjP  \r\n\x87\n", 12, BTC_ERR_UNSUPPORTED, "JPEG 2000"},
      {"\xff\x4f\xff\x51\0\x29", 6, BTC_ERR_UNSUPPORTED, "JPEG 2000"},
      {"\0\0\0 ftypavif\0\0\0\0", 16, BTC_ERR_UNSUPPORTED, "AVIF"},
      {"P6\n2 2\n255\n", 11, BTC_ERR_UNSUPPORTED, "PNM"},
      {"\x89HDF\r\n\x1a\n", 8, BTC_ERR_FORMAT, "HDF5"},
      {"%PDF-1.4\n", 9, BTC_ERR_FORMAT, "PDF"},
      {"PK\3\4\24\0", 6, BTC_ERR_FORMAT, "ZIP"},
      {"\x1f\x8b\x08\0", 4, BTC_ERR_FORMAT, "gzip"},
      {"version https://git-lfs.github.com/spec/v1\n", 42, BTC_ERR_FORMAT, "text"},
      {"\x89PNG\n\x1a\n\0", 8, BTC_ERR_FORMAT, "text-mode"},
      {"\x89PN", 3, BTC_ERR_FORMAT, "truncated PNG"},
      {"\xff\xd8", 2, BTC_ERR_FORMAT, "truncated JPEG"},
      {"\1\2\3\4\5", 5, BTC_ERR_FORMAT, "PNG and JPEG"},
      {"", 0, BTC_ERR_FORMAT, "empty"},
  };
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
    assert_refused(kinds[i].start, kinds[i].len, kinds[i].status, kinds[i].word);
}

/* ---- damage ---- */

static void assert_every_cut_refused(bytes file) {
  size_t n = 0;
  for (size_t len = 0; len<file.len; len += len + 80> file.len ? 1 : 64, n++) {
    assert_refused(file.data, len, BTC_ERR_FORMAT, len >= 8 ? "truncated" : NULL);
  }
  assert_true(n > 80);
  free(file.data);
}

static void test_image_errors_truncated_png(void **state) {
  (void)state;
  assert_every_cut_refused(make_rgb_png(31, 27, false));
  assert_every_cut_refused(make_rgb_png(31, 27, true));
}

static void test_image_errors_truncated_jpeg(void **state) {
  (void)state;
  assert_every_cut_refused(make_rgb_jpeg(67, 43, false));
  assert_every_cut_refused(make_rgb_jpeg(67, 43, true));
}

static void test_image_errors_png_bad_checksum(void **state) {
  (void)state;
  bytes file = make_rgb_png(16, 16, false);
  for (size_t at = 29; at < file.len; at += at < 60 ? 1 : 37) { /* from the checksum of IHDR on: every byte counts */
    file.data[at] ^= 0x10;
    btc_image im;
    btc_error err = {0};
    btc_status status = btc_image_decode_memory(file.data, file.len, "some.name", NULL, &im, &err);
    if (status != BTC_ERR_FORMAT) fail_msg("byte %zu: %s", at, btc_status_text(status));
    assert_non_null(strstr(err.message, "some.name"));
    file.data[at] ^= 0x10;
  }
  free(file.data);
}

static void test_image_errors_png_too_few_rows(void **state) {
  (void)state;
  uint8_t raw[10 * 31] = {0}, packed[200];
  uLongf len = sizeof packed;
  compress(packed, &len, raw, 9 * 31); /* one row short */
  bytes file = start_png(10, 10, 8, PNG_COLOR_TYPE_RGB, false);
  add_chunk(&file, "IDAT", packed, len);
  add_chunk(&file, "IEND", NULL, 0);
  assert_refused(file.data, file.len, BTC_ERR_FORMAT, "corrupt PNG");
  free(file.data);
}

static void test_image_errors_png_without_palette_or_pixels(void **state) {
  (void)state;
  bytes file = start_png(10, 10, 8, PNG_COLOR_TYPE_PALETTE, false);
  add_chunk(&file, "IDAT", "x", 1);
  assert_refused(file.data, file.len, BTC_ERR_FORMAT, "corrupt PNG");
  free(file.data);
  file = start_png(10, 10, 8, PNG_COLOR_TYPE_RGB, false);
  add_chunk(&file, "IEND", NULL, 0);
  assert_refused(file.data, file.len, BTC_ERR_FORMAT, "corrupt PNG");
  free(file.data);
  file = start_png(0, 10, 8, PNG_COLOR_TYPE_RGB, false);
  assert_refused(file.data, file.len, BTC_ERR_FORMAT, "corrupt PNG");
  free(file.data);
}

/* libjpeg would fill the gap with grey and a warning. */
static void test_image_errors_jpeg_lost_restart_interval(void **state) {
  (void)state;
  uint8_t *rows = noise(64 * 64, 1);
  bytes file = make_jpeg(&(jpeg_recipe){.width = 64,
                                        .height = 64,
                                        .components = 1,
                                        .in = JCS_GRAYSCALE,
                                        .stored = JCS_GRAYSCALE,
                                        .restart_interval = 8,
                                        .rows = rows});
  size_t first = 0, third = 0;
  for (size_t i = 0; i + 1 < file.len; i++) {
    if (file.data[i] == 0xff && file.data[i + 1] == 0xd0) first = i;
    if (file.data[i] == 0xff && file.data[i + 1] == 0xd2) third = i;
  }
  assert_true(first > 0 && third > first);
  memmove(file.data + first, file.data + third, file.len - third);
  assert_refused(file.data, file.len - (third - first), BTC_ERR_FORMAT, "corrupt JPEG");
  free(file.data);
  free(rows);
}

static void test_image_errors_jpeg_zeroed_middle(void **state) {
  (void)state;
  bytes file = make_rgb_jpeg(120, 90, false);
  memset(file.data + file.len / 2, 0, file.len / 4);
  assert_refused(file.data, file.len, BTC_ERR_FORMAT, "corrupt JPEG");
  free(file.data);
}

static void test_image_errors_jpeg_of_two_components(void **state) {
  (void)state;
  uint8_t rows[8 * 8 * 2] = {0};
  bytes file =
      make_jpeg(&(jpeg_recipe){.width = 8, .height = 8, .components = 2, .in = JCS_UNKNOWN, .stored = JCS_UNKNOWN, .rows = rows});
  assert_refused(file.data, file.len, BTC_ERR_UNSUPPORTED, "2 components");
  free(file.data);
}

/* libpng and libjpeg print by default. */
static void test_image_errors_print_nothing(void **state) {
  (void)state;
  bytes files[] = {make_rgb_png(20, 20, false), make_rgb_jpeg(20, 20, false), {0}};
  files[2] = start_png(4, 4, 8, PNG_COLOR_TYPE_RGB, false);
  add_chunk(&files[2], "gAMA", "\0\0", 2); /* libpng warns of its length when it looks at it */
  const char *path = write_file("stderr.txt", "", 0);
  fflush(stderr);
  int saved = dup(STDERR_FILENO);
  assert_non_null(freopen(path, "w", stderr));
  for (int i = 0; i < 3; i++) {
    btc_image im;
    for (size_t cut = 1; cut <= 3; cut++) btc_image_decode_memory(files[i].data, files[i].len * cut / 4, "x", NULL, &im, NULL);
    files[i].data[files[i].len / 2] ^= 0xff;
    if (btc_image_decode_memory(files[i].data, files[i].len, "x", NULL, &im, NULL) == BTC_OK) btc_image_free(&im);
    free(files[i].data);
  }
  fflush(stderr);
  dup2(saved, STDERR_FILENO);
  close(saved);
  struct stat sb;
  assert_int_equal(stat(path, &sb), 0);
  assert_int_equal(sb.st_size, 0);
}

/* ---- bounds ---- */

static void test_image_errors_absurd_sizes(void **state) {
  (void)state;
  static const uint32_t sizes[][2] = {
      {0x7fffffff, 1}, {1, 0x7fffffff}, {BTC_IMAGE_MAX_SIDE + 1, 1}, {65500, 65500}, {30000, 33334}};
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    bytes file = start_png(sizes[i][0], sizes[i][1], 1, PNG_COLOR_TYPE_GRAY, false);
    add_chunk(&file, "IDAT", "x\x9c", 2);
    add_chunk(&file, "IEND", NULL, 0);
    char number[16];
    snprintf(number, sizeof number, "%u x", sizes[i][0]);
    assert_refused(file.data, file.len, BTC_ERR_LIMIT, number);
    free(file.data);
  }
}

static void test_image_errors_pixel_limit_is_exact(void **state) {
  (void)state;
  bytes files[] = {make_rgb_png(20, 30, false), make_rgb_jpeg(20, 30, false)};
  for (int i = 0; i < 2; i++) {
    btc_image_limits limits = btc_image_limits_default();
    btc_image im;
    limits.max_pixels = 600;
    assert_int_equal(btc_image_decode_memory(files[i].data, files[i].len, "x", &limits, &im, NULL), BTC_OK);
    btc_image_free(&im);
    limits.max_pixels = 599;
    assert_int_equal(btc_image_decode_memory(files[i].data, files[i].len, "x", &limits, &im, NULL), BTC_ERR_LIMIT);
    free(files[i].data);
  }
}

static void test_image_errors_bad_arguments(void **state) {
  (void)state;
  bytes file = make_rgb_png(4, 4, false);
  btc_image im, out;
  for (int64_t side = -1; side <= 0; side++) {
    assert_int_equal(btc_image_load_memory(file.data, file.len, "x", side, BTC_IMAGE_SQUASH, NULL, &im, NULL, NULL, NULL),
                     BTC_ERR_ARG);
    assert_int_equal(btc_image_resize(&(btc_image){.width = 1, .height = 1, .rgb = file.data}, 4, side, &out, NULL), BTC_ERR_ARG);
    assert_int_equal(btc_image_pad(&(btc_image){.width = side, .height = 1, .rgb = file.data}, &out, NULL), BTC_ERR_ARG);
  }
  free(file.data);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_image_errors_missing_file),
    cmocka_unit_test(test_image_errors_directory),
    cmocka_unit_test(test_image_errors_fifo_is_not_waited_for),
    cmocka_unit_test(test_image_errors_empty_file),
    cmocka_unit_test(test_image_errors_file_of_too_many_bytes),
    cmocka_unit_test(test_image_errors_cut_file_larger_than_the_buffer),
    cmocka_unit_test(test_image_errors_say_what_the_file_is),
    cmocka_unit_test(test_image_errors_truncated_png),
    cmocka_unit_test(test_image_errors_truncated_jpeg),
    cmocka_unit_test(test_image_errors_png_bad_checksum),
    cmocka_unit_test(test_image_errors_png_too_few_rows),
    cmocka_unit_test(test_image_errors_png_without_palette_or_pixels),
    cmocka_unit_test(test_image_errors_jpeg_lost_restart_interval),
    cmocka_unit_test(test_image_errors_jpeg_zeroed_middle),
    cmocka_unit_test(test_image_errors_jpeg_of_two_components),
    cmocka_unit_test(test_image_errors_print_nothing),
    cmocka_unit_test(test_image_errors_absurd_sizes),
    cmocka_unit_test(test_image_errors_pixel_limit_is_exact),
    cmocka_unit_test(test_image_errors_bad_arguments),
};

BTC_TEST_MAIN(tests)
