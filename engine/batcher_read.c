/* The batcher's reading thread: prompts to ids, files to pixels or, when their content is known, to features that exist already. */
#include <stdlib.h>
#include <string.h>

#include "batcher_internal.h"
#include "image_internal.h"

/* Larger files are decoded as they are read and are not looked up. */
#define MOST_BYTES ((size_t)64 << 20)

/* The whole file; NULL when it is too large or not to be read, and then btc_image_load says why. */
static uint8_t *read_file(const char *path, size_t *len) {
  btc_image_reader r;
  btc_error err;
  uint8_t *data = NULL;
  size_t room = 0;
  bool good = true;
  *len = 0;
  if (btc_image_reader_open(&r, path, &err) != BTC_OK) return NULL;
  do {
    size_t n = (size_t)(r.end - r.at);
    if (*len + n > room) {
      room = 2 * (*len + n);
      uint8_t *grown = room <= 2 * MOST_BYTES ? btc_realloc(data, room, 1) : NULL;
      if (!(good = grown != NULL)) break;
      data = grown;
    }
    if (n) memcpy(data + *len, r.at, n);
    *len += n;
  } while (btc_image_reader_fill(&r));
  good = good && !r.error && *len && *len <= MOST_BYTES;
  btc_image_reader_close(&r);
  if (good) return data;
  free(data);
  return NULL;
}

static btc_status to_pixels(const btc_batcher *b, const btc_image *im, float **pixels, btc_error *err) {
  const btc_config *c = b->m->cfg;
  *pixels = btc_alloc((size_t)(3 * c->vision.image * c->vision.image), sizeof **pixels);
  if (!*pixels) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for the pixels of an image");
  btc_image_normalise(im, c->pre.rescale, c->pre.mean, c->pre.std, *pixels);
  return BTC_OK;
}

static btc_features *get_features(btc_batcher *b, const uint8_t *key, bool *fresh) {
  pthread_mutex_lock(&b->lock);
  btc_features *f = btc_feature_cache_get(b->cache, key);
  *fresh = f && f->state == BTC_FEATURES_EMPTY;
  pthread_mutex_unlock(&b->lock);
  return f;
}

static void put_features(btc_batcher *b, btc_features *f) {
  pthread_mutex_lock(&b->lock);
  if (f) btc_feature_cache_put(b->cache, f);
  pthread_mutex_unlock(&b->lock);
}

/* The entry gets the pixels of the square image, which is freed. */
static btc_status fill_features(btc_batcher *b, btc_features *f, btc_image *im, btc_status st, btc_error *err) {
  float *pixels = NULL;
  if (st == BTC_OK) st = to_pixels(b, im, &pixels, err);
  btc_image_free(im);
  pthread_mutex_lock(&b->lock);
  if (st == BTC_OK) {
    f->pixels = pixels;
    f->state = BTC_FEATURES_PIXELS;
  }
  pthread_mutex_unlock(&b->lock);
  return st;
}

/* Decodes into a fresh entry. Bytes that do not decode are read once more by path, so that the error is the one a session gives; if
 * that succeeds the file has changed meanwhile, and the pixels do not belong to the key. */
static btc_status decode(btc_batcher *b, const char *path, btc_image_mode mode, const uint8_t *data, size_t len, btc_features **f,
                         btc_error *err) {
  const int64_t side = b->m->cfg->vision.image;
  btc_image im = {0};
  btc_status st = BTC_ERR_FORMAT;
  bool fresh;
  if (data) st = btc_image_load_memory(data, len, path, side, mode, NULL, &im, NULL, NULL, err);
  if (st != BTC_OK) {
    st = btc_image_load(path, side, mode, NULL, &im, NULL, NULL, err);
    if (st == BTC_OK && data) {
      put_features(b, *f);
      if (!(*f = get_features(b, NULL, &fresh)))
        st = btc_fail(err, BTC_ERR_NOMEM, "not enough memory for the features of '%s'", path);
    }
  }
  return fill_features(b, *f, &im, st, err);
}

static btc_status keep(btc_batcher *b, batch_job *j, btc_features *f, btc_status st) {
  if (st == BTC_OK)
    j->image[j->n_read++] = f;
  else
    put_features(b, f);
  return st;
}

static btc_status read_image(btc_batcher *b, batch_job *j, const char *path, btc_image_mode mode, btc_error *err) {
  uint8_t key[33];
  size_t len;
  bool fresh;
  uint8_t *data = read_file(path, &len);
  if (data) {
    btc_sha256 h;
    btc_sha256_init(&h);
    btc_sha256_update(&h, data, len);
    btc_sha256_final(&h, key);
    key[32] = (uint8_t)mode;
  }
  btc_features *f = get_features(b, data ? key : NULL, &fresh);
  btc_status st = f ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "not enough memory for the features of '%s'", path);
  if (st == BTC_OK && fresh) st = decode(b, path, mode, data, len, &f, err);
  free(data);
  return keep(b, j, f, st);
}

/* Pixels from the item's own load: found again by their content, as files are by theirs. */
static btc_status read_pixels(btc_batcher *b, batch_job *j, int i, btc_image_mode mode, btc_error *err) {
  enum { FROM_MEMORY = 0x80 };
  btc_pixels p;
  btc_status st = btc_request_pixels(j->q.item, i, &p, err);
  if (st != BTC_OK) return st;
  uint8_t key[33];
  int64_t size[2] = {p.width, p.height};
  bool fresh;
  btc_sha256 h;
  btc_sha256_init(&h);
  btc_sha256_update(&h, size, sizeof size);
  btc_sha256_update(&h, p.rgb, (size_t)(p.width * p.height * 3));
  btc_sha256_final(&h, key);
  key[32] = (uint8_t)(mode | FROM_MEMORY);
  btc_features *f = get_features(b, key, &fresh);
  st = f ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "not enough memory for the features of an image");
  if (st == BTC_OK && fresh) {
    btc_image im = {0};
    st = btc_request_fit(b->m, j->q.item, &p, &im, err);
    st = fill_features(b, f, &im, st, err);
  }
  free(p.rgb);
  return keep(b, j, f, st);
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
  btc_image_mode mode = btc_request_image_mode(b->m, it);
  j->result.phase = BTC_PHASE_IMAGE;
  j->image = btc_alloc_zero((size_t)it->n_images, sizeof(btc_features *));
  if (!j->image) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for an item's images");
  for (int i = 0; st == BTC_OK && i < it->n_images; i++) {
    if (b->o.progress) __atomic_add_fetch(b->o.progress, 1, __ATOMIC_RELAXED);
    st = it->load ? read_pixels(b, j, i, mode, err) : read_image(b, j, it->images[i], mode, err);
  }
  if (st == BTC_OK) st = btc_request_open(b->m, &j->q, err);
  j->end = j->q.step.positions;
  j->result.timing.decode_ms = (double)(btc_now_ns() - start) * 1e-6;
  return st;
}

/* No more than `ahead` items lie read and waiting: that bounds pixels and pinned features. */
static batch_job *next_to_read(btc_batcher *b) {
  int waiting = 0;
  for (int i = 0; i < b->n_jobs; i++) waiting += b->jobs[i].state == JOB_READ;
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
