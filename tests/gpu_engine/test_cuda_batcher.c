/*
 * A batcher over a CUDA device that fails (tests/gpu_host/fake): a device that is lost ends every open item with DEVICE and is
 * never computed on again; memory that runs out costs slots and no item.
 */
#define _GNU_SOURCE
#include "test.h"

#include <stdio.h>

#include "engine/batcher.h"
#include "engine/model.h"
#include "tiny_checkpoint.h"

enum { N = 2 };

typedef struct run {
  btc_model *m;
  btc_batcher *b;
  btc_item items[N];
  const char *paths[N][2];
  btc_result got[N];
  int answers, notes;
} run;

static void on_done(void *ctx, void *tag, btc_result *r) {
  run *f = ctx;
  f->got[(btc_item *)tag - f->items] = *r;
  f->answers++;
}

static void on_note(void *ctx, const char *text) {
  assert_non_null(strstr(text, "out of memory"));
  ((run *)ctx)->notes++;
}

static void begin(run *f) {
  btc_error err = {0};
  *f = (run){0};
  skip_without_shared();
  if (btc_model_open(shared_path("vectors/pair-l0/ckpt"), &f->m, &err) != BTC_OK) fail_msg("%s", err.message);
  for (int i = 0; i < N; i++) {
    f->paths[i][0] = tiny_picture(40 + i, 50, (unsigned)i);
    f->paths[i][1] = tiny_picture(41 + i, 50, (unsigned)i + 1);
    f->items[i] = (btc_item){.images = f->paths[i], .n_images = 2, .max_tokens = 2};
  }
}

/* All items; the at-th call of the runtime from the first step on fails with this code (0: none does). */
static btc_status run_all(run *f, long at, int code) {
  btc_batcher_options o = {.device = "cuda", .threads = 1, .slots = 4, .max_tokens = 2, .done = on_done, .note = on_note, .ctx = f};
  btc_error err = {0};
  btc_status st = BTC_OK;
  char fail[32];
  f->answers = f->notes = 0;
  setenv("FAKE_CUDA_FAIL", "0:0", 1); /* whole again, whatever came before */
  if (btc_batcher_create(f->m, &o, &f->b, &err) != BTC_OK) fail_msg("%s", err.message);
  for (int i = 0; i < N; i++) assert_int_equal(btc_batcher_submit(f->b, &f->items[i], &f->items[i], &err), BTC_OK);
  snprintf(fail, sizeof fail, "%ld:%d", at, code);
  if (code) setenv("FAKE_CUDA_FAIL", fail, 1);
  while (st == BTC_OK && btc_batcher_open(f->b)) st = btc_batcher_step(f->b, &err);
  btc_batcher_destroy(&f->b);
  unsetenv("FAKE_CUDA_FAIL");
  assert_int_equal(f->answers, N);
  return st;
}

static void clear(run *f) {
  for (int i = 0; i < N; i++) btc_result_clear(&f->got[i]);
}

static void test_cuda_batcher_lost_device_ends_all(void **state) {
  (void)state;
  run f;
  int lost = 0;
  begin(&f);
  for (long at = 1; at < 4000; at = at * 12 + 1) {
    btc_status st = run_all(&f, at, 214); /* cudaErrorECCUncorrectable */
    int with_it = 0;
    for (int i = 0; i < N; i++) with_it += f.got[i].status == BTC_ERR_DEVICE;
    assert_true(st == BTC_OK ? with_it == 0 : st == BTC_ERR_DEVICE && with_it > 0);
    for (int i = 0; i < N; i++) assert_true(f.got[i].status == BTC_OK || f.got[i].status == BTC_ERR_DEVICE);
    assert_int_equal(f.notes, 0);
    lost += st == BTC_ERR_DEVICE;
    clear(&f);
  }
  assert_true(lost >= 2);
  btc_model_close(&f.m);
}

static void test_cuda_batcher_short_of_memory_costs_no_item(void **state) {
  (void)state;
  run f;
  int shrunk = 0;
  begin(&f);
  char *expected[N];
  assert_int_equal(run_all(&f, 0, 0), BTC_OK);
  for (int i = 0; i < N; i++) {
    assert_int_equal(f.got[i].status, BTC_OK);
    expected[i] = btc_strdup(f.got[i].text);
  }
  clear(&f);
  for (long at = 1; at < 4000; at = at * 12 + 1) {
    assert_int_equal(run_all(&f, at, 2), BTC_OK); /* cudaErrorMemoryAllocation */
    for (int i = 0; i < N; i++) assert_string_equal(f.got[i].text, expected[i]);
    shrunk += f.notes;
    clear(&f);
  }
  assert_true(shrunk >= 1);
  for (int i = 0; i < N; i++) free(expected[i]);
  btc_model_close(&f.m);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_cuda_batcher_lost_device_ends_all),
    cmocka_unit_test(test_cuda_batcher_short_of_memory_costs_no_item),
};

BTC_TEST_MAIN(tests)
