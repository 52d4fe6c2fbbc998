/*
 * Every golden case beside the checkout through the whole model: f32 within its tolerances and within four times the stated
 * float32 noise, bf16 within its own. Cases are found by their expected.json, so others of the same form are run as well.
 */
#define _GNU_SOURCE
#include "test.h"

#include <dirent.h>
#include <stdio.h>
#include <sys/stat.h>

#include "cli/golden.h"

#define MAX_NOISE 4.0

static void check_case(const char *dir, const golden_options *o) {
  static golden_report r;
  btc_error err = {0};
  if (golden_run(dir, o, &r, &err) != BTC_OK) fail_msg("%s: %s", dir, err.message);
  assert_true(r.runs > 0 && r.n_tensors > 0);
  if (r.n_problems) fail_msg("%s: %d problems, first: %s", dir, r.n_problems, r.problem[0]);
  for (int i = 0; i < r.n_tensors && !o->bf16; i++)
    if (!(r.tensor[i].noise_ratio <= MAX_NOISE)) fail_msg("%s: %s is %.2f times the float32 noise", dir, r.tensor[i].name, r.tensor[i].noise_ratio);
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

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_verify_all_cases_f32),
      cmocka_unit_test(test_verify_all_cases_f32_one_thread),
      cmocka_unit_test(test_verify_all_cases_bf16),
      cmocka_unit_test(test_verify_plain_loops),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
