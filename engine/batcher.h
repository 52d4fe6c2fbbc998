/*
 * Continuous batching: items come at any time and each is answered as soon as it is done, while others go on. In between they share
 * what can be shared: images are read ahead by threads, the tower takes several at once and sees each content once
 * (feature_cache.h), the prompt's constant beginning is computed once, and one read of the weights serves the decode step of all
 * live items. A result is byte for byte (timing apart) what btc_session_run gives for the item alone, whatever runs beside it.
 *
 * A step: admit items to free slots, encode images if a slot is free and no item is ready for it, prefill at most `chunk`
 * positions, of several items in one pass over the weights, then decode one token of every live item. Nothing is allocated by steps
 * that only decode.
 *
 * On a device, pixels, features and visual blocks stay in its memory; what comes back is the change maps, the tokens of greedy
 * items, and the logits of the others. Items are admitted a few at a time there, so that their prefills share a pass.
 *
 * A step that runs out of memory costs no item: the batcher goes on with half its slots and half the images in a pass of the tower,
 * and begins anew what was under way. Only what does not fit at one slot and one image fails.
 *
 * Private to engine/, worker/ and the programs of cli/. Thread: one at a time; the reading threads are the batcher's own.
 */
#ifndef BTC_BATCHER_H
#define BTC_BATCHER_H

#include "engine.h"
#include "ops/ops.h"

typedef struct btc_batcher_options {
  const char *device; /* as in btc_session_options, like the next two */
  int threads;
  btc_precision precision;
  int slots;                  /* items generated together, 1..256; fewer when memory runs out */
  int max_tokens;             /* most tokens of an answer */
  int ahead;                  /* items prepared beyond those in slots; 0: as many as slots, 8 at most (a device: 64) */
  int vision_batch;           /* images in one pass of the tower; 0: 4 (a device: 32, fewer when its memory is short) */
  int chunk;                  /* positions prefilled in one step; 0: 512 (a device: what keeps it busy) */
  int readers;                /* threads that read images ahead, at most 16; 0: 1 (a device: one a processor) */
  int64_t cache_bytes;        /* features kept; 0: 256 MiB; negative: none beyond their use */
  const volatile int *cancel; /* non-zero: every open item ends as CANCELLED, and so do steps; may be NULL */
  uint64_t *progress;         /* as in btc_session_options */
  const int32_t *force;       /* benches and golden checks: tokens of every answer, instead of its own */
  size_t n_force;             /* answers then end after this many */
  /* The answer of a submitted item, out of btc_batcher_step or _destroy; *r is the callee's to clear. It may submit and cancel. */
  void (*done)(void *ctx, void *tag, btc_result *r);
  /* One sentence for a log, out of btc_batcher_step: it has shrunk, and why; copies to the device are slow; may be NULL. */
  void (*note)(void *ctx, const char *text);
  void *ctx;
} btc_batcher_options;

typedef struct btc_batcher btc_batcher;

/* The model must outlive it. */
btc_status btc_batcher_create(btc_model *m, const btc_batcher_options *o, btc_batcher **out, btc_error *err);
/* Items still open are answered with CANCELLED. */
void btc_batcher_destroy(btc_batcher **b);
/* Items that may be submitted now: slots (those it was made with) + ahead - open. */
int btc_batcher_room(const btc_batcher *b);
int btc_batcher_open(const btc_batcher *b); /* items not answered yet */
/* The item and all it points to are borrowed until it is answered. LIMIT when there is no room. What is wrong with the item itself
 * comes as its result. */
btc_status btc_batcher_submit(btc_batcher *b, const btc_item *item, void *tag, btc_error *err);
/* The next step answers it with CANCELLED (a little later when its images are being read); false when no open item has the tag. */
bool btc_batcher_cancel(btc_batcher *b, const void *tag);
/* One step. Waits up to 20 ms when there is nothing to compute but images are on their way. An error is fatal (CANCELLED, or a
 * batcher that cannot compute): every open item has been answered with it. After DEVICE, which is no item's fault, the batcher can
 * only be destroyed. */
btc_status btc_batcher_step(btc_batcher *b, btc_error *err);

const char *btc_batcher_describe(const btc_batcher *b);
/* The device it computes on, as it is now; false: the CPU, or no answer. Any thread. */
bool btc_batcher_device(const btc_batcher *b, btc_device_info *out);
btc_precision btc_batcher_precision(const btc_batcher *b);

typedef struct btc_batcher_counts {
  int64_t images;      /* asked for by items that were read well */
  int64_t encoded;     /* images the tower saw */
  int64_t steps;       /* decode steps */
  int64_t decoded;     /* tokens out of them */
  int64_t prefills;    /* passes over the weights for prompts */
  int64_t prefilled;   /* positions computed, the constant beginning included */
  int64_t reused;      /* positions copied from it instead */
  int64_t cache_bytes; /* features held now */
} btc_batcher_counts;
btc_batcher_counts btc_batcher_get_counts(btc_batcher *b);

#endif
