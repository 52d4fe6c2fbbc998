/* Records on their way into files: heads of records, manifest order, files that appear whole or not at all. */
#define _GNU_SOURCE
#include "test.h"

#include <stdio.h>
#include <unistd.h>

#include "cli/collect.h"

static const char *path_of(const char *name) {
  static char path[4][256];
  static int turn;
  turn = (turn + 1) % 4;
  snprintf(path[turn], sizeof path[0], "%s/%s", test_tmp_dir(), name);
  return path[turn];
}

static char *slurp(const char *path) {
  uint8_t *data;
  size_t len;
  btc_error err;
  if (btc_file_read(path, 1 << 20, &data, &len, &err) != BTC_OK) fail_msg("%s", err.message);
  return (char *)data;
}

static void expect_head(const char *line, const char *want_id, bool want_failed) {
  const char *id = NULL;
  char *owned;
  size_t len;
  bool failed, good = record_head(line, strlen(line), &id, &len, &owned, &failed);
  if (!want_id) {
    assert_false(good);
    return;
  }
  assert_true(good);
  assert_int_equal(len, strlen(want_id));
  assert_memory_equal(id, want_id, len);
  assert_int_equal(failed, want_failed);
  free(owned);
}

static void test_collect_heads_of_records(void **state) {
  (void)state;
  expect_head("{\"v\":1,\"id\":\"a/1\",\"status\":\"ok\",\"caption\":\"x\"}", "a/1", false);
  expect_head("{\"v\":1,\"id\":\"a\",\"status\":\"failed\",\"reason\":\"dims\"}", "a", true);
  expect_head("{\"v\":1,\"id\":\"a\",\"status\":\"skipped\"}", "a", false);
  expect_head("{\"v\":1,\"id\":\"say \\\"a\\\"\",\"status\":\"failed\"}", "say \"a\"", true); /* an escape: parsed whole */
  expect_head("{\"status\":\"ok\", \"id\": \"b\", \"v\": 1}", "b", false);                    /* another order */
  expect_head("{\"v\":1,\"id\":\"a\"}", NULL, false);
  expect_head("{\"v\":1,\"id\":\"a", NULL, false);
  expect_head("{\"v\":1,\"id\":\"a\",\"status\":\"", NULL, false);
  expect_head("", NULL, false);
}

static const char *manifest(void) {
  const char *path = path_of("m.jsonl");
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  fputs(
      "{\"id\":\"b\",\"before\":\"x\",\"after\":\"y\"}\n{\"before\":\"x\",\"after\":\"y\"}\nnonsense\n{\"id\":\"b\",\"before\":"
      "\"x\",\"after\":\"y\"}\n"
      "{\"id\":\"a\",\"before\":\"x\",\"after\":\"y\"}\n",
      f);
  fclose(f);
  return path;
}

static void test_collect_places_by_id(void **state) {
  (void)state;
  id_order o;
  assert_int_equal(order_read(manifest(), 5, &o), CLI_OK);
  assert_int_equal(order_find(&o, "b", 1), 0); /* not its duplicate's place */
  assert_int_equal(order_find(&o, "2", 1), 1); /* a line number for an id */
  assert_int_equal(order_find(&o, "3", 1), -1);
  assert_int_equal(order_find(&o, "a", 1), 4);
  order_free(&o);
  assert_int_equal(order_read(manifest(), 4, &o), CLI_FAILED); /* it has changed */
  assert_int_equal(order_read(manifest(), 6, &o), CLI_FAILED);
  assert_int_equal(order_read(path_of("none"), 5, &o), CLI_FAILED);
}

static collector *open_sorted(const id_order *o, const char *dir, bool split) {
  collector *c;
  assert_int_equal(collector_open(&(collector_options){.dir = dir, .split = split, .order = o}, &c), CLI_OK);
  return c;
}

#define LINE(id, status) "{\"v\":1,\"id\":\"" id "\",\"status\":\"" status "\"}\n"

static void test_collect_in_manifest_order(void **state) {
  (void)state;
  id_order o;
  collected n;
  Btc__DeadItem d = BTC__DEAD_ITEM__INIT;
  const char *dir = path_of("sorted"), lines[] = LINE("a", "ok") LINE("b", "failed") LINE("2", "ok") LINE("b", "ok");
  assert_int_equal(order_read(manifest(), 5, &o), CLI_OK);
  collector *c = open_sorted(&o, dir, false);
  assert_int_equal(collector_lines(c, lines, strlen(lines)), CLI_OK); /* the failed one is passed over */
  d.idx = 3;
  d.id = "b";
  d.record = "{\"v\":1,\"id\":\"b\",\"status\":\"failed\"}";
  assert_int_equal(collector_dead(c, &d), CLI_OK);
  d.idx = 2;
  d.id = "3";
  d.reason = "crash"; /* its engine died: no record */
  d.record = "";
  assert_int_equal(collector_dead(c, &d), CLI_OK);
  assert_int_not_equal(access(path_of("sorted/results.jsonl"), F_OK), 0); /* not before the end */
  assert_int_equal(collector_finish(c, &n), CLI_OK);
  collector_close(&c);
  assert_true(n.good == 3 && n.failed == 2);
  char *text = slurp(path_of("sorted/results.jsonl"));
  assert_string_equal(
      text,
      LINE("b", "ok") LINE("2", "ok") "{\"v\":1,\"id\":\"3\",\"status\":\"failed\",\"reason\":\"crash\",\"message\":\"\"}\n" LINE(
          "b", "failed") LINE("a", "ok"));
  free(text);
  order_free(&o);
}

static void test_collect_splits_failed_records(void **state) {
  (void)state;
  collector *c;
  const char *dir = path_of("split"), lines[] = LINE("a", "ok") LINE("b", "failed") LINE("c", "skipped");
  assert_int_equal(collector_open(&(collector_options){.dir = dir, .split = true}, &c), CLI_OK);
  assert_int_equal(collector_lines(c, lines, strlen(lines)), CLI_OK);
  assert_int_equal(collector_finish(c, NULL), CLI_OK);
  collector_close(&c);
  char *good = slurp(path_of("split/results.jsonl")), *bad = slurp(path_of("split/errors.jsonl"));
  assert_string_equal(good, LINE("a", "ok") LINE("c", "skipped"));
  assert_string_equal(bad, LINE("b", "failed"));
  free(good);
  free(bad);
}

static void test_collect_refuses_what_does_not_belong(void **state) {
  (void)state;
  id_order o;
  Btc__DeadItem d = BTC__DEAD_ITEM__INIT;
  const char *dir = path_of("refuse"), stranger[] = LINE("z", "ok"), half[] = "{\"v\":1", junk[] = "junk\n";
  assert_int_equal(order_read(manifest(), 5, &o), CLI_OK);
  collector *c = open_sorted(&o, dir, true);
  assert_int_equal(collector_lines(c, stranger, strlen(stranger)), CLI_FAILED);
  assert_int_equal(collector_lines(c, half, strlen(half)), CLI_FAILED);
  assert_int_equal(collector_lines(c, junk, strlen(junk)), CLI_FAILED);
  d.idx = 5; /* behind the last item */
  assert_int_equal(collector_dead(c, &d), CLI_FAILED);
  collector_close(&c);
  assert_int_equal(rmdir(dir), 0); /* what was not finished left no trace */
  order_free(&o);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_collect_heads_of_records),
    cmocka_unit_test(test_collect_places_by_id),
    cmocka_unit_test(test_collect_in_manifest_order),
    cmocka_unit_test(test_collect_splits_failed_records),
    cmocka_unit_test(test_collect_refuses_what_does_not_belong),
};
BTC_TEST_MAIN(tests)
