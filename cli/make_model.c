/*
 * Random checkpoints (spec 2). Weights are bf16 drawn from a table of normal values scaled by 1/sqrt(inputs), so that activations
 * neither vanish nor overflow through 32 layers; norms are 1, biases 0.
 */
#define _GNU_SOURCE
#include "make_model.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"
#include "ops/ops.h"

const make_model_size make_model_full = {.image = 384,
                                         .patch = 14,
                                         .vision_hidden = 1152,
                                         .vision_mlp = 4304,
                                         .vision_layers = 27,
                                         .vision_heads = 16,
                                         .hidden = 2560,
                                         .mlp = 6912,
                                         .layers = 32,
                                         .heads = 20,
                                         .kv_heads = 20,
                                         .vocab = 32000,
                                         .context = 4096};
const make_model_size make_model_small = {.image = 384,
                                          .patch = 14,
                                          .vision_hidden = 144,
                                          .vision_mlp = 536,
                                          .vision_layers = 6,
                                          .vision_heads = 2,
                                          .hidden = 256,
                                          .mlp = 688,
                                          .layers = 4,
                                          .heads = 4,
                                          .kv_heads = 4,
                                          .vocab = 32000,
                                          .context = 4096};

typedef struct tensor_plan {
  char name[112];
  int rank;
  int64_t dim[4];
  double scale; /* standard deviation; < 0: all ones; 0: zeros */
} tensor_plan;

typedef struct plan {
  tensor_plan *t;
  size_t n, cap;
  bool failed;
} plan;

static void add(plan *p, double scale, int rank, const int64_t dim[4], const char *fmt, ...) __attribute__((format(printf, 5, 6)));
static void add(plan *p, double scale, int rank, const int64_t dim[4], const char *fmt, ...) {
  if (p->n == p->cap) {
    size_t cap = p->cap ? 2 * p->cap : 256;
    tensor_plan *grown = btc_realloc(p->t, cap, sizeof *grown);
    if (!grown) {
      p->failed = true;
      return;
    }
    p->t = grown;
    p->cap = cap;
  }
  tensor_plan *t = &p->t[p->n++];
  *t = (tensor_plan){.rank = rank, .scale = scale};
  for (int i = 0; i < rank; i++) t->dim[i] = dim[i];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(t->name, sizeof t->name, fmt, ap);
  va_end(ap);
}

#define VECTOR(p, scale, n, ...) add(p, scale, 1, (int64_t[4]){n}, __VA_ARGS__)
#define MATRIX(p, rows, cols, ...) add(p, 1.0 / sqrt((double)(cols)), 2, (int64_t[4]){rows, cols}, __VA_ARGS__)

static void linear(plan *p, int64_t rows, int64_t cols, const char *name) {
  MATRIX(p, rows, cols, "%s.weight", name);
  VECTOR(p, 0, rows, "%s.bias", name);
}

static void norm(plan *p, int64_t n, const char *name) {
  VECTOR(p, -1, n, "%s.weight", name);
  VECTOR(p, 0, n, "%s.bias", name);
}

static plan plan_vision(const make_model_size *s) {
  plan p = {0};
  int64_t c = s->vision_hidden, g = s->image / s->patch;
  char name[96];
  add(&p, 1.0 / (s->patch * sqrt(3.0)), 4, (int64_t[4]){c, 3, s->patch, s->patch},
      "vision_model.embeddings.patch_embedding.weight");
  VECTOR(&p, 0, c, "vision_model.embeddings.patch_embedding.bias");
  add(&p, 0.3, 2, (int64_t[4]){g * g, c}, "vision_model.embeddings.position_embedding.weight");
  for (int64_t i = 0; i < s->vision_layers; i++) {
    static const char *const squares[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"};
    for (int k = 1; k <= 2; k++) {
      snprintf(name, sizeof name, "vision_model.encoder.layers.%lld.layer_norm%d", (long long)i, k);
      norm(&p, c, name);
    }
    for (int k = 0; k < 4; k++) {
      snprintf(name, sizeof name, "vision_model.encoder.layers.%lld.%s", (long long)i, squares[k]);
      linear(&p, c, c, name);
    }
    snprintf(name, sizeof name, "vision_model.encoder.layers.%lld.mlp.fc1", (long long)i);
    linear(&p, s->vision_mlp, c, name);
    snprintf(name, sizeof name, "vision_model.encoder.layers.%lld.mlp.fc2", (long long)i);
    linear(&p, c, s->vision_mlp, name);
  }
  return p;
}

static void conv_norm(plan *p, int conv, int bn, int64_t rows, int64_t cols, int64_t k) {
  add(p, 1.0 / sqrt((double)(cols * k * k)), 4, (int64_t[4]){rows, cols, k, k}, "layers.change.LN.left.%d.weight", conv);
  VECTOR(p, 0, rows, "layers.change.LN.left.%d.bias", conv);
  VECTOR(p, -1, rows, "layers.change.LN.left.%d.weight", bn);
  VECTOR(p, 0, rows, "layers.change.LN.left.%d.bias", bn);
  VECTOR(p, 0, rows, "layers.change.LN.left.%d.running_mean", bn);
  VECTOR(p, -1, rows, "layers.change.LN.left.%d.running_var", bn);
}

static plan plan_projector(const make_model_size *s) {
  plan p = {0};
  int64_t c = s->vision_hidden, g = s->image / s->patch;
  norm(&p, 4 * c, "layers.single.1");
  linear(&p, s->hidden, 4 * c, "layers.single.2");
  linear(&p, s->hidden, s->hidden, "layers.single.4");
  add(&p, 0.1, 2, (int64_t[4]){g, c / 2}, "layers.change.h_embedding.weight");
  add(&p, 0.1, 2, (int64_t[4]){g, c / 2}, "layers.change.w_embedding.weight");
  add(&p, 1.0 / sqrt(2.0 * (double)c), 4, (int64_t[4]){c, 2 * c, 1, 1}, "layers.change.Conv1.weight");
  VECTOR(&p, 0, c, "layers.change.Conv1.bias");
  conv_norm(&p, 0, 1, c / 2, c, 1);
  conv_norm(&p, 3, 4, c / 2, c / 2, 3);
  conv_norm(&p, 6, 7, c, c / 2, 1);
  return p;
}

static plan plan_llm(const make_model_size *s) {
  plan p = {0};
  int64_t d = s->hidden, kv = d / s->heads * s->kv_heads;
  MATRIX(&p, s->vocab, d, "model.embed_tokens.weight");
  for (int64_t i = 0; i < s->layers; i++) {
    long long l = (long long)i;
    VECTOR(&p, -1, d, "model.layers.%lld.input_layernorm.weight", l);
    VECTOR(&p, -1, d, "model.layers.%lld.post_attention_layernorm.weight", l);
    MATRIX(&p, d, d, "model.layers.%lld.self_attn.q_proj.weight", l);
    MATRIX(&p, kv, d, "model.layers.%lld.self_attn.k_proj.weight", l);
    MATRIX(&p, kv, d, "model.layers.%lld.self_attn.v_proj.weight", l);
    MATRIX(&p, d, d, "model.layers.%lld.self_attn.o_proj.weight", l);
    MATRIX(&p, s->mlp, d, "model.layers.%lld.mlp.gate_proj.weight", l);
    MATRIX(&p, s->mlp, d, "model.layers.%lld.mlp.up_proj.weight", l);
    MATRIX(&p, d, s->mlp, "model.layers.%lld.mlp.down_proj.weight", l);
  }
  VECTOR(&p, -1, d, "model.norm.weight");
  MATRIX(&p, s->vocab, d, "lm_head.weight");
  return p;
}

static int64_t elements(const tensor_plan *t) {
  int64_t n = 1;
  for (int i = 0; i < t->rank; i++) n *= t->dim[i];
  return n;
}

/* ---- writing ---- */

#define TABLE 65536
typedef struct random_source {
  uint64_t state;
  float normal[TABLE];
} random_source;

static uint64_t next_random(random_source *r) { /* splitmix64 */
  uint64_t z = r->state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

static void random_init(random_source *r, uint64_t seed) {
  r->state = seed;
  for (int i = 0; i < TABLE; i += 2) { /* Box and Muller */
    double u = ((double)(next_random(r) >> 11) + 1) / 9007199254740993.0, v = (double)(next_random(r) >> 11) / 9007199254740992.0;
    r->normal[i] = (float)(sqrt(-2 * log(u)) * cos(2 * M_PI * v));
    r->normal[i + 1] = (float)(sqrt(-2 * log(u)) * sin(2 * M_PI * v));
  }
}

#define CHUNK (1 << 18) /* elements written at once */

#define MAX_FILES 72

/* The weight files of this run. One that fails takes them away again: gigabytes without use, and in the way of the next try. */
typedef struct made_files {
  char *path[MAX_FILES];
  size_t n;
} made_files;

static void made_free(made_files *m, bool keep) {
  for (size_t i = 0; i < m->n; i++) {
    if (!keep) unlink(m->path[i]);
    free(m->path[i]);
  }
  m->n = 0;
}

static FILE *create_file(made_files *m, const char *path) {
  char *copy = m->n < MAX_FILES ? btc_strdup(path) : NULL;
  FILE *f = copy ? fopen(path, "wbx") : NULL;
  if (f)
    m->path[m->n++] = copy;
  else
    free(copy);
  return f;
}

static bool write_tensor(FILE *f, const tensor_plan *t, random_source *r, uint16_t *table, uint16_t *chunk) {
  int64_t left = elements(t);
  for (int i = 0; i < TABLE; i++) table[i] = btc_f32_to_bf16(t->scale < 0 ? 1.0f : (float)t->scale * r->normal[i]);
  while (left > 0 && !cli_interrupted) {
    int64_t n = left < CHUNK ? left : CHUNK;
    for (int64_t i = 0; i < n; i += 4) {
      uint64_t x = next_random(r);
      for (int k = 0; k < 4; k++) chunk[i + k] = table[x >> 16 * k & 0xffff];
    }
    if (fwrite(chunk, 2, (size_t)n, f) != (size_t)n) return false;
    left -= n;
  }
  return left == 0;
}

static char *header_text(const plan *p, size_t first, size_t last) {
  json_t *h = json_object();
  int64_t at = 0;
  json_object_set_new(h, "__metadata__", json_pack("{s:s}", "format", "pt"));
  for (size_t i = first; i < last; i++) {
    const tensor_plan *t = &p->t[i];
    json_t *shape = json_array();
    int64_t end = at + 2 * elements(t);
    for (int k = 0; k < t->rank; k++) json_array_append_new(shape, json_integer(t->dim[k]));
    json_object_set_new(
        h, t->name,
        json_pack("{s:s,s:o,s:[I,I]}", "dtype", "BF16", "shape", shape, "data_offsets", (json_int_t)at, (json_int_t)end));
    at = end;
  }
  char *text = json_dumps(h, JSON_COMPACT);
  json_decref(h);
  return text;
}

static btc_status write_safetensors(const char *path, const plan *p, size_t first, size_t last, random_source *r, made_files *made,
                                    btc_error *err) {
  char *text = header_text(p, first, last);
  uint16_t *table = btc_alloc(TABLE, 2), *chunk = btc_alloc(CHUNK + 4, 2);
  FILE *f = text && table && chunk ? create_file(made, path) : NULL;
  btc_status st = BTC_OK;
  if (!f) {
    st = btc_fail(err, text && table && chunk ? BTC_ERR_IO : BTC_ERR_NOMEM, "cannot create '%s': %s", path, strerror(errno));
  } else {
    uint64_t n = strlen(text), padded = (n + 7) / 8 * 8; /* data aligned to 8 bytes, as the format's own writers do */
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)(padded >> 8 * i);
    bool ok = fwrite(length, 1, 8, f) == 8 && fprintf(f, "%s%*s", text, (int)(padded - n), "") == (int)padded;
    for (size_t i = first; ok && i < last; i++) ok = write_tensor(f, &p->t[i], r, table, chunk);
    ok = fflush(f) == 0 && ok;
    ok = fclose(f) == 0 && ok;
    if (cli_interrupted)
      st = btc_fail(err, BTC_ERR_CANCELLED, "interrupted: nothing is left of '%s'", path);
    else if (!ok)
      st = btc_fail(err, BTC_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
  }
  free(text);
  free(table);
  free(chunk);
  return st;
}

static btc_status write_json(const char *path, json_t *doc, btc_error *err) {
  char *text = json_dumps(doc, JSON_INDENT(2));
  btc_status st = text ? btc_file_publish(path, text, strlen(text), err) : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  free(text);
  json_decref(doc);
  return st;
}

/* The language model in shards with an index, or as one file when one shard holds it. */
static btc_status write_llm(const char *dir, const plan *p, int64_t shard_bytes, random_source *r, made_files *made,
                            btc_error *err) {
  size_t start[64] = {0}, shards = 0;
  int64_t used = shard_bytes + 1, total = 0;
  for (size_t i = 0; i < p->n; i++) {
    int64_t bytes = 2 * elements(&p->t[i]);
    if (used + bytes > shard_bytes && shards < 63) {
      start[shards++] = i;
      used = 0;
    }
    used += bytes;
    total += bytes;
  }
  start[shards] = p->n;
  json_t *map = json_object();
  btc_status st = BTC_OK;
  for (size_t k = 0; k < shards && st == BTC_OK; k++) {
    char name[64], path[4096];
    if (shards == 1)
      snprintf(name, sizeof name, "model.safetensors");
    else
      snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", k + 1, shards);
    snprintf(path, sizeof path, "%s/llm/%s", dir, name);
    for (size_t i = start[k]; i < start[k + 1]; i++) json_object_set_new(map, p->t[i].name, json_string(name));
    st = write_safetensors(path, p, start[k], start[k + 1], r, made, err);
  }
  char path[4096];
  snprintf(path, sizeof path, "%s/llm/model.safetensors.index.json", dir);
  if (st == BTC_OK && shards > 1)
    st = write_json(path, json_pack("{s:{s:I},s:O}", "metadata", "total_size", (json_int_t)total, "weight_map", map), err);
  json_decref(map);
  return st;
}

static btc_status write_tokenizer(const char *from, const char *dir, int64_t context, btc_error *err) {
  char source[4096], target[4096];
  uint8_t *data;
  size_t len;
  snprintf(source, sizeof source, "%s/tokenizer.model", from);
  snprintf(target, sizeof target, "%s/llm/tokenizer.model", dir);
  btc_status st = btc_file_read(source, 64u << 20, &data, &len, err);
  if (st == BTC_OK) st = btc_file_publish(target, data, len, err);
  free(data);
  snprintf(target, sizeof target, "%s/llm/special_tokens_map.json", dir);
  if (st == BTC_OK)
    st = write_json(
        target, json_pack("{s:s,s:s,s:s,s:s}", "bos_token", "<s>", "eos_token", "</s>", "unk_token", "<unk>", "pad_token", "<unk>"),
        err);
  snprintf(target, sizeof target, "%s/llm/tokenizer_config.json", dir);
  if (st == BTC_OK)
    st = write_json(target,
                    json_pack("{s:s,s:b,s:b,s:b,s:I}", "tokenizer_class", "LlamaTokenizer", "add_bos_token", 1, "add_eos_token", 0,
                              "legacy", 0, "model_max_length", (json_int_t)context),
                    err);
  return st;
}

static btc_status write_configs(const char *dir, const make_model_size *s, btc_error *err) {
  char path[4096];
  json_t *vision =
      json_pack("{s:[s],s:s,s:I,s:I,s:I,s:I,s:i,s:I,s:I,s:s,s:f,s:f,s:s}", "architectures", "SiglipVisionModel", "model_type",
                "siglip_vision_model", "hidden_size", (json_int_t)s->vision_hidden, "intermediate_size", (json_int_t)s->vision_mlp,
                "num_hidden_layers", (json_int_t)s->vision_layers, "num_attention_heads", (json_int_t)s->vision_heads,
                "num_channels", 3, "image_size", (json_int_t)s->image, "patch_size", (json_int_t)s->patch, "hidden_act",
                "gelu_pytorch_tanh", "layer_norm_eps", 1e-6, "attention_dropout", 0.0, "torch_dtype", "bfloat16");
  json_t *llm =
      json_pack("{s:[s],s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:f,s:n,s:I,s:s,s:b,s:b,s:i,s:i,s:i,s:I,s:s,s:s}", "architectures",
                "LlamaForCausalLM", "model_type", "llama", "hidden_size", (json_int_t)s->hidden, "intermediate_size",
                (json_int_t)s->mlp, "num_hidden_layers", (json_int_t)s->layers, "num_attention_heads", (json_int_t)s->heads,
                "num_key_value_heads", (json_int_t)s->kv_heads, "vocab_size", (json_int_t)s->vocab, "rms_norm_eps", 1e-5,
                "rope_theta", 10000.0, "rope_scaling", "max_position_embeddings", (json_int_t)s->context, "hidden_act", "silu",
                "attention_bias", 0, "tie_word_embeddings", 0, "bos_token_id", 1, "eos_token_id", 2, "pad_token_id", 0,
                "tokenizer_model_max_length", (json_int_t)s->context, "tokenizer_padding_side", "right", "torch_dtype", "bfloat16");
  json_t *projector = json_pack("{s:s,s:s,s:i,s:i}", "mm_projector_type", "mlp_downsample", "model_type", "v2l_projector",
                                "cc_n_layers", 0, "cc_head", 8);
  json_t *root =
      json_pack("{s:[s],s:s,s:O,s:O,s:O,s:I,s:I,s:i,s:s,s:s,s:i,s:b,s:b,s:i,s:b,s:{s:s}}", "architectures", "LlavaLlamaModel",
                "model_type", "llava_llama", "llm_cfg", llm, "vision_tower_cfg", vision, "mm_projector_cfg", projector,
                "hidden_size", (json_int_t)s->hidden, "mm_hidden_size", (json_int_t)s->vision_hidden, "mm_vision_select_layer", -2,
                "mm_vision_select_feature", "cls_patch", "image_aspect_ratio", "pad", "num_video_frames", 8, "mm_use_im_start_end",
                0, "mm_use_im_patch_token", 0, "vision_resolution", -1, "s2", 0, "btcchat", "name", "random");
  json_t *pre = json_pack("{s:{s:I,s:I},s:i,s:b,s:b,s:f,s:b,s:[f,f,f],s:[f,f,f]}", "size", "height", (json_int_t)s->image, "width",
                          (json_int_t)s->image, "resample", 3, "do_resize", 1, "do_rescale", 1, "rescale_factor",
                          0.00392156862745098, "do_normalize", 1, "image_mean", 0.5, 0.5, 0.5, "image_std", 0.5, 0.5, 0.5);
  struct {
    const char *name;
    json_t *doc;
  } files[] = {{"llm/config.json", llm},
               {"vision_tower/config.json", vision},
               {"mm_projector/config.json", projector},
               {"vision_tower/preprocessor_config.json", pre},
               {"config.json", root}};
  btc_status st = BTC_OK;
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    snprintf(path, sizeof path, "%s/%s", dir, files[i].name);
    if (st == BTC_OK)
      st = files[i].doc ? write_json(path, files[i].doc, err) : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
    else
      json_decref(files[i].doc);
  }
  return st;
}

static btc_status make_dirs(const char *dir, btc_error *err) {
  static const char *const sub[] = {"", "/llm", "/vision_tower", "/mm_projector"};
  char path[4096];
  if (strlen(dir) > 3800) return btc_fail(err, BTC_ERR_ARG, "the directory name is too long");
  snprintf(path, sizeof path, "%s/config.json", dir);
  if (access(path, F_OK) == 0) return btc_fail(err, BTC_ERR_ARG, "'%s' already holds a checkpoint", dir);
  for (int i = 0; i < 4; i++) {
    snprintf(path, sizeof path, "%s%s", dir, sub[i]);
    if (mkdir(path, 0755) != 0 && errno != EEXIST)
      return btc_fail(err, BTC_ERR_IO, "cannot create '%s': %s", path, strerror(errno));
  }
  return BTC_OK;
}

btc_status make_model_write(const char *dir, const make_model_size *s, const char *tokenizer_dir, int64_t shard_bytes,
                            uint64_t seed, btc_error *err) {
  btc_status st = make_dirs(dir, err);
  if (st != BTC_OK) return st;
  plan vision = plan_vision(s), projector = plan_projector(s), llm = plan_llm(s);
  random_source *r = btc_alloc(1, sizeof *r);
  made_files made = {0};
  char path[4096];
  if (!r || vision.failed || projector.failed || llm.failed) {
    st = btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  } else {
    random_init(r, seed);
    st = write_tokenizer(tokenizer_dir, dir, s->context, err);
    snprintf(path, sizeof path, "%s/vision_tower/model.safetensors", dir);
    if (st == BTC_OK) st = write_safetensors(path, &vision, 0, vision.n, r, &made, err);
    snprintf(path, sizeof path, "%s/mm_projector/model.safetensors", dir);
    if (st == BTC_OK) st = write_safetensors(path, &projector, 0, projector.n, r, &made, err);
    if (st == BTC_OK) st = write_llm(dir, &llm, shard_bytes, r, &made, err);
    if (st == BTC_OK) st = write_configs(dir, s, err);
  }
  made_free(&made, st == BTC_OK);
  free(r);
  free(vision.t);
  free(projector.t);
  free(llm.t);
  return st;
}
