/*
 * The nano model by every way there is: caption --pairs, run -j 2, and a broker with three workers give the same records. And an
 * archive of 500 pairs whose run is killed twenty times ends as if nothing had happened (BTCCHAT_LONG=1: it takes minutes).
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <unistd.h>

#include "base/base.h"
#include "cluster.h"
#include "program.h"
#include "sample_pairs.h"
#include "test.h"

static const char *model_path(void) {
  static char path[300];
  snprintf(path, sizeof path, "%s/models/nano", getenv("BTCCHAT_SOURCE"));
  return path;
}

static const char *path_of(const char *name) {
  static char paths[8][200];
  static int turn;
  char *p = paths[turn++ % 8];
  snprintf(p, sizeof paths[0], "%s/%s", test_tmp_dir(), name);
  return p;
}

static char *comparable_file(const char *path) {
  uint8_t *data;
  size_t len;
  btc_error err;
  if (btc_file_read(path, 1 << 24, &data, &len, &err) != BTC_OK) fail_msg("%s", err.message);
  char *text = records_comparable((const char *)data);
  free(data);
  return text;
}

static void test_captions_are_the_same_by_every_way(void **state) {
  (void)state;
  static cluster c;
  const char *manifest = sample_manifest("pairs.jsonl", 40), *out = path_of("out");
  program_result direct = RUN("caption", "--pairs", manifest, "-m", model_path(), "--threads", "1");
  assert_int_equal(direct.code, 3);
  char *want = records_comparable(direct.out);

  program_result run = RUN("run", manifest, "-o", out, "-j", "2", "-m", model_path());
  if (run.code != 3) fail_msg("run ended with %d: %s", run.code, run.err);
  char *by_run = comparable_file(path_of("out/results.jsonl"));
  assert_string_equal(want, by_run);

  cluster_start(&c, &(cluster_options){.workers = 3, .model = model_path(), .stall_ms = 60000, .dead_ms = 5000, .lease_ms = 30000});
  const char *jid = cluster_submit(&c, manifest, NULL);
  cluster_wait(&c, jid, 120000);
  program_result results = RUN("results", jid, "--broker", c.clients);
  char *by_queue = records_comparable(results.out);
  assert_string_equal(want, by_queue);
  cluster_check(&c);
  cluster_stop(&c);
  program_clear(&direct);
  program_clear(&run);
  program_clear(&results);
  free(want);
  free(by_run);
  free(by_queue);
}

static void test_captions_of_a_killed_run(void **state) {
  (void)state;
  if (!getenv("BTCCHAT_LONG")) {
    print_message("skipped: set BTCCHAT_LONG=1\n");
    skip();
  }
  const char *manifest = sample_manifest("killed.jsonl", 500);
  daemon_process d;
  unsigned random = (unsigned)getpid();
  print_message("seed %u\n", random);
  daemon_init(&d, "calm", (const char *const[]){"run", manifest, "-o", path_of("calm"), "-j", "2", "-m", model_path(), NULL});
  daemon_start(&d);
  assert_int_equal(daemon_wait(&d, 600000), 3);
  daemon_init(&d, "wild", (const char *const[]){"run", manifest, "-o", path_of("wild"), "-j", "2", "-m", model_path(), NULL});
  for (int i = 0; i < 20; i++) {
    random = random * 1664525u + 1013904223u;
    daemon_start(&d);
    test_sleep_ms((int)((random >> 8) % 4000));
    daemon_kill(&d);
  }
  daemon_start(&d);
  assert_int_equal(daemon_wait(&d, 600000), 3);
  char *a = comparable_file(path_of("calm/results.jsonl")), *b = comparable_file(path_of("wild/results.jsonl"));
  assert_string_equal(a, b);
  free(a);
  free(b);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_captions_are_the_same_by_every_way),
      cmocka_unit_test(test_captions_of_a_killed_run),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
