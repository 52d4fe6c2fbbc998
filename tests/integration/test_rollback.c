/* A Redis that comes back without its last writes (queue.md 2.12): the broker's journal makes them again, and the results folder
 * still has each record once. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>

#include "cluster.h"
#include "fake_peer.h"
#include "test.h"

enum { PATIENCE_MS = 40000, CHUNK = 32 };

static cluster c;

static const char *say(const char *command) {
  return redis_say(c.redis, "t", "%s", command);
}

static void wait_for(const char *command, const char *reply) {
  for (int64_t end = test_now_ms() + PATIENCE_MS; strcmp(say(command), reply) != 0; test_sleep_ms(10))
    if (test_now_ms() > end) {
      cluster_show(&c);
      fail_msg("%s: %s in place of %s", command, say(command), reply);
    }
}

/* One inline job of n items, whose records go to files. */
static void submit(const char *jid, int n) {
  static char text[16384];
  int len = snprintf(text, sizeof text, "btc_submit %s inline t 1 '' files '' {} '' '' %d 0 '' '' 0 ''", jid, n);
  for (int i = 0; i < n; i++)
    len += snprintf(text + len, sizeof text - (size_t)len, " {\"id\":\"i%d\",\"before\":\"/a.png\",\"after\":\"/b.png\"}", i);
  assert_true((size_t)len < sizeof text);
  char want[80];
  snprintf(want, sizeof want, "[NEW %s]", jid);
  assert_string_equal(say(text), want);
}

/* Commits a whole chunk; the worker is told that it is safe. Takes g. */
static void commit(fake_peer *p, Btc__Envelope *g) {
  const Btc__Chunk *k = g->grant->chunks[0];
  uint32_t mask = 0;
  for (size_t i = 0; i < k->n_items; i++) mask |= 1u << k->items[i]->off;
  Btc__Envelope *a = peer_answer(p, peer_results(p, k, mask, BTC__OUTCOME__OUTCOME_OK), BTC__ENVELOPE__BODY_ACK);
  btc_wire_free(&a);
  btc_wire_free(&g);
}

static void work_off(fake_peer *p) {
  commit(p, peer_grant(p));
}

static fake_peer *worker(int i) {
  char name[8];
  fake_peer *p = peer_open(c.workers[i]);
  snprintf(name, sizeof name, "w%d", i);
  peer_hello(p, name, 1, CHUNK, NULL, 0);
  return p;
}

static void begin(int brokers) {
  cluster_prepare(&c, &(cluster_options){.brokers = brokers, .lease_ms = 60000, .dead_ms = 60000, .stall_ms = 60000});
  for (int i = 0; i < brokers; i++) {
    cluster_start_broker(&c, i);
    daemon_wait_log(&c.broker[i], "ready clients=", PATIENCE_MS);
  }
}

static void published(const char *jid) {
  char command[80];
  snprintf(command, sizeof command, "HMGET $job:%s st done rec", jid);
  wait_for(command, "[FIN 64 64]");
  cluster_wait(&c, jid, PATIENCE_MS);
}

/* The last commit is taken back: nobody runs its items again, since the worker has forgotten them and holds no lease. */
static void test_rollback_is_made_good(void **state) {
  (void)state;
  begin(1);
  submit("j", 2 * CHUNK);
  fake_peer *p = worker(0);
  work_off(p);
  redis_server_save(c.redis);
  work_off(p);
  wait_for("HMGET $job:j st done rec", "[FIN 64 64]"); /* the sink has written what is taken back */
  redis_server_rollback(c.redis);
  daemon_wait_log(&c.broker[0], "history-restored items=32 commits=1 unknown=0", PATIENCE_MS);
  assert_null(peer_take(p, BTC__ENVELOPE__BODY_GRANT, 500));
  published("j");
  assert_int_equal(cluster_check(&c), 2 * CHUNK);
  peer_close(&p);
  cluster_stop(&c);
}

/* The other broker has committed since, so that `seq` is higher than ever: the missing bit tells. */
static void test_rollback_is_noticed_behind_another_broker(void **state) {
  (void)state;
  begin(2);
  submit("j", 2 * CHUNK);
  fake_peer *p = worker(0);
  work_off(p);
  Btc__Envelope *g = peer_grant(p);
  redis_server_save(c.redis);
  commit(p, g);
  fake_peer *q = worker(1);
  daemon_signal(&c.broker[0], SIGSTOP);
  redis_server_rollback(c.redis);
  submit("k", 2 * CHUNK);
  for (int i = 0; i < 2; i++) work_off(q); /* j's lost chunk is in p's hands as far as Redis knows */
  wait_for("HGET $job:k st", "FIN");
  daemon_signal(&c.broker[0], SIGCONT);
  daemon_wait_log(&c.broker[0], "history-restored items=32 commits=1 unknown=0", PATIENCE_MS);
  published("j");
  published("k");
  assert_int_equal(cluster_check(&c), 4 * CHUNK);
  peer_close(&p);
  peer_close(&q);
  cluster_stop(&c);
}

/* Redis forgets the job too, and its owner submits it again: what was done of it is found when it is there. */
static void test_rollback_waits_for_the_job(void **state) {
  (void)state;
  begin(1);
  submit("i", 2 * CHUNK);
  fake_peer *p = worker(0);
  work_off(p); /* a queue that has counted something */
  redis_server_save(c.redis);
  work_off(p);
  submit("j", 2 * CHUNK);
  for (int i = 0; i < 2; i++) work_off(p);
  redis_server_rollback(c.redis);
  daemon_wait_log(&c.broker[0], "history-lost", PATIENCE_MS);
  wait_for("HGET $job:i st", "FIN");
  say("SET $paused 1"); /* the journal or nobody */
  submit("j", 2 * CHUNK);
  daemon_wait_log(&c.broker[0], "history-restored items=96 commits=3 unknown=0", PATIENCE_MS);
  say("DEL $paused");
  published("i");
  published("j");
  assert_int_equal(cluster_check(&c), 4 * CHUNK);
  peer_close(&p);
  cluster_stop(&c);
}

/* The broker dies in the middle of it: the rest runs again, and nothing is lost or doubled. */
static void test_rollback_cut_short(void **state) {
  (void)state;
  static const char *const points[] = {"recover_sent:1", "recover_repeated:1"};
  for (size_t i = 0; i < sizeof points / sizeof points[0]; i++) {
    char env[64];
    cluster_prepare(&c, &(cluster_options){.workers = 1, .stub_us = 100, .lease_ms = 3000, .dead_ms = 2000});
    snprintf(env, sizeof env, "BTC_FAIL=%s", points[i]);
    daemon_env(&c.broker[0], env);
    cluster_start_broker(&c, 0);
    daemon_wait_log(&c.broker[0], "ready clients=", PATIENCE_MS);
    submit("j", 2 * CHUNK);
    fake_peer *p = worker(0);
    work_off(p);
    redis_server_save(c.redis);
    work_off(p);
    redis_server_rollback(c.redis);
    assert_int_equal(daemon_wait(&c.broker[0], PATIENCE_MS), -SIGKILL);
    c.broker[0].env[0][0] = 0;
    peer_close(&p);
    cluster_start_broker(&c, 0);
    cluster_start_worker(&c, 0); /* a real one */
    published("j");
    cluster_stop(&c);
  }
}

/* With everything moving: two brokers, four workers, a copy of the file as it is being written, and half a second taken back. */
static void test_rollback_under_load(void **state) {
  (void)state;
  enum { ITEMS = 12000 };
  cluster_start(&c, &(cluster_options){.brokers = 2, .workers = 4, .stub_us = 1500, .credits = 64});
  const char *jid = cluster_submit(&c, cluster_manifest("r", ITEMS), NULL);
  for (int round = 0; round < 3; round++) {
    int64_t before = strtol(cluster_job(&c, jid, "done"), NULL, 10), end = test_now_ms() + PATIENCE_MS;
    redis_server_save(c.redis);
    while (strtol(cluster_job(&c, jid, "done"), NULL, 10) < before + 300 && test_now_ms() < end) test_sleep_ms(10);
    redis_server_rollback(c.redis);
    test_sleep_ms(300);
  }
  cluster_wait(&c, jid, 120000);
  assert_true(daemon_said(&c.broker[0], "history-restored") || daemon_said(&c.broker[1], "history-restored"));
  assert_int_equal(cluster_check(&c), ITEMS);
  cluster_stop(&c);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_rollback_is_made_good),      cmocka_unit_test(test_rollback_is_noticed_behind_another_broker),
      cmocka_unit_test(test_rollback_waits_for_the_job), cmocka_unit_test(test_rollback_cut_short),
      cmocka_unit_test(test_rollback_under_load),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
