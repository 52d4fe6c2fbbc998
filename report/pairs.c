/* Pairs out of an archive: see archive.h. */
#define _GNU_SOURCE
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "archive.h"

/* Tile, date, then name: nothing is left to the order of reading. */
static int compare(const void *a, const void *b) {
  const btc_archive_image *x = a, *y = b;
  int c = strcmp(x->tile, y->tile);
  if (c == 0) c = (x->day > y->day) - (x->day < y->day);
  if (c == 0) c = strcmp(x->name, y->name);
  return c ? c : strcmp(x->path, y->path);
}

static bool write_pair(FILE *f, const btc_archive_image *a, const btc_archive_image *b) {
  char id[512];
  snprintf(id, sizeof id, "%.200s/%s_%s", a->tile, a->date, b->date);
  json_t *meta = json_pack("{s:s, s:{s:s, s:s}, s:I}", "tile", a->tile, "dates", "before", a->date, "after", b->date, "days",
                           (json_int_t)(b->day - a->day));
  if (a->cloud >= 0 && b->cloud >= 0) json_object_set_new(meta, "cloud", json_pack("[f,f]", a->cloud, b->cloud));
  if (b->has_bbox) json_object_set_new(meta, "bbox", json_pack("[f,f,f,f]", b->bbox[0], b->bbox[1], b->bbox[2], b->bbox[3]));
  json_t *o = meta ? json_pack("{s:s, s:s, s:s, s:o}", "id", id, "before", a->path, "after", b->path, "meta", meta) : NULL;
  char *line = o ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(12)) : NULL;
  bool good = line && fprintf(f, "%s\n", line) > 0;
  free(line);
  json_decref(o);
  return good;
}

/* Images of one tile, [first, end): those of a day after its first are the same look from another orbit or name and are left out,
 * so that ids stay unique. */
static bool pair_tile(FILE *f, const btc_archive_image *im, size_t n, const btc_pairing_options *o, btc_pairing_counts *count) {
  for (size_t i = 0; i + 1 < n; i++) {
    const btc_archive_image *a = &im[i];
    if (i && im[i - 1].day == a->day) continue;
    size_t k = o->first_last ? n - 1 : i + 1;
    while (k > i && k < n && ((double)(im[k].day - a->day) < o->min_days || im[k].day == a->day)) k++;
    while (k < n && k > i + 1 && im[k - 1].day == im[k].day) k--; /* of one day the first */
    if (k < n && (double)(im[k].day - a->day) <= o->max_days) {
      if (!write_pair(f, a, &im[k])) return false;
      count->pairs++;
    }
    if (o->first_last) break;
  }
  return true;
}

/* Cloudy images go to the end of the memory's use: they are freed. */
static void drop_cloudy(btc_archive *a, double limit, btc_pairing_counts *count) {
  size_t kept = 0;
  for (size_t i = 0; i < a->n; i++) {
    if (a->image[i].cloud <= limit) {
      a->image[kept++] = a->image[i];
      continue;
    }
    count->cloudy++;
    free(a->image[i].path);
    free(a->image[i].tile);
    free(a->image[i].name);
  }
  a->n = kept;
}

btc_status btc_archive_pairs(btc_archive *a, const btc_pairing_options *o, char **text, size_t *len, btc_pairing_counts *n,
                             btc_error *err) {
  *n = (btc_pairing_counts){0};
  *text = NULL;
  drop_cloudy(a, o->cloud_limit, n);
  if (a->n) qsort(a->image, a->n, sizeof *a->image, compare);
  FILE *f = open_memstream(text, len);
  bool good = f != NULL;
  for (size_t i = 0, end; good && i < a->n; i = end) {
    for (end = i + 1; end < a->n && strcmp(a->image[end].tile, a->image[i].tile) == 0;) end++;
    n->tiles++;
    good = pair_tile(f, a->image + i, end - i, o, n);
  }
  if (f && fclose(f) != 0) good = false;
  return good ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "no memory for the manifest");
}
