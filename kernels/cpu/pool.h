/*
 * pool: a fixed set of threads that run numbered tasks. Which thread runs which task is left to chance; results must not depend
 * on it. The caller of btc_pool_run is one of the threads (worker 0). Private to kernels/cpu.
 */
#ifndef BTC_KERNELS_CPU_POOL_H
#define BTC_KERNELS_CPU_POOL_H

#include "base/base.h"

typedef struct btc_pool btc_pool;
/* worker in [0, threads): for scratch. */
typedef void (*btc_pool_task)(void *arg, int64_t task, int worker);

btc_status btc_pool_create(int threads, btc_pool **out, btc_error *err);
void btc_pool_destroy(btc_pool *p); /* NULL is fine */
/* Runs task 0..n-1 and returns when all are done. Not reentrant. */
void btc_pool_run(btc_pool *p, int64_t n, btc_pool_task run, void *arg);

#endif
