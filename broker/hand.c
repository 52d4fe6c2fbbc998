/* Chunks in hand: what heartbeats say about them, their leases, taking them back. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

enum { MAX_CHUNKS = 256 /* in one call: a script must stay short */, MISSING_BEATS = 4, HANDS = 4096 };

btc_hand *btc_hand_find(const btc_session *s, uint64_t cid, uint64_t token) {
  for (btc_hand *h = s->hands; h; h = h->next)
    if (h->cid == cid && h->token == token) return h;
  return NULL;
}

btc_hand *btc_hand_add(btc_session *s, uint64_t cid, uint64_t token, const char *jid, uint64_t lo, uint32_t n, uint32_t mask,
                       int64_t now_ns) {
  btc_hand *h = btc_alloc_zero(1, sizeof *h);
  if (!h) return NULL;
  *h = (btc_hand){.next = s->hands, .cid = cid, .token = token, .lo = lo, .n = n, .mask = mask, .moved_ns = now_ns};
  snprintf(h->jid, sizeof h->jid, "%s", jid);
  s->hands = h;
  s->owed += (uint32_t)__builtin_popcount(mask);
  return h;
}

void btc_hand_drop(btc_session *s, btc_hand *h) {
  btc_hand **at = &s->hands;
  while (*at && *at != h) at = &(*at)->next;
  if (!*at) return;
  *at = h->next;
  s->owed -= (uint32_t)__builtin_popcount(h->mask);
  s->unsaved -= (uint32_t)__builtin_popcount(h->unsaved);
  free(h);
}

void btc_hand_take(btc_session *s, btc_hand *h, uint32_t bits) {
  bits &= h->mask;
  h->mask &= ~bits;
  h->unsaved |= bits;
  s->owed -= (uint32_t)__builtin_popcount(bits);
  s->unsaved += (uint32_t)__builtin_popcount(bits);
}

void btc_hand_saved(btc_session *s, btc_hand *h, uint32_t bits) {
  bits &= h->unsaved;
  h->unsaved &= ~bits;
  s->unsaved -= (uint32_t)__builtin_popcount(bits);
  if (h->mask || h->unsaved) return;
  s->finished[s->n_finished++ % (sizeof s->finished / sizeof s->finished[0])] = h->cid;
  btc_hand_drop(s, h);
}

/* ---- answers that concern a session which may be gone by then ---- */

typedef struct about {
  btc_broker *b;
  uint64_t session;
  size_t n;
  btc_store_lease lease[]; /* of start and extend: what was asked about */
} about;

static about *about_new(btc_broker *b, const btc_session *s, const btc_store_lease *l, size_t n) {
  about *a = btc_alloc_zero(1, sizeof *a + n * sizeof *l);
  if (!a) return NULL;
  *a = (about){.b = b, .session = s->id, .n = n};
  if (n) memcpy(a->lease, l, n * sizeof *l);
  return a;
}

static void ignore(void *ctx, const redisReply *r) {
  btc_broker_refused(ctx, r);
}

/* ---- taking back ---- */

static void tell_revoked(btc_broker *b, btc_session *s, uint64_t cid, uint64_t token, const char *why) {
  Btc__Held held = BTC__HELD__INIT;
  Btc__Held *list = &held;
  Btc__Revoke revoke = BTC__REVOKE__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_REVOKE);
  held.cid = cid;
  held.token = token;
  revoke.chunks = &list;
  revoke.n_chunks = 1;
  revoke.why = (char *)why;
  e.session = s->id;
  e.revoke = &revoke;
  btc_broker_send(b, b->workers, &s->peer, &e); /* lost: the next heartbeat names the chunk and is told again */
}

void btc_hand_revoke(btc_broker *b, btc_session *s, uint64_t cid, uint64_t token, const char *why) {
  btc_hand *h = btc_hand_find(s, cid, token);
  btc_store_lease lease = {cid, token, 0};
  BTC_LOG_LIMITED(BTC_LOG_INFO, "revoke", "worker=%s cid=%" PRIu64 " why=%s", s->name, cid, why);
  tell_revoked(b, s, cid, token, why);
  btc_store_release(b->store, s->wid, &lease, 1, ignore, (void *)"release");
  if (h) btc_hand_drop(s, h);
}

/* start and extend answer with the chunks that are not this worker's any more, or whose job is cancelled. */
static void revoke_listed(about *a, btc_session *s, const redisReply *r, const char *why) {
  for (size_t i = 0; i < r->elements; i++) {
    uint64_t cid = btc_answer_u64(r, i);
    for (size_t k = 0; k < a->n; k++)
      if (a->lease[k].cid == cid && btc_hand_find(s, cid, a->lease[k].token)) /* else it was finished meanwhile */
        btc_hand_revoke(a->b, s, cid, a->lease[k].token, why);
  }
}

/* ---- heartbeats ---- */

static void on_started(void *ctx, const redisReply *r) {
  about *a = ctx;
  btc_session *s = btc_session_find(a->b, a->session);
  if (!btc_broker_refused("btc_start", r) && s && r->type == REDIS_REPLY_ARRAY) {
    for (size_t k = 0; k < a->n; k++) {
      btc_hand *h = btc_hand_find(s, a->lease[k].cid, a->lease[k].token);
      if (h) h->told |= a->lease[k].mask;
    }
    revoke_listed(a, s, r, "lost");
  }
  free(a);
}

/* Redis learns which items an engine has begun: if the worker dies, these are under suspicion and the others are not. */
static void tell_started(btc_broker *b, btc_session *s) {
  btc_store_lease lease[MAX_CHUNKS];
  size_t n = 0;
  for (btc_hand *h = s->hands; h && n < MAX_CHUNKS; h = h->next)
    if (h->mask & h->started & ~h->told) lease[n++] = (btc_store_lease){h->cid, h->token, h->started};
  about *a = n ? about_new(b, s, lease, n) : NULL;
  if (a && !btc_store_start(b->store, s->wid, lease, n, on_started, a)) free(a);
}

static bool just_finished(const btc_session *s, uint64_t cid) {
  for (size_t i = 0; i < sizeof s->finished / sizeof s->finished[0]; i++)
    if (s->finished[i] == cid) return true;
  return false;
}

static void beat_chunk(btc_broker *b, btc_session *s, const Btc__ChunkProgress *p) {
  btc_hand *h = btc_hand_find(s, p->cid, p->token);
  if (!h) {
    if (s->state == BTC_SESSION_LIVE && !just_finished(s, p->cid))
      tell_revoked(b, s, p->cid, p->token, "lost"); /* its lease is somebody else's by now */
    return;
  }
  h->missing = 0;
  h->sent = true;
  if (p->progress > h->progress || (p->started_mask & ~h->started)) h->moved_ns = btc_loop_now_ns(b->loop);
  h->progress = p->progress;
  h->started |= p->started_mask;
}

void btc_hand_heartbeat(btc_broker *b, btc_session *s, const Btc__Heartbeat *hb) {
  btc_hand *next;
  for (btc_hand *h = s->hands; h; h = h->next)
    if (h->sent && h->mask) h->missing++;
  for (size_t i = 0; i < hb->n_chunks && i < HANDS; i++)
    if (hb->chunks[i]) beat_chunk(b, s, hb->chunks[i]);
  for (btc_hand *h = s->hands; h; h = next) {
    next = h->next;
    if (h->missing < MISSING_BEATS) continue;
    btc_log(BTC_LOG_WARN, "chunk-forgotten", "worker=%s jid=%s cid=%" PRIu64, s->name, h->jid, h->cid);
    btc_store_lease lease = {h->cid, h->token, 0};
    if (btc_store_release(b->store, s->wid, &lease, 1, ignore, (void *)"release")) btc_hand_drop(s, h);
  }
  tell_started(b, s);
}

/* ---- leases ---- */

static void on_extended(void *ctx, const redisReply *r) {
  about *a = ctx;
  btc_session *s = btc_session_find(a->b, a->session);
  if (!btc_broker_refused("btc_extend", r) && s && r->type == REDIS_REPLY_ARRAY) revoke_listed(a, s, r, "lost or cancelled");
  free(a);
}

/* A lease grows only while the chunk moves: a hung engine that still sends heartbeats loses its chunks to the backstop. A chunk
 * that waits behind others counts as moving as long as any chunk of the worker does. */
void btc_hand_extend(btc_broker *b, btc_session *s) {
  btc_store_lease lease[MAX_CHUNKS];
  int64_t now = btc_loop_now_ns(b->loop), stall = b->o->stall_ms * 1000000, latest = 0;
  if (s->items_per_s > 0 && 10e9 / s->items_per_s > (double)stall && s->items_per_s > 1e-6)
    stall = (int64_t)(10e9 / s->items_per_s);
  size_t n = 0;
  for (btc_hand *h = s->hands; h; h = h->next)
    if (h->moved_ns > latest) latest = h->moved_ns;
  for (btc_hand *h = s->hands; h; h = h->next) {
    int64_t moved = h->started ? h->moved_ns : latest;
    if (now - moved > stall) {
      BTC_LOG_LIMITED(BTC_LOG_WARN, "chunk-stalled", "worker=%s jid=%s cid=%" PRIu64 " still_ms=%lld", s->name, h->jid, h->cid,
                      (long long)((now - moved) / 1000000));
      continue;
    }
    lease[n++] = (btc_store_lease){h->cid, h->token, 0};
    if (n < MAX_CHUNKS && h->next) continue;
    about *a = about_new(b, s, lease, n);
    if (a && !btc_store_extend(b->store, s->wid, b->o->lease_ms, lease, n, on_extended, a)) free(a);
    n = 0;
  }
  about *a = n ? about_new(b, s, lease, n) : NULL; /* the last chunks of the list had stalled */
  if (a && !btc_store_extend(b->store, s->wid, b->o->lease_ms, lease, n, on_extended, a)) free(a);
}
