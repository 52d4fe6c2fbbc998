/*
 * Items that an engine with a model has in hand: from item text to a request, and from a result to the answer that is said.
 * Failures are sorted into the item's own (never tried again) and passing ones. One thread.
 */
#ifndef BTC_WORKER_ENGINE_ITEMS_H
#define BTC_WORKER_ENGINE_ITEMS_H

#include "engine.h"

typedef struct open_item {
  work_item it;
  uint64_t ticket;
  bool used;
} open_item;

typedef struct engine_items {
  btc_model *m; /* borrowed */
  record_model record;
  char known[BTC_KNOWN]; /* see btc_checkpoint_known */
  bool recognised;       /* the model's files were */
  char *roots;
  struct window_reader *windows;
  open_item *list; /* [n] */
  size_t n;
  const worker_sink *sink; /* of the step that runs */
  bool failing;            /* the engine fails, not its items: what is answered now may well work later or elsewhere */
} engine_items;

/* Of o: roots, and what is known of the model's files, which are read otherwise. progress: grows while windows are read. */
btc_status engine_items_open(engine_items *e, btc_model *m, btc_precision p, const btc_worker_options *o, size_t n,
                             uint64_t *progress, btc_error *err);
void engine_items_close(engine_items *e);
/* *out: an item to compute, its ask filled; NULL when it has been answered, for there is nothing to compute. An error is the
 * caller's to report. */
btc_status engine_items_add(engine_items *e, const worker_item *item, uint64_t ticket, const worker_sink *sink, open_item **out,
                            btc_error *err);
void engine_items_cancel(open_item *o); /* it could not be taken on after all */
/* Says its answer; nothing when the device was lost, for then the process ends with the item in hand (engine.h). */
void engine_items_done(engine_items *e, open_item *o, const btc_result *r);
void engine_items_name(const engine_items *e, worker_engine *base); /* what it says of the model */

#endif
