/* Faults for a cluster: processes killed, stopped and drained in an order that a seed repeats (BTCCHAT_SEED). */
#ifndef TEST_CHAOS_H
#define TEST_CHAOS_H

#include "cluster.h"

typedef struct chaos {
  cluster c;
  uint64_t state;                                /* of the random numbers: chaos_seed() */
  bool spare_broker;                             /* the last broker is not killed */
  int workers, stopped, drained, brokers, redis; /* how many were hit */
  int64_t wake_ms[CLUSTER_MAX_WORKERS];          /* when a stopped worker goes on, 0: it is not stopped */
} chaos;

/* From BTCCHAT_SEED or the clock; says which. Never 0. */
uint64_t chaos_seed(void);
unsigned chaos_pick(chaos *x, unsigned n);
/* One fault: most hit workers, every tenth a broker, every tenth Redis. */
void chaos_hurt(chaos *x);
/* Starts what is not running, lets stopped workers go on when it is time. Fails the test when something died by a signal that was
 * not ours, or of a sanitizer's report. */
void chaos_revive(chaos *x);
/* Everybody runs from now on. */
void chaos_calm(chaos *x);
void chaos_show(const chaos *x);

#endif
