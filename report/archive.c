/* See archive.h. */
#define _GNU_SOURCE
#include "archive.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "archive_stac.h"

enum { MAX_DEPTH = 16 };

void btc_archive_free(btc_archive *a) {
  for (size_t i = 0; i < a->n; i++) {
    free(a->image[i].path);
    free(a->image[i].tile);
    free(a->image[i].name);
  }
  free(a->image);
  *a = (btc_archive){0};
}

void btc_archive_leave_out(btc_archive *a, const char *name, const char *why) {
  if (a->left_out++ == 0) snprintf(a->first_left_out, sizeof a->first_left_out, "%.180s (%s)", name, why);
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

/* Appends a component to a tile's name; what is too long is cut, which parts no pairs. */
static void append(char tile[256], const char *text, size_t len) {
  size_t n = strlen(tile);
  snprintf(tile + n, 256 - n, "%s%.*s", n ? "/" : "", (int)len, text);
}

/* 2019, or 05 behind it: folders by time say nothing about the place. */
static bool is_time(const char *s, size_t len, bool behind_time) {
  if (len == 4) return digits(s, 4) >= 1900 && digits(s, 4) < 2200;
  return behind_time && (len == 1 || len == 2) && digits(s, (int)len) >= 0;
}

/* `inside`: the folders between the archive and the file, "" or "a/b". They tell places apart (a/2019-05-31.png, b/2019-05-31.png),
 * and the date where the file's name has none (2019-05-31/a.png). */
static bool place_of(const char *inside, const char *name, char date[11], int64_t *day, char tile[256]) {
  char own[256], folder[256];
  bool dated = btc_archive_name(name, date, day, own), behind_time = false;
  if (dated && (!*inside || known_tile(name, folder))) {
    strcpy(tile, own);
    return true;
  }
  bool of_folder = false;
  tile[0] = 0;
  for (const char *at = inside, *next; *at; at = *next ? next + 1 : next) {
    char part[256], part_date[11];
    int64_t part_day;
    next = strchrnul(at, '/');
    snprintf(part, sizeof part, "%.*s", (int)(next - at), at);
    behind_time = is_time(part, strlen(part), behind_time);
    if (behind_time) continue;
    if (!btc_archive_name(part, part_date, &part_day, folder)) {
      append(tile, part, strlen(part));
      continue;
    }
    if (!dated) { /* the innermost counts */
      memcpy(date, part_date, 11);
      *day = part_day;
      of_folder = true;
    }
    if (strcmp(folder, "all") != 0) append(tile, folder, strlen(folder));
  }
  if (dated && (strcmp(own, "all") != 0 || !*tile)) append(tile, own, strlen(own));
  if (of_folder) append(tile, name, strcspn(name, "."));
  return dated || of_folder;
}

static btc_status no_memory(btc_error *err) {
  return btc_fail(err, BTC_ERR_NOMEM, "no memory for the list of images");
}

static btc_status add_file(btc_archive *out, const char *folder, const char *inside, const char *name, btc_error *err) {
  char tile[256];
  btc_archive_image im = {.tile = tile, .name = (char *)name, .cloud = -1};
  bool utf8 = btc_utf8_valid(name, strlen(name)) == strlen(name);
  if (!utf8 || !place_of(inside, name, im.date, &im.day, tile)) {
    btc_archive_leave_out(out, name, utf8 ? "no date in its name" : "its name is not UTF-8");
    return BTC_OK;
  }
  im.path = btc_path_join(folder, name);
  if (!im.path) return no_memory(err);
  btc_status st = btc_archive_add(out, &im, err);
  free(im.path);
  return st;
}

/* Folders that are links are left alone: they may lead round in a circle. */
static btc_status read_folder(const char *folder, const char *inside, int depth, btc_archive *out, btc_error *err) {
  DIR *d = opendir(folder);
  if (!d) return btc_fail(err, BTC_ERR_IO, "cannot read the folder '%s': %s", folder, strerror(errno));
  btc_status st = BTC_OK;
  const struct dirent *e;
  while (st == BTC_OK && (errno = 0, e = readdir(d)) != NULL) {
    struct stat s;
    if (*e->d_name == '.' || fstatat(dirfd(d), e->d_name, &s, AT_SYMLINK_NOFOLLOW) != 0) continue;
    if (!S_ISDIR(s.st_mode)) {
      if (is_image(e->d_name)) st = add_file(out, folder, inside, e->d_name, err);
      continue;
    }
    char *path = btc_path_join(folder, e->d_name), *within = NULL;
    if (depth == MAX_DEPTH)
      st = btc_fail(err, BTC_ERR_LIMIT, "'%s' holds folders more than %d deep", folder, MAX_DEPTH);
    else if (!path || asprintf(&within, "%s%s%s", inside, *inside ? "/" : "", e->d_name) < 0)
      st = no_memory(err);
    else
      st = read_folder(path, within, depth + 1, out, err);
    free(path);
    free(within);
  }
  if (st == BTC_OK && !e && errno) st = btc_fail(err, BTC_ERR_IO, "cannot read the folder '%s': %s", folder, strerror(errno));
  closedir(d);
  return st;
}

btc_status btc_archive_read(const char *where, const char *asset, btc_archive *out, btc_error *err) {
  struct stat s;
  *out = (btc_archive){0};
  if (stat(where, &s) != 0) return btc_fail(err, BTC_ERR_NOT_FOUND, "cannot open '%s': %s", where, strerror(errno));
  if (!S_ISDIR(s.st_mode)) return btc_archive_read_stac(where, asset, out, err);
  char real[PATH_MAX];
  if (!realpath(where, real)) return btc_fail(err, BTC_ERR_IO, "cannot read the folder '%s': %s", where, strerror(errno));
  return read_folder(real, "", 0, out, err);
}
