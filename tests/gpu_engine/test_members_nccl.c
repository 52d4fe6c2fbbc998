/*
 * Two workers, each with a part of the model on a card of its own (tests/gpu_host/fake), a broker that makes a pipe of them, and
 * tensors by NCCL (tests/gpu_host/fake_nccl): from Hello to captions, which are those of one process.
 */
#define _GNU_SOURCE
#include "test.h"

#include <jansson.h>
#include <stdio.h>

#include "cluster.h"
#include "program.h"
#include "tiny_checkpoint.h"
#include "worker/measure.h"

enum { PATIENCE_MS = 120000 };

static cluster c;

static int set_up(void **state) {
  (void)state;
  setenv("BTCCHAT_BINARY", getenv("BTCCHAT_GPU_HOST"), 1); /* what the cluster starts */
  setenv("FAKE_CUDA", "2", 1);
  setenv("FAKE_NCCL_DIR", test_tmp_dir(), 1);
  setenv("XDG_CACHE_HOME", test_tmp_dir(), 1); /* what workers measure at their first start */
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  cluster_stop(&c);
  return 0;
}

/* A worker that lacks a page of the whole holds a part; two of them have enough. */
static double memory_for_two(void) {
  btc_model *m;
  btc_error err;
  measure_result r;
  const measure_options o = {
      .device = "cuda", .threads = 1, .bf16 = true, .slots = 8, .max_tokens = 128, .places = 40, .class = "t"};
  if (btc_model_open(tiny_checkpoint(), &m, &err) != BTC_OK || measure_member(m, &o, &r, &err) != BTC_OK)
    fail_msg("%s", err.message);
  double mib = ((double)r.whole_bytes - 4096) / 1048576;
  measure_free(&r);
  btc_model_close(&m);
  return mib;
}

static const char *manifest(void) {
  static char path[300];
  const char *source = getenv("BTCCHAT_SOURCE");
  snprintf(path, sizeof path, "%s/pairs.jsonl", test_tmp_dir());
  FILE *f = fopen(path, "we");
  assert_non_null(f);
  fprintf(f, "{\"id\":\"0\",\"before\":\"%s/samples/landsat_before.png\",\"after\":\"%s/samples/landsat_after.png\"}\n", source,
          source);
  assert_int_equal(fclose(f), 0);
  return path;
}

/* The record without its timings; the caller frees. */
static char *record(const char *line) {
  json_t *o = json_loadb(line, strcspn(line, "\n"), 0, NULL);
  assert_non_null(o);
  json_object_del(o, "timing_ms");
  char *text = json_dumps(o, JSON_INDENT(1) | JSON_SORT_KEYS);
  json_decref(o);
  return text;
}

/* A worker that holds a part has no card while it only drives; once its rank runs it tells of that one's. */
static void both_tell_of_their_card(void) {
  size_t seen = 0;
  for (int64_t end = test_now_ms() + PATIENCE_MS; seen < 2 && test_now_ms() < end; test_sleep_ms(100)) {
    program_result r = RUN("workers", "--broker", c.clients, "--json");
    json_t *all = json_loads(r.out, 0, NULL), *w;
    size_t i;
    seen = 0;
    json_array_foreach(all, i, w) {
      const char *name = json_string_value(json_object_get(w, "worker"));
      const char *card = json_string_value(json_object_get(json_array_get(json_object_get(w, "devices"), 0), "name"));
      seen += name && card && strstr(card, strstr(name, "worker1") ? "cuda:1, " : "cuda:0, ");
    }
    json_decref(all);
    program_clear(&r);
  }
  assert_int_equal(seen, 2);
}

static void check(const char *fail, const char *log) {
  const cluster_options o = {.workers = 2,
                             .brokers = 1,
                             .model = tiny_checkpoint(),
                             .device = "cuda:",
                             .memory_mib = memory_for_two(),
                             .form_ms = PATIENCE_MS,
                             .stall_ms = PATIENCE_MS,
                             .dead_ms = 30000,
                             .lease_ms = PATIENCE_MS};
  if (fail) setenv("FAKE_NCCL_FAIL", fail, 1);
  cluster_start(&c, &o);
  const char *jid = cluster_submit(&c, manifest(), (const char *const[]){"--max-tokens", "5", NULL});
  cluster_wait(&c, jid, 2 * PATIENCE_MS);
  daemon_wait_log(&c.worker[0], log, 1000);
  both_tell_of_their_card();
  unsetenv("FAKE_NCCL_FAIL");
  program_result direct = RUN("caption", "--pairs", manifest(), "-m", tiny_checkpoint(), "--device", "cuda", "--max-tokens", "5");
  program_result results = RUN("results", jid, "--broker", c.clients);
  assert_int_equal(direct.code, 0);
  char *want = record(direct.out), *got = record(results.out);
  assert_string_equal(want, got);
  free(want);
  free(got);
  program_clear(&direct);
  program_clear(&results);
}

static void test_members_nccl_give_the_captions(void **state) {
  (void)state;
  check(NULL, "tensors=nccl");
}

/* NCCL never comes about: after two epochs the links take the tensors. */
static void test_members_nccl_goes_back_to_links(void **state) {
  (void)state;
  check("1:init-fail", "tensors=links");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(test_members_nccl_give_the_captions, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_members_nccl_goes_back_to_links, set_up, tear_down),
};

BTC_TEST_MAIN(tests)
