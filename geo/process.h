/* The helper program as a child: start, talk to, bury. Thread: one at a time for a process. */
#ifndef GEO_PROCESS_H
#define GEO_PROCESS_H

#include <sys/types.h>

#include "geo/frame.h"

typedef struct geo_process {
  pid_t pid; /* 0: none */
  int fd;    /* our end of the socket, non-blocking; -1: closed */
} geo_process;

#define GEO_PROCESS_FD 3 /* the helper's end */

/* Starts `btcchat-geo ARGS...` (args NULL-terminated, without the program's name; the first is the mode) with the socket as
 * descriptor 3, no other descriptors above stderr, and an environment of a few names only. */
btc_status geo_process_start(const char *const *args, geo_process *p, btc_geo_failure *f);

/* Sends a request and waits for the answer, an object that is either what was asked for or {"reason": ..., "message": ...}, which
 * becomes *f. On any other failure the process is dead afterwards and *f says how it ended (crash, timeout, oom).
 * fds: n descriptors to send along, borrowed. *answer: json_decref. */
btc_status geo_process_ask(geo_process *p, const json_t *request, const int *fds, int n, int timeout_ms, geo_frame_stop stop,
                           void *ctx, json_t **answer, btc_geo_failure *f);

/* Closes the socket, waits a moment for the end, kills what is left. */
void geo_process_stop(geo_process *p);

#endif
