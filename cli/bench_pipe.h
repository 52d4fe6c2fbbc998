/* btcchat bench pipe: a pipeline of real processes on this machine: items/s, what each rank did, and what weights it holds. */
#ifndef BTC_CLI_BENCH_PIPE_H
#define BTC_CLI_BENCH_PIPE_H

#include "model_options.h"

typedef struct bench_pipe_options {
  const model_options *model;
  int64_t ranks, pairs, slots, tokens;
  const char *tensors; /* see pipe.h */
  bool json;
} bench_pipe_options;

int bench_pipe(const bench_pipe_options *o); /* an exit code */

#endif
