/* The connection: its life, deadlines and the way its descriptor joins the loop. */
#define _GNU_SOURCE
#include "redis.h"

#include <errno.h>
#include <fcntl.h>
#include <hiredis/async.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "resolve.h"

enum { BACKOFF_MIN_MS = 50, BACKOFF_MAX_MS = 2000, CHECK_MS = 100, SLEPT_MS = 1000, CONNECT_MS = 5000, LOOK_MS = 5 };

typedef enum state { DOWN, RESOLVING, CONNECTING, SHAKING, UP } state;

/* One command in flight, oldest first; hiredis answers in order. */
typedef struct call {
  struct call *next;
  btc_redis *redis;
  btc_redis_answer answer;
  void *ctx;
  int64_t sent_ns, due_ns;
} call;

struct btc_redis {
  btc_loop *loop;
  btc_redis_options o;
  char *url, *user, *password, *prefix;
  btc_redis_address address;
  redisAsyncContext *ac;
  btc_resolve *resolve; /* of the host's name, while that is looked up */
  unsigned turn;        /* which of its addresses is tried */
  btc_handshake *handshake;
  btc_timer *timer; /* reconnecting while down, deadlines while there is a connection */
  state state;
  int events;
  bool closing, destroyed;
  int64_t backoff_ms, since_ns, checked_ns;
  uint64_t random;
  call *head, **tail;
  char trouble[256];
};

/* ---- addresses and secrets ---- */

static btc_status parse_host(const char *rest, const char *url, btc_redis_address *out, btc_error *err) {
  const char *close = rest[0] == '[' ? strchr(rest, ']') : NULL;
  const char *host = close ? rest + 1 : rest, *end = close ? close : rest + strcspn(rest, ":/");
  const char *after = close ? close + 1 : end;
  size_t len = (size_t)(end - host);
  long port = 6379;
  char *stop = (char *)after;
  if (*after == ':') port = strtol(after + 1, &stop, 10);
  if (*stop == '/' && !stop[1]) stop++;
  if (!len || len >= sizeof out->host || *stop || port < 1 || port > 65535 || (*after == ':' && stop == after + 1))
    return btc_fail(err, BTC_ERR_ARG, "'%s': a Redis address is redis://HOST:PORT or unix:///PATH (passwords come from a file)",
                    url);
  memcpy(out->host, host, len);
  out->port = (int)port;
  return BTC_OK;
}

btc_status btc_redis_address_parse(const char *url, btc_redis_address *out, btc_error *err) {
  *out = (btc_redis_address){.port = 0};
  if (strchr(url, '@') && strncmp(url, "unix://", 7) != 0) /* not quoted: messages end in logs */
    return btc_fail(err, BTC_ERR_ARG,
                    "a Redis address is redis://HOST:PORT or unix:///PATH; the user and the password come by --redis-user and "
                    "--redis-password-file");
  if (strncmp(url, "redis://", 8) == 0) return parse_host(url + 8, url, out, err);
  if (strncmp(url, "unix://", 7) != 0 || url[7] != '/')
    return btc_fail(err, BTC_ERR_ARG, "'%s': a Redis address is redis://HOST:PORT or unix:///PATH", url);
  if (strlen(url + 7) >= sizeof out->path)
    return btc_fail(err, BTC_ERR_ARG, "'%s': the path of a unix socket has at most 107 bytes", url);
  strcpy(out->path, url + 7);
  return BTC_OK;
}

btc_status btc_redis_password_read(const char *path, char out[513], btc_error *err) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  struct stat sb;
  if (fd < 0 || fstat(fd, &sb) != 0) {
    btc_fail(err, BTC_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    return BTC_ERR_IO;
  }
  if (!S_ISREG(sb.st_mode) || (sb.st_mode & 077)) {
    close(fd);
    return btc_fail(err, BTC_ERR_IO, "'%s' holds a secret and must be a file that only its owner can read (chmod 600)", path);
  }
  ssize_t n = read(fd, out, 512);
  close(fd);
  if (n <= 0) return btc_fail(err, BTC_ERR_FORMAT, "'%s' is empty", path);
  out[n] = 0;
  out[strcspn(out, "\r\n")] = 0;
  return out[0] ? BTC_OK : btc_fail(err, BTC_ERR_FORMAT, "'%s': the first line is empty", path);
}

/* ---- the descriptor in the loop ---- */

static void on_ready(void *ctx, int events) {
  btc_redis *r = ctx;
  if (r->ac && (events & BTC_LOOP_READ) && (r->events & BTC_LOOP_READ)) redisAsyncHandleRead(r->ac);
  if (r->ac && (events & BTC_LOOP_WRITE) && (r->events & BTC_LOOP_WRITE)) redisAsyncHandleWrite(r->ac);
}

static void want(btc_redis *r, int events) {
  if (events == r->events || !r->ac) return;
  btc_error err;
  if (btc_loop_set_fd(r->loop, r->ac->c.fd, events, on_ready, r, &err) == BTC_OK)
    r->events = events;
  else
    btc_log(BTC_LOG_ERROR, "redis-descriptor", "msg=\"%s\"", err.message); /* the deadline will close the connection */
}

static void add_read(void *p) {
  btc_redis *r = p;
  want(r, r->events | BTC_LOOP_READ);
}

static void del_read(void *p) {
  btc_redis *r = p;
  want(r, r->events & ~BTC_LOOP_READ);
}

static void add_write(void *p) {
  btc_redis *r = p;
  want(r, r->events | BTC_LOOP_WRITE);
}

static void del_write(void *p) {
  btc_redis *r = p;
  want(r, r->events & ~BTC_LOOP_WRITE);
}

static void clean_up(void *p) {
  want(p, 0);
}

/* ---- life ---- */

static uint64_t draw(btc_redis *r) {
  r->random = r->random * 6364136223846793005u + 1442695040888963407u;
  return r->random >> 33;
}

/* Not connected: another attempt after a while. */
static void rest(btc_redis *r, const char *why) {
  r->state = DOWN;
  snprintf(r->trouble, sizeof r->trouble, "%s", why && *why ? why : "the connection was closed");
  if (r->destroyed) return;
  int64_t wait = r->backoff_ms / 2 + (int64_t)(draw(r) % (uint64_t)(r->backoff_ms / 2 + 1));
  r->backoff_ms = r->backoff_ms * 2 > BACKOFF_MAX_MS ? BACKOFF_MAX_MS : r->backoff_ms * 2;
  char quoted[300];
  BTC_LOG_LIMITED(BTC_LOG_WARN, "redis-down", "connection=%s retry_ms=%lld msg=%s", r->o.label, (long long)wait,
                  btc_log_quote(quoted, sizeof quoted, r->trouble));
  btc_timer_after_ms(r->timer, wait);
}

/* The context frees itself or has been freed; nobody waits any more. */
static void gone(btc_redis *r, const char *why) {
  if (!r->ac) return;
  bool was_up = r->state == UP;
  if (r->state == CONNECTING) r->turn++;
  r->ac = NULL;
  r->events = 0;
  r->closing = false;
  if (was_up) r->backoff_ms = BACKOFF_MIN_MS;
  rest(r, why);
  if (was_up && !r->destroyed && r->o.down) r->o.down(r->o.ctx);
}

/* Drops the connection. Inside one of its callbacks hiredis frees it when that returns; no command is taken in between. */
static void drop(btc_redis *r, const char *why) {
  if (!r->ac || r->closing) return;
  r->closing = true;
  snprintf(r->trouble, sizeof r->trouble, "%s", why);
  redisAsyncFree(r->ac); /* NULL to whoever waits, then on_disconnect */
}

static btc_redis *owner(const redisAsyncContext *ac) {
  return ac->ev.data;
}

static void on_disconnect(const redisAsyncContext *ac, int status) {
  btc_redis *r = owner(ac);
  char why[256];
  snprintf(why, sizeof why, "%s", r->closing ? r->trouble : status == REDIS_OK ? "" : ac->errstr ? ac->errstr : "");
  gone(r, why);
}

static void on_connect(const redisAsyncContext *ac, int status) {
  btc_redis *r = owner(ac);
  if (status != REDIS_OK) {
    char why[256];
    snprintf(why, sizeof why, "%s", ac->errstr && *ac->errstr ? ac->errstr : "cannot connect");
    want(r, 0);
    gone(r, why);
    return;
  }
  r->state = SHAKING;
  btc_handshake_begin(r->handshake);
}

/* address: in numbers; of no meaning for a unix socket. */
static void connect_to(btc_redis *r, const char *address) {
  r->ac = r->address.path[0] ? redisAsyncConnectUnix(r->address.path) : redisAsyncConnect(address, r->address.port);
  if (!r->ac) {
    btc_timer_after_ms(r->timer, BACKOFF_MAX_MS); /* out of memory */
    return;
  }
  r->state = CONNECTING;
  r->ac->ev.data = r;
  if (r->ac->err) {
    redisAsyncContext *ac = r->ac;
    char why[256];
    snprintf(why, sizeof why, "%s", ac->errstr ? ac->errstr : "cannot connect");
    gone(r, why);
    redisAsyncFree(ac);
    return;
  }
  r->since_ns = btc_loop_now_ns(r->loop);
  r->ac->ev.addRead = add_read;
  r->ac->ev.delRead = del_read;
  r->ac->ev.addWrite = add_write;
  r->ac->ev.delWrite = del_write;
  r->ac->ev.cleanup = clean_up;
  redisAsyncSetConnectCallback(r->ac, on_connect); /* also asks for the first write event */
  redisAsyncSetDisconnectCallback(r->ac, on_disconnect);
  btc_timer_after_ms(r->timer, CHECK_MS);
}

/* One look-up at a time: one that outlives its deadline is told and waited for again, since nothing can end it. */
static void look(btc_redis *r) {
  char address[64], why[256];
  int64_t waited_ms = (btc_loop_now_ns(r->loop) - r->since_ns) / 1000000;
  btc_resolve_state found = btc_resolve_look(r->resolve, r->turn, address, why, sizeof why);
  if (found == BTC_RESOLVE_WAITS && waited_ms < CONNECT_MS) {
    btc_timer_after_ms(r->timer, waited_ms < CHECK_MS ? LOOK_MS : CHECK_MS);
    return;
  }
  if (found == BTC_RESOLVE_WAITS) {
    snprintf(why, sizeof why, "the host '%.128s' is not found in 5 s: no name server answers", r->address.host);
    rest(r, why);
    return;
  }
  btc_resolve_destroy(&r->resolve);
  if (found == BTC_RESOLVE_FOUND)
    connect_to(r, address);
  else
    rest(r, why);
}

static void connect_now(btc_redis *r) {
  if (r->address.path[0] || btc_resolve_is_address(r->address.host)) {
    connect_to(r, r->address.host);
    return;
  }
  if (r->state != RESOLVING) {
    r->state = RESOLVING;
    r->since_ns = btc_loop_now_ns(r->loop);
    if (!r->resolve) r->resolve = btc_resolve_start(r->address.host);
  }
  if (r->resolve)
    look(r);
  else
    rest(r, "cannot look the host up: out of memory");
}

static void on_timer(void *ctx) {
  btc_redis *r = ctx;
  if (!r->ac) {
    connect_now(r);
    return;
  }
  int64_t now = btc_loop_now_ns(r->loop);
  bool slept = now - r->checked_ns > (int64_t)SLEPT_MS * 1000000; /* SIGSTOP: the answer may lie unread, look again in a moment */
  r->checked_ns = now;
  btc_timer_after_ms(r->timer, CHECK_MS);
  if (slept) return;
  if (r->state == CONNECTING && now - r->since_ns > (int64_t)CONNECT_MS * 1000000) {
    drop(r, "no connection in 5 s");
    if (r->ac) { /* never connected: hiredis tells nobody */
      gone(r, r->trouble);
    }
  } else if (r->head && now > r->head->due_ns) {
    drop(r, "no answer in time");
  }
}

btc_status btc_redis_create(btc_loop *l, const btc_redis_options *o, btc_redis **out, btc_error *err) {
  btc_redis *r = btc_alloc_zero(1, sizeof *r);
  *out = r;
  if (!r) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  r->loop = l;
  r->o = *o;
  r->tail = &r->head;
  r->backoff_ms = BACKOFF_MIN_MS;
  if (getrandom(&r->random, sizeof r->random, GRND_NONBLOCK) != sizeof r->random) r->random = (uint64_t)btc_now_ns();
  r->o.url = r->url = btc_strdup(o->url);
  r->o.user = r->user = btc_strdup(o->user);
  r->o.password = r->password = btc_strdup(o->password);
  r->o.prefix = r->prefix = btc_strdup(o->prefix);
  r->timer = btc_timer_create(l, on_timer, r);
  btc_status st = btc_redis_address_parse(o->url, &r->address, err);
  if (st == BTC_OK && (!r->timer || !r->url || !r->prefix || (o->user && !r->user) || (o->password && !r->password)))
    st = btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  if (st == BTC_OK) st = btc_handshake_create(r, &r->o, &r->handshake, err);
  if (st == BTC_OK)
    btc_timer_after_ms(r->timer, 0);
  else
    btc_redis_destroy(out);
  return st;
}

void btc_redis_destroy(btc_redis **redis) {
  btc_redis *r = *redis;
  *redis = NULL;
  if (!r) return;
  r->destroyed = true;
  r->state = DOWN;
  redisAsyncContext *ac = r->ac;
  if (ac) redisAsyncFree(ac);
  btc_handshake_destroy(&r->handshake);
  btc_resolve_destroy(&r->resolve);
  btc_timer_destroy(&r->timer);
  if (r->password) explicit_bzero(r->password, strlen(r->password));
  free(r->password);
  free(r->url);
  free(r->user);
  free(r->prefix);
  free(r);
}

/* ---- commands ---- */

/* Errors that are about the server and not about the command: nothing was done, and the connection is of no use for now. */
static bool server_error(const redisReply *reply, const char **why) {
  static const char *const kinds[] = {
      "LOADING", "READONLY", "MASTERDOWN", "NOAUTH", "CLUSTERDOWN", "NOREPLICAS", "ERR Function not found"};
  if (!reply || reply->type != REDIS_REPLY_ERROR) return false;
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
    if (strncmp(reply->str, kinds[i], strlen(kinds[i])) == 0) {
      *why = reply->str;
      return true;
    }
  return false;
}

static void on_reply(redisAsyncContext *ac, void *raw, void *privdata) {
  call *c = privdata;
  btc_redis *r = c->redis;
  const redisReply *reply = raw;
  const char *why;
  (void)ac;
  r->head = c->next;
  if (!r->head) r->tail = &r->head;
  if (r->state == UP && server_error(reply, &why)) {
    char text[256];
    snprintf(text, sizeof text, "%s", why);
    if (c->answer) c->answer(c->ctx, NULL);
    drop(r, text);
  } else if (c->answer) {
    c->answer(c->ctx, reply);
  }
  free(c);
}

static bool send_call(btc_redis *r, int argc, const char **argv, const size_t *len, int64_t deadline_ms, btc_redis_answer answer,
                      void *ctx) {
  call *c = r->ac && !r->closing ? btc_alloc_zero(1, sizeof *c) : NULL;
  if (!c) return false;
  int64_t now = btc_loop_now_ns(r->loop);
  *c = (call){.redis = r, .answer = answer, .ctx = ctx, .sent_ns = now, .due_ns = now + deadline_ms * 1000000};
  if (redisAsyncCommandArgv(r->ac, on_reply, c, argc, argv, len) != REDIS_OK) {
    free(c);
    return false;
  }
  *r->tail = c;
  r->tail = &c->next;
  return true;
}

bool btc_redis_send(btc_redis *r, int argc, const char **argv, const size_t *len, int64_t deadline_ms, btc_redis_answer answer,
                    void *ctx) {
  return r->state == UP && send_call(r, argc, argv, len, deadline_ms ? deadline_ms : r->o.deadline_ms, answer, ctx);
}

bool btc_redis_send_raw(btc_redis *r, int argc, const char **argv, const size_t *len, btc_redis_answer answer, void *ctx) {
  return send_call(r, argc, argv, len, r->o.deadline_ms, answer, ctx);
}

void btc_redis_handshake_done(btc_redis *r, btc_handshake_end end, const char *why) {
  char quoted[300];
  if (end == BTC_HANDSHAKE_READY) {
    r->state = UP;
    r->backoff_ms = BACKOFF_MIN_MS;
    r->trouble[0] = 0;
    btc_log(BTC_LOG_INFO, "redis-up", "connection=%s address=%s", r->o.label, r->url);
    r->o.up(r->o.ctx);
    return;
  }
  if (end == BTC_HANDSHAKE_FATAL) {
    BTC_LOG_LIMITED(BTC_LOG_ERROR, "redis-refused", "connection=%s msg=%s", r->o.label, btc_log_quote(quoted, sizeof quoted, why));
    r->backoff_ms = BACKOFF_MAX_MS;
    if (r->o.fatal) r->o.fatal(r->o.ctx, why);
  }
  drop(r, why);
}

bool btc_redis_is_up(const btc_redis *r) {
  return r && r->state == UP && !r->closing;
}

int64_t btc_redis_lag_ms(const btc_redis *r) {
  return r && r->head ? (btc_loop_now_ns(r->loop) - r->head->sent_ns) / 1000000 : 0;
}

const char *btc_redis_trouble(const btc_redis *r) {
  return r ? r->trouble : "";
}
