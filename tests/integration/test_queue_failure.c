/* What becomes of items when results come late, twice or never, when engines and workers die, and when jobs are cancelled or
 * replayed. */
#include "queue_fixture.h"

static void test_commit_records_each_item_once(void **state) {
  (void)state;
  submit("j", 2);
  SAY("btc_claim w 30000 2 ''");
  EXPECT("[1 1 1]", "btc_commit 1 1 j 0 30000 w 0 a0 {\"r\":0}");
  EXPECT("[1 0 2]", "btc_commit 1 1 j 0 30000 w 0 a0 {\"r\":0}"); /* the answer was lost: sent again */
  EXPECT("1", "XLEN $res");
  EXPECT("[1 1 3]", "btc_commit 1 1 j 0 30000 w 1 a1 {\"r\":1} 1 a1 {\"r\":1}");
  EXPECT("[FIN 2 0 0 0]", "HMGET $job:j st done dead canc live");
  EXPECT("0", "EXISTS $ck:1 $lease $own:w $it:j $jc:j");
  EXPECT("[0 0 4]", "btc_commit 1 1 j 0 30000 w 1 a1 {\"r\":1}");
  EXPECT("2", "XLEN $res");
  EXPECT("1", "XLEN $ev");
  EXPECT("0", "HGET $stat live_jobs");
}

static void test_commit_of_a_late_result_counts(void **state) {
  (void)state;
  submit("j", 3);
  SAY("btc_claim w 1 3 ''");
  SAY("btc_start w 1 1 1");
  test_sleep_ms(5);
  EXPECT("1", "btc_reap 10"); /* item 0 is a suspect (chunk 2), 1 and 2 are ready again */
  EXPECT("[0 1 1]", "btc_commit 1 1 j 0 30000 w 1 a1 {}");
  EXPECT("4", "HGET $ck:1 m"); /* nobody does it again */
  EXPECT("[0 1 2]", "btc_commit 1 1 j 0 30000 w 0 a0 {}");
  EXPECT_BEGIN("[[1 2 j 0 3 4", "btc_claim v 30000 9 ''"); /* the suspect turned out to be done */
  EXPECT("[1 1 3]", "btc_commit 1 2 j 0 30000 v 2 a2 {}");
  EXPECT("[FIN 3 0]", "HMGET $job:j st done live");
  EXPECT("2", "HGET $stat late");
}

static void test_late_result_takes_the_chunk_from_its_new_holder(void **state) {
  (void)state;
  submit("j", 1);
  SAY("btc_claim w 1 1 ''");
  test_sleep_ms(5);
  SAY("btc_reap 10");
  EXPECT_BEGIN("[[1 2 j", "btc_claim v 30000 1 ''");
  EXPECT("[0 1 1]", "btc_commit 1 1 j 0 30000 w 0 a0 {}");
  EXPECT("[1]", "btc_extend v 30000 1 2"); /* not ours any more */
  EXPECT("[0 0 2]", "btc_commit 1 2 j 0 30000 v 0 a0 {}");
  EXPECT("1", "XLEN $res");
}

static void test_stale_token_may_not_fail_start_release_extend(void **state) {
  (void)state;
  submit("j", 1);
  SAY("btc_claim w 1 1 ''");
  test_sleep_ms(5);
  SAY("btc_reap 10");
  SAY("btc_claim v 30000 1 ''");
  EXPECT("[0 0 0]", "btc_fail 1 1 j 0 30000 w 0 p a0 decode bad {}");
  EXPECT("[1]", "btc_start w 1 1 1");
  EXPECT("0", "btc_release w 1 1");
  EXPECT("[1]", "btc_extend w 30000 1 1");
  EXPECT("[L 2 0]", "HMGET $ck:1 st tok sb");
}

static void test_bad_places_are_refused(void **state) {
  (void)state;
  submit("j", 2);
  submit("k", 2);
  SAY("btc_claim w 30000 2 ''");
  EXPECT_BEGIN("!BAD", "btc_commit 1 1 k 0 30000 w 0 a0 {}");
  EXPECT_BEGIN("!BAD", "btc_fail 1 1 j 32 30000 w 0 p a0 decode bad {}");
  EXPECT_BEGIN("!BAD kind of failure", "btc_fail 1 1 j 0 30000 w 0 x a0 decode bad {}");
  EXPECT("[1 0 1]", "btc_commit 1 1 j 0 30000 w 2 a0 {} 32 a0 {} -1 a0 {} x a0 {}"); /* outside the job */
}

static void test_permanent_failure_is_dead_at_once(void **state) {
  (void)state;
  submit_as("j", 2, "t", 1, "''", "stream");
  SAY("btc_claim w#1 30000 2 ''");
  EXPECT("[1 1 0]", "btc_fail 1 1 j 0 30000 w#1 1 p a1 not-found no/such {\"f\":1}");
  EXPECT("[1 0 0]", "btc_fail 1 1 j 0 30000 w#1 1 p a1 not-found no/such {\"f\":1}");
  EXPECT_BEGIN("{\"reason\":\"not-found\",\"message\":\"no/such\",\"id\":\"a1\",\"attempts\":1,\"worker\":\"w#1\",\"at\":",
               "HGET $dd:j 1");
  assert_non_null(strstr(SAY("HGET $dd:j 1"), ",\"lo\":0,\"n\":2,\"pos\":\"\",\"record\":\"{\\\"f\\\":1}\"}"));
}

static void test_transient_failure_is_tried_three_times(void **state) {
  (void)state;
  SAY("btc_setup retry_base_ms 0");
  submit("j", 1);
  EXPECT_BEGIN("[[1 1 j", "btc_claim w 30000 2 ''");
  EXPECT("[1 0 1]", "btc_fail 1 1 j 0 30000 w 0 t a0 decode try {}");
  EXPECT_BEGIN("[[2 2 j", "btc_claim w 30000 2 ''"); /* a delay of 0 is no delay */
  EXPECT("[1 0 1]", "btc_fail 2 2 j 0 30000 w 0 t a0 decode try {}");
  EXPECT_BEGIN("[[3 3 j", "btc_claim w 30000 2 ''");
  EXPECT("[1 1 0]", "btc_fail 3 3 j 0 30000 w 0 t a0 decode try {}");
  EXPECT("[FIN 0 1 2]", "HMGET $job:j st done dead retries");
  assert_non_null(strstr(SAY("HGET $dd:j 0"), "\"attempts\":3"));
  SAY("btc_replay j '' 0 10"); /* and has three more */
  SAY("btc_claim w 30000 2 ''");
  EXPECT("[1 0 1]", "btc_fail 4 4 j 0 30000 w 0 t a0 decode try {}");
}

static void test_transient_failures_are_delayed_with_jitter(void **state) {
  (void)state;
  submit("j", 32);
  SAY("btc_claim w 30000 32 ''");
  for (int i = 0; i < 32; i++) SAY("btc_fail 1 1 j 0 30000 w %d t a decode try {}", i);
  long long first = 0, low = 0, high = 0;
  char due[64];
  for (int i = 0; i < 32; i++) {
    snprintf(due, sizeof due, "%s", SAY("ZSCORE $dly %d", i + 2));
    long long ms = strtoll(due, NULL, 10);
    if (i == 0) first = low = high = ms;
    low = ms < low ? ms : low;
    high = ms > high ? ms : high;
  }
  assert_true(first > 0 && high - low > 500 && high - low < 3000); /* spread over 2 s: 32 equal draws would be no jitter */
}

static void test_crash_in_company_makes_suspects_alone_kills(void **state) {
  (void)state;
  submit("j", 2);
  EXPECT_BEGIN("[[1 1 j", "btc_claim w 30000 2 ''");
  EXPECT("[1 0 2]", "btc_fail 1 1 j 0 30000 w 0 c a0 '' signal {} 1 c a1 '' signal {}");
  EXPECT("[S 1 0 a0]", "HMGET $ck:2 st solo cr id");
  for (int i = 0; i < 2; i++) { /* both run alone; a1 is innocent */
    const char *got = SAY("btc_claim w 30000 2 ''");
    if (strstr(got, "a1"))
      SAY("btc_commit 3 %d j 0 30000 w 1 a1 {}", i + 2);
    else
      EXPECT("[1 0 1]", "btc_fail 2 %d j 0 30000 w 0 c a0 '' signal ''", i + 2);
  }
  EXPECT_BEGIN("[[4 4 j 0 2 1 1 1", "btc_claim w 30000 2 ''");
  EXPECT("[1 0 1]", "btc_fail 4 4 j 0 30000 w 0 c a0 '' signal ''");
  EXPECT_BEGIN("[[5 5 j 0 2 1 1 2", "btc_claim w 30000 2 ''");
  EXPECT("[1 1 0]", "btc_fail 5 5 j 0 30000 w 0 c a0 '' signal ''");
  EXPECT("[FIN 1 1]", "HMGET $job:j st done dead");
  assert_non_null(strstr(SAY("HGET $dd:j 0"),
                         "\"record\":\"{\\\"v\\\":1,\\\"id\\\":\\\"a0\\\",\\\"status\\\":\\\"failed\\\",\\\"reason\\\":"
                         "\\\"crash\\\",\\\"message\\\":\\\"signal\\\"}\"}"));
}

static void test_hang_alone_kills_at_once(void **state) {
  (void)state;
  submit("j", 1);
  SAY("btc_claim w 30000 2 ''");
  EXPECT("[1 0 1]", "btc_fail 1 1 j 0 30000 w 0 h a0 '' stalled ''");
  SAY("btc_claim w 30000 2 ''");
  EXPECT("[1 1 0]", "btc_fail 2 2 j 0 30000 w 0 h a0 '' stalled ''");
  EXPECT_BEGIN("{\"reason\":\"timeout\"", "HGET $dd:j 0");
}

static void test_reaped_three_times_all_are_suspects(void **state) {
  (void)state;
  SAY("btc_submit j manifest t 1 '' files '' {} /m sha 2 0 '' '' 0 ''");
  SAY("btc_expand j 0 2 p0 p2");
  for (int i = 1; i <= 3; i++) {
    EXPECT_BEGIN("[[1 ", "btc_claim w 30000 2 ''");
    EXPECT("1", "btc_reap_owner w"); /* before anybody said that an item had started */
  }
  EXPECT("2", "LLEN $sus:");
  EXPECT("0", "EXISTS $ck:1");
  /* The guilty one kills each worker so fast. It dies in the end, and nobody knows its id. */
  for (int i = 0; i < 20 && NUMBER("HGET $job:j dead") < 2; i++) {
    SAY("btc_claim w 30000 2 ''");
    SAY("btc_reap_owner w");
  }
  EXPECT("[FIN 2 0]", "HMGET $job:j st dead live");
  assert_non_null(strstr(SAY("HGET $dd:j 1"), "\"id\":\"\",\"attempts\":3,"));
  assert_non_null(strstr(SAY("HGET $dd:j 1"), "\"lo\":0,\"n\":2,\"pos\":\"p0\",\"record\":\"\"}"));
}

static void test_reap_of_an_inline_item_knows_its_id(void **state) {
  (void)state;
  SAY("btc_setup max_crash 1");
  submit("j", 1);
  SAY("btc_claim w 30000 2 ''");
  SAY("btc_start w 1 1 1");
  SAY("btc_reap_owner w");
  SAY("btc_claim w 30000 2 ''");
  SAY("btc_start w 2 2 1");
  SAY("btc_reap_owner w");
  assert_non_null(strstr(SAY("HGET $dd:j 0"), "\"id\":\"a0\""));
}

static void test_release_has_no_penalty_and_keeps_order(void **state) {
  (void)state;
  submit("j", 96);
  SAY("btc_claim w 30000 64 ''");
  SAY("btc_start w 1 1 1");
  EXPECT("2", "btc_release w 1 1 2 2");
  EXPECT("0", "btc_release w 1 1 2 2");
  EXPECT("[1 2 3]", "LRANGE $rdy::1:default 0 -1");
  EXPECT("[R 0 0 0]", "HMGET $ck:1 st rp cr sb");
}

static void test_many_dead_items_pause_the_job(void **state) {
  (void)state;
  SAY("btc_setup max_dead 2");
  submit("j", 4);
  SAY("btc_claim w 30000 4 ''");
  SAY("btc_fail 1 1 j 0 30000 w 0 p a decode x {}");
  EXPECT("0", "HGET $job:j paused");
  SAY("btc_fail 1 1 j 0 30000 w 1 p a decode x {}");
  EXPECT("[1 paused: 2 items are dead; resume or cancel it]", "HMGET $job:j paused msg");
  SAY("btc_resume j");
  SAY("btc_fail 1 1 j 0 30000 w 2 p a decode x {}");
  EXPECT("0", "HGET $job:j paused");
}

static void test_cancel_accounts_for_all_places(void **state) {
  (void)state;
  SAY("btc_setup retry_base_ms 100000");
  SAY("btc_submit j manifest t 1 '' files '' {} /m sha 200 0 '' '' 0 ''");
  SAY("btc_expand j 0 32 p0 32 p1 32 p2 p3");
  SAY("btc_claim w 30000 64 ''");           /* 1, 2 leased, 3 ready, 104 items not expanded */
  SAY("btc_commit 1 1 j 0 30000 w 0 a {}"); /* 1 done */
  SAY("btc_fail 1 1 j 0 30000 w 1 t a decode x {} 2 p a decode x {} 3 c a '' x ''"); /* one delayed, one dead, one suspect */
  EXPECT("[CXL [[1 1 w] [2 2 w]]]", "btc_cancel j");
  EXPECT("[CXL [[1 1 w] [2 2 w]]]", "btc_cancel j");
  EXPECT("[1 1 138]", "HMGET $job:j done dead canc"); /* 200 - 2 - 28 (chunk 1) - 32 (chunk 2) */
  EXPECT("0", "ZCARD $dly");
  EXPECT("[1 2]", "btc_extend w 30000 1 1 2 2");
  EXPECT("[1 0 2]", "btc_commit 1 1 j 0 30000 w 4 a {}"); /* too late: counted as cancelled */
  EXPECT("139", "HGET $job:j canc");
  EXPECT("[1 0 0]", "btc_fail 1 1 j 0 30000 w 5 p a decode x {}");
  EXPECT("1", "btc_release w 1 1");
  EXPECT("1", "btc_reap_owner w");
  EXPECT("[CXD 1 1 198 0]", "HMGET $job:j st done dead canc live");
  EXPECT("[CXD []]", "btc_cancel j");
}

static void test_cancel_of_many_chunks_goes_on_in_promote(void **state) {
  (void)state;
  char text[32768];
  (void)state;
  SAY("btc_submit j manifest t 1 '' files '' {} /m sha 600 0 '' '' 0 ''");
  for (int k = 0; k < 3; k++) {
    int len = snprintf(text, sizeof text, "btc_expand j %d", k * 200);
    for (int i = 0; i < 200; i++) len += snprintf(text + len, sizeof text - (size_t)len, " 1 p");
    SAY("%s end", text);
  }
  EXPECT("600", "HGET $job:j live");
  SAY("btc_claim w 30000 3 ''");
  SAY("btc_cancel j");
  assert_in_range(NUMBER("HGET $job:j canc"), 250, 260);
  for (int i = 0; i < 20; i++) SAY("btc_promote 100");
  EXPECT("[CXL 597]", "HMGET $job:j st canc");
  SAY("btc_reap_owner w");
  EXPECT("[CXD 600 0]", "HMGET $job:j st canc live");
  SAY("btc_promote 100");
  EXPECT("0", "EXISTS $sweep");
}

static void test_replay_puts_dead_items_back_with_their_place(void **state) {
  (void)state;
  SAY("btc_submit j manifest t 1 '' files '' {} /m sha 40 0 '' '' 0 ''");
  SAY("btc_expand j 0 32 p0 8 p32 end");
  SAY("btc_claim w 30000 40 ''");
  char text[4096];
  for (int c = 0, n = 32; c < 2; c++, n = 8) {
    int len = snprintf(text, sizeof text, "btc_commit %d %d j %d 30000 w", c + 1, c + 1, c * 32);
    for (int i = 3; i < n; i++) len += snprintf(text + len, sizeof text - (size_t)len, " %d a {}", i);
    SAY("%s", text);
  }
  SAY("btc_fail 2 2 j 32 30000 w 0 p a decode x {} 1 p a decode x {} 2 p a not-found x {}");
  SAY("btc_fail 1 1 j 0 30000 w 0 p a decode x {} 1 p a decode x {} 2 p a crash x {}");
  EXPECT("[FIN 34 6 1]", "HMGET $job:j st done dead epoch");
  EXPECT("[0 0]", "btc_replay j nodata 0 100");
  EXPECT("[FIN 1]", "HMGET $job:j st epoch");
  EXPECT("[4 0]", "btc_replay j decode 0 100");
  EXPECT("[RUN 34 2 2 2]", "HMGET $job:j st done dead epoch live");
  EXPECT("[1 0]", "btc_replay j crash 0 100");
  EXPECT("1", "LLEN $sus:"); /* it took an engine with it: alone from the start */
  EXPECT_BEGIN("[[5 3 j 0 32 4 1 0 p0", "btc_claim v 30000 40 ''");
  EXPECT("[1 1 3]", "btc_commit 5 3 j 0 30000 v 2 a {}");
  const char *two = SAY("btc_claim v 30000 40 ''");
  assert_non_null(strstr(two, "j 0 32 3 0 0 p0 manifest"));
  assert_non_null(strstr(two, "j 32 8 3 0 0 p32 manifest"));
  EXPECT("[RUN]", "HMGET $job:j st");
  EXPECT("1", "HGET $stat live_jobs");
}

static void test_result_of_a_dead_item_counts_only_after_replay(void **state) {
  (void)state;
  submit("j", 2);
  SAY("btc_claim w 30000 2 ''");
  SAY("btc_fail 1 1 j 0 30000 w 0 p a0 decode x {}");
  EXPECT("[1 0 1]", "btc_commit 1 1 j 0 30000 w 0 a0 {}");
  EXPECT("[1 0]", "btc_replay j '' 0 10");
  EXPECT("[1 1 2]", "btc_commit 1 1 j 0 30000 w 0 a0 {}"); /* the same lease, its bit is gone: the late result of any worker */
  EXPECT("[1 1 3]", "btc_commit 1 1 j 0 30000 w 1 a1 {}");
  EXPECT("[FIN 2 0 1 0]", "HMGET $job:j st done dead epoch live");
  EXPECT("[]", "btc_claim w 30000 2 ''");
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_commit_records_each_item_once, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_commit_of_a_late_result_counts, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_late_result_takes_the_chunk_from_its_new_holder, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_stale_token_may_not_fail_start_release_extend, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_bad_places_are_refused, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_permanent_failure_is_dead_at_once, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_transient_failure_is_tried_three_times, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_transient_failures_are_delayed_with_jitter, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_crash_in_company_makes_suspects_alone_kills, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_hang_alone_kills_at_once, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_reaped_three_times_all_are_suspects, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_reap_of_an_inline_item_knows_its_id, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_release_has_no_penalty_and_keeps_order, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_many_dead_items_pause_the_job, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_cancel_accounts_for_all_places, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_cancel_of_many_chunks_goes_on_in_promote, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_replay_puts_dead_items_back_with_their_place, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_result_of_a_dead_item_counts_only_after_replay, queue_setup, queue_teardown),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
