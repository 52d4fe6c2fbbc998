/* The question, the replay in steps, and the end of both. */
#include "recover.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "duties.h"
#include "journal.h"

enum { WINDOW = 64 /* calls under way */, KNOWN = 64 };

struct btc_recovery {
  btc_broker *b;
  btc_journal *journal; /* NULL: none is kept */
  bool asking, replaying;
  bool lost;                   /* the connection went while it replayed */
  char known[KNOWN];           /* the loss that we know of, "-": not asked yet */
  char told[KNOWN];            /* the one that is replayed now */
  btc_call *todo;              /* not sent yet */
  btc_call *kept, **kept_tail; /* sent, and nobody knows whether Redis did it */
  int under_way;
  uint64_t calls, items; /* of this replay: calls done, items that Redis had lost */
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

void btc_recover_tick(btc_broker *b) {
  recovery *r = b->recovery;
  if (!r->journal) return;
  btc_journal_trim(r->journal, btc_loop_now_ns(b->loop));
  btc_metrics_set(b->metrics, BTC_METRIC_JOURNAL_BYTES, (double)btc_journal_bytes(r->journal));
  /* others wait for us as long as we repeat */
  if (r->replaying) btc_store_command(b->store, NULL, NULL, "SET", btc_store_key(b->store, "hold", ""), "1", "PX", "3000", NULL);
}

/* ---- replay ---- */

static void send_some(recovery *r);

static void end_replay(recovery *r) {
  btc_broker *b = r->b;
  *r->kept_tail = r->todo;
  if (r->journal && r->kept) btc_journal_put_back(r->journal, r->kept);
  r->kept = r->todo = NULL;
  r->kept_tail = &r->kept;
  r->replaying = false;
  if (r->lost) return; /* the next connection asks again, and finds `known` as it was */
  snprintf(r->known, sizeof r->known, "%s", r->told);
  btc_metrics_add(b->metrics, BTC_METRIC_JOURNAL_REPLAYED, (double)r->items);
  btc_log(BTC_LOG_WARN, "history-replayed", "calls=%" PRIu64 " items=%" PRIu64, r->calls, r->items);
  btc_duties_up(b);
}

/* A commit answers [own, new, seq], and a commit that Redis has had adds nothing. Answers of other calls do not count items. */
static void on_repeated(void *ctx, const redisReply *reply) {
  repeat *p = ctx;
  recovery *r = p->r;
  btc_broker *b = r->b;
  btc_call *c = p->call;
  free(p);
  r->under_way--;
  BTC_FAILPOINT("recover_repeated");
  if (!reply) {
    r->lost = true;
    c->next = NULL;
    *r->kept_tail = c;
    r->kept_tail = &c->next;
  } else if (btc_broker_refused("replay", reply)) {
    free(c);
  } else {
    uint64_t seq = c->seq ? btc_answer_u64(reply, 2) : 0;
    r->calls++;
    if (seq) r->items += btc_answer_u64(reply, 1);
    btc_recover_seen(b, seq);
    btc_recover_keep(b, c, seq);
  }
  if (!r->lost) send_some(r);
  if (!r->under_way && (r->lost || !r->todo)) end_replay(r);
}

static void send_some(recovery *r) {
  while (r->todo && r->under_way < WINDOW && !r->lost) {
    btc_call *c = r->todo;
    repeat *p = btc_alloc_zero(1, sizeof *p);
    if (p) *p = (repeat){r, c};
    if (!p || !btc_store_repeat(r->b->store, c, on_repeated, p)) {
      free(p);
      r->lost = true;
      return;
    }
    r->todo = c->next;
    r->under_way++;
  }
}

/* told: "<when>:<the number that was left>". */
static void begin_replay(recovery *r, const char *told) {
  btc_broker *b = r->b;
  const char *colon = strchr(told, ':');
  uint64_t left = colon ? strtoull(colon + 1, NULL, 10) : 0;
  uint64_t gone = r->journal ? btc_journal_dropped(r->journal, left) : 0;
  btc_log(BTC_LOG_ERROR, "history-lost",
          "seq=%" PRIu64 " before=%" PRIu64 " too_old=%" PRIu64 " msg=\"Redis lost its last writes%s\"", left, b->seq, gone,
          r->journal ? ": what this broker knows of them is repeated" : ", and no journal is kept");
  btc_metrics_add(b->metrics, BTC_METRIC_HISTORY_LOST, 1);
  btc_metrics_add(b->metrics, BTC_METRIC_JOURNAL_TOO_OLD, (double)gone);
  snprintf(r->told, sizeof r->told, "%s", told);
  r->todo = r->journal ? btc_journal_take(r->journal) : NULL;
  r->replaying = true;
  r->lost = false;
  r->calls = r->items = 0;
  send_some(r);
  if (!r->under_way) end_replay(r);
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
  char number[24];
  recovery *r = b->recovery;
  if (r->asking || r->replaying) return;
  snprintf(number, sizeof number, "%" PRIu64, b->seq);
  r->asking = btc_store_call(b->store, on_asked, b, "btc_recover", number, NULL);
}

void btc_recover_seen(btc_broker *b, uint64_t seq) {
  if (!seq) return;
  if (seq < b->seq) btc_recover_begin(b); /* while connected: somebody wrote behind our back */
  if (seq > b->seq) b->seq = seq;
}
