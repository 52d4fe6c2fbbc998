/* The sink's own connection to Redis: synchronous, every call with a deadline; after any failure it is closed, never used again.
 * One thread. */
#ifndef BTC_BROKER_SINK_REDIS_H
#define BTC_BROKER_SINK_REDIS_H

#include <hiredis/hiredis.h>

#include "base/base.h"

typedef struct btc_sink_redis btc_sink_redis;

/* All texts are copied; the password is read at each connection. */
btc_status btc_sink_redis_create(const char *url, const char *user, const char *password_file, const char *queue,
                                 btc_sink_redis **out, btc_error *err);
void btc_sink_redis_destroy(btc_sink_redis **r);
/* Connects when it is not. */
btc_status btc_sink_redis_connect(btc_sink_redis *r, btc_error *err);
bool btc_sink_redis_is_up(const btc_sink_redis *r);
const char *btc_sink_redis_prefix(const btc_sink_redis *r); /* "btc:{q}:" */
void btc_sink_redis_close(btc_sink_redis *r);

/* One command of texts, ended by NULL. A text that begins with '@' is a key: '@' becomes the queue's prefix. NULL: the connection
 * failed and is closed; it may or may not have happened. The caller frees with freeReplyObject. */
redisReply *btc_sink_redis_say(btc_sink_redis *r, ...) __attribute__((sentinel));
redisReply *btc_sink_redis_call(btc_sink_redis *r, int argc, const char **argv);
/* FCALL of a function of the queue. */
redisReply *btc_sink_redis_fcall(btc_sink_redis *r, const char *function, int argc, const char **argv);

/* An error reply or none at all. Says why in err. */
bool btc_reply_failed(const redisReply *r, btc_error *err);
/* The text of a field in a flat list of fields and values, or NULL. */
const redisReply *btc_reply_field(const redisReply *fields, const char *name);
const char *btc_reply_text(const redisReply *r, size_t i); /* element i of an array as text, "" when it is none */

#endif
