/* What a reader of a manifest holds; shared by manifest.c (items) and manifest_pos.c (places). Private to the folder. */
#ifndef BTC_MANIFEST_STATE_H
#define BTC_MANIFEST_STATE_H

#include <jansson.h>
#include <sys/types.h>

#include "manifest.h"
#include "manifest_lines.h"
#include "manifest_pairs.h"

typedef enum format { FORMAT_JSONL, FORMAT_CSV, FORMAT_FOLDERS } format;
enum { COLUMN_BEFORE, COLUMN_AFTER, COLUMN_ID, COLUMNS };

struct btc_manifest {
  char *path, *dir; /* for messages; what paths are relative to */
  bool strict, ended;
  bool duplicates_too; /* ids are not compared */
  bool seekable;       /* a regular file or a folder, not standard input */
  const volatile int *cancel;
  bool own_id; /* the current id was read, not made from the line number */
  format format;
  int fd;
  off_t size;                       /* of the file, 0 when unknown */
  uint64_t begin_line, begin_bytes; /* of the first item (behind a CSV header) */
  btc_lines lines;
  int column[COLUMNS]; /* CSV: which field, or -1 */
  btc_names before, after;
  size_t next_before, next_after;
  uint64_t items; /* read or passed so far: the index of the next one */
  char *text;     /* btc_manifest_parse_line's copy of the line */
  btc_id_set ids;
  json_t *doc;                    /* the line that item texts point into */
  char *before_path, *after_path; /* [PATH_MAX] */
  char *meta;
  char id[BTC_MANIFEST_MAX_ID + 1];
  char problem[320];
};

/* Marks the item bad unless it is already; the text becomes one printable line. */
void btc_manifest_bad(btc_manifest *m, btc_manifest_item *item, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* An item out of one JSON text. */
btc_status btc_manifest_json_item(btc_manifest *m, const btc_record *r, btc_manifest_item *item, btc_error *err);
/* The next pair of a folder as two places in the listings: <0 only in A, >0 only in B, 0 in both. false at the end. */
bool btc_manifest_next_names(btc_manifest *m, const char **name, int *order);

#endif
