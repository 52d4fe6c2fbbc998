/* Messages of workers, and the clock that watches them. */
#define _GNU_SOURCE
#include "session.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grant.h"
#include "hello.h"
#include "pipes.h"

enum { SUSPECT_BEATS = 3, MAX_RELEASE = 256, REAP_STEP = 256 /* chunks of one btc_reap_owner */ };

/* ---- finding and ending ---- */

btc_session *btc_session_find(const btc_broker *b, uint64_t id) {
  for (btc_session *s = b->sessions; s; s = s->next)
    if (s->id == id) return s;
  return NULL;
}

btc_session *btc_session_named(const btc_broker *b, const char *name) {
  for (btc_session *s = b->sessions; s; s = s->next)
    if (strcmp(s->name, name) == 0 && !s->reaping) return s;
  return NULL;
}

static void destroy(btc_session *s) {
  while (s->hands) {
    btc_hand *next = s->hands->next;
    free(s->hands);
    s->hands = next;
  }
  btc_outbox_destroy(&s->outbox, NULL);
  free(s->engine);
  free(s->devices);
  free(s->model_name);
  free(s->program);
  free(s->held);
  btc_pipe_caps_free(&s->pipe);
  free(s);
}

void btc_session_devices(btc_session *s, Btc__Device *const *list, size_t n) {
  if (n && !s->devices) s->devices = btc_alloc_zero(1, sizeof *s->devices);
  if (s->devices) btc_devices_set(s->devices, list, n);
}

void btc_session_close(btc_broker *b, btc_session *s, const char *why) {
  btc_session **at = &b->sessions;
  while (*at && *at != s) at = &(*at)->next;
  if (!*at) return;
  *at = s->next;
  b->n_sessions--;
  if (s->state == BTC_SESSION_HELLO) /* never welcome: a second worker of a name tries each second, for ever */
    BTC_LOG_LIMITED(BTC_LOG_INFO, "session-refused", "worker=%s why=\"%s\"", s->name, why);
  else
    btc_log(BTC_LOG_INFO, "session-end", "worker=%s session=%" PRIx64 " owed=%u why=\"%s\"", s->name, s->id, s->owed, why);
  if (!btc_session_named(b, s->name)) btc_metrics_forget_worker(b->metrics, s->name);
  destroy(s);
}

void btc_session_destroy_all(btc_broker *b) {
  while (b->sessions) {
    btc_session *next = b->sessions->next;
    destroy(b->sessions);
    b->sessions = next;
  }
  b->n_sessions = 0;
}

/* ---- acknowledgements: those of one turn leave in one message ---- */

static void send_acks(btc_broker *b, btc_session *s) {
  Btc__Ack ack = BTC__ACK__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_ACK);
  if (!s->n_acks) return;
  ack.n_req_id = s->n_acks;
  ack.req_id = s->acks;
  e.session = s->id;
  e.ack = &ack;
  s->n_acks = 0; /* a lost one is asked for again */
  btc_broker_send(b, b->workers, &s->peer, &e);
}

void btc_session_ack(btc_broker *b, btc_session *s, uint64_t req_id) {
  if (!req_id) return;
  if (s->n_acks == sizeof s->acks / sizeof s->acks[0]) send_acks(b, s);
  s->acks[s->n_acks++] = req_id;
}

void btc_session_flush(btc_broker *b) {
  int64_t now = btc_loop_now_ns(b->loop);
  for (btc_session *s = b->sessions; s; s = s->next) {
    if (s->reaping) continue;
    send_acks(b, s);
    if (s->outbox_ns > now || !btc_outbox_count(s->outbox)) continue;
    bool gone = false;
    s->outbox_ns = btc_outbox_flush(s->outbox, b->workers, &s->peer, s->id, now, &gone);
    BTC_FAILPOINT("after_grant");
    if (gone) s->suspect = true;
  }
}

/* ---- release, bye ---- */

typedef struct answer { /* what waits for Redis before a worker gets its acknowledgement */
  btc_broker *b;
  uint64_t session, req_id;
  size_t n;
  btc_store_lease lease[];
} answer;

static void on_released(void *ctx, const redisReply *r) {
  answer *a = ctx;
  btc_session *s = btc_session_find(a->b, a->session);
  if (!btc_broker_refused("btc_release", r) && s) {
    for (size_t i = 0; i < a->n; i++) {
      btc_hand *h = btc_hand_find(s, a->lease[i].cid, a->lease[i].token);
      if (h) btc_hand_drop(s, h);
    }
    btc_session_ack(a->b, s, a->req_id);
    btc_grant_poke_all(a->b);
  }
  free(a);
}

static void take_release(btc_broker *b, btc_session *s, uint64_t req_id, const Btc__Release *m) {
  if (m->n_chunks > MAX_RELEASE) {
    btc_broker_nack(b, b->workers, &s->peer, req_id, BTC__NACK_CODE__NACK_BAD, "too many chunks in one Release", 0);
    return;
  }
  answer *a = btc_alloc_zero(1, sizeof *a + m->n_chunks * sizeof a->lease[0]);
  if (!a) return;
  *a = (answer){.b = b, .session = s->id, .req_id = req_id, .n = m->n_chunks};
  for (size_t i = 0; i < m->n_chunks; i++) a->lease[i] = (btc_store_lease){m->chunks[i]->cid, m->chunks[i]->token, 0};
  if (!btc_store_release(b->store, s->wid, a->lease, a->n, on_released, a)) free(a);
}

static void on_bye(void *ctx, const redisReply *r) {
  answer *a = ctx;
  btc_session *s = btc_session_find(a->b, a->session);
  if (!btc_broker_refused("btc_bye", r) && s) {
    btc_session_ack(a->b, s, a->req_id);
    send_acks(a->b, s);
    btc_session_close(a->b, s, "bye");
    btc_grant_poke_all(a->b);
  }
  free(a);
}

static void take_bye(btc_broker *b, btc_session *s, uint64_t req_id) {
  answer *a = btc_alloc_zero(1, sizeof *a);
  if (!a) return;
  *a = (answer){.b = b, .session = s->id, .req_id = req_id};
  s->draining = true;
  BTC_FAILPOINT("before_bye");
  if (!btc_store_bye(b->store, s->name, s->incarnation, on_bye, a)) free(a);
}

/* ---- messages ---- */

/* Where only the way to it is cut its messages still come, but no grant or acknowledgement reaches it. */
static bool is_deaf(const btc_broker *b, const btc_session *s) {
  return s->state != BTC_SESSION_HELLO && s->seen_ns - s->heard_ns > b->o->heartbeat_ms * SUSPECT_BEATS * 1000000;
}

static void take_heartbeat(btc_broker *b, btc_session *s, uint64_t req_id, const Btc__Heartbeat *hb) {
  s->draining = hb->draining;
  s->items_done = hb->items_done;
  s->items_per_s = hb->items_per_s > 0 && hb->items_per_s < 1e9 ? hb->items_per_s : 0;
  s->rss_bytes = hb->rss_bytes;
  btc_session_devices(s, hb->devices, hb->n_devices);
  int64_t heard_ns = s->seen_ns - (int64_t)hb->deaf_ms * 1000000;
  if (heard_ns > s->heard_ns) s->heard_ns = heard_ns;
  s->suspect = is_deaf(b, s);
  btc_hand_heartbeat(b, s, hb);
  btc_pipe_caps_beat(s->pipe, hb->pipe);
  s->asks_not = hb->asks_not;
  btc_session_ack(b, s, req_id);
  btc_metrics_worker(b->metrics, s->name, true, s->capacity > s->owed && !s->asks_not ? s->capacity - s->owed : 0, s->owed,
                     s->items_per_s);
  btc_grant_poke(b, s);
}

static void take_acks(btc_session *s, const uint64_t *ids, size_t n) {
  for (size_t i = 0; i < n; i++) {
    void *cookie = NULL;
    if (!btc_outbox_settle(s->outbox, ids[i], &cookie)) continue;
    for (btc_hand *h = s->hands; h; h = h->next)
      if (h->cid == (uint64_t)(uintptr_t)cookie) h->sent = true;
  }
}

static void dispatch(btc_broker *b, btc_session *s, const btc_message *m) {
  const Btc__Envelope *e = m->envelope;
  s->seen_ns = btc_loop_now_ns(b->loop);
  s->suspect = is_deaf(b, s);
  switch (e->body_case) {
    case BTC__ENVELOPE__BODY_HEARTBEAT:
      take_heartbeat(b, s, e->req_id, e->heartbeat);
      break;
    case BTC__ENVELOPE__BODY_RESULTS:
      btc_commit_results(b, s, e->req_id, e->results);
      break;
    case BTC__ENVELOPE__BODY_RELEASE:
      take_release(b, s, e->req_id, e->release);
      break;
    case BTC__ENVELOPE__BODY_BYE:
      take_bye(b, s, e->req_id);
      break;
    case BTC__ENVELOPE__BODY_PIPE_READY:
      btc_pipes_ready(b, s, e->req_id, e->pipe_ready);
      break;
    case BTC__ENVELOPE__BODY_PIPE_BROKEN:
      btc_pipes_broken(b, s, e->req_id, e->pipe_broken);
      break;
    case BTC__ENVELOPE__BODY_ACK:
      take_acks(s, e->ack->req_id, e->ack->n_req_id);
      break;
    case BTC__ENVELOPE__BODY_NACK:
      BTC_LOG_LIMITED(BTC_LOG_WARN, "worker-refuses", "worker=%s code=%d", s->name, (int)e->nack->code);
      if (e->nack->code == BTC__NACK_CODE__NACK_BUSY)
        btc_outbox_delay(s->outbox, e->nack->req_id, s->seen_ns, e->nack->retry_ms);
      else
        btc_outbox_settle(s->outbox, e->nack->req_id, NULL); /* its chunk is forgotten by the heartbeats and given back */
      break;
    default:
      btc_broker_nack(b, b->workers, &m->from, e->req_id, BTC__NACK_CODE__NACK_UNKNOWN, "this is no message for a broker", 0);
  }
}

static bool may_work(btc_role role) {
  return role == BTC_ROLE_WORKER || role == BTC_ROLE_ADMIN || role == BTC_ROLE_ANY;
}

void btc_session_message(btc_broker *b, btc_message *m) {
  const Btc__Envelope *e = m->envelope;
  b->messages++;
  if (!e) {
    bool version = m->error.code == BTC_ERR_UNSUPPORTED;
    b->bad_messages++;
    BTC_LOG_LIMITED(BTC_LOG_WARN, "bad-message", "from=worker msg=\"%s\"", m->error.message);
    if (m->from.len)
      btc_broker_nack(b, b->workers, &m->from, m->req_id, version ? BTC__NACK_CODE__NACK_VERSION : BTC__NACK_CODE__NACK_BAD,
                      m->error.message, 0);
    return;
  }
  if (!may_work(m->role)) {
    btc_broker_nack(b, b->workers, &m->from, e->req_id, BTC__NACK_CODE__NACK_DENIED,
                    "this key may not work here: its role in the allow-list is not worker", 0);
    return;
  }
  if (e->body_case == BTC__ENVELOPE__BODY_HELLO) {
    btc_hello_take(b, m);
    return;
  }
  btc_session *s = e->session ? btc_session_find(b, e->session) : NULL;
  bool known =
      s && !s->reaping && s->state != BTC_SESSION_HELLO && btc_peer_id_equal(&s->peer, &m->from) && strcmp(s->key, m->key) == 0;
  if (known)
    dispatch(b, s, m);
  else if (e->body_case != BTC__ENVELOPE__BODY_ACK && e->body_case != BTC__ENVELOPE__BODY_NACK)
    btc_broker_nack(b, b->workers, &m->from, e->req_id, BTC__NACK_CODE__NACK_SESSION, "no such session: say Hello", 0);
}

/* ---- the clock ---- */

typedef struct death {
  btc_broker *b;
  uint64_t session;
} death;

static void after_death(death *d, const char *why) {
  btc_session *s = btc_session_find(d->b, d->session);
  if (s) btc_session_close(d->b, s, why);
  btc_grant_poke_all(d->b);
  free(d);
}

static void retry_death(death *d) { /* Redis is away: the next tick tries again */
  btc_session *s = btc_session_find(d->b, d->session);
  if (s) s->reaping = false;
  free(d);
}

static void on_forgotten(void *ctx, const redisReply *r) {
  death *d = ctx;
  if (r)
    after_death(d, "dead");
  else
    retry_death(d);
}

static void on_reaped(void *ctx, const redisReply *r) {
  death *d = ctx;
  btc_session *s = btc_session_find(d->b, d->session);
  bool failed = btc_broker_refused("btc_reap_owner", r);
  if (!failed && s)
    btc_log(BTC_LOG_WARN, "worker-lost", "worker=%s chunks=%lld", s->name, r->type == REDIS_REPLY_INTEGER ? r->integer : 0LL);
  if (!failed && s && r->type == REDIS_REPLY_INTEGER && r->integer >= REAP_STEP &&
      btc_store_call(d->b->store, on_reaped, d, "btc_reap_owner", s->wid, NULL))
    return;
  if (failed || !s || !btc_store_bye(d->b->store, s->name, s->incarnation, on_forgotten, d)) retry_death(d);
}

/* HMGET wk:<name> broker inc: a worker that only lost us works on with another broker, and its chunks are not ours to reap. */
static void on_where(void *ctx, const redisReply *r) {
  death *d = ctx;
  btc_session *s = btc_session_find(d->b, d->session);
  if (btc_answer_failed(r) || !s) {
    retry_death(d);
    return;
  }
  const char *broker = btc_answer_text(r, 0);
  if (*broker && (strcmp(broker, d->b->name) != 0 || btc_answer_u64(r, 1) != s->incarnation)) {
    after_death(d, "moved to another broker");
    return;
  }
  BTC_FAILPOINT("before_reap_owner");
  if (!btc_store_call(d->b->store, on_reaped, d, "btc_reap_owner", s->wid, NULL)) retry_death(d);
}

static void die(btc_broker *b, btc_session *s) {
  death *d = btc_alloc_zero(1, sizeof *d);
  if (!d) return;
  *d = (death){b, s->id};
  s->reaping = true;
  btc_metrics_worker(b->metrics, s->name, false, 0, s->owed, 0);
  if (btc_store_command(b->store, on_where, d, "HMGET", btc_store_key(b->store, "wk:", s->name), "broker", "inc", NULL)) return;
  retry_death(d);
}

static void watch(btc_broker *b, btc_session *s, int64_t now) {
  int64_t both_ways_ns = s->state != BTC_SESSION_HELLO && s->heard_ns < s->seen_ns ? s->heard_ns : s->seen_ns;
  int64_t silent_ms = (now - both_ways_ns) / 1000000;
  if (silent_ms > b->o->heartbeat_ms * SUSPECT_BEATS && !s->suspect) {
    s->suspect = true;
    btc_log(BTC_LOG_WARN, "worker-silent", "worker=%s ms=%lld owed=%u", s->name, (long long)silent_ms, s->owed);
  }
  if (silent_ms > b->o->dead_ms) {
    die(b, s);
    return;
  }
  if (s->state == BTC_SESSION_HELLO) return;
  if (now >= s->extend_ns && s->hands) {
    btc_hand_extend(b, s);
    s->extend_ns = now + b->o->lease_ms * 1000000 / 3;
  }
  if (now >= s->refresh_ns) btc_hello_refresh(b, s);
}

void btc_session_tick(btc_broker *b) {
  static const int64_t asleep_ns = 1000000000;
  int64_t now = btc_loop_now_ns(b->loop);
  /* We slept (SIGSTOP, a suspended machine): their messages lie unread, so their silence is ours. */
  bool slept = b->ticked_ns && now - b->ticked_ns > asleep_ns;
  btc_session *next;
  b->ticked_ns = now;
  for (btc_session *s = b->sessions; s; s = next) {
    next = s->next;
    if (slept) s->seen_ns = s->heard_ns = now;
    if (!s->reaping && btc_redis_is_up(b->redis)) watch(b, s, now);
  }
}

/* They say Hello again, are told that we are busy, and go to the next broker of their list; their leases go with them. */
void btc_session_farewell(btc_broker *b) {
  for (btc_session *s = b->sessions; s; s = s->next)
    if (!s->reaping) btc_broker_nack(b, b->workers, &s->peer, 0, BTC__NACK_CODE__NACK_SESSION, "the broker stops", 0);
}
