/*
 * What the few-row products do besides a product: normalise the rows of x, let a gate through, rotate and store. Each against the
 * kernels it takes the place of, bit for bit; those are compared with plain loops in their own tests.
 */
#include "gpu.h"

typedef struct sizes {
  int64_t m, n, k; /* n: rows of w */
} sizes;

static gpu_array copy_of(const gpu_array *a) {
  gpu_array c = gpu_new(a->bytes, 0);
  memcpy(c.host, a->host, a->bytes);
  gpu_put(&c);
  return c;
}

static void assert_same(gpu_array *got, gpu_array *want, const char *what) {
  gpu_get(got);
  gpu_get(want);
  for (size_t i = 0; i < got->bytes / 2; i++)
    if (((uint16_t *)got->host)[i] != ((uint16_t *)want->host)[i])
      fail_msg("%s: half word %zu is %04x, want %04x; %s", what, i, ((uint16_t *)got->host)[i], ((uint16_t *)want->host)[i],
               gpu_call);
}

typedef struct operands {
  gpu_array w, x, norm, normed;
  btc_cuda_matrix matrix;
  btc_cuda_rows rows, plain; /* what the fused product gets, and what the product alone does */
} operands;

/* normed: whether the rows of x are normalised by the product itself; plain rows have been before, in bf16 where that is asked. */
static operands make(const sizes *s, int64_t pitch, btc_dtype w, bool round, bool normed) {
  operands o = {.w = gpu_stored(w, s->n * pitch),
                .x = gpu_random(s->m * s->k),
                .norm = gpu_random(s->k),
                .normed = gpu_new((size_t)(s->m * s->k) * (round ? 2 : 4), 0)};
  const btc_cuda_type packed = round ? BTC_CUDA_BF16 : BTC_CUDA_F32;
  o.matrix = (btc_cuda_matrix){o.w.device, (btc_cuda_type)w, s->n, s->k, pitch};
  GPU(btc_cuda_rmsnorm(round ? NULL : o.normed.device, round ? o.normed.device : NULL, o.x.device, s->m, s->k, o.norm.device, 1e-5f,
                       NULL));
  o.plain = (btc_cuda_rows){.x = o.normed.device, .type = packed, .m = s->m};
  o.rows = o.plain;
  if (normed) o.rows = (btc_cuda_rows){.x = o.x.device, .m = s->m, .norm = o.norm.device, .eps = 1e-5f};
  return o;
}

static void clear(operands *o) {
  gpu_free(&o->w);
  gpu_free(&o->x);
  gpu_free(&o->norm);
  gpu_free(&o->normed);
}

/* ---- norms ---- */

static void check_norm(sizes s, int64_t pitch) {
  gpu_case("norm, m %lld, n %lld, k %lld", (long long)s.m, (long long)s.n, (long long)s.k);
  operands o = make(&s, pitch, BTC_BF16, true, true);
  gpu_array y = gpu_random(s.m * s.n), want = copy_of(&y), h = gpu_new((size_t)(s.m * s.n) * 2, 0), want_h = copy_of(&h);
  assert_true(btc_cuda_matvec_norms(&o.rows, &o.matrix, 1));
  const btc_cuda_epilogue e = {.residual = y.device}, want_e = {.residual = want.device};
  GPU(btc_cuda_matvec(want.device, want_h.device, &o.plain, &o.matrix, &want_e, 1, NULL));
  GPU(btc_cuda_matvec(y.device, h.device, &o.rows, &o.matrix, &e, 1, NULL));
  assert_same(&y, &want, "normalised by the product");
  assert_same(&h, &want_h, "in bf16");
  gpu_free(&y);
  gpu_free(&want);
  gpu_free(&h);
  gpu_free(&want_h);
  clear(&o);
}

static void test_fused_norm_equals_norm_kernel(void **state) {
  (void)state;
  GPU_REQUIRED();
  static const int64_t cols[] = {8, 64, 72, 1024, 1032, 2560, 4104};
  for (size_t i = 0; i < sizeof cols / sizeof cols[0]; i++)
    check_norm((sizes){1 + (int64_t)i % 4, 18 + (int64_t)i, cols[i]}, cols[i]);
  check_norm((sizes){4, 33, 2560}, 2568);
  check_norm((sizes){3, 1, 136}, 136);
}

/* Where the product cannot normalise, it says so and does nothing. */
static void test_fused_norm_refuses_what_it_cannot(void **state) {
  (void)state;
  GPU_REQUIRED();
  static const struct {
    sizes s;
    btc_dtype w;
    bool round;
  } not_those[] = {
      {{5, 16, 64}, BTC_BF16, true},  /* too many rows */
      {{1, 16, 70}, BTC_BF16, true},  /* rows that are not whole */
      {{1, 16, 64}, BTC_F32, false},  /* f32 arithmetic */
      {{4, 8, 8192}, BTC_BF16, true}, /* more than the shared memory every launch may have */
  };
  for (size_t i = 0; i < sizeof not_those / sizeof not_those[0]; i++) {
    operands o = make(&not_those[i].s, not_those[i].s.k, not_those[i].w, not_those[i].round, true);
    gpu_array y = gpu_new((size_t)(not_those[i].s.m * not_those[i].s.n) * 4, 0), before = copy_of(&y);
    assert_false(btc_cuda_matvec_norms(&o.rows, &o.matrix, not_those[i].round));
    assert_int_not_equal(btc_cuda_matvec(y.device, NULL, &o.rows, &o.matrix, NULL, not_those[i].round, NULL), 0);
    assert_same(&y, &before, "a refused product");
    gpu_free(&y);
    gpu_free(&before);
    clear(&o);
  }
}

/* ---- gates ---- */

static void check_gate(sizes s, btc_dtype w, bool round, bool normed) {
  gpu_case("gate, m %lld, n %lld, k %lld, weights %d, rounded %d, normed %d", (long long)s.m, (long long)s.n, (long long)s.k,
           (int)w, round, normed);
  const int64_t half = s.n / 2;
  operands o = make(&s, s.k, w, round, normed);
  for (int64_t i = 0; i < s.m * s.k; i++) gpu_f32(&o.x)[i] *= 8;
  gpu_put(&o.x);
  gpu_array parts = gpu_new((size_t)(s.m * s.n) * 4, 0), y = gpu_new((size_t)(s.m * half) * 4, 0), want = copy_of(&y),
            h = gpu_new((size_t)(s.m * half) * 2, 0), want_h = copy_of(&h);
  GPU(btc_cuda_rmsnorm(round ? NULL : o.normed.device, round ? o.normed.device : NULL, o.x.device, s.m, s.k, o.norm.device, 1e-5f,
                       NULL));
  GPU(btc_cuda_matvec(parts.device, NULL, &o.plain, &o.matrix, NULL, round, NULL));
  const btc_cuda_gate job = {parts.device, (float *)parts.device + half, BTC_CUDA_F32, s.n, s.n};
  GPU(btc_cuda_silu_mul(want.device, want_h.device, &job, s.m, half, NULL));
  GPU(btc_cuda_matvec_gated(y.device, h.device, &o.rows, &o.matrix, round, NULL));
  assert_same(&y, &want, "a gate");
  assert_same(&h, &want_h, "a gate in bf16");
  gpu_free(&parts);
  gpu_free(&y);
  gpu_free(&want);
  gpu_free(&h);
  gpu_free(&want_h);
  clear(&o);
}

static void test_fused_gate_equals_silu_kernel(void **state) {
  (void)state;
  GPU_REQUIRED();
  check_gate((sizes){1, 2, 8}, BTC_BF16, true, false);
  check_gate((sizes){1, 34, 2560}, BTC_BF16, true, true); /* a block's last gates are not there */
  check_gate((sizes){4, 48, 72}, BTC_BF16, true, true);
  check_gate((sizes){7, 30, 1096}, BTC_BF16, true, false);
  check_gate((sizes){3, 22, 77}, BTC_BF16, true, false); /* rows that are not whole */
  check_gate((sizes){12, 38, 64}, BTC_BF16, true, false);
  check_gate((sizes){19, 4262, 40}, BTC_BF16, true, false); /* 32 rows of w a block */
  check_gate((sizes){33, 42, 136}, BTC_BF16, true, false);
  check_gate((sizes){1, 34, 200}, BTC_F32, false, false);
  check_gate((sizes){9, 18, 77}, BTC_F32, false, false);
  check_gate((sizes){2, 26, 64}, BTC_F16, true, false);
}

static void test_fused_gate_wants_two_halves(void **state) {
  (void)state;
  GPU_REQUIRED();
  const sizes s = {1, 7, 16};
  operands o = make(&s, s.k, BTC_BF16, true, false);
  gpu_array y = gpu_new(64, 0), before = copy_of(&y);
  assert_int_not_equal(btc_cuda_matvec_gated(y.device, NULL, &o.rows, &o.matrix, 1, NULL), 0);
  assert_same(&y, &before, "a refused gate");
  gpu_free(&y);
  gpu_free(&before);
  clear(&o);
}

/* ---- rotation and storing ---- */

typedef struct cache {
  gpu_array k, v, k_at, v_at;
  btc_cuda_kv kv;
} cache;

static cache make_cache(int64_t items, btc_dtype type, int64_t heads, int64_t capacity, int64_t d) {
  const size_t each = (size_t)(heads * capacity * d) * btc_dtype_size(type);
  cache c = {gpu_new((size_t)items * each, 0),
             gpu_new((size_t)items * each, 0),
             gpu_new((size_t)items * sizeof(void *), 0),
             gpu_new((size_t)items * sizeof(void *), 0),
             {0}};
  for (int64_t i = 0; i < items; i++) {
    ((char **)c.k_at.host)[i] = (char *)c.k.device + (size_t)i * each;
    ((char **)c.v_at.host)[i] = (char *)c.v.device + (size_t)i * each;
  }
  gpu_put(&c.k_at);
  gpu_put(&c.v_at);
  c.kv = (btc_cuda_kv){c.k_at.device, c.v_at.device, (btc_cuda_type)type, heads, capacity, d};
  return c;
}

static void free_cache(cache *c) {
  gpu_free(&c->k);
  gpu_free(&c->v);
  gpu_free(&c->k_at);
  gpu_free(&c->v_at);
}

typedef struct heads {
  int64_t m, k, d, queries, keys;
} heads;

/* Rows of items in another order than they stand, at positions of their own; what nobody stores stays NaN in both caches. */
static void check_rotation(heads z, btc_dtype w, btc_dtype kv, bool round, bool normed) {
  enum { CAPACITY = 9 };
  gpu_case("rotation, m %lld, k %lld, d %lld, heads %lld and %lld, weights %d, cache %d, normed %d", (long long)z.m, (long long)z.k,
           (long long)z.d, (long long)z.queries, (long long)z.keys, (int)w, (int)kv, normed);
  const int64_t nq = z.queries * z.d, nkv = z.keys * z.d, half = z.d / 2;
  const sizes s = {z.m, nq + 2 * nkv, z.k};
  operands o = make(&s, s.k, w, round, normed);
  int32_t item[64], pos[64];
  for (int64_t i = 0; i < z.m; i++) {
    item[i] = (int32_t)(z.m - 1 - i);
    pos[i] = (int32_t)(i * 5 % CAPACITY);
  }
  gpu_array row_item = gpu_ints(item, z.m), row_pos = gpu_ints(pos, z.m), cos = gpu_random(CAPACITY * half),
            sin = gpu_random(CAPACITY * half);
  gpu_array all = gpu_new((size_t)(s.m * s.n) * 4, 0), q = gpu_new((size_t)(s.m * nq) * 4, 0);
  cache got = make_cache(z.m, kv, z.keys, CAPACITY, z.d), want = make_cache(z.m, kv, z.keys, CAPACITY, z.d);
  const btc_cuda_rotation r = {row_item.device, row_pos.device, cos.device, sin.device, z.queries};
  float *at = all.device;
  assert_true(btc_cuda_matvec_rotates(&o.matrix, z.d, round));
  GPU(btc_cuda_matvec(at, NULL, &o.plain, &o.matrix, NULL, round, NULL));
  GPU(btc_cuda_rope_store(at, s.n, z.queries, at + nq, s.n, at + nq + nkv, s.n, s.m, &want.kv, row_item.device, row_pos.device,
                          cos.device, sin.device, NULL));
  GPU(btc_cuda_matvec_rotated(q.device, nq, &o.rows, &o.matrix, &got.kv, &r, round, NULL));
  gpu_get(&all);
  gpu_get(&q);
  for (int64_t i = 0; i < s.m; i++) assert_same_bits(gpu_f32(&q) + i * nq, gpu_f32(&all) + i * s.n, nq, "queries");
  assert_same(&got.k, &want.k, "keys");
  assert_same(&got.v, &want.v, "values");
  free_cache(&got);
  free_cache(&want);
  gpu_free(&all);
  gpu_free(&q);
  gpu_free(&row_item);
  gpu_free(&row_pos);
  gpu_free(&cos);
  gpu_free(&sin);
  clear(&o);
}

static void test_fused_rotation_equals_rope_store(void **state) {
  (void)state;
  GPU_REQUIRED();
  check_rotation((heads){1, 64, 16, 1, 1}, BTC_BF16, BTC_BF16, true, true);
  check_rotation((heads){1, 2560, 128, 2, 1}, BTC_BF16, BTC_BF16, true, true);
  check_rotation((heads){4, 72, 48, 4, 2}, BTC_BF16, BTC_F32, true, true);
  check_rotation((heads){3, 61, 16, 3, 3}, BTC_BF16, BTC_BF16, true, false); /* rows that are not whole */
  check_rotation((heads){11, 40, 32, 2, 1}, BTC_BF16, BTC_BF16, true, false);
  check_rotation((heads){10, 24, 128, 30, 3}, BTC_BF16, BTC_BF16, true, false); /* 32 rows of w a block */
  check_rotation((heads){18, 24, 48, 84, 3}, BTC_BF16, BTC_BF16, true, false);  /* a width that 32 do not divide */
  check_rotation((heads){1, 64, 6, 2, 1}, BTC_F32, BTC_F32, false, false);
  check_rotation((heads){9, 77, 10, 4, 2}, BTC_F32, BTC_BF16, false, false);
}

static void test_fused_rotation_refuses_what_it_cannot(void **state) {
  (void)state;
  GPU_REQUIRED();
  const sizes s = {1, 3 * 24, 64};
  operands o = make(&s, s.k, BTC_BF16, true, false);
  gpu_array q = gpu_new(24 * 4, 0), before = copy_of(&q);
  cache c = make_cache(1, BTC_BF16, 1, 4, 24);
  const btc_cuda_rotation r = {.heads = 1};
  assert_false(btc_cuda_matvec_rotates(&o.matrix, 24, 1)); /* eight channels would be rotated with those of another block */
  assert_int_not_equal(btc_cuda_matvec_rotated(q.device, 24, &o.rows, &o.matrix, &c.kv, &r, 1, NULL), 0);
  assert_false(btc_cuda_matvec_rotates(&o.matrix, 23, 0));
  c.kv.d = 16; /* and w has other rows than these heads */
  assert_int_not_equal(btc_cuda_matvec_rotated(q.device, 24, &o.rows, &o.matrix, &c.kv, &r, 1, NULL), 0);
  assert_same(&q, &before, "a refused rotation");
  free_cache(&c);
  gpu_free(&q);
  gpu_free(&before);
  clear(&o);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_fused_norm_equals_norm_kernel),    cmocka_unit_test(test_fused_norm_refuses_what_it_cannot),
    cmocka_unit_test(test_fused_gate_equals_silu_kernel),    cmocka_unit_test(test_fused_gate_wants_two_halves),
    cmocka_unit_test(test_fused_rotation_equals_rope_store), cmocka_unit_test(test_fused_rotation_refuses_what_it_cannot),
};

BTC_TEST_MAIN(tests)
