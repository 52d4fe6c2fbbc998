/*
 * One safetensors file, mapped read-only (spec 2.1). Every length and offset is checked against the file before it is used;
 * the JSON header is bounded. Tensors are used in place: data pointers live as long as the handle.
 */
#ifndef BTC_SAFETENSORS_H
#define BTC_SAFETENSORS_H

#include "base/base.h"
#include "ops/ops.h"

#define BTC_TENSOR_MAX_RANK 8

typedef struct btc_tensor_view {
  const char *name;   /* borrowed from the file handle */
  const char *path;   /* file it lives in, for messages; borrowed */
  const void *data;   /* in the mapping; may be unaligned */
  uint64_t bytes;
  btc_dtype dtype;    /* F32, F16, BF16 or I64; entries of other dtypes refuse the file */
  int rank;
  int64_t dim[BTC_TENSOR_MAX_RANK];
} btc_tensor_view;

typedef struct btc_safetensors btc_safetensors;

/* label is how messages name the file (e.g. "vision_tower/model.safetensors" with its directory); path is what is opened.
 * Errors name label, and the tensor where there is one. Thread: any; the handle is then read-only and shareable. */
btc_status btc_safetensors_open(const char *path, btc_safetensors **out, btc_error *err);
/* The same over bytes in memory that outlive the handle (fuzzing, tests). */
btc_status btc_safetensors_open_memory(const void *data, size_t len, const char *label, btc_safetensors **out, btc_error *err);
void btc_safetensors_close(btc_safetensors **f);

size_t btc_safetensors_count(const btc_safetensors *f);
const btc_tensor_view *btc_safetensors_at(const btc_safetensors *f, size_t i);           /* in file order of data; i < count */
const btc_tensor_view *btc_safetensors_find(const btc_safetensors *f, const char *name); /* NULL when absent; O(log n) */
uint64_t btc_safetensors_file_bytes(const btc_safetensors *f);

#endif
