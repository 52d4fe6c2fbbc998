/*
 * What gcc's -fsanitize=thread calls in instrumented kernels, in place of its own library: that one watches threads of the system,
 * this one the fibers of a launch. Nothing here or below is instrumented itself. Host code of kernel files, a thread's own stack
 * and the shim's own variables are let through unseen.
 */
#include "block.h"
#include "race.h"
#include "traffic.h"

#define FROM __builtin_return_address(0)
#define TSAN extern "C" __attribute__((visibility("default"))) void

static inline void see(const void *p, size_t bytes, access_kind kind, const void *from) {
  if (btc_shim_running < 0 || btc_shim_is_own(p) || btc_fiber_on_stack(p)) return;
  if (btc_shim_counts)
    btc_shim_traffic_access(reinterpret_cast<uintptr_t>(p), bytes, kind == WRITE || kind == VOLATILE_WRITE, from);
  btc_shim_race_access(reinterpret_cast<uintptr_t>(p), bytes, kind, from);
}

TSAN __tsan_init() {
  btc_shim_watches = true;
}

#define ACCESS(name, bytes, kind)     \
  TSAN __tsan_##name(const void *p) { \
    see(p, bytes, kind, FROM);        \
  }
#define ACCESSES(name, bytes)                                 \
  ACCESS(read##name, bytes, READ)                             \
  ACCESS(write##name, bytes, WRITE)                           \
  ACCESS(unaligned_read##name, bytes, READ)                   \
  ACCESS(unaligned_write##name, bytes, WRITE)                 \
  ACCESS(volatile_read##name, bytes, VOLATILE_READ)           \
  ACCESS(volatile_write##name, bytes, VOLATILE_WRITE)         \
  ACCESS(unaligned_volatile_read##name, bytes, VOLATILE_READ) \
  ACCESS(unaligned_volatile_write##name, bytes, VOLATILE_WRITE)
ACCESSES(1, 1)
ACCESSES(2, 2)
ACCESSES(4, 4)
ACCESSES(8, 8)
ACCESSES(16, 16)

TSAN __tsan_read_range(const void *p, unsigned long bytes) {
  see(p, bytes, READ, FROM);
}
TSAN __tsan_write_range(const void *p, unsigned long bytes) {
  see(p, bytes, WRITE, FROM);
}
TSAN __tsan_func_entry(const void *) {
}
TSAN __tsan_func_exit() {
}
TSAN __tsan_vptr_update(void **, const void *) {
}

/* Of host code in kernel files; a kernel's own atomics are functions of shim.h. */
extern "C" uint8_t __tsan_atomic8_load(const uint8_t *p, int) {
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
TSAN __tsan_atomic8_store(uint8_t *p, uint8_t v, int) {
  __atomic_store_n(p, v, __ATOMIC_SEQ_CST);
}
