/*
 * What this broker has had Redis do in the last 60 s and would have it do again should Redis lose it: commits, submissions,
 * entries taken in, cancellations (recover.h). Oldest first.
 *
 * In memory, and bounded by bytes: Redis loses acknowledged writes when its own machine does (appendfsync everysec, a failover to
 * a replica that was behind, a restored copy), not when a broker dies, and a file of our own would have to be synced before every
 * acknowledgement, a second fsync beside Redis's. A broker that dies in the same moment takes its journal with it: the items
 * run again, and the sink still writes each of them once. Thread: the loop's.
 */
#ifndef BTC_BROKER_JOURNAL_H
#define BTC_BROKER_JOURNAL_H

#include "broker/store.h"

enum { BTC_JOURNAL_KEEP_MS = 60000, BTC_JOURNAL_DROPPED = 8192 };

typedef struct btc_journal btc_journal;
btc_journal *btc_journal_create(int64_t max_bytes); /* NULL: no memory */
void btc_journal_destroy(btc_journal **j);

/* Takes c over. What is older than BTC_JOURNAL_KEEP_MS, or too much, is dropped: the oldest first. */
void btc_journal_add(btc_journal *j, btc_call *c, int64_t now_ns);
void btc_journal_trim(btc_journal *j, int64_t now_ns);
/* All of it, as the caller's list; the journal is empty then. */
btc_call *btc_journal_take(btc_journal *j);
/* A list of calls that are older than all there are. */
void btc_journal_put_back(btc_journal *j, btc_call *list);

size_t btc_journal_bytes(const btc_journal *j);
/* Items of dropped commits with numbers above seq: lost for good should Redis know nothing above it. The last
 * BTC_JOURNAL_DROPPED dropped commits are remembered; more: at least so many. */
uint64_t btc_journal_dropped(const btc_journal *j, uint64_t seq);

#endif
