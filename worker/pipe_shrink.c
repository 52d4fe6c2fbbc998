/*
 * A rank that has no memory for what it was told to hold. Slots are what ranks' memory goes to, and fewer of them only cost speed,
 * so items pay with time: those beyond the slots that are left wait again, tokens and all, and bytes stay the same. With one slot
 * left it is the item's size: that one is answered. It does not grow again by itself; what took the memory may still be there.
 */
#include <stdio.h>

#include "pipe_parts.h"

/* Items in slots go back to those that wait, in their old places of the order; the journal keeps what they have. */
static void empty_slots(pipe_driver *p, int from) {
  pthread_mutex_lock(&p->lock);
  for (int i = from; i < p->o.slots; i++) {
    if (!p->slot[i]) continue;
    p->slot[i]->state = PIPE_READ;
    pipe_forget_prompt(p->slot[i]);
    p->slot[i] = NULL;
    p->live--;
  }
  pthread_mutex_unlock(&p->lock);
}

/* The item that asked for more than is usual, or that is under way by itself. NULL: not even the usual fits. */
static pipe_job *to_blame(pipe_driver *p) {
  if (p->slot[0]) return p->slot[0];
  pthread_mutex_lock(&p->lock);
  pipe_job *j = pipe_first(p, PIPE_READ, 0);
  pthread_mutex_unlock(&p->lock);
  bool large = j && (p->positions > p->usual_positions || p->images > SHARD_IMAGES);
  return large ? j : NULL;
}

btc_status pipe_shrink(pipe_driver *p, const btc_error *why, btc_error *err) {
  btc_error failed;
  char text[sizeof why->message + 96];
  p->futile = 0; /* each of these leaves less to try */
  if (p->slots > 1) {
    empty_slots(p, p->slots /= 2);
    snprintf(text, sizeof text, "out of memory, going on with %d slots: %s", p->slots, why->message);
    if (p->o.note) p->o.note(p->o.ctx, text);
    return pipe_make_groups(p, p->n_ranks, err);
  }
  pipe_job *j = to_blame(p);
  if (!j) return btc_fail(err, BTC_ERR_NOMEM, "out of memory with one item at a time: %s", why->message);
  btc_fail(&failed, BTC_ERR_NOMEM, "%s", why->message);
  btc_request_fail(&j->q, BTC_ERR_NOMEM, &failed);
  pipe_answer(p, j);
  return BTC_OK;
}
