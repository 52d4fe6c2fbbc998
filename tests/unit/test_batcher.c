/* Continuous batching: whatever the order of arrival, the neighbours and the sizes, an answer is byte for byte that of a session
 * with the item alone; each content is encoded once; failing and cancelled items leave the others alone; decoding allocates
 * nothing. */
#define _GNU_SOURCE
#include "test.h"

#include <pthread.h>
#include <stdio.h>

#include "count_allocations.h"
#include "engine/batcher.h"
#include "engine/image.h"
#include "engine/model.h"
#include "tiny_checkpoint.h"

enum { N = 18, PICTURES = 9 };

typedef struct fixture {
  btc_model *m;
  btc_item items[N];
  btc_result expected[N];
  const char *paths[N][2];
  btc_precision precision;
  /* one run */
  btc_batcher *b;
  btc_result got[N];
  bool answered[N];
  int answers;
} fixture;

static btc_model *open_tiny(void) {
  btc_model *m;
  btc_error err = {0};
  if (btc_model_open(tiny_checkpoint(), &m, &err) != BTC_OK) fail_msg("%s", err.message);
  return m;
}

/* Pairs, images, time series that share a picture, broken files, impossible requests; greedy and drawn; short and long. */
static void make_items(fixture *f) {
  static const char *const questions[] = {NULL, "a", "abcabc aab", NULL, "cab?", "What?", "bb"};
  static const char *picture[PICTURES];
  static char long_question[4096];
  for (int i = 0; i < PICTURES; i++)
    if (!picture[i]) picture[i] = tiny_picture(40 + 9 * i, 61 + 7 * i, (unsigned)i);
  memset(long_question, 'b', sizeof long_question - 1);
  for (int i = 0; i < N; i++) {
    f->paths[i][0] = picture[i % (PICTURES - 1)];
    f->paths[i][1] = picture[i % (PICTURES - 1) + 1];
    f->items[i] = (btc_item){.images = f->paths[i],
                             .n_images = i % 5 == 4 ? 1 : 2,
                             .question = questions[i % 7],
                             .max_tokens = 1 + (i * 7) % 24,
                             .temperature = i % 2 ? 0.9f : 0,
                             .aspect = i % 6 == 1 ? BTC_ASPECT_PAD : BTC_ASPECT_AUTO,
                             .seed = (uint64_t)i};
  }
  f->paths[3][1] = "/nowhere/at-all.png";
  f->paths[8][0] = "/proc/self/cmdline"; /* a regular file, but no image */
  f->items[6].n_images = 5;
  f->items[11].question = long_question;
  f->items[12].question = "an <image> too many";
  f->items[14].max_tokens = 25;
  f->items[16].n_images = 0;
}

/* Pixels from memory instead of the file: what the program does with windows of scenes. */
static btc_status load_memory(void *ctx, int i, btc_pixels *out, btc_error *err) {
  const char *const *paths = ctx;
  btc_image im;
  btc_status st = btc_image_decode_file(paths[i], NULL, &im, err);
  if (st == BTC_OK) *out = (btc_pixels){.width = im.width, .height = im.height, .rgb = im.rgb};
  return st;
}

static void setup(fixture *f, btc_precision precision) {
  btc_error err = {0};
  btc_session *s;
  *f = (fixture){.m = open_tiny(), .precision = precision};
  make_items(f);
  btc_session_options o = btc_session_options_default();
  o.threads = 1;
  o.precision = precision;
  o.max_tokens = 24;
  assert_int_equal(btc_session_create(f->m, &o, &s, &err), BTC_OK);
  for (int i = 0; i < N; i++) assert_int_equal(btc_session_run(s, &f->items[i], 1, &f->expected[i], &err), BTC_OK);
  static const int from_memory[] = {2, 7, 9, 13}; /* pairs, an image alone, padded and squashed; expected: as from files */
  for (size_t k = 0; k < sizeof from_memory / sizeof from_memory[0]; k++) {
    btc_item *it = &f->items[from_memory[k]];
    it->load = load_memory;
    it->load_ctx = f->paths[from_memory[k]];
    it->images = NULL;
  }
  btc_session_destroy(&s);
}

static void teardown(fixture *f) {
  for (int i = 0; i < N; i++) btc_result_clear(&f->expected[i]);
  btc_model_close(&f->m);
}

static void on_done(void *ctx, void *tag, btc_result *r) {
  fixture *f = ctx;
  long i = (btc_item *)tag - f->items;
  counting = 0;
  assert_in_range(i, 0, N - 1);
  assert_false(f->answered[i]);
  f->answered[i] = true;
  f->got[i] = *r;
  f->answers++;
}

static btc_batcher_options options(fixture *f, int slots, int threads) {
  return (btc_batcher_options){
      .slots = slots, .threads = threads, .precision = f->precision, .max_tokens = 24, .done = on_done, .ctx = f};
}

static void create(fixture *f, const btc_batcher_options *o) {
  btc_error err = {0};
  f->answers = 0;
  memset(f->answered, 0, sizeof f->answered);
  if (btc_batcher_create(f->m, o, &f->b, &err) != BTC_OK) fail_msg("%s", err.message);
}

static void assert_same(const btc_result *a, const btc_result *b) {
  assert_int_equal(a->status, b->status);
  assert_int_equal(a->phase, b->phase);
  assert_string_equal(a->error.message, b->error.message);
  if (a->status != BTC_OK) return;
  assert_string_equal(a->text, b->text);
  assert_int_equal(a->n_ids, b->n_ids);
  assert_memory_equal(a->ids, b->ids, (size_t)a->n_ids * sizeof *a->ids);
  assert_int_equal(a->stop, b->stop);
  assert_memory_equal(&a->logprob, &b->logprob, sizeof a->logprob);
  assert_memory_equal(&a->score, &b->score, sizeof a->score);
  assert_int_equal(a->cosine != NULL, b->cosine != NULL);
  assert_int_equal(a->grid, b->grid);
  if (a->cosine) assert_memory_equal(a->cosine, b->cosine, (size_t)(a->grid * a->grid) * sizeof *a->cosine);
}

static void check_all(fixture *f) {
  assert_int_equal(f->answers, N);
  for (int i = 0; i < N; i++) {
    assert_same(&f->expected[i], &f->got[i]);
    btc_result_clear(&f->got[i]);
  }
}

static void submit(fixture *f, int i) {
  btc_error err;
  assert_int_equal(btc_batcher_submit(f->b, &f->items[i], &f->items[i], &err), BTC_OK);
}

static void step(fixture *f) {
  btc_error err = {0};
  if (btc_batcher_step(f->b, &err) != BTC_OK) fail_msg("%s", err.message);
}

static void drain(fixture *f) {
  while (btc_batcher_open(f->b)) step(f);
}

static uint32_t random_below(uint32_t *x, uint32_t n) {
  *x = *x * 1664525u + 1013904223u;
  return (*x >> 8) % n;
}

/* Everything in a random order, each after a random number of steps. */
static void run_random(fixture *f, uint32_t seed) {
  int order[N];
  for (int i = 0; i < N; i++) order[i] = i;
  for (uint32_t i = N - 1; i > 0; i--) {
    uint32_t k = random_below(&seed, i + 1);
    int swap = order[i];
    order[i] = order[k];
    order[k] = swap;
  }
  for (int i = 0; i < N;) {
    if (btc_batcher_room(f->b) > 0 && random_below(&seed, 3))
      submit(f, order[i++]);
    else
      step(f);
  }
  drain(f);
}

static void check_arrivals(btc_precision precision) {
  fixture f;
  setup(&f, precision);
  for (uint32_t seed = 1; seed <= 8; seed++) {
    btc_batcher_options o = options(&f, 1 + (int)(seed * 3) % 8, 1 + (int)seed % 2);
    o.ahead = (int)seed % 4;
    o.readers = (int)(seed * 3) % 5;
    o.vision_batch = (int)(seed * 5) % 7;
    o.chunk = seed % 3 == 0 ? 0 : (int)(3 + seed);
    o.cache_bytes = seed % 4 == 1 ? -1 : 0;
    create(&f, &o);
    run_random(&f, seed);
    check_all(&f);
    btc_batcher_destroy(&f.b);
  }
  teardown(&f);
}

static void test_batcher_answers_like_a_session_f32(void **state) {
  (void)state;
  check_arrivals(BTC_PRECISION_F32);
}

static void test_batcher_answers_like_a_session_bf16(void **state) {
  (void)state;
  check_arrivals(BTC_PRECISION_BF16);
}

static void test_batcher_encodes_each_content_once(void **state) {
  (void)state;
  fixture f;
  setup(&f, BTC_PRECISION_F32);
  for (int i = 0; i < PICTURES - 1; i++) /* (t1,t2), (t2,t3), ... then the same again from another file */
    f.items[i] = f.items[PICTURES - 1 + i] = (btc_item){.images = f.paths[i], .n_images = 2};
  const char *series[PICTURES];
  for (int i = 0; i < PICTURES; i++) series[i] = tiny_picture(50, 40 + i, (unsigned)(100 + i));
  char *copy = btc_path_join(test_tmp_dir(), "copy.png");
  uint8_t *data;
  size_t len;
  assert_int_equal(btc_file_read(series[1], 1 << 20, &data, &len, NULL), BTC_OK);
  assert_int_equal(btc_file_publish(copy, data, len, NULL), BTC_OK);
  free(data);
  for (int i = 0; i < PICTURES - 1; i++) {
    f.paths[i][0] = i == 1 ? copy : series[i];
    f.paths[i][1] = series[i + 1];
  }
  btc_batcher_options o = options(&f, 3, 1);
  create(&f, &o);
  for (int round = 0; round < 2; round++)
    for (int i = 0; i < PICTURES - 1; i++) {
      while (!btc_batcher_room(f.b)) step(&f);
      submit(&f, round * (PICTURES - 1) + i);
    }
  drain(&f);
  btc_batcher_counts c = btc_batcher_get_counts(f.b);
  assert_int_equal(f.answers, 2 * (PICTURES - 1));
  assert_int_equal(c.images, 4 * (PICTURES - 1));
  assert_int_equal(c.encoded, PICTURES);
  assert_true(c.reused > 0);
  assert_int_equal(c.cache_bytes, PICTURES * f.m->tokens * f.m->hidden * (int64_t)sizeof(float));
  btc_batcher_destroy(&f.b);
  for (int i = 0; i < PICTURES - 1; i++) {
    assert_same(&f.got[i], &f.got[PICTURES - 1 + i]);
    btc_result_clear(&f.got[i]);
    btc_result_clear(&f.got[PICTURES - 1 + i]);
  }
  free(copy);
  teardown(&f);
}

static void test_batcher_cancelled_items_leave_the_others_alone(void **state) {
  (void)state;
  fixture f;
  setup(&f, BTC_PRECISION_F32);
  for (uint32_t seed = 1; seed <= 6; seed++) {
    uint32_t x = seed;
    bool cancelled[N] = {false};
    btc_batcher_options o = options(&f, 4, 1);
    create(&f, &o);
    for (int i = 0; i < N;) {
      if (btc_batcher_room(f.b) > 0 && random_below(&x, 2))
        submit(&f, i++);
      else
        step(&f);
      uint32_t victim = random_below(&x, N);
      if (random_below(&x, 3) == 0 && (int)victim < i && !f.answered[victim] && f.items[victim].n_images == 2)
        cancelled[victim] = btc_batcher_cancel(f.b, &f.items[victim]);
    }
    drain(&f);
    assert_int_equal(f.answers, N);
    for (int i = 0; i < N; i++) {
      if (!cancelled[i] || f.got[i].status != BTC_ERR_CANCELLED) assert_same(&f.expected[i], &f.got[i]);
      if (cancelled[i]) assert_true(f.got[i].status == BTC_ERR_CANCELLED || f.got[i].status == f.expected[i].status);
      btc_result_clear(&f.got[i]);
    }
    assert_false(btc_batcher_cancel(f.b, &f.items[0]));
    btc_batcher_destroy(&f.b);
  }
  teardown(&f);
}

static void test_batcher_stops_with_every_item_answered(void **state) {
  (void)state;
  fixture f;
  btc_error err;
  volatile int cancel = 0;
  setup(&f, BTC_PRECISION_F32);
  btc_batcher_options o = options(&f, 3, 1);
  o.cancel = &cancel;
  create(&f, &o);
  assert_int_equal(btc_batcher_room(f.b), 6);
  for (int i = 0; i < 6; i++) submit(&f, i == 3 ? 7 : i);
  assert_int_equal(btc_batcher_submit(f.b, &f.items[8], &f.items[8], &err), BTC_ERR_LIMIT);
  for (int i = 0; i < 3; i++) step(&f);
  cancel = 1;
  assert_int_equal(btc_batcher_step(f.b, &err), BTC_ERR_CANCELLED);
  assert_int_equal(f.answers, 6);
  cancel = 0;
  submit(&f, 9);
  drain(&f); /* it can go on */
  assert_same(&f.expected[9], &f.got[9]);
  submit(&f, 10);
  btc_batcher_destroy(&f.b);
  assert_int_equal(f.got[10].status, BTC_ERR_CANCELLED);
  for (int i = 0; i < N; i++)
    if (f.answered[i]) btc_result_clear(&f.got[i]);
  teardown(&f);
}

/* Prompts that outgrow the slots wait for their turn and come out right. */
static void test_batcher_grows_its_slots(void **state) {
  (void)state;
  fixture f;
  btc_error err;
  char question[300];
  memset(question, '-', sizeof question - 1);
  question[sizeof question - 1] = 0;
  setup(&f, BTC_PRECISION_F32);
  btc_result_clear(&f.expected[5]);
  f.items[5].question = question;
  btc_session *s;
  btc_session_options so = btc_session_options_default();
  so.threads = 1;
  so.precision = BTC_PRECISION_F32;
  so.max_tokens = 24;
  assert_int_equal(btc_session_create(f.m, &so, &s, &err), BTC_OK);
  btc_session_run(s, &f.items[5], 1, &f.expected[5], &err);
  btc_session_destroy(&s);
  assert_int_equal(f.expected[5].status, BTC_OK);
  btc_batcher_options o = options(&f, 4, 2);
  o.chunk = 50;
  create(&f, &o);
  run_random(&f, 77);
  check_all(&f);
  btc_batcher_destroy(&f.b);
  teardown(&f);
}

static void test_batcher_decoding_allocates_nothing(void **state) {
  (void)state;
#if COUNTS_ALLOCATIONS
  fixture f;
  setup(&f, BTC_PRECISION_AUTO);
  f.precision = BTC_PRECISION_AUTO;
  static const int32_t force[20] = {5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24};
  btc_batcher_options o = options(&f, 3, 2);
  o.force = force;
  o.n_force = 20;
  create(&f, &o);
  for (int i = 0; i < 3; i++) f.items[i].max_tokens = 20;
  for (int i = 0; i < 3; i++) submit(&f, i);
  while (btc_batcher_get_counts(f.b).decoded < 6 || btc_batcher_get_counts(f.b).images < 6) step(&f);
  for (int i = 0; i < 3; i++) step(&f);
  assert_int_equal(f.answers, 0);
  int64_t before = btc_batcher_get_counts(f.b).decoded;
  allocations = 0;
  counting = 1;
  for (int i = 0; i < 5; i++) step(&f);
  counting = 0;
  assert_int_equal(allocations, 0);
  assert_int_equal(btc_batcher_get_counts(f.b).decoded - before, 15);
  drain(&f);
  for (int i = 0; i < 3; i++) btc_result_clear(&f.got[i]);
  btc_batcher_destroy(&f.b);
  teardown(&f);
#else
  skip();
#endif
}

/* Memory that runs out while the batcher's own thread works: the reading thread and small tables are left alone. */
static struct {
  pthread_t thread;
  int skip, fail; /* large allocations that pass, then those that fail */
  int notes;
  char note[1024];
} shortage;

static bool allow(size_t bytes) {
  if (bytes < 1024 || !pthread_equal(shortage.thread, pthread_self())) return true;
  if (shortage.skip-- > 0) return true;
  return shortage.fail-- <= 0;
}

static void on_note(void *ctx, const char *text) {
  (void)ctx;
  shortage.notes++;
  snprintf(shortage.note, sizeof shortage.note, "%s", text);
}

static void run_short(int skip_first, int fail) {
  shortage.thread = pthread_self();
  shortage.skip = skip_first;
  shortage.fail = fail;
  shortage.notes = 0;
  btc_alloc_hook = allow;
}

static void run_short_of_memory(fixture *f, int slots, int skip_first, int fail) {
  btc_batcher_options o = options(f, slots, 1);
  o.note = on_note;
  o.vision_batch = 1;
  create(f, &o);
  run_short(skip_first, fail);
  run_random(f, (uint32_t)skip_first);
  btc_alloc_hook = NULL;
  btc_batcher_destroy(&f->b);
}

static void test_batcher_shrinks_when_memory_runs_out(void **state) {
  (void)state;
  fixture f;
  int shrunk = 0;
  setup(&f, BTC_PRECISION_F32);
  for (int at = 0; at < 14; at++) {
    run_short_of_memory(&f, 8, at, 1 + at % 3);
    check_all(&f); /* no item pays */
    assert_true(shortage.notes <= 1 + at % 3);
    shrunk += shortage.notes;
    if (shortage.notes) assert_non_null(strstr(shortage.note, "out of memory"));
    if (shortage.notes == 3) assert_non_null(strstr(shortage.note, "1 slots"));
  }
  assert_true(shrunk > 10);
  teardown(&f);
}

/* With too little even for one item, that is said of the items; the batcher goes on when there is memory again. */
static void test_batcher_says_when_one_item_is_too_much(void **state) {
  (void)state;
  fixture f;
  btc_error err = {0};
  setup(&f, BTC_PRECISION_F32);
  btc_batcher_options o = options(&f, 2, 1);
  o.note = on_note;
  create(&f, &o);
  run_short(0, 1 << 20);
  for (int i = 0; i < 3; i++) submit(&f, i);
  while (btc_batcher_open(f.b)) (void)btc_batcher_step(f.b, &err);
  btc_alloc_hook = NULL;
  assert_int_equal(f.answers, 3);
  assert_int_equal(shortage.notes, 2); /* to 1 slot, and the tower's 4 images to 1 */
  for (int i = 0; i < 3; i++) {
    assert_int_equal(f.got[i].status, BTC_ERR_NOMEM);
    btc_result_clear(&f.got[i]);
    f.answered[i] = false;
  }
  f.answers = 0;
  for (int i = 0; i < 3; i++) submit(&f, i);
  drain(&f);
  for (int i = 0; i < 3; i++) {
    assert_same(&f.expected[i], &f.got[i]);
    btc_result_clear(&f.got[i]);
  }
  btc_batcher_destroy(&f.b);
  teardown(&f);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_batcher_answers_like_a_session_f32),
      cmocka_unit_test(test_batcher_answers_like_a_session_bf16),
      cmocka_unit_test(test_batcher_encodes_each_content_once),
      cmocka_unit_test(test_batcher_cancelled_items_leave_the_others_alone),
      cmocka_unit_test(test_batcher_stops_with_every_item_answered),
      cmocka_unit_test(test_batcher_grows_its_slots),
      cmocka_unit_test(test_batcher_decoding_allocates_nothing),
      cmocka_unit_test(test_batcher_shrinks_when_memory_runs_out),
      cmocka_unit_test(test_batcher_says_when_one_item_is_too_much),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
