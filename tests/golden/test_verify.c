/*
 * Every golden case beside the checkout through the whole model: f32 within its tolerances and within four times the stated
 * float32 noise, bf16 within its own. Cases are found by their expected.json, so others of the same form are run as well.
 */
#define _GNU_SOURCE
#include "test.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <sys/stat.h>

#include "cli/golden.h"
#include "recipes.h"

#define MAX_NOISE 4.0

static void check_case(const char *dir, const golden_options *o) {
  static golden_report r;
  btc_error err = {0};
  if (golden_run(dir, o, &r, &err) != BTC_OK) fail_msg("%s: %s", dir, err.message);
  assert_true(r.runs > 0 && r.n_tensors > 0);
  if (r.n_problems) fail_msg("%s: %d problems, first: %s", dir, r.n_problems, r.problem[0]);
  for (int i = 0; i < r.n_tensors && !o->bf16; i++)
    if (!(r.tensor[i].noise_ratio <= MAX_NOISE))
      fail_msg("%s: %s is %.2f times the float32 noise", dir, r.tensor[i].name, r.tensor[i].noise_ratio);
}

static int check_all(const golden_options *o) {
  char root[4096], path[4400];
  struct stat sb;
  int cases = 0;
  skip_without_shared();
  snprintf(root, sizeof root, "%s", shared_path("vectors"));
  DIR *d = opendir(root);
  assert_non_null(d);
  for (struct dirent *e; (e = readdir(d));) {
    snprintf(path, sizeof path, "%s/%s/expected.json", root, e->d_name);
    if (stat(path, &sb) != 0) continue;
    snprintf(path, sizeof path, "%s/%s", root, e->d_name);
    check_case(path, o);
    cases++;
  }
  closedir(d);
  return cases;
}

static void test_verify_all_cases_f32(void **state) {
  (void)state;
  assert_true(check_all(&(golden_options){.device = "cpu"}) >= 6);
}

static void test_verify_all_cases_f32_one_thread(void **state) {
  (void)state;
  assert_true(check_all(&(golden_options){.device = "cpu", .threads = 1}) >= 6);
}

static void test_verify_all_cases_bf16(void **state) {
  (void)state;
  assert_true(check_all(&(golden_options){.device = "cpu", .bf16 = true}) >= 6);
}

/* The reference loops are slow: the largest case (grid 27) is left to the fast path and the operator tests. */
static void test_verify_plain_loops(void **state) {
  static const char *const cases[] = {"pair-l0", "pair-l2", "single", "video", "vila-names"};
  (void)state;
  skip_without_shared();
  for (int i = 0; i < 5; i++) {
    char name[64];
    snprintf(name, sizeof name, "vectors/%s", cases[i]);
    check_case(shared_path(name), &(golden_options){.device = "plain"});
    check_case(shared_path(name), &(golden_options){.device = "plain", .bf16 = true});
  }
}

/* Runs a copy of a case whose list of expected values was edited. */
static void check_edited_in(const char *list, const char *key, json_t *value, const char *problem) {
  static golden_report r;
  btc_error err = {0};
  char dir[512], path[600];
  snprintf(dir, sizeof dir, "%s/edited", test_tmp_dir());
  snprintf(path, sizeof path, "%s/expected.json", dir);
  tree_copy(shared_path("vectors/vila-names"), dir);
  json_t *doc = json_load_file(path, JSON_ALLOW_NUL, NULL);
  assert_non_null(doc);
  assert_int_equal(json_object_set_new(json_array_get(json_object_get(doc, list), 0), key, value), 0);
  assert_int_equal(json_dump_file(doc, path, 0), 0);
  json_decref(doc);
  if (golden_run(dir, &(golden_options){.device = "cpu"}, &r, &err) != BTC_OK) fail_msg("%s", err.message);
  bool said = false;
  for (int i = 0; i < r.n_problems && i < GOLDEN_MAX_PROBLEMS; i++) said |= strstr(r.problem[i], problem) != NULL;
  if (!said) fail_msg("%s: %s", key, r.n_problems ? r.problem[0] : "holds");
  tree_remove(dir);
}

static void check_edited(const char *key, json_t *value, const char *problem) {
  check_edited_in("runs", key, value, problem);
}

static void test_verify_broken_expectations_are_problems(void **state) {
  (void)state;
  skip_without_shared();
  check_edited("ids", json_pack("[i]", 10000000), "no tokens"); /* would be looked up in the embedding */
  check_edited("ids", json_array(), "no ids");
  check_edited("id", json_integer(1), "run without id");
  check_edited("max_new_tokens", json_integer(-1), "max tokens");
  check_edited("positions", json_integer(5), "positions");
  check_edited("prompt", json_integer(5), "no text");
  check_edited("text", json_array(), "no text");
  check_edited("u8_sha256", json_array(), "one hash an image");
  check_edited("tensors", json_pack("{s:i}", "tower.embed", 0), "how exact");
  check_edited_in("error_runs", "images", json_pack("[s]", "none.png"), "reason of its own");
  check_edited_in("error_runs", "images", json_pack("[s]", "images/one.png"), "must fail");
  json_t *many = json_object();
  for (int i = 0; i <= GOLDEN_MAX_TENSORS; i++) {
    char name[16];
    snprintf(name, sizeof name, "t%d", i);
    json_object_set_new(many, name, json_object());
  }
  check_edited("tensors", many, "logits"); /* computed, but nothing says how exact they must be */
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_verify_all_cases_f32),
      cmocka_unit_test(test_verify_all_cases_f32_one_thread),
      cmocka_unit_test(test_verify_all_cases_bf16),
      cmocka_unit_test(test_verify_plain_loops),
      cmocka_unit_test(test_verify_broken_expectations_are_problems),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
