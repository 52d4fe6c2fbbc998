/*
 * Full-text index over the captions of result files: an SQLite FTS5 database that is brought up to date file by file, each in a
 * transaction of its own, so that a killed process leaves a smaller index and not a wrong one. It is a cache: a broken or foreign
 * file in its place is thrown away and made again. Several processes may use one at a time (they wait for each other).
 *
 * A file counts as known while its size, time of change and a digest of its two ends (64 KiB each) are the same.
 */
#ifndef BTC_INDEX_H
#define BTC_INDEX_H

#include "results.h"

#define BTC_INDEX_NAME ".btcchat-index.db"
#define BTC_INDEX_MAX_QUERY 1024 /* bytes */

typedef struct btc_index btc_index;

typedef struct btc_index_counts {
  uint64_t files, read, records, bad; /* read: files that were new or had changed; bad: lines in them that are no records */
  bool rebuilt;                       /* what stood there was no index of ours */
} btc_index_counts;

/* Opens or makes the index in the records' folder, or (it cannot be written, or `where` names one file) in
 * $XDG_CACHE_HOME/btcchat, default ~/.cache/btcchat. IO, NOMEM. */
btc_status btc_index_open(const char *where, btc_index **out, btc_error *err);
/* Brings it up to date. cancelled may be NULL. */
btc_status btc_index_update(btc_index *x, const btc_results_files *files, bool (*cancelled)(void), btc_index_counts *out,
                            btc_error *err);

typedef struct btc_index_query {
  const char *words; /* all must be there, in any form of the word; "in quotes": next to each other; roa*: beginnings */
  bool changed_only;
  uint64_t limit;
  const char *mark_begin, *mark_end; /* around matches in snippet */
} btc_index_query;

typedef struct btc_index_hit {
  const char *id, *status, *caption, *snippet, *file; /* borrowed during the call */
  bool has_score, has_changed, changed;
  double score;
} btc_index_hit;

/* Best matches first. Stops when hit returns false. ARG: no words in the query. */
btc_status btc_index_search(btc_index *x, const btc_index_query *q, bool (*hit)(void *ctx, const btc_index_hit *h), void *ctx,
                            btc_error *err);
const char *btc_index_path(const btc_index *x);
void btc_index_close(btc_index **x);

#endif
