/*
 * A checkpoint directory in the real layout (spec 2): configs, tokenizer path, and every tensor the model uses, found by
 * name, checked for shape and dtype, used in place. Tensors that never influence the result (the vision blocks behind the selected
 * one, post_layernorm, the pooling head, to_v, counters, inv_freq) may be absent. Prefixes of whole-model states ("llm.",
 * "vision_tower.vision_tower.", "mm_projector.") are accepted (spec 8.1 item 30). VILA projector names are accepted (spec 2.4 [P]);
 * the number of CE layers is inferred from the tensors; without layers.change.* there is no pair support.
 */
#ifndef BTC_CHECKPOINT_H
#define BTC_CHECKPOINT_H

#include "config.h"
#include "safetensors.h"

typedef struct btc_checkpoint btc_checkpoint;

typedef enum btc_part { BTC_PART_LLM, BTC_PART_VISION, BTC_PART_PROJECTOR, BTC_PART_COUNT } btc_part;

/* Opens config and all tensor files. Checks that every tensor that the configs ask for is there with the right shape
 * (missing or mis-shaped: BTC_ERR_MODEL naming file, tensor, both shapes). Maps, does not read, the weights. */
btc_status btc_checkpoint_open(const char *dir, btc_checkpoint **out, btc_error *err);
void btc_checkpoint_close(btc_checkpoint **c);

const btc_config *btc_checkpoint_config(const btc_checkpoint *c);
const char *btc_checkpoint_dir(const btc_checkpoint *c);
int64_t btc_checkpoint_ce_layers(const btc_checkpoint *c); /* -1: no change module, pairs not supported */
int64_t btc_checkpoint_ce_width(const btc_checkpoint *c);  /* attention width A of the CE layers (spec 1.3), 0 without layers */

/* Looks a tensor up in a part; projector names are always the UniRS ones ("layers.single.1.weight") whatever the file uses.
 * Checks the exact shape. On mismatch or absence: BTC_ERR_MODEL. */
btc_status btc_checkpoint_tensor(const btc_checkpoint *c, btc_part part, const char *name, int rank, const int64_t *dim,
                                 const btc_tensor_view **out, btc_error *err);

/* Walks all tensors of a part, all shards, in file order. */
size_t btc_checkpoint_count(const btc_checkpoint *c, btc_part part);
const btc_tensor_view *btc_checkpoint_at(const btc_checkpoint *c, btc_part part, size_t i);

/* "sha256:<64 hex>" over a canonical description (configs that matter, names, dtypes, shapes) and the bytes of all tensors and
 * the tokenizer. Reads everything once (seconds for the full model); the result is kept. Thread: one at a time. */
btc_status btc_checkpoint_fingerprint(btc_checkpoint *c, char out[72], btc_error *err);

/* For whoever opens the same files again: a text that tells them by configs, tokenizer, and device, inode, size and times of the
 * tensor files, with their fingerprint behind it. "" where files cannot be told so (btc_safetensors_stamp). Computes the
 * fingerprint first when it is not known yet. */
enum { BTC_KNOWN = 144 };
btc_status btc_checkpoint_known(btc_checkpoint *c, char out[BTC_KNOWN], btc_error *err);
/* Takes such a text. True: these are the same files, and their fingerprint is known without reading them. */
bool btc_checkpoint_recognise(btc_checkpoint *c, const char *known);

#endif
