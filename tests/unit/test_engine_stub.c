/* The stub engine: its captions and faults can be foretold, and its records have the form of a model's. */
#define _GNU_SOURCE
#include "test.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "worker/engine.h"
#include "worker/item.h"

typedef struct answers {
  worker_answer list[8];
  size_t n;
} answers;

static void on_done(void *ctx, uint64_t index, worker_answer *a) {
  answers *all = ctx;
  assert_int_equal(index, all->n % 8);
  worker_answer_clear(&all->list[index]);
  all->list[index] = *a;
  all->n++;
}

static void on_flush(void *ctx) {
  (void)ctx;
}

static worker_engine *engine(const char *faults, const char *roots) {
  btc_worker_options o = btc_worker_options_default();
  worker_engine *e;
  btc_error err;
  o.engine = "stub";
  o.stub_faults = faults;
  o.roots = roots;
  if (engine_stub_create(&o, &e, &err) != BTC_OK) fail_msg("%s", err.message);
  return e;
}

static worker_answer run_one(worker_engine *e, const char *spec, const char *params) {
  answers all = {.n = 0};
  btc_error err;
  const worker_sink sink = {.ctx = &all, .done = on_done, .flush = on_flush};
  const worker_item item = {.spec = spec, .params = params};
  if (e->run(e, &item, 1, &sink, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_int_equal(all.n, 1);
  return all.list[0];
}

/* The n-th id whose fault this is. */
static const char *id_with(const char *faults, stub_fault wanted) {
  static char id[32];
  stub_faults f;
  btc_error err;
  assert_int_equal(stub_faults_parse(faults, &f, &err), BTC_OK);
  for (int i = 0; i < 100000; i++) {
    snprintf(id, sizeof id, "id-%d", i);
    if (stub_fault_of(&f, id) == wanted) return id;
  }
  fail_msg("no such id");
  return NULL;
}

static const char *spec_of(const char *id) {
  static char spec[256];
  snprintf(spec, sizeof spec, "{\"id\":\"%s\",\"before\":\"/a.png\",\"after\":\"/b.png\"}", id);
  return spec;
}

static void test_stub_caption_is_a_hash_of_the_item(void **state) {
  (void)state;
  char caption[24], hex[65];
  btc_sha256_hex("/a.png\n/b.png\nx1", 16, hex);
  engine_stub_caption("/a.png", "/b.png", "x1", caption);
  assert_memory_equal(caption, "stub:", 5);
  assert_memory_equal(caption + 5, hex, 16);
  assert_int_equal(caption[21], 0);
}

static void test_stub_record_has_the_form_of_a_models(void **state) {
  (void)state;
  char caption[24];
  worker_engine *e = engine(NULL, NULL);
  worker_answer a =
      run_one(e, "{\"id\":\"x1\",\"before\":\"/a.png\",\"after\":\"/b.png\",\"meta\":{\"k\":[1,2.5]}}", "{\"prompt\":\"what?\"}");
  assert_int_equal(a.outcome, BTC__OUTCOME__OUTCOME_OK);
  assert_string_equal(a.id, "x1");
  json_t *r = json_loads(a.record, JSON_REJECT_DUPLICATES, NULL);
  assert_non_null(r);
  engine_stub_caption("/a.png", "/b.png", "x1", caption);
  assert_string_equal(json_string_value(json_object_get(r, "caption")), caption);
  assert_string_equal(json_string_value(json_object_get(r, "status")), "ok");
  assert_string_equal(json_string_value(json_object_get(r, "id")), "x1");
  assert_string_equal(json_string_value(json_object_get(r, "prompt")), "what?");
  assert_string_equal(json_string_value(json_object_get(json_object_get(r, "model"), "name")), "stub");
  assert_true(json_is_boolean(json_object_get(r, "changed")));
  assert_true(json_is_object(json_object_get(r, "timing_ms")));
  assert_int_equal(json_array_size(json_object_get(json_object_get(r, "meta"), "k")), 2);
  json_decref(r);
  worker_answer_clear(&a);
  e->destroy(e);
}

static void expect_failed(worker_engine *e, const char *spec, const char *params, const char *reason, const char *message) {
  worker_answer a = run_one(e, spec, params);
  assert_int_equal(a.outcome, BTC__OUTCOME__OUTCOME_PERMANENT);
  assert_string_equal(a.reason, reason);
  if (!strstr(a.message, message)) fail_msg("'%s' is not in '%s'", message, a.message);
  json_t *r = json_loads(a.record, 0, NULL);
  assert_string_equal(json_string_value(json_object_get(r, "status")), "failed");
  assert_string_equal(json_string_value(json_object_get(r, "reason")), reason);
  assert_string_equal(json_string_value(json_object_get(r, "message")), a.message);
  json_decref(r);
  worker_answer_clear(&a);
}

static void test_stub_bad_items_fail_for_good(void **state) {
  (void)state;
  worker_engine *e = engine(NULL, NULL);
  expect_failed(e, "{\"id\":\"1\",\"problem\":\"line 3: unknown key 'x'\"}", "", "bad-request", "line 3: unknown key 'x'");
  expect_failed(e, "{\"id\":\"1\",\"before\":\"/a\",\"after\":\"/b\",\"window\":[0,0,1,1]}", "", "bad-request",
                "'window' cuts scenes");
  expect_failed(e, "no json", "", "bad-request", "item");
  expect_failed(e, "{\"id\":\"1\",\"before\":\"/a\"}", "", "bad-request", "'after'");
  expect_failed(e, spec_of("1"), "{\"max_tokens\":0}", "bad-request", "max_tokens");
  expect_failed(e, spec_of("1"), "[]", "bad-request", "parameters");
  e->destroy(e);
  const char *bad = id_with("bad=0.2", STUB_BAD);
  e = engine("bad=0.2", NULL);
  expect_failed(e, spec_of(bad), NULL, "decode", "broken image");
  e->destroy(e);
}

static void test_stub_faults_meet_their_shares(void **state) {
  (void)state;
  stub_faults f;
  btc_error err;
  int n[5] = {0};
  assert_int_equal(stub_faults_parse("crash=0.1,bad=0.2,transient=0.05,hang=0.05", &f, &err), BTC_OK);
  for (int i = 0; i < 20000; i++) {
    char id[16];
    snprintf(id, sizeof id, "%d", i);
    n[stub_fault_of(&f, id)]++;
  }
  const double share[5] = {0.6, 0.1, 0.2, 0.05, 0.05};
  for (int i = 0; i < 5; i++) { /* five standard deviations of the binomial */
    double sd = sqrt(20000 * share[i] * (1 - share[i]));
    assert_true(fabs(n[i] - 20000 * share[i]) < 5 * sd);
  }
}

static void test_stub_faults_text_is_checked(void **state) {
  (void)state;
  stub_faults f;
  btc_error err;
  assert_int_equal(stub_faults_parse("", &f, &err), BTC_OK);
  assert_int_equal(stub_faults_parse(NULL, &f, &err), BTC_OK);
  assert_int_equal(stub_faults_parse("marks=/tmp/x,hang=1e-3", &f, &err), BTC_OK);
  assert_string_equal(f.marks, "/tmp/x");
  static const char *const bad[] = {"crash",     "crash=",    "crash=x",           "crash=1.5",  "crash=-0.1",
                                    "crash=nan", "crush=0.1", "crash=0.6,bad=0.6", "crash=0.1x", "=0.1"};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
    if (stub_faults_parse(bad[i], &f, &err) != BTC_ERR_ARG) fail_msg("'%s' was accepted", bad[i]);
}

static void test_stub_transient_items_fail_once(void **state) {
  (void)state;
  const char *id = id_with("transient=0.2", STUB_TRANSIENT);
  char spec[256], faults[256];
  snprintf(spec, sizeof spec, "%s", spec_of(id));
  worker_engine *e = engine("transient=0.2", NULL);
  for (int i = 0; i < 3; i++) {
    worker_answer a = run_one(e, spec, NULL);
    assert_int_equal(a.outcome, i == 0 ? BTC__OUTCOME__OUTCOME_TRANSIENT : BTC__OUTCOME__OUTCOME_OK);
    assert_non_null(a.record);
    worker_answer_clear(&a);
  }
  e->destroy(e);
  snprintf(faults, sizeof faults, "transient=0.2,marks=%s", test_tmp_dir());
  for (int i = 0; i < 3; i++) { /* a new engine each time, as on another worker */
    e = engine(faults, NULL);
    worker_answer a = run_one(e, spec, NULL);
    assert_int_equal(a.outcome, i == 0 ? BTC__OUTCOME__OUTCOME_TRANSIENT : BTC__OUTCOME__OUTCOME_OK);
    worker_answer_clear(&a);
    e->destroy(e);
  }
}

static void test_stub_crash_is_a_signal(void **state) {
  (void)state;
  const char *id = id_with("crash=0.2", STUB_CRASH);
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) {
    worker_engine *e = engine("crash=0.2", NULL);
    run_one(e, spec_of(id), NULL);
    _exit(0);
  }
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_true(WIFSIGNALED(status));
  assert_true(WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGABRT);
}

static void test_item_paths_must_lie_in_the_roots(void **state) {
  (void)state;
  char dir[200], inside[300], link[300], roots[300], spec[900], outside[300];
  btc_error err;
  snprintf(dir, sizeof dir, "%s", test_tmp_dir());
  snprintf(roots, sizeof roots, "/nowhere:%s/root", dir);
  snprintf(inside, sizeof inside, "%s/root", dir);
  mkdir(inside, 0700);
  snprintf(inside, sizeof inside, "%s/root/a.png", dir);
  snprintf(outside, sizeof outside, "%s/secret.png", dir);
  snprintf(link, sizeof link, "%s/root/link.png", dir);
  assert_int_equal(btc_file_publish(inside, "x", 1, &err), BTC_OK);
  assert_int_equal(btc_file_publish(outside, "x", 1, &err), BTC_OK);
  assert_int_equal(symlink(outside, link), 0);
  assert_true(item_path_allowed(roots, inside));
  assert_true(item_path_allowed(NULL, outside));
  assert_false(item_path_allowed(roots, outside));
  assert_false(item_path_allowed(roots, link));
  snprintf(spec, sizeof spec, "%s/root/missing.png", dir);
  assert_true(item_path_allowed(roots, spec)); /* not there: the engine says so */
  snprintf(spec, sizeof spec, "%s/root/../missing.png", dir);
  assert_false(item_path_allowed(roots, spec));
  snprintf(spec, sizeof spec, "%s/rootless.png", dir);
  assert_false(item_path_allowed(roots, spec));
  worker_engine *e = engine(NULL, roots);
  snprintf(spec, sizeof spec, "{\"id\":\"1\",\"before\":\"%s\",\"after\":\"%s\"}", inside, outside);
  expect_failed(e, spec, NULL, "policy", "outside the folders");
  e->destroy(e);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_stub_caption_is_a_hash_of_the_item),
    cmocka_unit_test(test_stub_record_has_the_form_of_a_models),
    cmocka_unit_test(test_stub_bad_items_fail_for_good),
    cmocka_unit_test(test_stub_faults_meet_their_shares),
    cmocka_unit_test(test_stub_faults_text_is_checked),
    cmocka_unit_test(test_stub_transient_items_fail_once),
    cmocka_unit_test(test_stub_crash_is_a_signal),
    cmocka_unit_test(test_item_paths_must_lie_in_the_roots),
};
BTC_TEST_MAIN(tests)
