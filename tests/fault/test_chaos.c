/*
 * Chaos: what the queue promises (docs/operations.md) while everything around it is killed. Real processes, real Redis with
 * appendfsync always; the checker reads Redis and the sealed files afterwards. The seed is printed; BTCCHAT_SEED repeats one.
 */
#define _GNU_SOURCE
#include <stdio.h>

#include "chaos.h"
#include "test.h"

static bool finished(cluster *c, const char *jid) {
  return strcmp(cluster_job(c, jid, "st"), "FIN") == 0;
}

static void test_chaos_loses_and_doubles_nothing(void **state) {
  (void)state;
  static chaos x;
  const char *jid[3];
  x.state = chaos_seed();
  cluster_start(&x.c, &(cluster_options){.brokers = 2, .workers = 6, .stub_us = 1500, .credits = 64});
  for (int i = 0; i < 3; i++) {
    char tenant[2] = {(char)('a' + i), 0};
    jid[i] = cluster_submit(&x.c, cluster_manifest(tenant, 20000), (const char *const[]){"--tenant", tenant, NULL});
  }
  int64_t begin = test_now_ms(), quiet = begin + 45000; /* then everybody stays up, and the rest must come to its end */
  while (test_now_ms() < quiet && !(finished(&x.c, jid[0]) && finished(&x.c, jid[1]) && finished(&x.c, jid[2]))) {
    chaos_hurt(&x);
    for (int k = 0; k < 4; k++) {
      chaos_revive(&x);
      test_sleep_ms(50);
    }
  }
  chaos_calm(&x);
  for (int i = 0; i < 3; i++) cluster_wait(&x.c, jid[i], 60000);
  chaos_show(&x);
  print_message("in %.1f s\n", (double)(test_now_ms() - begin) / 1000);
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
  cluster_start(&c, &(cluster_options){.workers = 3, .stub_us = 200, .credits = 16, .faults = faults, .stall_ms = 3000});
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
