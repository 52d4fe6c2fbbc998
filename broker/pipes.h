/*
 * Pipes: workers that hold parts of a model, planned, formed, watched and formed again by the one broker that has the duty "plan".
 *
 *   PLAN ──Form sent──▶ FORM ──all Ready──▶ ACTIVE          every arrow is a compare-and-swap on the pipe's epoch in Redis
 *                        └──deadline, Broken, a member lost──▶ BROKEN ──planned again, next epoch──▶ PLAN
 *
 * Only workers whose Hello lists blocks take part, and only those of the leader's own sessions are planned; without any of them
 * nothing here does anything. Who is a whole replica works as ever, outside of pipes. Thread: the loop's; state is soft and read
 * back from Redis by the next leader.
 */
#ifndef BTC_BROKER_PIPES_H
#define BTC_BROKER_PIPES_H

#include "broker/plan.h"
#include "broker/request.h"

/* What a member said of itself in Hello, and in heartbeats since. */
typedef struct btc_pipe_caps {
  btc_plan_block *block; /* [blocks] */
  int blocks, slots;
  int64_t memory_bytes, fixed_bytes;
  double ms[BTC_PLAN_KINDS];
  char site[65], endpoint[256];
  uint32_t nccl; /* the version of NCCL's library; 0: its tensors go by the links only */
  char card[64]; /* of its GPU */
  int strikes;   /* formations that waited for it in vain */
  struct {
    char pipe[33];
    uint64_t epoch;
    double busy, ms;
  } load;
} btc_pipe_caps;

/* NULL: none, or not usable (said in the log): it takes no part. */
btc_pipe_caps *btc_pipe_caps_of(const Btc__Hello *h);
void btc_pipe_caps_free(btc_pipe_caps **c);
void btc_pipe_caps_beat(btc_pipe_caps *c, const Btc__PipeLoad *l); /* either may be NULL */

btc_status btc_pipes_create(btc_broker *b, btc_error *err); /* b->pipes */
void btc_pipes_destroy(btc_broker *b);
void btc_pipes_tick(btc_broker *b); /* each 100 ms, while Redis is there */
void btc_pipes_ready(btc_broker *b, btc_session *s, uint64_t req_id, const Btc__PipeReady *m);
void btc_pipes_broken(btc_broker *b, btc_session *s, uint64_t req_id, const Btc__PipeBroken *m);
void btc_pipes_report(btc_broker *b, const btc_message *m); /* PipesRequest */

/* ---- a plan as text in Redis ---- */
typedef struct btc_pipe_plan {
  btc_plan_pipe pipe;
  uint64_t incarnation[BTC_PLAN_STAGES];
} btc_pipe_plan;
char *btc_pipe_plan_text(const btc_pipe_plan *p); /* NULL: no memory */
bool btc_pipe_plan_read(const char *text, btc_pipe_plan *out);

#endif
