/*
 * Sessions of workers: Hello to the end. A session is (routing id, worker name, incarnation, key) under a random number that every
 * message must carry; whoever comes with another one is told to say Hello again, and loses nothing by it: leases are bound to name
 * and incarnation, not to connections.
 */
#ifndef BTC_BROKER_SESSION_H
#define BTC_BROKER_SESSION_H

#include "broker/core.h"

void btc_session_message(btc_broker *b, btc_message *m); /* one from the workers' socket */
void btc_session_tick(btc_broker *b);                    /* each 100 ms: silence, leases, refreshes */
void btc_session_flush(btc_broker *b);                   /* end of a turn: acknowledgements, outboxes */
void btc_session_farewell(btc_broker *b);                /* a drain: tells the workers to go elsewhere */
void btc_session_destroy_all(btc_broker *b);

btc_session *btc_session_find(const btc_broker *b, uint64_t id);
btc_session *btc_session_named(const btc_broker *b, const char *name);
void btc_session_ack(btc_broker *b, btc_session *s, uint64_t req_id);
/* Ends a session here. Its leases stay: they are reaped by their owner's death or pass to its next session. */
/* What it computes on, for `workers`; without memory for that nothing changes. */
void btc_session_devices(btc_session *s, Btc__Device *const *list, size_t n);
void btc_session_close(btc_broker *b, btc_session *s, const char *why);

/* ---- chunks in hand (hand.c) ---- */
btc_hand *btc_hand_find(const btc_session *s, uint64_t cid, uint64_t token);
btc_hand *btc_hand_add(btc_session *s, uint64_t cid, uint64_t token, const char *jid, uint64_t lo, uint32_t n, uint32_t mask,
                       int64_t now_ns);
/* Results of these items came: the worker has room for others. The chunk stays, so that its lease grows, until Redis has them. */
void btc_hand_take(btc_session *s, btc_hand *h, uint32_t bits);
void btc_hand_saved(btc_session *s, btc_hand *h, uint32_t bits); /* the last one frees it */
void btc_hand_drop(btc_session *s, btc_hand *h);
void btc_hand_heartbeat(btc_broker *b, btc_session *s, const Btc__Heartbeat *hb);
void btc_hand_extend(btc_broker *b, btc_session *s);
/* Takes a chunk back: tells the worker, gives it back to Redis (which counts it when its job is cancelled). */
void btc_hand_revoke(btc_broker *b, btc_session *s, uint64_t cid, uint64_t token, const char *why);
/* After Welcome: what Redis says the worker leases against what it says it holds. */
void btc_hand_sync(btc_broker *b, btc_session *s);

/* ---- results (commit.c) ---- */
void btc_commit_results(btc_broker *b, btc_session *s, uint64_t req_id, const Btc__Results *r);

#endif
