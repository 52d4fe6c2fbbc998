/*
 * After Welcome: `own:<wid>` says what the worker leases, Hello says what it holds. In both: it goes on, nothing is run twice. Only
 * in Redis: the Grant died with an earlier broker, so it is given back at once. Only in Hello: lost meanwhile; the next heartbeat
 * is told so.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grant.h"
#include "session.h"

typedef struct sync {
  btc_broker *b;
  uint64_t session, cid;
  size_t *left; /* answers still to come, shared by those of one session */
} sync;

static void finish(btc_broker *b, btc_session *s) {
  free(s->held);
  s->held = NULL;
  s->n_held = 0;
  s->state = BTC_SESSION_LIVE;
  btc_grant_poke(b, s);
}

static void on_release(void *ctx, const redisReply *r) {
  btc_broker_refused(ctx, r);
}

/* HMGET ck:<cid> st tok w j lo n m sb */
static void compare(btc_broker *b, btc_session *s, uint64_t cid, const redisReply *r) {
  uint64_t token = btc_answer_u64(r, 1);
  if (strcmp(btc_answer_text(r, 0), "L") != 0 || strcmp(btc_answer_text(r, 2), s->wid) != 0) return;
  for (size_t i = 0; i < s->n_held; i++) {
    if (s->held[i].cid != cid || s->held[i].token != token) continue;
    btc_hand *h = btc_hand_find(s, cid, token)
                      ? NULL
                      : btc_hand_add(s, cid, token, btc_answer_text(r, 3), btc_answer_u64(r, 4), (uint32_t)btc_answer_u64(r, 5),
                                     (uint32_t)btc_answer_u64(r, 6), btc_loop_now_ns(b->loop));
    if (h) h->started = h->told = (uint32_t)btc_answer_u64(r, 7);
    if (h) h->sent = true;
    return;
  }
  btc_store_lease lease = {cid, token, 0};
  btc_store_release(b->store, s->wid, &lease, 1, on_release, (void *)"release");
}

static void one_done(sync *y, const redisReply *r) {
  btc_session *s = btc_session_find(y->b, y->session);
  bool failed = btc_answer_failed(r);
  if (s && !failed && y->cid) compare(y->b, s, y->cid, r);
  if (--*y->left == 0) {
    free(y->left);
    if (s) finish(y->b, s);
  }
  free(y);
}

static void on_chunk(void *ctx, const redisReply *r) {
  one_done(ctx, r);
}

static void ask_chunk(btc_broker *b, btc_session *s, const char *cid, size_t *left) {
  sync *y = btc_alloc_zero(1, sizeof *y);
  if (!y) return;
  *y = (sync){.b = b, .session = s->id, .cid = strtoull(cid, NULL, 10), .left = left};
  ++*left;
  const char *key = btc_store_key(b->store, "ck:", cid);
  if (btc_store_command(b->store, on_chunk, y, "HMGET", key, "st", "tok", "w", "j", "lo", "n", "m", "sb", NULL)) return;
  --*left;
  free(y);
}

static void on_owned(void *ctx, const redisReply *r) {
  sync *y = ctx;
  btc_session *s = btc_session_find(y->b, y->session);
  if (s && !btc_answer_failed(r))
    for (size_t i = 0; i < r->elements; i++) ask_chunk(y->b, s, btc_answer_text(r, i), y->left);
  one_done(y, NULL);
}

void btc_hand_sync(btc_broker *b, btc_session *s) {
  sync *y = btc_alloc_zero(1, sizeof *y);
  size_t *left = btc_alloc_zero(1, sizeof *left);
  s->state = BTC_SESSION_SYNC;
  if (y && left) {
    *left = 1;
    *y = (sync){.b = b, .session = s->id, .left = left};
    if (btc_store_command(b->store, on_owned, y, "SMEMBERS", btc_store_key(b->store, "own:", s->wid), NULL)) return;
  }
  free(y);
  free(left);
  btc_session_close(b, s, "Redis is away"); /* the worker says Hello again */
}
