/*
 * The agent's side of an engine child: another process of our own program, so that whatever the engine does, the agent lives.
 * Everything here is non-blocking on the agent's loop. The child is killed when its agent dies.
 */
#ifndef BTC_WORKER_CHILD_H
#define BTC_WORKER_CHILD_H

#include "agent.h"
#include "net/loop.h"
#include "proto/wire.h"

#define CHILD_WORDS 2048 /* bytes of its stderr that are kept */

enum { CHILD_EXIT_DEVICE = 75 }; /* EX_TEMPFAIL: it lost its device; another process may get it back */

typedef enum child_end {
  CHILD_EXITED,
  CHILD_KILLED /* by a signal */,
  CHILD_OOM,
  CHILD_STALLED /* by us, see child_kill */,
  CHILD_NO_DEVICE /* exited: its device was lost, through no fault of an item */
} child_end;
typedef struct child_death {
  child_end end;
  int code;           /* exit code or signal */
  bool ready;         /* it had been ready before */
  char message[1024]; /* one line of UTF-8: how it ended and its last words */
} child_death;

typedef struct child child;
/* Called from the loop. `died` is the last call; in it the child is to be destroyed (or later). What the child said before its end
 * has been delivered then. */
typedef struct child_calls {
  void *ctx;
  void (*ready)(void *ctx, const Btc__ChildReady *r); /* also failed ones */
  void (*started)(void *ctx, const Btc__ChildStarted *s);
  void (*done)(void *ctx, const Btc__ChildDone *d);
  void (*died)(void *ctx, const child_death *d);
} child_calls;

/* Descriptors that a member's child inherits (WORKER_CHILD_CONTROL, WORKER_CHILD_LINKS); the caller keeps its own. */
typedef struct child_extra {
  int control, links;
} child_extra;

/* program: NULL for our own (/proc/self/exe). extra: may be NULL. */
btc_status child_start(btc_loop *loop, const char *program, const btc_worker_options *o, const child_calls *calls,
                       const child_extra *extra, child **out, btc_error *err);
/* Queues an envelope; sent as the child reads. */
btc_status child_send(child *c, const Btc__Envelope *e, btc_error *err);
int child_pid(const child *c); /* 0: it is dead */
/* SIGKILL; `died` follows. stalled: it made no progress. */
void child_kill(child *c, bool stalled);
/* Kills it if it still runs, waits for it, frees. No callback. */
void child_destroy(child **c);

/* OOM kills so far in our memory cgroup; -1 when that is not known. */
int64_t child_oom_kills(void);
/* For a process that computes, before exec (safe there): when memory runs out the system takes it rather than the agent, which
 * keeps the items and is small. Whoever was told to be taken even sooner stays so. */
void child_offer_to_oom(void);
/* Replaces what is no UTF-8 or a control character by '?', so that it may travel. */
void child_clean_text(char *s);

#endif
