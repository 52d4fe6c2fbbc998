/* The broker as a process on a real redis-server; workers and clients are played by the test, message by message. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>

#include "daemon.h"
#include "fake_peer.h"
#include "redis_server.h"
#include "test.h"

#define QUEUE "tb"

enum { PATIENCE_MS = 30000 };

typedef struct world {
  redis_server *redis;
  daemon_process broker;
  char clients[64], workers[64];
} world;

static world w;

/* No lease ends and no peer counts as dead on a loaded machine, unless a test asks for it. */
#define LONG_MS "60000"

static void start_broker(const char *redis, const char *lease, const char *stall, const char *dead) {
  snprintf(w.clients, sizeof w.clients, "tcp://127.0.0.1:%d", test_free_port());
  snprintf(w.workers, sizeof w.workers, "tcp://127.0.0.1:%d", test_free_port());
  const char *args[] = {"broker",  "--redis",   redis,     "--queue", QUEUE, "--name",  "b1",  "--clients",
                        w.clients, "--workers", w.workers, "--http",  "off", "--lease", lease, "--heartbeat",
                        "200",     "--dead",    dead,      "--stall", stall, NULL};
  daemon_init(&w.broker, "broker", args);
  daemon_start(&w.broker);
}

static int set_up(void **state) {
  (void)state;
  w.redis = redis_server_start("always", NULL);
  start_broker(redis_server_url(w.redis), LONG_MS, LONG_MS, LONG_MS);
  daemon_wait_log(&w.broker, "ready clients=", PATIENCE_MS);
  return 0;
}

static int set_up_impatient(void **state) { /* who is silent for two seconds is dead */
  (void)state;
  w.redis = redis_server_start("always", NULL);
  start_broker(redis_server_url(w.redis), LONG_MS, LONG_MS, "2000");
  daemon_wait_log(&w.broker, "ready clients=", PATIENCE_MS);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  daemon_kill(&w.broker);
  redis_server_stop(&w.redis);
  return 0;
}

static const char *say(const char *command) {
  return redis_say(w.redis, QUEUE, "%s", command);
}

static void wait_for(const char *command, const char *reply) {
  for (int64_t end = test_now_ms() + PATIENCE_MS; strcmp(say(command), reply) != 0; test_sleep_ms(10))
    if (test_now_ms() > end) fail_msg("%s: %s in place of %s", command, say(command), reply);
}

static void add_items(int n) {
  for (int i = 0; i < n; i++)
    assert_true(say("XADD $in * json {\"id\":\"x\",\"before\":\"/a.png\",\"after\":\"/b.png\"}")[0] != '!');
  char text[16];
  snprintf(text, sizeof text, "%d", n);
  wait_for("HGET $stat ingested", text);
}

static void expect_ack(fake_peer *p, uint64_t req_id) {
  Btc__Envelope *e = peer_answer(p, req_id, BTC__ENVELOPE__BODY_ACK);
  btc_wire_free(&e);
}

static void expect_nack(fake_peer *p, uint64_t req_id, Btc__NackCode code) {
  Btc__Envelope *e = peer_answer(p, req_id, BTC__ENVELOPE__BODY_NACK);
  assert_int_equal(e->nack->code, code);
  btc_wire_free(&e);
}

/* ---- work ---- */

static void test_broker_carries_an_item_from_in_to_out(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  add_items(1);
  Btc__Envelope *g = peer_grant(p);
  assert_string_equal(g->grant->chunks[0]->items[0]->spec, "{\"id\":\"x\",\"before\":\"/a.png\",\"after\":\"/b.png\"}");
  expect_ack(p, peer_results(p, g->grant->chunks[0], 1, BTC__OUTCOME__OUTCOME_OK));
  assert_string_equal(say("XLEN $out"), "1"); /* acknowledged means written */
  assert_string_equal(say("XLEN $in"), "0");
  assert_string_equal(say("HGET $stat live_jobs"), "0");
  btc_wire_free(&g);
  peer_close(&p);
}

static void test_broker_takes_a_malformed_entry_as_a_failed_item(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  say("XADD $in 5-1 json {\"id\":7}");
  say("XADD $in 5-2 nothing x");
  say("XADD $in 5-3 p garbage");
  say("XADD $in 5-4 json {\"id\":\"x\",\"before\":\"a.png\",\"after\":\"/b.png\"}");
  for (int i = 0; i < 4;) {
    Btc__Envelope *g = peer_grant(p);
    const Btc__Chunk *c = g->grant->chunks[0];
    for (size_t k = 0; k < c->n_items; k++, i++)
      if (!strstr(c->items[k]->spec, "\"problem\"")) fail_msg("taken as an item: %s", c->items[k]->spec);
    btc_wire_free(&g);
  }
  wait_for("XLEN $in", "0");
  peer_close(&p);
}

static void test_broker_repeats_a_grant_until_it_is_acknowledged(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  add_items(1);
  Btc__Envelope *first = peer_expect(p, BTC__ENVELOPE__BODY_GRANT);
  expect_ack(p, peer_beat(p, NULL, 0, 0));
  Btc__Envelope *again = peer_expect(p, BTC__ENVELOPE__BODY_GRANT);
  assert_int_equal(first->req_id, again->req_id);
  assert_int_equal(first->grant->chunks[0]->token, again->grant->chunks[0]->token);
  peer_ack(p, again->req_id);
  for (int i = 0; i < 6; i++) { /* longer than the next repetition would take */
    peer_beat(p, again->grant->chunks[0], 0, (uint64_t)i);
    assert_null(peer_take(p, BTC__ENVELOPE__BODY_GRANT, 250));
  }
  btc_wire_free(&first);
  btc_wire_free(&again);
  peer_close(&p);
}

static void test_broker_counts_results_sent_twice_once(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  add_items(1);
  Btc__Envelope *g = peer_grant(p);
  uint64_t one = peer_results(p, g->grant->chunks[0], 1, BTC__OUTCOME__OUTCOME_OK),
           two = peer_results(p, g->grant->chunks[0], 1, BTC__OUTCOME__OUTCOME_OK);
  expect_ack(p, one);
  expect_ack(p, peer_results(p, g->grant->chunks[0], 1, BTC__OUTCOME__OUTCOME_OK));
  (void)two; /* its answer came before that of the third */
  assert_string_equal(say("XLEN $out"), "1");
  assert_string_equal(say("HGET $stat dup"), "2");
  btc_wire_free(&g);
  peer_close(&p);
}

static void test_broker_parts_captions_from_failures(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  add_items(2);
  for (int done = 0; done < 2;) {
    Btc__Envelope *g = peer_grant(p);
    const Btc__Chunk *c = g->grant->chunks[0];
    for (size_t k = 0; k < c->n_items; k++)
      expect_ack(p,
                 peer_results(p, c, 1u << c->items[k]->off, done++ ? BTC__OUTCOME__OUTCOME_PERMANENT : BTC__OUTCOME__OUTCOME_OK));
    btc_wire_free(&g);
  }
  assert_string_equal(say("HMGET $stat committed dead"), "[1 1]");
  peer_close(&p);
}

/* ---- sessions ---- */

static void test_broker_sends_strangers_to_hello(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers), *thief = peer_open(w.workers);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  thief->session = p->session; /* known, but not of this connection */
  expect_nack(thief, peer_beat(thief, NULL, 0, 0), BTC__NACK_CODE__NACK_SESSION);
  thief->session = 12345;
  expect_nack(thief, peer_beat(thief, NULL, 0, 0), BTC__NACK_CODE__NACK_SESSION);
  expect_ack(p, peer_beat(p, NULL, 0, 0));
  peer_close(&p);
  peer_close(&thief);
}

static void test_broker_has_one_worker_of_a_name(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers), *second = peer_open(w.workers);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  expect_nack(second, peer_say_hello(second, "w1", 2, 32, NULL, 0), BTC__NACK_CODE__NACK_BUSY);
  expect_ack(p, peer_beat(p, NULL, 0, 0));
  test_sleep_ms(4000); /* the first falls silent and is dead: its name is free */
  peer_hello(second, "w1", 2, 32, NULL, 0);
  expect_nack(p, peer_beat(p, NULL, 0, 0), BTC__NACK_CODE__NACK_SESSION);
  peer_close(&p);
  peer_close(&second);
}

static void test_broker_reaps_a_silent_worker(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers), *q = peer_open(w.workers);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  add_items(1);
  Btc__Envelope *g = peer_grant(p), *again = NULL;
  peer_hello(q, "w2", 1, 32, NULL, 0);
  for (int64_t end = test_now_ms() + PATIENCE_MS; !again && test_now_ms() < end;) { /* before the lease ends */
    peer_beat(q, NULL, 0, 0);
    again = peer_take(q, BTC__ENVELOPE__BODY_GRANT, 100);
  }
  assert_non_null(again);
  assert_int_equal(again->grant->chunks[0]->cid, g->grant->chunks[0]->cid);
  assert_true(again->grant->chunks[0]->token > g->grant->chunks[0]->token);
  btc_wire_free(&g);
  btc_wire_free(&again);
  peer_close(&p);
  peer_close(&q);
}

static void test_broker_keeps_leases_over_a_new_hello(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers), *back = peer_open(w.workers);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  add_items(1);
  Btc__Envelope *g = peer_grant(p);
  const Btc__Chunk *c = g->grant->chunks[0];
  Btc__Held held = BTC__HELD__INIT;
  held.cid = c->cid;
  held.token = c->token;
  daemon_kill(&w.broker); /* the worker goes to the next one, which here is the same */
  daemon_start(&w.broker);
  daemon_wait_log(&w.broker, "ready clients=", PATIENCE_MS);
  peer_hello(back, "w1", 1, 32, &held, 1);
  expect_ack(back, peer_beat(back, c, 1, 1));
  assert_null(peer_take(back, BTC__ENVELOPE__BODY_GRANT, 300));
  expect_ack(back, peer_results(back, c, 1, BTC__OUTCOME__OUTCOME_OK));
  assert_string_equal(say("HMGET $stat committed late reaped"), "[1 nil nil]");
  btc_wire_free(&g);
  peer_close(&p);
  peer_close(&back);
}

static void test_broker_gives_lost_grants_out_again(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers), *back = peer_open(w.workers);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  add_items(1);
  Btc__Envelope *g = peer_expect(p, BTC__ENVELOPE__BODY_GRANT); /* dies with the connection */
  daemon_kill(&w.broker);
  daemon_start(&w.broker);
  daemon_wait_log(&w.broker, "ready clients=", PATIENCE_MS);
  peer_hello(back, "w1", 1, 32, NULL, 0);
  Btc__Envelope *again = peer_take(back, BTC__ENVELOPE__BODY_GRANT, PATIENCE_MS); /* not after the lease */
  assert_non_null(again);
  assert_int_equal(again->grant->chunks[0]->cid, g->grant->chunks[0]->cid);
  btc_wire_free(&g);
  btc_wire_free(&again);
  peer_close(&p);
  peer_close(&back);
}

static void test_broker_extends_leases_only_with_progress(void **state) {
  (void)state;
  daemon_kill(&w.broker);
  start_broker(redis_server_url(w.redis), "3000", "2500", LONG_MS);
  daemon_wait_log(&w.broker, "ready clients=", PATIENCE_MS);
  fake_peer *p = peer_open(w.workers);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  add_items(1);
  Btc__Envelope *g = peer_grant(p);
  for (uint64_t i = 0; i < 40; i++) { /* 8 s: more than two leases */
    peer_beat(p, g->grant->chunks[0], 1, i);
    test_sleep_ms(200);
  }
  assert_string_equal(say("HGET $stat reaped"), "nil");
  for (int64_t end = test_now_ms() + PATIENCE_MS;
       strcmp(say("HGET $stat reaped"), "1") != 0;) { /* the same number again and again: hung */
    assert_true(test_now_ms() < end);
    peer_beat(p, g->grant->chunks[0], 1, 40);
    test_sleep_ms(200);
  }
  btc_wire_free(&g);
  peer_close(&p);
}

/* ---- Redis ---- */

static void test_broker_outlives_redis(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  add_items(1);
  Btc__Envelope *g = peer_grant(p);
  redis_server_kill(w.redis);
  uint64_t lost = peer_results(p, g->grant->chunks[0], 1, BTC__OUTCOME__OUTCOME_OK);
  Btc__Envelope *e = peer_take(p, BTC__ENVELOPE__BODY_ACK, 500); /* nothing is acknowledged that is not written */
  for (size_t i = 0; e && i < e->ack->n_req_id; i++) assert_true(e->ack->req_id[i] != lost);
  btc_wire_free(&e);
  redis_server_restart(w.redis);
  for (int64_t end = test_now_ms() + PATIENCE_MS; strcmp(say("XLEN $out"), "1") != 0; test_sleep_ms(200)) {
    assert_true(test_now_ms() < end);
    peer_results(p, g->grant->chunks[0], 1, BTC__OUTCOME__OUTCOME_OK);
  }
  assert_true(daemon_alive(&w.broker));
  btc_wire_free(&g);
  peer_close(&p);
}

static void test_broker_refuses_a_redis_that_evicts(void **state) {
  (void)state;
  daemon_kill(&w.broker);
  say("CONFIG SET maxmemory-policy allkeys-lru");
  start_broker(redis_server_url(w.redis), LONG_MS, LONG_MS, LONG_MS);
  assert_int_equal(daemon_wait(&w.broker, PATIENCE_MS), 1);
  daemon_wait_log(&w.broker, "a queue needs noeviction", 100);
}

static void test_broker_says_that_redis_cannot_be_reached(void **state) {
  (void)state;
  char url[64];
  daemon_kill(&w.broker);
  snprintf(url, sizeof url, "redis://127.0.0.1:%d", test_free_port());
  start_broker(url, LONG_MS, LONG_MS, LONG_MS);
  assert_int_equal(daemon_wait(&w.broker, PATIENCE_MS), 4);
  daemon_wait_log(&w.broker, "Connection refused", 100);
}

static void test_broker_loads_functions_that_were_flushed(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  assert_string_equal(say("FUNCTION FLUSH"), "OK");
  assert_true(say("XADD $in * json {\"id\":\"x\",\"before\":\"/a.png\",\"after\":\"/b.png\"}")[0] != '!');
  Btc__Envelope *g = peer_take(p, BTC__ENVELOPE__BODY_GRANT, PATIENCE_MS);
  if (!g) daemon_show(&w.broker);
  assert_non_null(g);
  btc_wire_free(&g);
  peer_close(&p);
}

/* ---- hostile peers, and the end ---- */

static void test_broker_answers_what_is_no_message(void **state) {
  (void)state;
  static const uint8_t bytes[] = {0x08, 0x01, 0x10, 0x01,
                                  0x18, 0x07, 0xff, 0xff}; /* ver, min_ver, req_id 7, then nothing that ends */
  const char *ends[] = {w.workers, w.clients};
  for (size_t i = 0; i < 2; i++) {
    fake_peer *p = peer_open(ends[i]);
    unsigned seed = 7;
    peer_send_bytes(p, bytes, sizeof bytes);
    expect_nack(p, 7, BTC__NACK_CODE__NACK_BAD);
    for (int k = 0; k < 300; k++) {
      uint8_t noise[64];
      for (size_t j = 0; j < sizeof noise; j++) noise[j] = (uint8_t)(seed = seed * 1103515245u + 12345u, seed >> 16);
      peer_send_bytes(p, noise, (size_t)k % sizeof noise);
    }
    Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_GRANT); /* a broker's own word */
    Btc__Grant grant = BTC__GRANT__INIT;
    e.grant = &grant;
    p->last_req = 1000;
    uint64_t req = peer_send(p, &e);
    Btc__Envelope *a = peer_answer(p, req, BTC__ENVELOPE__BODY_NACK);
    btc_wire_free(&a);
    peer_close(&p);
  }
  assert_true(daemon_alive(&w.broker));
}

static void test_broker_refuses_results_that_are_no_records(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  add_items(1);
  Btc__Envelope *g = peer_grant(p);
  Btc__Results r = BTC__RESULTS__INIT;
  Btc__ItemResult item = BTC__ITEM_RESULT__INIT, *list[] = {&item, &item};
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_RESULTS);
  const char *bad[] = {"", "text", "{\"a\":\n1}", "{\"a\":1}x"};
  r.cid = g->grant->chunks[0]->cid;
  r.token = g->grant->chunks[0]->token;
  r.jid = g->grant->chunks[0]->jid;
  r.items = list;
  r.n_items = 1;
  e.results = &r;
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    item.record = (char *)bad[i];
    expect_nack(p, peer_send(p, &e), BTC__NACK_CODE__NACK_BAD);
  }
  item.record = (char *)"{}";
  item.off = 32;
  expect_nack(p, peer_send(p, &e), BTC__NACK_CODE__NACK_BAD);
  item.off = 0;
  r.n_items = 2; /* one item twice */
  expect_nack(p, peer_send(p, &e), BTC__NACK_CODE__NACK_BAD);
  r.n_items = 0;
  expect_nack(p, peer_send(p, &e), BTC__NACK_CODE__NACK_BAD);
  assert_string_equal(say("XLEN $out"), "0");
  btc_wire_free(&g);
  peer_close(&p);
}

static void test_broker_drains(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  add_items(1);
  Btc__Envelope *g = peer_grant(p);
  uint64_t req = peer_results(p, g->grant->chunks[0], 1, BTC__OUTCOME__OUTCOME_OK);
  expect_ack(p, req);
  daemon_signal(&w.broker, SIGTERM);
  Btc__Envelope *e = peer_expect(p, BTC__ENVELOPE__BODY_NACK);
  assert_int_equal(e->nack->code, BTC__NACK_CODE__NACK_SESSION);
  assert_int_equal(daemon_wait(&w.broker, PATIENCE_MS), 0);
  btc_wire_free(&g);
  btc_wire_free(&e);
  peer_close(&p);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_broker_carries_an_item_from_in_to_out, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_takes_a_malformed_entry_as_a_failed_item, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_repeats_a_grant_until_it_is_acknowledged, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_counts_results_sent_twice_once, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_parts_captions_from_failures, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_sends_strangers_to_hello, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_has_one_worker_of_a_name, set_up_impatient, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_reaps_a_silent_worker, set_up_impatient, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_keeps_leases_over_a_new_hello, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_gives_lost_grants_out_again, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_extends_leases_only_with_progress, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_outlives_redis, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_refuses_a_redis_that_evicts, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_says_that_redis_cannot_be_reached, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_loads_functions_that_were_flushed, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_answers_what_is_no_message, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_refuses_results_that_are_no_records, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_broker_drains, set_up, tear_down),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
