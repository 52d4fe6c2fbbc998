/*
 * Handing out work: claims only against a worker's credits, one claim in flight a session; item texts; the Grant, kept until
 * acknowledged.
 */
#ifndef BTC_BROKER_GRANT_H
#define BTC_BROKER_GRANT_H

#include "broker/core.h"

void btc_grant_poke(btc_broker *b, btc_session *s); /* it may want work: claim now */
/* There are new items of a class ("" any): as many idle sessions as it takes look for them. */
void btc_grant_wake(btc_broker *b, const char *model_class, uint64_t items);
void btc_grant_poke_all(btc_broker *b); /* there may be work of any kind: a worker died, a job was resumed */
void btc_grant_tick(btc_broker *b);     /* each 50 ms: one idle session of every class looks */

#endif
