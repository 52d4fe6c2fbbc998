/* Sessions: an item's answer depends on nothing but the item; failures stay with their item; decoding allocates nothing. */
#define _GNU_SOURCE
#include "test.h"

#include <stdio.h>

#include "count_allocations.h"
#include "engine/session.h"
#include "tiny_checkpoint.h"

static btc_model *open_tiny(void) {
  btc_model *m;
  btc_error err = {0};
  if (btc_model_open(tiny_checkpoint(), &m, &err) != BTC_OK) fail_msg("%s", err.message);
  return m;
}

static btc_session *open_session(btc_model *m, int batch, int threads, btc_precision precision) {
  btc_session *s;
  btc_error err = {0};
  btc_session_options o = btc_session_options_default();
  o.max_batch = batch;
  o.threads = threads;
  o.precision = precision;
  o.max_tokens = 24;
  if (btc_session_create(m, &o, &s, &err) != BTC_OK) fail_msg("%s", err.message);
  return s;
}

enum { N = 7 };

static void make_items(btc_item items[N]) {
  static const char *pictures[N][2];
  static const char *const questions[N] = {NULL, "a", "abcabc aab", NULL, "cab?", "What?", "bb"};
  for (int i = 0; i < N; i++) {
    for (int k = 0; k < 2; k++)
      if (!pictures[i][k]) pictures[i][k] = tiny_picture(40 + 9 * i, 61 + 20 * k, (unsigned)(2 * i + k));
    items[i] = (btc_item){.images = pictures[i],
                          .n_images = i % 3 == 2 ? 1 : 2,
                          .question = questions[i],
                          .max_tokens = 8 + i,
                          .temperature = i % 2 ? 0.9f : 0,
                          .seed = (uint64_t)i};
  }
}

static void assert_same(const btc_result *a, const btc_result *b) {
  assert_int_equal(a->status, BTC_OK);
  assert_int_equal(b->status, BTC_OK);
  assert_string_equal(a->text, b->text);
  assert_int_equal(a->n_ids, b->n_ids);
  assert_memory_equal(a->ids, b->ids, (size_t)a->n_ids * sizeof *a->ids);
  assert_memory_equal(&a->logprob, &b->logprob, sizeof a->logprob);
  assert_memory_equal(&a->score, &b->score, sizeof a->score);
  assert_int_equal(a->cosine != NULL, b->cosine != NULL);
  if (a->cosine) assert_memory_equal(a->cosine, b->cosine, (size_t)(a->grid * a->grid) * sizeof *a->cosine);
}

static void check_batches(btc_precision precision) {
  btc_model *m = open_tiny();
  btc_item items[N], shuffled[N];
  btc_result alone[N], together[N];
  btc_error err;
  make_items(items);
  btc_session *one = open_session(m, 1, 1, precision);
  for (int i = 0; i < N; i++) btc_session_run(one, &items[i], 1, &alone[i], &err);
  btc_session_destroy(&one);
  for (int batch = 1; batch <= N; batch += 2)
    for (int threads = 1; threads <= 3; threads++) {
      btc_session *s = open_session(m, batch, threads, precision);
      for (int i = 0; i < N; i++) shuffled[i] = items[(i * 3 + batch) % N];
      assert_int_equal(btc_session_run(s, shuffled, N, together, &err), BTC_OK);
      for (int i = 0; i < N; i++) {
        assert_same(&alone[(i * 3 + batch) % N], &together[i]);
        btc_result_clear(&together[i]);
      }
      btc_session_destroy(&s);
    }
  for (int i = 0; i < N; i++) btc_result_clear(&alone[i]);
  btc_model_close(&m);
}

static void test_session_answer_does_not_depend_on_batch_f32(void **state) {
  (void)state;
  check_batches(BTC_PRECISION_F32);
}

static void test_session_answer_does_not_depend_on_batch_bf16(void **state) {
  (void)state;
  check_batches(BTC_PRECISION_BF16);
}

static void test_session_shards_answer_like_one_file(void **state) {
  (void)state;
  btc_error err = {0};
  btc_model *m = open_tiny(), *sharded;
  if (btc_model_open(tiny_checkpoint_sharded(), &sharded, &err) != BTC_OK) fail_msg("%s", err.message);
  btc_session *a = open_session(m, 1, 2, BTC_PRECISION_F32), *b = open_session(sharded, 1, 2, BTC_PRECISION_F32);
  btc_item items[N];
  btc_result ra, rb;
  make_items(items);
  btc_session_run(a, items, 1, &ra, &err);
  btc_session_run(b, items, 1, &rb, &err);
  assert_same(&ra, &rb);
  btc_result_clear(&ra);
  btc_result_clear(&rb);
  btc_session_destroy(&a);
  btc_session_destroy(&b);
  btc_model_close(&m);
  btc_model_close(&sharded);
}

static void test_session_broken_item_fails_alone(void **state) {
  (void)state;
  btc_model *m = open_tiny();
  btc_session *s = open_session(m, 4, 1, BTC_PRECISION_F32);
  btc_item items[N];
  btc_result alone, r[N];
  btc_error err;
  make_items(items);
  btc_session_run(s, &items[3], 1, &alone, &err);
  const char *missing[2] = {items[0].images[0], "/nowhere/at-all.png"};
  char long_question[4096];
  memset(long_question, 'b', sizeof long_question - 1);
  long_question[sizeof long_question - 1] = 0;
  items[0].images = missing;
  items[1].n_images = 5;
  items[2].question = "an <image> too many";
  items[4].question = long_question;
  items[5].max_tokens = 25; /* the session was made for 24 */
  items[6].n_images = 0;
  assert_int_equal(btc_session_run(s, items, N, r, &err), BTC_OK);
  assert_int_equal(r[0].status, BTC_ERR_NOT_FOUND);
  assert_int_equal(r[0].phase, BTC_PHASE_IMAGE);
  assert_non_null(strstr(r[0].error.message, "/nowhere/at-all.png"));
  assert_int_equal(r[1].status, BTC_ERR_ARG);
  assert_non_null(strstr(r[1].error.message, "num_video_frames"));
  assert_int_equal(r[2].status, BTC_ERR_ARG);
  assert_same(&r[3], &alone);
  assert_int_equal(r[4].status, BTC_ERR_LIMIT);
  assert_non_null(strstr(r[4].error.message, "context"));
  assert_int_equal(r[5].status, BTC_ERR_ARG);
  assert_int_equal(r[6].status, BTC_ERR_ARG);
  for (int i = 0; i < N; i++) btc_result_clear(&r[i]);
  btc_result_clear(&alone);
  btc_session_destroy(&s);
  btc_model_close(&m);
}

static void test_session_fills_the_context_and_stops(void **state) {
  (void)state;
  btc_model *m = open_tiny();
  btc_session *s = open_session(m, 1, 1, BTC_PRECISION_F32);
  char question[600];
  btc_item items[N];
  btc_result r;
  btc_error err;
  make_items(items);
  /* 512 positions: lengthen the prompt until only a few are left for the answer */
  int room = -1;
  for (int n = 200; n < 590; n++) {
    memset(question, '-', (size_t)n); /* a byte piece each */
    question[n] = 0;
    items[0].question = question;
    items[0].max_tokens = 24;
    btc_session_run(s, items, 1, &r, &err);
    if (r.status == BTC_ERR_LIMIT) {
      btc_result_clear(&r);
      break;
    }
    assert_int_equal(r.status, BTC_OK);
    room = r.n_ids;
    btc_result_clear(&r);
    if (room == 24 && n < 250) n += 100;
  }
  assert_int_equal(room, 1); /* the last prompt that fits leaves one position */
  btc_session_destroy(&s);
  btc_model_close(&m);
}

static void test_session_cancel_stops_with_every_result_said(void **state) {
  (void)state;
  btc_model *m = open_tiny();
  volatile int cancel = 1;
  btc_session_options o = btc_session_options_default();
  o.cancel = &cancel;
  o.max_batch = 2;
  btc_session *s;
  btc_item items[N];
  btc_result r[N];
  btc_error err;
  make_items(items);
  assert_int_equal(btc_session_create(m, &o, &s, &err), BTC_OK);
  assert_int_equal(btc_session_run(s, items, N, r, &err), BTC_ERR_CANCELLED);
  for (int i = 0; i < N; i++) {
    assert_int_equal(r[i].status, BTC_ERR_CANCELLED);
    btc_result_clear(&r[i]);
  }
  cancel = 0;
  items[0].max_tokens = 3;
  assert_int_equal(btc_session_run(s, items, 1, r, &err), BTC_OK); /* it can go on */
  btc_result_clear(&r[0]);
  btc_session_destroy(&s);
  btc_model_close(&m);
}

static void count_from_second_step(void *user, const char *name, const float *data, int64_t rows, int64_t cols) {
  (void)data, (void)rows, (void)cols;
  int *steps = user;
  if (strcmp(name, "logits") != 0) return;
  ++*steps;
  counting = *steps >= 2 && *steps < 20; /* from the first decode step to before the end */
}

static void check_no_allocation(btc_precision precision) {
#if COUNTS_ALLOCATIONS
  btc_model *m = open_tiny();
  btc_session *s = open_session(m, 1, 2, precision);
  btc_item items[N];
  btc_result r;
  btc_error err;
  int32_t force[20];
  int steps = 0;
  for (int i = 0; i < 20; i++) force[i] = 260;
  make_items(items);
  items[0].max_tokens = 20;
  btc_session_run(s, items, 1, &r, &err); /* a first run, so that what is made on first use is there */
  btc_result_clear(&r);
  btc_session_set_probe(s, &(btc_session_probe){.tap = count_from_second_step, .user = &steps, .force = force, .n_force = 20});
  allocations = 0;
  btc_session_run(s, items, 1, &r, &err);
  counting = 0;
  assert_int_equal(r.status, BTC_OK);
  assert_int_equal(steps, 20);
  assert_int_equal(allocations, 0);
  counting = 1;
  free(strdup("the counter works"));
  counting = 0;
  assert_true(allocations > 0);
  btc_result_clear(&r);
  btc_session_destroy(&s);
  btc_model_close(&m);
#else
  (void)precision;
  (void)count_from_second_step;
  print_message("skipped: allocations cannot be counted under a sanitizer\n");
  skip();
#endif
}

static void test_session_decode_loop_allocates_nothing_f32(void **state) {
  (void)state;
  check_no_allocation(BTC_PRECISION_F32);
}

static void test_session_decode_loop_allocates_nothing_bf16(void **state) {
  (void)state;
  check_no_allocation(BTC_PRECISION_BF16);
}

static void test_session_says_change_knows_the_sentences(void **state) {
  (void)state;
  btc_model *m = open_tiny();
  assert_false(btc_model_says_change(m, "the scene is the same as before"));
  assert_false(btc_model_says_change(m, " There is no difference .\n"));
  assert_true(btc_model_says_change(m, "there is no difference between the trees"));
  assert_true(btc_model_says_change(m, ""));
  btc_model_close(&m);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_session_answer_does_not_depend_on_batch_f32),
      cmocka_unit_test(test_session_answer_does_not_depend_on_batch_bf16),
      cmocka_unit_test(test_session_shards_answer_like_one_file),
      cmocka_unit_test(test_session_broken_item_fails_alone),
      cmocka_unit_test(test_session_fills_the_context_and_stops),
      cmocka_unit_test(test_session_cancel_stops_with_every_result_said),
      cmocka_unit_test(test_session_decode_loop_allocates_nothing_f32),
      cmocka_unit_test(test_session_decode_loop_allocates_nothing_bf16),
      cmocka_unit_test(test_session_says_change_knows_the_sentences),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
