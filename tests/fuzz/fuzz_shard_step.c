/*
 * Any bytes as the body of a step: refused with a reason, or a step that writes as the bytes it was read from. Input: kind, block,
 * mode; then the body as it is (even mode), or changes to a good step: which step, and (offset, byte) pairs. Mode & 4: its tensor
 * comes apart.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/prompt.h"
#include "worker/shard_step.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

enum { MOST = 8, BODY = 1 << 22 };

static btc_model *model;
static uint8_t *body;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  btc_error err;
  (void)argc;
  (void)argv;
  body = malloc(BODY);
  if (body && btc_model_open("models/nano", &model, &err) == BTC_OK) return 0;
  fprintf(stderr, "%s\n", body ? err.message : "out of memory");
  exit(1);
}

/* A step as a driver would send it, or as a rank would hand it on, before `first`. */
static size_t good_step(uint16_t kind, int first, uint8_t which, bool inside, uint32_t *apart) {
  static int32_t ids[4] = {1, BTC_IMAGE_ID, 5, 6}, places[2] = {0, 3};
  static uint8_t *words;
  static size_t room;
  static const btc_pick picks[MOST];
  static const uint8_t samples[8 * 4 * 3];
  btc_stage_item items[MOST] = {{0}};
  btc_link_part parts[SHARD_PARTS];
  btc_error err;
  shard_step s = {.kind = (shard_step_kind)kind, .n = 1, .items = items, .slots = 3, .n_places = 4, .slot_positions = 200};
  items[0] = (btc_stage_item){.n_images = 1, .positions = 1, .ids = ids, .slot = which & 3};
  if (kind == SHARD_PREFILL) {
    bool beginning = which & 16;
    items[0].n_images = beginning ? 0 : 2;
    items[0].n_ids = beginning ? 1 : 4;
    items[0].positions = beginning ? 1 : 2 + model->block_tokens;
    items[0].past = beginning ? 0 : 1;
    s.n_places = beginning ? 0 : 2;
    s.places = places;
    s.slots = 0;
  } else if (kind == SHARD_DECODE || kind == SHARD_ENCODE) {
    s.n = 1 + (which >> 4) % (kind == SHARD_ENCODE ? SHARD_IMAGES : MOST);
    for (int i = 1; i < s.n; i++) items[i] = items[0];
    items[0].greedy = which & 8;
    s.slots = s.n_places = 0;
  }
  s.n_pictures = shard_step_pictures(first, &s);
  for (int i = 0; i < s.n_pictures; i++)
    s.pictures[i] = (btc_picture){.rgb = samples, .width = 1 + (which & 7), .height = 3 + i, .pad = which & 8};
  s.picks = picks;
  s.n_picks = shard_step_picks(model, first, &s);
  s.flow_floats = shard_step_floats(model, first, &s);
  if (shard_step_write(&s, &words, &room, parts, &err) != BTC_OK) abort();
  size_t n = 0;
  *apart = inside ? 0 : (uint32_t)parts[1].bytes;
  for (int i = 0; i < SHARD_PARTS; i++) {
    if (i == 1 && !inside) continue;
    if (n + parts[i].bytes > BODY) return n;
    if (parts[i].data)
      memcpy(body + n, parts[i].data, parts[i].bytes);
    else
      memset(body + n, 0, parts[i].bytes);
    n += parts[i].bytes;
  }
  return n;
}

static volatile unsigned seen;

static void check(const shard_step *s, size_t bytes) {
  static uint8_t *words;
  static size_t room;
  btc_link_part parts[SHARD_PARTS];
  btc_error err;
  if (shard_step_write(s, &words, &room, parts, &err) != BTC_OK) abort();
  if (parts[0].bytes + (s->flow ? parts[1].bytes : 0) + parts[2].bytes > bytes) abort();
  if (s->n < 1 || s->n > MOST || shard_step_images(s->items, s->n) < 0) abort();
  for (int i = 0; i < s->n_pictures; i++) /* every sample is there to be read */
    for (int64_t k = 0; k < 3 * s->pictures[i].width * s->pictures[i].height; k++) seen = seen + s->pictures[i].rgb[k];
  for (int i = 0; i < s->n_picks; i++)
    if (s->picks[i].id < 0 || s->picks[i].id >= model->cfg->llm.vocab || s->picks[i].broken >= BTC_PICK_FAULTS) abort();
  if (parts[1].bytes && s->flow && memcmp(parts[1].data, s->flow, parts[1].bytes) != 0) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  btc_stage_item items[MOST];
  shard_step s;
  btc_error err = {0};
  if (size < 4) return 0;
  uint16_t kind = data[0] % 7;
  int first = data[1] % (btc_block_count(model) + 1);
  size_t n = 0;
  uint32_t apart = data[2] & 4 ? 4 * data[3] : 0;
  if (data[2] & 1 && kind >= SHARD_RESERVE && kind <= SHARD_DECODE) {
    n = good_step(kind, first, data[3], !(data[2] & 4), &apart);
    for (size_t i = 4; i + 2 < size && n; i += 3) body[(data[i] | (size_t)data[i + 1] << 8) % (n < 4096 ? n : 4096)] = data[i + 2];
    if (data[2] & 2) n -= n ? 1 : 0;
  } else {
    n = size - 4;
    memcpy(body, data + 4, n);
  }
  uint8_t *exact = malloc(n + 1); /* so that a read beyond the end is seen */
  if (!exact) return 0;
  memcpy(exact, body, n);
  if (shard_step_read_apart(model, first, kind, exact, n, apart, items, MOST, &s, &err) == BTC_OK)
    check(&s, n);
  else if (!err.message[0])
    abort();
  free(exact);
  return 0;
}
