/* See shard_room.h. */
#include "shard_room.h"

#include <stdlib.h>

void shard_room_free(shard_room *r) {
  if (r->lane)
    btc_lane_free(r->lane, r->at);
  else
    free(r->at);
  *r = (shard_room){0};
}

btc_status shard_room_make(shard_room *r, btc_lane *lane, int64_t floats, btc_error *err) {
  void *p = NULL;
  btc_status st = BTC_OK;
  if (floats <= r->floats && lane == r->lane) return BTC_OK;
  shard_room_free(r);
  if (lane)
    st = btc_lane_alloc(lane, (size_t)floats * sizeof *r->at, &p, err);
  else if (!(p = btc_alloc((size_t)floats, sizeof *r->at)))
    st = btc_fail(err, BTC_ERR_NOMEM, "not enough memory: %lld bytes", 4 * (long long)floats);
  if (st == BTC_OK) *r = (shard_room){.at = p, .floats = floats, .lane = lane};
  return st;
}
