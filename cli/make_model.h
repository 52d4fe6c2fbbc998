/* Writes a random checkpoint of a given size in the real layout, for speed and memory figures. */
#ifndef BTC_CLI_MAKE_MODEL_H
#define BTC_CLI_MAKE_MODEL_H

#include "base/base.h"

typedef struct make_model_size {
  int64_t image, patch, vision_hidden, vision_mlp, vision_layers, vision_heads;
  int64_t hidden, mlp, layers, heads, kv_heads, vocab, context;
} make_model_size;

extern const make_model_size make_model_full;  /* SigLIP so400m/14-384 and Sheared-LLaMA 2.7B: 6.3 GB of bf16 (spec 1.2, 1.6) */
extern const make_model_size make_model_small; /* the same shape at a hundredth of the work */

/* Writes dir (created; must not hold a config.json yet), with the tokenizer.model of tokenizer_dir. The language model goes
 * into shards of at most shard_bytes. The configs are written last, so that a half-written directory is not a checkpoint. */
btc_status make_model_write(const char *dir, const make_model_size *size, const char *tokenizer_dir, int64_t shard_bytes,
                            uint64_t seed, btc_error *err);

#endif
