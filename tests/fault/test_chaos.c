/*
 * Chaos: what the queue promises (docs/operations.md) while everything around it is killed. Real processes, real Redis with
 * appendfsync always; the checker reads Redis and the sealed files afterwards. The seed is printed; BTCCHAT_SEED repeats one.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <time.h>

#include "cluster.h"
#include "test.h"

typedef struct chaos {
  cluster c;
  uint64_t state;
  int killed, stopped, drained, brokers, redis;
  int64_t wake_ms[CLUSTER_MAX_WORKERS]; /* when a stopped worker goes on, 0: it is not stopped */
} chaos;

/* xorshift64*: reproducible, and nothing else is asked of it. */
static unsigned pick(chaos *x, unsigned n) {
  x->state ^= x->state >> 12;
  x->state ^= x->state << 25;
  x->state ^= x->state >> 27;
  return (unsigned)((x->state * 2685821657736338717u) >> 33) % n;
}

static uint64_t seed(void) {
  const char *text = getenv("BTCCHAT_SEED");
  uint64_t s = text ? strtoull(text, NULL, 10) : (uint64_t)time(NULL);
  print_message("BTCCHAT_SEED=%llu\n", (unsigned long long)s);
  return s ? s : 1;
}

static void revive(chaos *x) {
  for (int i = 0; i < x->c.o.workers; i++) {
    if (x->wake_ms[i] && test_now_ms() >= x->wake_ms[i]) {
      daemon_signal(&x->c.worker[i], SIGCONT);
      x->wake_ms[i] = 0;
    }
    if (!daemon_alive(&x->c.worker[i])) {
      x->wake_ms[i] = 0;
      cluster_start_worker(&x->c, i);
    }
  }
  for (int i = 0; i < x->c.o.brokers; i++)
    if (!daemon_alive(&x->c.broker[i])) cluster_start_broker(&x->c, i);
}

/* One fault: most hit workers, every tenth a broker, every tenth Redis. */
static void hurt(chaos *x) {
  unsigned what = pick(x, 20), w = pick(x, (unsigned)x->c.o.workers);
  if (what < 9) {
    daemon_kill(&x->c.worker[w]);
    x->killed++;
  } else if (what < 14 && !x->wake_ms[w]) {
    daemon_signal(&x->c.worker[w], SIGSTOP);
    x->wake_ms[w] = test_now_ms() + 900 + pick(x, 2500); /* shorter and longer than what counts as dead */
    x->stopped++;
  } else if (what < 16) {
    daemon_signal(&x->c.worker[w], SIGTERM);
    x->drained++;
  } else if (what < 18) {
    daemon_kill(&x->c.broker[pick(x, (unsigned)x->c.o.brokers)]);
    x->brokers++;
  } else {
    redis_server_kill(x->c.redis);
    test_sleep_ms((int)pick(x, 300));
    redis_server_restart(x->c.redis);
    x->redis++;
  }
}

static bool finished(cluster *c, const char *jid) {
  return strcmp(cluster_job(c, jid, "st"), "FIN") == 0;
}

static void test_chaos_loses_and_doubles_nothing(void **state) {
  (void)state;
  static chaos x;
  const char *jid[3];
  x.state = seed();
  cluster_start(&x.c, &(cluster_options){.brokers = 2, .workers = 6, .stub_us = 1500, .credits = 64});
  for (int i = 0; i < 3; i++) {
    char tenant[2] = {(char)('a' + i), 0};
    jid[i] = cluster_submit(&x.c, cluster_manifest(tenant, 20000), (const char *const[]){"--tenant", tenant, NULL});
  }
  int64_t begin = test_now_ms(), quiet = begin + 45000; /* then everybody stays up, and the rest must come to its end */
  while (test_now_ms() < quiet && !(finished(&x.c, jid[0]) && finished(&x.c, jid[1]) && finished(&x.c, jid[2]))) {
    hurt(&x);
    for (int k = 0; k < 4; k++) {
      revive(&x);
      test_sleep_ms(50);
    }
  }
  for (int i = 0; i < x.c.o.workers; i++) x.wake_ms[i] = x.wake_ms[i] ? 1 : 0;
  revive(&x);
  for (int i = 0; i < 3; i++) cluster_wait(&x.c, jid[i], 60000);
  print_message("%d workers killed, %d stopped, %d drained, %d brokers killed, Redis killed %d times, in %.1f s\n", x.killed,
                x.stopped, x.drained, x.brokers, x.redis, (double)(test_now_ms() - begin) / 1000);
  for (int i = 0; i < 3; i++) assert_string_equal(cluster_job(&x.c, jid[i], "done"), "20000");
  cluster_check(&x.c);
  cluster_stop(&x.c);
}

/* 1 % of the items crash the engine, 1 % are bad input, 2 % fail the first time, 0.1 % hang: exactly the crashing, bad and hanging
 * ones end dead. */
static void test_chaos_poison_kills_only_itself(void **state) {
  (void)state;
  static cluster c;
  char faults[256];
  snprintf(faults, sizeof faults, "crash=0.01,bad=0.01,transient=0.02,hang=0.001,marks=%s", test_tmp_dir());
  cluster_start(&c, &(cluster_options){.workers = 3, .stub_us = 200, .credits = 16, .faults = faults, .stall_ms = 1000});
  const char *jid = cluster_submit(&c, cluster_manifest("p", 4000), NULL);
  cluster_wait(&c, jid, 150000);
  cluster_check_dead(&c, jid, "p", 4000, faults);
  cluster_check(&c);
  cluster_stop(&c);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_chaos_loses_and_doubles_nothing),
      cmocka_unit_test(test_chaos_poison_kills_only_itself),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
