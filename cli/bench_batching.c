/*
 * Three ways over the same pictures: pairs one at a time in a session; the same pairs through the batcher; and a time series
 * (t1,t2),(t2,t3),.. of as many pairs, where each picture is encoded once. Answers are forced to a length, so that a random model
 * works like a trained one; their log-probabilities must be the same bit for bit, which is checked.
 */
#define _GNU_SOURCE
#include "bench_batching.h"
#include "bench_pictures.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/batcher.h"
#include "engine/session.h"

typedef struct bench {
  const bench_batching_options *o;
  btc_model *m;
  int n;
  bench_pictures pictures;
  const char **paths;  /* [2 n] as items take them */
  const char **series; /* [2 n] pairs of neighbours */
  int32_t *force;      /* [tokens] */
  double *logprob;     /* [n] of the session */
  btc_item *items;     /* [n] */
  int answered;
  btc_status status; /* of the first item that failed */
  btc_error err;
  bool compare, differs;
} bench;

typedef struct figures {
  double one, batched, series; /* items/s */
  btc_batcher_counts batched_counts, series_counts;
} figures;

/* ---- pictures ---- */

static btc_status make_pictures(bench *b, btc_error *err) {
  btc_status st = bench_pictures_make(&b->pictures, 2 * b->n, err);
  for (int i = 0; st == BTC_OK && i < 2 * b->n; i++) b->paths[i] = b->pictures.files[i];
  for (int i = 0; st == BTC_OK && i < b->n; i++) {
    b->series[2 * i] = b->paths[i];
    b->series[2 * i + 1] = b->paths[i + 1];
  }
  return st;
}

/* ---- runs ---- */

static void set_items(bench *b, const char **paths) {
  for (int i = 0; i < b->n; i++) b->items[i] = (btc_item){.images = paths + 2 * i, .n_images = 2};
}

static double rate(const bench *b, int64_t start) {
  return b->n / ((double)(btc_now_ns() - start) * 1e-9);
}

static btc_status run_one_by_one(bench *b, btc_session *s, double *items_s, btc_error *err) {
  set_items(b, b->paths);
  int64_t start = btc_now_ns();
  btc_status st = BTC_OK;
  for (int i = 0; i < b->n && st == BTC_OK; i++) {
    btc_result r;
    st = btc_session_run(s, &b->items[i], 1, &r, err);
    if (st == BTC_OK && r.status != BTC_OK) st = r.status, *err = r.error;
    b->logprob[i] = r.logprob;
    btc_result_clear(&r);
  }
  double now = rate(b, start);
  if (st == BTC_OK && now > *items_s) *items_s = now;
  return st;
}

static void on_done(void *ctx, void *tag, btc_result *r) {
  bench *b = ctx;
  ptrdiff_t i = (btc_item *)tag - b->items;
  if (r->status != BTC_OK && b->status == BTC_OK) {
    b->status = r->status;
    b->err = r->error;
  }
  /* the bits are what must be equal: NOLINTNEXTLINE(bugprone-suspicious-memory-comparison) */
  if (r->status == BTC_OK && b->compare && memcmp(&r->logprob, &b->logprob[i], sizeof r->logprob) != 0) b->differs = true;
  b->answered++;
  btc_result_clear(r);
}

/* A batcher of its own, so that its cache begins empty; making it does not count. */
static btc_status run_batched(bench *b, const char **paths, double *items_s, btc_batcher_counts *counts, btc_error *err) {
  btc_batcher_options bo = {.device = chosen_device(b->o->model),
                            .threads = (int)b->o->model->threads,
                            .slots = (int)b->o->slots,
                            .max_tokens = (int)b->o->tokens,
                            .cancel = &cli_interrupted,
                            .force = b->force,
                            .n_force = (size_t)b->o->tokens,
                            .done = on_done,
                            .ctx = b};
  const char *dtype = b->o->model->dtype;
  bo.precision = !strcmp(dtype, "f32") ? BTC_PRECISION_F32 : !strcmp(dtype, "bf16") ? BTC_PRECISION_BF16 : BTC_PRECISION_AUTO;
  btc_batcher *batcher;
  btc_status st = btc_batcher_create(b->m, &bo, &batcher, err);
  if (st != BTC_OK) return st;
  set_items(b, paths);
  b->compare = paths == b->paths;
  b->answered = 0;
  int64_t start = btc_now_ns();
  for (int i = 0; st == BTC_OK && b->answered < b->n;) {
    while (st == BTC_OK && i < b->n && btc_batcher_room(batcher)) {
      st = btc_batcher_submit(batcher, &b->items[i], &b->items[i], err);
      i++;
    }
    if (st == BTC_OK) st = btc_batcher_step(batcher, err);
  }
  double now = rate(b, start);
  if (st == BTC_OK && now > *items_s) *items_s = now;
  *counts = btc_batcher_get_counts(batcher);
  btc_batcher_destroy(&batcher);
  if (st == BTC_OK && b->status != BTC_OK) st = b->status, *err = b->err;
  return st;
}

static btc_status run_all(bench *b, btc_session *s, figures *f, btc_error *err) {
  btc_status st = BTC_OK;
  for (int64_t i = 0; i < b->o->runs && st == BTC_OK; i++) {
    st = run_one_by_one(b, s, &f->one, err);
    if (st == BTC_OK) st = run_batched(b, b->paths, &f->batched, &f->batched_counts, err);
    if (st == BTC_OK) st = run_batched(b, b->series, &f->series, &f->series_counts, err);
  }
  return st;
}

/* ---- result ---- */

static void print_figures(const bench *b, const btc_session *s, const figures *f) {
  const btc_batcher_counts *c = &f->batched_counts;
  double rows = c->steps ? (double)c->decoded / (double)c->steps : 0;
  if (b->o->json) {
    json_t *o = json_pack("{s:s,s:I,s:I,s:I,s:f,s:f,s:f,s:f,s:f,s:f,s:I,s:I,s:b}", "backend", btc_session_describe(s), "pairs",
                          (json_int_t)b->n, "slots", (json_int_t)b->o->slots, "tokens", (json_int_t)b->o->tokens, "one_items_s",
                          f->one, "batched_items_s", f->batched, "series_items_s", f->series, "batched_ratio", f->batched / f->one,
                          "series_ratio", f->series / f->one, "decode_rows", rows, "images_encoded", (json_int_t)c->encoded,
                          "series_images_encoded", (json_int_t)f->series_counts.encoded, "same_bits", !b->differs);
    char *line = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(6));
    if (line) puts(line);
    free(line);
    json_decref(o);
    return;
  }
  printf("%s, %d pairs, answers of %lld tokens, fastest of %lld runs\n", btc_session_describe(s), b->n, (long long)b->o->tokens,
         (long long)b->o->runs);
  printf("%-36s %8.4f items/s\n", "one item at a time", f->one);
  printf("%-36s %8.4f items/s  %.2fx  %lld images encoded, %.1f rows a decode step, %lld of %lld prompt positions reused\n",
         "batched", f->batched, f->batched / f->one, (long long)c->encoded, rows, (long long)c->reused,
         (long long)c->reused + (long long)c->prefilled);
  printf("%-36s %8.4f items/s  %.2fx  %lld images encoded\n", "batched, a time series", f->series, f->series / f->one,
         (long long)f->series_counts.encoded);
  printf("answers of both are %s\n", b->differs ? "NOT the same" : "the same bit for bit");
}

static bool allocate(bench *b) {
  size_t n = (size_t)b->n, tokens = (size_t)b->o->tokens;
  b->paths = btc_alloc_zero(2 * n, sizeof *b->paths);
  b->series = btc_alloc_zero(2 * n, sizeof *b->series);
  b->logprob = btc_alloc_zero(n, sizeof *b->logprob);
  b->items = btc_alloc_zero(n, sizeof *b->items);
  b->force = btc_alloc(tokens, sizeof *b->force);
  for (size_t i = 0; b->force && i < tokens; i++) b->force[i] = (int32_t)(3 + i % 250);
  return b->paths && b->series && b->logprob && b->items && b->force;
}

int bench_batching(const bench_batching_options *o) {
  bench b = {.o = o, .n = (int)o->pairs};
  btc_session *s = NULL;
  figures f = {0};
  btc_error err;
  int code = open_model(o->model, &b.m);
  if (code == CLI_OK) code = open_session(o->model, b.m, &s);
  if (code == CLI_OK) {
    btc_status st = allocate(&b) ? make_pictures(&b, &err) : btc_fail(&err, BTC_ERR_NOMEM, "out of memory");
    btc_session_set_probe(s, &(btc_session_probe){.force = b.force, .n_force = (size_t)o->tokens});
    if (st == BTC_OK) st = run_all(&b, s, &f, &err);
    if (st == BTC_OK) print_figures(&b, s, &f);
    if (st != BTC_OK) cli_error("%s", err.message);
    code = st == BTC_OK ? (b.differs ? CLI_FAILED : CLI_OK) : st == BTC_ERR_CANCELLED ? CLI_INTERRUPTED : CLI_FAILED;
  }
  bench_pictures_remove(&b.pictures);
  free(b.paths);
  free(b.series);
  free(b.logprob);
  free(b.items);
  free(b.force);
  btc_session_destroy(&s);
  btc_model_close(&b.m);
  return code;
}
