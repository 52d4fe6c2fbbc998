/* Pipelines without NCCL: nccl.h was not there when this was built. See link_nccl.h. */
#include "link_nccl.h"

static btc_status none(btc_error *err) {
  return btc_fail(err, BTC_ERR_UNSUPPORTED, "NCCL cannot be used: this build has no NCCL link (nccl.h was not found)");
}

int link_nccl_version(btc_error *err) {
  none(err);
  return 0;
}

btc_status link_nccl_describe(char version[16], char *file, size_t len, btc_error *err) {
  (void)version, (void)file, (void)len;
  return none(err);
}

btc_status link_nccl_make_id(uint8_t id[LINK_NCCL_ID], btc_error *err) {
  (void)id;
  return none(err);
}

btc_status link_nccl_join(const link_nccl_options *o, const btc_link_wait *w, link_nccl **out, btc_error *err) {
  (void)o, (void)w;
  *out = NULL;
  return none(err);
}

btc_status link_nccl_send(link_nccl *n, uint32_t to, const void *data, size_t bytes, const btc_link_wait *w, btc_error *err) {
  (void)n, (void)to, (void)data, (void)bytes, (void)w;
  return none(err);
}

btc_status link_nccl_receive(link_nccl *n, uint32_t from, void *data, size_t bytes, const btc_link_wait *w, btc_error *err) {
  (void)n, (void)from, (void)data, (void)bytes, (void)w;
  return none(err);
}

btc_link_carrier link_nccl_carrier(link_nccl *n) {
  (void)n;
  return (btc_link_carrier){0};
}

btc_status link_nccl_leave(link_nccl **n, const btc_link_wait *w, btc_error *err) {
  (void)w, (void)err;
  *n = NULL;
  return BTC_OK;
}
