/*
 * One job's folder as the sink writes it: which items its parts hold, and the records that wait for the next part. Files only, no
 * Redis; one thread.
 *
 * The order that makes a part: its bytes are durable under a temporary name; its sidecar is durable; the sidecar is linked to the
 * part's number (whoever links first owns the number); the folder is synced; the part is linked (never over another); the folder is
 * synced. Only then may entries leave Redis.
 */
#ifndef BTC_BROKER_SINK_PART_H
#define BTC_BROKER_SINK_PART_H

#include "base/base.h"

enum { BTC_PART_NAME = 96 };

typedef struct btc_part_job btc_part_job;

typedef struct btc_stream_id {
  uint64_t ms, seq;
} btc_stream_id;

/* Makes the folder, reads the sidecars, closes numbers that were begun and never finished, removes temporary files. IO: see errno's
 * text; FORMAT: a sidecar that cannot be read (then nothing is written to this job, so that nothing can be written twice). */
btc_status btc_part_open(const char *results, const char *jid, btc_part_job **out, btc_error *err);
/* Records that were not sealed are forgotten: they are still in Redis. */
void btc_part_close(btc_part_job **j);

typedef enum btc_part_added {
  BTC_PART_TAKEN,  /* in the buffer, or another entry of the same item was there: acknowledge after the next seal */
  BTC_PART_ALREADY /* a sealed part has this item: acknowledge now */
} btc_part_added;
/* Line breaks in json become blanks. NOMEM: nothing was added. */
btc_status btc_part_add(btc_part_job *j, btc_stream_id id, uint64_t idx, const char *json, size_t len, btc_part_added *how,
                        btc_error *err);

/* Seals what waits. After OK the entries (btc_part_entries) may leave Redis, and btc_part_clear makes room. After an error all of
 * it still waits. *conflicts: how often another sink had the number first. */
btc_status btc_part_seal(btc_part_job *j, int *conflicts, btc_error *err);
const btc_stream_id *btc_part_entries(const btc_part_job *j, size_t *n);
void btc_part_clear(btc_part_job *j);

const char *btc_part_jid(const btc_part_job *j);
size_t btc_part_waiting(const btc_part_job *j); /* records */
size_t btc_part_waiting_bytes(const btc_part_job *j);
uint64_t btc_part_sealed(const btc_part_job *j); /* items in parts */
uint32_t btc_part_number(const btc_part_job *j); /* of the last sealed part */
size_t btc_part_memory(const btc_part_job *j);
int btc_part_dir(const btc_part_job *j); /* descriptor, borrowed */

/* Hidden, and of nobody else. Whoever opens the folder removes all such names: of a sink that has lost the duty without knowing,
 * none is left by the time that the next one publishes. */
void btc_part_temporary(btc_part_job *j, const char *name, char out[BTC_PART_NAME]);
/* tmp gets the name. CANCELLED when tmp is gone: another sink has opened the folder since. */
btc_status btc_part_rename(btc_part_job *j, const char *tmp, const char *name, btc_error *err);
/* A file of the folder, written under a temporary name, synced, renamed, the folder synced. go_on is asked when the temporary file
 * is there, not before: what it says then holds until the name is given, since the next sink would have removed that file.
 * CANCELLED: it said no. */
btc_status btc_part_publish(btc_part_job *j, const char *name, const void *data, size_t len, bool (*go_on)(void *ctx), void *ctx,
                            btc_error *err);

#endif
