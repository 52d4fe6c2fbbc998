/*
 * Streams and events of the stand-in. A copy from pinned memory to the device is done as late as a real one could be: when its
 * stream gets other work, or somebody waits for it by the stream or an event; the first question whether it is done is answered
 * with no. So work that does not wait for a copy it needs sees the device's old bytes. Memory that is changed or freed while a copy
 * still reads it ends the program. All other work is done at once.
 */
#include "fake_parts.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/shim/shim_test.h"

typedef struct copy {
  void *dst;
  const void *src;
  size_t bytes;
  uint64_t sum; /* of what is to be copied */
  uint64_t at;  /* place on its stream */
  struct copy *next;
} copy;

typedef struct stream {
  uint64_t id, places; /* places: of what was put on it so far */
  copy *first, *last;
  int64_t delayed; /* copies */
  bool works;      /* it has had other work */
  struct stream *next;
} stream;

typedef struct event {
  uint64_t stream, at; /* a stream's id, which may be gone; 0: never recorded */
  bool asked;
} event;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static stream *streams;
static uint64_t ids;

static uint64_t sum_of(const void *p, size_t bytes) {
  uint64_t sum = UINT64_C(0xcbf29ce484222325);
  for (size_t i = 0; i < bytes; i++) sum = (sum ^ ((const uint8_t *)p)[i]) * UINT64_C(0x100000001b3);
  return sum;
}

static void die(const char *what) {
  fprintf(stderr, "fake CUDA: %s\n", what);
  abort();
}

static stream *find(uint64_t id) {
  stream *s = streams;
  while (s && s->id != id) s = s->next;
  return s;
}

/* Copies up to that place. */
static void advance(stream *s, uint64_t at) {
  while (s && s->first && s->first->at <= at) {
    copy *c = s->first;
    if (sum_of(c->src, c->bytes) != c->sum) die("memory was changed while a copy from it was under way");
    memcpy(c->dst, c->src, c->bytes);
    s->first = c->next;
    if (!s->first) s->last = NULL;
    free(c);
    s->delayed--;
  }
}

void fake_reach(void *handle) {
  stream *s = handle;
  pthread_mutex_lock(&lock);
  if (s) {
    if (s->first) btc_shim_settled();
    advance(s, s->places);
    s->works = true;
  }
  pthread_mutex_unlock(&lock);
}

static void settle(stream *s) {
  pthread_mutex_lock(&lock);
  btc_shim_settled();
  if (s) advance(s, s->places);
  pthread_mutex_unlock(&lock);
}

void fake_reach_all(void) {
  pthread_mutex_lock(&lock);
  for (stream *s = streams; s; s = s->next) advance(s, s->places);
  pthread_mutex_unlock(&lock);
}

bool fake_is_source(const void *p, size_t bytes) {
  bool found = false;
  pthread_mutex_lock(&lock);
  for (stream *s = streams; s; s = s->next)
    for (copy *c = s->first; c; c = c->next)
      found = found || ((const char *)c->src >= (const char *)p && (const char *)c->src < (const char *)p + bytes);
  pthread_mutex_unlock(&lock);
  return found;
}

void fake_delay(cudaStream_t handle, void *dst, const void *src, size_t bytes) {
  stream *s = (stream *)handle;
  copy *c = calloc(1, sizeof *c);
  if (!c || !s) die("no memory, or no stream");
  pthread_mutex_lock(&lock);
  *c = (copy){dst, src, bytes, sum_of(src, bytes), ++s->places, NULL};
  if (s->last)
    s->last->next = c;
  else
    s->first = c;
  s->last = c;
  if (++s->delayed > fake.most_beside && !s->works) fake.most_beside = s->delayed;
  pthread_mutex_unlock(&lock);
}

int64_t fake_streams(void) {
  int64_t n = 0;
  pthread_mutex_lock(&lock);
  for (const stream *s = streams; s; s = s->next) n++;
  pthread_mutex_unlock(&lock);
  return n;
}

/* ---- streams ---- */

static void before_launch(void *s) {
  __atomic_add_fetch(&fake.launches, 1, __ATOMIC_RELAXED);
  fake_reach(s);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) {
  (void)flags;
  stream *s = calloc(1, sizeof *s);
  cudaError_t rc = fake_step();
  *out = NULL;
  if (!s || rc != cudaSuccess) {
    free(s);
    return rc;
  }
  pthread_mutex_lock(&lock);
  btc_shim_before = before_launch;
  s->id = ++ids;
  s->next = streams;
  streams = s;
  pthread_mutex_unlock(&lock);
  *out = (cudaStream_t)s;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  stream *s = (stream *)handle, **at = &streams;
  pthread_mutex_lock(&lock);
  advance(s, s->places);
  while (*at != s) at = &(*at)->next;
  *at = s->next;
  pthread_mutex_unlock(&lock);
  free(s);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  if (!fake_may_wait()) return fake_answer(cudaErrorStreamCaptureUnsupported);
  settle((stream *)s);
  return fake_step();
}

/* What a library has put on a stream may take its time: it sets this. */
int (*fake_cuda_busy)(cudaStream_t s);

cudaError_t cudaStreamQuery(cudaStream_t s) {
  if (!fake_may_wait()) return fake_answer(cudaErrorStreamCaptureUnsupported);
  if (fake_cuda_busy && fake_cuda_busy(s)) return fake_answer(cudaErrorNotReady);
  settle((stream *)s);
  return fake_step();
}

/* ---- events ---- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
  (void)flags;
  cudaError_t rc = fake_step();
  *e = rc == cudaSuccess ? calloc(1, sizeof(event)) : NULL;
  return rc;
}

cudaError_t cudaEventDestroy(cudaEvent_t e) {
  free(e);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t on) {
  event *e = (event *)handle;
  stream *s = (stream *)on;
  cudaError_t rc = fake_step();
  if (rc != cudaSuccess) return rc;
  pthread_mutex_lock(&lock);
  *e = (event){.stream = s->id, .at = ++s->places};
  pthread_mutex_unlock(&lock);
  return rc;
}

static bool is_reached(const event *e) {
  const stream *s = e->stream ? find(e->stream) : NULL;
  return !s || !s->first || s->first->at > e->at;
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  if (!fake_may_wait()) return fake_answer(cudaErrorStreamCaptureUnsupported);
  event *e = (event *)handle;
  pthread_mutex_lock(&lock);
  bool wait = !is_reached(e) && !e->asked;
  if (wait)
    e->asked = true;
  else
    advance(find(e->stream), e->at);
  pthread_mutex_unlock(&lock);
  return wait ? fake_answer(cudaErrorNotReady) : fake_step();
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  if (!fake_may_wait()) return fake_answer(cudaErrorStreamCaptureUnsupported);
  event *e = (event *)handle;
  pthread_mutex_lock(&lock);
  advance(find(e->stream), e->at);
  pthread_mutex_unlock(&lock);
  return fake_step();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t handle, unsigned flags) {
  event *e = (event *)handle;
  (void)flags;
  cudaError_t rc = fake_step();
  if (rc != cudaSuccess) return rc;
  pthread_mutex_lock(&lock);
  advance(find(e->stream), e->at);
  if (e->stream && e->stream != ((stream *)s)->id) fake.waits++;
  pthread_mutex_unlock(&lock);
  return rc;
}
