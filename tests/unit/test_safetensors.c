/* safetensors files built in memory: what is read, and what is refused with which words. */
#define _GNU_SOURCE
#include "test.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/safetensors.h"

typedef struct file {
  uint8_t *bytes;
  size_t len;
} file;

/* Header text with ' for ", followed by data_len bytes 0, 1, 2, ... */
static file build(const char *header, size_t data_len) {
  uint64_t header_len = strlen(header);
  file f = {malloc(8 + header_len + data_len), 8 + header_len + data_len};
  assert_non_null(f.bytes);
  memcpy(f.bytes, &header_len, 8);
  for (size_t i = 0; i < header_len; i++) f.bytes[8 + i] = (uint8_t)(header[i] == '\'' ? '"' : header[i]);
  for (size_t i = 0; i < data_len; i++) f.bytes[8 + header_len + i] = (uint8_t)i;
  return f;
}

static void expect_refused(const char *header, size_t data_len, btc_status status, const char *mention) {
  file f = build(header, data_len);
  btc_safetensors *s;
  btc_error err = {0};
  btc_status st = btc_safetensors_open_memory(f.bytes, f.len, "some/file", &s, &err);
  free(f.bytes);
  assert_null(s);
  if (st != status || !strstr(err.message, "some/file") || !strstr(err.message, mention))
    fail_msg("%s: status %d, '%s' lacks '%s'", header, st, err.message, mention);
}

static void test_safetensors_reads_tensors_in_place(void **state) {
  (void)state;
  file f = build(
      "{'__metadata__':{'format':'pt'},'b':{'dtype':'BF16','shape':[2,3],'data_offsets':[8,20],'more':[1]},"
      "'a':{'dtype':'I64','shape':[],'data_offsets':[0,8]},'z':{'dtype':'F32','shape':[3,0],'data_offsets':[8,8]}}   ",
      24);
  btc_safetensors *s;
  assert_int_equal(btc_safetensors_open_memory(f.bytes, f.len, "x", &s, NULL), BTC_OK);
  assert_int_equal(btc_safetensors_count(s), 3);
  assert_int_equal(btc_safetensors_file_bytes(s), f.len);
  assert_string_equal(btc_safetensors_at(s, 0)->name, "a");
  assert_string_equal(btc_safetensors_at(s, 1)->name, "z");
  assert_string_equal(btc_safetensors_at(s, 2)->name, "b");
  const btc_tensor_view *b = btc_safetensors_find(s, "b");
  assert_ptr_equal(b, btc_safetensors_at(s, 2));
  assert_ptr_equal(b->data, f.bytes + f.len - 24 + 8);
  assert_int_equal(b->bytes, 12);
  assert_int_equal(b->dtype, BTC_BF16);
  assert_int_equal(b->rank, 2);
  assert_int_equal(b->dim[0], 2);
  assert_int_equal(b->dim[1], 3);
  assert_string_equal(b->path, "x");
  assert_int_equal(btc_safetensors_find(s, "a")->rank, 0);
  assert_int_equal(btc_safetensors_find(s, "z")->bytes, 0);
  assert_null(btc_safetensors_find(s, "c"));
  assert_null(btc_safetensors_find(s, "__metadata__"));
  btc_safetensors_close(&s);
  assert_null(s);
  btc_safetensors_close(&s);
  free(f.bytes);
}

static void test_safetensors_empty_header(void **state) {
  (void)state;
  file f = build("{}", 0);
  btc_safetensors *s;
  assert_int_equal(btc_safetensors_open_memory(f.bytes, f.len, "x", &s, NULL), BTC_OK);
  assert_int_equal(btc_safetensors_count(s), 0);
  assert_null(btc_safetensors_find(s, "a"));
  btc_safetensors_close(&s);
  free(f.bytes);
}

static void test_safetensors_refuses_bad_entries(void **state) {
  (void)state;
  static const struct {
    const char *entry, *mention;
    btc_status status;
  } cases[] = {
      {"[]", "not an object", BTC_ERR_FORMAT},
      {"{}", "dtype", BTC_ERR_FORMAT},
      {"{'dtype':'F64','shape':[1],'data_offsets':[0,8]}", "'F64' is not supported", BTC_ERR_UNSUPPORTED},
      {"{'dtype':'f32','shape':[1],'data_offsets':[0,4]}", "'f32' is not supported", BTC_ERR_UNSUPPORTED},
      {"{'dtype':'F32','data_offsets':[0,4]}", "shape", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':4,'data_offsets':[0,4]}", "shape", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':['1'],'data_offsets':[0,4]}", "dimension 0", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':[1.0],'data_offsets':[0,4]}", "dimension 0", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':[1,-1],'data_offsets':[0,4]}", "dimension 1", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':[1,1,1,1,1,1,1,1,1],'data_offsets':[0,4]}", "9 dimensions", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':[4611686018427387904,4],'data_offsets':[0,0]}", "too large", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':[9223372036854775807,2],'data_offsets':[0,0]}", "too large", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':[18446744073709551616],'data_offsets':[0,0]}", "dimension 0", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':[1]}", "data_offsets", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':[1],'data_offsets':{'0':0,'1':4}}", "data_offsets", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':[1],'data_offsets':[0,4,4]}", "data_offsets", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':[1],'data_offsets':[4,0]}", "not a range", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':[1],'data_offsets':[-4,0]}", "not a range", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':[1],'data_offsets':[1,3]}", "2 bytes of data", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':[2],'data_offsets':[4,12]}", "leave the file", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':[1],'data_offsets':[0,18446744073709551620]}", "not two integers", BTC_ERR_FORMAT},
      {"{'dtype':'F32','shape':[1],'data_offsets':[0,4],'dtype':'F32'}", "duplicate", BTC_ERR_FORMAT},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char header[256];
    snprintf(header, sizeof header, "{'t.w':%s}", cases[i].entry);
    expect_refused(header, 8, cases[i].status, cases[i].mention);
    if (!strstr(cases[i].mention, "duplicate")) expect_refused(header, 8, cases[i].status, "'t.w'");
  }
}

static void test_safetensors_refuses_overlap(void **state) {
  (void)state;
  static const char *const headers[] = {
      "{'a':{'dtype':'F32','shape':[2],'data_offsets':[0,8]},'b':{'dtype':'F32','shape':[2],'data_offsets':[4,12]}}",
      "{'a':{'dtype':'F32','shape':[4],'data_offsets':[0,16]},'b':{'dtype':'F32','shape':[1],'data_offsets':[4,8]}}",
      "{'b':{'dtype':'F32','shape':[2],'data_offsets':[0,8]},'a':{'dtype':'F32','shape':[2],'data_offsets':[0,8]}}",
  };
  for (size_t i = 0; i < 3; i++) expect_refused(headers[i], 16, BTC_ERR_FORMAT, "overlaps");
}

static void test_safetensors_refuses_bad_headers(void **state) {
  (void)state;
  expect_refused("[]", 0, BTC_ERR_FORMAT, "not an object");
  expect_refused("", 4, BTC_ERR_FORMAT, "not valid JSON");
  expect_refused("{'a':{'dtype':'F32','shape':[1],'data_offsets':[0,4]},'a':{'dtype':'F32','shape':[1],'data_offsets':[0,4]}}", 4,
                 BTC_ERR_FORMAT, "duplicate");
  expect_refused("{'a\\u0000b':{'dtype':'F32','shape':[1],'data_offsets':[0,4]}}", 4, BTC_ERR_FORMAT, "not valid JSON");
  expect_refused("{'a':{'dtype':'F32','shape':[1],'data_offsets':[0,NaN]}}", 4, BTC_ERR_FORMAT, "not valid JSON");
}

static void test_safetensors_refuses_any_cut(void **state) {
  (void)state;
  static const char header[] = "{'a':{'dtype':'F32','shape':[1],'data_offsets':[0,4]}}";
  file f = build(header, 4);
  for (size_t len = 0; len < f.len; len++) {
    uint8_t *cut = malloc(len + 1); /* its own block, so that a read past the end is seen */
    assert_non_null(cut);
    memcpy(cut, f.bytes, len);
    btc_safetensors *s;
    assert_int_equal(btc_safetensors_open_memory(cut, len, "x", &s, NULL), BTC_ERR_FORMAT);
    free(cut);
  }
  free(f.bytes);
}

/* Nesting and sizes that would exhaust stack or memory. */
static void test_safetensors_bounds_headers(void **state) {
  (void)state;
  size_t n = 5u << 20;
  char *text = malloc(n + 1);
  assert_non_null(text);
  memset(text, '[', n);
  text[n] = 0;
  expect_refused(text, 0, BTC_ERR_LIMIT, "2000000 values");
  text[1000000] = 0;
  expect_refused(text, 0, BTC_ERR_FORMAT, "depth");
  free(text);
  file f = build("{}", (101u << 20));
  uint64_t header_len = 101u << 20;
  memcpy(f.bytes, &header_len, 8);
  btc_safetensors *s;
  assert_int_equal(btc_safetensors_open_memory(f.bytes, f.len, "x", &s, NULL), BTC_ERR_LIMIT);
  free(f.bytes);
}

static void test_safetensors_finds_among_many(void **state) {
  (void)state;
  enum { N = 3000 };
  char *header = malloc(N * 80), *at = header;
  assert_non_null(header);
  for (int i = 0; i < N; i++) /* stored backwards: order of data is not order of names */
    at += sprintf(at, "%c't%d':{'dtype':'F16','shape':[1],'data_offsets':[%d,%d]}", i ? ',' : '{', i, 2 * (N - 1 - i), 2 * (N - i));
  strcpy(at, "}");
  file f = build(header, (size_t)2 * N);
  free(header);
  btc_safetensors *s;
  assert_int_equal(btc_safetensors_open_memory(f.bytes, f.len, "x", &s, NULL), BTC_OK);
  for (int i = 0; i < N; i++) {
    char name[16];
    snprintf(name, sizeof name, "t%d", i);
    const btc_tensor_view *v = btc_safetensors_find(s, name);
    assert_non_null(v);
    assert_ptr_equal(v, btc_safetensors_at(s, (size_t)(N - 1 - i)));
  }
  btc_safetensors_close(&s);
  free(f.bytes);
}

static btc_status open_path(const char *path, char *message) {
  btc_safetensors *s;
  btc_error err = {0};
  btc_status st = btc_safetensors_open(path, &s, &err);
  btc_safetensors_close(&s);
  strcpy(message, err.message);
  return st;
}

static void test_safetensors_odd_files(void **state) {
  (void)state;
  char path[128], message[BTC_ERROR_TEXT];
  snprintf(path, sizeof path, "%s/none", test_tmp_dir());
  assert_int_equal(open_path(path, message), BTC_ERR_NOT_FOUND);
  assert_non_null(strstr(message, path));
  assert_int_equal(open_path(test_tmp_dir(), message), BTC_ERR_IO);
  assert_non_null(strstr(message, "is a directory"));
  assert_int_equal(open_path("/dev/zero", message), BTC_ERR_IO);
  assert_int_equal(mkfifo(path, 0600), 0);
  assert_int_equal(open_path(path, message), BTC_ERR_IO); /* and does not wait for a writer */
  unlink(path);
  assert_int_equal(symlink(path, path), 0);
  assert_int_equal(open_path(path, message), BTC_ERR_IO);
  unlink(path);
  file f = build("{'a':{'dtype':'F32','shape':[1],'data_offsets':[0,4]}}", 4);
  int fd = open(path, O_WRONLY | O_CREAT, 0600);
  assert_int_equal(write(fd, f.bytes, f.len), f.len);
  close(fd);
  assert_int_equal(open_path(path, message), BTC_OK);
  assert_int_equal(truncate(path, 0), 0);
  assert_int_equal(open_path(path, message), BTC_ERR_FORMAT);
  free(f.bytes);
}

static void test_safetensors_names_are_printable_in_messages(void **state) {
  (void)state;
  expect_refused("{'a\\u001b[31m\\nb':{}}", 0, BTC_ERR_FORMAT, "'a?[31m?b'");
}

static void test_shape_text(void **state) {
  (void)state;
  char text[24];
  btc_shape_text(0, NULL, text, sizeof text);
  assert_string_equal(text, "[]");
  btc_shape_text(2, (const int64_t[]){12, 3}, text, sizeof text);
  assert_string_equal(text, "[12, 3]");
  btc_shape_text(3, (const int64_t[]){INT64_MAX, INT64_MAX, 1}, text, sizeof text);
  assert_int_equal(strlen(text), sizeof text - 1);
}

static int fail_at;
static bool fail_one(size_t bytes) {
  (void)bytes;
  return fail_at-- != 0;
}

static void test_safetensors_survives_lack_of_memory(void **state) {
  (void)state;
  file f = build("{'a':{'dtype':'F32','shape':[1],'data_offsets':[0,4]}}", 4);
  btc_status st = BTC_ERR_NOMEM;
  for (int n = 0; st != BTC_OK && n < 20; n++) {
    btc_safetensors *s;
    fail_at = n;
    btc_alloc_hook = fail_one;
    st = btc_safetensors_open_memory(f.bytes, f.len, "x", &s, NULL);
    btc_alloc_hook = NULL;
    assert_true(st == BTC_OK || st == BTC_ERR_NOMEM);
    btc_safetensors_close(&s);
  }
  assert_int_equal(st, BTC_OK);
  free(f.bytes);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_safetensors_reads_tensors_in_place),
    cmocka_unit_test(test_safetensors_empty_header),
    cmocka_unit_test(test_safetensors_refuses_bad_entries),
    cmocka_unit_test(test_safetensors_refuses_overlap),
    cmocka_unit_test(test_safetensors_refuses_bad_headers),
    cmocka_unit_test(test_safetensors_refuses_any_cut),
    cmocka_unit_test(test_safetensors_bounds_headers),
    cmocka_unit_test(test_safetensors_finds_among_many),
    cmocka_unit_test(test_safetensors_odd_files),
    cmocka_unit_test(test_safetensors_names_are_printable_in_messages),
    cmocka_unit_test(test_shape_text),
    cmocka_unit_test(test_safetensors_survives_lack_of_memory),
};

BTC_TEST_MAIN(tests)
