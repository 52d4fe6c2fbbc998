/* How a session begins and stays known: Hello, Welcome, and the record wk:<name> that every broker and `workers` read. */
#ifndef BTC_BROKER_HELLO_H
#define BTC_BROKER_HELLO_H

#include "broker/core.h"

void btc_hello_take(btc_broker *b, btc_message *m);
void btc_hello_refresh(btc_broker *b, btc_session *s); /* keeps wk:<name> alive, with fresh vitals */

#endif
