/* Progress on stderr: a bar on a terminal, one plain line every ten seconds otherwise. */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include "cli.h"

typedef struct progress {
  bool terminal, shown;
  int64_t start_ns, shown_ns;
} progress;

typedef struct progress_state {
  uint64_t total, done, failed, cancelled; /* items that ended: done + failed + cancelled */
  double items_per_s, eta_s;               /* 0: not known */
  const char *note;                        /* "paused: ..." or NULL */
} progress_state;

void progress_begin(progress *p);
/* Shows when it is time to; last: a final line on a terminal. */
void progress_show(progress *p, const progress_state *s, bool last);
/* Ends a bar, so that other text begins on a line of its own. */
void progress_break(progress *p);

/* "0:53", "2:05:00", "3 d 04:00" */
const char *duration_text(double seconds, char *buf, size_t len);

#endif
