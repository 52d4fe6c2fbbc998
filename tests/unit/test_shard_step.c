/* Steps as they travel: what is written is what is read, in few bytes, and numbers that lie are refused by name. */
#include "test.h"

#include "engine/prompt.h"
#include "tiny_checkpoint.h"
#include "worker/shard_step.h"

enum { MOST = 8 };

static btc_model *m;
static uint8_t *words, *body; /* of the step that was written last */
static size_t words_room, bytes;

static int open_model(void **state) {
  btc_error err;
  (void)state;
  if (btc_model_open(tiny_checkpoint(), &m, &err) != BTC_OK) fail_msg("%s", err.message);
  return 0;
}

static int close_model(void **state) {
  (void)state;
  btc_model_close(&m);
  free(words);
  free(body);
  words = body = NULL;
  words_room = bytes = 0;
  return 0;
}

/* As a link sends it, into memory of exactly its size. */
static void write_step(const shard_step *s) {
  btc_link_part parts[SHARD_PARTS];
  btc_error err;
  if (shard_step_write(s, &words, &words_room, parts, &err) != BTC_OK) fail_msg("%s", err.message);
  bytes = 0;
  for (int i = 0; i < SHARD_PARTS; i++) bytes += parts[i].bytes;
  free(body);
  assert_non_null(body = malloc(bytes));
  for (size_t i = 0, at = 0; i < SHARD_PARTS; at += parts[i++].bytes)
    if (parts[i].bytes) memcpy(body + at, parts[i].data, parts[i].bytes);
}

static btc_status read_step(int first, shard_step_kind kind, btc_stage_item *items, shard_step *out, btc_error *err) {
  return shard_step_read(m, first, (uint16_t)kind, body, bytes, items, MOST, out, err);
}

static void assert_refused(int first, shard_step_kind kind, const char *why) {
  btc_stage_item items[MOST];
  shard_step s;
  btc_error err = {0};
  assert_int_equal(read_step(first, kind, items, &s, &err), BTC_ERR_FORMAT);
  if (!strstr(err.message, why)) fail_msg("'%s' instead of '%s'", err.message, why);
}

/* ---- picks ---- */

static btc_stage_item token(int slot, bool greedy) {
  return (btc_stage_item){.n_images = 2, .positions = 1, .past = 40, .token = 3, .slot = slot, .greedy = greedy};
}

static void write_answer(btc_stage_item *items, int n, const btc_pick *picks, const float *logits) {
  shard_step s = {.kind = SHARD_DECODE, .n = n, .items = items, .picks = picks, .n_picks = n, .flow = logits};
  s.flow_floats = shard_step_floats(m, btc_block_count(m), &s);
  write_step(&s);
}

static void test_shard_step_greedy_answers_are_small(void **state) {
  (void)state;
  btc_stage_item items[3] = {token(0, true), token(1, true), token(5, true)}, got[MOST];
  const btc_pick picks[3] = {{.id = 5, .logprob = -0.125}, {.id = 0, .logprob = -3}, {.id = 7, .broken = BTC_PICK_NAN}};
  shard_step s;
  btc_error err;
  write_answer(items, 1, picks, NULL);
  assert_true(bytes < 100);
  write_answer(items, 3, picks, NULL);
  assert_true(bytes < 3 * 100);
  if (read_step(btc_block_count(m), SHARD_DECODE, got, &s, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_int_equal(s.n_picks, 3);
  assert_int_equal(s.flow_floats, 0);
  assert_memory_equal(s.picks, picks, sizeof picks);
}

static void test_shard_step_drawn_items_bring_their_logits(void **state) {
  (void)state;
  const int64_t vocab = m->cfg->llm.vocab;
  btc_stage_item items[3] = {token(0, false), token(1, true), token(5, false)}, got[MOST];
  const btc_pick picks[3] = {{0}, {.id = 2, .logprob = -1}, {0}};
  float *logits = calloc((size_t)(2 * vocab), sizeof *logits);
  shard_step s;
  btc_error err;
  assert_non_null(logits);
  for (int64_t i = 0; i < 2 * vocab; i++) logits[i] = (float)i;
  write_answer(items, 3, picks, logits);
  if (read_step(btc_block_count(m), SHARD_DECODE, got, &s, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_int_equal(s.flow_floats, 2 * vocab);
  assert_memory_equal(s.flow, logits, (size_t)(2 * vocab) * sizeof *logits);
  for (int i = 0; i < 3; i++) assert_int_equal(s.items[i].greedy, items[i].greedy);
  free(logits);
}

static void test_shard_step_picks_that_lie(void **state) {
  (void)state;
  const int end = btc_block_count(m);
  btc_stage_item items[2] = {token(0, true), token(1, true)};
  const btc_pick good = {.id = 1, .logprob = -1};
  const btc_pick bad[] = {{.id = -1}, {.id = (int32_t)m->cfg->llm.vocab}, {.broken = -1}, {.broken = BTC_PICK_FAULTS}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    write_answer(items, 2, (btc_pick[]){good, bad[i]}, NULL);
    assert_refused(end, SHARD_DECODE, "pick 1 of token");
  }
  shard_step s = {.kind = SHARD_DECODE, .n = 2, .items = items};
  write_step(&s); /* fewer than items */
  assert_refused(end, SHARD_DECODE, "0 picks where 2 belong");
  s.picks = (const btc_pick[]){good, good, good};
  s.n_picks = 1;
  write_step(&s);
  assert_refused(end, SHARD_DECODE, "1 picks where 2 belong");
  s.n_picks = 3;
  write_step(&s);
  assert_refused(end, SHARD_DECODE, "2 items do not make");
  s.n_picks = 2; /* before the head there is none */
  s.flow_floats = shard_step_floats(m, end - 1, &s);
  float *flow = calloc((size_t)s.flow_floats, sizeof *flow);
  s.flow = flow;
  write_step(&s);
  assert_refused(end - 1, SHARD_DECODE, "2 picks where 0 belong");
  free(flow);
  write_answer(items, 2, (btc_pick[]){good, good}, NULL);
  bytes--;
  assert_refused(end, SHARD_DECODE, "2 items do not make");
}

/* A row that is said to be drawn, but has no logits, and the other way round. */
static void test_shard_step_logits_that_are_not_there(void **state) {
  (void)state;
  btc_stage_item items[1] = {token(0, false)};
  const btc_pick pick = {0};
  shard_step s = {.kind = SHARD_DECODE, .n = 1, .items = items, .picks = &pick, .n_picks = 1};
  write_step(&s);
  assert_refused(btc_block_count(m), SHARD_DECODE, "a tensor of 0 numbers where");
  float *logits = calloc((size_t)m->cfg->llm.vocab, sizeof *logits);
  s.flow = logits;
  s.flow_floats = m->cfg->llm.vocab;
  items[0].greedy = true;
  write_step(&s);
  assert_refused(btc_block_count(m), SHARD_DECODE, "numbers where 0 belong");
  free(logits);
}

/* ---- pictures ---- */

enum { HEAD = 48, ITEM = 28, SIZES = 12 };

/* Two pictures of 30 x 20 and 7 x 9 pixels; the sizes that are said may be others. */
static void write_pictures(int width, int height) {
  static uint8_t rgb[2][30 * 20 * 3];
  btc_stage_item items[2] = {{.n_images = 1, .positions = 1, .slot = 3}, {.n_images = 1, .positions = 1, .slot = 1}};
  shard_step s = {.kind = SHARD_ENCODE, .n = 2, .items = items, .n_pictures = 2};
  memset(rgb[0], 17, sizeof rgb[0]);
  memset(rgb[1], 99, sizeof rgb[1]);
  s.pictures[0] = (btc_picture){.rgb = rgb[0], .width = 30, .height = 20, .pad = true};
  s.pictures[1] = (btc_picture){.rgb = rgb[1], .width = 7, .height = 9};
  write_step(&s);
  const int32_t said[2] = {width, height};
  memcpy(body + HEAD + 2 * ITEM + SIZES, said, sizeof said);
}

static void test_shard_step_pictures_travel_as_samples(void **state) {
  (void)state;
  btc_stage_item items[MOST];
  shard_step s;
  btc_error err;
  write_pictures(7, 9);
  assert_int_equal(bytes, HEAD + 2 * (ITEM + SIZES) + 3 * (30 * 20 + 7 * 9));
  if (read_step(0, SHARD_ENCODE, items, &s, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_int_equal(s.n_pictures, 2);
  assert_int_equal(s.flow_floats, 0);
  assert_true(s.pictures[0].width == 30 && s.pictures[0].height == 20 && s.pictures[0].pad);
  assert_true(s.pictures[1].width == 7 && s.pictures[1].height == 9 && !s.pictures[1].pad);
  for (int i = 0; i < 30 * 20 * 3; i++) assert_int_equal(s.pictures[0].rgb[i], 17);
  for (int i = 0; i < 7 * 9 * 3; i++) assert_int_equal(s.pictures[1].rgb[i], 99);
}

static void test_shard_step_pictures_that_lie(void **state) {
  (void)state;
  const int side = (int)m->cfg->vision.image;
  const int sizes[][2] = {
      {0, 9},        {7, 0}, {-7, -9}, {7, 10}, {INT32_MAX, INT32_MAX}, {63 << 16, 1}, {1, 4 * side + 1}, {2 * side + 1, 2 * side},
      {INT32_MIN, 1}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    write_pictures(sizes[i][0], sizes[i][1]);
    assert_refused(0, SHARD_ENCODE, "picture 1 of");
  }
  write_pictures(7, 8); /* smaller than what came */
  assert_refused(0, SHARD_ENCODE, "21 bytes of samples behind its pictures");
  write_pictures(7, 9);
  assert_refused(1, SHARD_ENCODE, "a tensor of 0 numbers where"); /* beyond the first block features belong */
  bytes--;
  assert_refused(0, SHARD_ENCODE, "2 items do not make");
  btc_stage_item items[3] = {{.n_images = 1, .positions = 1}, {.n_images = 1, .positions = 1}, {.n_images = 1, .positions = 1}};
  shard_step s = {.kind = SHARD_ENCODE, .n = 1, .items = items};
  write_step(&s);
  assert_refused(0, SHARD_ENCODE, "0 pictures where 1 belong");
  s.n = 3;
  write_step(&s); /* more than rooms are made for */
  assert_refused(0, SHARD_ENCODE, "3 items do not make");
  s.n = 2;
  s.n_pictures = 1;
  s.pictures[0] = (btc_picture){.rgb = (const uint8_t[]){1, 2, 3}, .width = 1, .height = 1};
  write_step(&s);
  assert_refused(0, SHARD_ENCODE, "1 pictures where 2 belong");
  s.kind = SHARD_DECODE;
  s.n = 1;
  write_step(&s);
  assert_refused(0, SHARD_DECODE, "1 items do not make");
}

/* clang-format off */
static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(test_shard_step_greedy_answers_are_small, open_model, close_model),
    cmocka_unit_test_setup_teardown(test_shard_step_drawn_items_bring_their_logits, open_model, close_model),
    cmocka_unit_test_setup_teardown(test_shard_step_picks_that_lie, open_model, close_model),
    cmocka_unit_test_setup_teardown(test_shard_step_logits_that_are_not_there, open_model, close_model),
    cmocka_unit_test_setup_teardown(test_shard_step_pictures_travel_as_samples, open_model, close_model),
    cmocka_unit_test_setup_teardown(test_shard_step_pictures_that_lie, open_model, close_model),
};
/* clang-format on */

BTC_TEST_MAIN(tests)
