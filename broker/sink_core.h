/* What the sink's files share: the thread's state. Private to sink.c, sink_read.c, sink_finish.c. */
#ifndef BTC_BROKER_SINK_CORE_H
#define BTC_BROKER_SINK_CORE_H

#include <pthread.h>

#include "base/failpoint.h"
#include "base/log.h"
#include "broker/results.h"
#include "broker/sink.h"
#include "broker/sink_part.h"
#include "broker/sink_redis.h"

#define BTC_SINK_PAGE 512     /* entries read, and acknowledged, at once */
#define BTC_SINK_WAITING 1024 /* finished jobs whose records are not all here */
#define BTC_SINK_REFUSED 64   /* jobs whose folders cannot be used */

typedef struct sink_job {
  btc_part_job *part; /* NULL: free */
  int64_t seal_ns;    /* when what waits is sealed at the latest; 0: nothing waits */
  int64_t created_ms; /* of the job, wall clock */
  uint64_t used;
} sink_job;

/* Entries of one job whose items lie in parts already. */
typedef struct sink_acks {
  char jid[65];
  size_t n;
  char id[BTC_SINK_PAGE][48];
} sink_acks;

typedef struct sink_waiting {
  char jid[65];
  int64_t due_ns, wait_ns;
} sink_waiting;

struct btc_sink {
  btc_sink_options o;
  char *queue, *broker, *results;
  btc_sink_redis *redis;
  pthread_t thread;
  bool started;
  pthread_mutex_t lock; /* of stop and grace_ms */
  pthread_cond_t change;
  bool stop;
  int64_t grace_ms;
  /* the thread's own */
  bool active;      /* it has the duty */
  bool fresh;       /* pending entries have to be claimed before new ones are read */
  int64_t lead_ns;  /* next renewal */
  int64_t lapse_ns; /* when it has lapsed unless it was renewed before */
  sink_job *job;    /* [o.open_jobs] */
  uint64_t clock;
  sink_acks acks;
  char events[48]; /* last event seen */
  int64_t events_ns;
  bool scanning; /* the jobs that are there are looked at */
  char scan[24]; /* cursor of the next page of them */
  bool rescan;   /* once more, when jobs that wait have become fewer */
  sink_waiting waiting[BTC_SINK_WAITING];
  size_t n_waiting;
  /* trouble */
  bool blocked; /* the folder takes nothing: no reading until it does */
  int64_t retry_ns;
  char blocked_jid[65]; /* whose folder could not be opened, "" when sealing failed */
  struct {
    char jid[65];
    int64_t until_ns;
  } refused[BTC_SINK_REFUSED];
};

bool btc_sink_should_stop(btc_sink *s);
/* Renews the duty when it is time; false: another broker has it, or Redis is away. Call it between slices of long work. */
bool btc_sink_lead(btc_sink *s);
/* Forgets all open jobs; what was not sealed is still in Redis. */
void btc_sink_drop(btc_sink *s);
void btc_sink_block(btc_sink *s, const char *jid, const btc_error *why);

/* The job's folder, opened when it is not. NULL: refused (its entries stay in Redis), or the sink is blocked now. */
sink_job *btc_sink_job(btc_sink *s, const char *jid);
sink_job *btc_sink_find(btc_sink *s, const char *jid); /* only when it is open */
void btc_sink_close_job(sink_job *j);
/* Seals what waits and takes its entries out of Redis. False: blocked, or Redis is away. */
bool btc_sink_seal(btc_sink *s, sink_job *j);

/* sink_read.c */
bool btc_sink_claim(btc_sink *s); /* all that is pending, of any consumer; false: try again */
bool btc_sink_read(btc_sink *s);  /* new entries, waits a moment for them */
bool btc_sink_acknowledge(btc_sink *s, const char *jid, const btc_stream_id *id, size_t n);

/* sink_finish.c */
void btc_sink_scan_begin(btc_sink *s);
void btc_sink_finish_work(btc_sink *s); /* events, a page of the scan, jobs that wait */

#endif
