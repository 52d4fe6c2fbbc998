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
  bool strict;                /* the first bad line ends the reading with an error */
  bool duplicates_too;        /* ids are not compared (the reader knows the duplicates): memory then does not grow with the items */
  const volatile int *cancel; /* when it becomes non-zero, opening and reading end with CANCELLED; may be NULL */
  const char *dir; /* what relative paths stand on; NULL: the manifest's folder. A folder as manifest is always its own. */
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
  bool duplicate;      /* the id came before; such an item is BAD */
  const char *before, *after;
  const char *prompt; /* NULL: the caller's default */
  bool has_window;
  int64_t window[4]; /* x, y, width, height in pixels */
  const char *meta;  /* a JSON object as it stands in the line, or NULL */
} btc_manifest_item;

/* NOT_FOUND, IO; FORMAT for a CSV without header or a directory without A/ and B/. options may be NULL. */
btc_status btc_manifest_open(const char *path, const btc_manifest_options *options, btc_manifest **out, btc_error *err);
/* The next item, a bad line, or END (again and again). An error only for IO, NOMEM, LIMIT, CANCELLED, or a bad line under strict
 * (FORMAT, naming file and line); after an error every further call is END. */
btc_status btc_manifest_next(btc_manifest *m, btc_manifest_item *item, btc_error *err);
/* How much has been read, from 0 to 1; -1 when the end is unknown (pipes). */
double btc_manifest_progress(const btc_manifest *m);
void btc_manifest_close(btc_manifest **m);

/* ---- places to go on from, one item as text: what the queue needs ---- */

#define BTC_MANIFEST_POS_TEXT 64 /* bytes of a position's text, terminator included */

/* Where the next item begins: "ITEM:LINE:OFFSET" in decimals, of a folder "ITEM:A:B" (places in the sorted listings). It belongs to
 * the bytes it was taken from; only files and folders have positions, pipes do not. "" and "0:1:0" (folders: "0:0:0") are the
 * beginning. */
typedef struct btc_manifest_pos {
  char text[BTC_MANIFEST_POS_TEXT];
} btc_manifest_pos;

/* Index (0-based) of the next item, and its position. ARG for pipes. */
btc_status btc_manifest_tell(const btc_manifest *m, btc_manifest_pos *pos, btc_error *err);
uint64_t btc_manifest_index(const btc_manifest *m);
uint64_t btc_manifest_bytes(const btc_manifest *m); /* where it stands in its file; 0 in a folder */
/* The next item read is the one at pos. ARG: no position, or one outside this manifest. Only for readers with duplicates_too. */
btc_status btc_manifest_seek(btc_manifest *m, const char *pos, btc_error *err);
/* Passes over at most n items without parsing them; *skipped < n at the end of the manifest. Only for readers with duplicates_too.
 */
btc_status btc_manifest_skip(btc_manifest *m, uint64_t n, uint64_t *skipped, btc_error *err);
/* Turns an item whose id came before into a bad line with the words of the reader that compares ids; bad lines stay as they are. */
void btc_manifest_mark_duplicate(btc_manifest *m, btc_manifest_item *item);

/* The digest of a folder as manifest: SHA-256, as 64 hex digits, over "A/NAME" and "B/NAME" of the listings in their order, each
 * with its terminating NUL. (The digest of a file is that of its bytes.) Contents of images do not enter. */
btc_status btc_manifest_folder_sha256(const btc_manifest *m, char hex[65], btc_error *err);
bool btc_manifest_is_folder(const btc_manifest *m);

/* One JSON text as if it were line `line` of a JSONL manifest whose folder is dir ("" for the working directory). Line 0: it is no
 * line; its id is
 * "" when it brings none, and its problem is told without a line. It gives an item or a bad line; both borrow from *m, which the
 * first call makes (start with NULL) and later calls use again: close it with btc_manifest_close. */
btc_status btc_manifest_parse_line(btc_manifest **m, const char *text, size_t len, uint64_t line, const char *dir,
                                   btc_manifest_item *item, btc_error *err);

/* The item text of docs/protocol.md 1: one JSON object without newline, malloc'ed (caller frees). base: the absolute folder that
 * paths which are still relative stand on, or NULL. Items keep meta and window as they were; bad lines become {"id","problem":"line
 * N: ..."}, as `caption --pairs` words them. NULL: no memory. */
char *btc_manifest_item_text(const btc_manifest_item *item, const char *base);

#endif
