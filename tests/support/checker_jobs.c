/* Checker: jobs, their counters against their bits, events. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checker_parts.h"

static int by_jid(const void *a, const void *b) {
  return strcmp(((const checked_job *)a)->jid, ((const checked_job *)b)->jid);
}

static bool add_jid(checker *c, void *ctx, redisReply *const *element, size_t n) {
  (void)ctx, (void)n;
  if ((c->n_jobs & (c->n_jobs + 1)) == 0) { /* 0, 1, 3, 7 ..: room for twice as many */
    checked_job *more = btc_realloc(c->jobs, 2 * (c->n_jobs + 1), sizeof *more);
    if (!more) return false;
    c->jobs = more;
  }
  checked_job *j = &c->jobs[c->n_jobs++];
  *j = (checked_job){0};
  snprintf(j->jid, sizeof j->jid, "%s", element[0]->str);
  return true;
}

static void set_field(checked_job *j, const char *name, const char *value) {
  static const struct {
    const char *name;
    size_t offset;
  } numbers[] = {{"total", offsetof(checked_job, total)}, {"cur", offsetof(checked_job, cur)},
                 {"done", offsetof(checked_job, done)},   {"dead", offsetof(checked_job, dead)},
                 {"canc", offsetof(checked_job, canc)},   {"live", offsetof(checked_job, live)},
                 {"epoch", offsetof(checked_job, epoch)}, {"rec", offsetof(checked_job, rec)}};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (strcmp(name, numbers[i].name) == 0) *(uint64_t *)((char *)j + numbers[i].offset) = strtoull(value, NULL, 10);
  if (strcmp(name, "st") == 0) snprintf(j->st, sizeof j->st, "%s", value);
  if (strcmp(name, "manifest") == 0) snprintf(j->manifest, sizeof j->manifest, "%s", value);
  if (strcmp(name, "base") == 0) snprintf(j->base, sizeof j->base, "%s", value);
  if (strcmp(name, "route") == 0) j->stream = strcmp(value, "stream") == 0;
  if (strcmp(name, "kind") == 0) j->inlined = strcmp(value, "inline") == 0;
  if (strcmp(name, "paused") == 0) j->paused = strcmp(value, "1") == 0;
}

static btc_status read_done_bits(checker *c, checked_job *j, btc_error *err) {
  char key[96], from[24], to[24];
  uint64_t count = 0, bytes = (j->total + 7) / 8;
  snprintf(key, sizeof key, "$dn:%s", j->jid);
  for (uint64_t at = 0; at <= bytes; at += 65536) { /* one byte more than there should be */
    snprintf(from, sizeof from, "%" PRIu64, at);
    snprintf(to, sizeof to, "%" PRIu64, at + 65535);
    redisReply *r = checker_command(c, "GETRANGE", key, from, to);
    if (!r || r->type != REDIS_REPLY_STRING) {
      if (r) freeReplyObject(r);
      return btc_fail(err, BTC_ERR_IO, "Redis: no bitmap of %s", j->jid);
    }
    for (size_t i = 0; i < r->len; i++) {
      count += (uint64_t)__builtin_popcount((unsigned char)r->str[i]);
      if (at + i < bytes) j->done_bits[at + i] = (uint8_t)r->str[i];
    }
    freeReplyObject(r);
  }
  if (count != j->done)
    checker_violation(c, "job %s: done is %" PRIu64 ", but %" PRIu64 " done bits are set", j->jid, j->done, count);
  return BTC_OK;
}

static bool add_dead(checker *c, void *ctx, redisReply *const *element, size_t n) {
  checked_job *j = ctx;
  uint64_t idx = strtoull(element[0]->str, NULL, 10);
  (void)n;
  if (idx >= j->total)
    checker_violation(c, "job %s: dead letter of item %" PRIu64 ", which it does not have", j->jid, idx);
  else {
    bit_set(j->dead_bits, idx); /* a scan may show one twice: counted from the bits */
    if (bit_get(j->done_bits, idx)) checker_violation(c, "job %s: item %" PRIu64 " is done and dead", j->jid, idx);
  }
  return true;
}

static void check_counters(checker *c, const checked_job *j) {
  uint64_t sum = j->done + j->dead + j->canc, letters = 0;
  bool over = strcmp(j->st, "FIN") == 0 || strcmp(j->st, "CXD") == 0;
  for (uint64_t i = 0; i < (j->total + 7) / 8; i++) letters += (uint64_t)__builtin_popcount(j->dead_bits[i]);
  if (letters != j->dead)
    checker_violation(c, "job %s: dead is %" PRIu64 ", but there are %" PRIu64 " dead letters", j->jid, j->dead, letters);
  if (over ? sum != j->total : sum > j->total || (sum == j->total && j->cur == j->total))
    checker_violation(c, "job %s: %s with done %" PRIu64 " + dead %" PRIu64 " + cancelled %" PRIu64 " of %" PRIu64, j->jid, j->st,
                      j->done, j->dead, j->canc, j->total);
  if (j->canc > 0 && strcmp(j->st, "CXL") != 0 && strcmp(j->st, "CXD") != 0)
    checker_violation(c, "job %s: %s with cancelled items", j->jid, j->st);
  if (j->cur > j->total || (over && j->cur != j->total))
    checker_violation(c, "job %s: cursor %" PRIu64 " of %" PRIu64, j->jid, j->cur, j->total);
  if (c->o->at_end && !over)
    checker_violation(c, "job %s is %s at the end: %" PRIu64 " of %" PRIu64 " items", j->jid, j->st, sum, j->total);
}

static btc_status load_job(checker *c, checked_job *j, btc_error *err) {
  char key[96];
  snprintf(key, sizeof key, "$job:%s", j->jid);
  redisReply *r = checker_command(c, "HGETALL", key);
  if (!r || r->type != REDIS_REPLY_ARRAY) {
    if (r) freeReplyObject(r);
    return btc_fail(err, BTC_ERR_IO, "Redis: no job %s", j->jid);
  }
  for (size_t i = 0; i + 1 < r->elements; i += 2) set_field(j, r->element[i]->str, r->element[i + 1]->str);
  if (r->elements == 0) checker_violation(c, "job %s is listed, but not there", j->jid);
  freeReplyObject(r);
  size_t bytes = (size_t)(j->total + 7) / 8 + 1;
  j->done_bits = btc_alloc_zero(bytes, 1);
  j->dead_bits = btc_alloc_zero(bytes, 1);
  j->seen_bits = btc_alloc_zero(bytes, 1);
  j->held_bits = btc_alloc_zero(bytes, 1);
  if (!j->done_bits || !j->dead_bits || !j->seen_bits || !j->held_bits)
    return btc_fail(err, BTC_ERR_NOMEM, "no memory for job %s", j->jid);
  btc_status st = read_done_bits(c, j, err);
  snprintf(key, sizeof key, "$dd:%s", j->jid);
  if (st == BTC_OK) st = checker_walk(c, "hash", key, add_dead, j, err);
  if (st == BTC_OK) check_counters(c, j);
  return st;
}

static bool count_event(checker *c, void *ctx, redisReply *const *element, size_t n) {
  const char *type = "", *jid = "";
  (void)ctx;
  for (size_t i = 1; i + 1 < n; i += 2) {
    if (strcmp(element[i]->str, "type") == 0) type = element[i + 1]->str;
    if (strcmp(element[i]->str, "jid") == 0) jid = element[i + 1]->str;
  }
  checked_job *j = checker_job(c, jid);
  if (j && strcmp(type, "finished") == 0) j->finished_events++;
  if (j && strcmp(type, "cancelled") == 0) j->cancelled_events++;
  return true;
}

static void check_events(checker *c, const checked_job *j) {
  bool fin = strcmp(j->st, "FIN") == 0, cxd = strcmp(j->st, "CXD") == 0;
  uint64_t finished = fin ? j->epoch : j->epoch - 1, cancelled = cxd ? 1 : 0;
  bool wrong = c->ev_whole ? j->finished_events != finished || j->cancelled_events != cancelled
                           : j->finished_events > finished || j->cancelled_events > cancelled;
  if (wrong)
    checker_violation(c, "job %s: %s in epoch %" PRIu64 ", but %" PRIu64 " finished and %" PRIu64 " cancelled events", j->jid,
                      j->st, j->epoch, j->finished_events, j->cancelled_events);
}

static void check_gauges(checker *c) {
  int64_t jobs = 0, items = 0, live_jobs = checker_number(c, "HGET", "$stat", "live_jobs"),
          live_items = checker_number(c, "HGET", "$stat", "live_items");
  for (size_t i = 0; i < c->n_jobs; i++) {
    const checked_job *j = &c->jobs[i];
    if (strcmp(j->st, "RUN") != 0 && strcmp(j->st, "CXL") != 0) continue;
    jobs++;
    items += (int64_t)j->total;
  }
  if (c->n_jobs && (live_jobs != jobs || (live_items < 0 ? 0 : live_items) != items))
    checker_violation(c, "open are %" PRId64 " jobs with %" PRId64 " items, counted %" PRId64 " with %" PRId64, jobs, items,
                      live_jobs, live_items);
}

btc_status checker_jobs(checker *c, btc_error *err) {
  btc_status st = checker_walk(c, "zset", "$jobs", add_jid, NULL, err);
  if (st != BTC_OK) return st;
  if (c->n_jobs) qsort(c->jobs, c->n_jobs, sizeof *c->jobs, by_jid);
  size_t kept = 0;
  for (size_t i = 0; i < c->n_jobs; i++)
    if (i == 0 || strcmp(c->jobs[i].jid, c->jobs[kept - 1].jid) != 0) c->jobs[kept++] = c->jobs[i];
  c->n_jobs = kept;
  for (size_t i = 0; i < c->n_jobs && st == BTC_OK; i++) st = load_job(c, &c->jobs[i], err);
  int64_t ev_max = checker_number(c, "HGET", "$cfg", "ev_max");
  c->ev_whole = checker_number(c, "XLEN", "$ev", NULL) < (ev_max > 0 ? ev_max : 10000);
  if (st == BTC_OK) st = checker_walk(c, "stream", "$ev", count_event, NULL, err);
  for (size_t i = 0; i < c->n_jobs && st == BTC_OK; i++) {
    const checked_job *j = &c->jobs[i];
    check_events(c, j);
    c->report->jobs++;
    c->report->items += j->total;
    c->report->done += j->done;
    c->report->dead += j->dead;
    c->report->cancelled += j->canc;
  }
  if (st == BTC_OK) check_gauges(c);
  return st;
}
