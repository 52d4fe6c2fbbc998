/*
 * Causal attention over caches (prefill) and of one row an item (decode) against the plain operator: items of different lengths
 * and positions, grouped heads, caches that hold NaN behind what is stored, rows alone and among others. Bounds: test_attention.c.
 */
#include "gpu.h"

enum { CAPACITY = 300, MAX_ITEMS = 8 };

typedef struct cache {
  btc_cuda_kv kv;
  int64_t items, heads;
  gpu_array k[MAX_ITEMS], v[MAX_ITEMS], k_of, v_of; /* k_of, v_of: the arrays of pointers */
} cache;

/* Positions 0 .. stored[i]-1 of item i are random, the rest NaN. */
static cache make_cache(btc_cuda_type type, int64_t heads, int64_t kv_heads, int64_t d, int64_t items, const int32_t *stored) {
  cache c = {.kv = {.type = type, .kv_heads = kv_heads, .capacity = CAPACITY, .d = d}, .items = items, .heads = heads};
  size_t size = type == BTC_CUDA_F32 ? 4 : 2;
  c.k_of = gpu_new((size_t)items * sizeof(void *), 0);
  c.v_of = gpu_new((size_t)items * sizeof(void *), 0);
  for (int64_t i = 0; i < items; i++) {
    gpu_array *both[] = {&c.k[i], &c.v[i]};
    for (int j = 0; j < 2; j++) {
      *both[j] = gpu_stored(type == BTC_CUDA_F32 ? BTC_F32 : BTC_BF16, kv_heads * CAPACITY * d);
      for (int64_t h = 0; h < kv_heads; h++)
        memset((char *)both[j]->host + (size_t)((h * CAPACITY + stored[i]) * d) * size, 0xff,
               (size_t)((CAPACITY - stored[i]) * d) * size);
      gpu_put(both[j]);
    }
    ((void **)c.k_of.host)[i] = c.k[i].device;
    ((void **)c.v_of.host)[i] = c.v[i].device;
  }
  gpu_put(&c.k_of);
  gpu_put(&c.v_of);
  c.kv.k = c.k_of.device;
  c.kv.v = c.v_of.device;
  return c;
}

static void free_cache(cache *c) {
  for (int64_t i = 0; i < c->items; i++) {
    gpu_free(&c->k[i]);
    gpu_free(&c->v[i]);
  }
  gpu_free(&c->k_of);
  gpu_free(&c->v_of);
}

static void round_all(float *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = btc_bf16_to_f32(btc_f32_to_bf16(x[i]));
}

/* Rows q [m, heads * d] (stride in elements) of item i from position pos on, by the plain operator; rounded: operands in bf16. */
static void plain_rows(float *want, const cache *c, int64_t i, const float *q, int64_t q_stride, int64_t m, int64_t pos,
                       float scale, bool rounded) {
  int64_t n = c->kv.kv_heads * CAPACITY * c->kv.d;
  float *k = malloc((size_t)n * sizeof *k), *v = malloc((size_t)n * sizeof *v),
        *rows = malloc((size_t)(m * q_stride) * sizeof *rows);
  assert_true(k && v && rows);
  btc_to_f32(k, c->k[i].host, (btc_dtype)c->kv.type, (size_t)n);
  btc_to_f32(v, c->v[i].host, (btc_dtype)c->kv.type, (size_t)n);
  memcpy(rows, q, (size_t)((m - 1) * q_stride + c->heads * c->kv.d) * sizeof *rows);
  if (rounded) {
    round_all(k, n);
    round_all(v, n);
    round_all(rows, (m - 1) * q_stride + c->heads * c->kv.d);
  }
  btc_backend b = plain_backend(BTC_COMPUTE_F32);
  btc_kv kv = {k, v, BTC_F32, c->kv.kv_heads, CAPACITY, c->kv.d};
  b.table->attention_causal(&b, want, rows, q_stride, m, pos, c->heads, &kv, scale);
  free(k);
  free(v);
  free(rows);
}

static double bound_of(bool rounded, btc_cuda_type out, double d, double keys, double value) {
  double bound = (2 * (d + 16) * sqrt(d) + 64 + keys) * UNIT;
  if (rounded) bound += 2.02 * UNIT_BF16 / sqrt(keys);
  return out == BTC_CUDA_BF16 ? bound + UNIT_BF16 * fabs(value) : bound;
}

static float element(const gpu_array *a, btc_cuda_type t, int64_t i) {
  return t == BTC_CUDA_F32 ? gpu_f32(a)[i] : btc_bf16_to_f32(((const uint16_t *)a->host)[i]);
}

typedef struct heads_case {
  int64_t heads, kv_heads, d, gap;
} heads_case;

static const heads_case heads_cases[] = {{4, 4, 8, 0},   {6, 2, 24, 8}, {4, 1, 64, 0}, {2, 2, 80, 4},
                                         {5, 1, 128, 8}, {2, 1, 72, 0}, {3, 3, 13, 1}};

enum { N = 5 };
static const int32_t first_positions[N] = {0, 0, 35, 200, 62}, row_counts[N] = {1, 130, 70, 3, 5};

typedef struct rows_case {
  cache c;
  gpu_array q, o, first_row, pos;
  btc_cuda_causal a;
  int32_t first[N + 1];
} rows_case;

static rows_case make_rows(const heads_case *h, btc_cuda_type type, btc_cuda_type out, bool math) {
  rows_case r = {.first = {0}};
  int32_t stored[N], most = 0;
  for (int i = 0; i < N; i++) {
    r.first[i + 1] = r.first[i] + row_counts[i];
    stored[i] = first_positions[i] + row_counts[i];
    if (row_counts[i] > most) most = row_counts[i];
  }
  r.c = make_cache(type, h->heads, h->kv_heads, h->d, N, stored);
  int64_t stride = h->heads * h->d + h->gap;
  r.q = gpu_random(r.first[N] * stride);
  r.o = gpu_new((size_t)(r.first[N] * h->heads * h->d) * (out == BTC_CUDA_F32 ? 4 : 2), 0);
  r.first_row = gpu_ints(r.first, N + 1);
  r.pos = gpu_ints(first_positions, N);
  r.a = (btc_cuda_causal){.q = r.q.device,
                          .o = r.o.device,
                          .out = out,
                          .q_stride = stride,
                          .heads = h->heads,
                          .items = N,
                          .max_rows = most,
                          .first_row = r.first_row.device,
                          .pos = r.pos.device,
                          .scale = 1 / sqrtf((float)h->d),
                          .bf16_math = math};
  return r;
}

static void free_rows(rows_case *r) {
  free_cache(&r->c);
  gpu_free(&r->q);
  gpu_free(&r->o);
  gpu_free(&r->first_row);
  gpu_free(&r->pos);
}

static void check_causal(const heads_case *h, btc_cuda_type type, btc_cuda_type out, bool math) {
  gpu_case("heads %lld, kv heads %lld, width %lld, cache %d, out %d, bf16 math %d", (long long)h->heads, (long long)h->kv_heads,
           (long long)h->d, (int)type, (int)out, math);
  rows_case r = make_rows(h, type, out, math);
  GPU(btc_cuda_attend_causal(&r.a, &r.c.kv, NULL));
  gpu_get(&r.o);
  int64_t width = h->heads * h->d;
  for (int i = 0; i < N; i++) {
    int64_t m = row_counts[i], n = m * width;
    float *want = malloc((size_t)n * sizeof *want);
    assert_non_null(want);
    plain_rows(want, &r.c, i, gpu_f32(&r.q) + r.first[i] * r.a.q_stride, r.a.q_stride, m, first_positions[i], r.a.scale, math);
    for (int64_t j = 0; j < n; j++) {
      double keys = (double)(first_positions[i] + j / width + 1);
      assert_close(element(&r.o, out, r.first[i] * width + j), want[j], bound_of(math, out, (double)h->d, keys, want[j]), "causal",
                   r.first[i] * width + j);
    }
    free(want);
  }
  free_rows(&r);
}

static void test_causal_attention_equals_plain(void **state) {
  (void)state;
  GPU_REQUIRED();
  for (size_t i = 0; i < sizeof heads_cases / sizeof heads_cases[0]; i++) {
    btc_cuda_type out = i % 2 ? BTC_CUDA_F32 : BTC_CUDA_BF16;
    check_causal(&heads_cases[i], BTC_CUDA_BF16, out, true);
    check_causal(&heads_cases[i], BTC_CUDA_F32, BTC_CUDA_F32, false);
  }
  check_causal(&heads_cases[1], BTC_CUDA_F32, BTC_CUDA_F32, true);
  check_causal(&heads_cases[4], BTC_CUDA_BF16, BTC_CUDA_BF16, false);
}

/* Row i of item 2, alone from its own position, has the bits it has among all rows of all items. */
static void check_row_alone(btc_cuda_type type, bool math) {
  rows_case r = make_rows(&(heads_case){2, 1, 72, 0}, type, BTC_CUDA_F32, math);
  GPU(btc_cuda_attend_causal(&r.a, &r.c.kv, NULL));
  gpu_get(&r.o);
  int64_t width = 2 * 72;
  static const int32_t rows[][2] = {{0, 1}, {1, 40}, {27, 3}, {28, 1}, {29, 41}, {69, 1}}; /* first, count */
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    int32_t first[2] = {0, rows[i][1]}, pos = first_positions[2] + rows[i][0];
    int64_t at = r.first[2] + rows[i][0], n = rows[i][1] * width;
    gpu_array o = gpu_new((size_t)n * 4, 0), f = gpu_ints(first, 2), p = gpu_ints(&pos, 1);
    btc_cuda_causal a = r.a;
    btc_cuda_kv kv = r.c.kv;
    a.q = r.a.q + at * r.a.q_stride;
    a.o = o.device;
    a.items = 1;
    a.max_rows = rows[i][1];
    a.first_row = f.device;
    a.pos = p.device;
    kv.k += 2;
    kv.v += 2;
    GPU(btc_cuda_attend_causal(&a, &kv, NULL));
    gpu_get(&o);
    assert_same_bits(o.host, gpu_f32(&r.o) + at * width, n, "rows alone");
    gpu_free(&o);
    gpu_free(&f);
    gpu_free(&p);
  }
  free_rows(&r);
}

/* Some of the items, their rows told by number: the others' rows stay as they were. */
static void test_causal_attention_of_some_items(void **state) {
  (void)state;
  GPU_REQUIRED();
  rows_case r = make_rows(&(heads_case){2, 2, 64, 0}, BTC_CUDA_BF16, BTC_CUDA_F32, true);
  GPU(btc_cuda_attend_causal(&r.a, &r.c.kv, NULL));
  gpu_get(&r.o);
  gpu_array rows = gpu_ints(row_counts + 2, 2), o = gpu_new(r.o.bytes, 0);
  btc_cuda_causal a = r.a;
  btc_cuda_kv kv = r.c.kv;
  a.o = o.device;
  a.items = 2;
  a.first_row += 2;
  a.rows = rows.device;
  a.pos += 2;
  kv.k += 2;
  kv.v += 2;
  GPU(btc_cuda_attend_causal(&a, &kv, NULL));
  gpu_get(&o);
  int64_t width = 2 * 64, from = r.first[2] * width, to = r.first[4] * width;
  assert_same_bits(gpu_f32(&o) + from, gpu_f32(&r.o) + from, to - from, "some items");
  for (int64_t i = 0; i < r.first[N] * width; i++)
    if (i < from || i >= to) assert_true(isnan(gpu_f32(&o)[i]));
  gpu_free(&rows);
  gpu_free(&o);
  free_rows(&r);
}

static void test_causal_row_does_not_see_others(void **state) {
  (void)state;
  GPU_REQUIRED();
  check_row_alone(BTC_CUDA_BF16, true);
  check_row_alone(BTC_CUDA_F32, false);
}

/* ---- decode ---- */

enum { LIVE = 6 };
static const int32_t live_positions[LIVE] = {0, 63, 64, 299, 130, 7};

/* Item i has row row_of[i]: nothing says that rows stand in the order of the items. */
static const int32_t row_of[LIVE] = {3, 0, 5, 1, 2, 4};

typedef struct decode_case {
  cache c;
  gpu_array q, o, pos, done, scratch, first_row;
  btc_cuda_causal a;
} decode_case;

static gpu_array no_counts(int64_t n) {
  gpu_array a = gpu_new((size_t)n * sizeof(uint32_t), 0);
  memset(a.host, 0, (size_t)n * sizeof(uint32_t));
  gpu_put(&a);
  return a;
}

static void assert_no_counts(gpu_array *done, int64_t n) {
  gpu_get(done);
  for (int64_t i = 0; i < n; i++) assert_int_equal(((const uint32_t *)done->host)[i], 0);
}

static decode_case make_decode(const heads_case *h, btc_cuda_type type, btc_cuda_type out) {
  int32_t stored[LIVE];
  for (int i = 0; i < LIVE; i++) stored[i] = live_positions[i] + 1;
  decode_case r = {.c = make_cache(type, h->heads, h->kv_heads, h->d, LIVE, stored)};
  int64_t stride = h->heads * h->d + h->gap;
  r.q = gpu_random(LIVE * stride);
  r.o = gpu_new((size_t)(LIVE * h->heads * h->d) * (out == BTC_CUDA_F32 ? 4 : 2), 0);
  r.pos = gpu_ints(live_positions, LIVE);
  r.first_row = gpu_ints(row_of, LIVE);
  r.done = no_counts(LIVE * h->kv_heads);
  r.scratch = gpu_new(btc_cuda_decode_scratch(LIVE, h->heads, h->d, CAPACITY), 0);
  r.a = (btc_cuda_causal){.q = r.q.device,
                          .o = r.o.device,
                          .out = out,
                          .q_stride = stride,
                          .heads = h->heads,
                          .items = LIVE,
                          .first_row = r.first_row.device,
                          .pos = r.pos.device,
                          .scale = 1 / sqrtf((float)h->d)};
  return r;
}

static void free_decode(decode_case *r) {
  free_cache(&r->c);
  gpu_free(&r->q);
  gpu_free(&r->o);
  gpu_free(&r->pos);
  gpu_free(&r->done);
  gpu_free(&r->scratch);
  gpu_free(&r->first_row);
}

static void check_decode(const heads_case *h, btc_cuda_type type, btc_cuda_type out) {
  gpu_case("heads %lld, kv heads %lld, width %lld, cache %d, out %d", (long long)h->heads, (long long)h->kv_heads, (long long)h->d,
           (int)type, (int)out);
  decode_case r = make_decode(h, type, out);
  GPU(btc_cuda_attend_decode(&r.a, &r.c.kv, CAPACITY, r.done.device, r.scratch.device, NULL));
  gpu_get(&r.o);
  gpu_get(&r.scratch);
  assert_no_counts(&r.done, LIVE * h->kv_heads);
  int64_t width = h->heads * h->d;
  float *want = malloc((size_t)width * sizeof *want);
  assert_non_null(want);
  for (int i = 0; i < LIVE; i++) {
    plain_rows(want, &r.c, i, gpu_f32(&r.q) + row_of[i] * r.a.q_stride, r.a.q_stride, 1, live_positions[i], r.a.scale, false);
    for (int64_t j = 0; j < width; j++)
      assert_close(element(&r.o, out, row_of[i] * width + j), want[j],
                   bound_of(false, out, (double)h->d, live_positions[i] + 1, want[j]), "decode", row_of[i] * width + j);
  }
  free(want);
  free_decode(&r);
}

static void test_decode_attention_equals_plain(void **state) {
  (void)state;
  GPU_REQUIRED();
  for (size_t i = 0; i < sizeof heads_cases / sizeof heads_cases[0]; i++) {
    check_decode(&heads_cases[i], BTC_CUDA_BF16, i % 2 ? BTC_CUDA_F32 : BTC_CUDA_BF16);
    check_decode(&heads_cases[i], BTC_CUDA_F32, BTC_CUDA_F32);
  }
}

/* An item alone, with just the room it needs, has the bits it has among others in a larger grid. */
static void test_decode_row_does_not_see_others(void **state) {
  (void)state;
  GPU_REQUIRED();
  for (int type = 0; type < 2; type++) {
    decode_case r = make_decode(&(heads_case){6, 2, 80, 0}, type ? BTC_CUDA_BF16 : BTC_CUDA_F32, BTC_CUDA_F32);
    GPU(btc_cuda_attend_decode(&r.a, &r.c.kv, CAPACITY, r.done.device, r.scratch.device, NULL));
    gpu_get(&r.o);
    int64_t width = 6 * 80;
    for (int i = 0; i < LIVE; i++) {
      int64_t room = live_positions[i] + 1;
      gpu_array o = gpu_new((size_t)width * 4, 0), scratch = gpu_new(btc_cuda_decode_scratch(1, 6, 80, room), 0);
      btc_cuda_causal a = r.a;
      btc_cuda_kv kv = r.c.kv;
      a.q += row_of[i] * a.q_stride;
      a.first_row = NULL;
      a.o = o.device;
      a.items = 1;
      a.pos += i;
      kv.k += i;
      kv.v += i;
      GPU(btc_cuda_attend_decode(&a, &kv, room, r.done.device, scratch.device, NULL));
      gpu_get(&o);
      assert_same_bits(o.host, gpu_f32(&r.o) + row_of[i] * width, width, "an item alone");
      gpu_free(&o);
      gpu_free(&scratch);
    }
    free_decode(&r);
  }
}

static void test_cache_attention_refuses_what_it_cannot(void **state) {
  (void)state;
  GPU_REQUIRED();
  btc_cuda_causal a = {.heads = 3, .items = 1, .max_rows = 1};
  btc_cuda_kv kv = {.kv_heads = 2, .capacity = 8, .d = 16};
  assert_int_not_equal(btc_cuda_attend_causal(&a, &kv, NULL), 0);
  assert_int_not_equal(btc_cuda_attend_decode(&a, &kv, 8, NULL, NULL, NULL), 0);
  kv.kv_heads = 3;
  kv.d = 200;
  assert_int_not_equal(btc_cuda_attend_causal(&a, &kv, NULL), 0);
  assert_int_not_equal(btc_cuda_attend_decode(&a, &kv, 8, NULL, NULL, NULL), 0);
  a.items = 0;
  assert_int_equal(btc_cuda_attend_causal(&a, &kv, NULL), 0);
  assert_int_equal(btc_cuda_attend_decode(&a, &kv, 8, NULL, NULL, NULL), 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_causal_attention_equals_plain),  cmocka_unit_test(test_causal_row_does_not_see_others),
    cmocka_unit_test(test_causal_attention_of_some_items), cmocka_unit_test(test_decode_attention_equals_plain),
    cmocka_unit_test(test_decode_row_does_not_see_others), cmocka_unit_test(test_cache_attention_refuses_what_it_cannot),
};

BTC_TEST_MAIN(tests)
