/* Reading sealed parts: cursors of any size give every line once, hostile cursors and folders are refused. */
#define _GNU_SOURCE
#include "test.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/results.h"

static const char *job(const char *jid, const char *file) {
  static char path[512];
  snprintf(path, sizeof path, "%s/%s", test_tmp_dir(), jid);
  mkdir(path, 0755);
  snprintf(path, sizeof path, "%s/%s/%s", test_tmp_dir(), jid, file);
  return path;
}

static void put(const char *jid, const char *file, const char *text) {
  FILE *f = fopen(job(jid, file), "wb");
  assert_non_null(f);
  fputs(text, f);
  fclose(f);
}

/* All lines by steps of at most max bytes; the caller frees. */
static char *read_all(const char *jid, size_t max, bool errors, char cursor[BTC_RESULTS_CURSOR]) {
  char *all = calloc(1, 1 << 20);
  size_t used = 0;
  bool end = false;
  for (int step = 0; !end; step++) {
    char *lines, next[BTC_RESULTS_CURSOR];
    size_t len;
    btc_error err;
    if (btc_results_read(test_tmp_dir(), jid, cursor, max, errors, &lines, &len, next, &end, &err) != BTC_OK)
      fail_msg("%s", err.message);
    assert_int_equal(strlen(lines), len);
    assert_true(!len || lines[len - 1] == '\n');
    memcpy(all + used, lines, len);
    used += len;
    memcpy(cursor, next, sizeof next);
    free(lines);
    assert_true(step < 100000);
  }
  return all;
}

static void test_results_every_line_once(void **state) {
  (void)state;
  char want[8192] = "", part[2048], name[32];
  for (int p = 1; p <= 5; p++) {
    part[0] = 0;
    for (int i = 0; i < (p == 3 ? 0 : 7 * p); i++)
      snprintf(part + strlen(part), sizeof part - strlen(part), "{\"p\":%d,\"i\":%0*d}\n", p, 1 + i % 5, i);
    snprintf(name, sizeof name, "part-%06d.jsonl", p);
    put("j1", name, part); /* part 3 is empty: an abandoned number */
    strcat(want, part);
  }
  put("j1", "errors.jsonl", "{\"e\":1}\n{\"e\":2}\n");
  put("j1", ".part-000006.json", "{}");
  for (size_t max = 1; max < 300; max++) {
    char cursor[BTC_RESULTS_CURSOR] = "";
    char *all = read_all("j1", max, true, cursor); /* not finished: errors.jsonl does not count */
    assert_string_equal(all, want);
    free(all);
    assert_string_equal(cursor, "6:0");
  }
  put("j1", ".finished.json", "{\"epoch\":1}");
  strcat(want, "{\"e\":1}\n{\"e\":2}\n");
  for (size_t max = 1; max < 300; max += 7) {
    char cursor[BTC_RESULTS_CURSOR] = "";
    char *all = read_all("j1", max, true, cursor);
    assert_string_equal(all, want);
    free(all);
    assert_string_equal(cursor, "6:0:1:16");
  }
  uint64_t records, errors;
  assert_int_equal(btc_results_count(test_tmp_dir(), "j1", &records, &errors, NULL), BTC_OK);
  assert_int_equal(records, 7 + 14 + 28 + 35);
  assert_int_equal(errors, 2);
}

static void test_results_follow_and_replay(void **state) {
  (void)state;
  char cursor[BTC_RESULTS_CURSOR] = "";
  char *all = read_all("j2", 100, true, cursor); /* no folder yet */
  assert_string_equal(all, "");
  free(all);
  put("j2", "part-000001.jsonl", "a\nb\n");
  all = read_all("j2", 100, true, cursor);
  assert_string_equal(all, "a\nb\n");
  free(all);
  put("j2", "errors.jsonl", "e1\ne2\n");
  put("j2", ".finished.json", "{\"epoch\":1}");
  all = read_all("j2", 3, true, cursor);
  assert_string_equal(all, "e1\ne2\n");
  free(all);
  put("j2", "part-000002.jsonl", "c\n"); /* the replay saved one */
  put("j2", "errors.jsonl", "e2\n");
  put("j2", ".finished.json", "{\"epoch\":2}");
  all = read_all("j2", 3, true, cursor);
  assert_string_equal(all, "c\ne2\n");
  free(all);
  all = read_all("j2", 3, true, cursor);
  assert_string_equal(all, "");
  free(all);
}

static void test_results_long_lines(void **state) {
  (void)state;
  char *line = malloc(900002), cursor[BTC_RESULTS_CURSOR] = "";
  memset(line, 'x', 900000);
  strcpy(line + 900000, "\n");
  put("j3", "part-000001.jsonl", line);
  char *all = read_all("j3", 10, true, cursor);
  assert_string_equal(all, line);
  free(all);
  free(line);
  FILE *f = fopen(job("j3", "part-000001.jsonl"), "wb");
  assert_int_equal(ftruncate(fileno(f), 20 << 20), 0);
  fclose(f);
  char *lines, next[BTC_RESULTS_CURSOR];
  size_t len;
  bool end;
  assert_int_equal(btc_results_read(test_tmp_dir(), "j3", "", 10, true, &lines, &len, next, &end, NULL), BTC_ERR_LIMIT);
  put("j3", "part-000001.jsonl", "no end");
  assert_int_equal(btc_results_read(test_tmp_dir(), "j3", "", 100, true, &lines, &len, next, &end, NULL), BTC_ERR_FORMAT);
}

static void test_results_refuses_hostile_names(void **state) {
  (void)state;
  put("j4", "part-000001.jsonl", "aa\nbb\n");
  static const char *const cursors[] = {"1",    "0:0",       "1:1",  "1:99", "2:1",  "x", "1:0:", "1:0:1",       "-1:0",
                                        "1: 0", "1:0:1:0:1", "1:-3", " 1:0", "1:0 ", ":", "1::0", "9999999999:0"};
  char *lines, next[BTC_RESULTS_CURSOR];
  size_t len;
  bool end;
  for (size_t i = 0; i < sizeof cursors / sizeof cursors[0]; i++)
    if (btc_results_read(test_tmp_dir(), "j4", cursors[i], 10, true, &lines, &len, next, &end, NULL) != BTC_ERR_ARG)
      fail_msg("'%s' was taken", cursors[i]);
  static const char *const jids[] = {"", ".", "..", "../j4", "a/b", ".x", "a b", "\xc3\xa4"};
  for (size_t i = 0; i < sizeof jids / sizeof jids[0]; i++)
    assert_int_equal(btc_results_read(test_tmp_dir(), jids[i], "", 10, true, &lines, &len, next, &end, NULL), BTC_ERR_ARG);
  /* a link in place of a part is not followed */
  unlink(job("j4", "part-000001.jsonl"));
  assert_int_equal(symlink("/etc/passwd", job("j4", "part-000001.jsonl")), 0);
  assert_int_not_equal(btc_results_read(test_tmp_dir(), "j4", "", 10, true, &lines, &len, next, &end, NULL), BTC_OK);
}

static void test_results_list_of_parts(void **state) {
  (void)state;
  static const char *const others[] = {"part-1.jsonl",      "part-000002.json",      "part-000000.jsonl",
                                       "part-00000a.jsonl", "part-000002.jsonl.tmp", ".part-000002.json"};
  for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) put("j5", others[i], "x\n");
  for (int i = 40; i > 0; i--) {
    char name[32];
    snprintf(name, sizeof name, "part-%06d.jsonl", i * i);
    put("j5", name, i % 2 ? "x\n" : "");
  }
  btc_results_part *parts;
  size_t n;
  assert_int_equal(btc_results_list(test_tmp_dir(), "j5", &parts, &n, NULL), BTC_OK);
  assert_int_equal(n, 40);
  for (size_t i = 0; i < n; i++) {
    assert_int_equal(parts[i].number, (i + 1) * (i + 1));
    assert_int_equal(parts[i].bytes, i % 2 ? 0 : 2);
  }
  free(parts);
  assert_int_equal(btc_results_list(test_tmp_dir(), "none", &parts, &n, NULL), BTC_OK);
  assert_int_equal(n, 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_results_every_line_once), cmocka_unit_test(test_results_follow_and_replay),
    cmocka_unit_test(test_results_long_lines),      cmocka_unit_test(test_results_refuses_hostile_names),
    cmocka_unit_test(test_results_list_of_parts),
};

BTC_TEST_MAIN(tests)
