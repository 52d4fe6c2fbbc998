/*
 * Results to Redis: the captions of a message as one btc_commit, its failures as one btc_fail, both in the same write. The worker
 * is acknowledged when Redis has answered both; until then it sends the message again, which does no harm: the done bits count each
 * item once.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grant.h"
#include "recover.h"
#include "session.h"

enum { CHUNK = 32, MAX_TEXT = 4096 };

typedef struct pending {
  btc_broker *b;
  uint64_t session, req_id, cid, token;
  uint32_t mask;
  int waiting;
  bool lost, own;
  btc_call *commit; /* for the journal, once Redis has it; or NULL */
  char jid[BTC_JID];
  uint64_t idx, n_ok; /* the first of its captions; how many */
} pending;

/* A record becomes a line of a file that others read: one object, one line. */
static bool is_record(const char *r) {
  size_t len = strlen(r);
  return len >= 2 && len <= (1u << 20) && r[0] == '{' && r[len - 1] == '}' && !strpbrk(r, "\n\r");
}

static const char *kind_of(Btc__Outcome o) {
  switch (o) {
    case BTC__OUTCOME__OUTCOME_PERMANENT:
      return "p";
    case BTC__OUTCOME__OUTCOME_TRANSIENT:
      return "t";
    case BTC__OUTCOME__OUTCOME_CRASH:
      return "c";
    case BTC__OUTCOME__OUTCOME_TIMEOUT:
      return "h";
    case BTC__OUTCOME__OUTCOME_OOM:
      return "o";
    default:
      return NULL;
  }
}

/* Sorts a message into captions and failures; why is set when it is malformed. */
static bool sort_items(const Btc__Results *m, btc_store_result *ok, size_t *n_ok, btc_store_result *bad, size_t *n_bad,
                       uint32_t *mask, const char **why) {
  for (size_t i = 0; i < m->n_items; i++) {
    const Btc__ItemResult *r = m->items[i];
    bool fine = r->outcome == BTC__OUTCOME__OUTCOME_OK;
    *why = r->off >= CHUNK || (*mask >> r->off & 1)                  ? "an item twice or outside its chunk"
           : strlen(r->id) > BTC_MANIFEST_MAX_ID                     ? "an id that is too long"
           : !fine && !kind_of(r->outcome)                           ? "an outcome that this broker does not know"
           : (fine || r->record[0]) && !is_record(r->record)         ? "a record that is not one line with one object"
           : strlen(r->reason) > 64 || strlen(r->message) > MAX_TEXT ? "a reason or message that is too long"
                                                                     : NULL;
    if (*why) return false;
    *mask |= 1u << r->off;
    btc_store_result item = {r->off, r->id, r->record, kind_of(r->outcome), r->reason, r->message};
    if (fine)
      ok[(*n_ok)++] = item;
    else
      bad[(*n_bad)++] = item;
  }
  return true;
}

static void finish(pending *p) {
  btc_broker *b = p->b;
  btc_session *s = btc_session_find(b, p->session);
  b->commits--;
  if (s) {
    btc_hand *h = btc_hand_find(s, p->cid, p->token);
    if (!p->lost) {
      BTC_FAILPOINT("after_commit_before_ack");
      if (h && !p->own)
        btc_hand_drop(s, h);
      else if (h)
        btc_hand_saved(s, h, p->mask);
      btc_session_ack(b, s, p->req_id);
      btc_grant_poke(b, s);
    }
  }
  free(p->commit);
  free(p);
}

static void one_answer(pending *p, const char *what, const redisReply *r) {
  if (btc_broker_refused(what, r))
    p->lost = true;
  else if (btc_answer_u64(r, 0) == 0)
    p->own = false;
  if (--p->waiting == 0) finish(p);
}

/* [own, new, seq] */
static void on_commit(void *ctx, const redisReply *r) {
  pending *p = ctx;
  btc_broker *b = p->b;
  uint64_t seq = btc_answer_failed(r) ? 0 : btc_answer_u64(r, 2);
  BTC_FAILPOINT("after_commit");
  btc_recover_seen(b, seq);
  if (seq) {
    btc_recover_keep(b, p->commit, seq);
    p->commit = NULL;
    if (btc_answer_u64(r, 1) == p->n_ok) btc_recover_done(b, p->jid, p->idx);
  }
  one_answer(p, "btc_commit", r);
}

static void on_fail(void *ctx, const redisReply *r) {
  BTC_FAILPOINT("after_fail");
  one_answer(ctx, "btc_fail", r);
}

void btc_commit_results(btc_broker *b, btc_session *s, uint64_t req_id, const Btc__Results *m) {
  btc_store_result ok[CHUNK], bad[CHUNK];
  size_t n_ok = 0, n_bad = 0;
  uint32_t mask = 0;
  const char *why = m->n_items < 1 || m->n_items > CHUNK ? "a message has results of 1 to 32 items"
                    : !btc_name_valid(m->jid)            ? "not a job's id"
                                                         : NULL;
  if (why || !sort_items(m, ok, &n_ok, bad, &n_bad, &mask, &why)) {
    b->bad_messages++;
    BTC_LOG_LIMITED(BTC_LOG_WARN, "bad-results", "worker=%s cid=%" PRIu64 " msg=\"%s\"", s->name, m->cid, why);
    btc_broker_nack(b, b->workers, &s->peer, req_id, BTC__NACK_CODE__NACK_BAD, why, 0);
    return;
  }
  pending *p = btc_alloc_zero(1, sizeof *p);
  if (!p) return; /* the worker sends it again */
  *p = (pending){
      .b = b, .session = s->id, .req_id = req_id, .cid = m->cid, .token = m->token, .mask = mask, .waiting = 1, .own = true};
  btc_store_chunk chunk = {m->cid, m->token, m->lo, m->jid, s->wid, b->o->lease_ms};
  btc_hand *h = btc_hand_find(s, m->cid, m->token);
  if (h) {
    btc_hand_take(s, h, mask);
    h->moved_ns = btc_loop_now_ns(b->loop);
  }
  b->commits++;
  BTC_FAILPOINT("before_commit");
  if (n_ok && btc_store_commit(b->store, &chunk, ok, n_ok, on_commit, p)) {
    p->waiting++;
    p->commit = btc_recover_copy(b, (uint32_t)n_ok);
    snprintf(p->jid, sizeof p->jid, "%s", m->jid);
    p->idx = m->lo + ok[0].off;
    p->n_ok = n_ok;
  } else {
    p->lost = n_ok > 0;
  }
  if (n_bad && btc_store_fail(b->store, &chunk, bad, n_bad, on_fail, p))
    p->waiting++;
  else
    p->lost = p->lost || n_bad > 0;
  if (--p->waiting == 0)
    finish(p);
  else
    btc_grant_poke(b, s); /* the claim leaves in the same write, and shares its fsync */
}
