#define _GNU_SOURCE
#include "journal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grant.h"

enum { IN_FLIGHT = 64, HOLD_MS = 10000, AGAIN_MS = 500, GIVE_UP_MS = 30000, CHECKS = 3 };

struct btc_journal_entry {
  btc_journal_entry *next;
  int64_t kept_ns;
  size_t bytes, n;
  uint64_t lo;
  bool owed, sent; /* in a replay: Redis does not have it; its answer is on the way */
  char jid[BTC_JID];
  btc_store_result r[]; /* their texts follow */
};

typedef struct btc_journal {
  btc_journal_entry *head, **tail; /* oldest first */
  size_t bytes;
  /* the question after a connection */
  bool asking;
  int answers;
  uint64_t seq;
  bool job_there, bit_there;
  /* a replay */
  bool replaying, first; /* first: the first pass, which claims wait for */
  int64_t begun_ns, again_ns;
  btc_journal_entry *at; /* next one to look at; NULL: the pass is through */
  size_t in_flight;
  uint64_t restored, entries; /* items and commits that Redis did not have */
} btc_journal;

/* Answers may come after the broker's turn is over, or of an earlier replay: they name their entry by pointer, and no entry is
 * freed while its answer is on the way. */
typedef struct again {
  btc_broker *b;
  btc_journal_entry *e;
} again;

btc_status btc_journal_create(btc_broker *b, btc_error *err) {
  btc_journal *j = b->journal = btc_alloc_zero(1, sizeof *j);
  if (!j) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  j->tail = &j->head;
  return BTC_OK;
}

void btc_journal_destroy(btc_broker *b) {
  btc_journal *j = b->journal;
  b->journal = NULL;
  if (!j) return;
  for (btc_journal_entry *e = j->head, *next; e; e = next) {
    next = e->next;
    free(e);
  }
  free(j);
}

/* ---- entries ---- */

static const char *copy_text(char **to, const char *text) {
  const char *at = *to;
  size_t len = strlen(text) + 1;
  memcpy(*to, text, len);
  *to += len;
  return at;
}

btc_journal_entry *btc_journal_copy(const btc_store_chunk *c, const btc_store_result *r, size_t n) {
  size_t bytes = sizeof(btc_journal_entry) + n * sizeof *r;
  for (size_t i = 0; i < n; i++) bytes += strlen(r[i].id) + strlen(r[i].record) + 2;
  btc_journal_entry *e = btc_alloc_zero(1, bytes);
  if (!e) return NULL;
  char *text = (char *)&e->r[n];
  e->bytes = bytes;
  e->n = n;
  e->lo = c->lo;
  snprintf(e->jid, sizeof e->jid, "%s", c->jid);
  for (size_t i = 0; i < n; i++)
    e->r[i] = (btc_store_result){.off = r[i].off, .id = copy_text(&text, r[i].id), .record = copy_text(&text, r[i].record)};
  return e;
}

void btc_journal_free(btc_journal_entry *e) {
  free(e);
}

/* What a replay still needs stays. */
static void forget_old(btc_journal *j, int64_t now, size_t room) {
  int64_t oldest = now - (int64_t)BTC_JOURNAL_SECONDS * 1000000000;
  btc_journal_entry *e;
  while ((e = j->head) && !e->owed && !e->sent && e != j->at && (e->kept_ns < oldest || j->bytes + room > BTC_JOURNAL_BYTES)) {
    j->head = e->next;
    if (!j->head) j->tail = &j->head;
    j->bytes -= e->bytes;
    free(e);
  }
}

void btc_journal_keep(btc_broker *b, btc_journal_entry *e) {
  btc_journal *j = b->journal;
  if (!e) return;
  e->kept_ns = btc_loop_now_ns(b->loop);
  forget_old(j, e->kept_ns, e->bytes);
  if (j->bytes + e->bytes > BTC_JOURNAL_BYTES) { /* full of what a replay needs */
    free(e);
    return;
  }
  *j->tail = e;
  j->tail = &e->next;
  j->bytes += e->bytes;
}

/* ---- replay ---- */

static void end(btc_broker *b) {
  btc_journal *j = b->journal;
  size_t missing = 0;
  for (btc_journal_entry *e = j->head; e; e = e->next) {
    missing += e->owed;
    e->owed = false;
  }
  j->replaying = j->first = false;
  btc_log(BTC_LOG_WARN, "history-restored", "items=%" PRIu64 " commits=%" PRIu64 " unknown=%zu", j->restored, j->entries, missing);
  btc_metrics_add(b->metrics, BTC_METRIC_HISTORY_RESTORED, (double)j->restored);
}

static void send_some(btc_broker *b);

/* [own, new, seq], and how many items are not known, which may come: a job is expanded again, `in` is read again. */
static void on_again(void *ctx, const redisReply *r) {
  again *a = ctx;
  btc_broker *b = a->b;
  btc_journal *j = b->journal;
  bool failed = btc_broker_refused("btc_commit", r);
  a->e->sent = false;
  j->in_flight--;
  if (!failed) {
    uint64_t fresh = btc_answer_u64(r, 1), seq = btc_answer_u64(r, 2);
    a->e->owed = btc_answer_u64(r, 3) > 0;
    j->restored += fresh;
    j->entries += fresh > 0;
    if (seq) b->seq = seq;
    BTC_FAILPOINT("history_answered");
  }
  free(a);
  if (j->replaying) send_some(b);
}

static bool send_one(btc_broker *b, btc_journal_entry *e) {
  again *a = btc_alloc_zero(1, sizeof *a);
  /* No chunk: the numbers of chunks have fallen too, and are others' now. */
  btc_store_chunk c = {.lo = e->lo, .jid = e->jid, .wid = "", .lease_ms = 1};
  if (!a) return false;
  *a = (again){b, e};
  BTC_FAILPOINT("history_sent");
  if (!btc_store_commit(b->store, &c, e->r, e->n, on_again, a)) {
    free(a);
    return false;
  }
  e->sent = true;
  b->journal->in_flight++;
  return true;
}

static bool owes(const btc_journal *j) {
  const btc_journal_entry *e = j->head;
  while (e && !e->owed) e = e->next;
  return e != NULL;
}

static void send_some(btc_broker *b) {
  btc_journal *j = b->journal;
  while (j->at && j->in_flight < IN_FLIGHT) {
    if (j->at->owed && !j->at->sent && !send_one(b, j->at)) return; /* Redis is away: all begins anew when it is back */
    j->at = j->at->next;
  }
  if (j->at || j->in_flight) return;
  bool waited = j->first;
  j->first = false;
  if (!owes(j)) end(b);
  if (waited) btc_grant_poke_all(b);
}

static void begin(btc_broker *b, uint64_t now_seq) {
  btc_journal *j = b->journal;
  if (!j->replaying) { /* else the connection was lost in the middle of it */
    btc_log(BTC_LOG_ERROR, "history-lost",
            "seq=%" PRIu64 " before=%" PRIu64 " msg=\"Redis lost commits: those of the last minute are made again\"", now_seq,
            b->seq);
    btc_metrics_add(b->metrics, BTC_METRIC_HISTORY_LOST, 1);
    j->restored = j->entries = 0;
  }
  b->seq = now_seq;
  for (btc_journal_entry *e = j->head; e; e = e->next) e->owed = true;
  j->replaying = j->first = true;
  j->begun_ns = btc_loop_now_ns(b->loop);
  j->again_ns = j->begun_ns + (int64_t)AGAIN_MS * 1000000;
  j->at = j->head;
  send_some(b);
}

void btc_journal_lost(btc_broker *b, uint64_t now) {
  begin(b, now);
}

/* ---- the question ---- */

static void asked(btc_broker *b, bool answered) {
  btc_journal *j = b->journal;
  if (answered) j->answers++;
  if (!answered) j->asking = false; /* refused, or the connection is gone: the next one asks again */
  if (j->answers < CHECKS || !j->asking) return;
  j->asking = false;
  bool gone = j->seq < b->seq || (j->job_there && !j->bit_there);
  if (gone || j->replaying)
    begin(b, j->seq);
  else
    btc_grant_poke_all(b);
}

static void on_seq(void *ctx, const redisReply *r) {
  btc_broker *b = ctx;
  bool text = r && r->type == REDIS_REPLY_STRING;
  b->journal->seq = text ? strtoull(r->str, NULL, 10) : 0;
  asked(b, r && (text || r->type == REDIS_REPLY_NIL));
}

static void on_job(void *ctx, const redisReply *r) {
  btc_broker *b = ctx;
  b->journal->job_there = r && r->type == REDIS_REPLY_INTEGER && r->integer == 1;
  asked(b, r && r->type == REDIS_REPLY_INTEGER);
}

static void on_bit(void *ctx, const redisReply *r) {
  btc_broker *b = ctx;
  b->journal->bit_there = r && r->type == REDIS_REPLY_INTEGER && r->integer == 1;
  asked(b, r && r->type == REDIS_REPLY_INTEGER);
}

/* `seq` alone does not tell when other brokers have committed since; the newest bit does, as long as its job is there. */
void btc_journal_up(btc_broker *b) {
  btc_journal *j = b->journal;
  const btc_journal_entry *newest = j->head;
  char idx[24] = "0";
  while (newest && newest->next) newest = newest->next;
  if (!b->seq) return; /* nothing was committed yet */
  if (newest) snprintf(idx, sizeof idx, "%" PRIu64, newest->lo + newest->r[0].off);
  const char *jid = newest ? newest->jid : "";
  j->asking = true;
  j->answers = 0;
  j->begun_ns = btc_loop_now_ns(b->loop);
  if (!btc_store_command(b->store, on_seq, b, "GET", btc_store_key(b->store, "seq", ""), NULL) ||
      !btc_store_command(b->store, on_job, b, "EXISTS", btc_store_key(b->store, "job:", jid), NULL) ||
      !btc_store_command(b->store, on_bit, b, "GETBIT", btc_store_key(b->store, "dn:", jid), idx, NULL))
    j->asking = false;
}

/* ---- time ---- */

static int64_t age_ms(const btc_broker *b) {
  return (btc_loop_now_ns(b->loop) - b->journal->begun_ns) / 1000000;
}

bool btc_journal_holds(const btc_broker *b) {
  const btc_journal *j = b->journal;
  return (j->asking || j->first) && age_ms(b) < HOLD_MS;
}

void btc_journal_tick(btc_broker *b) {
  btc_journal *j = b->journal;
  int64_t now = btc_loop_now_ns(b->loop);
  btc_metrics_set(b->metrics, BTC_METRIC_JOURNAL_BYTES, (double)j->bytes);
  forget_old(j, now, 0);
  if (!j->replaying || !btc_redis_is_up(b->redis) || j->in_flight || now < j->again_ns) return;
  if (age_ms(b) > GIVE_UP_MS) {
    end(b);
    return;
  }
  j->again_ns = now + (int64_t)AGAIN_MS * 1000000;
  j->at = j->head;
  send_some(b);
}
