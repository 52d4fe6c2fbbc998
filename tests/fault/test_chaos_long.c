/*
 * Chaos for as long as a night: a million items in half an hour (BTCCHAT_LONG_MINUTES, BTCCHAT_LONG_ITEMS), three tenants with
 * jobs of all sizes and priorities, some through Redis, people who cancel, pause, resume and replay, bad items, and everything
 * around killed all the time. In the end nothing is lost or doubled, nothing has grown, and nothing is left behind.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <unistd.h>

#include "chaos.h"
#include "integrator.h"
#include "test.h"
#include "usage.h"
#include "worker/engine.h"

enum { MAX_JOBS = 4096, ITEMS_A_MINUTE = 33334, FAULT_MS = 500, ERRAND_MS = 700, SAMPLE_MS = 1000, ONE_IN_REDIS = 10 };

typedef struct job {
  char jid[80], prefix[16];
  int64_t items;
  bool stream;
} job;

typedef struct trial {
  chaos x;
  char faults[256];
  integrator *g;
  job jobs[MAX_JOBS]; /* the last one may be on its way */
  int n_jobs;
  bool submitting, asking;
  daemon_process submitter, operator;
  int errands, refused, resubmitted;
  double minutes, items;
  int64_t begin, submitted, next_fault, next_errand, next_sample;
  usage u; /* of the broker that is spared, while it is */
} trial;

static double minutes_since(const trial *t) {
  return (double)(test_now_ms() - t->begin) / 60000;
}

/* ---- jobs come in ---- */

static void submit_one(trial *t) {
  static const int64_t sizes[] = {1, 20, 300, 1000, 2000, 3000, 9000, 20000};
  job *j = &t->jobs[t->n_jobs];
  const char tenant[2] = {(char)('a' + chaos_pick(&t->x, 3)), 0}, priority[2] = {(char)('0' + chaos_pick(&t->x, 3)), 0};
  char log[32];
  *j = (job){.items = sizes[chaos_pick(&t->x, 8)], .stream = chaos_pick(&t->x, 4) == 0};
  snprintf(j->prefix, sizeof j->prefix, "%s%d", tenant, t->n_jobs);
  snprintf(log, sizeof log, "submit-%d", t->n_jobs);
  const char *args[] = {"submit",     cluster_manifest(j->prefix, j->items),
                        "--broker",   t->x.c.clients,
                        "--timeout",  "20",
                        "--key",      j->prefix,
                        "--tenant",   tenant,
                        "--priority", priority,
                        "--to",       j->stream ? "stream" : "files",
                        NULL};
  daemon_init(&t->submitter, log, args);
  daemon_start(&t->submitter);
  t->submitting = true;
  t->submitted += j->items;
}

/* A submission that found nobody is repeated with its key: it may have come through. */
static void watch_submitter(trial *t) {
  job *j = &t->jobs[t->n_jobs];
  if (!t->submitting || daemon_alive(&t->submitter)) return;
  if (t->submitter.code == 0 && daemon_log_line(&t->submitter, j->jid, sizeof j->jid)) {
    t->submitting = false;
    t->n_jobs++;
    unlink(t->submitter.log);
    return;
  }
  if (t->submitter.code != 4 && t->submitter.code != 1) {
    daemon_show(&t->submitter);
    fail_msg("submit ended with %d", t->submitter.code);
  }
  t->resubmitted++;
  daemon_start(&t->submitter);
}

static void feed(trial *t) {
  double all = t->items, due = all * minutes_since(t) / (0.95 * t->minutes);
  if (due > all) due = all;
  integrator_want(t->g, (int64_t)(due / ONE_IN_REDIS));
  if (!t->submitting && t->n_jobs < MAX_JOBS - 1 && (double)t->submitted < due - due / ONE_IN_REDIS) submit_one(t);
}

/* ---- people ---- */

static void one_errand(trial *t) {
  static const char *const often[] = {"pause",  "pause",  "pause",  "resume", "resume",
                                      "resume", "resume", "replay", "replay", "cancel"};
  int recent = t->n_jobs < 30 ? t->n_jobs : 30;
  if (t->asking || !recent) return;
  const char *verb = often[chaos_pick(&t->x, 10)], *jid = t->jobs[t->n_jobs - 1 - (int)chaos_pick(&t->x, (unsigned)recent)].jid;
  if (strcmp(verb, "cancel") == 0 && chaos_pick(&t->x, 4)) verb = "resume";
  const char *args[] = {verb, jid, "--broker", t->x.c.clients, "--timeout", "5", NULL};
  daemon_init(&t->operator, "operator", args);
  daemon_start(&t->operator);
  t->asking = true;
  t->errands++;
}

static void watch_operator(trial *t) {
  if (!t->asking || daemon_alive(&t->operator)) return;
  t->asking = false;
  if (t->operator.code<0) {
    daemon_show(&t->operator);
    fail_msg("%s died by signal %d", t->operator.args[0], -t->operator.code);
  }
  t->refused += t->operator.code != 0;
}

/* ---- half an hour ---- */

static void step(trial *t) {
  int64_t now = test_now_ms();
  const int last = t->x.c.o.brokers - 1;
  chaos_revive(&t->x);
  watch_submitter(t);
  watch_operator(t);
  feed(t);
  if (now >= t->next_errand) {
    t->next_errand = now + ERRAND_MS;
    one_errand(t);
  }
  if (now >= t->next_fault) {
    t->next_fault = now + FAULT_MS;
    chaos_hurt(&t->x);
  }
  /* From a third on one broker lives, so that it can be seen whether it grows; a while for what it keeps at hand, which is bounded.
   */
  if (!t->x.spare_broker && minutes_since(t) > t->minutes / 3) t->x.spare_broker = true;
  if (now >= t->next_sample && minutes_since(t) > t->minutes * 0.6) {
    t->next_sample = now + SAMPLE_MS;
    if (t->x.spare_broker) usage_sample(&t->u, t->x.c.broker[last].pid, minutes_since(t));
  }
  test_sleep_ms(50);
}

static bool tell(trial *t, const char *verb, const char *jid) {
  const char *args[] = {verb, jid, "--broker", t->x.c.clients, "--timeout", "30", NULL};
  daemon_init(&t->operator, "operator", args);
  daemon_start(&t->operator);
  return daemon_wait(&t->operator, 60000) == 0;
}

static bool over(trial *t) {
  static char text[64];
  static const char nothing[] = "[0 0 0 0 0 0 0 0 0 "; /* and the number of commits */
  snprintf(text, sizeof text, "%s", redis_say(t->x.c.redis, "t", "btc_totals"));
  return strncmp(text, nothing, strlen(nothing)) == 0 && strcmp(redis_say(t->x.c.redis, "t", "XLEN $in"), "0") == 0;
}

/* All faults are over: what was held goes on, and everything comes to its end. */
static void settle(trial *t) {
  int64_t end = test_now_ms() + 300000 + (int64_t)(t->minutes * 60000);
  chaos_calm(&t->x);
  while (t->submitting || t->asking) {
    watch_submitter(t);
    watch_operator(t);
    test_sleep_ms(50);
  }
  integrator_want(t->g, t->submitted / (ONE_IN_REDIS - 1));
  for (int i = 0; i < t->n_jobs; i++)
    if (strcmp(cluster_job(&t->x.c, t->jobs[i].jid, "paused"), "1") == 0) assert_true(tell(t, "resume", t->jobs[i].jid));
  while (!over(t) || integrator_added(t->g) < t->submitted / (ONE_IN_REDIS - 1)) {
    if (test_now_ms() > end) {
      cluster_show(&t->x.c);
      fail_msg("not over: totals %s, in %s", redis_say(t->x.c.redis, "t", "btc_totals"), redis_say(t->x.c.redis, "t", "XLEN $in"));
    }
    chaos_revive(&t->x);
    test_sleep_ms(200);
  }
  for (int i = 0; i < t->n_jobs; i++)
    if (!t->jobs[i].stream) cluster_wait(&t->x.c, t->jobs[i].jid, 60000);
}

/* ---- what is asked of the end ---- */

/* Items that must die did; of the others only those whose worker was killed under them three times while they ran alone. */
static void check_dead(trial *t) {
  stub_faults f;
  btc_error err;
  int64_t dead = 0, escaped = 0, innocent = 0;
  assert_int_equal(stub_faults_parse(t->faults, &f, &err), BTC_OK);
  for (int k = 0; k < t->n_jobs; k++) {
    const job *j = &t->jobs[k];
    if (strcmp(cluster_job(&t->x.c, j->jid, "st"), "FIN") != 0) continue;
    redisReply *r = redisCommand(redis_server_context(t->x.c.redis), "HGETALL btc:{t}:dd:%s", j->jid);
    assert_non_null(r);
    const char **letter = calloc((size_t)j->items, sizeof *letter);
    for (size_t i = 0; i + 1 < r->elements; i += 2) letter[strtoll(r->element[i]->str, NULL, 10)] = r->element[i + 1]->str;
    for (int64_t i = 0; i < j->items; i++) {
      char id[64];
      snprintf(id, sizeof id, "%s-%06lld", j->prefix, (long long)i);
      stub_fault fault = stub_fault_of(&f, id);
      bool guilty = fault == STUB_CRASH || fault == STUB_BAD;
      dead += letter[i] != NULL;
      escaped += guilty && !letter[i];
      if (letter[i] && !guilty && innocent++ < 20) print_message("innocent: %s\n", letter[i]);
    }
    free(letter);
    freeReplyObject(r);
  }
  print_message("%lld dead, %lld escaped, %lld innocent\n", (long long)dead, (long long)escaped, (long long)innocent);
  assert_int_equal(escaped, 0);
  assert_true(innocent <= 10);
}

static int64_t used_memory(trial *t) {
  redisReply *r = redisCommand(redis_server_context(t->x.c.redis), "INFO memory");
  assert_non_null(r);
  const char *at = strstr(r->str, "used_memory:");
  assert_non_null(at);
  int64_t n = strtoll(at + 12, NULL, 10);
  freeReplyObject(r);
  return n;
}

/* What may stay for good. */
static bool may_stay(const char *key) {
  static const char *const names[] = {"cfg", "ev",  "stat", "tok",     "cid",     "seq", "in",
                                      "out", "res", "srv",  "classes", "workers", "inc", "jobs"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (strcmp(key, names[i]) == 0) return true;
  return strncmp(key, "sw:", 3) == 0 || /* cleared when there are suspects again */
         strncmp(key, "wk:", 3) == 0 || strncmp(key, "ldr:", 4) == 0;
}

/* Bytes of Redis besides the keys that may stay; other keys fail the test. */
static int64_t memory_left(trial *t) {
  redisContext *c = redis_server_context(t->x.c.redis);
  int64_t used = used_memory(t), keys = 0, stay = 0, wrong = 0;
  redisReply *all = redisCommand(c, "KEYS *");
  assert_non_null(all);
  for (size_t i = 0; i < all->elements; i++) {
    const char *name = all->element[i]->str, *colon = strchr(name, '}');
    if (colon && colon[1] && may_stay(colon + 2))
      stay++;
    else if (wrong++ < 20)
      print_message("left: %s\n", name);
    redisAppendCommand(c, "MEMORY USAGE %s SAMPLES 0", name);
  }
  for (size_t i = 0; i < all->elements; i++) {
    void *r = NULL;
    assert_int_equal(redisGetReply(c, &r), REDIS_OK);
    if (((redisReply *)r)->type == REDIS_REPLY_INTEGER) keys += ((redisReply *)r)->integer;
    freeReplyObject(r);
  }
  freeReplyObject(all);
  print_message("Redis: %.2f MB used, of them %.2f MB in %lld keys that stay\n", (double)used / 1e6, (double)keys / 1e6,
                (long long)stay);
  assert_int_equal(wrong, 0);
  return used - keys;
}

/* As a day later: idempotency keys are gone. MEMORY USAGE tells nothing of Redis' own tables over 100,000 of them (7 MB here), so
 * they are taken away, and Redis gets time to shrink its tables. */
static void expire_keys(trial *t) {
  redisContext *c = redis_server_context(t->x.c.redis);
  redisReply *all = redisCommand(c, "KEYS btc:{t}:key:*");
  assert_non_null(all);
  for (size_t i = 0; i < all->elements; i++) redisAppendCommand(c, "DEL %s", all->element[i]->str);
  for (size_t i = 0; i < all->elements; i++) {
    void *r = NULL;
    assert_int_equal(redisGetReply(c, &r), REDIS_OK);
    freeReplyObject(r);
  }
  print_message("%zu idempotency keys expired\n", all->elements);
  freeReplyObject(all);
  test_sleep_ms(3000);
}

static void forget_all(trial *t) {
  redisReply *r = redisCommand(redis_server_context(t->x.c.redis), "ZRANGE btc:{t}:jobs 0 -1");
  assert_non_null(r);
  for (size_t i = 0; i < r->elements; i++)
    assert_string_equal(redis_say(t->x.c.redis, "t", "btc_forget %s", r->element[i]->str), "1");
  print_message("%zu jobs forgotten\n", r->elements);
  freeReplyObject(r);
}

static void check_usage(const trial *t) {
  const usage *u = &t->u;
  if (u->n < 30) return;
  double slope = usage_slope(u), span = u->minutes[u->n - 1] - u->minutes[0];
  int early = usage_fds(u, 0, u->n / 3), late = usage_fds(u, u->n - u->n / 3, u->n);
  print_message("the broker that lived: %.2f MB, later %.2f MB in %.1f min, %+.2f MB in 10 min; %d, later %d descriptors\n",
                u->mb[0], u->mb[u->n - 1], span, slope * 10, early, late);
  if (span > 5) assert_true(slope * span < (span > 10 ? span / 10 : 1)); /* 1 MB in 10 minutes; less time says less */
  assert_true(late <= early + 8);
}

static void begin(trial *t) {
  t->minutes = getenv("BTCCHAT_LONG_MINUTES") ? strtod(getenv("BTCCHAT_LONG_MINUTES"), NULL) : 30;
  t->items = getenv("BTCCHAT_LONG_ITEMS") ? strtod(getenv("BTCCHAT_LONG_ITEMS"), NULL) : t->minutes * ITEMS_A_MINUTE;
  assert_true(t->minutes > 0 && t->items > 0);
  t->x.state = chaos_seed();
  snprintf(t->faults, sizeof t->faults, "crash=0.0003,bad=0.003,transient=0.005,marks=%s", test_tmp_dir());
  cluster_start(&t->x.c, &(cluster_options){.brokers = 2,
                                            .workers = 6,
                                            .stub_us = 1500,
                                            .credits = 64,
                                            .faults = t->faults,
                                            .redis_config = "auto-aof-rewrite-min-size 16mb\n"});
  t->g = integrator_start(t->x.c.redis, "t");
}

static void test_chaos_for_long(void **state) {
  (void)state;
  if (!getenv("BTCCHAT_LONG")) {
    print_message("skipped: set BTCCHAT_LONG=1\n");
    skip();
  }
  static trial t;
  begin(&t);
  const char *jid = cluster_submit(&t.x.c, cluster_manifest("first", 1000), NULL);
  cluster_wait(&t.x.c, jid, 60000);
  forget_all(&t);
  expire_keys(&t);
  int64_t before = memory_left(&t);
  for (t.begin = test_now_ms(); minutes_since(&t) < t.minutes;) step(&t);
  chaos_show(&t.x);
  print_message("%d jobs, %d submitted again, %d errands, %d of them refused, %lld items added through Redis\n", t.n_jobs,
                t.resubmitted, t.errands, t.refused, (long long)integrator_added(t.g));
  settle(&t);
  print_message("all over after %.1f min, %lld taken from out\n", minutes_since(&t), (long long)integrator_taken(t.g));
  integrator_stop(t.g);
  t.x.c.drained = integrator_path(t.g);
  assert_int_equal(cluster_check(&t.x.c), t.submitted + integrator_added(t.g)); /* each submission and each entry once */
  check_dead(&t);
  check_usage(&t);
  forget_all(&t);
  expire_keys(&t);
  assert_true(memory_left(&t) < before + 2000000);
  cluster_stop(&t.x.c);
  integrator_destroy(&t.g);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_chaos_for_long),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
