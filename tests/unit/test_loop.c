/* The event loop under an injected clock: nothing here sleeps to make time pass. */
#define _GNU_SOURCE
#include "test.h"

#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

#include "net/loop.h"

#define MS INT64_C(1000000)

typedef struct fixture {
  btc_loop *loop;
  int64_t now_ns;
  char log[256]; /* what was called, in order */
  btc_timer *timer[8];
  int calls;
} fixture;

static int64_t fake_clock(void *ctx) {
  return ((fixture *)ctx)->now_ns;
}

static void setup(fixture *f) {
  *f = (fixture){.now_ns = 1000 * MS};
  assert_int_equal(btc_loop_create(&f->loop, NULL), BTC_OK);
  btc_loop_set_clock(f->loop, fake_clock, f);
}

static void turn(fixture *f) {
  btc_error err;
  if (btc_loop_turn(f->loop, 0, &err) != BTC_OK) fail_msg("%s", err.message);
}

static void note(fixture *f, const char *what) {
  strncat(f->log, what, sizeof f->log - strlen(f->log) - 1);
}

static void note_a(void *ctx) {
  note(ctx, "a");
}

static void note_b(void *ctx) {
  note(ctx, "b");
}

static void note_c(void *ctx) {
  note(ctx, "c");
}

/* ---- timers ---- */

static void test_loop_timers_fire_in_order_of_deadline(void **state) {
  (void)state;
  fixture f;
  setup(&f);
  btc_timer *a = btc_timer_create(f.loop, note_a, &f), *b = btc_timer_create(f.loop, note_b, &f),
            *c = btc_timer_create(f.loop, note_c, &f);
  btc_timer_after_ms(c, 30);
  btc_timer_after_ms(a, 10);
  btc_timer_after_ms(b, 10); /* the same deadline: in the order they were set */
  f.now_ns += 10 * MS - 1;
  turn(&f);
  assert_string_equal(f.log, "");
  f.now_ns += 1;
  turn(&f);
  assert_string_equal(f.log, "ab");
  f.now_ns += 100 * MS;
  turn(&f);
  turn(&f); /* a timer fires once */
  assert_string_equal(f.log, "abc");
  btc_loop_destroy(&f.loop);
}

static void test_loop_timer_set_again_and_stopped(void **state) {
  (void)state;
  fixture f;
  setup(&f);
  btc_timer *a = btc_timer_create(f.loop, note_a, &f), *b = btc_timer_create(f.loop, note_b, &f);
  btc_timer_after_ms(a, 10);
  btc_timer_after_ms(a, 50);
  btc_timer_after_ms(b, 20);
  btc_timer_stop(b);
  btc_timer_stop(b);
  f.now_ns += 30 * MS;
  turn(&f);
  assert_string_equal(f.log, "");
  f.now_ns += 30 * MS;
  turn(&f);
  assert_string_equal(f.log, "a");
  btc_timer_destroy(&a);
  assert_null(a);
  btc_loop_destroy(&f.loop);
}

static void again_at_once(void *ctx) {
  fixture *f = ctx;
  note(f, ".");
  btc_timer_after_ms(f->timer[0], 0);
}

static void test_loop_timer_set_for_now_waits_a_turn(void **state) {
  (void)state;
  fixture f;
  setup(&f);
  f.timer[0] = btc_timer_create(f.loop, again_at_once, &f);
  btc_timer_after_ms(f.timer[0], 0);
  turn(&f);
  turn(&f);
  assert_string_equal(f.log, "..");
  btc_loop_destroy(&f.loop);
}

static void destroy_others(void *ctx) {
  fixture *f = ctx;
  note(f, "x");
  for (int i = 1; i < 8; i++) btc_timer_destroy(&f->timer[i]);
}

static void test_loop_timer_destroyed_by_another(void **state) {
  (void)state;
  fixture f;
  setup(&f);
  for (int i = 0; i < 8; i++) {
    f.timer[i] = btc_timer_create(f.loop, i ? note_a : destroy_others, &f);
    btc_timer_after_ms(f.timer[i], i ? 5 : 1);
  }
  f.now_ns += 50 * MS;
  turn(&f);
  assert_string_equal(f.log, "x");
  btc_loop_destroy(&f.loop);
}

/* Against a plain sorted list: random deadlines, stops and re-settings. */
typedef struct expect {
  fixture *f;
  int64_t due;
} expect;

static void check_due(void *ctx) {
  expect *e = ctx;
  assert_true(e->due >= 0 && e->due <= e->f->now_ns);
  e->due = -1;
  e->f->calls++;
}

static void test_loop_heap_against_a_list(void **state) {
  (void)state;
  enum { N = 200 };
  fixture f;
  static expect e[N];
  btc_timer *t[N];
  unsigned random = 12345;
  setup(&f);
  for (int i = 0; i < N; i++) e[i] = (expect){&f, -1}, t[i] = btc_timer_create(f.loop, check_due, &e[i]);
  for (int step = 0; step < 5000; step++) {
    random = random * 1664525u + 1013904223u;
    int i = (int)((random >> 8) % N);
    if (random >> 28 < 10) {
      e[i].due = f.now_ns + (int64_t)((random >> 4) % 1000) * MS;
      btc_timer_set(t[i], e[i].due);
    } else if (random >> 28 < 12) {
      e[i].due = -1;
      btc_timer_stop(t[i]);
    } else {
      f.now_ns += 20 * MS;
      turn(&f);
      for (int k = 0; k < N; k++) assert_true(e[k].due < 0 || e[k].due > f.now_ns); /* nothing due was left */
    }
  }
  assert_true(f.calls > 500);
  btc_loop_destroy(&f.loop);
}

/* ---- descriptors ---- */

static void on_fd(void *ctx, int events) {
  fixture *f = ctx;
  char text[8];
  snprintf(text, sizeof text, "%d", events);
  note(f, text);
}

static void test_loop_descriptor_events(void **state) {
  (void)state;
  fixture f;
  setup(&f);
  int fd = eventfd(0, EFD_NONBLOCK);
  assert_int_equal(btc_loop_set_fd(f.loop, fd, BTC_LOOP_READ, on_fd, &f, NULL), BTC_OK);
  turn(&f);
  assert_string_equal(f.log, "");
  assert_int_equal(eventfd_write(fd, 1), 0);
  turn(&f);
  assert_string_equal(f.log, "1");
  assert_int_equal(btc_loop_set_fd(f.loop, fd, BTC_LOOP_READ | BTC_LOOP_WRITE, on_fd, &f, NULL), BTC_OK);
  turn(&f);
  assert_string_equal(f.log, "13");
  assert_int_equal(btc_loop_set_fd(f.loop, fd, 0, NULL, NULL, NULL), BTC_OK);
  turn(&f);
  assert_string_equal(f.log, "13");
  close(fd);
  btc_loop_destroy(&f.loop);
}

static void test_loop_hang_up_wakes_reader_and_writer(void **state) {
  (void)state;
  fixture f;
  int ends[2];
  setup(&f);
  assert_int_equal(pipe(ends), 0);
  close(ends[0]); /* nobody reads: POLLERR for the writer */
  assert_int_equal(btc_loop_set_fd(f.loop, ends[1], BTC_LOOP_READ | BTC_LOOP_WRITE, on_fd, &f, NULL), BTC_OK);
  turn(&f);
  assert_string_equal(f.log, "3");
  close(ends[1]);
  btc_loop_destroy(&f.loop);
}

static int pair_fds[2];

static void remove_both(void *ctx, int events) {
  fixture *f = ctx;
  (void)events;
  note(f, "r");
  btc_loop_set_fd(f->loop, pair_fds[0], 0, NULL, NULL, NULL);
  btc_loop_set_fd(f->loop, pair_fds[1], 0, NULL, NULL, NULL);
}

static void test_loop_handler_removes_another_source(void **state) {
  (void)state;
  fixture f;
  setup(&f);
  for (int i = 0; i < 2; i++) {
    pair_fds[i] = eventfd(1, EFD_NONBLOCK);
    btc_loop_set_fd(f.loop, pair_fds[i], BTC_LOOP_READ, remove_both, &f, NULL);
  }
  turn(&f);
  turn(&f);
  assert_string_equal(f.log, "r"); /* the second was ready too, and is not called */
  close(pair_fds[0]);
  close(pair_fds[1]);
  btc_loop_destroy(&f.loop);
}

/* ---- ZeroMQ ---- */

typedef struct chatty {
  fixture *f;
  void *socket;
  int taken;
} chatty;

static bool take(void *ctx) {
  chatty *c = ctx;
  char byte;
  if (zmq_recv(c->socket, &byte, 1, ZMQ_DONTWAIT) < 0) return false;
  c->taken++;
  return true;
}

static void test_loop_drains_a_socket_within_its_budget(void **state) {
  (void)state;
  fixture f;
  setup(&f);
  void *zmq = zmq_ctx_new(), *out = zmq_socket(zmq, ZMQ_PAIR), *in = zmq_socket(zmq, ZMQ_PAIR);
  chatty c = {&f, in, 0};
  int fd = eventfd(1, EFD_NONBLOCK);
  assert_int_equal(zmq_bind(in, "inproc://chatty"), 0);
  assert_int_equal(zmq_connect(out, "inproc://chatty"), 0);
  assert_int_equal(btc_loop_add_zmq(f.loop, in, take, &c, NULL), BTC_OK);
  assert_int_equal(btc_loop_add_zmq(f.loop, in, take, &c, NULL), BTC_ERR_ARG);
  assert_int_equal(btc_loop_set_fd(f.loop, fd, BTC_LOOP_READ, on_fd, &f, NULL), BTC_OK);
  for (int i = 0; i < 600; i++) assert_int_equal(zmq_send(out, "x", 1, 0), 1);
  turn(&f);
  assert_int_equal(c.taken, 256);
  assert_string_equal(f.log, "1"); /* the descriptor had its turn beside it */
  turn(&f);
  turn(&f); /* what is left needs no new message to be seen */
  assert_int_equal(c.taken, 600);
  btc_loop_remove_zmq(f.loop, in);
  zmq_send(out, "x", 1, 0);
  turn(&f);
  assert_int_equal(c.taken, 600);
  zmq_close(out);
  zmq_close(in);
  zmq_ctx_term(zmq);
  close(fd);
  btc_loop_destroy(&f.loop);
}

/* ---- the turn ---- */

static void stop_soon(void *ctx) {
  fixture *f = ctx;
  note(f, "s");
  btc_loop_stop(f->loop);
}

static void test_loop_runs_due_work_before_sleep_until_stopped(void **state) {
  (void)state;
  fixture f;
  setup(&f);
  f.timer[0] = btc_timer_create(f.loop, note_a, &f);
  btc_timer_after_ms(f.timer[0], 0);
  btc_loop_before_sleep(f.loop, stop_soon, &f);
  assert_int_equal(btc_loop_run(f.loop, NULL), BTC_OK);
  assert_string_equal(f.log, "as");
  btc_loop_destroy(&f.loop);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_loop_timers_fire_in_order_of_deadline),
    cmocka_unit_test(test_loop_timer_set_again_and_stopped),
    cmocka_unit_test(test_loop_timer_set_for_now_waits_a_turn),
    cmocka_unit_test(test_loop_timer_destroyed_by_another),
    cmocka_unit_test(test_loop_heap_against_a_list),
    cmocka_unit_test(test_loop_descriptor_events),
    cmocka_unit_test(test_loop_hang_up_wakes_reader_and_writer),
    cmocka_unit_test(test_loop_handler_removes_another_source),
    cmocka_unit_test(test_loop_drains_a_socket_within_its_budget),
    cmocka_unit_test(test_loop_runs_due_work_before_sleep_until_stopped),
};
BTC_TEST_MAIN(tests)
