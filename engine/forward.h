/*
 * The forward pass, one function a kind of block, over an operator backend. Each block says how much scratch it needs for so
 * many rows (x_scratch, in floats) and is then handed that much: nothing here allocates. Private to engine/.
 */
#ifndef BTC_FORWARD_H
#define BTC_FORWARD_H

#include "stage.h"

/* What every block function gets. */
typedef struct btc_run {
  const btc_model *m;
  btc_backend *be;
  float *scratch;
  int64_t images_at_once, pairs_at_once, llm_rows; /* what scratch is sized for */
  btc_tap *tap;
  void *tap_user;
} btc_run;

/* Declares to the backend all constants of blocks [first,last). */
btc_status btc_stage_hold(const btc_model *m, int first, int last, btc_backend *be, btc_error *err);
/* Bytes of them as a CUDA device keeps them, of all blocks. */
int64_t btc_stage_held_bytes(const btc_model *m, btc_compute compute);
/* Hands out a tensor of the backend's memory. */
void btc_tap_emit(const btc_run *r, const char *name, const float *data, int64_t rows, int64_t cols);

/* Most rows a vision or llm block computes at once unless the backend wants more; longer inputs are taken in turns, which changes
 * no result. */
#define BTC_VISION_ROWS 1536
#define BTC_LLM_ROWS 512

/* vision.c (spec 1.2) */
int64_t btc_patch_scratch(const btc_model *m, int64_t images_at_once);
int64_t btc_vision_scratch(const btc_model *m, int64_t images_at_once);
void btc_patch_forward(const btc_run *r, const float *pixels, int64_t images, float *h); /* -> h [images*T, C] */
void btc_vision_forward(const btc_run *r, int64_t index, int64_t images, float *h);      /* in place */

/* change.c (spec 1.3): x [n, 2, T, C], n pairs one after another -> out [n, T, C]; the map of pair i goes to items[i].cosine. */
int64_t btc_change_scratch(const btc_model *m, int64_t pairs);
void btc_change_forward(const btc_run *r, const float *x, const btc_stage_item *items, int64_t n, float *out);

/* projector.c (spec 1.4): x [n, T, C] -> out [n, T', D] */
int64_t btc_projector_scratch(const btc_model *m, int64_t images);
void btc_projector_forward(const btc_run *r, const float *x, int64_t n, float *out);

/* llm.c (spec 1.6). h [m, D] in place: all rows of the backend's items (btc_op_set_items), whose keys and values begin at layer
 * `first`. decode: few rows, so the few-row product. */
int64_t btc_llm_scratch(const btc_model *m, int64_t rows);
void btc_llm_forward(const btc_run *r, int64_t layer, int64_t first, int64_t m, bool decode, float *h);
/* rows [m, D] of last positions -> logits [m, vocab]; scratch m*D floats */
void btc_head_forward(const btc_run *r, const float *h, int64_t m, float *logits);

#endif
