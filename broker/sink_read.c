/* The sink's entries: claimed from whoever had them, read anew, acknowledged. See sink.h. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/sink_core.h"
#include "broker/sink_items.h"

#define BLOCK_MS 200        /* a read waits so long for entries: sealing by time is not late by more */
#define BLOCK_SCANNING_MS 1 /* with a hundred thousand jobs to look at, their ends must not wait for as many pauses */

/* btc_sealed for some entries of a job ("" for entries that name none). */
static bool say_sealed(btc_sink *s, const char *jid, const char (*id)[48], size_t n) {
  const char *argv[BTC_SINK_PAGE + 2];
  char count[24];
  snprintf(count, sizeof count, "%zu", *jid ? n : 0);
  argv[0] = jid;
  argv[1] = count;
  for (size_t i = 0; i < n; i++) argv[2 + i] = id[i];
  redisReply *r = btc_sink_redis_fcall(s->redis, "btc_sealed", (int)n + 2, argv);
  btc_error err;
  bool failed = btc_reply_failed(r, &err);
  if (failed) {
    char text[BTC_ERROR_TEXT];
    BTC_LOG_LIMITED(BTC_LOG_WARN, "sink-not-acknowledged", "jid=%s why=%s", jid, btc_log_quote(text, sizeof text, err.message));
    btc_sink_redis_close(s->redis); /* everything is read again: what lies in parts is acknowledged then */
  }
  if (r) freeReplyObject(r);
  return !failed;
}

bool btc_sink_acknowledge(btc_sink *s, const char *jid, const btc_stream_id *id, size_t n) {
  static const size_t page = BTC_SINK_PAGE;
  char(*text)[48] = btc_alloc(page, sizeof *text);
  bool good = text != NULL;
  for (size_t at = 0; good && at < n; at += page) {
    size_t some = n - at < page ? n - at : page;
    for (size_t i = 0; i < some; i++) snprintf(text[i], sizeof text[i], "%" PRIu64 "-%" PRIu64, id[at + i].ms, id[at + i].seq);
    good = say_sealed(s, jid, (const char(*)[48])text, some) && btc_sink_lead(s);
    BTC_FAILPOINT("sink_acked_some");
  }
  free(text);
  return good;
}

static bool flush_acks(btc_sink *s) {
  size_t n = s->acks.n;
  s->acks.n = 0;
  return !n || say_sealed(s, s->acks.jid, (const char(*)[48])s->acks.id, n);
}

static bool add_ack(btc_sink *s, const char *jid, const char *id) {
  if (s->acks.n && (s->acks.n == BTC_SINK_PAGE || strcmp(s->acks.jid, jid) != 0) && !flush_acks(s)) return false;
  snprintf(s->acks.jid, sizeof s->acks.jid, "%s", jid);
  snprintf(s->acks.id[s->acks.n++], sizeof s->acks.id[0], "%s", id);
  return true;
}

/* ---- entries ---- */

static bool parse_id(const char *text, btc_stream_id *id) {
  size_t ms = strspn(text, "0123456789");
  if (!ms || text[ms] != '-') return false;
  const char *seq = text + ms + 1;
  if (!*seq || seq[strspn(seq, "0123456789")]) return false;
  id->ms = strtoull(text, NULL, 10);
  id->seq = strtoull(seq, NULL, 10);
  return true;
}

static bool parse_idx(const char *text, uint64_t *idx) {
  size_t digits = strspn(text, "0123456789");
  if (!digits || digits > 9 || text[digits]) return false;
  *idx = strtoull(text, NULL, 10);
  return *idx < BTC_ITEMS_MAX;
}

/* No function of the queue writes such an entry; it would stand in the way for ever. */
static bool drop_entry(btc_sink *s, const char *id) {
  btc_log(BTC_LOG_ERROR, "sink-bad-entry", "id=%s", id);
  return add_ack(s, "", id);
}

static bool take_entry(btc_sink *s, const redisReply *e) {
  if (e->type != REDIS_REPLY_ARRAY || e->elements < 2) return true;
  const char *text = btc_reply_text(e, 0);
  const redisReply *fields = e->element[1], *jid = btc_reply_field(fields, "jid"), *number = btc_reply_field(fields, "idx");
  const redisReply *json = btc_reply_field(fields, "json");
  btc_stream_id id;
  uint64_t idx;
  if (!parse_id(text, &id)) return true;
  if (!jid || !number || !json || !btc_results_jid_valid(jid->str) || !parse_idx(number->str, &idx)) return drop_entry(s, text);
  sink_job *j = btc_sink_job(s, jid->str);
  if (!j) return !s->blocked && s->active; /* a refused job: left pending */
  btc_part_added how;
  btc_error err;
  if (btc_part_add(j->part, id, idx, json->str, json->len, &how, &err) != BTC_OK) {
    btc_sink_block(s, jid->str, &err);
    return false;
  }
  if (how == BTC_PART_TAKEN) return true;
  btc_metrics_add(s->o.metrics, BTC_METRIC_SINK_DUPLICATES, 1);
  return add_ack(s, jid->str, text);
}

static bool seal_full(btc_sink *s) {
  for (int64_t i = 0; i < s->o.open_jobs; i++) {
    sink_job *j = &s->job[i];
    if (j->part &&
        ((int64_t)btc_part_waiting(j->part) >= s->o.seal_records || (int64_t)btc_part_waiting_bytes(j->part) >= s->o.seal_bytes) &&
        !btc_sink_seal(s, j))
      return false;
  }
  return true;
}

/* False: stop reading; what was not taken is pending and comes again. */
static bool take_entries(btc_sink *s, const redisReply *list) {
  for (size_t i = 0; list && list->type == REDIS_REPLY_ARRAY && i < list->elements; i++)
    if (!take_entry(s, list->element[i])) {
      btc_sink_drop(s);
      return false;
    }
  return flush_acks(s) && seal_full(s);
}

bool btc_sink_claim(btc_sink *s) {
  char cursor[48] = "0-0", count[16];
  snprintf(count, sizeof count, "%d", BTC_SINK_PAGE);
  for (bool end = false; !end;) {
    if (btc_sink_should_stop(s) || !btc_sink_lead(s)) return false;
    redisReply *r =
        btc_sink_redis_say(s->redis, "XAUTOCLAIM", "@res", "sink", s->broker, "0", cursor, "COUNT", count, (const char *)NULL);
    btc_error err;
    if (btc_reply_failed(r, &err) || r->type != REDIS_REPLY_ARRAY || r->elements < 2) {
      char text[BTC_ERROR_TEXT];
      BTC_LOG_LIMITED(BTC_LOG_WARN, "sink-cannot-claim", "why=%s",
                      btc_log_quote(text, sizeof text, r && r->type == REDIS_REPLY_ERROR ? r->str : "no reply"));
      if (r) freeReplyObject(r);
      return false;
    }
    if (r->elements > 2 && r->element[2]->type == REDIS_REPLY_ARRAY && r->element[2]->elements)
      btc_log(BTC_LOG_ERROR, "sink-entries-lost", "entries=%zu first=%s", r->element[2]->elements,
              btc_reply_text(r->element[2], 0));
    snprintf(cursor, sizeof cursor, "%s", btc_reply_text(r, 0));
    end = strcmp(cursor, "0-0") == 0 || !cursor[0];
    BTC_FAILPOINT("sink_claimed");
    bool taken = take_entries(s, r->element[1]);
    freeReplyObject(r);
    if (!taken) return false;
  }
  return true;
}

/* A wait as long as the duty would end it again and again before anything is done. */
static int64_t idle_ms(const btc_sink *s) {
  int64_t share = s->o.duty_ms / 5;
  return share < 1 ? 1 : share < BLOCK_MS ? share : BLOCK_MS;
}

bool btc_sink_read(btc_sink *s) {
  char count[16], block[24];
  snprintf(count, sizeof count, "%d", BTC_SINK_PAGE);
  snprintf(block, sizeof block, "%" PRId64, s->scanning ? BLOCK_SCANNING_MS : idle_ms(s));
  redisReply *r = btc_sink_redis_say(s->redis, "XREADGROUP", "GROUP", "sink", s->broker, "COUNT", count, "BLOCK", block, "STREAMS",
                                     "@res", ">", (const char *)NULL);
  if (!r) return false;
  bool taken = r->type != REDIS_REPLY_ERROR;
  if (!taken) { /* the stream or its group is gone: the broker makes them again */
    char text[BTC_ERROR_TEXT];
    BTC_LOG_LIMITED(BTC_LOG_WARN, "sink-cannot-read", "why=%s", btc_log_quote(text, sizeof text, r->str));
    btc_sink_redis_close(s->redis);
  } else if (r->type == REDIS_REPLY_ARRAY && r->elements && r->element[0]->type == REDIS_REPLY_ARRAY &&
             r->element[0]->elements == 2) {
    BTC_FAILPOINT("sink_read");
    taken = take_entries(s, r->element[0]->element[1]);
  }
  freeReplyObject(r);
  return taken;
}
