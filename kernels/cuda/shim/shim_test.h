/* What tests in C ask the shim. */
#ifndef BTC_KERNELS_CUDA_SHIM_TEST_H
#define BTC_KERNELS_CUDA_SHIM_TEST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { BTC_SHIM_LAUNCH_FAILED = 719 }; /* cudaErrorLaunchFailure; cudaErrorInvalidConfiguration (9) for an impossible launch */

/* Why the last launch failed ("" if none has); also printed to stderr when it happens. Lives until the next failure. */
const char *btc_shim_message(void);
/* Failing launches are expected: do not print. */
void btc_shim_quiet(int on);
/* A copy, a set or a wait of the host: what was launched so far has ended. The race detector wants to know, for early launches. */
void btc_shim_settled(void);
/* A kernel of somebody else's has been launched, no early one, and wrote that. */
void btc_shim_foreign(const void *written, size_t bytes);
/* Called in front of every launch with its stream, if set: a stand-in for the runtime may have something to do there first. */
extern void (*btc_shim_before)(void *stream);

/* ---- traffic (traffic.h), of kernels that are instrumented ---- */

/* Of one place in a kernel: requests of warps, and what they took together, at least and at worst for one: passes through the banks
 * of shared memory, or sectors of global memory. bytes: of one lane. The texts live for the call. */
typedef struct btc_shim_traffic {
  const char *kernel, *where;
  int shared, write, bytes;
  int64_t requests, taken, least;
  int worst;
} btc_shim_traffic;

void btc_shim_traffic_begin(void); /* forgets what was counted before */
void btc_shim_traffic_end(void);
void btc_shim_traffic_each(void (*f)(void *context, const btc_shim_traffic *row), void *context);

/* ---- tapes ---- */

/* What a thread launches between begin and end is kept, with its parameters as they are then, instead of run; a tape is run as
 * often as wanted. The caller destroys it. */
typedef struct btc_shim_tape btc_shim_tape;
btc_shim_tape *btc_shim_tape_begin(void);
void btc_shim_tape_end(void);
/* Other work between launches, with a copy of its context; false: no tape of this thread's is recording. */
int btc_shim_tape_add(int (*work)(const void *context), const void *context, size_t bytes);
int btc_shim_tape_run(const btc_shim_tape *t); /* the first result that is not 0 */
void btc_shim_tape_destroy(btc_shim_tape *t);

#ifdef __cplusplus
}
#endif

#endif
