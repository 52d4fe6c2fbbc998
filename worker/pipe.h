/*
 * A pipeline of ranks on this machine, driven from here: items in, answers out, byte for byte those of btc_session_run.
 *
 * The driver reads images, keeps a journal of every item (prompt, tokens so far, state of its drawing), and sends steps down the
 * ranks; logits come back from the last one. Items are spread over more groups than there are ranks, so that every rank has work
 * while others compute. When a rank dies, stops or is cut off, all ranks but that one keep their process and their weights: a new
 * epoch is formed, and items go on from the journal. They are prefilled again and their tokens fed again one by one rather than
 * in one prefill: a prefill sums in another order than decode steps do (ops.h), and bytes would differ.
 *
 * Thread: one at a time, and ranks die with the thread that made them.
 */
#ifndef BTC_WORKER_PIPE_H
#define BTC_WORKER_PIPE_H

#include "engine/engine.h"

enum { PIPE_MAX_RANKS = 16 };

typedef struct pipe_options {
  const char *program; /* NULL: our own (/proc/self/exe); it must know `worker --shard` */
  const char *device;  /* "cpu" or "plain" */
  btc_precision precision;
  int threads;                /* of each rank; 0: this machine's processors shared out */
  int batch;                  /* most items of a group */
  int groups;                 /* 0: ranks + 1 */
  int max_tokens;             /* most tokens of an answer */
  int open_ms;                /* a rank's start, model opened: default 60 s */
  int form_ms;                /* default 10 s: a rank finishes the block it computes before it answers */
  int step_ms;                /* a step is back within this or 8 times the usual, default 60 s */
  int wedge_ms;               /* a rank that neither moves nor uses its processor for this is replaced, default 3 s */
  int max_breaks;             /* so many epochs in a row without a single new token: give up, default 6 */
  const volatile int *cancel; /* as in btc_session_options */
  uint64_t *progress;         /* likewise */
  /* tests */
  int fail_rank;     /* the first process of this rank gets BTC_FAIL=fail */
  const char *fail;  /* NULL: none */
  bool leave_wedged; /* a wedged rank is replaced but not killed, as if it were on a machine that was cut off */
} pipe_options;
pipe_options pipe_options_default(void);

typedef struct pipe_driver pipe_driver;

/* cuts[ranks + 1]: rank r holds blocks [cuts[r], cuts[r+1]); cuts[0] = 0, cuts[ranks] = the model's block count. Returns when the
 * first epoch is formed. */
btc_status pipe_create(const char *model, const int *cuts, int ranks, const pipe_options *o, pipe_driver **out, btc_error *err);
void pipe_destroy(pipe_driver **p);

/* Like btc_session_run. An error is the pipeline's, not an item's: it could not be formed again, or broke max_breaks times. */
btc_status pipe_run(pipe_driver *p, const btc_item *items, size_t n, btc_result *results, btc_error *err);
/* Between runs: forms a broken pipeline again, so that the next run finds it whole. */
btc_status pipe_check(pipe_driver *p, btc_error *err);

/* Contiguous cuts of about equal work for pairs of usual length; each rank gets a block at least. */
btc_status pipe_even_cuts(const btc_model *m, int ranks, int *cuts, btc_error *err);

btc_model *pipe_model(pipe_driver *p); /* the driver's own view of the model: no weights of it are read */
btc_precision pipe_precision(const pipe_driver *p);
const char *pipe_describe(const pipe_driver *p);

typedef struct pipe_state {
  uint64_t epoch;
  int ranks;
  int pid[PIPE_MAX_RANKS];
  double busy_ms[PIPE_MAX_RANKS]; /* spent in steps by the process that is there now */
  double run_ms;                  /* spent in pipe_run */
  int64_t breaks;                 /* epochs that ended */
  double form_ms;                 /* the last formation, from the break's detection on */
  char cause[512];                /* of the last break */
} pipe_state;
pipe_state pipe_get_state(const pipe_driver *p);

#endif
