/* btcchat bench: make-model writes a random checkpoint, stages times the parts of one caption, batching many items. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_batching.h"
#include "bench_pipe.h"
#include "engine/prompt.h"
#include "engine/session.h"
#include "make_model.h"
#include "model_options.h"

static int run(int argc, char **argv);

const cli_command cmd_bench = {
    .name = "bench",
    .arguments = "make-model DIR | stages BEFORE AFTER | batching | pipe",
    .summary = "make-model writes a random checkpoint; stages times the parts of one caption; batching many items",
    .details =
        "make-model: --size full is the real model (6.3 GB of bf16, about a minute), small a hundredth of its work.\n"
        "stages: runs the pair --runs times with answers of exactly --tokens tokens and prints, per stage and pair, the\n"
        "fastest run; with --batch, of that many pairs together (the same one several times).\n"
        "batching: items/s of --pairs pairs one at a time, through --slots slots at once, and of a time series of as many.\n"
        "pipe: --pairs pairs through a pipeline of --ranks processes: how long each was busy, and what weights it holds.",
    .run = run,
};

enum { MAX_BATCH = 64 };

typedef struct bench_options {
  model_options model;
  const char *size, *tokenizer, *tensors;
  int64_t shard_mb, runs, tokens, positions, pairs, slots, ranks;
  bool json, cpu_time;
} bench_options;

static int make_model(const bench_options *b, const char *dir) {
  char tokenizer[4096];
  const char *nano = default_model_dir();
  btc_error err;
  if (!b->tokenizer && !nano) {
    cli_error("make-model needs a tokenizer: give --tokenizer DIR (a directory with tokenizer.model)");
    return CLI_USAGE;
  }
  if (!b->tokenizer) snprintf(tokenizer, sizeof tokenizer, "%s/llm", nano);
  const make_model_size *size = !strcmp(b->size, "full") ? &make_model_full : &make_model_small;
  btc_status st =
      make_model_write(dir, size, b->tokenizer ? b->tokenizer : tokenizer, b->shard_mb * 1000000, (uint64_t)b->model.seed, &err);
  if (st == BTC_OK) return CLI_OK;
  cli_error("%s", err.message);
  return st == BTC_ERR_CANCELLED ? CLI_INTERRUPTED : CLI_FAILED;
}

typedef struct stage_figures {
  double vision, change, prefill, decode; /* ms a pair; decode per token and pair */
  double pair;                            /* ms a pair from image files to text */
  double open;                            /* ms */
  int64_t private_kb;                     /* memory of the process that no file backs, after the runs; 0: unknown */
  int64_t positions;
} stage_figures;

static int64_t private_kb(void) {
  char line[256];
  long long kb = 0;
  FILE *f = fopen("/proc/self/status", "r");
  while (f && !kb && fgets(line, sizeof line, f))
    if (strncmp(line, "RssAnon:", 8) == 0) kb = strtoll(line + 8, NULL, 10);
  if (f) fclose(f);
  return kb;
}

static double least(double a, double b) {
  return a == 0 || b < a ? b : a;
}

/* One run of n items alike. Stages by the stage's own clocks: what a pair costs without reading files. */
static btc_status one_run(btc_session *s, const btc_item *items, int n, int tokens, stage_figures *best, btc_error *err) {
  btc_stage_times a = btc_session_times(s);
  btc_result results[MAX_BATCH];
  int64_t start = btc_now_ns();
  btc_status st = btc_session_run(s, items, (size_t)n, results, err);
  double pair = (double)(btc_now_ns() - start) * 1e-6 / n;
  for (int i = 0; i < n; i++) {
    if (st == BTC_OK && results[i].status != BTC_OK) st = results[i].status, *err = results[i].error;
    btc_result_clear(&results[i]);
  }
  if (st != BTC_OK) return st;
  best->pair = least(best->pair, pair);
  btc_stage_times b = btc_session_times(s);
  double ms[BTC_BLOCK_HEAD + 1], decode = 0;
  for (int k = 0; k <= BTC_BLOCK_HEAD; k++) {
    ms[k] = (b.prefill_ms[k] - a.prefill_ms[k]) / n;
    decode += (b.decode_ms[k] - a.decode_ms[k]) / n;
  }
  best->vision = least(best->vision, ms[BTC_BLOCK_PATCH] + ms[BTC_BLOCK_VISION]);
  best->change = least(best->change, ms[BTC_BLOCK_CHANGE]);
  best->prefill = least(best->prefill, ms[BTC_BLOCK_SPLICE] + ms[BTC_BLOCK_LLM] + ms[BTC_BLOCK_HEAD]);
  best->decode = least(best->decode, decode / (tokens - 1));
  return BTC_OK;
}

static void print_figures(const bench_options *b, btc_model *m, btc_session *s, const stage_figures *f) {
  btc_load load = {.images = 2, .blocks = 1, .positions = f->positions, .pairs = true};
  double flop[BTC_BLOCK_HEAD + 1] = {0}, bytes = 0;
  for (int i = 0; i < btc_block_count(m); i++) {
    btc_block k = btc_block_at(m, i);
    flop[k.kind] += btc_block_flops(m, i, &load);
    if (k.kind == BTC_BLOCK_LLM || k.kind == BTC_BLOCK_HEAD) bytes += (double)k.weight_bytes;
  }
  double vision = (flop[BTC_BLOCK_PATCH] + flop[BTC_BLOCK_VISION]) / f->vision * 1e-6,
         change = flop[BTC_BLOCK_CHANGE] / f->change * 1e-6;
  double prefill = (flop[BTC_BLOCK_LLM] + flop[BTC_BLOCK_HEAD]) / f->prefill * 1e-6, decode = bytes / f->decode * 1e-6;
  if (b->json) {
    json_t *o = json_pack("{s:s,s:s,s:I,s:I,s:I,s:f,s:I,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f}", "backend", btc_session_describe(s),
                          "dtype", btc_session_precision(s) == BTC_PRECISION_BF16 ? "bf16" : "f32", "positions",
                          (json_int_t)f->positions, "batch", (json_int_t)b->model.batch, "tokens", (json_int_t)b->tokens, "open_ms",
                          f->open, "private_kb", (json_int_t)f->private_kb, "pair_ms", f->pair, "vision_ms", f->vision, "change_ms",
                          f->change, "prefill_ms", f->prefill, "decode_ms", f->decode, "vision_gflops", vision, "change_gflops",
                          change, "prefill_gflops", prefill, "decode_gbs", decode);
    char *line = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(6));
    if (line) puts(line);
    free(line);
    json_decref(o);
    return;
  }
  printf("%s, fastest of %lld runs\n", btc_session_describe(s), (long long)b->runs);
  printf("%-28s %10.1f ms %8.1f GFLOP/s\n", "vision, 2 images", f->vision, vision);
  printf("%-28s %10.1f ms %8.1f GFLOP/s\n", "change and projector", f->change, change);
  printf("prefill, %-5lld positions     %10.1f ms %8.1f GFLOP/s\n", (long long)f->positions, f->prefill, prefill);
  printf("%-28s %10.1f ms %8.1f GB/s of weights\n", "decode, one token", f->decode, decode);
  printf("%-28s %10.1f ms, %lld tokens\n", "a pair, files to text", f->pair, (long long)b->tokens);
  printf("%-28s %10.1f ms\n", "opening the model", f->open);
  printf("%-28s %10.1f MB\n", "private memory", (double)f->private_kb * 1.024e-3);
}

/* A question that makes the prompt exactly `positions` long, since tokenizers differ: words are added until it fits. */
static char *question_for(const btc_model *m, int64_t positions, int64_t *got) {
  enum { MAX = 8192 };
  char *q = btc_alloc(MAX, 1);
  btc_error err;
  if (!q) return NULL;
  strcpy(q, positions ? "" : btc_prompt_caption);
  for (size_t len = strlen(q); len + 3 < MAX; len = strlen(q)) {
    char *text = NULL;
    int32_t *ids = NULL;
    size_t n = 0;
    bool ok = btc_prompt_question(q, 1, &text, &err) == BTC_OK && btc_prompt_encode(m->tok, text, &ids, &n, &err) == BTC_OK;
    free(text);
    free(ids);
    *got = (int64_t)n - 1 + m->block_tokens;
    if (!ok || *got >= positions) break;
    strcpy(q + len, "\n");
  }
  return q;
}

static int stages(const bench_options *b, char **images) {
  btc_model *m = NULL;
  btc_session *s = NULL;
  stage_figures best = {0};
  btc_error err;
  char *question = NULL;
  int32_t *force = NULL;
  if (b->cpu_time) btc_clock_processor_time();
  int64_t start = btc_now_ns();
  int code = open_model(&b->model, &m);
  best.open = (double)(btc_now_ns() - start) * 1e-6;
  if (code == CLI_OK) code = open_session(&b->model, m, &s);
  if (code == CLI_OK) {
    question = question_for(m, b->positions, &best.positions);
    force = btc_alloc((size_t)b->tokens, sizeof *force);
    for (int64_t i = 0; force && i < b->tokens; i++) force[i] = (int32_t)(3 + i % (m->cfg->llm.vocab - 3));
    if (!question || !force) {
      cli_error("out of memory");
      code = CLI_FAILED;
    }
  }
  if (code == CLI_OK) {
    btc_item items[MAX_BATCH];
    for (int64_t i = 0; i < b->model.batch; i++)
      items[i] = (btc_item){.images = (const char *const *)images, .n_images = 2, .question = question};
    btc_session_set_probe(s, &(btc_session_probe){.force = force, .n_force = (size_t)b->tokens, .timed = true});
    btc_status st = BTC_OK;
    for (int64_t i = 0; i < b->runs && st == BTC_OK; i++) st = one_run(s, items, (int)b->model.batch, (int)b->tokens, &best, &err);
    best.private_kb = private_kb();
    if (st == BTC_OK) {
      print_figures(b, m, s, &best);
    } else {
      cli_error("%s", err.message);
      code = st == BTC_ERR_CANCELLED ? CLI_INTERRUPTED : CLI_FAILED;
    }
  }
  free(question);
  free(force);
  btc_session_destroy(&s);
  btc_model_close(&m);
  return code;
}

static int run(int argc, char **argv) {
  bench_options b = {.model = model_options_default,
                     .size = "full",
                     .tensors = "auto",
                     .shard_mb = 5000,
                     .runs = 3,
                     .tokens = 16,
                     .pairs = 16,
                     .slots = 8,
                     .ranks = 4};
  b.model.batch = 1;
  cli_option table[] = {
      MODEL_OPTION_ROWS(b.model),
      {.name = "size",
       .type = CLI_CHOICE,
       .target = &b.size,
       .value = "S",
       .help = "make-model: full or small (default full)",
       .choices = "full|small"},
      {.name = "tokenizer",
       .type = CLI_TEXT,
       .target = &b.tokenizer,
       .value = "DIR",
       .help = "make-model: where tokenizer.model is (default: the nano model's)"},
      {.name = "shard-mb",
       .type = CLI_INT,
       .target = &b.shard_mb,
       .value = "N",
       .help = "make-model: largest shard of the language model, MB (default 5000)",
       .low = 200,
       .high = 1e6},
      {.name = "seed",
       .type = CLI_INT,
       .target = &b.model.seed,
       .value = "S",
       .help = "make-model: seed of the weights (default 0)",
       .low = 0,
       .high = 9007199254740992.0},
      {.name = "runs",
       .type = CLI_INT,
       .target = &b.runs,
       .value = "N",
       .help = "stages, batching: runs, the fastest counts (default 3)",
       .low = 1,
       .high = 1000},
      {.name = "tokens",
       .type = CLI_INT,
       .target = &b.tokens,
       .value = "N",
       .help = "stages, batching, pipe: tokens of an answer (default 16)",
       .low = 2,
       .high = 128},
      {.name = "positions",
       .type = CLI_INT,
       .target = &b.positions,
       .value = "N",
       .help = "stages: lengthen the prompt to this many positions (default: as it is)",
       .low = 0,
       .high = 4096},
      {.name = "batch",
       .letter = 'b',
       .type = CLI_INT,
       .target = &b.model.batch,
       .value = "N",
       .help = "stages: pairs computed together (default 1)",
       .low = 1,
       .high = MAX_BATCH},
      {.name = "pairs",
       .type = CLI_INT,
       .target = &b.pairs,
       .value = "N",
       .help = "batching, pipe: pairs (default 16)",
       .low = 2,
       .high = 10000},
      {.name = "slots",
       .type = CLI_INT,
       .target = &b.slots,
       .value = "N",
       .help = "batching, pipe: pairs generated together (default 8)",
       .low = 1,
       .high = 256},
      {.name = "ranks",
       .type = CLI_INT,
       .target = &b.ranks,
       .value = "N",
       .help = "pipe: processes (default 4)",
       .low = 1,
       .high = 8},
      {.name = "tensors",
       .type = CLI_CHOICE,
       .target = &b.tensors,
       .value = "WAY",
       .help = "pipe: between ranks, as for worker (default auto)",
       .choices = "auto|tcp|nccl"},
      {.name = "cpu-time",
       .type = CLI_FLAG,
       .target = &b.cpu_time,
       .help = "stages, batching: processor time of all threads, for a machine shared with others"},
      {.name = "json", .type = CLI_FLAG, .target = &b.json, .help = "one JSON object"},
  };
  char **args;
  int n, code;
  if (!cli_parse(&cmd_bench, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n == 2 && !strcmp(args[0], "make-model")) return make_model(&b, args[1]);
  if (n == 3 && !strcmp(args[0], "stages")) return stages(&b, args + 1);
  if (n == 1 && !strcmp(args[0], "batching")) {
    if (b.cpu_time) btc_clock_processor_time();
    return bench_batching(&(bench_batching_options){&b.model, b.pairs, b.slots, b.tokens, b.runs, b.json});
  }
  if (n == 1 && !strcmp(args[0], "pipe"))
    return bench_pipe(&(bench_pipe_options){&b.model, b.ranks, b.pairs, b.slots, b.tokens, b.tensors, b.json});
  return cli_usage_error(&cmd_bench, "'make-model DIR', 'stages BEFORE AFTER', 'batching' or 'pipe' expected");
}
