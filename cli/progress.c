/* See progress.h. */
#define _GNU_SOURCE
#include "progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

enum { BAR = 24 };

void progress_begin(progress *p) {
  *p = (progress){.terminal = isatty(STDERR_FILENO), .start_ns = btc_now_ns()};
  p->shown_ns = p->start_ns;
}

const char *duration_text(double seconds, char *buf, size_t len) {
  long long s = seconds < 0 ? 0 : seconds > 1e9 ? 1000000000 : (long long)(seconds + 0.5);
  if (s >= 86400)
    snprintf(buf, len, "%lld d %02lld:%02lld", s / 86400, s / 3600 % 24, s / 60 % 60);
  else if (s >= 3600)
    snprintf(buf, len, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
  else
    snprintf(buf, len, "%lld:%02lld", s / 60, s % 60);
  return buf;
}

static void write_line(const progress *p, const progress_state *s) {
  uint64_t ended = s->done + s->failed + s->cancelled;
  double part = s->total ? (double)ended / (double)s->total : 0;
  char bar[BAR + 1], time[32];
  for (int i = 0; i < BAR; i++) bar[i] = i < (int)(part * BAR) ? '#' : '.';
  bar[BAR] = 0;
  if (p->terminal) fprintf(stderr, "\r\033[K[%s] ", bar);
  if (!p->terminal) fprintf(stderr, "btcchat: ");
  fprintf(stderr, "%.1f %%, %" PRIu64 " of %" PRIu64 " items", part * 100, ended, s->total);
  if (s->failed) fprintf(stderr, ", %" PRIu64 " failed", s->failed);
  if (s->cancelled) fprintf(stderr, ", %" PRIu64 " cancelled", s->cancelled);
  if (s->items_per_s > 0) fprintf(stderr, ", %.3g items/s", s->items_per_s);
  if (s->eta_s > 0 && ended < s->total) fprintf(stderr, ", about %s left", duration_text(s->eta_s, time, sizeof time));
  if (s->note) fprintf(stderr, ", %.200s", s->note);
}

void progress_show(progress *p, const progress_state *s, bool last) {
  int64_t now = btc_now_ns(), gap = p->terminal ? 200000000 : 10000000000;
  if (!last && now - p->shown_ns < gap) return;
  if (last && !p->shown && !p->terminal) return; /* it was over before the first line: the summary is enough */
  p->shown_ns = now;
  p->shown = true;
  write_line(p, s);
  if (!p->terminal || last) fputc('\n', stderr);
  if (last) p->shown = false;
}

void progress_break(progress *p) {
  if (p->terminal && p->shown) fputc('\n', stderr);
  p->shown = false;
}
