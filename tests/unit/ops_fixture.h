/* For test_ops_*.c: reproducible random numbers, buffers between guard zones, the backends under comparison. */
#ifndef BTC_TEST_OPS_FIXTURE_H
#define BTC_TEST_OPS_FIXTURE_H

#include <math.h>
#include <stdio.h>

#include "ops/ops.h"
#include "test.h"

#define UNIT 0x1p-24 /* half a unit in the last place of 1.0f: the relative error of one rounding */

static uint64_t random_state = 1;

static inline uint32_t random_u32(void) {
  random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
  return (uint32_t)(random_state >> 33) ^ (uint32_t)(random_state >> 50);
}

/* In [-1, 1) */
static inline float random_float(void) {
  return (float)((int32_t)(random_u32() & 0xffffff) - 0x800000) * 0x1p-23f;
}

static inline int64_t random_size(int64_t low, int64_t high) {
  return low + random_u32() % (high - low + 1);
}

/* ---- buffers: n floats filled with NaN between two zones that must stay as they are ---- */
enum { GUARD = 64 };

static inline float *buffer_new(int64_t n) {
  float *all = malloc((size_t)(n + 2 * GUARD) * sizeof *all);
  assert_non_null(all);
  for (int64_t i = 0; i < n + 2 * GUARD; i++) all[i] = i < GUARD || i >= n + GUARD ? -12345.0f : NAN;
  return all + GUARD;
}

static inline float *buffer_random(int64_t n) {
  float *p = buffer_new(n);
  for (int64_t i = 0; i < n; i++) p[i] = random_float();
  return p;
}

static inline void buffer_free(float *p, int64_t n) {
  if (!p) return;
  for (int i = 0; i < GUARD; i++) {
    assert_true(p[i - GUARD] == -12345.0f);
    assert_true(p[n + i] == -12345.0f);
  }
  free(p - GUARD);
}

static inline void assert_same_bits(const float *a, const float *b, int64_t n, const char *what) {
  for (int64_t i = 0; i < n; i++)
    if (memcmp(a + i, b + i, sizeof *a))
      fail_msg("%s: element %lld is %.9g and %.9g", what, (long long)i, (double)a[i], (double)b[i]);
}

/* |a - b| <= bound; the negation catches NaN */
static inline void assert_close(double a, double b, double bound, const char *what, int64_t at) {
  if (!(fabs(a - b) <= bound))
    fail_msg("%s: element %lld is %.9g, want %.9g, off by more than %.3g", what, (long long)at, a, b, bound);
}

/* ---- backends ---- */
static inline btc_backend *backend_new(const char *kind, int threads, btc_compute compute, int64_t max_cols) {
  btc_backend *b;
  btc_error err;
  btc_backend_options o = {.kind = kind, .threads = threads, .compute = compute, .max_cols = max_cols};
  if (btc_backend_create(&o, &b, &err) != BTC_OK) fail_msg("%s", err.message);
  return b;
}

/* ---- stored matrices ---- */
static inline uint16_t f16_from(float x) { /* truncated; |x| in [2^-14, 2) or 0 */
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  uint32_t exponent = u >> 23 & 255;
  return (uint16_t)((u >> 16 & 0x8000) | (exponent < 113 ? 0 : (exponent - 112) << 10 | (u >> 13 & 0x3ff)));
}

/* Random elements in [-1, 1), at an address `skew` bytes off alignment. Freed with weight_free. */
static inline btc_weight weight_random(btc_dtype type, int64_t rows, int64_t cols, int skew) {
  size_t size = btc_dtype_size(type), n = (size_t)(rows * cols);
  unsigned char *bytes = malloc(n * size + (size_t)(16 - skew)); /* nothing behind the last element: ASan sees a read there */
  assert_non_null(bytes);
  for (size_t i = 0; i < n; i++) {
    float x = random_float();
    uint16_t half = type == BTC_F16 ? f16_from(x) : btc_f32_to_bf16(x);
    memcpy(bytes + 16 - skew + i * size, size == 4 ? (void *)&x : (void *)&half, size);
  }
  return (btc_weight){bytes + 16 - skew, type, rows, cols};
}

static inline void weight_free(btc_weight *w, int skew) {
  free((unsigned char *)(uintptr_t)w->data - (16 - skew));
  w->data = NULL;
}

#endif
