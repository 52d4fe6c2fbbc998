/* Both attentions, the cache and the rotary embedding: the fast backend against the plain loops, and the row promise. */
#include "ops_fixture.h"

/* Scores are sums of d products, exact to (d+2) UNIT sum|q k|, here at most d; times the scale below 1 they move e^score by that
 * much relative. e^x itself is good to 4 UNIT and the running sums of t weights to (t/4 + t/64 + 8) UNIT (a lane holds at most
 * every fourth term). Values are below 1. */
static double bound(int64_t d, int64_t t, double scale) {
  return UNIT * (2.1 * (double)(d + 2) * (double)d * scale / 3 + 2 * (double)t + 32);
}

typedef struct sequence {
  int64_t n_seq, t, heads, d, stride, size;
  float *q, *k, *v;
} sequence;

static sequence sequence_new(int64_t n_seq, int64_t t, int64_t heads, int64_t d, int64_t extra) {
  sequence s = {n_seq, t, heads, d, heads * d + extra, 0, NULL, NULL, NULL};
  s.size = n_seq * t * s.stride;
  s.q = buffer_random(s.size);
  s.k = buffer_random(s.size);
  s.v = buffer_random(s.size);
  return s;
}

static void sequence_free(sequence *s) {
  buffer_free(s->q, s->size);
  buffer_free(s->k, s->size);
  buffer_free(s->v, s->size);
}

static btc_attention attention_of(const sequence *s, float *o, bool v_is_k) {
  return (btc_attention){
      s->q,     s->k, v_is_k ? s->k : s->v,      o,    s->stride, s->stride, s->stride, s->stride, s->n_seq, s->t,
      s->heads, s->d, 1.0f / sqrtf((float)s->d), false};
}

static void check_attention(btc_backend *fast, btc_backend *plain, int64_t n_seq, int64_t t, int64_t heads, int64_t d,
                            bool v_is_k) {
  sequence s = sequence_new(n_seq, t, heads, d, 3);
  float *want = buffer_new(s.size), *got = buffer_new(s.size);
  btc_attention a = attention_of(&s, want, v_is_k);
  btc_op_attention(plain, &a);
  a.o = got;
  btc_op_attention(fast, &a);
  char what[64];
  snprintf(what, sizeof what, "n %lld t %lld heads %lld d %lld", (long long)n_seq, (long long)t, (long long)heads, (long long)d);
  for (int64_t i = 0; i < n_seq * t; i++) {
    for (int64_t c = 0; c < heads * d; c++)
      assert_close(got[i * s.stride + c], want[i * s.stride + c], bound(d, t, a.scale), what, i * s.stride + c);
    for (int64_t c = heads * d; c < s.stride; c++)
      assert_true(isnan(got[i * s.stride + c])); /* between the rows nothing is written */
  }
  buffer_free(want, s.size);
  buffer_free(got, s.size);
  sequence_free(&s);
}

static void test_ops_attention_follows_plain(void **state) {
  (void)state;
  btc_backend *fast = backend_new("cpu", 2, BTC_COMPUTE_F32, 64), *plain = backend_new("plain", 1, BTC_COMPUTE_F32, 64);
  check_attention(fast, plain, 1, 1, 1, 1, false);
  check_attention(fast, plain, 2, 9, 4, 9, false);
  check_attention(fast, plain, 2, 16, 2, 64, true);
  check_attention(fast, plain, 1, 49, 3, 72, false);
  check_attention(fast, plain, 1, 200, 2, 17, true);
  check_attention(fast, plain, 1, 300, 1, 72, false); /* more than one block of keys and of queries */
  check_attention(fast, plain, 1, 7, 1, 256, false);
  check_attention(fast, plain, 1, 70, 1, 260, true); /* wider than the blocked kernel */
  for (int i = 0; i < 12; i++)
    check_attention(fast, plain, random_size(1, 2), random_size(1, 90), random_size(1, 3), random_size(1, 130), random_u32() & 1);
  btc_backend_destroy(&fast);
  btc_backend_destroy(&plain);
}

/* Large scores: the running maximum must keep e^x from overflowing; one key far ahead of the others takes all. */
static void test_ops_attention_large_scores(void **state) {
  (void)state;
  btc_backend *fast = backend_new("cpu", 2, BTC_COMPUTE_F32, 64);
  sequence s = sequence_new(1, 600, 1, 24, 0);
  for (int64_t i = 0; i < s.size; i++) s.q[i] = 30 * (s.q[i] > 0 ? 1.0f : -1.0f), s.k[i] = s.k[i] * 0.1f;
  int64_t chosen = 431;
  for (int64_t c = 0; c < 24; c++) s.k[chosen * 24 + c] = s.q[5 * 24 + c];
  float *o = buffer_new(s.size);
  btc_attention a = attention_of(&s, o, false);
  btc_op_attention(fast, &a);
  for (int64_t i = 0; i < s.size; i++) assert_true(fabsf(o[i]) <= 1.0001f);
  for (int64_t c = 0; c < 24; c++) assert_close(o[5 * 24 + c], s.v[chosen * 24 + c], 4 * UNIT, "the chosen key", c);
  buffer_free(o, s.size);
  sequence_free(&s);
  btc_backend_destroy(&fast);
}

static void test_ops_attention_rows_are_independent(void **state) {
  (void)state;
  sequence s = sequence_new(3, 190, 2, 33, 1);
  float *want = buffer_new(s.size), *got = buffer_new(s.size);
  for (int threads = 1; threads <= 3; threads++) {
    btc_backend *b = backend_new("cpu", threads, BTC_COMPUTE_F32, 64);
    btc_attention a = attention_of(&s, threads == 1 ? want : got, false);
    btc_op_attention(b, &a);
    if (threads > 1) assert_same_bits(got, want, 1, "first");
    for (int64_t seq = 0; seq < 3; seq++) { /* each sequence alone */
      btc_attention one = attention_of(&s, got, false);
      int64_t at = seq * s.t * s.stride;
      one.n_seq = 1;
      one.q += at, one.k += at, one.v += at, one.o += at;
      btc_op_attention(b, &one);
    }
    for (int64_t i = 0; i < s.n_seq * s.t; i++) assert_same_bits(got + i * s.stride, want + i * s.stride, s.heads * s.d, "alone");
    btc_backend_destroy(&b);
  }
  buffer_free(want, s.size);
  buffer_free(got, s.size);
  sequence_free(&s);
}

/* ---- cache and causal attention ---- */

typedef struct cache {
  btc_kv kv;
  int64_t floats;
  float *k, *v;
} cache;

static cache cache_new(btc_dtype type, int64_t kv_heads, int64_t capacity, int64_t d) {
  cache c = {.floats = kv_heads * capacity * d};
  c.k = buffer_new(c.floats); /* NaN where nothing was stored: must never be read. In bf16 the upper half stays unused. */
  c.v = buffer_new(c.floats);
  c.kv = (btc_kv){c.k, c.v, type, kv_heads, capacity, d};
  return c;
}

static void cache_free(cache *c) {
  buffer_free(c->k, c->floats);
  buffer_free(c->v, c->floats);
}

static void check_causal(btc_backend *fast, btc_backend *plain, btc_dtype type, int64_t m, int64_t pos, int64_t kv_heads,
                         int64_t group, int64_t d) {
  int64_t total = pos + m, stride = kv_heads * d + 2, heads = kv_heads * group;
  float *k = buffer_random(total * stride), *v = buffer_random(total * stride), *q = buffer_random(m * heads * d);
  cache a = cache_new(type, kv_heads, total + 5, d), b = cache_new(type, kv_heads, total + 5, d);
  btc_op_kv_store(plain, &a.kv, 0, k, stride, v, stride, total);
  btc_op_kv_store(fast, &b.kv, 0, k, stride, v, stride, pos);
  btc_op_kv_store(fast, &b.kv, pos, k + pos * stride, stride, v + pos * stride, stride, m);
  assert_same_bits(a.k, b.k, a.floats, "stored keys");
  assert_same_bits(a.v, b.v, a.floats, "stored values");
  float *want = buffer_new(m * heads * d), *got = buffer_new(m * heads * d), scale = 1.0f / sqrtf((float)d);
  btc_op_attention_causal(plain, want, q, heads * d, m, pos, heads, &a.kv, scale);
  btc_op_attention_causal(fast, got, q, heads * d, m, pos, heads, &b.kv, scale);
  for (int64_t i = 0; i < m * heads * d; i++) assert_close(got[i], want[i], bound(d, total, scale), btc_dtype_name(type), i);
  buffer_free(want, m * heads * d);
  buffer_free(got, m * heads * d);
  buffer_free(k, total * stride);
  buffer_free(v, total * stride);
  buffer_free(q, m * heads * d);
  cache_free(&a);
  cache_free(&b);
}

static void test_ops_attention_causal_follows_plain(void **state) {
  (void)state;
  btc_backend *fast = backend_new("cpu", 2, BTC_COMPUTE_F32, 64), *plain = backend_new("plain", 1, BTC_COMPUTE_F32, 64);
  for (int t = 0; t < 2; t++) {
    btc_dtype type = t ? BTC_BF16 : BTC_F32;
    check_causal(fast, plain, type, 1, 0, 1, 1, 1);
    check_causal(fast, plain, type, 40, 0, 2, 1, 16);
    check_causal(fast, plain, type, 1, 130, 2, 3, 128);
    check_causal(fast, plain, type, 37, 61, 1, 4, 36);
    check_causal(fast, plain, type, 3, 64, 2, 2, 9);
    for (int i = 0; i < 8; i++)
      check_causal(fast, plain, type, random_size(1, 40), random_size(0, 80), random_size(1, 2), random_size(1, 3),
                   random_size(1, 140));
  }
  btc_backend_destroy(&fast);
  btc_backend_destroy(&plain);
}

/* A prefill of all rows, in chunks after a prefix, and row by row as decoding does. */
static void check_chunks(btc_dtype type, int64_t d) {
  enum { M = 150, HEADS = 4, KV = 2 };
  int64_t width = HEADS * d;
  float *k = buffer_random(M * KV * d), *v = buffer_random(M * KV * d), *q = buffer_random(M * width);
  float *want = buffer_new(M * width), *got = buffer_new(M * width);
  cache c = cache_new(type, KV, M, d);
  static const int64_t chunks[] = {M, 35, 16, 1};
  for (int threads = 1; threads <= 3; threads++)
    for (size_t i = 0; i < 4; i++) {
      btc_backend *b = backend_new("cpu", threads, BTC_COMPUTE_F32, 64);
      for (int64_t pos = 0; pos < M; pos += chunks[i]) {
        int64_t m = pos + chunks[i] < M ? chunks[i] : M - pos;
        btc_op_kv_store(b, &c.kv, pos, k + pos * KV * d, KV * d, v + pos * KV * d, KV * d, m);
        btc_op_attention_causal(b, (threads == 1 && i == 0 ? want : got) + pos * width, q + pos * width, width, m, pos, HEADS,
                                &c.kv, 0.2f);
      }
      if (threads > 1 || i) assert_same_bits(got, want, M * width, "chunks");
      btc_backend_destroy(&b);
    }
  cache_free(&c);
  buffer_free(k, M * KV * d);
  buffer_free(v, M * KV * d);
  buffer_free(q, M * width);
  buffer_free(want, M * width);
  buffer_free(got, M * width);
}

static void test_ops_attention_causal_rows_are_independent(void **state) {
  (void)state;
  check_chunks(BTC_F32, 37);
  check_chunks(BTC_BF16, 37);
  check_chunks(BTC_BF16, 128);
}

static void test_ops_rope_follows_plain(void **state) {
  (void)state;
  btc_backend *fast = backend_new("cpu", 2, BTC_COMPUTE_F32, 64), *plain = backend_new("plain", 1, BTC_COMPUTE_F32, 64);
  for (int round = 0; round < 20; round++) {
    int64_t m = round ? random_size(1, 9) : 300, heads = random_size(1, 4), d = 2 * random_size(1, 65), pos = random_size(0, 9);
    int64_t stride = heads * d + 3, table = (pos + m) * (d / 2);
    float *cosine = buffer_random(table), *sine = buffer_random(table), *got = buffer_random(m * stride),
          *want = buffer_new(m * stride);
    memcpy(want, got, (size_t)(m * stride) * sizeof *got);
    btc_op_rope(plain, want, stride, m, heads, d, pos, cosine, sine);
    btc_op_rope(fast, got, stride, m, heads, d, pos, cosine, sine);
    /* two products below 1 and their difference, each rounded */
    for (int64_t i = 0; i < m * stride; i++) assert_close(got[i], want[i], 5 * UNIT, "rope", i);
    buffer_free(cosine, table);
    buffer_free(sine, table);
    buffer_free(got, m * stride);
    buffer_free(want, m * stride);
  }
  btc_backend_destroy(&fast);
  btc_backend_destroy(&plain);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_ops_attention_follows_plain),
    cmocka_unit_test(test_ops_attention_large_scores),
    cmocka_unit_test(test_ops_attention_rows_are_independent),
    cmocka_unit_test(test_ops_attention_causal_follows_plain),
    cmocka_unit_test(test_ops_attention_causal_rows_are_independent),
    cmocka_unit_test(test_ops_rope_follows_plain),
};
BTC_TEST_MAIN(tests)
