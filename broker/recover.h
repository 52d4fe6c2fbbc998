/*
 * After Redis has lost history (docs/protocol.md 8): at each connection the broker says the highest commit number it has seen;
 * when Redis's is lower, or another broker has found it so, the journal is sent again before this broker takes or hands out any
 * work. All of it is idempotent. Thread: the loop's.
 */
#ifndef BTC_BROKER_RECOVER_H
#define BTC_BROKER_RECOVER_H

#include "broker/core.h"

btc_status btc_recover_create(btc_broker *b, btc_error *err);
void btc_recover_destroy(btc_broker *b);

void btc_recover_begin(btc_broker *b); /* a new connection, or a number that fell: ends in btc_duties_up */
bool btc_recover_busy(const btc_broker *b);
void btc_recover_tick(btc_broker *b);               /* while Redis is there, a few times a second */
void btc_recover_seen(btc_broker *b, uint64_t seq); /* a commit number out of Redis; 0: none */

/* The call that was just sent, or NULL (no journal, no memory). Then one of these, once: Redis did it; or it did not, or nobody
 * knows. c may be NULL. */
btc_call *btc_recover_copy(btc_broker *b, uint32_t items);
void btc_recover_keep(btc_broker *b, btc_call *c, uint64_t seq);
/* Redis has this item as done. */
void btc_recover_done(btc_broker *b, const char *jid, uint64_t idx);

#endif
