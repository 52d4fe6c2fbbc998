/*
 * The CUDA runtime as far as ops/cuda*.c uses it, on the host: memory is memory, a stream is the calling thread, kernels run on the
 * shim. Its 16 GiB are always a quarter full. FAKE_CUDA=0 leaves no device. FAKE_CUDA_FAIL=N:CODE makes the Nth call that can fail
 * return CODE; codes that leave a real context unusable stay for all later calls. Every device is a card of its own. Recording is
 * refused, so steps are issued plainly; with FAKE_CUDA_CAPTURE it begins and then fails. What was copied is counted (fake.h).
 */
#include "fake.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCKS = 65536 };

fake_seen fake;
static _Thread_local cudaError_t last;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all below */
static cudaError_t sticky;
static long calls;
static struct {
  char *at;
  size_t bytes;
} block[BLOCKS]; /* what is the device's memory */
static size_t n_blocks;

static cudaError_t answer(cudaError_t rc) {
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
  if (sticky != cudaSuccess) return answer(sticky);
  if (!fail || sscanf(fail, "%ld:%d", &at, &code) != 2 || at != calls) return cudaSuccess;
  if (code == cudaErrorIllegalAddress || code == cudaErrorECCUncorrectable) sticky = (cudaError_t)code;
  return answer((cudaError_t)code);
}

static cudaError_t step(void) {
  pthread_mutex_lock(&lock);
  cudaError_t rc = step_locked();
  pthread_mutex_unlock(&lock);
  return rc;
}

static bool on_device(const void *p) {
  for (size_t i = 0; i < n_blocks; i++)
    if ((const char *)p >= block[i].at && (const char *)p < block[i].at + block[i].bytes) return true;
  return false;
}

static void count_copy(const void *dst, const void *src, size_t bytes) {
  pthread_mutex_lock(&lock);
  bool from = on_device(src), to = on_device(dst);
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
  return *n ? cudaSuccess : answer(cudaErrorNoDevice);
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
  return step();
}

cudaError_t cudaGetDevice(int *device) {
  *device = current;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  *total = (size_t)1 << 34;
  *free_bytes = *total / 4 * 3;
  return step();
}

static cudaError_t give(void **p, size_t bytes) {
  cudaError_t rc = step();
  if (rc != cudaSuccess) return rc;
  *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!*p) return answer(cudaErrorMemoryAllocation);
  if (bytes <= (size_t)1 << 24) memset(*p, 0xff, bytes); /* nothing that was not written is a number */
  return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t bytes) {
  cudaError_t rc = give(p, bytes);
  pthread_mutex_lock(&lock);
  if (rc == cudaSuccess && n_blocks < BLOCKS) {
    block[n_blocks].at = *p;
    block[n_blocks++].bytes = bytes;
  }
  pthread_mutex_unlock(&lock);
  return rc;
}

cudaError_t cudaMallocHost(void **p, size_t bytes) {
  return give(p, bytes);
}

cudaError_t cudaFree(void *p) {
  pthread_mutex_lock(&lock);
  for (size_t i = 0; p && i < n_blocks; i++)
    if (block[i].at == p) block[i] = block[--n_blocks];
  pthread_mutex_unlock(&lock);
  free(p);
  return sticky;
}

cudaError_t cudaFreeHost(void *p) {
  free(p);
  return sticky;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) {
  (void)flags;
  *s = (cudaStream_t)malloc(1);
  return step();
}

cudaError_t cudaStreamDestroy(cudaStream_t s) {
  free(s);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  (void)s;
  return step();
}

/* What a library has put on a stream may take its time: it sets this. */
int (*fake_cuda_busy)(cudaStream_t s);

cudaError_t cudaStreamQuery(cudaStream_t s) {
  if (fake_cuda_busy && fake_cuda_busy(s)) return answer(cudaErrorNotReady);
  return step();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
  (void)flags;
  *e = (cudaEvent_t)malloc(1);
  return step();
}

cudaError_t cudaEventDestroy(cudaEvent_t e) {
  free(e);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  (void)e;
  (void)s;
  return step();
}

cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  (void)e;
  return step();
}

cudaError_t cudaEventQuery(cudaEvent_t e) {
  (void)e;
  return step();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) {
  (void)s;
  (void)e;
  (void)flags;
  return step();
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s) {
  (void)kind;
  (void)s;
  cudaError_t rc = step();
  if (rc == cudaSuccess) {
    memcpy(dst, src, bytes);
    count_copy(dst, src, bytes);
  }
  return rc;
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t rows,
                              enum cudaMemcpyKind kind, cudaStream_t s) {
  (void)kind;
  (void)s;
  if (width > dst_pitch || width > src_pitch) return answer(cudaErrorInvalidPitchValue);
  cudaError_t rc = step();
  for (size_t i = 0; rc == cudaSuccess && i < rows; i++)
    memcpy((char *)dst + i * dst_pitch, (const char *)src + i * src_pitch, width);
  if (rc == cudaSuccess) count_copy(dst, src, width * rows);
  return rc;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s) {
  (void)s;
  cudaError_t rc = step();
  if (rc == cudaSuccess) memset(p, value, bytes);
  return rc;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
  (void)s;
  (void)mode;
  if (getenv("FAKE_CUDA_CAPTURE")) return cudaSuccess;
  return answer(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
  (void)s;
  *graph = NULL;
  return answer(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
  (void)graph;
  (void)flags;
  *exec = NULL;
  return answer(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
  (void)exec;
  (void)s;
  return answer(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  (void)graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  (void)exec;
  return cudaSuccess;
}
