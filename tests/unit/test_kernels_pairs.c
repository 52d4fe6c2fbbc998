/*
 * The products in pairs of bf16, which processors with AVX512-BF16 use. Here every instruction set that this machine has runs
 * them, most of them with the instruction spelled out in two multiply-adds: packing, odd ends and blocking are the same text.
 */
#include "kernels/cpu/isa.h"
#include "ops_fixture.h"

static const btc_cpu_isa *isas[3];
static int isa_count;

static int find_isas(void **state) {
  (void)state;
  isas[isa_count++] = &btc_cpu_isa_portable;
  btc_cpu *c;
  assert_int_equal(btc_cpu_create(1, 8, false, &c, NULL), BTC_OK);
  if (c->isa != isas[0]) isas[isa_count++] = c->isa;
#if defined(__x86_64__)
  if (c->isa == &btc_cpu_isa_avx512) isas[isa_count++] = &btc_cpu_isa_avx2;
#endif
  btc_cpu_destroy(c);
  return 0;
}

/* The table runs pairs on this machine: the AVX-512 text has the instruction itself. */
static bool runs_pairs(const btc_cpu_isa *isa) {
#if defined(__x86_64__)
  return isa != &btc_cpu_isa_avx512 || btc_cpu_multiplies_bf16();
#else
  (void)isa;
  return true;
#endif
}

static btc_cpu *kernels(const btc_cpu_isa *isa, int threads, bool bf16, bool pairs) {
  btc_cpu *c;
  assert_int_equal(btc_cpu_create(threads, 1200, bf16, &c, NULL), BTC_OK);
  c->isa = isa;
  c->pairs = pairs;
  return c;
}

static void check(const btc_cpu_isa *isa, bool pairs, btc_dtype type, int64_t m, int64_t n, int64_t k) {
  btc_cpu *c = kernels(isa, 2, true, pairs);
  btc_weight w = weight_random(type, n, k, (int)(k % 4));
  btc_cpu_matrix matrix = {w.data, (btc_cpu_type)type, n, k};
  float *x = buffer_random(m * k), *y = buffer_new(m * n), *one = buffer_new(n);
  btc_cpu_matmul(c, y, x, m, &matrix, NULL);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      double dot = 0, magnitude = 0;
      for (int64_t e = 0; e < k; e++) {
        float stored;
        btc_to_f32(&stored, (const char *)w.data + (size_t)(j * k + e) * btc_dtype_size(type), type, 1);
        double term = (double)btc_bf16_to_f32(btc_f32_to_bf16(x[i * k + e])) * btc_bf16_to_f32(btc_f32_to_bf16(stored));
        dot += term;
        magnitude += fabs(term);
      }
      assert_close(y[i * n + j], dot, (double)(k + 2) * UNIT * magnitude, isa->name, i * n + j); /* as in test_ops_products.c */
    }
  for (int64_t i = 0; i < m; i += 5) { /* the row promise */
    btc_cpu_matmul(c, one, x + i * k, 1, &matrix, NULL);
    assert_same_bits(one, y + i * n, n, isa->name);
  }
  buffer_free(x, m * k);
  buffer_free(y, m * n);
  buffer_free(one, n);
  weight_free(&w, (int)(k % 4));
  btc_cpu_destroy(c);
}

static const btc_dtype types[] = {BTC_F32, BTC_F16, BTC_BF16};

static void test_kernels_products_of_every_isa(void **state) {
  (void)state;
  static const int64_t shapes[][3] = {{1, 1, 1}, {9, 100, 36}, {31, 33, 255}, {15, 70, 513}, {40, 65, 1030}};
  for (int i = 0; i < isa_count; i++)
    for (int pairs = 0; pairs < 2; pairs++)
      for (int t = 0; t < 3; t++)
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
          if (!pairs || runs_pairs(isas[i])) check(isas[i], pairs, types[t], shapes[s][0], shapes[s][1], shapes[s][2]);
}

/* Attention, norms and activations of the sets that are not this machine's best. */
static void test_kernels_rows_of_every_isa(void **state) {
  (void)state;
  enum { N = 53, T = 300, D = 20 };
  float *x = buffer_random(3 * T * D), *first = buffer_new(T * D), *y = buffer_new(T * D);
  for (int i = 0; i < isa_count; i++) {
    btc_cpu *c = kernels(isas[i], 2, false, false);
    btc_cpu_attention a = {x, x + T * D, x + 2 * T * D, i ? y : first, D, D, D, D, 1, T, 1, D, 0.3f};
    btc_cpu_attend(c, &a);
    /* two results within the bound that test_ops_attention.c derives for one, doubled */
    if (i)
      for (int64_t e = 0; e < T * D; e++)
        assert_close(y[e], first[e], 2 * UNIT * (2.1 * 22 * D * 0.3 / 3 + 2 * T + 32), isas[i]->name, e);
    for (int64_t e = 0; e < N; e++) {
      btc_cpu_silu_mul(c, y, x, x + N, e + 1);
      assert_close(y[e], x[e] / (1 + exp(-(double)x[e])) * x[N + e], 12 * UNIT, isas[i]->name, e);
    }
    btc_cpu_destroy(c);
  }
  buffer_free(x, 3 * T * D);
  buffer_free(first, T * D);
  buffer_free(y, T * D);
}

static void round_all(float *y, const float *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = btc_bf16_to_f32(btc_f32_to_bf16(x[i]));
}

/* Attention with rounded operands, in pairs or not, against the plain loops on rounded queries, keys and values: what is left is
 * the weights' rounding, half a unit of 8 bits each, so 2^-8 of values below 1 at most, and what test_ops_attention.c derives for
 * one result. The sums are of weights before rounding. Rows of a sequence are the same beside another sequence and with other
 * threads. */
static void check_attention(const btc_cpu_isa *isa, bool pairs, btc_backend *plain, int64_t t, int64_t heads, int64_t d) {
  int64_t stride = heads * d + 1, size = 2 * t * stride;
  float *x = buffer_random(3 * size), *rounded = buffer_new(3 * size), *want = buffer_new(size), *got = buffer_new(size),
        *one = buffer_new(size);
  float scale = 1.0f / sqrtf((float)d);
  round_all(rounded, x, 3 * size);
  btc_op_attention(plain, &(btc_attention){rounded, rounded + size, rounded + 2 * size, want, stride, stride, stride, stride, 2, t,
                                           heads, d, scale, false});
  btc_cpu *c = kernels(isa, 2, true, pairs), *alone = kernels(isa, 1, true, pairs);
  btc_cpu_attend(c, &(btc_cpu_attention){x, x + size, x + 2 * size, got, stride, stride, stride, stride, 2, t, heads, d, scale});
  double bound = 0x1p-8 + UNIT * (2.1 * (double)((d + 2) * d) * scale / 3 + 2 * (double)t + 32);
  for (int64_t i = 0; i < 2 * t; i++)
    for (int64_t j = 0; j < heads * d; j++)
      assert_close(got[i * stride + j], want[i * stride + j], bound, isa->name, i * stride + j);
  for (int64_t s = 0; s < 2; s++) {
    const float *from = x + s * t * stride;
    btc_cpu_attend(alone, &(btc_cpu_attention){from, from + size, from + 2 * size, one, stride, stride, stride, stride, 1, t, heads,
                                               d, scale});
    for (int64_t i = 0; i < t; i++) assert_same_bits(one + i * stride, got + (s * t + i) * stride, heads * d, isa->name);
  }
  btc_cpu_destroy(c);
  btc_cpu_destroy(alone);
  buffer_free(x, 3 * size);
  buffer_free(rounded, 3 * size);
  buffer_free(want, size);
  buffer_free(got, size);
  buffer_free(one, size);
}

static void test_kernels_attention_of_every_isa(void **state) {
  (void)state;
#ifdef __SANITIZE_THREAD__ /* it looks at how threads share, and takes minutes for the long ones */
  static const int64_t shapes[][3] = {{1, 1, 1}, {9, 2, 9}, {49, 2, 72}};
#else
  static const int64_t shapes[][3] = {{1, 1, 1}, {9, 2, 9}, {49, 2, 72}, {300, 1, 33}, {570, 1, 72}, {31, 1, 256}};
#endif
  btc_backend *plain = backend_new("plain", 1, BTC_COMPUTE_F32, 64);
  for (int i = 0; i < isa_count; i++)
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
      for (int pairs = 0; pairs < 2; pairs++)
        if (!pairs || runs_pairs(isas[i])) check_attention(isas[i], pairs, plain, shapes[s][0], shapes[s][1], shapes[s][2]);
  btc_backend_destroy(&plain);
}

/* One row's attention with every operand rounded, the weights after they were divided by their sum; and, for scale, with the
 * weights left alone. */
static void attend_rounded(double *o, double *loose, const float *q, const float *k, const float *v, int64_t t, int64_t d,
                           float scale) {
  double *p = calloc((size_t)t, sizeof *p), top = -INFINITY, sum = 0;
  assert_non_null(p);
  for (int64_t j = 0; j < t; j++) {
    for (int64_t c = 0; c < d; c++) p[j] += (double)q[c] * k[j * d + c] * scale;
    top = fmax(top, p[j]);
  }
  for (int64_t j = 0; j < t; j++) sum += p[j] = exp(p[j] - top);
  for (int64_t c = 0; c < d; c++) o[c] = loose[c] = 0;
  for (int64_t j = 0; j < t; j++)
    for (int64_t c = 0; c < d; c++) {
      o[c] += (double)btc_bf16_to_f32(btc_f32_to_bf16((float)(p[j] / sum))) * v[j * d + c];
      loose[c] += p[j] / sum * v[j * d + c];
    }
  free(p);
}

/* Where all keys are one block, weights are rounded when they add up to one, as where the softmax is an operator of its own: what
 * is left of the difference are weights that an error in the last place of f32 carries over the middle between two of bf16. */
static void test_kernels_attention_rounds_finished_weights(void **state) {
  (void)state;
  enum { T = 90, D = 40 };
  float *x = buffer_random(3 * T * D), *got = buffer_new(T * D);
  round_all(x, x, 3 * T * D);
  for (int i = 0; i < 2 * isa_count; i++) {
    const btc_cpu_isa *isa = isas[i / 2];
    if (i % 2 && !runs_pairs(isa)) continue;
    btc_cpu *c = kernels(isa, 2, true, i % 2);
    btc_cpu_attend(c, &(btc_cpu_attention){x, x + T * D, x + 2 * T * D, got, D, D, D, D, 1, T, 1, D, 2.0f});
    double off = 0, rounding = 0;
    for (int64_t r = 0; r < T; r++) {
      double want[D], loose[D];
      attend_rounded(want, loose, x + r * D, x + T * D, x + 2 * T * D, T, D, 2.0f);
      for (int64_t e = 0; e < D; e++) {
        off += (got[r * D + e] - want[e]) * (got[r * D + e] - want[e]);
        rounding += (loose[e] - want[e]) * (loose[e] - want[e]);
      }
    }
    if (!(sqrt(off) < 0.2 * sqrt(rounding))) fail_msg("%s: off by %g, rounding is %g", isa->name, sqrt(off), sqrt(rounding));
    btc_cpu_destroy(c);
  }
  buffer_free(x, 3 * T * D);
  buffer_free(got, T * D);
}

/* What packing leaves to the tile: the instruction gives what the two multiply-adds of the emulation give, to the last bit where
 * the products and sums are exact. */
static void test_kernels_pairs_follow_emulation(void **state) {
  (void)state;
  enum { M = 29, N = 70, K = 1030 };
  float *x = buffer_new(M * K), *first = buffer_new(M * N), *y = buffer_new(M * N);
  uint16_t *w = calloc(N * K, sizeof *w);
  assert_non_null(w);
  for (int i = 0; i < M * K; i++) x[i] = (float)(int)(random_u32() % 17) - 8; /* sums stay below 2^24 */
  for (int i = 0; i < N * K; i++) w[i] = btc_f32_to_bf16((float)(int)(random_u32() % 129) - 64);
  btc_cpu_matrix matrix = {w, BTC_CPU_BF16, N, K};
  for (int i = 0; i < isa_count; i++) {
    if (!runs_pairs(isas[i])) continue;
    btc_cpu *c = kernels(isas[i], 2, true, true);
    btc_cpu_matmul(c, i ? y : first, x, M, &matrix, NULL);
    if (i) assert_same_bits(y, first, M * N, isas[i]->name);
    btc_cpu_destroy(c);
  }
  free(w);
  buffer_free(x, M * K);
  buffer_free(first, M * N);
  buffer_free(y, M * N);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_kernels_products_of_every_isa),  cmocka_unit_test(test_kernels_rows_of_every_isa),
    cmocka_unit_test(test_kernels_attention_of_every_isa), cmocka_unit_test(test_kernels_attention_rounds_finished_weights),
    cmocka_unit_test(test_kernels_pairs_follow_emulation),
};

int main(int argc, char **argv) {
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, find_isas, NULL);
}
