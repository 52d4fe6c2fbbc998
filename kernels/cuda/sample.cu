/*
 * The next token out of a row of logits: the choices of engine/sampler.c. One block a row. Shares are doubles; those that decide
 * are added one after another in the CPU's order (id order; within a nucleus from the least likely up), so that the same draw falls
 * on the same candidate. With the usual top-k of 50 that is 50 additions; with top-k off it is the vocabulary, one thread's
 * millisecond.
 */
#include "kernels/cuda/device.h"

enum { THREADS = 256, WARPS = THREADS / 32 };

struct candidate {
  double share; /* not normalised; the largest is 1 */
  float logit;
  int32_t id; /* -1: taken into the nucleus */
};

/* What a thread knows of the largest logit; ties go to the lower id. */
struct best {
  float logit;
  int32_t at;
};

BTC_DEVICE bool ahead(best a, best b) {
  return a.logit != b.logit ? a.logit > b.logit : a.at < b.at;
}

/* The block's best, in every thread. */
BTC_DEVICE best block_best(best x) {
  BTC_SHARED(float, logits, WARPS);
  BTC_SHARED(int32_t, places, WARPS);
  for (int step = 16; step > 0; step /= 2) {
    best other;
    other.logit = __shfl_xor_sync(BTC_FULL_WARP, x.logit, step);
    other.at = __shfl_xor_sync(BTC_FULL_WARP, x.at, step);
    if (ahead(other, x)) x = other;
  }
  __syncthreads(); /* an earlier call's values have been read */
  if (threadIdx.x % 32 == 0) {
    logits[threadIdx.x / 32] = x.logit;
    places[threadIdx.x / 32] = x.at;
  }
  __syncthreads();
  for (int w = 0; w < WARPS; w++) {
    best other = {logits[w], places[w]};
    if (ahead(other, x)) x = other;
  }
  return x;
}

BTC_DEVICE double block_sum(double x) {
  BTC_SHARED(double, parts, WARPS);
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(BTC_FULL_WARP, x, step);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < WARPS; w++) sum += parts[w];
  return sum;
}

/* The largest logit, or in *broken the first id that is NaN or +infinity (INT32_MAX: none). */
BTC_DEVICE best find_largest(const float *logits, int32_t vocab, int32_t *broken) {
  best top = {-INFINITY, INT32_MAX}, bad = {-INFINITY, INT32_MAX};
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < vocab; i += THREADS) {
    best x = {logits[i], i};
    if (x.logit != x.logit || x.logit == INFINITY) {
      if (i < bad.at) bad.at = i;
    } else if (ahead(x, top)) {
      top = x;
    }
  }
  *broken = block_best(bad).at;
  return block_best(top);
}

/* Larger floats have larger keys. */
BTC_DEVICE uint32_t order_key(float x) {
  const uint32_t u = float_bits(x);
  return u >> 31 ? ~u : u | 0x80000000u;
}

BTC_DEVICE float key_float(uint32_t key) {
  return bits_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

/* The k-th largest of the row: its key is found a byte at a time, from the top, by counting. */
BTC_DEVICE float kth_largest(const float *logits, int32_t vocab, int32_t k) {
  BTC_SHARED(int32_t, counts, 256);
  BTC_SHARED(uint32_t, chosen, 2); /* the byte, and how many are wanted among those that have it */
  uint32_t prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    counts[threadIdx.x] = 0;
    __syncthreads();
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < vocab; i += THREADS) {
      const uint32_t key = order_key(logits[i]);
      if (shift == 24 || key >> (shift + 8) == prefix) atomicAdd(&counts[key >> shift & 255], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int byte = 255;
      int32_t wanted = k;
      for (; byte > 0 && counts[byte] < wanted; byte--) wanted -= counts[byte];
      chosen[0] = static_cast<uint32_t>(byte);
      chosen[1] = static_cast<uint32_t>(wanted);
    }
    __syncthreads();
    prefix = prefix << 8 | chosen[0];
    k = static_cast<int32_t>(chosen[1]);
  }
  return key_float(prefix);
}

/* Lists, in id order, what top-k leaves; logits equal to the k-th stay. Returns their number. */
BTC_DEVICE int32_t list_candidates(candidate *list, const float *logits, int32_t vocab, float max, float floor, float temperature) {
  BTC_SHARED(int32_t, found, WARPS);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int32_t n = 0;
  for (int32_t base = 0; base < vocab; base += THREADS) {
    const int32_t i = base + static_cast<int32_t>(threadIdx.x);
    const float x = i < vocab ? logits[i] : -INFINITY;
    const bool stays = x >= floor && x != -INFINITY;
    const unsigned votes = __ballot_sync(BTC_FULL_WARP, stays);
    if (lane == 0) found[warp] = __popc(votes);
    __syncthreads();
    int32_t at = n + __popc(votes & ((1u << lane) - 1u));
    for (int w = 0; w < WARPS; w++) {
      if (w < warp) at += found[w];
      n += found[w];
    }
    if (stays) list[at] = {exp((static_cast<double>(x) - max) / temperature), x, i};
    __syncthreads();
  }
  return n;
}

/* Moves the likeliest candidates, up to and including the one that brings their sum to top_p of the total, to `kept`, likeliest
 * first. Returns their number, and their sum in *sum. */
BTC_DEVICE int32_t keep_nucleus(candidate *kept, candidate *list, int32_t n, double total, double top_p, double *sum) {
  int32_t k = 0;
  *sum = 0;
  while (k < n && *sum < top_p * total) {
    best x = {-INFINITY, INT32_MAX}; /* `at` in the list, which is in id order: ties as by id */
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < n; i += THREADS) {
      best y = {list[i].logit, i};
      if (list[i].id >= 0 && ahead(y, x)) x = y;
    }
    x = block_best(x);
    const candidate taken = list[x.at];
    __syncthreads(); /* all have read it */
    if (threadIdx.x == 0) {
      kept[k] = taken;
      list[x.at].id = -1;
    }
    __syncthreads();
    *sum += taken.share;
    k++;
  }
  return k;
}

/* One thread: the candidate on which the draw falls. step -1: from the last one to the first. */
BTC_DEVICE int32_t draw(const candidate *list, int32_t n, int step, double total, double uniform) {
  const double point = uniform * total;
  double sum = 0;
  int32_t at = step > 0 ? 0 : n - 1, last = list[at].id;
  for (int32_t i = 0; i < n; i++, at += step) {
    if (!(list[at].share > 0)) continue;
    sum += list[at].share;
    last = list[at].id;
    if (sum > point) break;
  }
  return last;
}

/* The id drawn, right in thread 0. list and kept have room for the vocabulary. */
BTC_DEVICE int32_t sample_id(candidate *list, candidate *kept, const float *logits, int32_t vocab, float max, btc_cuda_sampling g) {
  BTC_SHARED(double, sums, 1);
  const float floor = g.top_k > 0 && g.top_k < vocab ? kth_largest(logits, vocab, g.top_k) : -INFINITY;
  int32_t n = list_candidates(list, logits, vocab, max, floor, g.temperature);
  if (threadIdx.x == 0) {
    double total = 0;
    for (int32_t i = 0; i < n; i++) total += list[i].share;
    sums[0] = total;
  }
  __syncthreads();
  double total = sums[0];
  int step = 1;
  if (g.top_p < 1) {
    n = keep_nucleus(kept, list, n, total, g.top_p, &total);
    list = kept;
    step = -1;
  }
  return threadIdx.x == 0 ? draw(list, n, step, total, g.uniform) : 0;
}

static __global__ void __launch_bounds__(THREADS) sample(btc_cuda_pick *picks, const float *all_logits, int64_t stride,
                                                         int32_t vocab, const btc_cuda_sampling *settings, candidate *scratch) {
  BTC_SHARED(int32_t, id, 1);
  let_next_begin();
  await_launch_before();
  const int64_t row = blockIdx.x;
  const float *logits = all_logits + row * stride;
  int32_t broken;
  const best top = find_largest(logits, vocab, &broken);
  if (broken != INT32_MAX || top.logit == -INFINITY) {
    if (threadIdx.x == 0) picks[row] = {broken != INT32_MAX ? broken : 0, broken != INT32_MAX ? 1 : 2, 0.0};
    return;
  }
  if (threadIdx.x == 0) id[0] = top.at;
  if (settings && settings[row].temperature > 0) {
    candidate *list = scratch + row * 2 * vocab;
    const int32_t drawn = sample_id(list, list + vocab, logits, vocab, top.logit, settings[row]);
    if (threadIdx.x == 0) id[0] = drawn;
  }
  double sum = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < vocab; i += THREADS)
    sum += static_cast<double>(expf(logits[i] - top.logit));
  sum = block_sum(sum);
  if (threadIdx.x == 0) picks[row] = {id[0], 0, static_cast<double>(logits[id[0]]) - top.logit - log(sum)};
}

size_t btc_cuda_sample_scratch(int64_t m, int64_t vocab) {
  return static_cast<size_t>(m) * static_cast<size_t>(vocab) * 2 * sizeof(candidate);
}

int btc_cuda_sample(btc_cuda_pick *picks, const float *logits, int64_t stride, int64_t m, int64_t vocab,
                    const btc_cuda_sampling *settings, void *scratch, btc_cuda_stream s) {
  if (m <= 0) return 0;
  return BTC_LAUNCH_EARLY(sample, static_cast<unsigned>(m), THREADS, 0, s, picks, logits, stride, static_cast<int32_t>(vocab),
                          settings, static_cast<candidate *>(scratch));
}
