/* What processes hold over time, from /proc: whether it grows. */
#ifndef TEST_USAGE_H
#define TEST_USAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum { USAGE_MAX = 8192 };

typedef struct usage {
  double minutes[USAGE_MAX], mb[USAGE_MAX]; /* RssAnon */
  int fds[USAGE_MAX], n;
} usage;

/* One sample of a process that runs. */
void usage_sample(usage *u, pid_t pid, double minutes);
/* MB a minute, by least squares. */
double usage_slope(const usage *u);
/* The lower half of the descriptor counts of [from, to) lies below this. */
int usage_fds(const usage *u, int from, int to);
/* Resident bytes of mapped files whose names contain `name`. */
int64_t usage_mapped(pid_t pid, const char *name);

#endif
