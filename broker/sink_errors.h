/* errors.jsonl: the records of a finished job's dead items, in order of their numbers, out of the hash dd:<jid>. Private to the
 * sink. */
#ifndef BTC_BROKER_SINK_ERRORS_H
#define BTC_BROKER_SINK_ERRORS_H

#include "broker/sink_part.h"
#include "broker/sink_redis.h"

/* Where items of a job are read that no worker lived long enough to name. */
typedef struct btc_errors_source {
  const char *jid, *manifest, *base; /* manifest "": none */
  bool (*go_on)(void *ctx);          /* asked now and then; false ends the work */
  void *ctx;
} btc_errors_source;

/* Writes errors.jsonl anew (removes it when nothing is dead). *n: records. CANCELLED: go_on said no. IO: Redis
 * (btc_sink_redis_is_up tells) or the folder. */
btc_status btc_errors_publish(btc_sink_redis *r, btc_part_job *folder, const btc_errors_source *source, uint64_t *n,
                              uint32_t *crc32, btc_error *err);

#endif
