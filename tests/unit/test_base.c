/* base: messages, memory, files, SHA-256 against the published answers, bounded JSON. */
#define _GNU_SOURCE
#include "test.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/json.h"

static char path[512];

static const char *in_tmp(const char *name) {
  snprintf(path, sizeof path, "%s/%s", test_tmp_dir(), name);
  return path;
}

/* ---- errors ---- */

static void test_fail_makes_one_printable_line(void **state) {
  (void)state;
  btc_error err;
  assert_int_equal(btc_fail(&err, BTC_ERR_FORMAT, "'%s': %d", "a\nb\x1b[31m\x7f\t\xc3\xa4", 7), BTC_ERR_FORMAT);
  assert_int_equal(err.code, BTC_ERR_FORMAT);
  assert_string_equal(err.message, "'a?b?[31m??\xc3\xa4': 7");
  assert_int_equal(btc_fail(NULL, BTC_ERR_IO, "x"), BTC_ERR_IO);
}

static void test_fail_cuts_long_texts(void **state) {
  (void)state;
  char *text = malloc(5000);
  assert_non_null(text);
  memset(text, 'x', 4999);
  text[4999] = 0;
  btc_error err;
  btc_fail(&err, BTC_ERR_ARG, "%s", text);
  assert_int_equal(strlen(err.message), BTC_ERROR_TEXT - 1);
  btc_fail_prefix(&err, "%s", text);
  assert_int_equal(strlen(err.message), BTC_ERROR_TEXT - 1);
  free(text);
}

static void test_fail_prefix_keeps_the_code(void **state) {
  (void)state;
  btc_error err;
  btc_fail(&err, BTC_ERR_LIMIT, "too long");
  assert_int_equal(btc_fail_prefix(&err, "line %d\n", 3), BTC_ERR_LIMIT);
  assert_string_equal(err.message, "line 3?: too long");
}

static void test_status_texts(void **state) {
  (void)state;
  for (int s = 0; s < BTC_STATUS_COUNT; s++)
    for (int t = 0; t < s; t++) assert_string_not_equal(btc_status_text((btc_status)s), btc_status_text((btc_status)t));
  assert_non_null(btc_status_text((btc_status)99));
  assert_non_null(btc_status_text((btc_status)-1));
}

/* ---- memory ---- */

static bool refuse(size_t bytes) {
  (void)bytes;
  return false;
}

static void test_alloc_checks_products(void **state) {
  (void)state;
  volatile size_t huge = SIZE_MAX / 2;
  assert_null(btc_alloc(huge, 3));
  assert_null(btc_alloc_zero(huge, 3));
  assert_null(btc_realloc(NULL, huge, 3));
  void *p = btc_alloc(0, 4);
  assert_non_null(p);
  free(p);
  uint8_t *z = btc_alloc_zero(3, 5);
  for (int i = 0; i < 15; i++) assert_int_equal(z[i], 0);
  free(z);
  btc_alloc_hook = refuse;
  assert_null(btc_alloc(1, 1));
  assert_null(btc_strdup("a"));
  btc_alloc_hook = NULL;
}

static void test_strdup(void **state) {
  (void)state;
  assert_null(btc_strdup(NULL));
  char *s = btc_strndup("abcdef", 3);
  assert_string_equal(s, "abc");
  free(s);
}

/* ---- clock ---- */

static void test_clock_goes_forward(void **state) {
  (void)state;
  int64_t a = btc_now_ns();
  assert_true(a > 0);
  for (int i = 0; i < 100; i++) assert_true(btc_now_ns() >= a);
}

/* ---- files ---- */

static btc_status read_it(const char *file, size_t max, btc_error *err) {
  uint8_t *data;
  size_t len;
  btc_status st = btc_file_read(file, max, &data, &len, err);
  assert_true((st == BTC_OK) == (data != NULL));
  free(data);
  return st;
}

static void test_file_read(void **state) {
  (void)state;
  uint8_t *data;
  size_t len;
  assert_int_equal(btc_file_publish(in_tmp("f"), "a\0b", 3, NULL), BTC_OK);
  assert_int_equal(btc_file_read(path, 3, &data, &len, NULL), BTC_OK);
  assert_int_equal(len, 3);
  assert_memory_equal(data, "a\0b\0", 4); /* a terminator behind the end */
  free(data);
  assert_int_equal(btc_file_publish(path, "", 0, NULL), BTC_OK);
  assert_int_equal(btc_file_read(path, 0, &data, &len, NULL), BTC_OK);
  assert_int_equal(len, 0);
  free(data);
}

static void test_file_read_refuses(void **state) {
  (void)state;
  btc_error err;
  assert_int_equal(read_it(in_tmp("none"), 10, &err), BTC_ERR_NOT_FOUND);
  assert_non_null(strstr(err.message, path));
  assert_int_equal(read_it(in_tmp("none/below"), 10, &err), BTC_ERR_NOT_FOUND);
  assert_int_equal(read_it(test_tmp_dir(), 10, &err), BTC_ERR_IO);
  assert_non_null(strstr(err.message, "directory"));
  assert_int_equal(mkfifo(in_tmp("fifo"), 0600), 0);
  assert_int_equal(read_it(path, 10, &err), BTC_ERR_IO); /* and does not wait for a writer */
  assert_int_equal(read_it("/dev/zero", 10, &err), BTC_ERR_IO);
  assert_int_equal(symlink("loop", in_tmp("loop")), 0);
  assert_int_equal(read_it(path, 10, &err), BTC_ERR_IO);
  assert_int_equal(btc_file_publish(in_tmp("big"), "12345678901", 11, NULL), BTC_OK);
  assert_int_equal(read_it(path, 10, &err), BTC_ERR_LIMIT);
  assert_int_equal(read_it(path, 11, &err), BTC_OK);
  btc_alloc_hook = refuse;
  assert_int_equal(read_it(path, 11, &err), BTC_ERR_NOMEM);
  btc_alloc_hook = NULL;
}

static int entries(const char *dir) {
  DIR *d = opendir(dir);
  assert_non_null(d);
  int n = 0;
  while (readdir(d)) n++;
  closedir(d);
  return n - 2;
}

static void test_file_publish_replaces(void **state) {
  (void)state;
  char dir[sizeof path];
  snprintf(dir, sizeof dir, "%s", in_tmp("publish"));
  assert_int_equal(mkdir(dir, 0755), 0);
  uint8_t *data;
  size_t len;
  for (int i = 0; i < 2; i++) {
    assert_int_equal(btc_file_publish(in_tmp("publish/f"), i ? "new" : "older", i ? 3 : 5, NULL), BTC_OK);
    assert_int_equal(entries(dir), 1);
  }
  assert_int_equal(btc_file_read(path, 10, &data, &len, NULL), BTC_OK);
  assert_string_equal((char *)data, "new");
  free(data);
}

static void test_file_publish_keeps_links_and_pipes(void **state) {
  (void)state;
  char link[sizeof path], got[8] = {0};
  struct stat sb;
  snprintf(link, sizeof link, "%s", in_tmp("link"));
  assert_int_equal(btc_file_publish(in_tmp("pointed"), "old", 3, NULL), BTC_OK);
  assert_int_equal(symlink("pointed", link), 0);
  assert_int_equal(btc_file_publish(link, "new", 3, NULL), BTC_OK);
  assert_int_equal(lstat(link, &sb), 0);
  assert_true(S_ISLNK(sb.st_mode));
  uint8_t *data;
  size_t len;
  assert_int_equal(btc_file_read(in_tmp("pointed"), 10, &data, &len, NULL), BTC_OK);
  assert_string_equal((char *)data, "new");
  free(data);
  assert_int_equal(mkfifo(in_tmp("pipe"), 0600), 0);
  int fd = open(path, O_RDWR); /* our own reader, so that the writer does not wait for one */
  assert_true(fd >= 0);
  assert_int_equal(btc_file_publish(path, "through", 7, NULL), BTC_OK);
  assert_int_equal(lstat(path, &sb), 0);
  assert_true(S_ISFIFO(sb.st_mode));
  assert_int_equal(read(fd, got, sizeof got), 7);
  assert_string_equal(got, "through");
  close(fd);
}

static void test_file_publish_failures_leave_nothing(void **state) {
  (void)state;
  btc_error err;
  assert_int_equal(btc_file_publish(in_tmp("no/such/dir"), "x", 1, &err), BTC_ERR_IO);
  assert_non_null(strstr(err.message, "no/such/dir"));
  char dir[sizeof path];
  snprintf(dir, sizeof dir, "%s", in_tmp("taken"));
  assert_int_equal(mkdir(dir, 0755), 0);
  assert_int_equal(mkdir(in_tmp("taken/f"), 0755), 0);
  assert_int_equal(btc_file_publish(in_tmp("taken/f"), "x", 1, &err), BTC_ERR_IO); /* a folder stands there */
  assert_int_equal(entries(dir), 1);
}

/* A writer that is killed again and again: readers see the old content or the new, whole. */
static void test_file_publish_is_never_half_written(void **state) {
  (void)state;
  enum { SIZE = 1 << 20 };
  char *text = malloc(SIZE);
  assert_non_null(text);
  memset(text, 'a', SIZE);
  assert_int_equal(btc_file_publish(in_tmp("whole"), text, SIZE, NULL), BTC_OK);
  for (int round = 0; round < 8; round++) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
      for (char c = 'b';; c = c == 'z' ? 'a' : (char)(c + 1)) {
        memset(text, c, SIZE);
        if (btc_file_publish(path, text, SIZE, NULL) != BTC_OK) _exit(1);
      }
    }
    for (int i = 0; i < 20; i++) {
      uint8_t *data;
      size_t len;
      assert_int_equal(btc_file_read(path, SIZE, &data, &len, NULL), BTC_OK);
      assert_int_equal(len, SIZE);
      assert_true(data[0] == data[SIZE - 1] && memcmp(data, data + 1, SIZE - 1) == 0);
      free(data);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
  }
  free(text);
}

static void test_path_join(void **state) {
  (void)state;
  static const char *const cases[][3] = {{"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"a//", "b", "a/b"},       {"/", "b", "/b"},
                                         {"a", "/b", "/b"}, {"a", "", "a/"},    {"a/b", "c/d", "a/b/c/d"}, {"", "b", "b"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char *p = btc_path_join(cases[i][0], cases[i][1]);
    assert_string_equal(p, cases[i][2]);
    free(p);
  }
}

/* ---- SHA-256: the examples of FIPS 180-4, and lengths around the block size against one-by-one updates ---- */

static void check_known_answers(void) {
  static const char *const cases[][2] = {
      {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
      {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
      {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
       "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
      {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
       "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"}};
  char hex[65];
  for (size_t i = 0; i < 4; i++) {
    btc_sha256_hex(cases[i][0], strlen(cases[i][0]), hex);
    assert_string_equal(hex, cases[i][1]);
  }
  char *million = malloc(1000000);
  assert_non_null(million);
  memset(million, 'a', 1000000);
  btc_sha256_hex(million, 1000000, hex);
  assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  free(million);
}

static void test_sha256_known_answers(void **state) {
  (void)state;
  check_known_answers();
  btc_sha256_portable_only = true;
  check_known_answers();
  btc_sha256_portable_only = false;
}

static void test_sha256_in_pieces(void **state) {
  (void)state;
  uint8_t data[300], whole[32], pieces[32];
  for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 7);
  for (size_t len = 0; len <= sizeof data; len++) {
    btc_sha256 a, b;
    btc_sha256_init(&a);
    btc_sha256_update(&a, data, len);
    btc_sha256_final(&a, whole);
    btc_sha256_init(&b);
    for (size_t at = 0, step = 1; at < len; at += step, step = step % 67 + 1)
      btc_sha256_update(&b, data + at, step < len - at ? step : len - at);
    btc_sha256_final(&b, pieces);
    assert_memory_equal(whole, pieces, 32);
  }
}

/* ---- UTF-8 ---- */

static void test_utf8_valid(void **state) {
  (void)state;
  static const char *const good[] = {"", "a", "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf", "\xed\x9f\xbf"};
  static const char *const wrong[] = {
      "\x80",     "\xc3", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xf0\x8f\xbf\xbf",
      "\xe2\x82", "\xff"};
  for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
    assert_int_equal(btc_utf8_valid(good[i], strlen(good[i])), strlen(good[i]));
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    assert_int_equal(btc_utf8_valid(wrong[i], strlen(wrong[i])), 0);
    char behind[16];
    snprintf(behind, sizeof behind, "ab%s", wrong[i]);
    assert_int_equal(btc_utf8_valid(behind, strlen(behind)), 2);
  }
}

/* ---- JSON ---- */

static json_t *parse(const char *text, btc_status want, btc_error *err) {
  json_t *v;
  assert_int_equal(btc_json_parse(text, strlen(text), "f.json", &btc_json_config_limits, &v, err), want);
  assert_true((v != NULL) == (want == BTC_OK));
  if (want != BTC_OK) assert_non_null(strstr(err->message, "f.json"));
  return v;
}

static void test_json_refuses(void **state) {
  (void)state;
  btc_error err;
  static const char *const bad[] = {"",
                                    "{",
                                    "[]",
                                    "7",
                                    "{\"a\":1,\"a\":2}",
                                    "{\"a\":NaN}",
                                    "{\"a\":1e999}",
                                    "{\"a\":01}",
                                    "{} x",
                                    "{\"a\":\"\\u0000\"}",
                                    "{\"a\":\"\\ud800\"}",
                                    "{'a':1}",
                                    "{\"a\":\"\xff\"}",
                                    "{\"a\":Infinity}"};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) parse(bad[i], BTC_ERR_FORMAT, &err);
}

static void test_json_bounds(void **state) {
  (void)state;
  btc_error err;
  size_t n = 2u << 20;
  char *text = malloc(n + 1);
  assert_non_null(text);
  memset(text, ' ', n);
  text[n] = 0;
  parse(text, BTC_ERR_LIMIT, &err);
  memset(text, '[', 200000);
  text[200000] = 0;
  parse(text, BTC_ERR_LIMIT, &err);
  text[99999] = 0; /* within the number of values: the nesting stops it */
  parse(text, BTC_ERR_FORMAT, &err);
  free(text);
}

static void test_json_keeps_integers_beside_huge_ones(void **state) {
  (void)state;
  btc_error err;
  json_t *v = parse("{\"a\":[64,{\"b\":-3}],\"c\":123456789012345678901234567890,\"d\":0.5,\"e\":9007199254740993}", BTC_OK, &err);
  assert_int_equal(json_integer_value(json_array_get(json_object_get(v, "a"), 0)), 64);
  assert_int_equal(json_integer_value(json_object_get(json_array_get(json_object_get(v, "a"), 1), "b")), -3);
  assert_true(json_is_real(json_object_get(v, "c")));
  assert_true(json_is_real(json_object_get(v, "d")));
  json_decref(v);
}

static void test_json_getters(void **state) {
  (void)state;
  btc_error err;
  json_t *v = parse("{\"i\":5,\"r\":1.5,\"s\":\"x\",\"b\":true,\"n\":null,\"l\":[1,2.5],\"long\":\"\\u0001\"}", BTC_OK, &err);
  const btc_json_object o = {v, "f.json", "in."};
  int64_t i = 9;
  double d = 9;
  bool b = false;
  const char *s = "default";
  float list[2] = {0};
  assert_int_equal(btc_json_get_int(&o, "i", BTC_JSON_REQUIRED, 0, 5, &i, &err), BTC_OK);
  assert_int_equal(i, 5);
  assert_int_equal(btc_json_get_int(&o, "i", BTC_JSON_REQUIRED, 6, 9, &i, &err), BTC_ERR_MODEL);
  assert_string_equal(err.message, "'f.json': key 'in.i' must be an integer from 6 to 9, is 5");
  assert_int_equal(btc_json_get_int(&o, "none", BTC_JSON_REQUIRED, 0, 9, &i, &err), BTC_ERR_MODEL);
  assert_non_null(strstr(err.message, "is missing"));
  assert_int_equal(btc_json_get_int(&o, "none", BTC_JSON_OPTIONAL, 0, 9, &i, &err), BTC_OK);
  assert_int_equal(btc_json_get_int(&o, "n", BTC_JSON_NULLABLE, 0, 9, &i, &err), BTC_OK);
  assert_int_equal(i, 5);
  assert_int_equal(btc_json_get_int(&o, "n", BTC_JSON_OPTIONAL, 0, 9, &i, &err), BTC_ERR_MODEL);
  assert_non_null(strstr(err.message, "is null"));
  assert_int_equal(btc_json_get_int(&o, "r", BTC_JSON_REQUIRED, 0, 9, &i, &err), BTC_ERR_MODEL);
  assert_int_equal(btc_json_get_number(&o, "i", BTC_JSON_REQUIRED, 0, 9, &d, &err), BTC_OK);
  assert_true(d == 5);
  assert_int_equal(btc_json_get_number(&o, "r", BTC_JSON_REQUIRED, 2, 9, &d, &err), BTC_ERR_MODEL);
  assert_int_equal(btc_json_get_bool(&o, "b", BTC_JSON_REQUIRED, &b, &err), BTC_OK);
  assert_true(b);
  assert_int_equal(btc_json_get_bool(&o, "i", BTC_JSON_REQUIRED, &b, &err), BTC_ERR_MODEL);
  assert_int_equal(btc_json_get_string(&o, "s", BTC_JSON_REQUIRED, &s, &err), BTC_OK);
  assert_string_equal(s, "x");
  assert_int_equal(btc_json_get_string(&o, "b", BTC_JSON_REQUIRED, &s, &err), BTC_ERR_MODEL);
  assert_int_equal(btc_json_get_numbers(&o, "l", BTC_JSON_REQUIRED, 2, list, &err), BTC_OK);
  assert_true(list[0] == 1 && list[1] == 2.5f);
  assert_int_equal(btc_json_get_numbers(&o, "l", BTC_JSON_REQUIRED, 3, list, &err), BTC_ERR_MODEL);
  assert_int_equal(btc_json_refuse(&o, "long", "short", &err), BTC_ERR_MODEL);
  assert_string_equal(err.message, "'f.json': key 'in.long' must be short, is the string '?'");
  json_decref(v);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_fail_makes_one_printable_line),
    cmocka_unit_test(test_fail_cuts_long_texts),
    cmocka_unit_test(test_fail_prefix_keeps_the_code),
    cmocka_unit_test(test_status_texts),
    cmocka_unit_test(test_alloc_checks_products),
    cmocka_unit_test(test_strdup),
    cmocka_unit_test(test_clock_goes_forward),
    cmocka_unit_test(test_file_read),
    cmocka_unit_test(test_file_read_refuses),
    cmocka_unit_test(test_file_publish_replaces),
    cmocka_unit_test(test_file_publish_keeps_links_and_pipes),
    cmocka_unit_test(test_file_publish_failures_leave_nothing),
    cmocka_unit_test(test_file_publish_is_never_half_written),
    cmocka_unit_test(test_path_join),
    cmocka_unit_test(test_sha256_known_answers),
    cmocka_unit_test(test_sha256_in_pieces),
    cmocka_unit_test(test_utf8_valid),
    cmocka_unit_test(test_json_refuses),
    cmocka_unit_test(test_json_bounds),
    cmocka_unit_test(test_json_keeps_integers_beside_huge_ones),
    cmocka_unit_test(test_json_getters),
};

BTC_TEST_MAIN(tests)
