/*
 * What a rank has computed goes out while it computes the next step: a thread that brings one link's frames away. At most one frame
 * is on its way; the next one waits until the system has all of it, so that a rank is never further ahead of a slow one behind it.
 * A frame that the system takes at once, as a token's, never sees the thread.
 *
 * The link copies what it sends, so nothing of the caller's is held. Not for a link with a carrier: a communicator has one thread,
 * and what was begun there goes on by itself (link.h).
 *
 * Thread: everything here but the thread itself belongs to the rank's.
 */
#ifndef BTC_WORKER_SHARD_POST_H
#define BTC_WORKER_SHARD_POST_H

#include "link.h"

typedef struct shard_post shard_post;

/* NOMEM: there is no thread to be had. */
btc_status shard_post_create(shard_post **out, btc_error *err);
/* Stops and joins the thread. NULL is fine; sets *p to NULL. */
void shard_post_destroy(shard_post **p);

/* Waits until the frame before this one is away, and takes this one. An error is of either of them, as of btc_link_send, whose
 * deadlines hold: the link is of no more use. l is borrowed until shard_post_wait or shard_post_drop has returned. */
btc_status shard_post_send(shard_post *p, btc_link *l, const btc_link_head *h, const btc_link_part *parts, int n,
                           const btc_link_wait *w, btc_error *err);
/* Until nothing is on its way. */
btc_status shard_post_wait(shard_post *p, const btc_link_wait *w, btc_error *err);
/* Has the frame on its way failed? Then the next send or wait says how. */
bool shard_post_has_failed(shard_post *p);
/* Gives up what is on its way, well or not: afterwards the link may be closed. Takes a moment at most. */
void shard_post_drop(shard_post *p);

#endif
