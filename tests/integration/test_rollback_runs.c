/*
 * Redis comes back without its last writes (a copy of its append-only files, put back under it while everything runs): what the
 * broker knows of them is repeated, nothing of it runs again, and files hold each item once whatever was lost.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>

#include "cluster.h"
#include "fake_peer.h"
#include "test.h"

enum { ITEMS = 1500, WAIT_MS = 60000, CREDITS = 64 };

static cluster c;
static fake_peer *peer;
static int runs[ITEMS];     /* how often the test's worker was given an item */
static bool settled[ITEMS]; /* its results were acknowledged */

/* Results on their way: sent again until they are acknowledged, like a worker's. */
typedef struct sent {
  Btc__Envelope *grant; /* NULL: free */
  uint64_t req_id;
  int64_t due_ms;
} sent;
static sent under_way[CREDITS];

static void forget_under_way(void) {
  for (size_t i = 0; i < CREDITS; i++) btc_wire_free(&under_way[i].grant);
}

static const char *say(const char *command) {
  return redis_say(c.redis, "t", "%s", command);
}

static int64_t number(const char *command) {
  return strtoll(say(command), NULL, 10);
}

static void begin(const char *journal, int brokers) {
  cluster_start(&c, &(cluster_options){.peers = true, .brokers = brokers, .journal = journal, .dead_ms = 20000, .lease_ms = 6000});
  memset(runs, 0, sizeof runs);
  memset(settled, 0, sizeof settled);
  peer = peer_open(c.workers[0]);
  peer_hello(peer, "w1", 1, CREDITS, NULL, 0);
}

static void end(void) {
  forget_under_way();
  peer_close(&peer);
  cluster_stop(&c);
}

static void fail_here(const char *what) {
  cluster_show(&c);
  fail_msg("%s; committed %s, totals %s", what, say("HGET $stat committed"), say("btc_totals"));
}

static void send_results(sent *s) {
  const Btc__Chunk *k = s->grant->grant->chunks[0];
  uint32_t mask = 0;
  for (size_t i = 0; i < k->n_items; i++) mask |= 1u << k->items[i]->off;
  s->req_id = peer_results(peer, k, mask, BTC__OUTCOME__OUTCOME_OK);
  s->due_ms = test_now_ms() + 500;
}

static bool is_under_way(const Btc__Chunk *k) {
  for (size_t i = 0; i < CREDITS; i++) {
    const Btc__Chunk *other = under_way[i].grant ? under_way[i].grant->grant->chunks[0] : NULL;
    if (other && other->cid == k->cid && other->token == k->token) return true;
  }
  return false;
}

/* Runs the items of a grant: takes it over. */
static void take_grant(Btc__Envelope *g) {
  const Btc__Chunk *k = g->grant->chunks[0];
  size_t at = 0;
  peer_ack(peer, g->req_id);
  if (is_under_way(k)) { /* the broker said it twice */
    btc_wire_free(&g);
    return;
  }
  while (at < CREDITS && under_way[at].grant) at++;
  assert_true(at < CREDITS);
  for (size_t i = 0; i < k->n_items; i++) {
    assert_in_range(k->lo + k->items[i]->off, 0, ITEMS - 1);
    runs[k->lo + k->items[i]->off]++;
  }
  under_way[at].grant = g;
  send_results(&under_way[at]);
}

/* Returns how many items are settled by it. */
static int take_acks(const Btc__Ack *a) {
  int n = 0;
  for (size_t i = 0; i < a->n_req_id; i++)
    for (size_t k = 0; k < CREDITS; k++) {
      sent *s = &under_way[k];
      if (!s->grant || s->req_id != a->req_id[i]) continue;
      const Btc__Chunk *chunk = s->grant->grant->chunks[0];
      for (size_t off = 0; off < chunk->n_items; off++) settled[chunk->lo + chunk->items[off]->off] = true;
      n += (int)chunk->n_items;
      btc_wire_free(&s->grant);
    }
  return n;
}

/* Works until so many results are acknowledged, and Redis counts `committed` of them. */
static void work(int results, int64_t committed) {
  int64_t limit = test_now_ms() + WAIT_MS, beat = 0;
  while (results > 0 || number("HGET $stat committed") < committed) {
    int64_t now = test_now_ms();
    if (now > limit) fail_here("the items are not done");
    if (now > beat) {
      peer_beat(peer, NULL, 0, 0);
      beat = now + 1000;
    }
    for (size_t i = 0; i < CREDITS; i++)
      if (under_way[i].grant && now > under_way[i].due_ms) send_results(&under_way[i]);
    Btc__Envelope *e = peer_take_any(peer, now + 100);
    if (e && e->body_case == BTC__ENVELOPE__BODY_GRANT) {
      take_grant(e);
      continue;
    }
    if (e && e->body_case == BTC__ENVELOPE__BODY_ACK) results -= take_acks(e->ack);
    btc_wire_free(&e);
  }
}

/* Items that were done, and acknowledged, before Redis lost them. */
static bool before[ITEMS];

static int roll_back(void) {
  int n = 0;
  memcpy(before, settled, sizeof before);
  for (int i = 0; i < ITEMS; i++) n += before[i];
  redis_server_rollback(c.redis);
  return n;
}

/* Nothing of what was done then was given out again. What was in hand may have been. */
static void check_runs(void) {
  for (int i = 0; i < ITEMS; i++)
    if (before[i] ? runs[i] != 1 : runs[i] < 1 || runs[i] > 2) {
      cluster_show(&c);
      fail_msg("item %d, %s: ran %d times", i, before[i] ? "done before" : "not done before", runs[i]);
    }
}

/* The job is done, its files are written, and everything is where it belongs. */
static void settle(const char *jid) {
  int64_t limit = test_now_ms() + WAIT_MS;
  cluster_wait(&c, jid, WAIT_MS);
  while (number("XLEN $res") > 0 || atoi(cluster_job(&c, jid, "rec")) < ITEMS) {
    if (test_now_ms() > limit) fail_here("the records are not in files");
    test_sleep_ms(20);
  }
  assert_int_equal(atoi(cluster_job(&c, jid, "done")), ITEMS);
  cluster_check(&c);
}

/* What the broker's log says. */
static int64_t items_restored(void) {
  static const char mark[] = "event=history-restored items=";
  char line[1024];
  int64_t n = -1;
  FILE *f = fopen(c.broker[0].log, "re");
  assert_non_null(f);
  while (fgets(line, sizeof line, f)) {
    const char *at = strstr(line, mark);
    if (at) n = strtoll(at + strlen(mark), NULL, 10);
  }
  fclose(f);
  return n;
}

/* Lost: commits of chunks that were ready, leased, and not yet made from the manifest. */
static void test_rollback_runs_items_do_not_run_again(void **state) {
  (void)state;
  begin(NULL, 1);
  const char *jid = cluster_submit(&c, cluster_manifest("r", ITEMS), NULL);
  work(200, 0);
  redis_server_save(c.redis);
  int64_t kept = number("HGET $stat committed");
  work(900, 0);
  int done = roll_back();
  assert_true(done >= 1100);
  work(0, ITEMS);
  daemon_wait_log(&c.broker[0], "event=history-lost", 1000);
  daemon_wait_log(&c.broker[0], "event=history-restored", 1000);
  /* at least what the worker knew to be safe: other answers may have been on their way to it */
  assert_in_range(items_restored(), done - kept, ITEMS - kept);
  check_runs();
  settle(jid);
  end();
}

/* The same without a journal: the items run again. Files hold them once all the same. */
static void test_rollback_runs_without_a_journal_runs_again(void **state) {
  (void)state;
  begin("0", 1);
  const char *jid = cluster_submit(&c, cluster_manifest("r", ITEMS), NULL);
  work(200, 0);
  redis_server_save(c.redis);
  int64_t kept = number("HGET $stat committed");
  work(900, 0);
  int done = roll_back(), again = 0;
  work(0, ITEMS);
  for (int i = 0; i < ITEMS; i++) again += before[i] && runs[i] > 1;
  assert_in_range(again, 1, done); /* what is counted right after the copy may be in it or not */
  assert_true(again >= done - kept - CREDITS);
  settle(jid);
  end();
}

/* Redis comes back as it was before the job, and had ended it: job, items and end are there again, under the same id. */
static void test_rollback_runs_of_a_whole_job(void **state) {
  (void)state;
  begin(NULL, 1);
  redis_server_save(c.redis);
  const char *jid = cluster_submit(&c, cluster_manifest("r", ITEMS), NULL);
  work(0, ITEMS);
  settle(jid);
  roll_back();
  work(0, ITEMS);
  check_runs();
  settle(jid);
  end();
}

/* Twice in a row, the second time before what was repeated first was kept. */
static void test_rollback_runs_twice(void **state) {
  (void)state;
  begin(NULL, 1);
  const char *jid = cluster_submit(&c, cluster_manifest("r", ITEMS), NULL);
  work(200, 0);
  redis_server_save(c.redis);
  work(600, 0);
  roll_back();
  daemon_wait_log(&c.broker[0], "event=history-restored", WAIT_MS);
  redis_server_rollback(c.redis);
  work(0, ITEMS);
  check_runs();
  settle(jid);
  end();
}

/* Each broker repeats what it wrote, also the one that comes when the other has mended the number. */
static void test_rollback_runs_of_two_brokers(void **state) {
  (void)state;
  begin(NULL, 2);
  const char *jid = cluster_submit(&c, cluster_manifest("r", ITEMS), NULL);
  work(200, 0);
  redis_server_save(c.redis);
  work(300, 0);
  forget_under_way();
  peer_close(&peer);
  peer = peer_open(c.workers[1]);
  peer_hello(peer, "w2", 1, CREDITS, NULL, 0);
  work(300, 0);
  roll_back();
  work(0, ITEMS);
  for (int i = 0; i < 2; i++) daemon_wait_log(&c.broker[i], "event=history-restored", WAIT_MS);
  check_runs();
  settle(jid);
  end();
}

/* Tokens and chunk ids that a lost history gave out do not come again. */
static void test_rollback_runs_gives_no_token_twice(void **state) {
  (void)state;
  begin(NULL, 1);
  redis_server_save(c.redis);
  const char *jid = cluster_submit(&c, cluster_manifest("r", ITEMS), NULL);
  work(100, 0);
  assert_in_range(number("GET $tok"), 1, 1000);
  assert_in_range(number("GET $cid"), 1, 1000);
  roll_back();
  work(0, ITEMS);
  assert_in_range(number("GET $tok"), 100000000, 200000000);
  assert_in_range(number("GET $cid"), 100000000, 200000000);
  settle(jid);
  end();
}

/* A cancelled job stays so. */
static void test_rollback_runs_keeps_a_job_cancelled(void **state) {
  (void)state;
  begin(NULL, 1);
  const char *jid = cluster_submit(&c, cluster_manifest("r", ITEMS), NULL);
  work(100, 0);
  redis_server_save(c.redis);
  work(300, 0);
  fake_peer *client = peer_open(c.clients);
  Btc__JobCommand cancel = BTC__JOB_COMMAND__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_JOB_COMMAND);
  cancel.jid = (char *)jid;
  cancel.verb = BTC__VERB__VERB_CANCEL;
  e.job_command = &cancel;
  Btc__Envelope *a = peer_answer(client, peer_send(client, &e), BTC__ENVELOPE__BODY_REPLY);
  assert_true(a->reply->ok);
  btc_wire_free(&a);
  peer_close(&client);
  roll_back();
  cluster_wait(&c, jid, WAIT_MS);
  assert_string_equal(cluster_job(&c, jid, "st"), "CXD");
  assert_true(atoi(cluster_job(&c, jid, "done")) >= 400);
  for (int64_t limit = test_now_ms() + WAIT_MS; number("XLEN $res") > 0; test_sleep_ms(20))
    if (test_now_ms() > limit) fail_here("the records are not in files");
  cluster_check(&c);
  end();
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_rollback_runs_items_do_not_run_again),
      cmocka_unit_test(test_rollback_runs_without_a_journal_runs_again),
      cmocka_unit_test(test_rollback_runs_of_a_whole_job),
      cmocka_unit_test(test_rollback_runs_twice),
      cmocka_unit_test(test_rollback_runs_of_two_brokers),
      cmocka_unit_test(test_rollback_runs_gives_no_token_twice),
      cmocka_unit_test(test_rollback_runs_keeps_a_job_cancelled),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
