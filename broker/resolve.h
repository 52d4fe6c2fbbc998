/*
 * A host name's addresses, looked up beside the loop: hiredis itself would call getaddrinfo on it, and a name server that does not
 * answer would stop the broker for seconds. glibc's getaddrinfo_a does the waiting in a thread of its own.
 */
#ifndef BTC_BROKER_RESOLVE_H
#define BTC_BROKER_RESOLVE_H

#include <stdbool.h>
#include <stddef.h>

typedef struct btc_resolve btc_resolve;
typedef enum btc_resolve_state { BTC_RESOLVE_WAITS, BTC_RESOLVE_FOUND, BTC_RESOLVE_FAILED } btc_resolve_state;

bool btc_resolve_is_address(const char *host); /* IPv4 or IPv6 in numbers: nothing to look up */
/* NULL: out of memory. */
btc_resolve *btc_resolve_start(const char *host);
/* FOUND: address has the number `turn` (modulo their count; IPv4 first) of the addresses. FAILED: why has the reason. */
btc_resolve_state btc_resolve_look(btc_resolve *r, unsigned turn, char address[64], char *why, size_t size);
/* One that cannot be stopped any more is left to its thread; it frees nothing of ours. */
void btc_resolve_destroy(btc_resolve **r);

#endif
