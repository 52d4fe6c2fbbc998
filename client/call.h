/* One request and its answer: what the typed calls of client.h stand on. Private to the folder. */
#ifndef BTC_CLIENT_CALL_H
#define BTC_CLIENT_CALL_H

#include "client.h"

/* Sends e (req_id is set here) until it is answered by a message with body `want`; *reply is freed with btc_wire_free. A Reply that
 * says no becomes an error with its words; one that says "later" is waited out. extra_ms is added to the deadline. */
btc_status btc_client_call(btc_client *c, Btc__Envelope *e, Btc__Envelope__BodyCase want, int64_t extra_ms, Btc__Envelope **reply,
                           btc_error *err);

#endif
