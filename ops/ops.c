/* The public operators: backend choice and dispatch, nothing else. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "ops/backend.h"

#define MAX_THREADS 256
#define MAX_COLS (INT64_C(1) << 24) /* keeps every scratch product far from overflow */

static const btc_ops_table *const tables[] = {
    &btc_ops_cpu,
    &btc_ops_plain,
#ifdef BTC_HAVE_CUDA
    &btc_ops_cuda,
#endif
};

/* "cuda:3" is of kind "cuda"; the backend itself reads the number. */
static const btc_ops_table *find_table(const char *kind) {
  for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++) {
    size_t n = strlen(tables[i]->kind);
    if (strncmp(tables[i]->kind, kind, n) != 0) continue;
    if (kind[n] == 0 || (kind[n] == ':' && !strcmp(tables[i]->kind, "cuda"))) return tables[i];
  }
  return NULL;
}

static int usable_processors(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  int n = CPU_COUNT(&set);
  return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
}

btc_status btc_backend_create(const btc_backend_options *o, btc_backend **out, btc_error *err) {
  *out = NULL;
  const btc_ops_table *table = o->kind ? find_table(o->kind) : NULL;
  if (!table && o->kind && !strncmp(o->kind, "cuda", 4))
    return btc_fail(err, BTC_ERR_UNSUPPORTED, "device '%s': this build has no CUDA backend; use cpu", o->kind);
  if (!table) return btc_fail(err, BTC_ERR_ARG, "backend '%s' is not one of: cpu, plain, cuda", o->kind ? o->kind : "(none)");
  if (o->threads < 0 || o->threads > MAX_THREADS)
    return btc_fail(err, BTC_ERR_ARG, "%d threads: want 1 to %d, or 0 for all processors", o->threads, MAX_THREADS);
  if (o->compute != BTC_COMPUTE_F32 && o->compute != BTC_COMPUTE_BF16)
    return btc_fail(err, BTC_ERR_ARG, "compute mode %d is unknown", (int)o->compute);
  if (o->max_cols < 1 || o->max_cols > MAX_COLS)
    return btc_fail(err, BTC_ERR_LIMIT, "%lld matrix columns: want 1 to %lld", (long long)o->max_cols, (long long)MAX_COLS);
  btc_backend *b = btc_alloc_zero(1, sizeof *b);
  if (!b) return btc_fail(err, BTC_ERR_NOMEM, "no memory for a backend");
  b->table = table;
  b->compute = o->compute;
  b->threads = o->threads ? o->threads : usable_processors();
  btc_status s = table->create(b, o, err);
  if (s != BTC_OK) {
    free(b);
    return s;
  }
  *out = b;
  return BTC_OK;
}

void btc_backend_destroy(btc_backend **b) {
  if (!*b) return;
  (*b)->table->destroy(*b);
  free(*b);
  *b = NULL;
}

const char *btc_backend_describe(const btc_backend *b) {
  return b->description;
}

int btc_backend_threads(const btc_backend *b) {
  return b->threads;
}

bool btc_backend_device(const btc_backend *b, btc_device_info *out) {
  return b->table->device && b->table->device(b, out);
}

void btc_op_matmul(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e) {
  b->table->matmul(b, y, x, m, w, e);
}

void btc_op_matvec(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e) {
  b->table->matvec(b, y, x, m, w, e);
}

void btc_op_layernorm(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, const float *bias,
                      float eps) {
  b->table->layernorm(b, y, x, m, n, weight, bias, eps);
}

void btc_op_rmsnorm(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, float eps) {
  b->table->rmsnorm(b, y, x, m, n, weight, eps);
}

void btc_op_attention(btc_backend *b, const btc_attention *a) {
  b->table->attention(b, a);
}

void btc_op_kv_store(btc_backend *b, const btc_kv *kv, int64_t pos, const float *k, int64_t k_stride, const float *v,
                     int64_t v_stride, int64_t m) {
  b->table->kv_store(b, kv, pos, k, k_stride, v, v_stride, m);
}

void btc_op_attention_causal(btc_backend *b, float *o, const float *q, int64_t q_stride, int64_t m, int64_t pos, int64_t heads,
                             const btc_kv *kv, float scale) {
  b->table->attention_causal(b, o, q, q_stride, m, pos, heads, kv, scale);
}

void btc_op_rope(btc_backend *b, float *x, int64_t stride, int64_t m, int64_t heads, int64_t d, int64_t pos, const float *cos,
                 const float *sin) {
  b->table->rope(b, x, stride, m, heads, d, pos, cos, sin);
}

void btc_op_add(btc_backend *b, float *y, const float *a, const float *c, int64_t n) {
  b->table->add(b, y, a, c, n);
}

void btc_op_silu_mul(btc_backend *b, float *y, const float *gate, const float *up, int64_t n) {
  b->table->silu_mul(b, y, gate, up, n);
}

void btc_op_unfold_patches(btc_backend *b, float *dst, const float *x, int64_t n, int64_t side, int64_t p, int64_t g) {
  b->table->unfold_patches(b, dst, x, n, side, p, g);
}

void btc_op_unfold_3x3(btc_backend *b, float *dst, const float *x, int64_t n, int64_t g, int64_t c) {
  b->table->unfold_3x3(b, dst, x, n, g, c);
}

void btc_op_space_to_depth(btc_backend *b, float *dst, const float *x, int64_t n, int64_t g, int64_t c) {
  b->table->space_to_depth(b, dst, x, n, g, c);
}

void btc_op_cosine_concat(btc_backend *b, float *z, float *cos, const float *s1, const float *s2, int64_t t, int64_t c) {
  b->table->cosine_concat(b, z, cos, s1, s2, t, c);
}

void btc_op_embed(btc_backend *b, float *y, const btc_weight *table, const int32_t *ids, int64_t m) {
  b->table->embed(b, y, table, ids, m);
}

/* ---- what host backends share ---- */

bool btc_backend_on_host(const btc_backend *b) {
  return !b->table->alloc;
}

int64_t btc_backend_rows(const btc_backend *b) {
  return b->rows;
}

btc_status btc_backend_alloc(btc_backend *b, size_t bytes, void **out, btc_error *err) {
  if (b->table->alloc) return b->table->alloc(b, bytes, out, err);
  *out = btc_alloc(bytes, 1);
  return *out ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "not enough memory: %zu MB are wanted", bytes >> 20);
}

void btc_backend_free(btc_backend *b, void *p) {
  if (b->table->alloc)
    b->table->free(b, p);
  else
    free(p);
}

btc_status btc_backend_hold(btc_backend *b, const btc_weight *w, bool product, btc_error *err) {
  return b->table->hold ? b->table->hold(b, w, product, err) : BTC_OK;
}

btc_status btc_backend_finish(btc_backend *b, btc_error *err) {
  return b->table->finish ? b->table->finish(b, err) : BTC_OK;
}

void btc_op_copy(btc_backend *b, void *dst, const void *src, size_t bytes) {
  if (b->table->copy_2d)
    b->table->copy_2d(b, dst, bytes, src, bytes, bytes, 1);
  else
    memcpy(dst, src, bytes);
}

void btc_op_copy_2d(btc_backend *b, void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, int64_t rows) {
  if (b->table->copy_2d)
    b->table->copy_2d(b, dst, dst_pitch, src, src_pitch, width, rows);
  else
    for (int64_t i = 0; i < rows; i++)
      memcpy((char *)dst + (size_t)i * dst_pitch, (const char *)src + (size_t)i * src_pitch, width);
}

bool btc_op_sequence_begin(btc_backend *b, uint64_t key) {
  return b->table->sequence_begin ? b->table->sequence_begin(b, key) : false;
}

bool btc_op_sequence_end(btc_backend *b) {
  return b->table->sequence_end ? b->table->sequence_end(b) : true;
}

void btc_op_layernorm_packed(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, const float *bias,
                             float eps) {
  (b->table->layernorm_packed ? b->table->layernorm_packed : b->table->layernorm)(b, y, x, m, n, weight, bias, eps);
}

void btc_op_rmsnorm_packed(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, float eps) {
  (b->table->rmsnorm_packed ? b->table->rmsnorm_packed : b->table->rmsnorm)(b, y, x, m, n, weight, eps);
}

void btc_op_add_repeated(btc_backend *b, float *y, const float *a, const float *c, int64_t n, int64_t period) {
  if (b->table->add_repeated)
    b->table->add_repeated(b, y, a, c, n, period);
  else
    for (int64_t i = 0; i < n; i += period) b->table->add(b, y + i, a + i, c, period);
}

/* ---- pictures ---- */

btc_status btc_parcel_create(btc_backend *b, size_t bytes, btc_parcel **out, btc_error *err) {
  *out = NULL;
  return b->table->parcel_create ? b->table->parcel_create(b, bytes, out, err) : BTC_OK;
}

void btc_parcel_destroy(btc_backend *b, btc_parcel **p) {
  if (*p) b->table->parcel_destroy(b, p);
}

void btc_op_send(btc_backend *b, btc_parcel *p, const void *src, size_t bytes) {
  if (p) b->table->send(b, p, src, bytes);
}

void btc_op_resize_normalise(btc_backend *b, float *pixels, const btc_picture *p, int64_t n, int64_t side, const btc_shades *s) {
  if (b->table->resize_normalise)
    b->table->resize_normalise(b, pixels, p, n, side, s);
  else
    for (int64_t i = 0; i < n; i++) btc_resize_normalise(pixels + i * 3 * side * side, &p[i], side, s);
}

const char *btc_backend_remark(btc_backend *b) {
  if (b->remarked || !b->remark[0]) return NULL;
  b->remarked = true;
  return b->remark;
}

/* ---- many items ---- */

void btc_op_set_items(btc_backend *b, const btc_items *items) {
  b->items = *items;
  if (b->table->set_items) b->table->set_items(b, items);
}

/* Rows [at, at+m) of the call, which are positions pos.. of item i. */
static void attend_item(btc_backend *b, const btc_attention_items *a, int64_t i, int64_t at, int64_t m, int64_t pos) {
  const btc_kv *kv = &b->items.kv[a->layer * b->items.n + i];
  float *q = a->q + at * a->q_stride, *k = a->k + at * a->k_stride;
  btc_op_rope(b, q, a->q_stride, m, a->heads, kv->d, pos, a->cos, a->sin);
  btc_op_rope(b, k, a->k_stride, m, kv->kv_heads, kv->d, pos, a->cos, a->sin);
  btc_op_kv_store(b, kv, pos, k, a->k_stride, a->v + at * a->v_stride, a->v_stride, m);
  btc_op_attention_causal(b, a->o + at * a->heads * kv->d, q, a->q_stride, m, pos, a->heads, kv, a->scale);
}

void btc_op_attention_items(btc_backend *b, const btc_attention_items *a) {
  if (b->table->attention_items) {
    b->table->attention_items(b, a);
    return;
  }
  const int64_t end = a->first + a->m;
  for (int64_t i = 0, start = 0; i < b->items.n && start < end; start += b->items.rows[i++]) {
    int64_t from = start > a->first ? start : a->first, to = start + b->items.rows[i] < end ? start + b->items.rows[i] : end;
    if (from < to) attend_item(b, a, i, from - a->first, to - from, b->items.pos[i] + from - start);
  }
}

void btc_op_embed_items(btc_backend *b, float *y, const btc_weight *table) {
  if (b->table->embed_items) {
    b->table->embed_items(b, y, table);
    return;
  }
  int64_t rows = 0;
  for (int64_t i = 0; i < b->items.n; i++) rows += b->items.rows[i];
  btc_op_embed(b, y, table, b->items.ids, rows);
}

void btc_op_pick(btc_backend *b, btc_pick *picks, const float *logits, int64_t stride, int64_t m, int64_t vocab) {
  if (b->table->pick) b->table->pick(b, picks, logits, stride, m, vocab);
}
