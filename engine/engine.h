/*
 * engine: the BTCChat model as a library. Two overhead images in, one caption of what changed out; also questions on one
 * image, a pair or the frames of a video.
 *
 *   btc_model   *m;  btc_model_open("models/nano", &m, &err);          weights, mapped; read-only, shared by sessions
 *   btc_session *s;  btc_session_create(m, &options, &s, &err);        one thread's working memory, sized once
 *   btc_session_run(s, items, n, results, &err);                       n items -> n results
 *   btc_result_clear(&results[i]); ... btc_session_destroy(&s); btc_model_close(&m);
 *
 * Promise: a result is a function of the item, the model and the compute type alone. It is the same bit for bit whatever else
 * is in the batch, however many threads run, and wherever the model is cut (stage.h). Processors with other vector widths
 * (btc_session_describe) may differ in the last digits.
 * Errors: btc_status and a one-line btc_error naming file and reason (base.h). Nothing is printed, nothing exits.
 * Spec: the model specification, sections 1 to 5.
 */
#ifndef BTC_ENGINE_H
#define BTC_ENGINE_H

#include "base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- model ---- */

typedef struct btc_model btc_model;

/* Opens a checkpoint directory (config.json, llm/, vision_tower/, mm_projector/; spec 2). Weights are mapped, not read: the
 * full-size model opens in well under a second. *out is freed with btc_model_close, after all its sessions. Any thread. */
btc_status btc_model_open(const char *dir, btc_model **out, btc_error *err);
void btc_model_close(btc_model **m); /* NULL is fine; sets *m to NULL */

typedef struct btc_model_info {
  const char *name;         /* from the checkpoint's "btcchat" key, else the directory's last part; lives as long as the model */
  int64_t parameters;       /* stored weights, unused ones included */
  int64_t weight_bytes;     /* their bytes in the files */
  int64_t image_side;       /* pixels; every image becomes image_side x image_side */
  int64_t grid;             /* patches a side */
  int64_t tokens_per_image; /* language-model positions of one image, pair or frame */
  int64_t context;          /* most positions of prompt and answer together */
  int64_t video_frames;     /* frames of a video; 0: none */
  int64_t change_layers;    /* attention layers in the change module; -1: no change module, so no pairs */
} btc_model_info;
void btc_model_get_info(const btc_model *m, btc_model_info *out);

/* "sha256:..." over everything that decides the output; reads the weights once, then remembers. One thread at a time. */
btc_status btc_model_fingerprint(btc_model *m, char out[72], btc_error *err);

/* The model's verdict in words: false when text is one of the sentences that mean "no change" (the checkpoint's own list, else
 * the five of LEVIR-CC), ignoring case, surrounding space and a final full stop. Any thread. */
bool btc_model_says_change(const btc_model *m, const char *text);

/* ---- session ---- */

typedef enum btc_precision { BTC_PRECISION_AUTO, BTC_PRECISION_F32, BTC_PRECISION_BF16 } btc_precision;

typedef struct btc_session_options {
  const char *device;         /* "cpu" (default), "cuda", "cuda:N", or "plain": the slow reference loops */
  int threads;                /* 0 (default): all processors */
  btc_precision precision;    /* AUTO (default): bf16 products where the device has them, else f32 */
  int max_batch;              /* items computed together, 1 (default) to 256; more items are taken in turns */
  int max_tokens;             /* most tokens an answer may have, default 128; working memory grows with it */
  const volatile int *cancel; /* when it becomes non-zero, btc_session_run stops soon and returns BTC_ERR_CANCELLED; may be NULL */
  uint64_t *progress; /* grows (atomically) with every image read and every block computed, so that a watcher tells slow from stuck;
                         may be NULL */
} btc_session_options;
btc_session_options btc_session_options_default(void);

typedef struct btc_session btc_session;

/* The model must outlive the session. Freed with btc_session_destroy. A session is used by one thread at a time. */
btc_status btc_session_create(btc_model *m, const btc_session_options *o, btc_session **out, btc_error *err);
void btc_session_destroy(btc_session **s);
const char *btc_session_describe(const btc_session *s);    /* e.g. "cpu, 2 threads, avx2+fma, f32" */
btc_precision btc_session_precision(const btc_session *s); /* F32 or BF16: what AUTO became */

typedef enum btc_aspect { BTC_ASPECT_AUTO, BTC_ASPECT_SQUASH, BTC_ASPECT_PAD } btc_aspect;

/* A picture in memory. */
typedef struct btc_pixels {
  int64_t width, height; /* pixels */
  uint8_t *rgb;          /* [height, width, 3], malloc'ed */
} btc_pixels;

/* One request. Zero-initialise it; all pointers are borrowed for the call. */
typedef struct btc_item {
  const char *const *images; /* [n_images] paths of PNG or JPEG files; a pair is before, after */
  /* Where the images come from when they are no such files; NULL (default): from the files. Fills *out, which the engine frees,
   * with image i; asked once an image, in order, by the thread that reads ahead, so that it may take its time. An error is the
   * item's. */
  btc_status (*load)(void *ctx, int i, btc_pixels *out, btc_error *err);
  void *load_ctx;
  int n_images;         /* 1: one image; 2: a pair; the model's video_frames: a video; anything else is refused (spec 1.5) */
  btc_aspect aspect;    /* AUTO: squash for images and pairs, the checkpoint's own way for videos (spec 3.2) */
  const char *question; /* NULL: the caption instruction of spec 4.2 */
  int max_tokens;       /* 0: the session's */
  float temperature;    /* 0 (default): greedy */
  float top_p;          /* 0 or 1: off; used when temperature > 0 */
  int top_k;            /* 0: 50, the reference's hidden default (spec 4.5); -1: off */
  uint64_t seed;        /* of this item's own random stream */
} btc_item;

typedef enum btc_stop { BTC_STOP_EOS, BTC_STOP_LENGTH } btc_stop;

/* Which step of an item failed, so that callers can sort failures without reading messages. */
typedef enum btc_phase { BTC_PHASE_REQUEST, BTC_PHASE_IMAGE, BTC_PHASE_MODEL } btc_phase;

typedef struct btc_timing {
  double decode_ms, vision_ms, prefill_ms, generate_ms; /* this item's share of its batch */
} btc_timing;

/* One answer. Memory inside is owned by the result: btc_result_clear frees it. */
typedef struct btc_result {
  btc_status status; /* BTC_OK, or why this item failed (others may be fine) */
  btc_error error;   /* the message when status is not BTC_OK */
  btc_phase phase;   /* where it failed */
  char *text;        /* the answer, white space stripped, terminated; U+FFFD for invalid bytes */
  int32_t *ids;      /* [n_ids] generated tokens, the end token included when stop is EOS */
  int n_ids;
  btc_stop stop;
  double logprob; /* sum over ids of ln p(token), p from the plain softmax */
  float *cosine;  /* pairs: [grid, grid] cosine of the two dates' features (spec 1.3 step 3); else NULL */
  int64_t grid;
  double score; /* pairs: mean of (1 - cosine) / 2 over the grid, 0 (same) to 1; else 0 */
  btc_timing timing;
} btc_result;

/* Answers n items; results[i] belongs to items[i] and is overwritten without being read. Returns BTC_OK even when single items
 * failed (see their status); another status means the session could not go on (cancelled, out of memory) and results not
 * reached carry that status. All n results are to be cleared in every case. */
btc_status btc_session_run(btc_session *s, const btc_item *items, size_t n, btc_result *results, btc_error *err);
void btc_result_clear(btc_result *r);

#ifdef __cplusplus
}
#endif
#endif
