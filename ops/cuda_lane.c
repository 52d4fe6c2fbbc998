/* Lanes of a CUDA device: see ops.h. A stream and memory, and no kernel, so that a process may have one before any backend. */
#include <stdlib.h>
#include <string.h>

#include "ops/cuda_parts.h"

struct btc_lane {
  int device;
  btc_device_info info; /* as it was at the beginning */
  cudaStream_t stream;
};

static bool try(const btc_lane *l, cudaError_t rc, const char *call, const char *file, int line, btc_error *err) {
  const char *name = strrchr(file, '/');
  if (rc == cudaSuccess) return true;
  (void)cudaGetLastError();
  btc_fail(err, cuda_status_of(rc), "device cuda:%d: %s: %.160s (%s:%d)", l->device, cudaGetErrorString(rc), call,
           name ? name + 1 : file, line);
  return false;
}
#define TRY(l, call, err) try((l), (call), #call, __FILE__, __LINE__, (err))

btc_status btc_lane_create(const char *device, btc_lane **out, btc_error *err) {
  *out = NULL;
  if (strncmp(device, "cuda", 4) != 0) return btc_fail(err, BTC_ERR_UNSUPPORTED, "device '%s' is no CUDA device", device);
  btc_lane *l = btc_alloc_zero(1, sizeof *l);
  if (!l) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  l->device = btc_device_index(device);
  btc_status st = btc_cuda_device_query(l->device, &l->info, err); /* makes it the thread's device */
  if (st == BTC_OK && !TRY(l, cudaStreamCreateWithFlags(&l->stream, cudaStreamNonBlocking), err)) st = err->code;
  if (st != BTC_OK) {
    free(l);
    return st;
  }
  *out = l;
  return BTC_OK;
}

void btc_lane_destroy(btc_lane **lp) {
  btc_lane *l = *lp;
  if (!l) return;
  (void)cudaStreamDestroy(l->stream); /* does not wait */
  free(l);
  *lp = NULL;
}

void *btc_lane_queue(const btc_lane *l) {
  return l->stream;
}

bool btc_lane_device(const btc_lane *l, btc_device_info *out) {
  *out = l->info;
  return cuda_use_now(out);
}

btc_status btc_lane_alloc(btc_lane *l, size_t bytes, void **out, btc_error *err) {
  *out = NULL;
  return TRY(l, cudaMalloc(out, bytes ? bytes : 1), err) ? BTC_OK : err->code;
}

void btc_lane_free(btc_lane *l, void *p) {
  btc_error ignored;
  if (p) TRY(l, cudaFree(p), &ignored);
}

btc_status btc_lane_copy(btc_lane *l, void *dst, const void *src, size_t bytes, btc_error *err) {
  return TRY(l, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, l->stream), err) ? BTC_OK : err->code;
}

btc_status btc_lane_query(btc_lane *l, bool *done, btc_error *err) {
  cudaError_t rc = cudaStreamQuery(l->stream);
  *done = rc == cudaSuccess;
  if (rc == cudaErrorNotReady) {
    (void)cudaGetLastError();
    return BTC_OK;
  }
  return TRY(l, rc, err) ? BTC_OK : err->code;
}
