/* What the files of the driver share: ranks and their processes (pipe_rank.c), epochs (pipe_form.c), steps and items (pipe.c). */
#ifndef BTC_WORKER_PIPE_PARTS_H
#define BTC_WORKER_PIPE_PARTS_H

#include <sys/types.h>

#include "engine/request.h"
#include "pipe.h"
#include "shard.h"
#include "shard_step.h"

typedef struct pipe_rank {
  pid_t pid; /* 0: dead */
  int control, pidfd;
  shard_page *page;
  int first, last, port, starts;
  int64_t started_ns;
  bool open;            /* the model is open and the port known */
  uint64_t ready_epoch; /* formed */
  uint64_t seen_alive, seen_cpu;
  int64_t seen_ns; /* when either last moved */
} pipe_rank;

typedef struct pipe_item { /* the journal of one item */
  btc_request q;
  int64_t prompt_positions;
  int fed;        /* tokens of the answer that the ranks have seen */
  bool opened;    /* has its answer */
  bool prefilled; /* in this epoch */
} pipe_item;

typedef struct pipe_group {
  int *slot;  /* [batch] item in it; -1: free */
  int *order; /* [batch] slot of each row of the step that flies */
  int rows;
  bool flying;
  shard_step_kind kind;
  uint64_t step;
  int64_t sent_ns;
} pipe_group;

struct pipe_driver {
  pipe_options o;
  char *model_dir;
  btc_model *m;
  btc_sampler *sampler;
  btc_precision precision;
  int n_ranks, n_groups;
  pipe_rank rank[PIPE_MAX_RANKS];
  char describe[160];
  /* epoch */
  uint64_t epoch, step, abandoned; /* abandoned: reports of epochs up to it are history */
  int listen_fd, port;
  btc_link *out, *in;
  bool fault; /* this epoch is over */
  bool dead;  /* because a rank died or was replaced: the cause that tells most */
  btc_error cause;
  int64_t fault_ns, breaks;
  double form_ms, run_ms;
  int64_t reserved; /* slot positions of this epoch */
  int reserved_images;
  int64_t reserved_prompt;
  /* run */
  pipe_item *items; /* [n_items] of the running call */
  size_t n_items, next_item, done_items;
  int share; /* most items a group takes in this run */
  pipe_group *group;
  btc_stage_item *steps; /* [batch] */
  float *pixels;         /* [batch * images] of a prefill */
  int64_t pixel_floats;
  uint8_t *words;
  size_t words_room;
  double usual_ms; /* of a step */
  bool new_token;  /* since the last break */
};

/* pipe_rank.c */
btc_status pipe_rank_start(pipe_driver *p, int r, btc_error *err);
void pipe_rank_end(pipe_rank *k); /* SIGKILL and wait; fine when it is dead */
void pipe_rank_order(pipe_driver *p, int r, const shard_order *o);
/* Reads what ranks say, and looks after those that died or stand still. Sets p->fault. */
void pipe_watch(pipe_driver *p);
bool pipe_has_fault(void *driver); /* pipe_watch as a link's stop */
/* Ends the epoch. The first cause is kept, unless a later one is a death. */
void pipe_break(pipe_driver *p, btc_status st, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* pipe_form.c */
void pipe_wait_for_death(pipe_driver *p);             /* a moment, for the true cause of a break */
btc_status pipe_form(pipe_driver *p, btc_error *err); /* a new epoch, dead ranks started anew */

/* pipe.c */
int pipe_batch_slots(const pipe_driver *p);

#endif
