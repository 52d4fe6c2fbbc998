/*
 * worker: an agent that speaks with the broker, and the engine child it supervises. The agent never computes and survives whatever
 * the child does.
 */
#ifndef BTC_WORKER_AGENT_H
#define BTC_WORKER_AGENT_H

#include "base/base.h"

typedef struct btc_worker_options {
  const char *brokers;           /* comma-separated worker endpoints; the next is tried when one falls silent */
  const char *name;              /* NULL: host-pid */
  const char *keys, *server_key; /* CURVE, or both NULL */
  const char *engine;            /* "model" or "stub" */
  const char *roots;             /* colon-separated folders images must lie in; NULL: anywhere */
  int64_t credits;               /* items in hand; 0: twice the engine's batch */
  int64_t grace_ms;              /* of a drain, default 60000 */
  int64_t stall_ms; /* without progress for this long the child is killed; default 60000, at least 10 x the average item */
  bool verbose;
  /* model engine */
  const char *model, *device, *dtype;
  int threads, batch, max_tokens;
  const char *known;   /* of the child: what an earlier one said of the model's files (btc_checkpoint_known); NULL: nothing */
  int pipe;            /* more than 1: a pipeline of so many processes of this machine */
  const char *tensors; /* how they pass between ranks on GPUs: "auto", "tcp", "nccl" (pipe.h) */
  /* a member of pipelines that span workers */
  double memory_mib; /* what the model may take here; 0: a whole model is held. A whole model that fits is held all the same */
  const char *link;  /* "ADDRESS:PORT" (IPv4) where other ranks connect; port 0: any */
  const char *site;  /* pipelines stay within one */
  /* stub engine: captions by hash of the item, after a delay */
  int64_t stub_us;         /* of one item */
  const char *stub_faults; /* tests: share of items that crash, hang, fail: "crash=0.01,bad=0.01,transient=0.02,hang=0.001" chosen
                              by hash of the id */
} btc_worker_options;
btc_worker_options btc_worker_options_default(void);

/* Runs until SIGTERM or SIGINT (drain; a second signal releases everything and ends at once). Prints `ready name=NAME` on stdout
 * after the first Welcome. */
btc_status btc_worker_run(const btc_worker_options *o, btc_error *err);

/* What an engine child runs, over its end of the socket pair; `btcchat worker --engine-child FD` calls it. Returns only when the
 * engine could not be made (the agent has then been told why); ends the process when the agent is gone. */
btc_status btc_worker_child(const btc_worker_options *o, int fd, btc_error *err);
/* Those of the child of a member, beside fd: packets between agent and driver (shard.h), and the listening socket of its link. */
enum { WORKER_CHILD_CONTROL = 4, WORKER_CHILD_LINKS = 5 };

#endif
