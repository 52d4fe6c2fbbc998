/*
 * Pipelines whose ranks are each on a card (tests/gpu_host/fake) and pass tensors by NCCL (tests/gpu_host/fake_nccl): answers are
 * those of one process, byte for byte, whatever NCCL does; and NCCL is taken where it can be, and only there.
 */
#define _GNU_SOURCE
#include "test.h"

#include <signal.h>
#include <stdio.h>

#include "tiny_checkpoint.h"
#include "worker/pipe.h"

enum { ITEMS = 3, TOKENS = 4, PATIENCE_MS = 60000 };

typedef struct work {
  btc_item items[ITEMS];
  const char *pictures[ITEMS][2];
  btc_result want[ITEMS];
} work;

static work w;

static int set_up(void **state) {
  (void)state;
  setenv("FAKE_CUDA", "4", 1);
  setenv("FAKE_NCCL_DIR", test_tmp_dir(), 1);
  for (size_t i = 0; i < ITEMS; i++) {
    for (int k = 0; k < 2; k++) w.pictures[i][k] = tiny_picture(40 + (int)i * 9, 61 + 20 * k, (unsigned)((2 * i + (size_t)k) % 3));
    w.items[i] = (btc_item){.images = w.pictures[i],
                            .n_images = i % 3 == 2 ? 1 : 2,
                            .question = i % 2 ? NULL : "cab?",
                            .max_tokens = TOKENS - (int)i % 2,
                            .temperature = i % 2 ? 0.9f : 0,
                            .seed = i};
  }
  return 0;
}

/* By one process; once a test, for those that need it. */
static void answer_whole(void) {
  btc_model *m;
  btc_session *s = NULL;
  btc_error err;
  btc_session_options o = btc_session_options_default();
  if (w.want[0].text) return;
  o.device = "cuda";
  o.max_tokens = TOKENS;
  o.precision = BTC_PRECISION_F32;
  if (btc_model_open(tiny_checkpoint(), &m, &err) != BTC_OK || btc_session_create(m, &o, &s, &err) != BTC_OK)
    fail_msg("%s", err.message);
  assert_int_equal(btc_session_run(s, w.items, ITEMS, w.want, &err), BTC_OK);
  for (int i = 0; i < ITEMS; i++) assert_int_equal(w.want[i].status, BTC_OK);
  btc_session_destroy(&s);
  btc_model_close(&m);
}

static int clean_up(void **state) {
  (void)state;
  for (int i = 0; i < ITEMS; i++) btc_result_clear(&w.want[i]);
  memset(&w, 0, sizeof w);
  unsetenv("FAKE_NCCL_FAIL");
  return 0;
}

static pipe_options on_cards(void) {
  pipe_options o = pipe_options_default();
  o.program = getenv("BTCCHAT_GPU_HOST");
  o.device = "cuda";
  o.threads = 1;
  o.slots = 4;
  o.max_tokens = TOKENS;
  o.precision = BTC_PRECISION_F32;
  o.form_ms = PATIENCE_MS;
  return o;
}

static btc_status try_pipe(const pipe_options *o, int ranks, pipe_driver **out, btc_error *err) {
  int cuts[PIPE_MAX_RANKS + 1];
  btc_model *m;
  assert_int_equal(btc_model_open(tiny_checkpoint(), &m, err), BTC_OK);
  assert_int_equal(pipe_even_cuts(m, ranks, cuts, err), BTC_OK);
  btc_model_close(&m);
  return pipe_create(tiny_checkpoint(), cuts, ranks, o, out, err);
}

static pipe_driver *open_pipe(const pipe_options *o, int ranks) {
  pipe_driver *p;
  btc_error err;
  if (try_pipe(o, ranks, &p, &err) != BTC_OK) fail_msg("%s", err.message);
  return p;
}

static void run_and_compare(pipe_driver *p) {
  btc_result got[ITEMS];
  btc_error err;
  answer_whole();
  if (pipe_run(p, w.items, ITEMS, got, &err) != BTC_OK) fail_msg("%s", err.message);
  for (int i = 0; i < ITEMS; i++) {
    if (got[i].status != BTC_OK) fail_msg("item %d: %s", i, got[i].error.message);
    assert_string_equal(got[i].text, w.want[i].text);
    assert_int_equal(got[i].n_ids, w.want[i].n_ids);
    assert_memory_equal(&got[i].logprob, &w.want[i].logprob, sizeof got[i].logprob);
    assert_memory_equal(&got[i].score, &w.want[i].score, sizeof got[i].score);
    assert_int_equal(got[i].cosine != NULL, w.want[i].cosine != NULL);
    if (got[i].cosine)
      assert_memory_equal(got[i].cosine, w.want[i].cosine, (size_t)(got[i].grid * got[i].grid) * sizeof *got[i].cosine);
    btc_result_clear(&got[i]);
  }
}

/* ---- what goes up ---- */

/* Pictures that a card takes go to it at their own size, in 8-bit samples; others as the square. Of items 0 and 1, two each. */
static void check_pictures(const char *device, const int size[4][2], int64_t samples) {
  static const char *pictures[2][2];
  static btc_item items[2];
  btc_result want[2], got[2];
  btc_model *m;
  btc_session *s;
  btc_error err;
  btc_session_options so = btc_session_options_default();
  so.device = device;
  so.max_tokens = TOKENS;
  so.precision = BTC_PRECISION_F32;
  for (int i = 0; i < 2; i++) {
    for (int k = 0; k < 2; k++) pictures[i][k] = tiny_picture(size[2 * i + k][0], size[2 * i + k][1], (unsigned)(40 + 2 * i + k));
    items[i] = (btc_item){.images = pictures[i], .n_images = 2, .max_tokens = TOKENS};
  }
  assert_int_equal(btc_model_open(tiny_checkpoint(), &m, &err), BTC_OK);
  assert_int_equal(btc_session_create(m, &so, &s, &err), BTC_OK);
  assert_int_equal(btc_session_run(s, items, 2, want, &err), BTC_OK);
  btc_session_destroy(&s);
  btc_model_close(&m);
  pipe_options o = on_cards();
  o.device = device;
  pipe_driver *p = open_pipe(&o, 2);
  if (pipe_run(p, items, 2, got, &err) != BTC_OK) fail_msg("%s", err.message);
  for (int i = 0; i < 2; i++) {
    if (got[i].status != BTC_OK) fail_msg("item %d: %s", i, got[i].error.message);
    assert_string_equal(got[i].text, want[i].text);
    assert_memory_equal(&got[i].logprob, &want[i].logprob, sizeof got[i].logprob);
    assert_memory_equal(got[i].cosine, want[i].cosine, (size_t)(got[i].grid * got[i].grid) * sizeof *got[i].cosine);
    btc_result_clear(&got[i]);
    btc_result_clear(&want[i]);
  }
  pipe_state now = pipe_get_state(p);
  assert_int_equal(now.encoded, 4);
  if (now.encode_bytes < samples || now.encode_bytes > samples + 4 * 100)
    fail_msg("%lld bytes of %lld samples went up", (long long)now.encode_bytes, (long long)samples);
  pipe_destroy(&p);
}

enum { SIDE = 74, SQUARE = 3 * SIDE * SIDE };

static void test_pipe_nccl_pictures_go_up_as_samples(void **state) {
  (void)state;
  check_pictures("cuda", (const int[4][2]){{40, 61}, {4 * SIDE, SIDE}, {1, 1}, {2 * SIDE, 2 * SIDE}},
                 3 * (40 * 61 + 1) + 8 * SQUARE);
}

static void test_pipe_nccl_large_pictures_go_up_as_squares(void **state) {
  (void)state;
  check_pictures("cuda", (const int[4][2]){{4 * SIDE + 1, 20}, {2 * SIDE + 1, 2 * SIDE}, {256, 256}, {SIDE, SIDE}}, 4 * SQUARE);
}

static void test_pipe_nccl_processors_get_squares(void **state) {
  (void)state;
  check_pictures("cpu", (const int[4][2]){{40, 61}, {90, 30}, {1, 1}, {SIDE, SIDE}}, 4 * SQUARE);
}

/* ---- what is chosen ---- */

/* epoch: of how many attempts the last came about. */
static void check(pipe_tensors tensors, const char *device, int ranks, bool nccl, uint64_t epoch) {
  pipe_options o = on_cards();
  o.tensors = tensors;
  o.device = device;
  pipe_driver *p = open_pipe(&o, ranks);
  assert_int_equal(pipe_get_state(p).nccl, nccl);
  assert_int_equal(pipe_get_state(p).epoch, epoch);
  assert_int_equal(strstr(pipe_describe(p), "NCCL 2.28.9") != NULL, nccl);
  run_and_compare(p);
  assert_int_equal(pipe_get_state(p).breaks, 0);
  pipe_destroy(&p);
}

static void test_pipe_nccl_answers_of_any_ranks(void **state) {
  (void)state;
  for (int ranks = 2; ranks <= 4; ranks++) check(PIPE_TENSORS_AUTO, "cuda", ranks, true, 1);
}

static void test_pipe_nccl_answers_of_the_links(void **state) {
  (void)state;
  check(PIPE_TENSORS_TCP, "cuda", 3, false, 1);
}

static void test_pipe_nccl_one_rank_needs_none(void **state) {
  (void)state;
  check(PIPE_TENSORS_AUTO, "cuda", 1, false, 1);
}

/* Three ranks on two cards: NCCL would refuse two of them. */
static void test_pipe_nccl_not_with_shared_cards(void **state) {
  (void)state;
  setenv("FAKE_CUDA", "2", 1);
  check(PIPE_TENSORS_AUTO, "cuda", 3, false, 1);
  check(PIPE_TENSORS_AUTO, "cuda:1", 2, false, 1);
}

/* Asked for by name, ranks that share cards are hosts of their own to it. */
static void test_pipe_nccl_shared_cards_as_hosts(void **state) {
  (void)state;
  setenv("FAKE_CUDA", "1", 1);
  check(PIPE_TENSORS_NCCL, "cuda", 3, true, 1);
}

static void test_pipe_nccl_not_on_the_cpu(void **state) {
  (void)state;
  pipe_options o = on_cards();
  pipe_driver *p;
  btc_error err;
  o.device = "cpu";
  o.tensors = PIPE_TENSORS_NCCL;
  assert_int_equal(try_pipe(&o, 2, &p, &err), BTC_ERR_UNSUPPORTED);
  assert_non_null(strstr(err.message, "tensors cannot go by NCCL: rank 0: device cpu is no GPU"));
}

static void test_pipe_nccl_library_is_missing(void **state) {
  (void)state;
  char *before = strdup(getenv("BTCCHAT_NCCL"));
  pipe_options o = on_cards();
  pipe_driver *p;
  btc_error err;
  setenv("BTCCHAT_NCCL", "/nowhere/libnccl.so.2", 1);
  check(PIPE_TENSORS_AUTO, "cuda", 2, false, 1);
  o.tensors = PIPE_TENSORS_NCCL;
  assert_int_equal(try_pipe(&o, 2, &p, &err), BTC_ERR_UNSUPPORTED);
  assert_non_null(strstr(err.message, "NCCL cannot be used: /nowhere/libnccl.so.2"));
  setenv("BTCCHAT_NCCL", before, 1);
  free(before);
}

/* ---- what goes wrong ---- */

/* NCCL never comes about: after two attempts the links take the tensors. */
static void test_pipe_nccl_links_after_two_failures(void **state) {
  (void)state;
  setenv("FAKE_NCCL_FAIL", "1:init-fail", 1);
  check(PIPE_TENSORS_AUTO, "cuda", 2, false, 3);
}

static void test_pipe_nccl_joining_hangs(void **state) {
  (void)state;
  pipe_options o = on_cards();
  pipe_driver *p;
  btc_error err;
  setenv("FAKE_NCCL_FAIL", "0:init-hang", 1);
  o.form_ms = 1000;
  o.tensors = PIPE_TENSORS_NCCL;
  assert_int_equal(try_pipe(&o, 2, &p, &err), BTC_ERR_IO);
}

/* A transfer fails in every epoch at some time: the epochs end, the processes stay, the journal goes on, bytes are the same. The
 * failing rank's environment is that of its first process, so each epoch has its failure until the links take over. */
static void check_break(const char *fail, const char *cause) {
  pipe_options o = on_cards();
  setenv("FAKE_NCCL_FAIL", fail, 1);
  o.max_breaks = 60;
  pipe_driver *p = open_pipe(&o, 3);
  assert_true(pipe_get_state(p).nccl);
  pipe_state before = pipe_get_state(p);
  run_and_compare(p);
  pipe_state after = pipe_get_state(p);
  assert_true(after.breaks >= 1);
  if (!strstr(after.cause, cause)) fail_msg("'%s' instead of '%s'", after.cause, cause);
  for (int r = 0; r < 3; r++) assert_int_equal(after.pid[r], before.pid[r]);
  pipe_destroy(&p);
}

static void test_pipe_nccl_error_within_a_step(void **state) {
  (void)state;
  check_break("1:async:6", "network error");
}

static void test_pipe_nccl_refusal_within_a_step(void **state) {
  (void)state;
  check_break("0:call:3", "internal error");
}

/* A rank whose abort hangs has to end, and is replaced; those beside it stay. */
static void test_pipe_nccl_abort_hangs(void **state) {
  (void)state;
  pipe_options o = on_cards();
  setenv("FAKE_NCCL_FAIL", "1:call:5,1:abort-hang", 1);
  o.max_breaks = 60;
  pipe_driver *p = open_pipe(&o, 2);
  unsetenv("FAKE_NCCL_FAIL"); /* its next process has no fault */
  pipe_state before = pipe_get_state(p);
  run_and_compare(p);
  pipe_state after = pipe_get_state(p);
  assert_int_equal(after.pid[0], before.pid[0]);
  assert_int_not_equal(after.pid[1], before.pid[1]);
  assert_true(after.nccl);
  pipe_destroy(&p);
}

static void test_pipe_nccl_rank_is_killed(void **state) {
  (void)state;
  pipe_options o = on_cards();
  setenv("FAKE_NCCL_FAIL", "1:kill:6", 1);
  pipe_driver *p = open_pipe(&o, 3);
  unsetenv("FAKE_NCCL_FAIL");
  pipe_state before = pipe_get_state(p);
  run_and_compare(p);
  pipe_state after = pipe_get_state(p);
  assert_int_equal(after.pid[0], before.pid[0]);
  assert_int_not_equal(after.pid[1], before.pid[1]);
  assert_int_equal(after.pid[2], before.pid[2]);
  assert_non_null(strstr(after.cause, "rank 1 died by signal 9"));
  assert_true(after.nccl);
  pipe_destroy(&p);
}

/* Formed again and again: from a fresh id each time, over NCCL each time. */
static void test_pipe_nccl_formed_10_times(void **state) {
  (void)state;
  pipe_options o = on_cards();
  btc_error err;
  pipe_driver *p = open_pipe(&o, 3);
  for (int i = 0; i < 10; i++) {
    pipe_state s = pipe_get_state(p);
    kill(s.pid[i % 3], SIGKILL);
    int64_t end = btc_now_ns() + (int64_t)PATIENCE_MS * 1000000;
    while (pipe_get_state(p).epoch == s.epoch && btc_now_ns() < end)
      if (pipe_check(p, &err) != BTC_OK) fail_msg("%s", err.message);
    assert_true(pipe_get_state(p).epoch > s.epoch);
    assert_true(pipe_get_state(p).nccl);
  }
  run_and_compare(p);
  pipe_destroy(&p);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(test_pipe_nccl_pictures_go_up_as_samples, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_large_pictures_go_up_as_squares, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_processors_get_squares, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_answers_of_any_ranks, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_answers_of_the_links, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_one_rank_needs_none, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_not_with_shared_cards, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_shared_cards_as_hosts, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_not_on_the_cpu, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_library_is_missing, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_links_after_two_failures, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_joining_hangs, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_error_within_a_step, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_refusal_within_a_step, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_abort_hangs, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_rank_is_killed, set_up, clean_up),
    cmocka_unit_test_setup_teardown(test_pipe_nccl_formed_10_times, set_up, clean_up),
};

BTC_TEST_MAIN(tests)
