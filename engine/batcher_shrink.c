/*
 * Out of memory in a step. Slots are what a batcher's memory goes to, and fewer of them only cost speed, so items pay with time and
 * never with their answer: what was under way is read and computed anew, to the same bytes. It does not grow again by itself; what
 * took the memory may still be there, and each try would throw work away.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batcher_internal.h"

bool batcher_can_shrink(const btc_batcher *b) {
  return b->o.slots > 1 || b->o.vision_batch > 1;
}

/* Back to where submit left it, in its old place of the order. */
static void begin_anew(btc_batcher *b, batch_job *j) {
  const btc_item *item = j->q.item;
  btc_request_release(&j->q);
  btc_result_clear(&j->result);
  batcher_drop_images(b, j);
  free(j->image);
  batcher_drop_visual(b, j);
  *j = (batch_job){.state = JOB_WAITING, .cancelled = j->cancelled, .order = j->order, .tag = j->tag};
  j->q = (btc_request){.item = item, .result = &j->result};
}

static void empty_slots(btc_batcher *b) {
  pthread_mutex_lock(&b->lock);
  for (int i = 0; i < b->n_jobs; i++) {
    batch_job *j = &b->jobs[i];
    if (j->state == JOB_PREFILL || j->state == JOB_DECODE) {
      begin_anew(b, j);
    } else if (j->state == JOB_READ) {
      batcher_drop_visual(b, j); /* of an admission that failed */
      batcher_call_back(b, j);
    }
  }
  memset(b->slot_used, 0, (size_t)b->o.slots * sizeof *b->slot_used);
  b->live = 0;
  pthread_cond_broadcast(&b->to_read);
  pthread_mutex_unlock(&b->lock);
}

bool batcher_shrink(btc_batcher *b, const btc_error *why) {
  btc_error err;
  char text[sizeof why->message + 128];
  int64_t positions = b->positions;
  int slots = b->o.slots > 1 ? b->o.slots / 2 : 1;
  if (!batcher_can_shrink(b) || btc_stage_shrink(b->stage, slots + 1, &err) != BTC_OK) return false;
  empty_slots(b);
  b->o.slots = slots;
  if (b->o.vision_batch > 1) b->o.vision_batch /= 2;
  batcher_drop_features(b);
  btc_parcel_pool_trim(b->parcels);
  btc_block_pool_trim(b->feature_pool);
  btc_block_pool_trim(b->visual_pool);
  b->images = b->positions = 0;
  b->prefix_ready = false;
  snprintf(text, sizeof text, "out of memory, going on with %d slots and %d images at once: %s", slots, b->o.vision_batch,
           why->message);
  if (b->o.note) b->o.note(b->o.ctx, text);
  if (batcher_reserve(b, 0, positions, &err) == BTC_ERR_NOMEM) (void)batcher_shrink(b, &err); /* the next step meets what is left */
  return true;
}
