/*
 * Pairs that a CUDA device computes together (tests/gpu_host/fake): visual blocks, change maps and every tensor in between are
 * those of each item alone, bit for bit.
 */
#include "test.h"

#include <stdio.h>

#include "engine/stage.h"

enum { MOST = 16, NAMES = 32 };

/* What a tap saw of one name, one call after another. */
typedef struct seen {
  char name[48];
  float *data;
  size_t n;
} seen;

typedef struct record {
  seen tensor[NAMES];
  int n;
  float *cosine; /* [MOST, T] */
  float *out;
} record;

static void on_tensor(void *user, const char *name, const float *data, int64_t rows, int64_t cols) {
  record *r = user;
  int i = 0;
  while (i < r->n && strcmp(r->tensor[i].name, name) != 0) i++;
  assert_true(i < NAMES);
  seen *s = &r->tensor[i];
  if (i == r->n) {
    snprintf(s->name, sizeof s->name, "%s", name);
    r->n++;
  }
  size_t n = (size_t)(rows * cols);
  s->data = realloc(s->data, (s->n + n) * sizeof *s->data);
  assert_non_null(s->data);
  memcpy(s->data + s->n, data, n * sizeof *data);
  s->n += n;
}

static float *random_floats(size_t n, uint32_t x) {
  float *p = malloc(n * sizeof *p);
  assert_non_null(p);
  for (size_t i = 0; i < n; i++) {
    x = x * 1664525u + 1013904223u;
    p[i] = (float)(x >> 8) * 0x1p-23f - 1.0f;
  }
  return p;
}

static float *zeros(size_t n) {
  float *p = calloc(n, sizeof *p);
  assert_non_null(p);
  return p;
}

typedef struct scene {
  btc_model *m;
  btc_stage *s;
  int change, n;
  btc_stage_item items[MOST];
  float *features;
} scene;

/* images[i] of item i. */
static void begin(scene *c, const char *dir, btc_compute compute, const int *images, int n) {
  btc_error err = {0};
  *c = (scene){.n = n};
  if (btc_model_open(shared_path(dir), &c->m, &err) != BTC_OK) fail_msg("%s", err.message);
  c->change = (int)c->m->cfg->vision.blocks + 1;
  btc_stage_options o = {.backend = "cuda", .threads = 1, .compute = compute, .slots = n};
  if (btc_stage_create(c->m, c->change, c->change + 2, &o, &c->s, &err) != BTC_OK) fail_msg("%s", err.message);
  for (int i = 0; i < n; i++) c->items[i] = (btc_stage_item){.n_images = images[i], .positions = 1};
  if (btc_stage_reserve(c->s, c->items, n, 8, &err) != BTC_OK) fail_msg("%s", err.message);
  c->features = random_floats((size_t)btc_flow_floats(c->m, c->change, c->items, n, false), 7);
}

static void end(scene *c) {
  free(c->features);
  btc_stage_destroy(&c->s);
  btc_model_close(&c->m);
}

/* Items `first` to first+n at once. */
static void run(scene *c, int first, int n, bool taps, record *r) {
  btc_error err = {0};
  const float *in = c->features + btc_flow_floats(c->m, c->change, c->items, first, false);
  float *out = r->out + btc_flow_floats(c->m, c->change + 1, c->items, first, false);
  for (int i = first; i < first + n; i++) c->items[i].cosine = c->items[i].n_images == 2 ? r->cosine + i * c->m->tokens : NULL;
  btc_stage_set_tap(c->s, taps ? on_tensor : NULL, r);
  if (btc_stage_prefill_part(c->s, c->change, c->change + 1, c->items + first, n, in, out, &err) != BTC_OK)
    fail_msg("%s", err.message);
}

static void record_new(const scene *c, record *r) {
  *r = (record){.cosine = zeros((size_t)(MOST * c->m->tokens)),
                .out = zeros((size_t)btc_flow_floats(c->m, c->change + 1, c->items, c->n, false))};
}

static void record_free(record *r) {
  for (int i = 0; i < r->n; i++) free(r->tensor[i].data);
  free(r->cosine);
  free(r->out);
}

static void assert_same(const scene *c, const record *a, const record *b) {
  assert_int_equal(a->n, b->n);
  for (int i = 0; i < a->n; i++) {
    assert_string_equal(a->tensor[i].name, b->tensor[i].name);
    assert_int_equal(a->tensor[i].n, b->tensor[i].n);
    if (memcmp(a->tensor[i].data, b->tensor[i].data, a->tensor[i].n * sizeof(float)) != 0)
      fail_msg("%s is not that of the items alone", a->tensor[i].name);
  }
  assert_memory_equal(a->cosine, b->cosine, (size_t)(MOST * c->m->tokens) * sizeof(float));
  assert_memory_equal(a->out, b->out, (size_t)btc_flow_floats(c->m, c->change + 1, c->items, c->n, false) * sizeof(float));
}

static void check(const char *dir, btc_compute compute, const int *images, int n) {
  scene c;
  record alone, together;
  skip_without_shared();
  begin(&c, dir, compute, images, n);
  record_new(&c, &alone);
  record_new(&c, &together);
  for (int i = 0; i < n; i++) run(&c, i, 1, true, &alone);
  run(&c, 0, n, true, &together);
  assert_true(alone.n > 5);
  assert_same(&c, &alone, &together);
  record_free(&alone);
  record_free(&together);
  end(&c);
}

/* Runs of pairs between images and the frames of a video. */
static const int mixed[] = {2, 2, 1, 2, 2, 2, 3, 1, 2};
enum { MIXED = sizeof mixed / sizeof mixed[0] };

static void test_cuda_pairs_together_are_pairs_alone_f32(void **state) {
  (void)state;
  check("vectors/pair-l2/ckpt", BTC_COMPUTE_F32, mixed, MIXED);
}

static void test_cuda_pairs_together_are_pairs_alone_bf16(void **state) {
  (void)state;
  check("vectors/pair-l2/ckpt", BTC_COMPUTE_BF16, mixed, MIXED);
  check("vectors/pair-l0/ckpt", BTC_COMPUTE_BF16, mixed, MIXED);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_cuda_pairs_together_are_pairs_alone_f32),
    cmocka_unit_test(test_cuda_pairs_together_are_pairs_alone_bf16),
};

BTC_TEST_MAIN(tests)
