/* The environment is read once, at the first passage. Counting is atomic: passages come from any thread. */
#include "failpoint.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_POINTS = 16, MAX_NAME = 63 };

static struct {
  char name[MAX_NAME + 1];
  atomic_long left;
  bool on;   /* from then on */
  bool stop; /* SIGSTOP in place of SIGKILL */
} points[MAX_POINTS];
static int n_points;
static pthread_once_t once = PTHREAD_ONCE_INIT;

int btc_failpoints_armed = -1;

static void read_environment(void) {
  const char *s = getenv("BTC_FAIL");
  while (s && *s && n_points < MAX_POINTS) {
    size_t len = strcspn(s, ":,");
    if (len > 0 && len <= MAX_NAME) {
      memcpy(points[n_points].name, s, len);
      char *end = NULL;
      long n = s[len] == ':' ? strtol(s + len + 1, &end, 10) : 1;
      points[n_points].on = end && *end == '+';
      points[n_points].stop = end && *end == '!';
      atomic_init(&points[n_points].left, n > 0 ? n : 1);
      n_points++;
    }
    s += strcspn(s, ",");
    if (*s) s++;
  }
  __atomic_store_n(&btc_failpoints_armed, n_points, __ATOMIC_RELEASE);
}

/* The point whose turn it is, or -1. */
static int due(const char *name) {
  int which = -1;
  pthread_once(&once, read_environment);
  for (int i = 0; i < n_points; i++) {
    if (strcmp(points[i].name, name) != 0) continue;
    long left = atomic_fetch_sub(&points[i].left, 1);
    if (left == 1 || (left < 1 && points[i].on)) which = i;
  }
  return which;
}

bool btc_failpoint_fails(const char *name) {
  return due(name) >= 0;
}

void btc_failpoint_pass(const char *name) {
  int i = due(name);
  if (i >= 0) raise(points[i].stop ? SIGSTOP : SIGKILL);
}
