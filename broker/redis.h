/*
 * One connection to Redis on the broker's loop (hiredis 0.14.1, asynchronous API): connects, checks that this Redis may be trusted
 * with a queue, loads the function library, and from then on carries commands. Commands of one loop turn leave in one write, so
 * that under appendfsync always they share one fsync.
 *
 * A command that outlives its deadline closes the connection: a late reply must never be read as the answer to the next command
 * (queue.md 2.13). Whoever waits then gets NULL, which means "may or may not have happened"; everything sent here is idempotent.
 * Reconnects with jitter, 50 ms to 2 s.
 */
#ifndef BTC_BROKER_REDIS_H
#define BTC_BROKER_REDIS_H

#include <hiredis/hiredis.h>

#include "net/loop.h"

/* redis://HOST[:PORT], redis://[V6]:PORT or unix:///PATH */
typedef struct btc_redis_address {
  char host[256]; /* "" for a unix socket */
  int port;
  char path[108];
} btc_redis_address;
btc_status btc_redis_address_parse(const char *url, btc_redis_address *out, btc_error *err);
/* First line of a file that nobody else may read, at most 512 bytes; out is cleared by the caller when it is no longer needed. */
btc_status btc_redis_password_read(const char *path, char out[513], btc_error *err);

/* reply: borrowed; may be an error of the command itself (REDIS_REPLY_ERROR). NULL: the connection was lost, or Redis cannot serve
 * just now. */
typedef void (*btc_redis_answer)(void *ctx, const redisReply *reply);

typedef struct btc_redis btc_redis;
typedef struct btc_redis_options {
  const char *label; /* for logs: "main" */
  const char *url, *user;
  const char *password;      /* text, or NULL; copied */
  const char *prefix;        /* "btc:{q}:" */
  const char *const *limits; /* field, value, ... of btc_setup, NULL-terminated; NULL: this connection neither loads nor sets up */
  int64_t deadline_ms;       /* of a command */
  /* up: ready for commands. down: was ready and is no more. fatal: this Redis must not be used (policy, version, password, schema):
   * tried again all the same, since somebody may mend it. down and fatal may be NULL. */
  void (*up)(void *ctx);
  void (*down)(void *ctx);
  void (*fatal)(void *ctx, const char *why);
  void *ctx;
} btc_redis_options;

btc_status btc_redis_create(btc_loop *l, const btc_redis_options *o, btc_redis **out, btc_error *err);
void btc_redis_destroy(btc_redis **r); /* whoever waits gets NULL first */
bool btc_redis_is_up(const btc_redis *r);
/* false: not connected, and `answer` (which may be NULL) is never called. True: it is called exactly once. deadline_ms 0: the
 * connection's. */
bool btc_redis_send(btc_redis *r, int argc, const char **argv, const size_t *len, int64_t deadline_ms, btc_redis_answer answer,
                    void *ctx);
/* Age of the oldest command without an answer, 0 when none waits. */
int64_t btc_redis_lag_ms(const btc_redis *r);
const char *btc_redis_trouble(const btc_redis *r); /* last reason why it is down, "" when there was none */

/* ---- the handshake (handshake.c), through these ---- */
typedef struct btc_handshake btc_handshake;
btc_status btc_handshake_create(btc_redis *r, const btc_redis_options *o, btc_handshake **out, btc_error *err);
void btc_handshake_destroy(btc_handshake **h);
void btc_handshake_begin(btc_handshake *h);
bool btc_redis_send_raw(btc_redis *r, int argc, const char **argv, const size_t *len, btc_redis_answer answer, void *ctx);
typedef enum btc_handshake_end { BTC_HANDSHAKE_READY, BTC_HANDSHAKE_LATER, BTC_HANDSHAKE_FATAL } btc_handshake_end;
void btc_redis_handshake_done(btc_redis *r, btc_handshake_end end, const char *why);

#endif
