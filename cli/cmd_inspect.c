/* btcchat inspect: what a checkpoint is, what it needs, and the line of blocks with their prices. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/kv_cache.h"
#include "engine/stage.h"
#include "model_options.h"

static int run(int argc, char **argv);

const cli_command cmd_inspect = {
    .name = "inspect",
    .arguments = "[MODEL]",
    .summary = "shows a checkpoint's config, tensors, bytes, fingerprint, memory needed and blocks with prices",
    .details =
        "MODEL is a checkpoint directory (default: as for caption). Prices of a block: bytes of weights, GFLOP for one pair. A "
        "GPU's\n"
        "memory: for --batch items at once in bf16, and answers of 128 tokens, whether or not there is one.",
    .run = run,
};

typedef struct inspect_options {
  const char *model;
  bool json, tensors, fingerprint;
  int64_t batch;
} inspect_options;

static btc_load pair_load(const btc_model *m) {
  return (btc_load){.images = 2, .blocks = 1, .positions = m->block_tokens + 57, .pairs = m->change.layers >= 0};
}

/* Private memory of one item at a time with an answer of 128 tokens: keys and values in float32, activations. */
static int64_t working_bytes(const btc_model *m) {
  const btc_llm_config *l = &m->cfg->llm;
  btc_stage_item it = {.n_images = 2, .positions = pair_load(m).positions};
  int64_t flow = 0;
  for (int i = 1; i <= btc_block_count(m); i++) {
    int64_t f = btc_flow_floats(m, i, &it, 1, false);
    flow = f > flow ? f : flow;
  }
  return btc_kv_cache_slot_bytes(l->layers, l->kv_heads, l->head_dim, BTC_F32, it.positions + 128) + 8 * flow +
         4 * 6 * m->cfg->vision.image * m->cfg->vision.image;
}

/* On a GPU, in bf16, batch items at once; slots: of all of them and the prompts' common beginning. */
static btc_device_needs gpu_needs(const btc_model *m, int64_t batch, int64_t *slots) {
  btc_device_needs n = btc_stage_device_needs(m, BTC_COMPUTE_BF16, (int)batch, pair_load(m).positions + 128);
  *slots = (batch + 1) * n.slot;
  return n;
}

static json_t *gpu_json(const btc_model *m, int64_t batch) {
  int64_t slots;
  const btc_device_needs n = gpu_needs(m, batch, &slots);
  return json_pack("{s:I,s:I,s:I,s:I,s:I}", "batch", (json_int_t)batch, "weight_bytes", (json_int_t)n.weights, "slot_bytes",
                   (json_int_t)n.slot, "activation_bytes", (json_int_t)n.activations, "bytes",
                   (json_int_t)n.weights + (json_int_t)slots + (json_int_t)n.activations);
}

static void print_gpu(const btc_model *m, int64_t batch) {
  int64_t slots;
  const btc_device_needs n = gpu_needs(m, batch, &slots);
  printf(
      "gpu memory   %.1f MB for a batch of %lld, bf16, 128 tokens: weights %.1f MB, keys and values %.1f MB an item, activations "
      "%.1f MB at most\n",
      (double)(n.weights + slots + n.activations) * 1e-6, (long long)batch, (double)n.weights * 1e-6, (double)n.slot * 1e-6,
      (double)n.activations * 1e-6);
}

static void shape_text(const btc_tensor_view *t, char out[96]) {
  int at = snprintf(out, 96, "[");
  for (int i = 0; i < t->rank && at < 80; i++)
    at += snprintf(out + at, 96 - (size_t)at, "%s%lld", i ? "," : "", (long long)t->dim[i]);
  snprintf(out + at, 96 - (size_t)at, "]");
}

static void print_text(btc_model *m, const inspect_options *o, const char *fingerprint) {
  btc_model_info info;
  const btc_config *c = m->cfg;
  btc_model_get_info(m, &info);
  printf("name         %s\ndirectory    %s\nparameters   %.3f million, %.1f MB\n", info.name, btc_checkpoint_dir(m->ckpt),
         (double)info.parameters * 1e-6, (double)info.weight_bytes * 1e-6);
  if (fingerprint) printf("fingerprint  %s\n", fingerprint);
  printf("vision       %lld px, patch %lld, grid %lldx%lld, width %lld, mlp %lld, heads %lld, %lld of %lld blocks used\n",
         (long long)c->vision.image, (long long)c->vision.patch, (long long)c->vision.grid, (long long)c->vision.grid,
         (long long)c->vision.hidden, (long long)c->vision.mlp, (long long)c->vision.heads, (long long)c->vision.blocks,
         (long long)c->vision.layers);
  if (info.change_layers >= 0)
    printf("change       %lld attention layers, %lld heads\n", (long long)info.change_layers, (long long)c->cc_head);
  else
    printf("change       none: pairs are not supported\n");
  printf("projector    %lld visual tokens an image or pair, width %lld\n", (long long)info.tokens_per_image, (long long)m->width);
  printf(
      "llm          %lld layers, width %lld, mlp %lld, heads %lld/%lld of %lld, vocabulary %lld, context %lld, rope %g (factor "
      "%g)\n",
      (long long)c->llm.layers, (long long)c->llm.hidden, (long long)c->llm.mlp, (long long)c->llm.heads,
      (long long)c->llm.kv_heads, (long long)c->llm.head_dim, (long long)c->llm.vocab, (long long)c->llm.context, c->llm.rope_theta,
      c->llm.rope_factor);
  printf("video        %lld frames%s\n", (long long)info.video_frames, c->aspect_pad ? ", padded to squares" : "");
  printf("memory       weights are mapped (shared, %.1f MB); about %.1f MB of working memory for one pair, f32, 128 tokens\n",
         (double)info.weight_bytes * 1e-6, (double)working_bytes(m) * 1e-6);
  print_gpu(m, o->batch);
  printf("\n%-5s %-12s %14s %14s\n", "block", "what", "weight bytes", "GFLOP a pair");
  btc_load load = pair_load(m);
  double total = 0;
  for (int i = 0; i < btc_block_count(m); i++) {
    char name[32];
    double gflop = btc_block_flops(m, i, &load) * 1e-9;
    btc_block_name(m, i, name);
    printf("%-5d %-12s %14lld %14.3f\n", i, name, (long long)btc_block_at(m, i).weight_bytes, gflop);
    total += gflop;
  }
  printf("%-5s %-12s %14s %14.3f\n", "", "all", "", total);
  if (!o->tensors) return;
  static const char *const parts[] = {"llm", "vision_tower", "mm_projector"};
  for (int p = 0; p < BTC_PART_COUNT; p++)
    for (size_t i = 0; i < btc_checkpoint_count(m->ckpt, (btc_part)p); i++) {
      const btc_tensor_view *t = btc_checkpoint_at(m->ckpt, (btc_part)p, i);
      char shape[96];
      shape_text(t, shape);
      printf("%s%s %s %s %s\n", p == 0 && i == 0 ? "\n" : "", parts[p], t->name, btc_dtype_name(t->dtype), shape);
    }
}

static void print_json(btc_model *m, const inspect_options *options, const char *fingerprint) {
  btc_model_info info;
  const btc_config *c = m->cfg;
  btc_load load = pair_load(m);
  btc_model_get_info(m, &info);
  json_t *blocks = json_array();
  for (int i = 0; i < btc_block_count(m); i++) {
    char name[32];
    btc_block_name(m, i, name);
    json_array_append_new(blocks,
                          json_pack("{s:s,s:I,s:f}", "name", name, "weight_bytes", (json_int_t)btc_block_at(m, i).weight_bytes,
                                    "flop_per_pair", btc_block_flops(m, i, &load)));
  }
  json_t *o = json_pack("{s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:o,s:o}", "name", info.name, "parameters",
                        (json_int_t)info.parameters, "weight_bytes", (json_int_t)info.weight_bytes, "working_bytes",
                        (json_int_t)working_bytes(m), "image_side", (json_int_t)info.image_side, "grid", (json_int_t)info.grid,
                        "tokens_per_image", (json_int_t)info.tokens_per_image, "context", (json_int_t)info.context, "video_frames",
                        (json_int_t)info.video_frames, "change_layers", (json_int_t)info.change_layers, "vocabulary",
                        (json_int_t)c->llm.vocab, "blocks", blocks, "gpu", gpu_json(m, options->batch));
  if (fingerprint) json_object_set_new(o, "fingerprint", json_string(fingerprint));
  char *line = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(12));
  if (line) puts(line);
  free(line);
  json_decref(o);
}

static int run(int argc, char **argv) {
  inspect_options o = {.fingerprint = true, .batch = 64};
  bool no_fingerprint = false;
  cli_option table[] = {
      {.name = "model",
       .letter = 'm',
       .type = CLI_TEXT,
       .target = &o.model,
       .value = "DIR",
       .help = "checkpoint, if not given as the argument"},
      {.name = "tensors", .type = CLI_FLAG, .target = &o.tensors, .help = "list every tensor with dtype and shape"},
      {.name = "batch",
       .type = CLI_INT,
       .target = &o.batch,
       .value = "N",
       .help = "items at once on a GPU (default 64)",
       .low = 1,
       .high = 256},
      {.name = "no-fingerprint", .type = CLI_FLAG, .target = &no_fingerprint, .help = "skip it: it reads all weights once"},
      {.name = "json", .type = CLI_FLAG, .target = &o.json, .help = "one JSON object"},
  };
  char **args;
  int n, code;
  if (!cli_parse(&cmd_inspect, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n > 1) return cli_usage_error(&cmd_inspect, "one model expected, got %d", n);
  model_options mo = model_options_default;
  mo.model = n == 1 ? args[0] : o.model;
  btc_model *m;
  if ((code = open_model(&mo, &m)) != CLI_OK) return code;
  char fingerprint[72];
  btc_error err;
  if (!no_fingerprint && btc_model_fingerprint(m, fingerprint, &err) != BTC_OK) {
    cli_error("%s", err.message);
    code = CLI_FAILED;
  } else if (o.json) {
    print_json(m, &o, no_fingerprint ? NULL : fingerprint);
  } else {
    print_text(m, &o, no_fingerprint ? NULL : fingerprint);
  }
  btc_model_close(&m);
  return code;
}
