/*
 * The sink: moves records of jobs routed to files from `res` into sealed part files, and dead letters into errors.jsonl. A thread
 * of a broker with a Redis connection of its own; of all brokers the one that has the duty `sink` works, the others wait for it.
 *
 *   DIR/<jid>/part-000001.jsonl    sealed part: whole records, one a line; never changes
 *   DIR/<jid>/.part-000001.json    what it holds: {"v","first","last","count","bytes","crc32","idx"}
 *   DIR/<jid>/errors.jsonl         records of items that are dead, once the job is finished; written again after a replay
 *   DIR/<jid>/.finished.json       the finish that errors.jsonl belongs to
 *
 * Exactly once: the folder decides, not the duty. Whoever creates the sidecar of a free number owns that number, and a part appears
 * by link(), which never replaces. A sink that was thought dead and comes back loses that race, reads the folder again and drops
 * what is there already (by item number). A sidecar whose part never came is closed with an empty part, so that it cannot come
 * later. Entries leave Redis only after the part is durable.
 */
#ifndef BTC_BROKER_SINK_H
#define BTC_BROKER_SINK_H

#include "base/base.h"
#include "broker/metrics.h"

typedef struct btc_sink btc_sink;

typedef struct btc_sink_options {
  const char *redis;               /* redis://HOST:PORT or unix:///PATH */
  const char *redis_user;          /* or NULL */
  const char *redis_password_file; /* or NULL */
  const char *queue;
  const char *broker;   /* this broker's name: who has the duty, and the consumer's name in group `sink` */
  const char *results;  /* folder; made when it is not there */
  btc_metrics *metrics; /* health and counters, or NULL */
  /* 0: the default */
  int64_t seal_records, seal_bytes; /* 16,384 records, 8 MiB */
  int64_t seal_min_ms, seal_max_ms; /* 1,000 and 60,000: between them, a fiftieth of the job's age */
  int64_t open_jobs, open_bytes;    /* 256 jobs, 64 MiB together; beyond, the oldest is sealed */
  int64_t duty_ms;                  /* 5,000 */
} btc_sink_options;

/* Starts the thread; it connects by itself, again and again. */
btc_status btc_sink_start(const btc_sink_options *o, btc_sink **out, btc_error *err);
/* Seals what is open (for at most grace_ms), gives the duty back, ends the thread. */
void btc_sink_stop(btc_sink **s, int64_t grace_ms);

#endif
