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
  btc_tap *tap;
  void *tap_user;
} btc_run;

static inline void btc_tap_emit(const btc_run *r, const char *name, const float *data, int64_t rows, int64_t cols) {
  if (r->tap) r->tap(r->tap_user, name, data, rows, cols);
}

/* Most rows a vision or llm block computes at once; longer inputs are taken in turns, which changes no result. */
#define BTC_VISION_ROWS 1536
#define BTC_LLM_ROWS 512

/* vision.c (spec 1.2) */
int64_t btc_vision_images_at_once(const btc_model *m);
int64_t btc_patch_scratch(const btc_model *m);
int64_t btc_vision_scratch(const btc_model *m);
void btc_patch_forward(const btc_run *r, const float *pixels, int64_t images, float *h); /* -> h [images*T, C] */
void btc_vision_forward(const btc_run *r, int64_t index, int64_t images, float *h);      /* in place */

/* change.c (spec 1.3): x1, x2 [T, C] -> out [T, C]; cosine [T] may be NULL */
int64_t btc_change_scratch(const btc_model *m);
void btc_change_forward(const btc_run *r, const float *x1, const float *x2, float *out, float *cosine);

/* projector.c (spec 1.4): x [T, C] -> out [T', D] */
int64_t btc_projector_scratch(const btc_model *m);
void btc_projector_forward(const btc_run *r, const float *x, float *out);

/* llm.c (spec 1.6). kv[layer of this stage] of one slot. */
int64_t btc_llm_scratch(const btc_model *m, int64_t rows);
/* h [m, D] in place; the rows of one item at positions [past, past+m). */
void btc_llm_prefill(const btc_run *r, int64_t layer, const btc_kv *kv, int64_t past, int64_t m, float *h);
/* One row an item: row i belongs to kv[i] at position past[i]. */
void btc_llm_decode(const btc_run *r, int64_t layer, const btc_kv *kv, const int64_t *past, int64_t m, float *h);
/* rows [m, D] of last positions -> logits [m, vocab]; scratch m*D floats */
void btc_head_forward(const btc_run *r, const float *h, int64_t m, float *logits);

#endif
