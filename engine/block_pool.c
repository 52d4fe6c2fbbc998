/* See block_pool.h. */
#include "block_pool.h"

#include <pthread.h>
#include <stdlib.h>

struct btc_block_pool {
  btc_backend *be;
  size_t bytes;
  bool host;
  pthread_mutex_t lock;
  void **idle, **all; /* a device's: those that nobody has, and every one */
  size_t n_idle, n_all, room;
};

btc_status btc_block_pool_create(btc_backend *be, size_t bytes, btc_block_pool **out, btc_error *err) {
  btc_block_pool *p = *out = btc_alloc_zero(1, sizeof *p);
  if (!p) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a pool of blocks");
  p->be = be;
  p->bytes = bytes;
  p->host = btc_backend_on_host(be);
  pthread_mutex_init(&p->lock, NULL);
  return BTC_OK;
}

void btc_block_pool_destroy(btc_block_pool **pp) {
  btc_block_pool *p = *pp;
  if (!p) return;
  for (size_t i = 0; i < p->n_all; i++) btc_backend_free(p->be, p->all[i]);
  free(p->idle);
  free(p->all);
  pthread_mutex_destroy(&p->lock);
  free(p);
  *pp = NULL;
}

/* So that put needs no memory: each list has room for every block. */
static bool make_room(btc_block_pool *p) {
  if (p->n_all < p->room) return true;
  size_t room = p->room ? 2 * p->room : 64;
  void **idle = btc_realloc(p->idle, room, sizeof *idle);
  if (idle) p->idle = idle;
  void **all = btc_realloc(p->all, room, sizeof *all);
  if (all) p->all = all;
  if (idle && all) p->room = room;
  return idle && all;
}

static btc_status make_block(btc_block_pool *p, void **out, btc_error *err) {
  if (!make_room(p)) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a pool of blocks");
  btc_status st = btc_backend_alloc(p->be, p->bytes, out, err);
  if (st == BTC_OK) p->all[p->n_all++] = *out;
  return st;
}

btc_status btc_block_pool_take(btc_block_pool *p, void **out, btc_error *err) {
  btc_status st = BTC_OK;
  *out = NULL;
  if (p->host) return btc_backend_alloc(p->be, p->bytes, out, err);
  pthread_mutex_lock(&p->lock);
  if (p->n_idle)
    *out = p->idle[--p->n_idle];
  else
    st = make_block(p, out, err);
  pthread_mutex_unlock(&p->lock);
  return st;
}

void btc_block_pool_put(btc_block_pool *p, void *block) {
  if (!block) return;
  if (p->host) {
    free(block);
    return;
  }
  pthread_mutex_lock(&p->lock);
  p->idle[p->n_idle++] = block;
  pthread_mutex_unlock(&p->lock);
}

void btc_block_pool_trim(btc_block_pool *p) {
  pthread_mutex_lock(&p->lock);
  while (p->n_idle) {
    void *block = p->idle[--p->n_idle];
    size_t at = 0;
    while (p->all[at] != block) at++;
    p->all[at] = p->all[--p->n_all];
    btc_backend_free(p->be, block);
  }
  pthread_mutex_unlock(&p->lock);
}
