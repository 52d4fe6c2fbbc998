/* Shared memory of a block, and the copies of cp.async. */
#include "block.h"
#include "race.h"
#include "traffic.h"

#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) (static_cast<void>(p), static_cast<void>(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) (static_cast<void>(p), static_cast<void>(n))
#endif

enum { STATIC_LIMIT = 48 << 10, MAX_SITES = 64, RED_ZONE = 64, POISON = 0xff, CANARY = 0xa5 };

struct site {
  const void *key;
  void *at;
};

static unsigned char arena[STATIC_LIMIT + MAX_SITES * 2 * RED_ZONE] __attribute__((aligned(128)));
static site sites[MAX_SITES];
static int n_sites;
static size_t used, used_static;

static unsigned char *dynamic;
static size_t dynamic_size;

shared_range btc_shim_static = {reinterpret_cast<uintptr_t>(arena), reinterpret_cast<uintptr_t>(arena) + sizeof arena};
shared_range btc_shim_moving;

bool btc_shim_memory_launch(size_t bytes) {
  void *p = nullptr;
  if (posix_memalign(&p, 128, bytes + RED_ZONE) != 0) return false;
  dynamic = static_cast<unsigned char *>(p);
  dynamic_size = bytes;
  btc_shim_moving = {reinterpret_cast<uintptr_t>(p), reinterpret_cast<uintptr_t>(p) + bytes + RED_ZONE};
  memset(dynamic + bytes, CANARY, RED_ZONE);
  ASAN_POISON_MEMORY_REGION(dynamic + bytes, RED_ZONE);
  return true;
}

void btc_shim_memory_block() {
  n_sites = 0;
  used = RED_ZONE;
  used_static = 0;
  ASAN_POISON_MEMORY_REGION(arena, sizeof arena);
  memset(dynamic, POISON, dynamic_size);
}

void btc_shim_memory_block_end() {
#if !defined(__SANITIZE_ADDRESS__)
  for (int i = 0; i < RED_ZONE; i++)
    if (dynamic[dynamic_size + static_cast<size_t>(i)] != CANARY)
      btc_shim_fail("a write %d bytes behind the %zu bytes of dynamic shared memory", i, dynamic_size);
#endif
}

void btc_shim_memory_end() {
  ASAN_UNPOISON_MEMORY_REGION(dynamic, dynamic_size + RED_ZONE);
  ASAN_UNPOISON_MEMORY_REGION(arena, sizeof arena);
  free(dynamic);
  dynamic = nullptr;
  btc_shim_moving = {};
}

void *btc_shim_dynamic() {
  return dynamic;
}

void *btc_shim_shared(const void *key, size_t bytes, size_t align) {
  for (int i = 0; i < n_sites; i++)
    if (sites[i].key == key) return sites[i].at;
  used_static += bytes;
  if (used_static > STATIC_LIMIT || n_sites == MAX_SITES)
    btc_shim_fail("%zu bytes of static shared memory, of at most %d in %d arrays", used_static, STATIC_LIMIT, MAX_SITES);
  if (used_static + dynamic_size > MOST_SHARED)
    btc_shim_fail("%zu bytes of static and %zu of dynamic shared memory, of at most %d together", used_static, dynamic_size,
                  MOST_SHARED);
  used = (used + align - 1) / align * align;
  unsigned char *at = arena + used;
  used += (bytes + 15) / 16 * 16 + RED_ZONE;
  ASAN_UNPOISON_MEMORY_REGION(at, bytes);
  memset(at, POISON, bytes);
  sites[n_sites++] = {key, at};
  return at;
}

/* ---- cp.async ---- */

/* Its two sides are two places, both inside the call. */
static void watch_copy(const pending_copy &c, const char *from) {
  uintptr_t dst = reinterpret_cast<uintptr_t>(c.dst), src = reinterpret_cast<uintptr_t>(c.src);
  size_t bytes = static_cast<size_t>(c.bytes), valid = static_cast<size_t>(c.valid);
  if (btc_shim_counts) {
    if (valid) btc_shim_traffic_access(src, bytes, false, from);
    btc_shim_traffic_access(dst, bytes, true, from - 1);
  }
  btc_shim_race_access(src, valid, READ, from);
  btc_shim_race_copy(dst, bytes, from);
}

void btc_shim_cp_async(void *dst, const void *src, int bytes, int valid) {
  shim_thread *t = btc_shim_current();
  if (bytes != 4 && bytes != 8 && bytes != 16) btc_shim_fail("cp.async of %d bytes", bytes);
  if (reinterpret_cast<uintptr_t>(dst) % static_cast<unsigned>(bytes) ||
      reinterpret_cast<uintptr_t>(src) % static_cast<unsigned>(bytes))
    btc_shim_fail("cp.async of %d bytes at an address that is no multiple of it", bytes);
  if (t->n_copies == MAX_COPIES) btc_shim_fail("more than %d copies of one thread pending", MAX_COPIES);
  t->copies[t->n_copies++] = {dst, src, bytes, valid, t->group};
  if (btc_shim_watches) watch_copy(t->copies[t->n_copies - 1], static_cast<const char *>(__builtin_return_address(0)));
}

void btc_shim_cp_async_commit() {
  btc_shim_current()->group++;
}

void btc_shim_cp_async_wait(int groups) {
  shim_thread *t = btc_shim_current();
  int kept = 0;
  for (int i = 0; i < t->n_copies; i++) {
    pending_copy *c = &t->copies[i];
    if (c->group >= t->group - groups) {
      t->copies[kept++] = *c;
      continue;
    }
    memcpy(c->dst, c->src, static_cast<size_t>(c->valid));
    memset(static_cast<char *>(c->dst) + c->valid, 0, static_cast<size_t>(c->bytes - c->valid));
    if (btc_shim_watches) btc_shim_race_copied(reinterpret_cast<uintptr_t>(c->dst), static_cast<size_t>(c->bytes));
  }
  t->n_copies = kept;
}
