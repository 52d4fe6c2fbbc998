/*
 * Private to the shim: how the lanes of a warp spread their accesses, for what a card would only show as time. The lanes' accesses
 * from one place in the program, the first of each lane, the second of each and so on between two meetings of the warp, count as
 * one request, as the hardware makes of them where the lanes do not part.
 *  - Shared memory: passes through the 32 banks of four bytes. Lanes at the same word share it. Accesses of 8 bytes take half a
 * warp at a time, of 16 bytes a quarter.
 *  - Global memory: sectors of 32 bytes.
 * Lanes that skip an access in a loop are matched with the others' wrong ones from there to the next meeting: the figure is then
 * above the truth (attend_f32's values, at widths that are no multiple of 32).
 * Kernels compiled without optimisation (test_traffic): every access of the source is one, neither split nor merged nor left out.
 */
#ifndef BTC_KERNELS_CUDA_SHIM_TRAFFIC_H
#define BTC_KERNELS_CUDA_SHIM_TRAFFIC_H

#include <cstddef>
#include <cstdint>

extern bool btc_shim_counts; /* between btc_shim_traffic_begin and _end (shim_test.h) */

void btc_shim_traffic_launch(const char *kernel);
/* By the thread that runs. */
void btc_shim_traffic_access(uintptr_t p, size_t bytes, bool write, const void *from);
/* All lanes of a warp are at one place; -1: all of all warps. */
void btc_shim_traffic_meet(int warp);

#endif
