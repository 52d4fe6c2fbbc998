/*
 * The host shim: CUDA kernels as plain C++, for tests. A launch runs its blocks one after another on the calling thread; the
 * threads of a block are fibers that switch at barriers and warp operations only. So:
 *  - a thread that never reaches a barrier others wait at, or two threads at different barriers, is an error with a message;
 *  - shared memory is poisoned with NaN (all bits set) at block start; its arrays stand between red zones (under ASan), dynamic
 *    shared memory has exactly the size of the launch;
 *  - the order of blocks, warps and lanes between barriers changes from launch to launch (a fixed sequence), so a missing
 *    barrier shows as a changed result;
 *  - a cp.async copies when it is waited for, not before;
 *  - a thread of an early launch that ends without await_launch_before() is an error;
 *  - more than 48 KiB of dynamic shared memory want BTC_ALLOW_SHARED first; with the static arrays it is 163 KiB at most (sm_80);
 *  - a row of ldmatrix and both sides of a cp.async that are no multiples of 16 bytes, or of the copy's size, are errors;
 *  - a vector access at an address that is no multiple of its size ends the program (by the compiler's check, CMake).
 *  - where the kernels are instrumented (the tests of kernels, in builds by gcc without a sanitizer), two accesses of a launch that
 *    no barrier, __syncwarp, or fence with an atomic orders are an error with both places: the race detector, race.h.
 * One OS thread at a time. Conflicts of banks and sectors of global memory are counted (traffic.h). What the shim cannot see:
 * speed; which of an atomic's callers comes first is the shim's choice, so that of code behind one that depends on it only what
 * this order reaches is tested.
 */
#ifndef BTC_KERNELS_CUDA_SHIM_H
#define BTC_KERNELS_CUDA_SHIM_H

#ifndef __cplusplus
#error "kernels are C++; tests in C use kernels/cuda/shim/shim_test.h"
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#include "kernels/cuda/shim/shim_test.h"

/* Inlined without optimisation as well, as on a device: the compiler's instrumentation does not see what a call that is none of
 * inline code stores where its result goes. */
#define BTC_SHIM_FLAT static inline __attribute__((always_inline))

/* ---- the words of CUDA ---- */

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static const

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {
  }
};

struct __align__(8) float2 {
  float x, y;
};
struct __align__(16) float4 {
  float x, y, z, w;
};
struct __align__(8) uint2 {
  unsigned x, y;
};
struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
struct __align__(8) int2 {
  int x, y;
};
struct __align__(16) int4 {
  int x, y, z, w;
};
struct __align__(4) uchar4 {
  unsigned char x, y, z, w;
};
struct __align__(4) ushort2 {
  unsigned short x, y;
};
struct __align__(8) ushort4 {
  unsigned short x, y, z, w;
};
BTC_SHIM_FLAT float2 make_float2(float x, float y) {
  return {x, y};
}
BTC_SHIM_FLAT float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
BTC_SHIM_FLAT uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}
BTC_SHIM_FLAT uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}
BTC_SHIM_FLAT int4 make_int4(int x, int y, int z, int w) {
  return {x, y, z, w};
}

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
enum { warpSize = 32 };

/* ---- barriers ---- */

void btc_shim_barrier(unsigned id, unsigned threads, const char *file, int line); /* threads 0: all of the block */
#define __syncthreads() btc_shim_barrier(0, 0, __FILE__, __LINE__)
/* bar.sync id, threads: id 1..15, threads a multiple of 32 */
#define btc_named_barrier(id, threads) btc_shim_barrier((id), (threads), __FILE__, __LINE__)

/* ---- warp operations ---- */

/* The lane-exchange primitive: waits until all lanes of mask are here with the same file and line, then gives `table`, where
 * table + lane * 256 is what that lane brought (at most 256 bytes). The caller reads it before its next warp operation. */
const unsigned char *btc_shim_exchange(unsigned mask, const void *mine, size_t bytes, const char *file, int line);
enum { BTC_SHIM_SLOT = 256 };
int btc_shim_lane();

/* Lane `lane`'s value of an exchange. */
template <typename T>
static inline T btc_shim_from(const unsigned char *table, int lane) {
  T v;
  memcpy(&v, table + lane * BTC_SHIM_SLOT, sizeof v);
  return v;
}

#define BTC_SHIM_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncwarp(unsigned mask = 0xffffffffu, BTC_SHIM_HERE) {
  btc_shim_exchange(mask, nullptr, 0, file, line);
}

/* A read from a lane outside the mask is undefined on a GPU and an error here. */
void btc_shim_check_source(unsigned mask, int lane, const char *file, int line);
/* So is a matrix row at an address that is no multiple of its size. */
void btc_shim_check_aligned(const void *p, size_t bytes, const char *file, int line);

template <typename T>
static inline T btc_shim_shuffle(unsigned mask, T v, int source, const char *file, int line) {
  const unsigned char *table = btc_shim_exchange(mask, &v, sizeof v, file, line);
  btc_shim_check_source(mask, source, file, line);
  return btc_shim_from<T>(table, source);
}

template <typename T>
static inline T __shfl_sync(unsigned mask, T v, int source, int width = 32, BTC_SHIM_HERE) {
  int lane = btc_shim_lane();
  return btc_shim_shuffle(mask, v, (lane & ~(width - 1)) | (source & (width - 1)), file, line);
}

template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, BTC_SHIM_HERE) {
  int lane = btc_shim_lane(), source = lane ^ bits;
  if (source / width > lane / width) source = lane;
  return btc_shim_shuffle(mask, v, source, file, line);
}

template <typename T>
static inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, BTC_SHIM_HERE) {
  int lane = btc_shim_lane(), source = lane + static_cast<int>(delta);
  if (source / width != lane / width) source = lane;
  return btc_shim_shuffle(mask, v, source, file, line);
}

template <typename T>
static inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, BTC_SHIM_HERE) {
  int lane = btc_shim_lane(), source = lane - static_cast<int>(delta);
  if (source < (lane & ~(width - 1))) source = lane;
  return btc_shim_shuffle(mask, v, source, file, line);
}

static inline unsigned __ballot_sync(unsigned mask, int predicate, BTC_SHIM_HERE) {
  const unsigned char *table = btc_shim_exchange(mask, &predicate, sizeof predicate, file, line);
  unsigned bits = 0;
  for (int i = 0; i < 32; i++)
    if ((mask >> i & 1) && btc_shim_from<int>(table, i)) bits |= 1u << i;
  return bits;
}

static inline int __any_sync(unsigned mask, int predicate, BTC_SHIM_HERE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}

static inline int __all_sync(unsigned mask, int predicate, BTC_SHIM_HERE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}

/* ---- atomics: one thread at a time runs, so plain operations ---- */

/* T, which the argument does not decide: atomicAdd(&counter, 1) adds to an unsigned as it does on a device. */
template <typename T>
struct btc_shim_itself {
  typedef T type;
};
template <typename T>
using btc_shim_as = typename btc_shim_itself<T>::type;

/* The value at p; then one for it. By functions, so that the race detector hears of an atomic and not of two plain accesses. */
void btc_shim_atomic_load(void *value, const void *p, size_t bytes);
void btc_shim_atomic_store(void *p, const void *value, size_t bytes);

/* *p = f(*p); what it was before. */
template <typename T, typename F>
BTC_SHIM_FLAT T btc_shim_update(T *p, F f) {
  T old;
  btc_shim_atomic_load(&old, p, sizeof old);
  T v = f(old);
  btc_shim_atomic_store(p, &v, sizeof v);
  return old;
}
template <typename T>
BTC_SHIM_FLAT T atomicAdd(T *p, btc_shim_as<T> v) {
  return btc_shim_update(p, [v](T old) { return static_cast<T>(old + v); });
}
template <typename T>
BTC_SHIM_FLAT T atomicMax(T *p, btc_shim_as<T> v) {
  return btc_shim_update(p, [v](T old) { return v > old ? v : old; });
}
template <typename T>
BTC_SHIM_FLAT T atomicMin(T *p, btc_shim_as<T> v) {
  return btc_shim_update(p, [v](T old) { return v < old ? v : old; });
}
template <typename T>
BTC_SHIM_FLAT T atomicExch(T *p, btc_shim_as<T> v) {
  return btc_shim_update(p, [v](T) { return v; });
}
template <typename T>
BTC_SHIM_FLAT T atomicCAS(T *p, btc_shim_as<T> expected, btc_shim_as<T> v) {
  return btc_shim_update(p, [=](T old) { return old == expected ? v : old; });
}
/* One more, and 0 behind `last`. */
BTC_SHIM_FLAT unsigned atomicInc(unsigned *p, unsigned last) {
  return btc_shim_update(p, [last](unsigned old) { return old >= last ? 0 : old + 1; });
}
void btc_shim_fence();
static inline void __threadfence() {
  btc_shim_fence();
}
static inline void __threadfence_block() {
}

/* ---- small functions ---- */

extern bool btc_shim_watches; /* the kernels of this program are instrumented, for the race detector */
/* Tells it of a read through the path for memory that nobody writes while the kernel lives (ld.global.nc). */
void btc_shim_constant(const void *p, size_t bytes);

template <typename T>
BTC_SHIM_FLAT T __ldg(const T *p) {
  if (btc_shim_watches) btc_shim_constant(p, sizeof *p);
  return *p;
}
template <typename T>
BTC_SHIM_FLAT T __ldcg(const T *p) {
  return *p;
}
static inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
static inline int __ffs(int x) {
  return __builtin_ffs(x);
}
static inline int __clz(int x) {
  return x ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}
static inline float rsqrtf(float x) { /* not the device's bits */
  return 1.0f / sqrtf(x);
}
template <typename T>
static inline T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
static inline T max(T a, T b) {
  return a < b ? b : a;
}

/* ---- cp.async: copies are made when waited for, so that a missing wait shows ---- */

/* bytes 4, 8 or 16; the first `valid` come from src, the rest become zero */
void btc_shim_cp_async(void *dst, const void *src, int bytes, int valid);
void btc_shim_cp_async_commit();
void btc_shim_cp_async_wait(int groups); /* until at most this many committed groups are pending */

/* ---- shared memory ---- */

void *btc_shim_shared(const void *site, size_t bytes, size_t align);
void *btc_shim_dynamic();

#define BTC_SHARED(T, name, n)           \
  static const char btc_site_##name = 0; \
  T(&name)[n] = *static_cast<T(*)[n]>(btc_shim_shared(&btc_site_##name, sizeof(T[n]), 16))
#define BTC_DYNAMIC_SHARED(T, name) T *name = static_cast<T *>(btc_shim_dynamic())

/* ---- launches ---- */

/* What a launch needs beside its parameters. kernel: its address, which what was allowed belongs to. */
struct btc_shim_shape {
  const char *name;
  const void *kernel;
  dim3 grid, block;
  size_t smem, parameters; /* parameters: bytes of what `thread` is called with */
  bool early;              /* every thread has to call btc_shim_await */
};

void btc_shim_await();
int btc_shim_run(const btc_shim_shape &shape, void (*thread)(void *), void *context);
int btc_shim_allow(const void *kernel, size_t bytes);
bool btc_shim_keep(std::function<int()> work); /* on the tape that is recording; false: there is none */

template <typename... P>
struct btc_shim_call {
  void (*kernel)(P...);
  std::tuple<P...> args;
  static void thread(void *self) {
    auto *call = static_cast<btc_shim_call *>(self);
    std::apply(call->kernel, call->args);
  }
};

template <typename... P, typename... A>
static inline int btc_shim_launch(const char *name, bool early, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem,
                                  void *stream, A... args) {
  btc_shim_call<P...> call{kernel, std::tuple<P...>(static_cast<P>(args)...)};
  btc_shim_shape shape{name, reinterpret_cast<const void *>(kernel), grid, block, smem, sizeof call, early};
  if (btc_shim_keep([shape, call]() mutable { return btc_shim_run(shape, btc_shim_call<P...>::thread, &call); })) return 0;
  if (btc_shim_before) btc_shim_before(stream);
  return btc_shim_run(shape, btc_shim_call<P...>::thread, &call);
}

#define BTC_LAUNCH(kernel, grid, block, smem, stream, ...) \
  btc_shim_launch(#kernel, false, kernel, (grid), (block), (smem), (stream), __VA_ARGS__)
/* As one after the other; but a thread that ends without await_launch_before() is an error. */
#define BTC_LAUNCH_EARLY(kernel, grid, block, smem, stream, ...) \
  btc_shim_launch(#kernel, true, kernel, (grid), (block), (smem), (stream), __VA_ARGS__)
#define BTC_ALLOW_SHARED(kernel, bytes) btc_shim_allow(reinterpret_cast<const void *>(kernel), (bytes))

#endif
