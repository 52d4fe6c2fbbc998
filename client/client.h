/*
 * client: submit, status, results and control over ZeroMQ, for the command line and for other programs. Synchronous: each call sends, repeats until it is
 * answered (all requests are idempotent) and returns within its deadline. One thread at a time per client.
 */
#ifndef BTC_CLIENT_H
#define BTC_CLIENT_H

#include "base/base.h"

typedef struct btc_client btc_client;

typedef struct btc_client_options {
  const char *brokers;              /* comma-separated endpoints, tried in turn: tcp://127.0.0.1:7411 */
  const char *keys, *server_key;    /* CURVE: our secret key file, the broker's public key file; or both NULL */
  int64_t timeout_ms;               /* of one call, default 10000 */
  const volatile int *cancel;       /* when non-zero, calls return BTC_ERR_CANCELLED soon; may be NULL */
} btc_client_options;
btc_client_options btc_client_options_default(void);

#endif
