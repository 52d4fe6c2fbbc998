#include "race.h"

#include <cstdio>

#include "block.h"

BTC_SHIM_OWN bool btc_shim_watches;

static bool early_launch;
static uint32_t unsettled = 1; /* the first block of the oldest launch that an early one may overlap */
static unsigned turn;          /* whose reader's place the next one takes */

void btc_shim_race_launch(int n_threads, uint64_t blocks, bool early) {
  if (btc_shim_clock_launch(n_threads, blocks)) btc_shim_shadow_forget();
  early_launch = early;
  if (!early) unsettled = btc_shim_now.first;
}

void btc_shim_settled() {
  unsettled = btc_shim_now.next;
}

/* ---- messages ---- */

static const char *verb(const btc_shim_access &a) {
  static const char *const verbs[] = {"reads", "writes", "has an atomic operation on", "reads (volatile)", "writes (volatile)"};
  return a.tick == NEVER ? "has a cp.async under way to" : verbs[a.kind];
}

static void describe(char *text, size_t size, const btc_shim_access &a) {
  char where[300];
  uint32_t index = a.block - btc_shim_now.first;
  btc_shim_where(a.place, where, sizeof where);
  snprintf(text, size, "thread %u of block (%u,%u,%u) %s it in %s", a.thread, index % gridDim.x, index / gridDim.x % gridDim.y,
           index / gridDim.x / gridDim.y, verb(a), where);
}

static void report(uintptr_t p, bool shared, const btc_shim_access &before, const btc_shim_access &now) {
  char first[400], second[400];
  describe(first, sizeof first, before);
  describe(second, sizeof second, now);
  btc_shim_fail("a race at %#zx in %s memory: %s; %s; nothing orders the two", p, shared ? "shared" : "global", first, second);
}

static void report_fault(const char *what, uintptr_t p, const btc_shim_access &now, const char *why) {
  char text[400];
  describe(text, sizeof text, now);
  btc_shim_fail("%s, at %#zx in global memory: %s; %s", what, p, text, why);
}

/* ---- the rules ---- */

static inline bool is_write(access_kind k) {
  return k == WRITE || k == ATOMIC || k == VOLATILE_WRITE;
}

static inline bool is_plain(access_kind k) {
  return k == READ || k == WRITE;
}

/* Something of this launch, and in shared memory of this block: blocks have other memory at the same address. */
static inline bool counts(const btc_shim_access &a, bool shared) {
  return shared ? a.block == btc_shim_now.block : a.block >= btc_shim_now.first;
}

static inline bool ordered(const btc_shim_access &a, int thread) {
  if (a.block == btc_shim_now.block) return btc_shim_clock_knows(thread, a.thread, a.tick);
  return btc_shim_clock_knows_outside(thread, a.block, a.thread, a.tick);
}

static inline bool races(const btc_shim_access &a, const btc_shim_access &now, bool shared) {
  return counts(a, shared) && !ordered(a, now.thread) && (is_plain(a.kind) || is_plain(now.kind));
}

/* Keeps a read, at the price of one that is ordered before it or, where there is none, of one of the same warp. */
static inline void keep_read(btc_shim_cell *c, const btc_shim_access &now, bool shared) {
  int at = -1, mate = -1;
  for (int i = 0; i < SHADOW_READERS; i++) {
    const btc_shim_access &r = c->read[i];
    if (r.block == now.block && r.thread == now.thread) {
      c->read[i] = now;
      return;
    }
    if (at < 0 && (!counts(r, shared) || ordered(r, now.thread))) at = i;
    if (r.block == now.block && r.thread / 32 == now.thread / 32) mate = i;
  }
  if (at < 0) at = mate >= 0 ? mate : static_cast<int>(turn++ % SHADOW_READERS);
  c->read[at] = now;
}

static inline void touch(btc_shim_cell *c, uintptr_t p, const btc_shim_access &now, bool shared) {
  if (c->write.block && races(c->write, now, shared)) report(p, shared, c->write, now);
  if (!is_write(now.kind)) return keep_read(c, now, shared);
  for (auto &r : c->read) {
    if (r.block == 0) continue;
    if (races(r, now, shared)) report(p, shared, r, now);
    if (is_plain(now.kind)) r.block = 0;
  }
  c->write = now;
}

/* A launch whose blocks are already there while those before it still run. */
static void check_early(const btc_shim_cell &c, uintptr_t p, const btc_shim_access &now) {
  static const char what[] = "before await_launch_before()";
  if (is_write(now.kind)) report_fault(what, p, now, "a launch before may still use it");
  if (c.write.block >= unsettled && c.write.block < btc_shim_now.first)
    report_fault(what, p, now, "a launch before may still write it");
}

template <typename F>
static void each_cell(uintptr_t p, size_t bytes, F f) {
  while (bytes) {
    size_t part = bytes;
    int n = 0;
    btc_shim_cell *cells = btc_shim_shadow(p, &part, &n);
    if (!cells) return btc_shim_fail("no memory to watch for races");
    size_t each = part / static_cast<size_t>(n);
    for (int i = 0; i < n; i++) f(&cells[i], p + static_cast<size_t>(i) * each);
    p += part;
    bytes -= part;
  }
}

static btc_shim_access access_now(access_kind kind, const void *from) {
  int t = btc_shim_running;
  return {btc_shim_now.block, btc_shim_now.tick[t], btc_shim_place(from), static_cast<uint16_t>(t), kind};
}

void btc_shim_race_access(uintptr_t p, size_t bytes, access_kind kind, const void *from) {
  const btc_shim_access now = access_now(kind, from);
  const bool shared = btc_shim_is_shared(p), early = early_launch && !shared && !btc_shim_current()->awaited;
  each_cell(p, bytes, [&](btc_shim_cell *c, uintptr_t at) {
    if (early) check_early(*c, at, now);
    touch(c, at, now, shared);
  });
  if (is_plain(kind)) return;
  word_use use = kind == ATOMIC ? WORD_BOTH : kind == VOLATILE_READ ? WORD_LOAD : WORD_STORE;
  btc_shim_clock_word(now.thread, p, shared, use);
}

void btc_shim_race_constant(uintptr_t p, size_t bytes, const void *from) {
  const btc_shim_access now = access_now(READ, from);
  const uint32_t oldest = early_launch ? unsettled : btc_shim_now.first;
  each_cell(p, bytes, [&](btc_shim_cell *c, uintptr_t at) {
    if (c->write.block >= oldest)
      report_fault("a read as constant (__ldg)", at, now, "this launch or one that may still run writes it");
  });
}

void btc_shim_foreign(const void *written, size_t bytes) {
  if (!btc_shim_watches) return;
  btc_shim_race_launch(1, 1, false);
  each_cell(reinterpret_cast<uintptr_t>(written), bytes, [](btc_shim_cell *c, uintptr_t) {
    *c = {};
    c->write = {btc_shim_now.first, 1, 0, 0, WRITE};
  });
}

void btc_shim_race_copy(uintptr_t p, size_t bytes, const void *from) {
  btc_shim_access now = access_now(WRITE, from);
  now.tick = NEVER;
  each_cell(p, bytes, [&](btc_shim_cell *c, uintptr_t at) { touch(c, at, now, true); });
}

void btc_shim_race_copied(uintptr_t p, size_t bytes) {
  const btc_shim_access now = access_now(WRITE, nullptr);
  each_cell(p, bytes, [&](btc_shim_cell *c, uintptr_t) {
    btc_shim_access &w = c->write;
    if (w.block == now.block && w.thread == now.thread && w.tick == NEVER) w.tick = now.tick;
  });
}
