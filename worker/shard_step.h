/*
 * A step descriptor and its tensor as they travel down a pipeline, in the body of one link frame:
 *   head 32 bytes | items 24 bytes each | prompt ids i32 | flow tensor f32 | change maps f32 [pairs, T]
 * Little-endian, as every machine we run on. The same descriptor goes through all ranks; each replaces the tensor by its own
 * output. Change maps appear behind the rank that computes them and ride along to the driver.
 */
#ifndef BTC_WORKER_SHARD_STEP_H
#define BTC_WORKER_SHARD_STEP_H

#include "engine/stage.h"
#include "link.h"

typedef enum shard_step_kind { SHARD_PREFILL = 1, SHARD_DECODE, SHARD_RESERVE } shard_step_kind;

typedef struct shard_step {
  shard_step_kind kind;
  int n;
  btc_stage_item *items;  /* [n]; ids point into the body that was read */
  int64_t slot_positions; /* RESERVE: see btc_stage_reserve; 0 otherwise */
  const float *flow;
  int64_t flow_floats;
  const float *cosine; /* NULL: not computed yet, or a step without pairs */
  int64_t cosine_floats;
} shard_step;

/* Reads a body of `kind` at the flow before block `first`. items: room for most. Every number is checked against the model before
 * it is used; FORMAT says what is wrong. */
btc_status shard_step_read(const btc_model *m, int first, uint16_t kind, const uint8_t *data, size_t bytes, btc_stage_item *items,
                           int most, shard_step *out, btc_error *err);

/* The descriptor's bytes go to *buffer, grown as needed (*room bytes; the caller frees); parts[3] is what a link sends. */
btc_status shard_step_write(const shard_step *s, uint8_t **buffer, size_t *room, btc_link_part parts[3], btc_error *err);

int64_t shard_step_cosines(const btc_model *m, const btc_stage_item *items, int n); /* floats of the change maps of these items */

#endif
