/* The processes of a member, the watch over them, and its life: see agent_member.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent_member_parts.h"

enum { WATCH_MS = 250, WEDGE_MS = 3000, DRIVER_WEDGE_MS = 5000, OPEN_MS = 60000, LOAD_MS = 2000 };

/* ---- the two processes ---- */

void member_tell_driver(const member *m, shard_told told) {
  shard_order o = m->driver_order;
  o.version = SHARD_VERSION;
  o.told = told;
  o.epoch = m->epoch;
  if (m->control >= 0 && send(m->control, &o, sizeof o, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) return; /* the deadline tells */
}

static void on_event(void *ctx, int events);

static void watch_fd(agent *a, int fd) {
  btc_error err;
  if (fd >= 0 && btc_loop_set_fd(a->loop, fd, BTC_LOOP_READ, on_event, a, &err) != BTC_OK)
    agent_log(a, "not-watched", "why=\"%s\"", err.message); /* the timer looks after it, only later */
}

static void forget_fd(agent *a, int fd) {
  if (fd >= 0) btc_loop_set_fd(a->loop, fd, 0, NULL, NULL, NULL);
}

static void end_shard(agent *a) {
  member *m = a->member;
  if (!m->shard.pid) return;
  forget_fd(a, m->shard.control);
  forget_fd(a, m->shard.pidfd);
  shard_process_end(&m->shard);
}

btc_status member_start_shard(agent *a, int first, int last, btc_error *err) {
  member *m = a->member;
  const char *dtype = strrchr(a->model_class, '-'); /* what the driver settled on */
  const shard_start o = {.model = a->o->model,
                         .device = a->o->device,
                         .dtype = dtype && !strcmp(dtype, "-bf16") ? "bf16" : "f32",
                         .threads = a->o->threads,
                         .first = first,
                         .last = last,
                         .links_fd = m->links_fd};
  end_shard(a);
  btc_status st = shard_process_start(&m->shard, &o, err);
  if (st != BTC_OK) return st;
  m->first = first;
  m->last = last;
  m->busy_ns = m->items = 0;
  watch_fd(a, m->shard.control);
  watch_fd(a, m->shard.pidfd);
  return BTC_OK;
}

/* ---- watching ---- */

static void hear_shard(agent *a, const shard_report *w) {
  member *m = a->member;
  if (w->said == SHARD_OPEN) member_try_order(a);
  if (w->said == SHARD_FAILED) member_broken(a, (btc_status)w->status, w->message);
  if (w->epoch != m->epoch) return;
  if (w->said == SHARD_READY) m->shard_ready = true;
  if (w->said == SHARD_BROKEN) member_broken(a, (btc_status)w->status, w->message);
}

static void hear_driver(agent *a, const shard_report *w) {
  member *m = a->member;
  if (w->version != SHARD_VERSION || w->epoch != m->epoch || !member_drives(m)) return;
  if (w->said == SHARD_READY) m->driver_ready = true;
  if (w->said == SHARD_BROKEN) member_broken(a, (btc_status)w->status, w->message);
}

void member_listen(agent *a) {
  member *m = a->member;
  shard_report w;
  char how[64], cause[128];
  bool oom;
  int control = m->shard.control, pidfd = m->shard.pidfd;
  while (shard_process_hear(&m->shard, &w)) hear_shard(a, &w);
  while (m->control >= 0 && recv(m->control, &w, sizeof w, MSG_DONTWAIT) == (ssize_t)sizeof w) {
    w.message[sizeof w.message - 1] = 0;
    hear_driver(a, &w);
  }
  if (m->shard.pid && shard_process_died(&m->shard, how, &oom)) {
    forget_fd(a, control);
    forget_fd(a, pidfd);
    snprintf(cause, sizeof cause, "its process %s", how);
    member_broken(a, oom ? BTC_ERR_NOMEM : BTC_ERR_IO, cause);
  }
  member_try_ready(a);
}

static void on_event(void *ctx, int events) {
  (void)events;
  member_listen(ctx);
}

static void watch_shard(agent *a) {
  member *m = a->member;
  const char *why = NULL;
  if (!m->shard.pid) return;
  if (!m->shard.open && btc_now_ns() - m->shard.started_ns > (int64_t)OPEN_MS * AGENT_MS)
    why = "its process did not open the model in time";
  if (m->shard.open && shard_process_stands_still(&m->shard, WEDGE_MS)) why = "its process stands still";
  if (!why) return;
  end_shard(a);
  member_broken(a, BTC_ERR_IO, why);
}

/* With items in hand it turns its counter; one that neither does nor uses its processor is stopped or stuck. */
static void watch_driver(agent *a) {
  member *m = a->member;
  int64_t now = btc_loop_now_ns(a->loop);
  if (m->st != MEMBER_ACTIVE || m->rank || !a->child || !a->child_ready || !ledger_given(a->ledger) ||
      a->child_progress != m->seen_progress) {
    m->seen_progress = a->child_progress;
    m->seen_ns = now;
    return;
  }
  if (now - m->seen_ns < (int64_t)DRIVER_WEDGE_MS * AGENT_MS) return;
  uint64_t cpu = shard_processor_ticks(child_pid(a->child));
  bool still = cpu == m->seen_cpu;
  m->seen_cpu = cpu;
  m->seen_ns = now;
  if (!still) return;
  agent_log(a, "driver-stands-still", "epoch=%llu", (unsigned long long)m->epoch);
  child_kill(a->child, false); /* its death is told as any other */
}

static void on_watch(void *ctx) {
  agent *a = ctx;
  member *m = a->member;
  btc_timer_after_ms(m->timer, WATCH_MS);
  if (!m->on) return;
  member_listen(a);
  watch_shard(a);
  watch_driver(a);
  if (m->st != MEMBER_ACTIVE && member_idle_too_long(a)) member_hand_back(a, "no pipe to compute them");
}

/* ---- the driver's life ---- */

btc_status member_before_child(agent *a, child_extra *storage, const child_extra **extra, btc_error *err) {
  member *m = a->member;
  int pair[2];
  *extra = NULL;
  if (!m) return BTC_OK;
  member_child_died(a);
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
    return btc_fail(err, BTC_ERR_IO, "cannot make a socket pair: %s", strerror(errno));
  m->control = pair[0];
  watch_fd(a, m->control);
  *storage = (child_extra){.control = pair[1], .links = m->links_fd};
  *extra = storage;
  return BTC_OK;
}

void member_after_child(agent *a, const child_extra *extra) {
  (void)a;
  if (extra) close(extra->control);
}

void member_child_died(agent *a) {
  member *m = a->member;
  if (!m || m->control < 0) return;
  forget_fd(a, m->control);
  close(m->control);
  m->control = -1;
  if (member_drives(m)) member_broken(a, BTC_ERR_IO, "the driver died");
}

/* Owns what it keeps of the message. */
static btc_status keep_caps(member *m, const Btc__ChildReady *r, btc_error *err) {
  measure_result c = {.n = r->n_blocks, .slots = r->slots, .fixed_bytes = r->fixed_bytes, .nccl = (int)r->nccl};
  snprintf(c.card, sizeof c.card, "%s", r->card);
  c.block = btc_alloc_zero(c.n, sizeof *c.block);
  c.list = btc_alloc_zero(c.n, sizeof *c.list);
  m->blocks = 0;
  for (size_t i = 0; c.block && c.list && i < c.n; i++) {
    c.block[i] = *r->blocks[i];
    c.block[i].base.n_unknown_fields = 0;
    c.block[i].base.unknown_fields = NULL;
    c.list[i] = &c.block[i];
    if (c.block[i].kind == BTC_BLOCK_CHANGE) m->change = m->blocks;
    m->blocks += (int)c.block[i].count;
  }
  measure_free(&m->caps);
  m->caps = c;
  return c.block && c.list ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
}

btc_status member_child_ready(agent *a, const Btc__ChildReady *r, btc_error *err) {
  member *m = a->member;
  if (!m) return BTC_OK;
  if (!m->on && a->phase == AGENT_LOADING) {
    m->on = r->n_blocks > 0;
    m->idle_ns = btc_loop_now_ns(a->loop);
    agent_log(a, "memory", "mib=%.15g holds=%s whole-mib=%.1f link=%s", a->o->memory_mib, m->on ? "part" : "whole",
              (double)r->whole_bytes / 1048576, m->endpoint);
  }
  btc_status st = m->on ? keep_caps(m, r, err) : BTC_OK;
  return st;
}

/* ---- what the broker knows of us ---- */

/* The driver computes nothing: what computes is the rank's process, if there is one. */
static btc_devices *devices_of(member *m) {
  btc_device_info info;
  device_list_set(&m->devices, &info, shard_process_device(&m->shard, &info));
  return &m->devices;
}

void member_fill_hello(const agent *a, Btc__Hello *h) {
  member *m = a->member;
  if (!m || !m->on) return;
  btc_devices *d = devices_of(m);
  h->devices = d->list;
  h->n_devices = d->n;
  h->blocks = m->caps.list;
  h->n_blocks = m->caps.n;
  h->memory_bytes = (uint64_t)(a->o->memory_mib * 1048576);
  h->fixed_bytes = m->caps.fixed_bytes;
  h->slots = m->caps.slots;
  h->site = (char *)a->o->site;
  h->endpoint = (char *)m->endpoint;
  h->nccl = (uint32_t)m->caps.nccl;
  h->card = (char *)m->caps.card;
}

void member_fill_beat(agent *a, Btc__Heartbeat *beat) {
  member *m = a->member;
  int64_t now = btc_loop_now_ns(a->loop);
  beat->asks_not = member_waits(a);
  if (m && m->on) {
    btc_devices *d = devices_of(m);
    beat->devices = d->list;
    beat->n_devices = d->n;
  }
  if (!m || m->st != MEMBER_ACTIVE || !m->shard.page) return;
  uint64_t busy_ns = m->shard.page->busy_ns, items = m->shard.page->items;
  if (now - m->load_ns >= LOAD_MS * AGENT_MS) {
    bool fresh = m->load_ns == 0;
    if (!fresh) {
      m->busy = (double)(busy_ns - m->busy_ns) / (double)(now - m->load_ns);
      if (m->busy > 1) m->busy = 1; /* a step that began before */
      if (items > m->items) m->ms = (double)(busy_ns - m->busy_ns) * 1e-6 / (double)(items - m->items);
    }
    m->busy_ns = busy_ns;
    m->items = items;
    m->load_ns = now;
  }
  btc__pipe_load__init(&m->load);
  m->load.pipe = m->id;
  m->load.epoch = m->epoch;
  m->load.rank = m->rank;
  m->load.busy = m->busy;
  m->load.ms = m->ms;
  beat->pipe = &m->load;
}

/* ---- life ---- */

btc_status member_open(agent *a, btc_error *err) {
  char host[64];
  int32_t wanted;
  int port;
  if (a->o->memory_mib <= 0) return BTC_OK;
  if (strcmp(a->o->engine, "model") != 0 || a->o->pipe > 1)
    return btc_fail(err, BTC_ERR_ARG, "--memory is for workers with a model, and not with --pipe");
  if (!member_split_endpoint(a->o->link, host, &wanted))
    return btc_fail(err, BTC_ERR_ARG, "--link %s: expected ADDRESS:PORT, the address in numbers", a->o->link);
  if (strncmp(host, "127.", 4) != 0 && !a->o->keys)
    return btc_fail(err, BTC_ERR_ARG, "--link %s: without keys ranks speak on loopback addresses only", a->o->link);
  if (strcmp(host, "0.0.0.0") == 0)
    return btc_fail(err, BTC_ERR_ARG, "--link %s: give the address at which the other workers reach this one", a->o->link);
  if (strlen(a->o->site) > 64) return btc_fail(err, BTC_ERR_ARG, "--site: at most 64 characters");
  member *m = a->member = btc_alloc_zero(1, sizeof *m);
  if (!m) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  m->control = m->links_fd = -1;
  btc_status st = btc_link_listen_at(host, wanted, &m->links_fd, &port, err);
  if (st != BTC_OK) return st;
  snprintf(m->endpoint, sizeof m->endpoint, "%s:%d", host, port);
  m->timer = btc_timer_create(a->loop, on_watch, a);
  if (!m->timer) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  btc_timer_after_ms(m->timer, WATCH_MS);
  return BTC_OK;
}

void member_close(agent *a) {
  member *m = a->member;
  if (!m) return;
  member_child_died(a);
  end_shard(a);
  if (m->links_fd >= 0) close(m->links_fd);
  measure_free(&m->caps);
  free(m);
  a->member = NULL;
}
