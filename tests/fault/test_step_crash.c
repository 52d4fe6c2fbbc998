/*
 * A kill -9 at every arrow between client, broker, Redis and worker (queue.md 2.2-2.11): each BTC_FAILPOINT of the sources in turn
 * kills the process that passes it while a small job of every kind runs; then everything comes back, ends, and the checker finds
 * nothing. A failpoint that the scenario does not reach fails the test, so that new ones cannot be forgotten.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "cluster.h"
#include "test.h"

enum { MAX_POINTS = 96, ITEMS = 160, SINGLES = 24, GOES = 5 };

typedef struct point {
  char name[64];
  bool in_worker;
} point;

static void points_of_file(const char *path, bool in_worker, point *list, size_t *n) {
  static const char mark[] = "BTC_FAILPOINT(\"";
  char line[1024];
  FILE *f = fopen(path, "re");
  assert_non_null(f);
  while (fgets(line, sizeof line, f)) {
    const char *at = strstr(line, mark);
    if (!at) continue;
    assert_true(*n < MAX_POINTS);
    at += strlen(mark);
    if (strncmp(at, "shard_", 6) == 0 || strncmp(at, "member_", 7) == 0) continue; /* of pipelines: test_pipe, test_members */
    snprintf(list[*n].name, sizeof list[*n].name, "%.*s", (int)strcspn(at, "\""), at);
    list[(*n)++].in_worker = in_worker;
  }
  fclose(f);
}

static void points_of_folder(const char *folder, bool in_worker, point *list, size_t *n) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", getenv("BTCCHAT_SOURCE"), folder);
  DIR *d = opendir(path);
  assert_non_null(d);
  for (const struct dirent *e; (e = readdir(d));) {
    size_t len = strlen(e->d_name);
    if (len < 3 || strcmp(e->d_name + len - 2, ".c") != 0) continue;
    snprintf(path, sizeof path, "%s/%s/%s", getenv("BTCCHAT_SOURCE"), folder, e->d_name);
    points_of_file(path, in_worker, list, n);
  }
  closedir(d);
}

/* Starts again what died, this time without a failpoint. True when the one that was to die has. */
static bool revive(cluster *c, bool in_worker) {
  bool died = false;
  if (!daemon_alive(&c->broker[0])) {
    died |= !in_worker;
    c->broker[0].env[0][0] = 0;
    cluster_start_broker(c, 0);
  }
  for (int i = 0; i < c->o.workers; i++)
    if (!daemon_alive(&c->worker[i])) {
      died |= in_worker && i == 0 && c->worker[0].env[0][0] && c->worker[0].code == -SIGKILL; /* not the drain's end */
      c->worker[i].env[0][0] = 0;
      cluster_start_worker(c, i);
    }
  return died;
}

static void feed_singles(cluster *c) {
  for (int i = 0; i < SINGLES; i++)
    redis_say(c->redis, "t", "XADD $in * json {\"id\":\"s%d\",\"before\":\"/s/%d_b.png\",\"after\":\"/s/%d_a.png\"}", i, i, i);
}

static int singles_out(cluster *c) {
  return atoi(redis_say(c->redis, "t", "XLEN $out"));
}

/* Submits from a process of its own, since the broker may die under it. */
static void start_submit(cluster *c, daemon_process *d) {
  const char *manifest = cluster_manifest("m", ITEMS);
  daemon_init(d, "submit", (const char *const[]){"submit", manifest, "--broker", c->clients, "--timeout", "40", NULL});
  daemon_start(d);
}

typedef struct loss {
  enum { LOSS_NONE, LOSS_WANTED, LOSS_KEPT, LOSS_DONE } step;
  int committed;
} loss;

/* Of the arrows behind a loss: Redis comes back without its last writes while the job runs. */
static void lose_history(cluster *c, loss *l) {
  int committed = atoi(redis_say(c->redis, "t", "HGET $stat committed"));
  if (l->step == LOSS_WANTED) {
    redis_server_save(c->redis);
    l->committed = committed;
    l->step = LOSS_KEPT;
  } else if (l->step == LOSS_KEPT && committed >= l->committed + 30) {
    redis_server_rollback(c->redis);
    l->step = LOSS_DONE;
  }
}

/* Returns whether the failpoint killed somebody. */
static bool scenario(const point *p, int passage) {
  static cluster c;
  daemon_process submit;
  char env[96], jid[96] = "", faults[128];
  bool died = false, drained = false, rolls_back = strcmp(p->name, "recover_repeated") == 0 || strcmp(p->name, "recover_sent") == 0;
  loss l = {rolls_back ? LOSS_WANTED : LOSS_NONE, 0};
  snprintf(env, sizeof env, "BTC_FAIL=%s:%d", p->name, passage);
  snprintf(faults, sizeof faults, "bad=0.02,transient=0.05,marks=%s", test_tmp_dir());
  cluster_prepare(
      &c,
      &(cluster_options){
          .workers = 2, .stub_us = rolls_back ? 5000 : 500, .credits = 16, .faults = faults, .lease_ms = 1500, .dead_ms = 1000});
  daemon_env(p->in_worker ? &c.worker[0] : &c.broker[0], env);
  for (int i = 0; i < 2; i++) cluster_start_worker(&c, i);
  cluster_start_broker(&c, 0);
  start_submit(&c, &submit);
  feed_singles(&c);
  int64_t begin = test_now_ms(), end = begin + 60000;
  for (;;) {
    died |= revive(&c, p->in_worker);
    const char *jobs = redis_say(c.redis, "t", "ZRANGE $jobs 0 -1");
    bool ready = daemon_said(&c.worker[0], "ready name=") && daemon_said(&c.worker[1], "ready name=");
    if (!drained && ready && strcmp(jobs, "[]") != 0 && test_now_ms() > begin + 150) {
      daemon_signal(&c.worker[0], SIGTERM);
      daemon_signal(&c.worker[1], p->in_worker ? SIGTERM : SIGKILL); /* one says goodbye, one does not */
      drained = true;
    }
    bool submitted = !daemon_alive(&submit) && daemon_log_line(&submit, jid, sizeof jid);
    if (submitted) lose_history(&c, &l);
    if (drained && submitted && (!rolls_back || l.step == LOSS_DONE) && singles_out(&c) == SINGLES && cluster_finished(&c, jid))
      break;
    if (test_now_ms() > end) {
      cluster_show(&c);
      daemon_show(&submit);
      fail_msg("%s: not finished; totals %s, %d of %d singles", p->name, redis_say(c.redis, "t", "btc_totals"), singles_out(&c),
               SINGLES);
    }
    test_sleep_ms(20);
  }
  for (int64_t wait = test_now_ms() + (p->in_worker ? 0 : 2500); !died && test_now_ms() < wait; test_sleep_ms(20))
    died |= revive(&c, p->in_worker);
  cluster_wait(&c, jid, 30000);
  if (!died) { /* those of an orderly end */
    daemon_signal(p->in_worker ? &c.worker[0] : &c.broker[0], SIGTERM);
    died = daemon_wait(p->in_worker ? &c.worker[0] : &c.broker[0], 10000) == -SIGKILL;
  }
  cluster_check(&c);
  cluster_stop(&c);
  return died;
}

static void check_points(const char *folder, bool in_worker) {
  static point list[MAX_POINTS];
  size_t n = 0;
  int missed = 0;
  points_of_folder(folder, in_worker, list, &n);
  assert_true(n > 5);
  const char *only = getenv("BTCCHAT_POINT");
  for (size_t i = 0; i < n; i++) {
    if (only && strcmp(only, list[i].name) != 0) continue;
    bool hit = false; /* a worker drained before it had work passes few points: another go */
    for (int go = 0; go < GOES && !hit; go++) hit = scenario(&list[i], 1);
    print_message("%s: %s\n", list[i].name, hit ? "killed" : "NOT REACHED");
    missed += !hit;
  }
  print_message("%zu failpoints of %s\n", n, folder);
  assert_int_equal(missed, 0);
}

static void test_step_crash_of_the_broker(void **state) {
  (void)state;
  check_points("broker", false);
}

static void test_step_crash_of_the_worker(void **state) {
  (void)state;
  check_points("worker", true);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_step_crash_of_the_broker),
      cmocka_unit_test(test_step_crash_of_the_worker),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
