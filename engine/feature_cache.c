/* Features by content: a chained hash table and a list by age. See feature_cache.h. */
#include "feature_cache.h"

#include <stdlib.h>
#include <string.h>

#define BUCKETS 1024u

struct btc_feature_cache {
  int64_t max_bytes, bytes, floats;
  btc_block_pool *pool;
  btc_parcel_pool *parcels;
  btc_features *bucket[BUCKETS];
  btc_features *newest, *oldest; /* READY and unused */
};

btc_status btc_feature_cache_create(int64_t max_bytes, int64_t floats, btc_block_pool *pool, btc_parcel_pool *parcels,
                                    btc_feature_cache **out, btc_error *err) {
  btc_feature_cache *c = btc_alloc_zero(1, sizeof *c);
  *out = c;
  if (!c) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a cache of features");
  c->max_bytes = max_bytes;
  c->floats = floats;
  c->pool = pool;
  c->parcels = parcels;
  return BTC_OK;
}

static int64_t entry_bytes(const btc_feature_cache *c) {
  return c->floats * (int64_t)sizeof(float);
}

static btc_features **bucket_of(btc_feature_cache *c, const uint8_t key[33]) {
  return &c->bucket[(key[0] | (unsigned)key[1] << 8) % BUCKETS];
}

static void age_remove(btc_feature_cache *c, btc_features *f) {
  *(f->newer ? &f->newer->older : &c->newest) = f->older;
  *(f->older ? &f->older->newer : &c->oldest) = f->newer;
  f->newer = f->older = NULL;
}

static void age_add(btc_feature_cache *c, btc_features *f) {
  f->older = c->newest;
  *(c->newest ? &c->newest->newer : &c->oldest) = f;
  c->newest = f;
}

static void forget(btc_feature_cache *c, btc_features *f) {
  if (f->shared) {
    btc_features **at = bucket_of(c, f->key);
    while (*at != f) at = &(*at)->chain;
    *at = f->chain;
  }
  c->bytes -= entry_bytes(c);
  btc_image_free(&f->picture);
  btc_parcel_pool_put(c->parcels, f->parcel);
  btc_block_pool_put(c->pool, f->data);
  free(f);
}

/* Until `more` bytes fit, or all that is left is in use. */
static void make_room(btc_feature_cache *c, int64_t more) {
  while (c->oldest && c->bytes + more > c->max_bytes) {
    btc_features *f = c->oldest;
    age_remove(c, f); /* NOLINT(clang-analyzer-unix.Malloc): an entry leaves the list before it is freed */
    forget(c, f);
  }
}

void btc_feature_cache_destroy(btc_feature_cache **cp) {
  btc_feature_cache *c = *cp;
  if (!c) return;
  c->max_bytes = 0;
  make_room(c, 1);
  free(c);
  *cp = NULL;
}

btc_features *btc_feature_cache_get(btc_feature_cache *c, const uint8_t key[33]) {
  for (btc_features *f = key ? *bucket_of(c, key) : NULL; f; f = f->chain) {
    if (memcmp(f->key, key, sizeof f->key) != 0) continue;
    if (f->refs++ == 0) age_remove(c, f);
    return f;
  }
  make_room(c, entry_bytes(c));
  btc_features *f = btc_alloc_zero(1, sizeof *f);
  if (!f) return NULL;
  f->refs = 1;
  c->bytes += entry_bytes(c);
  if (!key) return f;
  f->shared = true;
  memcpy(f->key, key, sizeof f->key);
  f->chain = *bucket_of(c, key);
  *bucket_of(c, key) = f;
  return f;
}

void btc_feature_cache_put(btc_feature_cache *c, btc_features *f) {
  if (--f->refs > 0) return;
  if (f->state != BTC_FEATURES_READY || !f->shared) {
    forget(c, f);
    return;
  }
  age_add(c, f);
  make_room(c, 0);
}

int64_t btc_feature_cache_bytes(const btc_feature_cache *c) {
  return c->bytes;
}
