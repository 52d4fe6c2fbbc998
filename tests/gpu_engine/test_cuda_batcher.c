/*
 * A batcher over a CUDA device that fails (tests/gpu_host/fake): a device that is lost ends every open item with DEVICE and is
 * never computed on again; memory that runs out costs slots and no item. And over one that works: what is computed together, what
 * stays on it, and that answers are those of items alone.
 */
#define _GNU_SOURCE
#include "test.h"

#include <stdio.h>
#include <unistd.h>

#include "engine/batcher.h"
#include "engine/model.h"
#include "kernels/cuda/cuda.h"
#include "tests/gpu_host/fake/fake.h"
#include "tiny_checkpoint.h"

enum { N = 2 };

typedef struct run {
  btc_model *m;
  btc_batcher *b;
  btc_item items[N];
  const char *paths[N][2];
  btc_result got[N];
  int answers, notes;
} run;

static void on_done(void *ctx, void *tag, btc_result *r) {
  run *f = ctx;
  f->got[(btc_item *)tag - f->items] = *r;
  f->answers++;
}

static void on_note(void *ctx, const char *text) {
  assert_non_null(strstr(text, "out of memory"));
  ((run *)ctx)->notes++;
}

static void begin(run *f) {
  btc_error err = {0};
  *f = (run){0};
  skip_without_shared();
  if (btc_model_open(shared_path("vectors/pair-l0/ckpt"), &f->m, &err) != BTC_OK) fail_msg("%s", err.message);
  for (int i = 0; i < N; i++) {
    f->paths[i][0] = tiny_picture(40 + i, 50, (unsigned)i);
    f->paths[i][1] = tiny_picture(41 + i, 50, (unsigned)i + 1);
    f->items[i] = (btc_item){.images = f->paths[i], .n_images = 2, .max_tokens = 2};
  }
}

/* All items; the at-th call of the runtime from the first step on fails with this code (0: none does). */
static btc_status run_all(run *f, long at, int code) {
  btc_batcher_options o = {.device = "cuda", .threads = 1, .slots = 4, .max_tokens = 2, .done = on_done, .note = on_note, .ctx = f};
  btc_error err = {0};
  btc_status st = BTC_OK;
  char fail[32];
  f->answers = f->notes = 0;
  setenv("FAKE_CUDA_FAIL", "0:0", 1); /* whole again, whatever came before */
  if (btc_batcher_create(f->m, &o, &f->b, &err) != BTC_OK) fail_msg("%s", err.message);
  for (int i = 0; i < N; i++) assert_int_equal(btc_batcher_submit(f->b, &f->items[i], &f->items[i], &err), BTC_OK);
  snprintf(fail, sizeof fail, "%ld:%d", at, code);
  if (code) setenv("FAKE_CUDA_FAIL", fail, 1);
  while (st == BTC_OK && btc_batcher_open(f->b)) st = btc_batcher_step(f->b, &err);
  btc_batcher_destroy(&f->b);
  unsetenv("FAKE_CUDA_FAIL");
  assert_int_equal(f->answers, N);
  return st;
}

static void clear(run *f) {
  for (int i = 0; i < N; i++) btc_result_clear(&f->got[i]);
}

static void test_cuda_batcher_lost_device_ends_all(void **state) {
  (void)state;
  run f;
  int lost = 0;
  begin(&f);
  for (long at = 1; at < 4000; at = at * 12 + 1) {
    btc_status st = run_all(&f, at, 214); /* cudaErrorECCUncorrectable */
    int with_it = 0;
    for (int i = 0; i < N; i++) with_it += f.got[i].status == BTC_ERR_DEVICE;
    assert_true(st == BTC_OK ? with_it == 0 : st == BTC_ERR_DEVICE && with_it > 0);
    for (int i = 0; i < N; i++) assert_true(f.got[i].status == BTC_OK || f.got[i].status == BTC_ERR_DEVICE);
    assert_int_equal(f.notes, 0);
    lost += st == BTC_ERR_DEVICE;
    clear(&f);
  }
  assert_true(lost >= 2);
  btc_model_close(&f.m);
}

static void test_cuda_batcher_short_of_memory_costs_no_item(void **state) {
  (void)state;
  run f;
  int shrunk = 0;
  begin(&f);
  char *expected[N];
  assert_int_equal(run_all(&f, 0, 0), BTC_OK);
  for (int i = 0; i < N; i++) {
    assert_int_equal(f.got[i].status, BTC_OK);
    expected[i] = btc_strdup(f.got[i].text);
  }
  clear(&f);
  for (long at = 1; at < 4000; at = at * 12 + 1) {
    assert_int_equal(run_all(&f, at, 2), BTC_OK); /* cudaErrorMemoryAllocation */
    for (int i = 0; i < N; i++) assert_string_equal(f.got[i].text, expected[i]);
    shrunk += f.notes;
    clear(&f);
  }
  assert_true(shrunk >= 1);
  for (int i = 0; i < N; i++) free(expected[i]);
  btc_model_close(&f.m);
}

/* ---- batches ---- */

enum { MANY = 8, TOKENS = 3 };

typedef struct many {
  btc_model *m;
  btc_item items[MANY];
  const char *paths[MANY][2];
  btc_result alone[MANY], got[MANY];
  btc_batcher_counts counts;
  int tokens, remarks;
} many;

static void on_many(void *ctx, void *tag, btc_result *r) {
  many *f = ctx;
  f->got[(btc_item *)tag - f->items] = *r;
}

static void on_remark(void *ctx, const char *text) {
  assert_non_null(strstr(text, "cannot be pinned"));
  ((many *)ctx)->remarks++;
}

/* Eight pairs of sixteen pictures; drawn: every other answer is drawn. */
static void begin_many(many *f, bool drawn) {
  btc_error err = {0};
  *f = (many){.tokens = TOKENS};
  if (btc_model_open(shared_path("vectors/pair-l0/ckpt"), &f->m, &err) != BTC_OK) fail_msg("%s", err.message);
  for (int i = 0; i < MANY; i++) {
    f->paths[i][0] = tiny_picture(40 + i, 50, (unsigned)i);
    f->paths[i][1] = tiny_picture(41 + i, 51, (unsigned)i + 100);
    f->items[i] = (btc_item){.images = f->paths[i],
                             .n_images = 2,
                             .question = i % 3 ? "Is anything new?" : NULL,
                             .temperature = drawn && i % 2 ? 0.9f : 0,
                             .seed = (uint64_t)i};
  }
}

/* One item at a time in a session on that device. */
static void run_alone(many *f, const char *device, btc_precision precision, btc_result *results) {
  btc_session *s;
  btc_error err;
  btc_session_options o = btc_session_options_default();
  o.device = device;
  o.threads = 1;
  o.precision = precision;
  o.max_tokens = f->tokens;
  if (btc_session_create(f->m, &o, &s, &err) != BTC_OK) fail_msg("%s", err.message);
  for (int i = 0; i < MANY; i++) assert_int_equal(btc_session_run(s, &f->items[i], 1, &results[i], &err), BTC_OK);
  btc_session_destroy(&s);
}

/* All at once: no step is made before every picture has been read, so that what is computed together is foreseen. */
static void run_batches(many *f, btc_precision precision, int vision_batch) {
  btc_batcher *b;
  btc_error err;
  btc_batcher_options o = {.device = "cuda",
                           .threads = 1,
                           .precision = precision,
                           .slots = MANY,
                           .max_tokens = f->tokens,
                           .vision_batch = vision_batch,
                           .readers = 4,
                           .done = on_many,
                           .note = on_remark,
                           .ctx = f};
  if (btc_batcher_create(f->m, &o, &b, &err) != BTC_OK) fail_msg("%s", err.message);
  for (int i = 0; i < MANY; i++) assert_int_equal(btc_batcher_submit(b, &f->items[i], &f->items[i], &err), BTC_OK);
  for (int64_t end = btc_now_ns() + INT64_C(60000000000); btc_batcher_get_counts(b).images < 2 * MANY && btc_now_ns() < end;)
    usleep(1000);
  memset(&fake, 0, sizeof fake);
  while (btc_batcher_open(b))
    if (btc_batcher_step(b, &err) != BTC_OK) fail_msg("%s", err.message);
  f->counts = btc_batcher_get_counts(b);
  btc_batcher_destroy(&b);
}

static void run_together(many *f, btc_precision precision) {
  run_batches(f, precision, 0);
}

static void end_many(many *f) {
  for (int i = 0; i < MANY; i++) {
    btc_result_clear(&f->alone[i]);
    btc_result_clear(&f->got[i]);
  }
  btc_model_close(&f->m);
}

static void assert_same(const btc_result *a, const btc_result *b, int64_t tokens) {
  assert_int_equal(a->status, BTC_OK);
  assert_int_equal(b->status, BTC_OK);
  assert_string_equal(a->text, b->text);
  assert_int_equal(a->n_ids, b->n_ids);
  assert_memory_equal(a->ids, b->ids, (size_t)a->n_ids * sizeof *a->ids);
  assert_memory_equal(&a->logprob, &b->logprob, sizeof a->logprob);
  assert_memory_equal(&a->score, &b->score, sizeof a->score);
  assert_memory_equal(a->cosine, b->cosine, (size_t)tokens * sizeof *a->cosine);
}

static void check_together(btc_precision precision, bool drawn) {
  many f;
  skip_without_shared();
  begin_many(&f, drawn);
  run_alone(&f, "cuda", precision, f.alone);
  run_together(&f, precision);
  for (int i = 0; i < MANY; i++) assert_same(&f.alone[i], &f.got[i], f.m->tokens);
  end_many(&f);
}

/* Steps repeated as recordings say what steps issued anew say, while positions, tokens and the number of items change: two items
 * less every three steps. */
static void check_recordings(btc_precision precision) {
  many f;
  skip_without_shared();
  begin_many(&f, true);
  f.tokens = 16;
  for (int i = 0; i < MANY; i++) f.items[i].max_tokens = 5 + 3 * (i / 2);
  setenv("FAKE_CUDA_CAPTURE", "refused", 1);
  fake.recorded = fake.repeated = 0;
  run_alone(&f, "cuda", precision, f.alone);
  assert_true(fake.recorded == 0 && fake.repeated == 0);
  unsetenv("FAKE_CUDA_CAPTURE");
  run_together(&f, precision);
  assert_true(fake.recorded >= 2 && fake.repeated >= 2 * fake.recorded);
  for (int i = 0; i < MANY; i++) assert_same(&f.alone[i], &f.got[i], f.m->tokens);
  end_many(&f);
}

static void test_cuda_batcher_repeats_recordings_f32(void **state) {
  (void)state;
  check_recordings(BTC_PRECISION_F32);
}

static void test_cuda_batcher_repeats_recordings_bf16(void **state) {
  (void)state;
  check_recordings(BTC_PRECISION_BF16);
}

static void test_cuda_batcher_answers_like_a_session_f32(void **state) {
  (void)state;
  check_together(BTC_PRECISION_F32, false);
}

static void test_cuda_batcher_answers_like_a_session_bf16(void **state) {
  (void)state;
  check_together(BTC_PRECISION_BF16, false);
}

static void test_cuda_batcher_draws_like_a_session(void **state) {
  (void)state;
  check_together(BTC_PRECISION_F32, true);
}

/* Pictures of every kind: one pixel, the tower's own square, larger than a device takes, wider than it takes; padded or not. */
static void vary(many *f) {
  const int side = (int)f->m->cfg->vision.image,
            sizes[][2] = {{1, 1}, {side, side}, {3 * side, 3 * side}, {5 * side, 3}, {2 * side, 2 * side}};
  for (int i = 0; i < MANY; i++) {
    const int *a = sizes[i % 5], *z = sizes[(i + 3) % 5];
    f->paths[i][0] = tiny_picture(a[0], a[1], (unsigned)i);
    f->paths[i][1] = tiny_picture(z[0], z[1], (unsigned)i + 50);
    f->items[i].aspect = i % 2 ? BTC_ASPECT_PAD : BTC_ASPECT_SQUASH;
  }
}

static void check_varied(const char *alone) {
  many f;
  skip_without_shared();
  begin_many(&f, false);
  vary(&f);
  run_alone(&f, alone, BTC_PRECISION_F32, f.alone);
  run_batches(&f, BTC_PRECISION_F32, 3); /* the next three go up while three are computed */
  assert_int_equal(fake.most_beside >= 3, getenv("FAKE_CUDA_UNPINNED") == NULL);
  assert_int_equal(f.remarks, getenv("FAKE_CUDA_UNPINNED") ? 1 : 0);
  for (int i = 0; i < MANY; i++) {
    assert_int_equal(f.got[i].status, BTC_OK);
    assert_int_equal(f.alone[i].status, BTC_OK);
    assert_string_equal(f.alone[i].text, f.got[i].text);
    assert_memory_equal(f.alone[i].ids, f.got[i].ids, (size_t)f.alone[i].n_ids * sizeof *f.alone[i].ids);
  }
  end_many(&f);
}

static void test_cuda_batcher_sends_the_next_batch_ahead(void **state) {
  (void)state;
  check_varied("cuda");
}

static void test_cuda_batcher_takes_pictures_of_every_size_like_the_cpu(void **state) {
  (void)state;
  check_varied("cpu");
}

static void test_cuda_batcher_without_pinned_memory(void **state) {
  (void)state;
  setenv("FAKE_CUDA_UNPINNED", "1", 1);
  check_varied("cpu");
  unsetenv("FAKE_CUDA_UNPINNED");
}

/* A recording that fails at its end has run nothing; the steps are issued again. */
static void test_cuda_batcher_survives_a_failed_recording(void **state) {
  (void)state;
  setenv("FAKE_CUDA_CAPTURE", "fails", 1);
  fake.recorded = 0;
  check_together(BTC_PRECISION_F32, false);
  assert_true(fake.recorded == 0 && !btc_cuda_overlaps());
  btc_cuda_overlap(1);
  unsetenv("FAKE_CUDA_CAPTURE");
}

/* A driver that does not record launches that overlap records others. */
static void test_cuda_batcher_records_without_overlap(void **state) {
  (void)state;
  setenv("FAKE_CUDA_CAPTURE", "overlap", 1);
  fake.recorded = 0;
  assert_true(btc_cuda_overlaps());
  check_together(BTC_PRECISION_F32, false);
  assert_true(fake.recorded >= 1 && !btc_cuda_overlaps());
  btc_cuda_overlap(1);
  unsetenv("FAKE_CUDA_CAPTURE");
}

/* In f32 the device says what the CPU says; its log-probabilities come from other exponentials. */
static void test_cuda_batcher_answers_like_the_cpu(void **state) {
  (void)state;
  many f;
  skip_without_shared();
  begin_many(&f, true);
  run_alone(&f, "cpu", BTC_PRECISION_F32, f.alone);
  run_together(&f, BTC_PRECISION_F32);
  for (int i = 0; i < MANY; i++) {
    assert_int_equal(f.got[i].status, BTC_OK);
    assert_string_equal(f.alone[i].text, f.got[i].text);
    assert_int_equal(f.alone[i].n_ids, f.got[i].n_ids);
    assert_memory_equal(f.alone[i].ids, f.got[i].ids, (size_t)f.alone[i].n_ids * sizeof *f.alone[i].ids);
    assert_true(f.alone[i].logprob - f.got[i].logprob < 1e-3 && f.got[i].logprob - f.alone[i].logprob < 1e-3);
  }
  end_many(&f);
}

/* Products of that shape of weight; *rows: of all of them together. */
static int64_t products(int64_t n, int64_t k, int64_t *rows) {
  int64_t count = 0;
  assert_true(fake.n_products < FAKE_PRODUCTS);
  *rows = 0;
  for (int64_t i = 0; i < fake.n_products; i++) {
    if (fake.product[i].n != n || fake.product[i].k != k) continue;
    *rows += fake.product[i].m;
    count++;
  }
  return count;
}

static void test_cuda_batcher_computes_together(void **state) {
  (void)state;
  many f;
  int64_t rows;
  skip_without_shared();
  begin_many(&f, false);
  const btc_vision_config *v = &f.m->cfg->vision;
  const btc_llm_config *l = &f.m->cfg->llm;
  run_together(&f, BTC_PRECISION_F32);
  assert_int_equal(products(v->mlp, v->hidden, &rows), v->blocks); /* one pass of the tower for all sixteen pictures */
  assert_int_equal(rows, v->blocks * 2 * MANY * f.m->tokens);
  /* the patches of all pictures in one product, their pairs in one of each kind */
  const int64_t columns = (f.m->patch.w.cols + 3) / 4 * 4; /* padded to 16 bytes */
  assert_int_equal(products(v->hidden, columns, &rows), 1);
  assert_int_equal(rows, 2 * MANY * f.m->tokens);
  assert_int_equal(products(v->hidden, 2 * v->hidden, &rows), 1);
  assert_int_equal(rows, MANY * f.m->tokens);
  assert_int_equal(products(f.m->width, 4 * v->hidden, &rows), 1);
  assert_int_equal(rows, MANY * f.m->block_tokens);
  assert_int_equal(f.counts.prefills, 1);
  /* one pass over the weights for all prompts and one for their common beginning; gate and up together, and q, k and v */
  assert_int_equal(products(2 * l->mlp, l->hidden, &rows), 2 * l->layers);
  assert_int_equal(rows, l->layers * f.counts.prefilled);
  assert_int_equal(products((l->heads + 2 * l->kv_heads) * l->head_dim, l->hidden, &rows), 2 * l->layers);
  assert_int_equal(products(l->mlp, l->hidden, &rows), 0);
  for (int i = 0; i < MANY; i++) assert_int_equal(f.got[i].status, BTC_OK);
  end_many(&f);
}

/* Of greedy pairs only tokens and change maps come back. */
static void test_cuda_batcher_keeps_tensors_on_the_device(void **state) {
  (void)state;
  many f;
  skip_without_shared();
  begin_many(&f, false);
  run_together(&f, BTC_PRECISION_F32);
  int64_t picks = (MANY + f.counts.decoded) * (int64_t)sizeof(btc_pick);
  assert_int_equal(fake.to_host, picks + MANY * f.m->tokens * (int64_t)sizeof(float));
  end_many(&f);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_cuda_batcher_answers_like_a_session_f32),
    cmocka_unit_test(test_cuda_batcher_answers_like_a_session_bf16),
    cmocka_unit_test(test_cuda_batcher_draws_like_a_session),
    cmocka_unit_test(test_cuda_batcher_sends_the_next_batch_ahead),
    cmocka_unit_test(test_cuda_batcher_takes_pictures_of_every_size_like_the_cpu),
    cmocka_unit_test(test_cuda_batcher_without_pinned_memory),
    cmocka_unit_test(test_cuda_batcher_repeats_recordings_f32),
    cmocka_unit_test(test_cuda_batcher_repeats_recordings_bf16),
    cmocka_unit_test(test_cuda_batcher_survives_a_failed_recording),
    cmocka_unit_test(test_cuda_batcher_records_without_overlap),
    cmocka_unit_test(test_cuda_batcher_answers_like_the_cpu),
    cmocka_unit_test(test_cuda_batcher_computes_together),
    cmocka_unit_test(test_cuda_batcher_keeps_tensors_on_the_device),
    cmocka_unit_test(test_cuda_batcher_lost_device_ends_all),
    cmocka_unit_test(test_cuda_batcher_short_of_memory_costs_no_item),
};

BTC_TEST_MAIN(tests)
