/* See parcel_pool.h. */
#include "parcel_pool.h"

#include <pthread.h>
#include <stdlib.h>

typedef struct place {
  btc_parcel *parcel; /* NULL: not made */
  bool idle;
} place;

struct btc_parcel_pool {
  btc_backend *be;
  size_t bytes;
  int most;
  pthread_mutex_t lock; /* of all places; only the taker writes `parcel` */
  place *place;         /* [most] */
};

btc_status btc_parcel_pool_create(btc_backend *be, size_t bytes, int most, btc_parcel_pool **out, btc_error *err) {
  btc_parcel_pool *p = *out = btc_alloc_zero(1, sizeof *p);
  place *places = btc_alloc_zero((size_t)most, sizeof *places);
  if (!p || !places) {
    free(p);
    free(places);
    *out = NULL;
    return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a pool of parcels");
  }
  p->be = be;
  p->bytes = bytes;
  p->most = most;
  p->place = places;
  pthread_mutex_init(&p->lock, NULL);
  return BTC_OK;
}

void btc_parcel_pool_destroy(btc_parcel_pool **pp) {
  btc_parcel_pool *p = *pp;
  if (!p) return;
  for (int i = 0; i < p->most; i++) btc_parcel_destroy(p->be, &p->place[i].parcel);
  free(p->place);
  pthread_mutex_destroy(&p->lock);
  free(p);
  *pp = NULL;
}

/* An idle one, or else a place for a new one, or else NULL. */
static place *find(btc_parcel_pool *p) {
  place *empty = NULL, *idle = NULL;
  pthread_mutex_lock(&p->lock);
  for (int i = 0; i < p->most && !idle; i++) {
    place *at = &p->place[i];
    if (at->parcel && at->idle) idle = at;
    if (!at->parcel && !empty) empty = at;
  }
  if (idle) idle->idle = false;
  pthread_mutex_unlock(&p->lock);
  return idle ? idle : empty;
}

btc_status btc_parcel_pool_take(btc_parcel_pool *p, btc_parcel **out, btc_error *err) {
  *out = NULL;
  if (btc_backend_on_host(p->be)) return BTC_OK;
  place *at = find(p);
  if (!at) return btc_fail(err, BTC_ERR_LIMIT, "all %d parcels are on their way", p->most);
  btc_status st = BTC_OK;
  btc_parcel *made = at->parcel;
  if (!made) st = btc_parcel_create(p->be, p->bytes, &made, err);
  pthread_mutex_lock(&p->lock);
  *out = at->parcel = made;
  pthread_mutex_unlock(&p->lock);
  return st;
}

void btc_parcel_pool_put(btc_parcel_pool *p, btc_parcel *parcel) {
  if (!parcel) return;
  pthread_mutex_lock(&p->lock);
  for (int i = 0; i < p->most; i++)
    if (p->place[i].parcel == parcel) p->place[i].idle = true;
  pthread_mutex_unlock(&p->lock);
}

void btc_parcel_pool_trim(btc_parcel_pool *p) {
  pthread_mutex_lock(&p->lock);
  for (int i = 0; i < p->most; i++) {
    if (!p->place[i].idle) continue;
    btc_parcel_destroy(p->be, &p->place[i].parcel);
    p->place[i].idle = false;
  }
  pthread_mutex_unlock(&p->lock);
}
