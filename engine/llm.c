/*
 * Llama decoder (spec 1.6): pre-norm attention with grouped key/value heads and rotary positions, SiLU-gated feed-forward.
 * Prefill takes one item's rows with the many-row product; decode takes one row of many items with the few-row product.
 */
#include "forward.h"

#include <math.h>

typedef void product(btc_backend *, float *, const float *, int64_t, const btc_weight *, const btc_epilogue *);

int64_t btc_llm_scratch(const btc_model *m, int64_t rows) {
  const btc_llm_config *l = &m->cfg->llm;
  int64_t q = l->heads * l->head_dim, kv = l->kv_heads * l->head_dim;
  int64_t attention = 2 * q + 2 * kv, feed_forward = 2 * l->mlp;
  return rows * (l->hidden + (attention > feed_forward ? attention : feed_forward));
}

typedef struct attention_rows {
  float *q, *k, *v, *o;
} attention_rows;

static attention_rows project(const btc_run *r, const btc_llm_block *b, const float *h, int64_t m, product *mul) {
  const btc_llm_config *l = &r->m->cfg->llm;
  const int64_t nq = l->heads * l->head_dim, nkv = l->kv_heads * l->head_dim;
  float *a = r->scratch;
  attention_rows x = {.q = a + m * l->hidden};
  x.k = x.q + m * nq;
  x.v = x.k + m * nkv;
  x.o = x.v + m * nkv;
  btc_op_rmsnorm(r->be, a, h, m, l->hidden, b->norm1, l->eps);
  mul(r->be, x.q, a, m, &b->q, &(btc_epilogue){0});
  mul(r->be, x.k, a, m, &b->k, &(btc_epilogue){0});
  mul(r->be, x.v, a, m, &b->v, &(btc_epilogue){0});
  return x;
}

/* Rotates, stores and attends for rows [i, i+m) of x, which are one item's positions [past, past+m). */
static void attend(const btc_run *r, attention_rows x, int64_t i, int64_t m, const btc_kv *kv, int64_t past) {
  const btc_llm_config *l = &r->m->cfg->llm;
  const int64_t d = l->head_dim, nq = l->heads * d, nkv = l->kv_heads * d;
  float *q = x.q + i * nq, *k = x.k + i * nkv, *v = x.v + i * nkv;
  btc_op_rope(r->be, q, nq, m, l->heads, d, past, r->m->rope_cos, r->m->rope_sin);
  btc_op_rope(r->be, k, nkv, m, l->kv_heads, d, past, r->m->rope_cos, r->m->rope_sin);
  btc_op_kv_store(r->be, kv, past, k, nkv, v, nkv, m);
  btc_op_attention_causal(r->be, x.o + i * nq, q, nq, m, past, l->heads, kv, 1.0f / sqrtf((float)d));
}

static void finish(const btc_run *r, const btc_llm_block *b, attention_rows x, float *h, int64_t m, product *mul) {
  const btc_llm_config *l = &r->m->cfg->llm;
  float *a = r->scratch, *gate = a + m * l->hidden, *up = gate + m * l->mlp;
  mul(r->be, h, x.o, m, &b->o, &(btc_epilogue){.residual = h});
  btc_op_rmsnorm(r->be, a, h, m, l->hidden, b->norm2, l->eps);
  mul(r->be, gate, a, m, &b->gate, &(btc_epilogue){0});
  mul(r->be, up, a, m, &b->up, &(btc_epilogue){0});
  btc_op_silu_mul(r->be, gate, gate, up, m * l->mlp);
  mul(r->be, h, gate, m, &b->down, &(btc_epilogue){.residual = h});
}

void btc_llm_prefill(const btc_run *r, int64_t layer, const btc_kv *kv, int64_t past, int64_t m, float *h) {
  const btc_llm_block *b = &r->m->llm[layer];
  for (int64_t i = 0; i < m; i += BTC_LLM_ROWS) {
    int64_t n = m - i < BTC_LLM_ROWS ? m - i : BTC_LLM_ROWS;
    float *rows = h + i * r->m->width;
    attention_rows x = project(r, b, rows, n, btc_op_matmul);
    attend(r, x, 0, n, kv, past + i);
    finish(r, b, x, rows, n, btc_op_matmul);
  }
}

void btc_llm_decode(const btc_run *r, int64_t layer, const btc_kv *kv, const int64_t *past, int64_t m, float *h) {
  const btc_llm_block *b = &r->m->llm[layer];
  attention_rows x = project(r, b, h, m, btc_op_matvec);
  for (int64_t i = 0; i < m; i++) attend(r, x, i, 1, &kv[i], past[i]);
  finish(r, b, x, h, m, btc_op_matvec);
}

void btc_head_forward(const btc_run *r, const float *h, int64_t m, float *logits) {
  const btc_model *mo = r->m;
  btc_op_rmsnorm(r->be, r->scratch, h, m, mo->width, mo->final_norm, mo->cfg->llm.eps);
  btc_op_matvec(r->be, logits, r->scratch, m, &mo->head, &(btc_epilogue){0});
}
