/* Memory that runs out at every single allocation: opening a model and answering end with a clear error, and nothing leaks (ASan).
 */
#include "test.h"

#include <stdio.h>

#include "engine/engine.h"
#include "tiny_checkpoint.h"

static long allocations, fail_at;

static bool fail_nth(size_t bytes) {
  (void)bytes;
  return ++allocations != fail_at;
}

/* One whole life; returns the first status that is not OK. */
static btc_status caption_once(const char *pair[2], btc_error *err) {
  btc_model *m = NULL;
  btc_session *s = NULL;
  btc_session_options o = btc_session_options_default();
  o.threads = 1;
  o.max_tokens = 4;
  btc_status st = btc_model_open(tiny_checkpoint(), &m, err);
  if (st == BTC_OK) st = btc_session_create(m, &o, &s, err);
  if (st == BTC_OK) {
    btc_item item = {.images = pair, .n_images = 2};
    btc_result r;
    btc_session_run(s, &item, 1, &r, NULL);
    st = r.status;
    *err = r.error;
    btc_result_clear(&r);
  }
  btc_session_destroy(&s);
  btc_model_close(&m);
  return st;
}

static void test_memory_every_allocation_may_fail(void **state) {
  (void)state;
  const char *pair[2] = {tiny_picture(60, 50, 1), tiny_picture(60, 50, 2)};
  btc_error err = {0};
  tiny_checkpoint(); /* written before counting */
  fail_at = 0;
  allocations = 0;
  btc_alloc_hook = fail_nth;
  assert_int_equal(caption_once(pair, &err), BTC_OK);
  long total = allocations;
  assert_true(total > 100);
  for (long n = 1; n <= total; n++) {
    fail_at = n;
    allocations = 0;
    err = (btc_error){0};
    btc_status st = caption_once(pair, &err);
    if (st != BTC_ERR_NOMEM) {
      btc_alloc_hook = NULL;
      fail_msg("allocation %ld of %ld failed, but the status is '%s': %s", n, total, btc_status_text(st), err.message);
    }
    if (!err.message[0]) fail_msg("allocation %ld failed without a message", n);
  }
  btc_alloc_hook = NULL;
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_memory_every_allocation_may_fail),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
