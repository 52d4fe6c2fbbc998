/* The process of one rank: see shard.h. */
#define _GNU_SOURCE
#include "shard.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "engine/request.h"
#include "engine/sampler.h"
#include "link_nccl.h"
#include "shard_post.h"
#include "shard_room.h"
#include "shard_step.h"

enum { TICK_MS = 20, ASK_US = 2000, NAP_US = 50, FRAME_NCCL_ID = 0x4e43 /* a frame of forming; those of steps have other kinds */ };

typedef struct shard {
  btc_shard_options o;
  shard_page *page;
  btc_model *m;
  btc_stage *stage; /* NULL until the driver says how many slots */
  int change;       /* the block that computes change maps and keeps features */
  int slots;
  int listen_fd, port;
  shard_order order;                             /* of the epoch we are in */
  btc_link *in[2], *out;                         /* from the previous node; at the entry also from the driver */
  uint64_t step[2];                              /* last one of the language's and of the tower's */
  int turn;                                      /* which of in is asked first */
  btc_lane *lane;                                /* of our GPU; NULL: we have none */
  int64_t use_ns;                                /* when its use was last told */
  shard_post *post;                              /* what goes out by a link without a carrier */
  link_nccl *nccl;                               /* of this epoch; NULL: tensors go by the links */
  btc_stage_item *items;                         /* [SHARD_MAX_SLOTS] */
  btc_sampler *sampler;                          /* of the rank with the head */
  btc_pick *picks;                               /* [SHARD_MAX_SLOTS] likewise */
  shard_room flow[2], arrived;                   /* what goes out, and what a carrier brings: on the GPU when a carrier takes it */
  int flow_at;                                   /* which is computed; a carrier may still be sending the other one */
  shard_room cosine, gathered, visual, features; /* features: [places, T, C]; these three on the GPU if we have one */
  shard_room pixels;                             /* [SHARD_IMAGES, 3, side, side] where the tower begins, likewise */
  btc_parcel *parcel[SHARD_IMAGES];              /* of the stage's backend: pictures on their way to its device */
  int visual_slot;                               /* whose visual tokens these are */
  int places;
  uint8_t *words;
  size_t words_room;
} shard;

/* ---- the parent ---- */

/* How full and busy our GPU is, onto the page. */
static void tell_use(shard *s) {
  btc_device_info info;
  shard_page *page = s->page;
  int64_t now = btc_now_ns();
  if (!s->lane || (s->use_ns && now - s->use_ns < SHARD_USE_MS * INT64_C(1000000))) return;
  s->use_ns = now;
  if (!btc_lane_device(s->lane, &info)) return;
  if (!page->device_memory) {
    page->device_index = info.index;
    snprintf(page->device_name, sizeof page->device_name, "%s", info.name);
    page->device_memory = info.memory_bytes;
  }
  __atomic_store_n(&page->device_free, info.free_bytes, __ATOMIC_RELAXED);
  __atomic_store_n(&page->device_busy, info.busy < 0 ? -1 : (int32_t)(info.busy * 1000 + 0.5), __ATOMIC_RELAXED);
}

/* Whether tensors can go by NCCL here. The library is large: only who has a GPU loads it. */
static void tell_card(const shard *s, shard_report *r) {
  btc_error why = {0};
  btc_device_info info;
  if (!s->lane)
    btc_fail(&why, BTC_ERR_UNSUPPORTED, "device %s is no GPU", s->o.device);
  else if (btc_device_query(btc_device_index(s->o.device), &info, &why) == BTC_OK) {
    snprintf(r->card, sizeof r->card, "%s", info.card);
    r->nccl = link_nccl_version(&why);
  }
  snprintf(r->message, sizeof r->message, "%.*s", (int)sizeof r->message - 1, why.message);
}

static void report(shard *s, shard_said said, const btc_error *why) {
  shard_report r = {.version = SHARD_VERSION, .said = said, .epoch = s->order.epoch, .port = s->port};
  if (said == SHARD_OPEN) {
    tell_use(s);
    tell_card(s, &r);
  }
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
  shard *s = ctx;
  BTC_FAILPOINT("shard_idle");
  tell_use(s);
  return has_order(s) || shard_post_has_failed(s->post);
}

static btc_link_wait wait_ms(shard *s, int ms) {
  return (btc_link_wait){.deadline_ns = ms ? btc_now_ns() + (int64_t)ms * 1000000 : 0, .stop = has_order, .ctx = s};
}

/* An abort that hangs leaves threads and a GPU in a state that nobody knows: then this process ends, and another is started. */
static void drop_links(shard *s) {
  btc_error err;
  btc_link_wait w = {.stop = has_order, .ctx = s};
  for (int i = 0; i < 2; i++) {
    if (s->in[i]) s->page->frames_dropped += btc_link_dropped(s->in[i]);
    btc_link_close(&s->in[i]);
  }
  shard_post_drop(s->post);
  btc_link_close(&s->out);
  if (link_nccl_leave(&s->nccl, &w, &err) == BTC_OK) return;
  report(s, SHARD_BROKEN, &err);
  _exit(EX_TEMPFAIL);
}

/* ---- forming ---- */

btc_status btc_shard_connect(const char *host, int port, const btc_link_id *id, const btc_link_limits *l, const btc_link_wait *w,
                             btc_link **out, btc_error *err) {
  for (;;) {
    btc_status st = btc_link_connect(host, port, id, l, w, out, err);
    if (st != BTC_ERR_IO || btc_now_ns() >= w->deadline_ns) return st;
    if (w->stop && w->stop(w->ctx)) return btc_fail(err, BTC_ERR_CANCELLED, "connecting to the next rank: stopped");
    poll(NULL, 0, 2);
  }
}

/* Rank 0 makes the id of this epoch's communicator; it goes down the line by the links, which know who is there. */
static btc_status pass_id(shard *s, uint8_t id[LINK_NCCL_ID], const btc_link_wait *w, btc_error *err) {
  const shard_order *o = &s->order;
  btc_link_head h = {.kind = FRAME_NCCL_ID};
  const uint8_t *data;
  size_t bytes;
  btc_status st = BTC_OK;
  if (!o->rank) {
    st = link_nccl_make_id(id, err);
  } else {
    st = btc_link_receive(s->in[0], &h, &data, &bytes, w, err);
    if (st == BTC_OK && (h.kind != FRAME_NCCL_ID || bytes != LINK_NCCL_ID))
      st = btc_fail(err, BTC_ERR_FORMAT, "%zu bytes of kind %u where NCCL's id belongs", bytes, h.kind);
    if (st == BTC_OK) memcpy(id, data, LINK_NCCL_ID);
  }
  if (st != BTC_OK || o->rank + 1 == o->ranks) return st;
  return btc_link_send(s->out, &(btc_link_head){.kind = FRAME_NCCL_ID}, &(btc_link_part){id, LINK_NCCL_ID}, 1, w, err);
}

/* Tensors between ranks go by NCCL from now on; those from and to the driver, who has no GPU, by its links. */
static btc_status form_nccl(shard *s, const btc_link_wait *w, btc_error *err) {
  const shard_order *o = &s->order;
  link_nccl_options n = {.lane = s->lane, .rank = o->rank, .ranks = o->ranks, .epoch = o->epoch};
  if (!s->lane) return btc_fail(err, BTC_ERR_UNSUPPORTED, "NCCL is ordered, but device %s is no GPU", s->o.device);
  memcpy(n.secret, o->secret, sizeof n.secret);
  btc_status st = pass_id(s, n.id, w, err);
  if (st == BTC_OK) st = link_nccl_join(&n, w, &s->nccl, err);
  if (st != BTC_OK) return st;
  btc_link_carrier c = link_nccl_carrier(s->nccl);
  if (o->rank) btc_link_carry(s->in[0], &c);
  if (o->rank + 1 < o->ranks) btc_link_carry(s->out, &c);
  return BTC_OK;
}

static btc_status form_links(shard *s, const btc_link_wait *wait, btc_error *err) {
  const shard_order *o = &s->order;
  btc_link_limits l = btc_link_limits_default();
  btc_link_wait w = *wait;
  btc_link_id id = {.epoch = o->epoch, .from = o->rank, .to = o->rank + 1, .ranks = o->ranks};
  memcpy(id.secret, o->secret, sizeof id.secret);
  l.max_bytes = (size_t)(o->max_bytes ? o->max_bytes : shard_frame_bound(s->m, SHARD_MAX_SLOTS));
  l.frame_ms = o->frame_ms;
  BTC_FAILPOINT("shard_form");
  btc_status st = btc_shard_connect(o->next_host, o->next_port, &id, &l, &w, &s->out, err);
  if (st != BTC_OK) return st;
  id.from = o->rank ? o->rank - 1 : o->ranks;
  id.to = o->rank;
  st = btc_link_accept(o->outside ? SHARD_LINKS_FD : s->listen_fd, &id, &l, &w, &s->in[0], err);
  if (st != BTC_OK || o->entry != o->rank || !o->rank) return st;
  id.from = o->ranks;
  return btc_link_accept(o->outside ? SHARD_LINKS_FD : s->listen_fd, &id, &l, &w, &s->in[1], err);
}

static btc_status form(shard *s, btc_error *err) {
  btc_link_wait w = wait_ms(s, s->order.form_ms);
  btc_status st = form_links(s, &w, err);
  return st == BTC_OK && s->order.nccl ? form_nccl(s, &w, err) : st;
}

/* Something went wrong in this epoch. When an order waits, it is what ends the epoch. */
static void give_up(shard *s, const btc_error *err) {
  if (err->code != BTC_ERR_CANCELLED) report(s, SHARD_BROKEN, err); /* before the others see that links closed */
  drop_links(s);
  if (err->code == BTC_ERR_DEVICE) _exit(EX_TEMPFAIL); /* a process never computes on after that: its parent starts another */
}

static void obey(shard *s) {
  shard_order o;
  btc_error err = {0};
  ssize_t n = recv(SHARD_FD, &o, sizeof o, MSG_TRUNC);
  if (n <= 0 && errno != EINTR) _exit(0);
  if (n != sizeof o || o.version != SHARD_VERSION) _exit(1);
  if (o.told == SHARD_STOP && o.epoch >= s->order.epoch) drop_links(s);
  if (o.told != SHARD_FORM || o.epoch <= s->order.epoch) return; /* an order of the past */
  o.next_host[sizeof o.next_host - 1] = 0;
  drop_links(s);
  s->order = o;
  s->step[0] = s->step[1] = 0;
  s->page->cancel = 0;
  if (form(s, &err) == BTC_OK)
    report(s, SHARD_READY, NULL);
  else
    give_up(s, &err);
}

/* ---- steps ---- */

/* Bytes between the host and our GPU, in order with the stage's work. What is written is there when the stage next says so. */
static void copy(shard *s, void *dst, const void *src, int64_t floats) {
  if (s->lane)
    btc_op_copy(btc_stage_backend(s->stage), dst, src, (size_t)floats * sizeof(float));
  else
    memcpy(dst, src, (size_t)floats * sizeof(float));
}

/* To free a GPU's memory is to wait for all that is on its way, without a deadline: so it is waited for with one before. */
static btc_status settle(shard *s, btc_error *err) {
  btc_link_wait w = wait_ms(s, 0);
  return btc_link_settle(s->out, &w, err);
}

static btc_status grow(shard *s, shard_room *r, btc_lane *lane, int64_t floats, btc_error *err) {
  btc_status st = floats > r->floats || lane != r->lane ? settle(s, err) : BTC_OK;
  if (st != BTC_OK) return st;
  st = BTC_FAILS("shard_step_memory") ? BTC_ERR_NOMEM : shard_room_make(r, lane, floats, err);
  if (st != BTC_ERR_NOMEM) return st;
  return btc_fail(err, st, "not enough memory: %lld bytes for a step", 4 * (long long)floats);
}

static float *flow_of(const shard *s) {
  return s->flow[s->flow_at].at;
}

/* For the stage's output: on the GPU when it goes out from there. */
static btc_status make_flow(shard *s, const btc_stage_item *items, int n, int last, bool decode, btc_error *err) {
  return grow(s, &s->flow[s->flow_at], btc_link_is_carried(s->out) ? s->lane : NULL, btc_flow_floats(s->m, last, items, n, decode),
              err);
}

static void drop_stage(shard *s) {
  for (int i = 0; s->stage && i < SHARD_IMAGES; i++) btc_parcel_destroy(btc_stage_backend(s->stage), &s->parcel[i]);
  btc_stage_destroy(&s->stage);
}

/* What pictures need, where the tower begins. */
static btc_status make_pixels(shard *s, btc_error *err) {
  const int64_t side = s->m->cfg->vision.image;
  btc_status st = s->o.first ? BTC_OK : shard_room_make(&s->pixels, s->lane, SHARD_IMAGES * 3 * side * side, err);
  for (int i = 0; st == BTC_OK && !s->o.first && i < SHARD_IMAGES; i++)
    st = btc_parcel_create(btc_stage_backend(s->stage), btc_picture_bytes(side), &s->parcel[i], err);
  return st;
}

static btc_status make_stage(shard *s, int slots, btc_error *err) {
  btc_stage_options so = {.backend = s->o.device,
                          .threads = s->o.threads,
                          .compute = strcmp(s->o.dtype, "bf16") == 0 ? BTC_COMPUTE_BF16 : BTC_COMPUTE_F32,
                          .slots = slots,
                          .pick_vocab = btc_tokenizer_vocab(s->m->tok),
                          .cancel = &s->page->cancel,
                          .progress = &s->page->alive};
  drop_stage(s);
  btc_status st = btc_stage_create(s->m, s->o.first, s->o.last, &so, &s->stage, err);
  if (st == BTC_OK) st = make_pixels(s, err);
  if (st != BTC_OK) drop_stage(s);
  s->slots = slots;
  return st;
}

/* Room for what the driver says will come. A stage is made anew when it has another number of slots. */
static btc_status reserve(shard *s, const shard_step *d, btc_error *err) {
  const btc_stage_item widest = d->items[0];
  btc_status st = BTC_OK;
  if (BTC_FAILS("shard_reserve_memory"))
    return btc_fail(err, BTC_ERR_NOMEM, "not enough memory: a stage of %d slots of %lld positions", d->slots,
                    (long long)d->slot_positions);
  if ((st = settle(s, err)) != BTC_OK) return st;
  if (!s->stage || s->slots != d->slots) st = make_stage(s, d->slots, err);
  if (st != BTC_OK) return st;
  st = btc_stage_reserve(s->stage, &widest, 1, d->slot_positions, err);
  for (int i = 0; i < s->slots; i++) s->items[i] = (btc_stage_item){.positions = 1};
  if (st == BTC_OK) st = btc_stage_reserve(s->stage, s->items, s->slots, d->slot_positions, err);
  s->items[0] = widest; /* the step goes on as it came */
  if (st != BTC_OK || s->o.first > s->change || s->o.last <= s->change || d->n_places == s->places) return st;
  s->places = 0;
  shard_room_free(&s->features);
  const int64_t floats = d->n_places * s->m->tokens * s->m->hidden;
  st = shard_room_make(&s->features, s->lane, floats, err);
  if (st == BTC_ERR_NOMEM)
    return btc_fail(err, st, "not enough memory: %lld bytes for features of %d images", 4 * (long long)floats, d->n_places);
  if (st == BTC_OK) s->places = d->n_places;
  return st;
}

static float *feature(const shard *s, int place) {
  return s->features.at + place * s->m->tokens * s->m->hidden;
}

/* Pictures as what the tower takes. */
static void resize(shard *s, shard_step *d) {
  btc_backend *be = btc_stage_backend(s->stage);
  const btc_shades shades = btc_request_shades(s->m);
  for (int i = 0; i < d->n_pictures; i++) {
    btc_picture *p = &d->pictures[i];
    p->parcel = s->parcel[i];
    btc_op_send(be, p->parcel, p->rgb, (size_t)(p->width * p->height * 3));
  }
  btc_op_resize_normalise(be, s->pixels.at, d->pictures, d->n_pictures, s->m->cfg->vision.image, &shades);
  d->flow = s->pixels.at;
  d->n_pictures = 0; /* they go no further */
}

/* The tower's part of the range. Features stay here when the change module is ours. */
static btc_status encode(shard *s, shard_step *d, btc_error *err) {
  const int64_t image = s->m->tokens * s->m->hidden;
  bool keep = s->o.last > s->change;
  int last = keep ? s->change : s->o.last;
  if (s->o.first > s->change) return BTC_OK;
  for (int i = 0; keep && i < d->n; i++)
    if (d->items[i].slot >= s->places)
      return btc_fail(err, BTC_ERR_FORMAT, "step: features in place %d of %d", d->items[i].slot, s->places);
  if (d->n_pictures) resize(s, d);
  const float *made = d->flow;
  btc_status st = BTC_OK;
  if (s->o.first < last) {
    btc_stage_item all = {.n_images = d->n, .positions = 1}; /* places are no slots */
    st = make_flow(s, d->items, d->n, last, false, err);
    if (st == BTC_OK) BTC_FAILPOINT("shard_vision");
    if (st == BTC_OK) st = btc_stage_prefill_part(s->stage, s->o.first, last, &all, 1, d->flow, flow_of(s), err);
    made = flow_of(s);
  }
  for (int i = 0; st == BTC_OK && keep && i < d->n; i++) copy(s, feature(s, d->items[i].slot), made + i * image, image);
  if (st == BTC_OK && keep)
    st = btc_backend_finish(btc_stage_backend(s->stage), err); /* the next step's tensor comes in its place */
  d->flow = made;
  return st;
}

/* Features of a prefill's images, side by side. */
static btc_status gather(shard *s, shard_step *d, btc_error *err) {
  const int64_t image = s->m->tokens * s->m->hidden;
  btc_status st = grow(s, &s->gathered, s->lane, d->n_places * image, err);
  for (int i = 0; st == BTC_OK && i < d->n_places; i++) {
    if (d->places[i] < 0 || d->places[i] >= s->places)
      return btc_fail(err, BTC_ERR_FORMAT, "step: features from place %d of %d", d->places[i], s->places);
    copy(s, s->gathered.at + i * image, feature(s, d->places[i]), image);
  }
  d->flow = s->gathered.at;
  return st;
}

/* Where the change maps of this step's pairs go. */
static btc_status make_maps(shard *s, shard_step *d, btc_error *err) {
  int64_t cosines = shard_step_cosines(s->m, d->items, d->n), at = 0;
  btc_status st = cosines ? grow(s, &s->cosine, NULL, cosines, err) : BTC_OK;
  for (int i = 0; st == BTC_OK && i < d->n; i++) {
    if (d->items[i].n_images != 2) continue;
    d->items[i].cosine = s->cosine.at + at;
    at += s->m->tokens;
  }
  d->cosine = cosines ? s->cosine.at : NULL;
  d->cosine_floats = cosines;
  return st;
}

/* Visual tokens of the one item whose prompt is being prefilled: made with its first chunk, used by all. */
static btc_status make_visual(shard *s, shard_step *d, btc_error *err) {
  btc_status st = BTC_OK;
  if (d->chunk && s->visual_slot != d->items[0].slot)
    return btc_fail(err, BTC_ERR_FORMAT, "step: chunk %d in slot %d, whose first was not the last that came", d->chunk,
                    d->items[0].slot);
  if (!d->chunk) {
    st = gather(s, d, err);
    if (st == BTC_OK) st = make_maps(s, d, err);
    if (st == BTC_OK) st = grow(s, &s->visual, s->lane, btc_flow_floats(s->m, s->change + 1, d->items, d->n, false), err);
    if (st == BTC_OK) st = btc_stage_prefill_part(s->stage, s->change, s->change + 1, d->items, d->n, d->flow, s->visual.at, err);
  }
  s->visual_slot = st == BTC_OK ? d->items[0].slot : -1;
  d->flow = s->visual.at;
  return st;
}

/* A range that ends with the change module hands visual tokens on, with every chunk. */
static btc_status hand_visual(shard *s, shard_step *d, btc_error *err) {
  btc_status st = make_flow(s, d->items, d->n, s->change + 1, false, err);
  if (st != BTC_OK) return st;
  copy(s, flow_of(s), s->visual.at, btc_flow_floats(s->m, s->change + 1, d->items, d->n, false));
  d->flow = flow_of(s);
  return btc_backend_finish(btc_stage_backend(s->stage), err);
}

static btc_status prefill(shard *s, shard_step *d, btc_error *err) {
  const bool beginning = d->items[0].n_images == 0, ends = shard_step_ends_prompt(s->m, d);
  const int splice = s->change + 1, first = s->o.first > splice ? s->o.first : splice, count = btc_block_count(s->m);
  const int last = s->o.last == count && !ends ? count - 1 : s->o.last; /* logits are wanted at the end only */
  btc_status st = BTC_OK;
  if (s->o.last <= (beginning ? splice : s->change)) return BTC_OK;
  for (int i = 0; st == BTC_OK && i < d->n; i++)
    if (d->items[i].past && !d->chunk) st = btc_stage_copy_slot(s->stage, s->slots - 1, d->items[i].slot, d->items[i].past, err);
  if (st == BTC_OK && s->o.first <= s->change && !beginning) st = make_visual(s, d, err);
  if (st != BTC_OK) return st;
  BTC_FAILPOINT("shard_prefill");
  s->page->items += beginning || !ends ? 0 : (uint64_t)d->n;
  if (s->o.last == splice) return hand_visual(s, d, err);
  if (first >= last) return BTC_OK; /* nothing but the head */
  st = make_flow(s, d->items, d->n, last, false, err);
  if (st == BTC_OK) st = btc_stage_prefill_part(s->stage, first, last, d->items, d->n, d->flow, flow_of(s), err);
  d->flow = flow_of(s);
  return st;
}

static btc_status decode(shard *s, shard_step *d, btc_error *err) {
  btc_status st = make_flow(s, d->items, d->n, s->o.last, true, err);
  if (st != BTC_OK) return st;
  BTC_FAILPOINT("shard_decode");
  st = btc_stage_decode(s->stage, d->items, d->n, d->flow, flow_of(s), err);
  d->flow = flow_of(s);
  return st;
}

/* Behind the head: a pick for every item, and logits of those only that are drawn from, side by side. */
static void pick(shard *s, shard_step *d, int n) {
  const int64_t vocab = s->m->cfg->llm.vocab;
  const btc_pick *made = btc_stage_picks(s->stage);
  float *row = flow_of(s);
  for (int k = 0; k < n; k++) {
    const float *logits = flow_of(s) + k * vocab;
    if (d->items[k].greedy) {
      s->picks[k] = made ? made[k] : btc_sampler_greedy(s->sampler, logits);
      continue;
    }
    s->picks[k] = (btc_pick){0};
    if (row != logits) memmove(row, logits, (size_t)vocab * sizeof *row);
    row += vocab;
  }
  d->picks = s->picks;
  d->n_picks = n;
}

static btc_status compute(shard *s, shard_step *d, btc_error *err) {
  if (d->kind == SHARD_RESERVE || d->kind == SHARD_PREPARE) return reserve(s, d, err);
  if (!s->stage) return btc_fail(err, BTC_ERR_FORMAT, "step: nothing is reserved");
  int64_t start = btc_now_ns();
  btc_status st = d->kind == SHARD_ENCODE ? encode(s, d, err) : d->kind == SHARD_PREFILL ? prefill(s, d, err) : decode(s, d, err);
  if (st == BTC_OK) pick(s, d, shard_step_picks(s->m, s->o.last, d));
  s->page->busy_ns += (uint64_t)(btc_now_ns() - start);
  s->page->steps++;
  d->flow_floats = shard_step_floats(s->m, s->o.last, d);
  return st;
}

/* The tensor of a frame that a carrier brings; its size has been checked against the step. */
static btc_status take_tensor(shard *s, btc_link *from, shard_step *d, btc_error *err) {
  btc_link_wait w = wait_ms(s, 0);
  btc_status st = grow(s, &s->arrived, s->lane, d->flow_floats, err);
  if (st == BTC_OK) st = btc_link_receive_carried(from, s->arrived.at, &w, err);
  d->flow = s->arrived.at;
  return st;
}

static btc_status hand_on(shard *s, const btc_link_head *h, const shard_step *d, btc_error *err) {
  btc_link_part parts[SHARD_PARTS];
  btc_link_wait w = wait_ms(s, 0);
  btc_status st = shard_step_write(d, &s->words, &s->words_room, parts, err);
  if (st != BTC_OK) return st;
  if (!btc_link_is_carried(s->out)) return shard_post_send(s->post, s->out, h, parts, SHARD_PARTS, &w, err);
  if (!parts[1].bytes) return btc_link_send(s->out, h, parts, SHARD_PARTS, &w, err);
  st = btc_link_begin_carried(s->out, h, (btc_link_part[]){parts[0], parts[2]}, 2, &parts[1], &w, err);
  s->flow_at = !s->flow_at; /* the next step's is the one before's, which has gone */
  return st;
}

static btc_status step(shard *s, btc_link *from, const btc_link_head *h, const uint8_t *data, size_t bytes, btc_error *err) {
  shard_step d;
  uint64_t *last = &s->step[shard_step_is_tower(h->kind)];
  if (h->step != *last + 1)
    return btc_fail(err, BTC_ERR_FORMAT, "step %llu after step %llu", (unsigned long long)h->step, (unsigned long long)*last);
  *last = h->step;
  btc_status st = shard_step_read_apart(s->m, s->o.first, h->kind, data, bytes, h->carried, s->items, SHARD_MAX_SLOTS, &d, err);
  if (st == BTC_OK && h->carried) st = take_tensor(s, from, &d, err);
  if (st == BTC_OK) st = compute(s, &d, err);
  return st == BTC_OK ? hand_on(s, h, &d, err) : st;
}

/* What is there now of either link, in turns; *data NULL: nothing. */
static btc_status look_in(shard *s, btc_link **from, btc_link_head *h, const uint8_t **data, size_t *bytes, btc_error *err) {
  for (int k = 0; k < 2; k++) {
    *from = s->in[s->turn = !s->turn];
    if (!*from) continue;
    btc_status st = btc_link_take(*from, h, data, bytes, err);
    if (st != BTC_OK || *data) return st;
  }
  *data = NULL;
  return BTC_OK;
}

/* While a carrier sends: the next frame, or nothing as soon as the tensor has gone. CANCELLED as below. */
static btc_status receive_beside(shard *s, btc_link **from, btc_link_head *h, const uint8_t **data, size_t *bytes, btc_error *err) {
  int64_t asked = btc_now_ns();
  for (;;) {
    bool gone;
    btc_status st = look_in(s, from, h, data, bytes, err);
    if (st != BTC_OK || *data) return st;
    st = btc_link_look(s->out, &gone, err);
    if (st != BTC_OK || gone) return st;
    if (btc_now_ns() - asked >= ASK_US * INT64_C(1000)) {
      asked = btc_now_ns();
      if (has_order_idle(s)) return btc_fail(err, BTC_ERR_CANCELLED, "an order waits");
    }
    nanosleep(&(struct timespec){.tv_nsec = NAP_US * 1000L}, NULL);
  }
}

/* The next frame of either link; *from: of which. CANCELLED: an order waits, or what goes out has failed. */
static btc_status receive(shard *s, btc_link **from, btc_link_head *h, const uint8_t **data, size_t *bytes, btc_error *err) {
  btc_link_wait w = {.stop = has_order_idle, .ctx = s};
  btc_status st = receive_beside(s, from, h, data, bytes, err);
  if (st != BTC_OK || *data) return st;
  *from = s->in[0];
  if (!s->in[1]) return btc_link_receive(s->in[0], h, data, bytes, &w, err);
  for (;;) {
    st = look_in(s, from, h, data, bytes, err);
    if (st != BTC_OK || *data) return st;
    struct pollfd f[] = {{.fd = btc_link_fd(s->in[0]), .events = POLLIN},
                         {.fd = btc_link_fd(s->in[1]), .events = POLLIN},
                         {.fd = SHARD_FD, .events = POLLIN}};
    poll(f, 3, TICK_MS);
    if (has_order_idle(s)) return btc_fail(err, BTC_ERR_CANCELLED, "an order waits");
  }
}

static _Noreturn void serve(shard *s) {
  for (;;) {
    btc_error err = {0};
    btc_link *from;
    btc_link_head h;
    const uint8_t *data;
    size_t bytes;
    if (!s->in[0]) {
      struct pollfd p = {.fd = SHARD_FD, .events = POLLIN};
      poll(&p, 1, TICK_MS);
    }
    tell_use(s);
    if (has_order(s)) {
      obey(s);
      continue;
    }
    if (!s->in[0]) continue;
    btc_status st = receive(s, &from, &h, &data, &bytes, &err);
    if (st == BTC_ERR_CANCELLED && !shard_post_has_failed(s->post)) continue;
    if (shard_post_has_failed(s->post)) st = shard_post_wait(s->post, &(btc_link_wait){0}, &err);
    if (st == BTC_OK) st = step(s, from, &h, data, bytes, &err);
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
  s->change = shard_change_block(s->m);
  if (o->first < 0 || o->last > btc_block_count(s->m) || o->first >= o->last)
    return btc_fail(err, BTC_ERR_ARG, "no blocks %d to %d in a model of %d", o->first, o->last, btc_block_count(s->m));
  if (strncmp(o->device, "cuda", 4) == 0 && (st = btc_lane_create(o->device, &s->lane, err)) != BTC_OK) return st;
  st = btc_link_listen("127.0.0.1", &s->listen_fd, &s->port, err);
  if (st == BTC_OK) st = shard_post_create(&s->post, err);
  if (st == BTC_OK) st = btc_sampler_create(btc_tokenizer_vocab(s->m->tok), &s->sampler, err);
  if (st != BTC_OK) return st;
  s->items = btc_alloc_zero(SHARD_MAX_SLOTS, sizeof *s->items);
  s->picks = btc_alloc_zero(SHARD_MAX_SLOTS, sizeof *s->picks);
  return s->items && s->picks ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
}

static void *fetch(void *ctx) {
  shard *s = ctx;
  btc_stage_fetch(s->m, s->o.first, s->o.last, &s->page->alive);
  return NULL;
}

/* Beside forming and the first steps. A card has its own copy of the weights, made from the files by the stage. */
static void fetch_weights(shard *s) {
  pthread_t t;
  if (!s->lane && pthread_create(&t, NULL, fetch, s) == 0) pthread_detach(t);
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
  if (st == BTC_OK) {
    fetch_weights(&s);
    serve(&s);
  }
  return st;
}
