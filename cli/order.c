/* See order.h. */
#define _GNU_SOURCE
#include "order.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "manifest/manifest.h"

void order_free(id_order *o) {
  free(o->slot);
  *o = (id_order){0};
}

static struct id_place place_of(const char *id, size_t len) {
  struct id_place p = {.index = UINT32_MAX};
  btc_sha256 hash;
  uint8_t digest[32];
  btc_sha256_init(&hash);
  btc_sha256_update(&hash, id, len);
  btc_sha256_final(&hash, digest);
  memcpy(&p.hash, digest, sizeof p.hash);
  memcpy(&p.more, digest + sizeof p.hash, sizeof p.more);
  return p;
}

/* Where the id is, or the free slot where it belongs. */
static struct id_place *find_slot(const id_order *o, const struct id_place *p) {
  size_t i = (size_t)p->hash & (o->slots - 1);
  /* slots are there before ids: NOLINTNEXTLINE(clang-analyzer-core.NullDereference) */
  while (o->slot[i].index != UINT32_MAX && (o->slot[i].hash != p->hash || o->slot[i].more != p->more)) i = (i + 1) & (o->slots - 1);
  return &o->slot[i];
}

int64_t order_find(const id_order *o, const char *id, size_t len) {
  struct id_place p = place_of(id, len);
  const struct id_place *found = find_slot(o, &p);
  return found->index == UINT32_MAX ? -1 : (int64_t)found->index;
}

static btc_status fill(id_order *o, btc_manifest *m, btc_error *err) {
  btc_manifest_item item;
  uint64_t index = 0;
  for (btc_status st; (st = btc_manifest_next(m, &item, err)) != BTC_OK || item.kind != BTC_MANIFEST_END; index++) {
    if (st != BTC_OK) return st;
    if (cli_interrupted) return btc_fail(err, BTC_ERR_CANCELLED, "interrupted");
    if (index >= o->items)
      return btc_fail(err, BTC_ERR_FORMAT, "it has more items than the job's %" PRIu64 ": it has changed", o->items);
    if (item.kind == BTC_MANIFEST_BAD) continue;
    struct id_place p = place_of(item.id, strlen(item.id)), *slot = find_slot(o, &p);
    if (slot->index != UINT32_MAX) continue;
    p.index = (uint32_t)index;
    *slot = p;
  }
  return index == o->items
             ? BTC_OK
             : btc_fail(err, BTC_ERR_FORMAT, "it has %" PRIu64 " items, the job has %" PRIu64 ": it has changed", index, o->items);
}

int order_read(const char *manifest, uint64_t items, id_order *out) {
  btc_manifest *m = NULL;
  btc_error err;
  *out = (id_order){.items = items, .slots = 1024};
  while (out->slots < items + items / 2) out->slots *= 2;
  out->slot = btc_alloc(out->slots, sizeof *out->slot);
  if (out->slot) memset(out->slot, 0xff, out->slots * sizeof *out->slot);
  btc_status st =
      out->slot ? BTC_OK : btc_fail(&err, BTC_ERR_NOMEM, "not enough memory for the places of %" PRIu64 " items", items);
  if (st == BTC_OK) st = btc_manifest_open(manifest, &(btc_manifest_options){.cancel = &cli_interrupted}, &m, &err);
  if (st == BTC_OK) st = fill(out, m, &err);
  btc_manifest_close(&m);
  if (st == BTC_OK) return CLI_OK;
  order_free(out);
  cli_error("cannot put the records in the order of '%s': %s", manifest, err.message);
  return st == BTC_ERR_CANCELLED ? CLI_INTERRUPTED : CLI_FAILED;
}
