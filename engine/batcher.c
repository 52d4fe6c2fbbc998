/* A batcher's life, its table of items, and the order of a step's parts. See batcher.h. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "batcher_internal.h"
#include "prompt.h"

enum { AHEAD = 8, VISION_BATCH = 4, CHUNK = 512, DEVICE_AHEAD = 64, WAIT_MS = 20 };
#define CACHE_BYTES ((int64_t)256 << 20)

/* ---- life ---- */

static btc_status check_options(const btc_batcher_options *o, btc_error *err) {
  if (o->slots < 1 || o->slots > 256) return btc_fail(err, BTC_ERR_ARG, "batch size %d is not between 1 and 256", o->slots);
  if (o->max_tokens < 1 || o->max_tokens > 65536)
    return btc_fail(err, BTC_ERR_ARG, "max tokens %d is not between 1 and 65536", o->max_tokens);
  if (o->threads < 0 || o->threads > 256) return btc_fail(err, BTC_ERR_ARG, "%d threads are not between 0 and 256", o->threads);
  if (o->ahead < 0 || o->ahead > 4096 || o->vision_batch < 0 || o->vision_batch > 256 || o->chunk < 0 || o->chunk > 65536 ||
      o->readers < 0 || o->readers > BATCHER_READERS)
    return btc_fail(err, BTC_ERR_ARG, "impossible sizes of a batcher");
  return BTC_OK;
}

static void choose_precision(btc_batcher *b) {
  b->precision = b->o.precision;
  if (b->precision == BTC_PRECISION_AUTO)
    b->precision = btc_device_has_bf16(b->o.device ? b->o.device : "cpu") ? BTC_PRECISION_BF16 : BTC_PRECISION_F32;
}

static btc_status make_stage(btc_batcher *b, btc_error *err) {
  b->change = (int)b->m->cfg->vision.blocks + 1;
  b->splice = b->change + 1;
  b->end = btc_block_count(b->m);
  b->head = b->end - 1;
  btc_stage_options so = {.backend = b->o.device ? b->o.device : "cpu",
                          .threads = b->o.threads,
                          .compute = b->precision == BTC_PRECISION_BF16 ? BTC_COMPUTE_BF16 : BTC_COMPUTE_F32,
                          .slots = b->o.slots + 1, /* and one for the common beginning */
                          .cancel = b->o.cancel,
                          .progress = b->o.progress,
                          .pick_vocab = btc_tokenizer_vocab(b->m->tok)};
  btc_status st = btc_stage_create(b->m, 0, b->end, &so, &b->stage, err);
  if (st != BTC_OK) return st;
  b->be = btc_stage_backend(b->stage);
  b->host = btc_backend_on_host(b->be);
  return btc_sampler_create(btc_tokenizer_vocab(b->m->tok), &b->sampler, err);
}

static int64_t clamp(int64_t n, int64_t low, int64_t high) {
  return n < low ? low : n > high ? high : n;
}

/* What keeps a device busy, in an eighth each of the memory that weights have left. An image's two parcels are as large as its
 * pixels. */
static void size_for_device(btc_batcher *b) {
  const btc_model *m = b->m;
  btc_batcher_options *o = &b->o;
  btc_device_info d;
  const int64_t tokens = m->tokens * m->hidden, pixels = 3 * m->cfg->vision.image * m->cfg->vision.image;
  const int64_t image = 4 * (3 * pixels + tokens + 2 * (pixels > tokens ? pixels : tokens)), row = 8 * m->width;
  const int64_t room = btc_backend_device(b->be, &d) ? (int64_t)(d.free_bytes / 8) : 0;
  if (!o->ahead) o->ahead = o->slots < DEVICE_AHEAD ? o->slots : DEVICE_AHEAD;
  if (!o->vision_batch) o->vision_batch = (int)clamp(room / image, VISION_BATCH, BTC_DEVICE_IMAGES);
  if (!o->chunk)
    o->chunk = (int)clamp(room / row, CHUNK, btc_backend_rows(b->be) / 3 > CHUNK ? btc_backend_rows(b->be) / 3 : CHUNK);
  if (!o->readers) o->readers = (int)clamp(sysconf(_SC_NPROCESSORS_ONLN), 1, BATCHER_READERS);
}

static void fill_options(btc_batcher *b) {
  btc_batcher_options *o = &b->o;
  if (!b->host) size_for_device(b);
  if (!o->ahead) o->ahead = o->slots < AHEAD ? o->slots : AHEAD;
  if (!o->vision_batch) o->vision_batch = VISION_BATCH;
  if (!o->chunk) o->chunk = CHUNK;
  if (!o->readers) o->readers = 1;
  if (!o->cache_bytes) o->cache_bytes = CACHE_BYTES;
  if (o->cache_bytes < 0) o->cache_bytes = 0;
  b->n_jobs = o->slots + o->ahead;
}

static btc_status make_pools(btc_batcher *b, btc_error *err) {
  const btc_model *m = b->m;
  const int64_t visual = m->block_tokens * m->width + m->tokens; /* a change map behind it */
  btc_status st = btc_block_pool_create(b->be, (size_t)(m->tokens * m->hidden) * sizeof(float), &b->feature_pool, err);
  if (st == BTC_OK) st = btc_block_pool_create(b->be, (size_t)visual * sizeof(float), &b->visual_pool, err);
  if (st == BTC_OK)
    st = btc_parcel_pool_create(b->be, btc_picture_bytes(m->cfg->vision.image), 2 * b->o.vision_batch, &b->parcels, err);
  if (st == BTC_OK)
    st = btc_feature_cache_create(b->o.cache_bytes, m->tokens * m->hidden, b->feature_pool, b->parcels, &b->cache, err);
  return st;
}

static btc_status make_tables(btc_batcher *b, btc_error *err) {
  const btc_model *m = b->m;
  size_t slots = (size_t)b->o.slots, images = (size_t)b->o.vision_batch, side = (size_t)m->cfg->vision.image;
  void *p = NULL;
  btc_status st;
  b->jobs = btc_alloc_zero((size_t)b->n_jobs, sizeof *b->jobs);
  b->slot_used = btc_alloc_zero(slots, sizeof *b->slot_used);
  b->steps = btc_alloc_zero(slots, sizeof *b->steps);
  b->step_job = btc_alloc_zero(slots, sizeof(batch_job *));
  b->batch = btc_alloc_zero(images, sizeof(btc_features *));
  b->pictures = btc_alloc_zero(images, sizeof *b->pictures);
  b->batch_job = btc_alloc_zero(images, sizeof(batch_job *));
  b->ahead = btc_alloc_zero(images, sizeof(btc_features *));
  b->logits = btc_alloc(slots * (size_t)m->cfg->llm.vocab, sizeof *b->logits);
  if (b->jobs && b->slot_used && b->steps && b->step_job && b->batch && b->pictures && b->batch_job && b->ahead && b->logits)
    st = btc_backend_alloc(b->be, images * 3 * side * side * sizeof *b->pixels, &p, err);
  else
    st = btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a batcher of %d slots", b->o.slots);
  b->pixels = p;
  return st == BTC_OK ? make_pools(b, err) : st;
}

/* The ids before the first image are the same in every prompt; a caption tells how long prompts usually are. */
static btc_status make_prefix_ids(btc_batcher *b, btc_error *err) {
  char *text = NULL;
  size_t n = 0;
  btc_status st = btc_prompt_question(btc_prompt_caption, 1, &text, err);
  if (st == BTC_OK) st = btc_prompt_encode(b->m->tok, text, &b->prefix, &n, err);
  free(text);
  if (st != BTC_OK) return st;
  while (b->n_prefix < (int64_t)n && b->prefix[b->n_prefix] != BTC_IMAGE_ID) b->n_prefix++;
  int64_t usual = (int64_t)n - 1 + b->m->block_tokens + b->o.max_tokens, context = b->m->cfg->llm.context;
  if (b->n_prefix >= context) b->n_prefix = 0;
  return batcher_reserve(b, b->m->change.layers >= 0 ? 2 : 1, usual < context ? usual : context, err);
}

static btc_status start_readers(btc_batcher *b, btc_error *err) {
  for (; b->n_readers < b->o.readers; b->n_readers++)
    if (pthread_create(&b->reader[b->n_readers], NULL, batcher_read_thread, b) != 0)
      return btc_fail(err, BTC_ERR_NOMEM, "cannot start a thread");
  return BTC_OK;
}

btc_status btc_batcher_create(btc_model *m, const btc_batcher_options *o, btc_batcher **out, btc_error *err) {
  *out = NULL;
  btc_status st = check_options(o, err);
  if (st != BTC_OK) return st;
  btc_batcher *b = btc_alloc_zero(1, sizeof *b);
  if (!b) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a batcher");
  b->m = m;
  b->o = *o;
  b->shades = btc_request_shades(m);
  pthread_mutex_init(&b->lock, NULL);
  pthread_cond_init(&b->to_read, NULL);
  pthread_cond_init(&b->has_read, NULL);
  pthread_cond_init(&b->has_decoded, NULL);
  choose_precision(b);
  st = make_stage(b, err);
  if (st == BTC_OK) fill_options(b);
  if (st == BTC_OK) st = make_tables(b, err);
  if (st == BTC_OK) st = make_prefix_ids(b, err);
  if (st == BTC_OK) st = start_readers(b, err);
  if (st != BTC_OK) btc_batcher_destroy(&b);
  *out = b;
  return st;
}

static void answer_all(btc_batcher *b, btc_status st, const btc_error *err);

void btc_batcher_destroy(btc_batcher **bp) {
  btc_batcher *b = *bp;
  if (!b) return;
  if (b->n_readers) {
    pthread_mutex_lock(&b->lock);
    b->stop = true;
    pthread_cond_broadcast(&b->to_read);
    pthread_mutex_unlock(&b->lock);
    for (int i = 0; i < b->n_readers; i++) pthread_join(b->reader[i], NULL);
    btc_error err;
    answer_all(b, btc_fail(&err, BTC_ERR_CANCELLED, "stopped on request"), &err);
  }
  btc_feature_cache_destroy(&b->cache);
  btc_parcel_pool_destroy(&b->parcels);
  btc_block_pool_destroy(&b->feature_pool);
  btc_block_pool_destroy(&b->visual_pool);
  if (b->be) btc_backend_free(b->be, b->pixels);
  batcher_drop_features(b);
  btc_stage_destroy(&b->stage);
  btc_sampler_destroy(&b->sampler);
  pthread_mutex_destroy(&b->lock);
  pthread_cond_destroy(&b->to_read);
  pthread_cond_destroy(&b->has_read);
  pthread_cond_destroy(&b->has_decoded);
  void *const blocks[] = {b->jobs,     b->slot_used, b->steps, b->step_job, b->batch,
                          b->pictures, b->batch_job, b->ahead, b->logits,   b->prefix};
  for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) free(blocks[i]);
  free(b);
  *bp = NULL;
}

const char *btc_batcher_describe(const btc_batcher *b) {
  return btc_stage_describe(b->stage);
}

bool btc_batcher_device(const btc_batcher *b, btc_device_info *out) {
  return btc_stage_device(b->stage, out);
}

btc_precision btc_batcher_precision(const btc_batcher *b) {
  return b->precision;
}

btc_batcher_counts btc_batcher_get_counts(btc_batcher *b) {
  pthread_mutex_lock(&b->lock);
  btc_batcher_counts c = b->counts;
  c.cache_bytes = btc_feature_cache_bytes(b->cache);
  pthread_mutex_unlock(&b->lock);
  return c;
}

/* ---- items ---- */

batch_job *batcher_first(btc_batcher *b, job_state s, uint64_t from) {
  batch_job *first = NULL;
  for (int i = 0; i < b->n_jobs; i++) {
    batch_job *j = &b->jobs[i];
    if (j->state == s && j->order >= from && (!first || j->order < first->order)) first = j;
  }
  return first;
}

int btc_batcher_open(const btc_batcher *b) {
  return b->open;
}

int btc_batcher_room(const btc_batcher *b) {
  return b->n_jobs - b->open;
}

btc_status btc_batcher_submit(btc_batcher *b, const btc_item *item, void *tag, btc_error *err) {
  if (b->open == b->n_jobs) return btc_fail(err, BTC_ERR_LIMIT, "%d items are open, which is all that fit", b->open);
  pthread_mutex_lock(&b->lock);
  batch_job *j = batcher_first(b, JOB_FREE, 0);
  *j = (batch_job){.state = JOB_WAITING, .order = ++b->arrivals, .tag = tag};
  j->q = (btc_request){.item = item, .result = &j->result};
  b->open++;
  pthread_cond_signal(&b->to_read);
  pthread_mutex_unlock(&b->lock);
  return BTC_OK;
}

bool btc_batcher_cancel(btc_batcher *b, const void *tag) {
  bool found = false;
  pthread_mutex_lock(&b->lock);
  for (int i = 0; i < b->n_jobs && !found; i++)
    if (b->jobs[i].state != JOB_FREE && b->jobs[i].tag == tag) found = b->jobs[i].cancelled = true;
  pthread_mutex_unlock(&b->lock);
  return found;
}

void batcher_answer(btc_batcher *b, batch_job *j) {
  btc_request_finish(b->m, &j->q);
  btc_request_release(&j->q);
  batcher_drop_visual(b, j);
  pthread_mutex_lock(&b->lock);
  if (j->state == JOB_PREFILL || j->state == JOB_DECODE) {
    b->slot_used[j->q.step.slot] = false;
    b->live--;
  }
  batcher_drop_images(b, j);
  free(j->image);
  btc_result r = j->result;
  void *tag = j->tag;
  *j = (batch_job){.state = JOB_FREE};
  b->open--;
  pthread_cond_signal(&b->to_read);
  pthread_mutex_unlock(&b->lock);
  b->o.done(b->o.ctx, tag, &r);
}

/* ---- a step ---- */

/* The next item that is over before it was computed: failed or cancelled, and not in a reading thread's hands. */
static batch_job *next_over(btc_batcher *b, bool *cancelled) {
  batch_job *found = NULL;
  pthread_mutex_lock(&b->lock);
  for (int i = 0; i < b->n_jobs; i++) {
    batch_job *j = &b->jobs[i];
    bool over = j->state == JOB_FAILED || (j->cancelled && j->state != JOB_READING && j->state != JOB_FREE);
    if (over && (!found || j->order < found->order)) found = j;
  }
  *cancelled = found && found->state != JOB_FAILED;
  if (found && found->state == JOB_WAITING) found->state = JOB_FAILED; /* or the reader would begin it meanwhile */
  pthread_mutex_unlock(&b->lock);
  return found;
}

static bool answer_over(btc_batcher *b) {
  bool any = false, cancelled;
  for (batch_job *j; (j = next_over(b, &cancelled)); any = true) {
    btc_error err;
    if (cancelled) btc_request_fail(&j->q, btc_fail(&err, BTC_ERR_CANCELLED, "stopped on request"), &err);
    batcher_answer(b, j);
  }
  return any;
}

static void wait_ms(btc_batcher *b, int ms) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  t.tv_nsec += ms * 1000000L;
  t.tv_sec += t.tv_nsec / 1000000000;
  t.tv_nsec %= 1000000000;
  pthread_cond_timedwait(&b->has_read, &b->lock, &t);
}

static batch_job *earliest_open(const btc_batcher *b) {
  batch_job *first = NULL;
  for (int i = 0; i < b->n_jobs; i++)
    if (b->jobs[i].state != JOB_FREE && (!first || b->jobs[i].order < first->order)) first = &b->jobs[i];
  return first;
}

/* Nothing stays behind: items of later submits start afresh. What `done` submits meanwhile is answered too. */
static void answer_all(btc_batcher *b, btc_status st, const btc_error *err) {
  for (;;) {
    pthread_mutex_lock(&b->lock);
    while (batcher_first(b, JOB_READING, 0)) wait_ms(b, WAIT_MS);
    batch_job *first = earliest_open(b);
    bool failed = first && first->state == JOB_FAILED;
    if (first && first->state == JOB_WAITING) first->state = JOB_READ; /* out of the reading threads' sight */
    pthread_mutex_unlock(&b->lock);
    if (!first) return;
    if (!failed) btc_request_fail(&first->q, st, err);
    batcher_answer(b, first);
  }
}

static btc_status compute(btc_batcher *b, bool *worked, btc_error *err) {
  if (b->o.cancel && *b->o.cancel) return btc_fail(err, BTC_ERR_CANCELLED, "stopped on request");
  btc_status st = batcher_admit(b, worked, err);
  if (st == BTC_OK) st = batcher_encode(b, worked, err);
  if (st == BTC_OK) st = batcher_admit(b, worked, err);
  if (st == BTC_OK) st = batcher_prefill(b, worked, err);
  if (st == BTC_OK) st = batcher_decode(b, worked, err);
  return st;
}

btc_status btc_batcher_step(btc_batcher *b, btc_error *err) {
  btc_error own;
  if (!err) err = &own;
  bool worked = answer_over(b);
  const char *remark = btc_backend_remark(b->be);
  if (remark && b->o.note) b->o.note(b->o.ctx, remark);
  btc_status st = compute(b, &worked, err);
  if (st == BTC_ERR_NOMEM && batcher_shrink(b, err)) return BTC_OK;
  if (st != BTC_OK) {
    answer_all(b, st, err);
    return st;
  }
  pthread_mutex_lock(&b->lock);
  bool reading = batcher_first(b, JOB_WAITING, 0) || batcher_first(b, JOB_READING, 0);
  if (!worked && reading && !batcher_first(b, JOB_READ, 0) && !batcher_first(b, JOB_FAILED, 0)) wait_ms(b, WAIT_MS);
  pthread_mutex_unlock(&b->lock);
  return BTC_OK;
}
