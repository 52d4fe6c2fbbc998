/*
 * The JSON files of a checkpoint. The sub-configs are the truth; of the copies in the root file only what exists nowhere else
 * is read (cc_head). A value outside its bounds is refused here, so that no later product can overflow and no allocation can be
 * absurd; whether the tensors agree is checked by checkpoint.c.
 */
#define _GNU_SOURCE
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/json.h"

/* Upper bounds, each several times what any published model of this family has. */
#define MAX_WIDTH 65536
#define MAX_MLP (1 << 20)
#define MAX_LAYERS 1024
#define MAX_HEADS 1024
#define MAX_VOCAB (1 << 22)
#define MAX_IMAGE 4096
#define MAX_GRID 256 /* attention over grid^2 tokens */
#define MAX_POSITIONS (1 << 24)
#define MAX_FRAMES 1024
#define MAX_NO_CHANGE 64
#define MAX_NO_CHANGE_BYTES 4096

typedef struct int_key {
  const char *key;
  btc_json_need need;
  int64_t min, max;
  int64_t *out; /* holds the default */
} int_key;

static btc_status get_ints(const btc_json_object *o, const int_key *k, size_t n, btc_error *err) {
  btc_status st = BTC_OK;
  for (size_t i = 0; i < n && st == BTC_OK; i++) st = btc_json_get_int(o, k[i].key, k[i].need, k[i].min, k[i].max, k[i].out, err);
  return st;
}

static btc_status get_float(const btc_json_object *o, const char *key, btc_json_need need, double min, double max, float *out,
                            btc_error *err) {
  double d = (double)*out;
  btc_status st = btc_json_get_number(o, key, need, min, max, &d, err);
  if (st == BTC_OK) *out = (float)d;
  return st;
}

static btc_status unsupported(const btc_json_object *o, const char *key, const char *what, btc_error *err) {
  btc_status st = btc_json_refuse(o, key, what, err);
  if (st == BTC_ERR_MODEL && err) err->code = BTC_ERR_UNSUPPORTED;
  return BTC_ERR_UNSUPPORTED;
}

/* A key that, where it is present, has one value that we implement. */
static btc_status expect_string(const btc_json_object *o, const char *key, const char *only, btc_error *err) {
  const char *s = only;
  btc_status st = btc_json_get_string(o, key, BTC_JSON_NULLABLE, &s, err);
  if (st != BTC_OK || strcmp(s, only) == 0) return st;
  char what[80];
  snprintf(what, sizeof what, "'%s' (others are not supported)", only);
  return unsupported(o, key, what, err);
}

static btc_status expect_bool(const btc_json_object *o, const char *key, bool only, btc_error *err) {
  bool b = only;
  btc_status st = btc_json_get_bool(o, key, BTC_JSON_NULLABLE, &b, err);
  if (st != BTC_OK || b == only) return st;
  return unsupported(o, key, only ? "true (false is not supported)" : "false (true is not supported)", err);
}

static btc_status expect_int(const btc_json_object *o, const char *key, int64_t only, btc_error *err) {
  int64_t n = only;
  btc_status st = btc_json_get_int(o, key, BTC_JSON_NULLABLE, INT64_MIN, INT64_MAX, &n, err);
  if (st != BTC_OK || n == only) return st;
  char what[80];
  snprintf(what, sizeof what, "%lld (others are not supported)", (long long)only);
  return unsupported(o, key, what, err);
}

#define COUNT(a) (sizeof(a) / sizeof(a)[0])

/* ---- vision tower (spec 1.2) ---- */

static btc_status vision_values(const btc_json_object *o, btc_vision_config *v, btc_error *err) {
  *v = (btc_vision_config){
      .hidden = 768, .mlp = 3072, .layers = 12, .heads = 12, .image = 224, .patch = 16, .channels = 3, .eps = 1e-6f};
  const int_key keys[] = {{"hidden_size", BTC_JSON_OPTIONAL, 1, MAX_WIDTH, &v->hidden},
                          {"intermediate_size", BTC_JSON_OPTIONAL, 1, MAX_MLP, &v->mlp},
                          {"num_hidden_layers", BTC_JSON_OPTIONAL, 1, MAX_LAYERS, &v->layers},
                          {"num_attention_heads", BTC_JSON_OPTIONAL, 1, MAX_HEADS, &v->heads},
                          {"image_size", BTC_JSON_OPTIONAL, 1, MAX_IMAGE, &v->image},
                          {"patch_size", BTC_JSON_OPTIONAL, 1, MAX_IMAGE, &v->patch}};
  btc_status st = get_ints(o, keys, COUNT(keys), err);
  if (st == BTC_OK) st = expect_int(o, "num_channels", 3, err);
  if (st == BTC_OK) st = expect_string(o, "hidden_act", "gelu_pytorch_tanh", err);
  if (st == BTC_OK) st = get_float(o, "layer_norm_eps", BTC_JSON_OPTIONAL, 1e-30, 1, &v->eps, err);
  if (st != BTC_OK) return st;
  if (v->hidden % v->heads) return btc_json_refuse(o, "num_attention_heads", "a divisor of hidden_size", err);
  if (v->patch > v->image) return btc_json_refuse(o, "patch_size", "at most image_size", err);
  v->grid = v->image / v->patch;
  if (v->grid > MAX_GRID) return btc_json_refuse(o, "patch_size", "at least 1/256 of image_size", err);
  return BTC_OK;
}

static btc_status read_vision(const char *path, btc_vision_config *v, btc_error *err) {
  json_t *doc;
  btc_status st = btc_json_read(path, &btc_json_config_limits, &doc, err);
  if (st != BTC_OK) return st;
  btc_json_object o = {doc, path, ""};
  const char *type = "siglip_vision_model";
  st = btc_json_get_string(&o, "model_type", BTC_JSON_NULLABLE, &type, err);
  if (st == BTC_OK && strcmp(type, "siglip") == 0) { /* a raw SigLIP release: text and vision in one file (spec 2.2) */
    const json_t *inner = json_object_get(doc, "vision_config");
    if (!json_is_object(inner)) st = btc_json_refuse(&o, "vision_config", "an object", err);
    o.value = inner;
    o.key_prefix = "vision_config.";
  } else if (st == BTC_OK && strcmp(type, "siglip_vision_model") != 0) {
    st = unsupported(&o, "model_type", "'siglip_vision_model' or 'siglip'", err);
  }
  if (st == BTC_OK) st = vision_values(&o, v, err);
  json_decref(doc);
  return st;
}

/* ---- preprocessor (spec 3.1) ---- */

static btc_status preprocess_size(const btc_json_object *o, btc_preprocess_config *p, btc_error *err) {
  const json_t *size = json_object_get(o->value, "size");
  if (!json_is_object(size)) return btc_json_refuse(o, "size", "an object with height and width", err);
  const btc_json_object inner = {size, o->label, "size."};
  int64_t height = 0, width = 0;
  btc_status st = btc_json_get_int(&inner, "height", BTC_JSON_REQUIRED, 1, MAX_IMAGE, &height, err);
  if (st == BTC_OK) st = btc_json_get_int(&inner, "width", BTC_JSON_REQUIRED, 1, MAX_IMAGE, &width, err);
  if (st != BTC_OK) return st;
  if (height != width) return unsupported(&inner, "width", "equal to size.height", err);
  p->size = height;
  return BTC_OK;
}

static btc_status read_preprocess(const char *path, btc_preprocess_config *p, btc_error *err) {
  *p = (btc_preprocess_config){.mean = {0.5f, 0.5f, 0.5f}, .std = {0.5f, 0.5f, 0.5f}, .rescale = 0.00392156862745098};
  json_t *doc;
  btc_status st = btc_json_read(path, &btc_json_config_limits, &doc, err);
  if (st != BTC_OK) return st;
  const btc_json_object o = {doc, path, ""};
  st = preprocess_size(&o, p, err);
  if (st == BTC_OK) st = expect_int(&o, "resample", 3, err);
  if (st == BTC_OK) st = expect_bool(&o, "do_resize", true, err);
  if (st == BTC_OK) st = expect_bool(&o, "do_rescale", true, err);
  if (st == BTC_OK) st = expect_bool(&o, "do_normalize", true, err);
  if (st == BTC_OK) st = expect_bool(&o, "do_convert_rgb", true, err);
  if (st == BTC_OK) st = btc_json_get_number(&o, "rescale_factor", BTC_JSON_NULLABLE, 1e-12, 1e12, &p->rescale, err);
  if (st == BTC_OK) st = btc_json_get_numbers(&o, "image_mean", BTC_JSON_NULLABLE, 3, p->mean, err);
  if (st == BTC_OK) st = btc_json_get_numbers(&o, "image_std", BTC_JSON_NULLABLE, 3, p->std, err);
  for (int i = 0; i < 3 && st == BTC_OK; i++) {
    if (!(p->std[i] >= 1e-12f)) st = btc_json_refuse(&o, "image_std", "an array of 3 positive numbers", err);
  }
  json_decref(doc);
  return st;
}

/* ---- language model (spec 1.6) ---- */

/* null, or {"type": "linear", "factor": f}; later writers say "rope_type". */
static btc_status read_rope_scaling(const btc_json_object *o, double *factor, btc_error *err) {
  const json_t *v = json_object_get(o->value, "rope_scaling");
  *factor = 1;
  if (!v || json_is_null(v)) return BTC_OK;
  if (!json_is_object(v)) return btc_json_refuse(o, "rope_scaling", "null or an object", err);
  const btc_json_object inner = {v, o->label, "rope_scaling."};
  const char *key = json_object_get(v, "type") ? "type" : "rope_type", *type = NULL;
  btc_status st = btc_json_get_string(&inner, key, BTC_JSON_REQUIRED, &type, err);
  if (st != BTC_OK) return st;
  if (strcmp(type, "linear") != 0) return unsupported(&inner, key, "'linear' (others are not supported)", err);
  return btc_json_get_number(&inner, "factor", BTC_JSON_REQUIRED, 1, 4096, factor, err);
}

/* The maximum length of the tokenizer: absent, or an "unlimited" as large as 1e30, means no limit of its own. */
static btc_status read_context(const btc_json_object *o, btc_llm_config *l, btc_error *err) {
  int64_t positions = 2048;
  double longest = MAX_POSITIONS;
  btc_status st = btc_json_get_int(o, "max_position_embeddings", BTC_JSON_OPTIONAL, 1, MAX_POSITIONS, &positions, err);
  if (st == BTC_OK) st = btc_json_get_number(o, "tokenizer_model_max_length", BTC_JSON_NULLABLE, 1, 1e300, &longest, err);
  if (st != BTC_OK) return st;
  double reach = (double)positions * l->rope_factor; /* not always an integer; rounded down below */
  if (longest < reach) reach = longest;
  l->context = reach < MAX_POSITIONS ? (int64_t)reach : MAX_POSITIONS;
  return BTC_OK;
}

/* eos_token_id: an integer or a list of at most 8. Leaves the default alone where absent. */
static btc_status read_eos(const btc_json_object *o, btc_llm_config *l, btc_error *err) {
  const json_t *v = json_object_get(o->value, "eos_token_id");
  const json_t *list[COUNT(l->eos)];
  if (!v || json_is_null(v)) return BTC_OK;
  size_t n = json_is_array(v) ? json_array_size(v) : 1;
  if (n < 1 || n > COUNT(list)) return btc_json_refuse(o, "eos_token_id", "one to eight token ids", err);
  for (size_t i = 0; i < n; i++) {
    list[i] = json_is_array(v) ? json_array_get(v, i) : v;
    if (!json_is_integer(list[i]) || json_integer_value(list[i]) < 0 || json_integer_value(list[i]) >= l->vocab)
      return btc_json_refuse(o, "eos_token_id", "token ids of the vocabulary", err);
  }
  for (size_t i = 0; i < n; i++) l->eos[i] = (int)json_integer_value(list[i]);
  l->n_eos = (int)n;
  return BTC_OK;
}

static btc_status read_tokens(const btc_json_object *o, btc_llm_config *l, btc_error *err) {
  int64_t bos = 1, pad = 0;
  l->eos[0] = 2;
  l->n_eos = 1;
  btc_status st = btc_json_get_int(o, "bos_token_id", BTC_JSON_NULLABLE, 0, l->vocab - 1, &bos, err);
  if (st == BTC_OK) st = btc_json_get_int(o, "pad_token_id", BTC_JSON_NULLABLE, -1, MAX_VOCAB, &pad, err);
  if (st == BTC_OK) st = read_eos(o, l, err);
  l->bos = (int)bos;
  l->pad = (int)pad;
  return st;
}

static btc_status llm_sizes(const btc_json_object *o, btc_llm_config *l, btc_error *err) {
  *l = (btc_llm_config){.hidden = 4096, .mlp = 11008, .layers = 32, .heads = 32, .vocab = 32000, .eps = 1e-6f, .rope_theta = 10000};
  const int_key keys[] = {{"hidden_size", BTC_JSON_OPTIONAL, 1, MAX_WIDTH, &l->hidden},
                          {"intermediate_size", BTC_JSON_OPTIONAL, 1, MAX_MLP, &l->mlp},
                          {"num_hidden_layers", BTC_JSON_OPTIONAL, 1, MAX_LAYERS, &l->layers},
                          {"num_attention_heads", BTC_JSON_OPTIONAL, 1, MAX_HEADS, &l->heads},
                          {"vocab_size", BTC_JSON_OPTIONAL, 3, MAX_VOCAB, &l->vocab}};
  btc_status st = get_ints(o, keys, COUNT(keys), err);
  if (st != BTC_OK) return st;
  l->kv_heads = l->heads;
  st = btc_json_get_int(o, "num_key_value_heads", BTC_JSON_NULLABLE, 1, MAX_HEADS, &l->kv_heads, err);
  if (st != BTC_OK) return st;
  if (l->hidden % l->heads) return btc_json_refuse(o, "num_attention_heads", "a divisor of hidden_size", err);
  if (l->heads % l->kv_heads) return btc_json_refuse(o, "num_key_value_heads", "a divisor of num_attention_heads", err);
  l->head_dim = l->hidden / l->heads;
  if (l->head_dim % 2)
    return btc_json_refuse(o, "num_attention_heads", "such that hidden_size / num_attention_heads is even (rotary positions)", err);
  return expect_int(o, "head_dim", l->head_dim, err);
}

static btc_status read_llm(const char *path, btc_llm_config *l, btc_error *err) {
  json_t *doc;
  btc_status st = btc_json_read(path, &btc_json_config_limits, &doc, err);
  if (st != BTC_OK) return st;
  const btc_json_object o = {doc, path, ""};
  st = expect_string(&o, "model_type", "llama", err);
  if (st == BTC_OK) st = llm_sizes(&o, l, err);
  if (st == BTC_OK) st = expect_string(&o, "hidden_act", "silu", err);
  if (st == BTC_OK) st = expect_bool(&o, "attention_bias", false, err);
  if (st == BTC_OK) st = expect_bool(&o, "mlp_bias", false, err);
  if (st == BTC_OK) st = get_float(&o, "rms_norm_eps", BTC_JSON_OPTIONAL, 1e-30, 1, &l->eps, err);
  if (st == BTC_OK) st = btc_json_get_number(&o, "rope_theta", BTC_JSON_OPTIONAL, 1e-3, 1e15, &l->rope_theta, err);
  if (st == BTC_OK) st = read_rope_scaling(&o, &l->rope_factor, err);
  if (st == BTC_OK) st = read_context(&o, l, err);
  if (st == BTC_OK) st = btc_json_get_bool(&o, "tie_word_embeddings", BTC_JSON_NULLABLE, &l->tied_head, err);
  if (st == BTC_OK) st = read_tokens(&o, l, err);
  json_decref(doc);
  return st;
}

/* generation_config.json may be absent; its end-of-sequence ids go before those of config.json. */
static btc_status read_generation(const char *path, btc_llm_config *l, btc_generation_config *g, btc_error *err) {
  *g = (btc_generation_config){.temperature = -1, .top_p = -1, .top_k = 0};
  struct stat sb;
  if (lstat(path, &sb) != 0) return BTC_OK;
  json_t *doc;
  btc_status st = btc_json_read(path, &btc_json_config_limits, &doc, err);
  if (st != BTC_OK) return st;
  const btc_json_object o = {doc, path, ""};
  int64_t top_k = 0;
  st = read_eos(&o, l, err);
  if (st == BTC_OK) st = get_float(&o, "temperature", BTC_JSON_NULLABLE, 0, 1000, &g->temperature, err);
  if (st == BTC_OK) st = get_float(&o, "top_p", BTC_JSON_NULLABLE, 0, 1, &g->top_p, err);
  if (st == BTC_OK) st = btc_json_get_int(&o, "top_k", BTC_JSON_NULLABLE, 0, INT32_MAX, &top_k, err);
  g->top_k = (int)top_k;
  json_decref(doc);
  return st;
}

/* ---- projector ---- */

/* Re-saved checkpoints hold the projector's path here (spec 8.1 item 11). */
static btc_status read_projector(const char *path, btc_error *err) {
  json_t *doc;
  btc_status st = btc_json_read(path, &btc_json_config_limits, &doc, err);
  if (st != BTC_OK) return st;
  const btc_json_object o = {doc, path, ""};
  const char *type = "mlp_downsample";
  st = btc_json_get_string(&o, "mm_projector_type", BTC_JSON_NULLABLE, &type, err);
  if (st == BTC_OK && strcmp(type, "mlp_downsample") != 0 && !strstr(type, "mm_projector"))
    st = unsupported(&o, "mm_projector_type", "'mlp_downsample' or a path with 'mm_projector'", err);
  json_decref(doc);
  return st;
}

/* ---- root (spec 1.8) ---- */

static btc_status check_architectures(const btc_json_object *o, btc_error *err) {
  static const char what[] = "a list with a name that contains 'llava'";
  const json_t *list = json_object_get(o->value, "architectures");
  if (!json_is_array(list)) return btc_json_refuse(o, "architectures", what, err);
  bool found = false;
  for (size_t i = 0; i < json_array_size(list); i++) {
    const json_t *s = json_array_get(list, i);
    if (!json_is_string(s)) return btc_json_refuse(o, "architectures", "a list of strings", err);
    found |= strcasestr(json_string_value(s), "llava") != NULL;
  }
  return found ? BTC_OK : btc_json_refuse(o, "architectures", what, err);
}

/* Hidden-state entry `select` of layers + 1, negative from the end; entry n is the output of block n (spec 1.2 step 4). */
static btc_status read_select(const btc_json_object *o, btc_vision_config *v, btc_error *err) {
  int64_t select = -2, entries = v->layers + 1;
  btc_status st = btc_json_get_int(o, "mm_vision_select_layer", BTC_JSON_OPTIONAL, -entries, entries - 1, &select, err);
  if (st == BTC_OK) st = expect_string(o, "mm_vision_select_feature", "cls_patch", err);
  v->blocks = select < 0 ? select + entries : select;
  return st;
}

/* -1 and the tower's own side change nothing; anything else would stretch the position table (spec 1.2). */
static btc_status check_resolution(const btc_json_object *o, int64_t image, btc_error *err) {
  int64_t resolution = -1;
  btc_status st = btc_json_get_int(o, "vision_resolution", BTC_JSON_NULLABLE, INT64_MIN, INT64_MAX, &resolution, err);
  if (st != BTC_OK || resolution == -1 || resolution == image) return st;
  return unsupported(o, "vision_resolution", "-1 or the image_size of vision_tower/config.json", err);
}

static btc_status read_cc_head(const btc_json_object *o, int64_t *cc_head, btc_error *err) {
  const json_t *v = json_object_get(o->value, "mm_projector_cfg");
  *cc_head = 8;
  if (!json_is_object(v)) return BTC_OK;
  const btc_json_object inner = {v, o->label, "mm_projector_cfg."};
  return btc_json_get_int(&inner, "cc_head", BTC_JSON_NULLABLE, 1, MAX_HEADS, cc_head, err);
}

static btc_status read_no_change(const btc_json_object *o, btc_config *c, btc_error *err) {
  static const char what[] = "a list of at most 64 short strings";
  const json_t *list = json_object_get(o->value, "no_change");
  if (!list) return BTC_OK;
  if (!json_is_array(list) || json_array_size(list) > MAX_NO_CHANGE) return btc_json_refuse(o, "no_change", what, err);
  if (json_array_size(list) == 0) return BTC_OK;
  c->no_change = btc_alloc_zero(json_array_size(list), sizeof *c->no_change);
  if (!c->no_change) return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", o->label);
  for (size_t i = 0; i < json_array_size(list); i++) {
    const json_t *s = json_array_get(list, i);
    if (!json_is_string(s) || json_string_length(s) > MAX_NO_CHANGE_BYTES) return btc_json_refuse(o, "no_change", what, err);
    if (!(c->no_change[i] = btc_strdup(json_string_value(s)))) return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", o->label);
    c->n_no_change++;
  }
  return BTC_OK;
}

/* Our own additions to the root file: how the model is called in records, and which captions mean "no change". */
static btc_status read_btcchat(const btc_json_object *o, btc_config *c, btc_error *err) {
  const json_t *v = json_object_get(o->value, "btcchat");
  if (!v || json_is_null(v)) return BTC_OK;
  if (!json_is_object(v)) return btc_json_refuse(o, "btcchat", "an object", err);
  const btc_json_object inner = {v, o->label, "btcchat."};
  const char *name = "";
  btc_status st = btc_json_get_string(&inner, "name", BTC_JSON_OPTIONAL, &name, err);
  if (st != BTC_OK) return st;
  if (strlen(name) >= sizeof c->name) return btc_json_refuse(&inner, "name", "at most 127 bytes long", err);
  strcpy(c->name, name);
  return read_no_change(&inner, c, err);
}

static btc_status read_root(const btc_json_object *o, btc_config *c, btc_error *err) {
  const char *aspect = "";
  btc_status st = expect_bool(o, "s2", false, err);
  if (st == BTC_OK) st = expect_bool(o, "mm_use_im_start_end", false, err);
  if (st == BTC_OK) st = read_select(o, &c->vision, err);
  if (st == BTC_OK) st = check_resolution(o, c->vision.image, err);
  if (st == BTC_OK) st = btc_json_get_int(o, "num_video_frames", BTC_JSON_NULLABLE, 0, MAX_FRAMES, &c->num_video_frames, err);
  if (st == BTC_OK) st = btc_json_get_string(o, "image_aspect_ratio", BTC_JSON_NULLABLE, &aspect, err);
  if (st == BTC_OK) st = read_cc_head(o, &c->cc_head, err);
  if (st == BTC_OK) st = read_btcchat(o, c, err);
  c->aspect_pad = strcmp(aspect, "pad") == 0;
  return st;
}

/* A root file that was never saved again names its parts by paths or hub ids; we only run complete directories. */
static btc_status check_parts(const btc_json_object *o, const char *dir, btc_error *err) {
  static const struct {
    const char *key, *folder;
  } parts[] = {{"llm_cfg", "llm"}, {"vision_tower_cfg", "vision_tower"}, {"mm_projector_cfg", "mm_projector"}};
  for (size_t i = 0; i < COUNT(parts); i++) {
    const json_t *v = json_object_get(o->value, parts[i].key);
    if (v && !json_is_null(v) && !json_is_object(v) && !json_is_string(v))
      return btc_json_refuse(o, parts[i].key, "an object or a path", err);
    if (!json_is_string(v)) continue;
    char *path = btc_path_join(dir, parts[i].folder);
    struct stat sb;
    bool there = path && stat(path, &sb) == 0;
    free(path);
    if (!there)
      return btc_fail(err, BTC_ERR_UNSUPPORTED,
                      "'%s': key '%s' is the path '%.200s', and the checkpoint has no folder '%s' of its own", o->label,
                      parts[i].key, json_string_value(v), parts[i].folder);
  }
  return BTC_OK;
}

enum { ROOT, LLM, GENERATION, VISION, PREPROCESS, PROJECTOR, FILES };
static const char *const files[FILES] = {"config.json",
                                         "llm/config.json",
                                         "llm/generation_config.json",
                                         "vision_tower/config.json",
                                         "vision_tower/preprocessor_config.json",
                                         "mm_projector/config.json"};

btc_status btc_config_load(const char *dir, btc_config *out, btc_error *err) {
  *out = (btc_config){0};
  char *path[FILES] = {NULL};
  json_t *doc = NULL;
  btc_status st = BTC_OK;
  for (int i = 0; i < FILES && st == BTC_OK; i++) {
    if (!(path[i] = btc_path_join(dir, files[i]))) st = btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", dir);
  }
  if (st == BTC_OK) st = btc_json_read(path[ROOT], &btc_json_config_limits, &doc, err);
  const btc_json_object root = {doc, path[ROOT], ""};
  if (st == BTC_OK) st = check_architectures(&root, err);
  if (st == BTC_OK) st = check_parts(&root, dir, err);
  if (st == BTC_OK) st = read_llm(path[LLM], &out->llm, err);
  if (st == BTC_OK) st = read_generation(path[GENERATION], &out->llm, &out->generation, err);
  if (st == BTC_OK) st = read_vision(path[VISION], &out->vision, err);
  if (st == BTC_OK) st = read_preprocess(path[PREPROCESS], &out->pre, err);
  if (st == BTC_OK) st = read_projector(path[PROJECTOR], err);
  if (st == BTC_OK) st = read_root(&root, out, err);
  json_decref(doc);
  for (int i = 0; i < FILES; i++) free(path[i]);
  if (st != BTC_OK) btc_config_free(out);
  return st;
}

void btc_config_free(btc_config *c) {
  for (size_t i = 0; i < c->n_no_change; i++) free(c->no_change[i]);
  free(c->no_change);
  c->no_change = NULL;
  c->n_no_change = 0;
}
