/* How work comes into the queue: each kind exactly once, whatever is repeated. */
#include "queue_fixture.h"

static void test_queue_refuses_newer_schema(void **state) {
  (void)state;
  EXPECT("[OK 1]", "btc_setup max_jobs 10 weight:big 2");
  EXPECT("10", "HGET $cfg max_jobs");
  EXPECT("[OK 1]", "btc_setup");
  EXPECT("!BAD limit nonsense", "btc_setup nonsense 1");
  EXPECT("!BAD limit max_jobs", "btc_setup max_jobs many");
  EXPECT("!BAD field without a value", "btc_setup max_jobs");
  SAY("HSET $cfg schema 2");
  EXPECT_BEGIN("!SCHEMA the data of this queue is of schema 2", "btc_setup");
  assert_true(NUMBER("btc_version") >= 1);
}

static void test_submit_same_key_or_jid_is_old(void **state) {
  (void)state;
  EXPECT("[NEW j]", "btc_submit j inline t 1 '' files key1 {} '' '' 0 0 '' '' 0 '' {\"id\":\"a\"}");
  EXPECT("[OLD j]", "btc_submit other inline t 1 '' files key1 {} '' '' 0 0 '' '' 0 '' {\"id\":\"a\"}");
  EXPECT("[OLD j]", "btc_submit j inline t 1 '' files '' {} '' '' 0 0 '' '' 0 '' {\"id\":\"a\"}");
  EXPECT("[RUN 1 1 0 1]", "HMGET $job:j st total cur done live");
  EXPECT("1", "ZCARD $jobs");
  EXPECT("1", "HGET $stat live_jobs");
}

static void test_submit_bad_arguments_change_nothing(void **state) {
  (void)state;
  EXPECT("!BAD tenant", "btc_submit j inline a:b 1 '' files '' {} '' '' 0 0 '' '' 0 '' x");
  EXPECT("!BAD priority", "btc_submit j inline t 3 '' files '' {} '' '' 0 0 '' '' 0 '' x");
  EXPECT("!BAD job id", "btc_submit a{b inline t 1 '' files '' {} '' '' 0 0 '' '' 0 '' x");
  EXPECT("!BAD class", "btc_submit j inline t 1 a{b files '' {} '' '' 0 0 '' '' 0 '' x");
  EXPECT("!BAD kind or route", "btc_submit j other t 1 '' files '' {} '' '' 0 0 '' '' 0 '' x");
  EXPECT("!BAD number of items or delay", "btc_submit j manifest t 1 '' files '' {} m s -1 0 '' '' 0 ''");
  EXPECT("!BAD arguments", "btc_submit j inline");
  EXPECT("0", "DBSIZE");
}

static void test_submit_without_items_finishes_at_once(void **state) {
  (void)state;
  EXPECT("[NEW j]", "btc_submit j manifest t 1 '' files '' {} /m sha 0 0 '' '' 0 ''");
  EXPECT("FIN", "HGET $job:j st");
  EXPECT("1", "XLEN $ev");
}

static void test_submit_over_limits_is_busy(void **state) {
  (void)state;
  SAY("btc_setup max_jobs 2 max_items 10");
  submit("a", 8);
  EXPECT("[BUSY 1000 too many items are open]", "btc_submit b manifest t 1 '' files k {} /m sha 3 0 '' '' 0 ''");
  EXPECT("[NEW b]", "btc_submit b manifest t 1 '' files k {} /m sha 2 0 '' '' 0 ''");
  EXPECT("[BUSY 1000 too many jobs are open]", "btc_submit c manifest t 1 '' files k2 {} /m sha 0 0 '' '' 0 ''");
  EXPECT("[OLD b]", "btc_submit b manifest t 1 '' files k {} /m sha 2 0 '' '' 0 ''"); /* sent again: not BUSY */
  SAY("btc_cancel a");
  EXPECT("[NEW c]", "btc_submit c manifest t 1 '' files k2 {} /m sha 0 0 '' '' 0 ''");
}

static void test_submit_of_an_entry_takes_it(void **state) {
  (void)state;
  SAY("btc_setup max_jobs 1");
  SAY("XADD $in 5-1 p packed");
  SAY("XADD $in 6-1 p packed");
  SAY("XREADGROUP GROUP brk me COUNT 10 STREAMS $in >");
  EXPECT("[NEW in-5-1]", "btc_submit in-5-1 manifest t 1 '' stream '' {} /m sha 5 0 '' '' 0 5-1");
  EXPECT("1", "XLEN $in");
  EXPECT_BEGIN("[BUSY", "btc_submit in-6-1 manifest t 1 '' stream '' {} /m sha 5 0 '' '' 0 6-1");
  EXPECT("1", "XLEN $in"); /* it waits there */
  EXPECT("[OLD in-5-1]", "btc_submit in-5-1 manifest t 1 '' stream '' {} /m sha 5 0 '' '' 0 5-1");
  SAY("btc_cancel in-5-1");
  SAY("btc_forget in-5-1");
  EXPECT("[OLD in-5-1]",
         "btc_submit in-5-1 manifest t 1 '' stream '' {} /m sha 5 0 '' '' 0 5-1"); /* ingested before: never twice */
  EXPECT("[NEW in-6-1]", "btc_submit in-6-1 manifest t 1 '' stream '' {} /m sha 5 0 '' '' 0 6-1");
  EXPECT("[0 nil nil nil]", "XPENDING $in brk");
}

static void test_ingest_takes_each_entry_once(void **state) {
  (void)state;
  SAY("btc_setup");
  for (int i = 1; i <= 4; i++) SAY("XADD $in %d-0 json x", i);
  SAY("XREADGROUP GROUP brk me COUNT 10 STREAMS $in >");
  EXPECT("[j1 2 0]", "btc_ingest j1 t 0 '' 1-0 '' {\"id\":\"a\"} 2-0 key {\"id\":\"b\"}");
  EXPECT("[j1 0 2]", "btc_ingest j1 t 0 '' 1-0 '' {\"id\":\"a\"} 2-0 key {\"id\":\"b\"}"); /* sent again */
  EXPECT(
      "[j2 1 2]",
      "btc_ingest j2 t 0 '' 1-0 '' {\"id\":\"a\"} 3-0 key {\"id\":\"b\"} 4-0 '' {\"id\":\"c\"}"); /* 1 taken, 3 has a known key */
  EXPECT("0", "XLEN $in");
  EXPECT("j1:1", "GET $key:key");
  EXPECT("[2 stream]", "HMGET $job:j1 total route");
  EXPECT("[1 stream]", "HMGET $job:j2 total route");
  SAY("XADD $in 9-0 json x");
  EXPECT("!BAD the job exists", "btc_ingest j1 t 0 '' 9-0 '' {\"id\":\"z\"}"); /* must not swallow the entry */
  EXPECT("1", "XLEN $in");
  EXPECT("3", "HGET $stat ingested");
}

static void test_ingest_same_entry_or_key_twice_in_a_call(void **state) {
  (void)state;
  SAY("btc_setup");
  for (int i = 1; i <= 3; i++) SAY("XADD $in %d-0 json x", i);
  EXPECT("[j 1 3]", "btc_ingest j t 0 '' 1-0 k A 1-0 k A 2-0 k B 3-0 k C");
  EXPECT("[]", "XRANGE $in - +");
  EXPECT("[0 A]", "HGETALL $it:j");
}

static void test_expand_is_a_compare_and_swap(void **state) {
  (void)state;
  EXPECT("-1", "btc_expand j 0 4 p0 end");
  SAY("btc_submit j manifest t 1 '' files '' {} /m sha 70 0 '' '' 0 ''");
  EXPECT("64", "btc_expand j 0 32 p0 32 p32 p64");
  EXPECT("64", "btc_expand j 0 32 p0 32 p32 p64"); /* sent again, or by another broker */
  EXPECT("[2 p64]", "HMGET $job:j live pos");
  EXPECT("!BAD chunk size", "btc_expand j 64 7 p64 end");
  EXPECT("!BAD chunk size", "btc_expand j 64 0 p64 end");
  EXPECT("!BAD arguments", "btc_expand j 64 6 p64");
  EXPECT("70", "btc_expand j 64 6 p64 end");
  SAY("btc_claim w 1000 64 ''");
  EXPECT("[[3 3 j 64 6 63 0 0 p64 manifest {} []]]", "btc_claim w 1000 64 ''");
}

static void test_expand_of_cancelled_job_does_nothing(void **state) {
  (void)state;
  SAY("btc_submit j manifest t 1 '' files '' {} /m sha 70 0 '' '' 0 ''");
  SAY("btc_expand j 0 32 p0 p32");
  SAY("btc_cancel j");
  EXPECT("70", "btc_expand j 32 32 p32 p64");
  EXPECT("[CXD 70]", "HMGET $job:j st canc");
  EXPECT("0", "SCARD $jc:j");
}

static void test_delayed_job_waits(void **state) {
  (void)state;
  EXPECT("[NEW j]", "btc_submit j inline t 1 '' files '' {} '' '' 0 0 '' '' 200 '' {\"id\":\"a\"}");
  EXPECT("0", "btc_promote 10");
  EXPECT("[]", "btc_claim w 1000 10 ''");
  test_sleep_ms(210);
  EXPECT("1", "btc_promote 10");
  EXPECT("[[1 1 j 0 1 1 0 0 '' inline {} [{\"id\":\"a\"}]]]", "btc_claim w 1000 10 ''");
}

static void test_functions_need_one_key(void **state) {
  (void)state;
  EXPECT_BEGIN("!BAD give one key", "FCALL btc_totals 0");
  EXPECT_BEGIN("!BAD give one key", "FCALL btc_claim 2 a b w 1 1 ''");
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_queue_refuses_newer_schema, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_submit_same_key_or_jid_is_old, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_submit_bad_arguments_change_nothing, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_submit_without_items_finishes_at_once, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_submit_over_limits_is_busy, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_submit_of_an_entry_takes_it, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_ingest_takes_each_entry_once, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_ingest_same_entry_or_key_twice_in_a_call, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_expand_is_a_compare_and_swap, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_expand_of_cancelled_job_does_nothing, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_delayed_job_waits, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_functions_need_one_key, queue_setup, queue_teardown),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
