/* Who gets which chunk: leases, priorities, tenants, classes, suspects, pause. */
#include "queue_fixture.h"

static void test_claim_leases_chunks_with_their_texts(void **state) {
  (void)state;
  submit("j", 34);
  EXPECT_BEGIN("[[1 1 j 0 32 4294967295 0 0 '' inline {} [{\"id\":\"a0\"} {\"id\":\"a1\"}", "btc_claim w#1 30000 40 ''");
  EXPECT("[L 1 w#1 4294967295 0]", "HMGET $ck:1 st tok w m sb"); /* a mask of 32 bits is written unsigned */
  EXPECT("2", "SCARD $own:w#1");
  EXPECT("2", "ZCARD $lease");
  EXPECT("[]", "btc_claim w#1 30000 40 ''");
  EXPECT("[]", "LRANGE $ring::1 0 -1");
  EXPECT("[0 2 0 0 0 1 0 0 0 0]", "btc_totals");
}

static void test_claim_splits_a_chunk_by_credits(void **state) {
  (void)state;
  submit("j", 5);
  EXPECT("[]", "btc_claim w 30000 0 ''");
  EXPECT("[[2 1 j 0 5 3 0 0 '' inline {} [{\"id\":\"a0\"} {\"id\":\"a1\"}]]]", "btc_claim w 30000 2 ''");
  EXPECT("[28 R]", "HMGET $ck:1 m st");
  EXPECT("2", "HGET $job:j live");
  EXPECT("[[1 2 j 0 5 28 0 0 '' inline {} [{\"id\":\"a2\"} {\"id\":\"a3\"} {\"id\":\"a4\"}]]]", "btc_claim w 30000 3 ''");
  EXPECT("[]", "LRANGE $ring::1 0 -1");
}

static void test_claim_serves_priorities_in_order(void **state) {
  (void)state;
  submit_as("low", 2, "t", 2, "''", "files");
  submit_as("mid", 2, "t", 1, "''", "files");
  submit_as("top", 2, "t", 0, "''", "files");
  EXPECT_BEGIN("[[3 1 top", "btc_claim w 30000 2 ''");
  EXPECT_BEGIN("[[2 2 mid", "btc_claim w 30000 2 ''");
  EXPECT_BEGIN("[[1 3 low", "btc_claim w 30000 2 ''");
}

static void test_claim_ages_starved_priorities(void **state) {
  (void)state;
  SAY("btc_setup ageing_ms 100");
  submit_as("low", 2, "t", 2, "''", "files");
  submit_as("top", 100, "t", 0, "''", "files");
  EXPECT_BEGIN("[[6 1 top", "btc_claim w 30000 2 ''");
  test_sleep_ms(110);
  submit_as("top2", 2, "t", 0, "''", "files");
  EXPECT_BEGIN("[[1 2 low", "btc_claim w 30000 2 ''");
  EXPECT_BEGIN("[[8 3 top", "btc_claim w 30000 2 ''"); /* once */
}

static void test_claim_serves_only_its_classes(void **state) {
  (void)state;
  submit_as("a", 1, "t", 1, "sha256:x-bf16", "files");
  submit_as("b", 1, "t", 1, "''", "files");
  EXPECT_BEGIN("[[2 1 b", "btc_claim w 30000 10 other");
  EXPECT("[]", "btc_claim w 30000 10 other");
  EXPECT_BEGIN("[[1 2 a", "btc_claim w 30000 10 sha256:x-bf16");
}

/* Items of each of three tenants with weights 1, 1, 2 out of 40 claims of 32. */
static void test_claim_is_fair_by_weight(void **state) {
  static const char *const tenants[] = {"aa", "bb", "cc"};
  int got[3] = {0};
  (void)state;
  SAY("btc_setup weight:cc 2");
  for (int i = 0; i < 60; i++) {
    char jid[16];
    for (int t = 0; t < 3; t++) {
      snprintf(jid, sizeof jid, "%s-%d", tenants[t], i);
      submit_as(jid, t == 0 ? 64 : 32, tenants[t], 1, "''", "files"); /* one submits more: no help */
    }
  }
  for (int i = 0; i < 40; i++) {
    const char *reply = SAY("btc_claim w%d 30000 32 ''", i);
    for (int t = 0; t < 3; t++) got[t] += strstr(reply, tenants[t]) != NULL;
  }
  assert_int_equal(got[0], 10);
  assert_int_equal(got[1], 10);
  assert_int_equal(got[2], 20);
}

static void test_claim_gives_a_suspect_alone(void **state) {
  (void)state;
  submit("j", 3);
  submit("other", 4);
  EXPECT_BEGIN("[[1 1 j", "btc_claim w 30000 3 ''");
  EXPECT("[]", "btc_start w 1 1 3");
  EXPECT("1", "btc_reap_owner w");
  EXPECT("2", "LLEN $sus:");
  EXPECT_BEGIN("[[3 2 j 0 3 1 1 0", "btc_claim x 30000 100 ''"); /* item 0 alone, whatever the credits */
  EXPECT("[]", "btc_claim x 30000 100 ''");                      /* and nothing beside it */
  EXPECT("[1 1 1]", "btc_commit 3 2 j 0 30000 x 0 a0 {}");
  EXPECT_BEGIN("[[4 3 j 0 3 2 1 0", "btc_claim x 30000 100 ''");
}

static void test_claim_empties_one_hand_for_one_suspect(void **state) {
  (void)state;
  submit("j", 1);
  submit("more", 200);
  EXPECT_BEGIN("[[1 1 j", "btc_claim a 30000 1 ''");
  EXPECT_BEGIN("[[", "btc_claim b 30000 1 ''");
  EXPECT_BEGIN("[[", "btc_claim c 30000 1 ''");
  SAY("btc_start a 1 1 1");
  SAY("btc_reap_owner a");
  EXPECT("[]", "btc_claim b 30000 5 ''");       /* b holds work, and is to finish it for the suspect */
  EXPECT_BEGIN("[[", "btc_claim c 30000 5 ''"); /* there is only one: c goes on */
  EXPECT_BEGIN("[[", "btc_claim d 30000 5 ''"); /* d has empty hands: takes it */
  EXPECT("0", "LLEN $sus:");
  EXPECT_BEGIN("[[", "btc_claim b 30000 5 ''");
}

static void test_claim_stops_when_records_pile_up(void **state) {
  (void)state;
  SAY("btc_setup max_out 1");
  submit("j", 64);
  SAY("btc_claim w 30000 32 ''");
  SAY("btc_commit 1 1 j 0 30000 w 0 a0 {}");
  EXPECT("[]", "btc_claim w 30000 32 ''");
  const char *entries = SAY("XRANGE $res - +");
  char id[64];
  assert_int_equal(sscanf(entries, "[[%63s", id), 1);
  EXPECT("1", "btc_sealed j 1 %s", id);
  EXPECT_BEGIN("[[2 2 j", "btc_claim w 30000 32 ''");
  EXPECT("1", "HGET $job:j rec");
}

static void test_pause_of_the_queue_stops_claims(void **state) {
  (void)state;
  submit("j", 1);
  EXPECT("PAUSED", "btc_pause '' maintenance");
  EXPECT("[]", "btc_claim w 30000 1 ''");
  EXPECT_BEGIN("[1 0 0 0 1 1 0 0 ", "btc_totals");
  EXPECT("RUN", "btc_resume ''");
  EXPECT_BEGIN("[[1 1 j", "btc_claim w 30000 1 ''");
}

static void test_pause_of_a_job_holds_its_chunks(void **state) {
  (void)state;
  submit("j", 64);
  submit("k", 1);
  EXPECT_BEGIN("[[1 1 j", "btc_claim w 30000 32 ''");
  EXPECT("PAUSED", "btc_pause j why-not");
  EXPECT("[1 why-not]", "HMGET $job:j paused msg");
  EXPECT_BEGIN("[[3 2 k", "btc_claim w 30000 32 ''"); /* passes j's by */
  EXPECT("H", "HGET $ck:2 st");
  EXPECT("[1 1 1]", "btc_commit 1 1 j 0 30000 w 0 a0 {}"); /* what runs may finish */
  EXPECT("1", "btc_release w 1 1");
  EXPECT("[2 1]", "LRANGE $hd:j 0 -1");
  EXPECT("[]", "btc_claim w 30000 32 ''");
  EXPECT("RUN", "btc_resume j");
  EXPECT("RUN", "btc_resume j");
  EXPECT("0", "EXISTS $hd:j");
  EXPECT_BEGIN("[[2 3 j", "btc_claim w 30000 32 ''");
  EXPECT_BEGIN("[[1 4 j 0 32 4294967294", "btc_claim w 30000 32 ''");
}

static void test_claim_of_a_fenced_incarnation_is_empty(void **state) {
  (void)state;
  submit("j", 1);
  EXPECT("[OK]", "btc_hello w 5 20 brokerA {}");
  test_sleep_ms(30);
  EXPECT("[OK]", "btc_hello w 6 60000 brokerB {}");
  EXPECT("[]", "btc_claim w#5 30000 1 ''");
  EXPECT_BEGIN("[[1 1 j", "btc_claim w#6 30000 1 ''");
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_claim_leases_chunks_with_their_texts, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_claim_splits_a_chunk_by_credits, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_claim_serves_priorities_in_order, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_claim_ages_starved_priorities, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_claim_serves_only_its_classes, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_claim_is_fair_by_weight, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_claim_gives_a_suspect_alone, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_claim_empties_one_hand_for_one_suspect, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_claim_stops_when_records_pile_up, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_pause_of_the_queue_stops_claims, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_pause_of_a_job_holds_its_chunks, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_claim_of_a_fenced_incarnation_is_empty, queue_setup, queue_teardown),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
