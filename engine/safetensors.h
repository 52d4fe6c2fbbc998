/*
 * One safetensors file, mapped read-only (spec 2.1). Every length and offset is checked against the file before it is used;
 * the JSON header is bounded. Tensors are used in place: data pointers live as long as the handle.
 *
 * Refused: entries of other dtypes than F32, F16, BF16, I64, of rank above 8, whose bytes leave the file, overlap those of
 * another tensor or do not have the length of their shape; duplicate names. Ignored: __metadata__, unknown keys of an entry,
 * bytes that no tensor refers to (holes, a tail). A file that another process shrinks while it is mapped ends this process by
 * SIGBUS; checkpoints are replaced by renaming, never in place.
 */
#ifndef BTC_SAFETENSORS_H
#define BTC_SAFETENSORS_H

#include "base/base.h"
#include "ops/ops.h"

#define BTC_TENSOR_MAX_RANK 8

typedef struct btc_tensor_view {
  const char *name; /* borrowed from the file handle */
  const char *path; /* file it lives in, for messages; borrowed */
  const void *data; /* in the mapping; may be unaligned */
  uint64_t bytes;
  btc_dtype dtype; /* F32, F16, BF16 or I64; entries of other dtypes refuse the file */
  int rank;
  int64_t dim[BTC_TENSOR_MAX_RANK];
} btc_tensor_view;

typedef struct btc_safetensors btc_safetensors;

/* Errors name path, and the tensor where there is one: NOT_FOUND, IO (a directory, a FIFO, a loop of links), FORMAT, LIMIT (a
 * header over 100 MiB or of more than 2 million values). Reads the header only. Thread: any; the handle is then read-only and
 * shareable. */
btc_status btc_safetensors_open(const char *path, btc_safetensors **out, btc_error *err);
/* The same over bytes in memory that outlive the handle (fuzzing, tests); label stands for the path in messages. */
btc_status btc_safetensors_open_memory(const void *data, size_t len, const char *label, btc_safetensors **out, btc_error *err);
void btc_safetensors_close(btc_safetensors **f);

size_t btc_safetensors_count(const btc_safetensors *f);
const btc_tensor_view *btc_safetensors_at(const btc_safetensors *f, size_t i);           /* in file order of data; i < count */
const btc_tensor_view *btc_safetensors_find(const btc_safetensors *f, const char *name); /* NULL when absent; O(log n) */
uint64_t btc_safetensors_file_bytes(const btc_safetensors *f);

/* Which file was mapped, and in which state: device, inode, bytes, times of the last change of content and of anything. The same
 * text later means the same bytes. "" where that cannot be told: bytes in memory, or a file changed so shortly before it was opened
 * that another change would have the same times. */
enum { BTC_STAMP = 160 };
void btc_safetensors_stamp(const btc_safetensors *f, char out[BTC_STAMP]);

/* "[2, 3]" of at most size bytes, terminator included. For messages. */
void btc_shape_text(int rank, const int64_t *dim, char *out, size_t size);

#endif
