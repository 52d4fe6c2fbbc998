/* What the files of the pipes' leader share. Private to broker/pipes*.c. */
#ifndef BTC_BROKER_PIPES_PARTS_H
#define BTC_BROKER_PIPES_PARTS_H

#include "broker/pipes.h"
#include "broker/session.h"

#define MS ((int64_t)1000000)

typedef enum pipe_state { PIPE_ASKED, PIPE_FORM, PIPE_ACTIVE, PIPE_BROKEN } pipe_state;

typedef struct pipeline {
  struct pipeline *next;
  char id[33];
  uint64_t epoch;
  btc_pipe_plan plan;
  pipe_state st;
  unsigned ready; /* ranks whose Ready came */
  bool going;     /* Redis is asked to call it ACTIVE */
  int64_t deadline_ns;
  int failures;      /* formations in a row that came to nothing */
  char oom[300];     /* what a rank of this epoch said when its memory ran out: for rank 0, with the next order to form */
  int ooms;          /* epochs of which that was the end, without one that lasted */
  int64_t active_ns; /* when it became ACTIVE last */
  bool nccl;         /* tensors go by NCCL in this epoch */
  int nccl_failures; /* such epochs that came to an early end, without one that lasted */
} pipeline;

struct btc_pipes {
  pipeline *list;
  bool leader, loaded, loading, asking, dirty;
  bool reload;                   /* Redis may hold something else than we believe: read it again before anything is planned */
  uint64_t members;              /* a sum over who takes part: tells when that changes */
  struct btc_planning *planning; /* NULL: nothing is planned now */
  uint64_t planned_from;         /* a sum over what it was begun with */
  int64_t lead_ns, plan_ns, replan_ns, load_ns, grace_ns;
};

/* ---- planning, in a thread of its own: a fleet of 64 takes longer than the loop may stand still ---- */
typedef struct btc_planning btc_planning;
/* Copies all it needs: members as their sessions are now, and the pipes that live. */
btc_status btc_planning_start(const btc_broker *b, const btc_plan_pipe *held, int n_held, btc_planning **out, btc_error *err);
bool btc_planning_ready(const btc_planning *p); /* false for NULL */
/* Waits for it, frees it. out: freed with btc_plan_free by the caller; NULL: not wanted. Fine with *p NULL. */
btc_status btc_planning_end(btc_planning **p, btc_plan *out, btc_error *err);

bool btc_pipe_takes_part(const btc_session *s);
btc_session *btc_pipe_member(const btc_broker *b, const pipeline *p,
                             int rank);                                  /* NULL: not here, or another process than was planned */
bool btc_pipe_present(const btc_broker *b, const pipeline *p, int rank); /* also while it says Hello again */

void btc_pipe_plan_again(btc_broker *b,
                         pipeline *p); /* p->plan is new: the next epoch is asked for, then all ranks are told to form */
void btc_pipe_activate(btc_broker *b, pipeline *p); /* if all are ready */
void btc_pipe_break(btc_broker *b, pipeline *p, const char *cause);
void btc_pipe_dissolve(btc_broker *b, pipeline *p, const char *why); /* frees it */
void btc_pipe_drop(btc_broker *b, pipeline *p);                      /* from our memory only */
void btc_pipes_forget(btc_broker *b);                                /* all: Redis is read again */

#endif
