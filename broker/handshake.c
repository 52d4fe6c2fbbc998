/*
 * What a new connection does before it carries work: AUTH, then on the main one INFO and CONFIG GET (may this Redis hold a queue?),
 * the function library when it is missing or older, btc_setup. One command at a time; any passing trouble ends in a later attempt.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "queue_lua.h"
#include "redis.h"

enum { MAX_ARGS = 64 };

typedef enum step { STEP_AUTH, STEP_PING, STEP_INFO, STEP_POLICY, STEP_LIBRARY, STEP_LOAD, STEP_SETUP, STEP_READY } step;

struct btc_handshake {
  btc_redis *redis;
  btc_redis_options o;
  step step;
  bool warned;
};

static void go(btc_handshake *h, step next);

static void later(btc_handshake *h, const char *why) {
  btc_redis_handshake_done(h->redis, BTC_HANDSHAKE_LATER, why);
}

static void fatal(btc_handshake *h, const char *before, const char *detail, const char *after) {
  char why[400];
  snprintf(why, sizeof why, "%s%s%s", before, detail, after);
  btc_redis_handshake_done(h->redis, BTC_HANDSHAKE_FATAL, why);
}

/* "key:value" out of INFO's text. */
static bool info_value(const char *info, const char *key, char *out, size_t size) {
  size_t len = strlen(key);
  for (const char *line = info; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
    if (strncmp(line, key, len) != 0 || line[len] != ':') continue;
    size_t n = strcspn(line + len + 1, "\r\n");
    snprintf(out, size, "%.*s", (int)(n < size ? n : size - 1), line + len + 1);
    return true;
  }
  return false;
}

static void check_info(btc_handshake *h, const redisReply *r) {
  char value[64];
  if (r->type != REDIS_REPLY_STRING) {
    later(h, r->type == REDIS_REPLY_ERROR ? r->str : "INFO gave no text");
    return;
  }
  if (!info_value(r->str, "redis_version", value, sizeof value) || strtol(value, NULL, 10) < 7) {
    fatal(h, "Redis ", value, " is too old: functions need 7.0");
    return;
  }
  if (info_value(r->str, "loading", value, sizeof value) && strcmp(value, "0") != 0) {
    later(h, "Redis is loading its data");
    return;
  }
  if (info_value(r->str, "role", value, sizeof value) && strcmp(value, "master") != 0) {
    later(h, "this Redis is a replica");
    return;
  }
  if (!info_value(r->str, "maxmemory_policy", value, sizeof value)) value[0] = 0;
  if (strcmp(value, "noeviction") != 0) {
    fatal(h, "Redis may throw keys away (maxmemory-policy ", *value ? value : "unknown", "): a queue needs noeviction");
    return;
  }
  if (info_value(r->str, "aof_enabled", value, sizeof value) && strcmp(value, "1") != 0 && !h->warned) {
    btc_log(BTC_LOG_WARN, "redis-not-durable", "msg=\"appendonly is off: accepted work is lost when Redis stops\"");
    h->warned = true;
  }
  go(h, STEP_POLICY);
}

static void check_policy(btc_handshake *h, const redisReply *r) {
  const char *fsync = r->type == REDIS_REPLY_ARRAY && r->elements == 2 && r->element[1]->str ? r->element[1]->str : "unknown";
  if (strcmp(fsync, "always") != 0 && !h->warned) {
    btc_log(BTC_LOG_WARN, "redis-not-durable",
            "appendfsync=%s msg=\"a power cut may lose the last seconds of accepted work; appendfsync always does not\"", fsync);
    h->warned = true;
  }
  go(h, STEP_LIBRARY);
}

/* The library says its version in a line `local VERSION = N`. */
static long library_version(const char *code) {
  const char *at = code ? strstr(code, "local VERSION = ") : NULL;
  return at ? strtol(at + 16, NULL, 10) : 0;
}

/* FUNCTION LIST LIBRARYNAME btc WITHCODE: one map, its fields as name, value, ... */
static void check_library(btc_handshake *h, const redisReply *r) {
  const char *code = NULL;
  if (r->type == REDIS_REPLY_ERROR) {
    later(h, r->str);
    return;
  }
  const redisReply *lib = r->type == REDIS_REPLY_ARRAY && r->elements == 1 ? r->element[0] : NULL;
  for (size_t i = 0; lib && i + 1 < lib->elements; i += 2)
    if (lib->element[i]->str && strcmp(lib->element[i]->str, "library_code") == 0) code = lib->element[i + 1]->str;
  bool older = !code || library_version(code) < library_version(btc_queue_lua);
  if (older) btc_log(BTC_LOG_INFO, "library-load", "version=%ld before=%ld", library_version(btc_queue_lua), library_version(code));
  go(h, older ? STEP_LOAD : STEP_SETUP);
}

static void check_auth(btc_handshake *h, const redisReply *r) {
  if (r->type != REDIS_REPLY_ERROR)
    go(h, h->o.limits ? STEP_INFO : STEP_PING);
  else if (strncmp(r->str, "LOADING", 7) == 0)
    later(h, r->str);
  else
    fatal(h, "Redis refuses the password: ", r->str, " (see --redis-password-file and --redis-user)");
}

static void check_setup(btc_handshake *h, const redisReply *r) {
  if (r->type != REDIS_REPLY_ERROR)
    go(h, STEP_READY);
  else if (strstr(r->str, "schema") || strstr(r->str, "SCHEMA"))
    fatal(h, "the queue's data is of another version: ", r->str, "");
  else
    later(h, r->str);
}

static bool no_permission(const redisReply *r) {
  return r->type == REDIS_REPLY_ERROR &&
         (strncmp(r->str, "NOPERM", 6) == 0 || strncmp(r->str, "NOAUTH", 6) == 0 || strncmp(r->str, "WRONGPASS", 9) == 0);
}

static void on_answer(void *ctx, const redisReply *r) {
  btc_handshake *h = ctx;
  if (!r) return; /* the connection went; its owner knows */
  if (no_permission(r) && h->step != STEP_AUTH && h->step != STEP_POLICY) {
    fatal(h, "Redis: ", r->str, strncmp(r->str, "NOAUTH", 6) == 0 ? " Give --redis-password-file." : " See deploy/users.acl.");
    return;
  }
  switch (h->step) {
    case STEP_AUTH:
      check_auth(h, r);
      break;
    case STEP_PING:
      if (r->type == REDIS_REPLY_ERROR)
        later(h, r->str);
      else
        go(h, STEP_READY);
      break;
    case STEP_INFO:
      check_info(h, r);
      break;
    case STEP_POLICY:
      check_policy(h, r);
      break;
    case STEP_LIBRARY:
      check_library(h, r);
      break;
    case STEP_LOAD:
      if (r->type == REDIS_REPLY_ERROR)
        later(h, r->str);
      else
        go(h, STEP_SETUP);
      break;
    case STEP_SETUP:
      check_setup(h, r);
      break;
    case STEP_READY:
      break;
  }
}

static int setup_args(const btc_handshake *h, const char **argv) {
  int n = 0;
  argv[n++] = "FCALL";
  argv[n++] = "btc_setup";
  argv[n++] = "1";
  argv[n++] = h->o.prefix;
  for (const char *const *l = h->o.limits; *l && n < MAX_ARGS; l++) argv[n++] = *l;
  return n;
}

static int step_args(const btc_handshake *h, const char **argv) {
  int n = 0;
  switch (h->step) {
    case STEP_AUTH:
      argv[n++] = "AUTH";
      if (h->o.user) argv[n++] = h->o.user;
      argv[n++] = h->o.password;
      break;
    case STEP_PING:
      argv[n++] = "PING";
      break;
    case STEP_INFO:
      argv[n++] = "INFO";
      break;
    case STEP_POLICY:
      argv[n++] = "CONFIG", argv[n++] = "GET", argv[n++] = "appendfsync";
      break;
    case STEP_LIBRARY:
      argv[n++] = "FUNCTION", argv[n++] = "LIST", argv[n++] = "LIBRARYNAME", argv[n++] = "btc", argv[n++] = "WITHCODE";
      break;
    case STEP_LOAD:
      argv[n++] = "FUNCTION", argv[n++] = "LOAD", argv[n++] = "REPLACE", argv[n++] = btc_queue_lua;
      break;
    case STEP_SETUP:
      return setup_args(h, argv);
    case STEP_READY:
      break;
  }
  return n;
}

static void go(btc_handshake *h, step next) {
  const char *argv[MAX_ARGS];
  size_t len[MAX_ARGS];
  h->step = next;
  if (next == STEP_READY) {
    btc_redis_handshake_done(h->redis, BTC_HANDSHAKE_READY, NULL);
    return;
  }
  int argc = step_args(h, argv);
  for (int i = 0; i < argc; i++) len[i] = strlen(argv[i]);
  btc_redis_send_raw(h->redis, argc, argv, len, on_answer, h); /* refused: the connection is going, and its owner connects again */
}

void btc_handshake_begin(btc_handshake *h) {
  go(h, h->o.password ? STEP_AUTH : h->o.limits ? STEP_INFO : STEP_PING);
}

btc_status btc_handshake_create(btc_redis *r, const btc_redis_options *o, btc_handshake **out, btc_error *err) {
  btc_handshake *h = *out = btc_alloc_zero(1, sizeof *h);
  if (!h) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  h->redis = r;
  h->o = *o; /* its texts are the connection's own copies */
  return BTC_OK;
}

void btc_handshake_destroy(btc_handshake **h) {
  free(*h);
  *h = NULL;
}
