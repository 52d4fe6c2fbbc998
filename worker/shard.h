/*
 * A rank of a pipeline: a process of our own program (`btcchat worker --shard FD`) that holds blocks [first,last) of a model, takes
 * steps from the previous rank in the order of their numbers, and hands its output to the next. It can be killed at any time.
 *
 * Its parent speaks with it over a socket pair of packets (orders one way, reports the other) and one shared page. It keeps its
 * weights over epochs: an order to form drops the links of the old epoch and opens those of the new one. The driver of a pipeline
 * whose ranks are on several machines takes the same orders from its agent (pipe.h).
 */
#ifndef BTC_WORKER_SHARD_H
#define BTC_WORKER_SHARD_H

#include "engine/stage.h"
#include "link.h"

enum { SHARD_VERSION = 5, SHARD_USE_MS = 1000, SHARD_FD = 3, SHARD_PAGE_FD = 4, SHARD_LINKS_FD = 5 };

/* What both processes see. The counters grow only. */
typedef struct shard_page {
  volatile int cancel;     /* parent: give up what is computed; the order to form that follows clears it */
  uint64_t alive;          /* grows with every block computed and with every turn of a wait: stands still when it is stopped */
  uint64_t steps;          /* computed in the life of the process */
  uint64_t busy_ns;        /* spent in them */
  uint64_t items;          /* prefilled in them */
  uint64_t frames_dropped; /* of other epochs */
  /* Of the rank's GPU: written before OPEN is said; memory 0: there is none. Free bytes and use again every SHARD_USE_MS, unless a
   * step takes longer. */
  int32_t device_index, device_busy; /* busy: per mille; negative: not known */
  char device_name[96];
  uint64_t device_memory, device_free;
} shard_page;

typedef enum shard_told {
  SHARD_FORM = 1, /* drop the links of older epochs, open those of this one */
  SHARD_STOP,     /* this epoch and all before are over: drop their links, keep the weights */
  SHARD_GO,       /* driver: every rank is ready, steps may leave */
  SHARD_DROP      /* driver: forget all items, others have them now */
} shard_told;

/* Parent to rank or driver. Nodes are 0..ranks-1 and the driver, `ranks`. */
typedef struct shard_order {
  uint32_t version, told, rank, ranks;
  uint32_t entry;                /* the rank at which the language's steps enter: unless it is 0, the driver connects to it too */
  int32_t next_port, entry_port; /* of the next node; driver: of the entry */
  char next_host[64], entry_host[64];
  int32_t form_ms, frame_ms;
  uint32_t outside; /* the previous node connects to the listening socket that came with us (SHARD_LINKS_FD), not to our own */
  uint32_t nccl;    /* tensors between ranks go by NCCL: all ranks have a card and the library */
  uint64_t epoch, max_bytes; /* of a frame; 0: what the model can need */
  uint8_t secret[BTC_LINK_SECRET];
  char shrink[320]; /* driver: why less is to be held than in the epoch before, a rank had no memory; "": not so */
} shard_order;

typedef enum shard_said { SHARD_OPEN = 1, SHARD_READY, SHARD_BROKEN, SHARD_FAILED } shard_said;

typedef struct shard_report {
  uint32_t version, said;
  uint64_t epoch;
  int32_t port;    /* OPEN: where the previous node is to connect */
  int32_t nccl;    /* OPEN: the version of NCCL's library; 0: it cannot be used here, and message says why */
  char card[44];   /* OPEN: of the GPU (btc_device_info); "": none */
  uint32_t status; /* BROKEN, FAILED: btc_status and its message */
  char message[512];
} shard_report;

typedef struct btc_shard_options {
  const char *model, *device, *dtype; /* dtype "f32" or "bf16" */
  int threads, first, last;
} btc_shard_options;

/* What the rank's process runs. Returns only when the rank could not be opened (the parent has been told why). */
btc_status btc_shard_run(const btc_shard_options *o, btc_error *err);

/* btc_link_connect again and again until w's deadline: a next node that is still busy with an older epoch turns us away at first.
 */
btc_status btc_shard_connect(const char *host, int port, const btc_link_id *id, const btc_link_limits *l, const btc_link_wait *w,
                             btc_link **out, btc_error *err);

/* Gives back the memory of weights that were looked at while the model was opened; they come back when they are read. */
void btc_shard_drop_weights(const btc_model *m);

#endif
