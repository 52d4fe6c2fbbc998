/* Private to the shim: stacks that take turns on one OS thread. */
#ifndef BTC_KERNELS_CUDA_SHIM_FIBER_H
#define BTC_KERNELS_CUDA_SHIM_FIBER_H

#include <cstddef>

struct btc_fiber; /* one stack, kept for the life of the process and reused */

/* A fiber that will call entry(argument) on its first resume; entry must not return. NULL when there is no memory. */
btc_fiber *btc_fiber_create(void (*entry)(void *), void *argument);
/* Forgets what is on its stack; the next resume calls entry again. */
void btc_fiber_restart(btc_fiber *f);
/* From the scheduler: runs f until it yields. */
void btc_fiber_resume(btc_fiber *f);
/* From inside the fiber that runs: back to the scheduler. */
void btc_fiber_yield(void);
/* The stack of the fiber that runs. */
extern const char *btc_fiber_low, *btc_fiber_high;
static inline bool btc_fiber_on_stack(const void *p) {
  return p >= btc_fiber_low && p < btc_fiber_high;
}

#endif
