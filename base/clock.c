#define _POSIX_C_SOURCE 200809L
#include "base.h"

#include <time.h>

static clockid_t clock_used = CLOCK_MONOTONIC;

void btc_clock_processor_time(void) {
  clock_used = CLOCK_PROCESS_CPUTIME_ID;
}

int64_t btc_now_ns(void) {
  struct timespec t;
  clock_gettime(clock_used, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
