/*
 * Result records out of what a run left: one file, a folder, or the files beside a GeoPackage. One record at a time, in bounded
 * memory. A line that is no record costs that line only: it is counted, and the first one is told.
 *
 * Thread: a reader belongs to one thread at a time.
 */
#ifndef BTC_RESULTS_H
#define BTC_RESULTS_H

#include <jansson.h>

#include "base/base.h"

#define BTC_RESULTS_MAX_LINE ((size_t)4 << 20) /* bytes; an item brings at most 1 MiB of meta, before escapes */
#define BTC_RESULTS_MAX_FILES 100000

typedef struct btc_results_files {
  char **path; /* [n], in the order of their names */
  size_t n;
  char *folder; /* the folder they are in */
} btc_results_files;

/* where: FILE.jsonl; OUT.gpkg (its records are NAME.jsonl beside it); or a folder: results.jsonl and errors.jsonl of `run` and
 * `results -o`, else sealed parts (part-*.jsonl, errors.jsonl), else all *.jsonl in it. On failure *out is empty.
 * NOT_FOUND, IO, FORMAT (nothing of that kind), LIMIT, NOMEM. */
btc_status btc_results_find(const char *where, btc_results_files *out, btc_error *err);
void btc_results_files_free(btc_results_files *f);

typedef struct btc_results btc_results;

/* files are borrowed until close. */
btc_status btc_results_open(const btc_results_files *files, btc_results **out, btc_error *err);
/* One file alone. path is borrowed until close. */
btc_status btc_results_open_file(const char *path, btc_results **out, btc_error *err);
/* The next record, an object with the texts "id" and "status"; NULL at the end. json_decref it. IO, NOMEM. */
btc_status btc_results_next(btc_results *r, json_t **record, btc_error *err);
/* Lines so far that are no records, and what is wrong with the first one ("" when there is none). */
uint64_t btc_results_bad(const btc_results *r, const char **first);
void btc_results_close(btc_results **r);

/* "" when the key is not there or no text. */
const char *btc_results_text(const json_t *record, const char *key);

#endif
