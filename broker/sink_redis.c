/* A synchronous connection: see sink_redis.h. */
#define _GNU_SOURCE
#include "broker/sink_redis.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "broker/redis.h"

#define CONNECT_S 2
#define COMMAND_S 10 /* blocking reads wait for a fraction of it */
#define MAX_WORDS 64

struct btc_sink_redis {
  btc_redis_address address;
  char *user, *password_file, *prefix;
  redisContext *c;
};

btc_status btc_sink_redis_create(const char *url, const char *user, const char *password_file, const char *queue,
                                 btc_sink_redis **out, btc_error *err) {
  btc_sink_redis *r = *out = btc_alloc_zero(1, sizeof *r);
  if (!r) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  btc_status st = btc_redis_address_parse(url, &r->address, err);
  r->user = btc_strdup(user);
  r->password_file = btc_strdup(password_file);
  bool copied = asprintf(&r->prefix, "btc:{%s}:", queue) > 0 && (r->user || !user) && (r->password_file || !password_file);
  if (st == BTC_OK && !copied) st = btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  if (st != BTC_OK) btc_sink_redis_destroy(out);
  return st;
}

void btc_sink_redis_destroy(btc_sink_redis **redis) {
  btc_sink_redis *r = *redis;
  *redis = NULL;
  if (!r) return;
  btc_sink_redis_close(r);
  free(r->user);
  free(r->password_file);
  free(r->prefix);
  free(r);
}

bool btc_sink_redis_is_up(const btc_sink_redis *r) {
  return r->c != NULL;
}

const char *btc_sink_redis_prefix(const btc_sink_redis *r) {
  return r->prefix;
}

void btc_sink_redis_close(btc_sink_redis *r) {
  if (r->c) redisFree(r->c);
  r->c = NULL;
}

static btc_status log_in(btc_sink_redis *r, btc_error *err) {
  if (!r->password_file) return BTC_OK;
  char password[513];
  btc_status st = btc_redis_password_read(r->password_file, password, err);
  if (st != BTC_OK) return st;
  const char *argv[3] = {"AUTH", r->user ? r->user : password, password};
  redisReply *reply = btc_sink_redis_call(r, r->user ? 3 : 2, argv);
  explicit_bzero(password, sizeof password);
  if (btc_reply_failed(reply, err)) st = BTC_ERR_IO;
  if (reply) freeReplyObject(reply);
  return st;
}

btc_status btc_sink_redis_connect(btc_sink_redis *r, btc_error *err) {
  if (r->c) return BTC_OK;
  struct timeval connect = {.tv_sec = CONNECT_S}, command = {.tv_sec = COMMAND_S};
  r->c = r->address.host[0] ? redisConnectWithTimeout(r->address.host, r->address.port, connect)
                            : redisConnectUnixWithTimeout(r->address.path, connect);
  if (!r->c) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  btc_status st = BTC_OK;
  if (r->c->err) {
    st = btc_fail(err, BTC_ERR_IO, "cannot reach Redis: %s", r->c->errstr);
  } else {
    fcntl(r->c->fd, F_SETFD, FD_CLOEXEC);
    redisSetTimeout(r->c, command);
    if (r->address.host[0]) redisEnableKeepAlive(r->c); /* on a unix socket it is an error that sticks */
    st = log_in(r, err);
  }
  if (st != BTC_OK) btc_sink_redis_close(r);
  return st;
}

/* ---- commands ---- */

redisReply *btc_sink_redis_call(btc_sink_redis *r, int argc, const char **argv) {
  if (!r->c) return NULL;
  redisReply *reply = redisCommandArgv(r->c, argc, argv, NULL);
  if (!reply) BTC_LOG_LIMITED(BTC_LOG_WARN, "sink-redis-lost", "command=%s why=\"%s\"", argv[0], r->c->errstr);
  if (!reply) btc_sink_redis_close(r); /* a late answer must not be read as that of the next command */
  return reply;
}

redisReply *btc_sink_redis_say(btc_sink_redis *r, ...) {
  const char *argv[MAX_WORDS], *word;
  char key[8][256]; /* keys of one command */
  int argc = 0, keys = 0;
  va_list ap;
  va_start(ap, r);
  while (argc < MAX_WORDS && (word = va_arg(ap, const char *)) != NULL) {
    if (word[0] == '@' && keys < 8) {
      snprintf(key[keys], sizeof key[0], "%s%s", r->prefix, word + 1);
      word = key[keys++];
    }
    argv[argc++] = word;
  }
  va_end(ap);
  return btc_sink_redis_call(r, argc, argv);
}

redisReply *btc_sink_redis_fcall(btc_sink_redis *r, const char *function, int argc, const char **argv) {
  const char **all = btc_alloc((size_t)argc + 4, sizeof *all);
  if (!all) {
    btc_sink_redis_close(r);
    return NULL;
  }
  all[0] = "FCALL";
  all[1] = function;
  all[2] = "1";
  all[3] = r->prefix;
  memcpy(all + 4, argv, (size_t)argc * sizeof *all);
  redisReply *reply = btc_sink_redis_call(r, argc + 4, all);
  free(all);
  return reply;
}

/* ---- replies ---- */

bool btc_reply_failed(const redisReply *r, btc_error *err) {
  if (r && r->type != REDIS_REPLY_ERROR) return false;
  btc_fail(err, BTC_ERR_IO, "Redis: %s", r ? r->str : "the connection was lost");
  return true;
}

const redisReply *btc_reply_field(const redisReply *fields, const char *name) {
  if (!fields || fields->type != REDIS_REPLY_ARRAY) return NULL;
  for (size_t i = 0; i + 1 < fields->elements; i += 2) {
    const redisReply *f = fields->element[i], *v = fields->element[i + 1];
    if (f->type == REDIS_REPLY_STRING && strcmp(f->str, name) == 0) return v->type == REDIS_REPLY_STRING ? v : NULL;
  }
  return NULL;
}

const char *btc_reply_text(const redisReply *r, size_t i) {
  if (!r || r->type != REDIS_REPLY_ARRAY || i >= r->elements) return "";
  const redisReply *e = r->element[i];
  return (e->type == REDIS_REPLY_STRING || e->type == REDIS_REPLY_STATUS) && e->str ? e->str : "";
}
