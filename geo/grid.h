/*
 * The windows of a scene: squares of `tile` pixels of the before image's grid, `step` apart, row by row from the top left. The last
 * column and row are shifted inward, so that every window lies wholly in the scene and none is padded; they overlap their
 * neighbours by more. Pure arithmetic: no file, no model. Thread: any.
 */
#ifndef BTC_GEO_GRID_H
#define BTC_GEO_GRID_H

#include "base/base.h"

#define BTC_GRID_MAX_WINDOWS 16000000 /* of one scene: a run holds 8 bytes of memory a window */
#define BTC_GRID_MAX_TILE 2048        /* pixels: what a scene is read by at most (scene.h) */

typedef struct btc_grid {
  int64_t width, height; /* of the scene, pixels */
  int64_t tile, step;    /* pixels */
  int64_t columns, rows;
  int64_t count; /* columns * rows */
} btc_grid;

typedef struct btc_window {
  int64_t x, y, width, height; /* pixels from the scene's top left */
} btc_window;

/* tile: wanted side of a window, made smaller when the scene's shorter side is. overlap: pixels that neighbours share at least,
 * less than the tile. ARG: a size below 1 or a tile over BTC_GRID_MAX_TILE; LIMIT: more than BTC_GRID_MAX_WINDOWS. */
btc_status btc_grid_make(int64_t width, int64_t height, int64_t tile, int64_t overlap, btc_grid *out, btc_error *err);
/* index: 0 to count - 1. */
btc_window btc_grid_window(const btc_grid *g, int64_t index);

/* The index that is visited as the k-th, 0 to count - 1: stripe after stripe of `stripe` pixels of width, each row by row. */
int64_t btc_grid_visit(const btc_grid *g, int64_t stripe, int64_t k);

#endif
