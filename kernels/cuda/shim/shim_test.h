/* What tests in C ask the shim. */
#ifndef BTC_KERNELS_CUDA_SHIM_TEST_H
#define BTC_KERNELS_CUDA_SHIM_TEST_H

#ifdef __cplusplus
extern "C" {
#endif

enum { BTC_SHIM_LAUNCH_FAILED = 719 }; /* cudaErrorLaunchFailure; cudaErrorInvalidConfiguration (9) for an impossible launch */

/* Why the last launch failed ("" if none has); also printed to stderr when it happens. Lives until the next failure. */
const char *btc_shim_message(void);
/* Failing launches are expected: do not print. */
void btc_shim_quiet(int on);
/* Called in front of every launch with its stream, if set: a stand-in for the runtime may have something to do there first. */
extern void (*btc_shim_before)(void *stream);

#ifdef __cplusplus
}
#endif

#endif
