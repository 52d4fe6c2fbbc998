/* The batcher's reading threads: prompts to ids, files to pictures or, when their content is known, to features that exist already.
 */
#include <stdlib.h>
#include <string.h>

#include "batcher_internal.h"
#include "image_content.h"

/* fresh: it is the caller's to decode. What another thread is decoding is waited for; if that fails it is the caller's as well. */
static btc_features *get_features(btc_batcher *b, const uint8_t *key, bool *fresh) {
  pthread_mutex_lock(&b->lock);
  btc_features *f = btc_feature_cache_get(b->cache, key);
  while (f && f->reading) pthread_cond_wait(&b->has_decoded, &b->lock);
  *fresh = f && f->state == BTC_FEATURES_EMPTY;
  if (*fresh) f->reading = true;
  pthread_mutex_unlock(&b->lock);
  return f;
}

/* decoding: the caller's decoding of it is over, well or not. */
static void settle(btc_batcher *b, btc_features *f, bool decoding, bool put) {
  if (!f) return;
  pthread_mutex_lock(&b->lock);
  if (decoding) {
    f->reading = false;
    pthread_cond_broadcast(&b->has_decoded);
  }
  if (put) btc_feature_cache_put(b->cache, f);
  pthread_mutex_unlock(&b->lock);
}

/* Decodes into a fresh entry, or into one of its own when the file has changed since its key was made. */
static btc_status decode(btc_batcher *b, const char *path, btc_image_mode mode, btc_image_content *c, btc_features **f,
                         btc_error *err) {
  btc_image im = {0};
  bool fresh, changed;
  btc_status st = btc_image_content_decode(c, path, b->m->cfg->vision.image, mode, !b->host, &im, &changed, err);
  if (changed) {
    settle(b, *f, true, true);
    if (!(*f = get_features(b, NULL, &fresh)))
      st = btc_fail(err, BTC_ERR_NOMEM, "not enough memory for the features of '%s'", path);
  }
  if (st != BTC_OK || !*f) {
    btc_image_free(&im);
    return st;
  }
  pthread_mutex_lock(&b->lock);
  (*f)->picture = im;
  (*f)->pad = mode == BTC_IMAGE_PAD;
  (*f)->state = BTC_FEATURES_PIXELS;
  pthread_mutex_unlock(&b->lock);
  return BTC_OK;
}

static btc_status read_image(btc_batcher *b, batch_job *j, int i, btc_error *err) {
  const btc_item *it = j->q.item;
  const char *path = btc_request_image_name(it, i);
  btc_image_mode mode = btc_request_image_mode(b->m, it);
  btc_image_content c;
  bool fresh;
  btc_status read = btc_request_content(b->m, it, i, &c, err);
  if (read != BTC_OK) return read;
  btc_features *f = get_features(b, c.data ? c.key : NULL, &fresh);
  btc_status st = f ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "not enough memory for the features of '%s'", path);
  if (st == BTC_OK && fresh) st = decode(b, path, mode, &c, &f, err);
  btc_image_content_free(&c);
  settle(b, f, fresh, st != BTC_OK);
  if (st == BTC_OK) j->image[j->n_read++] = f;
  return st;
}

void batcher_drop_images(btc_batcher *b, batch_job *j) {
  for (int i = 0; i < j->n_read; i++) btc_feature_cache_put(b->cache, j->image[i]);
  j->n_read = 0;
}

static btc_status read_job(btc_batcher *b, batch_job *j, btc_error *err) {
  int64_t start = btc_now_ns();
  btc_status st = btc_request_read(b->m, &j->q, b->o.max_tokens, err);
  if (st != BTC_OK) return st;
  const btc_item *it = j->q.item;
  j->result.phase = BTC_PHASE_IMAGE;
  j->image = btc_alloc_zero((size_t)it->n_images, sizeof(btc_features *));
  if (!j->image) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for an item's images");
  for (int i = 0; st == BTC_OK && i < it->n_images; i++) {
    if (b->o.progress) __atomic_add_fetch(b->o.progress, 1, __ATOMIC_RELAXED);
    st = read_image(b, j, i, err);
  }
  if (st == BTC_OK) st = btc_request_open(b->m, &j->q, err);
  j->end = j->q.step.positions;
  j->result.timing.decode_ms = (double)(btc_now_ns() - start) * 1e-6;
  return st;
}

/* No more than `ahead` items lie read and waiting: that bounds pixels and pinned features. */
static batch_job *next_to_read(btc_batcher *b) {
  int waiting = 0;
  for (int i = 0; i < b->n_jobs; i++) waiting += b->jobs[i].state == JOB_READ || b->jobs[i].state == JOB_READING;
  return waiting < b->o.ahead ? batcher_first(b, JOB_WAITING, 0) : NULL;
}

void *batcher_read_thread(void *ctx) {
  btc_batcher *b = ctx;
  batch_job *j;
  pthread_mutex_lock(&b->lock);
  while (!b->stop) {
    if (!(j = next_to_read(b))) {
      pthread_cond_wait(&b->to_read, &b->lock);
      continue;
    }
    j->state = JOB_READING;
    pthread_mutex_unlock(&b->lock);
    btc_error err = {0};
    btc_status st = read_job(b, j, &err);
    if (st != BTC_OK) btc_request_fail(&j->q, st, &err);
    pthread_mutex_lock(&b->lock);
    if (st != BTC_OK) batcher_drop_images(b, j);
    if (st == BTC_OK) b->counts.images += j->n_read;
    j->state = st == BTC_OK ? JOB_READ : JOB_FAILED;
    pthread_cond_signal(&b->has_read);
  }
  pthread_mutex_unlock(&b->lock);
  return NULL;
}
