/*
 * Llama decoder (spec 1.6): pre-norm attention with grouped key/value heads and rotary positions, SiLU-gated feed-forward.
 * Rows of many items are packed one after another: prefill with the many-row product, decode, one row an item, with the few-row
 * one.
 */
#include "forward.h"

#include <math.h>

int64_t btc_llm_scratch(const btc_model *m, int64_t rows) {
  const btc_llm_config *l = &m->cfg->llm;
  int64_t q = l->heads * l->head_dim, kv = l->kv_heads * l->head_dim;
  int64_t attention = 2 * q + 2 * kv, feed_forward = 3 * l->mlp;
  return rows * (l->hidden + (attention > feed_forward ? attention : feed_forward));
}

/* m rows of h, and where what is made of them goes: scratch is a row of normed values, then the rest. */
typedef struct rows {
  float *h, *normed, *made;
  int64_t first, m;
  bool decode;
} rows;

static void attend(const btc_run *r, const btc_llm_block *b, int64_t layer, const rows *x) {
  const btc_llm_config *l = &r->m->cfg->llm;
  float *o = x->made + x->m * (l->heads + 2 * l->kv_heads) * l->head_dim;
  const btc_products p = {.n = 3,
                          .w = {&b->q, &b->k, &b->v},
                          .x = x->h,
                          .m = x->m,
                          .norm = b->norm1,
                          .eps = l->eps,
                          .normed = x->normed,
                          .y = x->made,
                          .few = x->decode};
  btc_op_products_attend(r->be, &p,
                         &(btc_attention_items){.o = o,
                                                .first = x->first,
                                                .m = x->m,
                                                .layer = layer,
                                                .heads = l->heads,
                                                .cos = r->m->rope_cos,
                                                .sin = r->m->rope_sin,
                                                .scale = 1.0f / sqrtf((float)l->head_dim),
                                                .prefill = !x->decode});
  (x->decode ? btc_op_matvec : btc_op_matmul)(r->be, x->h, o, x->m, &b->o, &(btc_epilogue){.x_packed = true, .residual = x->h});
}

static void feed_forward(const btc_run *r, const btc_llm_block *b, const rows *x) {
  const btc_llm_config *l = &r->m->cfg->llm;
  const btc_products p = {.n = 2,
                          .w = {&b->gate, &b->up},
                          .x = x->h,
                          .m = x->m,
                          .norm = b->norm2,
                          .eps = l->eps,
                          .normed = x->normed,
                          .y = x->made,
                          .few = x->decode};
  float *mid = btc_backend_on_host(r->be) ? x->made : x->made + 2 * x->m * l->mlp; /* packed rows do not fit over their parts */
  btc_op_products_gated(r->be, mid, &p);
  (x->decode ? btc_op_matvec : btc_op_matmul)(r->be, x->h, mid, x->m, &b->down,
                                              &(btc_epilogue){.x_packed = true, .residual = x->h});
}

void btc_llm_forward(const btc_run *r, int64_t layer, int64_t first, int64_t m, bool decode, float *h) {
  const btc_llm_block *b = &r->m->llm[layer];
  const int64_t most = decode ? m : r->llm_rows;
  for (int64_t i = 0; i < m; i += most) {
    const int64_t n = m - i < most ? m - i : most;
    const rows x = {h + i * r->m->width, r->scratch, r->scratch + n * r->m->width, i, n, decode};
    attend(r, b, layer - first, &x);
    feed_forward(r, b, &x);
  }
}

void btc_head_forward(const btc_run *r, const float *h, int64_t m, float *logits) {
  const btc_model *mo = r->m;
  btc_op_products(r->be, &(btc_products){.n = 1,
                                         .w = {&mo->head},
                                         .x = h,
                                         .m = m,
                                         .norm = mo->final_norm,
                                         .eps = mo->cfg->llm.eps,
                                         .normed = r->scratch,
                                         .y = logits,
                                         .few = true});
}
