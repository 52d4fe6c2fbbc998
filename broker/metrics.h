/*
 * Numbers and health of a broker, set by the threads that know them and read by the HTTP thread. One mutex, held for the copy of a
 * number only.
 */
#ifndef BTC_BROKER_METRICS_H
#define BTC_BROKER_METRICS_H

#include "base/base.h"

typedef struct btc_metrics btc_metrics;

/* Gauges are set, counters added to (or set, where Redis counts: stat). Names in /metrics: btc_ + the lower-case rest. */
typedef enum btc_metric {
  /* gauges, from btc_totals */
  BTC_METRIC_READY, /* chunks */
  BTC_METRIC_LEASED,
  BTC_METRIC_DELAYED,
  BTC_METRIC_SUSPECTS,
  BTC_METRIC_JOBS,
  BTC_METRIC_PAUSED,      /* 0, 1 */
  BTC_METRIC_OUT_ENTRIES, /* stream out */
  BTC_METRIC_RES_ENTRIES, /* stream res: records that wait for the sink */
  BTC_METRIC_OLDEST_READY_SECONDS,
  BTC_METRIC_BACKLOG_SECONDS, /* items to do / rate of all workers: what to scale by */
  BTC_METRIC_ITEMS_PER_SECOND,
  BTC_METRIC_CREDITS,    /* free items of all workers */
  BTC_METRIC_COMMIT_LAG, /* results taken from workers that Redis has not confirmed */
  BTC_METRIC_FSYNC_MS,   /* round trip of the last write to Redis */
  BTC_METRIC_CLIENTS,    /* peers seen in the last minute */
  BTC_METRIC_WORKERS,
  BTC_METRIC_IO_PENDING,
  BTC_METRIC_RSS_BYTES,
  /* counters of the queue, from `stat` */
  BTC_METRIC_ITEMS_DONE, /* btc_items_total{state="done"} and so on */
  BTC_METRIC_ITEMS_DEAD,
  BTC_METRIC_ITEMS_CANCELLED,
  BTC_METRIC_ITEMS_INGESTED,
  BTC_METRIC_DUP_REJECTED,
  BTC_METRIC_LATE_ACCEPTED,
  BTC_METRIC_REAPED,
  BTC_METRIC_RELEASED,
  BTC_METRIC_RETRIED,
  BTC_METRIC_CRASHED,
  /* counters of this broker */
  BTC_METRIC_MESSAGES, /* envelopes taken */
  BTC_METRIC_BAD_MESSAGES,
  BTC_METRIC_REDIS_RECONNECTS,
  BTC_METRIC_HISTORY_LOST,     /* Redis lost history: `seq` fell */
  BTC_METRIC_HISTORY_RESTORED, /* items that it had lost and has again, out of the journal */
  BTC_METRIC_HISTORY_TOO_OLD,  /* items that it had lost and the journal had dropped */
  BTC_METRIC_JOURNAL_BYTES,    /* gauge */
  /* the sink's */
  BTC_METRIC_SINK_ACTIVE,  /* 1: this broker has the duty */
  BTC_METRIC_SINK_BLOCKED, /* 1: the results folder takes nothing */
  BTC_METRIC_SINK_RECORDS,
  BTC_METRIC_SINK_PARTS,
  BTC_METRIC_SINK_DUPLICATES,
  BTC_METRIC_COUNT
} btc_metric;

typedef enum btc_health { BTC_HEALTH_REDIS, BTC_HEALTH_LIBRARY, BTC_HEALTH_SINK, BTC_HEALTH_LOOP, BTC_HEALTH_COUNT } btc_health;

btc_metrics *btc_metrics_create(const char *queue, const char *broker); /* NULL: no memory */
void btc_metrics_destroy(btc_metrics **m);

/* Any thread; m may be NULL. */
void btc_metrics_set(btc_metrics *m, btc_metric which, double value);
void btc_metrics_add(btc_metrics *m, btc_metric which, double value);
double btc_metrics_get(btc_metrics *m, btc_metric which);
/* What /readyz answers from; all begin as false. why: one line, shown when it is not ready. A broker without a sink never sets SINK
 * to false: set it to true. */
void btc_metrics_health(btc_metrics *m, btc_health what, bool ok, const char *why);
bool btc_metrics_ready(btc_metrics *m, char *why, size_t len);
/* The loop is alive: call it from a timer each second. /healthz fails when it was not called for 10 s (after the first call). */
void btc_metrics_beat(btc_metrics *m);
bool btc_metrics_alive(btc_metrics *m);
/* A worker of this broker: up 1 or 0; at most 1,000 are kept, forgotten ones go with btc_metrics_forget_worker. */
void btc_metrics_worker(btc_metrics *m, const char *name, bool up, double credits, double in_hand, double items_per_s);
void btc_metrics_forget_worker(btc_metrics *m, const char *name);

/* Pipes as the broker that leads them sees them; any other one has none. */
enum { BTC_METRIC_STAGES = 8 };
typedef struct btc_metric_pipe {
  char id[33];
  uint64_t epoch;
  bool active;
  int stages;
  double bubble; /* 1 - mean busy share; below 0: not measured yet */
  double ms[BTC_METRIC_STAGES], busy[BTC_METRIC_STAGES];
} btc_metric_pipe;
void btc_metrics_pipes(btc_metrics *m, const btc_metric_pipe *list, size_t n); /* replaces what was there; a copy is kept */

/* Prometheus text format 0.0.4, malloc'ed; NULL: no memory. */
char *btc_metrics_render(btc_metrics *m);

#endif
