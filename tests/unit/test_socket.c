/* Sockets and the outbox over loopback and ipc: delivery, full queues, gone peers, what is refused. */
#define _GNU_SOURCE
#include "test.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "net/outbox.h"
#include "net/socket.h"

#define MS INT64_C(1000000)
enum { PATIENCE_MS = 10000 };

static void *context;

static int setup(void **state) {
  (void)state;
  context = zmq_ctx_new();
  return context ? 0 : -1;
}

static int teardown(void **state) {
  alarm(60); /* a socket that a failed assertion left open would hold this up for ever */
  (void)state;
  int rc = zmq_ctx_term(context);
  alarm(0);
  return rc;
}

static void *router(const char *endpoint, int hwm, char *bound, size_t len) {
  void *s;
  btc_error err;
  if (btc_socket_bind_router(context, endpoint, NULL, hwm, &s, &err) != BTC_OK) fail_msg("%s", err.message);
  btc_socket_endpoint(s, bound, len);
  return s;
}

static void *dealer(const char *endpoint, int hwm) {
  void *s;
  btc_error err;
  if (btc_socket_connect_dealer(context, endpoint, NULL, hwm, &s, &err) != BTC_OK) fail_msg("%s", err.message);
  return s;
}

static void nap(void) {
  nanosleep(&(struct timespec){.tv_nsec = MS}, NULL);
}

/* Waits for a message, at most PATIENCE_MS. */
static btc_message take(void *socket, bool is_router) {
  btc_message m;
  zmq_pollitem_t item = {.socket = socket, .events = ZMQ_POLLIN};
  int64_t end = btc_now_ns() + PATIENCE_MS * MS;
  do {
    zmq_poll(&item, 1, 50);
    if (btc_socket_take(socket, is_router, NULL, &m)) return m;
  } while (btc_now_ns() < end);
  fail_msg("no message came");
  return m;
}

/* A Bye, which is as good as any message. */
static btc_status try_bye(void *socket, const btc_peer_id *to, const char *why, uint64_t req_id) {
  Btc__Bye bye = BTC__BYE__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_BYE);
  bye.why = (char *)why;
  e.bye = &bye;
  e.req_id = req_id;
  return btc_socket_send(socket, to, &e, NULL);
}

/* A DEALER refuses until it is connected. */
static void send_bye(void *socket, const btc_peer_id *to, const char *why, uint64_t req_id) {
  for (int64_t end = btc_now_ns() + PATIENCE_MS * MS; btc_now_ns() < end; nap())
    if (try_bye(socket, to, why, req_id) == BTC_OK) return;
  fail_msg("could not send");
}

static void there_and_back(const char *endpoint) {
  char bound[256];
  void *r = router(endpoint, 100, bound, sizeof bound), *d = dealer(bound, 100);
  send_bye(d, NULL, "hello", 3);
  btc_message m = take(r, true);
  assert_non_null(m.envelope);
  assert_string_equal(m.envelope->bye->why, "hello");
  assert_int_equal(m.req_id, 3);
  assert_int_equal(m.role, BTC_ROLE_ANY);
  assert_string_equal(m.key, "");
  assert_int_equal(try_bye(r, &m.from, "back", 4), BTC_OK);
  btc_message answer = take(d, false);
  assert_string_equal(answer.envelope->bye->why, "back");
  assert_true(btc_peer_id_equal(&m.from, &m.from) && !btc_peer_id_equal(&m.from, &answer.from));
  btc_message_clear(&m);
  btc_message_clear(&answer);
  assert_null(m.envelope);
  btc_socket_close(&d);
  btc_socket_close(&r);
  assert_null(r);
}

static void test_socket_over_loopback(void **state) {
  (void)state;
  there_and_back("tcp://127.0.0.1:*");
}

static void test_socket_over_ipv6_loopback(void **state) {
  (void)state;
  void *s;
  if (btc_socket_bind_router(context, "tcp://[::1]:*", NULL, 1, &s, NULL) != BTC_OK) skip(); /* a machine without IPv6 */
  btc_socket_close(&s);
  there_and_back("tcp://[::1]:*");
}

static void test_socket_over_ipc(void **state) {
  (void)state;
  char endpoint[128];
  snprintf(endpoint, sizeof endpoint, "ipc://%s/s", test_tmp_dir());
  there_and_back(endpoint);
}

static void test_socket_names_its_port(void **state) {
  (void)state;
  char bound[64], small[8];
  void *r = router("tcp://127.0.0.1:*", 1, bound, sizeof bound);
  assert_memory_equal(bound, "tcp://127.0.0.1:", 16);
  assert_true(atoi(bound + 16) > 0);
  assert_string_equal(btc_socket_endpoint(r, small, sizeof small), ""); /* too small a buffer: nothing, not a part */
  btc_socket_close(&r);
}

static void test_socket_refuses_the_world_without_keys(void **state) {
  (void)state;
  static const char *const open[] = {"tcp://*:7411", "tcp://0.0.0.0:7411", "tcp://192.0.2.1:7411", "tcp://[::]:7411",
                                     "tcp://127.example.org:7411"};
  static const char *const nonsense[] = {"", "udp://127.0.0.1:1", "tcp://", "127.0.0.1:7411", "tcp://127.0.0.1"};
  btc_error err;
  void *s;
  for (size_t i = 0; i < sizeof open / sizeof open[0]; i++) {
    assert_int_equal(btc_socket_bind_router(context, open[i], NULL, 1, &s, &err), BTC_ERR_ARG);
    assert_null(s);
    assert_non_null(strstr(err.message, "keygen"));
    assert_non_null(strstr(err.message, open[i]));
    assert_int_equal(btc_socket_connect_dealer(context, open[i], NULL, 1, &s, &err), BTC_ERR_ARG);
  }
  for (size_t i = 0; i < sizeof nonsense / sizeof nonsense[0]; i++)
    assert_int_equal(btc_socket_connect_dealer(context, nonsense[i], NULL, 1, &s, &err), BTC_ERR_ARG);
  assert_int_equal(btc_socket_connect_dealer(context, "tcp://127.0.0.1:70000", NULL, 1, &s, &err), BTC_ERR_ARG);
}

static void test_socket_port_in_use(void **state) {
  (void)state;
  char bound[64];
  void *r = router("tcp://127.0.0.1:*", 1, bound, sizeof bound), *second;
  btc_error err;
  assert_int_equal(btc_socket_bind_router(context, bound, NULL, 1, &second, &err), BTC_ERR_IO);
  assert_non_null(strstr(err.message, bound));
  btc_socket_close(&r);
}

/* The sender learns that a queue is full; nothing vanishes. */
static void test_socket_full_queue_is_a_limit(void **state) {
  (void)state;
#ifdef __SANITIZE_THREAD__ /* every byte that libzmq touches is looked up among its suppressions */
  enum { BIG = 20000 };
#else
  enum { BIG = 200000 };
#endif
  char bound[128], endpoint[128], *big = malloc(BIG + 1);
  snprintf(endpoint, sizeof endpoint, "ipc://%s/full", test_tmp_dir());
  void *r = router(endpoint, 5, bound, sizeof bound), *d = dealer(bound, 5);
  memset(big, 'x', BIG);
  big[BIG] = 0;
  send_bye(d, NULL, "here", 1);
  btc_message m = take(r, true);
  int sent = 0;
  btc_status st = BTC_OK;
  for (; sent < 5000 && st == BTC_OK; sent += st == BTC_OK) st = try_bye(r, &m.from, big, 9); /* d does not read */
  assert_int_equal(st, BTC_ERR_LIMIT);
  assert_true(sent >= 5);
  for (int i = 0; i < sent; i++) {
    btc_message got = take(d, false);
    assert_int_equal(got.req_id, 9);
    btc_message_clear(&got);
  }
  btc_message_clear(&m);
  free(big);
  btc_socket_close(&d);
  btc_socket_close(&r);
}

static void test_socket_gone_peer_is_not_found(void **state) {
  (void)state;
  char bound[128];
  void *r = router("tcp://127.0.0.1:*", 10, bound, sizeof bound), *d = dealer(bound, 10);
  send_bye(d, NULL, "here", 1);
  btc_message m = take(r, true);
  btc_socket_close(&d);
  btc_status st = BTC_OK;
  for (int64_t end = btc_now_ns() + PATIENCE_MS * MS; st != BTC_ERR_NOT_FOUND && btc_now_ns() < end; nap()) {
    st = try_bye(r, &m.from, "?", 2);
    zmq_pollitem_t item = {.socket = r, .events = ZMQ_POLLIN};
    zmq_poll(&item, 1, 1); /* lets the socket see that the pipe ended */
  }
  assert_int_equal(st, BTC_ERR_NOT_FOUND);
  btc_message_clear(&m);
  btc_socket_close(&r);
}

static void test_socket_nobody_there_is_a_limit(void **state) {
  (void)state;
  char endpoint[128];
  snprintf(endpoint, sizeof endpoint, "ipc://%s/nobody", test_tmp_dir());
  void *d = dealer(endpoint, 10);
  assert_int_equal(try_bye(d, NULL, "?", 1), BTC_ERR_LIMIT);
  btc_socket_close(&d);
}

static void send_raw(void *socket, const void *data, size_t len, int flags) {
  int64_t end = btc_now_ns() + PATIENCE_MS * MS;
  while (zmq_send(socket, data, len, flags | ZMQ_DONTWAIT) < 0 && btc_now_ns() < end) nap();
}

static void test_socket_garbage_names_its_req_id(void **state) {
  (void)state;
  char bound[128];
  void *r = router("tcp://127.0.0.1:*", 10, bound, sizeof bound), *d = dealer(bound, 10);
  static const uint8_t no_body[] = {0x08, 1, 0x18, 42}, newer[] = {0x08, 9, 0x10, 9, 0x18, 43, 0x52, 0};
  send_raw(d, "\xff\xff", 2, 0);
  btc_message m = take(r, true);
  assert_null(m.envelope);
  assert_int_equal(m.error.code, BTC_ERR_FORMAT);
  assert_true(m.from.len > 0);
  send_raw(d, no_body, sizeof no_body, 0);
  m = take(r, true);
  assert_null(m.envelope);
  assert_int_equal(m.req_id, 42);
  send_raw(d, newer, sizeof newer, 0);
  m = take(r, true);
  assert_int_equal(m.error.code, BTC_ERR_UNSUPPORTED);
  assert_int_equal(m.req_id, 43);
  send_raw(d, "a", 1, ZMQ_SNDMORE);
  send_raw(d, "b", 1, 0);
  m = take(r, true);
  assert_null(m.envelope);
  assert_non_null(strstr(m.error.message, "3 frames"));
  send_bye(d, NULL, "still here", 1); /* none of it hurt the connection */
  m = take(r, true);
  assert_non_null(m.envelope);
  btc_message_clear(&m);
  btc_socket_close(&d);
  btc_socket_close(&r);
}

/* ---- the outbox ---- */

static void add(btc_outbox *o, const char *why, void *cookie, uint64_t *req_id) {
  Btc__Bye bye = BTC__BYE__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_BYE);
  btc_error err;
  bye.why = (char *)why;
  e.bye = &bye;
  if (btc_outbox_add(o, &e, cookie, &err) != BTC_OK) fail_msg("%s", err.message);
  *req_id = e.req_id;
}

static void expect_bye(void *socket, const char *why, uint64_t session) {
  btc_message m = take(socket, true);
  assert_non_null(m.envelope);
  assert_string_equal(m.envelope->bye->why, why);
  assert_int_equal(m.envelope->session, session);
  btc_message_clear(&m);
}

static void expect_silence(void *socket) {
  btc_message m;
  zmq_pollitem_t item = {.socket = socket, .events = ZMQ_POLLIN};
  zmq_poll(&item, 1, 30);
  assert_false(btc_socket_take(socket, true, NULL, &m));
}

static void test_socket_outbox_sends_again_until_answered(void **state) {
  (void)state;
  char bound[128];
  void *r = router("tcp://127.0.0.1:*", 10, bound, sizeof bound), *d = dealer(bound, 10), *cookie;
  btc_outbox *o;
  uint64_t a, b;
  int mark;
  send_bye(d, NULL, "connected", 1);
  expect_bye(r, "connected", 0);
  assert_int_equal(btc_outbox_create(10, 10000, &o, NULL), BTC_OK);
  add(o, "a", &mark, &a);
  add(o, "b", NULL, &b);
  assert_true(b > a && a != 0);
  int64_t now = 1000 * MS, next = btc_outbox_flush(o, d, NULL, 300, now, NULL);
  expect_bye(r, "a", 300);
  expect_bye(r, "b", 300);
  assert_true(next == now + 500 * MS);
  assert_true(btc_outbox_settle(o, a, &cookie));
  assert_ptr_equal(cookie, &mark);
  assert_false(btc_outbox_settle(o, a, &cookie)); /* answered twice */
  static const int waits[] = {500, 1000, 2000, 4000, 8000, 8000};
  for (size_t i = 0; i < sizeof waits / sizeof waits[0]; i++) {
    assert_true(next == now + waits[i] * MS);
    btc_outbox_flush(o, d, NULL, 300, next - 1, NULL);
    expect_silence(r);
    now = next;
    next = btc_outbox_flush(o, d, NULL, 300, now, NULL);
    expect_bye(r, "b", 300);
  }
  btc_outbox_hurry(o); /* another broker, another session */
  next = btc_outbox_flush(o, d, NULL, 301, now, NULL);
  expect_bye(r, "b", 301);
  assert_true(next == now + 500 * MS);
  assert_true(btc_outbox_delay(o, b, now, 60000));
  assert_true(btc_outbox_flush(o, d, NULL, 301, now + 5000 * MS, NULL) == now + 60000 * MS);
  assert_true(btc_outbox_settle(o, b, NULL));
  assert_int_equal(btc_outbox_count(o), 0);
  assert_int_equal(btc_outbox_bytes(o), 0);
  assert_true(btc_outbox_flush(o, d, NULL, 301, now, NULL) == INT64_MAX);
  btc_outbox_destroy(&o, NULL);
  btc_socket_close(&d);
  btc_socket_close(&r);
}

static int forgotten;

static void forget(void *cookie) {
  forgotten += cookie == &forgotten;
}

static void test_socket_outbox_is_bounded(void **state) {
  (void)state;
  char big[600];
  btc_outbox *o;
  uint64_t id;
  Btc__Bye bye = BTC__BYE__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_BYE);
  btc_error err;
  memset(big, 'x', sizeof big - 1);
  big[sizeof big - 1] = 0;
  assert_int_equal(btc_outbox_create(3, 1000, &o, NULL), BTC_OK);
  add(o, big, &forgotten, &id);
  bye.why = big;
  e.bye = &bye;
  assert_int_equal(btc_outbox_add(o, &e, NULL, &err), BTC_ERR_LIMIT); /* bytes */
  add(o, "b", &forgotten, &id);
  add(o, "c", &forgotten, &id);
  assert_true(btc_outbox_full(o));
  e.req_id = 0;
  bye.why = "d";
  assert_int_equal(btc_outbox_add(o, &e, NULL, &err), BTC_ERR_LIMIT); /* messages */
  btc_outbox_destroy(&o, forget);
  assert_int_equal(forgotten, 3);
}

static void test_socket_outbox_keeps_what_cannot_go(void **state) {
  (void)state;
  char endpoint[128];
  snprintf(endpoint, sizeof endpoint, "ipc://%s/later", test_tmp_dir());
  void *d = dealer(endpoint, 10), *r;
  btc_outbox *o;
  uint64_t id;
  assert_int_equal(btc_outbox_create(3, 1000, &o, NULL), BTC_OK);
  add(o, "a", NULL, &id);
  assert_true(btc_outbox_flush(o, d, NULL, 1, 0, NULL) == 100 * MS);
  char bound[128];
  r = router(endpoint, 10, bound, sizeof bound);
  int64_t now = 100 * MS;
  for (int64_t end = btc_now_ns() + PATIENCE_MS * MS; btc_now_ns() < end; nap(), now += 100 * MS)
    if (btc_outbox_flush(o, d, NULL, 1, now, NULL) == now + 500 * MS) break;
  expect_bye(r, "a", 1);
  btc_outbox_destroy(&o, NULL);
  btc_socket_close(&d);
  btc_socket_close(&r);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(test_socket_over_loopback, setup, teardown),
    cmocka_unit_test_setup_teardown(test_socket_over_ipv6_loopback, setup, teardown),
    cmocka_unit_test_setup_teardown(test_socket_over_ipc, setup, teardown),
    cmocka_unit_test_setup_teardown(test_socket_names_its_port, setup, teardown),
    cmocka_unit_test_setup_teardown(test_socket_refuses_the_world_without_keys, setup, teardown),
    cmocka_unit_test_setup_teardown(test_socket_port_in_use, setup, teardown),
    cmocka_unit_test_setup_teardown(test_socket_full_queue_is_a_limit, setup, teardown),
    cmocka_unit_test_setup_teardown(test_socket_gone_peer_is_not_found, setup, teardown),
    cmocka_unit_test_setup_teardown(test_socket_nobody_there_is_a_limit, setup, teardown),
    cmocka_unit_test_setup_teardown(test_socket_garbage_names_its_req_id, setup, teardown),
    cmocka_unit_test_setup_teardown(test_socket_outbox_sends_again_until_answered, setup, teardown),
    cmocka_unit_test_setup_teardown(test_socket_outbox_is_bounded, setup, teardown),
    cmocka_unit_test_setup_teardown(test_socket_outbox_keeps_what_cannot_go, setup, teardown),
};
BTC_TEST_MAIN(tests)
