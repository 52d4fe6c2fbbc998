/*
 * Pictures, and what travels to the device beside the operators. A parcel goes by a stream of its own, from pinned memory, so that
 * the next batch is on its way while the present one is computed. Three orders are kept, by events and never by waiting for the
 * device: an operator begins behind the journey it needs; the next journey of a parcel begins on the device behind the operators
 * that read the last one; and the host writes to a parcel behind the journey that reads it.
 */
#include <stdlib.h>
#include <string.h>

#include "ops/cuda_parts.h"

struct btc_parcel {
  size_t bytes;
  cuda_staging host;
  uint8_t *device;
  cudaEvent_t sent, read; /* the journey's end; what operators have read of it */
  bool travelled, in_use;
};

/* Tables and lines of the largest pictures; those of smaller ones fit (kernels/cuda/resize.cu). */
btc_status cuda_pictures_open(cuda_backend *c, btc_error *err) {
  const int64_t most = BTC_PICTURE_SQUARES * c->o.picture_side;
  const btc_cuda_picture largest = {.width = most, .height = most, .canvas_width = most, .canvas_height = most, .channels = 3};
  if (!c->o.picture_side) return BTC_OK;
  if (!CUDA_TRY(c, cudaStreamCreateWithFlags(&c->copies, cudaStreamNonBlocking))) return cuda_failure(c, err);
  return cuda_alloc(c->base, BTC_CUDA_PICTURES * btc_cuda_resize_scratch(&largest, c->o.picture_side), &c->resize_scratch, err);
}

void cuda_pictures_close(cuda_backend *c) {
  if (c->resize_scratch) (void)cudaFree(c->resize_scratch);
  if (c->copies) (void)cudaStreamDestroy(c->copies);
}

btc_status cuda_parcel_create(btc_backend *b, size_t bytes, btc_parcel **out, btc_error *err) {
  cuda_backend *c = b->self;
  btc_parcel *p = *out = btc_alloc_zero(1, sizeof *p);
  void *device = NULL;
  if (!p) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a parcel");
  p->bytes = bytes;
  btc_status st = cuda_alloc(b, bytes, &device, err);
  p->device = device;
  if (st == BTC_OK) st = cuda_staging_take(c, bytes, &p->host, err);
  if (st == BTC_OK && !(CUDA_TRY(c, cudaEventCreateWithFlags(&p->sent, cudaEventDisableTiming)) &&
                        CUDA_TRY(c, cudaEventCreateWithFlags(&p->read, cudaEventDisableTiming))))
    st = cuda_failure(c, err);
  if (st != BTC_OK) cuda_parcel_destroy(b, out);
  return st;
}

void cuda_parcel_destroy(btc_backend *b, btc_parcel **pp) {
  cuda_backend *c = b->self;
  btc_parcel *p = *pp;
  if (p->travelled && !c->lost) (void)cuda_await(c, p->sent);
  if (p->sent) (void)cudaEventDestroy(p->sent);
  if (p->read) (void)cudaEventDestroy(p->read);
  cuda_free(b, p->device);
  cuda_staging_free(&p->host);
  free(p);
  *pp = NULL;
}

void cuda_send(btc_backend *b, btc_parcel *p, const void *src, size_t bytes) {
  cuda_backend *c = b->self;
  if (c->failed.code != BTC_OK || (p->travelled && !cuda_await(c, p->sent))) return;
  memcpy(p->host.at, src, bytes);
  if (p->in_use && !CUDA_TRY(c, cudaStreamWaitEvent(c->copies, p->read, 0))) return;
  if (!CUDA_TRY(c, cudaMemcpyAsync(p->device, p->host.at, bytes, cudaMemcpyHostToDevice, c->copies))) return;
  p->travelled = CUDA_TRY(c, cudaEventRecord(p->sent, c->copies));
}

static btc_cuda_picture on_canvas(const btc_picture *p) {
  btc_cuda_picture k = {.rgb = p->parcel->device,
                        .width = p->width,
                        .height = p->height,
                        .canvas_width = p->width,
                        .canvas_height = p->height,
                        .channels = 3};
  if (!p->pad) return k;
  k.canvas_width = k.canvas_height = p->width > p->height ? p->width : p->height;
  k.left = (k.canvas_width - p->width) / 2;
  k.top = (k.canvas_height - p->height) / 2;
  return k;
}

/* At most BTC_CUDA_PICTURES, behind the journeys of all. */
static bool resize_some(cuda_backend *c, float *pixels, const btc_picture *p, int n, int64_t side, const btc_shades *s) {
  btc_cuda_picture picture[BTC_CUDA_PICTURES];
  for (int i = 0; i < n; i++) {
    if (!CUDA_TRY(c, cudaStreamWaitEvent(c->stream, p[i].parcel->sent, 0))) return false;
    picture[i] = on_canvas(&p[i]);
  }
  if (!CUDA_TRY(c, btc_cuda_resize(pixels, picture, n, side, s->rescale, s->mean, s->std, c->resize_scratch, c->stream)))
    return false;
  for (int i = 0; i < n; i++) {
    p[i].parcel->in_use = CUDA_TRY(c, cudaEventRecord(p[i].parcel->read, c->stream));
    if (!p[i].parcel->in_use) return false;
  }
  return true;
}

void cuda_resize_normalise(btc_backend *b, float *pixels, const btc_picture *p, int64_t n, int64_t side, const btc_shades *s) {
  cuda_backend *c = b->self;
  if (c->failed.code != BTC_OK) return;
  for (int64_t i = 0; i < n; i += BTC_CUDA_PICTURES) {
    const int64_t some = n - i < BTC_CUDA_PICTURES ? n - i : BTC_CUDA_PICTURES;
    if (!resize_some(c, pixels + i * 3 * side * side, p + i, (int)some, side, s)) return;
  }
}
