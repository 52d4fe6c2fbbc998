/*
 * Llama decoder (spec 1.6): pre-norm attention with grouped key/value heads and rotary positions, SiLU-gated feed-forward.
 * Rows of many items are packed one after another: prefill with the many-row product, decode, one row an item, with the few-row
 * one.
 */
#include "forward.h"

#include <math.h>

typedef void product(btc_backend *, float *, const float *, int64_t, const btc_weight *, const btc_epilogue *);

int64_t btc_llm_scratch(const btc_model *m, int64_t rows) {
  const btc_llm_config *l = &m->cfg->llm;
  int64_t q = l->heads * l->head_dim, kv = l->kv_heads * l->head_dim;
  int64_t attention = 2 * q + 2 * kv, feed_forward = 3 * l->mlp;
  return rows * (l->hidden + (attention > feed_forward ? attention : feed_forward));
}

typedef struct attention_rows {
  float *q, *k, *v, *o;
} attention_rows;

static attention_rows project(const btc_run *r, const btc_llm_block *b, const float *h, int64_t m, bool decode) {
  product *mul = decode ? btc_op_matvec : btc_op_matmul;
  const btc_epilogue e = {.x_packed = true};
  const btc_llm_config *l = &r->m->cfg->llm;
  const int64_t nq = l->heads * l->head_dim, nkv = l->kv_heads * l->head_dim;
  float *a = r->scratch;
  attention_rows x = {.q = a + m * l->hidden};
  x.k = x.q + m * nq;
  x.v = x.k + m * nkv;
  x.o = x.v + m * nkv;
  btc_op_rmsnorm_packed(r->be, a, h, m, l->hidden, b->norm1, l->eps);
  mul(r->be, x.q, a, m, &b->q, &e);
  mul(r->be, x.k, a, m, &b->k, &e);
  mul(r->be, x.v, a, m, &b->v, &e);
  return x;
}

static void finish(const btc_run *r, const btc_llm_block *b, attention_rows x, float *h, int64_t m, bool decode) {
  const btc_llm_config *l = &r->m->cfg->llm;
  product *mul = decode ? btc_op_matvec : btc_op_matmul;
  const btc_epilogue plain = {.x_packed = true}, added = {.x_packed = true, .residual = h};
  float *a = r->scratch, *gate = a + m * l->hidden, *up = gate + m * l->mlp;
  float *mid = btc_backend_on_host(r->be) ? gate : up + m * l->mlp; /* packed rows do not fit over what they come from */
  mul(r->be, h, x.o, m, &b->o, &added);
  btc_op_rmsnorm_packed(r->be, a, h, m, l->hidden, b->norm2, l->eps);
  mul(r->be, gate, a, m, &b->gate, &plain);
  mul(r->be, up, a, m, &b->up, &plain);
  btc_op_silu_mul_packed(r->be, mid, gate, up, m * l->mlp);
  mul(r->be, h, mid, m, &b->down, &added);
}

void btc_llm_forward(const btc_run *r, int64_t layer, int64_t first, int64_t m, bool decode, float *h) {
  const btc_llm_config *l = &r->m->cfg->llm;
  const btc_llm_block *b = &r->m->llm[layer];
  const int64_t most = decode ? m : r->llm_rows;
  for (int64_t i = 0; i < m; i += most) {
    int64_t n = m - i < most ? m - i : most;
    float *rows = h + i * r->m->width;
    attention_rows x = project(r, b, rows, n, decode);
    btc_op_attention_items(r->be, &(btc_attention_items){.q = x.q,
                                                         .k = x.k,
                                                         .v = x.v,
                                                         .o = x.o,
                                                         .first = i,
                                                         .m = n,
                                                         .layer = layer - first,
                                                         .heads = l->heads,
                                                         .cos = r->m->rope_cos,
                                                         .sin = r->m->rope_sin,
                                                         .scale = 1.0f / sqrtf((float)l->head_dim),
                                                         .prefill = !decode});
    finish(r, b, x, rows, n, decode);
  }
}

void btc_head_forward(const btc_run *r, const float *h, int64_t m, float *logits) {
  const btc_model *mo = r->m;
  btc_op_rmsnorm_packed(r->be, r->scratch, h, m, mo->width, mo->final_norm, mo->cfg->llm.eps);
  btc_op_matvec(r->be, logits, r->scratch, m, &mo->head, &(btc_epilogue){.x_packed = true});
}
