/* The driver's reading thread and its pictures: prompts to ids, files to pictures or, when their content is known, to those that
 * exist already. */
#define _GNU_SOURCE
#include <string.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/image_content.h"
#include "pipe_parts.h"

/* ---- pictures; the lock is held ---- */

static int free_pictures(const pipe_driver *p) {
  int n = 0;
  for (int i = 0; i < p->n_pictures; i++) n += !p->pictures[i].refs && p->pictures[i].state != PICTURE_FLYING;
  return n;
}

/* The picture with this key, or the least recently used one, made EMPTY. There is one: whoever reads has made sure. */
static int get_picture(pipe_driver *p, const uint8_t *key) {
  int at = -1;
  for (int i = 0; i < p->n_pictures; i++) {
    pipe_picture *x = &p->pictures[i];
    if (key && x->shared && memcmp(x->key, key, BTC_IMAGE_KEY) == 0) {
      at = i;
      break;
    }
    if (!x->refs && x->state != PICTURE_FLYING && (at < 0 || x->used < p->pictures[at].used)) at = i;
  }
  if (at < 0) return -1;
  pipe_picture *x = &p->pictures[at];
  if (!key || !x->shared || memcmp(x->key, key, BTC_IMAGE_KEY) != 0) {
    btc_image_free(&x->im);
    *x = (pipe_picture){.shared = key != NULL};
    if (key) memcpy(x->key, key, BTC_IMAGE_KEY);
  }
  x->refs++;
  x->used = ++p->uses;
  return at;
}

static void put_picture(pipe_driver *p, int at) {
  pipe_picture *x = &p->pictures[at];
  if (--x->refs || x->state != PICTURE_EMPTY) return;
  x->shared = false; /* it was never read */
  x->used = 0;
}

void pipe_drop_pictures(pipe_driver *p, pipe_job *j) {
  for (int i = 0; i < j->n_read; i++) put_picture(p, j->place[i]);
  j->n_read = 0;
}

bool pipe_pictures_are(const pipe_driver *p, const pipe_job *j, picture_state state) {
  for (int i = 0; i < j->n_read; i++)
    if (p->pictures[j->place[i]].state != state) return false;
  return true;
}

/* ---- reading ---- */

static btc_status read_image(pipe_driver *p, pipe_job *j, int i, btc_error *err) {
  const btc_item *it = j->q.item;
  const char *path = btc_request_image_name(it, i);
  btc_image_mode mode = btc_request_image_mode(p->m, it);
  const bool as_is = strncmp(p->o.device, "cuda", 4) == 0; /* rank 0's, here as where it is a worker of its own: the driver's */
  btc_image_content c;
  btc_image im = {0};
  bool changed;
  btc_status read = btc_request_content(p->m, it, i, &c, err);
  if (read != BTC_OK) return read;
  pthread_mutex_lock(&p->lock);
  int at = get_picture(p, c.data ? c.key : NULL);
  bool fresh = at >= 0 && p->pictures[at].state == PICTURE_EMPTY;
  pthread_mutex_unlock(&p->lock);
  btc_status st = at >= 0 ? BTC_OK : btc_fail(err, BTC_ERR_INTERNAL, "no room for a picture");
  if (st == BTC_OK && fresh) st = btc_image_content_decode(&c, path, p->m->cfg->vision.image, mode, as_is, &im, &changed, err);
  btc_image_content_free(&c);
  pthread_mutex_lock(&p->lock);
  if (st == BTC_OK && fresh) {
    p->pictures[at].im = im;
    p->pictures[at].pad = mode == BTC_IMAGE_PAD;
    p->pictures[at].state = PICTURE_THERE;
    if (changed) p->pictures[at].shared = false;
  }
  if (st == BTC_OK)
    j->place[j->n_read++] = at;
  else if (at >= 0)
    put_picture(p, at);
  pthread_mutex_unlock(&p->lock);
  return st;
}

static btc_status read_job(pipe_driver *p, pipe_job *j, btc_error *err) {
  int64_t start = btc_now_ns();
  btc_status st = btc_request_read(p->m, &j->q, p->o.max_tokens, err);
  if (st != BTC_OK) return st;
  const btc_item *it = j->q.item;
  j->result.phase = BTC_PHASE_IMAGE;
  j->place = btc_alloc_zero((size_t)it->n_images, sizeof *j->place);
  if (!j->place) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for an item's images");
  for (int i = 0; st == BTC_OK && i < it->n_images; i++) {
    if (p->o.progress) __atomic_add_fetch(p->o.progress, 1, __ATOMIC_RELAXED);
    st = read_image(p, j, i, err);
  }
  if (st == BTC_OK) st = btc_request_open(p->m, &j->q, err);
  j->end = j->q.step.positions;
  j->result.timing.decode_ms = (double)(btc_now_ns() - start) * 1e-6;
  return st;
}

pipe_job *pipe_first(pipe_driver *p, pipe_job_state s, uint64_t from) {
  pipe_job *first = NULL;
  for (int i = 0; i < p->n_jobs; i++) {
    pipe_job *j = &p->jobs[i];
    if (j->state == s && j->order >= from && (!first || j->order < first->order)) first = j;
  }
  return first;
}

/* Enough pictures for the item must be free, and no more than `ahead` items lie read and waiting. */
static pipe_job *next_to_read(pipe_driver *p) {
  int waiting = 0;
  for (int i = 0; i < p->n_jobs; i++) waiting += p->jobs[i].state == PIPE_READ;
  pipe_job *j = waiting < p->o.ahead ? pipe_first(p, PIPE_WAITING, 0) : NULL;
  bool fits = j && (j->q.item->n_images > p->n_pictures || j->q.item->n_images <= free_pictures(p));
  return fits ? j : NULL; /* one that never fits is refused by its prompt: no model takes so many images */
}

static void *read_ahead(void *ctx) {
  pipe_driver *p = ctx;
  pipe_job *j;
  pthread_mutex_lock(&p->lock);
  while (!p->stop) {
    if (!(j = next_to_read(p))) {
      pthread_cond_wait(&p->to_read, &p->lock);
      continue;
    }
    j->state = PIPE_READING;
    pthread_mutex_unlock(&p->lock);
    btc_error err = {0};
    btc_status st = read_job(p, j, &err);
    if (st != BTC_OK) btc_request_fail(&j->q, st, &err);
    pthread_mutex_lock(&p->lock);
    if (st != BTC_OK) pipe_drop_pictures(p, j);
    j->state = st == BTC_OK ? PIPE_READ : PIPE_FAILED;
    uint64_t one = 1;
    if (write(p->bell, &one, sizeof one) < 0) continue; /* full: it rings already */
  }
  pthread_mutex_unlock(&p->lock);
  return NULL;
}

btc_status pipe_reader_start(pipe_driver *p, btc_error *err) {
  if (pthread_create(&p->reader, NULL, read_ahead, p) != 0) return btc_fail(err, BTC_ERR_NOMEM, "cannot start a thread");
  p->reading = true;
  return BTC_OK;
}

void pipe_reader_stop(pipe_driver *p) {
  if (!p->reading) return;
  pthread_mutex_lock(&p->lock);
  p->stop = true;
  pthread_cond_signal(&p->to_read);
  pthread_mutex_unlock(&p->lock);
  pthread_join(p->reader, NULL);
  p->reading = false;
}
