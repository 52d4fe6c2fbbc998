/* The line of blocks: cutting it anywhere, and handing the flow tensor over, changes no bit. */
#include "test.h"

#include <stdio.h>

#include "engine/prompt.h"
#include "engine/stage.h"
#include "tiny_checkpoint.h"

enum { ITEMS = 3, STEPS = 4 };

static int32_t prompt[ITEMS][16] = {
    {1, 260, BTC_IMAGE_ID, 261, 13}, {1, BTC_IMAGE_ID, 262}, {1, 263, 264, 265, BTC_IMAGE_ID, 266, 260, 261}};
static const int prompt_n[ITEMS] = {5, 3, 8}, prompt_images[ITEMS] = {2, 1, 2};

static void make_items(const btc_model *m, btc_stage_item items[ITEMS]) {
  for (int i = 0; i < ITEMS; i++)
    items[i] = (btc_stage_item){.n_images = prompt_images[i],
                                .ids = prompt[i],
                                .n_ids = prompt_n[i],
                                .positions = prompt_n[i] - 1 + m->block_tokens,
                                .slot = i};
}

static float *random_pixels(const btc_model *m, const btc_stage_item *items) {
  int64_t n = btc_flow_floats(m, 0, items, ITEMS, false);
  float *p = malloc((size_t)n * sizeof *p);
  uint32_t x = 1;
  assert_non_null(p);
  for (int64_t i = 0; i < n; i++) {
    x = x * 1664525u + 1013904223u;
    p[i] = (float)(x >> 8) * 0x1p-23f - 1.0f;
  }
  return p;
}

/* Prefill and some decode steps through stages cut at `cuts`; all logits go to out [(STEPS + 1), ITEMS, vocab]. */
static void run_cut(const btc_model *m, const int *cuts, int n_stages, int threads, float *out) {
  btc_stage *stage[8] = {0};
  btc_stage_item items[ITEMS];
  btc_error err = {0};
  make_items(m, items);
  int64_t vocab = m->cfg->llm.vocab, most = 0;
  for (int i = 0; i <= btc_block_count(m); i++) {
    int64_t f = btc_flow_floats(m, i, items, ITEMS, false);
    most = f > most ? f : most;
  }
  float *flow[2] = {random_pixels(m, items), malloc((size_t)most * sizeof(float))};
  flow[0] = realloc(flow[0], (size_t)most * sizeof(float));
  for (int s = 0; s < n_stages; s++) {
    btc_stage_options o = {.backend = "cpu", .threads = threads, .slots = ITEMS};
    assert_int_equal(btc_stage_create(m, cuts[s], cuts[s + 1], &o, &stage[s], &err), BTC_OK);
    assert_int_equal(btc_stage_reserve(stage[s], items, ITEMS, 64, &err), BTC_OK);
    assert_int_equal(btc_stage_prefill(stage[s], items, ITEMS, flow[s % 2], flow[(s + 1) % 2], &err), BTC_OK);
  }
  for (int step = 0; step <= STEPS; step++) {
    memcpy(out + step * ITEMS * vocab, flow[n_stages % 2], (size_t)(ITEMS * vocab) * sizeof *out);
    for (int i = 0; i < ITEMS; i++) {
      items[i].past += items[i].positions;
      items[i].positions = 1;
      items[i].token = (int32_t)(260 + step + i);
    }
    for (int s = 0; s < n_stages && step < STEPS; s++)
      assert_int_equal(btc_stage_decode(stage[s], items, ITEMS, flow[s % 2], flow[(s + 1) % 2], &err), BTC_OK);
  }
  for (int s = 0; s < n_stages; s++) btc_stage_destroy(&stage[s]);
  free(flow[0]);
  free(flow[1]);
}

static void test_stage_cut_anywhere_changes_no_bit(void **state) {
  (void)state;
  btc_model *m;
  btc_error err;
  assert_int_equal(btc_model_open(tiny_checkpoint(), &m, &err), BTC_OK);
  const int n = btc_block_count(m);
  size_t floats = (size_t)((STEPS + 1) * ITEMS * m->cfg->llm.vocab);
  float *whole = malloc(floats * sizeof *whole), *cut = malloc(floats * sizeof *cut);
  run_cut(m, (int[]){0, n}, 1, 1, whole);
  for (int at = 1; at < n; at++) {
    run_cut(m, (int[]){0, at, n}, 2, 1 + at % 3, cut);
    if (memcmp(whole, cut, floats * sizeof *whole) != 0) fail_msg("cut before block %d of %d changes the logits", at, n);
  }
  run_cut(m, (int[]){0, 2, 4, 6, n}, 4, 2, cut);
  assert_memory_equal(whole, cut, floats * sizeof *whole);
  free(whole);
  free(cut);
  btc_model_close(&m);
}

/* Visual tokens once, then the prompt from a slot that another item began, in chunks; the head only at the end; then decoding. */
static void run_chunks(const btc_model *m, btc_compute compute, int threads, int64_t chunk, int64_t prefix, float *out) {
  const int n = btc_block_count(m), splice = (int)m->cfg->vision.blocks + 2;
  const int64_t vocab = m->cfg->llm.vocab;
  btc_stage *s;
  btc_stage_item items[ITEMS];
  btc_error err = {0};
  make_items(m, items);
  float *pixels = random_pixels(m, items), *at = pixels, *visual = malloc(65536 * sizeof *visual), *h = malloc(65536 * sizeof *h);
  btc_stage_options o = {.backend = "cpu", .threads = threads, .slots = ITEMS + 1, .compute = compute};
  assert_int_equal(btc_stage_create(m, 0, n, &o, &s, &err), BTC_OK);
  assert_int_equal(btc_stage_reserve(s, items, ITEMS, 64, &err), BTC_OK);
  btc_stage_item before = {.ids = prompt[0], .n_ids = 1, .positions = prefix, .slot = ITEMS}; /* all prompts begin with id 1 */
  if (prefix) assert_int_equal(btc_stage_prefill_part(s, splice, n - 1, &before, 1, NULL, h, &err), BTC_OK);
  for (int i = 0; i < ITEMS; i++) {
    btc_stage_item it = items[i];
    int64_t end = it.positions;
    assert_int_equal(btc_stage_prefill_part(s, 0, 2, &it, 1, at, h, &err), BTC_OK); /* the features may be cut off anywhere too */
    assert_int_equal(btc_stage_prefill_part(s, 2, splice, &it, 1, h, visual, &err), BTC_OK);
    assert_int_equal(btc_stage_copy_slot(s, ITEMS, it.slot, prefix, &err), BTC_OK);
    for (it.past = prefix; it.past < end; it.past += it.positions) {
      it.positions = it.past + chunk < end ? chunk : end - it.past;
      assert_int_equal(btc_stage_prefill_part(s, splice, n - 1, &it, 1, visual, h, &err), BTC_OK);
    }
    it.past -= it.positions;
    assert_int_equal(btc_stage_prefill_part(s, n - 1, n, &it, 1, h, out + i * vocab, &err), BTC_OK);
    at += btc_flow_floats(m, 0, &it, 1, false);
  }
  for (int step = 0; step < STEPS; step++) {
    for (int i = 0; i < ITEMS; i++) {
      items[i].past += items[i].positions;
      items[i].positions = 1;
      items[i].token = (int32_t)(260 + step + i);
    }
    assert_int_equal(btc_stage_decode(s, items, ITEMS, NULL, out + (step + 1) * ITEMS * vocab, &err), BTC_OK);
  }
  btc_stage_destroy(&s);
  free(pixels);
  free(visual);
  free(h);
}

static void test_stage_chunks_and_prefix_change_no_bit(void **state) {
  (void)state;
  btc_model *m;
  btc_error err;
  assert_int_equal(btc_model_open(tiny_checkpoint(), &m, &err), BTC_OK);
  size_t floats = (size_t)((STEPS + 1) * ITEMS * m->cfg->llm.vocab);
  float *whole = malloc(floats * sizeof *whole), *chunked = malloc(floats * sizeof *chunked);
  for (int bf16 = 0; bf16 <= 1; bf16++) {
    btc_compute compute = bf16 ? BTC_COMPUTE_BF16 : BTC_COMPUTE_F32;
    run_chunks(m, compute, 1, 1000, 0, whole);
    if (!bf16) { /* the same as the plain way in one call */
      run_cut(m, (int[]){0, btc_block_count(m)}, 1, 1, chunked);
      assert_memory_equal(whole, chunked, floats * sizeof *whole);
    }
    for (int64_t chunk = 1; chunk < 16; chunk += chunk < 4 ? 1 : 5)
      for (int64_t prefix = 0; prefix <= 1; prefix++) {
        memset(chunked, 0, floats * sizeof *chunked);
        run_chunks(m, compute, 1 + (int)chunk % 2, chunk, prefix, chunked);
        if (memcmp(whole, chunked, floats * sizeof *whole) != 0)
          fail_msg("%s: chunks of %d behind a prefix of %d change the logits", bf16 ? "bf16" : "f32", (int)chunk, (int)prefix);
      }
  }
  free(whole);
  free(chunked);
  btc_model_close(&m);
}

static void test_stage_blocks_have_names_and_prices(void **state) {
  (void)state;
  btc_model *m;
  btc_error err;
  assert_int_equal(btc_model_open(tiny_checkpoint(), &m, &err), BTC_OK);
  const int n = btc_block_count(m);
  btc_load load = {.images = 2, .blocks = 1, .positions = 40, .pairs = true};
  char name[32];
  int64_t bytes = 0;
  assert_int_equal(n, 3 + 3 + 4); /* of 4 tower blocks the last is never used */
  for (int i = 0; i < n; i++) {
    bytes += btc_block_at(m, i).weight_bytes;
    assert_true(btc_block_flops(m, i, &load) > 0 || btc_block_at(m, i).kind == BTC_BLOCK_SPLICE);
  }
  btc_block_name(m, 0, name);
  assert_string_equal(name, "patch");
  btc_block_name(m, 3, name);
  assert_string_equal(name, "vision 2");
  btc_block_name(m, n - 1, name);
  assert_string_equal(name, "head");
  btc_model_info info;
  btc_model_get_info(m, &info);
  /* all stored weights are priced but the unused last tower block: 4 c^2 + 2 c mlp + its vectors, two bytes each */
  int64_t c = 36, mlp = 84, unused = 2 * (4 * (c * c + c) + 2 * c * mlp + mlp + c + 4 * c);
  assert_int_equal(bytes, info.weight_bytes - unused);
  btc_model_close(&m);
}

static void test_stage_refuses_what_does_not_fit(void **state) {
  (void)state;
  btc_model *m;
  btc_stage *s;
  btc_error err;
  btc_stage_item items[ITEMS];
  assert_int_equal(btc_model_open(tiny_checkpoint(), &m, &err), BTC_OK);
  btc_stage_options o = {.backend = "cpu", .threads = 1, .slots = 2};
  assert_int_equal(btc_stage_create(m, 3, 3, &o, &s, &err), BTC_ERR_ARG);
  assert_int_equal(btc_stage_create(m, 0, btc_block_count(m) + 1, &o, &s, &err), BTC_ERR_ARG);
  assert_int_equal(btc_stage_create(m, 0, btc_block_count(m), &o, &s, &err), BTC_OK);
  make_items(m, items);
  float *pixels = random_pixels(m, items), *logits = malloc(3 * 300 * sizeof *logits);
  assert_int_equal(btc_stage_reserve(s, items, ITEMS, 64, &err), BTC_ERR_ARG); /* three items, two slots */
  assert_int_equal(btc_stage_reserve(s, items, 2, 64, &err), BTC_OK);
  assert_int_equal(btc_stage_prefill(s, items, ITEMS, pixels, logits, &err), BTC_ERR_ARG);
  items[0].past = 60;
  assert_int_equal(btc_stage_prefill(s, items, 2, pixels, logits, &err), BTC_ERR_LIMIT);
  assert_int_equal(btc_stage_prefill_part(s, 1, 99, items, 1, pixels, logits, &err), BTC_ERR_ARG);
  assert_int_equal(btc_stage_copy_slot(s, 0, 2, 1, &err), BTC_ERR_ARG);
  assert_int_equal(btc_stage_copy_slot(s, 0, 1, 65, &err), BTC_ERR_ARG);
  free(pixels);
  free(logits);
  btc_stage_destroy(&s);
  btc_model_close(&m);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_stage_cut_anywhere_changes_no_bit),
      cmocka_unit_test(test_stage_chunks_and_prefix_change_no_bit),
      cmocka_unit_test(test_stage_blocks_have_names_and_prices),
      cmocka_unit_test(test_stage_refuses_what_does_not_fit),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
