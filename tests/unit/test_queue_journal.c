/* The broker's journal of calls: order, bounds of time and bytes, what it says about what it dropped. */
#include <stdlib.h>

#include "broker/journal.h"
#include "test.h"

enum { BYTES = 1000 };

static btc_call *call(uint64_t seq, uint32_t items) {
  btc_call *c = calloc(1, BYTES);
  assert_non_null(c);
  c->bytes = BYTES;
  c->seq = seq;
  c->items = items;
  return c;
}

static void expect_seqs(btc_call *list, const uint64_t *seq, size_t n) {
  for (size_t i = 0; i < n; i++) {
    assert_non_null(list);
    assert_int_equal(list->seq, seq[i]);
    btc_call *next = list->next;
    free(list);
    list = next;
  }
  assert_null(list);
}

static void test_queue_journal_keeps_the_order(void **state) {
  (void)state;
  btc_journal *j = btc_journal_create(1 << 20);
  for (uint64_t i = 1; i <= 3; i++) btc_journal_add(j, call(i, 1), (int64_t)i);
  assert_int_equal(btc_journal_bytes(j), 3 * BYTES);
  btc_call *list = btc_journal_take(j);
  assert_int_equal(btc_journal_bytes(j), 0);
  btc_journal_add(j, call(4, 1), 4);
  btc_journal_put_back(j, list);
  btc_journal_add(j, call(5, 1), 5);
  btc_journal_put_back(j, NULL);
  assert_int_equal(btc_journal_bytes(j), 5 * BYTES);
  expect_seqs(btc_journal_take(j), (const uint64_t[]){1, 2, 3, 4, 5}, 5);
  btc_journal_put_back(j, call(6, 1)); /* into an empty one, and on from there */
  btc_journal_add(j, call(7, 1), 7);
  expect_seqs(btc_journal_take(j), (const uint64_t[]){6, 7}, 2);
  btc_journal_destroy(&j);
  assert_null(j);
}

static void test_queue_journal_is_bounded(void **state) {
  (void)state;
  static const int64_t second_ns = 1000000000;
  btc_journal *j = btc_journal_create(3 * BYTES);
  for (uint64_t i = 1; i <= 5; i++) btc_journal_add(j, call(i, 10), (int64_t)i * second_ns);
  assert_int_equal(btc_journal_bytes(j), 3 * BYTES);
  btc_journal_add(j, call(0, 0), 6 * second_ns); /* no commit: not counted when it goes */
  btc_journal_trim(j, 64 * second_ns + 1);       /* 3 went for the bytes, 4 for its age */
  assert_int_equal(btc_journal_bytes(j), 2 * BYTES);
  btc_journal_trim(j, 100 * second_ns);
  assert_int_equal(btc_journal_bytes(j), 0);
  assert_int_equal(btc_journal_dropped(j, 0), 50);
  assert_int_equal(btc_journal_dropped(j, 3), 20);
  assert_int_equal(btc_journal_dropped(j, 5), 0);
  for (uint64_t i = 6; i < 20000; i++) btc_journal_add(j, call(i, 1), 100 * second_ns);
  assert_int_equal(btc_journal_dropped(j, 0), BTC_JOURNAL_DROPPED); /* at least so many */
  btc_journal_destroy(&j);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_queue_journal_keeps_the_order),
      cmocka_unit_test(test_queue_journal_is_bounded),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
