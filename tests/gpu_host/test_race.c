/* The race detector of the shim: kernels that are right pass, and each fault is caught in whatever order the shim runs threads. */
#include "gpu.h"
#include "kernels/cuda/shim/shim_test.h"
#include "race_kernels.h"

enum { ROUNDS = 8 }; /* orders of blocks, warps and lanes */

static int x[256] __attribute__((aligned(16))), y[256];

static void number(void) {
  for (int i = 0; i < 256; i++) x[i] = i;
  memset(y, 0xff, sizeof y);
}

/* `launch` ends with a message of a race; parts of it: the places of both accesses. */
static void assert_race(int launch, const char *words) {
  btc_shim_quiet(0);
  assert_int_not_equal(launch, 0);
  const char *file = strstr(btc_shim_message(), "race_kernels.cc:");
  if (!file || !strstr(btc_shim_message(), words)) fail_msg("'%s' lacks '%s' or a place", btc_shim_message(), words);
  if (strstr(btc_shim_message(), "a race") && !strstr(file + 1, "race_kernels.cc:"))
    fail_msg("'%s' lacks its second place", btc_shim_message());
}

#define CAUGHT(call, words)            \
  do {                                 \
    for (int r = 0; r < ROUNDS; r++) { \
      btc_shim_quiet(1);               \
      assert_race((call), (words));    \
    }                                  \
  } while (0)

#define RIGHT(call)                             \
  do {                                          \
    for (int r = 0; r < ROUNDS; r++) GPU(call); \
  } while (0)

static void test_race_reduction_without_barrier(void **state) {
  (void)state;
  number();
  RIGHT(race_sum(y, x, RACE_RIGHT));
  assert_int_equal(y[0], 63 * 32);
  CAUGHT(race_sum(y, x, SUM_NO_BARRIER), "in shared memory");
}

static void test_race_warp_without_syncwarp(void **state) {
  (void)state;
  number();
  RIGHT(race_reverse(y, x, RACE_RIGHT));
  assert_int_equal(y[32], 63);
  CAUGHT(race_reverse(y, x, REVERSE_NO_SYNCWARP), "in shared memory");
  CAUGHT(race_reverse(y, x, REVERSE_HALF_MASKS), "in shared memory");
  CAUGHT(race_reverse(y, x, REVERSE_SHUFFLE), "in shared memory");
}

static void test_race_buffer_used_again_without_barrier(void **state) {
  (void)state;
  number();
  RIGHT(race_shift(y, x, RACE_RIGHT));
  assert_int_equal(y[0], 0 + 65 + 130 + 195);
  CAUGHT(race_shift(y, x, SHIFT_NO_BARRIER_BEHIND), "in shared memory");
}

static void test_race_between_blocks(void **state) {
  (void)state;
  RIGHT(race_blocks(y, RACE_RIGHT));
  CAUGHT(race_blocks(y, BLOCKS_OVERLAP), "in global memory");
  CAUGHT(race_blocks(y, BLOCKS_READ), "in global memory");
}

static void test_race_last_block_wants_fence_barrier_and_atomic(void **state) {
  (void)state;
  int all = 0, parts[192];
  unsigned arrived = 0;
  number();
  RIGHT(race_last_block(&all, parts, &arrived, x, RACE_RIGHT));
  assert_int_equal(all, 192 * 191);
  RIGHT(race_last_block(&all, parts, &arrived, x, LAST_ONE_FENCE));
  for (int wrong = LAST_NO_FENCE; wrong <= LAST_PLAIN_COUNT; wrong++) {
    arrived = 0;
    for (int r = 0; r < ROUNDS; r++, arrived = 0) {
      btc_shim_quiet(1);
      assert_race(race_last_block(&all, parts, &arrived, x, wrong), "in global memory");
    }
  }
}

static void test_race_copies_want_wait_and_barrier(void **state) {
  (void)state;
  number();
  RIGHT(race_copies(y, x, RACE_RIGHT));
  assert_int_equal(y[63], 64 * (0 + 1 + 2 + 3));
  CAUGHT(race_copies(y, x, COPY_NO_WAIT), "cp.async under way");
  CAUGHT(race_copies(y, x, COPY_WAIT_FOR_OLDER), "cp.async under way");
  CAUGHT(race_copies(y, x, COPY_NO_BARRIER), "in shared memory");
  CAUGHT(race_copies(y, x, COPY_TOO_EARLY), "in shared memory");
}

static void test_race_named_barrier_orders_its_warps_only(void **state) {
  (void)state;
  number();
  RIGHT(race_named(y, x, RACE_RIGHT));
  assert_int_equal(y[0], 63);
  CAUGHT(race_named(y, x, NAMED_OUTSIDER), "in shared memory");
}

static void test_race_atomics_with_plain_accesses(void **state) {
  (void)state;
  RIGHT(race_count(y, RACE_RIGHT));
  assert_int_equal(y[0], 64);
  /* What comes behind a thread's own atomic is behind those that it saw: not caught where thread 0 is the last. */
  int caught = 0;
  btc_shim_quiet(1);
  for (int r = 0; r < ROUNDS; r++)
    if (race_count(y, COUNT_NO_BARRIER) != 0 && strstr(btc_shim_message(), "atomic operation")) caught++;
  btc_shim_quiet(0);
  assert_true(caught > 0);
  CAUGHT(race_count(y, COUNT_PLAIN), "in shared memory");
}

static void test_race_parts_of_a_word_are_their_threads_own(void **state) {
  (void)state;
  unsigned short halves[64];
  unsigned char quarters[64];
  RIGHT(race_pieces(halves, quarters, RACE_RIGHT));
  CAUGHT(race_pieces(halves, quarters, PIECES_OVERLAP), "in global memory");
}

static void test_race_with_the_launch_before(void **state) {
  (void)state;
  number();
  RIGHT(race_early(y, x, RACE_RIGHT));
  assert_int_equal(y[3], 8);
  CAUGHT(race_early(y, x, EARLY_READ), "may still write");
  CAUGHT(race_early(y, x, EARLY_WRITE), "may still use");
  CAUGHT(race_early(y, x, EARLY_CONSTANT), "__ldg");
}

static void test_race_constants_are_not_written(void **state) {
  (void)state;
  number();
  RIGHT(race_constant(y, x, RACE_RIGHT));
  assert_int_equal(y[3], 3);
  CAUGHT(race_constant(y, x, CONSTANT_WRITTEN), "__ldg");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_race_reduction_without_barrier),
    cmocka_unit_test(test_race_warp_without_syncwarp),
    cmocka_unit_test(test_race_buffer_used_again_without_barrier),
    cmocka_unit_test(test_race_between_blocks),
    cmocka_unit_test(test_race_last_block_wants_fence_barrier_and_atomic),
    cmocka_unit_test(test_race_copies_want_wait_and_barrier),
    cmocka_unit_test(test_race_named_barrier_orders_its_warps_only),
    cmocka_unit_test(test_race_atomics_with_plain_accesses),
    cmocka_unit_test(test_race_parts_of_a_word_are_their_threads_own),
    cmocka_unit_test(test_race_with_the_launch_before),
    cmocka_unit_test(test_race_constants_are_not_written),
};

BTC_TEST_MAIN(tests)
