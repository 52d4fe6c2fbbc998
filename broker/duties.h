/*
 * What some broker has to do at certain times: delayed chunks, expired leases, retention, totals. All are idempotent calls, so that
 * several brokers doing them at once only cost a little.
 */
#ifndef BTC_BROKER_DUTIES_H
#define BTC_BROKER_DUTIES_H

#include "broker/core.h"

void btc_duties_up(btc_broker *b);   /* a connection to Redis: leases first */
void btc_duties_tick(btc_broker *b); /* each 50 ms */

#endif
