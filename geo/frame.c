/* Frames over a socket pair: see frame.h. */
#define _GNU_SOURCE
#include "geo/frame.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/json.h"

enum { HEAD = 4, TURN_MS = 100 };

static size_t head_length(const uint8_t *head) {
  return (size_t)head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
}

btc_status geo_frame_parse(const uint8_t *data, size_t len, json_t **out, btc_error *err) {
  static const btc_json_limits limits = {GEO_FRAME_MAX, 100000};
  *out = NULL;
  if (!data || len < HEAD) return btc_fail(err, BTC_ERR_FORMAT, "a frame of %zu bytes", len);
  size_t body = head_length(data);
  if (body > GEO_FRAME_MAX) return btc_fail(err, BTC_ERR_LIMIT, "a frame of %zu bytes, more than %zu", body, GEO_FRAME_MAX);
  if (body != len - HEAD) return btc_fail(err, BTC_ERR_FORMAT, "a frame says %zu bytes and has %zu", body, len - HEAD);
  return btc_json_parse((const char *)data + HEAD, body, "geo frame", &limits, out, err);
}

/* Waits until fd is ready for `events`; in turns, so that `stop` is asked. */
static btc_status wait_for(int fd, short events, int64_t deadline_ns, geo_frame_stop stop, void *ctx, btc_error *err) {
  for (;;) {
    if (stop && stop(ctx)) return btc_fail(err, BTC_ERR_CANCELLED, "cancelled");
    int ms = stop ? TURN_MS : -1;
    if (deadline_ns) {
      int64_t left = deadline_ns - btc_now_ns();
      if (left <= 0) return btc_fail(err, BTC_ERR_LIMIT, "no answer in time");
      int64_t left_ms = left / 1000000 + 1;
      if (ms < 0 || left_ms < ms) ms = left_ms > 60000 ? 60000 : (int)left_ms;
    }
    struct pollfd p = {.fd = fd, .events = events};
    int n = poll(&p, 1, ms);
    if (n > 0) return BTC_OK;
    if (n < 0 && errno != EINTR) return btc_fail(err, BTC_ERR_IO, "cannot wait for the helper: %s", strerror(errno));
  }
}

static void attach(struct msghdr *m, char *control, const int *fds, int n) {
  size_t bytes = sizeof(int) * (size_t)n;
  m->msg_control = control;
  m->msg_controllen = CMSG_SPACE(bytes);
  struct cmsghdr *c = CMSG_FIRSTHDR(m);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(bytes);
  memcpy(CMSG_DATA(c), fds, bytes);
}

static btc_status send_all(int fd, const uint8_t *data, size_t len, const int *fds, int n, int64_t deadline_ns, btc_error *err) {
  for (size_t at = 0; at < len;) {
    struct iovec part = {(void *)(data + at), len - at};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * GEO_FRAME_FDS)] = {0};
    if (at == 0 && n > 0) attach(&m, control, fds, n);
    ssize_t sent = sendmsg(fd, &m, MSG_NOSIGNAL);
    if (sent > 0) {
      at += (size_t)sent;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      btc_status st = wait_for(fd, POLLOUT, deadline_ns, NULL, NULL, err);
      if (st != BTC_OK) return st;
    } else if (errno != EINTR) {
      return btc_fail(err, BTC_ERR_IO, "the other end is gone: %s", strerror(errno));
    }
  }
  return BTC_OK;
}

btc_status geo_frame_send(int fd, const json_t *message, const int *fds, int n, int64_t deadline_ns, btc_error *err) {
  if (n > GEO_FRAME_FDS) return btc_fail(err, BTC_ERR_ARG, "%d descriptors for one frame", n);
  size_t len = json_dumpb(message, NULL, 0, JSON_COMPACT);
  if (!len || len > GEO_FRAME_MAX) return btc_fail(err, BTC_ERR_LIMIT, "a frame of %zu bytes, more than %zu", len, GEO_FRAME_MAX);
  uint8_t *data = btc_alloc(HEAD + len, 1);
  if (!data) return btc_fail(err, BTC_ERR_NOMEM, "no memory for a frame of %zu bytes", len);
  for (int i = 0; i < HEAD; i++) data[i] = (uint8_t)(len >> 8 * i);
  json_dumpb(message, (char *)data + HEAD, len, JSON_COMPACT);
  btc_status st = send_all(fd, data, HEAD + len, fds, n, deadline_ns, err);
  free(data);
  return st;
}

void geo_frame_clear(geo_frame *f) {
  if (f->message) json_decref(f->message);
  for (int i = 0; i < f->n_fds; i++) close(f->fds[i]);
  *f = (geo_frame){0};
}

/* Keeps what descriptors came; those over the bound are closed. */
static void detach(struct msghdr *m, geo_frame *out) {
  for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < n; i++) {
      int got;
      memcpy(&got, CMSG_DATA(c) + i * sizeof got, sizeof got);
      if (out->n_fds < GEO_FRAME_FDS)
        out->fds[out->n_fds++] = got;
      else
        close(got);
    }
  }
}

typedef struct source {
  int fd;
  int64_t deadline_ns;
  geo_frame_stop stop;
  void *ctx;
} source;

static btc_status read_all(const source *s, uint8_t *data, size_t len, bool first, geo_frame *out, btc_error *err) {
  for (size_t at = 0; at < len;) {
    btc_status st = wait_for(s->fd, POLLIN, s->deadline_ns, s->stop, s->ctx, err);
    if (st != BTC_OK) return st;
    struct iovec part = {data + at, len - at};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * GEO_FRAME_FDS)] = {0};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(s->fd, &m, MSG_CMSG_CLOEXEC);
    if (got > 0) {
      detach(&m, out);
      at += (size_t)got;
    } else if (got == 0 || errno == ECONNRESET) {
      if (first && at == 0) return btc_fail(err, BTC_ERR_NOT_FOUND, "the other end closed");
      return btc_fail(err, BTC_ERR_FORMAT, "the other end closed inside a frame");
    } else if (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK) {
      return btc_fail(err, BTC_ERR_IO, "cannot read from the helper: %s", strerror(errno));
    }
  }
  return BTC_OK;
}

btc_status geo_frame_receive(int fd, int64_t deadline_ns, geo_frame_stop stop, void *ctx, geo_frame *out, btc_error *err) {
  const source s = {fd, deadline_ns, stop, ctx};
  uint8_t head[HEAD], *data = NULL;
  *out = (geo_frame){0};
  btc_status st = read_all(&s, head, HEAD, true, out, err);
  size_t len = st == BTC_OK ? head_length(head) : 0;
  if (st == BTC_OK && len > GEO_FRAME_MAX)
    st = btc_fail(err, BTC_ERR_LIMIT, "a frame of %zu bytes, more than %zu", len, GEO_FRAME_MAX);
  if (st == BTC_OK && !(data = btc_alloc(HEAD + len, 1)))
    st = btc_fail(err, BTC_ERR_NOMEM, "no memory for a frame of %zu bytes", len);
  if (st == BTC_OK && data) {
    memcpy(data, head, HEAD);
    st = read_all(&s, data + HEAD, len, false, out, err);
  }
  if (st == BTC_OK) st = geo_frame_parse(data, HEAD + len, &out->message, err);
  free(data);
  if (st != BTC_OK) geo_frame_clear(out);
  return st;
}
