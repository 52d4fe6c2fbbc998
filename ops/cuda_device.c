/* A CUDA device: finding and opening it, its errors, and its memory. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ops/cuda_parts.h"

enum { AWAIT_S = 60, AWAIT_STEP_NS = 20000 };

/* ---- errors ---- */

/* Nothing works on the context after these. */
static bool is_lost(int rc) {
  switch (rc) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorECCUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorAssert:
    case cudaErrorDevicesUnavailable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

btc_status cuda_status_of(int rc) {
  return rc == cudaErrorMemoryAllocation ? BTC_ERR_NOMEM : is_lost(rc) ? BTC_ERR_DEVICE : BTC_ERR_INTERNAL;
}

static void keep(cuda_backend *c, btc_status st, const char *reason, const char *call, const char *file, int line) {
  const char *name = strrchr(file, '/');
  if (st == BTC_ERR_DEVICE) c->lost = true;
  if (c->failed.code != BTC_OK) return;
  btc_fail(&c->failed, st, "device cuda:%d: %s: %.160s (%s:%d)", c->device, reason, call, name ? name + 1 : file, line);
}

bool cuda_note(cuda_backend *c, int rc, const char *call, const char *file, int line) {
  if (rc == cudaSuccess) return true;
  (void)cudaGetLastError(); /* a failure that is not sticky must not be found again by the next launch */
  keep(c, cuda_status_of(rc), cudaGetErrorString((cudaError_t)rc), call, file, line);
  return false;
}

bool cuda_await(cuda_backend *c, cudaEvent_t event) {
  const int64_t end = btc_now_ns() + AWAIT_S * INT64_C(1000000000);
  const struct timespec step = {.tv_nsec = AWAIT_STEP_NS};
  cudaError_t rc;
  while ((rc = cudaEventQuery(event)) == cudaErrorNotReady) {
    (void)cudaGetLastError();
    if (btc_now_ns() > end) {
      keep(c, BTC_ERR_DEVICE, "no answer for a minute", "cudaEventQuery", __FILE__, __LINE__);
      return false;
    }
    nanosleep(&step, NULL);
  }
  return cuda_note(c, (int)rc, "cudaEventQuery", __FILE__, __LINE__);
}

bool cuda_note_lt(cuda_backend *c, cublasStatus_t rc, const char *call, const char *file, int line) {
  if (rc == CUBLAS_STATUS_SUCCESS) return true;
  char reason[48];
  snprintf(reason, sizeof reason, "cuBLASLt status %d", (int)rc);
  keep(c,
       rc == CUBLAS_STATUS_ALLOC_FAILED       ? BTC_ERR_NOMEM
       : rc == CUBLAS_STATUS_EXECUTION_FAILED ? BTC_ERR_DEVICE
                                              : BTC_ERR_INTERNAL,
       reason, call, file, line);
  return false;
}

btc_status cuda_failure(const cuda_backend *c, btc_error *err) {
  return c->failed.code == BTC_OK ? BTC_OK : btc_fail(err, c->failed.code, "%s", c->failed.message);
}

/* ---- devices ---- */

int btc_cuda_device_count(btc_error *err) {
  int n = 0;
  cudaError_t rc = cudaGetDeviceCount(&n);
  if (rc == cudaSuccess && n > 0) return n;
  (void)cudaGetLastError();
  btc_fail(err, BTC_ERR_UNSUPPORTED, "no CUDA device: %s", rc == cudaSuccess ? "the driver lists none" : cudaGetErrorString(rc));
  return 0;
}

/* As nvidia-smi -L prints it. */
static void name_card(const cudaUUID_t *u, char out[44]) {
  char *at = out + sprintf(out, "GPU-");
  for (int i = 0; i < 16; i++) at += sprintf(at, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", (uint8_t)u->bytes[i]);
}

btc_status btc_cuda_device_query(int index, btc_device_info *out, btc_error *err) {
  *out = (btc_device_info){0};
  int n = btc_cuda_device_count(err);
  if (n == 0) return BTC_ERR_UNSUPPORTED;
  if (index < 0 || index >= n)
    return btc_fail(err, BTC_ERR_UNSUPPORTED, "no CUDA device %d: there %s %d", index, n == 1 ? "is only" : "are", n);
  struct cudaDeviceProp p;
  size_t free_bytes = 0, total = 0;
  cudaError_t rc = cudaGetDeviceProperties(&p, index);
  if (rc == cudaSuccess) rc = cudaSetDevice(index);
  if (rc == cudaSuccess) rc = cudaMemGetInfo(&free_bytes, &total);
  if (rc != cudaSuccess) {
    (void)cudaGetLastError();
    return btc_fail(err, BTC_ERR_UNSUPPORTED, "CUDA device %d cannot be used: %s", index, cudaGetErrorString(rc));
  }
  out->index = index;
  out->busy = -1;
  snprintf(out->name, sizeof out->name, "%.95s", p.name);
  name_card(&p.uuid, out->card);
  out->major = p.major;
  out->minor = p.minor;
  out->processors = p.multiProcessorCount;
  out->memory_bytes = total;
  out->free_bytes = free_bytes;
  cuda_read_use(out);
  return BTC_OK;
}

btc_status cuda_open(cuda_backend *c, const char *kind, btc_error *err) {
  btc_device_info info = {0};
  c->device = btc_device_index(kind);
  btc_status st = btc_cuda_device_query(c->device, &info, err);
  if (st != BTC_OK) return st;
  if (info.major < 8)
    return btc_fail(err, BTC_ERR_UNSUPPORTED, "CUDA device %d (%s) has compute capability %d.%d; 8.0 or more is needed", c->device,
                    info.name, info.major, info.minor);
  const char *overlap = getenv("BTCCHAT_CUDA_OVERLAP");
  if (overlap && strcmp(overlap, "0") == 0) btc_cuda_overlap(0);
  c->info = info;
  snprintf(c->base->description, sizeof c->base->description, "cuda:%d, %s, %llu GiB, %s", c->device, info.name,
           (unsigned long long)(info.memory_bytes >> 30), c->bf16 ? "bf16" : "f32");
  if (!CUDA_TRY(c, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking))) return cuda_failure(c, err);
  for (int i = 0; i < 2; i++) {
    if ((st = cuda_staging_take(c, CUDA_STAGING_BYTES, &c->staging[i], err)) != BTC_OK) return st;
    if (!CUDA_TRY(c, cudaEventCreateWithFlags(&c->staging_free[i], cudaEventDisableTiming))) return cuda_failure(c, err);
  }
  return BTC_OK;
}

/* ---- memory ---- */

btc_status cuda_alloc(btc_backend *b, size_t bytes, void **out, btc_error *err) {
  cuda_backend *c = b->self;
  *out = NULL;
  cudaError_t rc = cudaMalloc(out, bytes ? bytes : 1);
  if (rc == cudaSuccess) return BTC_OK;
  *out = NULL;
  if (rc == cudaErrorMemoryAllocation) { /* the caller may do with less */
    (void)cudaGetLastError();
    return btc_fail(err, BTC_ERR_NOMEM, "device cuda:%d: out of memory: %zu MB are wanted", c->device, bytes >> 20);
  }
  cuda_note(c, rc, "cudaMalloc", __FILE__, __LINE__);
  return cuda_failure(c, err);
}

void cuda_free(btc_backend *b, void *p) {
  if (p) CUDA_TRY((cuda_backend *)b->self, cudaFree(p)); /* waits for what still uses it */
}

btc_status cuda_staging_take(cuda_backend *c, size_t bytes, cuda_staging *out, btc_error *err) {
  void *p = NULL;
  cudaError_t rc = cudaMallocHost(&p, bytes);
  *out = (cuda_staging){.at = p, .pinned = rc == cudaSuccess};
  if (rc == cudaSuccess) return BTC_OK;
  if (is_lost((int)rc)) {
    cuda_note(c, (int)rc, "cudaMallocHost", __FILE__, __LINE__);
    return cuda_failure(c, err);
  }
  (void)cudaGetLastError();
  if (!c->base->remark[0])
    snprintf(c->base->remark, sizeof c->base->remark,
             "device cuda:%d: %zu MB of memory cannot be pinned (%.60s): copies to it are slower", c->device,
             (bytes + 0xfffff) >> 20, cudaGetErrorString(rc));
  out->at = btc_alloc(bytes, 1);
  return out->at ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "not enough memory: %zu MB are wanted", bytes >> 20);
}

void cuda_staging_free(cuda_staging *s) {
  if (s->pinned)
    (void)cudaFreeHost(s->at);
  else
    free(s->at);
  *s = (cuda_staging){0};
}

void cuda_copy_2d(btc_backend *b, void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, int64_t rows) {
  cuda_backend *c = b->self;
  if (c->failed.code != BTC_OK || !width || rows < 1) return;
  if (rows == 1)
    CUDA_TRY(c, cudaMemcpyAsync(dst, src, width, cudaMemcpyDefault, c->stream));
  else
    CUDA_TRY(c, cudaMemcpy2DAsync(dst, dst_pitch, src, src_pitch, width, (size_t)rows, cudaMemcpyDefault, c->stream));
}
