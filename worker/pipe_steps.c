/* Steps that leave: see shard_step.h for their kinds and pipe.h for what flies at once. */
#include <stdlib.h>
#include <string.h>

#include "pipe_parts.h"

/* ---- one step ---- */

/* The tower's steps enter at rank 0, the language's at the entry. */
static btc_status send_step(pipe_driver *p, shard_step *s, uint64_t *number, btc_error *err) {
  bool tower = shard_step_is_tower((uint16_t)s->kind);
  btc_link *l = tower || !p->side ? p->out : p->side;
  btc_link_part parts[SHARD_PARTS];
  btc_status st = shard_step_write(s, &p->words, &p->words_room, parts, err);
  if (st == BTC_OK)
    st = btc_link_queue(l, &(btc_link_head){.step = p->step[tower] + 1, .kind = (uint16_t)s->kind}, parts, SHARD_PARTS, err);
  if (st != BTC_OK) return st;
  for (int i = 0; i < SHARD_PARTS && s->kind == SHARD_ENCODE; i++) p->n_encode_bytes += (int64_t)parts[i].bytes;
  *number = ++p->step[tower];
  return btc_link_flush(l, err);
}

/* ---- room ---- */

static bool anything_flies(const pipe_driver *p) {
  bool flies = p->beginning_flies;
  for (int g = 0; g < p->n_groups; g++) flies |= p->group[g].flying;
  for (int i = 0; i < PIPE_CHUNKS; i++) flies |= p->chunk[i].flying;
  for (int i = 0; i < PIPE_ENCODES; i++) flies |= p->encode[i].flying;
  return flies;
}

/* Keys and values of the beginning that all prompts share, in the slot behind those of items. */
static btc_status send_beginning(pipe_driver *p, btc_error *err) {
  btc_stage_item it = {.ids = p->prefix, .n_ids = p->n_prefix, .positions = p->n_prefix, .slot = p->slots, .greedy = true};
  if (!p->n_prefix) return BTC_OK;
  p->beginning_flies = true;
  return send_step(p, &(shard_step){.kind = SHARD_PREFILL, .n = 1, .items = &it}, &p->beginning, err);
}

/* Room in all ranks for whatever is known to come. Nothing flies and no slot holds anything. */
static btc_status reserve(pipe_driver *p, int64_t positions, int64_t images, btc_error *err) {
  uint64_t number;
  const int64_t chunk = p->o.chunk > p->n_prefix ? p->o.chunk : p->n_prefix;
  btc_stage_item widest = {.n_images = (int)images, .positions = positions < chunk ? positions : chunk};
  shard_step s = {.kind = SHARD_PREPARE,
                  .n = 1,
                  .items = &widest,
                  .slot_positions = positions,
                  .slots = p->slots + 1,
                  .n_places = p->n_pictures};
  btc_status st = send_step(p, &s, &number, err);
  s.kind = SHARD_RESERVE;
  if (st == BTC_OK) st = send_step(p, &s, &number, err);
  p->positions = positions;
  p->images = images;
  p->reserved = true;
  return st == BTC_OK ? send_beginning(p, err) : st;
}

static int64_t needed(const pipe_job *j) {
  return j->end + j->q.max_tokens;
}

/* After a break: as much as the items in slots need, at least the usual. */
static btc_status reserve_first(pipe_driver *p, btc_error *err) {
  int64_t positions = p->usual_positions, images = SHARD_IMAGES;
  for (int i = 0; i < p->slots; i++) {
    if (!p->slot[i]) continue;
    if (needed(p->slot[i]) > positions) positions = needed(p->slot[i]);
    if (p->slot[i]->n_read > images) images = p->slot[i]->n_read;
  }
  return reserve(p, positions, images, err);
}

/* ---- the tower ---- */

/* Up to a batch of pictures that this epoch's ranks have not seen, of the earliest items. */
static void pick_pictures(pipe_driver *p, pipe_encode *e) {
  e->n = 0;
  for (uint64_t from = 0; e->n < SHARD_IMAGES;) {
    pipe_job *j = pipe_first(p, PIPE_LIVE, from), *k = pipe_first(p, PIPE_READ, from);
    if (!j || (k && k->order < j->order)) j = k;
    if (!j) return;
    from = j->order + 1;
    for (int i = 0; i < j->n_read && e->n < SHARD_IMAGES; i++) {
      if (p->pictures[j->place[i]].state != PICTURE_THERE || (j->state == PIPE_LIVE && j->prefilled)) continue;
      p->pictures[j->place[i]].state = PICTURE_FLYING;
      e->job[e->n] = j;
      e->order[e->n] = j->order;
      e->place[e->n++] = j->place[i];
    }
  }
}

static btc_status send_encode(pipe_driver *p, pipe_encode *e, btc_error *err) {
  btc_stage_item items[SHARD_IMAGES];
  pthread_mutex_lock(&p->lock);
  pick_pictures(p, e);
  pthread_mutex_unlock(&p->lock);
  if (!e->n) return BTC_OK;
  shard_step s = {.kind = SHARD_ENCODE, .n = e->n, .items = items, .n_pictures = e->n};
  for (int i = 0; i < e->n; i++) {
    const pipe_picture *x = &p->pictures[e->place[i]];
    items[i] = (btc_stage_item){.n_images = 1, .positions = 1, .slot = e->place[i]};
    s.pictures[i] = (btc_picture){.rgb = x->im.rgb, .width = x->im.width, .height = x->im.height, .pad = x->pad};
  }
  e->flying = true;
  e->sent_ns = btc_now_ns();
  return send_step(p, &s, &e->step, err);
}

/* As many at once as keep every rank of the tower busy, and one that waits. */
static btc_status send_encodes(pipe_driver *p, btc_error *err) {
  btc_status st = BTC_OK;
  for (int i = 0; st == BTC_OK && i < p->towers + 1; i++) {
    pipe_encode *e = &p->encode[i];
    if (e->flying) continue;
    st = send_encode(p, e, err);
    if (!e->flying) break;
  }
  return st;
}

/* ---- the language model ---- */

static int64_t common_prefix(const pipe_driver *p, const btc_request *q, int64_t end) {
  int64_t n = 0;
  while (n < p->n_prefix && n + 1 < end && q->ids[n] == p->prefix[n]) n++;
  return n;
}

/* The next positions of the prompt that is being sent. */
static btc_status send_chunk(pipe_driver *p, pipe_chunk *c, btc_error *err) {
  pipe_job *j = p->filling;
  btc_stage_item it = j->q.step;
  const bool first = !j->chunks;
  if (first) {
    j->sent = common_prefix(p, &j->q, j->end);
    j->sent_ns = btc_now_ns();
    p->n_reused += j->sent;
  }
  it.past = j->sent;
  it.positions = j->end - j->sent < p->o.chunk ? j->end - j->sent : p->o.chunk;
  for (int i = 0; i < j->n_read; i++) p->places[i] = j->place[i];
  shard_step s = {
      .kind = SHARD_PREFILL, .n = 1, .items = &it, .chunk = j->chunks++, .places = p->places, .n_places = first ? j->n_read : 0};
  *c = (pipe_chunk){.flying = true, .sent_ns = btc_now_ns(), .job = j};
  j->sent += it.positions;
  if (j->sent == j->end) p->filling = NULL;
  p->n_chunks++;
  return send_step(p, &s, &c->step, err);
}

static btc_status send_decode(pipe_driver *p, pipe_group *g, int first, btc_error *err) {
  g->rows = 0;
  for (int i = first; i < p->slots; i += p->n_groups) {
    pipe_job *j = p->slot[i];
    if (!j || !j->prefilled) continue;
    p->steps[g->rows] = (btc_stage_item){.n_images = j->n_read,
                                         .positions = 1,
                                         .past = j->end + j->fed,
                                         .token = j->q.answer[j->fed],
                                         .slot = i,
                                         .greedy = j->q.step.greedy};
    g->row[g->rows++] = j;
  }
  if (!g->rows) return BTC_OK;
  p->n_decodes++;
  p->n_amid += p->filling != NULL;
  g->flying = true;
  g->sent_ns = btc_now_ns();
  return send_step(p, &(shard_step){.kind = SHARD_DECODE, .n = g->rows, .items = p->steps}, &g->step, err);
}

/* The earliest item in a slot of which this epoch's ranks have seen nothing, and whose features they have. */
static pipe_job *to_prefill(const pipe_driver *p) {
  pipe_job *first = NULL;
  for (int i = 0; i < p->slots; i++) {
    pipe_job *j = p->slot[i];
    if (j && !j->sent && (!first || j->order < first->order) && pipe_pictures_are(p, j, PICTURE_READY)) first = j;
  }
  return first;
}

/* The earliest item that can be prefilled goes into a free slot. Slots are dealt out to groups in turn. */
static pipe_job *admit(pipe_driver *p) {
  int slot = 0;
  while (slot < p->slots && p->slot[slot]) slot++;
  if (slot >= p->slots) return NULL;
  pthread_mutex_lock(&p->lock);
  pipe_job *j = pipe_first(p, PIPE_READ, 0);
  while (j && !pipe_pictures_are(p, j, PICTURE_READY)) j = pipe_first(p, PIPE_READ, j->order + 1);
  if (j && (needed(j) > p->positions || j->n_read > p->images)) j = NULL; /* it waits for the room, and those behind it with it */
  if (j) j->state = PIPE_LIVE;
  pthread_cond_signal(&p->to_read);
  pthread_mutex_unlock(&p->lock);
  if (!j) return NULL;
  p->slot[slot] = j;
  p->live++;
  j->q.step.slot = slot;
  return j;
}

/* As many chunks at once as keep every rank of the language busy, and one that waits. */
static btc_status send_chunks(pipe_driver *p, btc_error *err) {
  btc_status st = BTC_OK;
  for (int i = 0; st == BTC_OK && i < p->n_ranks - p->entry + 1; i++) {
    if (p->chunk[i].flying) continue;
    if (!p->filling) p->filling = to_prefill(p);
    if (!p->filling) p->filling = admit(p);
    if (!p->filling) break;
    st = send_chunk(p, &p->chunk[i], err);
  }
  return st;
}

/* The earliest read item, when it is larger than what is reserved: its room is made once all slots are free. */
static btc_status grow(pipe_driver *p, btc_error *err) {
  pthread_mutex_lock(&p->lock);
  const pipe_job *j = pipe_first(p, PIPE_READ, 0);
  pthread_mutex_unlock(&p->lock);
  if (!j || p->live || (needed(j) <= p->positions && j->n_read <= p->images) || anything_flies(p)) return BTC_OK;
  int64_t positions = needed(j) > p->positions ? needed(j) : p->positions;
  return reserve(p, positions, j->n_read > p->images ? j->n_read : p->images, err);
}

btc_status pipe_send_steps(pipe_driver *p, btc_error *err) {
  btc_status st = BTC_OK;
  if (!p->open) return BTC_OK;
  if (!p->reserved) st = reserve_first(p, err);
  if (st == BTC_OK) st = grow(p, err);
  if (st == BTC_OK) st = send_encodes(p, err);
  for (int g = 0; st == BTC_OK && g < p->n_groups; g++) /* before chunks: somebody waits for these tokens */
    if (!p->group[g].flying) st = send_decode(p, &p->group[g], g, err);
  return st == BTC_OK ? send_chunks(p, err) : st;
}
