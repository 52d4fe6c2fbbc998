#define _GNU_SOURCE
#include "mini.h"

#include "test.h"

#include <stdio.h>
#include <sys/stat.h>

enum {
  VISION = 8,
  VISION_MLP = 12,
  BLOCKS = 2,
  GRID = 2,
  LLM = 8,
  LLM_MLP = 12,
  LLM_LAYERS = 2,
  KV = 4,
  VOCAB = 16,
  ATTENTION = 8
};

/* ---- a safetensors file of zeros, F32 ---- */

typedef struct writer {
  char path[512];
  const char *prefix;
  char *header, *index; /* index: lines for weight_map, may be NULL */
  size_t header_len, index_len, bytes;
  FILE *header_file, *index_file;
  char shard[64];
} writer;

static void begin(writer *w, const char *dir, const char *name, const char *prefix) {
  *w = (writer){.prefix = prefix};
  snprintf(w->path, sizeof w->path, "%s/%s", dir, name);
  snprintf(w->shard, sizeof w->shard, "%s", strrchr(name, '/') + 1);
  w->header_file = open_memstream(&w->header, &w->header_len);
  w->index_file = open_memstream(&w->index, &w->index_len);
  assert_non_null(w->header_file);
  assert_non_null(w->index_file);
}

static void tensor(writer *w, const char *name, int rank, const int *dim) {
  size_t bytes = 4;
  fprintf(w->header_file, "%c\"%s%s\":{\"dtype\":\"F32\",\"shape\":[", w->bytes ? ',' : '{', w->prefix, name);
  for (int i = 0; i < rank; i++) {
    fprintf(w->header_file, i ? ",%d" : "%d", dim[i]);
    bytes *= (size_t)dim[i];
  }
  fprintf(w->header_file, "],\"data_offsets\":[%zu,%zu]}", w->bytes, w->bytes + bytes);
  fprintf(w->index_file, "%s\"%s%s\":\"%s\"", w->bytes ? "," : "", w->prefix, name, w->shard);
  w->bytes += bytes;
}

/* Closes the file; the caller frees w->index. */
static void end(writer *w) {
  fprintf(w->header_file, "}");
  fclose(w->header_file);
  fclose(w->index_file);
  FILE *f = fopen(w->path, "wb");
  assert_non_null(f);
  uint64_t len = w->header_len;
  fwrite(&len, 8, 1, f);
  fwrite(w->header, 1, w->header_len, f);
  for (size_t i = 0; i < w->bytes; i++) fputc(0, f);
  assert_int_equal(fclose(f), 0);
  free(w->header);
}

/* clang-format off */
#define TENSOR(w, name, ...) tensor(w, name, (int)(sizeof((int[]){__VA_ARGS__}) / sizeof(int)), (int[]){__VA_ARGS__})
/* clang-format on */

static void pair(writer *w, const char *name, int out, int in) {
  char full[128];
  snprintf(full, sizeof full, "%s.weight", name);
  if (in)
    TENSOR(w, full, out, in);
  else
    TENSOR(w, full, out);
  snprintf(full, sizeof full, "%s.bias", name);
  TENSOR(w, full, out);
}

/* ---- parts ---- */

static void write_vision(const char *dir, const mini_options *o) {
  writer w;
  begin(&w, dir, "vision_tower/model.safetensors", o->prefixes ? "vision_tower.vision_tower." : "");
  TENSOR(&w, "vision_model.embeddings.patch_embedding.weight", VISION, 3, 2, 2);
  TENSOR(&w, "vision_model.embeddings.patch_embedding.bias", VISION);
  TENSOR(&w, "vision_model.embeddings.position_embedding.weight", GRID * GRID, VISION);
  static const char *const names[] = {"layer_norm1",      "layer_norm2",        "self_attn.q_proj", "self_attn.k_proj",
                                      "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1",          "mlp.fc2"};
  for (int i = 0; i < BLOCKS; i++)
    for (int k = 0; k < 8; k++) {
      char name[96];
      snprintf(name, sizeof name, "vision_model.encoder.layers.%d.%s", i, names[k]);
      pair(&w, name, k == 6 ? VISION_MLP : VISION, k < 2 ? 0 : k == 7 ? VISION_MLP : VISION);
    }
  end(&w);
  free(w.index);
}

static void write_ce_block(writer *w, int layer, int joint) {
  int width = joint ? 2 * VISION : VISION;
  char at[64], name[96];
  snprintf(at, sizeof at, "layers.change.selftrans.%d.%d", layer, joint);
  snprintf(name, sizeof name, "%s.att.to_q.weight", at), TENSOR(w, name, ATTENTION, width);
  snprintf(name, sizeof name, "%s.att.to_k.weight", at), TENSOR(w, name, ATTENTION, width);
  snprintf(name, sizeof name, "%s.att.to_out.0", at), pair(w, name, width, ATTENTION);
  snprintf(name, sizeof name, "%s.feedforward.net.0", at), pair(w, name, VISION, width);
  snprintf(name, sizeof name, "%s.feedforward.net.3", at), pair(w, name, width, VISION);
  snprintf(name, sizeof name, "%s.norm1", at), pair(w, name, width, 0);
  snprintf(name, sizeof name, "%s.norm2", at), pair(w, name, width, 0);
}

static void write_change(writer *w, int layers) {
  static const struct {
    const char *name;
    int width;
  } norms[] = {
      {"layers.change.LN.left.1", VISION / 2}, {"layers.change.LN.left.4", VISION / 2}, {"layers.change.LN.left.7", VISION}};
  TENSOR(w, "layers.change.h_embedding.weight", GRID, VISION / 2);
  TENSOR(w, "layers.change.w_embedding.weight", GRID, VISION / 2);
  TENSOR(w, "layers.change.Conv1.weight", VISION, 2 * VISION, 1, 1);
  TENSOR(w, "layers.change.Conv1.bias", VISION);
  TENSOR(w, "layers.change.LN.left.0.weight", VISION / 2, VISION, 1, 1);
  TENSOR(w, "layers.change.LN.left.0.bias", VISION / 2);
  TENSOR(w, "layers.change.LN.left.3.weight", VISION / 2, VISION / 2, 3, 3);
  TENSOR(w, "layers.change.LN.left.3.bias", VISION / 2);
  TENSOR(w, "layers.change.LN.left.6.weight", VISION, VISION / 2, 1, 1);
  TENSOR(w, "layers.change.LN.left.6.bias", VISION);
  for (int i = 0; i < 3; i++) {
    char name[96];
    pair(w, norms[i].name, norms[i].width, 0);
    snprintf(name, sizeof name, "%s.running_mean", norms[i].name), TENSOR(w, name, norms[i].width);
    snprintf(name, sizeof name, "%s.running_var", norms[i].name), TENSOR(w, name, norms[i].width);
  }
  for (int i = 0; i < layers; i++) write_ce_block(w, i, 0), write_ce_block(w, i, 1);
}

static void write_projector(const char *dir, const mini_options *o) {
  writer w;
  begin(&w, dir, "mm_projector/model.safetensors", o->prefixes ? "mm_projector." : "");
  pair(&w, o->vila ? "layers.1" : "layers.single.1", 4 * VISION, 0);
  pair(&w, o->vila ? "layers.2" : "layers.single.2", LLM, 4 * VISION);
  pair(&w, o->vila ? "layers.4" : "layers.single.4", LLM, LLM);
  if (o->ce_layers >= 0) write_change(&w, o->ce_layers);
  end(&w);
  free(w.index);
}

static void write_llm_layer(writer *w, int layer) {
  static const struct {
    const char *name;
    int out, in;
  } all[] = {{"input_layernorm", LLM, 0},     {"self_attn.q_proj", LLM, LLM}, {"self_attn.k_proj", KV, LLM},
             {"self_attn.v_proj", KV, LLM},   {"self_attn.o_proj", LLM, LLM}, {"post_attention_layernorm", LLM, 0},
             {"mlp.gate_proj", LLM_MLP, LLM}, {"mlp.up_proj", LLM_MLP, LLM},  {"mlp.down_proj", LLM, LLM_MLP}};
  for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
    char name[96];
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, all[i].name);
    if (all[i].in)
      TENSOR(w, name, all[i].out, all[i].in);
    else
      TENSOR(w, name, all[i].out);
  }
}

static void write_text(const char *dir, const char *name, const char *text) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  fputs(text, f);
  assert_int_equal(fclose(f), 0);
}

static void write_llm(const char *dir, const mini_options *o) {
  writer a, b;
  const char *prefix = o->prefixes ? "llm." : "";
  begin(&a, dir, o->sharded ? "llm/model-00001-of-00002.safetensors" : "llm/model.safetensors", prefix);
  TENSOR(&a, "model.embed_tokens.weight", VOCAB, LLM);
  write_llm_layer(&a, 0);
  if (o->sharded) begin(&b, dir, "llm/model-00002-of-00002.safetensors", prefix);
  writer *w = o->sharded ? &b : &a;
  write_llm_layer(w, 1);
  TENSOR(w, "model.norm.weight", LLM);
  if (!o->tied) TENSOR(w, "lm_head.weight", VOCAB, LLM);
  end(&a);
  if (o->sharded) {
    end(&b);
    char *index;
    assert_true(asprintf(&index, "{\"metadata\":{},\"weight_map\":{%s,%s}}", a.index, b.index) > 0);
    write_text(dir, "llm/model.safetensors.index.json", index);
    free(index);
    free(b.index);
  }
  free(a.index);
}

void mini_checkpoint(const char *dir, const mini_options *o) {
  static const char tower[] =
      "\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":3,\"num_attention_heads\":2,"
      "\"image_size\":4,\"patch_size\":2";
  char text[512];
  static const char *const folders[] = {"", "/llm", "/vision_tower", "/mm_projector"};
  for (int i = 0; i < 4; i++) {
    snprintf(text, sizeof text, "%s%s", dir, folders[i]);
    assert_int_equal(mkdir(text, 0755), 0);
  }
  write_text(dir, "config.json", "{\"architectures\":[\"LlavaLlamaModel\"],\"mm_vision_select_layer\":-2,\"mm_projector_cfg\":{}}");
  snprintf(text, sizeof text,
           "{\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":2,\"num_attention_heads\":2,"
           "\"num_key_value_heads\":1,\"vocab_size\":16,\"tie_word_embeddings\":%s}",
           o->tied ? "true" : "false");
  write_text(dir, "llm/config.json", text);
  snprintf(text, sizeof text, o->raw_tower ? "{\"model_type\":\"siglip\",\"text_config\":{},\"vision_config\":{%s}}" : "{%s}",
           tower);
  write_text(dir, "vision_tower/config.json", text);
  write_text(dir, "vision_tower/preprocessor_config.json", "{\"size\":{\"height\":4,\"width\":4}}");
  write_text(dir, "mm_projector/config.json", "{}");
  write_llm(dir, o);
  write_vision(dir, o);
  write_projector(dir, o);
}
