/*
 * Windows of scenes as items: read out of the scene when the engine asks for images, in the thread that reads ahead. Windows with
 * nothing to caption become skipped records. One scene is open at a time: the windows of a job come one after the other.
 */
#ifndef BTC_WORKER_WINDOW_H
#define BTC_WORKER_WINDOW_H

#include <jansson.h>

#include "geo/window.h"
#include "item.h"

typedef struct window_reader window_reader;

/* roots: as in item_path_allowed, copied. progress: grows while the decoder is at work (it has time limits of its own); may be
 * NULL. cells: a side of the model's change grid. Thread: the one that reads the items' images, one at a time. */
window_reader *window_reader_create(const char *roots, int64_t cells, uint64_t *progress); /* NULL: no memory */
void window_reader_destroy(window_reader **r);

struct item_window {
  window_reader *reader;
  btc_window at;
  char *key; /* paths and options: which scene */
  btc_scene_options options;
  double max_nodata;
  const char *const *paths; /* the item's */
  btc_window_pixels px;
  btc_geo_failure failure; /* reason NONE: reading did not fail */
};

/* scene: the job's "scene" parameter or NULL; window: the item's. What is wrong with them is ARG. paths: borrowed, the item's. */
btc_status item_window_create(const json_t *window, const json_t *scene, const char *const *paths, window_reader *r,
                              struct item_window **out, btc_error *err);
void item_window_free(struct item_window *w);                                      /* NULL is fine */
btc_status item_window_load(void *window, int i, btc_pixels *out, btc_error *err); /* btc_item.load */

bool item_window_skipped(const struct item_window *w);
/* Adds window and heat (docs/formats.md) to a record, which it takes. NULL: no memory. */
char *item_window_record(const struct item_window *w, const btc_result *r, char *line);

#endif
