/*
 * Vector clocks, cheap where kernels are usual: a barrier of the whole block and a __syncwarp of a whole warp each write one
 * tick a thread (`all`, `warp`); only a barrier of some warps or one of some lanes wants a row a thread.
 */
#include "clock.h"

#include <algorithm>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

typedef std::vector<uint32_t> ticks;                            /* one a thread of a block */
typedef std::map<uint32_t, std::shared_ptr<const ticks>> facts; /* by block */
typedef std::shared_ptr<const facts> known;                     /* NULL: nothing */

/* Of a thread, beside its ticks. */
struct beyond {
  known outside; /* of other blocks */
  known fenced;  /* what its last fence, or one of a thread it met since, stood behind: its atomics hand this on */
  known seen;    /* what its atomics saw: the next fence makes it `outside` */
};

btc_shim_clock btc_shim_now = {1, 1, 1, 0, {}, {}, {}, nullptr};

static ticks rows;
static beyond threads[MAX_THREADS];
static bool beyond_used; /* in this block */
static std::unordered_map<uintptr_t, known> words, shared_words;

static std::shared_ptr<const ticks> join_ticks(const std::shared_ptr<const ticks> &a, const std::shared_ptr<const ticks> &b) {
  if (a == b) return a;
  auto both = std::make_shared<ticks>(*a);
  for (size_t i = 0; i < both->size(); i++) (*both)[i] = std::max((*both)[i], (*b)[i]);
  return both;
}

static known join(const known &a, const known &b) {
  if (!a || a == b) return b;
  if (!b) return a;
  auto both = std::make_shared<facts>(*a);
  for (const auto &f : *b) {
    auto &mine = (*both)[f.first];
    mine = mine ? join_ticks(mine, f.second) : f.second;
  }
  return both;
}

bool btc_shim_clock_launch(int n_threads, uint64_t blocks) {
  btc_shim_clock *c = &btc_shim_now;
  bool again = blocks >= UINT32_MAX - c->next;
  c->n = n_threads;
  c->first = again ? 1 : c->next;
  c->next = c->first + static_cast<uint32_t>(blocks);
  words.clear();
  return again;
}

void btc_shim_clock_block(uint64_t index) {
  btc_shim_clock *c = &btc_shim_now;
  c->block = c->first + static_cast<uint32_t>(index);
  c->rows = nullptr;
  for (int i = 0; i < c->n; i++) {
    c->tick[i] = 1;
    c->all[i] = c->warp[i] = 0;
  }
  shared_words.clear();
  if (!beyond_used) return;
  for (auto &t : threads) t = {};
  beyond_used = false;
}

/* What t knows of each thread of its block. */
static ticks knowledge_of(int t) {
  const btc_shim_clock *c = &btc_shim_now;
  ticks k(c->all, c->all + c->n);
  for (int u = t / 32 * 32; u < c->n && u / 32 == t / 32; u++)
    k[static_cast<size_t>(u)] = std::max(k[static_cast<size_t>(u)], c->warp[u]);
  if (c->rows)
    for (int u = 0; u < c->n; u++) k[static_cast<size_t>(u)] = std::max(k[static_cast<size_t>(u)], c->rows[t * c->n + u]);
  k[static_cast<size_t>(t)] = c->tick[t];
  return k;
}

static uint32_t *row_of(int t) {
  btc_shim_clock *c = &btc_shim_now;
  size_t n = static_cast<size_t>(c->n);
  if (!c->rows) {
    rows.assign(n * n, 0);
    c->rows = rows.data();
  }
  return rows.data() + static_cast<size_t>(t) * n;
}

static void join_row(int t, const ticks &k) {
  uint32_t *row = row_of(t);
  for (size_t u = 0; u < k.size(); u++) row[u] = std::max(row[u], k[u]);
}

static void join_rows(const int *members, int n) {
  ticks all = knowledge_of(members[0]);
  for (int i = 1; i < n; i++) {
    ticks k = knowledge_of(members[i]);
    for (size_t u = 0; u < k.size(); u++) all[u] = std::max(all[u], k[u]);
  }
  for (int i = 0; i < n; i++) join_row(members[i], all);
}

static void join_beyond(const int *members, int n) {
  if (!beyond_used) return;
  beyond all;
  for (int i = 0; i < n; i++) {
    const beyond &t = threads[members[i]];
    all = {join(all.outside, t.outside), join(all.fenced, t.fenced), join(all.seen, t.seen)};
  }
  for (int i = 0; i < n; i++) threads[members[i]] = all;
}

void btc_shim_clock_meet(const int *members, int n) {
  btc_shim_clock *c = &btc_shim_now;
  join_beyond(members, n);
  if (n == c->n) {
    for (int i = 0; i < n; i++) c->all[i] = c->tick[i];
    c->rows = nullptr;
  } else {
    join_rows(members, n);
  }
  for (int i = 0; i < n; i++) c->tick[members[i]]++;
}

void btc_shim_clock_meet_warp(int warp, unsigned mask) {
  btc_shim_clock *c = &btc_shim_now;
  int base = warp * 32, lanes = std::min(c->n - base, 32), members[32] = {}, n = 0;
  for (int i = 0; i < lanes; i++)
    if (mask >> i & 1) members[n++] = base + i;
  join_beyond(members, n);
  if (n < lanes || c->rows) join_rows(members, n);
  for (int i = 0; i < n; i++) {
    int t = members[i];
    if (n == lanes) c->warp[t] = c->tick[t];
    c->tick[t]++;
  }
}

void btc_shim_clock_fence(int thread) {
  btc_shim_clock *c = &btc_shim_now;
  beyond *t = &threads[thread];
  beyond_used = true;
  t->outside = join(t->outside, t->seen);
  if (t->seen && t->seen->count(c->block)) join_row(thread, *t->seen->at(c->block));
  t->seen = nullptr;
  auto k = t->outside ? std::make_shared<facts>(*t->outside) : std::make_shared<facts>();
  (*k)[c->block] = std::make_shared<ticks>(knowledge_of(thread));
  t->fenced = k;
  c->tick[thread]++; /* what comes now is not behind the fence */
}

void btc_shim_clock_word(int thread, uintptr_t p, bool shared, word_use use) {
  auto &all = shared ? shared_words : words;
  beyond *t = &threads[thread];
  auto at = all.find(p);
  known old = at == all.end() ? nullptr : at->second;
  if (use != WORD_STORE && old) {
    beyond_used = true;
    t->seen = join(t->seen, old);
  }
  if (use == WORD_LOAD || (!old && !t->fenced)) return;
  all[p] = use == WORD_STORE ? t->fenced : join(old, t->fenced);
}

bool btc_shim_clock_knows_outside(int t, uint32_t block, int thread, uint32_t tick) {
  const known &k = threads[t].outside;
  if (!k) return false;
  auto at = k->find(block);
  return at != k->end() && tick <= (*at->second)[static_cast<size_t>(thread)];
}
