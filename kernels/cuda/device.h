/*
 * What every .cu file here includes: one source for two compilers. nvcc makes device code of it; a plain C++ compiler makes host
 * code that runs on the shim (shim/shim.h), so that each kernel is checked where there is no GPU.
 *
 * Rules for a kernel file:
 *  - shared memory only by BTC_SHARED / BTC_DYNAMIC_SHARED (the shim poisons and bounds it);
 *  - launches only by BTC_LAUNCH and BTC_LAUNCH_EARLY; kernels are `static __global__ void`;
 *  - arithmetic whose bits matter uses + - * / fmaf sqrtf and the functions below, which agree on both sides (contraction is off
 *    in both builds); library functions such as expf differ in the last places between the two;
 *  - a PTX instruction is a function with a device body (asm) and a host body (plain C++ over btc_shim_exchange).
 */
#ifndef BTC_KERNELS_CUDA_DEVICE_H
#define BTC_KERNELS_CUDA_DEVICE_H

#ifdef __CUDACC__

#include <cuda_runtime.h>

#include <cuda_fp16.h>

#include "kernels/cuda/launch.h"

#define BTC_DEVICE static __device__ __forceinline__
#define BTC_UNROLL _Pragma("unroll")
/* In a kernel: T name[n] in shared memory, uninitialised, 16-byte aligned: kernels use it four floats at once. The type may not
 * contain a comma. */
#define BTC_SHARED(T, name, n) __shared__ __align__(16) T name[n]
/* The kernel's dynamic shared memory as T *name, 16-byte aligned. */
#define BTC_DYNAMIC_SHARED(T, name)             \
  extern __shared__ uint4 btc_dynamic_shared[]; \
  T *name = reinterpret_cast<T *>(btc_dynamic_shared)
/* Before the first launch of a kernel with more than 48 KiB of dynamic shared memory; an int as above. */
#define BTC_ALLOW_SHARED(kernel, bytes) \
  static_cast<int>(cudaFuncSetAttribute((kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)))

#else

#include "kernels/cuda/shim/shim.h"

#define BTC_DEVICE BTC_SHIM_FLAT
#define BTC_UNROLL

#endif

#include <cmath>
#include <cstdint>

#include "kernels/cuda/cuda.h"

#define BTC_FULL_WARP 0xffffffffu

/* ---- loads ---- */

/* Sixteen bytes that a kernel reads once, past L1, or zeros when they are not there. CONSTANT: nothing writes them while the kernel
 * lives. One statement that writes its registers in place: as a choice between two values the compiler would wait for each load to
 * make it. */
template <bool CONSTANT>
BTC_DEVICE uint4 load_once(const void *p, bool there) {
#ifdef __CUDACC__
#define BTC_LOAD_ONCE(space)                           \
  asm volatile(                                        \
      "{\n"                                            \
      " .reg .pred there;\n"                           \
      " setp.ne.b32 there, %5, 0;\n"                   \
      " mov.b32 %0, 0;\n"                              \
      " mov.b32 %1, 0;\n"                              \
      " mov.b32 %2, 0;\n"                              \
      " mov.b32 %3, 0;\n"                              \
      " @there ld." space                              \
      ".L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];\n" \
      "}"                                              \
      : "=&r"(u.x), "=&r"(u.y), "=&r"(u.z), "=&r"(u.w) \
      : "l"(p), "r"(static_cast<int>(there)))
  uint4 u;
  if constexpr (CONSTANT)
    BTC_LOAD_ONCE("global.nc");
  else
    BTC_LOAD_ONCE("global");
  return u;
#undef BTC_LOAD_ONCE
#else
  if (!there) return make_uint4(0, 0, 0, 0);
  return CONSTANT ? __ldg(static_cast<const uint4 *>(p)) : *static_cast<const uint4 *>(p);
#endif
}

/* ---- launches that overlap (launch.h, BTC_LAUNCH_EARLY); without effect in others and on chips before sm_90 ---- */

/* The launch behind this one may begin as soon as all blocks of this one have said so or have ended. */
BTC_DEVICE void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Until the launch before this one, and so all before it, has ended and what it wrote can be read. */
BTC_DEVICE void await_launch_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#elif !defined(__CUDACC__)
  btc_shim_await();
#endif
}

BTC_DEVICE float bits_float(uint32_t u) {
#ifdef __CUDACC__
  return __uint_as_float(u);
#else
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
#endif
}

BTC_DEVICE uint32_t float_bits(float x) {
#ifdef __CUDACC__
  return __float_as_uint(x);
#else
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
#endif
}

/* ---- stored formats; the same bits as btc_f32_to_bf16 and its fellows of ops/dtype.c ---- */

BTC_DEVICE float bf16_to_f32(uint16_t x) {
  return bits_float(static_cast<uint32_t>(x) << 16);
}

/* The two halves of a word, the lower one first in memory. */
BTC_DEVICE float bf16_low(uint32_t pair) {
  return bits_float(pair << 16);
}

BTC_DEVICE float bf16_high(uint32_t pair) {
  return bits_float(pair & 0xffff0000u);
}

/* Nearest even; a NaN stays one (its payload is not kept: the hardware has one NaN). */
BTC_DEVICE uint16_t f32_to_bf16(float x) {
#ifdef __CUDACC__
  uint16_t h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x));
  return h;
#else
  uint32_t u = float_bits(x);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
#endif
}

BTC_DEVICE uint32_t pack_bf16(float low, float high) {
#ifdef __CUDACC__
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return f32_to_bf16(low) | static_cast<uint32_t>(f32_to_bf16(high)) << 16;
#endif
}

BTC_DEVICE float f16_to_f32(uint16_t x) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(x));
#else
  uint32_t sign = static_cast<uint32_t>(x & 0x8000) << 16, exponent = x >> 10 & 31, mantissa = x & 0x3ff;
  if (exponent == 31) return bits_float(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
  if (exponent) return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
  float subnormal = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -subnormal : subnormal;
#endif
}

/* ---- fast instructions: a few units in the last place from the exact value on both sides, not the same bits ---- */

BTC_DEVICE float fast_exp2(float x) { /* 2^x; 0 for -inf */
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

BTC_DEVICE float fast_divide(float a, float b) { /* |b| in [2^-126, 2^126] */
#ifdef __CUDACC__
  return __fdividef(a, b);
#else
  return a / b;
#endif
}

/* ---- sums over a warp: a fixed tree, the same value in every lane ---- */

BTC_DEVICE float warp_sum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(BTC_FULL_WARP, x, step);
  return x;
}

BTC_DEVICE float warp_max(float x) {
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(BTC_FULL_WARP, x, step));
  return x;
}

#endif
