/* Pipes in Redis: every step is a compare-and-swap on the epoch, epochs only grow, and what is gone leaves nothing. */
#include "queue_fixture.h"

static void test_pipe_steps_need_the_epoch(void **state) {
  (void)state;
  EXPECT("[OK 1]", "btc_pipe_plan p1 0 {}");
  EXPECT("[STALE 1]", "btc_pipe_plan p1 0 {}"); /* a second leader that read before */
  EXPECT("[PLAN {} '']", "HMGET $pipe:p1 st plan msg");
  EXPECT("[OK 1]", "btc_pipe_state p1 1 FORM ''");
  EXPECT("[STALE 1]", "btc_pipe_state p1 2 ACTIVE ''");
  EXPECT("[STALE 0]", "btc_pipe_state p2 1 FORM ''");
  EXPECT("[OK 1]", "btc_pipe_state p1 1 ACTIVE ''");
  EXPECT("[OK 1]", "btc_pipe_state p1 1 ACTIVE ''"); /* repeated: the same */
  EXPECT("[NO ACTIVE]", "btc_pipe_state p1 1 FORM ''");
  EXPECT("[OK 2]", "btc_pipe_plan p1 1 {}"); /* planned again: the old epoch is fenced off */
  EXPECT("[STALE 2]", "btc_pipe_state p1 1 BROKEN late");
  EXPECT("PLAN", "HGET $pipe:p1 st");
}

static void test_pipe_broken_goes_on_with_the_next_epoch(void **state) {
  (void)state;
  SAY("btc_pipe_plan p1 0 {}");
  SAY("btc_pipe_plan p2 0 {}");
  SAY("btc_pipe_state p1 1 FORM ''");
  EXPECT("[OK 1]", "btc_pipe_state p1 1 BROKEN why");
  EXPECT("[NO BROKEN]", "btc_pipe_state p1 1 ACTIVE ''"); /* the last Ready came too late */
  EXPECT("[BROKEN why]", "HMGET $pipe:p1 st msg");
  EXPECT("1", "XLEN $ev");
  EXPECT("[OK 3]", "btc_pipe_plan p1 1 {}"); /* epochs are of the queue, not of the pipe */
  EXPECT("[PLAN '']", "HMGET $pipe:p1 st msg");
  EXPECT("0", "btc_pipe_load p1 1 x");
  EXPECT("1", "btc_pipe_load p1 3 5");
  EXPECT("5", "HGET $pipe:p1 load");
}

static void test_pipe_gone_leaves_nothing(void **state) {
  (void)state;
  SAY("btc_pipe_plan p1 0 {}");
  EXPECT("[STALE 1]", "btc_pipe_state p1 7 GONE ''");
  EXPECT("[OK 1]", "btc_pipe_state p1 1 GONE ''");
  EXPECT("0", "EXISTS $pipe:p1 $pipes");
  EXPECT("[]", "btc_pipes");
  EXPECT("[OK 2]", "btc_pipe_plan p1 0 {}"); /* never an epoch again */
  EXPECT_BEGIN("[[p1 2 PLAN ", "btc_pipes");
}

static void test_pipe_refuses(void **state) {
  (void)state;
  EXPECT_BEGIN("!BAD pipe", "btc_pipe_plan p#1 0 {}");
  EXPECT_BEGIN("!BAD pipe", "btc_pipe_plan p1 x {}");
  EXPECT_BEGIN("!BAD pipe", "btc_pipe_plan p1 0");
  EXPECT_BEGIN("!BAD state", "btc_pipe_state p1 0 WHAT ''");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(test_pipe_steps_need_the_epoch, queue_setup, queue_teardown),
    cmocka_unit_test_setup_teardown(test_pipe_broken_goes_on_with_the_next_epoch, queue_setup, queue_teardown),
    cmocka_unit_test_setup_teardown(test_pipe_gone_leaves_nothing, queue_setup, queue_teardown),
    cmocka_unit_test_setup_teardown(test_pipe_refuses, queue_setup, queue_teardown),
};
BTC_TEST_MAIN(tests)
