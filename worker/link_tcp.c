/*
 * The TCP link. Head of a frame, 48 bytes, little-endian:
 *   0 magic "BTCF"  4 version u16  6 kind u16  8 epoch u64  16 step u64  24 body bytes u64  32 sender's rank u32
 *   36 CRC-32C of the body u32  40 bytes of its tensor that the carrier brings u32  44 CRC-32C of the 44 bytes before u32
 * The head has a checksum of its own, so that a damaged length is never waited for.
 * Hello: client HELLO (magic "BTCH", version, epoch, from, to, ranks, nonce), server nonce + MAC, client MAC. The server proves
 * itself first: a client never answers a stranger.
 */
#define _GNU_SOURCE
#include "link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { VERSION = 2 /* of these bytes and of the steps in them (shard_step.h) */, HEAD = 48, HELLO = 64, NONCE = 32, MAC = 32 };
enum {
  SLICE_MS = 20,
  ASK_US = 2000,
  NAP_US = 50,
  LAST_MS = 100 /* for the last of a tensor after the other end closed the link */
};
static const uint32_t FRAME_MAGIC = 0x46435442, HELLO_MAGIC = 0x48435442; /* "BTCF", "BTCH" */

struct btc_link {
  int fd;
  btc_link_id id;
  btc_link_limits limits;
  bool sender;
  uint64_t dropped;
  /* in */
  uint8_t head[HEAD];
  size_t head_n, body_n, body_bytes, body_room;
  uint8_t *body;
  int64_t began_ns; /* 0: no frame has begun */
  /* out */
  uint8_t *out;
  size_t out_start, out_end, out_room;
  int64_t moved_ns; /* when the queue was last seen to move or to begin */
  btc_link_carrier carrier;
  int64_t begun_ns;  /* when the carrier began to send; 0: nothing is on its way */
  int64_t closed_ns; /* when the other end was seen to have closed the link while a carrier worked */
  uint32_t owed;     /* bytes that the carrier brings before the next frame */
};

/* ---- bytes ---- */

static void put(uint8_t *p, uint64_t v, int n) {
  for (int i = 0; i < n; i++) p[i] = (uint8_t)(v >> 8 * i);
}

static uint64_t get(const uint8_t *p, int n) {
  uint64_t v = 0;
  for (int i = 0; i < n; i++) v |= (uint64_t)p[i] << 8 * i;
  return v;
}

/* ---- waiting ---- */

/* Until fd is ready for events. */
static btc_status wait_for(int fd, short events, const btc_link_wait *w, const char *what, btc_error *err) {
  for (;;) {
    struct pollfd p = {.fd = fd, .events = events};
    int64_t left = w->deadline_ns ? w->deadline_ns - btc_now_ns() : (int64_t)SLICE_MS * 1000000;
    if (left <= 0) return btc_fail(err, BTC_ERR_IO, "%s: too late", what);
    int ms = left > (int64_t)SLICE_MS * 1000000 ? SLICE_MS : (int)(left / 1000000) + 1;
    int n = poll(&p, 1, ms);
    if (n > 0) return BTC_OK; /* errors and ends show in the call that follows */
    if (n < 0 && errno != EINTR) return btc_fail(err, BTC_ERR_IO, "%s: %s", what, strerror(errno));
    if (w->stop && w->stop(w->ctx)) return btc_fail(err, BTC_ERR_CANCELLED, "%s: stopped", what);
  }
}

/* The same within a loop that ends when all has moved: a peer that moves a little all the time keeps nobody from hearing a stop.
   asked_ns: 0 before the loop. */
static btc_status wait_on(int fd, short events, const btc_link_wait *w, int64_t *asked_ns, const char *what, btc_error *err) {
  btc_status st = wait_for(fd, events, w, what, err);
  int64_t now = btc_now_ns();
  if (!*asked_ns) *asked_ns = now;
  if (st != BTC_OK || now - *asked_ns < (int64_t)SLICE_MS * 1000000) return st;
  *asked_ns = now;
  return w->stop && w->stop(w->ctx) ? btc_fail(err, BTC_ERR_CANCELLED, "%s: stopped", what) : BTC_OK;
}

static btc_status read_all(int fd, void *data, size_t n, const btc_link_wait *w, const char *what, btc_error *err) {
  int64_t asked_ns = 0;
  for (size_t at = 0; at < n;) {
    ssize_t k = recv(fd, (uint8_t *)data + at, n - at, 0);
    if (k > 0) {
      at += (size_t)k;
      continue;
    }
    if (k == 0) return btc_fail(err, BTC_ERR_IO, "%s: the peer closed the connection", what);
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return btc_fail(err, BTC_ERR_IO, "%s: %s", what, strerror(errno));
    btc_status st = wait_on(fd, POLLIN, w, &asked_ns, what, err);
    if (st != BTC_OK) return st;
  }
  return BTC_OK;
}

/* A hello's messages always fit an empty socket buffer. */
static btc_status write_all(int fd, const void *data, size_t n, const char *what, btc_error *err) {
  ssize_t k = send(fd, data, n, MSG_NOSIGNAL);
  if (k == (ssize_t)n) return BTC_OK;
  return btc_fail(err, BTC_ERR_IO, "%s: %s", what, k < 0 ? strerror(errno) : "short write");
}

/* ---- hello ---- */

static void hello_bytes(const btc_link_id *id, const uint8_t nonce[NONCE], uint8_t out[HELLO]) {
  memset(out, 0, HELLO);
  put(out, HELLO_MAGIC, 4);
  put(out + 4, VERSION, 2);
  put(out + 8, id->epoch, 8);
  put(out + 16, id->from, 4);
  put(out + 20, id->to, 4);
  put(out + 24, id->ranks, 4);
  memcpy(out + 32, nonce, NONCE);
}

static void prove(const btc_link_id *id, const char *who, const uint8_t hello[HELLO], const uint8_t nonce[NONCE],
                  uint8_t mac[MAC]) {
  const btc_link_part parts[] = {{who, strlen(who)}, {hello, HELLO}, {nonce, NONCE}};
  btc_link_hmac(id->secret, parts, 3, mac);
}

/* In constant time. */
static bool same(const uint8_t *a, const uint8_t *b, size_t n) {
  uint8_t d = 0;
  for (size_t i = 0; i < n; i++) d |= a[i] ^ b[i];
  return d == 0;
}

static btc_status fresh_nonce(uint8_t nonce[NONCE], btc_error *err) {
  return getrandom(nonce, NONCE, 0) == NONCE ? BTC_OK : btc_fail(err, BTC_ERR_IO, "no random bytes: %s", strerror(errno));
}

static btc_status hello_client(int fd, const btc_link_id *id, const btc_link_wait *w, btc_error *err) {
  uint8_t nonce[NONCE], hello[HELLO], answer[NONCE + MAC], mac[MAC];
  btc_status st = fresh_nonce(nonce, err);
  if (st != BTC_OK) return st;
  hello_bytes(id, nonce, hello);
  st = write_all(fd, hello, HELLO, "hello", err);
  if (st == BTC_OK) st = read_all(fd, answer, sizeof answer, w, "hello", err);
  if (st != BTC_OK) return st;
  prove(id, "btc link server", hello, answer, mac);
  if (!same(mac, answer + NONCE, MAC))
    return btc_fail(err, BTC_ERR_FORMAT, "hello: the peer does not know the secret of epoch %llu", (unsigned long long)id->epoch);
  prove(id, "btc link client", hello, answer, mac);
  return write_all(fd, mac, MAC, "hello", err);
}

static btc_status hello_server(int fd, const btc_link_id *id, const btc_link_wait *w, btc_error *err) {
  uint8_t hello[HELLO], want[HELLO], answer[NONCE + MAC], mac[MAC], got[MAC];
  btc_status st = read_all(fd, hello, HELLO, w, "hello", err);
  if (st != BTC_OK) return st;
  hello_bytes(id, hello + 32, want);
  if (memcmp(hello, want, 4) != 0) return btc_fail(err, BTC_ERR_FORMAT, "hello: not a link");
  if (memcmp(hello + 4, want + 4, 4) != 0)
    return btc_fail(err, BTC_ERR_FORMAT, "hello: links of version %u, but ours are of version %d: another version of btcchat",
                    (unsigned)get(hello + 4, 2), VERSION);
  if (get(hello + 8, 8) != id->epoch)
    return btc_fail(err, BTC_ERR_FORMAT, "hello: epoch %llu, but this is %llu", (unsigned long long)get(hello + 8, 8),
                    (unsigned long long)id->epoch);
  if (memcmp(hello, want, HELLO) != 0) return btc_fail(err, BTC_ERR_FORMAT, "hello: from the wrong rank");
  if ((st = fresh_nonce(answer, err)) != BTC_OK) return st;
  prove(id, "btc link server", hello, answer, answer + NONCE);
  st = write_all(fd, answer, sizeof answer, "hello", err);
  if (st == BTC_OK) st = read_all(fd, got, MAC, w, "hello", err);
  if (st != BTC_OK) return st;
  prove(id, "btc link client", hello, answer, mac);
  return same(mac, got, MAC) ? BTC_OK
                             : btc_fail(err, BTC_ERR_FORMAT, "hello: the peer does not know the secret of epoch %llu",
                                        (unsigned long long)id->epoch);
}

/* ---- forming ---- */

static btc_status address_of(const char *host, int port, struct sockaddr_in *a, btc_error *err) {
  *a = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  return inet_pton(AF_INET, host, &a->sin_addr) == 1 ? BTC_OK : btc_fail(err, BTC_ERR_ARG, "'%s' is not a numeric address", host);
}

btc_status btc_link_listen(const char *host, int *out, int *port, btc_error *err) {
  return btc_link_listen_at(host, 0, out, port, err);
}

btc_status btc_link_listen_at(const char *host, int wanted, int *out, int *port, btc_error *err) {
  struct sockaddr_in a;
  socklen_t n = sizeof a;
  int one = 1;
  *out = -1;
  btc_status st = address_of(host, wanted, &a, err);
  if (st != BTC_OK) return st;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd >= 0 && wanted) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one); /* a worker that is started again */
  if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 16) != 0 ||
      getsockname(fd, (struct sockaddr *)&a, &n) != 0) {
    st = btc_fail(err, BTC_ERR_IO, "cannot listen on %s:%d: %s", host, wanted, strerror(errno));
    if (fd >= 0) close(fd);
    return st;
  }
  *out = fd;
  *port = ntohs(a.sin_port);
  return BTC_OK;
}

static btc_status link_create(int fd, const btc_link_id *id, const btc_link_limits *l, bool sender, btc_link **out,
                              btc_error *err) {
  int one = 1;
  btc_link *k = btc_alloc_zero(1, sizeof *k);
  if (!k) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a link");
  *k = (btc_link){.fd = fd, .id = *id, .limits = *l, .sender = sender};
  if (k->limits.max_bytes > BTC_LINK_MAX_BYTES) k->limits.max_bytes = BTC_LINK_MAX_BYTES;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* a decode step is one small frame that somebody waits for */
  /* a machine that is gone without a word is noticed while nothing is sent, too; a peer that computes for minutes still answers */
  const int idle_s = 5, each_s = 2, times = 4;
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &each_s, sizeof each_s);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &times, sizeof times);
  *out = k;
  return BTC_OK;
}

/* The wait of one hello: the caller's, but no longer than hello_ms. */
static btc_link_wait hello_wait(const btc_link_wait *w, const btc_link_limits *l) {
  btc_link_wait h = *w;
  int64_t end = btc_now_ns() + (int64_t)l->hello_ms * 1000000;
  if (!h.deadline_ns || end < h.deadline_ns) h.deadline_ns = end;
  return h;
}

btc_status btc_link_accept(int listen_fd, const btc_link_id *id, const btc_link_limits *l, const btc_link_wait *w, btc_link **out,
                           btc_error *err) {
  btc_error refused = {0}, own;
  if (!err) err = &own;
  *out = NULL;
  for (;;) {
    btc_status st = wait_for(listen_fd, POLLIN, w, "waiting for the previous rank", err);
    if (st != BTC_OK && refused.message[0]) return btc_fail_prefix(err, "%s", refused.message);
    if (st != BTC_OK) return st;
    int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) continue; /* it has gone again; the deadline bounds the rest */
    btc_link_wait h = hello_wait(w, l);
    st = hello_server(fd, id, &h, &refused);
    if (st == BTC_OK) st = link_create(fd, id, l, false, out, err);
    if (st == BTC_OK) return BTC_OK;
    close(fd);
    /* Who is refused may knock again at once and for ever (a rank of the next epoch does, until we hear of that): ask here too. */
    if (st == BTC_ERR_CANCELLED || (w->stop && w->stop(w->ctx)))
      return btc_fail(err, BTC_ERR_CANCELLED, "waiting for the previous rank: stopped");
    if (st == BTC_ERR_NOMEM) return st;
  }
}

btc_status btc_link_connect(const char *host, int port, const btc_link_id *id, const btc_link_limits *l, const btc_link_wait *w,
                            btc_link **out, btc_error *err) {
  struct sockaddr_in a;
  int why = 0;
  socklen_t n = sizeof why;
  *out = NULL;
  btc_status st = address_of(host, port, &a, err);
  if (st != BTC_OK) return st;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return btc_fail(err, BTC_ERR_IO, "cannot make a socket: %s", strerror(errno));
  if (connect(fd, (struct sockaddr *)&a, sizeof a) != 0 && errno != EINPROGRESS) why = errno;
  if (!why) st = wait_for(fd, POLLOUT, w, "connecting to the next rank", err);
  if (st == BTC_OK && !why) getsockopt(fd, SOL_SOCKET, SO_ERROR, &why, &n);
  if (st == BTC_OK && why) st = btc_fail(err, BTC_ERR_IO, "cannot connect to %s:%d: %s", host, port, strerror(why));
  if (st == BTC_OK) st = hello_client(fd, id, w, err); /* it may wait for the peer's turn: as long as the caller allows */
  if (st == BTC_OK) st = link_create(fd, id, l, true, out, err);
  if (st != BTC_OK) close(fd);
  return st;
}

void btc_link_close(btc_link **lp) {
  btc_link *l = *lp;
  if (!l) return;
  close(l->fd);
  free(l->body);
  free(l->out);
  free(l);
  *lp = NULL;
}

int btc_link_fd(const btc_link *l) {
  return l->fd;
}

uint64_t btc_link_dropped(const btc_link *l) {
  return l->dropped;
}

/* ---- out ---- */

static btc_status reserve_out(btc_link *l, size_t n, btc_error *err) {
  if (l->out_start == l->out_end) l->out_start = l->out_end = 0;
  if (l->out_room - l->out_end >= n) return BTC_OK;
  if (l->out_start) {
    memmove(l->out, l->out + l->out_start, l->out_end - l->out_start);
    l->out_end -= l->out_start;
    l->out_start = 0;
  }
  if (l->out_room - l->out_end >= n) return BTC_OK;
  if (l->out_end + n > 4 * (l->limits.max_bytes + HEAD)) return btc_fail(err, BTC_ERR_LIMIT, "too much is queued on a link");
  uint8_t *grown = btc_realloc(l->out, l->out_end + n, 1);
  if (!grown) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a frame of %zu bytes", n);
  l->out = grown;
  l->out_room = l->out_end + n;
  return BTC_OK;
}

static btc_status queue_frame(btc_link *l, const btc_link_head *h, uint32_t carried, const btc_link_part *parts, int n,
                              btc_error *err) {
  uint64_t bytes = 0;
  for (int i = 0; i < n; i++) bytes += parts[i].bytes;
  if (bytes > l->limits.max_bytes)
    return btc_fail(err, BTC_ERR_LIMIT, "a frame of %llu bytes is larger than the link's %zu", (unsigned long long)bytes,
                    l->limits.max_bytes);
  btc_status st = reserve_out(l, HEAD + (size_t)bytes, err);
  if (st != BTC_OK) return st;
  if (l->out_start == l->out_end) l->moved_ns = btc_now_ns();
  uint8_t *head = l->out + l->out_end, *w = head + HEAD;
  for (int i = 0; i < n; i++) {
    if (parts[i].bytes) memcpy(w, parts[i].data, parts[i].bytes);
    w += parts[i].bytes;
  }
  memset(head, 0, HEAD);
  put(head, FRAME_MAGIC, 4);
  put(head + 4, VERSION, 2);
  put(head + 6, h->kind, 2);
  put(head + 8, l->id.epoch, 8);
  put(head + 16, h->step, 8);
  put(head + 24, bytes, 8);
  put(head + 32, l->id.from, 4);
  put(head + 36, btc_link_crc32c(0, head + HEAD, (size_t)bytes), 4);
  put(head + 40, carried, 4);
  put(head + 44, btc_link_crc32c(0, head, 44), 4);
  l->out_end += HEAD + (size_t)bytes;
  return BTC_OK;
}

btc_status btc_link_queue(btc_link *l, const btc_link_head *h, const btc_link_part *parts, int n, btc_error *err) {
  return queue_frame(l, h, 0, parts, n, err);
}

bool btc_link_flushed(const btc_link *l) {
  return l->out_start == l->out_end;
}

btc_status btc_link_flush(btc_link *l, btc_error *err) {
  while (l->out_start < l->out_end) {
    ssize_t n = send(l->fd, l->out + l->out_start, l->out_end - l->out_start, MSG_NOSIGNAL);
    if (n >= 0) {
      l->out_start += (size_t)n;
      l->moved_ns = btc_now_ns();
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK)
      return btc_fail(err, BTC_ERR_IO, "rank %u cannot be reached: %s", l->id.to, strerror(errno));
    if (btc_now_ns() - l->moved_ns > (int64_t)l->limits.frame_ms * 1000000)
      return btc_fail(err, BTC_ERR_IO, "rank %u took nothing for %d ms", l->id.to, l->limits.frame_ms);
    return BTC_OK;
  }
  return BTC_OK;
}

btc_status btc_link_drain(btc_link *l, const btc_link_wait *w, btc_error *err) {
  btc_status st = BTC_OK;
  int64_t asked_ns = 0;
  while (st == BTC_OK) {
    st = btc_link_flush(l, err);
    if (st != BTC_OK || btc_link_flushed(l)) return st;
    btc_link_wait turn = *w;
    int64_t end = l->moved_ns + (int64_t)l->limits.frame_ms * 1000000;
    if (!turn.deadline_ns || end < turn.deadline_ns) turn.deadline_ns = end;
    st = wait_on(l->fd, POLLOUT, &turn, &asked_ns, "sending a frame", err);
  }
  return st;
}

btc_status btc_link_send(btc_link *l, const btc_link_head *h, const btc_link_part *parts, int n, const btc_link_wait *w,
                         btc_error *err) {
  btc_status st = btc_link_queue(l, h, parts, n, err);
  return st == BTC_OK ? btc_link_drain(l, w, err) : st;
}

/* ---- in ---- */

/* The head is whole: is it one of ours? */
static btc_status read_head(btc_link *l, btc_error *err) {
  const uint8_t *h = l->head;
  if (get(h, 4) != FRAME_MAGIC || get(h + 4, 2) != VERSION)
    return btc_fail(err, BTC_ERR_FORMAT, "rank %u sent something that is no frame", l->id.from);
  if (get(h + 44, 4) != btc_link_crc32c(0, h, 44))
    return btc_fail(err, BTC_ERR_FORMAT, "rank %u sent a damaged frame head", l->id.from);
  uint64_t bytes = get(h + 24, 8), carried = get(h + 40, 4);
  if (carried && !l->carrier.receive)
    return btc_fail(err, BTC_ERR_FORMAT, "rank %u sends a tensor by a carrier that this link has not", l->id.from);
  if (carried > l->limits.max_bytes) bytes = carried;
  if (bytes > l->limits.max_bytes)
    return btc_fail(err, BTC_ERR_LIMIT, "rank %u sends a frame of %llu bytes, more than %zu", l->id.from, (unsigned long long)bytes,
                    l->limits.max_bytes);
  if (bytes > l->body_room) {
    free(l->body);
    l->body_room = 0;
    if (!(l->body = btc_alloc((size_t)bytes, 1)))
      return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a frame of %llu bytes", (unsigned long long)bytes);
    l->body_room = (size_t)bytes;
  }
  l->body_bytes = (size_t)bytes;
  return BTC_OK;
}

/* One read into what is missing. *again: nothing is there. */
static btc_status read_some(btc_link *l, bool *again, btc_error *err) {
  bool in_head = l->head_n < HEAD;
  uint8_t *to = in_head ? l->head + l->head_n : l->body + l->body_n;
  size_t room = in_head ? HEAD - l->head_n : l->body_bytes - l->body_n;
  ssize_t n = recv(l->fd, to, room, 0);
  if (n == 0) return btc_fail(err, BTC_ERR_IO, "rank %u closed the link%s", l->id.from, l->head_n ? " within a frame" : "");
  if (n < 0) {
    if (errno == EINTR) return BTC_OK;
    *again = errno == EAGAIN || errno == EWOULDBLOCK;
    return *again ? BTC_OK : btc_fail(err, BTC_ERR_IO, "link from rank %u: %s", l->id.from, strerror(errno));
  }
  if (!l->began_ns) l->began_ns = btc_now_ns();
  *(in_head ? &l->head_n : &l->body_n) += (size_t)n;
  return in_head && l->head_n == HEAD ? read_head(l, err) : BTC_OK;
}

btc_status btc_link_take(btc_link *l, btc_link_head *h, const uint8_t **data, size_t *bytes, btc_error *err) {
  bool again = false;
  static const uint8_t nothing[1];
  *data = NULL;
  if (l->owed) return btc_fail(err, BTC_ERR_INTERNAL, "a tensor of rank %u was not received", l->id.from);
  while (!again) {
    if (l->head_n < HEAD || l->body_n < l->body_bytes) {
      btc_status st = read_some(l, &again, err);
      if (st != BTC_OK) return st;
      continue;
    }
    if (get(l->head + 36, 4) != btc_link_crc32c(0, l->body, l->body_bytes))
      return btc_fail(err, BTC_ERR_FORMAT, "rank %u sent a damaged frame", l->id.from);
    bool ours = get(l->head + 8, 8) == l->id.epoch && get(l->head + 32, 4) == l->id.from;
    *h = (btc_link_head){
        .step = get(l->head + 16, 8), .kind = (uint16_t)get(l->head + 6, 2), .carried = (uint32_t)get(l->head + 40, 4)};
    *bytes = l->body_bytes;
    l->head_n = l->body_n = l->body_bytes = 0;
    l->began_ns = 0;
    if (!ours) {
      l->dropped++;
      continue;
    }
    l->owed = h->carried;
    *data = l->body ? l->body : nothing;
    return BTC_OK;
  }
  if (l->began_ns && btc_now_ns() - l->began_ns > (int64_t)l->limits.frame_ms * 1000000)
    return btc_fail(err, BTC_ERR_IO, "rank %u did not finish a frame within %d ms", l->id.from, l->limits.frame_ms);
  return BTC_OK;
}

btc_status btc_link_receive(btc_link *l, btc_link_head *h, const uint8_t **data, size_t *bytes, const btc_link_wait *w,
                            btc_error *err) {
  int64_t asked_ns = 0;
  for (;;) {
    btc_status st = btc_link_take(l, h, data, bytes, err);
    if (st != BTC_OK || *data) return st;
    btc_link_wait turn = *w;
    int64_t end = l->began_ns + (int64_t)l->limits.frame_ms * 1000000;
    if (l->began_ns && (!turn.deadline_ns || end < turn.deadline_ns)) turn.deadline_ns = end;
    st = wait_on(l->fd, POLLIN, &turn, &asked_ns, l->began_ns ? "receiving the rest of a frame" : "waiting for a frame", err);
    if (st != BTC_OK) return st;
  }
}

/* ---- carriers ---- */

void btc_link_carry(btc_link *l, const btc_link_carrier *c) {
  l->carrier = *c;
}

bool btc_link_is_carried(const btc_link *l) {
  return l->carrier.send != NULL;
}

typedef struct watch { /* the wait of a carrier's call */
  btc_link *l;
  const btc_link_wait *w;
  bool closed;
} watch;

/* Has the other end closed the link, and has what it took or sent before had time to be seen? A tensor and the closing behind it
   come by different ways: who sees the closing first asks the carrier again. */
static bool has_gone(btc_link *l) {
  struct pollfd p = {.fd = l->fd, .events = POLLRDHUP};
  if (poll(&p, 1, 0) <= 0) return false;
  int64_t now = btc_now_ns();
  if (!l->closed_ns) l->closed_ns = now;
  return now - l->closed_ns > LAST_MS * INT64_C(1000000);
}

/* The caller says when to stop; so does the link, when its other end has closed it. */
static bool watch_link(void *ctx) {
  watch *x = ctx;
  x->closed = has_gone(x->l);
  return x->closed || (x->w->stop && x->w->stop(x->w->ctx));
}

static btc_link_wait watched(watch *x) {
  btc_link_wait w = {.deadline_ns = btc_now_ns() + (int64_t)x->l->limits.frame_ms * 1000000, .stop = watch_link, .ctx = x};
  if (x->w->deadline_ns && x->w->deadline_ns < w.deadline_ns) w.deadline_ns = x->w->deadline_ns;
  return w;
}

static btc_status after_carrier(const watch *x, uint32_t peer, btc_status st, btc_error *err) {
  if (st != BTC_ERR_CANCELLED || !x->closed) return st;
  return btc_fail(err, BTC_ERR_IO, "rank %u closed the link within a tensor", peer);
}

/* All of a frame but its tensor, which its carrier is to take next. */
static btc_status send_head(btc_link *l, const btc_link_head *h, const btc_link_part *parts, int n, const btc_link_part *tensor,
                            const btc_link_wait *w, btc_error *err) {
  if (!l->carrier.send || !tensor->bytes || tensor->bytes > l->limits.max_bytes)
    return btc_fail(err, BTC_ERR_LIMIT, "a tensor of %zu bytes for a carrier, at most %zu can be", tensor->bytes,
                    l->carrier.send ? l->limits.max_bytes : 0);
  btc_status st = btc_link_settle(l, w, err);
  if (st == BTC_OK) st = queue_frame(l, h, (uint32_t)tensor->bytes, parts, n, err);
  return st == BTC_OK ? btc_link_drain(l, w, err) : st;
}

btc_status btc_link_send_carried(btc_link *l, const btc_link_head *h, const btc_link_part *parts, int n,
                                 const btc_link_part *tensor, const btc_link_wait *w, btc_error *err) {
  watch x = {.l = l, .w = w};
  btc_status st = send_head(l, h, parts, n, tensor, w, err);
  if (st != BTC_OK) return st;
  btc_link_wait turn = watched(&x);
  return after_carrier(&x, l->id.to, l->carrier.send(l->carrier.ctx, l->id.to, tensor->data, tensor->bytes, &turn, err), err);
}

btc_status btc_link_begin_carried(btc_link *l, const btc_link_head *h, const btc_link_part *parts, int n,
                                  const btc_link_part *tensor, const btc_link_wait *w, btc_error *err) {
  watch x = {.l = l, .w = w};
  if (!l->carrier.begin) return btc_link_send_carried(l, h, parts, n, tensor, w, err);
  btc_status st = send_head(l, h, parts, n, tensor, w, err);
  if (st != BTC_OK) return st;
  btc_link_wait turn = watched(&x);
  st = l->carrier.begin(l->carrier.ctx, l->id.to, tensor->data, tensor->bytes, &turn, err);
  if (st == BTC_OK) l->begun_ns = btc_now_ns();
  return after_carrier(&x, l->id.to, st, err);
}

btc_status btc_link_look(btc_link *l, bool *done, btc_error *err) {
  *done = true;
  if (!l->begun_ns) return BTC_OK;
  btc_status st = l->carrier.look(l->carrier.ctx, done, err);
  if (st == BTC_OK && *done) l->begun_ns = 0;
  if (st != BTC_OK || *done) return st;
  if (has_gone(l)) return btc_fail(err, BTC_ERR_IO, "rank %u closed the link within a tensor", l->id.to);
  if (btc_now_ns() - l->begun_ns <= (int64_t)l->limits.frame_ms * 1000000) return BTC_OK;
  return btc_fail(err, BTC_ERR_IO, "rank %u did not take a tensor within %d ms", l->id.to, l->limits.frame_ms);
}

btc_status btc_link_settle(btc_link *l, const btc_link_wait *w, btc_error *err) {
  int64_t asked = btc_now_ns();
  for (;;) {
    bool done;
    btc_status st = btc_link_look(l, &done, err);
    if (st != BTC_OK || done) return st;
    int64_t now = btc_now_ns();
    if (w->deadline_ns && now >= w->deadline_ns) return btc_fail(err, BTC_ERR_IO, "sending a tensor: too late");
    if (now - asked >= ASK_US * INT64_C(1000)) {
      asked = now;
      if (w->stop && w->stop(w->ctx)) return btc_fail(err, BTC_ERR_CANCELLED, "sending a tensor: stopped");
    }
    nanosleep(&(struct timespec){.tv_nsec = NAP_US * 1000L}, NULL);
  }
}

btc_status btc_link_receive_carried(btc_link *l, void *data, const btc_link_wait *w, btc_error *err) {
  watch x = {.l = l, .w = w};
  if (!l->owed) return btc_fail(err, BTC_ERR_INTERNAL, "rank %u has sent no tensor", l->id.from);
  btc_link_wait turn = watched(&x);
  uint32_t bytes = l->owed;
  btc_status st = l->carrier.receive(l->carrier.ctx, l->id.from, data, bytes, &turn, err);
  if (st == BTC_OK) l->owed = 0;
  return after_carrier(&x, l->id.from, st, err);
}
