/*
 * The last commits of this broker, in memory, for a Redis that comes back without them: a replica that was behind when it took
 * over, a restored file (queue.md 2.12). Workers were acknowledged for these results and have forgotten them. When history is lost
 * they are committed once more before anything is handed out, so that their items do not run again; the done bits make that
 * harmless.
 *
 * Kept are 60 s of commits, at most 32 MiB. What is older, or was committed by a broker that died too, runs again: nothing is lost
 * by that but time. Thread: the loop's.
 */
#ifndef BTC_BROKER_JOURNAL_H
#define BTC_BROKER_JOURNAL_H

#include "broker/core.h"

enum { BTC_JOURNAL_SECONDS = 60, BTC_JOURNAL_BYTES = 32 << 20 };

typedef struct btc_journal_entry btc_journal_entry;

btc_status btc_journal_create(btc_broker *b, btc_error *err); /* b->journal */
void btc_journal_destroy(btc_broker *b);

/* A copy of a commit on its way to Redis, the caller's until it is kept or freed. NULL: no memory, then it is not covered. */
btc_journal_entry *btc_journal_copy(const btc_store_chunk *c, const btc_store_result *r, size_t n);
void btc_journal_free(btc_journal_entry *e);
/* Redis has it: takes the entry, which may be NULL. */
void btc_journal_keep(btc_broker *b, btc_journal_entry *e);

/* Redis is connected (again): is the newest commit still there? Until that is answered, and what is missing is committed again for
 * the first time, nobody may claim. */
void btc_journal_up(btc_broker *b);
/* `seq` has fallen to `now` although the connection held. */
void btc_journal_lost(btc_broker *b, uint64_t now);
/* Claims must wait; for 10 s at most, since items that run again do no harm. */
bool btc_journal_holds(const btc_broker *b);
/* Forgets what is too old; tries again what Redis does not know yet. Often. */
void btc_journal_tick(btc_broker *b);

#endif
