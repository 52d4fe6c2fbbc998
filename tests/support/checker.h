/*
 * The invariants of the queue (docs/protocol.md 2, 3), checked from outside: everything Redis holds, the results folder, what
 * integrators took. For each job done + dead + cancelled = total; as many done bits; no (jid, idx) twice; done and dead disjoint;
 * every record there and its caption right; every unfinished item in exactly one chunk and every chunk in exactly one place; one
 * event an ending; and at the end nothing left behind.
 *
 * It reads in many commands: let nothing change the queue meanwhile. Memory: four bits an item, 24 bytes an item of the one job
 * whose captions it compares.
 */
#ifndef TEST_CHECKER_H
#define TEST_CHECKER_H

#include "base/base.h"

typedef struct checker_options {
  const char *redis; /* unix:///PATH or redis://HOST:PORT */
  const char *queue;
  const char *results; /* folder of sealed parts; NULL: all records are still in `res` */
  const char *drained; /* what an integrator took from `out`: a file of lines "JID IDX EPOCH JSON", each once; or NULL */
  bool at_end;         /* all jobs are over, all records sealed: nothing may be left */
  bool stub;           /* captions are the stub engine's */
} checker_options;

typedef struct checker_report {
  uint64_t jobs, items, done, dead, cancelled, records, captions, violations;
} checker_report;

/* say gets one line a violation (the first 100). BTC_OK: the check was done, see report->violations. */
typedef void (*checker_say)(void *ctx, const char *line);
btc_status checker_run(const checker_options *o, checker_say say, void *ctx, checker_report *report, btc_error *err);

#endif
