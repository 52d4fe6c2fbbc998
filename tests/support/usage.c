#define _GNU_SOURCE
#include "usage.h"

#include <dirent.h>
#include <stdio.h>

#include "test.h"

static double anonymous_mb(pid_t pid) {
  char path[64], line[256];
  long kb = 0;
  snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
  FILE *f = fopen(path, "re");
  while (f && fgets(line, sizeof line, f))
    if (strncmp(line, "RssAnon:", 8) == 0) kb = strtol(line + 8, NULL, 10);
  if (f) fclose(f);
  return (double)kb / 1024;
}

static int descriptors(pid_t pid) {
  char path[64];
  int n = -2; /* . and .. */
  snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
  DIR *d = opendir(path);
  while (d && readdir(d)) n++;
  if (d) closedir(d);
  return n;
}

void usage_sample(usage *u, pid_t pid, double minutes) {
  double mb = anonymous_mb(pid);
  if (u->n == USAGE_MAX || mb <= 0) return;
  u->minutes[u->n] = minutes;
  u->mb[u->n] = mb;
  u->fds[u->n++] = descriptors(pid);
}

double usage_slope(const usage *u) {
  double x = 0, y = 0, xx = 0, xy = 0, n = u->n;
  for (int i = 0; i < u->n; i++) {
    x += u->minutes[i];
    y += u->mb[i];
    xx += u->minutes[i] * u->minutes[i];
    xy += u->minutes[i] * u->mb[i];
  }
  double spread = n * xx - x * x;
  return spread > 0 ? (n * xy - x * y) / spread : 0;
}

static int by_number(const void *a, const void *b) {
  return *(const int *)a - *(const int *)b;
}

int usage_fds(const usage *u, int from, int to) {
  static int sorted[USAGE_MAX];
  if (to <= from) return 0;
  memcpy(sorted, u->fds + from, (size_t)(to - from) * sizeof *sorted);
  qsort(sorted, (size_t)(to - from), sizeof *sorted, by_number);
  return sorted[(to - from) / 2];
}

int64_t usage_mapped(pid_t pid, const char *name) {
  char path[64], line[1024];
  int64_t kb = 0;
  bool ours = false;
  snprintf(path, sizeof path, "/proc/%d/smaps", pid);
  FILE *f = fopen(path, "r");
  assert_non_null(f);
  while (fgets(line, sizeof line, f)) {
    long long rss;
    if (strchr(line, '-') && strchr(line, '/'))
      ours = strstr(line, name) != NULL;
    else if (line[0] >= '0' && line[0] <= '9')
      ours = false;
    if (ours && strncmp(line, "Rss:", 4) == 0 && (rss = strtoll(line + 4, NULL, 10)) > 0) kb += rss;
  }
  fclose(f);
  return kb << 10;
}
