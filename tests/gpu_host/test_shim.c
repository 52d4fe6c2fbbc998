/* The shim itself: right kernels give right results, and each fault it promises to see is seen, with a message. */
#include <sys/wait.h>
#include <unistd.h>

#include "gpu.h"
#include "kernels/cuda/shim/shim_test.h"
#include "shim_kernels.h"

static void assert_caught(int launch, const char *words) {
  btc_shim_quiet(0);
  assert_int_not_equal(launch, 0);
  if (!strstr(btc_shim_message(), words)) fail_msg("'%s' lacks '%s'", btc_shim_message(), words);
}

static void test_shim_shared_memory_and_barrier(void **state) {
  (void)state;
  int x[256], y[256];
  for (int n = 1; n <= 256; n += 51) {
    for (int i = 0; i < n; i++) x[i] = (int)random_u32();
    GPU(shim_reverse(y, x, n));
    for (int i = 0; i < n; i++) assert_int_equal(y[i], x[n - 1 - i]);
  }
}

static void test_shim_forgotten_barrier_shows(void **state) {
  (void)state;
  int x[256], y[256], wrong = 0;
  for (int i = 0; i < 256; i++) x[i] = i;
  for (int round = 0; round < 4; round++) {
    GPU(shim_reverse_no_barrier(y, x, 256));
    for (int i = 0; i < 256; i++) wrong += y[i] != x[255 - i];
  }
  assert_true(wrong > 0);
}

static void test_shim_sees_divergence(void **state) {
  (void)state;
  btc_shim_quiet(1);
  assert_caught(shim_early_exit(64), "never reached");
  btc_shim_quiet(1);
  assert_caught(shim_branch_barrier(64), "a barrier in a branch");
  btc_shim_quiet(1);
  assert_caught(shim_branch_shuffle(32), "a warp operation in a branch");
  btc_shim_quiet(1);
  assert_caught(shim_outside_mask(), "outside mask");
  int x[64] = {1}, y[64]; /* and works again afterwards */
  GPU(shim_reverse(y, x, 64));
  assert_int_equal(y[63], 1);
}

static void test_shim_poisons_shared_memory(void **state) {
  (void)state;
  float y[2] = {0, 0};
  GPU(shim_poison(y));
  assert_true(isnan(y[0]) && isnan(y[1]));
}

static void test_shim_bounds_shared_memory(void **state) {
  (void)state;
  btc_shim_quiet(1);
  assert_caught(shim_too_much_static(), "static shared memory");
#if !defined(__SANITIZE_ADDRESS__) /* there the sanitizer ends the program */
  btc_shim_quiet(1);
  assert_caught(shim_behind_dynamic(48), "behind");
#endif
  btc_shim_quiet(1);
  assert_caught(shim_grid_of_zero(), "cannot be launched");
}

static void test_shim_wants_much_shared_memory_allowed(void **state) {
  (void)state;
  btc_shim_quiet(1);
  assert_caught(shim_much_dynamic(48 << 10, 50000), "without BTC_ALLOW_SHARED");
  btc_shim_quiet(1);
  assert_caught(shim_much_dynamic(50000, 50001), "without BTC_ALLOW_SHARED");
  GPU(shim_much_dynamic(50000, 50000));
  assert_int_not_equal(shim_much_dynamic(164 << 10, 0), 0);
  GPU(shim_static_and_dynamic((163 << 10) - 40000));
  btc_shim_quiet(1);
  assert_caught(shim_static_and_dynamic((163 << 10) - 39999), "together");
}

static void test_shim_wants_early_launches_to_wait(void **state) {
  (void)state;
  int y[32];
  GPU(shim_early(y, 32));
  GPU(shim_late(y));
  btc_shim_quiet(1);
  assert_caught(shim_early(y, 31), "without await_launch_before()");
  btc_shim_quiet(1);
  assert_caught(shim_early(y, 0), "without await_launch_before()");
}

static void test_shim_wants_matrix_rows_aligned(void **state) {
  (void)state;
  GPU(shim_matrix_row(4));
  btc_shim_quiet(1);
  assert_caught(shim_matrix_row(2), "no multiple of 16");
}

/* A device faults there; a child of ours ends. */
static void test_shim_sees_unaligned_vectors(void **state) {
  (void)state;
  float x[8] __attribute__((aligned(16))) = {0, 1, 2, 3, 4, 5, 6, 7}, y[8] __attribute__((aligned(16))) = {0};
  GPU(shim_vector(y, x + 4));
  assert_true(y[0] == 4 && y[3] == 7);
  for (int at = 1; at < 4; at++) {
    pid_t child = fork();
    int status = 0;
    if (child == 0) {
      if (!freopen("/dev/null", "w", stderr)) _exit(0);
      (void)shim_vector(at % 2 ? y + at : y, at % 2 ? x : x + at);
      _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) != 0);
  }
}

/* The parameters of a launch are kept, what they point to is read when the tape is run. */
static void test_shim_tape_repeats(void **state) {
  (void)state;
  int x[4] = {1, 2, 3, 4}, y[4] = {0};
  btc_shim_tape *t = btc_shim_tape_begin();
  GPU(shim_reverse(y, x, 4));
  btc_shim_tape_end();
  assert_int_equal(y[0], 0);
  for (int round = 0; round < 3; round++) {
    x[3] = 10 + round;
    GPU(btc_shim_tape_run(t));
    assert_int_equal(y[0], 10 + round);
  }
  btc_shim_tape_destroy(t);
  GPU(shim_reverse(x, y, 4)); /* done at once again */
  assert_int_equal(x[0], 1);
}

static void test_shim_warp_operations(void **state) {
  (void)state;
  int x[64], y[64], sum = 0;
  for (int i = 0; i < 64; i++) x[i] = i * i;
  GPU(shim_scan(y, x));
  for (int i = 0; i < 64; i++) assert_int_equal(y[i], sum += x[i]);
  unsigned votes[32];
  GPU(shim_votes(votes));
  for (int i = 0; i < 32; i++) assert_int_equal(votes[i], i < 16 ? 120 : 0xaaaaaaaau);
}

static void test_shim_last_block_joins(void **state) {
  (void)state;
  int x[5 * 64], parts[5 * 64], want = 0, sum = -1;
  unsigned arrived = 0;
  for (int i = 0; i < 5 * 64; i++) want += 2 * (x[i] = i * i);
  for (int round = 0; round < 4; round++, sum = -1) {
    GPU(shim_last_block(&sum, parts, &arrived, x, 5));
    assert_int_equal(sum, want);
    assert_int_equal(arrived, 0);
  }
}

static void test_shim_copies_need_their_wait(void **state) {
  (void)state;
  int x[32], y[32];
  for (int i = 0; i < 32; i++) x[i] = i + 1;
  GPU(shim_copies(y, x, 1));
  for (int i = 0; i < 32; i++) assert_int_equal(y[31 - i], i < 30 ? i + 1 : 0);
  GPU(shim_copies(y, x, 0));
  assert_int_equal(y[0], -1);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_shim_shared_memory_and_barrier),
    cmocka_unit_test(test_shim_forgotten_barrier_shows),
    cmocka_unit_test(test_shim_sees_divergence),
    cmocka_unit_test(test_shim_poisons_shared_memory),
    cmocka_unit_test(test_shim_bounds_shared_memory),
    cmocka_unit_test(test_shim_warp_operations),
    cmocka_unit_test(test_shim_copies_need_their_wait),
    cmocka_unit_test(test_shim_wants_much_shared_memory_allowed),
    cmocka_unit_test(test_shim_wants_early_launches_to_wait),
    cmocka_unit_test(test_shim_sees_unaligned_vectors),
    cmocka_unit_test(test_shim_tape_repeats),
    cmocka_unit_test(test_shim_last_block_joins),
    cmocka_unit_test(test_shim_wants_matrix_rows_aligned),
};

BTC_TEST_MAIN(tests)
