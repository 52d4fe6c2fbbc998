/* What the files of the stand-in for the CUDA runtime share. */
#ifndef TEST_FAKE_PARTS_H
#define TEST_FAKE_PARTS_H

#include "fake.h"

#include <cuda_runtime_api.h>
#include <stdbool.h>

/* fake_cuda.c */
cudaError_t fake_step(void);             /* a call that can fail: what it answers */
cudaError_t fake_answer(cudaError_t rc); /* keeps an error for cudaGetLastError */

/* fake_stream.c */
void fake_delay(cudaStream_t s, void *dst, const void *src, size_t bytes); /* a copy, as late as its stream allows */
void fake_reach(void *stream); /* something else comes next on this stream: what was delayed there is done */
void fake_reach_all(void);
bool fake_is_source(const void *p, size_t bytes); /* of a copy that is not done */

/* fake_graph.c */
bool fake_may_wait(void); /* false: a recording is under way, and is lost */

#endif
