/* The ends of jobs: their last parts, errors.jsonl and the note of the finish it belongs to. See sink.h. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "broker/sink_core.h"
#include "broker/sink_errors.h"

#define SCAN_PAGE "64"
#define EVENTS_EVERY_NS 200000000
#define WAIT_FIRST_NS 100000000
#define WAIT_MOST_NS 30000000000

enum { F_ST, F_EPOCH, F_ROUTE, F_DONE, F_DEAD, F_CANC, F_MANIFEST, F_BASE, FIELDS };

/* ---- what is known of a finish ---- */

static redisReply *ask_job(btc_sink *s, const char *jid) {
  char key[80];
  snprintf(key, sizeof key, "@job:%s", jid);
  redisReply *r = btc_sink_redis_say(s->redis, "HMGET", key, "st", "epoch", "route", "done", "dead", "canc", "manifest", "base",
                                     (const char *)NULL);
  if (r && r->type == REDIS_REPLY_ARRAY && r->elements == FIELDS) return r;
  if (r) freeReplyObject(r);
  btc_sink_redis_close(s->redis); /* no answer: everything is looked at again */
  return NULL;
}

static bool is_over(const redisReply *job) {
  const char *st = btc_reply_text(job, F_ST);
  return strcmp(btc_reply_text(job, F_ROUTE), "files") == 0 && (strcmp(st, "FIN") == 0 || strcmp(st, "CXD") == 0);
}

static uint64_t number(const redisReply *job, size_t field) {
  return strtoull(btc_reply_text(job, field), NULL, 10);
}

static bool is_noted(const json_t *doc, const char *name, const redisReply *job, size_t field) {
  const json_t *v = json_object_get(doc, name);
  return json_is_integer(v) && (uint64_t)json_integer_value(v) == number(job, field);
}

/* The folder's errors.jsonl belongs to this finish. Not only the epoch: a Redis that lost the finish gets to it again, and items
 * may have ended otherwise this time. */
static bool is_published(const btc_sink *s, const char *jid, const redisReply *job) {
  char *path = NULL;
  json_t *doc = NULL;
  if (asprintf(&path, "%s/%s/.finished.json", s->results, jid) < 0) return false;
  bool same = btc_json_read(path, &btc_json_config_limits, &doc, NULL) == BTC_OK && is_noted(doc, "epoch", job, F_EPOCH) &&
              is_noted(doc, "done", job, F_DONE) && is_noted(doc, "dead", job, F_DEAD) && is_noted(doc, "cancelled", job, F_CANC);
  json_decref(doc);
  free(path);
  return same;
}

/* ---- finishing one ---- */

static bool still_ours(void *ctx) {
  btc_sink *s = ctx;
  return btc_sink_lead(s) && !btc_sink_should_stop(s);
}

typedef struct note {
  btc_sink *s;
  const char *jid;
  const redisReply *job; /* as it was when the finish began */
} note;

/* Not replayed meanwhile: else its next finish writes all this again, and may have done so already, by another sink. */
static bool is_last_finish(void *ctx) {
  const note *n = ctx;
  redisReply *now = ask_job(n->s, n->jid);
  bool same = now && is_over(now) && strcmp(btc_reply_text(now, F_EPOCH), btc_reply_text(n->job, F_EPOCH)) == 0;
  if (now) freeReplyObject(now);
  return same && still_ours(n->s);
}

static btc_status note_finish(btc_sink *s, btc_part_job *part, const redisReply *job, uint64_t errors, uint32_t crc,
                              btc_error *err) {
  char text[400];
  note about = {s, btc_part_jid(part), job};
  int n =
      snprintf(text, sizeof text,
               "{\"v\":1,\"state\":\"%s\",\"epoch\":%" PRIu64 ",\"done\":%" PRIu64 ",\"dead\":%" PRIu64 ",\"cancelled\":%" PRIu64
               ",\"records\":%" PRIu64 ",\"errors\":%" PRIu64 ",\"errors_crc32\":\"%08" PRIx32 "\"}\n",
               btc_reply_text(job, F_ST), number(job, F_EPOCH), number(job, F_DONE), number(job, F_DEAD), number(job, F_CANC),
               btc_part_sealed(part), errors, crc);
  btc_status st = btc_part_publish(part, ".finished.json", text, (size_t)n, is_last_finish, &about, err);
  BTC_FAILPOINT("sink_finish_noted");
  if (st == BTC_OK)
    btc_log(BTC_LOG_INFO, "job-published", "jid=%s records=%" PRIu64 " errors=%" PRIu64, btc_part_jid(part), btc_part_sealed(part),
            errors);
  return st;
}

typedef enum finished { FINISH_DONE, FINISH_LATER } finished;

static finished finish_with(btc_sink *s, const char *jid, const redisReply *job) {
  if (!is_over(job) || is_published(s, jid, job)) return FINISH_DONE;
  sink_job *j = btc_sink_job(s, jid);
  if (!j) return FINISH_LATER;
  if (btc_part_sealed(j->part) + btc_part_waiting(j->part) < number(job, F_DONE))
    return FINISH_LATER; /* some are still on their way */
  if (!btc_sink_seal(s, j)) return FINISH_LATER;
  btc_errors_source source = {
      .jid = jid, .manifest = btc_reply_text(job, F_MANIFEST), .base = btc_reply_text(job, F_BASE), .go_on = still_ours, .ctx = s};
  uint64_t errors;
  uint32_t crc;
  btc_error err;
  /* the folder's own descriptor: losing the duty on the way closes all open jobs */
  btc_part_job *part = j->part;
  j->part = NULL;
  btc_sink_close_job(j);
  btc_status st = btc_errors_publish(s->redis, part, &source, &errors, &crc, &err);
  if (st == BTC_OK) st = note_finish(s, part, job, errors, crc, &err);
  btc_part_close(&part);
  if (st == BTC_OK) return FINISH_DONE;
  if (btc_sink_redis_is_up(s->redis) && st != BTC_ERR_CANCELLED) btc_sink_block(s, jid, &err);
  return FINISH_LATER;
}

static finished finish(btc_sink *s, const char *jid) {
  redisReply *job = ask_job(s, jid);
  if (!job) return FINISH_LATER;
  finished f = finish_with(s, jid, job);
  freeReplyObject(job);
  return f;
}

/* ---- which ones ---- */

static void wait_for(btc_sink *s, const char *jid) {
  for (size_t i = 0; i < s->n_waiting; i++)
    if (strcmp(s->waiting[i].jid, jid) == 0) return;
  if (s->n_waiting == BTC_SINK_WAITING) {
    s->rescan = true; /* the list of jobs is gone through again when there is room */
    return;
  }
  sink_waiting *w = &s->waiting[s->n_waiting++];
  snprintf(w->jid, sizeof w->jid, "%s", jid);
  w->wait_ns = WAIT_FIRST_NS;
  w->due_ns = 0;
}

/* False: trouble, stop for this turn. */
static bool work_waiting(btc_sink *s) {
  for (size_t i = 0; i < s->n_waiting;) {
    sink_waiting *w = &s->waiting[i];
    if (btc_now_ns() < w->due_ns) {
      i++;
      continue;
    }
    if (finish(s, w->jid) == FINISH_DONE) {
      *w = s->waiting[--s->n_waiting];
      continue;
    }
    w->due_ns = btc_now_ns() + w->wait_ns;
    w->wait_ns = w->wait_ns * 2 < WAIT_MOST_NS ? w->wait_ns * 2 : WAIT_MOST_NS;
    i++;
    if (s->blocked || !s->active || !btc_sink_lead(s)) return false;
  }
  return true;
}

static void begin_scan(btc_sink *s) {
  s->scanning = true;
  s->rescan = false;
  strcpy(s->scan, "0");
}

void btc_sink_scan_begin(btc_sink *s) {
  begin_scan(s);
  s->events[0] = 0; /* events are read from those that come from now on */
}

static void look_at(btc_sink *s, const char *jid) {
  redisReply *job = btc_results_jid_valid(jid) ? ask_job(s, jid) : NULL;
  if (job && is_over(job) && !is_published(s, jid, job)) wait_for(s, jid);
  if (job) freeReplyObject(job);
}

/* By cursor: ranks move when jobs are forgotten, and one that moved past would never be looked at. */
static bool scan_page(btc_sink *s) {
  redisReply *r = btc_sink_redis_say(s->redis, "ZSCAN", "@jobs", s->scan, "COUNT", SCAN_PAGE, (const char *)NULL);
  const redisReply *page =
      r && r->type == REDIS_REPLY_ARRAY && r->elements == 2 && r->element[1]->type == REDIS_REPLY_ARRAY ? r->element[1] : NULL;
  for (size_t i = 0; page && i + 1 < page->elements; i += 2) look_at(s, btc_reply_text(page, i));
  if (page && btc_sink_redis_is_up(s->redis)) {
    snprintf(s->scan, sizeof s->scan, "%s", btc_reply_text(r, 0));
    s->scanning = strcmp(s->scan, "0") != 0;
  }
  if (r) freeReplyObject(r);
  return page && btc_sink_lead(s);
}

/* The place in the stream of events from which on they count: before the scan, so that no finish falls between the two. */
static bool begin_events(btc_sink *s) {
  redisReply *r = btc_sink_redis_say(s->redis, "XREVRANGE", "@ev", "+", "-", "COUNT", "1", (const char *)NULL);
  if (!r || r->type != REDIS_REPLY_ARRAY) {
    if (r) freeReplyObject(r);
    return false;
  }
  snprintf(s->events, sizeof s->events, "%s", r->elements ? btc_reply_text(r->element[0], 0) : "0-0");
  freeReplyObject(r);
  return true;
}

static bool read_events(btc_sink *s) {
  if (btc_now_ns() < s->events_ns) return true;
  s->events_ns = btc_now_ns() + EVENTS_EVERY_NS;
  redisReply *r = btc_sink_redis_say(s->redis, "XREAD", "COUNT", "256", "STREAMS", "@ev", s->events, (const char *)NULL);
  if (!r) return false;
  const redisReply *list =
      r->type == REDIS_REPLY_ARRAY && r->elements && r->element[0]->elements == 2 ? r->element[0]->element[1] : NULL;
  for (size_t i = 0; list && list->type == REDIS_REPLY_ARRAY && i < list->elements; i++) {
    const redisReply *e = list->element[i], *fields = e->type == REDIS_REPLY_ARRAY && e->elements == 2 ? e->element[1] : NULL;
    const redisReply *type = btc_reply_field(fields, "type"), *jid = btc_reply_field(fields, "jid");
    snprintf(s->events, sizeof s->events, "%s", btc_reply_text(e, 0));
    if (type && jid && btc_results_jid_valid(jid->str) &&
        (strcmp(type->str, "finished") == 0 || strcmp(type->str, "cancelled") == 0))
      wait_for(s, jid->str);
  }
  if (list && list->elements == 256) s->events_ns = 0;
  freeReplyObject(r);
  return true;
}

void btc_sink_finish_work(btc_sink *s) {
  if (!s->events[0] && !begin_events(s)) return;
  if (s->scanning && s->n_waiting < BTC_SINK_WAITING / 2 && !scan_page(s)) return;
  if (!s->scanning && s->rescan && s->n_waiting < BTC_SINK_WAITING / 2) begin_scan(s);
  if (read_events(s)) work_waiting(s);
}
