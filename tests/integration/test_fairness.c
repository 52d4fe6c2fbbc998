/* Fairness: tenants get what their weights say however much one of them submits, a tenant that comes late waits for nobody's
 * backlog, and what is unimportant starves no longer than the ageing time. */
#define _GNU_SOURCE
#include "cluster.h"
#include "queue_fixture.h"

/* ---- the functions alone ---- */

enum { TENANTS = 3, MAX_CLAIMS = 4096 };
static const char *const tenants[TENANTS] = {"aa", "bb", "cc"};
static const int weights[TENANTS] = {1, 1, 2};

typedef struct grants {
  int got[MAX_CLAIMS + 1][TENANTS], n; /* items in all before claim k */
} grants;

static int ones(uint64_t mask) {
  return __builtin_popcountll(mask);
}

/* Items of each tenant of one claim; jobs are named TENANT-NUMBER. */
static int claim(const char *worker, int credits, int got[TENANTS]) {
  char number[16];
  int all = 0;
  snprintf(number, sizeof number, "%d", credits);
  redisReply *r =
      redis_fcall_argv(redis_server_context(server), "t", "btc_claim", 4, (const char *const[]){worker, "30000", number, ""}, NULL);
  assert_non_null(r);
  assert_int_equal(r->type, REDIS_REPLY_ARRAY);
  for (size_t i = 0; i < r->elements; i++) {
    redisReply *const *chunk = r->element[i]->element;
    int n = ones((uint64_t)chunk[5]->integer);
    all += n;
    for (int t = 0; t < TENANTS; t++) got[t] += strncmp(chunk[2]->str, tenants[t], 2) == 0 ? n : 0;
  }
  freeReplyObject(r);
  return all;
}

static void submit_many(int tenant, int first, int jobs, int items) {
  char jid[16];
  for (int i = first; i < first + jobs; i++) {
    snprintf(jid, sizeof jid, "%s-%d", tenants[tenant], i);
    submit_as(jid, items, tenants[tenant], 1, "''", "files");
  }
}

static int all_between(const grants *g, int from, int to) {
  int n = 0;
  for (int t = 0; t < TENANTS; t++) n += g->got[to][t] - g->got[from][t];
  return n;
}

/* In every window of at least so many items each tenant's share is its weight's, to 5 % of the window. */
static void expect_shares(const grants *g, int window) {
  int checked = 0;
  for (int from = 0, to = 0; from < g->n; from++) {
    while (to < g->n && all_between(g, from, to) < window) to++;
    int all = all_between(g, from, to);
    if (all < window) break;
    for (int t = 0; t < TENANTS; t++) {
      int n = g->got[to][t] - g->got[from][t], want = all * weights[t] / 4;
      if (abs(n - want) > all / 20)
        fail_msg("claims %d to %d: tenant %s got %d of %d items, not %d", from, to, tenants[t], n, all, want);
    }
    checked++;
  }
  assert_true(checked > 20);
}

/* One tenant has a hundred times as much waiting as its equal; workers ask for all kinds of numbers. */
static void test_fairness_follows_weights_whatever_is_submitted(void **state) {
  static grants g;
  (void)state;
  SAY("btc_setup weight:cc 2");
  submit_many(0, 0, 96, 1000);
  submit_many(1, 0, 1, 960);
  submit_many(2, 0, 2, 960);
  memset(&g, 0, sizeof g);
  while (g.n < MAX_CLAIMS && g.got[g.n][1] < 900 && g.got[g.n][2] < 1800) {
    char worker[16];
    snprintf(worker, sizeof worker, "w%d#1", g.n % 7);
    memcpy(g.got[g.n + 1], g.got[g.n], sizeof g.got[0]);
    assert_int_not_equal(claim(worker, 1 + g.n * 37 % 64, g.got[g.n + 1]), 0);
    g.n++;
  }
  expect_shares(&g, 1280);
}

/* A tenant that was idle has no credit from before, and the others' backlog is not before it. */
static void test_fairness_for_who_comes_late(void **state) {
  int got[TENANTS] = {0};
  (void)state;
  submit_many(0, 0, 10, 1000);
  for (int i = 0; i < 50; i++) claim("w#1", 64, got);
  assert_int_equal(got[0], 3200);
  submit_many(1, 0, 1, 1000);
  memset(got, 0, sizeof got);
  for (int i = 0; i < 3; i++) claim("w#1", 32, got);
  assert_in_range(got[1], 32, 64);
  for (int i = 0; i < 17; i++) claim("w#1", 32, got);
  assert_in_range(got[1], 640 / 2 - 64, 640 / 2 + 64);
}

/* Redis's clock, on which ageing goes, in ms. */
static int64_t redis_ms(void) {
  long long s = 0, us = 0;
  assert_int_equal(sscanf(SAY("TIME"), "[%lld %lld]", &s, &us), 2);
  return s * 1000 + us / 1000;
}

/* Served when the ageing time has passed since it last was, and no sooner while there is more important work. Said of the moments
 * before and after each call, so that it holds on any machine. */
static void test_fairness_starves_nobody_longer_than_ageing(void **state) {
  const int ageing = 150;
  int served = 0, top[TENANTS] = {0};
  (void)state;
  SAY("btc_setup ageing_ms %d", ageing);
  int64_t before = redis_ms();
  submit_as("bb-low", 1000, "bb", 2, "''", "files");
  int64_t after = redis_ms();
  for (int i = 0; i < 20; i++) {
    char jid[16];
    snprintf(jid, sizeof jid, "aa-%d", i);
    submit_as(jid, 1000, "aa", 0, "''", "files");
  }
  for (int i = 0; i < 600 && served < 6; i++) {
    int got[TENANTS] = {0};
    int64_t from = redis_ms();
    claim("w#1", 4, got);
    int64_t to = redis_ms();
    top[0] += got[0];
    if (from - after > ageing && !got[1]) fail_msg("call %d: not served after %lld ms", i, (long long)(from - after));
    if (to - before < ageing && got[1]) fail_msg("call %d: served after %lld ms", i, (long long)(to - before));
    if (got[1]) {
      served++;
      before = from;
      after = to;
    }
    test_sleep_ms(5);
  }
  assert_int_equal(served, 6);
  assert_true(top[0] > 0);
}

/* ---- a broker and its workers ---- */

static void done_of(cluster *c, const char *const jid[TENANTS], long long done[TENANTS]) {
  SAY("MULTI");
  for (int i = 0; i < TENANTS; i++) redis_say(c->redis, "t", "HGET $job:%s done", jid[i]);
  const char *text = redis_say(c->redis, "t", "EXEC");
  assert_int_equal(sscanf(text, "[%lld %lld %lld]", &done[0], &done[1], &done[2]), 3);
}

/* All the way: expansion of manifests, grants to workers, results. */
static void test_fairness_of_a_broker(void **state) {
  static cluster c;
  static const int items[TENANTS] = {100000, 1000, 2000};
  char jid[TENANTS][80];
  const char *jids[TENANTS] = {jid[0], jid[1], jid[2]};
  long long done[TENANTS] = {0};
  (void)state;
  cluster_start(&c, &(cluster_options){.workers = 2, .stub_us = 1000, .credits = 32});
  server = c.redis;
  SAY("btc_setup weight:cc 2");
  SAY("btc_pause '' test");
  for (int t = 0; t < TENANTS; t++)
    snprintf(jid[t], sizeof jid[t], "%s",
             cluster_submit(&c, cluster_manifest(tenants[t], items[t]), (const char *const[]){"--tenant", tenants[t], NULL}));
  int64_t end = test_now_ms() + 30000;
  while (strcmp(SAY("LLEN $ring::1"), "3") != 0) { /* all three have chunks ready */
    if (test_now_ms() > end) fail_msg("not expanded: %s", SAY("btc_totals"));
    test_sleep_ms(10);
  }
  SAY("btc_resume ''");
  for (end = test_now_ms() + 60000; done[1] < 400; test_sleep_ms(5)) {
    if (test_now_ms() > end) fail_msg("%lld %lld %lld done", done[0], done[1], done[2]);
    done_of(&c, jids, done);
  }
  print_message("%lld, %lld and %lld done\n", done[0], done[1], done[2]);
  if (done[1] < 900 && done[2] < 1800) { /* or the machine stood still for so long that one of them was done with */
    assert_in_range(done[0], done[1] - 128, done[1] + 128);
    assert_in_range(done[2], 2 * done[1] - 192, 2 * done[1] + 192);
  } else {
    assert_true(done[0] < 3 * done[1]);
  }
  cluster_stop(&c);
  server = NULL;
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(test_fairness_follows_weights_whatever_is_submitted, queue_setup, queue_teardown),
    cmocka_unit_test_setup_teardown(test_fairness_for_who_comes_late, queue_setup, queue_teardown),
    cmocka_unit_test_setup_teardown(test_fairness_starves_nobody_longer_than_ageing, queue_setup, queue_teardown),
    cmocka_unit_test(test_fairness_of_a_broker),
};
BTC_TEST_MAIN(tests)
