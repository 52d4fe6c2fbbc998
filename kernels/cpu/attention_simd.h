/*
 * Kernel text of attention.c and causal.c. Softmax over blocks of keys in ascending order with a running maximum and sum
 * (Milakov & Gimelshein 2018): o and the sum are scaled by e^(old maximum - new maximum) at each block. Blocks start at fixed keys,
 * so a row's sums do not depend on the rows computed with it.
 */

/* s[count] becomes e^(scale (s - top)); s has room up to a multiple of VW. Updates the running maximum and sum of the row and
 * returns what its earlier output must be scaled by. Scores are scaled after the maximum is taken off: of two large ones the
 * difference is exact or nearly so, while each product rounds by its own size, which e^x then makes a relative error. */
inl float softmax_block(float *s, int64_t count, float scale, float *top, float *sum) {
  int64_t padded = btc_ceil_div(count, VW) * VW;
  for (int64_t j = count; j < padded; j++) s[j] = -INFINITY;
  V best = vset(*top);
  for (int64_t j = 0; j < padded; j += VW) best = vmax(vload(s + j), best);
  float now = vtop(best), last[VW];
  V total = vzero();
  for (int64_t j = 0; j < padded; j += VW) {
    V p = vexp(vmul(vsub(vload(s + j), vset(now)), vset(scale)));
    vstore(s + j, p);
    total = vadd(total, p);
  }
  vstore(last, vexp(vset((*top - now) * scale)));
  *sum = *sum * last[0] + vsum(total);
  *top = now;
  return last[0];
}

inl void scale_row(float *y, float by, int64_t n) {
  int64_t i = 0;
  for (; i + VW <= n; i += VW) vstore(y + i, vmul(vload(y + i), vset(by)));
  if (i < n) vstore_n(y + i, vmul(vload_n(y + i, n - i), vset(by)), n - i);
}

/* ---- blocked, for many queries ---- */

enum { SUB = MR == 14 ? 28 : 24, S_LD = ATTENTION_KEYS + NR_MAX }; /* queries whose scores are held at a time; their stride */

/* How a block's operands are multiplied: as they are, rounded to bf16, or rounded and two to a word. */
typedef enum operands { EXACT, ROUNDED, PAIRS } operands;

/* v[keys][d] to dst[panels of NR][keys][NR], zeros right of d; in pairs, two keys to a word */
inl void pack_v(float *dst, const float *v, int64_t stride, int64_t keys, int64_t d, operands how) {
  const bool pairs = how == PAIRS;
  for (int64_t c = 0; c < d; c += NR)
    for (int64_t j = 0; j < keys; j += pairs ? 2 : 1, dst += NR)
      for (int v_at = 0; v_at < NR; v_at += VW) {
        int64_t here = btc_min64(d - c - v_at, VW);
        const float *from = v + j * stride + c + v_at;
        V x = here == VW ? vload(from) : here > 0 ? vload_n(from, here) : vzero(), next = vzero();
        if (pairs && j + 1 < keys) next = here == VW ? vload(from + stride) : here > 0 ? vload_n(from + stride, here) : vzero();
        if (how != EXACT) x = vround_bf16(x);
        vstore(dst + v_at, pairs ? vpair(x, vround_bf16(next)) : x);
      }
}

typedef struct attention_block {
  float *q;                   /* packed queries */
  float *o;                   /* [queries][width] */
  float *k, *v;               /* packed keys and values of a block */
  float *rounded;             /* keys in bf16 before they are packed */
  float *s, *p;               /* scores [SUB][S_LD], and weights as packed rows */
  float *top, *sum;           /* [queries] */
  int64_t d, width, keys;     /* width: d rounded up to NR */
  int64_t d_steps, key_steps; /* d and keys, or the pairs they make */
  float scale;
  bool only; /* the one block of its rows: their sums are final once it is done */
} attention_block;

inl void multiply_tile(bool pairs, const float *a, const float *b, int64_t steps, float *c, int64_t ldc, bool add, int64_t rows) {
  const btc_cpu_ahead none = {a, {(const char *)b, (const char *)b}}; /* all in cache */
  if (pairs)
    tile_pairs(a, b, steps, c, ldc, add, rows, none);
  else
    tile(a, b, steps, c, ldc, add, rows, none);
}

/* Queries [i, i+rows) of the block, at most SUB, against its keys */
inl void attend_sub(const attention_block *b, int64_t i, int64_t rows, operands how) {
  const bool pairs = how == PAIRS;
  for (int64_t j = 0; j < b->keys; j += NR)
    for (int64_t r = 0; r < rows; r += MR)
      multiply_tile(pairs, b->q + (i + r) * b->d_steps, b->k + j * b->d_steps, b->d_steps, b->s + r * S_LD + j, S_LD, false,
                    rows - r);
  for (int64_t r = 0; r < rows; r++) {
    float by = softmax_block(b->s + r * S_LD, b->keys, b->scale, b->top + i + r, b->sum + i + r);
    if (by != 1) scale_row(b->o + (i + r) * b->width, by, b->width);
    if (how != EXACT && b->only) { /* round weights that add up to one, as where the softmax is an operator of its own */
      scale_row(b->s + r * S_LD, 1.0f / b->sum[i + r], b->keys);
      b->sum[i + r] = 1;
    }
  }
  for (int64_t r = 0; r < rows; r += MR) {
    if (pairs)
      pack_x_pairs(b->p + r * b->key_steps, b->s + r * S_LD, S_LD, btc_min64(rows - r, MR), b->keys);
    else
      pack_x(b->p + r * b->key_steps, b->s + r * S_LD, S_LD, btc_min64(rows - r, MR), b->keys, how == ROUNDED);
  }
  for (int64_t c = 0; c < b->width; c += NR)
    for (int64_t r = 0; r < rows; r += MR)
      multiply_tile(pairs, b->p + r * b->key_steps, b->v + c * b->key_steps, b->key_steps, b->o + (i + r) * b->width + c, b->width,
                    true, rows - r);
}

inl void attend_block(const btc_cpu_attention *a, int64_t seq, int64_t head, int64_t query, int64_t rows, float *scratch,
                      operands how) {
  const bool pairs = how == PAIRS;
  int64_t row0 = seq * a->t, channel = head * a->d, width = btc_ceil_div(a->d, NR) * NR;
  int64_t most = btc_ceil_div(btc_ceil_div(a->t, btc_ceil_div(a->t, ATTENTION_KEYS)), 32) * 32;
  const int64_t room = (ATTENTION_KEYS + NR_MAX) * (ATTENTION_WIDTH + NR_MAX), queries = ATTENTION_QUERIES + MR_MAX;
  float *at = scratch;
  attention_block b = {.d = a->d, .width = width, .scale = a->scale, .d_steps = pairs ? btc_ceil_div(a->d, 2) : a->d};
  b.q = at, at += queries * ATTENTION_WIDTH;
  b.o = at, at += queries * (ATTENTION_WIDTH + NR_MAX);
  b.k = at, at += room;
  b.v = at, at += room;
  b.rounded = at, at += room;
  b.s = at, at += SUB * S_LD;
  b.p = at, at += SUB * S_LD;
  b.top = at, at += queries;
  b.sum = at;
  b.only = a->t <= most;
  const float *q = a->q + (row0 + query) * a->q_stride + channel;
  for (int64_t i = 0; i < rows; i += MR) {
    if (pairs)
      pack_x_pairs(b.q + i * b.d_steps, q + i * a->q_stride, a->q_stride, btc_min64(rows - i, MR), a->d);
    else
      pack_x(b.q + i * a->d, q + i * a->q_stride, a->q_stride, btc_min64(rows - i, MR), a->d, how == ROUNDED);
  }
  memset(b.o, 0, (size_t)(btc_ceil_div(rows, MR) * MR * width) * sizeof *b.o);
  for (int64_t i = 0; i < rows; i++) b.top[i] = -INFINITY, b.sum[i] = 0;
  for (int64_t key = 0; key < a->t; key += most) {
    const float *k = a->k + (row0 + key) * a->k_stride + channel;
    b.keys = btc_min64(a->t - key, most);
    b.key_steps = pairs ? btc_ceil_div(b.keys, 2) : b.keys;
    if (pairs)
      pack_w_pairs(b.k, b.rounded, k, BTC_CPU_F32, a->k_stride, b.keys, a->d);
    else
      pack_w(b.k, k, BTC_CPU_F32, how == ROUNDED, a->k_stride, b.keys, a->d);
    pack_v(b.v, a->v + (row0 + key) * a->v_stride + channel, a->v_stride, b.keys, a->d, how);
    for (int64_t i = 0; i < rows; i += SUB) attend_sub(&b, i, btc_min64(rows - i, SUB), how);
  }
  for (int64_t i = 0; i < rows; i++) {
    scale_row(b.o + i * width, 1.0f / b.sum[i], width);
    memcpy(a->o + (row0 + query + i) * a->o_stride + channel, b.o + i * width, (size_t)a->d * sizeof *a->o);
  }
}

fn void attend(const btc_cpu_attention *a, int64_t seq, int64_t head, int64_t query, int64_t rows, float *scratch) {
  attend_block(a, seq, head, query, rows, scratch, EXACT);
}

fn void attend_rounded(const btc_cpu_attention *a, int64_t seq, int64_t head, int64_t query, int64_t rows, float *scratch) {
  attend_block(a, seq, head, query, rows, scratch, ROUNDED);
}

fn void attend_pairs(const btc_cpu_attention *a, int64_t seq, int64_t head, int64_t query, int64_t rows, float *scratch) {
  attend_block(a, seq, head, query, rows, scratch, PAIRS);
}

/* ---- row-wise, straight from the cache, for few queries and any width ---- */

/* o[d] = o*by + sum over j of p[j] v[j][d]; nv vectors from column c, the last of `last` lanes */
inl void weigh_columns(float *o, float by, const float *p, const char *v, int mode, int64_t v_bytes, int64_t count, int nv) {
  V acc[8];
  for (int c = 0; c < nv; c++) acc[c] = vzero();
  for (int64_t j = 0; j < count; j++)
    for (int c = 0; c < nv; c++)
      acc[c] = vfma(vset(p[j]), vload_as(v + j * v_bytes + c * VW * (int64_t)load_size(mode), mode), acc[c]);
  for (int c = 0; c < nv; c++) vstore(o + c * VW, vfma(vload(o + c * VW), vset(by), acc[c]));
}

inl void weigh(float *o, float by, const float *p, const char *v, int mode, int64_t v_bytes, int64_t count, int64_t d) {
  int64_t c = 0, size = (int64_t)load_size(mode);
  for (; c + 8 * VW <= d; c += 8 * VW) weigh_columns(o + c, by, p, v + c * size, mode, v_bytes, count, 8);
  for (; c + VW <= d; c += VW) weigh_columns(o + c, by, p, v + c * size, mode, v_bytes, count, 1);
  if (c == d) return;
  V acc = vzero();
  for (int64_t j = 0; j < count; j++) acc = vfma(vset(p[j]), vload_as_n(v + j * v_bytes + c * size, mode, d - c), acc);
  vstore_n(o + c, vfma(vload_n(o + c, d - c), vset(by), acc), d - c);
}

fn void attend_rows(const btc_cpu_rows *r) {
  float s[CAUSAL_QUERIES][CAUSAL_KEYS], top[CAUSAL_QUERIES], sum[CAUSAL_QUERIES];
  int64_t last = r->count + (r->rows - 1) * r->step, size = (int64_t)btc_cpu_type_size(r->type);
  for (int64_t i = 0; i < r->rows; i++) {
    top[i] = -INFINITY, sum[i] = 0;
    memset(r->o + i * r->o_stride, 0, (size_t)r->d * sizeof *r->o);
  }
  for (int64_t key = 0; key < last; key += CAUSAL_KEYS) {
    const char *k = (const char *)r->k + key * r->k_stride * size, *v = (const char *)r->v + key * r->v_stride * size;
    dots(s[0], CAUSAL_KEYS, r->q, r->q_stride, r->rows, k, r->type, false, r->k_stride, btc_min64(last - key, CAUSAL_KEYS), r->d);
    for (int64_t i = 0; i < r->rows; i++) {
      int64_t count = btc_min64(r->count + i * r->step - key, CAUSAL_KEYS);
      if (count <= 0) continue;
      float by = softmax_block(s[i], count, r->scale, &top[i], &sum[i]), *o = r->o + i * r->o_stride;
      if (r->type == BTC_CPU_BF16)
        weigh(o, by, s[i], v, LOAD_BF16, r->v_stride * size, count, r->d);
      else
        weigh(o, by, s[i], v, LOAD_F32, r->v_stride * size, count, r->d);
    }
  }
  for (int64_t i = 0; i < r->rows; i++) scale_row(r->o + i * r->o_stride, 1.0f / sum[i], r->d);
}

fn void store_kv(void *dst, btc_cpu_type type, const float *x, int64_t n) {
  if (type == BTC_CPU_F32) {
    memcpy(dst, x, (size_t)n * sizeof *x);
    return;
  }
  uint16_t *to = dst;
  int64_t i = 0;
  for (; i + VW <= n; i += VW) vstore_top(to + i, vround_bf16(vload(x + i)));
  if (i < n) vstore_top_n(to + i, vround_bf16(vload_n(x + i, n - i)), n - i);
}
