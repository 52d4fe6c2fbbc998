/*
 * A step descriptor and its tensor as they travel down a pipeline, in the body of one link frame:
 *   head 48 bytes | picks 16 bytes each | items 28 bytes each | sizes of pictures 12 bytes each | prompt ids i32 |
 *   feature places i32 | flow tensor f32 | change maps f32 [pairs, T] | samples of pictures u8 [height, width, 3]
 * Little-endian, as every machine we run on. The same descriptor goes through all ranks; each replaces the tensor by its own
 * output. Change maps appear behind the rank that computes them and ride along to the driver.
 *
 * Two trains of steps run through the ranks, each numbered from 1. The tower's enters at rank 0; the language's at the rank that
 * holds the change module, so that a token does not wait behind images. PREPARE  tower: room for what follows ENCODE   tower: n
 * images through the tower; the rank that holds the change module keeps their features, each in its place RESERVE  language: room
 * for what follows; what key/value slots hold is lost when they grow. Nothing else is under way PREFILL  items whose features are
 * there: the rest of the line. Rows behind `past` only: what comes before is copied from the last slot, where an item without
 * images and without a past has left the beginning that all prompts share. A long prompt comes in chunks, one item a step: all
 * chunks of one before the first of the next, decode steps among them. Logits come with the last chunk, change maps with the first
 * DECODE   one token of every item
 *
 * Before the first block an ENCODE has no flow but pictures, 8-bit samples of a size that a device resizes (btc_picture_fits).
 *
 * Behind the head every item has a pick (ops.h), and only those that are not greedy have their logits: the flow is [those, vocab].
 */
#ifndef BTC_WORKER_SHARD_STEP_H
#define BTC_WORKER_SHARD_STEP_H

#include "engine/stage.h"
#include "link.h"

typedef enum shard_step_kind { SHARD_RESERVE = 1, SHARD_PREPARE, SHARD_ENCODE, SHARD_PREFILL, SHARD_DECODE } shard_step_kind;

enum {
  SHARD_MAX_SLOTS = 257,
  SHARD_MAX_PLACES = 4096,
  SHARD_IMAGES = 2,              /* most of an ENCODE */
  SHARD_PARTS = 3 + SHARD_IMAGES /* of a frame: the descriptor, the flow tensor, the change maps, each picture's samples */
};

typedef struct shard_step {
  shard_step_kind kind;
  int n;
  btc_stage_item
      *items; /* [n]; ids point into the body that was read. ENCODE: n_images 1, slot is the feature place. PREPARE, RESERVE: one
                 item, as large as any that follows: images of an item or of an ENCODE, positions prefilled at once */
  int chunk;  /* PREFILL: which of its prompt, from 0 */
  const int32_t *places;  /* PREFILL, first chunk: where the features of all its images are, items one after another */
  int64_t slot_positions; /* PREPARE, RESERVE: of a slot */
  int slots, n_places;    /* the same two: how many */
  const float *flow;
  int64_t flow_floats;
  btc_picture pictures[SHARD_IMAGES]; /* [n_pictures]: none, or all images of an ENCODE; without parcels */
  int n_pictures;
  const btc_pick *picks; /* [n_picks]: none, or one an item; those of items that are not greedy mean nothing */
  int n_picks;
  const float *cosine; /* NULL: not computed yet, or a step without pairs */
  int64_t cosine_floats;
} shard_step;

/* Reads a body of `kind` at the flow before block `first`. items: room for most. Every number is checked against the model before
 * it is used; FORMAT says what is wrong. Slots, places and room are checked by whoever has them. */
btc_status shard_step_read(const btc_model *m, int first, uint16_t kind, const uint8_t *data, size_t bytes, btc_stage_item *items,
                           int most, shard_step *out, btc_error *err);
/* The same for a step whose tensor comes apart (link.h, carriers), `apart` bytes of it: flow is NULL then, and for the caller to
 * set when it has come. 0: shard_step_read. Samples of pictures point into the body. */
btc_status shard_step_read_apart(const btc_model *m, int first, uint16_t kind, const uint8_t *data, size_t bytes, uint32_t apart,
                                 btc_stage_item *items, int most, shard_step *out, btc_error *err);

/* The descriptor's bytes go to *buffer, grown as needed (*room bytes; the caller frees); parts is what a link sends; parts[1]
 * is the flow tensor. */
btc_status shard_step_write(const shard_step *s, uint8_t **buffer, size_t *room, btc_link_part parts[SHARD_PARTS], btc_error *err);

/* Floats of the flow before block i (the block count: behind the last). */
int64_t shard_step_floats(const btc_model *m, int i, const shard_step *s);
bool shard_step_is_tower(uint16_t kind);                              /* which train */
bool shard_step_ends_prompt(const btc_model *m, const shard_step *s); /* a PREFILL behind which logits are known */
int shard_step_pictures(int i, const shard_step *s);                  /* before block i */
int shard_step_picks(const btc_model *m, int i, const shard_step *s); /* of the flow before block i */
int shard_step_images(const btc_stage_item *items, int n);
int64_t shard_step_cosines(const btc_model *m, const btc_stage_item *items, int n); /* floats of the change maps of these items */
int shard_change_block(const btc_model *m);                                         /* the block that reads features */

/* Bytes of the largest frame of a pipeline with so many slots. */
uint64_t shard_frame_bound(const btc_model *m, int slots);

#endif
