/* Any bytes as one of the JSON files of a checkpoint, the others being good: the first byte says which. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/checkpoint_internal.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { INDEX = 6, FILES };
static const struct {
  const char *name, *good;
} files[FILES] = {
    {"config.json", "{\"architectures\":[\"LlavaLlamaModel\"],\"mm_vision_select_layer\":-2}"},
    {"llm/config.json", "{\"hidden_size\":8,\"num_attention_heads\":2,\"num_hidden_layers\":2,\"vocab_size\":16}"},
    {"vision_tower/config.json",
     "{\"hidden_size\":8,\"num_attention_heads\":2,\"num_hidden_layers\":3,\"image_size\":4,\"patch_size\":2}"},
    {"vision_tower/preprocessor_config.json", "{\"size\":{\"height\":4,\"width\":4}}"},
    {"mm_projector/config.json", "{}"},
    {"llm/generation_config.json", "{}"},
    {"llm/model.safetensors.index.json", "{\"weight_map\":{\"a\":\"model-1.safetensors\"}}"},
};
static const char shard[] = "\x36\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}\0\0\0";

static char dir[64];

static void path_of(const char *name, char out[128]) {
  snprintf(out, 128, "%s/%s", dir, name);
}

static void put(const char *name, const void *data, size_t size) {
  char path[128];
  path_of(name, path);
  FILE *f = fopen(path, "wb");
  if (!f || (size && fwrite(data, 1, size, f) != size) || fclose(f) != 0) abort();
}

static void clean_up(void) {
  static const char *const rest[] = {"llm/model-1.safetensors", "llm", "vision_tower", "mm_projector", "."};
  char path[128];
  for (size_t i = 0; i < FILES; i++) path_of(files[i].name, path), remove(path);
  for (size_t i = 0; i < sizeof rest / sizeof rest[0] - 1; i++) path_of(rest[i], path), remove(path);
  rmdir(dir);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc, (void)argv;
  static const char *const folders[] = {"llm", "vision_tower", "mm_projector"};
  char path[128];
  strcpy(dir, access("/dev/shm", W_OK) == 0 ? "/dev/shm/btcchat-fuzz-XXXXXX" : "/tmp/btcchat-fuzz-XXXXXX");
  if (!mkdtemp(dir)) abort();
  atexit(clean_up);
  for (int i = 0; i < 3; i++) {
    path_of(folders[i], path);
    if (mkdir(path, 0700) != 0) abort();
  }
  for (size_t i = 0; i < FILES; i++) put(files[i].name, files[i].good, strlen(files[i].good));
  put("llm/model-1.safetensors", shard, sizeof shard);
  return 0;
}

static void check_message(const btc_error *err) {
  if (!err->message[0] || strchr(err->message, '\n')) abort();
}

static void try_index(void) {
  char path[128];
  btc_part_tensors p = {0};
  btc_error err;
  path_of("llm", path);
  if (btc_part_open_files(&p, path, &err) != BTC_OK) check_message(&err);
  for (size_t i = 0; i < p.n_files; i++) btc_safetensors_close(&p.file[i]);
  free(p.file);
  free(p.label);
}

static void try_config(void) {
  btc_config c;
  btc_error err;
  if (btc_config_load(dir, &c, &err) != BTC_OK) {
    check_message(&err);
    return;
  }
  const btc_llm_config *l = &c.llm;
  const btc_vision_config *v = &c.vision;
  if (l->hidden < 1 || l->heads < 1 || l->kv_heads < 1 || l->heads % l->kv_heads || l->head_dim * l->heads != l->hidden ||
      l->head_dim % 2)
    abort();
  if (l->context < 1 || l->n_eos < 1 || l->n_eos > 8 || l->bos < 0 || l->bos >= l->vocab || !(l->rope_factor >= 1)) abort();
  for (int i = 0; i < l->n_eos; i++)
    if (l->eos[i] < 0 || l->eos[i] >= l->vocab) abort();
  if (v->grid < 1 || v->blocks < 0 || v->blocks > v->layers || v->hidden % v->heads || c.cc_head < 1 || !(c.pre.std[0] > 0))
    abort();
  btc_config_free(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 1) return 0;
  size_t which = data[0] % FILES;
  put(files[which].name, data + 1, size - 1);
  if (which == INDEX)
    try_index();
  else
    try_config();
  put(files[which].name, files[which].good, strlen(files[which].good));
  return 0;
}
