/*
 * Recordings (CUDA graphs) of the stand-in: kernels and copies within the device are kept on a tape of the shim's and done when the
 * recording is launched. What waits or allocates spoils it, as on a card; so do products of the matrix library, which are done at
 * once here, and copies from or to the host, which ops.h forbids there. FAKE_CUDA_CAPTURE=refused: none begins; =fails: none ends
 * well; =overlap: none ends well while launches overlap.
 */
#include "fake_parts.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/shim/shim_test.h"

typedef struct recording {
  btc_shim_tape *tape;
  int users; /* the graph, and what was made of it */
} recording;

static _Thread_local recording *now;
static _Thread_local bool spoilt;

int fake_is_recording(void) {
  return now != NULL;
}

void fake_spoil_recording(void) {
  spoilt = true;
}

bool fake_may_wait(void) {
  if (now) spoilt = true;
  return !now;
}

static void leave(recording *r) {
  if (!r || --r->users > 0) return;
  btc_shim_tape_destroy(r->tape);
  free(r);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
  const char *how = getenv("FAKE_CUDA_CAPTURE");
  (void)s;
  if (now || mode != cudaStreamCaptureModeThreadLocal || (how && !strcmp(how, "refused")))
    return fake_answer(cudaErrorStreamCaptureUnsupported);
  recording *r = calloc(1, sizeof *r);
  if (!r) return fake_answer(cudaErrorMemoryAllocation);
  *r = (recording){.tape = btc_shim_tape_begin(), .users = 1};
  now = r;
  spoilt = how && (!strcmp(how, "fails") || (!strcmp(how, "overlap") && btc_cuda_overlaps()));
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
  recording *r = now;
  (void)s;
  *graph = NULL;
  if (!r) return fake_answer(cudaErrorIllegalState);
  btc_shim_tape_end();
  now = NULL;
  if (spoilt) {
    leave(r);
    return fake_answer(cudaErrorStreamCaptureInvalidated);
  }
  *graph = (cudaGraph_t)r;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
  (void)flags;
  *exec = NULL;
  cudaError_t rc = fake_step();
  if (rc != cudaSuccess) return rc;
  ((recording *)graph)->users++;
  *exec = (cudaGraphExec_t)graph;
  fake.recorded++;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
  cudaError_t rc = fake_step();
  if (rc != cudaSuccess) return rc;
  fake_reach(s);
  fake.repeated++;
  return fake_answer((cudaError_t)btc_shim_tape_run(((recording *)exec)->tape));
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  leave((recording *)graph);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  leave((recording *)exec);
  return cudaSuccess;
}
