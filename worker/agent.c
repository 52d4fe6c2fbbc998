/*
 * The agent's life: load, work, drain, leave. It speaks with the broker and feeds a child that computes; it never computes itself,
 * so that heartbeats go out whatever the engine does.
 *
 * The first SIGTERM or SIGINT drains: no new items go to the child, what it has is finished within the grace, the rest is handed
 * back, and Bye is said. A second one hands everything back at once.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "agent_member.h"
#include "base/failpoint.h"
#include "base/log.h"

enum { CLOSE_MS = 5000 /* for the answers to what was handed back */, HURRIED_CLOSE_MS = 1000 };

void agent_log(const agent *a, const char *event, const char *fmt, ...) {
  char text[2048];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  btc_log(BTC_LOG_INFO, event, "worker=%s %s", a->name, text);
}

void agent_fail(agent *a, btc_status st, const char *fmt, ...) {
  va_list ap;
  char text[BTC_ERROR_TEXT];
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  if (a->status == BTC_OK) a->status = btc_fail(&a->error, st, "%s", text);
  btc_loop_stop(a->loop);
}

/* ---- draining ---- */

void agent_drain(agent *a, int64_t grace_ms, const char *why) {
  if (a->phase == AGENT_LOADING) { /* nothing is in hand yet */
    btc_loop_stop(a->loop);
    return;
  }
  if (a->phase != AGENT_WORKING) return;
  agent_log(a, "drain", "grace-ms=%lld in-hand=%zu why=\"%s\"", (long long)grace_ms, ledger_open(a->ledger), why);
  a->phase = AGENT_DRAINING;
  a->deadline_ns = btc_loop_now_ns(a->loop) + grace_ms * AGENT_MS;
  link_release_chunks(a, true);
  link_want_beat(a);
}

static void hand_all_back(agent *a, int64_t close_ms) {
  link_release_chunks(a, false);
  BTC_FAILPOINT("worker_released");
  a->phase = AGENT_CLOSING;
  a->deadline_ns = btc_loop_now_ns(a->loop) + close_ms * AGENT_MS;
}

/* Takes the next step when its time has come; wakes by the watch of the child at the latest. */
static void drain_step(agent *a) {
  int64_t now = btc_loop_now_ns(a->loop);
  bool late = now >= a->deadline_ns;
  if (a->phase == AGENT_DRAINING && (late || !a->child || !ledger_given(a->ledger) || member_waits(a))) hand_all_back(a, CLOSE_MS);
  if (a->phase < AGENT_CLOSING) return;
  link_send_results(a, true);
  bool answered = !btc_outbox_count(a->outbox);
  if (a->phase == AGENT_CLOSING && (answered || late)) {
    if (!answered) agent_log(a, "unanswered", "messages=%zu", btc_outbox_count(a->outbox));
    a->phase = AGENT_LEAVING;
    a->deadline_ns = now + HURRIED_CLOSE_MS * AGENT_MS;
    link_bye(a, "drained");
  } else if (a->phase == AGENT_LEAVING && (answered || late)) {
    btc_loop_stop(a->loop);
  }
}

static void on_signal(void *ctx, int events) {
  agent *a = ctx;
  struct signalfd_siginfo info;
  (void)events;
  while (read(a->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
    if (a->phase <= AGENT_WORKING) {
      agent_drain(a, a->o->grace_ms, "asked by a signal");
    } else {
      agent_log(a, "hurry", "why=\"a second signal\"");
      hand_all_back(a, HURRIED_CLOSE_MS);
    }
  }
}

static void before_sleep(void *ctx) {
  agent *a = ctx;
  if (a->phase == AGENT_LOADING) return;
  engine_feed(a);
  link_send_results(a, false);
  if (a->phase >= AGENT_DRAINING) drain_step(a);
  link_flush(a);
}

/* ---- birth ---- */

static btc_status set_name(agent *a, const char *name, btc_error *err) {
  char host[48];
  if (!name) {
    if (gethostname(host, sizeof host) != 0) snprintf(host, sizeof host, "worker");
    host[sizeof host - 1] = 0;
    for (char *c = host; *c; c++)
      if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-", *c)) *c = '-';
    snprintf(a->name, sizeof a->name, "%s-%d", host, (int)getpid());
    return BTC_OK;
  }
  size_t n = strlen(name);
  if (n < 1 || n > 64 || strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") != n)
    return btc_fail(err, BTC_ERR_ARG, "'%s' is no name of a worker: 1 to 64 of A-Z a-z 0-9 . _ -", name);
  memcpy(a->name, name, n + 1);
  return BTC_OK;
}

/* A later start has a higher number, which fences the earlier one at the broker. */
static uint64_t wall_clock_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static btc_status catch_signals(agent *a, sigset_t *before, btc_error *err) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigprocmask(SIG_BLOCK, &set, before);
  a->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  if (a->signal_fd < 0) return btc_fail(err, BTC_ERR_IO, "cannot catch signals: %s", strerror(errno));
  return btc_loop_set_fd(a->loop, a->signal_fd, BTC_LOOP_READ, on_signal, a, err);
}

btc_status agent_split_brokers(agent *a, btc_error *err) {
  char *rest = a->broker_list = btc_strdup(a->o->brokers);
  if (!rest) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  for (char *one; (one = strsep(&rest, ","));) {
    if (!*one) continue;
    if (a->n_brokers == AGENT_MAX_BROKERS) return btc_fail(err, BTC_ERR_ARG, "more than %d brokers", AGENT_MAX_BROKERS);
    a->brokers[a->n_brokers++] = one;
  }
  return a->n_brokers ? BTC_OK : btc_fail(err, BTC_ERR_ARG, "no broker: give its worker address, as in tcp://127.0.0.1:7412");
}

static btc_status check_options(const btc_worker_options *o, btc_error *err) {
  if (strcmp(o->engine, "stub") != 0 && strcmp(o->engine, "model") != 0)
    return btc_fail(err, BTC_ERR_ARG, "'%s' is no engine: stub or model", o->engine);
  if (o->batch < 1 || o->batch > 256) return btc_fail(err, BTC_ERR_ARG, "a batch of %d is not between 1 and 256", o->batch);
  if (o->credits < 0 || o->credits > 65536)
    return btc_fail(err, BTC_ERR_ARG, "%lld credits are not between 0 and 65536", (long long)o->credits);
  if (o->grace_ms < 0 || o->stall_ms < 10) return btc_fail(err, BTC_ERR_ARG, "the grace or the stall window is too short");
  return BTC_OK;
}

btc_status btc_worker_run(const btc_worker_options *o, btc_error *err) {
  agent a = {.o = o, .signal_fd = -1, .incarnation = wall_clock_ns()};
  sigset_t before;
  sigprocmask(SIG_SETMASK, NULL, &before);
  btc_status st = check_options(o, err);
  if (st == BTC_OK) st = set_name(&a, o->name, err);
  if (st == BTC_OK) st = btc_loop_create(&a.loop, err);
  if (st == BTC_OK) st = catch_signals(&a, &before, err);
  if (st == BTC_OK) st = link_open(&a, err);
  if (st == BTC_OK) st = engine_open(&a, err);
  if (st == BTC_OK) st = member_open(&a, err);
  if (st == BTC_OK) {
    btc_loop_before_sleep(a.loop, before_sleep, &a);
    engine_start(&a);
    if (a.status == BTC_OK) st = btc_loop_run(a.loop, err);
  }
  if (a.status != BTC_OK) st = btc_fail(err, a.status, "%s", a.error.message);
  if (a.loop) {
    engine_close(&a);
    member_close(&a);
    link_close(&a);
  }
  if (a.signal_fd >= 0) close(a.signal_fd);
  btc_loop_destroy(&a.loop);
  if (a.ledger) ledger_destroy(&a.ledger);
  sigprocmask(SIG_SETMASK, &before, NULL);
  return st;
}
