/*
 * Parcels of one size, few and used again: memory that is pinned is slow to get and nobody else's meanwhile. Private to engine/.
 *
 * Thread: take, trim and destroy as the backend's operators; put from any.
 */
#ifndef BTC_PARCEL_POOL_H
#define BTC_PARCEL_POOL_H

#include "ops/ops.h"

typedef struct btc_parcel_pool btc_parcel_pool;

/* At most so many, made when they are first needed; on a host none is. be is borrowed, and must outlive it. */
btc_status btc_parcel_pool_create(btc_backend *be, size_t bytes, int most, btc_parcel_pool **out, btc_error *err);
/* Frees all parcels, also those that never came back. NULL is fine; sets *p to NULL. */
void btc_parcel_pool_destroy(btc_parcel_pool **p);
/* LIMIT: somebody has every one. NOMEM. On a host OK and NULL. */
btc_status btc_parcel_pool_take(btc_parcel_pool *p, btc_parcel **out, btc_error *err);
void btc_parcel_pool_put(btc_parcel_pool *p, btc_parcel *parcel); /* NULL is fine */
/* Frees the parcels that nobody has: memory has run short. */
void btc_parcel_pool_trim(btc_parcel_pool *p);

#endif
