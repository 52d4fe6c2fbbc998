/*
 * Claim, texts, Grant. An idle worker does not ask by itself: 20 times a second one session of each class looks whether there is
 * work, and when there is, all the others do.
 */
#include "grant.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jobs.h"
#include "recover.h"
#include "session.h"

enum { ITEMS = 32, CHUNKS = 64 /* of one claim, queue/claim.lua */, LAG_MS = 2000, HOLD_MS = 500, CLASSES = 32 };

typedef struct claim {
  btc_broker *b;
  uint64_t session;
} claim;

/* A chunk on its way from the claim to the worker, while its texts are read. */
typedef struct reading {
  btc_broker *b;
  uint64_t session, cid, token, lo;
  char jid[BTC_JID], pos[BTC_MANIFEST_POS_TEXT];
  char *params;
  uint32_t n, mask, crashes;
  bool solo;
} reading;

static void on_released(void *ctx, const redisReply *r) {
  btc_broker_refused(ctx, r);
}

/* It cannot be handed out now: back to its queue, without waiting for the lease. */
static void give_back(btc_broker *b, uint64_t session, uint64_t cid, uint64_t token) {
  btc_session *s = btc_session_find(b, session);
  btc_store_lease lease = {cid, token, 0};
  btc_hand *h = s ? btc_hand_find(s, cid, token) : NULL;
  btc_store_release(b->store, s ? s->wid : "", &lease, 1, on_released, (void *)"btc_release");
  if (h) btc_hand_drop(s, h);
  if (s) s->hold_ns = btc_loop_now_ns(b->loop) + (int64_t)HOLD_MS * 1000000;
}

/* ---- the message ---- */

typedef struct chunk_parts { /* memory of one Chunk of a Grant */
  Btc__Chunk chunk;
  Btc__Item item[ITEMS], *items[ITEMS];
} chunk_parts;

/* texts in the order of the mask's bits */
static void fill_chunk(chunk_parts *c, const btc_claimed *k, const char *const *texts) {
  btc__chunk__init(&c->chunk);
  c->chunk.cid = k->cid;
  c->chunk.token = k->token;
  c->chunk.jid = (char *)k->jid;
  c->chunk.lo = k->lo;
  c->chunk.n = k->n;
  c->chunk.solo = k->solo;
  c->chunk.crashes = k->crashes;
  c->chunk.params = (char *)k->params;
  c->chunk.items = c->items;
  for (uint32_t off = 0; off < k->n; off++) {
    if (!(k->mask >> off & 1)) continue;
    size_t i = c->chunk.n_items++;
    btc__item__init(&c->item[i]);
    c->item[i].off = off;
    c->item[i].spec = (char *)texts[i];
    c->items[i] = &c->item[i];
  }
}

/* One Grant a chunk: it is acknowledged, repeated and forgotten as one. */
static void send_chunk(btc_broker *b, btc_session *s, const btc_claimed *k, const char *const *texts) {
  chunk_parts c;
  Btc__Chunk *list = &c.chunk;
  Btc__Grant grant = BTC__GRANT__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_GRANT);
  btc_error err;
  c.chunk.n_items = 0;
  fill_chunk(&c, k, texts);
  grant.chunks = &list;
  grant.n_chunks = 1;
  e.session = s->id;
  e.grant = &grant;
  BTC_FAILPOINT("before_grant");
  if (btc_outbox_add(s->outbox, &e, (void *)(uintptr_t)k->cid, &err) != BTC_OK) {
    BTC_LOG_LIMITED(BTC_LOG_WARN, "grant-refused", "worker=%s jid=%s cid=%" PRIu64 " msg=\"%s\"", s->name, k->jid, k->cid,
                    err.message);
    give_back(b, s->id, k->cid, k->token);
    return;
  }
  s->outbox_ns = 0; /* leaves when the turn ends */
}

/* ---- texts out of a manifest ---- */

static void free_reading(reading *g) {
  free(g->params);
  free(g);
}

static void on_texts(void *ctx, const btc_io_reply *r) {
  reading *g = ctx;
  btc_broker *b = g->b;
  btc_session *s = btc_session_find(b, g->session);
  bool good = r->status == BTC_OK && r->n == (size_t)__builtin_popcount(g->mask);
  if (r->status != BTC_OK) btc_jobs_unreadable(b, g->jid, r);
  if (good && s && !s->reaping) {
    btc_claimed k = {.cid = g->cid,
                     .token = g->token,
                     .jid = g->jid,
                     .lo = g->lo,
                     .n = g->n,
                     .mask = g->mask,
                     .solo = g->solo,
                     .crashes = g->crashes,
                     .params = g->params};
    send_chunk(b, s, &k, r->text);
  } else {
    give_back(b, g->session, g->cid, g->token);
  }
  free_reading(g);
}

static void on_info(void *ctx, const btc_job_info *info) {
  reading *g = ctx;
  btc_error err;
  btc_broker *b = g->b;
  if (info) {
    btc_io_manifest m = btc_job_manifest(info);
    uint32_t dups = btc_io_dup_mask(info->dup, info->n_dup, g->lo, g->n);
    if (btc_io_texts(b->io, &m, g->pos, g->lo, g->n, g->mask, dups, on_texts, g, &err) == BTC_OK) return;
    BTC_LOG_LIMITED(BTC_LOG_WARN, "io-refused", "jid=%s msg=\"%s\"", g->jid, err.message);
  }
  give_back(b, g->session, g->cid, g->token);
  free_reading(g);
}

static void read_texts(btc_broker *b, btc_session *s, const btc_claimed *k) {
  reading *g = btc_alloc_zero(1, sizeof *g);
  char *params = btc_strdup(k->params);
  if (g && params) {
    *g = (reading){.b = b,
                   .session = s->id,
                   .cid = k->cid,
                   .token = k->token,
                   .lo = k->lo,
                   .params = params,
                   .n = k->n,
                   .mask = k->mask,
                   .crashes = k->crashes,
                   .solo = k->solo};
    snprintf(g->jid, sizeof g->jid, "%s", k->jid);
    snprintf(g->pos, sizeof g->pos, "%s", k->pos);
    if (btc_jobs_get(b, g->jid, on_info, g)) return;
  }
  give_back(b, s->id, k->cid, k->token);
  free(params);
  free(g);
}

/* ---- claiming ---- */

static void hand_out(btc_broker *b, btc_session *s, const btc_claimed *k) {
  const char *texts[ITEMS];
  size_t want = (size_t)__builtin_popcount(k->mask);
  btc_hand *h = btc_hand_add(s, k->cid, k->token, k->jid, k->lo, k->n, k->mask, btc_loop_now_ns(b->loop));
  if (h) h->solo = k->solo;
  if (!h || (k->is_inline && (!k->texts || k->texts->elements != want))) {
    give_back(b, s->id, k->cid, k->token);
  } else if (k->is_inline) {
    for (size_t i = 0; i < want; i++) texts[i] = btc_answer_text(k->texts, i);
    send_chunk(b, s, k, texts);
  } else {
    read_texts(b, s, k);
  }
}

static void on_claimed(void *ctx, const redisReply *r) {
  claim *c = ctx;
  btc_broker *b = c->b;
  btc_session *s = btc_session_find(b, c->session);
  BTC_FAILPOINT("after_claim");
  if (s) s->claiming = false;
  bool some = !btc_broker_refused("btc_claim", r) && r->type == REDIS_REPLY_ARRAY && r->elements > 0;
  for (size_t i = 0; some && i < r->elements; i++) {
    btc_claimed k;
    if (!btc_answer_claimed(r, i, &k)) continue;
    if (s && !s->reaping && !b->draining)
      hand_out(b, s, &k);
    else
      give_back(b, c->session, k.cid, k.token);
  }
  if (s) {
    s->idle = !some && !s->again;
    s->again = false;
  }
  if (s && !some) btc_grant_poke(b, s);
  if (some && s) {
    btc_grant_poke(b, s);
    btc_grant_wake(b, s->model_class,
                   1); /* there may be more: the idle ones look one after the other, as long as they find something */
  }
  free(c);
}

/* Enough room to be worth a call: a worker that gets single items back should not claim for each. */
static bool wants(const btc_broker *b, const btc_session *s) {
  uint32_t room = s->capacity > s->owed ? s->capacity - s->owed : 0, least = s->capacity / 4 < 8 ? s->capacity / 4 : 8;
  return s->state == BTC_SESSION_LIVE && !s->claiming && !s->draining && !s->asks_not && !s->suspect && !s->reaping && room > 0 &&
         room >= least && s->unsaved < 4 * s->capacity + 256 && !btc_outbox_full(s->outbox) &&
         btc_loop_now_ns(b->loop) >= s->hold_ns;
}

static bool may_claim(const btc_broker *b) {
  return !b->draining && btc_redis_is_up(b->redis) && !btc_recover_busy(b) && btc_redis_lag_ms(b->redis) < LAG_MS;
}

static void claim_now(btc_broker *b, btc_session *s) {
  claim *c = btc_alloc_zero(1, sizeof *c);
  if (!c) return;
  *c = (claim){b, s->id};
  s->claiming = btc_store_claim(b->store, s->wid, b->o->lease_ms, s->capacity - s->owed, s->model_class, on_claimed, c);
  if (!s->claiming) free(c);
}

void btc_grant_poke(btc_broker *b, btc_session *s) {
  if (!s->idle && may_claim(b) && wants(b, s)) claim_now(b, s);
}

void btc_grant_poke_all(btc_broker *b) {
  for (btc_session *s = b->sessions; s; s = s->next) {
    s->idle = false;
    btc_grant_poke(b, s);
  }
}

void btc_grant_wake(btc_broker *b, const char *model_class, uint64_t items) {
  uint64_t room = 0;
  for (btc_session *s = b->sessions; s && room < items; s = s->next) {
    if (s->claiming) s->again = true;
    if (!s->idle || (*model_class && strcmp(model_class, s->model_class) != 0) || !wants(b, s)) continue;
    s->idle = false;
    room += s->capacity - s->owed;
    btc_grant_poke(b, s);
  }
}

void btc_grant_tick(btc_broker *b) {
  const char *seen[CLASSES];
  size_t n = 0;
  if (!may_claim(b)) return;
  if (b->sessions && b->sessions->next) { /* another one leads each time */
    btc_session *first = b->sessions, *last = first;
    while (last->next) last = last->next;
    b->sessions = first->next;
    first->next = NULL;
    last->next = first;
  }
  for (btc_session *s = b->sessions; s; s = s->next) {
    size_t i = 0;
    if (!wants(b, s)) continue;
    while (i < n && strcmp(seen[i], s->model_class) != 0) i++;
    if (i < n || n == CLASSES) continue;
    seen[n++] = s->model_class;
    claim_now(b, s);
  }
}
