/* See shard_post.h. */
#define _GNU_SOURCE
#include "shard_post.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

enum { TICK_MS = 20 };

struct shard_post {
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  btc_link *link;   /* the thread's while it is set; NULL: nothing is on its way */
  bool drop, stop;  /* give up the frame; end */
  btc_error failed; /* of the last frame: told once */
};

static bool is_dropped(void *ctx) {
  shard_post *p = ctx;
  pthread_mutex_lock(&p->lock);
  bool dropped = p->drop;
  pthread_mutex_unlock(&p->lock);
  return dropped;
}

static void *bring_away(void *ctx) {
  shard_post *p = ctx;
  const btc_link_wait w = {.stop = is_dropped, .ctx = p};
  pthread_mutex_lock(&p->lock);
  while (!p->stop) {
    if (!p->link) {
      pthread_cond_wait(&p->changed, &p->lock);
      continue;
    }
    btc_link *l = p->link;
    btc_error err = {0};
    pthread_mutex_unlock(&p->lock);
    btc_status st = btc_link_drain(l, &w, &err);
    pthread_mutex_lock(&p->lock);
    if (st != BTC_OK) p->failed = err;
    p->link = NULL;
    pthread_cond_broadcast(&p->changed);
  }
  pthread_mutex_unlock(&p->lock);
  return NULL;
}

btc_status shard_post_create(shard_post **out, btc_error *err) {
  pthread_condattr_t monotonic;
  shard_post *p = *out = btc_alloc_zero(1, sizeof *p);
  if (!p) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  pthread_mutex_init(&p->lock, NULL);
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&p->changed, &monotonic);
  pthread_condattr_destroy(&monotonic);
  if (pthread_create(&p->thread, NULL, bring_away, p) == 0) return BTC_OK;
  pthread_mutex_destroy(&p->lock);
  pthread_cond_destroy(&p->changed);
  free(p);
  *out = NULL;
  return btc_fail(err, BTC_ERR_NOMEM, "cannot start a thread");
}

void shard_post_destroy(shard_post **pp) {
  shard_post *p = *pp;
  if (!p) return;
  pthread_mutex_lock(&p->lock);
  p->stop = p->drop = true;
  pthread_cond_broadcast(&p->changed);
  pthread_mutex_unlock(&p->lock);
  pthread_join(p->thread, NULL);
  pthread_mutex_destroy(&p->lock);
  pthread_cond_destroy(&p->changed);
  free(p);
  *pp = NULL;
}

/* One look, or a few milliseconds of waiting. The lock is held. */
static void wait_a_tick(shard_post *p) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  t.tv_nsec += TICK_MS * 1000000L;
  t.tv_sec += t.tv_nsec / 1000000000L;
  t.tv_nsec %= 1000000000L;
  pthread_cond_timedwait(&p->changed, &p->lock, &t);
}

btc_status shard_post_wait(shard_post *p, const btc_link_wait *w, btc_error *err) {
  btc_status st = BTC_OK;
  pthread_mutex_lock(&p->lock);
  while (st == BTC_OK && p->link) {
    wait_a_tick(p);
    if (!p->link) break;
    pthread_mutex_unlock(&p->lock); /* stop may take its time */
    if (w->deadline_ns && btc_now_ns() >= w->deadline_ns)
      st = btc_fail(err, BTC_ERR_IO, "sending a frame: too late");
    else if (w->stop && w->stop(w->ctx))
      st = btc_fail(err, BTC_ERR_CANCELLED, "sending a frame: stopped");
    pthread_mutex_lock(&p->lock);
  }
  if (st == BTC_OK && p->failed.code != BTC_OK) {
    st = btc_fail(err, p->failed.code, "%s", p->failed.message);
    p->failed = (btc_error){0};
  }
  pthread_mutex_unlock(&p->lock);
  return st;
}

btc_status shard_post_send(shard_post *p, btc_link *l, const btc_link_head *h, const btc_link_part *parts, int n,
                           const btc_link_wait *w, btc_error *err) {
  btc_status st = shard_post_wait(p, w, err);
  if (st == BTC_OK) st = btc_link_queue(l, h, parts, n, err);
  if (st == BTC_OK) st = btc_link_flush(l, err);
  if (st != BTC_OK || btc_link_flushed(l)) return st;
  pthread_mutex_lock(&p->lock);
  p->link = l;
  pthread_cond_broadcast(&p->changed);
  pthread_mutex_unlock(&p->lock);
  return BTC_OK;
}

bool shard_post_has_failed(shard_post *p) {
  pthread_mutex_lock(&p->lock);
  bool failed = p->failed.code != BTC_OK;
  pthread_mutex_unlock(&p->lock);
  return failed;
}

void shard_post_drop(shard_post *p) {
  pthread_mutex_lock(&p->lock);
  p->drop = true;
  while (p->link) wait_a_tick(p);
  p->drop = false;
  p->failed = (btc_error){0};
  pthread_mutex_unlock(&p->lock);
}
