/* One thread's event loop: see loop.h. */
#define _GNU_SOURCE
#include "net/loop.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

enum { BUDGET = 256 /* calls of one socket's handler a turn */, NOT_SET = -1, NS_PER_MS = 1000000 };

/* A source is freed only between turns, since a handler may remove any source, its own included. */
typedef struct source {
  void *socket; /* ZeroMQ, or NULL */
  int fd, events;
  bool removed;
  btc_loop_take take;
  btc_loop_ready ready;
  void *ctx;
} source;

struct btc_timer {
  btc_loop *loop;
  btc_loop_call call;
  void *ctx;
  int64_t due_ns;
  uint64_t order;         /* of btc_timer_set: equal deadlines fire in the order they were set */
  ptrdiff_t at;           /* in the heap, or NOT_SET */
  btc_timer *next, *prev; /* all timers of the loop */
};

struct btc_loop {
  int64_t (*clock)(void *);
  void *clock_ctx;
  int64_t now_ns;
  source **sources;
  zmq_pollitem_t *polled; /* [room]: same order as sources */
  size_t n_sources, room;
  btc_timer **heap; /* [heap_room >= n_timers], so that setting a timer never needs memory */
  size_t n_heap, heap_room, n_timers;
  btc_timer *timers;
  uint64_t order;
  btc_loop_call before_sleep;
  void *before_ctx;
  bool stop;
};

static int64_t system_clock(void *ctx) {
  (void)ctx;
  return btc_now_ns();
}

btc_status btc_loop_create(btc_loop **out, btc_error *err) {
  btc_loop *l = *out = btc_alloc_zero(1, sizeof *l);
  if (!l) return btc_fail(err, BTC_ERR_NOMEM, "event loop: out of memory");
  btc_loop_set_clock(l, system_clock, NULL);
  return BTC_OK;
}

void btc_loop_destroy(btc_loop **loop) {
  btc_loop *l = *loop;
  *loop = NULL;
  if (!l) return;
  for (size_t i = 0; i < l->n_sources; i++) free(l->sources[i]);
  for (btc_timer *t = l->timers, *next; t; t = next) {
    next = t->next;
    free(t);
  }
  free(l->sources);
  free(l->polled);
  free(l->heap);
  free(l);
}

int64_t btc_loop_now_ns(const btc_loop *l) {
  return l->now_ns;
}

void btc_loop_set_clock(btc_loop *l, int64_t (*now_ns)(void *), void *ctx) {
  l->clock = now_ns;
  l->clock_ctx = ctx;
  l->now_ns = now_ns(ctx);
}

void btc_loop_before_sleep(btc_loop *l, btc_loop_call call, void *ctx) {
  l->before_sleep = call;
  l->before_ctx = ctx;
}

void btc_loop_stop(btc_loop *l) {
  l->stop = true;
}

/* ---- sources ---- */

static source *add_source(btc_loop *l, btc_error *err) {
  if (l->n_sources == l->room) {
    size_t room = l->room ? 2 * l->room : 16;
    source **s = btc_realloc(l->sources, room, sizeof(source *));
    if (s) l->sources = s;
    zmq_pollitem_t *p = s ? btc_realloc(l->polled, room, sizeof *p) : NULL;
    if (p) l->polled = p;
    if (!p) return btc_fail(err, BTC_ERR_NOMEM, "event loop: out of memory"), NULL;
    l->room = room;
  }
  source *s = btc_alloc_zero(1, sizeof *s);
  if (!s) return btc_fail(err, BTC_ERR_NOMEM, "event loop: out of memory"), NULL;
  l->sources[l->n_sources++] = s;
  return s;
}

static source *find(btc_loop *l, const void *socket, int fd) {
  for (size_t i = 0; i < l->n_sources; i++) {
    source *s = l->sources[i];
    if (!s->removed && s->socket == socket && (socket || s->fd == fd)) return s;
  }
  return NULL;
}

btc_status btc_loop_add_zmq(btc_loop *l, void *socket, btc_loop_take take, void *ctx, btc_error *err) {
  if (!socket || find(l, socket, 0)) return btc_fail(err, BTC_ERR_ARG, "event loop: the socket is there already");
  source *s = add_source(l, err);
  if (!s) return BTC_ERR_NOMEM;
  *s = (source){.socket = socket, .events = BTC_LOOP_READ, .take = take, .ctx = ctx};
  return BTC_OK;
}

void btc_loop_remove_zmq(btc_loop *l, void *socket) {
  source *s = socket ? find(l, socket, 0) : NULL;
  if (s) s->removed = true;
}

btc_status btc_loop_set_fd(btc_loop *l, int fd, int events, btc_loop_ready ready, void *ctx, btc_error *err) {
  source *s = find(l, NULL, fd);
  if (!events) {
    if (s) s->removed = true;
    return BTC_OK;
  }
  if (fd < 0) return btc_fail(err, BTC_ERR_ARG, "event loop: no descriptor");
  if (!s && !(s = add_source(l, err))) return BTC_ERR_NOMEM;
  *s = (source){.fd = fd, .events = events, .ready = ready, .ctx = ctx};
  return BTC_OK;
}

static void sweep(btc_loop *l) {
  size_t n = 0;
  for (size_t i = 0; i < l->n_sources; i++) {
    if (l->sources[i]->removed)
      free(l->sources[i]);
    else
      l->sources[n++] = l->sources[i];
  }
  l->n_sources = n;
}

/* ---- timers: a binary heap by (due, order) ---- */

static bool earlier(const btc_timer *a, const btc_timer *b) {
  return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->order < b->order;
}

static void place(btc_loop *l, size_t at, btc_timer *t) {
  l->heap[at] = t;
  t->at = (ptrdiff_t)at;
}

static void sift_up(btc_loop *l, size_t at, btc_timer *t) {
  for (size_t up; at && earlier(t, l->heap[up = (at - 1) / 2]); at = up) place(l, at, l->heap[up]);
  place(l, at, t);
}

static void sift_down(btc_loop *l, size_t at, btc_timer *t) {
  for (size_t down; (down = 2 * at + 1) < l->n_heap; at = down) {
    if (down + 1 < l->n_heap && earlier(l->heap[down + 1], l->heap[down])) down++;
    if (!earlier(l->heap[down], t)) break;
    place(l, at, l->heap[down]);
  }
  place(l, at, t);
}

btc_timer *btc_timer_create(btc_loop *l, btc_loop_call call, void *ctx) {
  if (l->n_timers == l->heap_room) {
    size_t room = l->heap_room ? 2 * l->heap_room : 32;
    btc_timer **heap = btc_realloc(l->heap, room, sizeof(btc_timer *));
    if (!heap) return NULL;
    l->heap = heap;
    l->heap_room = room;
  }
  btc_timer *t = btc_alloc_zero(1, sizeof *t);
  if (!t) return NULL;
  *t = (btc_timer){.loop = l, .call = call, .ctx = ctx, .at = NOT_SET, .next = l->timers};
  if (l->timers) l->timers->prev = t;
  l->timers = t;
  l->n_timers++;
  return t;
}

void btc_timer_stop(btc_timer *t) {
  if (t->at == NOT_SET) return;
  btc_loop *l = t->loop;
  size_t at = (size_t)t->at;
  btc_timer *last = l->heap[--l->n_heap];
  t->at = NOT_SET;
  if (last == t) return;
  if (at && earlier(last, l->heap[(at - 1) / 2]))
    sift_up(l, at, last);
  else
    sift_down(l, at, last);
}

void btc_timer_set(btc_timer *t, int64_t due_ns) {
  btc_timer_stop(t);
  t->due_ns = due_ns;
  t->order = ++t->loop->order;
  sift_up(t->loop, t->loop->n_heap++, t);
}

void btc_timer_after_ms(btc_timer *t, int64_t delay_ms) {
  int64_t delay_ns;
  if (__builtin_mul_overflow(delay_ms, NS_PER_MS, &delay_ns)) delay_ns = INT64_MAX / 2;
  btc_timer_set(t, t->loop->now_ns + delay_ns);
}

void btc_timer_destroy(btc_timer **timer) {
  btc_timer *t = *timer;
  *timer = NULL;
  if (!t) return;
  btc_timer_stop(t);
  if (t->next) t->next->prev = t->prev;
  if (t->prev)
    t->prev->next = t->next;
  else
    t->loop->timers = t->next;
  t->loop->n_timers--;
  free(t);
}

/* At most as many calls as there were timers: one that sets itself again for now waits for the next turn. */
static void run_timers(btc_loop *l) {
  for (size_t n = l->n_heap; n && l->n_heap && l->heap[0]->due_ns <= l->now_ns; n--) {
    btc_timer *t = l->heap[0];
    btc_timer_stop(t);
    t->call(t->ctx);
  }
}

/* ---- a turn ---- */

static long wait_ms(const btc_loop *l, int max_wait_ms) {
  if (l->stop) return 0;
  int64_t ms = -1;
  if (l->n_heap) {
    int64_t ns = l->heap[0]->due_ns - l->clock(l->clock_ctx);
    ms = ns <= 0 ? 0 : (ns - 1) / NS_PER_MS + 1; /* rounded up: waking early would spin */
    if (ms > INT_MAX) ms = INT_MAX;
  }
  return max_wait_ms >= 0 && (ms < 0 || ms > max_wait_ms) ? max_wait_ms : (long)ms;
}

static void dispatch(source *s, int revents) {
  if (s->socket) {
    for (int i = 0; i < BUDGET && !s->removed && s->take(s->ctx); i++) {
    }
    return;
  }
  bool failed = revents & ZMQ_POLLERR;
  int events = (revents & ZMQ_POLLIN || failed ? BTC_LOOP_READ : 0) | (revents & ZMQ_POLLOUT || failed ? BTC_LOOP_WRITE : 0);
  if (events & s->events) s->ready(s->ctx, events & s->events);
}

static btc_status poll_sources(btc_loop *l, int max_wait_ms, btc_error *err) {
  sweep(l);
  size_t n = l->n_sources;
  for (size_t i = 0; i < n; i++) {
    const source *s = l->sources[i];
    short want = (short)((s->events & BTC_LOOP_READ ? ZMQ_POLLIN : 0) | (s->events & BTC_LOOP_WRITE ? ZMQ_POLLOUT : 0));
    l->polled[i] = (zmq_pollitem_t){.socket = s->socket, .fd = s->fd, .events = (short)(s->socket ? want : want | ZMQ_POLLERR)};
  }
  int ready = zmq_poll(l->polled, (int)n, wait_ms(l, max_wait_ms));
  if (ready < 0 && errno != EINTR) return btc_fail(err, BTC_ERR_IO, "event loop: cannot poll: %s", zmq_strerror(errno));
  l->now_ns = l->clock(l->clock_ctx);
  /* handlers may add sources, which moves the arrays: entries up to n keep their places until the next sweep */
  for (size_t i = 0; ready > 0 && i < n; i++)
    if (l->polled[i].revents && !l->sources[i]->removed) dispatch(l->sources[i], l->polled[i].revents);
  return BTC_OK;
}

btc_status btc_loop_turn(btc_loop *l, int max_wait_ms, btc_error *err) {
  l->now_ns = l->clock(l->clock_ctx);
  run_timers(l);
  if (l->before_sleep) l->before_sleep(l->before_ctx);
  return poll_sources(l, max_wait_ms, err);
}

btc_status btc_loop_run(btc_loop *l, btc_error *err) {
  btc_status st = BTC_OK;
  while (st == BTC_OK && !l->stop) st = btc_loop_turn(l, -1, err);
  l->stop = false;
  return st;
}
