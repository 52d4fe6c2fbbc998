/*
 * The opened model: configs, tokenizer, and every weight the forward pass reads, by role. Private to engine/.
 * Matrices point into the mapped files; small vectors are widened to float32 when the model is opened (a few MB at full size).
 */
#ifndef BTC_MODEL_H
#define BTC_MODEL_H

#include "checkpoint.h"
#include "engine.h"
#include "tokenizer.h"

typedef struct btc_affine { /* a layer's weight and bias vectors */
  const float *weight, *bias;
} btc_affine;

typedef struct btc_linear {
  btc_weight w;
  const float *bias; /* NULL: none */
} btc_linear;

typedef struct btc_vision_block {
  btc_affine ln1, ln2;
  btc_linear q, k, v, out, fc1, fc2;
} btc_vision_block;

/* Attention block of the change module; to_v is never read (spec 1.3). */
typedef struct btc_change_attention {
  btc_weight to_q, to_k;
  btc_linear to_out, ff1, ff2;
  btc_affine norm1, norm2;
} btc_change_attention;

typedef struct btc_change_layer {
  btc_change_attention per_image, joint;
} btc_change_layer;

/* A 1x1 or 3x3 convolution followed by an inference-time batch norm, folded: y = dot * scale + shift. */
typedef struct btc_conv_norm {
  btc_weight w;
  const float *scale, *shift;
} btc_conv_norm;

typedef struct btc_change {
  int64_t layers; /* -1: no module */
  int64_t attention_width, heads, ff_width, half;
  const float *position; /* [T, C]: both tables laid out per token (spec 1.3 step 1) */
  btc_change_layer *layer;
  btc_linear conv1;
  btc_conv_norm left0, left3, left6;
} btc_change;

typedef struct btc_projector {
  btc_affine norm;
  btc_linear fc1, fc2;
} btc_projector;

typedef struct btc_llm_block {
  const float *norm1, *norm2;
  btc_weight q, k, v, o, gate, up, down;
} btc_llm_block;

struct btc_model {
  btc_checkpoint *ckpt;
  const btc_config *cfg;
  btc_tokenizer *tok;
  char *name;
  int64_t tokens, hidden;      /* T = grid^2 and C */
  int64_t block_tokens, width; /* visual positions a block (T') and the language model's width D */

  btc_linear patch;      /* weight viewed as [C, 3*p*p] */
  const float *position; /* [T, C] */
  btc_vision_block *vision;
  btc_change change;
  btc_projector projector;
  btc_weight embed;
  btc_llm_block *llm;
  const float *final_norm;
  btc_weight head;
  float *rope_cos, *rope_sin; /* [context, d/2] */

  float **vectors; /* everything widened, for freeing */
  size_t n_vectors, cap_vectors;
};

#endif
