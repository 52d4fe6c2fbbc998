/*
 * Feeds and drains the queue through Redis at a steady rate and prints how long each item took, from just before its XADD to its
 * record in hand: btcchat-bench-queue SOCKET QUEUE RATE SECONDS One connection feeds in batches of what is due each millisecond
 * (pipelined, as a busy producer would), one drains. Ids carry the time, so nothing is kept. Prints one JSON object. Fails when an
 * item is missing at the end or comes twice.
 */
#define _GNU_SOURCE
#include <hiredis/hiredis.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"

typedef struct load {
  const char *socket, *queue;
  int64_t rate, total, sent;
  int64_t start_ns;
  bool failed;
} load;

static redisContext *connect_to(const char *socket) {
  redisContext *c = redisConnectUnixWithTimeout(socket, (struct timeval){.tv_sec = 5});
  if (c && !c->err) redisSetTimeout(c, (struct timeval){.tv_sec = 20});
  if (c && !c->err) return c;
  fprintf(stderr, "btcchat-bench-queue: cannot connect to '%s': %s\n", socket, c ? c->errstr : "out of memory");
  exit(1);
}

static void *feed(void *arg) {
  load *l = arg;
  redisContext *c = connect_to(l->socket);
  while (l->sent < l->total && !l->failed) {
    int64_t due = (btc_now_ns() - l->start_ns) * l->rate / 1000000000, n = 0;
    if (due > l->total) due = l->total;
    for (; l->sent + n < due; n++)
      redisAppendCommand(c, "XADD btc:{%s}:in * json {\"id\":\"%lld-%lld\",\"before\":\"/a.png\",\"after\":\"/b.png\"}", l->queue,
                         (long long)(l->sent + n), (long long)btc_now_ns());
    for (int64_t i = 0; i < n; i++) {
      redisReply *r = NULL;
      if (redisGetReply(c, (void **)&r) != REDIS_OK || r->type == REDIS_REPLY_ERROR) {
        fprintf(stderr, "btcchat-bench-queue: XADD: %s\n", r ? r->str : c->errstr);
        l->failed = true;
      }
      freeReplyObject(r);
    }
    l->sent += n;
    usleep(1000);
  }
  redisFree(c);
  return NULL;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static const char *field(const redisReply *fields, const char *name) {
  for (size_t i = 0; i + 1 < fields->elements; i += 2)
    if (strcmp(fields->element[i]->str, name) == 0) return fields->element[i + 1]->str;
  return NULL;
}

/* Takes the entries of one XREADGROUP reply. Returns how many, or -1. */
static int64_t take(redisContext *c, const load *l, const redisReply *r, double *ms, bool *seen) {
  if (r->type != REDIS_REPLY_ARRAY || !r->elements) return 0;
  const redisReply *entries = r->element[0]->element[1];
  for (size_t i = 0; i < entries->elements; i++) {
    long long n, sent;
    const char *id = field(entries->element[i]->element[1], "id");
    if (!id || sscanf(id, "%lld-%lld", &n, &sent) != 2 || n < 0 || n >= l->total || seen[n]) {
      fprintf(stderr, "btcchat-bench-queue: '%s' is not one of ours, or came twice\n", id ? id : "(no id)");
      return -1;
    }
    seen[n] = true;
    ms[n] = (double)(btc_now_ns() - sent) * 1e-6;
    redisAppendCommand(c, "XACK btc:{%s}:out bench %s", l->queue, entries->element[i]->element[0]->str);
  }
  for (size_t i = 0; i < entries->elements; i++) {
    redisReply *ack = NULL;
    if (redisGetReply(c, (void **)&ack) != REDIS_OK) return -1;
    freeReplyObject(ack);
  }
  return (int64_t)entries->elements;
}

int main(int argc, char **argv) {
  if (argc != 5) {
    fprintf(stderr, "usage: btcchat-bench-queue SOCKET QUEUE RATE SECONDS\n");
    return 2;
  }
  load l = {.socket = argv[1], .queue = argv[2], .rate = atoll(argv[3])};
  l.total = l.rate * atoll(argv[4]);
  double *ms = calloc((size_t)l.total + 1, sizeof *ms);
  bool *seen = calloc((size_t)l.total + 1, sizeof *seen);
  if (l.total < 1 || !ms || !seen) return 1;
  redisContext *c = connect_to(l.socket);
  freeReplyObject(redisCommand(c, "XGROUP CREATE btc:{%s}:out bench $ MKSTREAM", l.queue));
  l.start_ns = btc_now_ns();
  pthread_t feeder;
  if (pthread_create(&feeder, NULL, feed, &l) != 0) return 1;
  int64_t got = 0, deadline = l.start_ns + (atoll(argv[4]) + 30) * 1000000000;
  while (got < l.total && !l.failed && btc_now_ns() < deadline) {
    redisReply *r = redisCommand(c, "XREADGROUP GROUP bench b COUNT 256 BLOCK 1000 STREAMS btc:{%s}:out >", l.queue);
    int64_t n = r ? take(c, &l, r, ms, seen) : -1;
    freeReplyObject(r);
    if (n < 0) l.failed = true;
    if (n > 0) got += n;
  }
  double seconds = (double)(btc_now_ns() - l.start_ns) * 1e-9;
  pthread_join(feeder, NULL);
  freeReplyObject(redisCommand(c, "XGROUP DESTROY btc:{%s}:out bench", l.queue));
  redisFree(c);
  if (got < l.total) {
    fprintf(stderr, "btcchat-bench-queue: %lld of %lld items came back\n", (long long)got, (long long)l.total);
    return 1;
  }
  qsort(ms, (size_t)l.total, sizeof *ms, by_value);
  printf("{\"items\":%lld,\"rate\":%lld,\"items_per_s\":%.0f,\"p50_ms\":%.2f,\"p99_ms\":%.2f,\"max_ms\":%.2f}\n",
         (long long)l.total, (long long)l.rate, (double)l.total / seconds, ms[l.total / 2], ms[l.total * 99 / 100],
         ms[l.total - 1]);
  free(ms);
  free(seen);
  return 0;
}
