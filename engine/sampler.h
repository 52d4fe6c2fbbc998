/*
 * The next token out of a row of logits (spec 4.5): greedy, or temperature -> top-k -> top-p -> draw.
 */
#ifndef BTC_SAMPLER_H
#define BTC_SAMPLER_H

#include "ops/ops.h"

typedef struct btc_sampling {
  float temperature; /* 0: greedy */
  float top_p;       /* 1 or more: off */
  int top_k;         /* 0: off */
  uint64_t seed;     /* for btc_rng_seed; the sampler itself does not look at it */
} btc_sampling;

/* Greedy. When a temperature is set: the 50 largest, no nucleus, as the reference's library does unasked. */
btc_sampling btc_sampling_default(void);

/* xoshiro256**. Every item draws from a generator of its own, so its answer does not depend on the batch it is in. */
typedef struct btc_rng {
  uint64_t s[4];
} btc_rng;
void btc_rng_seed(btc_rng *r, uint64_t seed, uint64_t stream);
uint64_t btc_rng_next(btc_rng *r);
double btc_rng_uniform(btc_rng *r); /* [0, 1), 53 bits */

/* Owns the scratch memory of picks over `vocab` logits; nothing is allocated later. One thread at a time. */
typedef struct btc_sampler btc_sampler;
btc_status btc_sampler_create(int64_t vocab, btc_sampler **out, btc_error *err);
void btc_sampler_destroy(btc_sampler **s);

/* Picks an id out of logits[vocab]. Greedy takes the lowest of equal ids and draws nothing from rng (which may be NULL then).
 * *logprob (may be NULL): ln of the chosen id's share in the softmax of all logits, temperature left out. -inf is a logit that
 * is never drawn; NaN, +inf or nothing but -inf is a broken model: BTC_ERR_INTERNAL. Impossible settings: BTC_ERR_ARG. */
btc_status btc_sampler_pick(btc_sampler *s, const float *logits, const btc_sampling *g, btc_rng *rng, int32_t *id, double *logprob,
                            btc_error *err);

/* What a greedy pick of logits[vocab] is, for one that is not here: as btc_op_pick makes it on a device. */
btc_pick btc_sampler_greedy(const btc_sampler *s, const float *logits);
/* The error of a pick of broken logits, the same wherever it was made: BTC_ERR_INTERNAL. */
btc_status btc_pick_check(const btc_pick *p, btc_error *err);

#endif
