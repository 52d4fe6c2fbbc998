/*
 * attention*.cu against the plain operators: every width and type, rows with gaps of NaN between them, sequences alone and with
 * others.
 *
 * Bounds. Values are in [-1, 1) and the scale is d^-1/2, so a score is at most sqrt(d) and its f32 sum errs by less than
 * d sqrt(d) UNIT, which is the relative error of a weight, once above and once below the fraction line. On the tensor cores
 * weights are rounded to bf16, each by at most UNIT_BF16 / 2 with a sign of its own: over n keys of about the same weight that
 * adds errors of UNIT_BF16 / sqrt(12 n) (one sigma, |v| < 1), of which the bound allows seven. A missing key would cost 1/n.
 */
#include "gpu.h"

typedef struct shape {
  int64_t n_seq, t, heads, d, gap; /* gap: elements behind each row */
  bool v_is_k;
} shape;

static const shape shapes[] = {
    {1, 1, 1, 8, 0, false},    {2, 5, 3, 24, 8, false},    {1, 33, 2, 64, 0, true},  {2, 65, 2, 72, 0, false},
    {1, 130, 1, 80, 8, false}, {1, 70, 2, 128, 0, true},   {1, 64, 2, 13, 3, false}, {3, 17, 1, 7, 1, false},
    {1, 31, 2, 72, 1, false},  {1, 129, 3, 32, 16, false}, {1, 128, 1, 40, 0, true}, {1, 9, 1, 66, 0, false},
    {1, 257, 1, 64, 8, true},  {1, 12, 2, 127, 0, false},
};

static double f32_error(double d) {
  return (2 * (d + 16) * sqrt(d) + 64) * UNIT;
}

static double bound_of(btc_cuda_type in, btc_cuda_type out, double d, double keys, double value) {
  double bound = f32_error(d) + keys * UNIT;
  if (in == BTC_CUDA_BF16) bound += 2.02 * UNIT_BF16 / sqrt(keys);
  return out == BTC_CUDA_BF16 ? bound + UNIT_BF16 * fabs(value) : bound;
}

/* Rows of `width` random elements with `gap` elements of NaN behind each; *wide: the same as f32. */
static gpu_array rows_with_gaps(btc_cuda_type t, int64_t rows, int64_t width, int64_t gap, float **wide) {
  int64_t stride = width + gap;
  size_t size = t == BTC_CUDA_F32 ? 4 : 2;
  gpu_array a = gpu_new((size_t)(rows * stride) * size, 0);
  *wide = malloc((size_t)(rows * stride) * sizeof **wide);
  assert_non_null(*wide);
  for (int64_t i = 0; i < rows * stride; i++) {
    float x = i % stride < width ? random_float() : NAN;
    uint16_t h = btc_f32_to_bf16(x);
    if (t == BTC_CUDA_BF16) x = btc_bf16_to_f32(h);
    (*wide)[i] = x;
    memcpy((char *)a.host + (size_t)i * size, t == BTC_CUDA_F32 ? (const void *)&x : &h, size);
  }
  gpu_put(&a);
  return a;
}

static float element(const gpu_array *a, btc_cuda_type t, int64_t i) {
  return t == BTC_CUDA_F32 ? gpu_f32(a)[i] : btc_bf16_to_f32(((const uint16_t *)a->host)[i]);
}

typedef struct attention_case {
  shape s;
  btc_cuda_attention a;
  gpu_array q, k, v, o;
  float *fq, *fk, *fv;
  int64_t stride;
} attention_case;

static void make_case(attention_case *c, const shape *s, btc_cuda_type in, btc_cuda_type out) {
  int64_t rows = s->n_seq * s->t, width = s->heads * s->d;
  c->s = *s;
  c->stride = width + s->gap;
  c->q = rows_with_gaps(in, rows, width, s->gap, &c->fq);
  c->k = rows_with_gaps(in, rows, width, s->gap, &c->fk);
  c->v = rows_with_gaps(in, rows, width, s->gap, &c->fv);
  c->o = gpu_new((size_t)(rows * c->stride) * (out == BTC_CUDA_F32 ? 4 : 2), 0);
  c->a = (btc_cuda_attention){.q = c->q.device,
                              .k = c->k.device,
                              .v = s->v_is_k ? c->k.device : c->v.device,
                              .o = c->o.device,
                              .in = in,
                              .out = out,
                              .q_stride = c->stride,
                              .k_stride = c->stride,
                              .v_stride = c->stride,
                              .o_stride = c->stride,
                              .n_seq = s->n_seq,
                              .t = s->t,
                              .heads = s->heads,
                              .d = s->d,
                              .scale = 1 / sqrtf((float)s->d)};
}

static void free_case(attention_case *c) {
  gpu_free(&c->q);
  gpu_free(&c->k);
  gpu_free(&c->v);
  gpu_free(&c->o);
  free(c->fq);
  free(c->fk);
  free(c->fv);
}

static void check_case(const shape *s, btc_cuda_type in, btc_cuda_type out) {
  gpu_case("sequences %lld, tokens %lld, heads %lld, width %lld, gap %lld, in %d, out %d", (long long)s->n_seq, (long long)s->t,
           (long long)s->heads, (long long)s->d, (long long)s->gap, (int)in, (int)out);
  attention_case c;
  make_case(&c, s, in, out);
  int64_t rows = s->n_seq * s->t, width = s->heads * s->d, n = rows * c.stride;
  GPU(btc_cuda_attend(&c.a, NULL));
  gpu_get(&c.o);
  float *want = malloc((size_t)n * sizeof *want);
  assert_non_null(want);
  btc_backend b = plain_backend(BTC_COMPUTE_F32);
  btc_attention plain = {.q = c.fq,
                         .k = c.fk,
                         .v = s->v_is_k ? c.fk : c.fv,
                         .o = want,
                         .q_stride = c.stride,
                         .k_stride = c.stride,
                         .v_stride = c.stride,
                         .o_stride = c.stride,
                         .n_seq = s->n_seq,
                         .t = s->t,
                         .heads = s->heads,
                         .d = s->d,
                         .scale = c.a.scale};
  b.table->attention(&b, &plain);
  for (int64_t i = 0; i < n; i++) {
    float got = element(&c.o, out, i);
    if (i % c.stride >= width)
      assert_true(isnan(got)); /* a gap was written */
    else
      assert_close(got, want[i], bound_of(in, out, (double)s->d, (double)s->t, want[i]), "attention", i);
  }
  free(want);
  free_case(&c);
}

static void check_all(btc_cuda_type in) {
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) check_case(&shapes[i], in, i % 2 ? BTC_CUDA_BF16 : BTC_CUDA_F32);
}

static void test_attention_bf16_equals_plain(void **state) {
  (void)state;
  GPU_REQUIRED();
  check_all(BTC_CUDA_BF16);
}

static void test_attention_f32_equals_plain(void **state) {
  (void)state;
  GPU_REQUIRED();
  check_all(BTC_CUDA_F32);
}

static void test_attention_of_an_image(void **state) {
  (void)state;
  GPU_REQUIRED();
  check_case(&(shape){1, 729, 1, 72, 0, false}, BTC_CUDA_BF16, BTC_CUDA_F32);
}

/* Each sequence alone has the bits it has among others, and queries do not see their neighbours. */
static void check_alone(btc_cuda_type in) {
  gpu_case("sequences 3 and 1, tokens 77, heads 2, width 72, in %d", (int)in);
  attention_case c;
  make_case(&c, &(shape){3, 77, 2, 72, 0, false}, in, BTC_CUDA_F32);
  GPU(btc_cuda_attend(&c.a, NULL));
  gpu_get(&c.o);
  int64_t n = c.s.t * c.stride;
  size_t size = in == BTC_CUDA_F32 ? 4 : 2;
  for (int64_t s = 0; s < c.s.n_seq; s++) {
    gpu_array o = gpu_new((size_t)n * 4, 0);
    btc_cuda_attention one = c.a;
    one.n_seq = 1;
    one.q = (const char *)c.a.q + (size_t)(s * n) * size;
    one.k = (const char *)c.a.k + (size_t)(s * n) * size;
    one.v = (const char *)c.a.v + (size_t)(s * n) * size;
    one.o = o.device;
    GPU(btc_cuda_attend(&one, NULL));
    gpu_get(&o);
    assert_same_bits(o.host, gpu_f32(&c.o) + s * n, n, "a sequence alone");
    gpu_free(&o);
  }
  free_case(&c);
}

static void test_attention_sequence_alone_has_its_bits(void **state) {
  (void)state;
  GPU_REQUIRED();
  check_alone(BTC_CUDA_BF16);
  check_alone(BTC_CUDA_F32);
}

/* Scores far apart: tops that grow from block to block, weights that vanish. One key holds nearly all the weight, so its rounding
 * does not average out. */
static void test_attention_of_sharp_scores(void **state) {
  (void)state;
  GPU_REQUIRED();
  for (int type = 0; type < 2; type++) {
    attention_case c;
    make_case(&c, &(shape){1, 200, 1, 64, 0, false}, type ? BTC_CUDA_BF16 : BTC_CUDA_F32, BTC_CUDA_F32);
    c.a.scale = 8;
    GPU(btc_cuda_attend(&c.a, NULL));
    gpu_get(&c.o);
    float *want = malloc(c.o.bytes);
    assert_non_null(want);
    btc_backend b = plain_backend(BTC_COMPUTE_F32);
    btc_attention plain = {.q = c.fq, .k = c.fk, .v = c.fv, .o = want, .n_seq = 1, .t = 200, .heads = 1, .d = 64, .scale = 8};
    plain.q_stride = plain.k_stride = plain.v_stride = plain.o_stride = 64;
    b.table->attention(&b, &plain);
    double bound = 64 * f32_error(64) + (type ? 2 * UNIT_BF16 : 0); /* scores are 64 times those of scale 1/8 */
    for (int64_t i = 0; i < 200 * 64; i++) assert_close(gpu_f32(&c.o)[i], want[i], bound, "sharp", i);
    free(want);
    free_case(&c);
  }
}

static void test_attention_refuses_what_it_cannot(void **state) {
  (void)state;
  GPU_REQUIRED();
  btc_cuda_attention a = {.in = BTC_CUDA_BF16, .n_seq = 1, .t = 1, .heads = 1, .d = 129};
  assert_int_not_equal(btc_cuda_attend(&a, NULL), 0);
  a.d = 64;
  a.in = BTC_CUDA_F16;
  assert_int_not_equal(btc_cuda_attend(&a, NULL), 0);
  a.n_seq = 0;
  assert_int_equal(btc_cuda_attend(&a, NULL), 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_attention_bf16_equals_plain), cmocka_unit_test(test_attention_f32_equals_plain),
    cmocka_unit_test(test_attention_of_an_image),       cmocka_unit_test(test_attention_sequence_alone_has_its_bits),
    cmocka_unit_test(test_attention_of_sharp_scores),   cmocka_unit_test(test_attention_refuses_what_it_cannot),
};

BTC_TEST_MAIN(tests)
