/* The block list and its prices. See stage.h for the contract. */
#include <stdio.h>

#include "stage.h"

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
