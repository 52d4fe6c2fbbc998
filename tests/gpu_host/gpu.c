#include "gpu.h"

#include <stdarg.h>
#include <stdio.h>

enum { GUARD = 256 };

static uint64_t state = 1;

const char *gpu_call = "none";
static char sizes[160];

void gpu_case(const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(sizes, sizeof sizes, format, args);
  va_end(args);
}

uint32_t random_u32(void) {
  state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
  return (uint32_t)(state >> 33) ^ (uint32_t)(state >> 50);
}

float random_float(void) {
  return (float)((int32_t)(random_u32() & 0xffffff) - 0x800000) * 0x1p-23f;
}

int64_t random_size(int64_t low, int64_t high) {
  return low + random_u32() % (high - low + 1);
}

gpu_array gpu_new(size_t bytes, size_t skew) {
  gpu_array a = {.bytes = bytes};
  size_t all = bytes + skew + 2 * GUARD;
  unsigned char *zones = malloc(all);
  a.host = malloc(bytes ? bytes : 1);
  assert_non_null(zones);
  assert_non_null(a.host);
  memset(a.host, 0xff, bytes);
  memset(zones, 0x5a, all);
  memset(zones + GUARD + skew, 0xff, bytes);
  a.base = gpu_memory(all);
  a.device = (char *)a.base + GUARD + skew;
  gpu_copy_in(a.base, zones, all);
  free(zones);
  return a;
}

gpu_array gpu_random(int64_t n) {
  gpu_array a = gpu_new((size_t)n * sizeof(float), 0);
  for (int64_t i = 0; i < n; i++) gpu_f32(&a)[i] = random_float();
  gpu_put(&a);
  return a;
}

static uint16_t f16_from(float x) { /* truncated; |x| in [2^-14, 2) or 0 */
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  uint32_t exponent = u >> 23 & 255;
  return (uint16_t)((u >> 16 & 0x8000) | (exponent < 113 ? 0 : (exponent - 112) << 10 | (u >> 13 & 0x3ff)));
}

gpu_array gpu_stored(btc_dtype t, int64_t n) {
  if (t == BTC_F32) return gpu_random(n);
  gpu_array a = gpu_new((size_t)n * sizeof(uint16_t), 0);
  for (int64_t i = 0; i < n; i++) {
    float x = random_float();
    ((uint16_t *)a.host)[i] = t == BTC_F16 ? f16_from(x) : btc_f32_to_bf16(x);
  }
  gpu_put(&a);
  return a;
}

gpu_array gpu_ints(const int32_t *values, int64_t n) {
  gpu_array a = gpu_new((size_t)n * sizeof *values, 0);
  memcpy(a.host, values, (size_t)n * sizeof *values);
  gpu_put(&a);
  return a;
}

void gpu_put(const gpu_array *a) {
  gpu_copy_in(a->device, a->host, a->bytes);
}

static void check_zone(const unsigned char *zone, size_t n, const char *side) {
  for (size_t i = 0; i < n; i++)
    if (zone[i] != 0x5a) fail_msg("a write %s an array, byte %zu of the zone (%s); %s", side, i, sizes, gpu_call);
}

static void check_zones(const gpu_array *a) {
  unsigned char zone[2 * GUARD];
  size_t before = (size_t)((char *)a->device - (char *)a->base);
  assert_true(before <= sizeof zone);
  gpu_copy_out(zone, a->base, before);
  check_zone(zone, before, "before");
  gpu_copy_out(zone, (char *)a->device + a->bytes, GUARD);
  check_zone(zone, GUARD, "behind");
}

void gpu_get(gpu_array *a) {
  gpu_copy_out(a->host, a->device, a->bytes);
  check_zones(a);
}

void gpu_free(gpu_array *a) {
  if (!a->base) return;
  check_zones(a);
  gpu_memory_free(a->base);
  free(a->host);
  *a = (gpu_array){0};
}

void assert_same_bits(const float *got, const float *want, int64_t n, const char *what) {
  int64_t wrong = 0, first = 0;
  for (int64_t i = 0; i < n; i++)
    if (memcmp(got + i, want + i, sizeof *got) && !wrong++) first = i;
  if (wrong)
    fail_msg("%s (%s): element %lld is %.9g, want %.9g; %lld of %lld differ; %s", what, sizes, (long long)first, (double)got[first],
             (double)want[first], (long long)wrong, (long long)n, gpu_call);
}

void assert_close(double got, double want, double bound, const char *what, int64_t at) {
  if (!(fabs(got - want) <= bound))
    fail_msg("%s (%s): element %lld is %.9g, want %.9g, off by more than %.3g; %s", what, sizes, (long long)at, got, want, bound,
             gpu_call);
}

void assert_rounded(const gpu_array *got, const float *f32, int64_t n, const char *what) {
  const uint16_t *h = got->host;
  for (int64_t i = 0; i < n; i++)
    if (h[i] != btc_f32_to_bf16(f32[i]))
      fail_msg("%s (%s): element %lld is %04x in bf16, want %04x; %s", what, sizes, (long long)i, h[i], btc_f32_to_bf16(f32[i]),
               gpu_call);
}

btc_backend plain_backend(btc_compute compute) {
  return (btc_backend){.table = &btc_ops_plain, .compute = compute, .threads = 1};
}
