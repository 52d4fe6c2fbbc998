/*
 * A session: items in, answers out. It owns the working memory of one stage over all blocks, takes items in batches, and keeps
 * each item's result a function of that item alone: a broken image fails its item, not its neighbours.
 */
#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "request.h"

typedef struct session_picture {
  btc_image im;
  bool pad;
} session_picture;

struct btc_session {
  btc_model *m;
  btc_session_options o;
  btc_precision precision;
  btc_stage *stage;
  btc_sampler *sampler;  /* over the tokenizer's pieces: rows of the head beyond them (padding) have no text and are never picked */
  btc_request *live;     /* [max_batch] */
  btc_stage_item *steps; /* [max_batch] */
  int *order;            /* [max_batch] live index of each step */
  float *logits;         /* [max_batch, vocab] */
  session_picture *picture; /* of the batch; room for the largest seen */
  int64_t n_pictures, cap_pictures;
  btc_parcel *parcel[2]; /* of a device: one travels while the other is filled */
  float *pixels;         /* in the backend's memory; grown to the largest batch seen */
  int64_t pixel_floats;
  btc_session_probe probe;
};

btc_session_options btc_session_options_default(void) {
  return (btc_session_options){.device = "cpu", .threads = 0, .precision = BTC_PRECISION_AUTO, .max_batch = 1, .max_tokens = 128};
}

static btc_status check_options(const btc_session_options *o, btc_error *err) {
  if (o->max_batch < 1 || o->max_batch > 256)
    return btc_fail(err, BTC_ERR_ARG, "batch size %d is not between 1 and 256", o->max_batch);
  if (o->max_tokens < 1 || o->max_tokens > 65536)
    return btc_fail(err, BTC_ERR_ARG, "max tokens %d is not between 1 and 65536", o->max_tokens);
  if (o->threads < 0 || o->threads > 256) return btc_fail(err, BTC_ERR_ARG, "%d threads are not between 0 and 256", o->threads);
  return BTC_OK;
}

btc_status btc_session_create(btc_model *m, const btc_session_options *o, btc_session **out, btc_error *err) {
  *out = NULL;
  btc_session *s;
  btc_session_options defaults = btc_session_options_default();
  if (!o) o = &defaults;
  btc_status st = check_options(o, err);
  if (st != BTC_OK) return st;
  if (!(s = btc_alloc_zero(1, sizeof *s))) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a session");
  s->m = m;
  s->o = *o;
  s->precision = o->precision;
  if (s->precision == BTC_PRECISION_AUTO)
    s->precision = btc_device_has_bf16(o->device ? o->device : "cpu") ? BTC_PRECISION_BF16 : BTC_PRECISION_F32;
  size_t batch = (size_t)o->max_batch, vocab = (size_t)m->cfg->llm.vocab;
  btc_stage_options so = {.backend = o->device ? o->device : "cpu",
                          .threads = o->threads,
                          .compute = s->precision == BTC_PRECISION_BF16 ? BTC_COMPUTE_BF16 : BTC_COMPUTE_F32,
                          .slots = o->max_batch,
                          .pick_vocab = btc_tokenizer_vocab(m->tok),
                          .cancel = o->cancel,
                          .progress = o->progress};
  st = btc_stage_create(m, 0, btc_block_count(m), &so, &s->stage, err);
  for (int k = 0; k < 2 && st == BTC_OK; k++)
    st = btc_parcel_create(btc_stage_backend(s->stage), btc_picture_bytes(m->cfg->vision.image), &s->parcel[k], err);
  if (st == BTC_OK) st = btc_sampler_create(btc_tokenizer_vocab(m->tok), &s->sampler, err);
  if (st == BTC_OK) {
    s->live = btc_alloc_zero(batch, sizeof *s->live);
    s->steps = btc_alloc_zero(batch, sizeof *s->steps);
    s->order = btc_alloc_zero(batch, sizeof *s->order);
    s->logits = btc_alloc(batch * vocab, sizeof *s->logits);
    if (!s->live || !s->steps || !s->order || !s->logits)
      st = btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a session of batch %d", o->max_batch);
  }
  if (st != BTC_OK) btc_session_destroy(&s);
  *out = s;
  return st;
}

static void drop_pictures(btc_session *s, int64_t from) {
  while (s->n_pictures > from) btc_image_free(&s->picture[--s->n_pictures].im);
}

void btc_session_destroy(btc_session **sp) {
  btc_session *s = *sp;
  if (!s) return;
  btc_backend *be = s->stage ? btc_stage_backend(s->stage) : NULL;
  for (int k = 0; be && k < 2; k++) btc_parcel_destroy(be, &s->parcel[k]);
  if (be) btc_backend_free(be, s->pixels);
  drop_pictures(s, 0);
  free(s->picture);
  btc_stage_destroy(&s->stage);
  btc_sampler_destroy(&s->sampler);
  free(s->live);
  free(s->steps);
  free(s->order);
  free(s->logits);
  free(s);
  *sp = NULL;
}

const char *btc_session_describe(const btc_session *s) {
  return btc_stage_describe(s->stage);
}

btc_precision btc_session_precision(const btc_session *s) {
  return s->precision;
}

void btc_session_set_probe(btc_session *s, const btc_session_probe *p) {
  s->probe = p ? *p : (btc_session_probe){0};
  btc_stage_set_tap(s->stage, s->probe.tap, s->probe.user);
  btc_stage_set_timed(s->stage, s->probe.timed);
}

btc_stage_times btc_session_times(const btc_session *s) {
  return btc_stage_get_times(s->stage);
}

void btc_result_clear(btc_result *r) {
  free(r->text);
  free(r->ids);
  free(r->cosine);
  *r = (btc_result){0};
}

/* ---- one item, before the model ---- */

static btc_status grow_pictures(btc_session *s, int64_t n, btc_error *err) {
  if (n <= s->cap_pictures) return BTC_OK;
  session_picture *grown = btc_realloc(s->picture, (size_t)n, sizeof *grown);
  if (!grown) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for %lld pictures", (long long)n);
  s->picture = grown;
  s->cap_pictures = n;
  return BTC_OK;
}

/* An item's pictures, behind those of the batch so far; none of them after an error. */
static btc_status load_images(btc_session *s, const btc_item *it, btc_error *err) {
  const int64_t before = s->n_pictures;
  const bool pad = btc_request_image_mode(s->m, it) == BTC_IMAGE_PAD, as_is = !btc_backend_on_host(btc_stage_backend(s->stage));
  btc_status st = grow_pictures(s, before + it->n_images, err);
  for (int i = 0; st == BTC_OK && i < it->n_images; i++) {
    session_picture *p = &s->picture[s->n_pictures];
    *p = (session_picture){.pad = pad};
    if (s->o.progress) __atomic_add_fetch(s->o.progress, 1, __ATOMIC_RELAXED);
    st = btc_request_load(s->m, it, i, as_is, &p->im, err);
    if (st == BTC_OK) s->n_pictures++;
  }
  if (st != BTC_OK) drop_pictures(s, before);
  return st;
}

/* Everything about one item that can fail on its own. */
static btc_status prepare(btc_session *s, btc_request *l, int slot, btc_error *err) {
  const int64_t start = btc_now_ns(), before = s->n_pictures;
  btc_status st = btc_request_read(s->m, l, s->o.max_tokens, err);
  if (st != BTC_OK) return st;
  l->result->phase = BTC_PHASE_IMAGE;
  if ((st = load_images(s, l->item, err)) != BTC_OK) return st;
  if ((st = btc_request_open(s->m, l, err)) != BTC_OK) {
    drop_pictures(s, before);
    return st;
  }
  l->step.slot = slot;
  l->result->timing.decode_ms = (double)(btc_now_ns() - start) * 1e-6;
  return BTC_OK;
}

/* ---- generation ---- */

/* Runs decode steps until every item is done. Nothing here allocates: a test counts. */
static btc_status generate(btc_session *s, int n, btc_error *err) {
  const int64_t vocab = s->m->cfg->llm.vocab;
  const btc_pick *picks = btc_stage_picks(s->stage);
  for (int i = 0; i < n; i++) s->order[i] = i;
  for (int rows = n;;) {
    int live = 0;
    for (int k = 0; k < rows; k++) {
      btc_request *l = &s->live[s->order[k]];
      btc_error e;
      btc_status st = btc_request_take(s->m, s->sampler, l, s->logits + k * vocab, picks ? &picks[k] : NULL, s->probe.force,
                                       s->probe.n_force, &e);
      if (st != BTC_OK) btc_request_fail(l, st, &e);
      if (!l->done) s->order[live++] = s->order[k];
    }
    if (!live) return BTC_OK;
    for (int k = 0; k < live; k++) s->steps[k] = s->live[s->order[k]].step;
    int64_t start = btc_now_ns();
    btc_status st = btc_stage_decode(s->stage, s->steps, live, NULL, s->logits, err);
    if (st != BTC_OK) return st;
    double share = (double)(btc_now_ns() - start) * 1e-6 / live;
    for (int k = 0; k < live; k++) s->live[s->order[k]].result->timing.generate_ms += share;
    rows = live;
  }
}

static double kinds_ms(const btc_stage_times *a, const btc_stage_times *b, btc_block_kind first, btc_block_kind last) {
  double ms = 0;
  for (int k = (int)first; k <= (int)last; k++) ms += b->prefill_ms[k] - a->prefill_ms[k];
  return ms;
}

static btc_status grow_pixels(btc_session *s, int64_t floats, btc_error *err) {
  btc_backend *be = btc_stage_backend(s->stage);
  void *p = NULL;
  if (floats <= s->pixel_floats) return BTC_OK;
  btc_backend_free(be, s->pixels);
  btc_status st = btc_backend_alloc(be, (size_t)floats * sizeof *s->pixels, &p, err);
  s->pixels = p;
  s->pixel_floats = p ? floats : 0;
  return st;
}

/* The batch's pictures become what the tower takes. */
static btc_status make_pixels(btc_session *s, btc_error *err) {
  btc_backend *be = btc_stage_backend(s->stage);
  const int64_t side = s->m->cfg->vision.image, image = 3 * side * side;
  const btc_shades shades = btc_request_shades(s->m);
  btc_status st = grow_pixels(s, s->n_pictures * image, err);
  for (int64_t i = 0; st == BTC_OK && i < s->n_pictures; i++) {
    const session_picture *from = &s->picture[i];
    const btc_picture p = {from->im.rgb, s->parcel[i % 2], from->im.width, from->im.height, from->pad};
    btc_op_send(be, p.parcel, p.rgb, (size_t)(p.width * p.height * 3));
    btc_op_resize_normalise(be, s->pixels + i * image, &p, 1, side, &shades);
  }
  drop_pictures(s, 0);
  return st;
}

/* Prefills and decodes the n prepared items. */
static btc_status run_live(btc_session *s, int n, btc_error *err) {
  int64_t most = 0;
  for (int i = 0; i < n; i++) {
    const btc_request *l = &s->live[i];
    int64_t end = l->step.positions + l->max_tokens;
    most = end > most ? end : most;
    s->steps[i] = l->step;
  }
  btc_status st = btc_stage_reserve(s->stage, s->steps, n, most, err);
  if (st == BTC_OK) st = make_pixels(s, err);
  if (st != BTC_OK) return st;
  btc_stage_times before = btc_stage_get_times(s->stage);
  st = btc_stage_prefill(s->stage, s->steps, n, s->pixels, s->logits, err);
  if (st != BTC_OK) return st;
  btc_stage_times after = btc_stage_get_times(s->stage);
  for (int i = 0; i < n; i++) {
    s->live[i].result->timing.vision_ms = kinds_ms(&before, &after, BTC_BLOCK_PATCH, BTC_BLOCK_CHANGE) / n;
    s->live[i].result->timing.prefill_ms = kinds_ms(&before, &after, BTC_BLOCK_SPLICE, BTC_BLOCK_HEAD) / n;
  }
  return generate(s, n, err);
}

static btc_status run_batch(btc_session *s, const btc_item *items, int n, btc_result *results, btc_error *err) {
  int live = 0;
  drop_pictures(s, 0);
  for (int i = 0; i < n; i++) {
    btc_request *l = &s->live[live];
    *l = (btc_request){.item = &items[i], .result = &results[i]};
    btc_error e = {0};
    btc_status st = prepare(s, l, live, &e);
    if (st == BTC_OK) {
      live++;
      continue;
    }
    btc_request_fail(l, st, &e);
    btc_request_release(l);
  }
  btc_status st = live ? run_live(s, live, err) : BTC_OK;
  for (int i = 0; i < live; i++) {
    if (st == BTC_OK)
      btc_request_finish(s->m, &s->live[i]);
    else
      btc_request_fail(&s->live[i], st, err);
    btc_request_release(&s->live[i]);
  }
  return st;
}

btc_status btc_session_run(btc_session *s, const btc_item *items, size_t n, btc_result *results, btc_error *err) {
  btc_error own;
  if (!err) err = &own;
  btc_status st = BTC_OK;
  memset(results, 0, n * sizeof *results);
  size_t i = 0;
  while (st == BTC_OK && i < n) {
    int batch = n - i < (size_t)s->o.max_batch ? (int)(n - i) : s->o.max_batch;
    if (s->o.cancel && *s->o.cancel)
      st = btc_fail(err, BTC_ERR_CANCELLED, "stopped on request");
    else
      st = run_batch(s, items + i, batch, results + i, err);
    if (st == BTC_OK || st == BTC_ERR_NOMEM) i += (size_t)batch;
  }
  for (; st != BTC_OK && i < n; i++) {
    if (results[i].status != BTC_OK) continue;
    results[i].status = st;
    results[i].error = *err;
  }
  return st;
}
