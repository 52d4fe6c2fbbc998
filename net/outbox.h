/*
 * Messages that must arrive: kept, bounded, until the other side has answered, and sent again after 0.5 s, 1, 2, 4, 8, 8 ... A
 * sent message may be lost without an error (queue.md finding 5), so that only an answer counts.
 *
 * One outbox a peer: a worker has one for its broker, a broker one for each worker. The session is written into a message at each
 * sending, so that what is kept outlives a broker: give the new session and call btc_outbox_hurry. Not thread-safe.
 */
#ifndef BTC_NET_OUTBOX_H
#define BTC_NET_OUTBOX_H

#include "net/socket.h"

typedef struct btc_outbox btc_outbox;

/* Bounds of what is kept. */
btc_status btc_outbox_create(size_t max_messages, size_t max_bytes, btc_outbox **out, btc_error *err);
/* forget: called for the cookie of each message still kept; may be NULL. */
void btc_outbox_destroy(btc_outbox **o, void (*forget)(void *cookie));

/* Keeps a packed copy, which the next btc_outbox_flush sends. e->req_id 0 gets the outbox's next number, which begins at a random
 * one; a number of the caller's own must be larger than all before. LIMIT when the outbox is full: take on no more work until it
 * drains. cookie comes back from btc_outbox_settle. */
btc_status btc_outbox_add(btc_outbox *o, Btc__Envelope *e, void *cookie, btc_error *err);

/* Sends what is due. to: NULL for a DEALER. Returns when to call again (INT64_MAX: nothing is kept). *gone (may be NULL): the peer
 * is no more, nothing was sent. A full queue is tried again after 100 ms. */
int64_t btc_outbox_flush(btc_outbox *o, void *socket, const btc_peer_id *to, uint64_t session, int64_t now_ns, bool *gone);

/* The message was answered: forgets it. false when it is not there (answered before, or never ours). cookie may be NULL. */
bool btc_outbox_settle(btc_outbox *o, uint64_t req_id, void **cookie);
/* The answer was "later" (Nack BUSY): sent again after delay_ms. */
bool btc_outbox_delay(btc_outbox *o, uint64_t req_id, int64_t now_ns, int64_t delay_ms);
void btc_outbox_hurry(btc_outbox *o); /* all is due now, and waits begin at 0.5 s again: after a new session */

size_t btc_outbox_count(const btc_outbox *o);
size_t btc_outbox_bytes(const btc_outbox *o);
bool btc_outbox_full(const btc_outbox *o); /* one more message of ordinary size (64 KiB) may not fit */

#endif
