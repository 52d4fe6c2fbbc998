/* Manifests: three formats, bad lines by number, bounds. */
#define _GNU_SOURCE
#include "test.h"

#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "manifest/manifest.h"

static char path_buffer[512];

static const char *in_tmp(const char *name) {
  snprintf(path_buffer, sizeof path_buffer, "%s/%s", test_tmp_dir(), name);
  return path_buffer;
}

static const char *write_bytes(const char *name, const void *data, size_t len) {
  FILE *f = fopen(in_tmp(name), "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(data, 1, len, f), len);
  assert_int_equal(fclose(f), 0);
  return path_buffer;
}

static btc_manifest *open_text(const char *name, const char *text) {
  btc_manifest *m;
  btc_error err;
  if (btc_manifest_open(write_bytes(name, text, strlen(text)), NULL, &m, &err) != BTC_OK) fail_msg("%s", err.message);
  return m;
}

static btc_manifest_item next(btc_manifest *m) {
  btc_manifest_item item;
  btc_error err;
  if (btc_manifest_next(m, &item, &err) != BTC_OK) fail_msg("%s", err.message);
  return item;
}

static void expect_item(btc_manifest *m, uint64_t line, const char *id, const char *before, const char *after) {
  btc_manifest_item item = next(m);
  if (item.kind != BTC_MANIFEST_ITEM) fail_msg("line %d: %s", (int)line, item.problem ? item.problem : "end");
  char want[600];
  assert_int_equal(item.line, line);
  assert_string_equal(item.id, id);
  assert_null(item.problem);
  snprintf(want, sizeof want, "%s/%s", test_tmp_dir(), before);
  assert_string_equal(item.before, before[0] == '/' ? before : want);
  snprintf(want, sizeof want, "%s/%s", test_tmp_dir(), after);
  assert_string_equal(item.after, after[0] == '/' ? after : want);
}

static void expect_bad(btc_manifest *m, uint64_t line, const char *id, const char *problem) {
  btc_manifest_item item = next(m);
  assert_int_equal(item.kind, BTC_MANIFEST_BAD);
  assert_int_equal(item.line, line);
  assert_string_equal(item.id, id);
  if (!strstr(item.problem, problem)) fail_msg("line %d: '%s' lacks '%s'", (int)line, item.problem, problem);
  assert_null(strchr(item.problem, '\n'));
}

static void expect_end(btc_manifest *m) {
  assert_int_equal(next(m).kind, BTC_MANIFEST_END);
  assert_int_equal(next(m).kind, BTC_MANIFEST_END);
  assert_true(btc_manifest_progress(m) == 1);
  btc_manifest_close(&m);
  assert_null(m);
}

static void test_manifest_jsonl_items(void **state) {
  (void)state;
  btc_manifest *m = open_text("m.jsonl",
                              "{\"id\": \"T32/000123\", \"before\": \"a.png\", \"after\": \"x/b.png\"}\n"
                              "{\"after\":\"/abs/b.png\",\"before\":\"\\u00e4.png\",\"prompt\":null}\n");
  expect_item(m, 1, "T32/000123", "a.png", "x/b.png");
  expect_item(m, 2, "2", "\xc3\xa4.png", "/abs/b.png");
  expect_end(m);
}

static void test_manifest_jsonl_optional_keys(void **state) {
  (void)state;
  btc_manifest *m = open_text("m.jsonl",
                              "{\"before\":\"a\",\"after\":\"b\",\"prompt\":\"What changed?\",\"window\":[0,5,256,128],"
                              "\"meta\": {\"x\": 0.1, \"meta\":[1,{\"}\":\"{\\\"\"}]} , \"id\":\"i\"}\n"
                              "{\"before\":\"a\",\"after\":\"b\",\"m\\u0065ta\":{\"k\": 1}}\n");
  btc_manifest_item item = next(m);
  assert_int_equal(item.kind, BTC_MANIFEST_ITEM);
  assert_string_equal(item.prompt, "What changed?");
  assert_true(item.has_window);
  assert_true(item.window[0] == 0 && item.window[1] == 5 && item.window[2] == 256 && item.window[3] == 128);
  assert_string_equal(item.meta, "{\"x\": 0.1, \"meta\":[1,{\"}\":\"{\\\"\"}]}");
  item = next(m);
  assert_string_equal(item.meta, "{\"k\":1}");
  assert_false(item.has_window);
  assert_null(item.prompt);
  expect_end(m);
}

static void test_manifest_jsonl_bad_lines(void **state) {
  (void)state;
  static const struct {
    const char *line, *id, *problem;
  } cases[] = {
      {"{\"before\":\"a\"", "1", "not valid JSON"},
      {"[1]", "2", "not a JSON object"},
      {"{\"before\":\"a\"}", "3", "'after' is missing"},
      {"{\"after\":\"a\",\"id\":\"x4\"}", "x4", "'before' is missing"},
      {"{\"before\":\"a\",\"after\":7}", "5", "'after' is not a string"},
      {"{\"before\":\"a\",\"after\":\"\"}", "6", "'after' is empty"},
      {"{\"before\":\"a\",\"after\":\"b\",\"befor\":\"c\"}", "7", "unknown key 'befor'"},
      {"{\"before\":\"a\",\"after\":\"b\",\"id\":8}", "8", "'id' is not a string"},
      {"{\"before\":\"a\",\"after\":\"b\",\"id\":\"\"}", "9", "the id must"},
      {"{\"before\":\"a\",\"after\":\"b\",\"id\":\"a\\nb\"}", "10", "the id must"},
      {"{\"before\":\"a\",\"after\":\"b\",\"window\":[0,0,0,1]}", "11", "window"},
      {"{\"before\":\"a\",\"after\":\"b\",\"window\":[0,0,1]}", "12", "window"},
      {"{\"before\":\"a\",\"after\":\"b\",\"window\":[-1,0,1,1]}", "13", "window"},
      {"{\"before\":\"a\",\"after\":\"b\",\"window\":[0,0,1.5,1]}", "14", "window"},
      {"{\"before\":\"a\",\"after\":\"b\",\"meta\":[1]}", "15", "'meta' is not an object"},
      {"{\"before\":\"a\",\"before\":\"c\",\"after\":\"b\"}", "16", "duplicate"},
      {"{\"before\":\"a\\u0000\",\"after\":\"b\"}", "17", "not valid JSON"},
      {"{\"before\":\"\xff\",\"after\":\"b\"}", "18", "not valid JSON"},
      {"{\"before\":\"a\",\"after\":\"b\"} x", "19", "not valid JSON"},
      {"{\"before\":\"a\",\"after\":\"b\",\"prompt\":[]}", "20", "'prompt' is not a string"},
      {"{\"before\":\"a\",\"after\":\"b\",\"meta\":{\"n\":123456789012345678901234567890}}", "21", "not valid JSON"},
  };
  char text[8192] = "";
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    strcat(text, cases[i].line);
    strcat(text, "\n");
  }
  strcat(text, "{\"before\":\"a\",\"after\":\"b\"}");
  btc_manifest *m = open_text("m.jsonl", text);
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) expect_bad(m, i + 1, cases[i].id, cases[i].problem);
  expect_item(m, 22, "22", "a", "b");
  expect_end(m);
}

static void test_manifest_duplicate_ids(void **state) {
  (void)state;
  btc_manifest *m = open_text("m.jsonl",
                              "{\"before\":\"a\",\"after\":\"b\",\"id\":\"x\"}\n"
                              "{\"before\":\"a\",\"after\":\"b\",\"id\":\"4\"}\n"
                              "{\"before\":\"a\",\"after\":\"b\",\"id\":\"x\"}\n"
                              "{\"before\":\"a\",\"after\":\"b\"}\n"
                              "nonsense\n"
                              "{\"before\":\"a\",\"after\":\"b\",\"id\":\"5\"}\n"
                              "{\"before\":\"a\",\"id\":\"y\"}\n"
                              "{\"before\":\"a\",\"after\":\"b\",\"id\":\"y\"}\n");
  expect_item(m, 1, "x", "a", "b");
  expect_item(m, 2, "4", "a", "b");
  expect_bad(m, 3, "x", "'x' was used before");
  expect_bad(m, 4, "4", "used before");
  expect_bad(m, 5, "5", "not valid JSON");
  expect_item(m, 6, "5", "a", "b");
  expect_bad(m, 7, "y", "'after' is missing");
  expect_bad(m, 8, "y", "used before");
  expect_end(m);
}

static void test_manifest_duplicate_ids_among_many(void **state) {
  (void)state;
  FILE *f = fopen(in_tmp("many.csv"), "w");
  assert_non_null(f);
  fprintf(f, "before,after,id\n");
  for (int i = 0; i < 50000; i++) fprintf(f, "a,b,id%d\n", i);
  fprintf(f, "a,b,id31415\n");
  fclose(f);
  btc_manifest *m;
  assert_int_equal(btc_manifest_open(in_tmp("many.csv"), NULL, &m, NULL), BTC_OK);
  for (int i = 0; i < 50000; i++) assert_int_equal(next(m).kind, BTC_MANIFEST_ITEM);
  expect_bad(m, 50002, "id31415", "used before");
  expect_end(m);
}

static void test_manifest_line_ends(void **state) {
  (void)state;
  btc_manifest *m =
      open_text("m.jsonl", "\xef\xbb\xbf\r\n\n  \t\n{\"before\":\"a\",\"after\":\"b\"}\r\n\n{\"before\":\"c\",\"after\":\"d\"}");
  expect_item(m, 4, "4", "a", "b");
  expect_item(m, 6, "6", "c", "d");
  expect_end(m);
  expect_end(open_text("m.jsonl", ""));
  expect_end(open_text("m.jsonl", "\n\r\n\n"));
}

static void test_manifest_nul_and_long_lines(void **state) {
  (void)state;
  size_t size = 3 * BTC_MANIFEST_MAX_LINE;
  char *text = malloc(size);
  assert_non_null(text);
  memset(text, 'x', size);
  size_t at = 0;
  at += (size_t)sprintf(text, "{\"before\":\"a\",\"after\":\"b\"}\n");
  memcpy(text + at, "{\"before\":\"a\0\",\"after\":\"b\"}\n", 28);
  at += 28 + 2 * BTC_MANIFEST_MAX_LINE; /* line 3: two megabytes of x */
  text[at++] = '\n';
  int head = sprintf(text + at, "{\"before\":\"a\",\"after\":\"");
  memset(text + at + head, 'y', 5000); /* line 4: a path over PATH_MAX */
  at += (size_t)head + 5000;
  at += (size_t)sprintf(text + at, "\"}\n{\"before\":\"a\",\"after\":\"c\"}\n");
  btc_manifest *m;
  assert_int_equal(btc_manifest_open(write_bytes("long.jsonl", text, at), NULL, &m, NULL), BTC_OK);
  free(text);
  expect_item(m, 1, "1", "a", "b");
  expect_bad(m, 2, "2", "not valid JSON");
  expect_bad(m, 3, "3", "longer than 1 MiB");
  expect_bad(m, 4, "4", "too long");
  expect_item(m, 5, "5", "a", "c");
  expect_end(m);
}

/* The longest line that is allowed, with every alignment of its end to the chunks of reading. */
static void test_manifest_line_of_just_the_limit(void **state) {
  (void)state;
  static const char tail[] = "{\"before\":\"a\",\"after\":\"b\"}";
  char *text = malloc(BTC_MANIFEST_MAX_LINE + 64);
  assert_non_null(text);
  for (int over = 0; over < 2; over++) {
    size_t len = BTC_MANIFEST_MAX_LINE + (size_t)over;
    memset(text, ' ', len);
    memcpy(text + len - strlen(tail), tail, strlen(tail));
    btc_manifest *m;
    assert_int_equal(btc_manifest_open(write_bytes("limit.jsonl", text, len), NULL, &m, NULL), BTC_OK);
    if (over)
      expect_bad(m, 1, "1", "longer");
    else
      expect_item(m, 1, "1", "a", "b");
    expect_end(m);
  }
  free(text);
}

static void test_manifest_csv(void **state) {
  (void)state;
  btc_manifest *m = open_text("m.csv",
                              "before,after\r\n"
                              "a.png,b.png\r\n"
                              "\"a, \"\"x\"\".png\",\"two\nlines.png\"\r\n"
                              "\n"
                              "c.png , d.png");
  expect_item(m, 2, "2", "a.png", "b.png");
  expect_item(m, 3, "3", "a, \"x\".png", "two\nlines.png");
  expect_item(m, 6, "6", "c.png ", " d.png");
  expect_end(m);
}

static void test_manifest_csv_ids_and_columns(void **state) {
  (void)state;
  btc_manifest *m = open_text("list.txt", "\xef\xbb\xbfid,after,before\nx,b,a\n,d,c\nx,b,a\n");
  expect_item(m, 2, "x", "a", "b");
  expect_item(m, 3, "3", "c", "d");
  expect_bad(m, 4, "x", "used before");
  expect_end(m);
}

static void test_manifest_csv_bad_lines(void **state) {
  (void)state;
  btc_manifest *m = open_text("m.csv",
                              "before,after,id\n"
                              "a,b\n"
                              "a,b,c,d\n"
                              "a,\"b\"x,i\n"
                              "a,b\"c,i\n"
                              "\xff,b,bytes\n"
                              "a,,empty\n"
                              "1,2,3,4,5,6,7,8,9,10\n"
                              "a,b,good\n"
                              "a,\"b,i\n"
                              "a,b,last\n");
  expect_bad(m, 2, "2", "2 fields");
  expect_bad(m, 3, "c", "4 fields");
  expect_bad(m, 4, "4", "behind a closing quote");
  expect_bad(m, 5, "5", "quote inside");
  expect_bad(m, 6, "bytes", "UTF-8");
  expect_bad(m, 7, "empty", "'after' is empty");
  expect_bad(m, 8, "8", "too many fields");
  expect_item(m, 9, "good", "a", "b");
  expect_bad(m, 10, "10", "not closed");
  expect_item(m, 11, "last", "a", "b");
  expect_end(m);
}

static void test_manifest_csv_header_is_needed(void **state) {
  (void)state;
  static const char *const headers[] = {
      "", "a.png,b.png\n", "before\n", "before,after,label\n", "before,before,after\n", "\"before,after\n"};
  for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
    btc_manifest *m;
    btc_error err;
    assert_int_equal(btc_manifest_open(write_bytes("h.csv", headers[i], strlen(headers[i])), NULL, &m, &err), BTC_ERR_FORMAT);
    assert_non_null(strstr(err.message, "h.csv"));
    assert_null(m);
  }
}

static void touch(const char *folder, const char *name) {
  char relative[64];
  snprintf(relative, sizeof relative, "%s/%s", folder, name);
  write_bytes(relative, "x", 1);
}

static void test_manifest_folders(void **state) {
  (void)state;
  assert_int_equal(mkdir(in_tmp("d"), 0755), 0);
  btc_manifest *m;
  btc_error err;
  assert_int_equal(btc_manifest_open(in_tmp("d"), NULL, &m, &err), BTC_ERR_FORMAT);
  assert_non_null(strstr(err.message, "folders A and B"));
  assert_int_equal(mkdir(in_tmp("d/A"), 0755), 0);
  assert_int_equal(mkdir(in_tmp("d/B"), 0755), 0);
  assert_int_equal(mkdir(in_tmp("d/B/z_folder"), 0755), 0);
  touch("d/A", "2.png"), touch("d/A", "10.png"), touch("d/A", "only_a.png"), touch("d/A", ".hidden");
  touch("d/B", "2.png"), touch("d/B", "10.png"), touch("d/B", "b_only.png");
  touch("d/A", "\xff.png"), touch("d/B", "\xff.png");
  assert_int_equal(btc_manifest_open(in_tmp("d/"), NULL, &m, &err), BTC_OK);
  btc_manifest_item item = next(m);
  assert_string_equal(item.id, "10.png");
  assert_non_null(strstr(item.before, "/d//A/10.png"));
  assert_non_null(strstr(item.after, "/d//B/10.png"));
  assert_string_equal(next(m).id, "2.png");
  assert_true(btc_manifest_progress(m) > 0.4 && btc_manifest_progress(m) < 0.6);
  expect_bad(m, 3, "b_only.png", "there is no 'A'");
  expect_bad(m, 4, "only_a.png", "there is no 'B'");
  expect_bad(m, 5, "5", "UTF-8");
  expect_end(m);
}

static void test_manifest_strict(void **state) {
  (void)state;
  static const char text[] = "{\"before\":\"a\",\"after\":\"b\"}\n{\"before\":1}\n{\"before\":\"a\",\"after\":\"b\"}\n";
  btc_manifest *m;
  btc_manifest_item item;
  btc_error err;
  assert_int_equal(btc_manifest_open(write_bytes("s.jsonl", text, strlen(text)), &(btc_manifest_options){.strict = true}, &m, &err),
                   BTC_OK);
  expect_item(m, 1, "1", "a", "b");
  assert_int_equal(btc_manifest_next(m, &item, &err), BTC_ERR_FORMAT);
  assert_non_null(strstr(err.message, "s.jsonl' line 2"));
  assert_non_null(strstr(err.message, "'before' is not a string"));
  expect_end(m);
}

static void test_manifest_open_errors(void **state) {
  (void)state;
  btc_manifest *m;
  btc_error err;
  assert_int_equal(btc_manifest_open(in_tmp("none.jsonl"), NULL, &m, &err), BTC_ERR_NOT_FOUND);
  assert_non_null(strstr(err.message, "none.jsonl"));
  btc_manifest_close(&m);
}

/* Pictures by mistake: one message. A broken first line that means to be JSON stays one bad line. */
static void test_manifest_of_bytes_is_refused(void **state) {
  (void)state;
  static const struct {
    const char *bytes;
    size_t n;
  } files[] = {{"\x89PNG\r\n\x1a\n", 8}, {"\xff\xd8\xff\xe0\0\n", 6}, {"a\0b\n", 4}};
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    btc_manifest *m;
    btc_error err;
    assert_int_equal(btc_manifest_open(write_bytes("bytes", files[i].bytes, files[i].n), NULL, &m, &err), BTC_ERR_FORMAT);
    assert_non_null(strstr(err.message, "not a manifest"));
    assert_null(m);
  }
  btc_manifest *m = open_text("m.jsonl", "{\"id\":\"\xff\"}\n");
  expect_bad(m, 1, "1", "JSON");
  expect_end(m);
}

static void test_manifest_pipe(void **state) {
  (void)state;
  int ends[2];
  static const char text[] = "{\"before\":\"a\",\"after\":\"/b\"}\n";
  assert_int_equal(pipe(ends), 0);
  assert_int_equal(write(ends[1], text, strlen(text)), strlen(text));
  close(ends[1]);
  int saved = dup(STDIN_FILENO);
  dup2(ends[0], STDIN_FILENO);
  close(ends[0]);
  btc_manifest *m;
  assert_int_equal(btc_manifest_open("-", NULL, &m, NULL), BTC_OK);
  assert_true(btc_manifest_progress(m) == -1);
  btc_manifest_item item = next(m);
  assert_string_equal(item.before, "a");
  assert_string_equal(item.after, "/b");
  expect_end(m);
  if (saved >= 0) {
    dup2(saved, STDIN_FILENO);
    close(saved);
  }
}

/* A pipe that says nothing, and one whose only line has no end, do not keep a reader that is to stop. */
static volatile int stop;

static void *stop_soon(void *arg) {
  (void)arg;
  struct timespec pause = {.tv_nsec = 50000000};
  nanosleep(&pause, NULL);
  stop = 1;
  return NULL;
}

static void test_manifest_reading_is_cancelled(void **state) {
  (void)state;
  int ends[2], saved = dup(STDIN_FILENO);
  pthread_t thread;
  btc_manifest *m;
  btc_manifest_item item;
  btc_error err = {0};
  assert_int_equal(pipe(ends), 0); /* stays open for writing: there is no end to read */
  dup2(ends[0], STDIN_FILENO);
  assert_int_equal(pthread_create(&thread, NULL, stop_soon, NULL), 0);
  assert_int_equal(btc_manifest_open("-", &(btc_manifest_options){.cancel = &stop}, &m, &err), BTC_OK);
  assert_int_equal(btc_manifest_next(m, &item, &err), BTC_ERR_CANCELLED);
  pthread_join(thread, NULL);
  btc_manifest_close(&m);
  close(ends[0]);
  close(ends[1]);
  if (saved >= 0) {
    dup2(saved, STDIN_FILENO);
    close(saved);
  }
  assert_int_equal(btc_manifest_open("/dev/zero", NULL, &m, &err), BTC_ERR_FORMAT);
  assert_non_null(strstr(err.message, "not a manifest"));
}

/* Every allocation in turn fails: an error, never a crash or a leak. */
static int fail_at;
static bool fail_one(size_t bytes) {
  (void)bytes;
  return fail_at-- != 0;
}

static void test_manifest_survives_lack_of_memory(void **state) {
  (void)state;
  static const char text[] = "{\"before\":\"a\",\"after\":\"b\",\"meta\":{}}\n{\"before\":\"a\",\"after\":\"b\"}\n";
  write_bytes("o.jsonl", text, strlen(text));
  btc_status st = BTC_ERR_NOMEM;
  for (int n = 0; st != BTC_OK && n < 100; n++) {
    btc_manifest *m;
    btc_manifest_item item = {0};
    fail_at = n;
    btc_alloc_hook = fail_one;
    st = btc_manifest_open(path_buffer, NULL, &m, NULL);
    while (st == BTC_OK && item.kind != BTC_MANIFEST_END) st = btc_manifest_next(m, &item, NULL);
    btc_manifest_close(&m);
    btc_alloc_hook = NULL;
    assert_true(st == BTC_OK || st == BTC_ERR_NOMEM);
  }
  assert_int_equal(st, BTC_OK);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_manifest_jsonl_items),
    cmocka_unit_test(test_manifest_jsonl_optional_keys),
    cmocka_unit_test(test_manifest_jsonl_bad_lines),
    cmocka_unit_test(test_manifest_duplicate_ids),
    cmocka_unit_test(test_manifest_duplicate_ids_among_many),
    cmocka_unit_test(test_manifest_line_ends),
    cmocka_unit_test(test_manifest_nul_and_long_lines),
    cmocka_unit_test(test_manifest_line_of_just_the_limit),
    cmocka_unit_test(test_manifest_csv),
    cmocka_unit_test(test_manifest_csv_ids_and_columns),
    cmocka_unit_test(test_manifest_csv_bad_lines),
    cmocka_unit_test(test_manifest_csv_header_is_needed),
    cmocka_unit_test(test_manifest_folders),
    cmocka_unit_test(test_manifest_strict),
    cmocka_unit_test(test_manifest_open_errors),
    cmocka_unit_test(test_manifest_of_bytes_is_refused),
    cmocka_unit_test(test_manifest_pipe),
    cmocka_unit_test(test_manifest_reading_is_cancelled),
    cmocka_unit_test(test_manifest_survives_lack_of_memory),
};

BTC_TEST_MAIN(tests)
