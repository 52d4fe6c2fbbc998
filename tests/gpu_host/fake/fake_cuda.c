/*
 * The CUDA runtime as far as ops/cuda*.c uses it, on the host: memory is memory, kernels run at once on the shim, and only
 * copies from pinned memory take their time (fake_stream.c). FAKE_CUDA_UNPINNED: none can be had. Its 16 GiB are always a quarter
 * full. FAKE_CUDA=0 leaves no device. FAKE_CUDA_FAIL=N:CODE makes the Nth call that can fail return CODE; codes that leave a real
 * context unusable stay for all later calls. Every device is a card of its own. What was copied is counted (fake.h).
 */
#include "fake_parts.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/shim/shim_test.h"

enum { BLOCKS = 65536 };

fake_seen fake;
static _Thread_local cudaError_t last;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all below */
static cudaError_t sticky;
static long calls;

typedef struct blocks {
  struct {
    char *at;
    size_t bytes;
  } block[BLOCKS];
  size_t n;
} blocks;
static blocks on_device, pinned; /* whose memory it is */

cudaError_t fake_answer(cudaError_t rc) {
  if (rc != cudaSuccess) last = rc;
  return rc;
}

static cudaError_t step_locked(void) {
  const char *fail = getenv("FAKE_CUDA_FAIL");
  static char seen[32];
  long at = 0;
  int code = 0;
  if (fail && strcmp(fail, seen) != 0) { /* another failure is asked for: counting begins anew */
    snprintf(seen, sizeof seen, "%s", fail);
    calls = 0;
    sticky = cudaSuccess;
  }
  calls++;
  if (sticky != cudaSuccess) return fake_answer(sticky);
  if (!fail || sscanf(fail, "%ld:%d", &at, &code) != 2 || at != calls) return cudaSuccess;
  if (code == cudaErrorIllegalAddress || code == cudaErrorECCUncorrectable) sticky = (cudaError_t)code;
  return fake_answer((cudaError_t)code);
}

cudaError_t fake_step(void) {
  pthread_mutex_lock(&lock);
  cudaError_t rc = step_locked();
  pthread_mutex_unlock(&lock);
  return rc;
}

static void blocks_add(blocks *b, void *p, size_t bytes) {
  pthread_mutex_lock(&lock);
  if (b->n < BLOCKS) {
    b->block[b->n].at = p;
    b->block[b->n++].bytes = bytes;
  }
  pthread_mutex_unlock(&lock);
}

/* The size it had. */
static size_t blocks_remove(blocks *b, const void *p) {
  size_t bytes = 0;
  pthread_mutex_lock(&lock);
  for (size_t i = 0; p && i < b->n; i++)
    if (b->block[i].at == p) {
      bytes = b->block[i].bytes;
      b->block[i] = b->block[--b->n];
    }
  pthread_mutex_unlock(&lock);
  return bytes;
}

int64_t fake_held(void) {
  size_t bytes = 0;
  pthread_mutex_lock(&lock);
  for (size_t i = 0; i < on_device.n; i++) bytes += on_device.block[i].bytes;
  pthread_mutex_unlock(&lock);
  return (int64_t)bytes;
}

/* With the lock held. */
static bool is_in(const blocks *b, const void *p) {
  for (size_t i = 0; i < b->n; i++)
    if ((const char *)p >= b->block[i].at && (const char *)p < b->block[i].at + b->block[i].bytes) return true;
  return false;
}

static bool is_delayed(const void *dst, const void *src) {
  pthread_mutex_lock(&lock);
  bool yes = is_in(&pinned, src) && is_in(&on_device, dst);
  pthread_mutex_unlock(&lock);
  return yes;
}

static void count_copy(const void *dst, const void *src, size_t bytes) {
  pthread_mutex_lock(&lock);
  bool from = is_in(&on_device, src), to = is_in(&on_device, dst);
  *(from && to ? &fake.within : from ? &fake.to_host : &fake.to_device) += (int64_t)bytes;
  pthread_mutex_unlock(&lock);
}

cudaError_t cudaGetLastError(void) {
  cudaError_t rc = last;
  last = cudaSuccess;
  return rc;
}

const char *cudaGetErrorString(cudaError_t rc) {
  switch (rc) {
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    default:
      return "another error";
  }
}

cudaError_t cudaGetDeviceCount(int *n) {
  const char *devices = getenv("FAKE_CUDA");
  *n = devices ? atoi(devices) : 1;
  return *n ? cudaSuccess : fake_answer(cudaErrorNoDevice);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  memset(p->uuid.bytes, device + 1, sizeof p->uuid.bytes);
  snprintf(p->name, sizeof p->name, "host shim");
  p->major = 9;
  p->multiProcessorCount = 1;
  return cudaSuccess;
}

static _Thread_local int current;

cudaError_t cudaDeviceGetPCIBusId(char *bus, int bytes, int device) {
  snprintf(bus, (size_t)bytes, "0000:%02X:00.0", device);
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  current = device;
  return fake_step();
}

cudaError_t cudaGetDevice(int *device) {
  *device = current;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  *total = (size_t)1 << 34;
  *free_bytes = *total / 4 * 3;
  return fake_step();
}

static cudaError_t give(void **p, size_t bytes) {
  if (!fake_may_wait()) return fake_answer(cudaErrorStreamCaptureUnsupported);
  cudaError_t rc = fake_step();
  if (rc != cudaSuccess) return rc;
  *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!*p) return fake_answer(cudaErrorMemoryAllocation);
  if (bytes <= (size_t)1 << 24) memset(*p, 0xff, bytes); /* nothing that was not written is a number */
  return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t bytes) {
  cudaError_t rc = give(p, bytes);
  if (rc == cudaSuccess) blocks_add(&on_device, *p, bytes);
  return rc;
}

cudaError_t cudaMallocHost(void **p, size_t bytes) {
  if (getenv("FAKE_CUDA_UNPINNED")) return fake_answer(cudaErrorMemoryAllocation);
  cudaError_t rc = give(p, bytes);
  if (rc == cudaSuccess) blocks_add(&pinned, *p, bytes);
  return rc;
}

cudaError_t cudaFree(void *p) {
  if (!fake_may_wait()) return fake_answer(cudaErrorStreamCaptureUnsupported);
  fake_reach_all(); /* waits for the device */
  blocks_remove(&on_device, p);
  free(p);
  return sticky;
}

cudaError_t cudaFreeHost(void *p) {
  if (fake_is_source(p, blocks_remove(&pinned, p))) {
    fprintf(stderr, "fake CUDA: memory was freed while a copy from it was under way\n");
    abort();
  }
  free(p);
  return sticky;
}

/* ---- copies ---- */

typedef struct fill {
  char *dst;
  const char *src; /* NULL: the value */
  size_t dst_pitch, src_pitch, width, rows;
  int value;
} fill;

static int do_fill(const void *context) {
  const fill *f = context;
  btc_shim_settled();
  for (size_t i = 0; i < f->rows; i++) {
    if (f->src)
      memcpy(f->dst + i * f->dst_pitch, f->src + i * f->src_pitch, f->width);
    else
      memset(f->dst + i * f->dst_pitch, f->value, f->width);
  }
  if (f->src) count_copy(f->dst, f->src, f->width * f->rows);
  return 0;
}

static bool is_inside(const fill *f) {
  pthread_mutex_lock(&lock);
  bool inside = is_in(&on_device, f->dst) && (!f->src || is_in(&on_device, f->src));
  pthread_mutex_unlock(&lock);
  return inside;
}

static cudaError_t put(const fill *f, cudaStream_t s) {
  if (fake_is_recording() && !is_inside(f)) {
    fake_spoil_recording();
    return fake_answer(cudaErrorStreamCaptureUnsupported);
  }
  cudaError_t rc = fake_step();
  if (rc != cudaSuccess || btc_shim_tape_add(do_fill, f, sizeof *f)) return rc;
  fake_reach(s);
  do_fill(f);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s) {
  (void)kind;
  if (fake_is_recording() || !is_delayed(dst, src)) return put(&(fill){.dst = dst, .src = src, .width = bytes, .rows = 1}, s);
  cudaError_t rc = fake_step();
  if (rc != cudaSuccess) return rc;
  fake_delay(s, dst, src, bytes);
  count_copy(dst, src, bytes);
  return rc;
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t rows,
                              enum cudaMemcpyKind kind, cudaStream_t s) {
  (void)kind;
  if (width > dst_pitch || width > src_pitch) return fake_answer(cudaErrorInvalidPitchValue);
  return put(&(fill){.dst = dst, .src = src, .dst_pitch = dst_pitch, .src_pitch = src_pitch, .width = width, .rows = rows}, s);
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s) {
  return put(&(fill){.dst = p, .value = value, .width = bytes, .rows = 1}, s);
}
