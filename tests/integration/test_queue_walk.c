/*
 * Random walks over the queue: fake workers that claim, start, commit, commit late and twice, fail, crash, vanish and come back;
 * brokers that reap, promote and tidy; people who cancel, pause, resume and replay; a Redis that is killed. After every hundred
 * steps the checker looks at everything; in the end all is drained, and each item must have ended once. The seed is fixed and
 * printed: a failure can be walked again (BTC_WALK_SEED, BTC_WALK_STEPS).
 */
#include <inttypes.h>

#include "checker.h"
#include "queue_fixture.h"

enum { WORKERS = 4, MEMORY = 256, MAX_JOBS = 40 };

/* A chunk that some worker was given once. It is remembered long after the lease is gone: late results come from here. */
typedef struct held {
  char wid[16], jid[16];
  long long cid, tok, lo, mask;
} held;

typedef struct walk {
  uint64_t random;
  held memory[MEMORY];
  int n_held, n_jobs, incarnation[WORKERS];
  bool poison; /* crash and failure kinds */
} walk;

static uint32_t draw(walk *w, uint32_t below) {
  w->random = w->random * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)((w->random >> 33) % below);
}

static void violation(void *ctx, const char *line) {
  (void)ctx;
  print_error("%s\n", line);
}

static void check(const char *when, bool at_end) {
  checker_report r;
  btc_error err;
  checker_options o = {.redis = redis_server_url(server), .queue = "t", .at_end = at_end, .stub = true};
  if (checker_run(&o, violation, NULL, &r, &err) != BTC_OK) fail_msg("%s: %s", when, err.message);
  if (r.violations) fail_msg("%s: %" PRIu64 " violations", when, r.violations);
}

/* ---- work comes in ---- */

static void walk_submit(walk *w) {
  if (w->n_jobs >= MAX_JOBS) return;
  int j = w->n_jobs++, n = 1 + (int)draw(w, 80);
  const char *class = draw(w, 3) ? "''" : "stub";
  char jid[16];
  snprintf(jid, sizeof jid, "j%d", j);
  if (draw(w, 3) == 0)
    submit_as(jid, n, draw(w, 2) ? "ta" : "tb", (int)draw(w, 3), class, draw(w, 2) ? "files" : "stream");
  else
    SAY("btc_submit %s manifest %s %u %s files k%d {} /m sha %d 0 '' '' %u ''", jid, draw(w, 2) ? "ta" : "tb", draw(w, 3), class, j,
        n, draw(w, 4) ? 0 : draw(w, 60));
}

static void walk_expand(walk *w, int j) {
  long long total, cur;
  if (sscanf(SAY("HMGET $job:j%d total cur", j), "[%lld %lld]", &total, &cur) != 2 || cur >= total) return;
  long long n = total - cur < 32 ? total - cur : 1 + draw(w, 32);
  if (draw(w, 10) == 0) cur += 1; /* another broker was faster */
  SAY("btc_expand j%d %lld %lld p%lld p%lld", j, cur, n, cur, cur + n);
}

/* ---- workers ---- */

static const char *wid(const walk *w, int i) {
  static char name[16];
  snprintf(name, sizeof name, "w%d#%d", i, w->incarnation[i]);
  return name;
}

static void walk_claim(walk *w, int i) {
  const char *name = wid(w, i);
  const char *s = SAY("btc_claim %s %d %u %s", name, draw(w, 3) ? 30000 : 5, 1 + draw(w, 60), draw(w, 2) ? "stub" : "''");
  if (*s == '!') fail_msg("claim: %s", s);
  for (s++; *s == '['; s++) {
    held *h = &w->memory[w->n_held++ % MEMORY];
    int n, solo, crashes;
    snprintf(h->wid, sizeof h->wid, "%s", name);
    if (sscanf(s, "[%lld %lld %15s %lld %d %lld %d %d", &h->cid, &h->tok, h->jid, &h->lo, &n, &h->mask, &solo, &crashes) != 8)
      fail_msg("claim: %s", s);
    for (int depth = 0; *s; s++) {
      depth += *s == '[' ? 1 : *s == ']' ? -1 : 0;
      if (depth == 0) break;
    }
    if (s[1] == ' ') s++;
  }
}

/* Some item of the chunk, or -1. */
static int some_off(walk *w, const held *h) {
  for (int i = 0, off = (int)draw(w, 32); i < 32; i++, off = (off + 1) % 32)
    if (h->mask >> off & 1) return off;
  return -1;
}

static void commit_some(walk *w, const held *h, int n) {
  char text[8192];
  int len = snprintf(text, sizeof text, "btc_commit %lld %lld %s %lld 30000 %s", h->cid, h->tok, h->jid, h->lo, h->wid);
  for (int i = 0; i < n; i++) {
    int off = some_off(w, h);
    len += snprintf(text + len, sizeof text - (size_t)len,
                    " %d x {\"id\":\"x\",\"status\":\"ok\",\"caption\":\"stub:0123456789abcdef\"}", off);
  }
  const char *s = SAY("%s", text);
  if (*s == '!') fail_msg("%s: %s", text, s);
}

static void fail_some(walk *w, const held *h) {
  static const char kinds[] = "ptttccho";
  const char *s = SAY("btc_fail %lld %lld %s %lld 30000 %s %d %c x decode oops {\"id\":\"x\",\"status\":\"failed\"}", h->cid,
                      h->tok, h->jid, h->lo, h->wid, some_off(w, h), kinds[draw(w, 8)]);
  if (*s == '!') fail_msg("fail: %s", s);
}

static void walk_holder(walk *w) {
  if (w->n_held == 0) return;
  int recent = w->n_held < MEMORY ? w->n_held : MEMORY;
  /* mostly what was given out last, sometimes something old */
  int back = (int)draw(w, draw(w, 4) ? (recent < 12 ? (uint32_t)recent : 12) : (uint32_t)recent);
  const held *h = &w->memory[(w->n_held - 1 - back) % MEMORY];
  switch (draw(w, 10)) {
    case 0:
    case 1:
      SAY("btc_start %s %lld %lld %lld", h->wid, h->cid, h->tok, (long long)draw(w, 1u << 31));
      break;
    case 2:
      SAY("btc_release %s %lld %lld", h->wid, h->cid, h->tok);
      break;
    case 3:
      SAY("btc_extend %s 30000 %lld %lld", h->wid, h->cid, h->tok);
      break;
    case 4:
      if (w->poison) fail_some(w, h);
      break;
    default:
      commit_some(w, h, 1 + (int)draw(w, 24));
  }
}

static void walk_worker_dies(walk *w, int i) {
  const char *name = wid(w, i);
  switch (draw(w, 3)) {
    case 0:
      SAY("btc_reap_owner %s", name);
      break;
    case 1:
      SAY("btc_bye w%d %d", i, w->incarnation[i]);
      break;
    default:
      SAY("btc_hello w%d %d 1 b {}", i, w->incarnation[i] + 1); /* may be refused: the older one lives */
  }
  if (strcmp(SAY("btc_hello w%d %d 1 b {}", i, w->incarnation[i] + 1), "[OK]") == 0) w->incarnation[i]++;
}

/* ---- people ---- */

static void walk_people(walk *w) {
  int j = w->n_jobs ? (int)draw(w, (uint32_t)w->n_jobs) : 0;
  switch (draw(w, 12)) {
    case 0:
      if (draw(w, 4) == 0) SAY("btc_cancel j%d", j);
      break;
    case 1:
    case 2:
      SAY("btc_pause j%d because", j);
      break;
    case 3:
    case 4:
    case 5:
    case 6:
      SAY("btc_resume j%d", j);
      break;
    case 7:
    case 8:
      SAY("btc_replay j%d %s 0 %u", j, draw(w, 2) ? "''" : "crash", 1 + draw(w, 20));
      break;
    case 9:
      SAY("btc_pause '' upkeep");
      break;
    default:
      SAY("btc_resume ''");
  }
}

static void walk_step(walk *w) {
  uint32_t what = draw(w, 100);
  if (what < 4)
    walk_submit(w);
  else if (what < 14 && w->n_jobs)
    walk_expand(w, (int)draw(w, (uint32_t)w->n_jobs));
  else if (what < 36)
    walk_claim(w, (int)draw(w, WORKERS));
  else if (what < 84)
    walk_holder(w);
  else if (what < 87)
    walk_worker_dies(w, (int)draw(w, WORKERS));
  else if (what < 90)
    SAY("btc_reap 10");
  else if (what < 94)
    SAY("btc_promote 10");
  else if (what < 96)
    SAY("btc_tidy 10");
  else
    walk_people(w);
}

/* ---- and all ends ---- */

static void drain(walk *w) {
  SAY("btc_resume ''");
  for (int round = 0; round < 400; round++) {
    for (int j = 0; j < w->n_jobs; j++) {
      SAY("btc_resume j%d", j);
      walk_expand(w, j);
    }
    for (int i = 0; i < 8; i++) SAY("btc_promote 256");
    for (int i = 0; i < WORKERS; i++) {
      int before = w->n_held;
      walk_claim(w, i);
      for (int k = before; k < w->n_held; k++) {
        const held *h = &w->memory[k % MEMORY];
        char text[8192];
        int len = snprintf(text, sizeof text, "btc_commit %lld %lld %s %lld 30000 %s", h->cid, h->tok, h->jid, h->lo, h->wid);
        for (int off = 0; off < 32; off++)
          if (h->mask >> off & 1)
            len += snprintf(text + len, sizeof text - (size_t)len,
                            " %d x {\"id\":\"x\",\"status\":\"ok\",\"caption\":\"stub:0123456789abcdef\"}", off);
        SAY("%s", text);
      }
    }
    if (round % 4 == 0) { /* the leases of the walk */
      for (int i = 0; i < WORKERS; i++)
        for (int k = 1; k <= w->incarnation[i]; k++) SAY("btc_reap_owner w%d#%d", i, k);
      if (NUMBER("HGET $stat live_jobs") == 0) return;
    }
  }
  fail_msg("not drained: %s", SAY("btc_totals"));
}

static void run_walk(uint64_t seed, bool poison, bool kill_redis) {
  const char *s = getenv("BTC_WALK_SEED"), *n = getenv("BTC_WALK_STEPS");
  walk w = {.random = s ? strtoull(s, NULL, 10) : seed, .poison = poison};
  int steps = n ? atoi(n) : kill_redis ? 2000 : 6000;
  char when[64];
  for (int i = 0; i < WORKERS; i++) w.incarnation[i] = 1;
  SAY("btc_setup retry_base_ms 5 max_dead 30 ageing_ms 50 weight:ta 3");
  for (int i = 0; i < steps; i++) {
    walk_step(&w);
    snprintf(when, sizeof when, "seed %" PRIu64 ", step %d", seed, i);
    if (i % 100 == 99) check(when, false);
    if (kill_redis && i % 250 == 249) {
      redis_server_kill(server);
      redis_server_restart(server);
      check(when, false);
    }
  }
  drain(&w);
  check("drained", true);
  assert_true(NUMBER("HGET $stat committed") > 100);
}

static void test_walk_without_failures(void **state) {
  (void)state;
  run_walk(11, false, false);
  assert_true(NUMBER("HGET $stat reaped") > 10 && NUMBER("HGET $stat dup") > 10 && NUMBER("HGET $stat late") > 10);
}

static void test_walk_with_failures(void **state) {
  (void)state;
  for (uint64_t seed = 21; seed < 24; seed++) {
    run_walk(seed, true, false);
    assert_true(getenv("BTC_WALK_STEPS") || (NUMBER("HGET $stat crashed") > 10 && NUMBER("HGET $stat retried") > 5));
    SAY("FLUSHALL");
  }
}

static void test_walk_over_killed_redis(void **state) {
  (void)state;
  redis_server_stop(&server);
  server = redis_server_start("always", NULL);
  redis_server_load_queue(server);
  run_walk(31, true, true);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_walk_without_failures, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_walk_with_failures, queue_setup, queue_teardown),
      cmocka_unit_test_setup_teardown(test_walk_over_killed_redis, queue_setup, queue_teardown),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
