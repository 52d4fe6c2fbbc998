/*
 * A rank's process, seen from whoever started it: the driver of a pipeline on this machine, or the agent of a worker whose pipeline
 * spans several. Nothing here waits. Thread: the one that started it; the process dies with that thread.
 */
#ifndef BTC_WORKER_SHARD_PROCESS_H
#define BTC_WORKER_SHARD_PROCESS_H

#include <sys/types.h>

#include "ops/ops.h"
#include "shard.h"

typedef struct shard_start {
  const char *program; /* NULL: our own (/proc/self/exe) */
  const char *model, *device, *dtype;
  int threads, first, last;
  int links_fd;     /* listening socket it inherits; -1: none */
  const char *fail; /* tests: its BTC_FAIL; NULL: ours */
  const char *host; /* what NCCL takes for its host (NCCL_HOSTID); NULL: ours */
} shard_start;

/* Zero-initialised it is no process. */
typedef struct shard_process {
  pid_t pid;          /* 0: dead, or never started */
  int control, pidfd; /* readable when it has said something, or has died; pidfd may be -1 */
  shard_page *page;   /* not NULL while it lives */
  int64_t started_ns;
  int64_t oom_kills; /* of our memory cgroup when it was started; -1: not known */
  bool open;         /* the model is open and the port known */
  int port;          /* on the loopback address */
  int nccl;          /* as in shard_report, and why not */
  char card[44], no_nccl[160];
  uint64_t ready_epoch; /* formed */
  uint64_t seen_alive, seen_cpu;
  int64_t seen_ns; /* when either last moved */
} shard_process;

btc_status shard_process_start(shard_process *k, const shard_start *o, btc_error *err);
void shard_process_end(shard_process *k);    /* SIGKILL and wait; fine when it is none */
void shard_process_forget(shard_process *k); /* closes what is ours of it, and leaves it to itself */
/* A full socket or a dead peer is not told: the formation's deadline tells. */
void shard_process_order(const shard_process *k, const shard_order *o);
/* The next thing it said, which is noted above. */
bool shard_process_hear(shard_process *k, shard_report *out);
/* Has it died? how: "died by signal 9"; oom: the system killed it for memory. It is forgotten then. */
bool shard_process_died(shard_process *k, char how[64], bool *oom);
/* It lives, but for wedge_ms has neither moved nor used its processor. */
bool shard_process_stands_still(shard_process *k, int wedge_ms);

/* Its GPU, as it last told. false: it has none, or is not there. */
bool shard_process_device(const shard_process *k, btc_device_info *out);

uint64_t shard_processor_ticks(pid_t pid); /* processor time of a process; 0: not known */

#endif
