/* btcchat bench batching: items/s of one item at a time against continuous batching, in one run. */
#ifndef BTC_CLI_BENCH_BATCHING_H
#define BTC_CLI_BENCH_BATCHING_H

#include "model_options.h"

typedef struct bench_batching_options {
  const model_options *model;
  int64_t pairs, slots, tokens, runs;
  bool json;
} bench_batching_options;

int bench_batching(const bench_batching_options *o); /* an exit code */

#endif
