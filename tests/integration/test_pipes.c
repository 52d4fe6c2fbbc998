/* A broker that plans, forms, watches and forms again; the workers are played by the test, message by message. */
#include <inttypes.h>
#include <stdio.h>

#include "daemon.h"
#include "fake_peer.h"
#include "program.h"
#include "redis_server.h"
#include "test.h"

#define QUEUE "tp"

typedef struct world {
  redis_server *redis;
  daemon_process broker[2];
  char clients[2][64], workers[2][64];
} world;

static world w;

static void start_broker(int i) {
  static const char *const names[] = {"b0", "b1"};
  snprintf(w.clients[i], sizeof w.clients[i], "tcp://127.0.0.1:%d", test_free_port());
  snprintf(w.workers[i], sizeof w.workers[i], "tcp://127.0.0.1:%d", test_free_port());
  const char *args[] = {"broker",    "--redis",     redis_server_url(w.redis),
                        "--queue",   QUEUE,         "--name",
                        names[i],    "--clients",   w.clients[i],
                        "--workers", w.workers[i],  "--http",
                        "off",       "--heartbeat", "500",
                        "--dead",    "2000",        "--pipe-form",
                        "1500",      NULL};
  daemon_init(&w.broker[i], "broker", args);
  daemon_start(&w.broker[i]);
  daemon_wait_log(&w.broker[i], "ready clients=", 40000);
}

static int set_up(void **state) {
  (void)state;
  memset(&w, 0, sizeof w);
  w.redis = redis_server_start(NULL, NULL);
  start_broker(0);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  for (int i = 0; i < 2; i++)
    if (*w.clients[i]) daemon_kill(&w.broker[i]);
  redis_server_stop(&w.redis);
  return 0;
}

static const char *say(const char *command) {
  return redis_say(w.redis, QUEUE, "%s", command);
}

static void wait_for(const char *command, const char *reply) {
  for (int64_t end = test_now_ms() + 40000; strcmp(say(command), reply) != 0; test_sleep_ms(10))
    if (test_now_ms() > end) fail_msg("%s: %s in place of %s", command, say(command), reply);
}

/* ---- members: 12 language blocks of 10 bytes ---- */

static fake_peer *join_on(int broker, const char *name, uint64_t incarnation, uint64_t memory, const char *class, uint32_t nccl,
                          const char *card) {
  fake_peer *p = peer_open(w.workers[broker]);
  Btc__Hello hello = BTC__HELLO__INIT;
  Btc__PipeBlock block = BTC__PIPE_BLOCK__INIT, *blocks = &block;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_HELLO);
  block.kind = 4;
  block.count = 12;
  block.weight_bytes = 10;
  block.price = 1;
  block.ms = 5;
  hello.worker = (char *)name;
  hello.incarnation = incarnation;
  hello.model_class = (char *)class;
  hello.engine = (char *)"stub";
  hello.credits = 4;
  hello.blocks = &blocks;
  hello.n_blocks = 1;
  hello.memory_bytes = memory;
  hello.slots = 1;
  hello.endpoint = (char *)"127.0.0.1:9";
  hello.nccl = nccl;
  hello.card = (char *)card;
  e.hello = &hello;
  peer_send(p, &e);
  Btc__Envelope *welcome = peer_expect(p, BTC__ENVELOPE__BODY_WELCOME);
  p->session = welcome->welcome->session;
  snprintf(p->name, sizeof p->name, "%s", name);
  btc_wire_free(&welcome);
  return p;
}

static fake_peer *join_with(int broker, const char *name, uint64_t incarnation, uint64_t memory, const char *class) {
  return join_on(broker, name, incarnation, memory, class, 0, "");
}

static fake_peer *join(const char *name) {
  return join_with(0, name, 1, 60, "m");
}

typedef struct order { /* a PipeForm, as far as tests look at it */
  char pipe[33];
  uint64_t epoch;
  uint32_t rank, first, last;
  size_t ranks;
  bool nccl;
} order;

/* Heartbeats keep members alive while a test waits. */
static Btc__Envelope *take(fake_peer *p, fake_peer *const *others, int n, Btc__Envelope__BodyCase body) {
  for (int64_t end = test_now_ms() + 40000; test_now_ms() < end;) {
    for (int i = 0; i < n; i++)
      if (others[i]) peer_beat(others[i], NULL, 0, 0);
    Btc__Envelope *e = peer_take(p, body, 300);
    if (e) {
      peer_ack(p, e->req_id);
      return e;
    }
  }
  fail_msg("%s: nothing came", p->name);
  return NULL;
}

static order take_form(fake_peer *p, fake_peer *const *others, int n) {
  Btc__Envelope *e = take(p, others, n, BTC__ENVELOPE__BODY_PIPE_FORM);
  const Btc__PipeForm *f = e->pipe_form;
  order o = {.epoch = f->epoch, .rank = f->rank, .ranks = f->n_ranks, .nccl = f->nccl};
  snprintf(o.pipe, sizeof o.pipe, "%s", f->pipe);
  assert_int_equal(f->secret.len, 32);
  assert_true(f->rank < f->n_ranks);
  assert_string_equal(f->ranks[f->rank]->worker, p->name);
  assert_string_equal(f->ranks[f->rank]->endpoint, "127.0.0.1:9");
  o.first = f->ranks[f->rank]->first;
  o.last = f->ranks[f->rank]->last;
  btc_wire_free(&e);
  return o;
}

static void say_ready(fake_peer *p, const order *o) {
  Btc__PipeReady m = BTC__PIPE_READY__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_PIPE_READY);
  m.pipe = (char *)o->pipe;
  m.epoch = o->epoch;
  m.rank = o->rank;
  e.pipe_ready = &m;
  Btc__Envelope *a = peer_answer(p, peer_send(p, &e), BTC__ENVELOPE__BODY_ACK);
  btc_wire_free(&a);
}

static void expect_go(fake_peer *p, fake_peer *const *all, int n, uint64_t epoch) {
  Btc__Envelope *e = take(p, all, n, BTC__ENVELOPE__BODY_PIPE_GO);
  assert_int_equal(e->pipe_go->epoch, epoch);
  btc_wire_free(&e);
}

static void expect_abort(fake_peer *p, fake_peer *const *all, int n, uint64_t epoch) {
  Btc__Envelope *e = take(p, all, n, BTC__ENVELOPE__BODY_PIPE_ABORT);
  assert_int_equal(e->pipe_abort->epoch, epoch);
  btc_wire_free(&e);
}

/* Two members become a pipe. */
static uint64_t form_two(fake_peer *p[2]) {
  order o[2] = {take_form(p[0], p, 2), take_form(p[1], p, 2)};
  assert_int_equal(o[0].epoch, o[1].epoch);
  assert_int_equal(o[0].rank + o[1].rank, 1);
  say_ready(p[0], &o[0]);
  assert_string_equal(say("HGET $pipe:p1 st"), "FORM"); /* all or nothing */
  say_ready(p[1], &o[1]);
  expect_go(p[0], p, 2, o[0].epoch);
  expect_go(p[1], p, 2, o[0].epoch);
  assert_string_equal(say("HGET $pipe:p1 st"), "ACTIVE");
  return o[0].epoch;
}

static void leave(fake_peer *p[], int n) {
  for (int i = 0; i < n; i++)
    if (p[i]) peer_close(&p[i]);
}

static void beat_load(fake_peer *p, uint64_t epoch, double busy) {
  Btc__Heartbeat beat = BTC__HEARTBEAT__INIT;
  Btc__PipeLoad load = BTC__PIPE_LOAD__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_HEARTBEAT);
  load.pipe = (char *)"p1";
  load.epoch = epoch;
  load.busy = busy;
  load.ms = 31;
  beat.pipe = &load;
  e.heartbeat = &beat;
  peer_send(p, &e);
}

static void test_pipes_forms_and_goes(void **state) {
  (void)state;
  fake_peer *p[2] = {join("a"), join("b")};
  assert_int_equal(form_two(p), 1);
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_PIPES_REQUEST);
  Btc__PipesRequest m = BTC__PIPES_REQUEST__INIT;
  e.pipes_request = &m;
  /* what its ranks measure is shown */
  int64_t end = test_now_ms() + 40000;
  while (strcmp(say("HGET $pipe:p1 load"), "31 0.9 31 0.8 ") != 0 && strcmp(say("HGET $pipe:p1 load"), "31 0.8 31 0.9 ") != 0) {
    assert_true(test_now_ms() < end);
    beat_load(p[0], 1, 0.9);
    beat_load(p[1], 1, 0.8);
    test_sleep_ms(100);
  }
  fake_peer *c = peer_open(w.clients[0]);
  peer_send(c, &e);
  Btc__Envelope *r = peer_expect(c, BTC__ENVELOPE__BODY_PIPES_REPLY);
  assert_int_equal(r->pipes_reply->n_pipes, 1);
  const Btc__PipeInfo *info = r->pipes_reply->pipes[0];
  assert_string_equal(info->state, "ACTIVE");
  assert_string_equal(info->model_class, "m");
  assert_int_equal(info->n_stages, 2);
  assert_int_equal(info->stages[0]->last, 6);
  assert_int_equal(info->stages[1]->last, 12);
  assert_float_equal(info->stages[0]->planned_ms, 30, 1e-6);
  assert_float_equal(info->bubble, 0.15, 1e-6);
  btc_wire_free(&r);
  peer_close(&c);
  leave(p, 2);
}

static void test_pipes_command_shows_plan_and_epoch(void **state) {
  (void)state;
  fake_peer *p[2] = {join("a"), join("b")};
  form_two(p);
  program_result r = RUN("pipes", "--broker", w.clients[0]);
  assert_int_equal(r.code, 0);
  assert_non_null(strstr(r.out, "p1 ACTIVE, epoch 1"));
  assert_non_null(strstr(r.out, "6-11"));
  program_clear(&r);
  r = RUN("pipes", "--json", "--broker", w.clients[0]);
  assert_int_equal(r.code, 0);
  assert_non_null(strstr(r.out, "\"state\":"));
  program_clear(&r);
  leave(p, 2);
}

static void test_pipes_unknown_to_ordinary_workers(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers[0]);
  peer_hello(p, "w1", 1, 32, NULL, 0);
  assert_null(peer_take(p, BTC__ENVELOPE__BODY_PIPE_FORM, 1500));
  assert_string_equal(say("EXISTS $pipes $pepoch $ldr:plan"), "0"); /* not even the duty is taken */
  peer_close(&p);
}

static void test_pipes_leaves_replicas_and_other_models_alone(void **state) {
  (void)state;
  fake_peer *whole = join_with(0, "whole", 1, 120, "m"), *other = join_with(0, "other", 1, 60, "m2"), *one = join("one");
  fake_peer *all[3] = {whole, other, one};
  for (int i = 0; i < 5; i++)
    for (int k = 0; k < 3; k++) {
      peer_beat(all[k], NULL, 0, 0);
      assert_null(peer_take(all[k], BTC__ENVELOPE__BODY_PIPE_FORM, 100));
    }
  assert_string_equal(say("EXISTS $pipes"), "0");
  leave(all, 3);
}

static void test_pipes_replaces_a_lost_rank_by_the_spare(void **state) {
  (void)state;
  fake_peer *p[3] = {join("a"), join("b"), NULL};
  uint64_t epoch = form_two(p);
  p[2] = join("c");
  assert_null(peer_take(p[2], BTC__ENVELOPE__BODY_PIPE_FORM, 1000)); /* hysteresis: a third changes nothing */
  peer_close(&p[1]);
  expect_abort(p[0], p, 3, epoch);
  order o[2] = {take_form(p[0], p, 3), take_form(p[2], p, 3)};
  assert_true(o[0].epoch > epoch && o[0].epoch == o[1].epoch);
  assert_string_equal(o[0].pipe, "p1"); /* goes on under its name */
  order old = o[0];
  old.epoch = epoch;
  say_ready(p[0], &old); /* of the old epoch: acknowledged, and nothing more */
  say_ready(p[2], &o[1]);
  assert_string_equal(say("HGET $pipe:p1 st"), "FORM");
  say_ready(p[0], &o[0]);
  expect_go(p[2], p, 3, o[0].epoch);
  leave(p, 3);
}

static void say_broken(fake_peer *p, const order *o) {
  Btc__PipeBroken m = BTC__PIPE_BROKEN__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_PIPE_BROKEN);
  m.pipe = (char *)o->pipe;
  m.epoch = o->epoch;
  m.rank = !o->rank;
  m.cause = (char *)"step 7 was late";
  e.pipe_broken = &m;
  Btc__Envelope *a = peer_answer(p, peer_send(p, &e), BTC__ENVELOPE__BODY_ACK);
  btc_wire_free(&a);
}

static void test_pipes_breaks_when_a_rank_says_so(void **state) {
  (void)state;
  fake_peer *p[2] = {join("a"), join("b")};
  for (int round = 0; round < 10; round++) {
    order o[2] = {take_form(p[0], p, 2), take_form(p[1], p, 2)};
    assert_int_equal(o[0].epoch, round + 1);
    say_ready(p[0], &o[0]);
    say_ready(p[1], &o[1]);
    expect_go(p[0], p, 2, o[0].epoch);
    say_broken(p[0], &o[0]);
    expect_abort(p[1], p, 2, o[0].epoch);
  }
  assert_string_equal(say("SCARD $pipes"), "1");
  leave(p, 2);
}

/* ---- tensors from GPU to GPU ---- */

static order order_two(fake_peer *p[2]) {
  order o[2] = {take_form(p[0], p, 2), take_form(p[1], p, 2)};
  assert_int_equal(o[0].epoch, o[1].epoch);
  assert_int_equal(o[0].nccl, o[1].nccl);
  return o[0];
}

static void check_nccl(uint32_t version, const char *card, bool nccl) {
  fake_peer *p[2] = {join_on(0, "a", 1, 60, "m", 22809, "GPU-a"), join_on(0, "b", 1, 60, "m", version, card)};
  assert_int_equal(order_two(p).nccl, nccl);
  leave(p, 2);
}

static void test_pipes_use_nccl_on_two_cards(void **state) {
  (void)state;
  check_nccl(22809, "GPU-b", true);
}

static void test_pipes_no_nccl_on_one_card(void **state) {
  (void)state;
  check_nccl(22809, "GPU-a", false);
}

static void test_pipes_no_nccl_of_two_versions(void **state) {
  (void)state;
  check_nccl(22707, "GPU-b", false);
}

/* A worker without NCCL, or of a version of ours that knows nothing of it. */
static void test_pipes_no_nccl_with_one_without(void **state) {
  (void)state;
  check_nccl(0, "", false);
}

static void test_pipes_no_nccl_on_a_card_without_a_name(void **state) {
  (void)state;
  check_nccl(22809, "", false);
}

static void test_pipes_no_nccl_after_two_failures(void **state) {
  (void)state;
  fake_peer *p[2] = {join_on(0, "a", 1, 60, "m", 22809, "GPU-a"), join_on(0, "b", 1, 60, "m", 22809, "GPU-b")};
  for (int round = 0; round < 4; round++) {
    order o = order_two(p);
    assert_int_equal(o.nccl, round < 2);
    say_broken(p[0], &o);
  }
  leave(p, 2);
}

/* Rank 0 hears of it with the next order, also when another rank was quicker to say that its links closed. */
static void test_pipes_tell_of_memory_that_ran_out(void **state) {
  (void)state;
  fake_peer *p[2] = {join("a"), join("b")};
  for (int round = 0; round < 3; round++) {
    uint64_t epoch = 0;
    for (int i = 0; i < 2; i++) {
      Btc__Envelope *e = take(p[i], p, 2, BTC__ENVELOPE__BODY_PIPE_FORM);
      epoch = e->pipe_form->epoch;
      assert_int_equal(epoch, round + 1);
      if (round)
        assert_non_null(strstr(e->pipe_form->out_of_memory, "b: not enough memory: 7 MB"));
      else
        assert_string_equal(e->pipe_form->out_of_memory, "");
      btc_wire_free(&e);
    }
    for (int i = round; i < 2; i++) { /* both say so, or b alone */
      Btc__PipeBroken m = BTC__PIPE_BROKEN__INIT;
      Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_PIPE_BROKEN);
      m.pipe = (char *)"p1";
      m.epoch = epoch;
      m.out_of_memory = i == 1;
      m.cause = (char *)(i == 1 ? "not enough memory: 7 MB" : "a link closed");
      e.pipe_broken = &m;
      Btc__Envelope *a = peer_answer(p[i], peer_send(p[i], &e), BTC__ENVELOPE__BODY_ACK);
      btc_wire_free(&a);
    }
  }
  leave(p, 2);
}

static void test_pipes_deadline_breaks_a_formation(void **state) {
  (void)state;
  fake_peer *p[3] = {join("a"), join("b"), NULL};
  for (int round = 1; round <= 2; round++) { /* b never says Ready */
    order o = take_form(p[0], p, 2);
    assert_int_equal(o.epoch, round);
    say_ready(p[0], &o);
    expect_abort(p[0], p, 2, o.epoch);
  }
  assert_null(peer_take(p[0], BTC__ENVELOPE__BODY_PIPE_FORM, 1500)); /* late twice: not asked again */
  p[2] = join("c");
  order o[2] = {take_form(p[0], p, 3), take_form(p[2], p, 3)};
  say_ready(p[0], &o[0]);
  say_ready(p[2], &o[1]);
  expect_go(p[0], p, 3, o[0].epoch);
  leave(p, 3);
}

static void survive(bool drained) {
  fake_peer *p[2] = {join("a"), join("b")};
  uint64_t epoch = form_two(p);
  if (drained)
    assert_int_equal(daemon_stop(&w.broker[0], 40000), 0);
  else
    daemon_kill(&w.broker[0]);
  *w.clients[0] = 0;
  start_broker(1);
  leave(p, 2);
  p[0] = join_with(1, "a", 1, 60, "m"); /* the same processes, at another broker */
  p[1] = join_with(1, "b", 1, 60, "m");
  for (int i = 0; i < 30; i++) { /* until the duty of the lost broker has run out, and the members' grace */
    peer_beat(p[0], NULL, 0, 0);
    peer_beat(p[1], NULL, 0, 0);
    assert_null(peer_take(p[0], BTC__ENVELOPE__BODY_PIPE_ABORT, 200));
    assert_null(peer_take(p[1], BTC__ENVELOPE__BODY_PIPE_FORM, 200));
  }
  assert_string_equal(say("GET $ldr:plan"), "b1");
  assert_string_equal(say("HGET $pipe:p1 st"), "ACTIVE");
  assert_int_equal(strtoull(say("HGET $pipe:p1 epoch"), NULL, 10), epoch);
  peer_close(&p[1]); /* and the new leader watches it */
  expect_abort(p[0], p, 2, epoch);
  wait_for("EXISTS $pipes", "0"); /* nobody is left to go on with */
  leave(p, 1);
}

static void test_pipes_survive_their_broker(void **state) {
  (void)state;
  survive(false);
}

static void test_pipes_survive_a_drain_of_their_broker(void **state) {
  (void)state;
  survive(true);
}

static void test_pipes_ignore_nonsense(void **state) {
  (void)state;
  fake_peer *p = peer_open(w.workers[0]);
  Btc__Hello hello = BTC__HELLO__INIT;
  Btc__PipeBlock block = BTC__PIPE_BLOCK__INIT, *blocks = &block;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_HELLO);
  block.kind = 99;
  block.count = 4000000000u;
  block.price = -1;
  hello.worker = (char *)"odd";
  hello.incarnation = 1;
  hello.model_class = (char *)"m";
  hello.credits = 4;
  hello.blocks = &blocks;
  hello.n_blocks = 1;
  e.hello = &hello;
  peer_send(p, &e);
  Btc__Envelope *welcome = peer_expect(p, BTC__ENVELOPE__BODY_WELCOME); /* it works on as a worker without pipes */
  p->session = welcome->welcome->session;
  btc_wire_free(&welcome);
  order o = {.pipe = "p9", .epoch = 3};
  say_ready(p, &o);
  assert_string_equal(say("EXISTS $pipes $ldr:plan"), "0");
  peer_close(&p);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(test_pipes_forms_and_goes, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_command_shows_plan_and_epoch, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_unknown_to_ordinary_workers, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_leaves_replicas_and_other_models_alone, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_replaces_a_lost_rank_by_the_spare, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_breaks_when_a_rank_says_so, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_use_nccl_on_two_cards, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_no_nccl_on_one_card, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_no_nccl_of_two_versions, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_no_nccl_with_one_without, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_no_nccl_on_a_card_without_a_name, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_no_nccl_after_two_failures, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_tell_of_memory_that_ran_out, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_deadline_breaks_a_formation, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_survive_their_broker, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_survive_a_drain_of_their_broker, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_pipes_ignore_nonsense, set_up, tear_down),
};
BTC_TEST_MAIN(tests)
