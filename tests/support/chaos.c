#define _GNU_SOURCE
#include "chaos.h"

#include <signal.h>
#include <stdio.h>
#include <time.h>

#include "test.h"

uint64_t chaos_seed(void) {
  const char *text = getenv("BTCCHAT_SEED");
  uint64_t s = text ? strtoull(text, NULL, 10) : (uint64_t)time(NULL);
  print_message("BTCCHAT_SEED=%llu\n", (unsigned long long)s);
  return s ? s : 1;
}

/* xorshift64*: reproducible, and nothing else is asked of it. */
unsigned chaos_pick(chaos *x, unsigned n) {
  x->state ^= x->state >> 12;
  x->state ^= x->state << 25;
  x->state ^= x->state >> 27;
  return (unsigned)((x->state * 2685821657736338717u) >> 33) % n;
}

enum { SANITIZER = 66 }; /* exit code of a report (cmake/tests.cmake) */

static bool runs(daemon_process *d) {
  if (daemon_alive(d)) return true;
  if ((d->code < 0 && d->code != -SIGTERM) || d->code == SANITIZER) {
    daemon_show(d);
    fail_msg("%s ended with %d", d->args[0], d->code);
  }
  return false;
}

void chaos_revive(chaos *x) {
  for (int i = 0; i < x->c.o.workers; i++) {
    if (x->wake_ms[i] && test_now_ms() >= x->wake_ms[i]) {
      daemon_signal(&x->c.worker[i], SIGCONT);
      x->wake_ms[i] = 0;
    }
    if (!runs(&x->c.worker[i])) {
      x->wake_ms[i] = 0;
      cluster_start_worker(&x->c, i);
    }
  }
  for (int i = 0; i < x->c.o.brokers; i++)
    if (!runs(&x->c.broker[i])) cluster_start_broker(&x->c, i);
}

void chaos_hurt(chaos *x) {
  unsigned what = chaos_pick(x, 20), w = chaos_pick(x, (unsigned)x->c.o.workers);
  if (what < 9) {
    daemon_kill(&x->c.worker[w]);
    x->workers++;
  } else if (what < 14 && !x->wake_ms[w]) {
    daemon_signal(&x->c.worker[w], SIGSTOP);
    x->wake_ms[w] = test_now_ms() + 900 + chaos_pick(x, 2500); /* shorter and longer than what counts as dead */
    x->stopped++;
  } else if (what < 16) {
    daemon_signal(&x->c.worker[w], SIGTERM);
    x->drained++;
  } else if (what < 18) {
    daemon_kill(&x->c.broker[chaos_pick(x, (unsigned)(x->c.o.brokers - x->spare_broker))]);
    x->brokers++;
  } else {
    redis_server_kill(x->c.redis);
    test_sleep_ms((int)chaos_pick(x, 300));
    redis_server_restart(x->c.redis);
    x->redis++;
  }
}

void chaos_calm(chaos *x) {
  for (int i = 0; i < x->c.o.workers; i++) x->wake_ms[i] = x->wake_ms[i] ? 1 : 0;
  chaos_revive(x);
}

void chaos_show(const chaos *x) {
  print_message("%d workers killed, %d stopped, %d drained, %d brokers killed, Redis killed %d times\n", x->workers, x->stopped,
                x->drained, x->brokers, x->redis);
}
