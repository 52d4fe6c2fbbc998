/*
 * Large jobs come into Redis a window at a time: of each at most window_chunks chunks live, the next positions are read by the io
 * thread, and btc_expand is a compare-and-swap on the job's cursor, so that a crash anywhere or a second broker does no harm.
 */
#ifndef BTC_BROKER_EXPAND_H
#define BTC_BROKER_EXPAND_H

#include "broker/core.h"

btc_status btc_expander_create(btc_broker *b, btc_error *err);
void btc_expander_destroy(btc_broker *b);
void btc_expander_tick(btc_broker *b); /* each 100 ms, and when a job was submitted */

#endif
