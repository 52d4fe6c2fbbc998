/* What clients of a broker get: submissions, commands, reports, refusals. The test plays client and worker. */
#include <inttypes.h>
#include <stdio.h>

#include "daemon.h"
#include "fake_peer.h"
#include "manifest/manifest_digest.h"
#include "redis_server.h"
#include "test.h"

#define QUEUE "tc"

typedef struct world {
  redis_server *redis;
  daemon_process broker;
  char clients[64], workers[64];
  fake_peer *client, *worker;
} world;

static world w;

static int set_up(void **state) {
  (void)state;
  char results[256];
  snprintf(results, sizeof results, "%s/results", test_tmp_dir());
  snprintf(w.clients, sizeof w.clients, "tcp://127.0.0.1:%d", test_free_port());
  snprintf(w.workers, sizeof w.workers, "tcp://127.0.0.1:%d", test_free_port());
  w.redis = redis_server_start("always", NULL);
  const char *args[] = {"broker",  "--redis",     redis_server_url(w.redis),
                        "--queue", QUEUE,         "--clients",
                        w.clients, "--workers",   w.workers,
                        "--http",  "off",         "--results",
                        results,   "--heartbeat", "500",
                        "--dead",  "60000",       "--max-items",
                        "5000",    "--roots",     test_tmp_dir(),
                        NULL};
  daemon_init(&w.broker, "broker", args);
  daemon_start(&w.broker);
  daemon_wait_log(&w.broker, "ready clients=", 40000);
  w.client = peer_open(w.clients);
  w.worker = peer_open(w.workers);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  peer_close(&w.client);
  peer_close(&w.worker);
  daemon_kill(&w.broker);
  redis_server_stop(&w.redis);
  return 0;
}

static const char *say(const char *command) {
  return redis_say(w.redis, QUEUE, "%s", command);
}

static const char *inside(const char *name) {
  static char path[4][256];
  static int i;
  char *p = path[i++ % 4];
  snprintf(p, sizeof path[0], "%s/%s", test_tmp_dir(), name);
  return p;
}

/* ---- submissions ---- */

static uint64_t send_submit(const Btc__Submit *s) {
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_SUBMIT);
  e.submit = (Btc__Submit *)s;
  return peer_send(w.client, &e);
}

static Btc__Envelope *submit(const Btc__Submit *s, bool ok) {
  Btc__Envelope *r = peer_answer(w.client, send_submit(s), BTC__ENVELOPE__BODY_REPLY);
  if (r->reply->ok != ok) fail_msg("submit: %s", r->reply->message);
  return r;
}

/* n items in the root; the job's id. */
static const char *submit_items(const char *key, size_t n, const char *route) {
  static char jid[80];
  char text[8][400], *list[8];
  Btc__Submit s = BTC__SUBMIT__INIT;
  for (size_t i = 0; i < n; i++) {
    snprintf(text[i], sizeof text[i], "{\"id\":\"i%zu\",\"before\":\"%s\",\"after\":\"%s\"}", i, inside("a.png"), inside("b.png"));
    list[i] = text[i];
  }
  s.key = (char *)key;
  s.items = list;
  s.n_items = n;
  s.route = (char *)route;
  Btc__Envelope *r = submit(&s, true);
  snprintf(jid, sizeof jid, "%s", r->reply->jid);
  btc_wire_free(&r);
  return jid;
}

static void write_manifest(const char *path, int n) {
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  for (int i = 0; i < n; i++) fprintf(f, "{\"id\":\"i%d\",\"before\":\"a%d.png\",\"after\":\"b%d.png\"}\n", i, i, i);
  fclose(f);
}

static void test_clients_submit_items_and_read_their_records(void **state) {
  (void)state;
  const char *jid = submit_items("k1", 3, "files");
  peer_hello(w.worker, "w1", 1, 32, NULL, 0);
  Btc__Envelope *g = peer_grant(w.worker);
  assert_int_equal(g->grant->chunks[0]->n_items, 3);
  Btc__Envelope *a =
      peer_answer(w.worker, peer_results(w.worker, g->grant->chunks[0], 7, BTC__OUTCOME__OUTCOME_OK), BTC__ENVELOPE__BODY_ACK);
  btc_wire_free(&a);
  btc_wire_free(&g);
  Btc__ResultsRequest q = BTC__RESULTS_REQUEST__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_RESULTS_REQUEST);
  char cursor[128] = "";
  size_t lines = 0;
  bool end = false;
  q.jid = (char *)jid;
  e.results_request = &q;
  for (int64_t stop = test_now_ms() + 30000; !end; test_sleep_ms(50)) {
    assert_true(test_now_ms() < stop);
    q.cursor = cursor;
    peer_send(w.client, &e);
    Btc__Envelope *r = peer_expect(w.client, BTC__ENVELOPE__BODY_RESULTS_REPLY);
    for (const char *c = r->results_reply->lines; *c; c++) lines += *c == '\n';
    snprintf(cursor, sizeof cursor, "%s", r->results_reply->cursor);
    end = r->results_reply->end;
    btc_wire_free(&r);
  }
  assert_int_equal(lines, 3);
}

static void test_clients_submit_a_manifest(void **state) {
  (void)state;
  const char *path = inside("m.jsonl");
  btc_manifest_summary sum;
  btc_error err;
  write_manifest(path, 100);
  assert_int_equal(btc_manifest_digest(path, NULL, &sum, &err), BTC_OK);
  Btc__Submit s = BTC__SUBMIT__INIT;
  s.key = (char *)"k";
  s.manifest = (char *)path;
  s.manifest_sha256 = sum.sha256;
  s.manifest_items = 100;
  Btc__Envelope *one = submit(&s, true), *two = submit(&s, true);
  assert_string_equal(one->reply->jid, two->reply->jid); /* the same key */
  assert_true(two->reply->existed && !one->reply->existed);
  peer_hello(w.worker, "w1", 1, 256, NULL, 0);
  size_t got = 0;
  while (got < 100) {
    Btc__Envelope *g = peer_grant(w.worker);
    const Btc__Chunk *c = g->grant->chunks[0];
    for (size_t i = 0; i < c->n_items; i++) {
      char id[32];
      snprintf(id, sizeof id, "\"i%" PRIu64 "\"", c->lo + c->items[i]->off);
      assert_non_null(strstr(c->items[i]->spec, id));
    }
    got += c->n_items;
    btc_wire_free(&g);
  }
  assert_int_equal(got, 100);
  btc_wire_free(&one);
  btc_wire_free(&two);
  btc_manifest_summary_free(&sum);
}

static void expect_refusal(const Btc__Submit *s, const char *why) {
  Btc__Envelope *r = submit(s, false);
  if (!strstr(r->reply->message, why)) fail_msg("'%s' is not about '%s'", r->reply->message, why);
  btc_wire_free(&r);
}

static void test_clients_are_refused_with_a_reason(void **state) {
  (void)state;
  char *item = (char *)"{}";
  Btc__Submit s = BTC__SUBMIT__INIT;
  s.key = (char *)"k";
  expect_refusal(&s, "items");
  s.items = &item;
  s.n_items = 1;
  s.priority = 3;
  expect_refusal(&s, "priority");
  s.priority = 0;
  s.tenant = (char *)"a:b";
  expect_refusal(&s, "tenant");
  s.tenant = (char *)"";
  s.params = (char *)"[]";
  expect_refusal(&s, "params");
  s.params = (char *)"{\"deadline_ms\":1000}";
  expect_refusal(&s, "there is no deadline_ms");
  s.params = (char *)"";
  s.key = (char *)"";
  expect_refusal(&s, "key");
  s.key = (char *)"k";
  s.manifest = (char *)"m.jsonl";
  expect_refusal(&s, "not both");
  s.n_items = 0;
  expect_refusal(&s, "absolute");
  write_manifest(inside("other.jsonl"), 3);
  s.manifest = (char *)inside("other.jsonl");
  s.manifest_sha256 = (char *)"0000000000000000000000000000000000000000000000000000000000000000";
  s.manifest_items = 3;
  expect_refusal(&s, "other.jsonl");
  s.manifest = (char *)"/etc/hostname";
  expect_refusal(&s, "/etc/hostname");
  assert_string_equal(say("EXISTS $jobs"), "0");
}

static void test_clients_items_outside_the_roots_become_problems(void **state) {
  (void)state;
  char *item = (char *)"{\"id\":\"x\",\"before\":\"/etc/passwd\",\"after\":\"/etc/passwd\"}";
  Btc__Submit s = BTC__SUBMIT__INIT;
  s.key = (char *)"k";
  s.items = &item;
  s.n_items = 1;
  Btc__Envelope *r = submit(&s, true);
  peer_hello(w.worker, "w1", 1, 32, NULL, 0);
  Btc__Envelope *g = peer_grant(w.worker);
  assert_non_null(strstr(g->grant->chunks[0]->items[0]->spec, "\"problem\""));
  btc_wire_free(&g);
  btc_wire_free(&r);
}

static void test_clients_wait_while_the_queue_is_full(void **state) {
  (void)state;
  const char *path = inside("big.jsonl");
  btc_manifest_summary sum;
  btc_error err;
  write_manifest(path, 6000); /* of 5,000 */
  assert_int_equal(btc_manifest_digest(path, NULL, &sum, &err), BTC_OK);
  Btc__Submit s = BTC__SUBMIT__INIT;
  s.key = (char *)"k";
  s.manifest = (char *)path;
  s.manifest_sha256 = sum.sha256;
  s.manifest_items = 6000;
  Btc__Envelope *n = peer_answer(w.client, send_submit(&s), BTC__ENVELOPE__BODY_NACK);
  assert_int_equal(n->nack->code, BTC__NACK_CODE__NACK_BUSY);
  assert_true(n->nack->retry_ms > 0);
  btc_wire_free(&n);
  btc_manifest_summary_free(&sum);
}

/* ---- commands ---- */

static Btc__Envelope *command(Btc__Verb verb, const char *jid, const char *filter) {
  Btc__JobCommand c = BTC__JOB_COMMAND__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_JOB_COMMAND);
  c.verb = verb;
  c.jid = (char *)jid;
  c.filter = (char *)filter;
  e.job_command = &c;
  return peer_answer(w.client, peer_send(w.client, &e), BTC__ENVELOPE__BODY_REPLY);
}

static void expect_command(Btc__Verb verb, const char *jid, bool ok) {
  Btc__Envelope *r = command(verb, jid, "");
  if (r->reply->ok != ok) fail_msg("command %d: %s", (int)verb, r->reply->message);
  btc_wire_free(&r);
}

static Btc__Envelope *status(const char *jid) {
  Btc__StatusRequest s = BTC__STATUS_REQUEST__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_STATUS_REQUEST);
  s.jid = (char *)jid;
  e.status_request = &s;
  return peer_answer(w.client, peer_send(w.client, &e), BTC__ENVELOPE__BODY_STATUS_REPLY);
}

static void test_clients_cancel_revokes(void **state) {
  (void)state;
  const char *jid = submit_items("k1", 2, "files");
  peer_hello(w.worker, "w1", 1, 32, NULL, 0);
  Btc__Envelope *g = peer_grant(w.worker);
  expect_command(BTC__VERB__VERB_CANCEL, jid, true);
  Btc__Envelope *r = peer_expect(w.worker, BTC__ENVELOPE__BODY_REVOKE);
  assert_int_equal(r->revoke->chunks[0]->cid, g->grant->chunks[0]->cid);
  btc_wire_free(&r);
  for (int64_t end = test_now_ms() + 20000;; test_sleep_ms(20)) { /* accounted at once, not when the lease ends */
    Btc__Envelope *s = status(jid);
    bool over = strcmp(s->status_reply->jobs[0]->state, "CXD") == 0 && s->status_reply->jobs[0]->cancelled == 2;
    btc_wire_free(&s);
    if (over) break;
    assert_true(test_now_ms() < end);
  }
  expect_command(BTC__VERB__VERB_CANCEL, "nosuchjob", false);
  expect_command(BTC__VERB__VERB_CANCEL, "", false);
  btc_wire_free(&g);
}

static void test_clients_pause_and_resume(void **state) {
  (void)state;
  const char *jid = submit_items("k1", 1, "files");
  expect_command(BTC__VERB__VERB_PAUSE, jid, true);
  peer_hello(w.worker, "w1", 1, 32, NULL, 0);
  assert_null(peer_take(w.worker, BTC__ENVELOPE__BODY_GRANT, 400));
  Btc__Envelope *s = status(jid);
  assert_true(s->status_reply->jobs[0]->paused);
  btc_wire_free(&s);
  expect_command(BTC__VERB__VERB_PAUSE, "", true);
  expect_command(BTC__VERB__VERB_RESUME, jid, true);
  assert_null(peer_take(w.worker, BTC__ENVELOPE__BODY_GRANT, 400)); /* the queue still is */
  expect_command(BTC__VERB__VERB_RESUME, "", true);
  Btc__Envelope *g = peer_grant(w.worker);
  btc_wire_free(&g);
}

static void test_clients_replay_dead_items(void **state) {
  (void)state;
  const char *jid = submit_items("k1", 3, "files");
  peer_hello(w.worker, "w1", 1, 32, NULL, 0);
  Btc__Envelope *g = peer_grant(w.worker);
  Btc__Envelope *a = peer_answer(w.worker, peer_results(w.worker, g->grant->chunks[0], 7, BTC__OUTCOME__OUTCOME_PERMANENT),
                                 BTC__ENVELOPE__BODY_ACK);
  btc_wire_free(&a);
  btc_wire_free(&g);
  Btc__DeadRequest d = BTC__DEAD_REQUEST__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_DEAD_REQUEST);
  d.jid = (char *)jid;
  d.limit = 2;
  e.dead_request = &d;
  Btc__Envelope *one = peer_answer(w.client, peer_send(w.client, &e), BTC__ENVELOPE__BODY_DEAD_REPLY);
  assert_int_equal(one->dead_reply->n_items, 2);
  assert_false(one->dead_reply->end);
  assert_string_equal(one->dead_reply->items[1]->reason, "decode");
  d.after = one->dead_reply->next;
  Btc__Envelope *two = peer_answer(w.client, peer_send(w.client, &e), BTC__ENVELOPE__BODY_DEAD_REPLY);
  assert_int_equal(two->dead_reply->n_items, 1);
  assert_int_equal(two->dead_reply->items[0]->idx, 2);
  assert_true(two->dead_reply->end);
  Btc__Envelope *none = command(BTC__VERB__VERB_REPLAY, jid, "crash"), *all = command(BTC__VERB__VERB_REPLAY, jid, "");
  assert_int_equal(none->reply->count, 0);
  assert_int_equal(all->reply->count, 3);
  g = peer_grant(w.worker);
  assert_int_equal(g->grant->chunks[0]->n_items, 3);
  btc_wire_free(&one);
  btc_wire_free(&two);
  btc_wire_free(&none);
  btc_wire_free(&all);
  btc_wire_free(&g);
}

/* ---- reports ---- */

static void test_clients_see_jobs_and_workers(void **state) {
  (void)state;
  char jid[80];
  submit_items("k1", 1, "files");
  snprintf(jid, sizeof jid, "%s", submit_items("k2", 2, "stream"));
  Btc__Envelope *s = status("");
  assert_int_equal(s->status_reply->n_jobs, 2);
  assert_int_equal(s->status_reply->ready, 2);
  btc_wire_free(&s);
  s = status(jid);
  assert_int_equal(s->status_reply->n_jobs, 1);
  assert_int_equal(s->status_reply->jobs[0]->total, 2);
  assert_string_equal(s->status_reply->jobs[0]->state, "RUN");
  btc_wire_free(&s);
  s = status("nosuchjob");
  assert_int_equal(s->status_reply->n_jobs, 0);
  assert_string_equal(s->status_reply->message, "there is no such job");
  btc_wire_free(&s);
  peer_hello(w.worker, "w1", 7, 1, NULL, 0);
  Btc__WorkersRequest q = BTC__WORKERS_REQUEST__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_WORKERS_REQUEST);
  e.workers_request = &q;
  Btc__Envelope *r = peer_answer(w.client, peer_send(w.client, &e), BTC__ENVELOPE__BODY_WORKERS_REPLY);
  assert_int_equal(r->workers_reply->n_workers, 1);
  assert_string_equal(r->workers_reply->workers[0]->worker, "w1");
  assert_string_equal(r->workers_reply->workers[0]->state, "up");
  assert_int_equal(r->workers_reply->workers[0]->n_devices, 0); /* it told of none, as an older worker does */
  btc_wire_free(&r);
}

static void test_clients_drain_a_worker(void **state) {
  (void)state;
  peer_hello(w.worker, "w1", 7, 1, NULL, 0);
  Btc__DrainWorker d = BTC__DRAIN_WORKER__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_DRAIN_WORKER);
  d.worker = (char *)"w1";
  d.grace_ms = 1234;
  e.drain_worker = &d;
  Btc__Envelope *r = peer_answer(w.client, peer_send(w.client, &e), BTC__ENVELOPE__BODY_REPLY);
  assert_true(r->reply->ok);
  btc_wire_free(&r);
  r = peer_expect(w.worker, BTC__ENVELOPE__BODY_DRAIN_REQUEST);
  assert_int_equal(r->drain_request->grace_ms, 1234);
  btc_wire_free(&r);
  d.worker = (char *)"w2";
  r = peer_answer(w.client, peer_send(w.client, &e), BTC__ENVELOPE__BODY_REPLY);
  assert_false(r->reply->ok);
  btc_wire_free(&r);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_clients_submit_items_and_read_their_records, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_clients_submit_a_manifest, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_clients_are_refused_with_a_reason, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_clients_items_outside_the_roots_become_problems, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_clients_wait_while_the_queue_is_full, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_clients_cancel_revokes, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_clients_pause_and_resume, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_clients_replay_dead_items, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_clients_see_jobs_and_workers, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_clients_drain_a_worker, set_up, tear_down),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
