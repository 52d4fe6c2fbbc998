/*
 * The folder of `btcchat run`: DIR/results.jsonl for the user, DIR/.btcchat for us:
 *
 *   lock       held by the run and by its redis-server, so that the data has one owner even while a killed run's children end
 *   job.json   what is being done here: manifest, model, parameters, job id, and at the end the counts
 *   redis/     append-only file; parts/  sealed part files; logs/  of the children; s/  sockets
 */
#ifndef CLI_RUN_HOME_H
#define CLI_RUN_HOME_H

#include <limits.h>

#include "broker_options.h"

typedef struct run_home {
  char dir[PATH_MAX], inner[PATH_MAX]; /* absolute */
  char sockets[PATH_MAX];              /* folder of the sockets: inner/s, or a short one elsewhere */
  bool sockets_apart;
  int lock;
} run_home;

typedef struct run_job {
  char manifest[PATH_MAX], sha256[65], model[PATH_MAX + 80];
  char *params; /* malloc'ed */
  char key[72], jid[BTC_CLIENT_JID];
  uint64_t items, good, failed;
  bool finished;
} run_job;

/* Each returns CLI_OK or the exit code of what was said. */
int home_open(const char *dir, run_home *h); /* makes the folders; refuses when another run has them */
void home_close(run_home *h);
char *home_path(const run_home *h, const char *name); /* in inner; malloc'ed, NULL: no memory */
int home_make_sockets(run_home *h);
void home_remove_data(run_home *h); /* what a finished run needs no more */

int job_load(const run_home *h, run_job *j, bool *found);
int job_save(const run_home *h, const run_job *j);
void job_free(run_job *j);
/* Whether the folder's job is the one asked for; says what differs. */
int job_compare(const run_home *h, const run_job *there, const run_job *asked);

/* Names a model: its folder, and a digest of its small files and the sizes of its large ones. */
int model_identity(const char *dir, char *out, size_t len);

#endif
