/*
 * Dated images of an archive, and pairs of them: same tile, apart by an interval, not too cloudy. The order of what comes out does
 * not depend on the order of what went in. Memory: all images' names (BTC_ARCHIVE_MAX_IMAGES). Thread: any; an archive belongs to
 * one.
 */
#ifndef BTC_ARCHIVE_H
#define BTC_ARCHIVE_H

#include "base/base.h"

#define BTC_ARCHIVE_MAX_IMAGES 1000000
#define BTC_ARCHIVE_MAX_BYTES ((size_t)256 << 20) /* of an item collection */

typedef struct btc_archive_image {
  char *path; /* absolute, or relative to the working directory, or a URL as the item has it */
  char *tile, *name;
  char date[11]; /* 2019-05-31 */
  int64_t day;   /* since 1970-01-01 */
  double cloud;  /* percent; -1: not known */
  bool has_bbox;
  double bbox[4]; /* west, south, east, north */
} btc_archive_image;

typedef struct btc_archive {
  btc_archive_image *image;
  size_t n;
  uint64_t left_out;        /* images without a date or a tile, items without an image */
  char first_left_out[256]; /* one of them: its name (why) */
} btc_archive;

/* where: a folder (its .png, .jpg, .jpeg, .tif, .tiff, .jp2 files and those of its folders, up to 16 deep), or a STAC
 * ItemCollection. asset: name of the asset to take, NULL: visual, rendered or data. Freed with btc_archive_free, also after a
 * failure. */
btc_status btc_archive_read(const char *where, const char *asset, btc_archive *out, btc_error *err);
void btc_archive_free(btc_archive *a);

/* Date and tile out of a file's name (without folder). false: it has none. tile: at least 256 bytes. */
bool btc_archive_name(const char *name, char date[11], int64_t *day, char tile[256]);

typedef struct btc_pairing_options {
  double min_days, max_days, cloud_limit;
  bool first_last;
} btc_pairing_options;

typedef struct btc_pairing_counts {
  uint64_t tiles, pairs, cloudy;
} btc_pairing_counts;

/* *text: a manifest (JSONL), malloc'ed, of *len bytes. Sorts the archive. */
btc_status btc_archive_pairs(btc_archive *a, const btc_pairing_options *o, char **text, size_t *len, btc_pairing_counts *n,
                             btc_error *err);

#endif
