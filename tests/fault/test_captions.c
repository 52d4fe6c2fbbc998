/*
 * The nano model by every way there is: caption --pairs, run -j 2, and a broker with three workers give the same records. And an
 * archive of 500 pairs whose run is killed twenty times ends as if nothing had happened (BTCCHAT_LONG=1: it takes minutes).
 */
#define _GNU_SOURCE
#include <jansson.h>
#include <stdio.h>
#include <unistd.h>

#include "base/base.h"
#include "cluster.h"
#include "program.h"
#include "test.h"

static const char *const samples[] = {"houses", "building", "road", "removed", "unchanged", "landsat"};
enum { SAMPLES = sizeof samples / sizeof samples[0] };

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

/* n pairs of the samples in turn, every seventh with the dates swapped, and one whose image is missing. */
static const char *write_manifest(const char *name, int n) {
  const char *path = path_of(name), *source = getenv("BTCCHAT_SOURCE");
  FILE *f = fopen(path, "we");
  assert_non_null(f);
  for (int i = 0; i < n; i++) {
    const char *s = samples[i % SAMPLES];
    bool swap = i % 7 == 3;
    fprintf(f, "{\"id\":\"%04d\",\"before\":\"%s/samples/%s_%s.png\",\"after\":\"%s/samples/%s_%s.png\"}\n", i, source, s,
            swap ? "after" : "before", source, i == 5 ? "no-such" : s, swap ? "before" : "after");
  }
  assert_int_equal(fclose(f), 0);
  return path;
}

static int by_id(const void *a, const void *b) {
  const json_t *const *x = a, *const *y = b;
  return strcmp(json_string_value(json_object_get(*x, "id")), json_string_value(json_object_get(*y, "id")));
}

/* All records without their timings, in the order of their ids, as one text. The caller frees. */
static char *comparable(const char *lines) {
  json_t *all[1024], *sorted = json_array();
  size_t n = 0;
  for (const char *at = lines; *at; at += strcspn(at, "\n") + (at[strcspn(at, "\n")] == '\n')) {
    json_t *record = json_loadb(at, strcspn(at, "\n"), 0, NULL);
    assert_non_null(record);
    assert_true(n < 1024);
    json_object_del(record, "timing_ms");
    all[n++] = record;
  }
  qsort(all, n, sizeof *all, by_id);
  for (size_t i = 0; i < n; i++) json_array_append_new(sorted, all[i]);
  char *text = json_dumps(sorted, JSON_INDENT(1) | JSON_SORT_KEYS);
  json_decref(sorted);
  assert_non_null(text);
  return text;
}

static char *comparable_file(const char *path) {
  uint8_t *data;
  size_t len;
  btc_error err;
  if (btc_file_read(path, 1 << 24, &data, &len, &err) != BTC_OK) fail_msg("%s", err.message);
  char *text = comparable((const char *)data);
  free(data);
  return text;
}

static void test_captions_are_the_same_by_every_way(void **state) {
  (void)state;
  static cluster c;
  const char *manifest = write_manifest("pairs.jsonl", 40), *out = path_of("out");
  program_result direct = RUN("caption", "--pairs", manifest, "-m", model_path(), "--threads", "1");
  assert_int_equal(direct.code, 3);
  char *want = comparable(direct.out);

  program_result run = RUN("run", manifest, "-o", out, "-j", "2", "-m", model_path());
  if (run.code != 3) fail_msg("run ended with %d: %s", run.code, run.err);
  char *by_run = comparable_file(path_of("out/results.jsonl"));
  assert_string_equal(want, by_run);

  cluster_start(&c, &(cluster_options){.workers = 3, .model = model_path(), .stall_ms = 60000, .dead_ms = 5000, .lease_ms = 30000});
  const char *jid = cluster_submit(&c, manifest, NULL);
  cluster_wait(&c, jid, 120000);
  program_result results = RUN("results", jid, "--broker", c.clients);
  char *by_queue = comparable(results.out);
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
  const char *manifest = write_manifest("killed.jsonl", 500);
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
