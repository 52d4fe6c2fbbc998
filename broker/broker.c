/* Putting it together: what is made in which order, signals, the drain. */
#define _GNU_SOURCE
#include "broker.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <zmq.h>

#include "core.h"
#include "duties.h"
#include "expand.h"
#include "http.h"
#include "ingest.h"
#include "jobs.h"
#include "pipes.h"
#include "recover.h"
#include "request.h"
#include "session.h"
#include "sink.h"

enum {
  TICK_MS = 50,
  START_MS = 10000,
  FLUSH_MS = 5000,
  GOODBYE_MS = 100,
  COMMAND_MS = 4500, /* a cut is noticed within 5 s */
  WORKER_HWM = 8192,
  CLIENT_HWM = 1024,
  SINK_GRACE_MS = 5000
};

/* ---- what the other files use ---- */

uint64_t btc_broker_random(btc_broker *b) {
  uint64_t x;
  if (getrandom(&x, sizeof x, 0) == sizeof x) return x;
  b->random = b->random * 6364136223846793005u + (uint64_t)btc_now_ns();
  return b->random;
}

bool btc_broker_send(btc_broker *b, void *socket, const btc_peer_id *to, Btc__Envelope *e) {
  btc_error err;
  if (btc_socket_send(socket, to, e, &err) == BTC_OK) return true;
  for (btc_session *s = b->sessions; s && socket == b->workers; s = s->next)
    if (btc_peer_id_equal(&s->peer, to)) s->suspect = true; /* until it is heard of again */
  BTC_LOG_LIMITED(BTC_LOG_WARN, "send-failed", "body=%s msg=\"%s\"", btc_wire_body_name(e->body_case), err.message);
  return false;
}

void btc_broker_nack(btc_broker *b, void *socket, const btc_peer_id *to, uint64_t req_id, Btc__NackCode code, const char *message,
                     uint32_t retry_ms) {
  Btc__Nack nack = BTC__NACK__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_NACK);
  nack.req_id = req_id;
  nack.code = code;
  nack.message = (char *)message;
  nack.retry_ms = retry_ms;
  e.nack = &nack;
  btc_broker_send(b, socket, to, &e);
}

static bool made_of(const char *s, const char *others, size_t max) {
  size_t n = 0;
  for (; s[n]; n++) {
    char c = s[n];
    bool alnum = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (n == max || (!alnum && !strchr(others, c))) return false;
  }
  return true;
}

bool btc_name_valid(const char *s) {
  return *s && made_of(s, "._-", 64);
}

bool btc_class_valid(const char *s) {
  return made_of(s, "._:-", 128);
}

bool btc_broker_refused(const char *what, const redisReply *r) {
  char quoted[400];
  if (r && r->type == REDIS_REPLY_ERROR)
    BTC_LOG_LIMITED(BTC_LOG_WARN, "redis-refused", "call=%s msg=%s", what, btc_log_quote(quoted, sizeof quoted, r->str));
  return btc_answer_failed(r);
}

/* ---- Redis comes and goes ---- */

static void announce(btc_broker *b) {
  char clients[256], workers[256];
  printf("ready clients=%s workers=%s http=%s\n", btc_socket_endpoint(b->clients, clients, sizeof clients),
         btc_socket_endpoint(b->workers, workers, sizeof workers), b->http ? btc_http_address(b->http) : "-");
  fflush(stdout);
  btc_log(BTC_LOG_INFO, "ready", "broker=%s queue=%s clients=%s workers=%s", b->name, b->o->queue, clients, workers);
}

static void fail(btc_broker *b, btc_status code, const char *what, const char *why) {
  b->failed = btc_fail(&b->why, code, "%s: %s", what, why);
  btc_loop_stop(b->loop);
}

static void start_sink(btc_broker *b) {
  btc_error err;
  if (!b->o->results) {
    btc_metrics_health(b->metrics, BTC_HEALTH_SINK, true, "");
    return;
  }
  btc_sink_options o = {.redis = b->o->redis,
                        .redis_user = b->o->redis_user,
                        .redis_password_file = b->o->redis_password_file,
                        .queue = b->o->queue,
                        .broker = b->name,
                        .results = b->o->results,
                        .metrics = b->metrics};
  if (btc_sink_start(&o, &b->sink, &err) != BTC_OK) fail(b, err.code, "results", err.message);
}

static void on_up(void *ctx) {
  btc_broker *b = ctx;
  btc_metrics_health(b->metrics, BTC_HEALTH_REDIS, true, "");
  btc_metrics_health(b->metrics, BTC_HEALTH_LIBRARY, true, "");
  btc_recover_begin(b);
  if (b->started) {
    btc_metrics_add(b->metrics, BTC_METRIC_REDIS_RECONNECTS, 1);
    return;
  }
  b->started = true;
  start_sink(b);
  if (b->failed == BTC_OK) announce(b);
}

static void on_down(void *ctx) {
  btc_broker *b = ctx;
  btc_metrics_health(b->metrics, BTC_HEALTH_REDIS, false, btc_redis_trouble(b->redis));
}

static void on_fatal(void *ctx, const char *why) {
  btc_broker *b = ctx;
  btc_metrics_health(b->metrics, BTC_HEALTH_LIBRARY, false, why);
  if (!b->started) fail(b, BTC_ERR_UNSUPPORTED, b->o->redis, why);
}

static void on_feed_up(void *ctx) {
  btc_ingest_poke(ctx);
}

static void on_feed_down(void *ctx) {
  (void)ctx; /* `up` reads on */
}

/* ---- the loop ---- */

static bool take_worker(void *ctx) {
  btc_broker *b = ctx;
  btc_message m;
  if (!btc_socket_take(b->workers, true, b->keys, &m)) return false;
  btc_session_message(b, &m);
  btc_message_clear(&m);
  return true;
}

static bool take_client(void *ctx) {
  btc_broker *b = ctx;
  btc_message m;
  if (!btc_socket_take(b->clients, true, b->keys, &m)) return false;
  btc_request_message(b, &m);
  btc_message_clear(&m);
  return true;
}

/* Stop taking and granting, let what is on its way to Redis arrive, tell the workers, go. */
static void drain_step(btc_broker *b) {
  int64_t now = btc_loop_now_ns(b->loop);
  bool quiet = !b->commits && !btc_io_pending(b->io) && !btc_recover_busy(b);
  if (!b->told && (quiet || !btc_redis_is_up(b->redis) || now > b->stop_ns)) {
    btc_session_flush(b);
    btc_session_farewell(b);
    b->told = true;
    b->stop_ns = now + (int64_t)GOODBYE_MS * 1000000; /* the sockets have no linger */
  } else if (b->told && now > b->stop_ns) {
    btc_loop_stop(b->loop);
  }
}

typedef struct tick {
  btc_broker *b;
  btc_timer *timer;
} tick;

static void on_tick(void *ctx) {
  tick *t = ctx;
  btc_broker *b = t->b;
  btc_timer_after_ms(t->timer, TICK_MS);
  if (!b->started && btc_loop_now_ns(b->loop) - b->begun_ns > (int64_t)START_MS * 1000000) {
    fail(b, BTC_ERR_NOT_FOUND, b->o->redis, *btc_redis_trouble(b->redis) ? btc_redis_trouble(b->redis) : "no answer");
    return;
  }
  btc_duties_tick(b);
  if (b->draining) drain_step(b);
}

static void before_sleep(void *ctx) {
  btc_session_flush(ctx);
}

static void reload_keys(btc_broker *b) {
  btc_error err;
  char quoted[400];
  if (!b->keys) return;
  if (btc_keys_reload(b->keys, &err) == BTC_OK)
    btc_log(BTC_LOG_INFO, "keys-reloaded", "%s", "");
  else
    btc_log(BTC_LOG_ERROR, "keys-kept", "msg=%s", btc_log_quote(quoted, sizeof quoted, err.message));
}

static void on_signal(void *ctx, int events) {
  btc_broker *b = ctx;
  struct signalfd_siginfo info;
  (void)events;
  while (read(b->signals, &info, sizeof info) == sizeof info) {
    if (info.ssi_signo == SIGHUP) {
      reload_keys(b);
    } else if (b->draining || !b->started) {
      b->failed = btc_fail(&b->why, BTC_ERR_CANCELLED, "interrupted");
      btc_loop_stop(b->loop);
    } else {
      btc_log(BTC_LOG_INFO, "drain", "signal=%u", info.ssi_signo);
      b->draining = true;
      b->stop_ns = btc_loop_now_ns(b->loop) + (int64_t)FLUSH_MS * 1000000;
    }
  }
}

/* ---- making and ending ---- */

static btc_status catch_signals(btc_broker *b, btc_error *err) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &set, &b->old_mask); /* before any thread is made, so that all of them leave signals to the loop */
  b->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  if (b->signals < 0) return btc_fail(err, BTC_ERR_IO, "signalfd: %s", strerror(errno));
  return btc_loop_set_fd(b->loop, b->signals, BTC_LOOP_READ, on_signal, b, err);
}

static btc_status open_sockets(btc_broker *b, btc_error *err) {
  const btc_broker_options *o = b->o;
  btc_status st = BTC_OK;
  if (!o->keys != !o->allow)
    return btc_fail(err, BTC_ERR_ARG, "--keys and --allow belong together: who may come in under CURVE is a list");
  if (o->keys) st = btc_keys_load(o->keys, NULL, o->allow, &b->keys, err);
  b->zmq = zmq_ctx_new();
  if (st == BTC_OK && !b->zmq) st = btc_fail(err, BTC_ERR_NOMEM, "ZeroMQ: out of memory");
  if (st == BTC_OK && b->keys) st = btc_zap_start(b->zmq, b->keys, &b->zap, err);
  if (st == BTC_OK) st = btc_socket_bind_router(b->zmq, o->clients, b->keys, CLIENT_HWM, &b->clients, err);
  if (st == BTC_OK) st = btc_socket_bind_router(b->zmq, o->workers, b->keys, WORKER_HWM, &b->workers, err);
  if (st == BTC_OK) st = btc_loop_add_zmq(b->loop, b->clients, take_client, b, err);
  if (st == BTC_OK) st = btc_loop_add_zmq(b->loop, b->workers, take_worker, b, err);
  return st;
}

static btc_status connect_redis(btc_broker *b, btc_error *err) {
  const btc_broker_options *o = b->o;
  char number[4][24], password[513];
  const int64_t values[] = {o->max_jobs, o->max_items, o->max_out, o->max_dead};
  static const char *const names[] = {"max_jobs", "max_items", "max_out", "max_dead"};
  for (size_t i = 0; i < 4; i++) {
    snprintf(number[i], sizeof number[i], "%" PRId64, values[i]);
    b->limits[2 * i] = names[i];
    b->limits[2 * i + 1] = strcpy(b->limit_text[i], number[i]);
  }
  if (o->redis_user && !o->redis_password_file)
    return btc_fail(err, BTC_ERR_ARG, "--redis-user needs --redis-password-file: without it nobody would log in");
  btc_status st = o->redis_password_file ? btc_redis_password_read(o->redis_password_file, password, err) : BTC_OK;
  if (st != BTC_OK) return st;
  btc_redis_options r = {.label = "main",
                         .url = o->redis,
                         .user = o->redis_user,
                         .password = o->redis_password_file ? password : NULL,
                         .prefix = b->prefix,
                         .limits = b->limits,
                         .deadline_ms = COMMAND_MS,
                         .up = on_up,
                         .down = on_down,
                         .fatal = on_fatal,
                         .ctx = b};
  st = btc_redis_create(b->loop, &r, &b->redis, err);
  r.label = "feed";
  r.limits = NULL;
  r.up = on_feed_up;
  r.down = on_feed_down;
  r.fatal = NULL;
  if (st == BTC_OK) st = btc_redis_create(b->loop, &r, &b->feed, err);
  explicit_bzero(password, sizeof password);
  if (st == BTC_OK) st = btc_store_create(b->redis, b->prefix, &b->store, err);
  if (st == BTC_OK) st = btc_store_create(b->feed, b->prefix, &b->feed_store, err);
  return st;
}

static btc_status set_names(btc_broker *b, btc_error *err) {
  char host[40] = "broker";
  if (!btc_name_valid(b->o->queue))
    return btc_fail(err, BTC_ERR_ARG, "queue '%s': must have 1 to 64 of the characters A-Z a-z 0-9 . _ -", b->o->queue);
  if (b->o->name && !btc_name_valid(b->o->name))
    return btc_fail(err, BTC_ERR_ARG, "name '%s': must have 1 to 64 of the characters A-Z a-z 0-9 . _ -", b->o->name);
  gethostname(host, sizeof host - 1);
  if (b->o->name)
    snprintf(b->name, sizeof b->name, "%s", b->o->name);
  else
    snprintf(b->name, sizeof b->name, "%s-%d", btc_name_valid(host) ? host : "broker", (int)getpid());
  snprintf(b->prefix, sizeof b->prefix, "btc:{%s}:", b->o->queue);
  return BTC_OK;
}

static btc_status make(btc_broker *b, btc_error *err) {
  btc_io_options io = {.results = b->o->results, .roots = b->o->roots};
  btc_status st = set_names(b, err);
  if (st == BTC_OK) st = btc_loop_create(&b->loop, err);
  if (st == BTC_OK) st = catch_signals(b, err);
  if (st == BTC_OK && !(b->metrics = btc_metrics_create(b->o->queue, b->name))) st = btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  if (st == BTC_OK) st = open_sockets(b, err);
  if (st == BTC_OK) st = btc_jobs_create(b, err);
  if (st == BTC_OK) st = btc_expander_create(b, err);
  if (st == BTC_OK) st = btc_ingest_create(b, err);
  if (st == BTC_OK) st = btc_pipes_create(b, err);
  if (st == BTC_OK) st = btc_recover_create(b, err);
  if (st == BTC_OK) st = btc_io_create(b->loop, &io, &b->io, err);
  if (st == BTC_OK && b->o->http) st = btc_http_start(b->o->http, b->metrics, &b->http, err);
  if (st == BTC_OK) st = connect_redis(b, err);
  btc_metrics_health(b->metrics, BTC_HEALTH_SINK, !b->o->results, "the sink has not started");
  return st;
}

/* Whoever waits for Redis gets its NULL while sessions and tables still stand. */
static void end(btc_broker *b) {
  btc_sink_stop(&b->sink, b->failed == BTC_OK ? SINK_GRACE_MS : 0);
  btc_redis_destroy(&b->redis);
  btc_redis_destroy(&b->feed);
  btc_io_destroy(&b->io);
  btc_store_destroy(&b->store);
  btc_store_destroy(&b->feed_store);
  btc_recover_destroy(b);
  btc_pipes_destroy(b);
  btc_ingest_destroy(b);
  btc_expander_destroy(b);
  btc_jobs_destroy(b);
  btc_session_destroy_all(b);
  btc_http_stop(&b->http);
  btc_socket_close(&b->clients);
  btc_socket_close(&b->workers);
  btc_zap_stop(&b->zap);
  if (b->zmq) zmq_ctx_term(b->zmq);
  btc_keys_destroy(&b->keys);
  btc_metrics_destroy(&b->metrics);
  if (b->signals >= 0) {
    close(b->signals);
    pthread_sigmask(SIG_SETMASK, &b->old_mask, NULL);
  }
  btc_loop_destroy(&b->loop);
}

static btc_status run(btc_broker *b, btc_error *err) {
  tick t = {b, btc_timer_create(b->loop, on_tick, &t)};
  if (!t.timer) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  b->begun_ns = btc_loop_now_ns(b->loop);
  btc_timer_after_ms(t.timer, 0);
  btc_loop_before_sleep(b->loop, before_sleep, b);
  btc_status st = btc_loop_run(b->loop, err);
  btc_timer_destroy(&t.timer);
  if (st == BTC_OK && b->failed != BTC_OK) {
    st = b->failed;
    if (err) *err = b->why;
  }
  return st;
}

btc_status btc_broker_run(const btc_broker_options *o, btc_error *err) {
  btc_broker *b = btc_alloc_zero(1, sizeof *b);
  if (!b) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  b->o = o;
  b->signals = -1;
  if (o->verbose) btc_log_set_level(BTC_LOG_DEBUG);
  btc_status st = make(b, err);
  if (st == BTC_ERR_NOT_FOUND) st = err->code = BTC_ERR_IO; /* a file: from here on "not found" is said of Redis */
  if (st == BTC_OK) st = run(b, err);
  if (st != BTC_OK && b->failed == BTC_OK) b->failed = st;
  btc_log(BTC_LOG_INFO, "stop", "broker=%s status=\"%s\"", b->name, btc_status_text(st));
  end(b);
  free(b);
  return st;
}
