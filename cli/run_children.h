/*
 * The processes that `btcchat run` starts: they die with it (whatever kills it), are started again when they die, and are stopped
 * in order at the end. One that never gets ready is given up after a few tries, with the end of its log on stderr.
 */
#ifndef CLI_RUN_CHILDREN_H
#define CLI_RUN_CHILDREN_H

#include <limits.h>
#include <sys/types.h>

#include "run_home.h"

enum { CHILD_ARGS = 40, CHILDREN_MAX = 66 };

typedef struct child {
  char name[32];
  char *argv[CHILD_ARGS]; /* malloc'ed, NULL-terminated; argv[0] is the program */
  int n_args;
  const char *ready; /* what it writes into its log when it is */
  bool keeps_lock;
  char log[PATH_MAX];
  off_t log_from;   /* where its log of this life begins */
  pid_t pid;        /* 0: not running */
  int64_t again_ns; /* when to start it (again) */
  int failures;     /* starts in a row that did not get ready */
} child;

typedef struct children {
  child list[CHILDREN_MAX];
  int n;
  int lock;
  char folder[PATH_MAX]; /* working folder of them all */
} children;

/* Adds one that is not running. NULL: no memory. argv: NULL-terminated. */
child *children_add(children *c, const run_home *h, const char *name, const char *ready, const char *const argv[]);
/* Starts what is not running and whose time has come; reaps what died. CLI_OK, or CLI_FAILED when one was given up. */
int children_tend(children *c);
bool child_is_ready(const child *ch);
/* SIGTERM to those from index first to before last, SIGKILL after grace_ms. */
void children_stop(children *c, int first, int last, int grace_ms);
void children_free(children *c); /* kills what is left */

#endif
