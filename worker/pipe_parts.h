/* What the files of the driver share: ranks and their processes (pipe_rank.c), epochs (pipe_form.c, pipe_remote.c), pictures and
 * the reading thread (pipe_read.c), steps (pipe_steps.c, pipe_take.c), items (pipe.c). */
#ifndef BTC_WORKER_PIPE_PARTS_H
#define BTC_WORKER_PIPE_PARTS_H

#include <pthread.h>

#include "engine/request.h"
#include "pipe.h"
#include "shard_process.h"
#include "shard_step.h"

enum { PIPE_ENCODES = PIPE_MAX_RANKS + 1, PIPE_CHUNKS = PIPE_MAX_RANKS + 1 };

typedef struct pipe_rank {
  shard_process process;
  int first, last, starts;
} pipe_rank;

/* One content of an image. Its index is its place in the rank that keeps features. It stays until the place is needed. */
typedef enum picture_state { PICTURE_EMPTY, PICTURE_THERE, PICTURE_FLYING, PICTURE_READY } picture_state;
typedef struct pipe_picture {
  picture_state state; /* EMPTY: it is being read by whoever got it, if anyone. READY: the rank of this epoch has its features */
  uint8_t key[33];
  bool shared; /* the key is true */
  bool pad;    /* made square before it is resized */
  int refs;
  uint64_t used;
  btc_image im; /* kept for further epochs; where the tower begins on a device, at its own size if that fits (btc_picture_fits) */
} pipe_picture;

/* The reading thread turns WAITING into READING and that into READ or FAILED, and owns a READING job; all else is the driver's. */
typedef enum pipe_job_state { PIPE_FREE, PIPE_WAITING, PIPE_READING, PIPE_READ, PIPE_FAILED, PIPE_LIVE } pipe_job_state;

typedef struct pipe_job { /* the journal of one item */
  pipe_job_state state;   /* under the lock */
  uint64_t order;         /* of arrival */
  void *tag;
  btc_request q;
  btc_result result;
  int *place; /* [n_images] pictures; the first n_read are held */
  int n_read;
  int64_t end;  /* positions of the prompt */
  int fed;      /* tokens of the answer that the ranks have seen */
  int64_t sent; /* positions of the prompt that the ranks were sent in this epoch */
  int chunks;   /* in so many steps */
  int64_t sent_ns;
  bool prefilled; /* in this epoch: all came back */
} pipe_job;

typedef struct pipe_group { /* items whose tokens are decoded together */
  pipe_job **row;           /* [slots] of the step that flies */
  int rows;
  bool flying;
  uint64_t step;
  int64_t sent_ns;
} pipe_group;

typedef struct pipe_chunk { /* a step of a prompt that flies */
  bool flying;
  uint64_t step;
  int64_t sent_ns;
  pipe_job *job;
} pipe_chunk;

typedef struct pipe_encode { /* a step of the tower that flies */
  bool flying;
  uint64_t step;
  int64_t sent_ns;
  int n, place[SHARD_IMAGES];
  pipe_job *job[SHARD_IMAGES]; /* who asked; may be gone when it comes back: only compared */
  uint64_t order[SHARD_IMAGES];
} pipe_encode;

struct pipe_driver {
  pipe_options o;
  char *model_dir;
  btc_model *m;
  btc_sampler *sampler;
  btc_precision precision;
  int n_ranks, n_groups, entry; /* entry: see shard_order */
  int slots;                    /* in use: o.slots, or fewer since memory ran out (pipe_shrink.c) */
  int towers;                   /* ranks with a part of the tower */
  int cards;                    /* of this machine, when the device is "cuda" without a number */
  bool nccl;                    /* see pipe_state */
  char no_nccl[200];            /* why not; "": nobody would expect it */
  pipe_rank rank[PIPE_MAX_RANKS];
  pthread_mutex_t pages; /* held while a rank's process goes or comes, and by who looks at its page from another thread */
  char describe[160];
  /* epoch */
  uint64_t epoch, abandoned; /* abandoned: reports of epochs up to it are history */
  uint64_t step[2];          /* sent so far: language, tower */
  int listen_fd, port;
  btc_link *out, *side, *in; /* side: to the entry, when that is not rank 0 */
  bool formed;               /* steps may leave */
  bool fault;                /* this epoch is over */
  bool dead;                 /* because a rank died or was replaced: the cause that tells most */
  btc_error cause;
  int64_t fault_ns, breaks;
  double form_ms, run_ms;
  bool reserved;
  int64_t positions, images; /* reserved in this epoch, or in the last one: of a slot, of an item */
  /* orders of an agent */
  bool remote;
  int control, links_fd;
  shard_order order; /* the newest to form */
  bool ordered, dropped;
  uint64_t told_broken, go;
  /* items */
  pipe_job *jobs; /* [n_jobs] */
  int n_jobs, open, live;
  uint64_t arrivals;
  pipe_job **slot; /* [slots] */
  pipe_group *group;
  pipe_encode encode[PIPE_ENCODES];
  pipe_chunk chunk[PIPE_CHUNKS];
  pipe_job *filling;     /* its prompt is being sent; the next one is when all of it has been */
  btc_stage_item *steps; /* [slots] */
  int32_t *places;       /* [n_pictures] of a prefill */
  uint8_t *words;
  size_t words_room;
  int32_t *prefix; /* ids of every caption's beginning */
  int64_t n_prefix, usual_positions;
  bool beginning_flies;
  uint64_t beginning;
  double usual_ms; /* of a step */
  bool new_token;  /* since the last break */
  bool failing;    /* see pipe_is_failing */
  int futile;      /* epochs in a row without one */
  int64_t n_images, n_encoded, n_reused, n_chunks, n_decodes, n_amid, n_rows, n_row_bytes, n_encode_bytes;
  /* pictures and their reading */
  pipe_picture *pictures; /* [n_pictures] */
  int n_pictures;
  uint64_t uses;
  pthread_mutex_t lock;
  pthread_cond_t to_read;
  pthread_t reader;
  bool reading, stop;
  int bell; /* eventfd: the reading thread has read something */
};

/* pipe_rank.c */
btc_status pipe_rank_start(pipe_driver *p, int r, btc_error *err);
/* Reads what ranks say, and looks after those that died or stand still. Sets p->fault. */
void pipe_watch(pipe_driver *p);
bool pipe_has_fault(void *driver); /* pipe_watch as a link's stop */
/* Ends the epoch. The first cause is kept, unless a later one is a death, or a rank's lack of memory, which closes links too. */
void pipe_break(pipe_driver *p, btc_status st, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* pipe_form.c */
void pipe_wait_for_death(pipe_driver *p);             /* a moment, for the true cause of a break */
btc_status pipe_form(pipe_driver *p, btc_error *err); /* a new epoch, dead ranks started anew */
void pipe_close_links(pipe_driver *p);
/* Links of epoch p->epoch: from the last rank, to rank 0, to the entry. o as a rank gets it. */
btc_status pipe_close_ring(pipe_driver *p, const shard_order *o, int listen_fd, btc_error *err);

/* pipe_remote.c */
void pipe_remote_watch(pipe_driver *p);
/* Brings the epoch on as far as the agent has ordered. *idle: there is none, and no order to form one. NOMEM as of pipe_shrink. */
btc_status pipe_remote_form(pipe_driver *p, bool *idle, btc_error *err);

/* pipe_shrink.c */
/* A rank ran out of memory, and the epoch is over: less is held in the next one. NOMEM: there is nothing left to give up. */
btc_status pipe_shrink(pipe_driver *p, const btc_error *why, btc_error *err);

/* pipe_read.c */
btc_status pipe_reader_start(pipe_driver *p, btc_error *err);
void pipe_reader_stop(pipe_driver *p);
void pipe_drop_pictures(pipe_driver *p, pipe_job *j);                           /* with the lock held */
pipe_job *pipe_first(pipe_driver *p, pipe_job_state s, uint64_t from_order);    /* the earliest; lock held */
bool pipe_pictures_are(const pipe_driver *p, const pipe_job *j, picture_state); /* all of them */

/* pipe_steps.c */
btc_status pipe_send_steps(pipe_driver *p, btc_error *err); /* whatever can leave now */

/* pipe_take.c */
btc_status pipe_take_frames(pipe_driver *p, btc_error *err);
btc_status pipe_check_deadlines(const pipe_driver *p, btc_error *err);

/* pipe.c */
void pipe_answer(pipe_driver *p, pipe_job *j); /* frees the job and hands its result out */
void pipe_start_epoch(pipe_driver *p);         /* the ranks know nothing; the journal does */
void pipe_forget_prompt(pipe_job *j);          /* no rank has any of it */
btc_status pipe_make_groups(pipe_driver *p, int ranks, btc_error *err);

#endif
