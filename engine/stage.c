/* The block list, its prices, and the executor of a contiguous range. See stage.h for the contract. */
#include "forward.h"
#include "kv_cache.h"
#include "prompt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct btc_stage {
  const btc_model *m;
  int first, last;
  btc_backend *be;
  btc_kv_cache *kv; /* layers [llm_first, llm_last) */
  int64_t llm_first, llm_last;
  float *flow[2], *scratch;
  int64_t flow_floats, scratch_floats;
  int64_t *past;   /* [slots] decode: positions already held */
  btc_kv *step_kv; /* [slots] decode: one layer's view of every live slot */
  int slots;
  const volatile int *cancel;
  uint64_t *progress;
  btc_tap *tap;
  void *tap_user;
  btc_stage_times times;
};

/* ---- the list ---- */

int btc_block_count(const btc_model *m) {
  return (int)(m->cfg->vision.blocks + m->cfg->llm.layers) + 4;
}

static int64_t linear_bytes(const btc_weight *w, bool bias) {
  return (w->rows * w->cols + (bias ? w->rows : 0)) * (int64_t)btc_dtype_size(w->dtype);
}

static int64_t vision_bytes(const btc_model *m, const btc_vision_block *b) {
  return linear_bytes(&b->q.w, true) + linear_bytes(&b->k.w, true) + linear_bytes(&b->v.w, true) + linear_bytes(&b->out.w, true) +
         linear_bytes(&b->fc1.w, true) + linear_bytes(&b->fc2.w, true) + 4 * m->hidden * (int64_t)btc_dtype_size(b->q.w.dtype);
}

static int64_t change_attention_bytes(const btc_change_attention *b) {
  return linear_bytes(&b->to_q, false) + linear_bytes(&b->to_k, false) + linear_bytes(&b->to_out.w, true) +
         linear_bytes(&b->ff1.w, true) + linear_bytes(&b->ff2.w, true) +
         4 * b->to_out.w.rows * (int64_t)btc_dtype_size(b->to_q.dtype);
}

static int64_t change_bytes(const btc_model *m) {
  const btc_change *c = &m->change;
  int64_t n = linear_bytes(&m->projector.fc1.w, true) + linear_bytes(&m->projector.fc2.w, true) +
              8 * m->hidden * (int64_t)btc_dtype_size(m->projector.fc1.w.dtype);
  if (c->layers < 0) return n;
  int64_t size = (int64_t)btc_dtype_size(c->conv1.w.dtype);
  for (int64_t i = 0; i < c->layers; i++)
    n += change_attention_bytes(&c->layer[i].per_image) + change_attention_bytes(&c->layer[i].joint);
  n += linear_bytes(&c->conv1.w, true) + linear_bytes(&c->left0.w, true) + linear_bytes(&c->left3.w, true) +
       linear_bytes(&c->left6.w, true);
  return n + size * (2 * m->cfg->vision.grid * c->half + 4 * (2 * c->half + m->hidden));
}

static int64_t llm_bytes(const btc_model *m, const btc_llm_block *b) {
  return linear_bytes(&b->q, false) + linear_bytes(&b->k, false) + linear_bytes(&b->v, false) + linear_bytes(&b->o, false) +
         linear_bytes(&b->gate, false) + linear_bytes(&b->up, false) + linear_bytes(&b->down, false) +
         2 * m->width * (int64_t)btc_dtype_size(b->q.dtype);
}

btc_block btc_block_at(const btc_model *m, int i) {
  int64_t vb = m->cfg->vision.blocks, ll = m->cfg->llm.layers;
  if (i == 0)
    return (btc_block){BTC_BLOCK_PATCH, 0,
                       linear_bytes(&m->patch.w, true) + m->tokens * m->hidden * (int64_t)btc_dtype_size(m->patch.w.dtype)};
  if (i <= vb) return (btc_block){BTC_BLOCK_VISION, i - 1, vision_bytes(m, &m->vision[i - 1])};
  if (i == vb + 1) return (btc_block){BTC_BLOCK_CHANGE, 0, change_bytes(m)};
  if (i == vb + 2) return (btc_block){BTC_BLOCK_SPLICE, 0, linear_bytes(&m->embed, false)};
  if (i <= vb + 2 + ll) return (btc_block){BTC_BLOCK_LLM, i - vb - 3, llm_bytes(m, &m->llm[i - vb - 3])};
  return (btc_block){BTC_BLOCK_HEAD, 0, linear_bytes(&m->head, false) + m->width * (int64_t)btc_dtype_size(m->head.dtype)};
}

void btc_block_name(const btc_model *m, int i, char out[32]) {
  static const char *const names[] = {"patch", "vision", "change", "splice", "llm", "head"};
  btc_block b = btc_block_at(m, i);
  if (b.kind == BTC_BLOCK_VISION || b.kind == BTC_BLOCK_LLM)
    snprintf(out, 32, "%s %lld", names[b.kind], (long long)b.index);
  else
    snprintf(out, 32, "%s", names[b.kind]);
}

static double matmul_flops(double rows, const btc_weight *w) {
  return 2.0 * rows * (double)w->rows * (double)w->cols;
}

static double change_flops(const btc_model *m, const btc_load *l) {
  double t = (double)m->tokens, blocks = (double)l->blocks;
  double n = matmul_flops((double)m->block_tokens * blocks, &m->projector.fc1.w) +
             matmul_flops((double)m->block_tokens * blocks, &m->projector.fc2.w);
  if (!l->pairs || m->change.layers < 0) return n;
  const btc_change *c = &m->change;
  for (int64_t i = 0; i < c->layers; i++)
    for (int j = 0; j < 2; j++) {
      const btc_change_attention *a = j ? &c->layer[i].joint : &c->layer[i].per_image;
      double rows = t * (j ? 1 : 2) * blocks;
      n += matmul_flops(rows, &a->to_q) + matmul_flops(rows, &a->to_k) + matmul_flops(rows, &a->to_out.w) +
           matmul_flops(rows, &a->ff1.w) + matmul_flops(rows, &a->ff2.w) + 4.0 * rows * t * (double)c->attention_width;
    }
  return n + matmul_flops(t * blocks, &c->conv1.w) + matmul_flops(t * blocks, &c->left0.w) + matmul_flops(t * blocks, &c->left3.w) +
         matmul_flops(t * blocks, &c->left6.w);
}

double btc_block_flops(const btc_model *m, int i, const btc_load *l) {
  btc_block b = btc_block_at(m, i);
  double t = (double)m->tokens, rows = t * (double)l->images, p = (double)l->positions;
  switch (b.kind) {
    case BTC_BLOCK_PATCH:
      return matmul_flops(rows, &m->patch.w);
    case BTC_BLOCK_VISION: {
      const btc_vision_block *v = &m->vision[b.index];
      return 4 * matmul_flops(rows, &v->q.w) + 2 * matmul_flops(rows, &v->fc1.w) + 4.0 * rows * t * (double)m->hidden;
    }
    case BTC_BLOCK_CHANGE:
      return change_flops(m, l);
    case BTC_BLOCK_SPLICE:
      return 0;
    case BTC_BLOCK_LLM: {
      const btc_llm_block *b_ = &m->llm[b.index];
      return 2 * (matmul_flops(p, &b_->q) + matmul_flops(p, &b_->k)) + 3 * matmul_flops(p, &b_->gate) +
             2.0 * p * p * (double)(m->cfg->llm.heads * m->cfg->llm.head_dim);
    }
    default:
      return matmul_flops(1, &m->head);
  }
}

int btc_item_blocks(const btc_stage_item *it) {
  return it->n_images <= 2 ? 1 : it->n_images;
}

int64_t btc_flow_floats(const btc_model *m, int i, const btc_stage_item *items, int n, bool decode) {
  int64_t images = 0, blocks = 0, positions = 0, vb = m->cfg->vision.blocks;
  for (int k = 0; k < n; k++) {
    images += items[k].n_images;
    blocks += btc_item_blocks(&items[k]);
    positions += decode ? 1 : items[k].positions;
  }
  if (i == btc_block_count(m)) return n * m->cfg->llm.vocab;
  if (i > vb + 2) return positions * m->width;
  if (decode) return 0;
  if (i == 0) return images * 3 * m->cfg->vision.image * m->cfg->vision.image;
  if (i <= vb + 1) return images * m->tokens * m->hidden;
  return blocks * m->block_tokens * m->width;
}

/* ---- life ---- */

static int64_t max64(int64_t a, int64_t b) {
  return a > b ? a : b;
}

static int64_t widest_input(const btc_model *m) {
  const btc_llm_config *l = &m->cfg->llm;
  int64_t w = max64(m->patch.w.cols, max64(m->hidden, m->cfg->vision.mlp));
  w = max64(w, max64(4 * m->hidden, m->width));
  if (m->change.layers >= 0) w = max64(w, max64(9 * m->change.half, max64(m->change.ff_width, m->change.attention_width)));
  return max64(w, max64(l->mlp, max64(l->hidden, l->heads * l->head_dim)));
}

static int64_t block_scratch(const btc_model *m, btc_block_kind kind, int64_t slots) {
  switch (kind) {
    case BTC_BLOCK_PATCH:
      return btc_patch_scratch(m);
    case BTC_BLOCK_VISION:
      return btc_vision_scratch(m);
    case BTC_BLOCK_CHANGE:
      return m->tokens * m->hidden + max64(btc_change_scratch(m), btc_projector_scratch(m));
    case BTC_BLOCK_SPLICE:
      return 0;
    case BTC_BLOCK_LLM:
      return btc_llm_scratch(m, max64(BTC_LLM_ROWS, slots));
    default:
      return 2 * slots * m->width;
  }
}

btc_status btc_stage_create(const btc_model *m, int first, int last, const btc_stage_options *o, btc_stage **out, btc_error *err) {
  *out = NULL;
  if (first < 0 || last > btc_block_count(m) || first >= last || o->slots < 1)
    return btc_fail(err, BTC_ERR_ARG, "no such stage: blocks %d to %d of %d, %d slots", first, last, btc_block_count(m), o->slots);
  btc_stage *s = btc_alloc_zero(1, sizeof *s);
  if (!s) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a stage");
  *s = (btc_stage){.m = m, .first = first, .last = last, .slots = o->slots, .cancel = o->cancel, .progress = o->progress};
  for (int i = first; i < last; i++) {
    btc_block b = btc_block_at(m, i);
    s->scratch_floats = max64(s->scratch_floats, block_scratch(m, b.kind, o->slots));
    if (b.kind != BTC_BLOCK_LLM) continue;
    if (s->llm_last == s->llm_first) s->llm_first = b.index;
    s->llm_last = b.index + 1;
  }
  btc_backend_options bo = {.kind = o->backend, .threads = o->threads, .compute = o->compute, .max_cols = widest_input(m)};
  btc_status st = btc_backend_create(&bo, &s->be, err);
  if (st == BTC_OK) {
    s->scratch = btc_alloc((size_t)s->scratch_floats, sizeof *s->scratch);
    s->past = btc_alloc((size_t)o->slots, sizeof *s->past);
    s->step_kv = btc_alloc((size_t)o->slots, sizeof *s->step_kv);
    if (!s->scratch || !s->past || !s->step_kv)
      st = btc_fail(err, BTC_ERR_NOMEM, "not enough memory: a stage needs %lld MB of working space",
                    (long long)(s->scratch_floats >> 18));
  }
  const btc_llm_config *l = &m->cfg->llm;
  if (st == BTC_OK) /* bf16 keys and values with bf16 products: half the memory, and golden cases stay within half their limits */
    st = btc_kv_cache_create(s->llm_last - s->llm_first, o->slots, l->kv_heads, l->head_dim,
                             o->compute == BTC_COMPUTE_BF16 ? BTC_BF16 : BTC_F32, &s->kv, err);
  if (st != BTC_OK) btc_stage_destroy(&s);
  *out = s;
  return st;
}

void btc_stage_destroy(btc_stage **sp) {
  btc_stage *s = *sp;
  if (!s) return;
  btc_backend_destroy(&s->be);
  btc_kv_cache_destroy(&s->kv);
  free(s->flow[0]);
  free(s->flow[1]);
  free(s->scratch);
  free(s->past);
  free(s->step_kv);
  free(s);
  *sp = NULL;
}

btc_status btc_stage_reserve(btc_stage *s, const btc_stage_item *items, int n, int64_t slot_positions, btc_error *err) {
  if (n > s->slots) return btc_fail(err, BTC_ERR_ARG, "%d items do not fit a stage of %d slots", n, s->slots);
  int64_t need = 0;
  for (int i = s->first; i <= s->last; i++)
    if (i > 0) need = max64(need, btc_flow_floats(s->m, i, items, n, false)); /* pixels are the caller's */
  if (need > s->flow_floats) {
    for (int k = 0; k < 2; k++) {
      free(s->flow[k]);
      s->flow[k] = btc_alloc((size_t)need, sizeof *s->flow[k]);
    }
    s->flow_floats = s->flow[0] && s->flow[1] ? need : 0;
    if (!s->flow_floats)
      return btc_fail(err, BTC_ERR_NOMEM, "not enough memory: a batch of %d needs %lld MB of activations", n,
                      (long long)(need >> 17));
  }
  return btc_kv_cache_reserve(s->kv, slot_positions, err);
}

void btc_stage_set_tap(btc_stage *s, btc_tap *tap, void *user) {
  s->tap = tap;
  s->tap_user = user;
}

const char *btc_stage_describe(const btc_stage *s) {
  return btc_backend_describe(s->be);
}

btc_stage_times btc_stage_get_times(const btc_stage *s) {
  return s->times;
}

/* ---- running ---- */

static void change_and_project(const btc_run *r, const btc_stage_item *items, int n, const float *x, float *out) {
  const btc_model *m = r->m;
  const int64_t image = m->tokens * m->hidden, block = m->block_tokens * m->width;
  float *const start = out, *fused = r->scratch;
  int64_t blocks = 0;
  btc_run inner = *r;
  inner.scratch += image;
  for (int i = 0; i < n; i++) {
    if (items[i].n_images == 2) {
      btc_change_forward(&inner, x, x + image, fused, items[i].cosine);
      btc_projector_forward(&inner, fused, out);
    } else {
      for (int k = 0; k < items[i].n_images; k++) btc_projector_forward(&inner, x + k * image, out + k * block);
    }
    x += items[i].n_images * image;
    out += btc_item_blocks(&items[i]) * block;
    blocks += btc_item_blocks(&items[i]);
  }
  btc_tap_emit(r, "projector.out", start, blocks * m->block_tokens, m->width);
}

/* Rows [from, to) of one item's spliced prompt: embeddings of the text, with its visual blocks in place of the holes (spec 4.4).
 * Returns its visual blocks' end. */
static const float *splice_item(const btc_run *r, const btc_stage_item *it, const float *visual, float *out) {
  const btc_model *m = r->m;
  const int64_t from = it->past, to = it->past + it->positions, d = m->width, block = m->block_tokens;
  for (int64_t k = 0, at = 0; k < it->n_ids;) { /* id k stands at position at */
    bool hole = it->ids[k] == BTC_IMAGE_ID;
    int64_t run = k + 1;
    while (!hole && run < it->n_ids && it->ids[run] != BTC_IMAGE_ID) run++;
    int64_t end = at + (hole ? block : run - k), a = max64(at, from), b = end < to ? end : to;
    if (a < b && hole) memcpy(out + (a - from) * d, visual + (a - at) * d, (size_t)((b - a) * d) * sizeof *out);
    if (a < b && !hole) btc_op_embed(r->be, out + (a - from) * d, &m->embed, it->ids + k + (a - at), b - a);
    if (hole) visual += block * d;
    at = end;
    k = run;
  }
  return visual;
}

static void splice(const btc_run *r, const btc_stage_item *items, int n, const float *visual, float *out) {
  int64_t rows = 0;
  for (int i = 0; i < n; i++) {
    visual = splice_item(r, &items[i], visual, out + rows * r->m->width);
    rows += items[i].positions;
  }
  btc_tap_emit(r, "splice.embeds", out, rows, r->m->width);
}

static void llm_prefill(btc_stage *s, const btc_run *r, int64_t index, const btc_stage_item *items, int n, float *h) {
  float *const start = h;
  int64_t rows = 0;
  for (int i = 0; i < n; i++) {
    btc_kv kv = btc_kv_cache_at(s->kv, items[i].slot, index - s->llm_first);
    btc_llm_prefill(r, index, &kv, items[i].past, items[i].positions, h);
    h += items[i].positions * s->m->width;
    rows += items[i].positions;
  }
  if (index == 0) btc_tap_emit(r, "llm.layer0", start, rows, s->m->width);
  if (index == s->m->cfg->llm.layers - 1) btc_tap_emit(r, "llm.last", start, rows, s->m->width);
}

/* Logits are needed at the last position only. */
static void head_prefill(const btc_run *r, const btc_stage_item *items, int n, const float *h, float *spare, float *logits) {
  const btc_model *m = r->m;
  const int64_t d = m->width;
  if (r->tap) {
    int64_t rows = 0;
    for (int i = 0; i < n; i++) rows += items[i].positions;
    btc_op_rmsnorm(r->be, spare, h, rows, d, m->final_norm, m->cfg->llm.eps);
    btc_tap_emit(r, "llm.norm", spare, rows, d);
  }
  btc_run inner = *r;
  float *last = r->scratch;
  inner.scratch += n * d;
  for (int i = 0; i < n; i++) {
    h += items[i].positions * d;
    memcpy(last + i * d, h - d, (size_t)d * sizeof *h);
  }
  btc_head_forward(&inner, last, n, logits);
  btc_tap_emit(r, "logits", logits, n, m->cfg->llm.vocab);
}

static int64_t total_images(const btc_stage_item *items, int n) {
  int64_t images = 0;
  for (int i = 0; i < n; i++) images += items[i].n_images;
  return images;
}

/* Runs block i from *cur (flow before it) and leaves *cur at the flow behind it, in one of the stage's two buffers. */
static void prefill_block(btc_stage *s, const btc_run *r, int i, const btc_stage_item *items, int n, const float **cur) {
  btc_block b = btc_block_at(s->m, i);
  float *own = *cur == s->flow[0] ? s->flow[0] : s->flow[1], *other = own == s->flow[0] ? s->flow[1] : s->flow[0];
  bool in_place = b.kind == BTC_BLOCK_VISION || b.kind == BTC_BLOCK_LLM;
  if (in_place && *cur != own) memcpy(own, *cur, (size_t)btc_flow_floats(s->m, i, items, n, false) * sizeof *own);
  switch (b.kind) {
    case BTC_BLOCK_PATCH:
      btc_patch_forward(r, *cur, total_images(items, n), other);
      break;
    case BTC_BLOCK_VISION:
      btc_vision_forward(r, b.index, total_images(items, n), own);
      break;
    case BTC_BLOCK_CHANGE:
      change_and_project(r, items, n, *cur, other);
      break;
    case BTC_BLOCK_SPLICE:
      splice(r, items, n, *cur, other);
      break;
    case BTC_BLOCK_LLM:
      llm_prefill(s, r, b.index, items, n, own);
      break;
    case BTC_BLOCK_HEAD:
      head_prefill(r, items, n, *cur, other, other);
      break;
  }
  *cur = in_place ? own : other;
}

static void decode_block(btc_stage *s, const btc_run *r, int i, const btc_stage_item *items, int n, const float **cur) {
  btc_block b = btc_block_at(s->m, i);
  if (b.kind < BTC_BLOCK_SPLICE) return;
  const int64_t d = s->m->width;
  float *own = *cur == s->flow[0] ? s->flow[0] : s->flow[1], *other = own == s->flow[0] ? s->flow[1] : s->flow[0];
  if (b.kind == BTC_BLOCK_SPLICE) {
    for (int k = 0; k < n; k++) btc_op_embed(s->be, own + k * d, &s->m->embed, &items[k].token, 1);
    *cur = own;
  } else if (b.kind == BTC_BLOCK_LLM) {
    if (*cur != own) memcpy(own, *cur, (size_t)(n * d) * sizeof *own);
    for (int k = 0; k < n; k++) {
      s->step_kv[k] = btc_kv_cache_at(s->kv, items[k].slot, b.index - s->llm_first);
      s->past[k] = items[k].past;
    }
    btc_llm_decode(r, b.index, s->step_kv, s->past, n, own);
    *cur = own;
  } else {
    btc_head_forward(r, *cur, n, other);
    btc_tap_emit(r, "logits", other, n, s->m->cfg->llm.vocab);
    *cur = other;
  }
}

static btc_status run(btc_stage *s, int first, int last, const btc_stage_item *items, int n, const float *in, float *out,
                      bool decode, btc_error *err) {
  btc_run r = {.m = s->m, .be = s->be, .scratch = s->scratch, .tap = s->tap, .tap_user = s->tap_user};
  const float *cur = in;
  for (int i = first; i < last; i++) {
    if (s->cancel && *s->cancel) return btc_fail(err, BTC_ERR_CANCELLED, "stopped on request");
    if (s->progress) __atomic_add_fetch(s->progress, 1, __ATOMIC_RELAXED);
    int64_t start = btc_now_ns();
    if (decode)
      decode_block(s, &r, i, items, n, &cur);
    else
      prefill_block(s, &r, i, items, n, &cur);
    double ms = (double)(btc_now_ns() - start) * 1e-6;
    (decode ? s->times.decode_ms : s->times.prefill_ms)[btc_block_at(s->m, i).kind] += ms;
  }
  int64_t floats = btc_flow_floats(s->m, last, items, n, decode);
  if (floats) memcpy(out, cur, (size_t)floats * sizeof *out);
  return BTC_OK;
}

/* Checks what a wrong caller could break memory with; the items of a session are right by construction. */
static btc_status check_items(const btc_stage *s, int first, int last, const btc_stage_item *items, int n, bool decode,
                              btc_error *err) {
  if (n < 1 || n > s->slots) return btc_fail(err, BTC_ERR_ARG, "a batch of %d items does not fit %d slots", n, s->slots);
  for (int i = 0; i < n; i++) {
    const btc_stage_item *it = &items[i];
    int64_t end = it->past + (decode ? 1 : it->positions);
    if (it->slot < 0 || it->slot >= s->slots || it->past < 0 || end > btc_kv_cache_capacity(s->kv) || end > s->m->cfg->llm.context)
      return btc_fail(err, BTC_ERR_LIMIT, "item %d ends at position %lld, beyond the %lld reserved (context %lld)", i,
                      (long long)end, (long long)btc_kv_cache_capacity(s->kv), (long long)s->m->cfg->llm.context);
  }
  int64_t need = 0;
  for (int i = first; i <= last; i++)
    if (i > 0) need = max64(need, btc_flow_floats(s->m, i, items, n, decode));
  if (need > s->flow_floats) return btc_fail(err, BTC_ERR_ARG, "a batch of %d items is larger than what was reserved", n);
  return BTC_OK;
}

btc_status btc_stage_prefill(btc_stage *s, const btc_stage_item *items, int n, const float *in, float *out, btc_error *err) {
  btc_status st = check_items(s, s->first, s->last, items, n, false, err);
  return st == BTC_OK ? run(s, s->first, s->last, items, n, in, out, false, err) : st;
}

btc_status btc_stage_prefill_part(btc_stage *s, int first, int last, const btc_stage_item *items, int n, const float *in,
                                  float *out, btc_error *err) {
  if (first < s->first || last > s->last || first >= last)
    return btc_fail(err, BTC_ERR_ARG, "blocks %d to %d are no part of a stage of blocks %d to %d", first, last, s->first, s->last);
  btc_status st = check_items(s, first, last, items, n, false, err);
  return st == BTC_OK ? run(s, first, last, items, n, in, out, false, err) : st;
}

btc_status btc_stage_copy_slot(btc_stage *s, int from, int to, int64_t positions, btc_error *err) {
  if (from < 0 || to < 0 || from >= s->slots || to >= s->slots || positions < 0 || positions > btc_kv_cache_capacity(s->kv))
    return btc_fail(err, BTC_ERR_ARG, "cannot copy %lld positions from slot %d to slot %d of %d", (long long)positions, from, to,
                    s->slots);
  if (from != to) btc_kv_cache_copy(s->kv, from, to, positions);
  return BTC_OK;
}

btc_status btc_stage_decode(btc_stage *s, const btc_stage_item *items, int n, const float *in, float *out, btc_error *err) {
  btc_status st = check_items(s, s->first, s->last, items, n, true, err);
  return st == BTC_OK ? run(s, s->first, s->last, items, n, in, out, true, err) : st;
}
