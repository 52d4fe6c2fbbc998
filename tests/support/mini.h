/* The smallest checkpoint that opens, written by the test itself: vision 8 wide on a 2x2 grid, LLM 8 wide with 16 tokens. */
#ifndef BTC_MINI_H
#define BTC_MINI_H

#include <stdbool.h>

typedef struct mini_options {
  int ce_layers;  /* -1: no change module */
  bool vila;      /* projector names of VILA 1.5 */
  bool prefixes;  /* names of a whole-model state */
  bool sharded;   /* LLM in two files with an index */
  bool tied;      /* no lm_head */
  bool raw_tower; /* vision config nested as in a raw SigLIP release */
} mini_options;

/* Writes the checkpoint to the new directory dir (no tokenizer). */
void mini_checkpoint(const char *dir, const mini_options *o);

#endif
