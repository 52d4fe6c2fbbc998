/*
 * Links cut one way and both, for as long as heartbeats and leases care about, and flapping: between a worker and the broker, a
 * client and the broker, the broker and Redis. A second worker stays connected. A cut that lasts is noticed within 5 s, whichever
 * way it goes; after healing the cut part is back within 2 s, and nothing is lost or doubled. The long cuts run with BTCCHAT_LONG=1
 * (make test-long). Both bounds get SLACK_MS for a machine that does much else beside.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>

#include "cluster.h"
#include "test.h"

enum { ITEMS = 3000, NOTICED_MS = 5000, BACK_MS = 2000, SLACK_MS = 1000 };

typedef enum where { WORKER, CLIENT, REDIS } where;
static const char *const where_name[] = {"worker-broker", "client-broker", "broker-Redis"};

static void cut(cluster *c, where w, bool forth, bool back) {
  link_set(w == WORKER ? c->worker_link : w == CLIENT ? c->client_link : c->redis_link, forth, back);
}

static int64_t counter(cluster *c, const char *jid, const char *field) {
  return strtoll(cluster_job(c, jid, field), NULL, 10);
}

/* Does the worker behind the link lease chunks? */
static bool worker_serves(cluster *c) {
  const char *incarnation = redis_say(c->redis, "t", "HGET $wk:linked inc");
  return strcmp(redis_say(c->redis, "t", "SCARD $own:linked#%s", incarnation), "0") != 0;
}

static int64_t until(cluster *c, bool (*done)(cluster *, const char *), const char *jid, int ms) {
  int64_t begin = test_now_ms();
  while (!done(c, jid) && test_now_ms() < begin + ms) test_sleep_ms(10);
  return test_now_ms() - begin;
}

static bool serves(cluster *c, const char *jid) {
  (void)jid;
  return worker_serves(c);
}

static bool moves(cluster *c, const char *jid) {
  static int64_t seen = -1;
  int64_t now = counter(c, jid, "done");
  bool moved = seen >= 0 && now > seen;
  seen = moved ? -1 : now;
  return moved;
}

static bool answers(cluster *c, const char *jid) {
  daemon_process status;
  daemon_init(&status, "status", (const char *const[]){"status", jid, "--broker", c->clients, "--timeout", "10", NULL});
  daemon_start(&status);
  return daemon_wait(&status, 15000) == 0;
}

/* The broker took the worker's chunks back, or sees that Redis is away. */
static bool broker_noticed(cluster *c, where w) {
  if (w == REDIS) return daemon_said(&c->broker[0], "redis-down");
  return strtoll(redis_say(c->redis, "t", "HGET $stat reaped"), NULL, 10) > 0;
}

/* A command over the cut link ends by its own deadline and says that the broker cannot be reached (exit code 4). */
static bool client_noticed(cluster *c, const char *jid) {
  daemon_process status;
  daemon_init(&status, "status", (const char *const[]){"status", jid, "--broker", c->clients, "--timeout", "3", NULL});
  daemon_start(&status);
  return daemon_wait(&status, NOTICED_MS + SLACK_MS) == 4;
}

/* -> after how long the cut was noticed; -1: not while it lasted. */
static int64_t stay_cut(cluster *c, where w, const char *jid, int ms) {
  int64_t begin = test_now_ms(), noticed_ms = -1;
  if (w == CLIENT && ms > NOTICED_MS + SLACK_MS - 1 && client_noticed(c, jid)) noticed_ms = test_now_ms() - begin;
  while (test_now_ms() < begin + ms) {
    if (w != CLIENT && noticed_ms < 0 && broker_noticed(c, w)) noticed_ms = test_now_ms() - begin;
    test_sleep_ms(20);
  }
  return noticed_ms;
}

static void run_cut(where w, bool forth, bool back, int ms, int times) {
  static cluster c;
  cluster_start(
      &c,
      &(cluster_options){
          .workers = 2, .stub_us = 4000 + ms, .credits = 8, .links = true, .lease_ms = 10000, .dead_ms = 5000, .stall_ms = 30000});
  int items = ITEMS; /* more than end while it is cut */
  if (times > 10) items = ITEMS * 5;
  if (ms > 3000) items = ms > 10000 ? ITEMS / 2 : ITEMS / 4;
  const char *jid = cluster_submit(&c, cluster_manifest("p", items), NULL);
  int64_t noticed_ms = -1;
  test_sleep_ms(300);
  for (int i = 0; i < times; i++) {
    cut(&c, w, forth, back);
    int64_t this_ms = stay_cut(&c, w, jid, ms);
    if (noticed_ms < 0) noticed_ms = this_ms;
    cut(&c, w, true, true);
    if (i + 1 < times) test_sleep_ms(ms);
  }
  int64_t back_ms = until(&c, w == WORKER ? serves : w == REDIS ? moves : answers, jid, 8000);
  print_message("%s, %s, %d ms x %d: noticed after %lld ms, back after %lld ms\n", where_name[w],
                forth  ? "answers cut"
                : back ? "requests cut"
                       : "both cut",
                ms, times, (long long)noticed_ms, (long long)back_ms);
  if (ms >= NOTICED_MS + SLACK_MS) assert_in_range(noticed_ms, 0, NOTICED_MS + SLACK_MS);
  if (back_ms > BACK_MS + SLACK_MS) cluster_show(&c);
  assert_in_range(back_ms, 0, BACK_MS + SLACK_MS);
  cluster_wait(&c, jid, 120000);
  cluster_check(&c);
  cluster_stop(&c);
}

static bool long_run(void) {
  if (getenv("BTCCHAT_LONG")) return true;
  print_message("skipped: set BTCCHAT_LONG=1\n");
  return false;
}

static void cuts(where w, int ms) {
  run_cut(w, false, false, ms, 1);
  run_cut(w, true, false, ms, 1);
  run_cut(w, false, true, ms, 1);
}

static void test_partition_of_a_worker(void **state) {
  (void)state;
  run_cut(WORKER, false, false, 2000, 1);
  run_cut(WORKER, false, false, 6000, 1);
}

static void test_partition_of_a_worker_one_way(void **state) {
  (void)state;
  run_cut(WORKER, true, false, 6000, 1);
  run_cut(WORKER, false, true, 6000, 1);
}

static void test_partition_of_redis(void **state) {
  (void)state;
  run_cut(REDIS, false, false, 2000, 1);
  run_cut(REDIS, false, true, 6000, 1);
}

static void test_partition_of_a_client(void **state) {
  (void)state;
  run_cut(CLIENT, false, false, 6000, 1);
}

static void test_partition_flapping(void **state) {
  (void)state;
  run_cut(WORKER, false, false, 500, 8);
}

static void test_partition_long_cuts(void **state) {
  (void)state;
  if (!long_run()) skip();
  for (where w = WORKER; w <= REDIS; w++)
    for (int i = 0; i < 3; i++) cuts(w, (const int[]){2000, 6000, 20000}[i]);
}

static void test_partition_long_flapping(void **state) {
  (void)state;
  if (!long_run()) skip();
  for (where w = WORKER; w <= REDIS; w++) run_cut(w, false, false, 500, 30);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_partition_of_a_worker),   cmocka_unit_test(test_partition_of_a_worker_one_way),
      cmocka_unit_test(test_partition_of_redis),      cmocka_unit_test(test_partition_of_a_client),
      cmocka_unit_test(test_partition_flapping),      cmocka_unit_test(test_partition_long_cuts),
      cmocka_unit_test(test_partition_long_flapping),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
