/*
 * The full-size model over four ranks: each holds the weights of its range, no more and no less (BTCCHAT_LONG=1: it makes a
 * checkpoint of 6.3 GB, unless BTCCHAT_FULL_MODEL names one, and takes minutes).
 */
#include <stdio.h>
#include <unistd.h>

#include "daemon.h"
#include "program.h"
#include "test.h"
#include "tiny_checkpoint.h"
#include "usage.h"
#include "worker/pipe.h"
#include "worker/shard.h"

enum { RANKS = 4, ITEMS = 2, TOKENS = 3, PATIENCE_MS = 120000 };

static const char *full_model(void) {
  static char dir[300];
  const char *given = getenv("BTCCHAT_FULL_MODEL");
  if (given) return given;
  snprintf(dir, sizeof dir, "%s/full", test_tmp_dir());
  program_result r = RUN("bench", "make-model", dir, "--size", "full");
  if (r.code != 0) fail_msg("make-model: %s", r.err);
  program_clear(&r);
  return dir;
}

static void run(pipe_driver *p) {
  static const char *pictures[ITEMS][2];
  static btc_item items[ITEMS];
  static btc_result results[ITEMS];
  btc_error err;
  for (unsigned i = 0; i < ITEMS; i++) {
    for (unsigned k = 0; k < 2; k++) pictures[i][k] = tiny_picture(64, 64, 2 * i + k);
    items[i] = (btc_item){.images = pictures[i], .n_images = 2};
  }
  if (pipe_run(p, items, ITEMS, results, &err) != BTC_OK) fail_msg("%s", err.message);
  for (int i = 0; i < ITEMS; i++) {
    assert_int_equal(results[i].status, BTC_OK);
    btc_result_clear(&results[i]);
  }
}

/* Pages of a rank's weights come in the background. */
static int64_t resident(pid_t pid, int64_t at_least) {
  int64_t have;
  for (int64_t end = test_now_ms() + PATIENCE_MS; (have = usage_mapped(pid, ".safetensors")) < at_least; test_sleep_ms(100))
    if (test_now_ms() > end) break;
  return have;
}

static void test_pipe_full_size_ranks_hold_their_weights_only(void **state) {
  (void)state;
  int cuts[RANKS + 1];
  btc_model *m;
  pipe_driver *p;
  btc_error err;
  if (!getenv("BTCCHAT_LONG")) {
    print_message("skipped: set BTCCHAT_LONG=1\n");
    skip();
  }
  const char *dir = full_model();
  if (btc_model_open(dir, &m, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_int_equal(pipe_even_cuts(m, RANKS, cuts, &err), BTC_OK);
  pipe_options o = pipe_options_default();
  o.program = getenv("BTCCHAT_BINARY");
  o.slots = ITEMS;
  o.max_tokens = TOKENS;
  o.step_ms = 600000;
  if (pipe_create(dir, cuts, RANKS, &o, &p, &err) != BTC_OK) fail_msg("%s", err.message);
  run(p);
  for (int r = 0; r < RANKS; r++) {
    int64_t bytes = 0;
    for (int i = cuts[r]; i < cuts[r + 1]; i++) bytes += btc_block_at(m, i).weight_bytes;
    int64_t have = resident(pipe_get_state(p).pid[r], bytes - bytes / 10);
    print_message("rank %d, blocks %d to %d: %lld MiB of weights, %lld MiB resident\n", r, cuts[r], cuts[r + 1] - 1,
                  (long long)(bytes >> 20), (long long)(have >> 20));
    assert_true(have <= bytes + bytes / 10);
    assert_true(have >= bytes - bytes / 10);
  }
  int64_t own = usage_mapped(getpid(), ".safetensors");
  assert_true(own < (int64_t)64 << 20); /* the driver reads none */
  btc_model_close(&m);
  pipe_destroy(&p);
}

static const struct CMUnitTest tests[] = {cmocka_unit_test(test_pipe_full_size_ranks_hold_their_weights_only)};

BTC_TEST_MAIN(tests)
