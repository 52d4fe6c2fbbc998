/*
 * One thread's event loop: ZeroMQ sockets, file descriptors and timers in one poll. Handlers run one after the other in the thread
 * of btc_loop_run and must not block. Timers lie in one heap; the clock is injected, so that tests need not sleep.
 *
 * Order of a turn: due timers, then `before_sleep`, then poll until the next deadline, then at most `budget` (256) calls of each
 * readable socket's handler, so that a chatty peer cannot starve the rest.
 */
#ifndef BTC_NET_LOOP_H
#define BTC_NET_LOOP_H

#include "base/base.h"

typedef struct btc_loop btc_loop;
typedef struct btc_timer btc_timer;

enum { BTC_LOOP_READ = 1, BTC_LOOP_WRITE = 2 };

typedef void (*btc_loop_call)(void *ctx);
/* ZeroMQ: one call = try to take one message; return false when there was none. */
typedef bool (*btc_loop_take)(void *ctx);
typedef void (*btc_loop_ready)(void *ctx, int events);

btc_status btc_loop_create(btc_loop **out, btc_error *err);
void btc_loop_destroy(btc_loop **l); /* sockets and descriptors are the caller's; timers still set are freed */

int64_t btc_loop_now_ns(const btc_loop *l); /* of this turn */
void btc_loop_set_clock(btc_loop *l, int64_t (*now_ns)(void *), void *ctx);

btc_status btc_loop_add_zmq(btc_loop *l, void *socket, btc_loop_take take, void *ctx, btc_error *err);
void btc_loop_remove_zmq(btc_loop *l, void *socket);
/* events 0 removes. ready gets the events that are there (errors and hang-ups count as both). */
btc_status btc_loop_set_fd(btc_loop *l, int fd, int events, btc_loop_ready ready, void *ctx, btc_error *err);

/* A timer that is not set yet. NULL without memory. */
btc_timer *btc_timer_create(btc_loop *l, btc_loop_call call, void *ctx);
void btc_timer_set(btc_timer *t, int64_t due_ns); /* absolute, CLOCK_MONOTONIC; replaces what was set */
void btc_timer_after_ms(btc_timer *t, int64_t delay_ms);
void btc_timer_stop(btc_timer *t);
void btc_timer_destroy(btc_timer **t);

void btc_loop_before_sleep(btc_loop *l, btc_loop_call call, void *ctx);
/* Until btc_loop_stop. SIGNALS: handle them through a signalfd given to btc_loop_set_fd. */
btc_status btc_loop_run(btc_loop *l, btc_error *err);
btc_status btc_loop_turn(btc_loop *l, int max_wait_ms, btc_error *err); /* one turn: for tests */
void btc_loop_stop(btc_loop *l);

#endif
