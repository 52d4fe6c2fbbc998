/* Health and metrics over HTTP: see http.h. */
#define _GNU_SOURCE
#include "broker/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CONNECTIONS 64
#define CONNECTIONS_OF_ONE_ADDRESS 8
#define TIMEOUT_S 10
#define CONNECTION_BYTES 16384

struct btc_http {
  struct MHD_Daemon *daemon;
  btc_metrics *metrics;
  char address[80];
};

/* ---- answers ---- */

static enum MHD_Result answer(struct MHD_Connection *c, unsigned status, const char *type, char *text,
                              enum MHD_ResponseMemoryMode mode) {
  struct MHD_Response *r = MHD_create_response_from_buffer(strlen(text), text, mode);
  if (!r) {
    if (mode == MHD_RESPMEM_MUST_FREE) free(text);
    return MHD_NO;
  }
  MHD_add_response_header(r, "Content-Type", type);
  MHD_add_response_header(r, "Cache-Control", "no-store");
  enum MHD_Result sent = MHD_queue_response(c, status, r);
  MHD_destroy_response(r);
  return sent;
}

static enum MHD_Result say(struct MHD_Connection *c, unsigned status, const char *text) {
  return answer(c, status, "text/plain; charset=utf-8", (char *)text, MHD_RESPMEM_MUST_COPY);
}

static enum MHD_Result handle(void *ctx, struct MHD_Connection *c, const char *url, const char *method, const char *version,
                              const char *data, size_t *data_size, void **state) {
  (void)version;
  (void)data;
  btc_http *h = ctx;
  static int seen;
  if (!*state) { /* first call: headers only; saying no to a body here closes the connection */
    *state = &seen;
    return MHD_YES;
  }
  if (*data_size) { /* nobody sends us anything */
    *data_size = 0;
    return MHD_YES;
  }
  if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0) return say(c, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET\n");
  if (strcmp(url, "/healthz") == 0) {
    bool alive = btc_metrics_alive(h->metrics);
    return say(c, alive ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE, alive ? "ok\n" : "the broker's loop does not turn\n");
  }
  if (strcmp(url, "/readyz") == 0) {
    char why[256], line[300];
    bool ready = btc_metrics_ready(h->metrics, why, sizeof why);
    snprintf(line, sizeof line, "%s\n", ready ? "ok" : why);
    return say(c, ready ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE, line);
  }
  if (strcmp(url, "/metrics") == 0) {
    char *text = btc_metrics_render(h->metrics);
    if (!text) return say(c, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory\n");
    return answer(c, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", text, MHD_RESPMEM_MUST_FREE);
  }
  return say(c, MHD_HTTP_NOT_FOUND, "/healthz /readyz /metrics\n");
}

/* ---- listening ---- */

/* HOST:PORT into a socket address; no names are looked up. */
static btc_status parse_address(const char *text, struct sockaddr_storage *out, socklen_t *len, btc_error *err) {
  char host[64];
  const char *colon = strrchr(text, ':');
  size_t n = colon ? (size_t)(colon - text) : 0;
  if (!colon || n >= sizeof host) return btc_fail(err, BTC_ERR_ARG, "'%s' is not HOST:PORT", text);
  memcpy(host, text, n);
  host[n] = 0;
  char *end;
  unsigned long port = strcmp(colon + 1, "*") == 0 ? 0 : strtoul(colon + 1, &end, 10);
  if (strcmp(colon + 1, "*") != 0 && (!colon[1] || strspn(colon + 1, "0123456789") != strlen(colon + 1) || port > 65535))
    return btc_fail(err, BTC_ERR_ARG, "'%s': the port must be 0 to 65535 or *", text);
  memset(out, 0, sizeof *out);
  struct sockaddr_in *v4 = (struct sockaddr_in *)out;
  struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
  if (host[0] == '[' && n > 2 && host[n - 1] == ']') {
    host[n - 1] = 0;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons((uint16_t)port);
    *len = sizeof *v6;
    if (inet_pton(AF_INET6, host + 1, &v6->sin6_addr) == 1) return BTC_OK;
  } else {
    v4->sin_family = AF_INET;
    v4->sin_port = htons((uint16_t)port);
    *len = sizeof *v4;
    if (inet_pton(AF_INET, strcmp(host, "localhost") == 0 ? "127.0.0.1" : host, &v4->sin_addr) == 1) return BTC_OK;
  }
  return btc_fail(err, BTC_ERR_ARG, "'%s': the host must be an address in numbers or localhost", text);
}

/* Our own socket, so that "in use" and "not permitted" can be told apart. */
static int listen_on(const struct sockaddr_storage *a, socklen_t len) {
  int fd = socket(a->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;
  if (fd < 0) return -1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, (const struct sockaddr *)a, len) == 0 && listen(fd, 32) == 0) return fd;
  int why = errno;
  close(fd);
  errno = why;
  return -1;
}

static void print_address(int fd, char *out, size_t size) {
  struct sockaddr_storage a = {0};
  socklen_t len = sizeof a;
  char host[INET6_ADDRSTRLEN] = "?";
  getsockname(fd, (struct sockaddr *)&a, &len);
  struct sockaddr_in v4 = {0};
  struct sockaddr_in6 v6 = {0};
  memcpy(&v4, &a, sizeof v4);
  memcpy(&v6, &a, sizeof v6);
  if (a.ss_family == AF_INET6) {
    inet_ntop(AF_INET6, &v6.sin6_addr, host, sizeof host);
    snprintf(out, size, "[%s]:%u", host, ntohs(v6.sin6_port));
  } else {
    inet_ntop(AF_INET, &v4.sin_addr, host, sizeof host);
    snprintf(out, size, "%s:%u", host, ntohs(v4.sin_port));
  }
}

btc_status btc_http_start(const char *address, btc_metrics *metrics, btc_http **out, btc_error *err) {
  struct sockaddr_storage a = {0};
  socklen_t len = 0;
  *out = NULL;
  btc_status st = parse_address(address, &a, &len, err);
  if (st != BTC_OK) return st;
  btc_http *h = btc_alloc_zero(1, sizeof *h);
  if (!h) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  int fd = listen_on(&a, len);
  if (fd < 0) {
    st = btc_fail(err, BTC_ERR_IO, "cannot listen on '%s': %s", address, strerror(errno));
    free(h);
    return st;
  }
  h->metrics = metrics;
  print_address(fd, h->address, sizeof h->address);
  h->daemon = MHD_start_daemon(MHD_USE_POLL_INTERNAL_THREAD | MHD_USE_ITC, 0, NULL, NULL, handle, h, MHD_OPTION_LISTEN_SOCKET, fd,
                               MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS, MHD_OPTION_PER_IP_CONNECTION_LIMIT,
                               (unsigned)CONNECTIONS_OF_ONE_ADDRESS, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)TIMEOUT_S,
                               MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_BYTES, MHD_OPTION_END);
  if (!h->daemon) {
    close(fd);
    free(h);
    return btc_fail(err, BTC_ERR_IO, "cannot serve '%s'", address);
  }
  *out = h;
  return BTC_OK;
}

const char *btc_http_address(const btc_http *h) {
  return h->address;
}

void btc_http_stop(btc_http **http) {
  btc_http *h = *http;
  *http = NULL;
  if (!h) return;
  MHD_stop_daemon(h->daemon);
  free(h);
}
