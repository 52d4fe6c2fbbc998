#define _GNU_SOURCE
#include "checker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checker_parts.h"

void checker_violation(checker *c, const char *fmt, ...) {
  char line[512];
  if (c->report->violations++ >= 100) return;
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(line, sizeof line, fmt, ap);
  va_end(ap);
  c->say(c->say_ctx, line);
}

redisReply *checker_words(checker *c, const char *const words[]) {
  const char *argv[16];
  char keys[4][512];
  int argc = 0, n_keys = 0;
  for (; argc < 16 && words[argc]; argc++) {
    argv[argc] = words[argc];
    if (*words[argc] == '$' && n_keys < 4) {
      snprintf(keys[n_keys], sizeof keys[0], "%s%s", c->prefix, words[argc] + 1);
      argv[argc] = keys[n_keys++];
    }
  }
  return redisCommandArgv(c->redis, argc, argv, NULL);
}

int64_t checker_number(checker *c, const char *command, const char *key, const char *field) {
  redisReply *r = field ? checker_command(c, command, key, field) : checker_command(c, command, key);
  int64_t n = -1;
  if (r && r->type == REDIS_REPLY_INTEGER) n = r->integer;
  if (r && r->type == REDIS_REPLY_STRING) n = strtoll(r->str, NULL, 10);
  if (r) freeReplyObject(r);
  return n;
}

static btc_status lost(const checker *c, const redisReply *r, btc_error *err) {
  return btc_fail(err, BTC_ERR_IO, "Redis: %s", r && r->type == REDIS_REPLY_ERROR ? r->str : c->redis->errstr);
}

/* One page. *cursor: of SCAN, the next index of a list, the last id of a stream; "" begins, NULL in the end. */
static redisReply *page(checker *c, const char *type, const char *key, const char *cursor) {
  char end[32];
  const char *at = *cursor ? cursor : "0";
  if (strcmp(type, "list") == 0) {
    snprintf(end, sizeof end, "%lld", strtoll(at, NULL, 10) + 499);
    return checker_command(c, "LRANGE", key, at, end);
  }
  if (strcmp(type, "stream") == 0) return checker_command(c, "XRANGE", key, *cursor ? cursor : "-", "+", "COUNT", "500");
  if (strcmp(type, "keys") == 0) return checker_command(c, "SCAN", at, "MATCH", "$*", "COUNT", "1000");
  const char *scan = strcmp(type, "set") == 0 ? "SSCAN" : strcmp(type, "hash") == 0 ? "HSCAN" : "ZSCAN";
  return checker_command(c, scan, key, at, "COUNT", "500");
}

/* An entry's id and fields as one row of elements. */
static bool each_entry(checker *c, const redisReply *entry, checker_each each, void *ctx) {
  redisReply *row[32];
  size_t n = 1;
  row[0] = entry->element[0];
  for (size_t i = 0; i < entry->element[1]->elements && n < 32; i++) row[n++] = entry->element[1]->element[i];
  return each(c, ctx, row, n);
}

btc_status checker_walk(checker *c, const char *type, const char *key, checker_each each, void *ctx, btc_error *err) {
  bool list = strcmp(type, "list") == 0, stream = strcmp(type, "stream") == 0;
  size_t step = strcmp(type, "hash") == 0 || strcmp(type, "zset") == 0 ? 2 : 1;
  char cursor[80] = "";
  for (bool more = true; more;) {
    redisReply *r = page(c, type, key, cursor);
    if (!r || r->type != REDIS_REPLY_ARRAY) {
      btc_status st = lost(c, r, err);
      if (r) freeReplyObject(r);
      return st;
    }
    const redisReply *rows = list || stream ? r : r->element[1];
    for (size_t i = 0; i + step <= rows->elements && more; i += step)
      more = stream ? each_entry(c, rows->element[i], each, ctx) : each(c, ctx, rows->element + i, step);
    if (list) {
      snprintf(cursor, sizeof cursor, "%lld", strtoll(cursor, NULL, 10) + 500);
      more = more && rows->elements == 500;
    } else if (stream) {
      more = more && rows->elements == 500;
      if (more) snprintf(cursor, sizeof cursor, "(%s", rows->element[499]->element[0]->str);
    } else {
      snprintf(cursor, sizeof cursor, "%s", r->element[0]->str);
      more = more && strcmp(cursor, "0") != 0;
    }
    freeReplyObject(r);
  }
  return BTC_OK;
}

static int by_jid(const void *a, const void *b) {
  return strcmp(((const checked_job *)a)->jid, ((const checked_job *)b)->jid);
}

checked_job *checker_job(checker *c, const char *jid) {
  checked_job key = {0};
  snprintf(key.jid, sizeof key.jid, "%s", jid);
  return c->n_jobs ? bsearch(&key, c->jobs, c->n_jobs, sizeof key, by_jid) : NULL;
}

static redisContext *connect_to(const char *url) {
  struct timeval limit = {.tv_sec = 30};
  redisContext *r = NULL;
  char host[128];
  int port;
  if (strncmp(url, "unix://", 7) == 0)
    r = redisConnectUnixWithTimeout(url + 7, limit);
  else if (sscanf(url, "redis://%127[^:]:%d", host, &port) == 2)
    r = redisConnectWithTimeout(host, port, limit);
  if (r && !r->err) redisSetTimeout(r, limit);
  return r;
}

static void free_jobs(checker *c) {
  for (size_t i = 0; i < c->n_jobs; i++) {
    free(c->jobs[i].done_bits);
    free(c->jobs[i].dead_bits);
    free(c->jobs[i].seen_bits);
    free(c->jobs[i].held_bits);
  }
  free(c->jobs);
}

btc_status checker_run(const checker_options *o, checker_say say, void *ctx, checker_report *report, btc_error *err) {
  checker c = {.o = o, .say = say, .say_ctx = ctx, .report = report};
  *report = (checker_report){0};
  snprintf(c.prefix, sizeof c.prefix, "btc:{%s}:", o->queue);
  c.redis = connect_to(o->redis);
  if (!c.redis || c.redis->err) {
    btc_status st = btc_fail(err, BTC_ERR_IO, "Redis at %s: %s", o->redis, c.redis ? c.redis->errstr : "no such kind of address");
    if (c.redis) redisFree(c.redis);
    return st;
  }
  btc_status st = checker_jobs(&c, err);
  if (st == BTC_OK) st = checker_chunks(&c, err);
  if (st == BTC_OK) st = checker_records(&c, err);
  free_jobs(&c);
  redisFree(c.redis);
  return st;
}
