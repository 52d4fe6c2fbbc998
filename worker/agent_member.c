/*
 * See agent_member.h. States of a member:
 *
 *   IDLE ──PipeForm──▶ FORMING ──our processes are linked: PipeReady──▶ READY ──PipeGo──▶ ACTIVE
 *    ▲──PipeAbort, a newer PipeForm, or something broke: PipeBroken─────┴────────────────────┘
 *
 * The rank's process keeps its weights while its range stays the same. The driver keeps its items as long as we stay rank 0; they
 * are handed back when another worker drives, or when no pipe came about for RELEASE_MS.
 */
#define _GNU_SOURCE
#include "agent_member.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "measure.h"
#include "pipe.h"
#include "shard_process.h"

enum {
  WATCH_MS = 250,
  WEDGE_MS = 3000,
  DRIVER_WEDGE_MS = 5000,
  OPEN_MS = 60000,
  RELEASE_MS = 10000,
  FRAME_MS = 60000,
  LOAD_MS = 2000
};

typedef enum member_state { MEMBER_IDLE, MEMBER_FORMING, MEMBER_READY, MEMBER_ACTIVE } member_state;

struct member {
  bool on;               /* the child said what the model is made of, and that it does not fit */
  int links_fd, control; /* control: our end to the driver; -1: there is none */
  char endpoint[80];
  measure_result caps;
  int blocks, change; /* change: the block at which the language's steps enter */
  shard_process shard;
  int first, last; /* of its process */
  member_state st;
  char id[33];
  uint64_t epoch;
  uint32_t rank, ranks;
  shard_order shard_order, driver_order;
  bool ordered, shard_ready, driver_ready;
  int64_t idle_ns; /* since when it has not been ACTIVE */
  btc_timer *timer;
  /* of the driver, while it has items */
  uint64_t seen_progress, seen_cpu;
  int64_t seen_ns;
  /* of our rank */
  uint64_t busy_ns, items;
  int64_t load_ns;
  double busy, ms;
};

static bool drives(const member *m) {
  return m->st != MEMBER_IDLE && m->rank == 0;
}

bool member_waits(const agent *a) {
  const member *m = a->member;
  return m && m->on && !(m->st == MEMBER_ACTIVE && m->rank == 0);
}

static bool too_long_idle(const agent *a) {
  return btc_loop_now_ns(a->loop) - a->member->idle_ns > (int64_t)RELEASE_MS * AGENT_MS;
}

/* Items that come while the pipe of which we are rank 0 is formed again are kept for it, for a while. */
bool member_refuses(const agent *a) {
  const member *m = a->member;
  return m && m->on && (m->rank > 0 || !m->epoch || (m->st != MEMBER_ACTIVE && too_long_idle(a)));
}

/* ---- the two processes ---- */

static void tell_driver(const member *m, shard_told told) {
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

/* The links of the epoch end, on our side. */
static void stop_epoch(agent *a) {
  member *m = a->member;
  if (m->st == MEMBER_IDLE) return;
  shard_order o = {.version = SHARD_VERSION, .told = SHARD_STOP, .epoch = m->epoch};
  if (m->shard.page) m->shard.page->cancel = 1;
  shard_process_order(&m->shard, &o);
  if (drives(m)) tell_driver(m, SHARD_STOP);
  if (m->st == MEMBER_ACTIVE) m->idle_ns = btc_loop_now_ns(a->loop);
  m->st = MEMBER_IDLE;
  link_want_beat(a);
}

static btc_status start_shard(agent *a, int first, int last, btc_error *err) {
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

/* ---- what the broker is told ---- */

static void say_ready(agent *a) {
  member *m = a->member;
  Btc__PipeReady ready = BTC__PIPE_READY__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_PIPE_READY);
  btc_error err;
  e.pipe_ready = &ready;
  ready.pipe = m->id;
  ready.epoch = m->epoch;
  ready.rank = m->rank;
  ready.free_slots = (uint32_t)a->batch;
  if (btc_outbox_add(a->outbox, &e, NULL, &err) != BTC_OK) agent_log(a, "pipe-not-said", "why=\"%s\"", err.message);
  BTC_FAILPOINT("member_ready");
}

static void say_broken(agent *a, const char *pipe, uint64_t epoch, uint32_t rank, const char *cause) {
  Btc__PipeBroken broken = BTC__PIPE_BROKEN__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_PIPE_BROKEN);
  char text[400];
  btc_error err;
  snprintf(text, sizeof text, "%s", cause);
  child_clean_text(text);
  e.pipe_broken = &broken;
  broken.pipe = (char *)pipe;
  broken.epoch = epoch;
  broken.rank = rank;
  broken.cause = text;
  agent_log(a, "pipe-broken", "pipe=%s epoch=%llu why=\"%s\"", pipe, (unsigned long long)epoch, text);
  if (btc_outbox_add(a->outbox, &e, NULL, &err) != BTC_OK) agent_log(a, "pipe-not-said", "why=\"%s\"", err.message);
}

static void broken(agent *a, const char *cause) {
  member *m = a->member;
  if (m->st == MEMBER_IDLE) return;
  stop_epoch(a);
  say_broken(a, m->id, m->epoch, m->rank, cause);
}

/* ---- forming ---- */

/* Orders go out when whoever gets them is there. */
static void try_order(agent *a) {
  member *m = a->member;
  if (m->st != MEMBER_FORMING || m->ordered || !m->shard.open || (m->rank == 0 && (!a->child_ready || m->control < 0))) return;
  m->ordered = true;
  shard_process_order(&m->shard, &m->shard_order);
  if (m->rank) return;
  m->driver_order.next_port = m->shard.port;
  tell_driver(m, SHARD_FORM);
}

static void try_ready(agent *a) {
  member *m = a->member;
  if (m->st != MEMBER_FORMING || !m->shard_ready || (m->rank == 0 && !m->driver_ready)) return;
  m->st = MEMBER_READY;
  agent_log(a, "pipe-ready", "pipe=%s epoch=%llu rank=%u blocks=%d-%d", m->id, (unsigned long long)m->epoch, m->rank, m->first,
            m->last - 1);
  say_ready(a);
}

/* "10.0.0.7:7420" */
static bool split_endpoint(const char *text, char host[64], int32_t *port) {
  const char *colon = strrchr(text, ':');
  char *end;
  struct in_addr address;
  if (!colon || colon == text || (size_t)(colon - text) >= 64) return false;
  memcpy(host, text, (size_t)(colon - text));
  host[colon - text] = 0;
  long n = strtol(colon + 1, &end, 10);
  *port = (int32_t)n;
  return end != colon + 1 && !*end && n >= 0 && n <= 65535 && inet_pton(AF_INET, host, &address) == 1;
}

static const char *refuse(const agent *a, const Btc__PipeForm *f) {
  const member *m = a->member;
  char host[64];
  int32_t port;
  if (f->n_ranks < 1 || f->n_ranks > PIPE_MAX_RANKS || f->rank >= f->n_ranks || f->secret.len != BTC_LINK_SECRET || !*f->pipe ||
      strlen(f->pipe) >= sizeof m->id)
    return "the order to form makes no sense";
  if (strcmp(f->model_class, a->model_class) != 0) return "another model is ordered than the one we have";
  if (strcmp(f->ranks[f->rank]->worker, a->name) != 0) return "the rank is another worker's";
  for (size_t i = 0; i < f->n_ranks; i++) {
    const Btc__PipeRank *r = f->ranks[i];
    if (r->first != (i ? f->ranks[i - 1]->last : 0) || r->last <= r->first || r->last > (uint32_t)m->blocks)
      return "the ranks do not divide the model";
    if (!split_endpoint(r->endpoint, host, &port) || !port) return "a rank's endpoint is no ADDRESS:PORT";
  }
  return f->ranks[f->n_ranks - 1]->last == (uint32_t)m->blocks ? NULL : "the ranks do not divide the model";
}

static void make_orders(agent *a, const Btc__PipeForm *f) {
  member *m = a->member;
  uint32_t deadline = f->deadline_ms < 1000 ? 1000 : f->deadline_ms > 600000 ? 600000 : f->deadline_ms;
  shard_order o = {.version = SHARD_VERSION,
                   .told = SHARD_FORM,
                   .rank = f->rank,
                   .ranks = (uint32_t)f->n_ranks,
                   .form_ms = (int32_t)deadline,
                   .frame_ms = FRAME_MS,
                   .outside = f->rank > 0,
                   .epoch = f->epoch};
  memcpy(o.secret, f->secret.data, sizeof o.secret);
  for (uint32_t i = 0; i < o.ranks; i++)
    if (f->ranks[i]->first <= (uint32_t)m->change) o.entry = i;
  m->shard_order = m->driver_order = o;
  /* behind the last rank comes the driver, at rank 0's worker */
  split_endpoint(f->ranks[(f->rank + 1) % o.ranks]->endpoint, m->shard_order.next_host, &m->shard_order.next_port);
  m->driver_order.rank = o.ranks;
  snprintf(m->driver_order.next_host, sizeof m->driver_order.next_host, "127.0.0.1");
  split_endpoint(f->ranks[o.entry]->endpoint, m->driver_order.entry_host, &m->driver_order.entry_port);
}

/* Another worker drives, or nobody: what we have goes back. */
static void hand_back(agent *a, const char *why) {
  member *m = a->member;
  if (!ledger_open(a->ledger)) return;
  agent_log(a, "pipe-hands-back", "items=%zu why=\"%s\"", ledger_open(a->ledger), why);
  link_release_chunks(a, false);
  tell_driver(m, SHARD_DROP);
}

void member_on_form(agent *a, const Btc__PipeForm *f) {
  member *m = a->member;
  btc_error err;
  if (!m || !m->on || f->epoch <= m->epoch) return;
  const char *why = refuse(a, f);
  if (why) {
    say_broken(a, f->pipe, f->epoch, f->rank, why);
    return;
  }
  stop_epoch(a);
  if (f->rank) hand_back(a, "another worker drives the pipe");
  snprintf(m->id, sizeof m->id, "%s", f->pipe);
  m->epoch = f->epoch;
  m->rank = f->rank;
  m->ranks = (uint32_t)f->n_ranks;
  m->ordered = m->shard_ready = m->driver_ready = false;
  m->st = MEMBER_FORMING;
  make_orders(a, f);
  BTC_FAILPOINT("member_form");
  int first = (int)f->ranks[f->rank]->first, last = (int)f->ranks[f->rank]->last;
  bool kept = m->shard.pid && m->first == first && m->last == last;
  agent_log(a, "pipe-form", "pipe=%s epoch=%llu rank=%u ranks=%u blocks=%d-%d weights=%s", m->id, (unsigned long long)m->epoch,
            m->rank, m->ranks, first, last - 1, kept ? "kept" : "new");
  if (!kept && start_shard(a, first, last, &err) != BTC_OK)
    broken(a, err.message);
  else
    try_order(a);
}

void member_on_go(agent *a, const Btc__PipeGo *g) {
  member *m = a->member;
  if (!m || m->st != MEMBER_READY || g->epoch != m->epoch) return;
  m->st = MEMBER_ACTIVE;
  m->load_ns = 0;
  m->seen_ns = btc_loop_now_ns(a->loop);
  agent_log(a, "pipe-active", "pipe=%s epoch=%llu rank=%u", m->id, (unsigned long long)m->epoch, m->rank);
  if (m->rank == 0) tell_driver(m, SHARD_GO);
  link_want_beat(a);
}

void member_on_abort(agent *a, const Btc__PipeAbort *x) {
  member *m = a->member;
  if (!m || m->st == MEMBER_IDLE || x->epoch != m->epoch) return;
  agent_log(a, "pipe-aborted", "pipe=%s epoch=%llu why=\"%s\"", m->id, (unsigned long long)m->epoch, x->why);
  stop_epoch(a);
}

/* ---- watching ---- */

static void hear_shard(agent *a, const shard_report *w) {
  member *m = a->member;
  if (w->said == SHARD_OPEN) try_order(a);
  if (w->said == SHARD_FAILED) broken(a, w->message);
  if (w->epoch != m->epoch) return;
  if (w->said == SHARD_READY) m->shard_ready = true;
  if (w->said == SHARD_BROKEN) broken(a, w->message);
}

static void hear_driver(agent *a, const shard_report *w) {
  member *m = a->member;
  if (w->version != SHARD_VERSION || w->epoch != m->epoch || !drives(m)) return;
  if (w->said == SHARD_READY) m->driver_ready = true;
  if (w->said == SHARD_BROKEN) broken(a, w->message);
}

static void listen_to_both(agent *a) {
  member *m = a->member;
  shard_report w;
  char how[64], cause[128];
  int control = m->shard.control, pidfd = m->shard.pidfd;
  while (shard_process_hear(&m->shard, &w)) hear_shard(a, &w);
  while (m->control >= 0 && recv(m->control, &w, sizeof w, MSG_DONTWAIT) == (ssize_t)sizeof w) {
    w.message[sizeof w.message - 1] = 0;
    hear_driver(a, &w);
  }
  if (m->shard.pid && shard_process_died(&m->shard, how)) {
    forget_fd(a, control);
    forget_fd(a, pidfd);
    snprintf(cause, sizeof cause, "its process %s", how);
    broken(a, cause);
  }
  try_ready(a);
}

static void on_event(void *ctx, int events) {
  (void)events;
  listen_to_both(ctx);
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
  broken(a, why);
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
  listen_to_both(a);
  watch_shard(a);
  watch_driver(a);
  if (m->st != MEMBER_ACTIVE && too_long_idle(a)) hand_back(a, "no pipe to compute them");
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
  if (drives(m)) broken(a, "the driver died");
}

/* Owns what it keeps of the message. */
static btc_status keep_caps(member *m, const Btc__ChildReady *r, btc_error *err) {
  measure_result c = {.n = r->n_blocks, .slots = r->slots, .fixed_bytes = r->fixed_bytes};
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

void member_fill_hello(const agent *a, Btc__Hello *h) {
  const member *m = a->member;
  if (!m || !m->on) return;
  h->blocks = m->caps.list;
  h->n_blocks = m->caps.n;
  h->memory_bytes = (uint64_t)(a->o->memory_mib * 1048576);
  h->fixed_bytes = m->caps.fixed_bytes;
  h->slots = m->caps.slots;
  h->site = (char *)a->o->site;
  h->endpoint = (char *)m->endpoint;
}

Btc__PipeLoad *member_fill_load(agent *a, Btc__PipeLoad *l) {
  member *m = a->member;
  int64_t now = btc_loop_now_ns(a->loop);
  if (!m || m->st != MEMBER_ACTIVE || !m->shard.page) return NULL;
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
  btc__pipe_load__init(l);
  l->pipe = m->id;
  l->epoch = m->epoch;
  l->rank = m->rank;
  l->busy = m->busy;
  l->ms = m->ms;
  return l;
}

/* ---- life ---- */

btc_status member_open(agent *a, btc_error *err) {
  char host[64];
  int32_t wanted;
  int port;
  if (a->o->memory_mib <= 0) return BTC_OK;
  if (strcmp(a->o->engine, "model") != 0 || a->o->pipe > 1)
    return btc_fail(err, BTC_ERR_ARG, "--memory is for workers with a model, and not with --pipe");
  if (!split_endpoint(a->o->link, host, &wanted))
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
