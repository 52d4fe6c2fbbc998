/*
 * Private to the shim: which access of a launch comes before which, whatever order the shim happens to run threads in.
 *
 * A thread has a tick, which goes on at each barrier, __syncwarp and fence it takes part in. An access is (block, thread,
 * tick); thread t knows a tick of thread u when a chain of those leads from u at that tick to t now. Between blocks there is one
 * chain only, CUDA's: u (or a thread u met at a barrier) fences, an atomic of theirs on a word, an atomic of t's side that sees it,
 * t's side fences. Fences without the atomic, or the atomic without a fence on both sides, order nothing.
 *
 * One OS thread. Blocks have serial numbers that go on over all launches, so that what is kept of an older launch is known by its
 * number; 0 is no block.
 */
#ifndef BTC_KERNELS_CUDA_SHIM_CLOCK_H
#define BTC_KERNELS_CUDA_SHIM_CLOCK_H

#include <cstddef>
#include <cstdint>

enum { MAX_THREADS = 1024 };            /* of a block */
enum : uint32_t { NEVER = UINT32_MAX }; /* tick of what nobody knows yet: a copy under way */

/* What the two questions below read; only clock.cc writes it. */
struct btc_shim_clock {
  uint32_t first, next, block; /* serial numbers: of the launch's first block, the next one's, the block that runs */
  int n;                       /* threads of a block */
  uint32_t tick[MAX_THREADS];  /* of each thread now */
  uint32_t all[MAX_THREADS], warp[MAX_THREADS]; /* what all of the block know of each thread, and what its own warp does */
  const uint32_t *rows;                         /* [n][n] what each knows of each beside that; NULL: nothing */
};
extern btc_shim_clock btc_shim_now;

/* True: the numbers have begun again, and nothing kept of older launches means anything. */
bool btc_shim_clock_launch(int n_threads, uint64_t blocks);
/* Block `index` of the launch begins. */
void btc_shim_clock_block(uint64_t index);
/* These threads met; all of the block, or lanes of `warp` in mask. */
void btc_shim_clock_meet(const int *threads, int n);
void btc_shim_clock_meet_warp(int warp, unsigned mask);
void btc_shim_clock_fence(int thread);
/* An atomic operation on the word at p, or a volatile access (a relaxed load or store). shared: p belongs to the block. */
enum word_use { WORD_BOTH, WORD_LOAD, WORD_STORE };
void btc_shim_clock_word(int thread, uintptr_t p, bool shared, word_use use);
/* Whether thread t of the block that runs knows a tick of a thread of another block of this launch. */
bool btc_shim_clock_knows_outside(int t, uint32_t block, int thread, uint32_t tick);

/* Whether thread t knows thread u's tick, both of the block that runs. */
static inline bool btc_shim_clock_knows(int t, int u, uint32_t tick) {
  const btc_shim_clock *c = &btc_shim_now;
  if (t == u) return tick != NEVER;
  if (tick <= c->all[u] || (t / 32 == u / 32 && tick <= c->warp[u])) return true;
  return c->rows && tick <= c->rows[t * c->n + u];
}

#endif
