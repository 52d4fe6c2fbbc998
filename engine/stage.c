/* The executor of a contiguous range of blocks. See stage.h for the contract; stage_list.c is the list itself. */
#include "forward.h"
#include "kv_cache.h"
#include "prompt.h"

#include <stdlib.h>

struct btc_stage {
  const btc_model *m;
  int first, last;
  btc_backend *be;
  btc_kv_cache *kv; /* layers [llm_first, llm_last) */
  int64_t llm_first, llm_last;
  float *flow[2], *scratch;
  int64_t flow_floats, scratch_floats, images_at_once, pairs_at_once, llm_rows;
  /* of the items of a run */
  int64_t *pos, *rows; /* [slots] */
  int32_t *ids;        /* [slots] decode */
  btc_kv *kvs;         /* [layers, slots] */
  btc_dtype kv_dtype;
  uint64_t generation; /* of the memory that recorded steps refer to */
  int slots;
  const volatile int *cancel;
  uint64_t *progress;
  btc_tap *tap;
  void *tap_user;
  bool timed;
  btc_error failed; /* of the run that is timed */
  /* a device's picks: there, and where they are copied to; [slots] */
  int64_t pick_vocab;
  btc_pick *pick_device, *picks;
  btc_stage_times times;
};

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

/* With what lies between the two, one image a pair. */
static int64_t pairs_scratch(const btc_model *m, int64_t pairs) {
  return pairs * m->tokens * m->hidden + max64(btc_change_scratch(m, pairs), btc_projector_scratch(m, pairs));
}

static int64_t block_scratch(const btc_stage *s, btc_block_kind kind) {
  const btc_model *m = s->m;
  const int64_t slots = s->slots;
  switch (kind) {
    case BTC_BLOCK_PATCH:
      return btc_patch_scratch(m, s->images_at_once);
    case BTC_BLOCK_VISION:
      return btc_vision_scratch(m, s->images_at_once);
    case BTC_BLOCK_CHANGE:
      return pairs_scratch(m, s->pairs_at_once);
    case BTC_BLOCK_SPLICE:
      return 0;
    case BTC_BLOCK_LLM:
      return btc_llm_scratch(m, max64(s->llm_rows, slots));
    default:
      return 2 * slots * m->width;
  }
}

/* A device computes as many pairs together as take no more memory than the tower's images; a host one, whose products have rows
 * enough. */
static void size_scratch(btc_stage *s, int64_t rows) {
  const bool many = rows > BTC_VISION_ROWS;
  s->images_at_once = max64(rows / s->m->tokens, 1);
  s->pairs_at_once = many ? max64(btc_vision_scratch(s->m, s->images_at_once) / pairs_scratch(s->m, 1), 1) : 1;
  s->llm_rows = many ? max64(rows / 3, BTC_LLM_ROWS) : BTC_LLM_ROWS;
  s->scratch_floats = 1;
  for (int i = s->first; i < s->last; i++)
    s->scratch_floats = max64(s->scratch_floats, block_scratch(s, btc_block_at(s->m, i).kind));
}

btc_device_needs btc_stage_device_needs(const btc_model *m, btc_compute compute, int slots, int64_t positions) {
  const btc_llm_config *l = &m->cfg->llm;
  const int64_t pixels = 3 * m->cfg->vision.image * m->cfg->vision.image, image = m->tokens * m->hidden;
  btc_stage s = {.m = m, .last = btc_block_count(m), .slots = slots + 1};
  const btc_stage_item widest = {.n_images = BTC_DEVICE_IMAGES, .positions = BTC_DEVICE_ROWS / 3};
  size_scratch(&s, BTC_DEVICE_ROWS);
  int64_t flow = max64(slots * l->vocab, BTC_DEVICE_IMAGES * pixels);
  for (int i = 0; i < s.last; i++) flow = max64(flow, btc_flow_floats(m, i, &widest, 1, false));
  return (btc_device_needs){
      .weights = btc_stage_held_bytes(m, compute),
      .slot =
          btc_kv_cache_slot_bytes(l->layers, l->kv_heads, l->head_dim, compute == BTC_COMPUTE_BF16 ? BTC_BF16 : BTC_F32, positions),
      .activations = 4 * (s.scratch_floats + 2 * flow + BTC_DEVICE_IMAGES * (3 * pixels + image)) + BTC_DEVICE_WINDOWS};
}

/* As many rows at once as the backend likes; fewer when they do not fit its memory. */
static btc_status make_scratch(btc_stage *s, btc_error *err) {
  for (int64_t rows = max64(btc_backend_rows(s->be), BTC_VISION_ROWS);; rows /= 2) {
    size_scratch(s, rows);
    void *p = NULL;
    btc_status st = btc_backend_alloc(s->be, (size_t)s->scratch_floats * sizeof *s->scratch, &p, err);
    s->scratch = p;
    if (st == BTC_OK) return BTC_OK;
    if (st != BTC_ERR_NOMEM) return st;
    if (rows <= BTC_VISION_ROWS)
      return btc_fail(err, BTC_ERR_NOMEM, "not enough memory: a stage needs %lld MB of working space",
                      (long long)(s->scratch_floats >> 18));
  }
}

static btc_status make_picks(btc_stage *s, btc_error *err) {
  void *p = NULL;
  if (!s->pick_vocab || btc_backend_on_host(s->be) || s->last != btc_block_count(s->m)) return BTC_OK;
  s->picks = btc_alloc((size_t)s->slots, sizeof *s->picks);
  if (!s->picks) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a stage of %d slots", s->slots);
  btc_status st = btc_backend_alloc(s->be, (size_t)s->slots * sizeof *s->picks, &p, err);
  s->pick_device = p;
  return st;
}

static btc_status make_tables(btc_stage *s, btc_error *err) {
  size_t slots = (size_t)s->slots, layers = (size_t)(s->llm_last - s->llm_first);
  s->pos = btc_alloc(slots, sizeof *s->pos);
  s->rows = btc_alloc(slots, sizeof *s->rows);
  s->ids = btc_alloc(slots, sizeof *s->ids);
  s->kvs = btc_alloc(slots * (layers ? layers : 1), sizeof *s->kvs);
  if (s->pos && s->rows && s->ids && s->kvs) return make_picks(s, err);
  return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a stage of %d slots", s->slots);
}

/* bf16 keys and values with bf16 products: half the memory, and golden cases stay within half their limits. */
static btc_status make_cache(const btc_stage *s, int slots, btc_kv_cache **out, btc_error *err) {
  const btc_llm_config *l = &s->m->cfg->llm;
  return btc_kv_cache_create(s->be, s->llm_last - s->llm_first, slots, l->kv_heads, l->head_dim, s->kv_dtype, out, err);
}

btc_status btc_stage_create(const btc_model *m, int first, int last, const btc_stage_options *o, btc_stage **out, btc_error *err) {
  *out = NULL;
  if (first < 0 || last > btc_block_count(m) || first >= last || o->slots < 1)
    return btc_fail(err, BTC_ERR_ARG, "no such stage: blocks %d to %d of %d, %d slots", first, last, btc_block_count(m), o->slots);
  btc_stage *s = btc_alloc_zero(1, sizeof *s);
  if (!s) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a stage");
  *s = (btc_stage){.m = m,
                   .first = first,
                   .last = last,
                   .slots = o->slots,
                   .cancel = o->cancel,
                   .progress = o->progress,
                   .pick_vocab = o->pick_vocab};
  for (int i = first; i < last; i++) {
    btc_block b = btc_block_at(m, i);
    if (b.kind != BTC_BLOCK_LLM) continue;
    if (s->llm_last == s->llm_first) s->llm_first = b.index;
    s->llm_last = b.index + 1;
  }
  const btc_llm_config *l = &m->cfg->llm;
  btc_backend_options bo = {.kind = o->backend,
                            .threads = o->threads,
                            .compute = o->compute,
                            .max_cols = widest_input(m),
                            .max_items = o->slots,
                            .max_layers = s->llm_last - s->llm_first,
                            .max_positions = l->context,
                            .heads = l->heads,
                            .head_dim = l->head_dim,
                            .picture_side = first == 0 ? m->cfg->vision.image : 0};
  btc_status st = btc_backend_create(&bo, &s->be, err);
  if (st == BTC_OK) st = btc_stage_hold(m, first, last, s->be, err);
  if (st == BTC_OK) st = make_scratch(s, err);
  if (st == BTC_OK) st = make_tables(s, err);
  s->kv_dtype = o->compute == BTC_COMPUTE_BF16 ? BTC_BF16 : BTC_F32;
  if (st == BTC_OK) st = make_cache(s, s->slots, &s->kv, err);
  if (st != BTC_OK) btc_stage_destroy(&s);
  *out = s;
  return st;
}

void btc_stage_destroy(btc_stage **sp) {
  btc_stage *s = *sp;
  if (!s) return;
  btc_kv_cache_destroy(&s->kv);
  if (s->be) {
    btc_backend_free(s->be, s->flow[0]);
    btc_backend_free(s->be, s->flow[1]);
    btc_backend_free(s->be, s->scratch);
    btc_backend_free(s->be, s->pick_device);
  }
  btc_backend_destroy(&s->be);
  free(s->picks);
  free(s->pos);
  free(s->rows);
  free(s->ids);
  free(s->kvs);
  free(s);
  *sp = NULL;
}

static btc_status grow_flow(btc_stage *s, int n, int64_t floats, btc_error *err) {
  s->flow_floats = 0;
  for (int k = 0; k < 2; k++) {
    btc_backend_free(s->be, s->flow[k]);
    s->flow[k] = NULL;
  }
  for (int k = 0; k < 2; k++) {
    void *p = NULL;
    btc_status st = btc_backend_alloc(s->be, (size_t)floats * sizeof *s->flow[k], &p, err);
    s->flow[k] = p;
    if (st == BTC_ERR_NOMEM)
      return btc_fail(err, BTC_ERR_NOMEM, "not enough memory: a batch of %d needs %lld MB of activations", n,
                      (long long)(floats >> 17));
    if (st != BTC_OK) return st;
  }
  s->flow_floats = floats;
  return BTC_OK;
}

btc_status btc_stage_reserve(btc_stage *s, const btc_stage_item *items, int n, int64_t slot_positions, btc_error *err) {
  if (n > s->slots) return btc_fail(err, BTC_ERR_ARG, "%d items do not fit a stage of %d slots", n, s->slots);
  int64_t need = 0;
  for (int i = s->first; i <= s->last; i++)
    if (i > 0 || !btc_backend_on_host(s->be)) /* a host's pixels stay the caller's */
      need = max64(need, btc_flow_floats(s->m, i, items, n, false));
  if (need > s->flow_floats || slot_positions > btc_kv_cache_capacity(s->kv)) s->generation++;
  btc_status st = need > s->flow_floats ? grow_flow(s, n, need, err) : BTC_OK;
  return st == BTC_OK ? btc_kv_cache_reserve(s->kv, slot_positions, err) : st;
}

btc_status btc_stage_shrink(btc_stage *s, int slots, btc_error *err) {
  if (slots < 1 || slots > s->slots) return btc_fail(err, BTC_ERR_ARG, "a stage of %d slots cannot have %d", s->slots, slots);
  btc_kv_cache *fewer;
  btc_status st = make_cache(s, slots, &fewer, err);
  if (st != BTC_OK) return st;
  for (int k = 0; k < 2; k++) {
    btc_backend_free(s->be, s->flow[k]);
    s->flow[k] = NULL;
  }
  s->flow_floats = 0;
  s->generation++;
  btc_kv_cache_destroy(&s->kv);
  s->kv = fewer;
  s->slots = slots;
  return BTC_OK;
}

void btc_stage_set_tap(btc_stage *s, btc_tap *tap, void *user) {
  s->tap = tap;
  s->tap_user = user;
}

const char *btc_stage_describe(const btc_stage *s) {
  return btc_backend_describe(s->be);
}

bool btc_stage_device(const btc_stage *s, btc_device_info *out) {
  return btc_backend_device(s->be, out);
}

const btc_pick *btc_stage_picks(const btc_stage *s) {
  return s->picks;
}

btc_backend *btc_stage_backend(btc_stage *s) {
  return s->be;
}

void btc_stage_set_timed(btc_stage *s, bool timed) {
  s->timed = timed;
}

btc_stage_times btc_stage_get_times(const btc_stage *s) {
  return s->times;
}

/* ---- running ---- */

static int64_t total_images(const btc_stage_item *items, int n) {
  int64_t images = 0;
  for (int i = 0; i < n; i++) images += items[i].n_images;
  return images;
}

/* How many of the first of n items are pairs, or are none. */
static int alike(const btc_stage_item *items, int n) {
  int k = 1;
  while (k < n && (items[k].n_images == 2) == (items[0].n_images == 2)) k++;
  return k;
}

/* n pairs, or images of any items (items NULL), in as few turns as scratch is sized for, each about as large as the others. */
static void project(const btc_run *r, const btc_stage_item *items, int64_t n, const float *x, float *out) {
  const btc_model *m = r->m;
  const int64_t image = m->tokens * m->hidden, block = m->block_tokens * m->width;
  const int64_t turns = (n + r->pairs_at_once - 1) / r->pairs_at_once, most = (n + turns - 1) / turns;
  btc_run inner = *r;
  for (int64_t i = 0; i < n; i += most) {
    const int64_t k = n - i < most ? n - i : most;
    const float *from = x + i * (items ? 2 : 1) * image;
    if (items) {
      inner.scratch = r->scratch + k * image;
      btc_change_forward(&inner, from, items + i, k, r->scratch);
      from = r->scratch;
    }
    btc_projector_forward(&inner, from, k, out + i * block);
  }
}

static void change_and_project(const btc_run *r, const btc_stage_item *items, int n, const float *x, float *out) {
  const btc_model *m = r->m;
  float *const start = out;
  for (int i = 0, k; i < n; i += k) {
    k = alike(items + i, n - i);
    const bool pairs = items[i].n_images == 2;
    const int64_t images = total_images(items + i, k), blocks = pairs ? k : images;
    project(r, pairs ? items + i : NULL, blocks, x, out);
    x += images * m->tokens * m->hidden;
    out += blocks * m->block_tokens * m->width;
  }
  btc_tap_emit(r, "projector.out", start, (out - start) / m->width, m->width);
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
    if (a < b && hole) btc_op_copy(r->be, out + (a - from) * d, visual + (a - at) * d, (size_t)((b - a) * d) * sizeof *out);
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
    float *at = out + rows * r->m->width;
    if (items[i].visual)
      (void)splice_item(r, &items[i], items[i].visual, at);
    else
      visual = splice_item(r, &items[i], visual, at);
    rows += items[i].positions;
  }
  btc_tap_emit(r, "splice.embeds", out, rows, r->m->width);
}

static void llm_block(btc_stage *s, const btc_run *r, int64_t index, int n, bool decode, float *h) {
  int64_t rows = 0;
  for (int i = 0; i < n; i++) rows += s->rows[i];
  btc_llm_forward(r, index, s->llm_first, rows, decode, h);
  if (decode) return;
  if (index == 0) btc_tap_emit(r, "llm.layer0", h, rows, s->m->width);
  if (index == s->m->cfg->llm.layers - 1) btc_tap_emit(r, "llm.last", h, rows, s->m->width);
}

/* Tells the backend where the rows of these items belong. */
static void set_items(btc_stage *s, const btc_stage_item *items, int n, bool decode) {
  int64_t layers = s->llm_last - s->llm_first;
  for (int i = 0; i < n; i++) {
    s->pos[i] = items[i].past;
    s->rows[i] = decode ? 1 : items[i].positions;
    s->ids[i] = items[i].token;
    for (int64_t l = 0; l < layers; l++) s->kvs[l * n + i] = btc_kv_cache_at(s->kv, items[i].slot, l);
  }
  btc_op_set_items(
      s->be, &(btc_items){.n = n, .layers = layers, .kv = s->kvs, .pos = s->pos, .rows = s->rows, .ids = decode ? s->ids : NULL});
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
    btc_op_copy(r->be, last + i * d, h - d, (size_t)d * sizeof *h);
  }
  btc_head_forward(&inner, last, n, logits);
  btc_tap_emit(r, "logits", logits, n, m->cfg->llm.vocab);
}

static void pick(const btc_stage *s, const float *logits, int n) {
  if (s->picks) btc_op_pick(s->be, s->pick_device, logits, s->m->cfg->llm.vocab, n, s->pick_vocab);
}

/* Runs block i from *cur (flow before it) and leaves *cur at the flow behind it, in one of the stage's two buffers. */
static void prefill_block(btc_stage *s, const btc_run *r, int i, const btc_stage_item *items, int n, const float **cur) {
  btc_block b = btc_block_at(s->m, i);
  float *own = *cur == s->flow[0] ? s->flow[0] : s->flow[1], *other = own == s->flow[0] ? s->flow[1] : s->flow[0];
  bool in_place = b.kind == BTC_BLOCK_VISION || b.kind == BTC_BLOCK_LLM;
  if (in_place && *cur != own) btc_op_copy(r->be, own, *cur, (size_t)btc_flow_floats(s->m, i, items, n, false) * sizeof *own);
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
      llm_block(s, r, b.index, n, false, own);
      break;
    case BTC_BLOCK_HEAD:
      head_prefill(r, items, n, *cur, other, other);
      pick(s, other, n);
      break;
  }
  *cur = in_place ? own : other;
}

static void decode_block(btc_stage *s, const btc_run *r, int i, int n, const float **cur) {
  btc_block b = btc_block_at(s->m, i);
  if (b.kind < BTC_BLOCK_SPLICE) return;
  const int64_t d = s->m->width;
  float *own = *cur == s->flow[0] ? s->flow[0] : s->flow[1], *other = own == s->flow[0] ? s->flow[1] : s->flow[0];
  if (b.kind == BTC_BLOCK_SPLICE) {
    btc_op_embed_items(s->be, own, &s->m->embed);
    *cur = own;
  } else if (b.kind == BTC_BLOCK_LLM) {
    if (*cur != own) btc_op_copy(s->be, own, *cur, (size_t)(n * d) * sizeof *own);
    llm_block(s, r, b.index, n, true, own);
    *cur = own;
  } else {
    btc_head_forward(r, *cur, n, other);
    btc_tap_emit(r, "logits", other, n, s->m->cfg->llm.vocab);
    pick(s, other, n);
    *cur = other;
  }
}

static void run_block(btc_stage *s, const btc_run *r, int i, const btc_stage_item *items, int n, bool decode, const float **cur) {
  int64_t start = btc_now_ns();
  if (s->progress) __atomic_add_fetch(s->progress, 1, __ATOMIC_RELAXED);
  if (decode)
    decode_block(s, r, i, n, cur);
  else
    prefill_block(s, r, i, items, n, cur);
  double ms = (double)(btc_now_ns() - start) * 1e-6;
  (decode ? s->times.decode_ms : s->times.prefill_ms)[btc_block_at(s->m, i).kind] += ms;
}

static void issue_steps(btc_stage *s, const btc_run *r, int first, int last, int n, const float **cur) {
  for (int i = first; i < last; i++) decode_block(s, r, i, n, cur);
}

/* Where the recording of these blocks leaves the flow. */
static void follow_steps(const btc_stage *s, int first, int last, const float **cur) {
  for (int i = first; i < last; i++) {
    if (btc_block_at(s->m, i).kind == BTC_BLOCK_HEAD)
      *cur = *cur == s->flow[0] ? s->flow[1] : s->flow[0];
    else if (*cur != s->flow[0])
      *cur = s->flow[1];
  }
}

/* All blocks of a decode step at once, which a device records and repeats. */
static void run_recorded(btc_stage *s, const btc_run *r, int first, int last, int n, const float **cur) {
  uint64_t key = ((s->generation * 1024 + (uint64_t)n) * 1024 + (uint64_t)first) * 1024 + (uint64_t)last;
  int64_t start = btc_now_ns();
  const float *const before = *cur;
  if (s->progress) __atomic_add_fetch(s->progress, 1, __ATOMIC_RELAXED);
  if (btc_op_sequence_begin(s->be, key)) {
    follow_steps(s, first, last, cur);
  } else {
    issue_steps(s, r, first, last, n, cur);
    if (!btc_op_sequence_end(s->be)) {
      *cur = before;
      issue_steps(s, r, first, last, n, cur);
    }
  }
  s->times.decode_ms[BTC_BLOCK_LLM] += (double)(btc_now_ns() - start) * 1e-6;
}

/* With the device's own time, where that is asked for. */
static void add_time(btc_stage *s, double *ms) {
  btc_error ignored; /* said again by the finish that ends the run, unless it was about this work only */
  int64_t start = btc_now_ns();
  if (!s->timed || s->failed.code != BTC_OK) return;
  if (btc_backend_finish(s->be, &ignored) != BTC_OK) s->failed = ignored;
  *ms += (double)(btc_now_ns() - start) * 1e-6;
}

static btc_status run_blocks(btc_stage *s, const btc_run *r, int first, int last, const btc_stage_item *items, int n, bool decode,
                             const float **cur, btc_error *err) {
  double *ms = decode ? s->times.decode_ms : s->times.prefill_ms;
  for (int i = first; i < last; i++) {
    const btc_block_kind kind = btc_block_at(s->m, i).kind;
    if (s->cancel && *s->cancel) return btc_fail(err, BTC_ERR_CANCELLED, "stopped on request");
    run_block(s, r, i, items, n, decode, cur);
    if (i + 1 == last || btc_block_at(s->m, i + 1).kind != kind) add_time(s, &ms[kind]);
  }
  return BTC_OK;
}

/* Visual blocks to where each item wants them. */
static void hand_out_visual(btc_stage *s, const btc_stage_item *items, int n, const float *cur) {
  for (int i = 0; i < n; i++) {
    const int64_t floats = btc_item_blocks(&items[i]) * s->m->block_tokens * s->m->width;
    if (items[i].visual) btc_op_copy(s->be, items[i].visual, cur, (size_t)floats * sizeof *cur);
    cur += floats;
  }
}

/* The flow behind the last block to the caller; behind the head, only the rows that a pick does not stand for. */
static void hand_out(btc_stage *s, int last, const btc_stage_item *items, int n, bool decode, const float *cur, float *out) {
  const int64_t floats = btc_flow_floats(s->m, last, items, n, decode), vocab = s->m->cfg->llm.vocab;
  if (!decode && btc_block_at(s->m, last - 1).kind == BTC_BLOCK_CHANGE) hand_out_visual(s, items, n, cur);
  if (last < btc_block_count(s->m) || !s->picks) {
    if (floats && out) btc_op_copy(s->be, out, cur, (size_t)floats * sizeof *out);
    return;
  }
  btc_op_copy(s->be, s->picks, s->pick_device, (size_t)n * sizeof *s->picks);
  for (int i = 0; i < n; i++)
    if (!items[i].greedy) btc_op_copy(s->be, out + i * vocab, cur + i * vocab, (size_t)vocab * sizeof *out);
}

typedef struct stage_call {
  int first, last;
  const btc_stage_item *items;
  int n;
  const float *in;
  float *out;
  bool decode, wait;
} stage_call;

static btc_status run(btc_stage *s, const stage_call *k, btc_error *err) {
  btc_run r = {.m = s->m,
               .be = s->be,
               .scratch = s->scratch,
               .images_at_once = s->images_at_once,
               .pairs_at_once = s->pairs_at_once,
               .llm_rows = s->llm_rows,
               .tap = s->tap,
               .tap_user = s->tap_user};
  const float *cur = k->in;
  const bool device = !btc_backend_on_host(s->be);
  int64_t floats = device && k->in ? btc_flow_floats(s->m, k->first, k->items, k->n, k->decode) : 0;
  btc_status st = BTC_OK;
  s->failed = (btc_error){0};
  if (floats) btc_op_copy(s->be, s->flow[0], k->in, (size_t)floats * sizeof *k->in);
  if (device) cur = s->flow[0];
  set_items(s, k->items, k->n, k->decode);
  if (s->cancel && *s->cancel) return btc_fail(err, BTC_ERR_CANCELLED, "stopped on request");
  if (device && k->decode && !s->tap) {
    run_recorded(s, &r, k->first, k->last, k->n, &cur);
    add_time(s, &s->times.decode_ms[BTC_BLOCK_LLM]);
  } else {
    st = run_blocks(s, &r, k->first, k->last, k->items, k->n, k->decode, &cur, err);
  }
  if (st != BTC_OK) return st;
  if (s->failed.code != BTC_OK) return btc_fail(err, s->failed.code, "%s", s->failed.message);
  hand_out(s, k->last, k->items, k->n, k->decode, cur, k->out);
  return k->wait ? btc_backend_finish(s->be, err) : BTC_OK;
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
    if (i > 0 || !btc_backend_on_host(s->be)) need = max64(need, btc_flow_floats(s->m, i, items, n, decode));
  if (need > s->flow_floats) return btc_fail(err, BTC_ERR_ARG, "a batch of %d items is larger than what was reserved", n);
  return BTC_OK;
}

btc_status btc_stage_prefill(btc_stage *s, const btc_stage_item *items, int n, const float *in, float *out, btc_error *err) {
  btc_status st = check_items(s, s->first, s->last, items, n, false, err);
  return st == BTC_OK ? run(s, &(stage_call){s->first, s->last, items, n, in, out, false, true}, err) : st;
}

static btc_status run_part(btc_stage *s, const stage_call *k, btc_error *err) {
  if (k->first < s->first || k->last > s->last || k->first >= k->last)
    return btc_fail(err, BTC_ERR_ARG, "blocks %d to %d are no part of a stage of blocks %d to %d", k->first, k->last, s->first,
                    s->last);
  btc_status st = check_items(s, k->first, k->last, k->items, k->n, false, err);
  return st == BTC_OK ? run(s, k, err) : st;
}

btc_status btc_stage_prefill_part(btc_stage *s, int first, int last, const btc_stage_item *items, int n, const float *in,
                                  float *out, btc_error *err) {
  return run_part(s, &(stage_call){first, last, items, n, in, out, false, true}, err);
}

btc_status btc_stage_issue_part(btc_stage *s, int first, int last, const btc_stage_item *items, int n, const float *in, float *out,
                                btc_error *err) {
  return run_part(s, &(stage_call){first, last, items, n, in, out, false, false}, err);
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
  return st == BTC_OK ? run(s, &(stage_call){s->first, s->last, items, n, in, out, true, true}, err) : st;
}
