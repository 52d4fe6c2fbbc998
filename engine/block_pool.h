/*
 * Blocks of one size of a backend's memory. On a device they are kept when they come back and handed out again: its own allocation
 * is slow, and giving memory back there waits for all that runs. On a host they are malloc's. Private to engine/.
 *
 * Thread: take as the backend's operators; put from any.
 */
#ifndef BTC_BLOCK_POOL_H
#define BTC_BLOCK_POOL_H

#include "ops/ops.h"

typedef struct btc_block_pool btc_block_pool;

/* be is borrowed, and must outlive it. */
btc_status btc_block_pool_create(btc_backend *be, size_t bytes, btc_block_pool **out, btc_error *err);
/* Frees all blocks, also those that never came back. NULL is fine; sets *p to NULL. */
void btc_block_pool_destroy(btc_block_pool **p);
btc_status btc_block_pool_take(btc_block_pool *p, void **out, btc_error *err); /* NOMEM */
void btc_block_pool_put(btc_block_pool *p, void *block);                       /* NULL is fine */
/* Frees the blocks that nobody has: memory has run short. As take. */
void btc_block_pool_trim(btc_block_pool *p);

#endif
