/*
 * Sampling on the host. Shares are exp((logit - max) / temperature) in double: the maximum is subtracted first, so no
 * temperature, however small, overflows. Top-k and top-p choose by logit, never by share, so shares that underflow keep their
 * order. The reference's own random stream cannot be reproduced (spec 4.5); its choice of candidates is.
 */
#include "sampler.h"

#include <math.h>
#include <stdlib.h>

/* ---- random numbers: Blackman and Vigna's xoshiro256**, state filled by splitmix64 ---- */

static uint64_t splitmix(uint64_t *state) {
  uint64_t z = *state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

void btc_rng_seed(btc_rng *r, uint64_t seed, uint64_t stream) {
  uint64_t state = stream;
  state = seed ^ splitmix(&state); /* neighbouring seeds and streams must not meet: (1, 0) is not (0, 1) */
  for (int i = 0; i < 4; i++) r->s[i] = splitmix(&state);
}

static uint64_t rotate(uint64_t x, int k) {
  return x << k | x >> (64 - k);
}

uint64_t btc_rng_next(btc_rng *r) {
  uint64_t *s = r->s, result = rotate(s[1] * 5, 7) * 9, t = s[1] << 17;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = rotate(s[3], 45);
  return result;
}

double btc_rng_uniform(btc_rng *r) {
  return (double)(btc_rng_next(r) >> 11) * 0x1p-53;
}

/* ---- the sampler ---- */

typedef struct candidate {
  double share; /* not normalised; the largest is 1 */
  float logit;
  int32_t id;
} candidate;

struct btc_sampler {
  int64_t vocab;
  float *largest;  /* [vocab] a heap of the k largest logits, the smallest of them on top */
  candidate *list; /* [vocab] */
  int64_t n;       /* candidates in list */
};

btc_sampling btc_sampling_default(void) {
  return (btc_sampling){.temperature = 0, .top_p = 1, .top_k = 50, .seed = 0};
}

btc_status btc_sampler_create(int64_t vocab, btc_sampler **out, btc_error *err) {
  *out = NULL;
  if (vocab < 1 || vocab > INT32_MAX) return btc_fail(err, BTC_ERR_ARG, "a vocabulary of %lld tokens", (long long)vocab);
  btc_sampler *s = btc_alloc_zero(1, sizeof *s);
  if (s) {
    s->vocab = vocab;
    s->largest = btc_alloc((size_t)vocab, sizeof *s->largest);
    s->list = btc_alloc((size_t)vocab, sizeof *s->list);
  }
  if (!s || !s->largest || !s->list) {
    btc_sampler_destroy(&s);
    return btc_fail(err, BTC_ERR_NOMEM, "no memory to sample from %lld tokens", (long long)vocab);
  }
  *out = s;
  return BTC_OK;
}

void btc_sampler_destroy(btc_sampler **s) {
  if (!*s) return;
  free((*s)->largest);
  free((*s)->list);
  free(*s);
  *s = NULL;
}

/* ---- choosing candidates ---- */

static void sink_smallest(float *heap, int64_t n, int64_t at) {
  float value = heap[at];
  for (int64_t child; (child = 2 * at + 1) < n; at = child) {
    if (child + 1 < n && heap[child + 1] < heap[child]) child++;
    if (heap[child] >= value) break;
    heap[at] = heap[child];
  }
  heap[at] = value;
}

static float kth_largest(btc_sampler *s, const float *logits, int64_t k) {
  float *heap = s->largest;
  for (int64_t i = 0; i < k; i++) heap[i] = logits[i];
  for (int64_t i = k / 2; i-- > 0;) sink_smallest(heap, k, i);
  for (int64_t i = k; i < s->vocab; i++) {
    if (logits[i] <= heap[0]) continue;
    heap[0] = logits[i];
    sink_smallest(heap, k, 0);
  }
  return heap[0];
}

/* Lists what top-k leaves; logits equal to the k-th stay. Returns the sum of the shares. */
static double list_candidates(btc_sampler *s, const float *logits, float max, const btc_sampling *g) {
  float floor = g->top_k > 0 && g->top_k < s->vocab ? kth_largest(s, logits, g->top_k) : -INFINITY;
  double total = 0;
  s->n = 0;
  for (int64_t i = 0; i < s->vocab; i++) {
    if (logits[i] < floor || logits[i] == -INFINITY) continue;
    double share = exp(((double)logits[i] - max) / g->temperature);
    s->list[s->n++] = (candidate){share, logits[i], (int32_t)i};
    total += share;
  }
  return total;
}

static bool ahead(const candidate *a, const candidate *b) {
  return a->logit != b->logit ? a->logit > b->logit : a->id < b->id;
}

static void sink_likely(candidate *heap, int64_t n, int64_t at) {
  candidate value = heap[at];
  for (int64_t child; (child = 2 * at + 1) < n; at = child) {
    if (child + 1 < n && ahead(&heap[child + 1], &heap[child])) child++;
    if (!ahead(&heap[child], &value)) break;
    heap[at] = heap[child];
  }
  heap[at] = value;
}

/* Keeps the likeliest candidates up to and including the one that brings their sum to top_p. A heap gives them up one by one, so
 * only those that stay are sorted. Returns the sum of those that stay. */
static double keep_nucleus(btc_sampler *s, double total, double top_p) {
  double kept = 0;
  int64_t left = s->n;
  for (int64_t i = left / 2; i-- > 0;) sink_likely(s->list, left, i);
  while (left > 0 && kept < top_p * total) {
    candidate likeliest = s->list[0];
    s->list[0] = s->list[--left];
    s->list[left] = likeliest;
    if (left) sink_likely(s->list, left, 0);
    kept += likeliest.share;
  }
  s->n -= left;
  for (int64_t i = 0; i < s->n; i++) s->list[i] = s->list[left + i];
  return kept;
}

static int32_t draw(const btc_sampler *s, double total, btc_rng *rng) {
  double point = btc_rng_uniform(rng) * total, sum = 0;
  int32_t last = s->list[0].id;
  for (int64_t i = 0; i < s->n; i++) {
    if (!(s->list[i].share > 0)) continue;
    sum += s->list[i].share;
    last = s->list[i].id;
    if (sum > point) break;
  }
  return last; /* rounding can leave the last sum a hair short of the point: then it is the last candidate */
}

/* ---- the pick ---- */

/* The largest logit, the first of equal ones; without its share. */
static btc_pick find_largest(const btc_sampler *s, const float *logits) {
  btc_pick p = {0};
  for (int64_t i = 0; i < s->vocab; i++) {
    if (isnan(logits[i])) return (btc_pick){.id = (int32_t)i, .broken = BTC_PICK_NAN};
    if (logits[i] == INFINITY) return (btc_pick){.id = (int32_t)i, .broken = BTC_PICK_INFINITE};
    if (logits[i] > logits[p.id]) p.id = (int32_t)i;
  }
  if (logits[p.id] == -INFINITY) return (btc_pick){.broken = BTC_PICK_NOTHING};
  return p;
}

btc_status btc_pick_check(const btc_pick *p, btc_error *err) {
  static const char *const what[] = {
      [BTC_PICK_NOT_FINITE] = "infinity or not a number", [BTC_PICK_NAN] = "not a number", [BTC_PICK_INFINITE] = "infinity"};
  if (p->broken == BTC_PICK_SOUND) return BTC_OK;
  if (p->broken == BTC_PICK_NOTHING)
    return btc_fail(err, BTC_ERR_INTERNAL,
                    "the model computed minus infinity for every token: its weights or the arithmetic are broken");
  return btc_fail(err, BTC_ERR_INTERNAL, "the model computed %s for token %d: its weights or the arithmetic are broken",
                  what[p->broken], p->id);
}

static double log_share(const btc_sampler *s, const float *logits, float max, int32_t id) {
  double sum = 0;
  for (int64_t i = 0; i < s->vocab; i++) sum += (double)expf(logits[i] - max);
  return (double)logits[id] - max - log(sum);
}

static btc_status check_settings(const btc_sampling *g, const btc_rng *rng, btc_error *err) {
  if (!(g->temperature >= 0) || isinf(g->temperature))
    return btc_fail(err, BTC_ERR_ARG, "a temperature of %g; it must be 0 or more", (double)g->temperature);
  if (g->temperature == 0) return BTC_OK;
  if (!(g->top_p > 0)) return btc_fail(err, BTC_ERR_ARG, "a top-p of %g; it must be above 0", (double)g->top_p);
  if (g->top_k < 0) return btc_fail(err, BTC_ERR_ARG, "a top-k of %d; it must be 0 (off) or more", g->top_k);
  if (!rng) return btc_fail(err, BTC_ERR_ARG, "sampling without a random generator");
  return BTC_OK;
}

btc_pick btc_sampler_greedy(const btc_sampler *s, const float *logits) {
  btc_pick p = find_largest(s, logits);
  if (p.broken == BTC_PICK_SOUND) p.logprob = log_share(s, logits, logits[p.id], p.id);
  return p;
}

btc_status btc_sampler_pick(btc_sampler *s, const float *logits, const btc_sampling *g, btc_rng *rng, int32_t *id, double *logprob,
                            btc_error *err) {
  btc_status st = check_settings(g, rng, err);
  if (st != BTC_OK) return st;
  const btc_pick largest = find_largest(s, logits);
  if ((st = btc_pick_check(&largest, err)) != BTC_OK) return st;
  float max = logits[largest.id];
  *id = largest.id;
  if (g->temperature > 0 && rng) { /* rng: checked above; the analyzer cannot follow */
    double total = list_candidates(s, logits, max, g);
    if (g->top_p < 1) total = keep_nucleus(s, total, g->top_p);
    *id = draw(s, total, rng);
  }
  if (logprob) *logprob = log_share(s, logits, max, *id);
  return BTC_OK;
}
