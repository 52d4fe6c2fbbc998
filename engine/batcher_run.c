/* The parts of a batcher's step. See batcher.h for their order and batcher_internal.h for who owns what. */
#include <stdlib.h>

#include "batcher_internal.h"

static double ms_since(int64_t start) {
  return (double)(btc_now_ns() - start) * 1e-6;
}

static void fail_job(btc_batcher *b, batch_job *j, btc_status st, const btc_error *err) {
  btc_request_fail(&j->q, st, err);
  batcher_answer(b, j);
}

/* ---- room ---- */

void batcher_drop_features(btc_batcher *b) {
  if (b->be) btc_backend_free(b->be, b->features);
  b->features = NULL;
  b->images = 0;
}

static btc_status grow(btc_batcher *b, int64_t images, btc_error *err) {
  void *p = NULL;
  batcher_drop_features(b);
  btc_status st = btc_backend_alloc(b->be, (size_t)(images * b->m->tokens * b->m->hidden) * sizeof *b->features, &p, err);
  b->features = p;
  if (st == BTC_OK) b->images = images;
  return st;
}

static btc_status reserve_all(btc_batcher *b, int64_t images, int64_t positions, btc_error *err) {
  btc_status st = images > b->images ? grow(b, images, err) : BTC_OK;
  btc_stage_item widest = {.n_images = (int)b->images, .positions = b->o.chunk};
  if (st == BTC_OK) st = btc_stage_reserve(b->stage, &widest, 1, positions, err);
  for (int i = 0; i < b->o.slots; i++) b->steps[i] = (btc_stage_item){.n_images = 0, .positions = 1};
  if (st == BTC_OK) st = btc_stage_reserve(b->stage, b->steps, b->o.slots, positions, err);
  return st;
}

/* Buffers for so many images of one item, and slots of so many positions. Growing slots forgets what they hold, so only while
 * nothing lives in them. After a failure the next call begins small again. */
btc_status batcher_reserve(btc_batcher *b, int64_t images, int64_t positions, btc_error *err) {
  bool more_positions = positions > b->positions;
  if (images < b->o.vision_batch) images = b->o.vision_batch;
  if (more_positions) b->prefix_ready = false;
  btc_status st = reserve_all(b, images, more_positions ? positions : b->positions, err);
  if (st != BTC_OK) {
    batcher_drop_features(b);
    if (more_positions) b->positions = 0;
  } else if (more_positions) {
    b->positions = positions;
  }
  return st;
}

/* Keys and values of the beginning that all prompts share. */
static btc_status make_prefix(btc_batcher *b, btc_error *err) {
  btc_stage_item it = {.ids = b->prefix, .n_ids = b->n_prefix, .slot = b->o.slots};
  btc_status st = BTC_OK;
  for (; st == BTC_OK && it.past < b->n_prefix; it.past += it.positions) {
    it.positions = b->n_prefix - it.past < b->o.chunk ? b->n_prefix - it.past : b->o.chunk;
    st = btc_stage_issue_part(b->stage, b->splice, b->head, &it, 1, NULL, NULL, err);
  }
  b->prefix_ready = st == BTC_OK;
  b->counts.prefilled += b->n_prefix;
  return st;
}

/* ---- images ---- */

static bool images_ready(const batch_job *j) {
  for (int i = 0; i < j->n_read; i++)
    if (j->image[i]->state != BTC_FEATURES_READY) return false;
  return true;
}

static batch_job *next_ready(btc_batcher *b) {
  for (batch_job *j = batcher_first(b, JOB_READ, 0); j; j = batcher_first(b, JOB_READ, j->order + 1))
    if (images_ready(j)) return j;
  return NULL;
}

/* Up to a batch of images that no one has encoded, of the earliest items. */
static int pick_images(btc_batcher *b) {
  int n = 0;
  for (batch_job *j = batcher_first(b, JOB_READ, 0); j && n < b->o.vision_batch; j = batcher_first(b, JOB_READ, j->order + 1))
    for (int i = 0; i < j->n_read && n < b->o.vision_batch; i++) {
      btc_features *f = j->image[i];
      if (f->state != BTC_FEATURES_PIXELS || f->taken) continue;
      f->taken = true;
      b->batch_job[n] = j;
      b->batch[n++] = f;
    }
  return n;
}

void batcher_call_back(btc_batcher *b, batch_job *j) {
  for (int i = 0; i < j->n_read; i++) {
    btc_parcel_pool_put(b->parcels, j->image[i]->parcel);
    j->image[i]->parcel = NULL;
  }
}

/* Its picture on its way to a device, if it is not yet. */
static btc_status send_image(btc_batcher *b, btc_features *f, btc_error *err) {
  if (f->parcel) return BTC_OK;
  btc_status st = btc_parcel_pool_take(b->parcels, &f->parcel, err);
  if (f->parcel) btc_op_send(b->be, f->parcel, f->picture.rgb, (size_t)(f->picture.width * f->picture.height * 3));
  return st;
}

/* Images of the next batch go up while the device computes this one: as many as the parcels of one batch take. Those for which
 * there is no memory go with their own batch. */
static void send_ahead(btc_batcher *b) {
  btc_error ignored;
  int n = 0;
  if (b->host) return;
  pthread_mutex_lock(&b->lock);
  for (batch_job *j = batcher_first(b, JOB_READ, 0); j && n < b->o.vision_batch; j = batcher_first(b, JOB_READ, j->order + 1))
    for (int i = 0; i < j->n_read && n < b->o.vision_batch; i++) {
      btc_features *f = j->image[i];
      if (f->state == BTC_FEATURES_PIXELS && !f->taken) b->ahead[n++] = f;
    }
  pthread_mutex_unlock(&b->lock); /* they stay where they are: an item that was read is the caller's thread's */
  for (int i = 0; i < n; i++)
    if (send_image(b, b->ahead[i], &ignored) != BTC_OK) return;
}

/* Room for their features, and their pixels side by side. */
static btc_status gather(btc_batcher *b, int n, btc_error *err) {
  btc_status st = BTC_OK;
  for (int i = 0; st == BTC_OK && i < n; i++) {
    btc_features *f = b->batch[i];
    void *block = f->data;
    if (!block) st = btc_block_pool_take(b->feature_pool, &block, err);
    f->data = block;
    if (st == BTC_OK) st = send_image(b, f, err);
    b->pictures[i] = (btc_picture){f->picture.rgb, f->parcel, f->picture.width, f->picture.height, f->pad};
  }
  if (st == BTC_OK) btc_op_resize_normalise(b->be, b->pixels, b->pictures, n, b->m->cfg->vision.image, &b->shades);
  return st;
}

btc_status batcher_encode(btc_batcher *b, bool *worked, btc_error *err) {
  const int64_t tokens = b->m->tokens * b->m->hidden;
  int64_t start = btc_now_ns();
  pthread_mutex_lock(&b->lock);
  int n = b->live < b->o.slots && !next_ready(b) ? pick_images(b) : 0;
  pthread_mutex_unlock(&b->lock);
  if (!n) return BTC_OK;
  *worked = true;
  btc_status st = batcher_reserve(b, 0, 0, err); /* an item too large for our memory may have cost the buffers */
  if (st == BTC_OK) st = gather(b, n, err);
  btc_stage_item all = {.n_images = n};
  if (st == BTC_OK) st = btc_stage_issue_part(b->stage, 0, b->change, &all, 1, b->pixels, b->features, err);
  for (int i = 0; st == BTC_OK && i < n; i++)
    btc_op_copy(b->be, b->batch[i]->data, b->features + i * tokens, (size_t)tokens * sizeof(float));
  if (st == BTC_OK) {
    send_ahead(b);
    st = btc_backend_finish(b->be, err);
  }
  pthread_mutex_lock(&b->lock);
  for (int i = 0; i < n; i++) {
    b->batch[i]->taken = false;
    if (st != BTC_OK) continue;
    b->batch[i]->state = BTC_FEATURES_READY;
    btc_image_free(&b->batch[i]->picture);
    btc_parcel_pool_put(b->parcels, b->batch[i]->parcel);
    b->batch[i]->parcel = NULL;
    b->batch_job[i]->result.timing.vision_ms += ms_since(start) / n;
  }
  if (st == BTC_OK) b->counts.encoded += n;
  pthread_mutex_unlock(&b->lock);
  return st;
}

/* ---- admission ---- */

static int64_t common_prefix(const btc_batcher *b, const btc_request *q) {
  int64_t n = 0;
  while (n < b->n_prefix && n + 1 < q->step.positions && q->ids[n] == b->prefix[n]) n++;
  return n;
}

void batcher_drop_visual(btc_batcher *b, batch_job *j) {
  if (j->visual_alone)
    btc_backend_free(b->be, j->visual);
  else if (b->visual_pool)
    btc_block_pool_put(b->visual_pool, j->visual);
  j->visual = NULL;
  j->visual_alone = false;
}

/* One block, as an image or a pair has, comes from the pool; a video's are taken for it alone. */
static btc_status take_visual(btc_batcher *b, batch_job *j, int64_t floats, btc_error *err) {
  void *p = NULL;
  batcher_drop_visual(b, j);
  j->visual_alone = btc_item_blocks(&j->q.step) > 1;
  btc_status st = j->visual_alone ? btc_backend_alloc(b->be, (size_t)floats * sizeof *j->visual, &p, err)
                                  : btc_block_pool_take(b->visual_pool, &p, err);
  j->visual = p;
  return st;
}

/* Change extraction and projection of the features of n items, which are then no longer needed. A device's change map waits behind
 * the visual block until somebody waits for the device anyway. */
static btc_status make_visuals(btc_batcher *b, int n, btc_error *err) {
  const int64_t image = b->m->tokens * b->m->hidden;
  const int64_t start = btc_now_ns();
  int64_t images = 0;
  btc_status st = BTC_OK;
  for (int k = 0; k < n && st == BTC_OK; k++) {
    batch_job *j = b->step_job[k];
    btc_stage_item *it = &b->steps[k];
    *it = (btc_stage_item){.n_images = j->n_read, .positions = 1, .cosine = j->q.step.cosine};
    const int64_t floats = btc_flow_floats(b->m, b->splice, it, 1, false);
    st = take_visual(b, j, floats, err);
    if (st != BTC_OK) return st;
    it->visual = j->visual;
    if (it->cosine && !b->host) it->cosine = j->visual + floats;
    for (int i = 0; i < j->n_read; i++)
      btc_op_copy(b->be, b->features + images++ * image, j->image[i]->data, (size_t)image * sizeof(float));
  }
  if (st == BTC_OK) st = btc_stage_issue_part(b->stage, b->change, b->splice, b->steps, n, b->features, NULL, err);
  for (int k = 0; k < n; k++) b->step_job[k]->result.timing.vision_ms += ms_since(start) / n;
  return st;
}

static btc_status enter(btc_batcher *b, batch_job *j, btc_error *err) {
  int slot = 0;
  while (b->slot_used[slot]) slot++;
  j->q.step.slot = slot;
  int64_t shared = common_prefix(b, &j->q);
  btc_status st = btc_stage_copy_slot(b->stage, b->o.slots, slot, shared, err);
  if (st != BTC_OK) return st;
  j->q.step.past = shared;
  b->counts.reused += shared;
  b->slot_used[slot] = true;
  b->live++;
  pthread_mutex_lock(&b->lock);
  batcher_drop_images(b, j);
  j->state = JOB_PREFILL;
  pthread_cond_signal(&b->to_read);
  pthread_mutex_unlock(&b->lock);
  return BTC_OK;
}

static int64_t rows_to_prefill(btc_batcher *b) {
  int64_t rows = 0;
  pthread_mutex_lock(&b->lock);
  for (int i = 0; i < b->n_jobs; i++)
    if (b->jobs[i].state == JOB_PREFILL) rows += b->jobs[i].end - b->jobs[i].q.step.past;
  pthread_mutex_unlock(&b->lock);
  return rows;
}

/* Larger prompts than ever before wait until all slots are free, and so do those behind them. */
static bool must_wait(const btc_batcher *b, const batch_job *j) {
  return b->live && j->end + j->q.max_tokens > b->positions;
}

/* Those behind j whose pairs are computed together with its own: as many as slots, a prefill and the buffer of features take, in
 * order of arrival. A host computes one at a time anyway. Returns their number, j among them. */
static int pick_neighbours(btc_batcher *b, batch_job *j, int64_t rows) {
  int64_t images = 0;
  int n = 0;
  pthread_mutex_lock(&b->lock);
  for (; j; j = batcher_first(b, JOB_READ, j->order + 1)) {
    if (!images_ready(j)) continue;
    images += j->n_read;
    if (n && (b->host || b->live + n >= b->o.slots || rows >= b->o.chunk || images > b->images ||
              j->end + j->q.max_tokens > b->positions))
      break;
    rows += j->end - common_prefix(b, &j->q);
    b->step_job[n++] = j;
  }
  pthread_mutex_unlock(&b->lock);
  return n;
}

/* *n: how many of the items from j on it was about, whether it failed or not. */
static btc_status admit(btc_batcher *b, batch_job *j, int64_t rows, int *n, btc_error *err) {
  btc_status st = batcher_reserve(b, j->n_read, j->end + j->q.max_tokens, err);
  b->step_job[0] = j;
  *n = 1;
  if (st != BTC_OK) {
    btc_error ignored; /* what the others need, so that only this item fails */
    (void)batcher_reserve(b, 0, 0, &ignored);
    return st;
  }
  *n = pick_neighbours(b, j, rows);
  st = make_visuals(b, *n, err);
  if (st == BTC_OK && !b->prefix_ready) st = make_prefix(b, err);
  for (int k = 0; st == BTC_OK && k < *n; k++) st = enter(b, b->step_job[k], err);
  return st;
}

/* Slots become free one by one. A device waits for a few, since one prompt alone does not keep it busy. */
static bool gathers_slots(const btc_batcher *b) {
  return !b->host && b->live && b->o.slots - b->live < b->o.slots / 8;
}

btc_status batcher_admit(btc_batcher *b, bool *worked, btc_error *err) {
  btc_error e;
  if (gathers_slots(b)) return BTC_OK;
  for (int64_t rows; b->live < b->o.slots && (rows = rows_to_prefill(b)) < b->o.chunk;) {
    int n;
    pthread_mutex_lock(&b->lock);
    batch_job *j = next_ready(b);
    pthread_mutex_unlock(&b->lock);
    if (!j || must_wait(b, j)) return BTC_OK;
    *worked = true;
    btc_status st = admit(b, j, rows, &n, &e);
    bool everybody = st == BTC_ERR_CANCELLED || st == BTC_ERR_DEVICE || (st == BTC_ERR_NOMEM && batcher_can_shrink(b));
    if (everybody) return btc_fail(err, st, "%s", e.message);
    for (int k = 0; st != BTC_OK && k < n; k++)
      if (b->step_job[k]->state == JOB_READ) fail_job(b, b->step_job[k], st, &e);
  }
  return BTC_OK;
}

/* ---- the language model ---- */

/* Row k of the last run's logits is the job's. */
static void take(btc_batcher *b, batch_job *j, int k) {
  btc_error e;
  const btc_pick *picks = btc_stage_picks(b->stage);
  const float *logits = b->logits + k * b->m->cfg->llm.vocab;
  btc_status st = btc_request_take(b->m, b->sampler, &j->q, logits, picks ? &picks[k] : NULL, b->o.force, b->o.n_force, &e);
  if (st != BTC_OK) btc_request_fail(&j->q, st, &e);
  if (j->q.done) batcher_answer(b, j);
}

static batch_job *next_prefill(btc_batcher *b, uint64_t from) {
  pthread_mutex_lock(&b->lock);
  batch_job *j = batcher_first(b, JOB_PREFILL, from);
  pthread_mutex_unlock(&b->lock);
  return j;
}

/* Whole prompts up to a step's budget, in order of arrival. A prompt is split only when it alone is larger: every piece reads all
 * weights once more. Returns their number; *whole: their last rows are among them. */
static int pick_prefills(btc_batcher *b, bool *whole) {
  int64_t left = b->o.chunk;
  int n = 0;
  *whole = true;
  for (batch_job *j = next_prefill(b, 0); j && *whole; j = next_prefill(b, j->order + 1)) {
    int64_t rest = j->end - j->q.step.past;
    if (rest > left && n) break;
    *whole = rest <= left;
    j->q.step.positions = *whole ? rest : left;
    b->step_job[n] = j;
    b->steps[n] = j->q.step;
    b->steps[n++].visual = j->visual;
    left -= j->q.step.positions;
  }
  return n;
}

/* What a device has kept for the results so far. */
static btc_status fetch_maps(btc_batcher *b, int n, btc_error *err) {
  const int64_t floats = b->m->block_tokens * b->m->width;
  if (b->host) return BTC_OK;
  for (int k = 0; k < n; k++) {
    float *map = b->step_job[k]->result.cosine;
    if (map) btc_op_copy(b->be, map, b->step_job[k]->visual + floats, (size_t)b->m->tokens * sizeof *map);
  }
  return btc_backend_finish(b->be, err);
}

static void begin_answer(btc_batcher *b, batch_job *j, int k) {
  batcher_drop_visual(b, j);
  pthread_mutex_lock(&b->lock);
  j->state = JOB_DECODE;
  pthread_mutex_unlock(&b->lock);
  take(b, j, k);
}

/* Prompts in one pass over the weights; with a prompt's last row comes its first token. */
btc_status batcher_prefill(btc_batcher *b, bool *worked, btc_error *err) {
  bool whole;
  int64_t start = btc_now_ns(), rows = 0;
  const int n = pick_prefills(b, &whole);
  if (!n) return BTC_OK;
  *worked = true;
  btc_status st = whole ? btc_stage_prefill_part(b->stage, b->splice, b->end, b->steps, n, NULL, b->logits, err)
                        : btc_stage_issue_part(b->stage, b->splice, b->head, b->steps, n, NULL, NULL, err);
  if (st == BTC_OK && whole) st = fetch_maps(b, n, err);
  if (st != BTC_OK) return st;
  for (int k = 0; k < n; k++) rows += b->steps[k].positions;
  b->counts.prefills++;
  b->counts.prefilled += rows;
  double share = ms_since(start) / (double)rows;
  for (int k = 0; k < n; k++) {
    b->step_job[k]->result.timing.prefill_ms += share * (double)b->steps[k].positions;
    if (whole)
      begin_answer(b, b->step_job[k], k);
    else
      b->step_job[k]->q.step.past += b->steps[k].positions;
  }
  return BTC_OK;
}

btc_status batcher_decode(btc_batcher *b, bool *worked, btc_error *err) {
  int n = 0;
  pthread_mutex_lock(&b->lock);
  for (int i = 0; i < b->n_jobs; i++) {
    if (b->jobs[i].state != JOB_DECODE) continue;
    b->step_job[n] = &b->jobs[i];
    b->steps[n++] = b->jobs[i].q.step;
  }
  pthread_mutex_unlock(&b->lock);
  if (!n) return BTC_OK;
  *worked = true;
  int64_t start = btc_now_ns();
  btc_status st = btc_stage_decode(b->stage, b->steps, n, NULL, b->logits, err);
  if (st != BTC_OK) return st;
  double share = ms_since(start) / n;
  b->counts.steps++;
  b->counts.decoded += n;
  for (int k = 0; k < n; k++) {
    b->step_job[k]->result.timing.generate_ms += share;
    take(b, b->step_job[k], k);
  }
  return BTC_OK;
}
