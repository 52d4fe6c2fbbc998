/*
 * A session: items in, answers out. It owns the working memory of one stage over all blocks, takes items in batches, and keeps
 * each item's result a function of that item alone: a broken image fails its item, not its neighbours.
 */
#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"
#include "prompt.h"
#include "sampler.h"
#include "text.h"

typedef struct live_item {
  const btc_item *item;
  btc_result *result;
  btc_stage_item step; /* prefill first, then one decode step after the other */
  int32_t *ids;        /* prompt */
  int32_t *answer;     /* [max_tokens], becomes result->ids */
  int max_tokens;
  bool done;
  btc_sampling sampling;
  btc_rng rng;
} live_item;

struct btc_session {
  btc_model *m;
  btc_session_options o;
  btc_precision precision;
  btc_stage *stage;
  btc_sampler *sampler;   /* over the tokenizer's pieces: rows of the head beyond them (padding) have no text and are never picked */
  live_item *live;        /* [max_batch] */
  btc_stage_item *steps;  /* [max_batch] */
  int *order;             /* [max_batch] live index of each step */
  float *logits;          /* [max_batch, vocab] */
  float *pixels;          /* grown to the largest batch seen */
  int64_t pixel_floats;
  btc_session_probe probe;
};

btc_session_options btc_session_options_default(void) {
  return (btc_session_options){.device = "cpu", .threads = 0, .precision = BTC_PRECISION_AUTO, .max_batch = 1, .max_tokens = 128};
}

static btc_status check_options(const btc_session_options *o, btc_error *err) {
  if (o->max_batch < 1 || o->max_batch > 256) return btc_fail(err, BTC_ERR_ARG, "batch size %d is not between 1 and 256", o->max_batch);
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
  if (s->precision == BTC_PRECISION_AUTO) s->precision = btc_cpu_has_bf16() ? BTC_PRECISION_BF16 : BTC_PRECISION_F32;
  size_t batch = (size_t)o->max_batch, vocab = (size_t)m->cfg->llm.vocab;
  btc_stage_options so = {.backend = o->device ? o->device : "cpu",
                          .threads = o->threads,
                          .compute = s->precision == BTC_PRECISION_BF16 ? BTC_COMPUTE_BF16 : BTC_COMPUTE_F32,
                          .slots = o->max_batch,
                          .cancel = o->cancel,
                          .progress = o->progress};
  st = btc_stage_create(m, 0, btc_block_count(m), &so, &s->stage, err);
  if (st == BTC_OK) st = btc_sampler_create(btc_tokenizer_vocab(m->tok), &s->sampler, err);
  if (st == BTC_OK) {
    s->live = btc_alloc_zero(batch, sizeof *s->live);
    s->steps = btc_alloc_zero(batch, sizeof *s->steps);
    s->order = btc_alloc_zero(batch, sizeof *s->order);
    s->logits = btc_alloc(batch * vocab, sizeof *s->logits);
    if (!s->live || !s->steps || !s->order || !s->logits) st = btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a session of batch %d", o->max_batch);
  }
  if (st != BTC_OK) btc_session_destroy(&s);
  *out = s;
  return st;
}

void btc_session_destroy(btc_session **sp) {
  btc_session *s = *sp;
  if (!s) return;
  btc_stage_destroy(&s->stage);
  btc_sampler_destroy(&s->sampler);
  free(s->live);
  free(s->steps);
  free(s->order);
  free(s->logits);
  free(s->pixels);
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

/* Routing (spec 1.5): one image, a pair, or exactly the frames of a video. */
static btc_status check_route(const btc_model *m, const btc_item *it, btc_error *err) {
  int64_t frames = m->cfg->num_video_frames;
  if (it->n_images == 2 && m->change.layers < 0)
    return btc_fail(err, BTC_ERR_UNSUPPORTED, "this checkpoint has no change module (layers.change.*): pairs of images are not supported");
  if (it->n_images == 1 || it->n_images == 2 || (it->n_images > 2 && it->n_images == frames)) return BTC_OK;
  return btc_fail(err, BTC_ERR_ARG, "a group of %d images is neither 1 (an image), 2 (a pair) nor num_video_frames (%lld, a video)", it->n_images,
                  (long long)frames);
}

static btc_status encode_prompt(btc_session *s, live_item *l, btc_error *err) {
  const btc_model *m = s->m;
  const btc_item *it = l->item;
  char *text = NULL;
  size_t n = 0, holes = 0;
  btc_stage_item route = {.n_images = it->n_images};
  btc_status st = btc_prompt_question(it->question ? it->question : btc_prompt_caption, (size_t)btc_item_blocks(&route), &text, err);
  if (st == BTC_OK) st = btc_prompt_encode(m->tok, text, &l->ids, &n, err);
  free(text);
  if (st != BTC_OK) return st;
  for (size_t i = 0; i < n; i++) holes += l->ids[i] == BTC_IMAGE_ID;
  int64_t positions = (int64_t)(n - holes) + (int64_t)holes * m->block_tokens, context = m->cfg->llm.context;
  if (positions >= context)
    return btc_fail(err, BTC_ERR_LIMIT, "the prompt takes %lld positions (%zu of text, %lld of images), but the model's context is %lld",
                    (long long)positions, n - holes, (long long)holes * (long long)m->block_tokens, (long long)context);
  l->max_tokens = it->max_tokens ? it->max_tokens : s->o.max_tokens;
  if (l->max_tokens < 1 || l->max_tokens > s->o.max_tokens)
    return btc_fail(err, BTC_ERR_ARG, "max tokens %d is not between 1 and the session's %d", it->max_tokens, s->o.max_tokens);
  if (l->max_tokens > context - positions) l->max_tokens = (int)(context - positions);
  l->step = (btc_stage_item){.n_images = it->n_images, .ids = l->ids, .n_ids = (int64_t)n, .positions = positions};
  return BTC_OK;
}

static btc_status grow_pixels(btc_session *s, int64_t floats, btc_error *err) {
  if (floats <= s->pixel_floats) return BTC_OK;
  float *grown = btc_realloc(s->pixels, (size_t)floats, sizeof *grown);
  if (!grown) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for %lld MB of pixels", (long long)(floats >> 18));
  s->pixels = grown;
  s->pixel_floats = floats;
  return BTC_OK;
}

static btc_status load_images(btc_session *s, const btc_item *it, int64_t at, btc_error *err) {
  const btc_config *c = s->m->cfg;
  const int64_t side = c->vision.image, image = 3 * side * side;
  bool video = it->n_images > 2;
  bool pad = it->aspect == BTC_ASPECT_PAD || (it->aspect == BTC_ASPECT_AUTO && video && c->aspect_pad);
  btc_status st = grow_pixels(s, (at + it->n_images) * image, err);
  for (int i = 0; st == BTC_OK && i < it->n_images; i++) {
    btc_image im = {0};
    if (s->o.progress) __atomic_add_fetch(s->o.progress, 1, __ATOMIC_RELAXED);
    st = btc_image_load(it->images[i], side, pad ? BTC_IMAGE_PAD : BTC_IMAGE_SQUASH, NULL, &im, NULL, NULL, err);
    if (st == BTC_OK) btc_image_normalise(&im, c->pre.rescale, c->pre.mean, c->pre.std, s->pixels + (at + i) * image);
    btc_image_free(&im);
  }
  return st;
}

static btc_sampling sampling_of(const btc_item *it) {
  btc_sampling g = btc_sampling_default();
  g.temperature = it->temperature;
  g.top_p = it->top_p > 0 ? it->top_p : 1.0f;
  g.top_k = it->top_k == 0 ? 50 : it->top_k < 0 ? 0 : it->top_k;
  g.seed = it->seed;
  return g;
}

/* Everything about one item that can fail on its own. image_at: where its pixels go, in images. */
static btc_status prepare(btc_session *s, live_item *l, int slot, int64_t image_at, btc_error *err) {
  btc_result *r = l->result;
  int64_t start = btc_now_ns();
  r->phase = BTC_PHASE_REQUEST;
  if (l->item->n_images < 1 || !l->item->images) return btc_fail(err, BTC_ERR_ARG, "an item without images");
  btc_status st = check_route(s->m, l->item, err);
  if (st == BTC_OK) st = encode_prompt(s, l, err);
  if (st != BTC_OK) return st;
  r->phase = BTC_PHASE_IMAGE;
  if ((st = load_images(s, l->item, image_at, err)) != BTC_OK) return st;
  r->phase = BTC_PHASE_MODEL;
  l->sampling = sampling_of(l->item);
  btc_rng_seed(&l->rng, l->sampling.seed, 0);
  l->step.slot = slot;
  l->answer = btc_alloc((size_t)l->max_tokens, sizeof *l->answer);
  if (l->item->n_images == 2) {
    r->grid = s->m->cfg->vision.grid;
    r->cosine = btc_alloc((size_t)s->m->tokens, sizeof *r->cosine);
    l->step.cosine = r->cosine;
  }
  if (!l->answer || (l->item->n_images == 2 && !r->cosine)) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for an answer");
  r->timing.decode_ms = (double)(btc_now_ns() - start) * 1e-6;
  return BTC_OK;
}

/* ---- generation ---- */

static bool is_eos(const btc_llm_config *c, int32_t id) {
  for (int i = 0; i < c->n_eos; i++)
    if (c->eos[i] == id) return true;
  return false;
}

/* Takes the next token of one item from its row of logits. Afterwards the item is done, or its step is ready to run. */
static btc_status take_token(btc_session *s, live_item *l, const float *logits, btc_error *err) {
  btc_result *r = l->result;
  int32_t id;
  double logprob;
  btc_status st = btc_sampler_pick(s->sampler, logits, &l->sampling, &l->rng, &id, &logprob, err);
  if (st == BTC_ERR_INTERNAL) return err->code = BTC_ERR_MODEL; /* logits that are no numbers: the checkpoint's fault */
  if (st != BTC_OK) return st;
  if (s->probe.force) id = s->probe.force[r->n_ids];
  l->answer[r->n_ids++] = id;
  r->logprob += logprob;
  bool forced_end = s->probe.force && (size_t)r->n_ids >= s->probe.n_force;
  if (is_eos(&s->m->cfg->llm, id) && !s->probe.force) {
    r->stop = BTC_STOP_EOS;
    l->done = true;
  } else if (r->n_ids >= l->max_tokens || forced_end) {
    r->stop = BTC_STOP_LENGTH;
    l->done = true;
  }
  l->step.past += l->step.positions;
  l->step.positions = 1;
  l->step.token = id;
  return BTC_OK;
}

static void fail_item(live_item *l, btc_status st, const btc_error *err) {
  l->result->status = st;
  l->result->error = *err;
  l->done = true;
}

/* Runs decode steps until every item is done. Nothing here allocates: a test counts. */
static btc_status generate(btc_session *s, int n, btc_error *err) {
  const int64_t vocab = s->m->cfg->llm.vocab;
  for (int i = 0; i < n; i++) s->order[i] = i;
  for (int rows = n;;) {
    int live = 0;
    for (int k = 0; k < rows; k++) {
      live_item *l = &s->live[s->order[k]];
      btc_error e;
      btc_status st = take_token(s, l, s->logits + k * vocab, &e);
      if (st != BTC_OK) fail_item(l, st, &e);
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

/* ---- results ---- */

/* The stripped answer as a terminated string. A decoded text may hold NUL bytes; a terminated string cannot, so they become
 * U+FFFD like any byte that is no text. */
static char *answer_text(const char *raw, size_t len) {
  const char *s = btc_text_answer(raw, &len);
  size_t nuls = 0;
  for (size_t i = 0; i < len; i++) nuls += s[i] == 0;
  char *out = btc_alloc(len + 2 * nuls + 1, 1), *w = out;
  for (size_t i = 0; out && i < len; i++) {
    if (s[i]) {
      *w++ = s[i];
    } else {
      memcpy(w, "\xef\xbf\xbd", 3);
      w += 3;
    }
  }
  if (out) *w = 0;
  return out;
}

static void finish_item(btc_session *s, live_item *l) {
  btc_result *r = l->result;
  if (r->status != BTC_OK) return;
  btc_error e;
  size_t len;
  r->ids = l->answer;
  l->answer = NULL;
  char *raw = NULL;
  btc_status st = btc_tokenizer_decode(s->m->tok, r->ids, (size_t)r->n_ids, &raw, &len, &e);
  if (st == BTC_OK && !(r->text = answer_text(raw, len))) st = btc_fail(&e, BTC_ERR_NOMEM, "not enough memory for an answer");
  free(raw);
  if (st != BTC_OK) {
    fail_item(l, st, &e);
    return;
  }
  if (!r->cosine) return;
  double sum = 0;
  for (int64_t i = 0; i < s->m->tokens; i++) sum += (1.0 - (double)r->cosine[i]) / 2.0;
  r->score = sum / (double)s->m->tokens;
}

static double kinds_ms(const btc_stage_times *a, const btc_stage_times *b, btc_block_kind first, btc_block_kind last) {
  double ms = 0;
  for (int k = (int)first; k <= (int)last; k++) ms += b->prefill_ms[k] - a->prefill_ms[k];
  return ms;
}

/* Prefills and decodes the n prepared items. */
static btc_status run_live(btc_session *s, int n, btc_error *err) {
  int64_t most = 0;
  for (int i = 0; i < n; i++) {
    const live_item *l = &s->live[i];
    int64_t end = l->step.positions + l->max_tokens;
    most = end > most ? end : most;
    s->steps[i] = l->step;
  }
  btc_status st = btc_stage_reserve(s->stage, s->steps, n, most, err);
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

static void release(live_item *l) {
  free(l->ids); /* NOLINT(clang-analyzer-unix.Malloc): run_batch zeroes a slot before it is prepared again */
  free(l->answer);
  l->ids = l->answer = NULL;
}

static btc_status run_batch(btc_session *s, const btc_item *items, int n, btc_result *results, btc_error *err) {
  int live = 0;
  int64_t images = 0;
  for (int i = 0; i < n; i++) {
    live_item *l = &s->live[live];
    *l = (live_item){.item = &items[i], .result = &results[i]};
    btc_error e = {0};
    btc_status st = prepare(s, l, live, images, &e);
    if (st == BTC_OK) {
      images += items[i].n_images;
      live++;
      continue;
    }
    fail_item(l, st, &e);
    release(l);
  }
  btc_status st = live ? run_live(s, live, err) : BTC_OK;
  for (int i = 0; i < live; i++) {
    if (st == BTC_OK)
      finish_item(s, &s->live[i]);
    else
      fail_item(&s->live[i], st, err);
    release(&s->live[i]);
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
