/*
 * One item on its way to its answer: what a session and a batcher do alike, so that both give the same bytes. Private to engine/.
 * In order: zero it with item and result set, read, open, then take after every row of logits until done, finish, release.
 */
#ifndef BTC_REQUEST_H
#define BTC_REQUEST_H

#include "image_content.h"
#include "sampler.h"
#include "stage.h"

typedef struct btc_request {
  const btc_item *item;
  btc_result *result;
  btc_stage_item step; /* prefill first, then one decode step after the other */
  int32_t *ids;        /* prompt */
  int32_t *answer;     /* [max_tokens], becomes result->ids */
  int max_tokens;
  bool done;
  btc_sampling sampling;
  btc_rng rng;
} btc_request;

/* Route and prompt: everything that can be wrong with an item before its images are looked at. most_tokens: what an answer may
 * have. Any thread. */
btc_status btc_request_read(const btc_model *m, btc_request *q, int most_tokens, btc_error *err);
btc_image_mode btc_request_image_mode(const btc_model *m, const btc_item *it);
/* Image i by its content, from its file or from the item's own load; an error is the latter's. *c is to be freed in every case. Any
 * thread. */
btc_status btc_request_content(const btc_model *m, const btc_item *it, int i, btc_image_content *c, btc_error *err);
/* Image i as the square of pixels the tower takes, or with as_is at its own size where a device resizes it: out.rgb is malloc'ed,
 * NULL on an error. Any thread. */
btc_status btc_request_load(const btc_model *m, const btc_item *it, int i, bool as_is, btc_image *out, btc_error *err);
btc_shades btc_request_shades(const btc_model *m); /* how samples become the tower's pixels */
/* Its name for messages. */
const char *btc_request_image_name(const btc_item *it, int i);
/* Room for the answer, and the state of its drawing. Any thread. */
btc_status btc_request_open(const btc_model *m, btc_request *q, btc_error *err);
/* Takes the next token from the item's row of logits; allocates nothing. Afterwards it is done, or its step is ready to run.
 * pick: a choice made elsewhere, which stands for the logits of a greedy item; NULL: there is none. force: tokens to take instead
 * (golden checks), or NULL. */
btc_status btc_request_take(const btc_model *m, btc_sampler *s, btc_request *q, const float *logits, const btc_pick *pick,
                            const int32_t *force, size_t n_force, btc_error *err);
void btc_request_fail(btc_request *q, btc_status st, const btc_error *err);
void btc_request_finish(const btc_model *m, btc_request *q); /* ids to text, and the score; nothing when it failed */
void btc_request_release(btc_request *q);

#endif
