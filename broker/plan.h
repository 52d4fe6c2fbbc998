/*
 * Who holds which blocks: a pure function of members, block prices and memory (architecture 2). A member that holds the whole model
 * becomes a replica. The others, where their model (fingerprint) and their site are the same, form pipelines that are minimal:
 * without any one of its members the model would not fit. Within a pipeline the order of members and the contiguous cut are exact
 * (the least possible slowest stage); the grouping is exact for up to BTC_PLAN_STAGES members of a site and a search beyond.
 *
 * The same input gives the same plan, in whatever order members come, so that brokers agree without talking. Knows no tensor, no
 * socket and no Redis. Thread: any; nothing is kept between calls.
 */
#ifndef BTC_BROKER_PLAN_H
#define BTC_BROKER_PLAN_H

#include "base/base.h"

#define BTC_PLAN_STAGES 8    /* most stages of a pipeline */
#define BTC_PLAN_BLOCKS 512  /* most blocks of a model */
#define BTC_PLAN_MEMBERS 512 /* most members planned at once */

/* Kinds in the order of the block list; engine/stage.h has the same. */
typedef enum btc_plan_kind {
  BTC_PLAN_PATCH,
  BTC_PLAN_VISION,
  BTC_PLAN_CHANGE,
  BTC_PLAN_SPLICE,
  BTC_PLAN_LLM,
  BTC_PLAN_HEAD,
  BTC_PLAN_KINDS
} btc_plan_kind;

typedef struct btc_plan_block {
  btc_plan_kind kind;
  int64_t weight_bytes;
  int64_t kv_bytes;   /* keys and values of one slot */
  int64_t work_bytes; /* working memory while it runs; a stage needs the largest of its blocks */
  double price;       /* cost of an item in any unit, e.g. GFLOP: shares a kind's measured time among its blocks */
} btc_plan_block;

typedef struct btc_plan_model {
  const char *fingerprint; /* of the weights, their type and the kernels: what may be mixed */
  const btc_plan_block *block;
  int blocks;
  int slots;           /* items with live keys and values in a stage */
  int64_t fixed_bytes; /* of any stage, whatever it holds */
  double ms_per_price; /* for members that have measured nothing */
} btc_plan_model;

typedef struct btc_plan_member {
  const char *name; /* unique */
  const char *fingerprint;
  const char *site; /* pipelines stay within one; "" is one too */
  int64_t memory_bytes;
  /* Milliseconds of one block of the kind for one item, as the member measured it; <= 0: not measured, then estimated from the
   * kinds that it has measured. */
  double ms[BTC_PLAN_KINDS];
} btc_plan_member;

typedef struct btc_plan_stage {
  char member[65];
  int first, last; /* blocks [first,last) */
  double ms;       /* an item's time in it */
  int64_t bytes;   /* of the member's memory */
} btc_plan_stage;

typedef struct btc_plan_pipe {
  char fingerprint[96];
  int stages; /* 1: a replica */
  btc_plan_stage stage[BTC_PLAN_STAGES];
  double slowest_ms; /* of its stages: 1000 / slowest_ms items/s when kept busy */
  double imbalance;  /* slowest / mean - 1 */
} btc_plan_pipe;

typedef struct btc_plan {
  btc_plan_pipe *pipe; /* [pipes] */
  int pipes, replicas; /* replicas are pipes too, and come first */
  char (*spare)[65];   /* [spares] members without work: the first choice when a pipeline loses one */
  int spares;
  double items_per_s;
} btc_plan;

typedef struct btc_plan_input {
  const btc_plan_model *model; /* members of other models are spares */
  int models;
  const btc_plan_member *member;
  int members;
} btc_plan_input;

/* A plan from nothing. *out is freed with btc_plan_free. ARG: over the limits above, a repeated member; NOMEM. */
btc_status btc_plan_make(const btc_plan_input *in, btc_plan *out, btc_error *err);
/*
 * The plan that follows `current`: pipes of it whose members are all there, unchanged in model and memory, are kept, and the
 * members that they leave over are planned. Only a plan from nothing that promises `gain` (0.15) more than that tears kept pipes
 * up. So joining members are used at once, a lost one disturbs its own pipe only, and noise in measured times disturbs nobody.
 * *changed: the assignment differs from current's (times do not count).
 */
btc_status btc_plan_revise(const btc_plan_input *in, const btc_plan *current, double gain, btc_plan *out, bool *changed,
                           btc_error *err);
void btc_plan_free(btc_plan *p);

/* The best order and cut for exactly these members (at most BTC_PLAN_STAGES), one stage each. False: the model does not fit. */
bool btc_plan_cut(const btc_plan_model *model, const btc_plan_member *const *members, int n, btc_plan_pipe *out);

double btc_plan_stage_ms(const btc_plan_model *model, const btc_plan_member *m, int first, int last);
int64_t btc_plan_stage_bytes(const btc_plan_model *model, int first, int last);
const char *btc_plan_kind_name(btc_plan_kind k);               /* "vision" */
bool btc_plan_kind_of(const char *block, btc_plan_kind *kind); /* of a block's name: "vision 3" */

#endif
