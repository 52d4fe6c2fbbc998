/* Private to the shim: the threads of the block that runs, and how one of them ends the launch. */
#ifndef BTC_KERNELS_CUDA_SHIM_BLOCK_H
#define BTC_KERNELS_CUDA_SHIM_BLOCK_H

#include "kernels/cuda/shim/fiber.h"
#include "kernels/cuda/shim/shim.h"

enum { MAX_THREADS = 1024, MAX_COPIES = 256 };

enum wait_kind { RUNS, AT_BARRIER, AT_WARP, ENDED };

struct pending_copy {
  void *dst;
  const void *src;
  int bytes, valid, group;
};

struct shim_thread {
  btc_fiber *fiber;
  wait_kind state;
  unsigned barrier, threads; /* AT_BARRIER */
  unsigned mask;             /* AT_WARP */
  size_t bytes;
  const char *file;
  int line;
  uint3 index;
  bool awaited; /* await_launch_before() */
  pending_copy copies[MAX_COPIES];
  int n_copies, group; /* group: the cp.async group now being filled */
  unsigned char brought[BTC_SHIM_SLOT];
};

/* The thread that runs now. */
shim_thread *btc_shim_current();
/* Ends the launch with a message; from inside a thread it does not return. */
void btc_shim_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* memory.cc */
bool btc_shim_memory_launch(size_t dynamic_bytes); /* false: no memory */
void btc_shim_memory_block();                      /* poisons */
void btc_shim_memory_block_end();                  /* checks the zone behind dynamic memory */
void btc_shim_memory_end();

#endif
