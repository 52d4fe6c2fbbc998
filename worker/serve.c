/*
 * The engine child's side: a thread that reads items ahead, so that the engine never waits for the agent, and the engine's loop in
 * the main thread: batch after batch, or items that join while others are under way, as the engine likes it. The agent is the only
 * one that decides when a child ends: Ctrl-C and SIGTERM sent to the whole group are ignored here, and the child dies with its
 * agent.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "engine.h"
#include "child.h"
#include "device_list.h"
#include "frame.h"

enum { QUEUE = 1024, TICK_MS = 250, DEVICE_MS = 1000, FLUSH_NS = 2000000 };

typedef struct waiting {
  uint64_t ticket;
  char *spec, *params;
} waiting;

typedef struct server {
  int fd;
  worker_engine *engine;
  /* read ahead: reader thread -> engine loop */
  pthread_mutex_t lock;
  int bell; /* eventfd: there is more in the queue */
  waiting queue[QUEUE];
  size_t head, count;
  /* what leaves: both threads */
  pthread_mutex_t out_lock;
  frame_buffer out;
  int64_t flushed_ns;
  uint64_t told;     /* progress last sent */
  int64_t device_ns; /* when the device was last told */
  /* the batch that runs: engine loop only */
  waiting *batch; /* [engine->batch] */
  worker_item *items;
  uint64_t *tickets;
  bool *answered;
  size_t n;
} server;

/* ---- out ---- */

static void flush_locked(server *s) {
  if (frame_write(&s->out, s->fd) == FRAME_CLOSED) _exit(0); /* no agent, nobody to work for */
  s->flushed_ns = btc_now_ns();
}

static void say(server *s, const Btc__Envelope *e, bool flush) {
  btc_error err;
  pthread_mutex_lock(&s->out_lock);
  btc_status st = frame_add(&s->out, e, &err);
  if (st != BTC_OK) {
    fprintf(stderr, "engine child: cannot tell the agent: %s\n", err.message);
    _exit(1); /* the agent would wait for ever */
  }
  if (flush || btc_now_ns() - s->flushed_ns > FLUSH_NS) flush_locked(s);
  pthread_mutex_unlock(&s->out_lock);
}

/* The engine's devices as a message has them. */
static void read_devices(const server *s, btc_devices *d) {
  btc_device_info info[BTC_DEVICES];
  device_list_set(d, info, s->engine->devices ? s->engine->devices(s->engine, info, BTC_DEVICES) : 0);
}

static void say_ready(server *s) {
  btc_devices devices;
  Btc__ChildReady ready = BTC__CHILD_READY__INIT;
  Btc__Envelope env = btc_wire_envelope(BTC__ENVELOPE__BODY_CHILD_READY);
  env.child_ready = &ready;
  child_clean_text(s->engine->model_name);
  ready.batch = (uint32_t)s->engine->batch;
  ready.model_class = s->engine->model_class;
  ready.model_name = s->engine->model_name;
  ready.blocks = s->engine->caps.list;
  ready.n_blocks = s->engine->caps.n;
  ready.fixed_bytes = s->engine->caps.fixed_bytes;
  ready.slots = s->engine->caps.slots;
  ready.nccl = (uint32_t)s->engine->caps.nccl;
  ready.card = s->engine->caps.card;
  ready.whole_bytes = s->engine->caps.whole_bytes;
  ready.known = s->engine->known;
  ready.recognised = s->engine->recognised;
  read_devices(s, &devices);
  ready.devices = devices.list;
  ready.n_devices = devices.n;
  say(s, &env, true);
}

static void say_failed(server *s, char *why) {
  Btc__ChildReady ready = BTC__CHILD_READY__INIT;
  Btc__Envelope env = btc_wire_envelope(BTC__ENVELOPE__BODY_CHILD_READY);
  env.child_ready = &ready;
  child_clean_text(why);
  ready.failed = true;
  ready.message = why;
  say(s, &env, true);
}

static void say_started(server *s, uint64_t *tickets, size_t n) {
  Btc__ChildStarted started = BTC__CHILD_STARTED__INIT;
  Btc__Envelope env = btc_wire_envelope(BTC__ENVELOPE__BODY_CHILD_STARTED);
  env.child_started = &started;
  started.ticket = tickets;
  started.n_ticket = n;
  started.progress = __atomic_load_n(&s->engine->progress, __ATOMIC_RELAXED);
  say(s, &env, true);
}

/* How full and busy the devices are, now and then. Progress is told elsewhere: a stuck kernel keeps a device busy, too. */
static void say_devices(server *s) {
  Btc__ChildStarted started = BTC__CHILD_STARTED__INIT;
  Btc__Envelope env = btc_wire_envelope(BTC__ENVELOPE__BODY_CHILD_STARTED);
  btc_devices devices;
  int64_t now = btc_now_ns();
  if (!s->engine->devices || now - s->device_ns < DEVICE_MS * INT64_C(1000000)) return;
  s->device_ns = now;
  read_devices(s, &devices);
  env.child_started = &started;
  started.progress = s->told;
  started.devices = devices.list;
  started.n_devices = devices.n;
  if (devices.n) say(s, &env, true);
}

/* Told with the progress made, which it does not turn. */
static void say_note(void *ctx, const char *text) {
  server *s = ctx;
  Btc__ChildStarted started = BTC__CHILD_STARTED__INIT;
  Btc__Envelope env = btc_wire_envelope(BTC__ENVELOPE__BODY_CHILD_STARTED);
  char note[1024];
  snprintf(note, sizeof note, "%s", text);
  child_clean_text(note);
  env.child_started = &started;
  started.progress = __atomic_load_n(&s->engine->progress, __ATOMIC_RELAXED);
  started.note = note;
  say(s, &env, true);
}

static void say_done(server *s, uint64_t ticket, const worker_answer *a) {
  Btc__ItemResult result = BTC__ITEM_RESULT__INIT;
  Btc__ChildDone done = BTC__CHILD_DONE__INIT;
  Btc__Envelope env = btc_wire_envelope(BTC__ENVELOPE__BODY_CHILD_DONE);
  env.child_done = &done;
  done.ticket = ticket;
  done.result = &result;
  result.outcome = a->outcome;
  result.reason = (char *)a->reason;
  if (a->id) result.id = a->id;
  if (a->message) {
    child_clean_text(a->message); /* an error text is cut by bytes, and paths may hold any */
    result.message = a->message;
  }
  if (a->record) result.record = a->record;
  say(s, &env, false);
}

/* ---- reading ahead ---- */

static void queue_items(server *s, const Btc__ChildRun *run) {
  pthread_mutex_lock(&s->lock);
  for (size_t i = 0; i < run->n_items; i++) {
    waiting w = {
        .ticket = run->items[i]->ticket, .spec = btc_strdup(run->items[i]->spec), .params = btc_strdup(run->items[i]->params)};
    if (s->count == QUEUE || !w.spec || !w.params) {
      fprintf(stderr, "engine child: %s\n", s->count == QUEUE ? "the agent sent more items than agreed" : "out of memory");
      _exit(1);
    }
    s->queue[(s->head + s->count++) % QUEUE] = w;
  }
  pthread_mutex_unlock(&s->lock);
  uint64_t one = 1;
  if (write(s->bell, &one, sizeof one) < 0) return; /* full: it rings already */
}

static void tell_progress(server *s) {
  uint64_t now = __atomic_load_n(&s->engine->progress, __ATOMIC_RELAXED);
  if (now == s->told) return;
  s->told = now;
  say_started(s, NULL, 0);
}

static void *read_ahead(void *ctx) {
  server *s = ctx;
  frame_buffer in = {0};
  for (;;) {
    struct pollfd p = {.fd = s->fd, .events = POLLIN};
    if (poll(&p, 1, TICK_MS) == 0) {
      tell_progress(s);
      say_devices(s);
      continue;
    }
    if (frame_read(&in, s->fd) == FRAME_CLOSED) _exit(0);
    Btc__Envelope *e = NULL;
    btc_error err;
    btc_status st;
    while ((st = frame_next(&in, &e, &err)) == BTC_OK && e) {
      if (e->body_case == BTC__ENVELOPE__BODY_CHILD_RUN) queue_items(s, e->child_run);
      btc_wire_free(&e);
    }
    if (st != BTC_OK) {
      fprintf(stderr, "engine child: a broken frame: %s\n", err.message);
      _exit(1);
    }
    tell_progress(s);
    say_devices(s);
  }
  return NULL;
}

/* ---- the engine's loop ---- */

/* Until an item is there, or the engine has something to do without one. */
static void wait_for_work(server *s) {
  for (;;) {
    pthread_mutex_lock(&s->lock);
    bool there = s->count > 0;
    pthread_mutex_unlock(&s->lock);
    struct pollfd f[] = {{.fd = s->bell, .events = POLLIN}, {.fd = s->engine->wake_fd ? s->engine->wake_fd : -1, .events = POLLIN}};
    uint64_t rings;
    if (there || poll(f, 2, -1) < 0 || f[1].revents) return;
    if (read(s->bell, &rings, sizeof rings) < 0) continue;
  }
}

/* Up to `most` items, at most a batch. */
static void take_batch(server *s, size_t most) {
  if (most > (size_t)s->engine->batch) most = (size_t)s->engine->batch;
  pthread_mutex_lock(&s->lock);
  for (s->n = 0; s->count && s->n < most; s->n++) {
    s->batch[s->n] = s->queue[s->head];
    s->head = (s->head + 1) % QUEUE;
    s->count--;
  }
  pthread_mutex_unlock(&s->lock);
  for (size_t i = 0; i < s->n; i++) {
    s->items[i] = (worker_item){.spec = s->batch[i].spec, .params = s->batch[i].params};
    s->tickets[i] = s->batch[i].ticket;
    s->answered[i] = false;
  }
}

static void free_batch(server *s) {
  for (size_t i = 0; i < s->n; i++) {
    free(s->batch[i].spec);
    free(s->batch[i].params);
  }
}

static void on_done(void *ctx, uint64_t index, worker_answer *a) {
  server *s = ctx;
  s->answered[index] = true;
  say_done(s, s->tickets[index], a);
  worker_answer_clear(a);
}

static void on_flush(void *ctx) {
  server *s = ctx;
  pthread_mutex_lock(&s->out_lock);
  flush_locked(s);
  pthread_mutex_unlock(&s->out_lock);
}

/* On a poisoned context nothing more can be computed. What is still in hand is for the agent to give to the next child. */
static _Noreturn void leave_device(server *s, const btc_error *err) {
  on_flush(s);
  fprintf(stderr, "%s\n", err->message);
  _exit(CHILD_EXIT_DEVICE);
}

/* Items that a failing engine left open may well work later or elsewhere. */
static void answer_rest(server *s, btc_status st, const btc_error *err) {
  for (size_t i = 0; i < s->n; i++) {
    if (s->answered[i]) continue;
    worker_answer a = {.outcome = BTC__OUTCOME__OUTCOME_TRANSIENT, .reason = st == BTC_ERR_NOMEM ? "oom" : "internal"};
    a.message = btc_strdup(err->message);
    on_done(s, i, &a);
  }
}

static void on_stream_done(void *ctx, uint64_t ticket, worker_answer *a) {
  say_done(ctx, ticket, a);
  worker_answer_clear(a);
}

/* Hands over what has arrived, as far as there is room. */
static void add_items(server *s, const worker_sink *sink) {
  if (s->engine->open(s->engine) == 0) wait_for_work(s);
  take_batch(s, s->engine->room(s->engine));
  if (s->n) say_started(s, s->tickets, s->n);
  for (size_t i = 0; i < s->n; i++) {
    btc_error err;
    btc_status st = s->engine->add(s->engine, &s->items[i], s->tickets[i], sink, &err);
    if (st == BTC_ERR_DEVICE) leave_device(s, &err);
    if (st == BTC_OK) continue;
    worker_answer a = {.outcome = BTC__OUTCOME__OUTCOME_TRANSIENT, .reason = st == BTC_ERR_NOMEM ? "oom" : "internal"};
    a.message = btc_strdup(err.message);
    on_stream_done(s, s->tickets[i], &a);
  }
  free_batch(s);
}

static _Noreturn void serve_stream(server *s) {
  const worker_sink sink = {.ctx = s, .done = on_stream_done, .flush = on_flush, .note = say_note};
  for (;;) {
    btc_error err;
    btc_status st = BTC_OK;
    add_items(s, &sink);
    if (s->engine->open(s->engine) || s->engine->wake_fd) st = s->engine->step(s->engine, &sink, &err);
    if (st == BTC_ERR_DEVICE) leave_device(s, &err);
    if (st != BTC_OK) fprintf(stderr, "engine child: %s\n", err.message); /* the items have been answered with it */
    on_flush(s);
  }
}

static _Noreturn void serve(server *s) {
  const worker_sink sink = {.ctx = s, .done = on_done, .flush = on_flush, .note = say_note};
  for (;;) {
    wait_for_work(s);
    take_batch(s, SIZE_MAX);
    say_started(s, s->tickets, s->n);
    btc_error err = {.code = BTC_ERR_INTERNAL, .message = "the engine gave no answer"};
    btc_status st = s->engine->run(s->engine, s->items, s->n, &sink, &err);
    if (st == BTC_ERR_DEVICE) leave_device(s, &err);
    answer_rest(s, st, &err);
    on_flush(s);
    free_batch(s);
  }
}

/* ---- entry ---- */

void worker_answer_clear(worker_answer *a) {
  free(a->id);
  free(a->message);
  free(a->record);
  *a = (worker_answer){0};
}

static void settle(void) {
  sigset_t none;
  signal(SIGINT, SIG_IGN);
  signal(SIGTERM, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL); /* the agent blocks what it reads from a descriptor */
}

static btc_status prepare(server *s, const btc_worker_options *o, btc_error *err) {
  btc_status st = strcmp(o->engine, "stub") == 0 ? engine_stub_create(o, &s->engine, err)
                  : o->memory_mib > 0            ? engine_member_create(o, &s->engine, err)
                  : o->pipe > 1                  ? engine_pipe_create(o, &s->engine, err)
                                                 : engine_model_create(o, &s->engine, err);
  if (st != BTC_OK) return st;
  size_t n = (size_t)s->engine->batch;
  s->batch = btc_alloc_zero(n, sizeof *s->batch);
  s->items = btc_alloc_zero(n, sizeof *s->items);
  s->tickets = btc_alloc_zero(n, sizeof *s->tickets);
  s->answered = btc_alloc_zero(n, sizeof *s->answered);
  return s->batch && s->items && s->tickets && s->answered ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
}

btc_status btc_worker_child(const btc_worker_options *o, int fd, btc_error *err) {
  static server s = {.lock = PTHREAD_MUTEX_INITIALIZER, .out_lock = PTHREAD_MUTEX_INITIALIZER};
  pthread_t reader;
  settle();
  s.fd = fd;
  s.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  btc_status st = s.bell >= 0 ? prepare(&s, o, err) : btc_fail(err, BTC_ERR_IO, "cannot make an event: %s", strerror(errno));
  if (st != BTC_OK || !s.engine) {
    say_failed(&s, err->message);
    return st;
  }
  say_ready(&s);
  if (pthread_create(&reader, NULL, read_ahead, &s) != 0) return btc_fail(err, BTC_ERR_NOMEM, "cannot start a thread");
  if (s.engine->add) serve_stream(&s);
  serve(&s);
}
