/* Memory of a rank that grows with its steps: the host's, or a GPU's when tensors pass between GPUs. Thread: the rank's. */
#ifndef BTC_WORKER_SHARD_ROOM_H
#define BTC_WORKER_SHARD_ROOM_H

#include "ops/ops.h"

/* Zero-initialised it is empty. */
typedef struct shard_room {
  float *at;
  int64_t floats;
  btc_lane *lane; /* it lies on this one's device; NULL: on the host */
} shard_room;

/* So many floats at least, there: what it held is lost when it grows or moves. NOMEM leaves it empty. */
btc_status shard_room_make(shard_room *r, btc_lane *lane, int64_t floats, btc_error *err);
void shard_room_free(shard_room *r);

#endif
