/* Looking a name up: see resolve.h. */
#define _GNU_SOURCE
#include "broker/resolve.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

struct btc_resolve {
  struct gaicb ask; /* its host lies behind this struct */
  struct addrinfo hints;
  char host[];
};

bool btc_resolve_is_address(const char *host) {
  uint8_t raw[16];
  return inet_pton(AF_INET, host, raw) == 1 || inet_pton(AF_INET6, host, raw) == 1;
}

btc_resolve *btc_resolve_start(const char *host) {
  size_t len = strlen(host) + 1;
  btc_resolve *r = btc_alloc_zero(1, sizeof *r + len);
  if (!r) return NULL;
  memcpy(r->host, host, len);
  r->hints = (struct addrinfo){.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
  r->ask.ar_name = r->host;
  r->ask.ar_request = &r->hints;
  struct gaicb *list[] = {&r->ask};
  struct sigevent none = {.sigev_notify = SIGEV_NONE};
  if (getaddrinfo_a(GAI_NOWAIT, list, 1, &none) == 0) return r;
  free(r);
  return NULL;
}

static const struct addrinfo *pick(const struct addrinfo *all, unsigned turn) {
  unsigned n = 0;
  for (const struct addrinfo *a = all; a; a = a->ai_next) n += a->ai_family == AF_INET || a->ai_family == AF_INET6;
  turn = n ? turn % n : 0;
  for (int family = AF_INET;; family = AF_INET6) {
    for (const struct addrinfo *a = all; a; a = a->ai_next)
      if (a->ai_family == family && turn-- == 0) return a;
    if (family == AF_INET6) return NULL;
  }
}

btc_resolve_state btc_resolve_look(btc_resolve *r, unsigned turn, char address[64], char *why, size_t size) {
  int code = gai_error(&r->ask);
  if (code == EAI_INPROGRESS) return BTC_RESOLVE_WAITS;
  const struct addrinfo *a = code == 0 ? pick(r->ask.ar_result, turn) : NULL;
  if (a && getnameinfo(a->ai_addr, a->ai_addrlen, address, 64, NULL, 0, NI_NUMERICHOST) == 0) return BTC_RESOLVE_FOUND;
  snprintf(why, size, "cannot find the host '%.128s': %s", r->host, code ? gai_strerror(code) : "no usable address");
  return BTC_RESOLVE_FAILED;
}

void btc_resolve_destroy(btc_resolve **resolve) {
  btc_resolve *r = *resolve;
  *resolve = NULL;
  if (!r || (gai_error(&r->ask) == EAI_INPROGRESS && gai_cancel(&r->ask) == EAI_NOTCANCELED)) return;
  if (r->ask.ar_result) freeaddrinfo(r->ask.ar_result);
  free(r);
}
