/*
 * A broker that stands still (SIGSTOP, a suspended machine) in the middle of publishing the end of a job, while another takes its
 * duty, the job's dead item is replayed, and its end is published anew: when the first one goes on, it must not put its older
 * errors.jsonl or its older note over the newer.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "cluster.h"
#include "fake_peer.h"
#include "test.h"

enum { PATIENCE_MS = 60000, ITEMS = 4 };

static cluster c;

static const char *say(const char *command) {
  return redis_say(c.redis, "t", "%s", command);
}

static void submit(void) {
  char text[1024];
  int len = snprintf(text, sizeof text, "btc_submit j inline t 1 '' files '' {} '' '' %d 0 '' '' 0 ''", ITEMS);
  for (int i = 0; i < ITEMS; i++)
    len += snprintf(text + len, sizeof text - (size_t)len, " {\"id\":\"i%d\",\"before\":\"/a.png\",\"after\":\"/b.png\"}", i);
  assert_string_equal(say(text), "[NEW j]");
}

/* One chunk; the items `bad` of it fail for good. */
static void work_off(fake_peer *p, uint32_t bad) {
  Btc__Envelope *g = peer_grant(p);
  const Btc__Chunk *k = g->grant->chunks[0];
  uint32_t good = 0;
  for (size_t i = 0; i < k->n_items; i++) good |= 1u << k->items[i]->off;
  good &= ~bad;
  Btc__Envelope *a = peer_answer(p, peer_results(p, k, good, BTC__OUTCOME__OUTCOME_OK), BTC__ENVELOPE__BODY_ACK);
  btc_wire_free(&a);
  if (bad) {
    a = peer_answer(p, peer_results(p, k, bad, BTC__OUTCOME__OUTCOME_PERMANENT), BTC__ENVELOPE__BODY_ACK);
    btc_wire_free(&a);
  }
  btc_wire_free(&g);
}

static void read_note(char *text, size_t room) {
  char path[256];
  snprintf(path, sizeof path, "%s/j/.finished.json", c.results);
  FILE *f = fopen(path, "re");
  assert_non_null(f);
  text[fread(text, 1, room - 1, f)] = 0;
  fclose(f);
}

static void stop_at(const char *point) {
  char env[96], errors[256], note[512];
  cluster_prepare(&c, &(cluster_options){.peers = true, .brokers = 2, .lease_ms = 60000, .dead_ms = 60000, .stall_ms = 60000});
  snprintf(env, sizeof env, "BTC_FAIL=%s:1!", point);
  snprintf(errors, sizeof errors, "%s/j/errors.jsonl", c.results);
  daemon_env(&c.broker[0], env);
  cluster_start_broker(&c, 0);
  daemon_wait_log(&c.broker[0], "event=sink-duty", PATIENCE_MS);
  cluster_start_broker(&c, 1);
  daemon_wait_log(&c.broker[1], "ready clients=", PATIENCE_MS);
  fake_peer *p = peer_open(c.workers[1]);
  peer_hello(p, "w", 1, 32, NULL, 0);
  submit();
  work_off(p, 8);
  daemon_wait_log(&c.broker[1], "job-published jid=j records=3 errors=1", PATIENCE_MS); /* the first one stands still */
  assert_int_equal(access(errors, F_OK), 0);
  assert_string_equal(say("btc_replay j '' 0 256"), "[1 0]");
  peer_beat(p, NULL, 0, 0);
  work_off(p, 0);
  daemon_wait_log(&c.broker[1], "job-published jid=j records=4 errors=0", PATIENCE_MS);
  daemon_signal(&c.broker[0], SIGCONT);
  daemon_wait_log(&c.broker[0], "event=sink-duty-l", PATIENCE_MS); /* lapsed, or lost */
  if (access(errors, F_OK) == 0) cluster_show(&c);
  assert_int_not_equal(access(errors, F_OK), 0);
  read_note(note, sizeof note);
  if (!strstr(note, "\"epoch\":2,") || !strstr(note, "\"done\":4,")) fail_msg("%s: %s", point, note);
  cluster_check(&c);
  peer_close(&p);
  cluster_stop(&c);
}

static void test_stale_sink_keeps_its_errors(void **state) {
  (void)state;
  stop_at("sink_errors_written");
}

static void test_stale_sink_keeps_its_note(void **state) {
  (void)state;
  stop_at("sink_publish_written");
}

/* Its errors.jsonl is there; nothing of its note. */
static void test_stale_sink_forgets_its_note(void **state) {
  (void)state;
  stop_at("sink_errors_named");
}

/* Behind the question whether the finish is still the last one. */
static void test_stale_sink_keeps_what_it_checked(void **state) {
  (void)state;
  stop_at("sink_publish_checked");
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_stale_sink_keeps_its_errors),
      cmocka_unit_test(test_stale_sink_keeps_its_note),
      cmocka_unit_test(test_stale_sink_forgets_its_note),
      cmocka_unit_test(test_stale_sink_keeps_what_it_checked),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
