/* Workers' names, duties, sealed files, retention, and what outlives a killed Redis. */
#include "queue_fixture.h"

static void test_hello_one_live_incarnation_a_name(void **state) {
  (void)state;
  submit("j", 2);
  EXPECT("[OK]", "btc_hello w 7 60000 brokerA {}");
  EXPECT("[OK]", "btc_hello w 7 60000 brokerB {\"x\":1}"); /* the same worker, at another broker */
  EXPECT("[TAKEN brokerB 7]", "btc_hello w 8 60000 brokerA {}");
  SAY("btc_claim w#7 30000 1 ''");
  EXPECT("1", "btc_reap_owner w#7"); /* declared dead: the name is free, its chunks are */
  EXPECT("[OK]", "btc_hello w 8 60000 brokerA {}");
  EXPECT("[TAKEN brokerA 8]", "btc_hello w 7 60000 brokerB {}");
  EXPECT("[8 brokerA {}]", "HMGET $wk:w inc broker info");
  EXPECT("[TAKEN brokerA 8]", "btc_hello w 18446744073709551615 60000 brokerB {}");
  EXPECT_BEGIN("!BAD worker", "btc_hello w 0 60000 b {}");
  EXPECT_BEGIN("!BAD worker", "btc_hello w#1 1 60000 b {}");
}

static void test_hello_reaps_what_the_dead_incarnation_held(void **state) {
  (void)state;
  submit("j", 2);
  SAY("btc_hello w 9 20 b {}");
  SAY("btc_claim w#9 30000 2 ''");
  SAY("btc_start w#9 1 1 1");
  test_sleep_ms(30);
  EXPECT("[TAKEN '' 9]", "btc_hello w 8 60000 b {}"); /* the ghost of an older one */
  EXPECT("[OK]", "btc_hello w 10 60000 b {}");        /* more digits are more */
  EXPECT("0", "SCARD $own:w#9");
  EXPECT("[2 1]", "HMGET $ck:1 m rp");
  EXPECT("1", "LLEN $sus:");
}

static void test_bye_hands_everything_back(void **state) {
  (void)state;
  submit("j", 2);
  SAY("btc_hello w 1 60000 b {}");
  SAY("btc_claim w#1 30000 2 ''");
  EXPECT("OK", "btc_bye w 1");
  EXPECT("OK", "btc_bye w 1");
  EXPECT("0", "EXISTS $wk:w $own:w#1 $lease $workers $inc");
  EXPECT("[R 0]", "HMGET $ck:1 st rp");
  SAY("btc_hello w 2 60000 b {}");
  EXPECT("OK", "btc_bye w 1"); /* an old one's: does not concern the new one */
  EXPECT("2", "HGET $wk:w inc");
}

static void test_tidy_forgets_workers_that_left_nothing(void **state) {
  (void)state;
  submit("j", 2);
  SAY("btc_hello idle 1 10 b {}");
  SAY("btc_hello busy 1 10 b {}");
  SAY("btc_claim busy#1 30000 1 ''");
  test_sleep_ms(20);
  EXPECT("1", "btc_tidy 100");
  EXPECT("[busy]", "SMEMBERS $workers"); /* its chunks are known by its name until the lease ends */
  SAY("btc_reap_owner busy#1");
  EXPECT("1", "btc_tidy 100");
  EXPECT("0", "EXISTS $workers $inc");
}

/* Classes come from submissions: any number of them. */
static void test_tidy_forgets_classes_in_which_nothing_waits(void **state) {
  (void)state;
  submit_as("a", 40, "t", 1, "one", "stream");
  submit_as("b", 1, "t", 1, "two", "stream");
  EXPECT("2", "SCARD $classes");
  EXPECT("0", "btc_tidy 100");
  SAY("btc_claim w#1 30000 1 two");
  EXPECT("0", "btc_tidy 100"); /* not counted: it is no reason to come again at once */
  EXPECT("[c:one]", "SMEMBERS $classes");
  EXPECT("0", "EXISTS $def:two:1");
  EXPECT("[one:1]", "HKEYS $srv");
  SAY("btc_reap_owner w#1"); /* what comes back names it again */
  EXPECT("2", "SCARD $classes");
  EXPECT_BEGIN("[[3 2 b", "btc_claim w#2 30000 1 two");
}

static void test_lead_is_one_brokers(void **state) {
  (void)state;
  EXPECT("1", "btc_lead sink a 50");
  EXPECT("1", "btc_lead sink a 50");
  EXPECT("0", "btc_lead sink b 50");
  EXPECT("1", "btc_lead other b 50");
  test_sleep_ms(60);
  EXPECT("1", "btc_lead sink b 50");
}

static void test_sealed_counts_once(void **state) {
  (void)state;
  SAY("btc_setup");
  submit("j", 2);
  SAY("btc_claim w 30000 2 ''");
  SAY("btc_commit 1 1 j 0 30000 w 0 a0 {} 1 a1 {}");
  SAY("XREADGROUP GROUP sink me COUNT 10 STREAMS $res >");
  char first[64], second[64];
  const char *all = SAY("XRANGE $res - +");
  assert_int_equal(sscanf(all, "[[%63s", first), 1);
  assert_int_equal(sscanf(strstr(all, "] [") + 3, "%63s", second), 1);
  EXPECT("0", "btc_forget j"); /* records are not in a file yet */
  EXPECT("1", "btc_sealed j 1 %s", first);
  EXPECT("1", "btc_sealed j 2 %s %s", first, second); /* of a sink that lost the duty in between: one is gone already */
  EXPECT("0", "btc_sealed j 2 %s %s", first, second);
  EXPECT("2", "HGET $job:j rec");
  EXPECT("[0 nil nil nil]", "XPENDING $res sink");
  EXPECT("1", "btc_forget j");
  EXPECT("1", "btc_forget j");
  EXPECT("0", "btc_sealed j 2 %s %s", first, second);
  EXPECT("0", "EXISTS $job:j $dn:j $dd:j $er:j $it:j $jc:j $jobs $exp");
}

static void finished_stream_job(const char *jid, int n) {
  submit_as(jid, n, "t", 1, "''", "stream");
  long long cid = 0, tok = 0;
  assert_int_equal(sscanf(SAY("btc_claim w 30000 32 ''"), "[[%lld %lld", &cid, &tok), 2);
  for (int i = 0; i < n; i++) SAY("btc_commit %lld %lld %s 0 30000 w %d a%d {}", cid, tok, jid, i, i);
}

static void test_tidy_trims_out_to_what_groups_need(void **state) {
  (void)state;
  finished_stream_job("j", 6);
  EXPECT("0", "btc_tidy 100"); /* nobody has asked for them yet: they wait */
  SAY("XGROUP CREATE $out one 0");
  SAY("XGROUP CREATE $out two 0");
  SAY("XREADGROUP GROUP one me COUNT 6 STREAMS $out >");
  EXPECT("0", "btc_tidy 100"); /* two has read nothing */
  SAY("XREADGROUP GROUP two me COUNT 4 STREAMS $out >");
  char ids[6][64];
  const char *all = SAY("XRANGE $out - +");
  for (int i = 0; i < 6; i++) {
    const char *entry = all + 1;
    for (int k = 0; k < i; k++) entry = strstr(entry, "]] [") + 3;
    assert_int_equal(sscanf(entry, "[%63s", ids[i]), 1);
  }
  SAY("XACK $out one %s %s %s %s %s %s", ids[0], ids[1], ids[2], ids[3], ids[4], ids[5]);
  EXPECT("0", "btc_tidy 100"); /* two holds the first four unacknowledged */
  SAY("XACK $out two %s %s %s", ids[0], ids[1], ids[3]);
  EXPECT("2", "btc_tidy 100"); /* up to the third */
  SAY("XACK $out two %s", ids[2]);
  EXPECT("2", "btc_tidy 100"); /* three and four; five and six were not read by two */
  EXPECT("2", "XLEN $out");
}

static void test_tidy_forgets_jobs_past_their_time(void **state) {
  (void)state;
  SAY("btc_setup stream_ttl_ms 30 ttl_ms 30");
  finished_stream_job("j", 1);
  submit("f", 1);
  SAY("btc_claim w 30000 32 ''");
  SAY("btc_commit 2 2 f 0 30000 w 0 a {}");
  submit("open", 1);
  EXPECT("[OK 1]", "btc_setup");
  EXPECT("0", "btc_tidy 100");
  test_sleep_ms(40);
  EXPECT("1", "btc_tidy 100"); /* f's record waits for the sink */
  EXPECT("0", "EXISTS $job:j");
  EXPECT("2", "EXISTS $job:f $job:open");
}

static void test_totals_tell_all_places(void **state) {
  (void)state;
  SAY("btc_setup retry_base_ms 100000");
  submit_as("a", 64, "t", 0, "stub", "files");
  submit_as("b", 1, "u", 2, "''", "stream");
  SAY("btc_claim w 30000 32 stub");
  SAY("btc_fail 1 1 a 0 30000 w 0 t a decode x {} 1 c a '' x {} 2 p a decode x {}");
  SAY("btc_commit 1 1 a 0 30000 w 3 a {}");
  test_sleep_ms(20);
  EXPECT_BEGIN("[2 1 1 1 0 2 0 1 ", "btc_totals");
  long long oldest = 0;
  assert_int_equal(sscanf(SAY("btc_totals"), "[2 1 1 1 0 2 0 1 %lld", &oldest), 1);
  assert_in_range(oldest, 15, 60000);
}

static void test_finished_events_one_an_epoch(void **state) {
  (void)state;
  submit("j", 1);
  SAY("btc_claim w 30000 1 ''");
  SAY("btc_fail 1 1 j 0 30000 w 0 p a decode x {}");
  SAY("btc_replay j '' 0 10");
  SAY("btc_claim w 30000 1 ''");
  SAY("btc_commit 2 2 j 0 30000 w 0 a {}");
  SAY("btc_commit 2 2 j 0 30000 w 0 a {}");
  const char *all = SAY("XRANGE $ev - +");
  assert_non_null(strstr(all, "[type finished jid j epoch 1 done 0 dead 1 canc 0 msg '']"));
  assert_non_null(strstr(all, "[type finished jid j epoch 2 done 1 dead 0 canc 0 msg '']"));
  EXPECT("2", "XLEN $ev");
}

/* With appendfsync always, whatever was answered is there after kill -9, the functions too. */
static void test_killed_redis_keeps_what_it_answered(void **state) {
  (void)state;
  redis_server_stop(&server);
  server = redis_server_start("always", NULL);
  redis_server_load_queue(server);
  SAY("btc_setup");
  for (int round = 0; round < 3; round++) {
    char jid[16];
    snprintf(jid, sizeof jid, "j%d", round);
    submit(jid, 64);
    long long cid = 0, tok = 0;
    assert_int_equal(sscanf(SAY("btc_claim w 30000 32 ''"), "[[%lld %lld", &cid, &tok), 2);
    SAY("btc_commit %lld %lld %s 0 30000 w 0 a {}", cid, tok, jid);
    redis_server_kill(server);
    redis_server_restart(server);
    assert_true(NUMBER("btc_version") >= 2);
    EXPECT("[RUN 1 2]", "HMGET $job:%s st done live", jid);
    for (int i = 1; i < 32; i++) SAY("btc_commit %lld %lld %s 0 30000 w %d a {}", cid, tok, jid, i);
    assert_int_equal(sscanf(SAY("btc_claim w 30000 32 ''"), "[[%lld %lld", &cid, &tok), 2);
    for (int i = 0; i < 32; i++) SAY("btc_commit %lld %lld %s 32 30000 w %d a {}", cid, tok, jid, i);
    EXPECT("[FIN 64 0]", "HMGET $job:%s st done live", jid);
  }
  EXPECT("192", "XLEN $res");
}

/* Out of memory: nothing new comes in, but what is under way finishes and frees memory. */
static void test_full_memory_refuses_new_work_only(void **state) {
  (void)state;
  submit("j", 2);
  SAY("btc_claim w 30000 2 ''");
  SAY("CONFIG SET maxmemory 1");
  EXPECT_BEGIN("!OOM", "btc_submit k inline t 1 '' files '' {} '' '' 0 0 '' '' 0 '' x");
  EXPECT_BEGIN("!OOM", "btc_claim w 30000 2 ''");
  EXPECT("[]", "btc_start w 1 1 3");
  EXPECT("[1 1 1]", "btc_commit 1 1 j 0 30000 w 0 a0 {}");
  EXPECT("[1 1 0]", "btc_fail 1 1 j 0 30000 w 1 p a1 decode x {}");
  EXPECT("FIN", "HGET $job:j st");
  EXPECT("0", "btc_tidy 10");
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_hello_one_live_incarnation_a_name, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_hello_reaps_what_the_dead_incarnation_held, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_bye_hands_everything_back, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_tidy_forgets_workers_that_left_nothing, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_tidy_forgets_classes_in_which_nothing_waits, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_lead_is_one_brokers, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_sealed_counts_once, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_tidy_trims_out_to_what_groups_need, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_tidy_forgets_jobs_past_their_time, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_totals_tell_all_places, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_finished_events_one_an_epoch, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_killed_redis_keeps_what_it_answered, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_full_memory_refuses_new_work_only, queue_setup, queue_teardown),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
