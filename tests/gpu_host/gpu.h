/*
 * For tests of CUDA kernels: one test body for the host shim and for a device (gpu_shim.c, gpu_device.c say what memory is).
 * A gpu_array is an array on the device between two guard zones, with a copy on the host.
 */
#ifndef BTC_TEST_GPU_H
#define BTC_TEST_GPU_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>

#include "kernels/cuda/cuda.h"
#include "ops/backend.h"
#include "test.h"

#define UNIT 0x1p-24     /* relative error of one rounding to float */
#define UNIT_BF16 0x1p-8 /* relative error of one rounding to bf16, with room for a tie that went the other way */

/* ---- the device: gpu_shim.c or gpu_device.c ---- */
bool gpu_present(void); /* the shim: always */
bool gpu_is_shim(void);
void *gpu_memory(size_t bytes); /* 256-byte aligned; fails the test when there is none */
void gpu_memory_free(void *p);
void gpu_copy_in(void *device, const void *host, size_t bytes);
void gpu_copy_out(void *host, const void *device, size_t bytes); /* after all work so far */
/* Fails the test unless the launch (its return value) and everything before it went well. */
void gpu_check(int launch, const char *what);

#define GPU(call) gpu_check((call), gpu_call = #call)

/* What a failure says beside the first wrong element, so that a card need not be asked twice: the last call, and the sizes of the
 * present case. */
extern const char *gpu_call;
void gpu_case(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* First in every test: skips where there is no device. */
#define GPU_REQUIRED()          \
  do {                          \
    if (!gpu_present()) skip(); \
  } while (0)

/* ---- arrays: gpu.c ---- */
typedef struct gpu_array {
  void *device;
  void *host; /* the same bytes; written to the device by gpu_put, read back by gpu_get */
  size_t bytes;
  void *base; /* of the allocation */
} gpu_array;

/* `skew` bytes (a multiple of the element) move the array off its 16-byte alignment. Filled with 0xff (NaN) on both sides. */
gpu_array gpu_new(size_t bytes, size_t skew);
gpu_array gpu_random(int64_t n);              /* floats in [-1, 1) */
gpu_array gpu_stored(btc_dtype t, int64_t n); /* elements in [-1, 1) in a stored dtype */
gpu_array gpu_ints(const int32_t *values, int64_t n);
void gpu_put(const gpu_array *a);
void gpu_get(gpu_array *a);  /* also checks the guard zones */
void gpu_free(gpu_array *a); /* the same check */

static inline float *gpu_f32(const gpu_array *a) {
  return a->host;
}

/* ---- random numbers, the same each run ---- */
uint32_t random_u32(void);
float random_float(void); /* [-1, 1) */
int64_t random_size(int64_t low, int64_t high);

/* ---- comparisons ---- */
void assert_same_bits(const float *got, const float *want, int64_t n, const char *what);
/* |got - want| <= bound; NaN fails */
void assert_close(double got, double want, double bound, const char *what, int64_t at);
/* got[i] is f32[i] rounded to bf16, bit for bit */
void assert_rounded(const gpu_array *got, const float *f32, int64_t n, const char *what);

/* A plain backend: btc_ops_plain.layernorm(&b, ...) */
btc_backend plain_backend(btc_compute compute);

#endif
