/*
 * The broker's disk thread. The loop never touches a disk: it asks here, and gets its answer by a call on its own thread (an
 * eventfd in the loop).
 *
 * What it keeps: at most 8 open manifests, each standing where the last chunk ended, so that a job that is handed out in order is
 * read in order; identities (device, inode, size, times) of manifests whose SHA-256 was right, so that each is hashed once. A
 * manifest that was never hashed here, or that changed since, is hashed before anything is read from it; hashing goes on in slices
 * between other requests, and only the requests for that manifest wait.
 *
 * Thread: all functions from the loop's thread. Bounds: max_pending requests; a request beyond is refused with LIMIT.
 */
#ifndef BTC_BROKER_IO_H
#define BTC_BROKER_IO_H

#include "base/base.h"
#include "manifest/manifest.h"
#include "net/loop.h"

#define BTC_IO_CHUNK 32              /* items of a chunk */
#define BTC_IO_CHUNKS 256            /* chunks of one expansion */
#define BTC_IO_MAX_TEXT (192u << 10) /* bytes of an item text */

typedef struct btc_io btc_io;

typedef struct btc_io_options {
  const char *results; /* folder of sealed parts, or NULL */
  const char *roots;   /* colon-separated folders that manifests and images must lie in, or NULL: anywhere */
  size_t max_pending;  /* 0: 4096 */
} btc_io_options;

/* What a manifest's items are read with. sha256: 64 hex digits that its digest (manifest_digest.h) must have; "" for any. base:
 * what relative paths stand on, "" for the manifest's folder. All texts are copied. */
typedef struct btc_io_manifest {
  const char *path, *sha256, *base;
} btc_io_manifest;

/* Answer to any request; everything in it lives until the callback returns. status:
 *   OK
 *   NOT_FOUND  the manifest (results: the job's folder) is not there      -> the job pauses
 *   FORMAT     the manifest is not the one that was submitted (digest)    -> the job pauses
 *   ARG        path policy, or a position that does not fit the manifest  -> the job pauses
 *   IO, NOMEM, LIMIT                                                      -> try again later
 * message: one line for people. */
typedef struct btc_io_reply {
  btc_status status;
  const char *message; /* "" when OK */
  /* texts: n item texts, in the order of the mask's bits (lowest first) */
  size_t n;
  const char *const *text;
  /* expansion: n_chunks pairs for btc_expand and where the last one ends; items: their sum. Fewer than asked for: the manifest
   * ended (at_end), or its lines are so long that reading more would keep others waiting. */
  size_t n_chunks;
  const uint32_t *count;
  const btc_manifest_pos *pos;
  btc_manifest_pos end;
  uint64_t items;
  bool at_end; /* expansion: the manifest has no item behind `end`; results: nothing behind the cursor for now */
  /* verification */
  const char *sha256; /* as computed */
  /* results: whole lines, and where to go on */
  const char *lines;
  size_t len;
  const char *cursor;
} btc_io_reply;

typedef void (*btc_io_done)(void *ctx, const btc_io_reply *reply);

btc_status btc_io_create(btc_loop *loop, const btc_io_options *o, btc_io **out, btc_error *err);
/* Ends the thread (waits for the step in hand, at most some ms of disk work). Callbacks that did not come yet never come. */
void btc_io_destroy(btc_io **io);
size_t btc_io_pending(const btc_io *io);

/* Requests return OK when the callback will come (never from inside the call), else LIMIT or NOMEM, and it will not. */

/* Item texts of lo + each bit of mask; pos is the position of item lo. dup_mask: bits of items whose id came before
 * (btc_io_dup_mask): they become problems, as do bad lines, items whose images lie outside the roots, and items over 192 KiB (so
 * that 32 always fit an envelope). */
btc_status btc_io_texts(btc_io *io, const btc_io_manifest *m, const char *pos, uint64_t lo, uint32_t n, uint32_t mask,
                        uint32_t dup_mask, btc_io_done done, void *ctx, btc_error *err);
/* The next chunks from pos ("" the beginning), which is item `from` of `total`: at most max_chunks (<= 256) of at most chunk_items
 * (<= 32) items, none behind item total - 1. */
btc_status btc_io_expand(btc_io *io, const btc_io_manifest *m, const char *pos, uint64_t from, uint64_t total, uint32_t chunk_items,
                         uint32_t max_chunks, btc_io_done done, void *ctx, btc_error *err);
/* Path policy and digest of a manifest that is submitted. */
btc_status btc_io_verify(btc_io *io, const btc_io_manifest *m, btc_io_done done, void *ctx, btc_error *err);
/* The records of a job behind cursor ("": from the first), whole lines of together at most max_bytes (at least one line, however
 * long); with errors, those of errors.jsonl behind those of the parts. See results.h. A job without a folder has no lines: OK,
 * at_end. */
btc_status btc_io_results(btc_io *io, const char *jid, const char *cursor, uint32_t max_bytes, bool errors, btc_io_done done,
                          void *ctx, btc_error *err);

/* Inline items (at most 1,000 item texts) under the path policy: n texts for n texts, with "problem" put in where an image lies
 * outside the roots. Without roots there is nothing to ask. */
btc_status btc_io_check_items(btc_io *io, const char *const *item_texts, size_t n, btc_io_done done, void *ctx, btc_error *err);

/* Bits of the duplicates (ascending indices, as Submit carries them) within lo .. lo+n-1. */
uint32_t btc_io_dup_mask(const uint64_t *duplicates, size_t n_duplicates, uint64_t lo, uint32_t n);

#endif
