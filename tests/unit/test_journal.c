/* A scene's journal: what was appended is there after any cut, a torn end is not, another run's file is left alone. */
#define _GNU_SOURCE
#include "test.h"

#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "geo/journal.h"

enum { CELLS = 9, COUNT = 40 };
static const char key[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

static const char *fresh(void) {
  static char path[512];
  static int n;
  snprintf(path, sizeof path, "%s/journal%d", test_tmp_dir(), n++);
  return path;
}

static btc_journal *reopen(const char *path) {
  btc_journal *j;
  btc_error err;
  if (btc_journal_open(path, key, COUNT, CELLS, false, &j, &err) != BTC_OK) fail_msg("%s", err.message);
  return j;
}

static void append(btc_journal *j, uint64_t i) {
  char record[64];
  uint16_t cells[CELLS];
  btc_error err;
  for (int k = 0; k < CELLS; k++) cells[k] = (uint16_t)(i * 100 + (uint64_t)k);
  snprintf(record, sizeof record, "{\"id\":\"%llu\"}", (unsigned long long)i);
  assert_int_equal(btc_journal_append(j, i, record, i % 3 ? cells : NULL, &err), BTC_OK);
}

static void check(btc_journal *j, uint64_t i) {
  char want[64], *record;
  uint16_t cells[CELLS];
  bool has;
  btc_error err;
  snprintf(want, sizeof want, "{\"id\":\"%llu\"}", (unsigned long long)i);
  assert_true(btc_journal_has(j, i));
  assert_int_equal(btc_journal_read(j, i, &record, cells, &has, &err), BTC_OK);
  assert_string_equal(record, want);
  assert_int_equal(has, i % 3 != 0);
  if (has) assert_int_equal(cells[CELLS - 1], i * 100 + CELLS - 1);
  free(record);
}

static void test_journal_keeps_what_was_appended(void **state) {
  (void)state;
  const char *path = fresh();
  btc_journal *j = reopen(path);
  static const uint64_t order[] = {7, 0, 39, 12};
  for (int i = 0; i < 4; i++) append(j, order[i]);
  btc_journal_close(&j);
  j = reopen(path);
  assert_int_equal(btc_journal_finished(j), 4);
  for (int i = 0; i < 4; i++) check(j, order[i]);
  assert_false(btc_journal_has(j, 1));
  btc_error err;
  assert_int_equal(btc_journal_append(j, 7, "{}", NULL, &err), BTC_ERR_ARG);
  assert_int_equal(btc_journal_append(j, COUNT, "{}", NULL, &err), BTC_ERR_ARG);
  assert_int_equal(btc_journal_read(j, 1, NULL, NULL, NULL, &err), BTC_ERR_IO);
  btc_journal_close(&j);
}

/* A kill can leave any prefix of the last entry: whatever it is, the entries before it are whole and appending goes on. */
static void test_journal_survives_every_cut(void **state) {
  (void)state;
  const char *path = fresh();
  btc_journal *j = reopen(path);
  for (uint64_t i = 0; i < 3; i++) append(j, i);
  btc_journal_close(&j);
  struct stat s;
  assert_int_equal(stat(path, &s), 0);
  uint64_t before = COUNT;
  for (off_t cut = s.st_size; cut >= 0; cut--) {
    assert_int_equal(truncate(path, cut), 0);
    j = reopen(path);
    uint64_t n = btc_journal_finished(j);
    assert_true(n <= before && n <= 3);
    for (uint64_t i = 0; i < n; i++) check(j, i);
    before = n;
    btc_journal_close(&j);
    if (cut % 40 == 0) { /* goes on from there */
      j = reopen(path);
      for (uint64_t i = n; i < 3; i++) append(j, i);
      btc_journal_close(&j);
      j = reopen(path);
      for (uint64_t i = 0; i < 3; i++) check(j, i);
      btc_journal_close(&j);
    }
  }
  assert_int_equal(before, 0);
}

static void test_journal_drops_a_flipped_byte_and_what_follows(void **state) {
  (void)state;
  const char *path = fresh();
  btc_journal *j = reopen(path);
  struct stat one;
  append(j, 1);
  assert_int_equal(stat(path, &one), 0);
  append(j, 2);
  append(j, 4);
  btc_journal_close(&j);
  FILE *f = fopen(path, "r+");
  fseek(f, (long)one.st_size + 30, SEEK_SET);
  int c = fgetc(f);
  fseek(f, (long)one.st_size + 30, SEEK_SET);
  fputc(c ^ 1, f);
  fclose(f);
  j = reopen(path);
  assert_int_equal(btc_journal_finished(j), 1);
  check(j, 1);
  btc_journal_close(&j);
}

static void test_journal_leaves_another_runs_file_alone(void **state) {
  (void)state;
  const char *path = fresh();
  btc_journal *j = reopen(path), *other;
  btc_error err;
  append(j, 5);
  assert_int_equal(btc_journal_open(path, key, COUNT, CELLS, false, &other, &err), BTC_ERR_LIMIT); /* open elsewhere */
  btc_journal_close(&j);
  assert_int_equal(btc_journal_open(path, key, COUNT + 1, CELLS, false, &other, &err), BTC_ERR_ARG);
  assert_int_equal(btc_journal_open(path, key, COUNT, CELLS + 1, false, &other, &err), BTC_ERR_ARG);
  char key2[65];
  strcpy(key2, key);
  key2[63] = '0';
  assert_int_equal(btc_journal_open(path, key2, COUNT, CELLS, false, &other, &err), BTC_ERR_ARG);
  j = reopen(path);
  check(j, 5);
  btc_journal_close(&j);
  assert_int_equal(btc_journal_open(path, key2, COUNT, CELLS, true, &other, &err), BTC_OK); /* afresh */
  assert_int_equal(btc_journal_finished(other), 0);
  btc_journal_close(&other);
}

static void test_journal_takes_back_what_the_disk_refused(void **state) {
  (void)state;
  const char *path = fresh();
  btc_journal *j = reopen(path);
  btc_error err;
  append(j, 1);
  struct stat s;
  assert_int_equal(stat(path, &s), 0);
  struct rlimit old, low;
  getrlimit(RLIMIT_FSIZE, &old);
  low = (struct rlimit){.rlim_cur = (rlim_t)s.st_size + 10, .rlim_max = old.rlim_max};
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &low);
  btc_status st = btc_journal_append(j, 2, "{\"id\":\"2\"}", NULL, &err);
  setrlimit(RLIMIT_FSIZE, &old);
  assert_int_equal(st, BTC_ERR_IO);
  assert_non_null(strstr(err.message, "journal"));
  assert_false(btc_journal_has(j, 2));
  append(j, 2); /* once there is room */
  btc_journal_close(&j);
  j = reopen(path);
  check(j, 1);
  check(j, 2);
  btc_journal_close(&j);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_journal_keeps_what_was_appended),
    cmocka_unit_test(test_journal_survives_every_cut),
    cmocka_unit_test(test_journal_drops_a_flipped_byte_and_what_follows),
    cmocka_unit_test(test_journal_leaves_another_runs_file_alone),
    cmocka_unit_test(test_journal_takes_back_what_the_disk_refused),
};

BTC_TEST_MAIN(tests)
