/*
 * What a worker that can hold a part of a model tells the broker of itself: what the blocks weigh, and how long each kind takes
 * here. Times are measured, a few rows through one block of each kind, and kept by the model's class, so that a worker that is
 * started again does not measure again.
 */
#ifndef BTC_WORKER_MEASURE_H
#define BTC_WORKER_MEASURE_H

#include "engine/stage.h"
#include "proto/btcchat.pb-c.h"

enum { MEASURE_KINDS = BTC_BLOCK_HEAD + 1, MEASURE_TOKENS = 32 /* of the answer of the item that is timed */ };

typedef struct measure_options {
  const char *device; /* "cpu" or "plain" */
  int threads;
  bool bf16;
  int slots;         /* items generated together */
  int max_tokens;    /* most tokens of an answer */
  int places;        /* images whose features are kept */
  const char *class; /* of the model: what kept times are found by */
} measure_options;

typedef struct measure_result {
  Btc__PipeBlock *block, **list; /* [n]: runs of equal blocks */
  size_t n;
  uint32_t slots;
  uint64_t fixed_bytes; /* of any stage */
  uint64_t whole_bytes; /* of a stage of all blocks */
  int nccl;             /* the version of NCCL's library; 0: tensors cannot come by it. Not measured: the engine sets it and card */
  char card[44];        /* the GPU's own name */
} measure_result;

/* The caller frees with measure_free. A folder that cannot be written to only costs the next start its time. */
btc_status measure_member(const btc_model *m, const measure_options *o, measure_result *out, btc_error *err);
void measure_free(measure_result *r);

/* Milliseconds of an item in one block of each kind, now. */
btc_status measure_kinds(const btc_model *m, const measure_options *o, double ms[MEASURE_KINDS], btc_error *err);

#endif
