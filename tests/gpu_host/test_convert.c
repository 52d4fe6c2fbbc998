/* convert.cu against ops/dtype.c, bit for bit. */
#include "gpu.h"

static void check(btc_dtype t, int64_t n) {
  gpu_case("type %d, %lld elements", (int)t, (long long)n);
  gpu_array x = gpu_stored(t, n), y = gpu_new((size_t)n * 4, 0), h = gpu_new((size_t)n * 2, 0);
  float *want = malloc((size_t)n * sizeof *want);
  assert_non_null(want);
  btc_to_f32(want, x.host, t, (size_t)n);
  GPU(btc_cuda_to_f32(y.device, x.device, (btc_cuda_type)t, n, NULL));
  GPU(btc_cuda_to_bf16(h.device, x.device, (btc_cuda_type)t, n, NULL));
  gpu_get(&y);
  gpu_get(&h);
  assert_same_bits(y.host, want, n, "to f32");
  assert_rounded(&h, want, n, "to bf16");
  free(want);
  gpu_free(&x);
  gpu_free(&y);
  gpu_free(&h);
}

static void test_convert_equals_dtype(void **state) {
  (void)state;
  GPU_REQUIRED();
  static const int64_t sizes[] = {1, 7, 8, 9, 2047, 2048, 2049, 5003};
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
    for (int t = BTC_F32; t <= BTC_BF16; t++) check((btc_dtype)t, sizes[i]);
}

/* Rows of odd widths begin where 16 bytes cannot be read at once. */
static void test_convert_of_any_alignment(void **state) {
  (void)state;
  GPU_REQUIRED();
  enum { N = 2049, MOST_SKEW = 9 };
  for (int t = BTC_F32; t <= BTC_BF16; t++)
    for (int from = 0; from < MOST_SKEW; from += 3)
      for (int to = 0; to < MOST_SKEW; to += 4) {
        gpu_array x = gpu_stored((btc_dtype)t, N + MOST_SKEW), y = gpu_new((N + MOST_SKEW) * 4, 0),
                  h = gpu_new((N + MOST_SKEW) * 2, 0);
        const size_t size = btc_dtype_size((btc_dtype)t);
        float want[N];
        btc_to_f32(want, (char *)x.host + (size_t)from * size, (btc_dtype)t, N);
        GPU(btc_cuda_to_f32((float *)y.device + to, (char *)x.device + (size_t)from * size, (btc_cuda_type)t, N, NULL));
        GPU(btc_cuda_to_bf16((uint16_t *)h.device + to, (char *)x.device + (size_t)from * size, (btc_cuda_type)t, N, NULL));
        gpu_get(&y);
        gpu_get(&h);
        assert_same_bits(gpu_f32(&y) + to, want, N, "to f32");
        for (int i = 0; i < N; i++) assert_int_equal(((uint16_t *)h.host)[to + i], btc_f32_to_bf16(want[i]));
        gpu_free(&x);
        gpu_free(&y);
        gpu_free(&h);
      }
}

/* Ties, the carry into infinity, subnormal numbers, infinities: every f16 and bf16 pattern but NaN, and f32 neighbours of ties. */
static void test_convert_every_pattern(void **state) {
  (void)state;
  GPU_REQUIRED();
  enum { N = 65536 };
  for (int t = BTC_F16; t <= BTC_BF16; t++) {
    gpu_array x = gpu_new(2 * N, 0), y = gpu_new(4 * N, 0);
    for (int i = 0; i < N; i++) ((uint16_t *)x.host)[i] = (uint16_t)i;
    gpu_put(&x);
    GPU(btc_cuda_to_f32(y.device, x.device, (btc_cuda_type)t, N, NULL));
    gpu_get(&y);
    for (int i = 0; i < N; i++) {
      float want;
      btc_to_f32(&want, (uint16_t *)x.host + i, (btc_dtype)t, 1);
      if (isnan(want))
        assert_true(isnan(gpu_f32(&y)[i]));
      else
        assert_same_bits(gpu_f32(&y) + i, &want, 1, "pattern");
    }
    gpu_free(&x);
    gpu_free(&y);
  }
}

static void test_convert_rounds_to_even(void **state) {
  (void)state;
  GPU_REQUIRED();
  enum { N = 4 * 4096 };
  gpu_array x = gpu_new(4 * N, 0), h = gpu_new(2 * N, 0);
  for (int i = 0; i < N; i++) {
    static const uint32_t low[4] = {0x7fff, 0x8000, 0x8001, 0xffff};
    uint32_t u = (random_u32() & 0xffff0000) | low[i % 4];
    if ((u & 0x7f800000) == 0x7f800000) u &= 0xbfffffff; /* no NaN here */
    memcpy(gpu_f32(&x) + i, &u, sizeof u);
  }
  gpu_put(&x);
  GPU(btc_cuda_to_bf16(h.device, x.device, BTC_CUDA_F32, N, NULL));
  gpu_get(&h);
  assert_rounded(&h, x.host, N, "tie");
  gpu_free(&x);
  gpu_free(&h);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_convert_equals_dtype),
    cmocka_unit_test(test_convert_of_any_alignment),
    cmocka_unit_test(test_convert_every_pattern),
    cmocka_unit_test(test_convert_rounds_to_even),
};

BTC_TEST_MAIN(tests)
