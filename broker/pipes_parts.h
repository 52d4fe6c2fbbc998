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
  int failures; /* formations in a row that came to nothing */
} pipeline;

struct btc_pipes {
  pipeline *list;
  bool leader, loaded, loading, asking, dirty;
  bool reload;      /* Redis may hold something else than we believe: read it again before anything is planned */
  uint64_t members; /* a sum over who takes part: tells when that changes */
  int64_t lead_ns, plan_ns, replan_ns, load_ns, grace_ns;
};

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
