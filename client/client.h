/*
 * client: submit, status, results and control over ZeroMQ, for the command line and for other programs. Synchronous: each call
 * sends, repeats until it is answered (all requests are idempotent) and returns within its deadline. One thread at a time per
 * client.
 *
 * Errors of every call: ARG and FORMAT for a request that the broker refuses (its words), UNSUPPORTED for versions that do not
 * meet, IO when the key has no right or nobody answered in time (btc_client_unreachable tells these apart), LIMIT when the broker
 * was busy until the deadline, CANCELLED.
 */
#ifndef BTC_CLIENT_H
#define BTC_CLIENT_H

#include "base/base.h"
#include "manifest/manifest_digest.h"
#include "proto/wire.h"

typedef struct btc_client btc_client;

#define BTC_CLIENT_JID 72 /* bytes of a job's name, terminator included */
#define BTC_CLIENT_MAX_INLINE 1000

typedef struct btc_client_options {
  const char *brokers;           /* comma-separated endpoints, tried in turn: tcp://127.0.0.1:7411 */
  const char *keys, *server_key; /* CURVE: our secret key file, the broker's public key file; or both NULL */
  int64_t timeout_ms;            /* of one call, default 10000 */
  const volatile int *cancel;    /* when non-zero, calls return BTC_ERR_CANCELLED soon; may be NULL */
} btc_client_options;
btc_client_options btc_client_options_default(void);

/* Copies what it needs. Connects when the first call is made. */
btc_status btc_client_open(const btc_client_options *o, btc_client **out, btc_error *err);
void btc_client_close(btc_client **c);
/* The last call failed because no broker, or no Redis behind it, answered within its time. */
bool btc_client_unreachable(const btc_client *c);

/* What is submitted: a manifest, or items. */
typedef struct btc_submission {
  const btc_manifest_summary *manifest; /* or NULL */
  const char *base_dir;                 /* what relative paths stand on; NULL: the manifest's folder */
  const char *const *items;             /* item texts (docs/protocol.md 1) with absolute paths, at most BTC_CLIENT_MAX_INLINE */
  size_t n_items;
  const char *key;         /* NULL: one is made up, so that repeating is safe within the call */
  const char *tenant;      /* NULL: "default" */
  const char *model_class; /* NULL: any */
  const char *params;      /* JSON object, or NULL */
  const char *route;       /* "files" (NULL) or "stream" */
  uint32_t priority;       /* 0 first, 1, 2 */
  uint64_t delay_ms;
  bool strict;
} btc_submission;

/* Returns when the job is as durable as Redis is configured. existed: the key was used before, jid is that job. The broker hashes
 * the manifest too: the deadline is longer by a second for each 20 MB of it. */
btc_status btc_client_submit(btc_client *c, const btc_submission *s, char jid[BTC_CLIENT_JID], bool *existed, btc_error *err);

/* jid "": the whole queue (pause and resume). filter: replay only items that failed for this reason, or NULL. count (may be NULL):
 * items put back. */
btc_status btc_client_command(btc_client *c, Btc__Verb verb, const char *jid, const char *filter, uint64_t *count, btc_error *err);
btc_status btc_client_drain(btc_client *c, const char *worker, int64_t grace_ms, btc_error *err);

/* The reply's body is the named one; free with btc_wire_free. NOT_FOUND: no such job. */
btc_status btc_client_status(btc_client *c, const char *jid, uint32_t limit, Btc__Envelope **reply,
                             btc_error *err); /* status_reply */
btc_status btc_client_results(btc_client *c, const char *jid, const char *cursor, Btc__Envelope **reply,
                              btc_error *err); /* results_reply */
btc_status btc_client_dead(btc_client *c, const char *jid, uint64_t after, uint32_t limit, Btc__Envelope **reply,
                           btc_error *err);                                          /* dead_reply */
btc_status btc_client_workers(btc_client *c, Btc__Envelope **reply, btc_error *err); /* workers_reply */
btc_status btc_client_pipes(btc_client *c, Btc__Envelope **reply, btc_error *err);   /* pipes_reply */

#endif
