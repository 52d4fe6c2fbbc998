/*
 * Pairs through a pipeline of real processes, cut by the broker's planner for members that are all as fast as this machine. Times
 * are those that each rank spends within steps, waiting for a processor included: with more ranks than processors that is what
 * tells whether the schedule leaves a rank without work. A rank's idle time has two causes: stages are not equal (imbalance: 1 -
 * mean / most), and the busiest one waits too (what the schedule loses: 1 - most / run).
 */
#define _GNU_SOURCE
#include "bench_pipe.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_pictures.h"
#include "broker/plan.h"
#include "worker/measure.h"
#include "worker/pipe.h"

typedef struct bench {
  const bench_pipe_options *o;
  const char *device; /* chosen, no longer "auto" */
  int ranks, n;
  int cuts[PIPE_MAX_RANKS + 1];
  int64_t weights[PIPE_MAX_RANKS];
  bench_pictures pictures;
  const char **paths;
  btc_item *items;
  btc_result *results;
  char answers[17]; /* of all of them together: runs that answer alike have the same */
} bench;

/* ---- where to cut ---- */

static btc_status cut(bench *b, const btc_model *m, btc_precision precision, btc_error *err) {
  static btc_plan_block block[BTC_PLAN_BLOCKS];
  const btc_load load = {.images = 2, .blocks = 1, .positions = m->block_tokens + 64, .pairs = m->change.layers >= 0};
  const measure_options mo = {.device = b->device,
                              .threads = (int)b->o->model->threads,
                              .bf16 = precision == BTC_PRECISION_BF16,
                              .slots = (int)b->o->slots,
                              .max_tokens = (int)b->o->tokens};
  btc_plan_member members[BTC_PLAN_STAGES] = {{0}};
  const btc_plan_member *list[BTC_PLAN_STAGES];
  const int n = btc_block_count(m);
  double ms[MEASURE_KINDS];
  if (n > BTC_PLAN_BLOCKS) return btc_fail(err, BTC_ERR_UNSUPPORTED, "a model of %d blocks", n);
  btc_status st = measure_kinds(m, &mo, ms, err);
  if (st != BTC_OK) return st;
  for (int i = 0; i < n; i++)
    block[i] = (btc_plan_block){.kind = (btc_plan_kind)btc_block_at(m, i).kind, .price = btc_block_flops(m, i, &load)};
  static char names[BTC_PLAN_STAGES][16];
  for (int i = 0; i < b->ranks; i++) {
    snprintf(names[i], sizeof names[i], "%d", i);
    members[i] = (btc_plan_member){.name = names[i], .fingerprint = "", .site = "", .memory_bytes = INT64_MAX / 4};
    for (int k = 0; k < MEASURE_KINDS; k++) members[i].ms[k] = ms[k];
    list[i] = &members[i];
  }
  const btc_plan_model model = {.fingerprint = "", .block = block, .blocks = n, .slots = 1, .ms_per_price = 1};
  btc_plan_pipe plan;
  if (!btc_plan_cut(&model, list, b->ranks, &plan)) return btc_fail(err, BTC_ERR_ARG, "%d ranks for %d blocks", b->ranks, n);
  for (int r = 0; r < b->ranks; r++) {
    b->cuts[r + 1] = plan.stage[r].last;
    for (int i = plan.stage[r].first; i < plan.stage[r].last; i++) b->weights[r] += btc_block_at(m, i).weight_bytes;
  }
  return BTC_OK;
}

/* ---- what a process holds ---- */

/* Resident bytes of the mapped checkpoint. */
static int64_t resident_weights(int pid) {
  char path[64], line[1024];
  int64_t kb = 0;
  bool ours = false;
  snprintf(path, sizeof path, "/proc/%d/smaps", pid);
  FILE *f = pid ? fopen(path, "re") : NULL;
  while (f && fgets(line, sizeof line, f)) {
    if (strchr(line, '-') && strchr(line, '/'))
      ours = strstr(line, ".safetensors") != NULL;
    else if (line[0] >= '0' && line[0] <= '9')
      ours = false;
    if (ours && strncmp(line, "Rss:", 4) == 0) kb += strtoll(line + 4, NULL, 10);
  }
  if (f) fclose(f);
  return kb << 10;
}

/* ---- the run ---- */

static btc_status prepare(bench *b, btc_error *err) {
  b->paths = btc_alloc_zero(2 * (size_t)b->n, sizeof *b->paths);
  b->items = btc_alloc_zero((size_t)b->n, sizeof *b->items);
  b->results = btc_alloc_zero((size_t)b->n, sizeof *b->results);
  if (!b->paths || !b->items || !b->results) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  btc_status st = bench_pictures_make(&b->pictures, 2 * b->n, err);
  for (int i = 0; st == BTC_OK && i < 2 * b->n; i++) b->paths[i] = b->pictures.files[i];
  for (int i = 0; st == BTC_OK && i < b->n; i++) b->items[i] = (btc_item){.images = b->paths + 2 * (size_t)i, .n_images = 2};
  return st;
}

static void sum_up(bench *b) {
  btc_sha256 s;
  uint8_t digest[32];
  btc_sha256_init(&s);
  for (int i = 0; i < b->n; i++) {
    const char *text = b->results[i].text ? b->results[i].text : "";
    btc_sha256_update(&s, text, strlen(text) + 1);
  }
  btc_sha256_final(&s, digest);
  for (int i = 0; i < 8; i++) sprintf(b->answers + 2 * i, "%02x", digest[i]);
}

static btc_status run(bench *b, pipe_driver *p, btc_error *err) {
  btc_status st = pipe_run(p, b->items, (size_t)b->n, b->results, err);
  if (st == BTC_OK) sum_up(b);
  for (int i = 0; i < b->n; i++) {
    if (st == BTC_OK && b->results[i].status != BTC_OK) st = btc_fail(err, b->results[i].status, "%s", b->results[i].error.message);
    btc_result_clear(&b->results[i]);
  }
  return st;
}

static void print(const bench *b, pipe_driver *p) {
  const pipe_state s = pipe_get_state(p);
  double most = 0, sum = 0;
  json_t *stages = json_array();
  for (int r = 0; r < s.ranks; r++) {
    sum += s.busy_ms[r];
    if (s.busy_ms[r] > most) most = s.busy_ms[r];
    json_array_append_new(stages, json_pack("{s:i,s:i,s:f,s:f,s:I,s:I}", "first", b->cuts[r], "last", b->cuts[r + 1], "busy_ms",
                                            s.busy_ms[r], "busy", s.busy_ms[r] / s.run_ms, "weight_bytes",
                                            (json_int_t)b->weights[r], "resident_bytes", (json_int_t)resident_weights(s.pid[r])));
  }
  const double items_s = b->n * 1000 / s.run_ms, imbalance = most > 0 ? 1 - sum / (s.ranks * most) : 0, idle = 1 - most / s.run_ms;
  if (b->o->json) {
    json_t *o = json_pack("{s:s,s:b,s:s,s:i,s:I,s:f,s:f,s:f,s:f,s:o}", "backend", pipe_describe(p), "nccl", s.nccl, "answers",
                          b->answers, "pairs", b->n, "tokens", (json_int_t)b->o->tokens, "items_s", items_s, "bubble",
                          1 - sum / (s.ranks * s.run_ms), "imbalance", imbalance, "beyond_imbalance", idle, "stages", stages);
    char *line = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(6));
    if (line) puts(line);
    free(line);
    json_decref(o);
    return;
  }
  printf("%s, %d pairs, answers of up to %lld tokens: %.4f items/s\n", pipe_describe(p), b->n, (long long)b->o->tokens, items_s);
  printf("%-5s %-9s %8s %14s %14s\n", "rank", "blocks", "busy", "weights MiB", "resident MiB");
  for (int r = 0; r < s.ranks; r++) {
    char range[32];
    snprintf(range, sizeof range, "%d-%d", b->cuts[r], b->cuts[r + 1] - 1);
    printf("%-5d %-9s %6.1f %% %14.1f %14.1f\n", r, range, 100 * s.busy_ms[r] / s.run_ms, (double)b->weights[r] / 1048576,
           (double)resident_weights(s.pid[r]) / 1048576);
  }
  printf("bubble %.1f %%: imbalance of the stages %.1f %%, the busiest waits %.1f %%\n", 100 * (1 - sum / (s.ranks * s.run_ms)),
         100 * imbalance, 100 * idle);
  json_decref(stages);
}

int bench_pipe(const bench_pipe_options *o) {
  bench b = {.o = o, .device = chosen_device(o->model), .n = (int)o->pairs, .ranks = (int)o->ranks};
  pipe_options po = pipe_options_default();
  btc_model *m = NULL;
  pipe_driver *p = NULL;
  btc_error err;
  if (!b.device) return CLI_USAGE;
  int code = open_model(o->model, &m);
  if (code != CLI_OK) return code;
  po.device = b.device;
  po.threads = (int)o->model->threads;
  po.slots = (int)o->slots;
  po.max_tokens = (int)o->tokens;
  pipe_tensors_named(o->tensors, &po.tensors);
  po.cancel = &cli_interrupted;
  const char *dtype = o->model->dtype;
  po.precision = !strcmp(dtype, "f32") ? BTC_PRECISION_F32 : !strcmp(dtype, "bf16") ? BTC_PRECISION_BF16 : BTC_PRECISION_AUTO;
  if (po.precision == BTC_PRECISION_AUTO) po.precision = btc_device_has_bf16(b.device) ? BTC_PRECISION_BF16 : BTC_PRECISION_F32;
  btc_status st = cut(&b, m, po.precision, &err);
  btc_model_close(&m);
  if (st == BTC_OK) st = prepare(&b, &err);
  if (st == BTC_OK) st = pipe_create(o->model->model ? o->model->model : default_model_dir(), b.cuts, b.ranks, &po, &p, &err);
  if (st == BTC_OK) st = run(&b, p, &err);
  if (st == BTC_OK) print(&b, p);
  if (st != BTC_OK) cli_error("%s", err.message);
  pipe_destroy(&p);
  bench_pictures_remove(&b.pictures);
  free(b.paths);
  free(b.items);
  free(b.results);
  return st == BTC_OK ? CLI_OK : st == BTC_ERR_CANCELLED ? CLI_INTERRUPTED : CLI_FAILED;
}
