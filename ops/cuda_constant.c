/*
 * Constants of the model on a CUDA device, found by their address on the host. Those that are held together lie one after another
 * in one block of memory, rows of matrices at one pitch: each is a matrix as any other, and all of them are one.
 */
#include <stdlib.h>
#include <string.h>

#include "ops/cuda_parts.h"

static size_t place(const cuda_backend *c, const void *host) {
  size_t at = ((uintptr_t)host >> 4) * UINT64_C(0x9E3779B97F4A7C15) >> 20 & (c->cap_constants - 1);
  while (c->constant[at].host && c->constant[at].host != host) at = (at + 1) & (c->cap_constants - 1);
  return at;
}

const cuda_constant *cuda_find(const cuda_backend *c, const void *host) {
  if (!c->cap_constants || !host) return NULL;
  const cuda_constant *k = &c->constant[place(c, host)];
  return k->host ? k : NULL;
}

const float *cuda_vector(cuda_backend *c, const float *p) {
  const cuda_constant *k = cuda_find(c, p);
  return k && k->exact ? k->exact : p;
}

const uint16_t *cuda_rounded(const cuda_backend *c, const float *p) {
  const cuda_constant *k = cuda_find(c, p);
  return k ? k->rounded : NULL;
}

static cuda_constant *entry_for(cuda_backend *c, const btc_weight *w) {
  if (2 * c->n_constants >= c->cap_constants) {
    size_t old = c->cap_constants;
    cuda_constant *was = c->constant, *grown = btc_alloc_zero(old ? 2 * old : 256, sizeof *grown);
    if (!grown) return NULL;
    c->constant = grown;
    c->cap_constants = old ? 2 * old : 256;
    for (size_t i = 0; i < old; i++)
      if (was[i].host) grown[place(c, was[i].host)] = was[i];
    free(was);
  }
  cuda_constant *k = &c->constant[place(c, w->data)];
  if (!k->host) c->n_constants++;
  k->host = w->data;
  k->rows = w->rows;
  k->cols = w->cols;
  k->dtype = w->dtype;
  return k;
}

void cuda_constants_close(cuda_backend *c) {
  for (size_t i = 0; i < c->cap_constants; i++) {
    cuda_constant *k = &c->constant[i];
    if (k->exact && !k->exact_within) (void)cudaFree(k->exact);
    if (k->rounded && !k->exact_within) (void)cudaFree(k->rounded);
    if (k->product && k->product != k->exact && !k->product_within) (void)cudaFree(k->product);
  }
  free(c->constant);
}

static size_t stored_bytes(const btc_weight *w) {
  return (size_t)(w->rows * w->cols) * btc_dtype_size(w->dtype);
}

static btc_dtype product_type(const cuda_backend *c) {
  return c->bf16 ? BTC_BF16 : BTC_F32;
}

/* Of a product's rows: their starts are 16 bytes apart at least. */
static int64_t pitch_of(const cuda_backend *c, int64_t cols) {
  const int64_t step = 16 / (int64_t)btc_dtype_size(product_type(c));
  return (cols + step - 1) / step * step;
}

static size_t product_bytes(const cuda_backend *c, int64_t rows, int64_t cols) {
  return (size_t)(rows * pitch_of(c, cols)) * btc_dtype_size(product_type(c));
}

/* Through two buffers in turn, pinned, so that reading the file's pages and the copy to the device overlap. */
static bool upload(cuda_backend *c, char *dst, const char *src, size_t bytes) {
  while (bytes) {
    size_t n = bytes < CUDA_STAGING_BYTES ? bytes : CUDA_STAGING_BYTES;
    int i = c->next_staging;
    c->next_staging = !i;
    if (!cuda_await(c, c->staging_free[i])) return false;
    memcpy(c->staging[i].at, src, n);
    if (!CUDA_TRY(c, cudaMemcpyAsync(dst, c->staging[i].at, n, cudaMemcpyHostToDevice, c->stream))) return false;
    if (!CUDA_TRY(c, cudaEventRecord(c->staging_free[i], c->stream))) return false;
    dst += n;
    src += n;
    bytes -= n;
  }
  return true;
}

/* ---- products ---- */

/* To the products' type and their pitch, by way of `raw` and `dense`. */
static bool convert(cuda_backend *c, cuda_constant *k, void *raw, void *dense) {
  const int64_t n = k->rows * k->cols;
  const size_t size = c->bf16 ? 2 : 4;
  void *to = k->pitch == k->cols ? k->product : dense;
  btc_cuda_type t = (btc_cuda_type)k->dtype;
  if (!CUDA_TRY(c, c->bf16 ? btc_cuda_to_bf16(to, raw, t, n, c->stream) : btc_cuda_to_f32(to, raw, t, n, c->stream))) return false;
  if (to == k->product) return true;
  return CUDA_TRY(c, cudaMemsetAsync(k->product, 0, (size_t)(k->rows * k->pitch) * size, c->stream)) &&
         CUDA_TRY(c, cudaMemcpy2DAsync(k->product, (size_t)k->pitch * size, dense, (size_t)k->cols * size, (size_t)k->cols * size,
                                       (size_t)k->rows, cudaMemcpyDeviceToDevice, c->stream));
}

/* k->product is the place. */
static btc_status fill_product(cuda_backend *c, cuda_constant *k, const btc_weight *w, btc_error *err) {
  const size_t bytes = stored_bytes(w);
  void *raw = NULL, *dense = NULL;
  k->pitch = pitch_of(c, w->cols);
  const bool padded = k->pitch != w->cols;
  if (w->dtype == product_type(c) && !padded) return upload(c, k->product, w->data, bytes) ? BTC_OK : cuda_failure(c, err);
  btc_status st = cuda_alloc(c->base, bytes, &raw, err);
  if (st == BTC_OK && padded) st = cuda_alloc(c->base, (size_t)(w->rows * w->cols) * btc_dtype_size(product_type(c)), &dense, err);
  if (st == BTC_OK && !(upload(c, raw, w->data, bytes) && convert(c, k, raw, dense))) st = cuda_failure(c, err);
  if (raw) CUDA_TRY(c, cudaFree(raw));
  if (dense) CUDA_TRY(c, cudaFree(dense));
  return st;
}

static btc_status hold_product(cuda_backend *c, cuda_constant *k, const btc_weight *w, btc_error *err) {
  if (k->product) return BTC_OK;
  if (k->exact && w->dtype == product_type(c) && pitch_of(c, w->cols) == w->cols) {
    k->product = k->exact;
    k->product_within = k->exact_within;
    k->pitch = w->cols;
    return BTC_OK;
  }
  btc_status st = cuda_alloc(c->base, product_bytes(c, w->rows, w->cols), &k->product, err);
  return st == BTC_OK ? fill_product(c, k, w, err) : st;
}

/* ---- exact bytes ---- */

static bool is_bf16(const btc_weight *w) {
  const float *x = w->data;
  for (int64_t i = 0; i < w->rows * w->cols; i++)
    if (btc_bf16_to_f32(btc_f32_to_bf16(x[i])) != x[i]) return false; /* nor a NaN */
  return true;
}

/* Whether products want it as a bias in bf16, and that loses nothing. */
static bool is_rounded(const cuda_backend *c, const btc_weight *w) {
  return c->bf16 && w->dtype == BTC_F32 && w->rows == 1 && is_bf16(w);
}

/* k->exact and, where it is wanted, k->rounded are the places. */
static btc_status fill_exact(cuda_backend *c, const cuda_constant *k, const btc_weight *w, btc_error *err) {
  if (!upload(c, k->exact, w->data, stored_bytes(w))) return cuda_failure(c, err);
  if (!k->rounded) return BTC_OK;
  return CUDA_TRY(c, btc_cuda_to_bf16(k->rounded, k->exact, BTC_CUDA_F32, w->cols, c->stream)) ? BTC_OK : cuda_failure(c, err);
}

static btc_status hold_exact(cuda_backend *c, cuda_constant *k, const btc_weight *w, btc_error *err) {
  if (k->exact) return BTC_OK;
  if (k->product && w->dtype == product_type(c) && k->pitch == w->cols) {
    k->exact = k->product;
    k->exact_within = k->product_within;
    return BTC_OK;
  }
  void *p = NULL;
  btc_status st = cuda_alloc(c->base, stored_bytes(w), &k->exact, err);
  if (st == BTC_OK && is_rounded(c, w)) st = cuda_alloc(c->base, stored_bytes(w) / 2, &p, err);
  k->rounded = p;
  return st == BTC_OK ? fill_exact(c, k, w, err) : st;
}

btc_status cuda_hold(btc_backend *b, const btc_weight *w, bool product, btc_error *err) {
  cuda_backend *c = b->self;
  cuda_constant *k = entry_for(c, w);
  if (!k) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a table of weights");
  return product ? hold_product(c, k, w, err) : hold_exact(c, k, w, err);
}

/* ---- several in one block ---- */

/* What is there already stays where it is, and is not brought a second time; a weight twice in a group has one place. */
static bool can_lie_together(const cuda_backend *c, const btc_weight *w, int n, bool product) {
  for (int i = 0; i < n; i++) {
    const cuda_constant *k = cuda_find(c, w[i].data);
    if (k && (k->product || k->exact)) return false;
    if (product ? w[i].cols != w[0].cols : w[i].rows != 1 || w[i].dtype != BTC_F32) return false;
    for (int j = 0; j < i; j++)
      if (w[j].data == w[i].data) return false;
  }
  return n > 1;
}

static btc_status hold_products_together(cuda_backend *c, const btc_weight *w, int n, btc_error *err) {
  int64_t rows = 0;
  void *all;
  for (int i = 0; i < n; i++) rows += w[i].rows;
  btc_status st = cuda_alloc(c->base, product_bytes(c, rows, w[0].cols), &all, err);
  char *at = all;
  for (int i = 0; i < n && st == BTC_OK; i++) {
    cuda_constant *k = entry_for(c, &w[i]);
    if (!k) {
      if (i == 0) cuda_free(c->base, all);
      return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a table of weights");
    }
    k->product = at;
    k->product_within = i > 0;
    st = fill_product(c, k, &w[i], err);
    at += product_bytes(c, w[i].rows, w[i].cols);
  }
  return st;
}

static btc_status hold_vectors_together(cuda_backend *c, const btc_weight *w, int n, btc_error *err) {
  size_t bytes = 0;
  bool rounded = true;
  void *all = NULL, *halves = NULL;
  for (int i = 0; i < n; i++) {
    bytes += stored_bytes(&w[i]);
    rounded = rounded && is_rounded(c, &w[i]);
  }
  btc_status st = cuda_alloc(c->base, bytes, &all, err);
  if (st == BTC_OK && rounded) st = cuda_alloc(c->base, bytes / 2, &halves, err);
  size_t at = 0;
  for (int i = 0; i < n; i++) {
    cuda_constant *k = st == BTC_OK ? entry_for(c, &w[i]) : NULL;
    if (!k && i == 0) {
      cuda_free(c->base, all);
      cuda_free(c->base, halves);
    }
    if (!k) return st != BTC_OK ? st : btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a table of weights");
    k->exact = (char *)all + at;
    k->rounded = rounded ? (uint16_t *)((char *)halves + at / 2) : NULL;
    k->exact_within = i > 0;
    st = fill_exact(c, k, &w[i], err);
    at += stored_bytes(&w[i]);
  }
  return st;
}

btc_status cuda_hold_together(btc_backend *b, const btc_weight *w, int n, bool product, btc_error *err) {
  cuda_backend *c = b->self;
  btc_status st = BTC_OK;
  if (can_lie_together(c, w, n, product))
    return product ? hold_products_together(c, w, n, err) : hold_vectors_together(c, w, n, err);
  for (int i = 0; i < n && st == BTC_OK; i++) st = cuda_hold(b, &w[i], product, err);
  return st;
}

bool cuda_together(const cuda_backend *c, const btc_products *p, cuda_constant *whole) {
  const size_t size = btc_dtype_size(product_type(c));
  const cuda_constant *first = cuda_find(c, p->w[0]->data), *bias = cuda_find(c, p->bias[0]);
  if (!first || !first->product || !p->bias[0] != !bias) return false;
  *whole = *first;
  for (int i = 1; i < p->n; i++) {
    const cuda_constant *k = cuda_find(c, p->w[i]->data), *v = cuda_find(c, p->bias[i]);
    const size_t at = (size_t)(whole->rows * first->pitch) * size;
    if (!k || k->cols != first->cols || k->product != (const char *)first->product + at || !v != !bias) return false;
    if (v && v->exact != (const float *)bias->exact + whole->rows) return false;
    if (v && v->rounded != (bias->rounded ? bias->rounded + whole->rows : NULL)) return false;
    whole->rows += k->rows;
  }
  return true;
}
