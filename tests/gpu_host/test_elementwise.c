/* elementwise.cu and kv_cache.cu against the plain operators. */
#include "gpu.h"

static void test_elementwise_add(void **state) {
  (void)state;
  GPU_REQUIRED();
  static const int64_t sizes[] = {1, 3, 4, 5, 1023, 1024, 1025, 4099};
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    int64_t n = sizes[i];
    gpu_case("%lld elements", (long long)n);
    gpu_array a = gpu_random(n), c = gpu_random(n), y = gpu_new((size_t)n * 4, 0);
    GPU(btc_cuda_add(y.device, a.device, c.device, n, NULL));
    gpu_get(&y);
    for (int64_t j = 0; j < n; j++) {
      float want = gpu_f32(&a)[j] + gpu_f32(&c)[j];
      assert_same_bits(gpu_f32(&y) + j, &want, 1, "add");
    }
    GPU(btc_cuda_add(a.device, a.device, c.device, n, NULL));
    gpu_get(&a);
    assert_same_bits(a.host, y.host, n, "add in place");
    gpu_free(&a);
    gpu_free(&c);
    gpu_free(&y);
  }
}

static void test_elementwise_add_repeated(void **state) {
  (void)state;
  GPU_REQUIRED();
  static const int64_t sizes[][2] = {{1, 1},    {1, 5},    {3, 4},    {4, 3},
                                     {1024, 2}, {1028, 3}, {1027, 3}, {2309, 2}}; /* period, times */
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    int64_t period = sizes[i][0], n = period * sizes[i][1];
    gpu_case("%lld elements %lld times", (long long)period, (long long)sizes[i][1]);
    gpu_array a = gpu_random(n), c = gpu_random(period), y = gpu_new((size_t)n * 4, 0);
    GPU(btc_cuda_add_repeated(y.device, a.device, c.device, n, period, NULL));
    gpu_get(&y);
    for (int64_t j = 0; j < n; j++) {
      float want = gpu_f32(&a)[j] + gpu_f32(&c)[j % period];
      assert_same_bits(gpu_f32(&y) + j, &want, 1, "add_repeated");
    }
    GPU(btc_cuda_add_repeated(a.device, a.device, c.device, n, period, NULL));
    gpu_get(&a);
    assert_same_bits(a.host, y.host, n, "add_repeated in place");
    gpu_free(&a);
    gpu_free(&c);
    gpu_free(&y);
  }
}

/* silu: expf and a division, each within 2 units, then the product. */
static void silu(btc_dtype type, int64_t m, int64_t n, int64_t stride, int64_t up_at) {
  gpu_case("%s, m %lld, n %lld, stride %lld", btc_dtype_name(type), (long long)m, (long long)n, (long long)stride);
  const size_t size = btc_dtype_size(type);
  gpu_array x = gpu_random(m * stride), stored = gpu_new((size_t)(m * stride) * size, 0), y = gpu_new((size_t)(m * n) * 4, 0),
            h = gpu_new((size_t)(m * n) * 2, 0);
  for (int64_t i = 0; i < m * stride; i++) {
    float *v = gpu_f32(&x) + i;
    *v *= i % 7 ? 4 : 100; /* far into both tails */
    if (type == BTC_BF16)
      ((uint16_t *)stored.host)[i] = btc_f32_to_bf16(*v);
    else
      gpu_f32(&stored)[i] = *v;
  }
  gpu_put(&stored);
  btc_to_f32(gpu_f32(&x), stored.host, type, (size_t)(m * stride));
  btc_cuda_gate job = {stored.device, (char *)stored.device + (size_t)up_at * size, (btc_cuda_type)type, stride, stride};
  GPU(btc_cuda_silu_mul(y.device, h.device, &job, m, n, NULL));
  gpu_get(&y);
  gpu_get(&h);
  btc_backend b = plain_backend(BTC_COMPUTE_F32);
  for (int64_t i = 0; i < m * n; i++) {
    float want;
    const float *g = gpu_f32(&x) + i / n * stride + i % n;
    btc_ops_plain.silu_mul(&b, &want, g, g + up_at, 1);
    assert_close(gpu_f32(&y)[i], want, 8 * UNIT * fabs((double)want) + 1e-36, "silu_mul", i);
  }
  assert_rounded(&h, y.host, m * n, "silu_mul");
  gpu_free(&x);
  gpu_free(&stored);
  gpu_free(&y);
  gpu_free(&h);
}

static void test_elementwise_silu_mul(void **state) {
  (void)state;
  GPU_REQUIRED();
  static const btc_dtype types[] = {BTC_F32, BTC_BF16};
  for (int i = 0; i < 2; i++) {
    silu(types[i], 1, 1, 2, 1);
    silu(types[i], 3, 5, 11, 6);                         /* odd: one at a time */
    silu(types[i], 2, 6912 / 4, 2 * 6912 / 4, 6912 / 4); /* both halves of one product */
    silu(types[i], 4, 260, 524, 262);                    /* up is not on 16 bytes */
  }
}

static void epilogue(int64_t m, int64_t n, int which, btc_act act, bool first, int64_t residual_rows) {
  gpu_case("m %lld, n %lld, parts %d, act %d, residual first %d, of %lld rows", (long long)m, (long long)n, which, (int)act, first,
           (long long)residual_rows);
  gpu_array x = gpu_random(m * n), bias = gpu_random(n), scale = gpu_random(n), residual = gpu_random(m * n),
            y = gpu_new((size_t)(m * n) * 4, 0), h = gpu_new((size_t)(m * n) * 2, 0);
  btc_cuda_epilogue e = {.bias = which & 1 ? bias.device : NULL,
                         .scale = which & 2 ? scale.device : NULL,
                         .residual = which & 4 ? residual.device : NULL,
                         .residual_rows = residual_rows,
                         .act = (btc_cuda_act)act,
                         .residual_first = first};
  GPU(btc_cuda_epilogue_apply(y.device, h.device, x.device, m, n, &e, NULL));
  gpu_get(&y);
  gpu_get(&h);
  btc_backend b = plain_backend(BTC_COMPUTE_F32);
  for (int64_t i = 0; i < m * n; i++) { /* the plain product of one row and one column by a weight of 1 */
    int64_t j = i % n, row = residual_rows ? i / n % residual_rows : i / n;
    float one = 1, want;
    btc_weight w = {&one, BTC_F32, 1, 1};
    btc_epilogue p = {.bias = which & 1 ? gpu_f32(&bias) + j : NULL,
                      .scale = which & 2 ? gpu_f32(&scale) + j : NULL,
                      .residual = which & 4 ? gpu_f32(&residual) + row * n + j : NULL,
                      .act = act,
                      .residual_first = first};
    btc_ops_plain.matmul(&b, &want, gpu_f32(&x) + i, 1, &w, &p);
    assert_close(gpu_f32(&y)[i], want, 32 * UNIT, "epilogue", i); /* values up to 4, eight roundings */
  }
  assert_rounded(&h, y.host, m * n, "epilogue");
  gpu_array *arrays[] = {&x, &bias, &scale, &residual, &y, &h};
  for (int i = 0; i < 6; i++) gpu_free(arrays[i]);
}

static void test_elementwise_epilogue(void **state) {
  (void)state;
  GPU_REQUIRED();
  for (int which = 0; which < 8; which++)
    for (int act = BTC_ACT_NONE; act <= BTC_ACT_RELU; act++)
      for (int first = 0; first < 2; first++) {
        epilogue(3, 37, which, (btc_act)act, first, 0);
        epilogue(6, 64, which, (btc_act)act, first, 2);
      }
}

/* Two products and a sum in float: within 3 roundings of values up to 2. */
static void test_elementwise_rope(void **state) {
  (void)state;
  GPU_REQUIRED();
  enum { M = 5, HEADS = 3, D = 20, STRIDE = HEADS * D + 4, POSITIONS = 40 };
  gpu_array x = gpu_random(M * STRIDE), c = gpu_random(POSITIONS * D / 2), s = gpu_random(POSITIONS * D / 2);
  int32_t pos[M] = {0, 39, 7, 7, 21};
  gpu_array p = gpu_ints(pos, M);
  float want[M * STRIDE];
  memcpy(want, x.host, sizeof want);
  btc_backend b = plain_backend(BTC_COMPUTE_F32);
  for (int i = 0; i < M; i++) btc_ops_plain.rope(&b, want + i * STRIDE, STRIDE, 1, HEADS, D, pos[i], c.host, s.host);
  GPU(btc_cuda_rope(x.device, STRIDE, M, HEADS, D, p.device, c.device, s.device, NULL));
  gpu_get(&x);
  for (int i = 0; i < M * STRIDE; i++) assert_close(gpu_f32(&x)[i], want[i], 6 * UNIT, "rope", i);
  gpu_array *arrays[] = {&x, &c, &s, &p};
  for (int i = 0; i < 4; i++) gpu_free(arrays[i]);
}

/* ---- the cache ---- */
enum { ITEMS = 3, ROWS = 6, KV_HEADS = 2, Q_HEADS = 4, WIDTH = 12, CAPACITY = 9, CACHE = KV_HEADS * CAPACITY * WIDTH };

typedef struct cache {
  gpu_array k[ITEMS], v[ITEMS], k_table, v_table;
  btc_cuda_kv kv;
} cache;

static cache cache_new(btc_dtype t) {
  cache c;
  void *k[ITEMS], *v[ITEMS];
  for (int i = 0; i < ITEMS; i++) {
    c.k[i] = gpu_new(CACHE * btc_dtype_size(t), 0);
    c.v[i] = gpu_new(CACHE * btc_dtype_size(t), 0);
    k[i] = c.k[i].device;
    v[i] = c.v[i].device;
  }
  c.k_table = gpu_new(sizeof k, 0);
  c.v_table = gpu_new(sizeof v, 0);
  memcpy(c.k_table.host, k, sizeof k);
  memcpy(c.v_table.host, v, sizeof v);
  gpu_put(&c.k_table);
  gpu_put(&c.v_table);
  c.kv = (btc_cuda_kv){c.k_table.device, c.v_table.device, (btc_cuda_type)t, KV_HEADS, CAPACITY, WIDTH};
  return c;
}

static void cache_free(cache *c) {
  for (int i = 0; i < ITEMS; i++) {
    gpu_free(&c->k[i]);
    gpu_free(&c->v[i]);
  }
  gpu_free(&c->k_table);
  gpu_free(&c->v_table);
}

static const int32_t row_item[ROWS] = {2, 0, 0, 1, 2, 1}, row_pos[ROWS] = {8, 0, 1, 5, 3, 4};

/* The items' caches equal plain ones into which the same rows were stored; what was not stored is still all ones. */
static void check_cache(cache *c, btc_dtype t, const float *k, const float *v, int64_t stride) {
  btc_backend b = plain_backend(BTC_COMPUTE_F32);
  for (int item = 0; item < ITEMS; item++) {
    unsigned char want_k[CACHE * 4], want_v[CACHE * 4];
    memset(want_k, 0xff, sizeof want_k);
    memset(want_v, 0xff, sizeof want_v);
    btc_kv kv = {want_k, want_v, t, KV_HEADS, CAPACITY, WIDTH};
    for (int i = 0; i < ROWS; i++)
      if (row_item[i] == item) btc_ops_plain.kv_store(&b, &kv, row_pos[i], k + i * stride, stride, v + i * stride, stride, 1);
    gpu_get(&c->k[item]);
    gpu_get(&c->v[item]);
    assert_memory_equal(c->k[item].host, want_k, CACHE * btc_dtype_size(t));
    assert_memory_equal(c->v[item].host, want_v, CACHE * btc_dtype_size(t));
  }
}

static void test_elementwise_kv_store(void **state) {
  (void)state;
  GPU_REQUIRED();
  enum { STRIDE = KV_HEADS * WIDTH + 3 };
  for (int t = BTC_F32; t <= BTC_BF16; t += 2) {
    gpu_array k = gpu_random(ROWS * STRIDE), v = gpu_random(ROWS * STRIDE), items = gpu_ints(row_item, ROWS),
              pos = gpu_ints(row_pos, ROWS);
    cache c = cache_new((btc_dtype)t);
    GPU(btc_cuda_kv_store(&c.kv, items.device, pos.device, k.device, STRIDE, v.device, STRIDE, ROWS, NULL));
    check_cache(&c, (btc_dtype)t, k.host, v.host, STRIDE);
    cache_free(&c);
    gpu_array *arrays[] = {&k, &v, &items, &pos};
    for (int i = 0; i < 4; i++) gpu_free(arrays[i]);
  }
}

/* One launch equals rope, rope and store, bit for bit. */
static void test_elementwise_rope_store(void **state) {
  (void)state;
  GPU_REQUIRED();
  enum { KV = KV_HEADS * WIDTH, Q = Q_HEADS * WIDTH };
  for (int t = BTC_F32; t <= BTC_BF16; t += 2) {
    gpu_array q = gpu_random(ROWS * Q), q2 = gpu_random(ROWS * Q), k = gpu_random(ROWS * KV), k2 = gpu_random(ROWS * KV),
              v = gpu_random(ROWS * KV), cos = gpu_random(CAPACITY * WIDTH / 2), sin = gpu_random(CAPACITY * WIDTH / 2),
              items = gpu_ints(row_item, ROWS), pos = gpu_ints(row_pos, ROWS);
    memcpy(q2.host, q.host, q.bytes);
    memcpy(k2.host, k.host, k.bytes);
    gpu_put(&q2);
    gpu_put(&k2);
    cache c = cache_new((btc_dtype)t);
    GPU(btc_cuda_rope_store(q.device, Q, Q_HEADS, k.device, KV, v.device, KV, ROWS, &c.kv, items.device, pos.device, cos.device,
                            sin.device, NULL));
    GPU(btc_cuda_rope(q2.device, Q, ROWS, Q_HEADS, WIDTH, pos.device, cos.device, sin.device, NULL));
    GPU(btc_cuda_rope(k2.device, KV, ROWS, KV_HEADS, WIDTH, pos.device, cos.device, sin.device, NULL));
    gpu_get(&q);
    gpu_get(&q2);
    gpu_get(&k2);
    assert_same_bits(q.host, q2.host, ROWS * Q, "rotated queries");
    check_cache(&c, (btc_dtype)t, k2.host, v.host, KV);
    cache_free(&c);
    gpu_array *arrays[] = {&q, &q2, &k, &k2, &v, &cos, &sin, &items, &pos};
    for (int i = 0; i < 9; i++) gpu_free(arrays[i]);
  }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_elementwise_add),        cmocka_unit_test(test_elementwise_add_repeated),
    cmocka_unit_test(test_elementwise_silu_mul),   cmocka_unit_test(test_elementwise_epilogue),
    cmocka_unit_test(test_elementwise_rope),       cmocka_unit_test(test_elementwise_kv_store),
    cmocka_unit_test(test_elementwise_rope_store),
};

BTC_TEST_MAIN(tests)
