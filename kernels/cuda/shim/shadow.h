/*
 * Private to the shim: what is kept of each piece of memory that a kernel touches. A cell stands for four bytes; where a kernel
 * touches less at once, the cells of that page of memory are split to two bytes or one. One OS thread.
 */
#ifndef BTC_KERNELS_CUDA_SHIM_SHADOW_H
#define BTC_KERNELS_CUDA_SHIM_SHADOW_H

#include <cstddef>
#include <cstdint>

enum access_kind : uint8_t { READ, WRITE, ATOMIC, VOLATILE_READ, VOLATILE_WRITE };

/* Who did it, when (clock.h) and where: an address of the program, from its beginning. block 0: nobody. */
struct btc_shim_access {
  uint32_t block, tick, place;
  uint16_t thread;
  access_kind kind;
};

/* The last write, and readers since: not all, but of as many warps and blocks as fit. */
enum { SHADOW_READERS = 3 };
struct btc_shim_cell {
  btc_shim_access write, read[SHADOW_READERS];
};

/* The first cell of the run of *n_cells cells that holds `bytes` bytes at p, or as many of them as lie in one page: *bytes says.
 * NULL: no memory. */
btc_shim_cell *btc_shim_shadow(uintptr_t p, size_t *bytes, int *n_cells);
/* Gives all back; trim: when it has become much. Not while a launch runs. */
void btc_shim_shadow_forget(void);
void btc_shim_shadow_trim(void);

#endif
