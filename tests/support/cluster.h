/* A whole queue for tests: a real redis-server, brokers and workers as processes with short deadlines, in a temporary directory.
 * Endpoints stay the same over restarts. What a cluster's processes said is shown when a test fails (cluster_show). */
#ifndef TEST_CLUSTER_H
#define TEST_CLUSTER_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon.h"
#include "link.h"
#include "redis_server.h"

enum { CLUSTER_MAX_BROKERS = 3, CLUSTER_MAX_WORKERS = 8 };

typedef struct cluster_options {
  int brokers, workers;            /* default 1, 1 */
  int stub_us;                     /* of one item */
  const char *faults;              /* of the stub engine, or NULL */
  const char *model;               /* a model folder instead of the stub engine */
  const char *device;              /* with model; NULL: the default; "cuda:" is followed by the worker's number */
  double memory_mib;               /* with model: of each worker, see btcchat worker --memory; 0: a whole model each */
  int pipe;                        /* with model: ranks of each worker, see btcchat worker --pipe; 0: it is not cut */
  int form_ms;                     /* 0: 5000; of a pipe */
  int credits;                     /* items in hand of a worker; 0: its default */
  int lease_ms, dead_ms, stall_ms; /* 0: 3000, 2000, 4000 */
  bool everysec;                   /* appendfsync everysec instead of always */
  const char *redis_config;        /* more lines of redis.conf, or NULL */
  const char *journal;             /* --journal of the brokers, or NULL */
  bool peers;                      /* workers are played by the test (fake_peer.h): none is started, captions are not compared */
  bool links; /* one broker; clients, worker 0 (named "linked") and the broker's Redis each behind a link that can be cut */
} cluster_options;

typedef struct cluster {
  cluster_options o;
  redis_server *redis;
  daemon_process broker[CLUSTER_MAX_BROKERS], worker[CLUSTER_MAX_WORKERS];
  test_link *client_link, *worker_link, *redis_link; /* with o.links */
  char clients[512];                                 /* endpoints of all brokers, as --broker takes them */
  char workers[CLUSTER_MAX_BROKERS][128];            /* where workers reach each broker */
  char results[128];
  const char *drained; /* what was taken from `out` (checker.h), or NULL */
} cluster;

/* Redis runs; brokers and workers are ready to be started. */
void cluster_prepare(cluster *c, const cluster_options *o);
/* Starts all and waits until every worker is welcome. */
void cluster_start(cluster *c, const cluster_options *o);
/* (Re)starts one that is not running. */
void cluster_start_broker(cluster *c, int i);
void cluster_start_worker(cluster *c, int i);
/* Stops all, hard, and removes nothing (the temporary directory goes with the test program). */
void cluster_stop(cluster *c);
void cluster_show(const cluster *c);

/* Writes a manifest of n items of the stub engine, ids PREFIX-000000.. Returns its path (in the temporary directory, lives until
 * the next call). */
const char *cluster_manifest(const char *prefix, int64_t n);
/* btcchat submit; returns the job id (static buffer of the cluster, 4 in turn). more: further arguments, NULL-terminated, or NULL.
 */
const char *cluster_submit(cluster *c, const char *manifest, const char *const more[]);
/* One field of job:<jid>, "" when it is not there. */
const char *cluster_job(cluster *c, const char *jid, const char *field);
/* The job is FIN (or CXD) and all its records are in files. */
bool cluster_finished(cluster *c, const char *jid);
/* Waits until the job is FIN (or CXD) and all its records are in files; fails the test after ms, showing everything. */
void cluster_wait(cluster *c, const char *jid, int ms);
/* The invariants of the whole queue, from Redis and the files; fails the test with each violation. Returns the number of items. */
uint64_t cluster_check(cluster *c);
/* Exactly the items of a PREFIX manifest whose fault (worker/engine.h) is crash, bad or hang are dead letters, with the reasons
 * that go with them. */
void cluster_check_dead(cluster *c, const char *jid, const char *prefix, int64_t n, const char *faults);

#endif
