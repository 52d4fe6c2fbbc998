/*
 * Opens a checkpoint and finds every weight by name (spec 2.3-2.5). What it asks for is what the forward pass reads: the last
 * tower blocks beyond the selected layer, post_layernorm, the pooling head and to_v are never looked at.
 */
#include "model.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Widened vectors are kept in one list, so that closing a half-opened model frees what there is. */
static float *new_vector(btc_model *m, int64_t n, btc_error *err) {
  if (m->n_vectors == m->cap_vectors) {
    size_t cap = m->cap_vectors ? m->cap_vectors * 2 : 64;
    float **grown = btc_realloc(m->vectors, cap, sizeof *grown);
    if (!grown) goto nomem;
    m->vectors = grown;
    m->cap_vectors = cap;
  }
  float *v = btc_alloc((size_t)n, sizeof *v);
  if (!v) goto nomem;
  m->vectors[m->n_vectors++] = v;
  return v;
nomem:
  btc_fail(err, BTC_ERR_NOMEM, "cannot open '%s': not enough memory for its vectors", btc_checkpoint_dir(m->ckpt));
  return NULL;
}

static btc_status need_vector(btc_model *m, btc_part part, const char *name, int64_t n, const float **out, btc_error *err) {
  const btc_tensor_view *t;
  btc_status st = btc_checkpoint_tensor(m->ckpt, part, name, 1, &n, &t, err);
  if (st != BTC_OK) return st;
  float *v = new_vector(m, n, err);
  if (!v) return BTC_ERR_NOMEM;
  btc_to_f32(v, t->data, t->dtype, (size_t)n);
  *out = v;
  return BTC_OK;
}

static btc_status need_table(btc_model *m, btc_part part, const char *name, int64_t rows, int64_t cols, const float **out,
                             btc_error *err) {
  const btc_tensor_view *t;
  btc_status st = btc_checkpoint_tensor(m->ckpt, part, name, 2, (int64_t[]){rows, cols}, &t, err);
  if (st != BTC_OK) return st;
  float *v = new_vector(m, rows * cols, err);
  if (!v) return BTC_ERR_NOMEM;
  btc_to_f32(v, t->data, t->dtype, (size_t)(rows * cols));
  *out = v;
  return BTC_OK;
}

/* A matrix in place; rank 4 for convolutions [rows, in, k, k], whose memory is already the [rows, in*k*k] matrix. */
static btc_status need_matrix(btc_model *m, btc_part part, const char *name, int rank, const int64_t dim[4], btc_weight *out,
                              btc_error *err) {
  const btc_tensor_view *t;
  btc_status st = btc_checkpoint_tensor(m->ckpt, part, name, rank, dim, &t, err);
  if (st != BTC_OK) return st;
  int64_t cols = 1;
  for (int i = 1; i < rank; i++) cols *= dim[i];
  *out = (btc_weight){.data = t->data, .dtype = t->dtype, .rows = dim[0], .cols = cols};
  return BTC_OK;
}

static btc_status need_plain(btc_model *m, btc_part part, const char *prefix, const char *name, int64_t rows, int64_t cols,
                             btc_weight *out, btc_error *err) {
  char full[192];
  snprintf(full, sizeof full, "%s%s.weight", prefix, name);
  return need_matrix(m, part, full, 2, (int64_t[4]){rows, cols}, out, err);
}

static btc_status need_linear(btc_model *m, btc_part part, const char *prefix, const char *name, int64_t rows, int64_t cols,
                              btc_linear *out, btc_error *err) {
  char full[192];
  btc_status st = need_plain(m, part, prefix, name, rows, cols, &out->w, err);
  snprintf(full, sizeof full, "%s%s.bias", prefix, name);
  return st == BTC_OK ? need_vector(m, part, full, rows, &out->bias, err) : st;
}

static btc_status need_affine(btc_model *m, btc_part part, const char *prefix, const char *name, int64_t n, btc_affine *out,
                              btc_error *err) {
  char full[192];
  snprintf(full, sizeof full, "%s%s.weight", prefix, name);
  btc_status st = need_vector(m, part, full, n, &out->weight, err);
  snprintf(full, sizeof full, "%s%s.bias", prefix, name);
  return st == BTC_OK ? need_vector(m, part, full, n, &out->bias, err) : st;
}

#define TRY(call)                    \
  do {                               \
    btc_status try_ = (call);        \
    if (try_ != BTC_OK) return try_; \
  } while (0)

static btc_status open_vision(btc_model *m, btc_error *err) {
  const btc_vision_config *v = &m->cfg->vision;
  const btc_part part = BTC_PART_VISION;
  int64_t c = v->hidden;
  TRY(need_matrix(m, part, "vision_model.embeddings.patch_embedding.weight", 4, (int64_t[4]){c, 3, v->patch, v->patch}, &m->patch.w,
                  err));
  TRY(need_vector(m, part, "vision_model.embeddings.patch_embedding.bias", c, &m->patch.bias, err));
  TRY(need_table(m, part, "vision_model.embeddings.position_embedding.weight", m->tokens, c, &m->position, err));
  m->vision = btc_alloc_zero((size_t)v->blocks + 1, sizeof *m->vision);
  if (!m->vision) return btc_fail(err, BTC_ERR_NOMEM, "cannot open '%s': out of memory", btc_checkpoint_dir(m->ckpt));
  for (int64_t i = 0; i < v->blocks; i++) {
    char p[96];
    btc_vision_block *b = &m->vision[i];
    snprintf(p, sizeof p, "vision_model.encoder.layers.%lld.", (long long)i);
    TRY(need_affine(m, part, p, "layer_norm1", c, &b->ln1, err));
    TRY(need_affine(m, part, p, "layer_norm2", c, &b->ln2, err));
    TRY(need_linear(m, part, p, "self_attn.q_proj", c, c, &b->q, err));
    TRY(need_linear(m, part, p, "self_attn.k_proj", c, c, &b->k, err));
    TRY(need_linear(m, part, p, "self_attn.v_proj", c, c, &b->v, err));
    TRY(need_linear(m, part, p, "self_attn.out_proj", c, c, &b->out, err));
    TRY(need_linear(m, part, p, "mlp.fc1", v->mlp, c, &b->fc1, err));
    TRY(need_linear(m, part, p, "mlp.fc2", c, v->mlp, &b->fc2, err));
  }
  return BTC_OK;
}

/* Batch norm at inference is an affine map per channel; with the convolution's own bias it is one scale and one shift
 * (spec 1.3 step 6). Computed in double so that folding costs no accuracy. */
static btc_status need_conv_norm(btc_model *m, int conv, int norm, int64_t rows, int64_t cols, int64_t k, btc_conv_norm *out,
                                 btc_error *err) {
  static const char *const parts[4] = {"weight", "bias", "running_mean", "running_var"};
  const btc_part part = BTC_PART_PROJECTOR;
  const float *bias, *bn[4];
  char name[96];
  snprintf(name, sizeof name, "layers.change.LN.left.%d.weight", conv);
  TRY(need_matrix(m, part, name, 4, (int64_t[4]){rows, cols, k, k}, &out->w, err));
  snprintf(name, sizeof name, "layers.change.LN.left.%d.bias", conv);
  TRY(need_vector(m, part, name, rows, &bias, err));
  for (int i = 0; i < 4; i++) {
    snprintf(name, sizeof name, "layers.change.LN.left.%d.%s", norm, parts[i]);
    TRY(need_vector(m, part, name, rows, &bn[i], err));
  }
  float *scale = new_vector(m, rows, err), *shift = scale ? new_vector(m, rows, err) : NULL;
  if (!shift) return BTC_ERR_NOMEM;
  for (int64_t i = 0; i < rows; i++) {
    double s = bn[0][i] / sqrt((double)bn[3][i] + 1e-5);
    scale[i] = (float)s;
    shift[i] = (float)(((double)bias[i] - bn[2][i]) * s + bn[1][i]);
  }
  out->scale = scale;
  out->shift = shift;
  return BTC_OK;
}

static btc_status open_change_attention(btc_model *m, int64_t layer, int j, int64_t width, btc_change_attention *b,
                                        btc_error *err) {
  const btc_part part = BTC_PART_PROJECTOR;
  btc_change *c = &m->change;
  char p[96];
  snprintf(p, sizeof p, "layers.change.selftrans.%lld.%d.", (long long)layer, j);
  TRY(need_plain(m, part, p, "att.to_q", c->attention_width, width, &b->to_q, err));
  TRY(need_plain(m, part, p, "att.to_k", c->attention_width, width, &b->to_k, err));
  TRY(need_linear(m, part, p, "att.to_out.0", width, c->attention_width, &b->to_out, err));
  TRY(need_linear(m, part, p, "feedforward.net.0", c->ff_width, width, &b->ff1, err));
  TRY(need_linear(m, part, p, "feedforward.net.3", width, c->ff_width, &b->ff2, err));
  TRY(need_affine(m, part, p, "norm1", width, &b->norm1, err));
  return need_affine(m, part, p, "norm2", width, &b->norm2, err);
}

/* Position of token t = r*G + c: first half of the channels from h_embedding[c] (column!), second from w_embedding[r] (spec
 * 8.1 item 2). Laid out once so that the forward pass is one addition. */
static btc_status open_change_position(btc_model *m, btc_error *err) {
  const int64_t g = m->cfg->vision.grid, c = m->hidden, half = m->change.half;
  const float *h, *w;
  TRY(need_table(m, BTC_PART_PROJECTOR, "layers.change.h_embedding.weight", g, half, &h, err));
  TRY(need_table(m, BTC_PART_PROJECTOR, "layers.change.w_embedding.weight", g, half, &w, err));
  float *p = new_vector(m, m->tokens * c, err);
  if (!p) return BTC_ERR_NOMEM;
  for (int64_t t = 0; t < m->tokens; t++) {
    memcpy(p + t * c, h + t % g * half, (size_t)half * sizeof *p);
    memcpy(p + t * c + half, w + t / g * half, (size_t)half * sizeof *p);
  }
  m->change.position = p;
  return BTC_OK;
}

/* The attention width and the feed-forward width are the checkpoint's own (512 and C in the reference code, spec 1.3). */
static btc_status read_change_widths(btc_model *m, btc_error *err) {
  btc_change *c = &m->change;
  for (size_t i = 0, n = btc_checkpoint_count(m->ckpt, BTC_PART_PROJECTOR); i < n; i++) {
    const btc_tensor_view *t = btc_checkpoint_at(m->ckpt, BTC_PART_PROJECTOR, i);
    if (strstr(t->name, "layers.change.selftrans.0.0.att.to_q.weight") && t->rank == 2) c->attention_width = t->dim[0];
    if (strstr(t->name, "layers.change.selftrans.0.0.feedforward.net.0.weight") && t->rank == 2) c->ff_width = t->dim[0];
  }
  c->heads = m->cfg->cc_head;
  if (c->attention_width < 1 || c->ff_width < 1)
    return btc_fail(err, BTC_ERR_MODEL,
                    "'%s': mm_projector: layers.change.selftrans.0.0 lacks its attention or feedforward tensors",
                    btc_checkpoint_dir(m->ckpt));
  if (c->heads < 1 || c->attention_width % c->heads)
    return btc_fail(err, BTC_ERR_MODEL, "'%s/config.json': cc_head %lld does not divide the change module's attention width %lld",
                    btc_checkpoint_dir(m->ckpt), (long long)c->heads, (long long)c->attention_width);
  return BTC_OK;
}

static btc_status open_change(btc_model *m, btc_error *err) {
  const btc_part part = BTC_PART_PROJECTOR;
  const int64_t c = m->hidden;
  btc_change *ch = &m->change;
  ch->layers = btc_checkpoint_ce_layers(m->ckpt);
  if (ch->layers < 0) return BTC_OK;
  if (c % 2)
    return btc_fail(err, BTC_ERR_MODEL, "'%s': the change module needs an even number of channels, hidden_size is %lld",
                    btc_checkpoint_dir(m->ckpt), (long long)c);
  ch->half = c / 2;
  TRY(open_change_position(m, err));
  if (ch->layers > 0) {
    TRY(read_change_widths(m, err));
    ch->layer = btc_alloc_zero((size_t)ch->layers, sizeof *ch->layer);
    if (!ch->layer) return btc_fail(err, BTC_ERR_NOMEM, "cannot open '%s': out of memory", btc_checkpoint_dir(m->ckpt));
  }
  for (int64_t i = 0; i < ch->layers; i++) {
    TRY(open_change_attention(m, i, 0, c, &ch->layer[i].per_image, err));
    TRY(open_change_attention(m, i, 1, 2 * c, &ch->layer[i].joint, err));
  }
  TRY(need_matrix(m, part, "layers.change.Conv1.weight", 4, (int64_t[4]){c, 2 * c, 1, 1}, &ch->conv1.w, err));
  TRY(need_vector(m, part, "layers.change.Conv1.bias", c, &ch->conv1.bias, err));
  TRY(need_conv_norm(m, 0, 1, ch->half, c, 1, &ch->left0, err));
  TRY(need_conv_norm(m, 3, 4, ch->half, ch->half, 3, &ch->left3, err));
  return need_conv_norm(m, 6, 7, c, ch->half, 1, &ch->left6, err);
}

static btc_status open_projector(btc_model *m, btc_error *err) {
  const btc_part part = BTC_PART_PROJECTOR;
  btc_projector *p = &m->projector;
  TRY(need_affine(m, part, "layers.single.", "1", 4 * m->hidden, &p->norm, err));
  TRY(need_linear(m, part, "layers.single.", "2", m->width, 4 * m->hidden, &p->fc1, err));
  return need_linear(m, part, "layers.single.", "4", m->width, m->width, &p->fc2, err);
}

static btc_status open_llm(btc_model *m, btc_error *err) {
  const btc_llm_config *l = &m->cfg->llm;
  const btc_part part = BTC_PART_LLM;
  int64_t d = l->hidden, kv = l->kv_heads * l->head_dim;
  TRY(need_plain(m, part, "model.", "embed_tokens", l->vocab, d, &m->embed, err));
  m->llm = btc_alloc_zero((size_t)l->layers + 1, sizeof *m->llm);
  if (!m->llm) return btc_fail(err, BTC_ERR_NOMEM, "cannot open '%s': out of memory", btc_checkpoint_dir(m->ckpt));
  for (int64_t i = 0; i < l->layers; i++) {
    char p[64], name[128];
    btc_llm_block *b = &m->llm[i];
    snprintf(p, sizeof p, "model.layers.%lld.", (long long)i);
    snprintf(name, sizeof name, "%sinput_layernorm.weight", p);
    TRY(need_vector(m, part, name, d, &b->norm1, err));
    snprintf(name, sizeof name, "%spost_attention_layernorm.weight", p);
    TRY(need_vector(m, part, name, d, &b->norm2, err));
    TRY(need_plain(m, part, p, "self_attn.q_proj", l->heads * l->head_dim, d, &b->q, err));
    TRY(need_plain(m, part, p, "self_attn.k_proj", kv, d, &b->k, err));
    TRY(need_plain(m, part, p, "self_attn.v_proj", kv, d, &b->v, err));
    TRY(need_plain(m, part, p, "self_attn.o_proj", d, l->heads * l->head_dim, &b->o, err));
    TRY(need_plain(m, part, p, "mlp.gate_proj", l->mlp, d, &b->gate, err));
    TRY(need_plain(m, part, p, "mlp.up_proj", l->mlp, d, &b->up, err));
    TRY(need_plain(m, part, p, "mlp.down_proj", d, l->mlp, &b->down, err));
  }
  TRY(need_vector(m, part, "model.norm.weight", d, &m->final_norm, err));
  if (l->tied_head)
    m->head = m->embed;
  else
    TRY(need_plain(m, part, "", "lm_head", l->vocab, d, &m->head, err));
  return BTC_OK;
}

/* Tables in float32 as the reference computes them: inverse frequencies, then angles, then cos and sin (spec 1.6). With linear
 * scaling, positions are divided by the factor. */
static btc_status open_rope(btc_model *m, btc_error *err) {
  const btc_llm_config *l = &m->cfg->llm;
  int64_t half = l->head_dim / 2;
  m->rope_cos = new_vector(m, l->context * half, err);
  m->rope_sin = m->rope_cos ? new_vector(m, l->context * half, err) : NULL;
  if (!m->rope_sin) return BTC_ERR_NOMEM;
  for (int64_t i = 0; i < half; i++) {
    float inv_freq = 1.0f / (float)pow(l->rope_theta, (double)((float)(2 * i) / (float)l->head_dim));
    for (int64_t p = 0; p < l->context; p++) {
      float angle = (float)p / (float)l->rope_factor * inv_freq;
      m->rope_cos[p * half + i] = cosf(angle);
      m->rope_sin[p * half + i] = sinf(angle);
    }
  }
  return BTC_OK;
}

static char *model_name(const btc_model *m) {
  if (m->cfg->name[0]) return btc_strdup(m->cfg->name);
  const char *dir = btc_checkpoint_dir(m->ckpt);
  size_t n = strlen(dir);
  while (n > 1 && dir[n - 1] == '/') n--;
  size_t start = n;
  while (start > 0 && dir[start - 1] != '/') start--;
  return btc_strndup(dir + start, n - start);
}

static btc_status open_parts(btc_model *m, btc_error *err) {
  const btc_config *c = m->cfg;
  m->tokens = c->vision.grid * c->vision.grid;
  m->hidden = c->vision.hidden;
  int64_t h = (c->vision.grid + 1) / 2;
  m->block_tokens = h * h;
  m->width = c->llm.hidden;
  m->name = model_name(m);
  if (!m->name) return btc_fail(err, BTC_ERR_NOMEM, "cannot open '%s': out of memory", btc_checkpoint_dir(m->ckpt));
  TRY(open_vision(m, err));
  TRY(open_change(m, err));
  TRY(open_projector(m, err));
  TRY(open_llm(m, err));
  TRY(open_rope(m, err));
  char *llm = btc_path_join(btc_checkpoint_dir(m->ckpt), "llm");
  if (!llm) return btc_fail(err, BTC_ERR_NOMEM, "cannot open '%s': out of memory", btc_checkpoint_dir(m->ckpt));
  btc_status st = btc_tokenizer_open(llm, &m->tok, err);
  free(llm);
  if (st != BTC_OK) return st;
  if (btc_tokenizer_vocab(m->tok) > c->llm.vocab)
    return btc_fail(err, BTC_ERR_MODEL, "'%s/llm/tokenizer.model' has %d pieces, but llm/config.json says vocab_size %lld",
                    btc_checkpoint_dir(m->ckpt), (int)btc_tokenizer_vocab(m->tok), (long long)c->llm.vocab);
  return BTC_OK;
}

btc_status btc_model_open(const char *dir, btc_model **out, btc_error *err) {
  *out = NULL;
  btc_model *m = btc_alloc_zero(1, sizeof *m);
  if (!m) return btc_fail(err, BTC_ERR_NOMEM, "cannot open '%s': out of memory", dir);
  btc_status st = btc_checkpoint_open(dir, &m->ckpt, err);
  if (st == BTC_OK) {
    m->cfg = btc_checkpoint_config(m->ckpt);
    st = open_parts(m, err);
  }
  if (st != BTC_OK) {
    btc_model_close(&m);
    return st;
  }
  *out = m;
  return BTC_OK;
}

void btc_model_close(btc_model **mp) {
  btc_model *m = *mp;
  if (!m) return;
  for (size_t i = 0; i < m->n_vectors; i++) free(m->vectors[i]);
  free(m->vectors);
  free(m->vision);
  free(m->change.layer);
  free(m->llm);
  free(m->name);
  btc_tokenizer_close(&m->tok);
  btc_checkpoint_close(&m->ckpt);
  free(m);
  *mp = NULL;
}

void btc_model_get_info(const btc_model *m, btc_model_info *out) {
  *out = (btc_model_info){.name = m->name,
                          .image_side = m->cfg->vision.image,
                          .grid = m->cfg->vision.grid,
                          .tokens_per_image = m->block_tokens,
                          .context = m->cfg->llm.context,
                          .video_frames = m->cfg->num_video_frames,
                          .change_layers = m->change.layers};
  for (int part = 0; part < BTC_PART_COUNT; part++)
    for (size_t i = 0, n = btc_checkpoint_count(m->ckpt, (btc_part)part); i < n; i++) {
      const btc_tensor_view *t = btc_checkpoint_at(m->ckpt, (btc_part)part, i);
      if (t->dtype == BTC_I64) continue; /* num_batches_tracked is a counter, not a weight */
      out->weight_bytes += (int64_t)t->bytes;
      out->parameters += (int64_t)(t->bytes / btc_dtype_size(t->dtype));
    }
}

btc_status btc_model_fingerprint(btc_model *m, char out[72], btc_error *err) {
  return btc_checkpoint_fingerprint(m->ckpt, out, err);
}

/* Length of s without surrounding white space and a final full stop; *start skips the leading space. */
static size_t core(const char **start) {
  const char *s = *start;
  while (isspace((unsigned char)*s)) s++;
  size_t n = strlen(s);
  while (n && (isspace((unsigned char)s[n - 1]) || s[n - 1] == '.')) n--;
  *start = s;
  return n;
}

static bool same_sentence(const char *a, const char *b) {
  size_t na = core(&a), nb = core(&b);
  if (na != nb) return false;
  for (size_t i = 0; i < na; i++)
    if (tolower((unsigned char)a[i]) != tolower((unsigned char)b[i])) return false;
  return true;
}

bool btc_model_says_change(const btc_model *m, const char *text) {
  /* the five sentences LEVIR-CC's annotators used for pairs without change */
  static const char *const levir[] = {"the scene is the same as before", "there is no difference", "the two scenes seem identical",
                                      "no change has occurred", "almost nothing has changed"};
  const char *const *list = m->cfg->no_change ? (const char *const *)m->cfg->no_change : levir;
  size_t n = m->cfg->no_change ? m->cfg->n_no_change : sizeof levir / sizeof levir[0];
  for (size_t i = 0; i < n; i++)
    if (same_sentence(text, list[i])) return false;
  return true;
}
