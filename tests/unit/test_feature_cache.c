/* The cache of image features: what is in use stays, the rest keeps to its bound, oldest first out. */
#include "test.h"

#include "engine/feature_cache.h"

static void test_feature_cache_keeps_its_bound(void **state) {
  (void)state;
  btc_feature_cache *c;
  btc_backend *be;
  btc_block_pool *pool;
  btc_error err;
  assert_int_equal(btc_backend_create(&(btc_backend_options){.kind = "cpu", .threads = 1, .max_cols = 1}, &be, &err), BTC_OK);
  assert_int_equal(btc_block_pool_create(be, 400, &pool, &err), BTC_OK);
  assert_int_equal(btc_feature_cache_create(3 * 400, 100, pool, NULL, &c, &err), BTC_OK);
  btc_features *held[6];
  for (int i = 0; i < 6; i++) {
    uint8_t key[33] = {(uint8_t)i};
    assert_non_null(held[i] = btc_feature_cache_get(c, key));
    void *block;
    assert_int_equal(btc_block_pool_take(pool, &block, &err), BTC_OK);
    held[i]->data = block; /* goes with its entry: else a leak */
    held[i]->state = BTC_FEATURES_READY;
  }
  assert_int_equal(btc_feature_cache_bytes(c), 6 * 400); /* those in use stay */
  for (int i = 0; i < 6; i++) btc_feature_cache_put(c, held[i]);
  assert_int_equal(btc_feature_cache_bytes(c), 3 * 400);
  for (int i = 0; i < 6; i++) { /* the last used ones are kept, looking at them makes no difference to the others */
    uint8_t key[33] = {(uint8_t)(5 - i)};
    btc_features *f = btc_feature_cache_get(c, key);
    assert_int_equal(f->state, i < 3 ? BTC_FEATURES_READY : BTC_FEATURES_EMPTY);
    btc_feature_cache_put(c, f); /* never filled: forgotten */
  }
  uint8_t key[33] = {5}, other[33] = {5, [32] = 1};
  btc_features *alone = btc_feature_cache_get(c, NULL), *pad = btc_feature_cache_get(c, other),
               *again = btc_feature_cache_get(c, other);
  alone->state = BTC_FEATURES_READY;
  assert_ptr_equal(pad, again);
  assert_int_equal(pad->state, BTC_FEATURES_EMPTY); /* another mode is another content */
  btc_feature_cache_put(c, alone);
  btc_feature_cache_put(c, again);
  btc_feature_cache_put(c, pad);
  btc_features *f = btc_feature_cache_get(c, key);
  (void)f;
  btc_feature_cache_put(c, f);
  btc_feature_cache_destroy(&c);
  btc_block_pool_destroy(&pool);
  btc_backend_destroy(&be);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_feature_cache_keeps_its_bound),
};

BTC_TEST_MAIN(tests)
