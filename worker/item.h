/*
 * One pair to caption, from a manifest line or from an item text (docs/protocol.md 1), and its way to a record. `caption --pairs`
 * and the model engine share it, so that both write the same bytes.
 */
#ifndef BTC_WORKER_ITEM_H
#define BTC_WORKER_ITEM_H

#include "record.h"

/* Owned texts; zero-initialise, item_clear frees. */
typedef struct work_item {
  char *id, *paths[2], *meta;
  char *prompt; /* NULL: the caption instruction */
  btc_item ask; /* the sampling part is the caller's; the rest is filled by item_run */
  btc_result result;
  struct item_window *window; /* of a scene (window.h); NULL: whole images */
  bool is_window;             /* the item text asks for one: bad until item_take_window */
  bool bad;                   /* nothing to compute: result holds why */
  const char *reason;         /* of a bad item that record_reason does not know ("policy"), static text; else NULL */
} work_item;
void item_clear(work_item *it);

/* Makes it a failed item: a bad line, or a window where no scenes are read. */
void item_refuse(work_item *it, const char *why);
void item_refuse_window(work_item *it);

/* From an item text and a job's parameters (an object with optional prompt, max_tokens, temperature, top_p, top_k, seed; NULL or
 * "": none). What is wrong with either makes a bad item; only NOMEM is an error. */
btc_status item_from_spec(work_item *it, const char *spec, const char *params, btc_error *err);

/* A window that item_from_spec refused becomes an item that is read through r (window.h); other items stay as they are. */
struct window_reader;
btc_status item_take_window(work_item *it, const char *spec, const char *params, struct window_reader *r, btc_error *err);

/* Completes ask from the item's own texts, which it borrows; not for bad items. */
void item_fill_ask(work_item *it);

/* Captions the items that are not bad, in one call of the session. asks and results: room for n. An error is the session's: results
 * not reached carry it too. */
btc_status item_run(btc_session *s, work_item *items, size_t n, btc_item *asks, btc_result *results, btc_error *err);

/* The record, malloc'ed; NULL without memory. */
char *item_record(const btc_model *m, const record_model *rm, const work_item *it);
const char *item_reason(const work_item *it); /* of a failed one */
bool item_failed(const work_item *it);        /* neither captioned nor skipped */

/* Folders that images must lie in: colon-separated, symbolic links followed. NULL: anywhere. */
bool item_path_allowed(const char *roots, const char *path);
/* Makes an item with an image outside of them a failed one, reason "policy"; false when it was fine. */
bool item_refuse_outside(work_item *it, const char *roots);

#endif
