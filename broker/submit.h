/*
 * Taking a job in, whichever way it came: checks the message, has the io thread check manifest and paths, calls btc_submit.
 */
#ifndef BTC_BROKER_SUBMIT_H
#define BTC_BROKER_SUBMIT_H

#include "broker/core.h"

typedef enum btc_submit_end {
  BTC_SUBMIT_DONE,    /* jid, existed */
  BTC_SUBMIT_REFUSED, /* message says why; sending it again changes nothing */
  BTC_SUBMIT_LATER    /* over a limit, or Redis is away: again after retry_ms */
} btc_submit_end;

typedef struct btc_submit_outcome {
  btc_submit_end end;
  const char *jid, *message;
  bool existed;
  uint32_t retry_ms;
} btc_submit_outcome;
typedef void (*btc_submit_done)(void *ctx, const btc_submit_outcome *o);

/* Takes ownership of the envelope, whose body is a Submit. route: when the message names none. entry: its id in `in`, or "". done
 * comes exactly once, perhaps from inside the call. */
void btc_submit_begin(btc_broker *b, Btc__Envelope *e, const char *route, const char *entry, btc_submit_done done, void *ctx);

/* An item text in normal form, malloc'ed (NULL: no memory), out of what somebody sent as one: a text that is no item becomes
 * {"id","problem"}. fallback_id: of a text without one. */
char *btc_item_normal(btc_manifest **parser, const char *text, size_t len, const char *fallback_id);
/* {"id","problem"} */
char *btc_item_problem(const char *id, const char *problem);
void btc_new_jid(btc_broker *b, char jid[BTC_JID]);

#endif
