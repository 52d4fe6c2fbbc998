/*
 * One golden case: a checkpoint with expected values of every stage (docs/formats.md). Runs it through the engine and keeps, for
 * each tensor, the largest difference beside its tolerance.
 */
#ifndef BTC_CLI_GOLDEN_H
#define BTC_CLI_GOLDEN_H

#include "engine/engine.h"

typedef struct golden_options {
  const char *device; /* "cpu" or "plain" */
  bool bf16;
  int threads;
} golden_options;

typedef struct golden_tensor {
  char name[48];
  double max_diff, tolerance;    /* of the run where diff/tolerance is largest */
  double noise_ratio;            /* largest of max_diff / stated float32 error (floored at 1e-6 of the tensor's largest value) */
  double rel_rms, rel_rms_limit; /* bf16 only; 0 otherwise */
  int runs;
  bool in_run; /* compared in the run at hand */
  bool ok;
} golden_tensor;

#define GOLDEN_MAX_TENSORS 256
#define GOLDEN_MAX_PROBLEMS 32
#define GOLDEN_MAX_REFUSALS 8

typedef struct golden_report {
  char name[64];
  int runs, error_runs;
  golden_tensor tensor[GOLDEN_MAX_TENSORS];
  int n_tensors;
  char problem[GOLDEN_MAX_PROBLEMS][256]; /* what does not hold, one line each */
  char refusal[GOLDEN_MAX_REFUSALS][256]; /* what the first error runs were refused with */
  int n_problems;                         /* may exceed GOLDEN_MAX_PROBLEMS; then the rest was not kept */
} golden_report;

/* Runs all runs and error runs of the case in dir. BTC_OK when the case could be run, whatever it showed: it holds if and only
 * if n_problems is 0. Other statuses: the case's own files are missing or broken. */
btc_status golden_run(const char *dir, const golden_options *o, golden_report *out, btc_error *err);

#endif
