/*
 * The whole engine through ops/cuda*.c without a GPU: kernels on the shim, products by plain loops, memory the host's (see
 * tests/gpu_host/fake). What this proves is the wiring: every operand's place, type and order; bounds of bf16 and f32; failures.
 */
#define _GNU_SOURCE
#include "test.h"

#include <stdio.h>

#include "cli/golden.h"
#include "ops/ops.h"
#include "tests/gpu_host/fake/fake.h"

static void check_case(const char *dir, bool bf16) {
  static golden_report r;
  btc_error err = {0};
  if (golden_run(dir, &(golden_options){.device = "cuda", .bf16 = bf16}, &r, &err) != BTC_OK) fail_msg("%s: %s", dir, err.message);
  assert_true(r.runs > 0 && r.n_tensors > 0);
  if (r.n_problems) fail_msg("%s: %d problems, first: %s", dir, r.n_problems, r.problem[0]);
}

static void check(const char *name, bool bf16) {
  char relative[64], dir[4096];
  skip_without_shared();
  snprintf(relative, sizeof relative, "vectors/%s", name);
  snprintf(dir, sizeof dir, "%s", shared_path(relative));
  check_case(dir, bf16);
}

static void test_cuda_engine_golden_f32(void **state) {
  (void)state;
  check("pair-l0", false);
}

static void test_cuda_engine_golden_bf16(void **state) {
  (void)state;
  check("pair-l0", true);
}

/* The same with nothing fused by the matrix library. */
static void test_cuda_engine_golden_plain_products(void **state) {
  (void)state;
  setenv("FAKE_CUBLAS_PLAIN", "1", 1);
  check("vila-names", true);
  unsetenv("FAKE_CUBLAS_PLAIN");
}

/* And with none of its algorithms fit for any number of rows: our own kernel takes its place. */
static void test_cuda_engine_golden_without_the_library(void **state) {
  (void)state;
  setenv("FAKE_CUBLAS_NONE", "1", 1);
  fake.n_products = 0;
  check("vila-names", true);
  check("vila-names", false);
  assert_int_equal(fake.n_products, 0);
  unsetenv("FAKE_CUBLAS_NONE");
}

static void test_cuda_engine_no_device_is_said(void **state) {
  (void)state;
  btc_error err = {0};
  btc_backend *b = NULL;
  setenv("FAKE_CUDA", "0", 1);
  btc_backend_options o = {.kind = "cuda", .max_cols = 8};
  assert_int_equal(btc_backend_create(&o, &b, &err), BTC_ERR_UNSUPPORTED);
  assert_non_null(strstr(err.message, "no CUDA device"));
  assert_string_equal(btc_device_choose("auto"), "cpu");
  unsetenv("FAKE_CUDA");
  assert_string_equal(btc_device_choose(NULL), "cuda");
  o.kind = "cuda:7";
  assert_int_equal(btc_backend_create(&o, &b, &err), BTC_ERR_UNSUPPORTED);
  assert_non_null(strstr(err.message, "device 7"));
}

static void test_cuda_engine_device_is_told(void **state) {
  (void)state;
  btc_error err = {0};
  btc_backend *b = NULL;
  btc_device_info d;
  btc_backend_options o = {.kind = "cuda", .max_cols = 8};
  assert_int_equal(btc_backend_create(&o, &b, &err), BTC_OK);
  assert_true(btc_backend_device(b, &d));
  assert_string_equal(d.name, "host shim");
  assert_int_equal(d.index, 0);
  assert_true(d.memory_bytes == (uint64_t)1 << 34 && d.free_bytes == d.memory_bytes / 4 * 3);
  assert_true(d.busy < 0);
  setenv("FAKE_NVML", "93", 1);
  assert_true(btc_backend_device(b, &d));
  assert_true(d.busy == 0.93);
  assert_int_equal(btc_device_query(0, &d, &err), BTC_OK);
  assert_true(d.busy == 0.93);
  unsetenv("FAKE_NVML");
  setenv("FAKE_CUDA_FAIL", "1:214", 1);
  assert_false(btc_backend_device(b, &d));
  unsetenv("FAKE_CUDA_FAIL");
  btc_backend_destroy(&b);
  o.kind = "cpu";
  assert_int_equal(btc_backend_create(&o, &b, &err), BTC_OK);
  assert_false(btc_backend_device(b, &d));
  btc_backend_destroy(&b);
}

/* Every call that can fail, failing: creation either works or says why and leaves nothing behind (ASan). Memory that cannot be
 * pinned is no failure, but is said. */
static void test_cuda_engine_every_failure_of_creation(void **state) {
  (void)state;
  btc_backend_options o = {.kind = "cuda",
                           .max_cols = 8,
                           .max_items = 2,
                           .max_layers = 1,
                           .max_positions = 16,
                           .heads = 2,
                           .head_dim = 8,
                           .picture_side = 4};
  char fail[32];
  int failed = 0, unpinned = 0;
  for (int at = 1; at < 100; at++) {
    btc_backend *b = NULL;
    btc_error err = {0};
    snprintf(fail, sizeof fail, "%d:2", at); /* out of memory */
    setenv("FAKE_CUDA_FAIL", fail, 1);
    btc_status st = btc_backend_create(&o, &b, &err);
    if (st != BTC_OK) assert_int_equal(fake_streams(), 0);
    if (st == BTC_OK) {
      bool said = btc_backend_remark(b) != NULL;
      assert_null(btc_backend_remark(b)); /* once */
      btc_backend_destroy(&b);
      if (!said) break; /* creation makes fewer calls */
      unpinned++;
      continue;
    }
    assert_null(b);
    assert_true(err.message[0]);
    failed++;
  }
  unsetenv("FAKE_CUDA_FAIL");
  assert_true(failed >= 10 && failed < 90 && unpinned >= 2);
}

/* Kernels would read behind the tables. */
static void test_cuda_engine_refuses_more_rows_than_tables(void **state) {
  (void)state;
  btc_error err = {0};
  btc_backend *b = NULL;
  btc_backend_options o = {
      .kind = "cuda", .max_cols = 8, .max_items = 2, .max_layers = 0, .max_positions = 16, .heads = 2, .head_dim = 8};
  assert_int_equal(btc_backend_create(&o, &b, &err), BTC_OK);
  int64_t pos[] = {0, 0, 0}, rows[] = {16, 16, 1};
  btc_op_set_items(b, &(btc_items){.n = 2, .pos = pos, .rows = rows});
  assert_int_equal(btc_backend_finish(b, &err), BTC_OK);
  btc_op_set_items(b, &(btc_items){.n = 3, .pos = pos, .rows = rows});
  assert_int_equal(btc_backend_finish(b, &err), BTC_ERR_INTERNAL);
  assert_non_null(strstr(err.message, "more rows than the tables hold"));
  rows[0] = 17;
  btc_op_set_items(b, &(btc_items){.n = 2, .pos = pos, .rows = rows});
  assert_int_equal(btc_backend_finish(b, &err), BTC_ERR_INTERNAL);
  btc_backend_destroy(&b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_cuda_engine_refuses_more_rows_than_tables),
    cmocka_unit_test(test_cuda_engine_golden_f32),
    cmocka_unit_test(test_cuda_engine_golden_bf16),
    cmocka_unit_test(test_cuda_engine_golden_plain_products),
    cmocka_unit_test(test_cuda_engine_golden_without_the_library),
    cmocka_unit_test(test_cuda_engine_no_device_is_said),
    cmocka_unit_test(test_cuda_engine_device_is_told),
    cmocka_unit_test(test_cuda_engine_every_failure_of_creation),
};

BTC_TEST_MAIN(tests)
