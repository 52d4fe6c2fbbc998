/*
 * A real worker process against a broker played by the test: work and its answers, sending again, an engine that crashes, hangs or
 * is killed, draining, a broker that falls silent, and the model engine beside `caption --pairs`.
 */
#define _GNU_SOURCE
#include "test.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include "daemon.h"
#include "net/socket.h"
#include "program.h"
#include "tiny_checkpoint.h"
#include "worker/engine.h"

enum { MOST = 2048, PATIENCE_MS = 60000 };

typedef struct got {
  uint64_t cid, idx, req_id;
  Btc__Outcome outcome;
  char *id, *reason, *message, *record;
} got;

/* The broker's side of the conversation. */
typedef struct fake {
  void *zmq, *socket;
  char endpoint[64];
  btc_peer_id peer;
  uint64_t session, req;
  bool silent;                /* answers nothing */
  bool mute_results;          /* answers no Results */
  int busy_hellos;            /* so many are refused */
  Btc__NackCode refuse_hello; /* if not 0 */
  /* what was heard */
  got results[MOST];
  size_t n_results, repeated; /* Results messages seen before */
  uint64_t seen[MOST];        /* their req_ids */
  size_t n_seen;
  int hellos, beats, byes, grant_acks, other_acks;
  uint64_t held_cid, held_token, released[64];
  size_t n_held, n_released;
  uint32_t free_items, started_mask;
  uint64_t progress;
  bool draining;
  char model_class[128], worker[80];
} fake;

static daemon_process worker; /* of the running test */

static void fake_open(fake *f) {
  btc_error err;
  memset(f, 0, sizeof *f);
  f->zmq = zmq_ctx_new();
  f->session = 100;
  if (btc_socket_bind_router(f->zmq, "tcp://127.0.0.1:*", NULL, 1000, &f->socket, &err) != BTC_OK) fail_msg("%s", err.message);
  btc_socket_endpoint(f->socket, f->endpoint, sizeof f->endpoint);
}

static void fake_close(fake *f) {
  btc_socket_close(&f->socket);
  zmq_ctx_term(f->zmq);
  for (size_t i = 0; i < f->n_results; i++) {
    free(f->results[i].id);
    free(f->results[i].reason);
    free(f->results[i].message);
    free(f->results[i].record);
  }
}

static void say(fake *f, Btc__Envelope *e) {
  e->session = f->session;
  btc_socket_send(f->socket, &f->peer, e, NULL);
}

static void ack(fake *f, uint64_t req_id) {
  Btc__Ack a = BTC__ACK__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_ACK);
  if (!req_id || f->silent) return;
  e.ack = &a;
  a.req_id = &req_id;
  a.n_req_id = 1;
  say(f, &e);
}

static void nack(fake *f, uint64_t req_id, Btc__NackCode code) {
  Btc__Nack n = BTC__NACK__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_NACK);
  e.nack = &n;
  n.req_id = req_id;
  n.code = code;
  n.message = "no";
  n.retry_ms = 100;
  say(f, &e);
}

static void heard_hello(fake *f, const btc_message *m) {
  const Btc__Hello *h = m->envelope->hello;
  Btc__Welcome w = BTC__WELCOME__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_WELCOME);
  f->hellos++;
  f->n_held = h->n_held;
  if (h->n_held) {
    f->held_cid = h->held[0]->cid;
    f->held_token = h->held[0]->token;
  }
  snprintf(f->model_class, sizeof f->model_class, "%s", h->model_class);
  snprintf(f->worker, sizeof f->worker, "%s", h->worker);
  if (f->silent) return;
  f->peer = m->from;
  if (f->refuse_hello) {
    nack(f, m->req_id, f->refuse_hello);
  } else if (f->busy_hellos > 0) {
    f->busy_hellos--;
    nack(f, m->req_id, BTC__NACK_CODE__NACK_BUSY);
  } else {
    e.welcome = &w;
    w.session = f->session;
    w.heartbeat_ms = 300; /* five of them are patience enough for a loaded machine */
    w.lease_ms = 3000;
    say(f, &e);
  }
}

static void heard_beat(fake *f, const btc_message *m) {
  const Btc__Heartbeat *b = m->envelope->heartbeat;
  f->beats++;
  f->free_items = b->free_items;
  f->draining = b->draining;
  for (size_t i = 0; i < b->n_chunks; i++) {
    f->started_mask |= b->chunks[i]->started_mask;
    if (b->chunks[i]->progress > f->progress) f->progress = b->chunks[i]->progress;
  }
  ack(f, m->req_id);
}

static void heard_results(fake *f, const btc_message *m) {
  const Btc__Results *r = m->envelope->results;
  bool again = false;
  for (size_t i = 0; i < f->n_seen; i++) again = again || f->seen[i] == m->req_id;
  if (again) {
    f->repeated++;
  } else {
    assert_in_range(f->n_seen, 0, MOST - 1);
    f->seen[f->n_seen++] = m->req_id;
    for (size_t i = 0; i < r->n_items; i++) {
      const Btc__ItemResult *x = r->items[i];
      assert_in_range(f->n_results, 0, MOST - 1);
      f->results[f->n_results++] = (got){r->cid,        r->lo + x->off,    m->req_id,          x->outcome,
                                         strdup(x->id), strdup(x->reason), strdup(x->message), strdup(x->record)};
    }
  }
  if (!f->mute_results) ack(f, m->req_id);
}

/* Each chunk once: on a loaded machine our answer may come after the worker has repeated itself. */
static void heard_release(fake *f, const btc_message *m) {
  const Btc__Release *r = m->envelope->release;
  for (size_t i = 0; i < r->n_chunks && f->n_released < 64; i++) {
    bool again = false;
    for (size_t k = 0; k < f->n_released; k++) again = again || f->released[k] == r->chunks[i]->cid;
    if (!again) f->released[f->n_released++] = r->chunks[i]->cid;
  }
  ack(f, m->req_id);
}

static void heard(fake *f, const btc_message *m) {
  const Btc__Envelope *e = m->envelope;
  switch (e->body_case) {
    case BTC__ENVELOPE__BODY_HELLO:
      heard_hello(f, m);
      break;
    case BTC__ENVELOPE__BODY_HEARTBEAT:
      heard_beat(f, m);
      break;
    case BTC__ENVELOPE__BODY_RESULTS:
      heard_results(f, m);
      break;
    case BTC__ENVELOPE__BODY_ACK:
      f->grant_acks += (int)e->ack->n_req_id;
      break;
    case BTC__ENVELOPE__BODY_NACK:
      f->other_acks++;
      break;
    case BTC__ENVELOPE__BODY_RELEASE:
      heard_release(f, m);
      break;
    case BTC__ENVELOPE__BODY_BYE:
      f->byes++;
      ack(f, m->req_id);
      break;
    default:
      fail_msg("the worker said %s", btc_wire_body_name(e->body_case));
  }
}

static void pump(fake *f, int ms) {
  zmq_pollitem_t p = {.socket = f->socket, .events = ZMQ_POLLIN};
  btc_message m;
  zmq_poll(&p, 1, ms);
  while (btc_socket_take(f->socket, true, NULL, &m)) {
    if (!m.envelope) fail_msg("not an envelope: %s", m.error.message);
    heard(f, &m);
    btc_message_clear(&m);
  }
}

#define WAIT_FOR(f, condition)                         \
  do {                                                 \
    int64_t end_ = test_now_ms() + PATIENCE_MS;        \
    while (!(condition)) {                             \
      if (test_now_ms() > end_) {                      \
        daemon_show(&worker);                          \
        fail_msg("did not come true: %s", #condition); \
      }                                                \
      pump(f, 10);                                     \
    }                                                  \
  } while (0)

static void linger(fake *f, int ms) {
  for (int64_t end = test_now_ms() + ms; test_now_ms() < end;) pump(f, 10);
}

/* ---- work ---- */

static void grant_specs(fake *f, uint64_t cid, uint64_t token, bool solo, const char *params, const char *const specs[],
                        uint32_t n) {
  Btc__Item items[32], *list[32];
  Btc__Chunk chunk = BTC__CHUNK__INIT, *chunks = &chunk;
  Btc__Grant g = BTC__GRANT__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_GRANT);
  for (uint32_t i = 0; i < n; i++) {
    btc__item__init(&items[i]);
    items[i].off = i;
    items[i].spec = (char *)specs[i];
    list[i] = &items[i];
  }
  chunk.cid = cid;
  chunk.token = token;
  chunk.jid = "j1";
  chunk.lo = cid * 100;
  chunk.n = n;
  chunk.solo = solo;
  chunk.params = (char *)params;
  chunk.items = list;
  chunk.n_items = n;
  g.chunks = &chunks;
  g.n_chunks = 1;
  e.grant = &g;
  e.req_id = ++f->req;
  say(f, &e);
}

static void spec_of(const char *id, char out[128]) {
  snprintf(out, 128, "{\"id\":\"%.23s\",\"before\":\"/b/%.23s\",\"after\":\"/a/%.23s\"}", id, id, id);
}

static void grant_ids(fake *f, uint64_t cid, uint64_t token, bool solo, char ids[][24], uint32_t n) {
  char specs[32][128];
  const char *list[32];
  for (uint32_t i = 0; i < n; i++) {
    spec_of(ids[i], specs[i]);
    list[i] = specs[i];
  }
  grant_specs(f, cid, token, solo, "", list, n);
}

/* n ids with no fault, but `at` (if >= 0) with this one. */
static void pick_ids(char ids[][24], uint32_t n, const char *faults, int at, stub_fault fault) {
  static int next;
  stub_faults f;
  assert_int_equal(stub_faults_parse(faults, &f, NULL), BTC_OK);
  for (uint32_t i = 0; i < n; i++) do
      snprintf(ids[i], 24, "i%d", next++);
    while (stub_fault_of(&f, ids[i]) != ((int)i == at ? fault : STUB_FINE));
}

static void expect_caption(const got *g) {
  char before[64], after[64], caption[24];
  snprintf(before, sizeof before, "/b/%s", g->id);
  snprintf(after, sizeof after, "/a/%s", g->id);
  engine_stub_caption(before, after, g->id, caption);
  assert_int_equal(g->outcome, BTC__OUTCOME__OUTCOME_OK);
  if (!strstr(g->record, caption)) fail_msg("%s is not in %s", caption, g->record);
}

#define START(f, ...)                                                                                            \
  do {                                                                                                           \
    daemon_init(&worker, "worker",                                                                               \
                (const char *const[]){"worker", "--brokers", (f)->endpoint, "--name", "w1", __VA_ARGS__, NULL}); \
    daemon_start(&worker);                                                                                       \
    daemon_wait_ready(f);                                                                                        \
  } while (0)

static void daemon_wait_ready(fake *f) {
  WAIT_FOR(f, f->beats > 0);
  daemon_wait_log(&worker, "ready name=w1", PATIENCE_MS);
}

static int stop(fake *f) {
  daemon_signal(&worker, SIGTERM);
  WAIT_FOR(f, f->byes > 0);
  return daemon_wait(&worker, PATIENCE_MS);
}

static void kill_worker(void) {
  daemon_kill(&worker);
}

static size_t count(const fake *f, Btc__Outcome outcome) {
  size_t n = 0;
  for (size_t i = 0; i < f->n_results; i++) n += f->results[i].outcome == outcome;
  return n;
}

static const got *result_of(const fake *f, const char *id) {
  for (size_t i = f->n_results; i-- > 0;)
    if (strcmp(f->results[i].id, id) == 0) return &f->results[i];
  fail_msg("no result of %s", id);
  return NULL;
}

static pid_t child_of(pid_t parent) {
  char path[64];
  int pid = 0;
  snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)parent, (int)parent);
  FILE *f = fopen(path, "re");
  if (f && fscanf(f, "%d", &pid) != 1) pid = 0;
  if (f) fclose(f);
  return pid;
}

/* ---- tests ---- */

static void test_worker_answers_what_is_granted(void **state) {
  (void)state;
  fake f;
  char ids[40][24];
  fake_open(&f);
  START(&f, "--engine", "stub", "--credits", "64");
  assert_string_equal(f.model_class, "stub");
  assert_string_equal(f.worker, "w1");
  WAIT_FOR(&f, f.free_items == 64);
  pick_ids(ids, 40, "", -1, STUB_FINE);
  grant_ids(&f, 1, 11, false, ids, 20);
  grant_ids(&f, 2, 12, false, ids + 20, 20);
  WAIT_FOR(&f, f.n_results == 40 && f.grant_acks == 2);
  for (size_t i = 0; i < 40; i++) {
    const got *g = result_of(&f, ids[i]);
    expect_caption(g);
    assert_int_equal(g->cid, i / 20 + 1);
    assert_int_equal(g->idx, (i / 20 + 1) * 100 + i % 20);
  }
  grant_ids(&f, 1, 11, false, ids, 20); /* as if the ack had been lost */
  WAIT_FOR(&f, f.grant_acks == 3);
  linger(&f, 300);
  assert_int_equal(f.n_results, 40);
  WAIT_FOR(&f, f.free_items == 64);
  assert_int_equal(stop(&f), 0);
  fake_close(&f);
}

static void test_worker_sends_results_until_answered(void **state) {
  (void)state;
  fake f;
  char ids[4][24];
  fake_open(&f);
  START(&f, "--engine", "stub");
  pick_ids(ids, 4, "", -1, STUB_FINE);
  f.mute_results = true;
  grant_ids(&f, 1, 11, false, ids, 4);
  WAIT_FOR(&f, f.repeated >= 2);
  assert_int_equal(f.n_results, 4);
  f.mute_results = false;
  size_t before = f.repeated;
  WAIT_FOR(&f, f.repeated > before);
  before = f.repeated;
  linger(&f, 2500);
  assert_int_equal(f.repeated, before);
  assert_int_equal(stop(&f), 0);
  fake_close(&f);
}

static void test_worker_survives_a_crash_of_its_engine(void **state) {
  (void)state;
  fake f;
  char ids[8][24];
  fake_open(&f);
  START(&f, "--engine", "stub", "--stub-faults", "crash=0.05", "--batch", "4", "--credits", "8");
  int hellos = f.hellos;
  pick_ids(ids, 8, "crash=0.05", 2, STUB_CRASH);
  grant_ids(&f, 1, 11, false, ids, 8);
  WAIT_FOR(&f, f.n_results == 8);
  expect_caption(result_of(&f, ids[0]));
  expect_caption(result_of(&f, ids[1]));
  for (int i = 2; i < 4; i++) { /* its batch was started with it */
    assert_int_equal(result_of(&f, ids[i])->outcome, BTC__OUTCOME__OUTCOME_CRASH);
    assert_string_equal(result_of(&f, ids[i])->record, "");
    assert_non_null(strstr(result_of(&f, ids[i])->message, "signal"));
    assert_non_null(strstr(result_of(&f, ids[i])->message, ids[2])); /* its last words */
  }
  for (int i = 4; i < 8; i++) expect_caption(result_of(&f, ids[i])); /* not started then: they are nobody's suspects */
  grant_ids(&f, 2, 12, true, ids + 2, 1);
  grant_ids(&f, 3, 13, true, ids + 3, 1);
  WAIT_FOR(&f, f.n_results == 10);
  assert_int_equal(result_of(&f, ids[2])->outcome, BTC__OUTCOME__OUTCOME_CRASH);
  expect_caption(result_of(&f, ids[3]));
  assert_int_equal(f.hellos, hellos); /* its session lives on */
  assert_int_equal(stop(&f), 0);
  fake_close(&f);
}

/* Two devices lost in a row, at two items: the next child gets what the last one had, and the queue hears nothing of it. */
static void test_worker_keeps_items_of_a_lost_device(void **state) {
  (void)state;
  fake f;
  char ids[8][24], faults[700];
  fake_open(&f);
  snprintf(faults, sizeof faults, "lost=0.05,marks=%s", test_tmp_dir());
  START(&f, "--engine", "stub", "--stub-faults", faults, "--batch", "4", "--credits", "8");
  int hellos = f.hellos;
  pick_ids(ids, 4, "lost=0.05", 1, STUB_LOST);
  pick_ids(ids + 4, 4, "lost=0.05", 2, STUB_LOST);
  grant_ids(&f, 1, 11, false, ids, 8);
  WAIT_FOR(&f, f.n_results == 8);
  for (int i = 0; i < 8; i++) expect_caption(result_of(&f, ids[i]));
  assert_true(daemon_said(&worker, "event=device-lost"));
  assert_int_equal(f.hellos, hellos);
  assert_int_equal(stop(&f), 0);
  fake_close(&f);
}

/* Each try loses it: not for ever. */
static void test_worker_suspects_an_item_that_always_loses_the_device(void **state) {
  (void)state;
  fake f;
  char ids[1][24];
  fake_open(&f);
  START(&f, "--engine", "stub", "--stub-faults", "lost=0.05", "--batch", "1");
  pick_ids(ids, 1, "lost=0.05", 0, STUB_LOST);
  grant_ids(&f, 1, 11, true, ids, 1);
  WAIT_FOR(&f, f.n_results == 1);
  assert_int_equal(f.results[0].outcome, BTC__OUTCOME__OUTCOME_CRASH);
  assert_non_null(strstr(f.results[0].message, "lost its device"));
  assert_int_equal(stop(&f), 0);
  fake_close(&f);
}

/* A memory cgroup of 64 MiB, of either version, with the worker in it; false where this user may not make one. */
static char group[256];

static bool put_into_small_cgroup(pid_t pid) {
  static const struct {
    const char *root, *limit;
  } kinds[] = {{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"}};
  for (size_t i = 0; i < 2; i++) {
    char path[512];
    FILE *f;
    snprintf(group, sizeof group, "%s/btcchat-test-%d", kinds[i].root, (int)getpid());
    if (mkdir(group, 0755) != 0) {
      group[0] = 0;
      continue;
    }
    snprintf(path, sizeof path, "%s/%s", group, kinds[i].limit);
    bool good = (f = fopen(path, "we")) && fputs("67108864", f) >= 0;
    if (f && fclose(f) != 0) good = false;
    snprintf(path, sizeof path, "%s/cgroup.procs", group);
    f = good ? fopen(path, "we") : NULL;
    good = f && fprintf(f, "%d", (int)pid) > 0;
    if (f && fclose(f) != 0) good = false;
    if (good) return true;
    rmdir(group);
    group[0] = 0;
  }
  return false;
}

static void test_worker_tells_an_engine_killed_for_memory(void **state) {
  (void)state;
  fake f;
  char ids[4][24];
  fake_open(&f);
  START(&f, "--engine", "stub", "--stub-faults", "crash=0.05,grow=0.05", "--batch", "1", "--credits", "4");
  if (!put_into_small_cgroup(worker.pid)) {
    print_message("skipped: no memory cgroup can be made here\n");
    stop(&f);
    fake_close(&f);
    skip();
  }
  pick_ids(ids, 2, "crash=0.05,grow=0.05", 1, STUB_CRASH); /* the engine of before is outside the group: this one ends it */
  pick_ids(ids + 2, 2, "crash=0.05,grow=0.05", 0, STUB_GROW);
  grant_ids(&f, 1, 11, false, ids, 2);
  WAIT_FOR(&f, f.n_results == 2);
  assert_int_equal(result_of(&f, ids[1])->outcome, BTC__OUTCOME__OUTCOME_CRASH);
  grant_ids(&f, 2, 12, true, ids + 2, 1);
  grant_ids(&f, 3, 13, false, ids + 3, 1);
  WAIT_FOR(&f, f.n_results == 4);
  assert_int_equal(result_of(&f, ids[2])->outcome, BTC__OUTCOME__OUTCOME_OOM);
  assert_string_equal(result_of(&f, ids[2])->reason, "oom");
  assert_non_null(strstr(result_of(&f, ids[2])->message, "memory ran out"));
  expect_caption(result_of(&f, ids[3])); /* by the next engine */
  assert_int_equal(stop(&f), 0);
  fake_close(&f);
}

static void test_worker_kills_an_engine_that_hangs(void **state) {
  (void)state;
  fake f;
  char ids[3][24];
  fake_open(&f);
  START(&f, "--engine", "stub", "--stub-faults", "hang=0.05", "--stall-ms", "400");
  pick_ids(ids, 3, "hang=0.05", 1, STUB_HANG);
  grant_ids(&f, 1, 11, false, ids, 3);
  WAIT_FOR(&f, f.n_results == 3);
  expect_caption(result_of(&f, ids[0]));
  assert_int_equal(result_of(&f, ids[1])->outcome, BTC__OUTCOME__OUTCOME_TIMEOUT);
  assert_string_equal(result_of(&f, ids[1])->reason, "timeout");
  assert_int_equal(result_of(&f, ids[2])->outcome, BTC__OUTCOME__OUTCOME_TIMEOUT);
  grant_ids(&f, 2, 12, true, ids + 2, 1);
  WAIT_FOR(&f, f.n_results == 4);
  expect_caption(result_of(&f, ids[2]));
  assert_int_equal(stop(&f), 0);
  fake_close(&f);
}

static void test_worker_drains_on_sigterm(void **state) {
  (void)state;
  fake f;
  char ids[32][24];
  fake_open(&f);
  START(&f, "--engine", "stub", "--stub-us", "400000", "--batch", "2", "--credits", "32");
  pick_ids(ids, 32, "", -1, STUB_FINE);
  grant_ids(&f, 1, 11, false, ids, 16);
  grant_ids(&f, 2, 12, false, ids + 16, 16);
  WAIT_FOR(&f, f.started_mask != 0);
  daemon_signal(&worker, SIGTERM);
  WAIT_FOR(&f, f.byes > 0);
  assert_int_equal(daemon_wait(&worker, PATIENCE_MS), 0);
  assert_true(f.draining);
  assert_int_equal(f.free_items, 0);
  assert_in_range(f.n_results, 2, 10); /* what the child had: a batch running, one read ahead; more where the signal came late */
  assert_int_equal(count(&f, BTC__OUTCOME__OUTCOME_OK), f.n_results);
  assert_int_equal(f.n_released, 2);
  assert_int_equal(f.released[0], 2); /* the untouched one goes at once */
  assert_int_equal(f.released[1], 1);
  fake_close(&f);
}

static void test_worker_drains_when_the_broker_asks(void **state) {
  (void)state;
  fake f;
  char ids[4][24];
  fake_open(&f);
  START(&f, "--engine", "stub", "--stub-us", "20000");
  pick_ids(ids, 4, "", -1, STUB_FINE);
  grant_ids(&f, 1, 11, false, ids, 4);
  WAIT_FOR(&f, f.started_mask != 0);
  Btc__DrainRequest d = BTC__DRAIN_REQUEST__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_DRAIN_REQUEST);
  e.drain_request = &d;
  d.grace_ms = 5000;
  e.req_id = ++f.req;
  say(&f, &e);
  WAIT_FOR(&f, f.byes > 0);
  assert_int_equal(daemon_wait(&worker, PATIENCE_MS), 0);
  assert_int_equal(f.n_results, 4);
  assert_int_equal(f.n_released, 0);
  fake_close(&f);
}

static void test_worker_second_signal_hands_back_at_once(void **state) {
  (void)state;
  fake f;
  char ids[2][24];
  fake_open(&f);
  START(&f, "--engine", "stub", "--stub-faults", "hang=0.05", "--batch", "1");
  pick_ids(ids, 2, "hang=0.05", 0, STUB_HANG);
  grant_ids(&f, 1, 11, false, ids, 1);
  grant_ids(&f, 2, 12, false, ids + 1, 1);
  WAIT_FOR(&f, f.started_mask != 0 && f.grant_acks == 2);
  daemon_signal(&worker, SIGINT);
  WAIT_FOR(&f, f.draining);
  linger(&f, 300);
  assert_int_equal(f.byes, 0);
  daemon_signal(&worker, SIGTERM);
  WAIT_FOR(&f, f.byes > 0);
  assert_int_equal(daemon_wait(&worker, PATIENCE_MS), 0);
  assert_int_equal(f.n_released, 2);
  assert_int_equal(f.n_results, 0);
  fake_close(&f);
}

static void test_worker_grace_ends_the_drain(void **state) {
  (void)state;
  fake f;
  char ids[1][24];
  fake_open(&f);
  START(&f, "--engine", "stub", "--stub-faults", "hang=0.05", "--grace-ms", "300");
  pick_ids(ids, 1, "hang=0.05", 0, STUB_HANG);
  grant_ids(&f, 1, 11, false, ids, 1);
  WAIT_FOR(&f, f.started_mask != 0);
  assert_int_equal(stop(&f), 0);
  assert_int_equal(f.n_released, 1);
  fake_close(&f);
}

static int oom_score(pid_t pid) {
  char path[64];
  int score = -2000;
  snprintf(path, sizeof path, "/proc/%d/oom_score_adj", (int)pid);
  FILE *f = fopen(path, "re");
  if (!f || fscanf(f, "%d", &score) != 1) fail_msg("cannot read %s", path);
  fclose(f);
  return score;
}

static void test_worker_engine_killed_from_outside(void **state) {
  (void)state;
  fake f;
  char ids[4][24];
  fake_open(&f);
  START(&f, "--engine", "stub", "--stub-us", "300000", "--batch", "2");
  pid_t first = child_of(worker.pid);
  assert_true(first > 0);
  assert_true(oom_score(first) >= 500 && oom_score(first) >= oom_score(worker.pid)); /* the system would take it, too */
  kill(first, SIGKILL);                                                              /* idle: nobody is to blame */
  WAIT_FOR(&f, child_of(worker.pid) != 0 && child_of(worker.pid) != first);
  pick_ids(ids, 4, "", -1, STUB_FINE);
  grant_ids(&f, 1, 11, false, ids, 4);
  WAIT_FOR(&f, f.started_mask != 0);
  kill(child_of(worker.pid), SIGKILL);
  WAIT_FOR(&f, f.n_results == 4);
  assert_int_equal(count(&f, BTC__OUTCOME__OUTCOME_CRASH), 2);
  assert_int_equal(count(&f, BTC__OUTCOME__OUTCOME_OK), 2);
  assert_non_null(strstr(result_of(&f, ids[0])->message, "signal 9"));
  assert_int_equal(stop(&f), 0);
  fake_close(&f);
}

static void test_worker_engine_dies_with_its_agent(void **state) {
  (void)state;
  fake f;
  fake_open(&f);
  START(&f, "--engine", "stub");
  pid_t child = child_of(worker.pid);
  assert_true(child > 0);
  kill_worker();
  WAIT_FOR(&f, kill(child, 0) != 0 && errno == ESRCH);
  fake_close(&f);
}

static void test_worker_goes_to_the_next_broker(void **state) {
  (void)state;
  fake a, b;
  char ids[2][24], both[160];
  fake_open(&a);
  fake_open(&b);
  b.session = 200;
  snprintf(both, sizeof both, "%s,%s", a.endpoint, b.endpoint);
  daemon_init(&worker, "worker",
              (const char *const[]){"worker", "--brokers", both, "--name", "w1", "--engine", "stub", "--stub-us", "1500000",
                                    "--batch", "1", NULL});
  daemon_start(&worker);
  daemon_wait_ready(&a);
  pick_ids(ids, 2, "", -1, STUB_FINE);
  grant_ids(&a, 5, 55, false, ids, 2);
  WAIT_FOR(&a, a.started_mask != 0 && a.grant_acks == 1);
  a.silent = true;
  for (int64_t end = test_now_ms() + PATIENCE_MS; !b.hellos && test_now_ms() < end;) {
    pump(&a, 5); /* hears everything, says nothing */
    pump(&b, 5);
  }
  if (!b.hellos) daemon_show(&worker);
  assert_true(b.hellos > 0);
  assert_int_equal(b.n_held, 1);
  assert_int_equal(b.held_cid, 5);
  assert_int_equal(b.held_token, 55);
  WAIT_FOR(&b, b.n_results == 2);
  expect_caption(result_of(&b, ids[0]));
  expect_caption(result_of(&b, ids[1]));
  assert_int_equal(stop(&b), 0);
  fake_close(&a);
  fake_close(&b);
}

static void test_worker_keeps_results_across_brokers(void **state) {
  (void)state;
  fake a, b;
  char ids[2][24], both[160];
  fake_open(&a);
  fake_open(&b);
  snprintf(both, sizeof both, "%s,%s", a.endpoint, b.endpoint);
  daemon_init(&worker, "worker", (const char *const[]){"worker", "--brokers", both, "--name", "w1", "--engine", "stub", NULL});
  daemon_start(&worker);
  daemon_wait_ready(&a);
  a.mute_results = true;
  pick_ids(ids, 2, "", -1, STUB_FINE);
  grant_ids(&a, 5, 55, false, ids, 2);
  WAIT_FOR(&a, a.n_results == 2);
  fake_close(&a); /* it dies with results unanswered */
  WAIT_FOR(&b, b.n_results == 2);
  assert_int_equal(b.n_held, 1); /* until they are answered the chunk is held */
  assert_int_equal(stop(&b), 0);
  fake_close(&b);
}

static void test_worker_waits_while_its_name_is_taken(void **state) {
  (void)state;
  fake f;
  fake_open(&f);
  f.busy_hellos = 3;
  START(&f, "--engine", "stub");
  assert_true(f.hellos >= 4);
  int hellos = f.hellos;
  f.session = 101; /* the broker was started again: it knows no session */
  nack(&f, 1, BTC__NACK_CODE__NACK_SESSION);
  WAIT_FOR(&f, f.hellos > hellos);
  assert_int_equal(stop(&f), 0);
  fake_close(&f);
}

static void test_worker_ends_when_it_is_refused(void **state) {
  (void)state;
  fake f;
  fake_open(&f);
  f.refuse_hello = BTC__NACK_CODE__NACK_VERSION;
  daemon_init(&worker, "worker", (const char *const[]){"worker", "--brokers", f.endpoint, "--engine", "stub", NULL});
  daemon_start(&worker);
  WAIT_FOR(&f, !daemon_alive(&worker));
  daemon_wait_log(&worker, "refuses this worker", 100);
  fake_close(&f);
}

static void test_worker_forgets_what_is_revoked(void **state) {
  (void)state;
  fake f;
  char ids[8][24];
  fake_open(&f);
  START(&f, "--engine", "stub", "--stub-us", "200000", "--batch", "1", "--credits", "8");
  pick_ids(ids, 8, "", -1, STUB_FINE);
  grant_ids(&f, 1, 11, false, ids, 4);
  grant_ids(&f, 2, 12, false, ids + 4, 4);
  WAIT_FOR(&f, f.started_mask != 0 && f.grant_acks == 2);
  Btc__Held held = BTC__HELD__INIT, *list = &held;
  Btc__Revoke r = BTC__REVOKE__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_REVOKE);
  held.cid = 1;
  held.token = 11;
  r.chunks = &list;
  r.n_chunks = 1;
  r.why = "cancelled";
  e.revoke = &r;
  e.req_id = ++f.req;
  size_t before = f.n_results;
  say(&f, &e);
  WAIT_FOR(&f, f.n_results >= 4 && f.free_items == 8);
  size_t of_first = 0;
  for (size_t i = before; i < f.n_results; i++) of_first += f.results[i].cid == 1;
  assert_in_range(of_first, 0, 1); /* one may have been on its way */
  assert_int_equal(f.n_results - before - of_first, 4);
  assert_int_equal(stop(&f), 0);
  fake_close(&f);
}

static void test_worker_refuses_a_malformed_grant(void **state) {
  (void)state;
  fake f;
  char ids[1][24] = {"x"};
  fake_open(&f);
  START(&f, "--engine", "stub");
  grant_ids(&f, 0, 11, false, ids, 1);
  WAIT_FOR(&f, f.other_acks == 1);
  assert_int_equal(f.grant_acks, 0);
  assert_int_equal(stop(&f), 0);
  fake_close(&f);
}

static void test_worker_says_why_its_engine_cannot_start(void **state) {
  (void)state;
  program_result r = RUN("worker", "-m", "/no/such/model");
  assert_int_equal(r.code, 1);
  assert_non_null(strstr(r.err, "btcchat: the engine cannot start: cannot open '/no/such/model"));
  program_clear(&r);
  r = RUN("worker", "--engine", "stub", "--name", "a b");
  assert_int_equal(r.code, 2);
  assert_non_null(strstr(r.err, "'a b'"));
  program_clear(&r);
  r = RUN("worker", "--engine", "stub", "--brokers", "tcp://192.0.2.1:7412");
  assert_int_equal(r.code, 2);
  assert_non_null(strstr(r.err, "keygen"));
  program_clear(&r);
}

/* ---- the model ---- */

/* A record without what may differ between runs. */
static char *comparable(const char *line) {
  json_t *r = json_loadb(line, strcspn(line, "\n"), 0, NULL);
  assert_non_null(r);
  json_object_del(r, "timing_ms");
  char *text = json_dumps(r, JSON_COMPACT);
  json_decref(r);
  return text;
}

static void check_model_equals_caption_pairs(const char *ranks) {
  static const char *const names[] = {"houses", "building", "road", "removed", "unchanged"};
  const char *source = getenv("BTCCHAT_SOURCE");
  char manifest[300], model[300], specs[9][1400], *text = NULL;
  const char *list[9];
  size_t len = 0;
  fake f;
  assert_non_null(source);
  snprintf(model, sizeof model, "%s/models/nano", source);
  snprintf(manifest, sizeof manifest, "%s/pairs.jsonl", test_tmp_dir());
  for (int i = 0; i < 5; i++)
    snprintf(specs[i], sizeof specs[i],
             "{\"id\":\"%s\",\"before\":\"%s/samples/%s_before.png\",\"after\":\"%s/samples/%s_after.png\"%s}", names[i], source,
             names[i], source, names[i],
             i == 1   ? ",\"meta\":{\"b\":1,\"a\":[2.50,\"\\u00e9\"]}"
             : i == 2 ? ",\"prompt\":\"What is new?\""
                      : "");
  snprintf(specs[5], sizeof specs[5], "{\"id\":\"gone\",\"before\":\"/no/b.png\",\"after\":\"/no/a.png\"}");
  snprintf(specs[6], sizeof specs[6],
           "{\"id\":\"text\",\"before\":\"%s/samples/README.md\",\"after\":\"%s/samples/README.md\",\"meta\":{}}", source, source);
  snprintf(specs[7], sizeof specs[7],
           "{\"id\":\"win\",\"before\":\"%s/samples/houses_before.png\",\"after\":\"%s/samples/"
           "houses_after.png\",\"window\":[10,20,200,210]}",
           source, source);
  snprintf(specs[8], sizeof specs[8], "{\"id\":\"bad\",\"befor\":1}");
  FILE *out = open_memstream(&text, &len);
  for (int i = 0; i < 9; i++) fprintf(out, "%s\n", specs[i]);
  fclose(out);
  assert_int_equal(btc_file_publish(manifest, text, len, NULL), BTC_OK);
  free(text);
  program_result r = RUN("caption", "--pairs", manifest, "-m", model, "--threads", "1");
  assert_int_equal(r.code, 3);

  /* what a broker makes of the last one */
  snprintf(specs[8], sizeof specs[8], "{\"id\":\"bad\",\"problem\":\"%s\"}", "line 9: unknown key 'befor'");
  for (int i = 0; i < 9; i++) list[i] = specs[i];
  fake_open(&f);
  START(&f, "-m", model, "--threads", "1", "--batch", "4", "--pipe", ranks);
  assert_int_equal(strncmp(f.model_class, "sha256:", 7), 0);
  grant_specs(&f, 1, 11, false, "{}", list, 9);
  WAIT_FOR(&f, f.n_results == 9);
  const char *line = r.out;
  for (int i = 0; i < 9; i++, line = strchr(line, '\n') + 1) {
    const got *g = NULL;
    for (size_t k = 0; k < f.n_results; k++)
      if (f.results[k].idx == 100 + (uint64_t)i) g = &f.results[k];
    assert_non_null(g);
    assert_int_equal(g->outcome, i < 5 || i == 7 ? BTC__OUTCOME__OUTCOME_OK : BTC__OUTCOME__OUTCOME_PERMANENT);
    char *ours = comparable(g->record), *theirs = comparable(line);
    assert_string_equal(ours, theirs);
    free(ours);
    free(theirs);
  }
  assert_string_equal(result_of(&f, "gone")->reason, "not-found");
  assert_string_equal(result_of(&f, "text")->reason, "decode");
  assert_non_null(strstr(result_of(&f, "win")->record, "\"window\":[10,20,200,210],\"heat\":\""));
  assert_int_equal(stop(&f), 0);
  program_clear(&r);
  fake_close(&f);
}

static void test_worker_model_equals_caption_pairs(void **state) {
  (void)state;
  check_model_equals_caption_pairs("1");
}

static void test_worker_pipeline_equals_caption_pairs(void **state) {
  (void)state;
  check_model_equals_caption_pairs("3");
}

/* What a sick disk does is tried again; what stays as it is is not. /proc/self/mem opens and cannot be read at its beginning (EIO).
 */
static void test_worker_model_sorts_unreadable_images(void **state) {
  (void)state;
  static const char *const specs[] = {"{\"id\":\"sick\",\"before\":\"/proc/self/mem\",\"after\":\"/proc/self/mem\"}",
                                      "{\"id\":\"folder\",\"before\":\"/proc\",\"after\":\"/proc\"}"};
  fake f;
  fake_open(&f);
  START(&f, "-m", tiny_checkpoint(), "--threads", "1");
  grant_specs(&f, 1, 11, false, "", specs, 2);
  WAIT_FOR(&f, f.n_results == 2);
  assert_int_equal(result_of(&f, "sick")->outcome, BTC__OUTCOME__OUTCOME_TRANSIENT);
  assert_non_null(strstr(result_of(&f, "sick")->record, "\"status\":\"failed\""));
  assert_int_equal(result_of(&f, "folder")->outcome, BTC__OUTCOME__OUTCOME_PERMANENT);
  assert_int_equal(stop(&f), 0);
  fake_close(&f);
}

/* A child that follows another does not read the model's files to tell which they are: at full size that takes seconds. */
static void test_worker_engine_restarts_without_reading_the_files(void **state) {
  (void)state;
  char model[300];
  fake f;
  snprintf(model, sizeof model, "%s/models/nano", getenv("BTCCHAT_SOURCE"));
  fake_open(&f);
  START(&f, "-m", model, "--threads", "1", "--batch", "2");
  assert_true(daemon_said(&worker, "files=read"));
  assert_false(daemon_said(&worker, "files=known"));
  kill(child_of(worker.pid), SIGKILL);
  WAIT_FOR(&f, daemon_said(&worker, "files=known"));
  assert_int_equal(stop(&f), 0);
  fake_close(&f);
}

/* A model that vanishes under a running worker: items go back, no new ones are wanted, and work goes on when the model is there
 * again. */
static void test_worker_gives_back_what_it_cannot_do(void **state) {
  (void)state;
  fake f;
  char from[300], to[300];
  static const char *const spec[] = {"{\"id\":\"x\",\"before\":\"/no\",\"after\":\"/no\"}"};
  fake_open(&f);
  START(&f, "-m", tiny_checkpoint(), "--threads", "1");
  snprintf(from, sizeof from, "%s/config.json", tiny_checkpoint());
  snprintf(to, sizeof to, "%s/config.away", tiny_checkpoint());
  assert_int_equal(rename(from, to), 0);
  kill(child_of(worker.pid), SIGKILL);
  daemon_wait_log(&worker, "engine-died", PATIENCE_MS);
  grant_specs(&f, 1, 11, false, "", spec, 1);
  WAIT_FOR(&f, f.n_released == 1 && f.draining && f.free_items == 0);
  assert_int_equal(rename(to, from), 0);
  WAIT_FOR(&f, !f.draining && f.free_items > 0);
  grant_specs(&f, 1, 12, false, "", spec, 1);
  WAIT_FOR(&f, f.n_results == 1);
  assert_string_equal(result_of(&f, "x")->reason, "not-found");
  assert_int_equal(stop(&f), 0);
  fake_close(&f);
}

static int after(void **state) {
  (void)state;
  daemon_kill(&worker);
  for (int i = 0; *group && rmdir(group) != 0 && errno == EBUSY && i < 100; i++) test_sleep_ms(20);
  group[0] = 0;
  return 0;
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_teardown(test_worker_answers_what_is_granted, after),
    cmocka_unit_test_teardown(test_worker_sends_results_until_answered, after),
    cmocka_unit_test_teardown(test_worker_survives_a_crash_of_its_engine, after),
    cmocka_unit_test_teardown(test_worker_keeps_items_of_a_lost_device, after),
    cmocka_unit_test_teardown(test_worker_suspects_an_item_that_always_loses_the_device, after),
    cmocka_unit_test_teardown(test_worker_tells_an_engine_killed_for_memory, after),
    cmocka_unit_test_teardown(test_worker_kills_an_engine_that_hangs, after),
    cmocka_unit_test_teardown(test_worker_drains_on_sigterm, after),
    cmocka_unit_test_teardown(test_worker_drains_when_the_broker_asks, after),
    cmocka_unit_test_teardown(test_worker_second_signal_hands_back_at_once, after),
    cmocka_unit_test_teardown(test_worker_grace_ends_the_drain, after),
    cmocka_unit_test_teardown(test_worker_engine_killed_from_outside, after),
    cmocka_unit_test_teardown(test_worker_engine_dies_with_its_agent, after),
    cmocka_unit_test_teardown(test_worker_goes_to_the_next_broker, after),
    cmocka_unit_test_teardown(test_worker_keeps_results_across_brokers, after),
    cmocka_unit_test_teardown(test_worker_waits_while_its_name_is_taken, after),
    cmocka_unit_test_teardown(test_worker_ends_when_it_is_refused, after),
    cmocka_unit_test_teardown(test_worker_forgets_what_is_revoked, after),
    cmocka_unit_test_teardown(test_worker_refuses_a_malformed_grant, after),
    cmocka_unit_test_teardown(test_worker_says_why_its_engine_cannot_start, after),
    cmocka_unit_test_teardown(test_worker_model_equals_caption_pairs, after),
    cmocka_unit_test_teardown(test_worker_pipeline_equals_caption_pairs, after),
    cmocka_unit_test_teardown(test_worker_model_sorts_unreadable_images, after),
    cmocka_unit_test_teardown(test_worker_engine_restarts_without_reading_the_files, after),
    cmocka_unit_test_teardown(test_worker_gives_back_what_it_cannot_do, after),
};
BTC_TEST_MAIN(tests)
