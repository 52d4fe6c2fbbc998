/* sample.cu against engine/sampler.c: the same ids from the same draws, ties and broken rows included; log-probabilities close. */
#include "engine/sampler.h"
#include "gpu.h"

enum { M = 4 };

/* Rows of few different values have many ties; the others have none. */
static void fill(float *x, int64_t n, int64_t row) {
  for (int64_t i = 0; i < n; i++) x[i] = row % 2 ? (float)random_size(-6, 6) * 0.5f : random_float() * 9;
  if (row % 3 == 2)
    for (int64_t i = 0; i < n; i += 2) x[i] = -INFINITY; /* never drawn */
}

/* The rows lie further apart than they are long, as those of a head with more rows than there are pieces. */
static void check(int64_t vocab, const btc_sampling *g) {
  gpu_case("vocabulary %lld, temperature %g, top-p %g, top-k %d", (long long)vocab, (double)g->temperature, (double)g->top_p,
           (int)g->top_k);
  const int64_t stride = vocab + 3;
  gpu_array x = gpu_new((size_t)(M * stride) * 4, 0), scratch = gpu_new(btc_cuda_sample_scratch(M, vocab), 0),
            settings = gpu_new(M * sizeof(btc_cuda_sampling), 0), picks = gpu_new(M * sizeof(btc_cuda_pick), 0);
  btc_sampler *sampler;
  btc_error err;
  assert_int_equal(btc_sampler_create(vocab, &sampler, &err), BTC_OK);
  int32_t want[M];
  double logprob[M];
  for (int i = 0; i < M; i++) {
    float *logits = gpu_f32(&x) + i * stride;
    fill(logits, vocab, vocab > 2 ? i : 0);
    for (int64_t k = vocab; k < stride; k++) logits[k] = 1e9f; /* never looked at */
    btc_rng rng, same;
    btc_rng_seed(&rng, random_u32(), (uint64_t)i);
    same = rng;
    ((btc_cuda_sampling *)settings.host)[i] = (btc_cuda_sampling){g->temperature, g->top_p, g->top_k, 0, btc_rng_uniform(&same)};
    if (btc_sampler_pick(sampler, logits, g, &rng, &want[i], &logprob[i], &err) != BTC_OK) fail_msg("%s", err.message);
  }
  gpu_put(&x);
  gpu_put(&settings);
  GPU(btc_cuda_sample(picks.device, x.device, stride, M, vocab, settings.device, scratch.device, NULL));
  gpu_get(&picks);
  for (int i = 0; i < M; i++) {
    btc_cuda_pick p = ((btc_cuda_pick *)picks.host)[i];
    assert_int_equal(p.broken, 0);
    if (p.id != want[i]) fail_msg("vocabulary %lld, row %d: id %d, want %d", (long long)vocab, i, p.id, want[i]);
    assert_close(p.logprob, logprob[i], 1e-6 * (1 + fabs(logprob[i])), "logprob", i); /* expf: 2 units of 2^-24 */
  }
  btc_sampler_destroy(&sampler);
  gpu_array *arrays[] = {&x, &scratch, &settings, &picks};
  for (int i = 0; i < 4; i++) gpu_free(arrays[i]);
}

static const int64_t vocabularies[] = {1, 2, 33, 255, 256, 257, 1000, 3003};
enum { VOCABULARIES = sizeof vocabularies / sizeof vocabularies[0] };

static void test_sample_greedy(void **state) {
  (void)state;
  GPU_REQUIRED();
  for (int i = 0; i < VOCABULARIES; i++) check(vocabularies[i], &(btc_sampling){.temperature = 0, .top_p = 1});
}

static void test_sample_temperature_top_k_top_p(void **state) {
  (void)state;
  GPU_REQUIRED();
  static const btc_sampling ways[] = {
      {.temperature = 1, .top_p = 1, .top_k = 0},         {.temperature = 0.7f, .top_p = 1, .top_k = 50},
      {.temperature = 2, .top_p = 0.9f, .top_k = 50},     {.temperature = 0.2f, .top_p = 0.5f, .top_k = 0},
      {.temperature = 1e-30f, .top_p = 0.9f, .top_k = 3}, {.temperature = 100, .top_p = 0.99f, .top_k = 7},
      {.temperature = 1, .top_p = 1e-6f, .top_k = 0},     {.temperature = 1, .top_p = 1, .top_k = 1},
  };
  for (int i = 0; i < VOCABULARIES; i++)
    for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++) check(vocabularies[i], &ways[w]);
}

static void test_sample_broken_rows(void **state) {
  (void)state;
  GPU_REQUIRED();
  enum { VOCAB = 700 };
  gpu_array x = gpu_random(4 * VOCAB), picks = gpu_new(4 * sizeof(btc_cuda_pick), 0);
  float *logits = gpu_f32(&x);
  logits[300] = NAN;
  logits[650] = INFINITY;
  logits[VOCAB + 650] = INFINITY;
  for (int i = 0; i < VOCAB; i++) logits[2 * VOCAB + i] = -INFINITY;
  gpu_put(&x);
  GPU(btc_cuda_sample(picks.device, x.device, VOCAB, 4, VOCAB, NULL, NULL, NULL));
  gpu_get(&picks);
  const btc_cuda_pick *p = picks.host;
  assert_int_equal(p[0].broken, 1);
  assert_int_equal(p[0].id, 300);
  assert_int_equal(p[1].broken, 1);
  assert_int_equal(p[1].id, 650);
  assert_int_equal(p[2].broken, 2);
  assert_int_equal(p[3].broken, 0);
  gpu_free(&x);
  gpu_free(&picks);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_sample_greedy),
    cmocka_unit_test(test_sample_temperature_top_k_top_p),
    cmocka_unit_test(test_sample_broken_rows),
};

BTC_TEST_MAIN(tests)
