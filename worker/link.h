/*
 * One directed link of a pipeline: carries the tensor of step n of epoch e from one rank to the next. TCP here (link_tcp.c).
 *
 * A link exists for one epoch. Its hello proves in both directions that the other end knows the epoch's secret (HMAC-SHA-256 over
 * fresh nonces), so that neither a stranger nor a rank of an old epoch can join. Every frame carries epoch, step, kind, length and
 * CRC-32C of head and body; a frame of another epoch is dropped and counted. Nothing is encrypted and frames are not signed: after
 * the hello the network is trusted (docs: isolate it).
 *
 * Nothing here waits without a deadline, and nothing grows beyond max_bytes a frame. Descriptors are non-blocking. One thread.
 * Errors: IO (closed, refused, too late), FORMAT (bytes that are no frame of ours, damage), LIMIT, CANCELLED (wait->stop said so).
 */
#ifndef BTC_WORKER_LINK_H
#define BTC_WORKER_LINK_H

#include "base/base.h"

#define BTC_LINK_SECRET 32
#define BTC_LINK_MAX_BYTES ((size_t)1 << 30) /* of a frame's body, whatever the peers agree on */

typedef struct btc_link_id { /* what both ends must agree on */
  uint64_t epoch;
  uint32_t from, to, ranks;
  uint8_t secret[BTC_LINK_SECRET];
} btc_link_id;

typedef struct btc_link_limits {
  size_t max_bytes; /* of a frame's body */
  int frame_ms;     /* a frame that has begun to arrive, or to leave, is over after this */
  int hello_ms;     /* one hello */
} btc_link_limits;
btc_link_limits btc_link_limits_default(void); /* 256 MiB, 10 s, 1 s */

/* stop is asked every few milliseconds, also while bytes or strangers come all the time; true ends the wait with CANCELLED. It may
 * be NULL. deadline_ns 0: none. */
typedef struct btc_link_wait {
  int64_t deadline_ns; /* on btc_now_ns */
  bool (*stop)(void *ctx);
  void *ctx;
} btc_link_wait;

typedef struct btc_link btc_link;

/* ---- forming (TCP) ---- */
/* Listens on host (a numeric address), any free port. */
btc_status btc_link_listen(const char *host, int *fd, int *port, btc_error *err);
/* The same at a port of one's choice; 0: any. */
btc_status btc_link_listen_at(const char *host, int wanted, int *fd, int *port, btc_error *err);
/* The receiving end. Whoever says a wrong hello is turned away, and the wait goes on. */
btc_status btc_link_accept(int listen_fd, const btc_link_id *id, const btc_link_limits *l, const btc_link_wait *w, btc_link **out,
                           btc_error *err);
/* The sending end. */
btc_status btc_link_connect(const char *host, int port, const btc_link_id *id, const btc_link_limits *l, const btc_link_wait *w,
                            btc_link **out, btc_error *err);
void btc_link_close(btc_link **l); /* NULL is fine */

/* ---- frames ---- */
typedef struct btc_link_head {
  uint64_t step;
  uint16_t kind;
  uint32_t carried; /* bytes of the tensor that the carrier brings; what sends a frame sets it */
} btc_link_head;

typedef struct btc_link_part { /* a piece of a body */
  const void *data;
  size_t bytes;
} btc_link_part;

/* Sends a frame and returns when the system has all of it. */
btc_status btc_link_send(btc_link *l, const btc_link_head *h, const btc_link_part *parts, int n, const btc_link_wait *w,
                         btc_error *err);
/* The next frame; *data is aligned for any number and borrowed until the next receive or take. */
btc_status btc_link_receive(btc_link *l, btc_link_head *h, const uint8_t **data, size_t *bytes, const btc_link_wait *w,
                            btc_error *err);

/* The same without waiting, for a driver that serves many descriptors. queue copies; at most 4 x max_bytes may be queued. */
btc_status btc_link_queue(btc_link *l, const btc_link_head *h, const btc_link_part *parts, int n, btc_error *err);
btc_status btc_link_flush(btc_link *l, btc_error *err);
bool btc_link_flushed(const btc_link *l);
/* Until the system has all that is queued: as btc_link_send does. */
btc_status btc_link_drain(btc_link *l, const btc_link_wait *w, btc_error *err);
btc_status btc_link_take(btc_link *l, btc_link_head *h, const uint8_t **data, size_t *bytes,
                         btc_error *err); /* *data NULL: none yet */
int btc_link_fd(const btc_link *l);
uint64_t btc_link_dropped(const btc_link *l); /* frames of other epochs */

/* ---- carriers ---- */
/* Takes tensors past the link: NCCL, from one GPU to another (link_nccl.h). The link keeps the hello, the epochs, the heads of all
 * frames and thereby the order, and what belongs to a frame but its tensor. When either of the two fails, so does the wait in the
 * other: with the link the carrier's peer has gone, and an epoch ends with its links. */
typedef struct btc_link_carrier {
  void *ctx; /* outlives the link */
  /* Both return when the memory at data is the caller's again. */
  btc_status (*send)(void *ctx, uint32_t to, const void *data, size_t bytes, const btc_link_wait *w, btc_error *err);
  /* begin: the same without waiting for the other end; the memory is the carrier's until look says that it is done with what was
   * begun. One at a time, and what is received meanwhile comes behind it. NULL, both of them: it only sends. */
  btc_status (*begin)(void *ctx, uint32_t to, const void *data, size_t bytes, const btc_link_wait *w, btc_error *err);
  btc_status (*look)(void *ctx, bool *done, btc_error *err);
  btc_status (*receive)(void *ctx, uint32_t from, void *data, size_t bytes, const btc_link_wait *w, btc_error *err);
} btc_link_carrier;
/* From now on the link has this carrier; both ends get theirs before they use it. */
void btc_link_carry(btc_link *l, const btc_link_carrier *c);
bool btc_link_is_carried(const btc_link *l);
/* Like btc_link_send, with a tensor of 1..max_bytes for the carrier. */
btc_status btc_link_send_carried(btc_link *l, const btc_link_head *h, const btc_link_part *parts, int n,
                                 const btc_link_part *tensor, const btc_link_wait *w, btc_error *err);
/* The same, but the tensor is the link's until settle has returned, or look has said so. The one before it is settled first. */
btc_status btc_link_begin_carried(btc_link *l, const btc_link_head *h, const btc_link_part *parts, int n,
                                  const btc_link_part *tensor, const btc_link_wait *w, btc_error *err);
/* Has the other end what was begun? One look, which does not wait; its deadline is that of a frame, from the beginning on. */
btc_status btc_link_look(btc_link *l, bool *done, btc_error *err);
btc_status btc_link_settle(btc_link *l, const btc_link_wait *w, btc_error *err); /* until it has */
/* The tensor of the frame that was received or taken last, whose head said `carried` bytes. It comes before the next frame. */
btc_status btc_link_receive_carried(btc_link *l, void *data, const btc_link_wait *w, btc_error *err);

/* ---- parts that tests look at ---- */
uint32_t btc_link_crc32c(uint32_t crc, const void *data, size_t n);        /* begins with 0 */
uint32_t btc_link_crc32c_tables(uint32_t crc, const void *data, size_t n); /* the same, as processors without the instruction do */
void btc_link_hmac(const uint8_t key[BTC_LINK_SECRET], const btc_link_part *parts, int n, uint8_t mac[32]);

#endif
