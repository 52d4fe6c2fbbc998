/*
 * The JSON files of a checkpoint as plain numbers (spec 1.8, 2.2, 3.1). Every value is read from the files; defaults are the
 * reference code's, where the spec gives one. Values that cannot work are refused, naming file and key.
 */
#ifndef BTC_CONFIG_H
#define BTC_CONFIG_H

#include "base/base.h"

typedef struct btc_vision_config {
  int64_t hidden, mlp, layers, heads, image, patch, channels;
  float eps;
  int64_t grid;   /* image / patch */
  int64_t blocks; /* encoder blocks that count: from mm_vision_select_layer (spec 1.2 step 4) */
} btc_vision_config;

typedef struct btc_llm_config {
  int64_t hidden, mlp, layers, heads, kv_heads, head_dim, vocab;
  float eps;
  double rope_theta, rope_factor; /* factor 1 without linear scaling */
  int64_t context;        /* min(max_position_embeddings * factor, tokenizer_model_max_length): most positions of a sequence */
  int bos, eos[8], n_eos; /* all inside the vocabulary; generation_config.json may list several eos */
  int pad;                /* as written: -1 or a token beyond the vocabulary are possible. Nothing is ever padded here */
  bool tied_head;         /* tie_word_embeddings */
} btc_llm_config;

/* generation_config.json: hints; -1 (or 0 for top_k) where absent. Used only when sampling is asked for. */
typedef struct btc_generation_config {
  float temperature, top_p;
  int top_k;
} btc_generation_config;

typedef struct btc_preprocess_config {
  float mean[3], std[3];
  double rescale;
  int64_t size; /* square side; btc_checkpoint_open checks that it equals vision.image */
} btc_preprocess_config;

typedef struct btc_config {
  btc_vision_config vision;
  btc_llm_config llm;
  btc_generation_config generation;
  btc_preprocess_config pre;
  int64_t cc_head;          /* heads of change extraction, default 8 (spec 2.4) */
  int64_t num_video_frames; /* 0: videos not possible */
  bool aspect_pad;          /* image_aspect_ratio == "pad": used for video frames (spec 3.2) */
  char name[128];           /* "btcchat".name, else "": see models/nano */
  char **no_change;         /* "btcchat".no_change: captions that mean "no change"; NULL when absent */
  size_t n_no_change;
} btc_config;

/* Reads <dir>/config.json and the sub-configs of llm, vision_tower, mm_projector. Absent generation_config.json is fine; every
 * other file must be there. On success free with btc_config_free; after an error nothing is owned. */
btc_status btc_config_load(const char *dir, btc_config *out, btc_error *err);
void btc_config_free(btc_config *c);

#endif
