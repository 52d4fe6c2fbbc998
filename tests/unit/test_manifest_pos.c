/* Places in a manifest: going on from any of them gives what reading on gave; items as texts; hostile places and manifests. */
#define _GNU_SOURCE
#include "test.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "manifest/manifest.h"

static char path_buffer[512];

static const char *in_tmp(const char *name) {
  snprintf(path_buffer, sizeof path_buffer, "%s/%s", test_tmp_dir(), name);
  return path_buffer;
}

static const char *write_text(const char *name, const char *text) {
  FILE *f = fopen(in_tmp(name), "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
  assert_int_equal(fclose(f), 0);
  return path_buffer;
}

static btc_manifest *open_for_places(const char *path) {
  btc_manifest *m;
  btc_error err;
  if (btc_manifest_open(path, &(btc_manifest_options){.duplicates_too = true}, &m, &err) != BTC_OK) fail_msg("%s", err.message);
  return m;
}

static btc_manifest_item next(btc_manifest *m) {
  btc_manifest_item item;
  btc_error err;
  if (btc_manifest_next(m, &item, &err) != BTC_OK) fail_msg("%s", err.message);
  return item;
}

static void seek(btc_manifest *m, const char *pos) {
  btc_error err;
  if (btc_manifest_seek(m, pos, &err) != BTC_OK) fail_msg("%s", err.message);
}

enum { MOST = 4096 };

/* Every item from its place, in a shuffled order and from a reader that stands anywhere. */
static void check_all_places(const char *path, size_t want) {
  static btc_manifest_pos pos[MOST + 1];
  static char *text[MOST];
  btc_manifest *m = open_for_places(path), *skipper = open_for_places(path);
  size_t n = 0;
  for (;;) {
    assert_int_equal(btc_manifest_tell(m, &pos[n], NULL), BTC_OK);
    assert_int_equal(btc_manifest_index(m), n);
    btc_manifest_item item = next(m);
    if (item.kind == BTC_MANIFEST_END) break;
    text[n++] = btc_manifest_item_text(&item, NULL);
    assert_true(n < MOST);
  }
  assert_int_equal(n, want);
  for (size_t k = 0; k < 3 * n; k++) {
    size_t i = (k * 7919 + k / n) % n;
    seek(m, pos[i].text);
    btc_manifest_item item = next(m);
    char *again = btc_manifest_item_text(&item, NULL);
    assert_string_equal(again, text[i]);
    free(again);
    uint64_t skipped;
    seek(skipper, pos[i].text);
    assert_int_equal(btc_manifest_skip(skipper, 5, &skipped, NULL), BTC_OK);
    assert_int_equal(skipped, n - i < 5 ? n - i : 5);
    btc_manifest_pos there;
    assert_int_equal(btc_manifest_tell(skipper, &there, NULL), BTC_OK);
    assert_string_equal(there.text, pos[i + skipped].text);
  }
  for (size_t i = 0; i < n; i++) free(text[i]);
  btc_manifest_close(&m);
  btc_manifest_close(&skipper);
}

static void test_manifest_pos_jsonl(void **state) {
  (void)state;
  FILE *f = fopen(in_tmp("m.jsonl"), "wb");
  fputs("\xef\xbb\xbf{\"before\":\"a\",\"after\":\"b\"}\r\n", f);
  for (int i = 1; i < 3000; i++) {
    if (i % 7 == 0) fputs("\n  \r\n", f);
    if (i % 11 == 0)
      fputs("no item\n", f);
    else if (i % 500 == 1)
      fprintf(f, "{\"before\":\"%070000d\",\"after\":\"b\"}\n", i);
    else
      fprintf(f, "{\"id\":\"i%d\",\"before\":\"a%d\",\"after\":\"b\",\"meta\":{\"x\": %d.0}}%s", i % 50, i, i,
              i < 2999 ? "\n" : "");
  }
  fclose(f);
  check_all_places(in_tmp("m.jsonl"), 3000);
}

static void test_manifest_pos_long_lines(void **state) {
  (void)state;
  FILE *f = fopen(in_tmp("long.jsonl"), "wb");
  for (int i = 0; i < 4; i++) {
    fprintf(f, "{\"before\":\"a%d\",\"after\":\"b\"}\n", i);
    for (int k = 0; k < 1200; k++) fprintf(f, "%01000d", k);
    fputc('\n', f);
  }
  fclose(f);
  check_all_places(in_tmp("long.jsonl"), 8);
}

static void test_manifest_pos_csv(void **state) {
  (void)state;
  FILE *f = fopen(in_tmp("m.csv"), "wb");
  fputs("id,after,before\r\n", f);
  for (int i = 0; i < 2000; i++) fprintf(f, i % 9 ? "n%d,b%d,a\n" : i % 2 ? "\"x\ny%d\",\"b,%d\",a\r\n" : "%d,stray\"%d\n", i, i);
  fclose(f);
  check_all_places(in_tmp("m.csv"), 2000);
}

static void test_manifest_pos_folders(void **state) {
  (void)state;
  char dir[480], path[600];
  snprintf(dir, sizeof dir, "%s/folders", test_tmp_dir());
  mkdir(dir, 0755);
  for (int side = 0; side < 2; side++) {
    snprintf(path, sizeof path, "%s/%c", dir, "AB"[side]);
    mkdir(path, 0755);
    for (int i = 0; i < 60; i++) {
      if (i % 10 == 3 + side) continue;
      snprintf(path, sizeof path, "%s/%c/f%d.png", dir, "AB"[side], i);
      fclose(fopen(path, "wb"));
    }
  }
  check_all_places(dir, 60);
  btc_manifest *m = open_for_places(dir);
  static const char *const wrong[] = {"1:0:0", "0:1:0", "62:30:31", "2:2:200", "3:2:0"};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) assert_int_equal(btc_manifest_seek(m, wrong[i], NULL), BTC_ERR_ARG);
  btc_manifest_close(&m);
}

static void test_manifest_pos_beginning(void **state) {
  (void)state;
  static const char *const texts[] = {"{\"before\":\"a\",\"after\":\"b\"}\n{\"before\":\"c\",\"after\":\"b\"}\n",
                                      "before,after\na,b\nc,b\n"};
  for (int i = 0; i < 2; i++) {
    btc_manifest *m = open_for_places(write_text("begin", texts[i]));
    next(m);
    next(m);
    static const char *const begin[] = {"", "0:1:0"};
    for (int k = 0; k < 2; k++) {
      seek(m, begin[k]);
      btc_manifest_item item = next(m);
      assert_int_equal(item.kind, BTC_MANIFEST_ITEM);
      assert_int_equal(item.before[strlen(item.before) - 1], 'a');
      assert_int_equal(item.line, i + 1);
    }
    btc_manifest_close(&m);
  }
}

static void test_manifest_pos_refuses_wrong_places(void **state) {
  (void)state;
  btc_manifest *m =
      open_for_places(write_text("m.jsonl", "{\"before\":\"a\",\"after\":\"b\"}\n{\"before\":\"c\",\"after\":\"b\"}\n"));
  static const char *const wrong[] = {"1",
                                      "1:2",
                                      "1:2:",
                                      ":2:27",
                                      "1:2:27:",
                                      "1:2:27 ",
                                      "-1:2:27",
                                      "x",
                                      "1:2:26",
                                      "1:0:27",
                                      "1:2:99",
                                      "1:2:5",
                                      "99999999999:2:27",
                                      "1:2:9999999999999999999",
                                      "00000000000000000001:2:27"};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    btc_error err;
    if (btc_manifest_seek(m, wrong[i], &err) != BTC_ERR_ARG) fail_msg("'%s' was taken", wrong[i]);
    assert_non_null(strstr(err.message, "m.jsonl"));
  }
  seek(m, "1:2:27");
  assert_int_equal(next(m).line, 2);
  btc_manifest_close(&m);
  /* readers that compare ids read from the beginning only */
  assert_int_equal(btc_manifest_open(in_tmp("m.jsonl"), NULL, &m, NULL), BTC_OK);
  uint64_t skipped;
  assert_int_equal(btc_manifest_seek(m, "", NULL), BTC_ERR_ARG);
  assert_int_equal(btc_manifest_skip(m, 1, &skipped, NULL), BTC_ERR_ARG);
  btc_manifest_close(&m);
}

static void test_manifest_pos_pipes_have_none(void **state) {
  (void)state;
  int p[2];
  char path[64];
  assert_int_equal(pipe(p), 0);
  assert_int_equal(write(p[1], "{\"before\":\"a\",\"after\":\"b\"}\n", 27), 27);
  close(p[1]);
  snprintf(path, sizeof path, "/proc/self/fd/%d", p[0]);
  btc_manifest *m = open_for_places(path);
  btc_manifest_pos pos;
  assert_int_equal(btc_manifest_tell(m, &pos, NULL), BTC_ERR_ARG);
  assert_int_equal(btc_manifest_seek(m, "", NULL), BTC_ERR_ARG);
  assert_int_equal(next(m).kind, BTC_MANIFEST_ITEM);
  btc_manifest_close(&m);
  close(p[0]);
}

/* Without comparing ids a million items cost no memory. */
static void test_manifest_pos_memory_is_bounded(void **state) {
  (void)state;
#ifdef __SANITIZE_ADDRESS__
  skip(); /* freed memory is kept in quarantine */
#endif
  FILE *f = fopen(in_tmp("big.jsonl"), "wb");
  for (int i = 0; i < 1000000; i++) fprintf(f, "{\"id\":\"%d\",\"before\":\"a\",\"after\":\"b\"}\n", i);
  fclose(f);
  btc_manifest *m = open_for_places(in_tmp("big.jsonl"));
  struct rusage before, after;
  next(m);
  getrusage(RUSAGE_SELF, &before);
  while (next(m).kind != BTC_MANIFEST_END) continue;
  getrusage(RUSAGE_SELF, &after);
  assert_int_equal(btc_manifest_index(m), 1000000);
  assert_true(after.ru_maxrss - before.ru_maxrss < 4096); /* KiB; the set of ids would take 32 MB */
  btc_manifest_close(&m);
}

static void expect_text(const btc_manifest_item *item, const char *base, const char *want) {
  char *text = btc_manifest_item_text(item, base);
  assert_string_equal(text, want);
  free(text);
}

static void test_manifest_text_of_items(void **state) {
  (void)state;
  btc_manifest_item item = {.id = "a\"1", .before = "x/b.png", .after = "/abs/a.png", .line = 3};
  expect_text(&item, "/base", "{\"id\":\"a\\\"1\",\"before\":\"/base/x/b.png\",\"after\":\"/abs/a.png\"}");
  expect_text(&item, NULL, "{\"id\":\"a\\\"1\",\"before\":\"x/b.png\",\"after\":\"/abs/a.png\"}");
  item.prompt = "What?";
  item.meta = "{\"x\": 1.50, \"y\":1e400}"; /* as it was written, even what no double holds */
  item.has_window = true;
  item.window[2] = item.window[3] = 7;
  expect_text(&item, "/base",
              "{\"id\":\"a\\\"1\",\"before\":\"/base/x/b.png\",\"after\":\"/abs/a.png\",\"prompt\":\"What?\",\"window\":[0,0,7,7],"
              "\"meta\":{\"x\": 1.50, \"y\":1e400}}");
  item.kind = BTC_MANIFEST_BAD;
  item.problem = "'after' is missing";
  expect_text(&item, "/base", "{\"id\":\"a\\\"1\",\"problem\":\"line 3: 'after' is missing\"}");
  item.line = 0;
  expect_text(&item, "/base", "{\"id\":\"a\\\"1\",\"problem\":\"'after' is missing\"}");
}

/* The words for a duplicate are those of the reader that finds it itself. */
static void test_manifest_text_of_duplicates(void **state) {
  (void)state;
  write_text("dup.jsonl",
             "{\"id\":\"x\",\"before\":\"a\",\"after\":\"b\"}\n{\"id\":\"x\",\"before\":\"c\",\"after\":\"d\"}\n{\"id\":\"x\","
             "\"before\":\"c\"}\n");
  btc_manifest *a, *b = open_for_places(in_tmp("dup.jsonl"));
  assert_int_equal(btc_manifest_open(in_tmp("dup.jsonl"), NULL, &a, NULL), BTC_OK);
  for (int i = 0; i < 3; i++) {
    btc_manifest_item x = next(a), y = next(b);
    if (i) btc_manifest_mark_duplicate(b, &y);
    char *want = btc_manifest_item_text(&x, NULL);
    expect_text(&y, NULL, want);
    assert_true((i == 1) == (strstr(want, "used before") != NULL));
    free(want);
  }
  btc_manifest_close(&a);
  btc_manifest_close(&b);
}

static void expect_single(const char *text, const char *want) {
  static btc_manifest *m;
  btc_manifest_item item;
  if (!want) {
    btc_manifest_close(&m);
    return;
  }
  assert_int_equal(btc_manifest_parse_line(&m, text, strlen(text), 0, "/dir", &item, NULL), BTC_OK);
  expect_text(&item, NULL, want);
}

static void test_manifest_parse_line(void **state) {
  (void)state;
  expect_single("{\"id\":\"a1\",\"before\":\"/data/a.png\",\"after\":\"b.png\"}",
                "{\"id\":\"a1\",\"before\":\"/data/a.png\",\"after\":\"/dir/b.png\"}");
  expect_single("{\n \"before\":\"/a\",\n\"after\":\"/b\",\n \"meta\"\n:\n{\"k\":\n1.0}\n}",
                "{\"id\":\"\",\"before\":\"/a\",\"after\":\"/b\",\"meta\":{\"k\": 1.0}}");
  expect_single("{\"before\":\"/a\"}", "{\"id\":\"\",\"problem\":\"'after' is missing\"}");
  expect_single("{\"id\":\"q\",\"before\":\"/a\",\"after\":7}", "{\"id\":\"q\",\"problem\":\"'after' is not a string\"}");
  expect_single("[]", "{\"id\":\"\",\"problem\":\"not a JSON object\"}");
  expect_single("", "{\"id\":\"\",\"problem\":\"not valid JSON: '[' or '{' expected near end of file\"}");
  expect_single(NULL, NULL);
  btc_manifest *m = NULL;
  btc_manifest_item item;
  char *big = malloc(BTC_MANIFEST_MAX_LINE + 2);
  memset(big, 'x', BTC_MANIFEST_MAX_LINE + 2);
  assert_int_equal(btc_manifest_parse_line(&m, big, BTC_MANIFEST_MAX_LINE + 1, 12, "", &item, NULL), BTC_OK);
  expect_text(&item, NULL, "{\"id\":\"12\",\"problem\":\"line 12: the line is longer than 1 MiB\"}");
  assert_int_equal(btc_manifest_parse_line(&m, "{\"before\":\"a\",\"after\":\"b\"}", 26, 12, "", &item, NULL), BTC_OK);
  expect_text(&item, "/b", "{\"id\":\"12\",\"before\":\"/b/a\",\"after\":\"/b/b\"}");
  free(big);
  btc_manifest_close(&m);
}

static void test_manifest_base_folder(void **state) {
  (void)state;
  btc_manifest *m;
  write_text("m.jsonl", "{\"before\":\"a\",\"after\":\"/b\"}\n");
  assert_int_equal(btc_manifest_open(in_tmp("m.jsonl"), &(btc_manifest_options){.dir = "/else"}, &m, NULL), BTC_OK);
  btc_manifest_item item = next(m);
  assert_string_equal(item.before, "/else/a");
  assert_string_equal(item.after, "/b");
  btc_manifest_close(&m);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_manifest_pos_jsonl),
    cmocka_unit_test(test_manifest_pos_long_lines),
    cmocka_unit_test(test_manifest_pos_csv),
    cmocka_unit_test(test_manifest_pos_folders),
    cmocka_unit_test(test_manifest_pos_beginning),
    cmocka_unit_test(test_manifest_pos_refuses_wrong_places),
    cmocka_unit_test(test_manifest_pos_pipes_have_none),
    cmocka_unit_test(test_manifest_pos_memory_is_bounded),
    cmocka_unit_test(test_manifest_text_of_items),
    cmocka_unit_test(test_manifest_text_of_duplicates),
    cmocka_unit_test(test_manifest_parse_line),
    cmocka_unit_test(test_manifest_base_folder),
};

BTC_TEST_MAIN(tests)
