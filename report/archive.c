/* See archive.h. */
#define _GNU_SOURCE
#include "archive.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "archive_stac.h"

void btc_archive_free(btc_archive *a) {
  for (size_t i = 0; i < a->n; i++) {
    free(a->image[i].path);
    free(a->image[i].tile);
    free(a->image[i].name);
  }
  free(a->image);
  *a = (btc_archive){0};
}

void btc_archive_leave_out(btc_archive *a, const char *name) {
  if (a->left_out++ == 0) snprintf(a->first_left_out, sizeof a->first_left_out, "%s", name);
}

btc_status btc_archive_add(btc_archive *a, const btc_archive_image *im, btc_error *err) {
  if (a->n == BTC_ARCHIVE_MAX_IMAGES) return btc_fail(err, BTC_ERR_LIMIT, "more than %d images", BTC_ARCHIVE_MAX_IMAGES);
  if (a->n % 256 == 0) {
    btc_archive_image *grown = btc_realloc(a->image, a->n + 256, sizeof *grown);
    if (!grown) return btc_fail(err, BTC_ERR_NOMEM, "no memory for the list of images");
    a->image = grown;
  }
  btc_archive_image *to = &a->image[a->n++];
  *to = *im;
  to->path = btc_strdup(im->path);
  to->tile = btc_strdup(im->tile);
  to->name = btc_strdup(im->name);
  return to->path && to->tile && to->name ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "no memory for the list of images");
}

/* ---- dates ---- */

/* Days since 1970-01-01 in the proleptic Gregorian calendar; false: no such day. */
static bool day_of(int y, int m, int d, int64_t *day) {
  static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  bool leap = (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
  if (y < 1900 || y > 2199 || m < 1 || m > 12 || d < 1 || d > days[m - 1] + (m == 2 && leap)) return false;
  int64_t n = d - 1;
  for (int i = 1; i < m; i++) n += days[i - 1] + (i == 2 && leap);
  int64_t before = y - 1;
  *day = n + 365 * before + before / 4 - before / 100 + before / 400 - 719162; /* the last: days from year 1 to 1970 */
  return true;
}

static int digits(const char *s, int n) {
  int v = 0;
  for (int i = 0; i < n; i++) {
    if (!isdigit((unsigned char)s[i])) return -1;
    v = 10 * v + s[i] - '0';
  }
  return v;
}

size_t btc_archive_date(const char *s, char date[11], int64_t *day) {
  int y = digits(s, 4);
  if (y < 0) return 0;
  bool iso = s[4] == '-';
  const char *p = s + 4 + iso;
  int m = digits(p, 2);
  if (m < 0 || (iso && p[2] != '-')) return 0;
  p += 2 + iso;
  int d = digits(p, 2);
  if (d < 0 || isdigit((unsigned char)p[2]) || !day_of(y, m, d, day)) return 0;
  char text[40];
  snprintf(text, sizeof text, "%04d-%02d-%02d", y, m, d);
  memcpy(date, text, 10);
  date[10] = 0;
  return (size_t)(p + 2 - s);
}

/* _T32TQM_ of Sentinel-2, LC08_L1TP_195026_ of Landsat. */
static bool known_tile(const char *name, char tile[256]) {
  for (const char *t = strstr(name, "T"); t; t = strstr(t + 1, "T"))
    if ((t == name || t[-1] == '_') && digits(t + 1, 2) > 0 && isupper((unsigned char)t[3]) && isupper((unsigned char)t[4]) &&
        isupper((unsigned char)t[5]) && !isalnum((unsigned char)t[6])) {
      snprintf(tile, 256, "%.6s", t);
      return true;
    }
  bool landsat = name[0] == 'L' && strchr("COTEM", name[1]) && digits(name + 2, 2) >= 0 && name[4] == '_' && strlen(name) > 16;
  if (!landsat || name[9] != '_' || digits(name + 10, 6) < 0) return false;
  snprintf(tile, 256, "%.6s", name + 10);
  return true;
}

/* What is left of the name when the date, a time behind it and the ending are gone. */
static void rest_of(const char *name, size_t at, size_t len, char tile[256]) {
  const char *tail = name + at + len, *dot = strrchr(name, '.');
  if (*tail == 'T' && isdigit((unsigned char)tail[1]))
    for (tail++; isdigit((unsigned char)*tail) || *tail == ':' || *tail == 'Z'; tail++) continue;
  while (at && strchr("_-. ", name[at - 1])) at--;
  int rest = dot && dot > tail ? (int)(dot - tail) : 0;
  snprintf(tile, 256, "%.*s%.*s", (int)at, name, rest, tail);
  if (!*tile) strcpy(tile, "all");
}

bool btc_archive_name(const char *name, char date[11], int64_t *day, char tile[256]) {
  for (size_t i = 0; name[i]; i++) {
    if (i && isdigit((unsigned char)name[i - 1])) continue;
    size_t n = btc_archive_date(name + i, date, day);
    if (!n) continue;
    if (!known_tile(name, tile)) rest_of(name, i, n, tile);
    return true;
  }
  return false;
}

/* ---- folders ---- */

static bool is_image(const char *name) {
  static const char *const ends[] = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".jp2"};
  const char *dot = strrchr(name, '.');
  for (size_t i = 0; dot && i < sizeof ends / sizeof ends[0]; i++)
    if (strcasecmp(dot, ends[i]) == 0) return true;
  return false;
}

static btc_status read_folder(const char *where, btc_archive *out, btc_error *err) {
  char real[PATH_MAX], tile[256];
  DIR *d = realpath(where, real) ? opendir(real) : NULL;
  if (!d) return btc_fail(err, BTC_ERR_IO, "cannot read the folder '%s': %s", where, strerror(errno));
  btc_status st = BTC_OK;
  for (struct dirent *e; st == BTC_OK && (e = readdir(d));) {
    if (*e->d_name == '.' || !is_image(e->d_name)) continue;
    btc_archive_image im = {.tile = tile, .name = e->d_name, .cloud = -1};
    size_t n = strlen(e->d_name);
    if (btc_utf8_valid(e->d_name, n) != n || !btc_archive_name(e->d_name, im.date, &im.day, tile)) {
      btc_archive_leave_out(out, e->d_name);
      continue;
    }
    char *path = btc_path_join(real, e->d_name);
    im.path = path;
    st = path ? btc_archive_add(out, &im, err) : btc_fail(err, BTC_ERR_NOMEM, "no memory for the list of images");
    free(path);
  }
  closedir(d);
  return st;
}

btc_status btc_archive_read(const char *where, const char *asset, btc_archive *out, btc_error *err) {
  struct stat s;
  *out = (btc_archive){0};
  if (stat(where, &s) != 0) return btc_fail(err, BTC_ERR_NOT_FOUND, "cannot open '%s': %s", where, strerror(errno));
  return S_ISDIR(s.st_mode) ? read_folder(where, out, err) : btc_archive_read_stac(where, asset, out, err);
}
