/* Step descriptors to bytes and back: see shard_step.h. */
#include "shard_step.h"

#include <stdlib.h>
#include <string.h>

#include "engine/prompt.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "steps and tensors travel as little-endian memory");

enum { MAX_IDS = 1 << 20 };

typedef struct wire_head {
  uint32_t n, n_ids, slots,
      n_places; /* items; prompt ids of all of them; RESERVE, PREPARE: slots and places to make, PREFILL: chunk and places */
  uint64_t slot_positions, flow_floats, cosine_floats;
  uint32_t sample_bytes;
  uint16_t n_picks, n_pictures;
} wire_head;

typedef struct wire_item {
  int32_t n_images, n_ids, positions, past, token, slot, greedy;
} wire_item;

typedef struct wire_picture {
  int32_t width, height, pad;
} wire_picture;

_Static_assert(sizeof(wire_head) == 48 && sizeof(wire_item) == 28 && sizeof(wire_picture) == 12, "no padding travels");
_Static_assert(sizeof(btc_pick) == 16, "picks travel as they are: behind the head, so that they lie where numbers may");

/* ---- what belongs to a step ---- */

int shard_change_block(const btc_model *m) {
  return (int)m->cfg->vision.blocks + 1;
}

bool shard_step_is_tower(uint16_t kind) {
  return kind == SHARD_PREPARE || kind == SHARD_ENCODE;
}

static bool makes_room(uint16_t kind) {
  return kind == SHARD_PREPARE || kind == SHARD_RESERVE;
}

int shard_step_images(const btc_stage_item *items, int n) {
  int images = 0;
  for (int i = 0; i < n; i++) images += items[i].n_images;
  return images;
}

int64_t shard_step_cosines(const btc_model *m, const btc_stage_item *items, int n) {
  int64_t pairs = 0;
  for (int i = 0; i < n; i++) pairs += items[i].n_images == 2;
  return pairs * m->tokens;
}

static int64_t prompt_positions(const btc_model *m, const btc_stage_item *it) {
  int64_t holes = 0;
  for (int64_t k = 0; k < it->n_ids; k++) holes += it->ids[k] == BTC_IMAGE_ID;
  return it->n_ids - holes + holes * m->block_tokens;
}

bool shard_step_ends_prompt(const btc_model *m, const shard_step *s) {
  return s->n > 1 || s->items[0].past + s->items[0].positions == prompt_positions(m, &s->items[0]);
}

/* The beginning of all prompts has no images: its line starts at splice. */
static bool is_beginning(const shard_step *s) {
  return s->kind == SHARD_PREFILL && s->n == 1 && s->items[0].n_images == 0;
}

int shard_step_pictures(int i, const shard_step *s) {
  return s->kind == SHARD_ENCODE && i == 0 ? s->n : 0;
}

int shard_step_picks(const btc_model *m, int i, const shard_step *s) {
  if (i < btc_block_count(m)) return 0;
  return s->kind == SHARD_DECODE || (s->kind == SHARD_PREFILL && shard_step_ends_prompt(m, s)) ? s->n : 0;
}

/* Rows of logits that travel: a pick stands for those of the others. */
static int64_t drawn_rows(const btc_model *m, const shard_step *s) {
  int64_t rows = 0;
  for (int k = 0; k < shard_step_picks(m, btc_block_count(m), s); k++) rows += !s->items[k].greedy;
  return rows;
}

int64_t shard_step_floats(const btc_model *m, int i, const shard_step *s) {
  const int change = shard_change_block(m);
  if (i == btc_block_count(m)) return drawn_rows(m, s) * m->cfg->llm.vocab;
  switch (s->kind) {
    case SHARD_ENCODE:
      return i > 0 && i <= change ? btc_flow_floats(m, i, s->items, s->n, false) : 0;
    case SHARD_PREFILL:
      return i <= change + (is_beginning(s) ? 1 : 0) ? 0 : btc_flow_floats(m, i, s->items, s->n, false);
    case SHARD_DECODE:
      return btc_flow_floats(m, i, s->items, s->n, true);
    default:
      return 0;
  }
}

/* The largest tensor that can travel: a prompt as long as the context, a batch of images or of their features, logits of all slots.
 */
uint64_t shard_frame_bound(const btc_model *m, int slots) {
  const int64_t side = m->cfg->vision.image, images = SHARD_IMAGES, frames = m->cfg->num_video_frames;
  const int64_t blocks = frames > 2 ? frames : 1;
  const int64_t sizes[] = {m->cfg->llm.context * m->width, images * 3 * side * side, images * m->tokens * m->hidden,
                           blocks * m->block_tokens * m->width,
                           slots * (m->cfg->llm.vocab > m->width ? m->cfg->llm.vocab : m->width)};
  int64_t most = 0;
  for (int i = 0; i < 5; i++)
    if (sizes[i] > most) most = sizes[i];
  uint64_t bytes = 4 * (uint64_t)(most + m->cfg->llm.context + slots * (m->tokens + 64) + SHARD_MAX_PLACES);
  return bytes < BTC_LINK_MAX_BYTES ? bytes : BTC_LINK_MAX_BYTES;
}

/* ---- in ---- */

static btc_status check_prompt(const btc_model *m, const btc_stage_item *it, int i, btc_error *err) {
  int64_t holes = 0;
  for (int64_t k = 0; k < it->n_ids; k++) {
    if (it->ids[k] != BTC_IMAGE_ID && (it->ids[k] < 0 || it->ids[k] >= m->embed.rows))
      return btc_fail(err, BTC_ERR_FORMAT, "step: item %d has token %d", i, it->ids[k]);
    holes += it->ids[k] == BTC_IMAGE_ID;
  }
  if (holes != (it->n_images ? btc_item_blocks(it) : 0) || it->past + it->positions > prompt_positions(m, it))
    return btc_fail(err, BTC_ERR_FORMAT, "step: item %d has %lld positions for %lld ids", i, (long long)it->positions,
                    (long long)it->n_ids);
  return BTC_OK;
}

/* Could this item break memory in the stage? Slots, past and context are the stage's own checks. */
static btc_status check_item(const btc_model *m, shard_step_kind kind, const btc_stage_item *it, int i, btc_error *err) {
  const int64_t frames = m->cfg->num_video_frames, fewest = kind == SHARD_ENCODE || makes_room(kind);
  int64_t most = kind == SHARD_ENCODE ? 1 : makes_room(kind) ? SHARD_MAX_PLACES : frames > 2 ? frames : 2;
  if (it->n_images < fewest || it->n_images > most || it->positions < 1 || it->positions > m->cfg->llm.context || it->past < 0 ||
      it->slot < 0)
    return btc_fail(err, BTC_ERR_FORMAT, "step: item %d of %d images and %lld positions", i, it->n_images,
                    (long long)it->positions);
  if (kind == SHARD_DECODE && (it->token < 0 || it->token >= m->embed.rows || it->positions != 1))
    return btc_fail(err, BTC_ERR_FORMAT, "step: item %d feeds token %d", i, it->token);
  return kind == SHARD_PREFILL ? check_prompt(m, it, i, err) : BTC_OK;
}

static size_t sample_bytes(const btc_picture *p) {
  return (size_t)(p->width * p->height * 3);
}

/* The pictures whose sizes are at `sizes` and whose samples at `rgb`, one after another. */
static btc_status read_pictures(const btc_model *m, const wire_head *h, const uint8_t *sizes, const uint8_t *rgb, shard_step *s,
                                btc_error *err) {
  const uint8_t *const end = rgb + h->sample_bytes;
  for (uint32_t i = 0; i < h->n_pictures; i++) {
    wire_picture w;
    memcpy(&w, sizes + i * sizeof w, sizeof w);
    btc_picture *p = &s->pictures[i];
    *p = (btc_picture){.rgb = rgb, .width = w.width, .height = w.height, .pad = w.pad != 0};
    if (w.width < 1 || w.height < 1 || !btc_picture_fits(w.width, w.height, m->cfg->vision.image) ||
        sample_bytes(p) > (size_t)(end - rgb))
      return btc_fail(err, BTC_ERR_FORMAT, "step: picture %u of %d x %d pixels", i, w.width, w.height);
    rgb += sample_bytes(p);
  }
  s->n_pictures = (int)h->n_pictures;
  if (rgb == end) return BTC_OK;
  return btc_fail(err, BTC_ERR_FORMAT, "step: %lld bytes of samples behind its pictures", (long long)(end - rgb));
}

/* Picks become tokens, and what is said of broken ones. */
static btc_status check_picks(const btc_model *m, int first, const shard_step *s, btc_error *err) {
  const int want = shard_step_picks(m, first, s);
  const int64_t vocab = btc_tokenizer_vocab(m->tok);
  if (s->n_picks != want) return btc_fail(err, BTC_ERR_FORMAT, "step: %d picks where %d belong", s->n_picks, want);
  for (int i = 0; i < want; i++)
    if (s->picks[i].id < 0 || s->picks[i].id >= vocab || s->picks[i].broken < 0 || s->picks[i].broken >= BTC_PICK_FAULTS)
      return btc_fail(err, BTC_ERR_FORMAT, "step: pick %d of token %d, fault %d", i, s->picks[i].id, s->picks[i].broken);
  return BTC_OK;
}

static btc_status check_whole(const btc_model *m, int first, const shard_step *s, btc_error *err) {
  int64_t want = shard_step_floats(m, first, s);
  const bool first_chunk = s->kind == SHARD_PREFILL && !s->chunk;
  int64_t cosines = first_chunk ? shard_step_cosines(m, s->items, s->n) : 0;
  if (s->flow_floats != want || (s->cosine_floats && s->cosine_floats != cosines))
    return btc_fail(err, BTC_ERR_FORMAT, "step: a tensor of %lld numbers where %lld belong", (long long)s->flow_floats,
                    (long long)want);
  int places = first_chunk ? shard_step_images(s->items, s->n) : 0;
  bool sizes = !makes_room(s->kind) || (s->n == 1 && s->slots >= 1 && s->slots <= SHARD_MAX_SLOTS && s->n_places >= 1);
  if (!sizes || (!makes_room(s->kind) && s->n_places != places))
    return btc_fail(err, BTC_ERR_FORMAT, "step: %d slots and %d places of features", s->slots, s->n_places);
  for (int i = 0; i < s->n; i++)
    if (s->items[i].n_images == 0 && s->kind == SHARD_PREFILL && (s->n != 1 || s->items[i].past))
      return btc_fail(err, BTC_ERR_FORMAT, "step: an item without images among others");
  if (s->n_pictures != shard_step_pictures(first, s))
    return btc_fail(err, BTC_ERR_FORMAT, "step: %d pictures where %d belong", s->n_pictures, shard_step_pictures(first, s));
  btc_status st = check_picks(m, first, s, err);
  if (st != BTC_OK || s->kind != SHARD_PREFILL) return st;
  bool whole = s->n == 1 || !s->chunk; /* several items come whole, and so does the beginning */
  for (int i = 0; i < s->n && (s->n > 1 || is_beginning(s)); i++)
    whole = whole && !s->chunk && s->items[i].past + s->items[i].positions == prompt_positions(m, &s->items[i]);
  if (!whole) return btc_fail(err, BTC_ERR_FORMAT, "step: chunk %d of %d prompts", s->chunk, s->n);
  return BTC_OK;
}

/* The items behind the head; *ids ends behind the prompts of all of them. */
static btc_status read_items(const btc_model *m, shard_step_kind kind, const wire_head *h, const uint8_t *at, btc_stage_item *items,
                             const int32_t **ids, btc_error *err) {
  uint64_t ids_left = h->n_ids;
  *ids = (const int32_t *)(const void *)(at + h->n * sizeof(wire_item) + h->n_pictures * sizeof(wire_picture));
  for (uint32_t i = 0; i < h->n; i++) {
    wire_item w;
    memcpy(&w, at + i * sizeof w, sizeof w);
    if (w.n_ids < 0 || (uint64_t)w.n_ids > ids_left) return btc_fail(err, BTC_ERR_FORMAT, "step: item %u has %d ids", i, w.n_ids);
    items[i] = (btc_stage_item){.n_images = w.n_images,
                                .ids = *ids,
                                .n_ids = w.n_ids,
                                .positions = w.positions,
                                .past = w.past,
                                .token = w.token,
                                .slot = w.slot,
                                .greedy = w.greedy != 0};
    *ids += w.n_ids;
    ids_left -= (uint64_t)w.n_ids;
    btc_status st = check_item(m, kind, &items[i], (int)i, err);
    if (st != BTC_OK) return st;
  }
  *ids += ids_left;
  return BTC_OK;
}

btc_status shard_step_read(const btc_model *m, int first, uint16_t kind, const uint8_t *data, size_t bytes, btc_stage_item *items,
                           int most, shard_step *out, btc_error *err) {
  return shard_step_read_apart(m, first, kind, data, bytes, 0, items, most, out, err);
}

btc_status shard_step_read_apart(const btc_model *m, int first, uint16_t kind, const uint8_t *data, size_t bytes, uint32_t apart,
                                 btc_stage_item *items, int most, shard_step *out, btc_error *err) {
  wire_head h;
  if (bytes < sizeof h || kind < SHARD_RESERVE || kind > SHARD_DECODE)
    return btc_fail(err, BTC_ERR_FORMAT, "step: %zu bytes of kind %u", bytes, kind);
  memcpy(&h, data, sizeof h);
  if (kind == SHARD_ENCODE && most > SHARD_IMAGES) most = SHARD_IMAGES;
  uint64_t travelling = makes_room(kind) ? 0 : h.n_places, inside = apart ? 0 : h.flow_floats;
  if (h.n < 1 || h.n > (uint32_t)most || h.n_ids > MAX_IDS || h.n_places > SHARD_MAX_PLACES ||
      h.slots > (kind == SHARD_PREFILL ? MAX_IDS : SHARD_MAX_SLOTS) || h.flow_floats > BTC_LINK_MAX_BYTES ||
      h.cosine_floats > BTC_LINK_MAX_BYTES || h.slot_positions > (uint64_t)m->cfg->llm.context || h.n_picks > h.n ||
      h.n_pictures > (kind == SHARD_ENCODE ? h.n : 0) || h.sample_bytes > BTC_LINK_MAX_BYTES ||
      bytes != sizeof h + h.n_picks * sizeof(btc_pick) + h.n * sizeof(wire_item) + h.n_pictures * sizeof(wire_picture) +
                   h.sample_bytes + 4 * ((uint64_t)h.n_ids + travelling + inside + h.cosine_floats) ||
      (apart && apart != 4 * h.flow_floats))
    return btc_fail(err, BTC_ERR_FORMAT, "step: %u items do not make %zu bytes", h.n, bytes);
  const int32_t *ids;
  const uint8_t *at = data + sizeof h + h.n_picks * sizeof(btc_pick);
  btc_status st = read_items(m, (shard_step_kind)kind, &h, at, items, &ids, err);
  if (st != BTC_OK) return st;
  *out = (shard_step){.kind = (shard_step_kind)kind,
                      .n = (int)h.n,
                      .items = items,
                      .places = ids,
                      .slot_positions = (int64_t)h.slot_positions,
                      .slots = kind == SHARD_PREFILL ? 0 : (int)h.slots,
                      .chunk = kind == SHARD_PREFILL ? (int)h.slots : 0,
                      .n_places = (int)h.n_places,
                      .picks = (const btc_pick *)(const void *)(data + sizeof h),
                      .n_picks = (int)h.n_picks,
                      .flow = apart ? NULL : (const float *)(const void *)(ids + travelling),
                      .flow_floats = (int64_t)h.flow_floats,
                      .cosine_floats = (int64_t)h.cosine_floats};
  if (out->cosine_floats) out->cosine = (const float *)(const void *)(ids + travelling) + inside;
  st = read_pictures(m, &h, at + h.n * sizeof(wire_item), data + bytes - h.sample_bytes, out, err);
  return st == BTC_OK ? check_whole(m, first, out, err) : st;
}

/* ---- out ---- */

static btc_status grow(uint8_t **buffer, size_t *room, size_t bytes, btc_error *err) {
  if (bytes <= *room) return BTC_OK;
  uint8_t *grown = btc_realloc(*buffer, bytes, 1);
  if (!grown) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a step");
  *buffer = grown;
  *room = bytes;
  return BTC_OK;
}

btc_status shard_step_write(const shard_step *s, uint8_t **buffer, size_t *room, btc_link_part parts[SHARD_PARTS], btc_error *err) {
  wire_head h = {.n = (uint32_t)s->n,
                 .slots = (uint32_t)(s->kind == SHARD_PREFILL ? s->chunk : s->slots),
                 .n_places = (uint32_t)s->n_places,
                 .slot_positions = (uint64_t)s->slot_positions,
                 .flow_floats = (uint64_t)s->flow_floats,
                 .cosine_floats = s->cosine ? (uint64_t)s->cosine_floats : 0,
                 .n_picks = (uint16_t)s->n_picks,
                 .n_pictures = (uint16_t)s->n_pictures};
  for (int i = 0; i < s->n_pictures; i++) h.sample_bytes += (uint32_t)sample_bytes(&s->pictures[i]);
  const size_t picks = (size_t)s->n_picks * sizeof(btc_pick);
  bool with_ids = s->kind == SHARD_PREFILL;
  for (int i = 0; i < s->n && with_ids; i++) h.n_ids += (uint32_t)s->items[i].n_ids;
  size_t bytes = sizeof h + picks + (size_t)s->n * sizeof(wire_item) + (size_t)s->n_pictures * sizeof(wire_picture) +
                 4 * ((size_t)h.n_ids + (with_ids ? h.n_places : 0));
  btc_status st = grow(buffer, room, bytes, err);
  if (st != BTC_OK) return st;
  uint8_t *w = *buffer;
  memcpy(w, &h, sizeof h);
  w += sizeof h;
  if (picks) memcpy(w, s->picks, picks);
  w += picks;
  for (int i = 0; i < s->n; i++, w += sizeof(wire_item)) {
    const btc_stage_item *it = &s->items[i];
    wire_item x = {it->n_images, with_ids ? (int32_t)it->n_ids : 0, (int32_t)it->positions, (int32_t)it->past, it->token, it->slot,
                   it->greedy};
    memcpy(w, &x, sizeof x);
  }
  for (int i = 0; i < s->n_pictures; i++, w += sizeof(wire_picture)) {
    const btc_picture *p = &s->pictures[i];
    memcpy(w, &(wire_picture){(int32_t)p->width, (int32_t)p->height, p->pad}, sizeof(wire_picture));
  }
  for (int i = 0; i < s->n && with_ids; i++) {
    memcpy(w, s->items[i].ids, 4 * (size_t)s->items[i].n_ids);
    w += 4 * s->items[i].n_ids;
  }
  if (with_ids && s->n_places) memcpy(w, s->places, 4 * (size_t)s->n_places);
  parts[0] = (btc_link_part){*buffer, bytes};
  parts[1] = (btc_link_part){s->flow, 4 * (size_t)s->flow_floats};
  parts[2] = (btc_link_part){s->cosine, 4 * (size_t)h.cosine_floats};
  for (int i = 0; i < SHARD_IMAGES; i++)
    parts[3 + i] = i < s->n_pictures ? (btc_link_part){s->pictures[i].rgb, sample_bytes(&s->pictures[i])} : (btc_link_part){0};
  return BTC_OK;
}
