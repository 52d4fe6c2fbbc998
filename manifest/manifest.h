/*
 * Manifests: which pairs of images an archive consists of (architecture 4.2), one item at a time in bounded memory.
 *
 *   JSONL      one object a line: "before", "after", optional "id", "prompt", "window" [x,y,w,h], "meta" (an object)
 *   CSV        RFC 4180, header line with the columns before, after and optionally id, in any order
 *   directory  folders A/ and B/ inside; equal file names make a pair, in byte order of the names; the id is the name
 *
 * A file is CSV when its name ends in .csv or its first line is such a header, else JSONL; "-" is standard input. Paths are
 * relative to the manifest's folder (standard input: to the working directory). A byte order mark, CRLF line ends and empty
 * lines are accepted. Missing ids (in CSV also empty ones) are line numbers.
 *
 * Bounds: lines and CSV records of 1 MiB, ids of 512 bytes, paths of 4095 bytes, 100 million items. Memory: 16 to 37 bytes an item
 * for finding duplicate ids, two buffers of a line; a directory's names are held (it must be sorted).
 */
#ifndef BTC_MANIFEST_H
#define BTC_MANIFEST_H

#include "base/base.h"

#define BTC_MANIFEST_MAX_LINE (1u << 20)
#define BTC_MANIFEST_MAX_ID 512
#define BTC_MANIFEST_MAX_ITEMS 100000000

typedef struct btc_manifest btc_manifest;

typedef struct btc_manifest_options {
  bool strict; /* the first bad line ends the reading with an error */
} btc_manifest_options;

typedef enum btc_manifest_kind {
  BTC_MANIFEST_ITEM,
  BTC_MANIFEST_BAD, /* a line that is no item: a failed record, not a failed job */
  BTC_MANIFEST_END
} btc_manifest_kind;

/* All texts are UTF-8 and borrowed until the next call. */
typedef struct btc_manifest_item {
  btc_manifest_kind kind;
  uint64_t line;       /* first line of the item, from 1; in a directory its number */
  const char *id;      /* of a bad line: its id if that could be read, else the line number */
  const char *problem; /* BAD: what is wrong with the line, one line of text, without file and line number; else NULL */
  const char *before, *after;
  const char *prompt; /* NULL: the caller's default */
  bool has_window;
  int64_t window[4]; /* x, y, width, height in pixels */
  const char *meta;  /* a JSON object as it stands in the line, or NULL */
} btc_manifest_item;

/* NOT_FOUND, IO; FORMAT for a CSV without header or a directory without A/ and B/. options may be NULL. */
btc_status btc_manifest_open(const char *path, const btc_manifest_options *options, btc_manifest **out, btc_error *err);
/* The next item, a bad line, or END (again and again). An error only for IO, NOMEM, LIMIT, or a bad line under strict (FORMAT,
 * naming file and line); after an error every further call is END. */
btc_status btc_manifest_next(btc_manifest *m, btc_manifest_item *item, btc_error *err);
/* How much has been read, from 0 to 1; -1 when the end is unknown (pipes). */
double btc_manifest_progress(const btc_manifest *m);
void btc_manifest_close(btc_manifest **m);

#endif
