/*
 * Messages of clients: each is answered by one Reply (or its own kind of reply) that names it, and is idempotent, since clients
 * repeat what was not answered.
 */
#ifndef BTC_BROKER_REQUEST_H
#define BTC_BROKER_REQUEST_H

#include "broker/core.h"

void btc_request_message(btc_broker *b, btc_message *m); /* one from the clients' socket; may take its envelope */

/* ---- one request on its way, shared by request.c and report.c ---- */
typedef struct btc_request {
  btc_broker *b;
  btc_peer_id peer;
  uint64_t req_id;
  char key[41];                       /* of who asks */
  char jid[BTC_JID], text[BTC_CLASS]; /* text: filter, worker */
  void (*go)(struct btc_request *q, bool seen);
  uint64_t count, after;
  uint32_t limit;
  Btc__Verb verb;
  /* what a list is gathered into */
  size_t n, left;
  Btc__StatusReply *status;
  Btc__WorkersReply *workers;
  bool finished; /* results: of the job */
  uint64_t epoch;
  char cursor[128];
  btc_call *call; /* for the journal, or NULL */
} btc_request;

btc_request *btc_request_new(btc_broker *b, const btc_message *m);
void btc_request_free(btc_request *q);
/* A key with tenants= knows only jobs of these: others are, to it, not there. */
bool btc_request_is_limited(const btc_request *q);
bool btc_request_sees(const btc_request *q, const char *tenant);
/* Goes on with q when it is known whether its job may be seen, at once for a key without limits. */
void btc_request_gate(btc_request *q, void (*go)(btc_request *q, bool seen));
void btc_request_reply(btc_request *q, bool ok, const char *jid, const char *message); /* and frees it */
void btc_request_later(btc_request *q, const char *why, uint32_t retry_ms);            /* Nack BUSY, and frees it */
void btc_request_send(btc_request *q, Btc__Envelope *e);                               /* and frees it */

/* ---- report.c: what is only read ---- */
void btc_report_status(btc_broker *b, const btc_message *m);
void btc_report_results(btc_broker *b, const btc_message *m);
void btc_report_dead(btc_broker *b, const btc_message *m);
void btc_report_workers(btc_broker *b, const btc_message *m);

#endif
