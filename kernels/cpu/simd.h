/*
 * simd: the few vector operations the kernels are written in, for the instruction set of the including file (isa_*.c), which
 * defines SIMD_AVX512, SIMD_AVX2 or neither. V holds VW floats. `fn` marks functions built for that set, `inl` those also inlined.
 * One kernel text thus serves every set; only the width of a vector, and so the order of sums, differs.
 */
#ifndef BTC_KERNELS_CPU_SIMD_H
#define BTC_KERNELS_CPU_SIMD_H

#include <math.h>
#include <string.h>

#include "isa.h"

#if defined(SIMD_AVX512)
#include <immintrin.h>
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define VW 16
typedef __m512 V;
#elif defined(SIMD_AVX2)
#include <immintrin.h>
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define VW 8
typedef __m256 V;
#else
#define TARGET
#define VW 4
typedef float V __attribute__((vector_size(16)));
typedef int32_t VI __attribute__((vector_size(16)));
typedef uint32_t VU __attribute__((vector_size(16)));
#endif

#define fn static TARGET
#define inl static inline TARGET __attribute__((always_inline))

#if defined(SIMD_AVX512)

inl __mmask16 vmask(int64_t n) {
  return (__mmask16)((1u << n) - 1);
}
inl V vzero(void) {
  return _mm512_setzero_ps();
}
inl V vset(float x) {
  return _mm512_set1_ps(x);
}
inl V vload(const float *p) {
  return _mm512_loadu_ps(p);
}
inl V vload_n(const float *p, int64_t n) {
  return _mm512_maskz_loadu_ps(vmask(n), p);
}
inl void vstore(float *p, V x) {
  _mm512_storeu_ps(p, x);
}
inl void vstore_n(float *p, V x, int64_t n) {
  _mm512_mask_storeu_ps(p, vmask(n), x);
}
inl V vadd(V a, V b) {
  return _mm512_add_ps(a, b);
}
inl V vsub(V a, V b) {
  return _mm512_sub_ps(a, b);
}
inl V vmul(V a, V b) {
  return _mm512_mul_ps(a, b);
}
inl V vdiv(V a, V b) {
  return _mm512_div_ps(a, b);
}
inl V vfma(V a, V b, V c) {
  return _mm512_fmadd_ps(a, b, c);
}
/* b when either is NaN, as the machine does: vmax(0, x) and vmax(bound, x) let a NaN x pass. */
inl V vmax(V a, V b) {
  return _mm512_max_ps(a, b);
}
inl V vmin(V a, V b) {
  return _mm512_min_ps(a, b);
}
inl V vround(V x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* 2^n for integral n in [-126, 127] */
inl V vpow2(V n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
/* x where x >= bound or x is NaN, else 0, decided on `by` */
inl V vzero_below(V x, V by, V bound) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(by, bound, _CMP_NLT_UQ), x);
}
inl V vround_bf16(V x) {
  __m512i u = _mm512_castps_si512(x), top = _mm512_set1_epi32((int)0xffff0000);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_and_si512(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), top);
  __m512i quiet = _mm512_or_si512(_mm512_and_si512(u, top), _mm512_set1_epi32(0x400000));
  return _mm512_castsi512_ps(_mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet));
}
inl V vload_bf16(const void *p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}
inl V vload_f16(const void *p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}
/* The upper halves of the lanes */
inl void vstore_top(void *p, V x) {
  _mm256_storeu_si256(p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(x), 16)));
}

#elif defined(SIMD_AVX2)

inl __m256i vmask(int64_t n) {
  static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256((const __m256i *)(const void *)(ones + 8 - n));
}
inl V vzero(void) {
  return _mm256_setzero_ps();
}
inl V vset(float x) {
  return _mm256_set1_ps(x);
}
inl V vload(const float *p) {
  return _mm256_loadu_ps(p);
}
inl V vload_n(const float *p, int64_t n) {
  return _mm256_maskload_ps(p, vmask(n));
}
inl void vstore(float *p, V x) {
  _mm256_storeu_ps(p, x);
}
inl void vstore_n(float *p, V x, int64_t n) {
  _mm256_maskstore_ps(p, vmask(n), x);
}
inl V vadd(V a, V b) {
  return _mm256_add_ps(a, b);
}
inl V vsub(V a, V b) {
  return _mm256_sub_ps(a, b);
}
inl V vmul(V a, V b) {
  return _mm256_mul_ps(a, b);
}
inl V vdiv(V a, V b) {
  return _mm256_div_ps(a, b);
}
inl V vfma(V a, V b, V c) {
  return _mm256_fmadd_ps(a, b, c);
}
inl V vmax(V a, V b) {
  return _mm256_max_ps(a, b);
}
inl V vmin(V a, V b) {
  return _mm256_min_ps(a, b);
}
inl V vround(V x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inl V vpow2(V n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inl V vzero_below(V x, V by, V bound) {
  return _mm256_and_ps(x, _mm256_cmp_ps(by, bound, _CMP_NLT_UQ));
}
inl V vround_bf16(V x) {
  __m256i u = _mm256_castps_si256(x), top = _mm256_set1_epi32((int)0xffff0000);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_and_si256(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), top);
  __m256i quiet = _mm256_or_si256(_mm256_and_si256(u, top), _mm256_set1_epi32(0x400000));
  return _mm256_blendv_ps(_mm256_castsi256_ps(r), _mm256_castsi256_ps(quiet), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
inl V vload_bf16(const void *p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
inl V vload_f16(const void *p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(p));
}
inl void vstore_top(void *p, V x) {
  __m256i u = _mm256_srli_epi32(_mm256_castps_si256(x), 16);
  _mm_storeu_si128(p, _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1)));
}

#else

inl V vzero(void) {
  return (V){0};
}
inl V vset(float x) {
  return (V){x, x, x, x};
}
inl V vload(const float *p) {
  V x;
  memcpy(&x, p, sizeof x);
  return x;
}
inl V vload_n(const float *p, int64_t n) {
  V x = {0};
  memcpy(&x, p, (size_t)n * sizeof *p);
  return x;
}
inl void vstore(float *p, V x) {
  memcpy(p, &x, sizeof x);
}
inl void vstore_n(float *p, V x, int64_t n) {
  memcpy(p, &x, (size_t)n * sizeof *p);
}
inl V vadd(V a, V b) {
  return a + b;
}
inl V vsub(V a, V b) {
  return a - b;
}
inl V vmul(V a, V b) {
  return a * b;
}
inl V vdiv(V a, V b) {
  return a / b;
}
inl V vfma(V a, V b, V c) {
  return a * b + c;
}
inl V vselect(VI mask, V a, V b) {
  return (V)(((VI)a & mask) | ((VI)b & ~mask));
}
inl V vmax(V a, V b) {
  return vselect(a > b, a, b);
}
inl V vmin(V a, V b) {
  return vselect(a < b, a, b);
}
/* To nearest even by the unit of 1.5*2^23; |x| < 2^22 */
inl V vround(V x) {
  return x + vset(12582912.0f) - vset(12582912.0f);
}
inl V vpow2(V n) {
  return (V)(((VU)(n + vset(12582912.0f)) - 0x4b400000 + 127) << 23);
}
inl V vzero_below(V x, V by, V bound) {
  return (V)((VI)x & ~(by < bound));
}
inl V vround_bf16(V x) {
  VU u = (VU)x, r = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000, quiet = (u & 0xffff0000) | 0x400000;
  return vselect(x != x, (V)quiet, (V)r);
}
inl V vload_bf16(const void *p) {
  uint16_t h[VW];
  memcpy(h, p, sizeof h);
  return (V)((VU){h[0], h[1], h[2], h[3]} << 16);
}
inl void vstore_top(void *p, V x) {
  VU u = (VU)x >> 16;
  uint16_t h[VW] = {(uint16_t)u[0], (uint16_t)u[1], (uint16_t)u[2], (uint16_t)u[3]};
  memcpy(p, h, sizeof h);
}
inl V vload_f16(const void *p) {
  uint16_t h[VW];
  memcpy(h, p, sizeof h);
  VU x = {h[0], h[1], h[2], h[3]}, sign = (x & 0x8000) << 16, magnitude = (x & 0x7fff) << 13;
  /* The exponent is rebiased by a product, which also makes subnormals normal; infinities and NaNs are put back by hand. */
  V scaled = (V)magnitude * vset(0x1p112f);
  VU special = (VU)((VI)(x & 0x7fff) >= 0x7c00);
  VU nan = (VU)((VI)(x & 0x7fff) > 0x7c00);
  return (V)(sign | ((VU)scaled & ~special) | ((magnitude | 0x7f800000) & special) | (nan & 0x400000));
}

#endif

/* n < VW of them */
inl void vstore_top_n(void *p, V x, int64_t n) {
  uint16_t h[VW];
  vstore_top(h, x);
  memcpy(p, h, (size_t)n * sizeof h[0]);
}

typedef uint32_t VBits __attribute__((vector_size(4 * VW)));

/* Two bf16 (in upper halves) to a word: `even` in the lower half. */
inl V vpair(V even, V odd) {
  return (V)(((VBits)even >> 16) | ((VBits)odd & 0xffff0000));
}

/* Lanes as pairs of bf16: acc + a.even b.even + a.odd b.odd. Elsewhere than on processors with the instruction this serves the
 * tests only, which run the kernels for it everywhere. */
#if defined(SIMD_AVX512)
#define TARGET_PAIRS __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")))
static inline TARGET_PAIRS __attribute__((always_inline)) V vpairs(V acc, V a, V b) {
  return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
}
#else
#define TARGET_PAIRS TARGET
inl V vpairs(V acc, V a, V b) {
  V even = vfma((V)((VBits)a << 16), (V)((VBits)b << 16), acc);
  return vfma((V)((VBits)a & 0xffff0000), (V)((VBits)b & 0xffff0000), even);
}
#endif

/* The sum of the lanes in one fixed order, halves folded onto each other; and the largest, not a NaN. */
#if defined(SIMD_AVX512) || defined(SIMD_AVX2)
#define FOLD_256(NAME, OP, OP1)                                            \
  inl float NAME(__m256 x) {                                               \
    __m128 y = OP(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)); \
    y = OP(y, _mm_movehl_ps(y, y));                                        \
    return _mm_cvtss_f32(OP1(y, _mm_shuffle_ps(y, y, 1)));                 \
  }
FOLD_256(sum_256, _mm_add_ps, _mm_add_ss)
FOLD_256(top_256, _mm_max_ps, _mm_max_ss)
#endif
#if defined(SIMD_AVX512)
inl float vsum(V x) {
  return sum_256(_mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)));
}
inl float vtop(V x) {
  return top_256(_mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)));
}
#elif defined(SIMD_AVX2)
inl float vsum(V x) {
  return sum_256(x);
}
inl float vtop(V x) {
  return top_256(x);
}
#else
inl float vsum(V x) {
  return x[0] + x[2] + (x[1] + x[3]);
}
inl float vtop(V x) {
  float top = x[0];
  for (int i = 1; i < VW; i++) top = x[i] > top ? x[i] : top;
  return top;
}
#endif

/*
 * e^x. x = n ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts, the first of 9 bits, so n*first is exact), then the Taylor
 * polynomial of degree 7 (remainder 5e-9 relative) times 2^n. Error under 2 units in the last place over [-87.33, 88.37];
 * exactly 0 below (minus infinity included), 2^127 * e^.. above, NaN for NaN. e^0 is exactly 1.
 */
inl V vexp(V x) {
  V bounded = vmin(vset(88.37f), vmax(vset(-87.33f), x));
  V n = vround(vmul(bounded, vset(1.44269504f)));
  V r = vfma(n, vset(2.12194440e-4f), vfma(n, vset(-0.693359375f), bounded));
  V p = vset(1.0f / 5040);
  p = vfma(p, r, vset(1.0f / 720));
  p = vfma(p, r, vset(1.0f / 120));
  p = vfma(p, r, vset(1.0f / 24));
  p = vfma(p, r, vset(1.0f / 6));
  p = vfma(p, r, vset(0.5f));
  p = vfma(p, r, vset(1.0f));
  p = vfma(p, r, vset(1.0f));
  return vzero_below(vmul(p, vpow2(n)), x, vset(-87.33f));
}

/* 1/(1+e^-x); exactly 0 below -88 (so that a huge negative factor gives 0) and 1 at the other end */
inl V vsigmoid(V x) {
  return vzero_below(vdiv(vset(1.0f), vadd(vset(1.0f), vexp(vsub(vzero(), x)))), x, vset(-88.0f));
}

/* How a stored element becomes a factor. The last two round to bf16 what was stored finer. */
enum { LOAD_F32, LOAD_F16, LOAD_BF16, LOAD_F32_ROUND, LOAD_F16_ROUND };

inl int load_mode(btc_cpu_type t, bool bf16) {
  if (t == BTC_CPU_F32) return bf16 ? LOAD_F32_ROUND : LOAD_F32;
  if (t == BTC_CPU_F16) return bf16 ? LOAD_F16_ROUND : LOAD_F16;
  return LOAD_BF16;
}

inl size_t load_size(int mode) {
  return mode == LOAD_F32 || mode == LOAD_F32_ROUND ? 4 : 2;
}

/* VW elements from any address */
inl V vload_as(const char *p, int mode) {
  V x = {0};
  if (mode == LOAD_F32 || mode == LOAD_F32_ROUND) memcpy(&x, p, sizeof x);
  if (mode == LOAD_F16 || mode == LOAD_F16_ROUND) x = vload_f16(p);
  if (mode == LOAD_BF16) x = vload_bf16(p);
  return mode == LOAD_F32_ROUND || mode == LOAD_F16_ROUND ? vround_bf16(x) : x;
}

/* n < VW elements, zeros behind them; reads nothing beyond */
inl V vload_as_n(const char *p, int mode, int64_t n) {
  char part[VW * 4] = {0};
  memcpy(part, p, (size_t)n * load_size(mode));
  return vload_as(part, mode);
}

#endif
