/*
 * Private to the shim: the race detector. Kernels compiled with the compiler's ThreadSanitizer instrumentation report each access
 * to instrument.cc; this compares it with what shadow.h keeps, by the order that clock.h knows, and ends the launch at the first
 * two accesses that nothing orders, of which one writes. That holds for the whole launch, whatever order the shim ran it in.
 *  - Shared memory: threads of a block, ordered by barriers and, in a warp, by __syncwarp. Shuffles, votes, ldmatrix and mma bring
 *    lanes together but do not order memory (CUDA C++ Programming Guide, "Warp Shuffle Functions"): the compiler may move a store
 *    over them.
 *  - Global memory: also threads of different blocks, ordered by fence, atomic, fence only (clock.h). Launches follow each other.
 *  - cp.async: from where it is issued until the thread has waited for it, any access to its destination by any thread is an
 *    error, and so is issuing it while another thread may still use the destination.
 *  - Atomics race with plain accesses, not with each other. Volatile accesses count as atomic.
 *  - An early launch, before await_launch_before(): no write to global memory, no read of what a launch that may still run wrote.
 *  - A read as constant (__ldg, load_weights): no write of this launch, nor for an early one of any that may still run.
 * An access that the compiler has removed is not seen: test_traffic runs each kernel without optimisation, watched as well.
 * Three readers a cell are kept, of different warps and blocks where there are such: a write that races with others only is missed.
 */
#ifndef BTC_KERNELS_CUDA_SHIM_RACE_H
#define BTC_KERNELS_CUDA_SHIM_RACE_H

#include "shadow.h"
#include "shim.h"

void btc_shim_race_launch(int n_threads, uint64_t blocks, bool early);
/* An access by the thread that runs; from: the code that makes it. */
void btc_shim_race_access(uintptr_t p, size_t bytes, access_kind kind, const void *from);
/* The thread that runs reads what nobody may write while the launch lives. */
void btc_shim_race_constant(uintptr_t p, size_t bytes, const void *from);
/* A copy into shared memory is under way; has been waited for. */
void btc_shim_race_copy(uintptr_t p, size_t bytes, const void *from);
void btc_shim_race_copied(uintptr_t p, size_t bytes);

/* where.cc: function, file and line of a place (an address from the beginning of the program), as far as they can be found; at
 * most `size` characters. Runs addr2line. */
void btc_shim_where(uint32_t place, char *text, size_t size);
uint32_t btc_shim_place(const void *code);

#endif
