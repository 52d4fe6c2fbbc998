#define _GNU_SOURCE
#include "cluster.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checker.h"
#include "program.h"
#include "test.h"
#include "worker/engine.h"

static const char *number(int64_t n) {
  static char text[8][24];
  static int i;
  char *t = text[i++ % 8];
  snprintf(t, sizeof text[0], "%lld", (long long)n);
  return t;
}

static const char *real(double x) {
  static char text[24];
  snprintf(text, sizeof text, "%.3f", x);
  return text;
}

/* Endpoints of a broker: ipc, or TCP where a link may be cut. */
static void init_broker(cluster *c, int i) {
  char name[32], clients[128], workers[128], redis[256], seen[128];
  snprintf(name, sizeof name, "broker%d", i);
  snprintf(clients, sizeof clients, "ipc://%s/b%d-clients", test_tmp_dir(), i);
  snprintf(workers, sizeof workers, "ipc://%s/b%d-workers", test_tmp_dir(), i);
  snprintf(redis, sizeof redis, "%s", redis_server_url(c->redis));
  snprintf(seen, sizeof seen, "%s", clients);
  if (c->o.links) {
    int client_port = test_free_port(), worker_port = test_free_port();
    c->client_link = link_create(client_port);
    c->worker_link = link_create(worker_port);
    c->redis_link = link_create(redis_server_port(c->redis));
    snprintf(clients, sizeof clients, "tcp://127.0.0.1:%d", client_port);
    snprintf(workers, sizeof workers, "tcp://127.0.0.1:%d", worker_port);
    snprintf(redis, sizeof redis, "redis://127.0.0.1:%d", link_port(c->redis_link));
    snprintf(seen, sizeof seen, "tcp://127.0.0.1:%d", link_port(c->client_link));
  }
  snprintf(c->workers[i], sizeof c->workers[i], "%s", workers);
  const char *args[] = {"broker",
                        "--redis",
                        redis,
                        "--queue",
                        "t",
                        "--name",
                        name,
                        "--clients",
                        clients,
                        "--workers",
                        workers,
                        "--http",
                        "off",
                        "--results",
                        c->results,
                        "--lease",
                        number(c->o.lease_ms),
                        "--dead",
                        number(c->o.dead_ms),
                        "--stall",
                        number(c->o.stall_ms),
                        "--heartbeat",
                        number(c->o.dead_ms / 5),
                        "--pipe-form",
                        number(c->o.form_ms),
                        c->o.journal ? "--journal" : NULL,
                        c->o.journal,
                        NULL};
  daemon_init(&c->broker[i], name, args);
  snprintf(c->clients + strlen(c->clients), sizeof c->clients - strlen(c->clients), "%s%s", i ? "," : "", seen);
}

/* Workers begin at different brokers, so that each has some; those of pipelines at the same, which plans them. */
static void init_worker(cluster *c, int i) {
  char name[32], device[32] = "", brokers[512] = "", cache[200];
  snprintf(name, sizeof name, "worker%d", i);
  if (c->worker_link && i == 0) snprintf(brokers, sizeof brokers, "tcp://127.0.0.1:%d", link_port(c->worker_link));
  for (int k = 0; k < c->o.brokers && !(c->worker_link && i == 0); k++)
    snprintf(brokers + strlen(brokers), sizeof brokers - strlen(brokers), "%s%s", k ? "," : "",
             c->workers[((c->o.memory_mib > 0 ? 0 : i) + k) % c->o.brokers]);
  const char *args[32] = {"worker", "--brokers", brokers, "--stall-ms", number(c->o.stall_ms), "--grace-ms", "2000"};
  int n = 7;
  if (c->worker_link && i == 0) args[n++] = "--name", args[n++] = "linked";
  if (c->o.credits) args[n++] = "--credits", args[n++] = number(c->o.credits);
  if (c->o.model) {
    args[n++] = "--model", args[n++] = c->o.model;
    args[n++] = "--threads", args[n++] = "1";
    if (c->o.device) snprintf(device, sizeof device, "%s", c->o.device);
    if (!strcmp(device, "cuda:")) snprintf(device, sizeof device, "cuda:%d", i);
    if (*device) args[n++] = "--device", args[n++] = device;
    if (c->o.pipe) args[n++] = "--pipe", args[n++] = number(c->o.pipe);
    if (c->o.memory_mib > 0) args[n++] = "--name", args[n++] = name, args[n++] = "--memory", args[n++] = real(c->o.memory_mib);
  } else {
    args[n++] = "--engine", args[n++] = "stub";
    args[n++] = "--stub-us", args[n++] = number(c->o.stub_us);
    if (c->o.faults) args[n++] = "--stub-faults", args[n++] = c->o.faults;
  }
  daemon_init(&c->worker[i], name, args);
  snprintf(cache, sizeof cache, "XDG_CACHE_HOME=%s", test_tmp_dir());
  daemon_env(&c->worker[i], cache);
}

void cluster_start_broker(cluster *c, int i) {
  daemon_start(&c->broker[i]);
}

void cluster_start_worker(cluster *c, int i) {
  daemon_start(&c->worker[i]);
}

void cluster_prepare(cluster *c, const cluster_options *o) {
  memset(c, 0, sizeof *c);
  c->o = *o;
  if (!c->o.brokers) c->o.brokers = 1;
  if (!c->o.workers && !c->o.peers) c->o.workers = 1;
  if (!c->o.lease_ms) c->o.lease_ms = 3000;
  if (!c->o.dead_ms) c->o.dead_ms = 2000;
  if (!c->o.stall_ms) c->o.stall_ms = 4000;
  if (!c->o.form_ms) c->o.form_ms = 5000;
  snprintf(c->results, sizeof c->results, "%s/results", test_tmp_dir());
  mkdir(c->results, 0700);
  c->redis = redis_server_start(c->o.everysec ? "everysec" : "always", c->o.redis_config);
  for (int i = 0; i < c->o.brokers; i++) init_broker(c, i);
  for (int i = 0; i < c->o.workers; i++) init_worker(c, i);
}

void cluster_start(cluster *c, const cluster_options *o) {
  cluster_prepare(c, o);
  for (int i = 0; i < c->o.brokers; i++) cluster_start_broker(c, i);
  for (int i = 0; i < c->o.brokers; i++) daemon_wait_log(&c->broker[i], "ready clients=", 40000);
  for (int i = 0; i < c->o.workers; i++) cluster_start_worker(c, i);
  for (int i = 0; i < c->o.workers; i++) daemon_wait_log(&c->worker[i], "ready name=", 40000);
}

void cluster_stop(cluster *c) {
  for (int i = 0; i < c->o.workers; i++) daemon_kill(&c->worker[i]);
  for (int i = 0; i < c->o.brokers; i++) daemon_kill(&c->broker[i]);
  redis_server_stop(&c->redis);
  link_destroy(&c->client_link);
  link_destroy(&c->worker_link);
  link_destroy(&c->redis_link);
}

void cluster_show(const cluster *c) {
  for (int i = 0; i < c->o.brokers; i++) daemon_show(&c->broker[i]);
  for (int i = 0; i < c->o.workers; i++) daemon_show(&c->worker[i]);
}

const char *cluster_manifest(const char *prefix, int64_t n) {
  static char path[160];
  snprintf(path, sizeof path, "%s/%s.jsonl", test_tmp_dir(), prefix);
  FILE *f = fopen(path, "we");
  assert_non_null(f);
  for (int64_t i = 0; i < n; i++)
    fprintf(f, "{\"id\":\"%s-%06lld\",\"before\":\"/archive/%s/%lld_before.png\",\"after\":\"/archive/%s/%lld_after.png\"}\n",
            prefix, (long long)i, prefix, (long long)i, prefix, (long long)i);
  assert_int_equal(fclose(f), 0);
  return path;
}

const char *cluster_submit(cluster *c, const char *manifest, const char *const more[]) {
  static char jids[8][80];
  static int turn;
  const char *args[32] = {"submit", manifest, "--broker", c->clients, "--timeout", "30"};
  for (int i = 0, n = 6; more && more[i]; i++) args[n++] = more[i];
  program_result r = program_run(args, NULL);
  if (r.code != 0) {
    cluster_show(c);
    fail_msg("submit ended with %d: %s", r.code, r.err);
  }
  char *jid = jids[turn++ % 8];
  snprintf(jid, sizeof jids[0], "%.*s", (int)strcspn(r.out, "\n"), r.out);
  program_clear(&r);
  return jid;
}

const char *cluster_job(cluster *c, const char *jid, const char *field) {
  const char *text = redis_say(c->redis, "t", "HGET $job:%s %s", jid, field);
  return strcmp(text, "nil") == 0 || strcmp(text, "''") == 0 ? "" : text;
}

/* The sink has written errors.jsonl of the job's last finish, a moment after the last part. */
static bool published(cluster *c, const char *jid) {
  char path[512], text[512] = "", epoch[64];
  snprintf(path, sizeof path, "%s/%s/.finished.json", c->results, jid);
  FILE *f = fopen(path, "re");
  if (!f) return false;
  size_t n = fread(text, 1, sizeof text - 1, f);
  text[n] = 0;
  fclose(f);
  snprintf(epoch, sizeof epoch, "\"epoch\":%s,", cluster_job(c, jid, "epoch"));
  return strstr(text, epoch) != NULL;
}

bool cluster_finished(cluster *c, const char *jid) {
  const char *state = cluster_job(c, jid, "st");
  return (strcmp(state, "FIN") == 0 || strcmp(state, "CXD") == 0) && published(c, jid);
}

void cluster_wait(cluster *c, const char *jid, int ms) {
  int64_t end = test_now_ms() + ms;
  while (!cluster_finished(c, jid)) {
    if (test_now_ms() > end) {
      cluster_show(c);
      fail_msg("job %s: not finished within %d ms: %s; totals %s", jid, ms, redis_say(c->redis, "t", "HGETALL $job:%s", jid),
               redis_say(c->redis, "t", "btc_totals"));
    }
    test_sleep_ms(20);
  }
}

void cluster_check_dead(cluster *c, const char *jid, const char *prefix, int64_t n, const char *faults) {
  static const char *const reason[] = {[STUB_CRASH] = "crash", [STUB_BAD] = "decode", [STUB_HANG] = "timeout"};
  stub_faults f;
  btc_error err;
  int64_t wrong = 0, dead = 0;
  assert_int_equal(stub_faults_parse(faults, &f, &err), BTC_OK);
  redisReply *letters = redisCommand(redis_server_context(c->redis), "HGETALL btc:{t}:dd:%s", jid);
  assert_non_null(letters);
  const char **letter = calloc((size_t)n, sizeof *letter);
  for (size_t i = 0; i + 1 < letters->elements; i += 2)
    letter[strtoll(letters->element[i]->str, NULL, 10)] = letters->element[i + 1]->str;
  for (int64_t i = 0; i < n; i++) {
    char id[64], want[64];
    snprintf(id, sizeof id, "%s-%06lld", prefix, (long long)i);
    stub_fault fault = stub_fault_of(&f, id);
    bool must_die = fault == STUB_CRASH || fault == STUB_BAD || fault == STUB_HANG;
    snprintf(want, sizeof want, "\"reason\":\"%s\"", must_die ? reason[fault] : "");
    dead += must_die;
    if ((letter[i] != NULL) == must_die && (!must_die || strstr(letter[i], want))) continue;
    if (wrong++ < 10) print_message("%s: fault %d, dead letter %s\n", id, (int)fault, letter[i] ? letter[i] : "(none)");
  }
  free(letter);
  freeReplyObject(letters);
  if (wrong) cluster_show(c);
  assert_int_equal(wrong, 0);
  print_message("%lld of %lld items dead, exactly the bad ones\n", (long long)dead, (long long)n);
}

static void say(void *ctx, const char *line) {
  (void)ctx;
  print_message("violation: %s\n", line);
}

uint64_t cluster_check(cluster *c) {
  checker_report r;
  btc_error err;
  const checker_options o = {.redis = redis_server_url(c->redis),
                             .queue = "t",
                             .results = c->results,
                             .drained = c->drained,
                             .at_end = true,
                             .stub = !c->o.model && !c->o.peers};
  if (checker_run(&o, say, NULL, &r, &err) != BTC_OK) fail_msg("%s", err.message);
  if (r.violations) cluster_show(c);
  print_message("checked: %llu jobs, %llu items: %llu done, %llu dead, %llu cancelled, %llu records, %llu violations\n",
                (unsigned long long)r.jobs, (unsigned long long)r.items, (unsigned long long)r.done, (unsigned long long)r.dead,
                (unsigned long long)r.cancelled, (unsigned long long)r.records, (unsigned long long)r.violations);
  assert_int_equal(r.violations, 0);
  return r.items;
}
