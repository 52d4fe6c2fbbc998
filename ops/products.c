/* Products of the same rows, as a host makes them: one after the other, a part behind the other. */
#include "ops/backend.h"

btc_product_part btc_products_part(const btc_backend *b, const btc_products *p, int i) {
  if (b->table->products_part) return b->table->products_part(b, p, i);
  int64_t before = 0;
  for (int k = 0; k < i; k++) before += p->w[k]->rows;
  return (btc_product_part){p->y + p->m * before, p->w[i]->rows};
}

void btc_op_products(btc_backend *b, const btc_products *p) {
  if (b->table->products) {
    b->table->products(b, p);
    return;
  }
  if (p->norm) b->table->rmsnorm(b, p->normed, p->x, p->m, p->w[0]->cols, p->norm, p->eps);
  for (int i = 0; i < p->n; i++)
    (p->few ? b->table->matvec : b->table->matmul)(b, btc_products_part(b, p, i).at, p->norm ? p->normed : p->x, p->m, p->w[i],
                                                   &(btc_epilogue){.bias = p->bias[i]});
}

void btc_op_products_gated(btc_backend *b, float *out, const btc_products *p) {
  if (b->table->products_gated) {
    b->table->products_gated(b, out, p);
    return;
  }
  btc_op_products(b, p);
  b->table->silu_mul(b, out, btc_products_part(b, p, 0).at, btc_products_part(b, p, 1).at, p->m * p->w[0]->rows);
}

void btc_op_products_attend(btc_backend *b, const btc_products *p, const btc_attention_items *a) {
  if (b->table->products_attend && b->table->products_attend(b, p, a)) return;
  const btc_product_part q = btc_products_part(b, p, 0), k = btc_products_part(b, p, 1), v = btc_products_part(b, p, 2);
  btc_attention_items made = *a;
  made.q = q.at;
  made.k = k.at;
  made.v = v.at;
  made.q_stride = q.stride;
  made.k_stride = k.stride;
  made.v_stride = v.stride;
  btc_op_products(b, p);
  btc_op_attention_items(b, &made);
}

btc_status btc_backend_hold_together(btc_backend *b, const btc_weight *w, int n, bool product, btc_error *err) {
  return b->table->hold_together ? b->table->hold_together(b, w, n, product, err) : BTC_OK;
}
