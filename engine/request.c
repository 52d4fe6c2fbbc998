/* One item on its way: see request.h. */
#include "request.h"

#include <stdlib.h>
#include <string.h>

#include "prompt.h"
#include "text.h"

/* ---- before the model ---- */

/* Routing (spec 1.5): one image, a pair, or exactly the frames of a video. */
static btc_status check_route(const btc_model *m, const btc_item *it, btc_error *err) {
  int64_t frames = m->cfg->num_video_frames;
  if (it->n_images == 2 && m->change.layers < 0)
    return btc_fail(err, BTC_ERR_UNSUPPORTED,
                    "this checkpoint has no change module (layers.change.*): pairs of images are not supported");
  if (it->n_images == 1 || it->n_images == 2 || (it->n_images > 2 && it->n_images == frames)) return BTC_OK;
  return btc_fail(err, BTC_ERR_ARG, "a group of %d images is neither 1 (an image), 2 (a pair) nor num_video_frames (%lld, a video)",
                  it->n_images, (long long)frames);
}

static btc_status encode_prompt(const btc_model *m, btc_request *l, int most_tokens, btc_error *err) {
  const btc_item *it = l->item;
  char *text = NULL;
  size_t n = 0, holes = 0;
  btc_stage_item route = {.n_images = it->n_images};
  btc_status st =
      btc_prompt_question(it->question ? it->question : btc_prompt_caption, (size_t)btc_item_blocks(&route), &text, err);
  if (st == BTC_OK) st = btc_prompt_encode(m->tok, text, &l->ids, &n, err);
  free(text);
  if (st != BTC_OK) return st;
  for (size_t i = 0; i < n; i++) holes += l->ids[i] == BTC_IMAGE_ID;
  int64_t positions = (int64_t)(n - holes) + (int64_t)holes * m->block_tokens, context = m->cfg->llm.context;
  if (positions >= context)
    return btc_fail(err, BTC_ERR_LIMIT,
                    "the prompt takes %lld positions (%zu of text, %lld of images), but the model's context is %lld",
                    (long long)positions, n - holes, (long long)holes * (long long)m->block_tokens, (long long)context);
  l->max_tokens = it->max_tokens ? it->max_tokens : most_tokens;
  if (l->max_tokens < 1 || l->max_tokens > most_tokens)
    return btc_fail(err, BTC_ERR_ARG, "max tokens %d is not between 1 and the session's %d", it->max_tokens, most_tokens);
  if (l->max_tokens > context - positions) l->max_tokens = (int)(context - positions);
  l->step = (btc_stage_item){.n_images = it->n_images, .ids = l->ids, .n_ids = (int64_t)n, .positions = positions};
  return BTC_OK;
}

btc_status btc_request_read(const btc_model *m, btc_request *l, int most_tokens, btc_error *err) {
  l->result->phase = BTC_PHASE_REQUEST;
  if (l->item->n_images < 1 || (!l->item->images && !l->item->load)) return btc_fail(err, BTC_ERR_ARG, "an item without images");
  btc_status st = check_route(m, l->item, err);
  return st == BTC_OK ? encode_prompt(m, l, most_tokens, err) : st;
}

btc_image_mode btc_request_image_mode(const btc_model *m, const btc_item *it) {
  bool video = it->n_images > 2;
  bool pad = it->aspect == BTC_ASPECT_PAD || (it->aspect == BTC_ASPECT_AUTO && video && m->cfg->aspect_pad);
  return pad ? BTC_IMAGE_PAD : BTC_IMAGE_SQUASH;
}

const char *btc_request_image_name(const btc_item *it, int i) {
  return it->images ? it->images[i] : "image in memory";
}

/* What the item's own load gives, checked. */
static btc_status load_pixels(const btc_item *it, int i, btc_image *out, btc_error *err) {
  btc_pixels p = {0};
  btc_status st = it->load(it->load_ctx, i, &p, err);
  bool sane = p.rgb && p.width >= 1 && p.width <= BTC_IMAGE_MAX_SIDE && p.height >= 1 && p.height <= BTC_IMAGE_MAX_SIDE;
  if (st == BTC_OK && !sane)
    st = btc_fail(err, BTC_ERR_LIMIT, "an image of %lld x %lld pixels", (long long)p.width, (long long)p.height);
  *out = (btc_image){.width = p.width, .height = p.height, .rgb = p.rgb};
  if (st != BTC_OK) btc_image_free(out);
  return st;
}

btc_status btc_request_content(const btc_model *m, const btc_item *it, int i, btc_image_content *c, btc_error *err) {
  btc_image_mode mode = btc_request_image_mode(m, it);
  btc_image pixels;
  *c = (btc_image_content){0};
  if (!it->load) {
    btc_image_content_read(it->images[i], mode, c);
    return BTC_OK;
  }
  btc_status st = load_pixels(it, i, &pixels, err);
  if (st == BTC_OK) btc_image_content_take(&pixels, mode, c);
  return st;
}

btc_status btc_request_load(const btc_model *m, const btc_item *it, int i, bool as_is, btc_image *out, btc_error *err) {
  btc_image_mode mode = btc_request_image_mode(m, it);
  const int64_t side = m->cfg->vision.image;
  btc_image_content c;
  bool changed;
  btc_image_limits lim = btc_image_limits_default();
  lim.as_is = as_is;
  *out = (btc_image){0};
  if (!it->load) return btc_image_load(it->images[i], side, mode, &lim, out, NULL, NULL, err);
  btc_status st = btc_request_content(m, it, i, &c, err);
  if (st == BTC_OK) st = btc_image_content_decode(&c, btc_request_image_name(it, i), side, mode, as_is, out, &changed, err);
  btc_image_content_free(&c);
  return st;
}

btc_shades btc_request_shades(const btc_model *m) {
  const btc_preprocess_config *p = &m->cfg->pre;
  return (btc_shades){p->rescale, {p->mean[0], p->mean[1], p->mean[2]}, {p->std[0], p->std[1], p->std[2]}};
}

static btc_sampling sampling_of(const btc_item *it) {
  btc_sampling g = btc_sampling_default();
  g.temperature = it->temperature;
  g.top_p = it->top_p > 0 ? it->top_p : 1.0f;
  g.top_k = it->top_k == 0 ? 50 : it->top_k < 0 ? 0 : it->top_k;
  g.seed = it->seed;
  return g;
}

btc_status btc_request_open(const btc_model *m, btc_request *l, btc_error *err) {
  btc_result *r = l->result;
  r->phase = BTC_PHASE_MODEL;
  l->sampling = sampling_of(l->item);
  l->step.greedy = l->sampling.temperature == 0;
  btc_rng_seed(&l->rng, l->sampling.seed, 0);
  l->answer = btc_alloc((size_t)l->max_tokens, sizeof *l->answer);
  if (l->item->n_images == 2) {
    r->grid = m->cfg->vision.grid;
    r->cosine = btc_alloc((size_t)m->tokens, sizeof *r->cosine);
    l->step.cosine = r->cosine;
  }
  if (!l->answer || (l->item->n_images == 2 && !r->cosine)) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for an answer");
  return BTC_OK;
}

/* ---- generation ---- */

static bool is_eos(const btc_llm_config *c, int32_t id) {
  for (int i = 0; i < c->n_eos; i++)
    if (c->eos[i] == id) return true;
  return false;
}

static btc_status take_pick(const btc_pick *p, int32_t *id, double *logprob, btc_error *err) {
  *id = p->id;
  *logprob = p->logprob;
  return btc_pick_check(p, err);
}

btc_status btc_request_take(const btc_model *m, btc_sampler *s, btc_request *l, const float *logits, const btc_pick *pick,
                            const int32_t *force, size_t n_force, btc_error *err) {
  btc_result *r = l->result;
  int32_t id;
  double logprob;
  btc_status st = pick && l->step.greedy ? take_pick(pick, &id, &logprob, err)
                                         : btc_sampler_pick(s, logits, &l->sampling, &l->rng, &id, &logprob, err);
  if (st == BTC_ERR_INTERNAL) return err->code = BTC_ERR_MODEL; /* logits that are no numbers: the checkpoint's fault */
  if (st != BTC_OK) return st;
  if (force) id = force[r->n_ids];
  l->answer[r->n_ids++] = id;
  r->logprob += logprob;
  bool forced_end = force && (size_t)r->n_ids >= n_force;
  if (is_eos(&m->cfg->llm, id) && !force) {
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

void btc_request_fail(btc_request *l, btc_status st, const btc_error *err) {
  l->result->status = st;
  l->result->error = *err;
  l->done = true;
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

void btc_request_finish(const btc_model *m, btc_request *l) {
  btc_result *r = l->result;
  if (r->status != BTC_OK) return;
  btc_error e;
  size_t len;
  r->ids = l->answer;
  l->answer = NULL;
  char *raw = NULL;
  btc_status st = btc_tokenizer_decode(m->tok, r->ids, (size_t)r->n_ids, &raw, &len, &e);
  if (st == BTC_OK && !(r->text = answer_text(raw, len))) st = btc_fail(&e, BTC_ERR_NOMEM, "not enough memory for an answer");
  free(raw);
  if (st != BTC_OK) {
    btc_request_fail(l, st, &e);
    return;
  }
  if (!r->cosine) return;
  double sum = 0;
  for (int64_t i = 0; i < m->tokens; i++) sum += (1.0 - (double)r->cosine[i]) / 2.0;
  r->score = sum / (double)m->tokens;
}

void btc_request_release(btc_request *l) {
  free(l->ids); /* NOLINT(clang-analyzer-unix.Malloc): a request is zeroed before it is used again */
  free(l->answer);
  l->ids = l->answer = NULL;
}
