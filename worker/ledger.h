/*
 * What a worker has in hand: chunks, their items, and results on their way to the broker. Pure bookkeeping, bounded, without
 * socket, clock or child, so that every rule of it can be tested by itself. One thread.
 *
 *   item:  WAITING -> GIVEN (in the child) -> STARTED (the engine has it) -> SETTLED (its result waits, or is gone to the outbox)
 *   chunk: lives until all items are settled, all results are queued, and all Results messages are answered; then it is remembered
 * for a while, so that a grant sent again is known.
 */
#ifndef BTC_WORKER_LEDGER_H
#define BTC_WORKER_LEDGER_H

#include "proto/wire.h"

enum { LEDGER_CHUNK_ITEMS = 32, LEDGER_REMEMBERED = 1024 };

typedef enum ledger_state { LEDGER_WAITING, LEDGER_GIVEN, LEDGER_STARTED, LEDGER_SETTLED } ledger_state;

typedef struct ledger_item {
  uint64_t ticket; /* while in the child */
  uint32_t off;
  ledger_state state;
  int64_t started_ns;
  char *spec;
} ledger_item;

typedef struct ledger_chunk ledger_chunk;
struct ledger_chunk {
  ledger_chunk *next, *prev;
  uint64_t cid, token, lo;
  char *jid, *params;
  bool solo, revoked;
  uint32_t started_mask;          /* by off */
  size_t n_items, waiting, given; /* items, and of them those in state WAITING; GIVEN or STARTED */
  size_t unanswered;              /* Results messages in the outbox */
  ledger_item items[LEDGER_CHUNK_ITEMS];
  Btc__ItemResult *results[LEDGER_CHUNK_ITEMS]; /* [n_results] not queued yet, owned */
  size_t n_results, result_bytes;
  int64_t first_result_ns;
};

typedef struct ledger ledger;
btc_status ledger_create(size_t max_items, size_t max_given, ledger **out, btc_error *err);
void ledger_destroy(ledger **l);

typedef enum ledger_added {
  LEDGER_NEW,
  LEDGER_KNOWN,
  LEDGER_BAD /* malformed */,
  LEDGER_FULL /* too many items, or no memory: hand it back */
} ledger_added;
/* Copies a granted chunk. A chunk held under an older token is dropped as if revoked: its lease was lost. */
ledger_added ledger_add(ledger *l, const Btc__Chunk *c);

/* The item to give next, or NULL: nothing waits, the child has max_given, or a chunk must be alone and is not. Order of grants. */
ledger_item *ledger_next(ledger *l, ledger_chunk **chunk);
void ledger_give(ledger *l, ledger_chunk *c, ledger_item *it); /* makes it GIVEN, with a fresh ticket */

/* False for tickets that are unknown. */
bool ledger_start(ledger *l, uint64_t ticket, int64_t now_ns);
/* The child's answer; r is copied, its off set by the ledger. started_ns (may be NULL): of that item. Dropped when the chunk was
 * revoked. LIMIT never; NOMEM: the item waits again. */
btc_status ledger_settle(ledger *l, uint64_t ticket, const Btc__ItemResult *r, int64_t now_ns, int64_t *started_ns, btc_error *err);
/* The child is gone: items it had started get this outcome, the others wait again. Returns how many had been started. */
size_t ledger_child_gone(ledger *l, Btc__Outcome outcome, const char *reason, const char *message, int64_t now_ns);
/* The child is gone through no fault of what it had: all of it waits again. Returns how many items had been started. */
size_t ledger_take_back(ledger *l);

/* Items that wait are forgotten, results dropped; token 0: any. */
void ledger_revoke(ledger *l, uint64_t cid, uint64_t token);
/* The chunk goes back to the queue: forgets it altogether; what the child still does for it is dropped. Results that are not queued
 * are lost, so queue them before. */
void ledger_drop(ledger *l, ledger_chunk *c);

/* Results of a chunk that are ready to be queued: all of them settled, max_age old, or many. NULL: none. `all`: whatever is there.
 */
ledger_chunk *ledger_ripe(ledger *l, int64_t now_ns, int64_t max_age_ns, bool all);
/* When the oldest waiting result becomes ripe by age; INT64_MAX: none waits. */
int64_t ledger_ripe_at(const ledger *l, int64_t max_age_ns);
/* The first n results have been queued in a Results message (unanswered + 1), or could not be and are given up. */
void ledger_queued(ledger *l, ledger_chunk *c, size_t n, bool queued);
void ledger_answered(ledger *l, ledger_chunk *c); /* one of its Results messages */

ledger_chunk *ledger_first(const ledger *l); /* walk with ->next */
size_t ledger_open(const ledger *l);         /* items not settled */
size_t ledger_given(const ledger *l);        /* in the child */
size_t ledger_chunks(const ledger *l);

#endif
