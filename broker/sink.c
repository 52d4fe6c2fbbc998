/* The sink's thread: duty, open jobs, sealing by size and time. See sink.h; reading is sink_read.c, the ends of jobs sink_finish.c.
 */
#define _GNU_SOURCE
#include "broker/sink_core.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define SECOND_NS 1000000000ll

static int64_t wall_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

bool btc_sink_should_stop(btc_sink *s) {
  pthread_mutex_lock(&s->lock);
  bool stop = s->stop;
  pthread_mutex_unlock(&s->lock);
  return stop;
}

/* Sleeps, but not through a stop. */
static void pause_ms(btc_sink *s, int64_t ms) {
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  int64_t ns = until.tv_nsec + ms * 1000000;
  until.tv_sec += ns / SECOND_NS;
  until.tv_nsec = ns % SECOND_NS;
  pthread_mutex_lock(&s->lock);
  while (!s->stop && pthread_cond_timedwait(&s->change, &s->lock, &until) == 0) continue;
  pthread_mutex_unlock(&s->lock);
}

/* ---- open jobs ---- */

void btc_sink_close_job(sink_job *j) {
  btc_part_close(&j->part);
  *j = (sink_job){0};
}

void btc_sink_drop(btc_sink *s) {
  for (int64_t i = 0; i < s->o.open_jobs; i++) btc_sink_close_job(&s->job[i]);
  s->acks.n = 0;
  s->fresh = true;
}

sink_job *btc_sink_find(btc_sink *s, const char *jid) {
  for (int64_t i = 0; i < s->o.open_jobs; i++)
    if (s->job[i].part && strcmp(btc_part_jid(s->job[i].part), jid) == 0) return &s->job[i];
  return NULL;
}

void btc_sink_block(btc_sink *s, const char *jid, const btc_error *why) {
  char text[BTC_ERROR_TEXT];
  BTC_LOG_LIMITED(BTC_LOG_ERROR, "sink-blocked", "why=%s", btc_log_quote(text, sizeof text, why->message));
  s->blocked = true;
  s->retry_ns = btc_now_ns() + SECOND_NS;
  snprintf(s->blocked_jid, sizeof s->blocked_jid, "%s", jid);
  btc_metrics_set(s->o.metrics, BTC_METRIC_SINK_BLOCKED, 1);
  btc_metrics_health(s->o.metrics, BTC_HEALTH_SINK, false, why->message);
}

static void unblock(btc_sink *s) {
  if (s->blocked) btc_log(BTC_LOG_INFO, "sink-unblocked", "%s", "");
  s->blocked = false;
  btc_metrics_set(s->o.metrics, BTC_METRIC_SINK_BLOCKED, 0);
  btc_metrics_health(s->o.metrics, BTC_HEALTH_SINK, true, NULL);
}

/* ---- folders that cannot be used: their entries stay in Redis, and other jobs go on ---- */

static bool is_refused(const btc_sink *s, const char *jid) {
  for (size_t i = 0; i < BTC_SINK_REFUSED; i++)
    if (s->refused[i].until_ns && strcmp(s->refused[i].jid, jid) == 0) return true;
  return false;
}

static void refuse(btc_sink *s, const char *jid, const btc_error *why) {
  char text[BTC_ERROR_TEXT];
  size_t oldest = 0;
  for (size_t i = 1; i < BTC_SINK_REFUSED; i++)
    if (s->refused[i].until_ns < s->refused[oldest].until_ns) oldest = i;
  btc_log(BTC_LOG_ERROR, "sink-job-refused", "jid=%s why=%s", jid, btc_log_quote(text, sizeof text, why->message));
  snprintf(s->refused[oldest].jid, sizeof s->refused[oldest].jid, "%s", jid);
  s->refused[oldest].until_ns = btc_now_ns() + 60 * SECOND_NS;
}

/* Their entries were read and left: to have them again, everything pending is claimed again. */
static void retry_refused(btc_sink *s) {
  int64_t now = btc_now_ns();
  for (size_t i = 0; i < BTC_SINK_REFUSED; i++) {
    if (!s->refused[i].until_ns || s->refused[i].until_ns > now) continue;
    s->refused[i].until_ns = 0;
    btc_sink_drop(s);
  }
}

static int64_t created_ms(btc_sink *s, const char *jid) {
  char key[80];
  snprintf(key, sizeof key, "@job:%s", jid);
  redisReply *r = btc_sink_redis_say(s->redis, "HGET", key, "created", (const char *)NULL);
  int64_t ms = r && r->type == REDIS_REPLY_STRING ? strtoll(r->str, NULL, 10) : 0;
  if (r) freeReplyObject(r);
  return ms;
}

/* A free place; the job that was used longest ago is sealed for it. */
static sink_job *place_for_job(btc_sink *s) {
  sink_job *oldest = NULL;
  size_t memory = 0;
  sink_job *empty = NULL;
  for (int64_t i = 0; i < s->o.open_jobs; i++) {
    sink_job *j = &s->job[i];
    if (!j->part) {
      empty = j;
      continue;
    }
    memory += btc_part_memory(j->part);
    if (!oldest || j->used < oldest->used) oldest = j;
  }
  if (empty && memory < (size_t)s->o.open_bytes) return empty;
  if (!oldest) return empty;
  if (!btc_sink_seal(s, oldest)) return NULL;
  btc_sink_close_job(oldest);
  return oldest;
}

sink_job *btc_sink_job(btc_sink *s, const char *jid) {
  sink_job *j = btc_sink_find(s, jid);
  if (!j) {
    if (is_refused(s, jid)) return NULL;
    j = place_for_job(s);
    if (!j) return NULL;
    btc_error err;
    btc_status st = btc_part_open(s->results, jid, &j->part, &err);
    if (st == BTC_ERR_FORMAT)
      refuse(s, jid, &err);
    else if (st != BTC_OK)
      btc_sink_block(s, jid, &err);
    if (st != BTC_OK) return NULL;
    j->created_ms = created_ms(s, jid);
  }
  j->used = ++s->clock;
  return j;
}

/* ---- sealing ---- */

bool btc_sink_seal(btc_sink *s, sink_job *j) {
  btc_error err;
  int conflicts;
  size_t n, records = btc_part_waiting(j->part);
  btc_part_entries(j->part, &n);
  if (!n) return true;
  btc_status st = btc_part_seal(j->part, &conflicts, &err);
  if (conflicts) btc_log(BTC_LOG_WARN, "sink-conflict", "jid=%s times=%d", btc_part_jid(j->part), conflicts);
  if (st != BTC_OK) {
    btc_sink_block(s, "", &err);
    return false;
  }
  if (s->blocked && !s->blocked_jid[0]) unblock(s);
  btc_metrics_add(s->o.metrics, BTC_METRIC_SINK_RECORDS, (double)btc_part_waiting(j->part));
  btc_metrics_add(s->o.metrics, BTC_METRIC_SINK_PARTS, btc_part_waiting(j->part) > 0);
  btc_log(BTC_LOG_DEBUG, "sealed", "jid=%s part=%" PRIu32 " records=%zu", btc_part_jid(j->part), btc_part_number(j->part), records);
  const btc_stream_id *id = btc_part_entries(j->part, &n);
  BTC_FAILPOINT("sink_before_ack");
  if (!btc_sink_acknowledge(s, btc_part_jid(j->part), id, n)) return false;
  BTC_FAILPOINT("sink_acked");
  btc_part_clear(j->part);
  j->seal_ns = 0;
  return true;
}

static bool is_due(const btc_sink *s, const sink_job *j, int64_t now) {
  if (!j->part || !j->seal_ns) return false;
  return now >= j->seal_ns || (int64_t)btc_part_waiting(j->part) >= s->o.seal_records ||
         (int64_t)btc_part_waiting_bytes(j->part) >= s->o.seal_bytes;
}

/* A young job is sealed often, so that its owner sees results soon; an old one seldom, so that it has few files. */
static void set_deadline(const btc_sink *s, sink_job *j) {
  size_t n;
  btc_part_entries(j->part, &n);
  if (j->seal_ns || !n) return;
  int64_t age = j->created_ms ? wall_ms() - j->created_ms : 0, wait = age / 50;
  if (wait < s->o.seal_min_ms) wait = s->o.seal_min_ms;
  if (wait > s->o.seal_max_ms) wait = s->o.seal_max_ms;
  j->seal_ns = btc_now_ns() + wait * 1000000;
}

static bool seal_due(btc_sink *s, bool all) {
  int64_t now = btc_now_ns();
  for (int64_t i = 0; i < s->o.open_jobs; i++) {
    sink_job *j = &s->job[i];
    if (j->part) set_deadline(s, j);
    if (!is_due(s, j, all ? INT64_MAX : now)) continue;
    if (!btc_sink_seal(s, j) || !btc_sink_lead(s)) return false;
  }
  return true;
}

/* ---- the duty ---- */

static int say_lead(btc_sink *s, int64_t ttl_ms) {
  char ttl[32];
  snprintf(ttl, sizeof ttl, "%" PRId64, ttl_ms);
  const char *argv[] = {"sink", s->broker, ttl};
  redisReply *r = btc_sink_redis_fcall(s->redis, "btc_lead", 3, argv);
  int lead = r && r->type == REDIS_REPLY_INTEGER ? (int)r->integer : -1;
  btc_error err;
  char text[BTC_ERROR_TEXT];
  if (btc_reply_failed(r, &err))
    BTC_LOG_LIMITED(BTC_LOG_WARN, "sink-no-duty", "why=%s", btc_log_quote(text, sizeof text, err.message));
  if (r) freeReplyObject(r);
  return lead;
}

bool btc_sink_lead(btc_sink *s) {
  int64_t now = btc_now_ns();
  if (s->active && now < s->lead_ns) return true;
  if (s->active && now >= s->lapse_ns) { /* another may have had it meanwhile, and written to the folders that are open here */
    btc_log(BTC_LOG_WARN, "sink-duty-lapsed", "broker=%s", s->broker);
    btc_sink_drop(s);
    return s->active = false;
  }
  int lead = say_lead(s, s->o.duty_ms);
  if (lead != 1 && s->active) {
    btc_log(BTC_LOG_WARN, "sink-duty-lost", "broker=%s", s->broker);
    btc_sink_drop(s);
  }
  if (lead == 1 && !s->active) {
    btc_log(BTC_LOG_INFO, "sink-duty", "broker=%s", s->broker);
    s->fresh = true;
    btc_sink_scan_begin(s);
  }
  s->active = lead == 1;
  s->lead_ns = now + s->o.duty_ms / 3 * 1000000;
  s->lapse_ns = now + s->o.duty_ms * 1000000;
  btc_metrics_set(s->o.metrics, BTC_METRIC_SINK_ACTIVE, s->active);
  if (!s->blocked)
    btc_metrics_health(s->o.metrics, BTC_HEALTH_SINK, true, NULL); /* the duty is ours, or another broker's business */
  return s->active;
}

/* ---- the thread ---- */

/* Whether the folder takes something again. */
static void try_unblock(btc_sink *s) {
  if (btc_now_ns() < s->retry_ns) {
    pause_ms(s, 100);
    return;
  }
  if (s->blocked_jid[0]) {
    btc_part_job *probe;
    btc_error err;
    btc_status st = btc_part_open(s->results, s->blocked_jid, &probe, &err);
    if (st == BTC_OK || st == BTC_ERR_FORMAT) {
      btc_part_close(&probe);
      s->fresh = true;
      btc_sink_drop(s); /* entries that found no folder are pending and come again */
      unblock(s);
    } else {
      btc_sink_block(s, s->blocked_jid, &err);
    }
  } else {
    s->retry_ns = btc_now_ns() + SECOND_NS;
    int64_t i = 0;
    while (i < s->o.open_jobs && !(s->job[i].part && s->job[i].seal_ns)) i++;
    if (i == s->o.open_jobs || btc_sink_seal(s, &s->job[i])) unblock(s);
  }
}

static void turn(btc_sink *s) {
  btc_error err;
  if (!btc_sink_redis_is_up(s->redis)) {
    btc_sink_drop(s); /* Redis may have lost its last entries: what it has now is what counts */
    s->active = false;
    if (btc_sink_redis_connect(s->redis, &err) != BTC_OK) {
      char text[BTC_ERROR_TEXT];
      BTC_LOG_LIMITED(BTC_LOG_WARN, "sink-no-redis", "why=%s", btc_log_quote(text, sizeof text, err.message));
      pause_ms(s, 300);
      return;
    }
  }
  if (!btc_sink_lead(s)) {
    pause_ms(s, s->o.duty_ms / 10);
    return;
  }
  if (s->blocked) {
    try_unblock(s);
    return;
  }
  retry_refused(s);
  if (s->fresh) {
    btc_sink_drop(s); /* what comes again must not be there already */
    if (!btc_sink_claim(s)) {
      if (!s->blocked) pause_ms(s, 100);
      return;
    }
    s->fresh = false;
  }
  if (!btc_sink_read(s)) return;
  if (seal_due(s, false)) btc_sink_finish_work(s);
}

static void *run(void *ctx) {
  btc_sink *s = ctx;
  while (!btc_sink_should_stop(s)) turn(s);
  int64_t end = btc_now_ns() + s->grace_ms * 1000000;
  while (s->active && s->grace_ms > 0 && btc_now_ns() < end && !seal_due(s, true)) {
    if (!s->blocked || !btc_sink_redis_is_up(s->redis)) break; /* the rest is in Redis and waits for the next sink */
    struct timespec moment = {.tv_nsec = 100000000};
    nanosleep(&moment, NULL);
  }
  if (s->active) say_lead(s, 1); /* the next one need not wait */
  btc_sink_drop(s);
  btc_sink_redis_close(s->redis);
  return NULL;
}

static int64_t or_default(int64_t value, int64_t standard) {
  return value > 0 ? value : standard;
}

static void fill_options(btc_sink *s, const btc_sink_options *o) {
  s->o = *o;
  s->o.seal_records = or_default(o->seal_records, 16384);
  s->o.seal_bytes = or_default(o->seal_bytes, 8 << 20);
  s->o.seal_min_ms = or_default(o->seal_min_ms, 1000);
  s->o.seal_max_ms = or_default(o->seal_max_ms, 60000);
  s->o.open_jobs = or_default(o->open_jobs, 256);
  s->o.open_bytes = or_default(o->open_bytes, 64 << 20);
  s->o.duty_ms = or_default(o->duty_ms, 5000);
}

btc_status btc_sink_start(const btc_sink_options *o, btc_sink **out, btc_error *err) {
  btc_sink *s = *out = btc_alloc_zero(1, sizeof *s);
  if (!s) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  pthread_condattr_t monotonic;
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&s->change, &monotonic);
  pthread_condattr_destroy(&monotonic);
  pthread_mutex_init(&s->lock, NULL);
  fill_options(s, o);
  s->queue = btc_strdup(o->queue);
  s->broker = btc_strdup(o->broker);
  s->results = btc_strdup(o->results);
  s->job = btc_alloc_zero((size_t)s->o.open_jobs, sizeof *s->job);
  bool copied = s->queue && s->broker && s->results && s->job;
  btc_status st = copied ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  if (copied && mkdir(s->results, 0755) != 0 && errno != EEXIST)
    st = btc_fail(err, BTC_ERR_IO, "cannot make the results folder '%s': %s", s->results, strerror(errno));
  if (st == BTC_OK) st = btc_sink_redis_create(o->redis, o->redis_user, o->redis_password_file, o->queue, &s->redis, err);
  if (st == BTC_OK) {
    sigset_t all, before; /* signals are the loop's; and a write to a Redis that is gone must not end the program */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&s->thread, NULL, run, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    s->started = !failed;
    if (failed) st = btc_fail(err, BTC_ERR_IO, "cannot start the sink's thread: %s", strerror(failed));
  }
  if (st != BTC_OK) btc_sink_stop(out, 0);
  return st;
}

void btc_sink_stop(btc_sink **sink, int64_t grace_ms) {
  btc_sink *s = *sink;
  *sink = NULL;
  if (!s) return;
  pthread_mutex_lock(&s->lock);
  s->stop = true;
  s->grace_ms = grace_ms;
  pthread_cond_signal(&s->change);
  pthread_mutex_unlock(&s->lock);
  if (s->started) pthread_join(s->thread, NULL);
  btc_sink_redis_destroy(&s->redis);
  pthread_cond_destroy(&s->change);
  pthread_mutex_destroy(&s->lock);
  free(s->job);
  free(s->queue);
  free(s->broker);
  free(s->results);
  free(s);
}
