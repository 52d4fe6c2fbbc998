/*
 * What does not change in a job and is needed again and again: where its manifest is and how to read it. A cache over job:<jid>,
 * bounded; and the rate at which a job's items end, for `status`.
 */
#ifndef BTC_BROKER_JOBS_H
#define BTC_BROKER_JOBS_H

#include "broker/core.h"

typedef struct btc_job_info {
  struct btc_job_info *next;
  char jid[BTC_JID];
  char *manifest, *sha, *base;
  uint64_t *dup; /* ascending */
  size_t n_dup;
  int64_t used_ns;
} btc_job_info;

/* info NULL: Redis is away, or the job is gone. Borrowed until the return. May come from inside the call. */
typedef void (*btc_job_found)(void *ctx, const btc_job_info *info);

btc_status btc_jobs_create(btc_broker *b, btc_error *err);
void btc_jobs_destroy(btc_broker *b);
/* false: found will not come. */
bool btc_jobs_get(btc_broker *b, const char *jid, btc_job_found found, void *ctx);
void btc_jobs_forget(btc_broker *b, const char *jid);
/* Items that ended by now; gives items a second over the last while, 0 while unknown. */
double btc_jobs_rate(btc_broker *b, const char *jid, uint64_t ended, double since_created_s);
/* The io thread said why a manifest cannot be read: one that never can pauses its job. True when it did. */
bool btc_jobs_unreadable(btc_broker *b, const char *jid, const btc_io_reply *reply);
btc_io_manifest btc_job_manifest(const btc_job_info *info);

#endif
