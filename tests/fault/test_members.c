/*
 * Workers whose memory holds a part of the model only, a broker that makes pipelines of them, and captions that are those of one
 * process whatever happens to ranks, the driver, agents and the broker while items are under way. Those that wait for deadlines run
 * with BTCCHAT_LONG=1 only.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "base/base.h"
#include "broker/plan.h"
#include "cluster.h"
#include "program.h"
#include "sample_pairs.h"
#include "test.h"
#include "worker/measure.h"

enum { BATCH = 8, MAX_TOKENS = 128, PATIENCE_MS = 60000 };

static cluster c;

/* What is promised is 3 s; it is asked for where nothing else runs. A machine that is shared by other tests only has to get there.
 */
static int form_ms(void) {
  return getenv("BTCCHAT_LONG") ? 3000 : PATIENCE_MS;
}

static const char *model_path(void) {
  static char path[300];
  snprintf(path, sizeof path, "%s/models/nano", getenv("BTCCHAT_SOURCE"));
  return path;
}

/* ---- a cluster whose workers hold parts ---- */

/* Does the planner make one pipe of exactly n such workers, and none of fewer? */
static bool makes(const measure_result *r, const btc_plan_block *blocks, int n_blocks, double mib, int n) {
  btc_plan_member members[8] = {0};
  static char names[8][8];
  const btc_plan_model model = {.fingerprint = "m",
                                .block = blocks,
                                .blocks = n_blocks,
                                .slots = (int)r->slots,
                                .fixed_bytes = (int64_t)r->fixed_bytes,
                                .ms_per_price = 1};
  bool good = true;
  for (int k = n - 1; k <= n; k++) {
    for (int i = 0; i < k; i++) {
      snprintf(names[i], sizeof names[i], "w%d", i);
      members[i] = (btc_plan_member){.name = names[i], .fingerprint = "m", .site = "", .memory_bytes = (int64_t)(mib * 1048576)};
    }
    const btc_plan_input in = {.model = &model, .models = 1, .member = members, .members = k};
    btc_plan plan;
    btc_error err;
    if (btc_plan_make(&in, &plan, &err) != BTC_OK) fail_msg("%s", err.message);
    good = good && plan.pipes == (k == n) && (k < n || plan.pipe[0].stages == n);
    btc_plan_free(&plan);
  }
  return good;
}

/* So little memory that it takes n workers. */
static double memory_for(int n) {
  static btc_plan_block blocks[BTC_PLAN_BLOCKS];
  btc_model *m;
  btc_error err;
  measure_result r;
  int n_blocks = 0;
  double mib;
  setenv("XDG_CACHE_HOME", test_tmp_dir(), 1);
  const measure_options o = {.device = "cpu",
                             .threads = 1,
                             .bf16 = btc_cpu_has_bf16(),
                             .slots = BATCH,
                             .max_tokens = MAX_TOKENS,
                             .places = 40,
                             .class = "t"};
  assert_int_equal(btc_model_open(model_path(), &m, &err), BTC_OK);
  assert_int_equal(measure_member(m, &o, &r, &err), BTC_OK);
  for (size_t i = 0; i < r.n; i++)
    for (uint32_t k = 0; k < r.block[i].count; k++)
      blocks[n_blocks++] = (btc_plan_block){.kind = (btc_plan_kind)r.block[i].kind,
                                            .weight_bytes = (int64_t)r.block[i].weight_bytes,
                                            .kv_bytes = (int64_t)r.block[i].kv_bytes,
                                            .work_bytes = (int64_t)r.block[i].work_bytes,
                                            .price = r.block[i].price};
  for (mib = (double)r.whole_bytes / 1048576 - 0.05; mib > 1 && !makes(&r, blocks, n_blocks, mib, n);) mib -= 0.05;
  measure_free(&r);
  btc_model_close(&m);
  if (mib <= 1) fail_msg("no memory makes the planner take %d workers", n);
  return mib;
}

static cluster_options of_parts(int n, int workers, int brokers) {
  return (cluster_options){.workers = workers,
                           .brokers = brokers,
                           .model = model_path(),
                           .memory_mib = memory_for(n),
                           .stall_ms = 60000,
                           .dead_ms = 2000,
                           .lease_ms = 30000};
}

/* workers of which it takes n for a pipe. */
static void start(int n, int workers, int brokers) {
  const cluster_options o = of_parts(n, workers, brokers);
  cluster_start(&c, &o);
}

static const char *say(const char *command) {
  return redis_say(c.redis, "t", "%s", command);
}

static uint64_t epoch_now(void) {
  return strtoull(say("HGET $pipe:p1 epoch"), NULL, 10);
}

static bool active(void) {
  return strcmp(say("HGET $pipe:p1 st"), "ACTIVE") == 0;
}

/* Until the pipe is ACTIVE in an epoch after `old`. */
static uint64_t wait_active(uint64_t old, int ms) {
  for (int64_t end = test_now_ms() + ms; !active() || epoch_now() <= old; test_sleep_ms(10))
    if (test_now_ms() > end) {
      cluster_show(&c);
      fail_msg("not active after epoch %llu: %s", (unsigned long long)old, say("HGETALL $pipe:p1"));
    }
  return epoch_now();
}

/* The worker that is rank r of p1 now. */
static int worker_of(int rank) {
  char name[64] = "";
  const char *plan = say("HGET $pipe:p1 plan"), *at = plan;
  for (int i = 0; i <= rank && at; i++) at = strstr(at + (i > 0), "\"worker\":\"");
  assert_non_null(at);
  assert_int_equal(sscanf(at, "\"worker\":\"%63[^\"]", name), 1);
  return atoi(name + strlen("worker"));
}

/* The child of worker w that has `option` in its arguments: its rank's process (--shard) or its driver (--engine-child). 0: none.
 */
static pid_t child_of(int w, const char *option) {
  char path[64], text[4096];
  snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)c.worker[w].pid, (int)c.worker[w].pid);
  FILE *f = fopen(path, "re");
  size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
  if (f) fclose(f);
  text[n] = 0;
  for (char *save, *one = strtok_r(text, " ", &save); one; one = strtok_r(NULL, " ", &save)) {
    char line[4096];
    snprintf(path, sizeof path, "/proc/%s/cmdline", one);
    if (!(f = fopen(path, "re"))) continue;
    n = fread(line, 1, sizeof line, f);
    fclose(f);
    if (memmem(line, n, option, strlen(option))) return (pid_t)atoi(one);
  }
  return 0;
}

static void shards_of(int workers, pid_t pids[]) {
  for (int i = 0; i < workers; i++) pids[i] = child_of(i, "--shard");
}

static void skip_unless_long(void) {
  if (getenv("BTCCHAT_LONG")) return;
  print_message("skipped: set BTCCHAT_LONG=1\n");
  skip();
}

/* ---- jobs ---- */

typedef struct job {
  const char *jid;
  char *want;
} job;

static job begin(int items) {
  const char *manifest = sample_manifest("pairs.jsonl", items);
  program_result direct = RUN("caption", "--pairs", manifest, "-m", model_path(), "--threads", "1");
  assert_int_equal(direct.code, 3);
  job j = {.want = records_comparable(direct.out)};
  program_clear(&direct);
  j.jid = cluster_submit(&c, manifest, NULL);
  return j;
}

static int done(const job *j) {
  return atoi(cluster_job(&c, j->jid, "done"));
}

static void wait_done(const job *j, int items) {
  for (int64_t end = test_now_ms() + PATIENCE_MS; done(j) < items; test_sleep_ms(5))
    if (test_now_ms() > end) {
      cluster_show(&c);
      fail_msg("%d items were not done in time", items);
    }
}

static void finish(job *j) {
  cluster_wait(&c, j->jid, 2 * PATIENCE_MS);
  program_result results = RUN("results", j->jid, "--broker", c.clients);
  char *got = records_comparable(results.out);
  assert_string_equal(j->want, got);
  program_clear(&results);
  free(got);
  free(j->want);
  cluster_check(&c);
}

/* ---- captions ---- */

static void captions(int n) {
  start(n, n, 1);
  job j = begin(40);
  wait_active(0, PATIENCE_MS);
  finish(&j);
  assert_int_equal(epoch_now(), 1);
  program_result r = RUN("pipes", "--broker", c.clients);
  assert_non_null(strstr(r.out, "p1 ACTIVE, epoch 1"));
  program_clear(&r);
  r = RUN("pipes", "--json", "--broker", c.clients);
  json_t *doc = json_loads(r.out, 0, NULL);
  assert_int_equal(json_array_size(json_object_get(json_array_get(doc, 0), "stages")), n);
  json_decref(doc);
  program_clear(&r);
  cluster_stop(&c);
}

static void test_members_two_give_the_captions(void **state) {
  (void)state;
  captions(2);
}

static void test_members_three_give_the_captions(void **state) {
  (void)state;
  captions(3);
}

static void test_members_four_give_the_captions(void **state) {
  (void)state;
  captions(4);
}

/* ---- processes that die while items are under way ---- */

static void check_survivors(const pid_t before[], int workers, int but) {
  for (int w = 0; w < workers; w++) {
    pid_t now = child_of(w, "--shard");
    if (w == but)
      assert_int_not_equal(now, before[w]);
    else
      assert_int_equal(now, before[w]);
  }
}

static void test_members_rank_killed(void **state) {
  (void)state;
  enum { N = 3 };
  pid_t before[N];
  start(N, N, 1);
  uint64_t epoch = wait_active(0, PATIENCE_MS);
  job j = begin(360);
  for (int r = 0; r < N; r++) {
    int w = worker_of(r);
    wait_done(&j, 40 + 80 * r);
    shards_of(N, before);
    kill(before[w], SIGKILL);
    epoch = wait_active(epoch, form_ms());
    check_survivors(before, N, w);
  }
  finish(&j);
  cluster_stop(&c);
}

/* A member dies while the first pipe is made of it, and comes back. */
static void killed_at(const char *point) {
  enum { N = 2 };
  const cluster_options o = of_parts(N, N, 1);
  cluster_prepare(&c, &o);
  daemon_env(&c.worker[1], point);
  cluster_start_broker(&c, 0);
  for (int w = 0; w < N; w++) cluster_start_worker(&c, w);
  job j = begin(40);
  for (int64_t end = test_now_ms() + PATIENCE_MS; daemon_alive(&c.worker[1]); test_sleep_ms(10)) assert_true(test_now_ms() < end);
  c.worker[1].env[0][0] = 0;
  cluster_start_worker(&c, 1);
  wait_active(0, PATIENCE_MS);
  finish(&j);
  cluster_stop(&c);
}

static void test_members_killed_at_form(void **state) {
  (void)state;
  killed_at("BTC_FAIL=member_form:1");
}

static void test_members_killed_at_ready(void **state) {
  (void)state;
  killed_at("BTC_FAIL=member_ready:1");
}

/* A rank has no memory for what rank 0 wants it to hold: rank 0 hears of it, and the pipe goes on with fewer items at once. */
static void test_members_rank_out_of_memory(void **state) {
  (void)state;
  enum { N = 2 };
  const cluster_options o = of_parts(N, N, 1);
  for (int w = 0; w < N; w++) {
    cluster_prepare(&c, &o);
    daemon_env(&c.worker[w], "BTC_FAIL=shard_reserve_memory:1");
    cluster_start_broker(&c, 0);
    for (int i = 0; i < N; i++) cluster_start_worker(&c, i);
    job j = begin(40);
    wait_active(1, PATIENCE_MS);
    daemon_wait_log(&c.worker[worker_of(0)], "out of memory, going on with 4 slots: rank", PATIENCE_MS);
    finish(&j);
    assert_int_equal(epoch_now(), 2);
    assert_string_equal(cluster_job(&c, j.jid, "crashes"), "0");
    cluster_stop(&c);
  }
}

static void test_members_rank_stopped(void **state) {
  (void)state;
  enum { N = 2, WEDGE_MS = 4000 };
  pid_t before[N];
  start(N, N, 1);
  uint64_t epoch = wait_active(0, PATIENCE_MS);
  job j = begin(200);
  int w = worker_of(1);
  wait_done(&j, 40);
  shards_of(N, before);
  kill(before[w], SIGSTOP);
  wait_active(epoch, WEDGE_MS + form_ms());
  check_survivors(before, N, w);
  finish(&j);
  cluster_stop(&c);
}

/* In RUN and in FORM: the driver's items are started anew, none counts against an innocent one. */
static void test_members_driver_killed(void **state) {
  (void)state;
  enum { N = 3 };
  pid_t before[N];
  start(N, N, 1);
  uint64_t epoch = wait_active(0, PATIENCE_MS);
  job j = begin(260);
  int w = worker_of(0);
  wait_done(&j, 40);
  shards_of(N, before);
  kill(child_of(w, "--engine-child"), SIGKILL);
  epoch = wait_active(epoch, form_ms());
  check_survivors(before, N, -1);
  wait_done(&j, 120);
  kill(child_of(w, "--shard"), SIGKILL);        /* a new epoch is to be formed: */
  kill(child_of(w, "--engine-child"), SIGKILL); /* by a driver that is not there */
  wait_active(epoch, 2 * form_ms());
  finish(&j);
  cluster_stop(&c);
}

static void test_members_driver_stopped(void **state) {
  (void)state;
  skip_unless_long();
  enum { N = 2, WEDGE_MS = 11000 }; /* its agent looks twice */
  start(N, N, 1);
  uint64_t epoch = wait_active(0, PATIENCE_MS);
  job j = begin(200);
  wait_done(&j, 40);
  kill(child_of(worker_of(0), "--engine-child"), SIGSTOP);
  wait_active(epoch, WEDGE_MS + form_ms());
  finish(&j);
  cluster_stop(&c);
}

/* A whole worker is lost: the spare takes its place. And comes back: nothing changes. */
static void test_members_worker_killed(void **state) {
  (void)state;
  enum { N = 3, WORKERS = 4, DEAD_MS = 2500 };
  start(N, WORKERS, 1);
  uint64_t epoch = wait_active(0, PATIENCE_MS);
  job j = begin(360);
  for (int r = 0; r < N; r++) {
    int w = worker_of(r);
    wait_done(&j, 40 + 80 * r);
    daemon_kill(&c.worker[w]);
    epoch = wait_active(epoch, DEAD_MS + form_ms());
    /* it was planned in at first, since its session had not died yet */
    for (int64_t end = test_now_ms() + DEAD_MS + form_ms();
         worker_of(0) == w || worker_of(1) == w || worker_of(2) == w || !active(); test_sleep_ms(20))
      assert_true(test_now_ms() < end);
    epoch = epoch_now();
    cluster_start_worker(&c, w);
    daemon_wait_log(&c.worker[w], "ready name=", PATIENCE_MS);
  }
  finish(&j);
  assert_int_equal(epoch_now(), epoch);
  cluster_stop(&c);
}

/* An agent that sleeps through the death of its session wakes up in an epoch that is over. */
static void test_members_worker_stopped(void **state) {
  (void)state;
  skip_unless_long();
  enum { N = 2, WORKERS = 3, DEAD_MS = 2500 };
  start(N, WORKERS, 1);
  uint64_t epoch = wait_active(0, PATIENCE_MS);
  job j = begin(200);
  for (int r = 0; r < N; r++) {
    int w = worker_of(r);
    wait_done(&j, 30 + 50 * r);
    daemon_signal(&c.worker[w], SIGSTOP);
    epoch = wait_active(epoch, 2 * DEAD_MS + 2 * form_ms());
    daemon_signal(&c.worker[w], SIGCONT);
  }
  finish(&j);
  cluster_stop(&c);
}

static void test_members_drain(void **state) {
  (void)state;
  enum { N = 2, WORKERS = 3 };
  start(N, WORKERS, 1);
  uint64_t epoch = wait_active(0, PATIENCE_MS);
  job j = begin(200);
  for (int r = 0; r < N; r++) {
    int w = worker_of(r);
    wait_done(&j, 30 + 50 * r);
    assert_int_equal(daemon_stop(&c.worker[w], 20000), 0);
    epoch = wait_active(epoch, 2 * form_ms());
    cluster_start_worker(&c, w);
    daemon_wait_log(&c.worker[w], "ready name=", PATIENCE_MS);
  }
  finish(&j);
  assert_string_equal(cluster_job(&c, j.jid, "crashes"), "0");
  cluster_stop(&c);
}

/* The broker that leads is lost: nothing stops, and the other one forms the next epoch. */
static void test_members_broker_killed(void **state) {
  (void)state;
  skip_unless_long();
  enum { N = 2, WORKERS = 2 };
  pid_t before[N];
  start(N, WORKERS, 2);
  uint64_t epoch = wait_active(0, PATIENCE_MS);
  job j = begin(300);
  wait_done(&j, 40);
  shards_of(N, before);
  int leader = strstr(say("GET $ldr:plan"), "broker1") ? 1 : 0;
  daemon_kill(&c.broker[leader]);
  wait_done(&j, 120);
  kill(before[worker_of(1)], SIGKILL);
  wait_active(epoch, 15000 + form_ms()); /* the duty of the lost one has to run out first */
  cluster_start_broker(&c, leader);
  finish(&j);
  cluster_stop(&c);
}

/* Whatever is there is killed at any moment, also while a pipe is planned and formed. */
static void test_members_killed_at_any_time(void **state) {
  (void)state;
  enum { N = 2, WORKERS = 3 };
  const int rounds = getenv("BTCCHAT_LONG") ? 60 : 5;
  unsigned random = getenv("BTCCHAT_SEED") ? (unsigned)atoi(getenv("BTCCHAT_SEED")) : (unsigned)getpid();
  print_message("seed %u\n", random);
  start(N, WORKERS, 1);
  job j = begin(400);
  for (int i = 0; i < rounds; i++) {
    random = random * 1664525u + 1013904223u;
    int w = (int)(random >> 8) % WORKERS, how = (int)(random >> 16) % 4;
    test_sleep_ms((int)(random >> 20) % 700);
    pid_t victim = how == 0 ? child_of(w, "--engine-child") : how == 1 ? child_of(w, "--shard") : 0;
    if (victim) kill(victim, SIGKILL);
    if (how > 1) {
      daemon_kill(&c.worker[w]);
      if (how == 3) test_sleep_ms((int)(random >> 22) % 300);
      cluster_start_worker(&c, w);
    }
  }
  finish(&j);
  cluster_stop(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_members_two_give_the_captions),
    cmocka_unit_test(test_members_three_give_the_captions),
    cmocka_unit_test(test_members_four_give_the_captions),
    cmocka_unit_test(test_members_rank_killed),
    cmocka_unit_test(test_members_killed_at_form),
    cmocka_unit_test(test_members_killed_at_ready),
    cmocka_unit_test(test_members_rank_out_of_memory),
    cmocka_unit_test(test_members_rank_stopped),
    cmocka_unit_test(test_members_driver_killed),
    cmocka_unit_test(test_members_driver_stopped),
    cmocka_unit_test(test_members_worker_killed),
    cmocka_unit_test(test_members_worker_stopped),
    cmocka_unit_test(test_members_drain),
    cmocka_unit_test(test_members_broker_killed),
    cmocka_unit_test(test_members_killed_at_any_time),
};

BTC_TEST_MAIN(tests)
