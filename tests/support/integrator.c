#define _GNU_SOURCE
#include "integrator.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "daemon.h"
#include "test.h"

enum { BATCH = 64, TAKE = 200 };

struct integrator {
  redis_server *server; /* its address only: the connection is our own */
  redisContext *redis;
  pthread_t thread;
  bool running, pending; /* pending: what was delivered before the connection broke is asked for first */
  atomic_bool stop;
  atomic_int_fast64_t want, added, taken;
  uint64_t last_ms, last_seq; /* the last noted entry */
  char in[96], out[96], path[192];
  FILE *file;
};

static void lose(integrator *g) {
  if (g->redis) redisFree(g->redis);
  g->redis = NULL;
}

static bool connected(integrator *g) {
  if (g->redis) return true;
  g->redis = redis_server_connect(g->server);
  redisReply *r = g->redis ? redisCommand(g->redis, "XGROUP CREATE %s mine 0 MKSTREAM", g->out) : NULL;
  bool made = r && (r->type != REDIS_REPLY_ERROR || strncmp(r->str, "BUSYGROUP", 9) == 0);
  if (r) freeReplyObject(r);
  if (!made) lose(g);
  g->pending = true;
  return made;
}

static void feed(integrator *g) {
  int64_t from = atomic_load(&g->added), n = atomic_load(&g->want) - from;
  bool all = true;
  if (n > BATCH) n = BATCH;
  for (int64_t i = from; i < from + n; i++)
    redisAppendCommand(g->redis,
                       "XADD %s * key k-%" PRId64
                       " tenant %s pri %d json "
                       "{\"id\":\"x-%06" PRId64 "\",\"before\":\"/archive/x/%" PRId64 "_b.png\",\"after\":\"/archive/x/%" PRId64
                       "_a.png\"}",
                       g->in, i, i / BATCH % 2 ? "a" : "c", (int)(i / BATCH % 3), i, i, i);
  for (int64_t i = 0; i < n && all; i++) {
    void *reply = NULL;
    all = redisGetReply(g->redis, &reply) == REDIS_OK && ((redisReply *)reply)->type == REDIS_REPLY_STRING;
    if (reply) freeReplyObject(reply);
  }
  if (all)
    atomic_fetch_add(&g->added, n);
  else
    lose(g); /* all of them again: their keys tell which are known */
}

static const char *field(const redisReply *fields, const char *name) {
  for (size_t i = 0; i + 1 < fields->elements; i += 2)
    if (strcmp(fields->element[i]->str, name) == 0) return fields->element[i + 1]->str;
  return "";
}

static void note(integrator *g, const redisReply *entry) {
  uint64_t ms = 0, seq = 0;
  const redisReply *f = entry->element[1];
  sscanf(entry->element[0]->str, "%" SCNu64 "-%" SCNu64, &ms, &seq);
  if (ms < g->last_ms || (ms == g->last_ms && seq <= g->last_seq)) return;
  if (f->type != REDIS_REPLY_ARRAY) return; /* deleted meanwhile: acknowledged by us, the reply was lost */
  g->last_ms = ms;
  g->last_seq = seq;
  fprintf(g->file, "%s %s %s %s\n", field(f, "jid"), field(f, "idx"), field(f, "epoch"), field(f, "json"));
  atomic_fetch_add(&g->taken, 1);
}

static void acknowledge(integrator *g, const redisReply *entries) {
  const char *argv[TAKE + 3] = {"XACK", g->out, "mine"};
  for (size_t i = 0; i < entries->elements; i++) argv[i + 3] = entries->element[i]->element[0]->str;
  redisReply *r = redisCommandArgv(g->redis, (int)entries->elements + 3, argv, NULL);
  if (!r) lose(g);
  if (r) freeReplyObject(r);
}

/* False: there was nothing. */
static bool take(integrator *g) {
  redisReply *r =
      redisCommand(g->redis, "XREADGROUP GROUP mine me COUNT %d STREAMS %s %s", (int)TAKE, g->out, g->pending ? "0" : ">");
  const redisReply *entries =
      r && r->type == REDIS_REPLY_ARRAY && r->elements == 1 && r->element[0]->elements == 2 ? r->element[0]->element[1] : NULL;
  bool some = entries && entries->elements > 0;
  if (!r || r->type == REDIS_REPLY_ERROR) lose(g);
  if (r && !some) g->pending = false;
  for (size_t i = 0; some && i < entries->elements; i++) note(g, entries->element[i]);
  if (some) fflush(g->file);
  if (some) acknowledge(g, entries);
  if (r) freeReplyObject(r);
  return some;
}

static void *run(void *arg) {
  integrator *g = arg;
  sigset_t broken;
  sigemptyset(&broken);
  sigaddset(&broken, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &broken, NULL); /* of this thread, and so of nobody that the test starts */
  while (!atomic_load(&g->stop)) {
    if (connected(g) && atomic_load(&g->added) < atomic_load(&g->want)) feed(g);
    if (!g->redis || !take(g)) test_sleep_ms(20);
  }
  lose(g);
  return NULL;
}

integrator *integrator_start(redis_server *r, const char *queue) {
  integrator *g = calloc(1, sizeof *g);
  assert_non_null(g);
  g->server = r;
  snprintf(g->in, sizeof g->in, "btc:{%s}:in", queue);
  snprintf(g->out, sizeof g->out, "btc:{%s}:out", queue);
  snprintf(g->path, sizeof g->path, "%s/drained", test_tmp_dir());
  g->file = fopen(g->path, "we");
  assert_non_null(g->file);
  assert_int_equal(pthread_create(&g->thread, NULL, run, g), 0);
  g->running = true;
  return g;
}

void integrator_want(integrator *g, int64_t n) {
  atomic_store(&g->want, n);
}

int64_t integrator_added(const integrator *g) {
  return atomic_load(&g->added);
}

int64_t integrator_taken(const integrator *g) {
  return atomic_load(&g->taken);
}

const char *integrator_path(const integrator *g) {
  return g->path;
}

void integrator_stop(integrator *g) {
  if (!g->running) return;
  atomic_store(&g->stop, true);
  pthread_join(g->thread, NULL);
  g->running = false;
  fclose(g->file);
  g->file = NULL;
}

void integrator_destroy(integrator **g) {
  if (!*g) return;
  integrator_stop(*g);
  free(*g);
  *g = NULL;
}
