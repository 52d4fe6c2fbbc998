/*
 * The thread pool. One 64-bit word holds the job's number (upper half) and how many of its tasks are unclaimed (lower half); a
 * worker claims one by compare-and-swap. A worker that wakes late finds nothing to claim, so nobody waits for it: on a machine
 * shared with other programs, waiting for every worker to report would cost a scheduling delay an operator.
 *
 * Idle threads spin for some 20 us, which covers the gap between two operators, then sleep.
 */
#include "pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define SPINS 400 /* times a pause of 40 to 140 cycles */

typedef struct worker {
  btc_pool *pool;
  pthread_t thread;
  int id;
} worker;

struct btc_pool {
  _Atomic uint64_t claims;    /* job << 32 | unclaimed tasks */
  _Atomic int64_t unfinished; /* tasks of the job that are not done */
  _Atomic int sleepers;       /* workers asleep or about to be */
  _Atomic bool caller_sleeps;
  _Atomic bool stopping;
  /* The job. Written before its claims are published, read only between a claim and the end of the claimed task. */
  btc_pool_task run;
  void *arg;
  int64_t n;
  pthread_mutex_t lock;
  pthread_cond_t work, done;
  int threads, started;
  worker workers[];
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static void finish_task(btc_pool *p) {
  if (atomic_fetch_sub(&p->unfinished, 1) != 1 || !atomic_load(&p->caller_sleeps)) return;
  pthread_mutex_lock(&p->lock);
  pthread_cond_signal(&p->done);
  pthread_mutex_unlock(&p->lock);
}

/* Runs what can be claimed; false when there was nothing. */
static bool run_some(btc_pool *p, int id) {
  bool any = false;
  uint64_t seen = atomic_load(&p->claims);
  while ((uint32_t)seen) {
    if (!atomic_compare_exchange_weak(&p->claims, &seen, seen - 1)) continue;
    p->run(p->arg, p->n - (int64_t)(uint32_t)seen, id);
    finish_task(p);
    any = true;
    seen = atomic_load(&p->claims);
  }
  return any;
}

static bool has_work(btc_pool *p) {
  return (uint32_t)atomic_load(&p->claims) || atomic_load(&p->stopping);
}

static void wait_for_work(btc_pool *p) {
  for (int i = 0; i < SPINS; i++) {
    if (has_work(p)) return;
    relax();
  }
  pthread_mutex_lock(&p->lock);
  atomic_fetch_add(&p->sleepers, 1); /* before the last look: the publisher looks at it after publishing */
  while (!has_work(p)) pthread_cond_wait(&p->work, &p->lock);
  atomic_fetch_sub(&p->sleepers, 1);
  pthread_mutex_unlock(&p->lock);
}

static void *worker_main(void *arg) {
  worker *w = arg;
  while (!atomic_load(&w->pool->stopping))
    if (!run_some(w->pool, w->id)) wait_for_work(w->pool);
  return NULL;
}

btc_status btc_pool_create(int threads, btc_pool **out, btc_error *err) {
  *out = NULL;
  btc_pool *p = btc_alloc_zero(1, sizeof *p + (size_t)(threads - 1) * sizeof p->workers[0]);
  if (!p) return btc_fail(err, BTC_ERR_NOMEM, "no memory for a pool of %d thread%s", threads, threads == 1 ? "" : "s");
  p->threads = threads;
  pthread_mutex_init(&p->lock, NULL);
  pthread_cond_init(&p->work, NULL);
  pthread_cond_init(&p->done, NULL);
  for (; p->started < threads - 1; p->started++) {
    worker *w = &p->workers[p->started];
    *w = (worker){.pool = p, .id = p->started + 1};
    int error = pthread_create(&w->thread, NULL, worker_main, w);
    if (error) {
      int failed = p->started + 1;
      btc_pool_destroy(p);
      return btc_fail(err, BTC_ERR_NOMEM, "cannot start thread %d of %d: %s", failed, threads, strerror(error));
    }
  }
  *out = p;
  return BTC_OK;
}

void btc_pool_destroy(btc_pool *p) {
  if (!p) return;
  pthread_mutex_lock(&p->lock);
  atomic_store(&p->stopping, true);
  pthread_cond_broadcast(&p->work);
  pthread_mutex_unlock(&p->lock);
  for (int i = 0; i < p->started; i++) pthread_join(p->workers[i].thread, NULL);
  pthread_cond_destroy(&p->done);
  pthread_cond_destroy(&p->work);
  pthread_mutex_destroy(&p->lock);
  free(p);
}

static void wait_until_done(btc_pool *p) {
  for (int i = 0; i < SPINS; i++) {
    if (!atomic_load(&p->unfinished)) return;
    relax();
  }
  pthread_mutex_lock(&p->lock);
  atomic_store(&p->caller_sleeps, true);
  while (atomic_load(&p->unfinished)) pthread_cond_wait(&p->done, &p->lock);
  atomic_store(&p->caller_sleeps, false);
  pthread_mutex_unlock(&p->lock);
}

static void run_here(int64_t n, btc_pool_task run, void *arg) {
  for (int64_t i = 0; i < n; i++) run(arg, i, 0);
}

static void run_shared(btc_pool *p, int64_t n, btc_pool_task run, void *arg) {
  p->run = run;
  p->arg = arg;
  p->n = n;
  atomic_store(&p->unfinished, n);
  uint64_t job = (atomic_load(&p->claims) >> 32) + 1;
  atomic_store(&p->claims, job << 32 | (uint64_t)n);
  if (atomic_load(&p->sleepers)) {
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
  }
  run_some(p, 0);
  wait_until_done(p);
}

/* A claim counts in 32 bits; no operator comes near. */
void btc_pool_run(btc_pool *p, int64_t n, btc_pool_task run, void *arg) {
  if (p->threads == 1 || n <= 1 || n > INT32_MAX)
    run_here(n, run, arg);
  else
    run_shared(p, n, run, arg);
}
