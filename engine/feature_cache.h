/*
 * Features of images by the content of their files: in a time series (t1,t2),(t2,t3) the tower sees each image once, and two files
 * with the same bytes are one. Least recently used ones go first; those in use are pinned and not bound by the limit. Private to
 * engine/. Thread: the caller locks; an entry whose state is EMPTY belongs to the one who got it.
 */
#ifndef BTC_FEATURE_CACHE_H
#define BTC_FEATURE_CACHE_H

#include "block_pool.h"
#include "image.h"
#include "parcel_pool.h"

typedef enum btc_features_state {
  BTC_FEATURES_EMPTY,  /* nobody has decoded it yet */
  BTC_FEATURES_PIXELS, /* waits for the tower */
  BTC_FEATURES_READY
} btc_features_state;

typedef struct btc_features {
  btc_features_state state;
  btc_image picture;  /* PIXELS: the square, or what a device makes it of; the cache frees what is left */
  bool pad;           /* how */
  btc_parcel *parcel; /* of the pool: the picture is on its way, or there; NULL: not yet */
  float *data;        /* [floats] of the pool: READY; taken by whoever fills it */
  bool taken;         /* free for the user of PIXELS entries: it is in a batch */
  bool reading;       /* free for the user of EMPTY entries: somebody decodes it */
  /* the cache's own */
  uint8_t key[33];
  bool shared;
  int refs;
  struct btc_features *chain, *newer, *older;
} btc_features;

typedef struct btc_feature_cache btc_feature_cache;

/* max_bytes: of features kept, in use or not; 0 keeps none beyond their use. floats: of one image's features. pool: of
 * their blocks; parcels: of their pictures'; both are borrowed. */
btc_status btc_feature_cache_create(int64_t max_bytes, int64_t floats, btc_block_pool *pool, btc_parcel_pool *parcels,
                                    btc_feature_cache **out, btc_error *err);
void btc_feature_cache_destroy(btc_feature_cache **c);
/* The entry of a key (sha256 of the bytes, then how they become pixels), made EMPTY when it is new; NULL without memory. Key NULL:
 * an entry that nobody else will find. Every get wants one put. */
btc_features *btc_feature_cache_get(btc_feature_cache *c, const uint8_t key[33]);
/* An entry that never became READY is forgotten with its last user. */
void btc_feature_cache_put(btc_feature_cache *c, btc_features *f);
int64_t btc_feature_cache_bytes(const btc_feature_cache *c);

#endif
