/*
 * Keys and values of the live items, in the backend's memory: [slot][layer][k or v][kv_head][position][d]. One block of memory a
 * slot; on a host, untouched pages cost nothing. Private to engine/.
 */
#ifndef BTC_KV_CACHE_H
#define BTC_KV_CACHE_H

#include "base/base.h"
#include "ops/ops.h"

typedef struct btc_kv_cache btc_kv_cache;

/* dtype F32 or BF16. layers may be 0 (a stage without language-model blocks). Capacity starts at 0 positions. be is borrowed. */
btc_status btc_kv_cache_create(btc_backend *be, int64_t layers, int slots, int64_t kv_heads, int64_t d, btc_dtype dtype,
                               btc_kv_cache **out, btc_error *err);
void btc_kv_cache_destroy(btc_kv_cache **c);
/* Makes every slot hold at least `positions`; contents are lost when it grows. */
btc_status btc_kv_cache_reserve(btc_kv_cache *c, int64_t positions, btc_error *err);
int64_t btc_kv_cache_capacity(const btc_kv_cache *c);
/* The first positions of every layer of a slot, into another slot; both within what is reserved. */
void btc_kv_cache_copy(btc_kv_cache *c, int from, int to, int64_t positions);
int64_t btc_kv_cache_slot_bytes(int64_t layers, int64_t kv_heads, int64_t d, btc_dtype dtype, int64_t positions);
btc_kv btc_kv_cache_at(const btc_kv_cache *c, int slot, int64_t layer); /* views; valid until reserve or destroy */

#endif
