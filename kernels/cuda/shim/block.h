/* Private to the shim: the threads of the block that runs, and how one of them ends the launch. */
#ifndef BTC_KERNELS_CUDA_SHIM_BLOCK_H
#define BTC_KERNELS_CUDA_SHIM_BLOCK_H

#include <cstdint>

#include "kernels/cuda/shim/clock.h"
#include "kernels/cuda/shim/fiber.h"
#include "kernels/cuda/shim/shim.h"

/* MOST_SHARED: of a block on an A100 (sm_80), the least of the chips that kernels are compiled for; an H200 has 227 KiB. */
enum { MAX_COPIES = 256, MOST_SHARED = 163 << 10 };

enum wait_kind { RUNS, AT_BARRIER, AT_WARP, ENDED };

struct pending_copy {
  void *dst;
  const void *src;
  int bytes, valid, group;
};

/* Variables of the shim that kernels read: kept together so that the race detector can tell them. So are a launch's parameters. */
#define BTC_SHIM_OWN __attribute__((section("btc_shim_own")))
extern "C" const char __start_btc_shim_own[], __stop_btc_shim_own[];
extern const char *btc_shim_parameters, *btc_shim_parameters_end;
static inline bool btc_shim_is_own(const void *p) {
  return (p >= __start_btc_shim_own && p < __stop_btc_shim_own) || (p >= btc_shim_parameters && p < btc_shim_parameters_end);
}

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
extern int btc_shim_running; /* its number in the block; -1: none */
/* Ends the launch with a message; from inside a thread it does not return. */
void btc_shim_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* memory.cc */
bool btc_shim_memory_launch(size_t dynamic_bytes); /* false: no memory */
void btc_shim_memory_block();                      /* poisons */
void btc_shim_memory_block_end();                  /* checks the zone behind dynamic memory */
void btc_shim_memory_end();

/* Where shared memory is now. */
struct shared_range {
  uintptr_t low, high;
};
extern shared_range btc_shim_static, btc_shim_moving;
static inline bool btc_shim_is_shared(uintptr_t p) {
  return (p >= btc_shim_static.low && p < btc_shim_static.high) || (p >= btc_shim_moving.low && p < btc_shim_moving.high);
}

#endif
