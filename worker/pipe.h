/*
 * A pipeline of ranks, driven from here: items in, answers out, byte for byte those of btc_session_run.
 *
 * The driver reads images ahead, keeps a journal of every item (pictures, prompt, tokens so far, state of its drawing), and sends
 * steps down the ranks; picks come back from the last one, or logits of items that are drawn. Items are spread over more groups
 * than there are ranks, one decode step of each under way; prompts are prefilled in chunks between them, one prompt after another,
 * so that a long one holds nobody up for longer than the chunks under way; and the tower works ahead of both. So every rank has
 * work while others compute. Each content of an image is encoded once, and the constant beginning of the prompts is computed once.
 *
 * When a rank dies, stops or is cut off, all ranks but that one keep their process and their weights: a new epoch is formed, and
 * items go on from the journal. They are prefilled again and their tokens fed again one by one rather than in one prefill: a
 * prefill sums in another order than decode steps do (ops.h), and bytes would differ.
 *
 * A rank without memory for all slots ends the epoch, and the next one has half as many; bytes stay the same. With one slot the
 * item under way fails with NOMEM, or all do when not even the usual fits.
 *
 * The ranks are processes of this machine, started and watched here (pipe_create), or those of several workers, whose agents
 * start and watch them: then the agent tells when to form and when to go, and is told what broke (pipe_create_remote).
 *
 * Thread: one at a time, and ranks die with the thread that made them. The reading thread is the driver's own.
 */
#ifndef BTC_WORKER_PIPE_H
#define BTC_WORKER_PIPE_H

#include "engine/engine.h"
#include "ops/ops.h"

enum { PIPE_MAX_RANKS = 16 };

/* How tensors pass from rank to rank. AUTO: by NCCL where every rank has a card of its own and NCCL's library, else by the links;
 * and by the links, too, after two attempts over NCCL have failed. NCCL: so, or not at all; ranks that share a card are hosts of
 * their own to it. */
typedef enum pipe_tensors { PIPE_TENSORS_AUTO, PIPE_TENSORS_TCP, PIPE_TENSORS_NCCL } pipe_tensors;
bool pipe_tensors_named(const char *name, pipe_tensors *out); /* "auto", "tcp", "nccl"; NULL is auto */

typedef struct pipe_options {
  const char *program; /* NULL: our own (/proc/self/exe); it must know `worker --shard` */
  const char *device;  /* "cpu", "plain", "cuda:N"; "cuda": rank r is on card r, modulo their number */
  pipe_tensors tensors;
  btc_precision precision;
  int threads;                /* of each rank; 0: this machine's processors shared out */
  int slots;                  /* items generated together, 1..256, default 16 */
  int groups;                 /* of items that decode together; 0: ranks + 1; at most slots */
  int chunk;                  /* positions prefilled in one step; 0: 128, on a GPU 2048 */
  int ahead;                  /* items read beyond those in slots; 0: as many as slots, 8 at most */
  int max_tokens;             /* most tokens of an answer */
  int open_ms;                /* a rank's start, model opened: default 60 s */
  int form_ms;                /* default 10 s: a rank finishes the block it computes before it answers */
  int step_ms;                /* a step is back within this or 8 times the usual, default 10 min: ranks are watched otherwise */
  int wedge_ms;               /* a rank that neither moves nor uses its processor for this is replaced, default 3 s */
  int max_breaks;             /* so many epochs in a row without a single new token: give up, default 6 */
  const volatile int *cancel; /* as in btc_session_options */
  uint64_t *progress;         /* likewise */
  /* The answer of a submitted item, out of pipe_step; *r is the callee's to clear. NULL: only pipe_run is used. */
  void (*done)(void *ctx, void *tag, btc_result *r);
  void (*note)(void *ctx, const char *text); /* a sentence for the log; may be NULL */
  void *ctx;
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
/* control: packets of shard_order come, those of shard_report go (shard.h). links_fd: a listening socket to which the last rank
 * connects. Both are borrowed. Returns at once; steps run when an order to form and then GO have come. */
btc_status pipe_create_remote(const char *model, int control, int links_fd, const pipe_options *o, pipe_driver **out,
                              btc_error *err);
void pipe_destroy(pipe_driver **p); /* items that are open get no answer */

/* ---- items at any time ---- */
int pipe_room(const pipe_driver *p); /* items that may be submitted now */
int pipe_open(const pipe_driver *p); /* items not answered yet */
/* The item and all it points to are borrowed until it is answered. LIMIT when there is no room. */
btc_status pipe_submit(pipe_driver *p, const btc_item *item, void *tag, btc_error *err);
/* One turn: whatever can be sent, done and taken now; waits at most 20 ms, but for forming. An error is the pipeline's, not an
 * item's: it could not be formed again, broke max_breaks times, or its items were dropped; every open item has been answered with
 * it. */
btc_status pipe_step(pipe_driver *p, btc_error *err);
/* In `done`: the item is answered because the pipeline fails, not because of anything of its own. */
bool pipe_is_failing(const pipe_driver *p);
/* The GPUs of the ranks on this machine, each once, as they last told: how many, at most room. Any thread, while p lives. */
size_t pipe_devices(pipe_driver *p, btc_device_info *out, size_t room);
int pipe_places(const pipe_driver *p);  /* images whose features the entry keeps */
int pipe_wake_fd(const pipe_driver *p); /* readable when pipe_step has something to do although no item is open; -1: never */

/* Like btc_session_run. An error as of pipe_step. No other item is open. */
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
  int pid[PIPE_MAX_RANKS];        /* of ranks of this machine */
  double busy_ms[PIPE_MAX_RANKS]; /* spent in steps by the process that is there now; likewise */
  double run_ms;                  /* spent with an item open */
  int64_t breaks;                 /* epochs that ended */
  bool nccl;                      /* tensors go by NCCL in this epoch */
  int slots;                      /* items generated together now: fewer than asked for once a rank had no memory */
  double form_ms;                 /* the last formation, from the break's detection on */
  int64_t images, encoded;        /* asked for by items, seen by the tower */
  int64_t encode_bytes;           /* of bodies of the tower's steps that were sent */
  int64_t chunks, decodes;        /* steps sent */
  int64_t amid;                   /* of decodes: while a prompt was prefilled */
  int64_t rows, row_bytes;        /* of decode steps that came back: items in them, and bytes of their bodies */
  int64_t reused;                 /* positions copied from the constant beginning */
  char cause[512];                /* of the last break */
} pipe_state;
pipe_state pipe_get_state(const pipe_driver *p);

#endif
