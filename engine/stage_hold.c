/* What a stage's blocks read besides activations, declared to its backend or fetched from disk; and tensors of its memory handed to
 * a tap. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "forward.h"

enum { FETCH_BYTES = 32 << 20 };

/* One weight after the other goes to the backend, or without one into memory. After the first failure nothing more is done. */
typedef struct holder {
  btc_backend *be;
  btc_device_needs *needs; /* only counts */
  btc_compute compute;

  uint64_t *progress;
  btc_status status;
  btc_error *err;
} holder;

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14; the C library's headers may be older */
#endif

/* Older systems are asked page by page. */
static void touch(const uint8_t *p, size_t n, size_t page) {
  for (size_t i = 0; i < n; i += page) (void)*(const volatile uint8_t *)(p + i);
}

static void fetch(const holder *h, const btc_weight *w) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = (size_t)(w->rows * w->cols) * btc_dtype_size(w->dtype);
  uint8_t *from = (uint8_t *)((uintptr_t)w->data / page * page), *end = (uint8_t *)(uintptr_t)w->data + bytes;
  madvise(from, (size_t)(end - from), MADV_WILLNEED); /* the disk reads on while pages are mapped */
  for (size_t n; from < end; from += n) {
    n = (size_t)(end - from) < FETCH_BYTES ? (size_t)(end - from) : FETCH_BYTES;
    if (madvise(from, n, MADV_POPULATE_READ) != 0) touch(from, n, page);
    if (h->progress) __atomic_add_fetch(h->progress, 1, __ATOMIC_RELAXED);
  }
}

/* As ops/cuda_constant.c keeps it: products in their type, in rows of whole 16 bytes; other constants as they are. Which of them
 * lie together makes no difference. */
static void count(holder *h, const btc_weight *w, bool product) {
  const btc_dtype type = h->compute == BTC_COMPUTE_BF16 ? BTC_BF16 : BTC_F32;
  const int64_t size = (int64_t)btc_dtype_size(type), step = 16 / size, pitch = (w->cols + step - 1) / step * step;
  h->needs->weights += product ? w->rows * pitch * size : w->rows * w->cols * (int64_t)btc_dtype_size(w->dtype);
}

static void hold(holder *h, const btc_weight *w, bool product) {
  if (h->needs)
    count(h, w, product);
  else if (!h->be)
    fetch(h, w);
  else if (h->status == BTC_OK)
    h->status = btc_backend_hold(h->be, w, product, h->err);
}

/* What btc_op_products is given together. */
static void hold_together(holder *h, const btc_weight *w, int n, bool product) {
  for (int i = 0; i < n && (h->needs || !h->be); i++) hold(h, &w[i], product);
  if (!h->needs && h->be && h->status == BTC_OK) h->status = btc_backend_hold_together(h->be, w, n, product, h->err);
}

static btc_weight as_weight(const float *v, int64_t n) {
  return (btc_weight){.data = v, .dtype = BTC_F32, .rows = 1, .cols = n};
}

static void matrix(holder *h, const btc_weight *w) {
  hold(h, w, true);
}

static void vector(holder *h, const float *v, int64_t n) {
  const btc_weight w = as_weight(v, n);
  if (v) hold(h, &w, false);
}

static void linear(holder *h, const btc_linear *l) {
  matrix(h, &l->w);
  vector(h, l->bias, l->w.rows);
}

static void affine(holder *h, const btc_affine *a, int64_t n) {
  vector(h, a->weight, n);
  vector(h, a->bias, n);
}

static void vision(holder *h, const btc_model *m, const btc_vision_block *b) {
  const btc_weight w[] = {b->q.w, b->k.w, b->v.w};
  const btc_weight bias[] = {as_weight(b->q.bias, w[0].rows), as_weight(b->k.bias, w[1].rows), as_weight(b->v.bias, w[2].rows)};
  hold_together(h, w, 3, true);
  hold_together(h, bias, 3, false);
  linear(h, &b->out);
  linear(h, &b->fc1);
  linear(h, &b->fc2);
  affine(h, &b->ln1, m->hidden);
  affine(h, &b->ln2, m->hidden);
}

static void change_attention(holder *h, const btc_change_attention *a) {
  matrix(h, &a->to_q);
  matrix(h, &a->to_k);
  linear(h, &a->to_out);
  linear(h, &a->ff1);
  linear(h, &a->ff2);
  affine(h, &a->norm1, a->to_out.w.rows);
  affine(h, &a->norm2, a->to_out.w.rows);
}

static void change(holder *h, const btc_model *m) {
  const btc_change *c = &m->change;
  linear(h, &m->projector.fc1);
  linear(h, &m->projector.fc2);
  affine(h, &m->projector.norm, 4 * m->hidden);
  if (c->layers < 0) return;
  const btc_conv_norm *const convs[] = {&c->left0, &c->left3, &c->left6};
  for (int64_t i = 0; i < c->layers; i++) {
    change_attention(h, &c->layer[i].per_image);
    change_attention(h, &c->layer[i].joint);
  }
  linear(h, &c->conv1);
  for (size_t i = 0; i < sizeof convs / sizeof convs[0]; i++) {
    matrix(h, &convs[i]->w);
    vector(h, convs[i]->scale, convs[i]->w.rows);
    vector(h, convs[i]->shift, convs[i]->w.rows);
  }
  vector(h, c->position, m->tokens * m->hidden);
}

static void llm(holder *h, const btc_model *m, const btc_llm_block *b) {
  const btc_weight heads[] = {b->q, b->k, b->v}, gated[] = {b->gate, b->up};
  const btc_llm_config *l = &m->cfg->llm;
  hold_together(h, heads, 3, true);
  matrix(h, &b->o);
  hold_together(h, gated, 2, true);
  matrix(h, &b->down);
  vector(h, b->norm1, m->width);
  vector(h, b->norm2, m->width);
  if (h->needs && b != m->llm) return; /* the same for all of them */
  vector(h, m->rope_cos, l->context * (l->head_dim / 2));
  vector(h, m->rope_sin, l->context * (l->head_dim / 2));
}

static void block(holder *h, const btc_model *m, const btc_block *b) {
  switch (b->kind) {
    case BTC_BLOCK_PATCH:
      linear(h, &m->patch);
      vector(h, m->position, m->tokens * m->hidden);
      break;
    case BTC_BLOCK_VISION:
      vision(h, m, &m->vision[b->index]);
      break;
    case BTC_BLOCK_CHANGE:
      change(h, m);
      break;
    case BTC_BLOCK_SPLICE:
      hold(h, &m->embed, false);
      break;
    case BTC_BLOCK_LLM:
      llm(h, m, &m->llm[b->index]);
      break;
    case BTC_BLOCK_HEAD:
      matrix(h, &m->head);
      vector(h, m->final_norm, m->width);
      break;
  }
}

static void blocks(holder *h, const btc_model *m, int first, int last) {
  for (int i = first; i < last && h->status == BTC_OK; i++) {
    btc_block b = btc_block_at(m, i);
    block(h, m, &b);
  }
}

btc_status btc_stage_hold(const btc_model *m, int first, int last, btc_backend *be, btc_error *err) {
  holder h = {.be = be, .status = BTC_OK, .err = err};
  blocks(&h, m, first, last);
  return h.status;
}

int64_t btc_stage_held_bytes(const btc_model *m, btc_compute compute) {
  btc_device_needs n = {0};
  holder h = {.needs = &n, .compute = compute, .status = BTC_OK};
  blocks(&h, m, 0, btc_block_count(m));
  return n.weights;
}

void btc_stage_fetch(const btc_model *m, int first, int last, uint64_t *progress) {
  holder h = {.progress = progress, .status = BTC_OK};
  blocks(&h, m, first, last);
}

/* A tap sees host memory; without the memory for a copy it sees nothing, and a golden check misses the tensor. */
void btc_tap_emit(const btc_run *r, const char *name, const float *data, int64_t rows, int64_t cols) {
  if (!r->tap) return;
  if (btc_backend_on_host(r->be)) {
    r->tap(r->tap_user, name, data, rows, cols);
    return;
  }
  btc_error ignored;
  float *copy = btc_alloc((size_t)(rows * cols), sizeof *copy);
  if (!copy) return;
  btc_op_copy(r->be, copy, data, (size_t)(rows * cols) * sizeof *copy);
  if (btc_backend_finish(r->be, &ignored) == BTC_OK) r->tap(r->tap_user, name, copy, rows, cols);
  free(copy);
}
