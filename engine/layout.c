/* Which tensors the model needs, by canonical name and shape (spec 2.3 to 2.5), checked once when a checkpoint is opened. */
#include "checkpoint_internal.h"

#include <float.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CE_LAYERS 256
#define MAX_CE_WIDTH 65536

/* Checks one tensor after the other; after the first refusal it does nothing more. */
typedef struct checker {
  const btc_checkpoint *c;
  btc_part part;
  btc_status status;
  btc_error *err;
} checker;

static void need(checker *k, int rank, const int64_t *dim, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static void need(checker *k, int rank, const int64_t *dim, const char *fmt, ...) {
  if (k->status != BTC_OK) return;
  char name[160];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(name, sizeof name, fmt, ap);
  va_end(ap);
  const btc_tensor_view *v;
  k->status = btc_checkpoint_tensor(k->c, k->part, name, rank, dim, &v, k->err);
}

/* clang-format off */
#define DIM(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__}
/* clang-format on */

static void need_linear(checker *k, const char *name, int64_t out, int64_t in) {
  need(k, DIM(out, in), "%s.weight", name);
  need(k, DIM(out), "%s.bias", name);
}

static void need_norm(checker *k, const char *name, int64_t width) {
  need(k, DIM(width), "%s.weight", name);
  need(k, DIM(width), "%s.bias", name);
}

/* ---- LLM (spec 2.5) ---- */

static void check_llm(checker *k) {
  const btc_llm_config *l = &k->c->config.llm;
  int64_t d = l->hidden, q = l->heads * l->head_dim, kv = l->kv_heads * l->head_dim;
  need(k, DIM(l->vocab, d), "model.embed_tokens.weight");
  for (int64_t i = 0; i < l->layers && k->status == BTC_OK; i++) {
    need(k, DIM(d), "model.layers.%" PRId64 ".input_layernorm.weight", i);
    need(k, DIM(q, d), "model.layers.%" PRId64 ".self_attn.q_proj.weight", i);
    need(k, DIM(kv, d), "model.layers.%" PRId64 ".self_attn.k_proj.weight", i);
    need(k, DIM(kv, d), "model.layers.%" PRId64 ".self_attn.v_proj.weight", i);
    need(k, DIM(d, q), "model.layers.%" PRId64 ".self_attn.o_proj.weight", i);
    need(k, DIM(d), "model.layers.%" PRId64 ".post_attention_layernorm.weight", i);
    need(k, DIM(l->mlp, d), "model.layers.%" PRId64 ".mlp.gate_proj.weight", i);
    need(k, DIM(l->mlp, d), "model.layers.%" PRId64 ".mlp.up_proj.weight", i);
    need(k, DIM(d, l->mlp), "model.layers.%" PRId64 ".mlp.down_proj.weight", i);
  }
  need(k, DIM(d), "model.norm.weight");
  if (!l->tied_head) need(k, DIM(l->vocab, d), "lm_head.weight");
}

/* ---- vision tower (spec 2.3); blocks behind the selected one are never computed ---- */

static void check_vision(checker *k) {
  const btc_vision_config *v = &k->c->config.vision;
  static const char *const square[] = {"q_proj", "k_proj", "v_proj", "out_proj"};
  need(k, DIM(v->hidden, v->channels, v->patch, v->patch), "vision_model.embeddings.patch_embedding.weight");
  need(k, DIM(v->hidden), "vision_model.embeddings.patch_embedding.bias");
  need(k, DIM(v->grid * v->grid, v->hidden), "vision_model.embeddings.position_embedding.weight");
  for (int64_t i = 0; i < v->blocks && k->status == BTC_OK; i++) {
    char name[96];
    int at = snprintf(name, sizeof name, "vision_model.encoder.layers.%" PRId64 ".", i);
    char *tail = name + at;
    strcpy(tail, "layer_norm1");
    need_norm(k, name, v->hidden);
    for (int s = 0; s < 4; s++) {
      snprintf(tail, sizeof name - (size_t)at, "self_attn.%s", square[s]);
      need_linear(k, name, v->hidden, v->hidden);
    }
    strcpy(tail, "layer_norm2");
    need_norm(k, name, v->hidden);
    strcpy(tail, "mlp.fc1");
    need_linear(k, name, v->mlp, v->hidden);
    strcpy(tail, "mlp.fc2");
    need_linear(k, name, v->hidden, v->mlp);
  }
}

/* ---- projector and change extraction (spec 2.4) ---- */

static void check_single(checker *k) {
  int64_t merged = 4 * k->c->config.vision.hidden, d = k->c->config.llm.hidden;
  need_norm(k, "layers.single.1", merged);
  need_linear(k, "layers.single.2", d, merged);
  need_linear(k, "layers.single.4", d, d);
}

static void need_batch_norm(checker *k, const char *name, int64_t width) {
  need_norm(k, name, width);
  need(k, DIM(width), "%s.running_mean", name);
  need(k, DIM(width), "%s.running_var", name);
}

/* A negative or non-finite variance makes every caption NaN; it is a few hundred numbers, so look. */
static void check_variance(checker *k, const char *norm) {
  char name[96];
  snprintf(name, sizeof name, "%s.running_var", norm);
  const btc_entry *e = k->status == BTC_OK ? btc_part_find(&k->c->part[k->part], name) : NULL;
  if (!e) return;
  const uint8_t *at = e->view->data;
  for (int64_t i = 0; i < e->view->dim[0] && k->status == BTC_OK; i++, at += btc_dtype_size(e->view->dtype)) {
    float x;
    btc_to_f32(&x, at, e->view->dtype, 1);
    if (!(x >= 0 && x <= FLT_MAX))
      k->status = btc_fail(k->err, BTC_ERR_MODEL, "'%s': tensor '%s': element %" PRId64 " is %g, not a variance", e->view->path,
                           e->view->name, i, (double)x);
  }
}

static void check_fusion(checker *k) {
  int64_t c = k->c->config.vision.hidden, half = c / 2, grid = k->c->config.vision.grid;
  need(k, DIM(grid, half), "layers.change.h_embedding.weight");
  need(k, DIM(grid, half), "layers.change.w_embedding.weight");
  need(k, DIM(c, 2 * c, 1, 1), "layers.change.Conv1.weight");
  need(k, DIM(c), "layers.change.Conv1.bias");
  need(k, DIM(half, c, 1, 1), "layers.change.LN.left.0.weight");
  need(k, DIM(half), "layers.change.LN.left.0.bias");
  need_batch_norm(k, "layers.change.LN.left.1", half);
  need(k, DIM(half, half, 3, 3), "layers.change.LN.left.3.weight");
  need(k, DIM(half), "layers.change.LN.left.3.bias");
  need_batch_norm(k, "layers.change.LN.left.4", half);
  need(k, DIM(c, half, 1, 1), "layers.change.LN.left.6.weight");
  need(k, DIM(c), "layers.change.LN.left.6.bias");
  need_batch_norm(k, "layers.change.LN.left.7", c);
  check_variance(k, "layers.change.LN.left.1");
  check_variance(k, "layers.change.LN.left.4");
  check_variance(k, "layers.change.LN.left.7");
}

static void check_attention_layer(checker *k, int64_t layer, int joint, int64_t attention) {
  int64_t c = k->c->config.vision.hidden, width = joint ? 2 * c : c;
  char at[64], name[96];
  snprintf(at, sizeof at, "layers.change.selftrans.%" PRId64 ".%d", layer, joint);
  need(k, DIM(attention, width), "%s.att.to_q.weight", at);
  need(k, DIM(attention, width), "%s.att.to_k.weight", at);
  snprintf(name, sizeof name, "%s.att.to_out.0", at);
  need_linear(k, name, width, attention);
  snprintf(name, sizeof name, "%s.feedforward.net.0", at);
  need_linear(k, name, c, width);
  snprintf(name, sizeof name, "%s.feedforward.net.3", at);
  need_linear(k, name, width, c);
  snprintf(name, sizeof name, "%s.norm1", at);
  need_norm(k, name, width);
  snprintf(name, sizeof name, "%s.norm2", at);
  need_norm(k, name, width);
}

/* The number of CE layers is stored nowhere (spec 8.1 item 10): it is one more than the highest index of a name. */
static btc_status infer_ce_layers(btc_checkpoint *c, btc_error *err) {
  static const char change[] = "layers.change.", layer[] = "layers.change.selftrans.";
  const btc_part_tensors *p = &c->part[BTC_PART_PROJECTOR];
  c->ce_layers = -1;
  for (size_t i = 0; i < p->n; i++) {
    const char *name = p->entry[i].name;
    if (strncmp(name, change, strlen(change)) != 0) continue;
    if (c->ce_layers < 0) c->ce_layers = 0;
    if (strncmp(name, layer, strlen(layer)) != 0) continue;
    const char *digits = name + strlen(layer);
    char *end;
    long index = *digits >= '0' && *digits <= '9' ? strtol(digits, &end, 10) : -1;
    if (index < 0 || index >= MAX_CE_LAYERS || *end != '.')
      return btc_fail(err, BTC_ERR_MODEL, "'%s': tensor '%.256s': not a layer of change extraction (0 to %d)",
                      p->entry[i].view->path, name, MAX_CE_LAYERS - 1);
    if (index >= c->ce_layers) c->ce_layers = index + 1;
  }
  return BTC_OK;
}

/* The attention width is that of the first stored to_q (512 in the reference); all layers must agree. */
static btc_status infer_ce_width(btc_checkpoint *c, btc_error *err) {
  static const char first[] = "layers.change.selftrans.0.0.att.to_q.weight";
  const btc_entry *e = btc_part_find(&c->part[BTC_PART_PROJECTOR], first);
  int64_t width = e && e->view->rank == 2 ? e->view->dim[0] : 512;
  if (width < 1 || width > MAX_CE_WIDTH)
    return btc_fail(err, BTC_ERR_MODEL, "'%s': tensor '%s': %" PRId64 " is not an attention width", e->view->path, first, width);
  c->ce_width = width;
  return BTC_OK;
}

static btc_status check_change(btc_checkpoint *c, checker *k, btc_error *err) {
  btc_status st = infer_ce_layers(c, err);
  if (st != BTC_OK || c->ce_layers < 0) return st;
  if (c->config.vision.hidden % 2)
    return btc_fail(err, BTC_ERR_MODEL,
                    "'%s/vision_tower/config.json': key 'hidden_size' must be even for change extraction, is %" PRId64, c->dir,
                    c->config.vision.hidden);
  check_fusion(k);
  if (k->status != BTC_OK || c->ce_layers == 0) return k->status;
  if ((st = infer_ce_width(c, err)) != BTC_OK) return st;
  for (int64_t i = 0; i < c->ce_layers; i++)
    for (int joint = 0; joint < 2; joint++) check_attention_layer(k, i, joint, c->ce_width);
  if (k->status != BTC_OK) return k->status;
  if (c->ce_width % c->config.cc_head)
    return btc_fail(err, BTC_ERR_MODEL,
                    "'%s/config.json': key 'mm_projector_cfg.cc_head' must divide the attention width %" PRId64
                    " of change extraction, is %" PRId64,
                    c->dir, c->ce_width, c->config.cc_head);
  return BTC_OK;
}

btc_status btc_checkpoint_check(btc_checkpoint *c, btc_error *err) {
  checker k = {.c = c, .err = err};
  k.part = BTC_PART_LLM;
  check_llm(&k);
  k.part = BTC_PART_VISION;
  check_vision(&k);
  k.part = BTC_PART_PROJECTOR;
  check_single(&k);
  if (k.status != BTC_OK) return k.status;
  btc_status st = check_change(c, &k, err);
  if (st != BTC_OK) return st;
  if (c->config.pre.size != c->config.vision.image)
    return btc_fail(err, BTC_ERR_MODEL,
                    "'%s/vision_tower/preprocessor_config.json': key 'size' is %" PRId64
                    ", but image_size of vision_tower/config.json is %" PRId64,
                    c->dir, c->config.pre.size, c->config.vision.image);
  return BTC_OK;
}
