/*
 * A job's records in the results folder, read. Pure functions over files: no state, no Redis, any thread. The layout is the sink's
 * (sink.h).
 *
 * A cursor is text "PART:OFFSET" ("1:0" the beginning, also ""); once errors.jsonl was begun, "PART:OFFSET:EPOCH:OFFSET". A sealed
 * part never changes, so a cursor stays good for ever; errors.jsonl is read again from its beginning when a replay's finish wrote
 * it again, behind the new parts.
 */
#ifndef BTC_BROKER_RESULTS_H
#define BTC_BROKER_RESULTS_H

#include "base/base.h"

#define BTC_RESULTS_CURSOR 64 /* bytes of a cursor, terminator included */

typedef struct btc_results_part {
  uint32_t number;
  uint64_t bytes; /* 0: an abandoned number, holds nothing */
} btc_results_part;

/* Ids that may be folder names: [A-Za-z0-9._-]{1,64}, not beginning with a dot. */
bool btc_results_jid_valid(const char *jid);

/* Sealed parts in order of their numbers, malloc'ed. A job without a folder has none (OK). LIMIT above 1,000,000. */
btc_status btc_results_list(const char *results, const char *jid, btc_results_part **parts, size_t *n, btc_error *err);

/* Whole lines behind cursor, at most max_bytes of them but at least one if there is one (max_bytes is taken as 4 MiB at most; LIMIT
 * for a line over 7 MiB). *lines malloc'ed and terminated, *len without the terminator. next: where to go on. *at_end: nothing
 * behind it for now. ARG: no cursor of ours. */
btc_status btc_results_read(const char *results, const char *jid, const char *cursor, size_t max_bytes, bool errors, char **lines,
                            size_t *len, char next[BTC_RESULTS_CURSOR], bool *at_end, btc_error *err);

/* Lines in all parts and in errors.jsonl. */
btc_status btc_results_count(const char *results, const char *jid, uint64_t *records, uint64_t *errors, btc_error *err);

#endif
