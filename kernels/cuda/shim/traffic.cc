#include "traffic.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "block.h"
#include "race.h"

enum { WARPS = MAX_THREADS / 32, BANKS = 32, WORD = 4, SECTOR = 32 };

/* From one place, since the warp last met. */
struct pending {
  size_t bytes;
  bool shared, write;
  std::vector<uintptr_t> lane[32];
};

struct total {
  size_t bytes;
  bool shared, write;
  int64_t requests, cost, least;
  int worst;
};

bool btc_shim_counts;

static std::string kernel;
static std::unordered_map<uint32_t, pending> waiting[WARPS];
static std::map<std::pair<std::string, uint32_t>, total> totals;

void btc_shim_traffic_begin() {
  btc_shim_counts = true;
  totals.clear();
}

void btc_shim_traffic_end() {
  btc_shim_counts = false;
}

void btc_shim_traffic_launch(const char *name) {
  kernel = name;
}

void btc_shim_traffic_access(uintptr_t p, size_t bytes, bool write, const void *from) {
  int t = btc_shim_running;
  auto &at = waiting[t / 32][btc_shim_place(from)];
  at.bytes = bytes;
  at.shared = btc_shim_is_shared(p);
  at.write = write;
  at.lane[t % 32].push_back(p);
}

static void sort_out(std::vector<uintptr_t> *v) {
  std::sort(v->begin(), v->end());
  v->erase(std::unique(v->begin(), v->end()), v->end());
}

/* Passes for some lanes: the most words that one bank has to give. */
static int passes_of(std::vector<uintptr_t> words) {
  int load[BANKS] = {};
  sort_out(&words);
  for (uintptr_t w : words) load[w % BANKS]++;
  return *std::max_element(load, load + BANKS);
}

/* at[32]: addresses, 0 where a lane takes no part. */
static int bank_passes(const uintptr_t *at, size_t bytes, int *least) {
  int together = bytes <= WORD ? 32 : bytes <= 2 * WORD ? 16 : 8, passes = 0;
  *least = 0;
  for (int first = 0; first < 32; first += together) {
    std::vector<uintptr_t> words;
    for (int i = first; i < first + together; i++)
      for (size_t w = 0; at[i] && w < bytes; w += WORD) words.push_back((at[i] + w) / WORD);
    if (words.empty()) continue;
    passes += passes_of(std::move(words));
    ++*least;
  }
  return passes;
}

static int sectors(const uintptr_t *at, size_t bytes, int *least) {
  std::vector<uintptr_t> touched, wanted;
  for (int i = 0; i < 32; i++) {
    if (!at[i]) continue;
    wanted.push_back(at[i]);
    for (uintptr_t s = at[i] / SECTOR; s <= (at[i] + bytes - 1) / SECTOR; s++) touched.push_back(s);
  }
  sort_out(&touched);
  sort_out(&wanted);
  *least = static_cast<int>((wanted.size() * bytes + SECTOR - 1) / SECTOR);
  return static_cast<int>(touched.size());
}

static void count(uint32_t place, const pending &p) {
  total &t = totals[{kernel, place}];
  t.bytes = p.bytes;
  t.shared = p.shared;
  t.write = p.write;
  size_t most = 0;
  for (const auto &lane : p.lane) most = std::max(most, lane.size());
  for (size_t i = 0; i < most; i++) {
    uintptr_t at[32];
    int least = 0;
    for (int l = 0; l < 32; l++) at[l] = i < p.lane[l].size() ? p.lane[l][i] : 0;
    int cost = p.shared ? bank_passes(at, p.bytes, &least) : sectors(at, p.bytes, &least);
    t.requests++;
    t.cost += cost;
    t.least += least;
    t.worst = std::max(t.worst, cost);
  }
}

static void flush(std::unordered_map<uint32_t, pending> *warp) {
  for (const auto &at : *warp) count(at.first, at.second);
  warp->clear();
}

void btc_shim_traffic_meet(int warp) {
  if (warp >= 0) return flush(&waiting[warp]);
  for (auto &w : waiting) flush(&w);
}

void btc_shim_traffic_each(void (*f)(void *context, const btc_shim_traffic *row), void *context) {
  char where[300];
  for (const auto &entry : totals) {
    const total &t = entry.second;
    btc_shim_where(entry.first.second, where, sizeof where);
    btc_shim_traffic row = {
        entry.first.first.c_str(), where, t.shared, t.write, static_cast<int>(t.bytes), t.requests, t.cost, t.least, t.worst};
    f(context, &row);
  }
}
