/* The ranks of a pipeline on this machine: started, watched, replaced. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "pipe_parts.h"

/* ---- faults ---- */

static void set_cause(pipe_driver *p, btc_status st, const char *text) {
  if (!p->fault) p->fault_ns = btc_now_ns();
  btc_fail(&p->cause, st, "%s", text);
  p->fault = true;
}

void pipe_break(pipe_driver *p, btc_status st, const char *fmt, ...) {
  va_list ap;
  char text[sizeof p->cause.message];
  bool tells_more = st == BTC_ERR_NOMEM && p->cause.code == BTC_ERR_IO && !p->dead;
  if (p->fault && !tells_more) return;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  set_cause(p, st, text);
}

/* A death explains the links that closed before it was known. */
static void mourn(pipe_driver *p, int r, const char *how, bool oom) {
  char text[256];
  if (p->dead) return;
  snprintf(text, sizeof text, "rank %d %s", r, how);
  set_cause(p, oom ? BTC_ERR_NOMEM : BTC_ERR_IO, text);
  p->dead = true;
}

/* Of this rank. */
static void name_device(const pipe_driver *p, int r, char out[24]) {
  if (p->cards)
    snprintf(out, 24, "cuda:%d", r % p->cards);
  else
    snprintf(out, 24, "%.15s", p->o.device);
}

static bool shares_card(const pipe_driver *p) {
  return strncmp(p->o.device, "cuda", 4) == 0 && p->n_ranks > p->cards;
}

btc_status pipe_rank_start(pipe_driver *p, int r, btc_error *err) {
  pipe_rank *k = &p->rank[r];
  char device[24], host[32];
  name_device(p, r, device);
  snprintf(host, sizeof host, "btcchat-%d-%d", (int)getpid(), r);
  const shard_start o = {.program = p->o.program,
                         .model = p->model_dir,
                         .device = device,
                         .dtype = p->precision == BTC_PRECISION_BF16 ? "bf16" : "f32",
                         .threads = p->o.threads,
                         .first = k->first,
                         .last = k->last,
                         .links_fd = -1,
                         .host = p->o.tensors == PIPE_TENSORS_NCCL && shares_card(p) ? host : NULL,
                         .fail = p->o.fail && p->o.fail_rank == r && k->starts == 0 ? p->o.fail : NULL};
  pthread_mutex_lock(&p->pages);
  shard_process_end(&k->process);
  btc_status st = shard_process_start(&k->process, &o, err);
  pthread_mutex_unlock(&p->pages);
  k->starts += st == BTC_OK;
  return st;
}

static void replace_wedged(pipe_driver *p, int r, const char *how) {
  shard_process *k = &p->rank[r].process;
  mourn(p, r, how, false);
  pthread_mutex_lock(&p->pages);
  if (p->o.leave_wedged) {
    k->control = -1; /* stays open (and leaks, in a test): it is to believe that it still belongs */
    shard_process_forget(k);
  } else {
    shard_process_end(k);
  }
  pthread_mutex_unlock(&p->pages);
}

static bool has_died(pipe_driver *p, int r, char how[64], bool *oom) {
  pthread_mutex_lock(&p->pages);
  bool died = shard_process_died(&p->rank[r].process, how, oom);
  pthread_mutex_unlock(&p->pages);
  return died;
}

static void hear(pipe_driver *p, int r, const shard_report *w) {
  if (w->said == SHARD_BROKEN && w->epoch == p->epoch && w->epoch > p->abandoned)
    pipe_break(p, (btc_status)w->status, "rank %d: %s", r, w->message);
  if (w->said == SHARD_FAILED) pipe_break(p, (btc_status)w->status, "rank %d cannot start: %s", r, w->message);
}

static void watch_rank(pipe_driver *p, int r) {
  shard_process *k = &p->rank[r].process;
  shard_report w;
  char how[64];
  bool oom;
  while (shard_process_hear(k, &w)) hear(p, r, &w);
  if (has_died(p, r, how, &oom)) {
    mourn(p, r, how, oom);
    return;
  }
  if (k->pid && !k->open && btc_now_ns() - k->started_ns > (int64_t)p->o.open_ms * 1000000)
    replace_wedged(p, r, "did not open the model in time");
  if (k->pid && k->open && shard_process_stands_still(k, p->o.wedge_ms)) replace_wedged(p, r, "stands still");
}

void pipe_watch(pipe_driver *p) {
  if (p->remote) pipe_remote_watch(p);
  for (int r = 0; r < p->n_ranks && !p->remote; r++) watch_rank(p, r);
}

bool pipe_has_fault(void *driver) {
  pipe_driver *p = driver;
  if (p->o.progress) __atomic_add_fetch(p->o.progress, 1, __ATOMIC_RELAXED);
  pipe_watch(p);
  return p->fault || (p->o.cancel && *p->o.cancel);
}

size_t pipe_devices(pipe_driver *p, btc_device_info *out, size_t room) {
  size_t n = 0;
  pthread_mutex_lock(&p->pages);
  for (int r = 0; r < p->n_ranks && !p->remote && n < room; r++) {
    if (!shard_process_device(&p->rank[r].process, &out[n])) continue;
    bool seen = false; /* ranks may share a card */
    for (size_t i = 0; i < n; i++) seen = seen || out[i].index == out[n].index;
    n += !seen;
  }
  pthread_mutex_unlock(&p->pages);
  return n;
}
