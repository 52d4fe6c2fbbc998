/* The process of one rank: see shard.h. */
#define _GNU_SOURCE
#include "shard.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "shard_step.h"

enum { TICK_MS = 20 };

typedef struct shard {
  btc_shard_options o;
  shard_page *page;
  btc_model *m;
  btc_stage *stage;
  int change; /* the block that computes change maps */
  int listen_fd, port;
  shard_order order; /* of the epoch we are in */
  btc_link *in, *out;
  uint64_t step; /* last one */
  btc_stage_item *items;
  float *flow, *cosine;
  int64_t flow_room, cosine_room;
  uint8_t *words;
  size_t words_room;
} shard;

/* ---- the parent ---- */

static void report(const shard *s, shard_said said, const btc_error *why) {
  shard_report r = {.version = SHARD_VERSION, .said = said, .epoch = s->order.epoch, .port = s->port};
  if (why) {
    r.status = why->code;
    snprintf(r.message, sizeof r.message, "%.*s", (int)sizeof r.message - 1, why->message);
  }
  if (send(SHARD_FD, &r, sizeof r, MSG_NOSIGNAL) < 0 && errno != EINTR) _exit(0); /* no parent, nobody to work for */
}

/* Every turn of a wait passes here. An order ends it. */
static bool has_order(void *ctx) {
  shard *s = ctx;
  struct pollfd p = {.fd = SHARD_FD, .events = POLLIN};
  __atomic_add_fetch(&s->page->alive, 1, __ATOMIC_RELAXED);
  return poll(&p, 1, 0) > 0;
}

static bool has_order_idle(void *ctx) {
  BTC_FAILPOINT("shard_idle");
  return has_order(ctx);
}

static btc_link_wait wait_ms(shard *s, int ms) {
  return (btc_link_wait){.deadline_ns = ms ? btc_now_ns() + (int64_t)ms * 1000000 : 0, .stop = has_order, .ctx = s};
}

static void drop_links(shard *s) {
  if (s->in) s->page->frames_dropped += btc_link_dropped(s->in);
  btc_link_close(&s->in);
  btc_link_close(&s->out);
}

/* ---- forming ---- */

btc_status btc_shard_connect(int port, const btc_link_id *id, const btc_link_limits *l, const btc_link_wait *w, btc_link **out,
                             btc_error *err) {
  for (;;) {
    btc_status st = btc_link_connect("127.0.0.1", port, id, l, w, out, err);
    if (st != BTC_ERR_IO || btc_now_ns() >= w->deadline_ns) return st;
    if (w->stop && w->stop(w->ctx)) return btc_fail(err, BTC_ERR_CANCELLED, "connecting to the next rank: stopped");
    poll(NULL, 0, 2);
  }
}

static btc_status form(shard *s, btc_error *err) {
  const shard_order *o = &s->order;
  btc_link_limits l = btc_link_limits_default();
  btc_link_wait w = wait_ms(s, o->form_ms);
  btc_link_id id = {.epoch = o->epoch, .from = o->rank, .to = o->rank + 1, .ranks = o->ranks};
  memcpy(id.secret, o->secret, sizeof id.secret);
  l.max_bytes = (size_t)o->max_bytes;
  l.frame_ms = o->frame_ms;
  BTC_FAILPOINT("shard_form");
  btc_status st = btc_shard_connect(o->next_port, &id, &l, &w, &s->out, err);
  if (st != BTC_OK) return st;
  id.from = o->rank ? o->rank - 1 : o->ranks;
  id.to = o->rank;
  return btc_link_accept(s->listen_fd, &id, &l, &w, &s->in, err);
}

/* Something went wrong in this epoch. When an order waits, it is what ends the epoch. */
static void give_up(shard *s, const btc_error *err) {
  drop_links(s);
  if (err->code != BTC_ERR_CANCELLED) report(s, SHARD_BROKEN, err);
}

static void obey(shard *s) {
  shard_order o;
  btc_error err = {0};
  ssize_t n = recv(SHARD_FD, &o, sizeof o, MSG_TRUNC);
  if (n <= 0 && errno != EINTR) _exit(0);
  if (n != sizeof o || o.version != SHARD_VERSION) _exit(1);
  if (o.epoch <= s->order.epoch) return; /* an order of the past */
  drop_links(s);
  s->order = o;
  s->step = 0;
  s->page->cancel = 0;
  if (form(s, &err) == BTC_OK)
    report(s, SHARD_READY, NULL);
  else
    give_up(s, &err);
}

/* ---- steps ---- */

static btc_status grow(float **p, int64_t *room, int64_t floats, btc_error *err) {
  if (floats <= *room) return BTC_OK;
  free(*p);
  *room = 0;
  if (!(*p = btc_alloc((size_t)floats, sizeof **p)))
    return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a step of %lld numbers", (long long)floats);
  *room = floats;
  return BTC_OK;
}

static btc_status compute(shard *s, shard_step *d, btc_error *err) {
  bool decode = d->kind == SHARD_DECODE, maps = !decode && s->o.first <= s->change && s->change < s->o.last;
  int64_t floats = btc_flow_floats(s->m, s->o.last, d->items, d->n, decode), at = 0;
  int64_t cosines = maps ? shard_step_cosines(s->m, d->items, d->n) : 0;
  btc_status st = grow(&s->flow, &s->flow_room, floats, err);
  if (st == BTC_OK && maps) st = grow(&s->cosine, &s->cosine_room, cosines, err);
  if (st != BTC_OK) return st;
  for (int i = 0; i < d->n && maps; i++) {
    if (d->items[i].n_images != 2) continue;
    d->items[i].cosine = s->cosine + at;
    at += s->m->tokens;
  }
  if (!decode && s->o.first < s->change) BTC_FAILPOINT("shard_vision");
  if (!decode) BTC_FAILPOINT("shard_prefill");
  if (decode) BTC_FAILPOINT("shard_decode");
  int64_t start = btc_now_ns();
  st = decode ? btc_stage_decode(s->stage, d->items, d->n, d->flow, s->flow, err)
              : btc_stage_prefill(s->stage, d->items, d->n, d->flow, s->flow, err);
  s->page->busy_ns += (uint64_t)(btc_now_ns() - start);
  s->page->steps++;
  d->flow = s->flow;
  d->flow_floats = floats;
  if (maps) {
    d->cosine = cosines ? s->cosine : NULL;
    d->cosine_floats = cosines;
  }
  return st;
}

static btc_status step(shard *s, const btc_link_head *h, const uint8_t *data, size_t bytes, btc_error *err) {
  shard_step d;
  btc_link_part parts[3];
  if (h->step != s->step + 1)
    return btc_fail(err, BTC_ERR_FORMAT, "step %llu after step %llu", (unsigned long long)h->step, (unsigned long long)s->step);
  s->step = h->step;
  btc_status st = shard_step_read(s->m, s->o.first, h->kind, data, bytes, s->items, s->o.slots, &d, err);
  if (st == BTC_OK)
    st = d.kind == SHARD_RESERVE ? btc_stage_reserve(s->stage, d.items, d.n, d.slot_positions, err) : compute(s, &d, err);
  if (st == BTC_OK) st = shard_step_write(&d, &s->words, &s->words_room, parts, err);
  btc_link_wait w = wait_ms(s, 0);
  return st == BTC_OK ? btc_link_send(s->out, h, parts, 3, &w, err) : st;
}

static _Noreturn void serve(shard *s) {
  for (;;) {
    btc_error err = {0};
    btc_link_head h;
    const uint8_t *data;
    size_t bytes;
    btc_link_wait w = {.stop = has_order_idle, .ctx = s};
    if (!s->in) {
      struct pollfd p = {.fd = SHARD_FD, .events = POLLIN};
      poll(&p, 1, TICK_MS);
    }
    if (has_order(s)) {
      obey(s);
      continue;
    }
    if (!s->in) continue;
    btc_status st = btc_link_receive(s->in, &h, &data, &bytes, &w, &err);
    if (st == BTC_ERR_CANCELLED) continue;
    if (st == BTC_OK) st = step(s, &h, data, bytes, &err);
    if (st != BTC_OK) give_up(s, &err);
  }
}

/* ---- entry ---- */

void btc_shard_drop_weights(const btc_model *m) {
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  for (int part = 0; part < BTC_PART_COUNT; part++)
    for (size_t i = 0; i < btc_checkpoint_count(m->ckpt, (btc_part)part); i++) {
      const btc_tensor_view *t = btc_checkpoint_at(m->ckpt, (btc_part)part, i);
      uintptr_t from = (uintptr_t)t->data / page * page, to = ((uintptr_t)t->data + t->bytes + page - 1) / page * page;
      madvise((void *)from, to - from, MADV_DONTNEED); /* a read-only file mapping: only this process's view of it goes */
    }
}

static btc_status open_all(shard *s, btc_error *err) {
  const btc_shard_options *o = &s->o;
  btc_status st = btc_model_open(o->model, &s->m, err);
  if (st != BTC_OK) return st;
  btc_shard_drop_weights(s->m);
  s->change = (int)s->m->cfg->vision.blocks + 1;
  btc_stage_options so = {.backend = o->device,
                          .threads = o->threads,
                          .compute = strcmp(o->dtype, "bf16") == 0 ? BTC_COMPUTE_BF16 : BTC_COMPUTE_F32,
                          .slots = o->slots,
                          .cancel = &s->page->cancel,
                          .progress = &s->page->alive};
  st = btc_stage_create(s->m, o->first, o->last, &so, &s->stage, err);
  if (st == BTC_OK) st = btc_link_listen("127.0.0.1", &s->listen_fd, &s->port, err);
  if (st == BTC_OK && !(s->items = btc_alloc_zero((size_t)o->slots, sizeof *s->items)))
    st = btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  return st;
}

btc_status btc_shard_run(const btc_shard_options *o, btc_error *err) {
  static shard s;
  sigset_t none;
  signal(SIGINT, SIG_IGN); /* the parent alone decides when a rank ends */
  signal(SIGTERM, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  s = (shard){.o = *o, .listen_fd = -1};
  void *page = mmap(NULL, sizeof(shard_page), PROT_READ | PROT_WRITE, MAP_SHARED, SHARD_PAGE_FD, 0);
  if (page == MAP_FAILED) return btc_fail(err, BTC_ERR_ARG, "a shard is started by a pipeline only");
  s.page = page;
  btc_status st = open_all(&s, err);
  report(&s, st == BTC_OK ? SHARD_OPEN : SHARD_FAILED, st == BTC_OK ? NULL : err);
  if (st == BTC_OK) serve(&s);
  return st;
}
