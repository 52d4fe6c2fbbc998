/* Opening images under the path policy: see source.h. */
#define _GNU_SOURCE
#include "geo/source.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_WORLD_BYTES = 4096, MAGIC_BYTES = 12 };

/* ---- roots ---- */

static bool lies_under(const char *root, const char *path) {
  size_t n = strlen(root);
  while (n && root[n - 1] == '/') n--;
  return strncmp(root, path, n) == 0 && path[n] == '/';
}

/* Is the file behind fd inside one of the roots? */
static bool inside(const char *roots, int fd) {
  char link[32], path[PATH_MAX];
  if (!roots) return true;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n <= 0 || n >= (ssize_t)sizeof path - 1) return false;
  path[n] = 0;
  for (const char *r = roots; *r; r += strcspn(r, ":"), r += *r == ':') {
    char root[PATH_MAX], real[PATH_MAX];
    size_t len = strcspn(r, ":");
    if (!len || len >= sizeof root || r[0] != '/') continue;
    memcpy(root, r, len);
    root[len] = 0;
    if (realpath(root, real) && lies_under(real, path)) return true;
  }
  return false;
}

/* A regular file inside the roots, for reading. absent_ok: *fd = -1 when there is none. */
static btc_status open_inside(const char *path, const char *roots, bool absent_ok, int *fd, int64_t *bytes, btc_geo_failure *f) {
  struct stat sb;
  /* O_NONBLOCK: opening a FIFO must not wait; it means nothing to a regular file */
  *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (*fd < 0) {
    bool missing = errno == ENOENT || errno == ENOTDIR;
    if (missing && absent_ok) return BTC_OK;
    return btc_geo_fail(f, missing ? BTC_GEO_NOT_FOUND : BTC_GEO_POLICY, missing ? BTC_ERR_NOT_FOUND : BTC_ERR_IO,
                        "cannot open '%s': %s", path, strerror(errno));
  }
  btc_status st = BTC_OK;
  if (!inside(roots, *fd))
    st = btc_geo_fail(f, BTC_GEO_POLICY, BTC_ERR_ARG, "'%s' is outside the folders that may be read (--roots)", path);
  else if (fstat(*fd, &sb) != 0 || !S_ISREG(sb.st_mode))
    st = btc_geo_fail(f, BTC_GEO_POLICY, BTC_ERR_ARG, "'%s' is not a regular file", path);
  else
    *bytes = sb.st_size;
  if (st != BTC_OK) {
    close(*fd);
    *fd = -1;
  }
  return st;
}

/* ---- what it is ---- */

typedef struct kind {
  const char *driver, *world[3];
} kind;

static const kind kinds[] = {{"GTiff", {"tfw", "tifw", "wld"}},
                             {"PNG", {"pgw", "pngw", "wld"}},
                             {"JPEG", {"jgw", "jpgw", "wld"}},
                             {"JP2OpenJPEG", {"j2w", "jp2w", "wld"}}};

static const kind *judge(const uint8_t *b, size_t n) {
  static const uint8_t png[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
  static const uint8_t jp2[12] = {0, 0, 0, 12, 'j', 'P', ' ', ' ', '\r', '\n', 0x87, '\n'};
  static const uint8_t j2k[4] = {0xff, 0x4f, 0xff, 0x51};
  static const uint8_t tiff[4][4] = {{'I', 'I', 42, 0}, {'M', 'M', 0, 42}, {'I', 'I', 43, 0}, {'M', 'M', 0, 43}};
  for (int i = 0; i < 4; i++)
    if (n >= 4 && memcmp(b, tiff[i], 4) == 0) return &kinds[0];
  if (n >= 8 && memcmp(b, png, 8) == 0) return &kinds[1];
  if (n >= 3 && b[0] == 0xff && b[1] == 0xd8 && b[2] == 0xff) return &kinds[2];
  if ((n >= 12 && memcmp(b, jp2, 12) == 0) || (n >= 4 && memcmp(b, j2k, 4) == 0)) return &kinds[3];
  return NULL;
}

static btc_status find_kind(geo_source *s, const kind **k, btc_geo_failure *f) {
  uint8_t magic[MAGIC_BYTES];
  ssize_t n = pread(s->fd, magic, sizeof magic, 0);
  *k = n > 0 ? judge(magic, (size_t)n) : NULL;
  if (*k) {
    s->driver = (*k)->driver;
    return BTC_OK;
  }
  if (n < 0) return btc_geo_fail(f, BTC_GEO_POLICY, BTC_ERR_IO, "cannot read '%s': %s", s->path, strerror(errno));
  const char *like = n == 0            ? "it is empty"
                     : magic[0] == '<' ? "it begins like XML: virtual rasters (VRT) are not read"
                                       : "its first bytes say otherwise";
  return btc_geo_fail(f, BTC_GEO_DECODE, BTC_ERR_FORMAT, "'%s' is no GeoTIFF, JPEG 2000, PNG or JPEG image: %s", s->path, like);
}

/* ---- world files ---- */

bool geo_world_parse(const char *text, double g[6]) {
  double v[6];
  locale_t c = newlocale(LC_ALL_MASK, "C", NULL);
  int n = 0;
  for (char *end; c && n < 6; n++, text = end) {
    v[n] = strtod_l(text, &end, c);
    if (end == text || !isfinite(v[n])) break;
  }
  if (c) freelocale(c);
  if (n < 6 || text[strspn(text, " \t\r\n\x1a")] != 0 || v[0] * v[3] - v[1] * v[2] == 0) return false;
  g[1] = v[0], g[4] = v[1], g[2] = v[2], g[5] = v[3];
  g[0] = v[4] - 0.5 * (g[1] + g[2]);
  g[3] = v[5] - 0.5 * (g[4] + g[5]);
  return true;
}

static btc_status read_world(geo_source *s, const char *path, const char *roots, btc_geo_failure *f) {
  char text[MAX_WORLD_BYTES + 1];
  int fd;
  int64_t bytes = 0;
  btc_status st = open_inside(path, roots, true, &fd, &bytes, f);
  if (st != BTC_OK || fd < 0) return st;
  ssize_t n = bytes <= MAX_WORLD_BYTES ? pread(fd, text, MAX_WORLD_BYTES, 0) : -1;
  close(fd);
  text[n > 0 ? n : 0] = 0;
  if (n <= 0 || !geo_world_parse(text, s->world))
    return btc_geo_fail(f, BTC_GEO_DECODE, BTC_ERR_FORMAT, "the world file '%s' is not six numbers", path);
  s->has_world = true;
  return BTC_OK;
}

static btc_status find_world(geo_source *s, const kind *k, const char *roots, btc_geo_failure *f) {
  char path[PATH_MAX];
  const char *slash = strrchr(s->path, '/'), *dot = strrchr(s->path, '.');
  size_t stem = dot && (!slash || dot > slash) ? (size_t)(dot - s->path) : strlen(s->path);
  for (int i = 0; k && i < 3 && !s->has_world; i++) {
    if (snprintf(path, sizeof path, "%.*s.%s", (int)stem, s->path, k->world[i]) >= (int)sizeof path) continue;
    btc_status st = read_world(s, path, roots, f);
    if (st != BTC_OK) return st;
  }
  return BTC_OK;
}

/* ---- open ---- */

/* GDAL's network file systems. Its local ones (archives, memory, subfiles, standard input) would get round the roots. */
static bool is_network(const char *path) {
  static const char *const prefix[] = {"/vsicurl/", "/vsis3/", "/vsigs/", "/vsiaz/", "/vsioss/", "/vsiswift/", NULL};
  for (int i = 0; prefix[i]; i++)
    if (strncmp(path, prefix[i], strlen(prefix[i])) == 0) return true;
  return false;
}

/* The driver of a remote file, by its name: its bytes are not ours to see. */
static const kind *kind_by_name(const char *path) {
  static const char *const ends[][2] = {{".tif", ".tiff"}, {".png", ".png"}, {".jpg", ".jpeg"}, {".jp2", ".j2k"}};
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 2; j++) {
      size_t n = strlen(ends[i][j]), len = strlen(path);
      if (len > n && strcasecmp(path + len - n, ends[i][j]) == 0) return &kinds[i];
    }
  return NULL;
}

static btc_status open_virtual(geo_source *s, bool allow_vsi, btc_geo_failure *f) {
  if (!is_network(s->path))
    return btc_geo_fail(f, BTC_GEO_POLICY, BTC_ERR_ARG, "'%s': of GDAL's virtual paths only network ones can be read", s->path);
  if (!allow_vsi) return btc_geo_fail(f, BTC_GEO_POLICY, BTC_ERR_ARG, "'%s': network paths need --allow-vsi", s->path);
  const kind *k = kind_by_name(s->path);
  if (!k)
    return btc_geo_fail(f, BTC_GEO_POLICY, BTC_ERR_ARG,
                        "'%s': a network path must end in .tif, .tiff, .jp2, .j2k, .png, .jpg or .jpeg", s->path);
  s->driver = k->driver;
  return BTC_OK;
}

btc_status geo_source_open(const char *path, const char *roots, bool allow_vsi, geo_source *s, btc_geo_failure *f) {
  const kind *k = NULL;
  *s = (geo_source){.fd = -1, .path = btc_strdup(path)};
  if (!s->path) return btc_geo_fail(f, BTC_GEO_OOM, BTC_ERR_NOMEM, "out of memory");
  bool virtual = strncmp(path, "/vsi", 4) == 0;
  btc_status st = virtual ? open_virtual(s, allow_vsi, f) : open_inside(path, roots, false, &s->fd, &s->bytes, f);
  if (st == BTC_OK && virtual) return BTC_OK;
  if (st == BTC_OK) st = find_kind(s, &k, f);
  if (st == BTC_OK) st = find_world(s, k, roots, f);
  if (st != BTC_OK) geo_source_close(s);
  return st;
}

void geo_source_close(geo_source *s) {
  if (s->fd >= 0) close(s->fd);
  free(s->path);
  *s = (geo_source){.fd = -1};
}
