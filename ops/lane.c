/* Lanes where no CUDA backend is built: there is nothing to be a lane of. See ops.h; cuda_lane.c has those that are. */
#include "ops/ops.h"

#ifndef BTC_HAVE_CUDA

static btc_status none(btc_error *err) {
  return btc_fail(err, BTC_ERR_UNSUPPORTED, "no CUDA device: this build has no CUDA backend");
}

btc_status btc_lane_create(const char *device, btc_lane **out, btc_error *err) {
  (void)device;
  *out = NULL;
  return none(err);
}

void btc_lane_destroy(btc_lane **l) {
  *l = NULL;
}

void *btc_lane_queue(const btc_lane *l) {
  (void)l;
  return NULL;
}

bool btc_lane_device(const btc_lane *l, btc_device_info *out) {
  (void)l;
  *out = (btc_device_info){0};
  return false;
}

btc_status btc_lane_alloc(btc_lane *l, size_t bytes, void **out, btc_error *err) {
  (void)l, (void)bytes;
  *out = NULL;
  return none(err);
}

void btc_lane_free(btc_lane *l, void *p) {
  (void)l, (void)p;
}

btc_status btc_lane_copy(btc_lane *l, void *dst, const void *src, size_t bytes, btc_error *err) {
  (void)l, (void)dst, (void)src, (void)bytes;
  return none(err);
}

btc_status btc_lane_query(btc_lane *l, bool *done, btc_error *err) {
  (void)l;
  *done = false;
  return none(err);
}

#endif
