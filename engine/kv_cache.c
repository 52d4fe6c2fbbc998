#include "kv_cache.h"

#include <stdlib.h>

struct btc_kv_cache {
  btc_backend *be;
  int64_t layers, kv_heads, d, capacity;
  int slots;
  btc_dtype dtype;
  char **slot; /* [slots] */
};

btc_status btc_kv_cache_create(btc_backend *be, int64_t layers, int slots, int64_t kv_heads, int64_t d, btc_dtype dtype,
                               btc_kv_cache **out, btc_error *err) {
  btc_kv_cache *c = btc_alloc_zero(1, sizeof *c);
  char **slot = btc_alloc_zero((size_t)slots, sizeof *slot);
  *out = NULL;
  if (!c || !slot) {
    free(c);
    free(slot);
    return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for %d key/value slots", slots);
  }
  *c = (btc_kv_cache){.be = be, .layers = layers, .kv_heads = kv_heads, .d = d, .slots = slots, .dtype = dtype, .slot = slot};
  *out = c;
  return BTC_OK;
}

void btc_kv_cache_destroy(btc_kv_cache **cp) {
  btc_kv_cache *c = *cp;
  if (!c) return;
  for (int i = 0; i < c->slots; i++) btc_backend_free(c->be, c->slot[i]);
  free(c->slot);
  free(c);
  *cp = NULL;
}

int64_t btc_kv_cache_slot_bytes(int64_t layers, int64_t kv_heads, int64_t d, btc_dtype dtype, int64_t positions) {
  return 2 * layers * kv_heads * d * positions * (int64_t)btc_dtype_size(dtype);
}

/* Growing in steps keeps a stream of slightly longer prompts from reallocating every time. */
#define STEP_POSITIONS 64

btc_status btc_kv_cache_reserve(btc_kv_cache *c, int64_t positions, btc_error *err) {
  if (positions <= c->capacity) return BTC_OK;
  positions = (positions + STEP_POSITIONS - 1) / STEP_POSITIONS * STEP_POSITIONS;
  int64_t bytes = btc_kv_cache_slot_bytes(c->layers, c->kv_heads, c->d, c->dtype, positions);
  c->capacity = 0;
  if (!bytes) bytes = 1;
  for (int i = 0; i < c->slots; i++) {
    btc_backend_free(c->be, c->slot[i]);
    c->slot[i] = NULL;
  }
  for (int i = 0; i < c->slots; i++) {
    void *p = NULL;
    btc_status st = btc_backend_alloc(c->be, (size_t)bytes, &p, err);
    if (st != BTC_OK && st != BTC_ERR_NOMEM) return st;
    c->slot[i] = p;
    if (!p)
      return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for keys and values: %d slots of %lld positions need %lld MB",
                      c->slots, (long long)positions, (long long)(bytes >> 20) * c->slots);
  }
  c->capacity = positions;
  return BTC_OK;
}

int64_t btc_kv_cache_capacity(const btc_kv_cache *c) {
  return c->capacity;
}

btc_kv btc_kv_cache_at(const btc_kv_cache *c, int slot, int64_t layer) {
  int64_t half = c->kv_heads * c->capacity * c->d * (int64_t)btc_dtype_size(c->dtype);
  char *k = c->slot[slot] + layer * 2 * half;
  return (btc_kv){.k = k, .v = k + half, .dtype = c->dtype, .kv_heads = c->kv_heads, .capacity = c->capacity, .d = c->d};
}

void btc_kv_cache_copy(btc_kv_cache *c, int from, int to, int64_t positions) {
  const size_t row = (size_t)c->d * btc_dtype_size(c->dtype), whole = (size_t)c->capacity * row;
  btc_op_copy_2d(c->be, c->slot[to], whole, c->slot[from], whole, (size_t)positions * row, 2 * c->layers * c->kv_heads);
}
