/* What checkpoint.c, shards.c, layout.c and fingerprint.c share; not for others. */
#ifndef BTC_CHECKPOINT_INTERNAL_H
#define BTC_CHECKPOINT_INTERNAL_H

#include "checkpoint.h"

typedef struct btc_entry {
  const char *name; /* canonical; borrowed from the file or from owned */
  char *owned;      /* a name that we made, or NULL */
  const btc_tensor_view *view;
} btc_entry;

typedef struct btc_part_tensors {
  char *label; /* the file to name when a tensor is missing: the only one, or the index of the shards */
  btc_safetensors **file;
  size_t n_files;
  btc_entry *entry;              /* by canonical name */
  const btc_tensor_view **order; /* by file, then by place */
  size_t n;
  bool vila; /* projector names of VILA 1.5 */
} btc_part_tensors;

struct btc_checkpoint {
  char *dir;
  btc_config config;
  btc_part_tensors part[BTC_PART_COUNT];
  int64_t ce_layers, ce_width;
  char fingerprint[72]; /* "" until asked for */
};

extern const char *const btc_part_folder[BTC_PART_COUNT];

/* shards.c: opens <dir>/model.safetensors, or the shards of <dir>/model.safetensors.index.json. Fills label, file, n_files; the
 * caller frees them, after an error too. */
btc_status btc_part_open_files(btc_part_tensors *p, const char *dir, btc_error *err);

const btc_entry *btc_part_find(const btc_part_tensors *p, const char *name); /* NULL when absent */

/* layout.c: every needed tensor is there with its shape; sets ce_layers and ce_width. */
btc_status btc_checkpoint_check(btc_checkpoint *c, btc_error *err);

#endif
