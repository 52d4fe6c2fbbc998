/*
 * Launches. A block runs in sweeps: a sweep first releases every barrier and warp operation that has all its threads, then runs
 * each thread that may run until it waits again. What a warp operation hands out is therefore read by every lane in the sweep
 * that released it, before the next release can overwrite it.
 */
#include <unistd.h>

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "block.h"
#include "race.h"
#include "traffic.h"

BTC_SHIM_OWN uint3 threadIdx, blockIdx;
BTC_SHIM_OWN dim3 blockDim, gridDim;
int btc_shim_running = -1;
const char *btc_shim_parameters, *btc_shim_parameters_end;

static shim_thread *threads; /* [MAX_THREADS] */
static int n_threads;
static shim_thread *running; /* NULL: the scheduler */
static void (*thread_body)(void *);
static void *thread_context;
static const char *kernel_name;
static bool failed, quiet, early;
static char message[1024];
static int order[MAX_THREADS];
static uint32_t launches;
BTC_SHIM_OWN static unsigned char tables[MAX_THREADS / 32][32 * BTC_SHIM_SLOT];

void (*btc_shim_before)(void *stream);

const char *btc_shim_message(void) {
  return message;
}

void btc_shim_quiet(int on) {
  quiet = on != 0;
}

shim_thread *btc_shim_current() {
  return running;
}

int btc_shim_lane() {
  return static_cast<int>((running - threads) % 32);
}

void btc_shim_fail(const char *format, ...) {
  if (!failed) {
    int n = snprintf(message, sizeof message, "%s, block (%u,%u,%u): ", kernel_name, blockIdx.x, blockIdx.y, blockIdx.z);
    va_list args;
    va_start(args, format);
    if (n >= 0 && n < static_cast<int>(sizeof message))
      vsnprintf(message + n, sizeof message - static_cast<size_t>(n), format, args);
    va_end(args);
    if (!quiet) fprintf(stderr, "gpu shim: %s\n", message);
  }
  failed = true;
  while (running) btc_fiber_yield(); /* never resumed: the launch is over */
}

static void fiber_entry(void *self) {
  auto *t = static_cast<shim_thread *>(self);
  for (;;) {
    thread_body(thread_context);
    if (early && !t->awaited)
      btc_shim_fail("thread %d of an early launch ends without await_launch_before()", static_cast<int>(t - threads));
    t->state = ENDED;
    btc_fiber_yield();
  }
}

static bool make_threads(int n) {
  if (!threads) threads = static_cast<shim_thread *>(calloc(MAX_THREADS, sizeof *threads));
  if (!threads) return false;
  for (int i = 0; i < n; i++) {
    if (threads[i].fiber) continue;
    threads[i].fiber = btc_fiber_create(fiber_entry, &threads[i]);
    if (!threads[i].fiber) return false;
  }
  return true;
}

/* ---- waiting ---- */

void btc_shim_atomic_load(void *value, const void *p, size_t bytes) {
  if (btc_shim_watches && running) btc_shim_race_access(reinterpret_cast<uintptr_t>(p), bytes, ATOMIC, __builtin_return_address(0));
  memcpy(value, p, bytes);
}

void btc_shim_atomic_store(void *p, const void *value, size_t bytes) {
  memcpy(p, value, bytes);
}

void btc_shim_constant(const void *p, size_t bytes) {
  btc_shim_race_constant(reinterpret_cast<uintptr_t>(p), bytes, __builtin_return_address(0));
}

void btc_shim_fence() {
  if (btc_shim_watches) btc_shim_clock_fence(btc_shim_running);
}

void btc_shim_await() {
  running->awaited = true;
}

void btc_shim_barrier(unsigned id, unsigned count, const char *file, int line) {
  shim_thread *t = running;
  t->state = AT_BARRIER;
  t->barrier = id;
  t->threads = count;
  t->file = file;
  t->line = line;
  btc_fiber_yield();
}

const unsigned char *btc_shim_exchange(unsigned mask, const void *mine, size_t bytes, const char *file, int line) {
  shim_thread *t = running;
  if (bytes > BTC_SHIM_SLOT) btc_shim_fail("an exchange of %zu bytes a lane, of at most %d", bytes, BTC_SHIM_SLOT);
  if (!(mask >> btc_shim_lane() & 1))
    btc_shim_fail("lane %d is not in its own mask %08x (%s:%d)", btc_shim_lane(), mask, file, line);
  if (bytes) memcpy(t->brought, mine, bytes);
  t->state = AT_WARP;
  t->mask = mask;
  t->bytes = bytes;
  t->file = file;
  t->line = line;
  btc_fiber_yield();
  return tables[(t - threads) / 32];
}

void btc_shim_check_source(unsigned mask, int lane, const char *file, int line) {
  if (lane < 0 || lane > 31 || !(mask >> lane & 1))
    btc_shim_fail("a shuffle from lane %d, outside mask %08x (%s:%d)", lane, mask, file, line);
}

void btc_shim_check_aligned(const void *p, size_t bytes, const char *file, int line) {
  if (reinterpret_cast<uintptr_t>(p) % bytes)
    btc_shim_fail("lane %d's row at %p is no multiple of %zu bytes (%s:%d)", btc_shim_lane(), p, bytes, file, line);
}

static bool same_place(const shim_thread *a, const shim_thread *b) {
  return a->line == b->line && strcmp(a->file, b->file) == 0;
}

static void fail_places(const char *what, const shim_thread *a, const shim_thread *b) {
  btc_shim_fail("%s: thread %d waits at %s:%d, thread %d at %s:%d", what, static_cast<int>(a - threads), a->file, a->line,
                static_cast<int>(b - threads), b->file, b->line);
}

static void release_barrier(const shim_thread *first) {
  unsigned waiting = 0, need = first->threads ? first->threads : static_cast<unsigned>(n_threads);
  for (int i = 0; i < n_threads; i++) {
    const shim_thread *t = &threads[i];
    if (t->state != AT_BARRIER || t->barrier != first->barrier) continue;
    waiting++;
    if (!same_place(t, first)) fail_places("a barrier in a branch", first, t);
  }
  if (waiting > need)
    btc_shim_fail("%u threads wait at barrier %u of %u (%s:%d)", waiting, first->barrier, need, first->file, first->line);
  if (failed || waiting != need) return;
  unsigned id = first->barrier;
  int met[MAX_THREADS], n = 0;
  for (int i = 0; i < n_threads; i++) {
    if (threads[i].state != AT_BARRIER || threads[i].barrier != id) continue;
    threads[i].state = RUNS;
    met[n++] = i;
  }
  if (btc_shim_watches) btc_shim_clock_meet(met, n);
  if (btc_shim_counts && n == n_threads) btc_shim_traffic_meet(-1);
}

static void release_warp(shim_thread *warp, int lanes, const shim_thread *first) {
  unsigned mask = first->mask;
  for (int i = 0; i < lanes; i++) {
    if (!(mask >> i & 1)) continue;
    if (warp[i].state != AT_WARP) return;
    if (warp[i].mask != mask || !same_place(&warp[i], first)) return fail_places("a warp operation in a branch", first, &warp[i]);
  }
  unsigned char *table = tables[(warp - threads) / 32];
  for (int i = 0; i < lanes; i++) {
    if (!(mask >> i & 1)) continue;
    memcpy(table + i * BTC_SHIM_SLOT, warp[i].brought, warp[i].bytes);
    warp[i].state = RUNS;
  }
  int index = static_cast<int>(warp - threads) / 32;
  if (btc_shim_watches && first->bytes == 0) btc_shim_clock_meet_warp(index, mask);
  if (btc_shim_counts && mask == 0xffffffffu) btc_shim_traffic_meet(index);
}

static void release() {
  unsigned barriers_seen = 0;
  for (int i = 0; i < n_threads && !failed; i++) {
    shim_thread *t = &threads[i];
    if (t->state == AT_WARP) {
      int base = i / 32 * 32;
      release_warp(&threads[base], n_threads - base < 32 ? n_threads - base : 32, t);
    } else if (t->state == AT_BARRIER && !(barriers_seen >> t->barrier & 1)) {
      barriers_seen |= 1u << t->barrier;
      release_barrier(t);
    }
  }
}

/* Nobody can go on: names one that waits and one it may be waiting for. */
static void fail_stuck() {
  const shim_thread *waits = nullptr, *other = nullptr;
  for (int i = 0; i < n_threads; i++) {
    const shim_thread *t = &threads[i];
    if (t->state == ENDED) {
      other = t;
    } else if (!waits) {
      waits = t;
    } else if (!other && !same_place(t, waits)) {
      other = t;
    }
  }
  const char *what = waits->state == AT_BARRIER ? "a barrier" : "a warp operation";
  if (!other)
    btc_shim_fail("all threads wait at %s that lacks threads (%s:%d)", what, waits->file, waits->line);
  else if (other->state == ENDED)
    btc_shim_fail("thread %d waits at %s (%s:%d) that thread %d never reached: it has ended", static_cast<int>(waits - threads),
                  what, waits->file, waits->line, static_cast<int>(other - threads));
  else
    fail_places("neither can go on", waits, other);
}

/* ---- running ---- */

static bool sweep() {
  bool ran = false;
  for (int i = 0; i < n_threads && !failed; i++) {
    shim_thread *t = &threads[order[i]];
    if (t->state != RUNS) continue;
    ran = true;
    running = t;
    btc_shim_running = order[i];
    threadIdx = t->index;
    btc_fiber_resume(t->fiber);
    running = nullptr;
    btc_shim_running = -1;
  }
  return ran;
}

static void run_block() {
  for (int i = 0; i < n_threads; i++) {
    threads[i].state = RUNS;
    threads[i].awaited = false;
    threads[i].n_copies = threads[i].group = 0;
  }
  btc_shim_memory_block();
  for (;;) {
    bool ran = sweep();
    if (failed) break;
    bool all = true;
    for (int i = 0; i < n_threads && all; i++) all = threads[i].state == ENDED;
    if (all) break;
    if (!ran) fail_stuck();
    release();
  }
  if (btc_shim_counts) btc_shim_traffic_meet(-1);
  if (!failed) btc_shim_memory_block_end();
}

/* Warps start at another one each launch and lanes run upwards or downwards. */
static void make_order(uint32_t seed) {
  int warps = (n_threads + 31) / 32, n = 0;
  for (int w = 0; w < warps; w++) {
    int warp = static_cast<int>((static_cast<uint32_t>(w) + (seed >> 8)) % static_cast<uint32_t>(warps));
    int lanes = n_threads - warp * 32 < 32 ? n_threads - warp * 32 : 32;
    for (int i = 0; i < lanes; i++) order[n++] = warp * 32 + (seed & 2 ? lanes - 1 - i : i);
  }
}

static void run_grid(uint32_t seed) {
  uint64_t blocks = static_cast<uint64_t>(gridDim.x) * gridDim.y * gridDim.z;
  for (uint64_t i = 0; i < blocks && !failed; i++) {
    uint64_t b = seed & 1 ? blocks - 1 - i : i;
    blockIdx = {static_cast<unsigned>(b % gridDim.x), static_cast<unsigned>(b / gridDim.x % gridDim.y),
                static_cast<unsigned>(b / gridDim.x / gridDim.y)};
    if (btc_shim_watches) btc_shim_clock_block(b);
    run_block();
  }
}

/* Kernels that were allowed more dynamic shared memory than every launch may have. */
enum { FREE_SHARED = 48 << 10, MAX_ALLOWED = 64 };

static struct {
  const void *kernel;
  size_t bytes;
} allowed[MAX_ALLOWED];

int btc_shim_allow(const void *kernel, size_t bytes) {
  int i = 0;
  if (bytes > MOST_SHARED) return 1; /* cudaErrorInvalidValue */
  while (i < MAX_ALLOWED - 1 && allowed[i].kernel && allowed[i].kernel != kernel) i++;
  allowed[i] = {kernel, bytes};
  return 0;
}

static bool is_allowed(const void *kernel, size_t bytes) {
  if (bytes <= FREE_SHARED) return true;
  for (const auto &a : allowed)
    if (a.kernel == kernel) return bytes <= a.bytes;
  return false;
}

/* The compiler's check of an access's alignment failed in the kernel that runs. */
static void misaligned(int) {
  fprintf(stderr, "gpu shim: %s, block (%u,%u,%u), thread %u: an access at an address that is no multiple of its size\n",
          kernel_name, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
  _exit(1);
}

static bool possible(dim3 grid, dim3 block, size_t smem) {
  uint64_t n = static_cast<uint64_t>(block.x) * block.y * block.z;
  return n >= 1 && n <= MAX_THREADS && block.z <= 64 && grid.x >= 1 && grid.x <= 0x7fffffff && grid.y >= 1 && grid.y <= 65535 &&
         grid.z >= 1 && grid.z <= 65535 && smem <= MOST_SHARED;
}

int btc_shim_run(const btc_shim_shape &shape, void (*body)(void *), void *context) {
  const dim3 grid = shape.grid, block = shape.block;
  const size_t smem = shape.smem;
  kernel_name = shape.name;
  early = shape.early;
  if (!launches) signal(SIGILL, misaligned);
  failed = false;
  blockIdx = {0, 0, 0};
  if (!possible(grid, block, smem)) {
    btc_shim_fail("grid %u x %u x %u, block %u x %u x %u, %zu bytes of shared memory cannot be launched", grid.x, grid.y, grid.z,
                  block.x, block.y, block.z, smem);
    return 9; /* cudaErrorInvalidConfiguration */
  }
  if (!is_allowed(shape.kernel, smem)) {
    btc_shim_fail("%zu bytes of dynamic shared memory without BTC_ALLOW_SHARED", smem);
    return 1; /* cudaErrorInvalidValue */
  }
  n_threads = static_cast<int>(block.x * block.y * block.z);
  if (!make_threads(n_threads) || !btc_shim_memory_launch(smem)) {
    btc_shim_fail("no memory for %d threads", n_threads);
    return 2; /* cudaErrorMemoryAllocation */
  }
  gridDim = grid;
  blockDim = block;
  thread_body = body;
  thread_context = context;
  btc_shim_parameters = static_cast<const char *>(context);
  btc_shim_parameters_end = btc_shim_parameters + shape.parameters;
  for (int i = 0; i < n_threads; i++) {
    unsigned t = static_cast<unsigned>(i);
    threads[i].index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
  }
  uint32_t seed = launches++ * 2654435761u >> 8;
  make_order(seed);
  if (btc_shim_counts) btc_shim_traffic_launch(shape.name);
  if (btc_shim_watches) btc_shim_race_launch(n_threads, static_cast<uint64_t>(grid.x) * grid.y * grid.z, shape.early);
  run_grid(seed);
  btc_shim_memory_end();
  if (btc_shim_watches) btc_shim_shadow_trim();
  if (failed)
    for (int i = 0; i < n_threads; i++) btc_fiber_restart(threads[i].fiber);
  return failed ? BTC_SHIM_LAUNCH_FAILED : 0;
}
