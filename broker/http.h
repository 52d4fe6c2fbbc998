/*
 * /healthz, /readyz and /metrics, by a thread of libmicrohttpd. Read only; 64 connections at once, 8 of one address, 10 s each;
 * other paths and methods are refused.
 */
#ifndef BTC_BROKER_HTTP_H
#define BTC_BROKER_HTTP_H

#include "broker/metrics.h"

typedef struct btc_http btc_http;

/* address: HOST:PORT, [::1]:PORT; port 0 or * takes a free one. HOST is a number or localhost. The caller says in its options that
 * an address other than loopback is meant: it is served as asked for, without a password. ARG, IO (in use). */
btc_status btc_http_start(const char *address, btc_metrics *metrics, btc_http **out, btc_error *err);
/* HOST:PORT it listens on. */
const char *btc_http_address(const btc_http *h);
void btc_http_stop(btc_http **h);

#endif
