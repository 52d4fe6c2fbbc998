/* The question, the replay in steps, and the end of both. */
#include "recover.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "duties.h"
#include "journal.h"

enum { WINDOW = 64 /* calls under way */, KNOWN = 64, AGAIN_MS = 500, GIVE_UP_MS = 30000 };

struct btc_recovery {
  btc_broker *b;
  btc_journal *journal; /* NULL: none is kept */
  bool asking;
  bool replaying;    /* the first pass: nobody claims or ingests */
  bool away;         /* the connection went in the middle of a pass */
  char known[KNOWN]; /* the loss that we have dealt with; "-": never asked */
  char told[KNOWN];  /* the one that we deal with now */
  char jid[BTC_JID]; /* the newest item that we know to be done, "": none */
  uint64_t idx;
  btc_call *todo;              /* not sent in this pass yet */
  btc_call *kept, **kept_tail; /* sent, and nobody knows whether Redis did it */
  btc_call *owed, **owed_tail; /* of jobs that Redis does not know: another broker may have the submission */
  int under_way;
  int64_t again_ns, give_up_ns; /* of owed */
  uint64_t items, commits;      /* that Redis had lost and has again */
};

typedef struct btc_recovery recovery;

/* One call on its way. */
typedef struct repeat {
  recovery *r;
  btc_call *call;
} repeat;

btc_status btc_recover_create(btc_broker *b, btc_error *err) {
  recovery *r = b->recovery = btc_alloc_zero(1, sizeof *r);
  if (!r) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  r->b = b;
  r->kept_tail = &r->kept;
  r->owed_tail = &r->owed;
  strcpy(r->known, "-");
  if (!b->o->journal_mib) return BTC_OK;
  r->journal = btc_journal_create(b->o->journal_mib << 20);
  return r->journal ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
}

static void free_list(btc_call *list) {
  for (btc_call *c; (c = list); free(c)) list = c->next;
}

void btc_recover_destroy(btc_broker *b) {
  recovery *r = b->recovery;
  b->recovery = NULL;
  if (!r) return;
  free_list(r->todo);
  free_list(r->kept);
  free_list(r->owed);
  btc_journal_destroy(&r->journal);
  free(r);
}

bool btc_recover_busy(const btc_broker *b) {
  return b->recovery->asking || b->recovery->replaying;
}

/* ---- what is kept ---- */

btc_call *btc_recover_copy(btc_broker *b, uint32_t items) {
  btc_call *c = b->recovery && b->recovery->journal ? btc_store_copy(b->store) : NULL;
  if (c) c->items = items;
  return c;
}

void btc_recover_keep(btc_broker *b, btc_call *c, uint64_t seq) {
  if (!c || !b->recovery) {
    free(c);
    return;
  }
  c->seq = seq;
  btc_journal_add(b->recovery->journal, c, btc_loop_now_ns(b->loop));
}

void btc_recover_done(btc_broker *b, const char *jid, uint64_t idx) {
  recovery *r = b->recovery;
  if (!r) return;
  snprintf(r->jid, sizeof r->jid, "%s", jid);
  r->idx = idx;
}

/* ---- replay ---- */

static void append(btc_call ***tail, btc_call *c) {
  c->next = NULL;
  **tail = c;
  *tail = &c->next;
}

/* What a pass left goes back into the journal, in its order. */
static void put_back(recovery *r) {
  *r->kept_tail = r->todo;
  *r->owed_tail = r->kept;
  if (r->owed) btc_journal_put_back(r->journal, r->owed);
  r->owed = r->kept = r->todo = NULL;
  r->owed_tail = &r->owed;
  r->kept_tail = &r->kept;
}

static void send_some(recovery *r);

static uint64_t count_items(const btc_call *list) {
  uint64_t n = 0;
  for (; list; list = list->next) n += list->items;
  return n;
}

static void end_pass(recovery *r) {
  btc_broker *b = r->b;
  int64_t now = btc_loop_now_ns(b->loop);
  bool first = r->replaying;
  r->replaying = false;
  if (r->away) { /* the next connection asks again, and finds `known` as it was */
    put_back(r);
    return;
  }
  if (first) r->give_up_ns = now + (int64_t)GIVE_UP_MS * 1000000;
  r->again_ns = now + (int64_t)AGAIN_MS * 1000000;
  if (!r->owed || now > r->give_up_ns) {
    btc_log(BTC_LOG_WARN, "history-restored", "items=%" PRIu64 " commits=%" PRIu64 " unknown=%" PRIu64, r->items, r->commits,
            count_items(r->owed));
    put_back(r);
    strcpy(r->known, r->told);
  }
  if (first) btc_duties_up(b);
}

/* A commit answers [own, new, seq, unknown]; one that Redis has had adds nothing. Answers of other calls count no items. */
static void take_answer(recovery *r, btc_call *c, const redisReply *reply) {
  bool commit = c->seq != 0;
  uint64_t seq = commit ? btc_answer_u64(reply, 2) : 0, fresh = commit ? btc_answer_u64(reply, 1) : 0;
  r->items += fresh;
  r->commits += fresh > 0;
  btc_metrics_add(r->b->metrics, BTC_METRIC_HISTORY_RESTORED, (double)fresh);
  btc_recover_seen(r->b, seq);
  if (commit && btc_answer_u64(reply, 3))
    append(&r->owed_tail, c);
  else
    btc_recover_keep(r->b, c, seq);
}

static void on_repeated(void *ctx, const redisReply *reply) {
  repeat *p = ctx;
  recovery *r = p->r;
  btc_call *c = p->call;
  free(p);
  r->under_way--;
  BTC_FAILPOINT("recover_repeated");
  if (!reply) {
    r->away = true;
    append(&r->kept_tail, c);
  } else if (btc_broker_refused("replay", reply)) {
    free(c);
  } else {
    take_answer(r, c, reply);
  }
  if (!r->away) send_some(r);
  if (!r->under_way && (r->away || !r->todo)) end_pass(r);
}

static void send_some(recovery *r) {
  while (r->todo && r->under_way < WINDOW && !r->away) {
    btc_call *c = r->todo;
    repeat *p = btc_alloc_zero(1, sizeof *p);
    BTC_FAILPOINT("recover_sent");
    if (p) *p = (repeat){r, c};
    if (!p || !btc_store_repeat(r->b->store, c, on_repeated, p)) {
      free(p);
      r->away = true;
      return;
    }
    r->todo = c->next;
    r->under_way++;
  }
}

static void tell_loss(recovery *r, uint64_t left) {
  btc_broker *b = r->b;
  uint64_t gone = r->journal ? btc_journal_dropped(r->journal, left) : 0;
  btc_log(BTC_LOG_ERROR, "history-lost",
          "seq=%" PRIu64 " before=%" PRIu64 " too_old=%" PRIu64 " msg=\"Redis lost its last writes%s\"", left, b->seq, gone,
          r->journal ? ": what this broker knows of them is repeated" : ", and no journal is kept");
  btc_metrics_add(b->metrics, BTC_METRIC_HISTORY_LOST, 1);
  btc_metrics_add(b->metrics, BTC_METRIC_HISTORY_TOO_OLD, (double)gone);
  r->items = r->commits = 0;
}

/* told: "<when>:<the number that was left>". */
static void begin_replay(recovery *r, const char *told) {
  const char *colon = strchr(told, ':');
  if (strcmp(r->told, told) != 0) tell_loss(r, colon ? strtoull(colon + 1, NULL, 10) : 0); /* else it was cut short */
  snprintf(r->told, sizeof r->told, "%s", told);
  if (r->journal) {
    put_back(r);
    r->todo = btc_journal_take(r->journal);
  }
  r->replaying = true;
  r->away = false;
  send_some(r);
  if (!r->under_way) end_pass(r);
}

static void try_owed(recovery *r) {
  if (!r->owed || r->replaying || r->asking || r->under_way || btc_loop_now_ns(r->b->loop) < r->again_ns) return;
  r->todo = r->owed;
  r->owed = NULL;
  r->owed_tail = &r->owed;
  r->away = false;
  send_some(r);
  if (!r->under_way) end_pass(r);
}

void btc_recover_tick(btc_broker *b) {
  recovery *r = b->recovery;
  if (!r->journal) return;
  btc_journal_trim(r->journal, btc_loop_now_ns(b->loop));
  btc_metrics_set(b->metrics, BTC_METRIC_JOURNAL_BYTES, (double)btc_journal_bytes(r->journal));
  try_owed(r);
  /* others wait for us as long as we repeat */
  if (r->replaying) btc_store_command(b->store, NULL, NULL, "SET", btc_store_key(b->store, "hold", ""), "1", "PX", "3000", NULL);
}

/* ---- the question ---- */

static void on_asked(void *ctx, const redisReply *reply) {
  btc_broker *b = ctx;
  recovery *r = b->recovery;
  r->asking = false;
  BTC_FAILPOINT("recover_asked");
  if (!reply) return; /* the next connection asks again */
  if (btc_broker_refused("btc_recover", reply)) {
    btc_duties_up(b);
    return;
  }
  const char *told = reply->type == REDIS_REPLY_STRING ? reply->str : "";
  bool first = strcmp(r->known, "-") == 0;
  if (first) snprintf(r->known, sizeof r->known, "%s", told);
  if (first || strcmp(r->known, told) == 0)
    btc_duties_up(b);
  else
    begin_replay(r, told);
}

void btc_recover_begin(btc_broker *b) {
  char number[24], idx[24];
  recovery *r = b->recovery;
  if (r->asking || r->replaying) return;
  snprintf(number, sizeof number, "%" PRIu64, b->seq);
  snprintf(idx, sizeof idx, "%" PRIu64, r->idx);
  r->asking = btc_store_call(b->store, on_asked, b, "btc_recover", number, r->jid, idx, NULL);
}

void btc_recover_seen(btc_broker *b, uint64_t seq) {
  if (!seq) return;
  if (seq < b->seq) btc_recover_begin(b); /* while connected: somebody wrote behind our back */
  if (seq > b->seq) b->seq = seq;
}
