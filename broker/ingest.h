/*
 * Submissions of programs that only know Redis: entries of `in`, read by consumer group on a connection of its own (the read
 * blocks). Single items go in by up to 64 of equal tenant, priority and class as one job; an entry leaves `in` in the call that
 * makes its job, so that a crash anywhere reads it again and nothing is taken twice.
 */
#ifndef BTC_BROKER_INGEST_H
#define BTC_BROKER_INGEST_H

#include "broker/core.h"

btc_status btc_ingest_create(btc_broker *b, btc_error *err);
void btc_ingest_destroy(btc_broker *b);
void btc_ingest_poke(btc_broker *b);  /* reads on, when it may: after a connection, each 100 ms */
void btc_ingest_claim(btc_broker *b); /* each 10 s: entries that a dead broker left */

#endif
