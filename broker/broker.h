/*
 * broker: the daemon between clients, workers and Redis. One thread owns sessions and credits and runs the loop; all lasting state
 * is in Redis, behind one Lua function library (docs/protocol.md), so that a broker may die at any moment and several may run at
 * once.
 */
#ifndef BTC_BROKER_H
#define BTC_BROKER_H

#include "base/base.h"

typedef struct btc_broker_options {
  const char *redis;               /* redis://HOST:PORT or unix:///PATH */
  const char *redis_user;          /* ACL user, or NULL */
  const char *redis_password_file; /* or NULL */
  const char *queue;               /* name, [A-Za-z0-9._-]{1,64} */
  const char *name;                /* of this broker; NULL: host-pid */
  const char *clients, *workers;   /* ZeroMQ endpoints to bind */
  const char *http;                /* HOST:PORT of metrics and health, or NULL: none */
  const char *results;             /* folder of sealed part files */
  const char *roots;               /* colon-separated folders that manifests and images must lie in; NULL: anywhere */
  const char *keys, *allow;        /* CURVE: secret key file and allow-list, or both NULL */
  int64_t lease_ms, heartbeat_ms, dead_ms, stall_ms;
  int64_t pipe_form_ms;                           /* a pipe that is not ready after this is broken, default 60 s */
  int64_t max_jobs, max_items, max_out, max_dead; /* admission and bounds, see docs/operations.md */
  int64_t window_chunks;                          /* live chunks of one job, default 256 */
  int64_t journal_mib;                            /* memory for what is repeated when Redis lost it (recover.h), 0: none */
  bool verbose;
} btc_broker_options;
btc_broker_options btc_broker_options_default(void);

/* Runs until SIGTERM or SIGINT (drains: stops taking and granting work, flushes commits, tells its workers; a second signal ends at
 * once). When it is ready it prints one line on stdout: `ready clients=ENDPOINT workers=ENDPOINT http=ADDRESS` (so that port * may
 * be asked for). Returns BTC_OK after a drain; NOT_FOUND when Redis could not be reached in 10 s, UNSUPPORTED when it must not hold
 * a queue (version, eviction policy, password, newer data). */
btc_status btc_broker_run(const btc_broker_options *o, btc_error *err);

#endif
