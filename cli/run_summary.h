/* What `btcchat run` says at its end. */
#ifndef CLI_RUN_SUMMARY_H
#define CLI_RUN_SUMMARY_H

#include "run_home.h"

typedef struct run_counts {
  uint64_t total, ended, before; /* before: ended already when this run began */
} run_counts;

enum { RUN_REASONS = 16 };
typedef struct run_reasons {
  struct {
    char name[32];
    uint64_t n;
  } list[RUN_REASONS]; /* the last one takes what does not fit */
  int n;
} run_reasons;

/* Asks for the job's dead items; what cannot be had is left out. */
void run_count_reasons(btc_client *c, const char *jid, run_reasons *out);
void run_print_summary(const run_job *j, const run_counts *n, const run_reasons *r, double seconds, const char *dir);
int run_already_done(const run_job *j, const char *dir); /* returns the exit code */

#endif
