/*
 * The CUDA runtime as far as ops/cuda*.c uses it, on the host: memory is memory, a stream is the calling thread, kernels run on the
 * shim. Its 16 GiB are always a quarter full. FAKE_CUDA=0 leaves no device. FAKE_CUDA_FAIL=N:CODE makes the Nth call that can fail
 * return CODE; codes that leave a real context unusable stay for all later calls. Every device is a card of its own. A
 * recording keeps kernels and copies on a tape of the shim's; what waits or allocates spoils it, as on a card, and so does a copy
 * from or to the host, which ops.h forbids there. FAKE_CUDA_CAPTURE=refused: none begins; =fails: none ends well. What was copied
 * is counted (fake.h).
 */
#include "fake.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdbool.h>
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

/* ---- recordings ---- */

struct fake_graph {
  btc_shim_tape *tape;
  int users; /* a graph and what was made of it */
};

static _Thread_local struct fake_graph *recording;
static _Thread_local bool spoilt;

int fake_is_recording(void) {
  return recording != NULL;
}

void fake_spoil_recording(void) {
  spoilt = true;
}

/* Where nothing may be recorded: false, and the recording is lost. */
static bool outside_recording(void) {
  if (recording) spoilt = true;
  return !recording;
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
  if (!outside_recording()) return answer(cudaErrorStreamCaptureUnsupported);
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
  if (!outside_recording()) return answer(cudaErrorStreamCaptureUnsupported);
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
  if (!outside_recording()) return answer(cudaErrorStreamCaptureUnsupported);
  return step();
}

/* What a library has put on a stream may take its time: it sets this. */
int (*fake_cuda_busy)(cudaStream_t s);

cudaError_t cudaStreamQuery(cudaStream_t s) {
  if (!outside_recording()) return answer(cudaErrorStreamCaptureUnsupported);
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
  if (!outside_recording()) return answer(cudaErrorStreamCaptureUnsupported);
  return step();
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
  bool inside = on_device(f->dst) && (!f->src || on_device(f->src));
  pthread_mutex_unlock(&lock);
  return inside;
}

static cudaError_t put(const fill *f) {
  if (recording && !is_inside(f)) {
    spoilt = true;
    return answer(cudaErrorStreamCaptureUnsupported);
  }
  cudaError_t rc = step();
  if (rc != cudaSuccess) return rc;
  if (!btc_shim_tape_add(do_fill, f, sizeof *f)) do_fill(f);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s) {
  (void)kind;
  (void)s;
  return put(&(fill){.dst = dst, .src = src, .width = bytes, .rows = 1});
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t rows,
                              enum cudaMemcpyKind kind, cudaStream_t s) {
  (void)kind;
  (void)s;
  if (width > dst_pitch || width > src_pitch) return answer(cudaErrorInvalidPitchValue);
  return put(&(fill){.dst = dst, .src = src, .dst_pitch = dst_pitch, .src_pitch = src_pitch, .width = width, .rows = rows});
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s) {
  (void)s;
  return put(&(fill){.dst = p, .value = value, .width = bytes, .rows = 1});
}

static void leave(struct fake_graph *g) {
  if (!g || --g->users > 0) return;
  btc_shim_tape_destroy(g->tape);
  free(g);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
  const char *how = getenv("FAKE_CUDA_CAPTURE");
  (void)s;
  if (recording || mode != cudaStreamCaptureModeThreadLocal || (how && !strcmp(how, "refused")))
    return answer(cudaErrorStreamCaptureUnsupported);
  struct fake_graph *g = calloc(1, sizeof *g);
  if (!g) return answer(cudaErrorMemoryAllocation);
  *g = (struct fake_graph){btc_shim_tape_begin(), 1};
  recording = g;
  spoilt = how && !strcmp(how, "fails");
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
  struct fake_graph *g = recording;
  (void)s;
  *graph = NULL;
  if (!g) return answer(cudaErrorIllegalState);
  btc_shim_tape_end();
  recording = NULL;
  if (spoilt) {
    leave(g);
    return answer(cudaErrorStreamCaptureInvalidated);
  }
  *graph = (cudaGraph_t)g;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
  (void)flags;
  *exec = NULL;
  cudaError_t rc = step();
  if (rc != cudaSuccess) return rc;
  ((struct fake_graph *)graph)->users++;
  *exec = (cudaGraphExec_t)graph;
  fake.recorded++;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
  (void)s;
  cudaError_t rc = step();
  if (rc != cudaSuccess) return rc;
  fake.repeated++;
  return answer((cudaError_t)btc_shim_tape_run(((struct fake_graph *)exec)->tape));
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  leave((struct fake_graph *)graph);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  leave((struct fake_graph *)exec);
  return cudaSuccess;
}
