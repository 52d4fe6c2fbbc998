/* Open manifests and known digests: see shelf.h. */
#define _GNU_SOURCE
#include "broker/shelf.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define READERS 8
#define READERS_OF_ONE 2 /* one where chunks are handed out, one where they are made */
#define DIGESTS 256

typedef struct reader {
  char *path, *base;
  btc_identity identity;
  btc_manifest *m;
  bool folder;
  uint64_t used;
} reader;

typedef struct digest {
  btc_identity identity;
  char hex[65]; /* "": free */
  uint64_t used;
} digest;

struct btc_shelf {
  btc_roots *roots;
  reader reader[READERS];
  digest digest[DIGESTS];
  uint64_t clock;
};

btc_status btc_shelf_create(const char *roots, btc_shelf **out, btc_error *err) {
  btc_shelf *s = *out = btc_alloc_zero(1, sizeof *s);
  if (!s) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  btc_status st = btc_roots_parse(roots, &s->roots, err);
  if (st != BTC_OK) btc_shelf_destroy(out);
  return st;
}

static void drop(reader *r) {
  btc_manifest_close(&r->m);
  free(r->path);
  free(r->base);
  *r = (reader){0};
}

void btc_shelf_destroy(btc_shelf **shelf) {
  btc_shelf *s = *shelf;
  *shelf = NULL;
  if (!s) return;
  for (size_t i = 0; i < READERS; i++) drop(&s->reader[i]);
  btc_roots_free(&s->roots);
  free(s);
}

btc_roots *btc_shelf_roots(btc_shelf *s) {
  return s->roots;
}

/* ---- what lies at a path ---- */

static void fill(btc_identity *id, int i, const struct stat *sb) {
  id->of[i].device = sb->st_dev;
  id->of[i].inode = sb->st_ino;
  id->of[i].size = (uint64_t)sb->st_size;
  id->of[i].changed = sb->st_ctim;
  id->of[i].written = sb->st_mtim;
}

static btc_status stat_failed(const char *path, btc_error *err) {
  btc_status st = errno == ENOENT || errno == ENOTDIR       ? BTC_ERR_NOT_FOUND
                  : errno == ELOOP || errno == ENAMETOOLONG ? BTC_ERR_ARG
                                                            : BTC_ERR_IO;
  return btc_fail(err, st, "cannot open '%s': %s", path, strerror(errno));
}

static btc_status identify(const char *path, btc_identity *id, btc_error *err) {
  struct stat sb;
  memset(id, 0, sizeof *id); /* padding too: identities are compared as bytes */
  if (stat(path, &sb) != 0) return stat_failed(path, err);
  if (!S_ISREG(sb.st_mode) && !S_ISDIR(sb.st_mode)) return btc_fail(err, BTC_ERR_ARG, "'%s' is neither a file nor a folder", path);
  fill(id, 0, &sb);
  if (!S_ISDIR(sb.st_mode)) return BTC_OK;
  char side[PATH_MAX + 4];
  for (int i = 1; i < 3; i++) {
    snprintf(side, sizeof side, "%s/%c", path, i == 1 ? 'A' : 'B');
    if (stat(side, &sb) != 0) return stat_failed(side, err);
    fill(id, i, &sb);
  }
  return BTC_OK;
}

bool btc_identity_equal(const btc_identity *a, const btc_identity *b) {
  return memcmp(a, b, sizeof *a) == 0;
}

static const digest *find_digest(btc_shelf *s, const btc_identity *id) {
  for (size_t i = 0; i < DIGESTS; i++) {
    if (!s->digest[i].hex[0] || !btc_identity_equal(&s->digest[i].identity, id)) continue;
    s->digest[i].used = ++s->clock;
    return &s->digest[i];
  }
  return NULL;
}

btc_status btc_shelf_check(btc_shelf *s, const char *path, const char *sha256, bool *known, btc_identity *identity,
                           const char **hex, btc_error *err) {
  *known = true;
  *hex = "";
  if (path[0] != '/' || strlen(path) >= PATH_MAX) return btc_fail(err, BTC_ERR_ARG, "'%.200s' is not an absolute path", path);
  btc_roots_refresh(s->roots);
  btc_status st = identify(path, identity, err);
  if (!btc_roots_allow(s->roots, path))
    return btc_fail(err, BTC_ERR_ARG, "'%s' lies outside the folders that the broker serves", path);
  if (st != BTC_OK || !*sha256) return st;
  const digest *d = find_digest(s, identity);
  *known = d != NULL;
  if (!d) return BTC_OK;
  *hex = d->hex;
  if (strcasecmp(d->hex, sha256) == 0 || strcmp(sha256, "?") == 0) return BTC_OK;
  return btc_fail(err, BTC_ERR_FORMAT, "'%s' is not the manifest that was submitted: its SHA-256 is %s", path, d->hex);
}

void btc_shelf_learn(btc_shelf *s, const btc_identity *identity, const char hex[65]) {
  digest *oldest = &s->digest[0];
  for (size_t i = 0; i < DIGESTS; i++)
    if (s->digest[i].used < oldest->used) oldest = &s->digest[i];
  oldest->identity = *identity;
  memcpy(oldest->hex, hex, sizeof oldest->hex);
  oldest->used = ++s->clock;
}

/* ---- readers ---- */

static bool fits(const reader *r, const char *path, const char *base) {
  return r->m && strcmp(r->path, path) == 0 && strcmp(r->base, base) == 0;
}

/* A reader of this manifest that stands at pos, else one that may be moved, else NULL. Readers of what the path was before go. */
static reader *find_reader(btc_shelf *s, const char *path, const char *base, const btc_identity *identity, const char *pos) {
  reader *any = NULL;
  size_t n = 0;
  for (size_t i = 0; i < READERS; i++) {
    reader *r = &s->reader[i];
    btc_manifest_pos at;
    if (!fits(r, path, base)) continue;
    if (!btc_identity_equal(&r->identity, identity)) {
      drop(r);
      continue;
    }
    if (btc_manifest_tell(r->m, &at, NULL) == BTC_OK && strcmp(at.text, pos) == 0) return r;
    if (!any || r->used < any->used) any = r;
    n++;
  }
  return any && (any->folder || n >= READERS_OF_ONE) ? any : NULL;
}

static btc_status open_reader(btc_shelf *s, const char *path, const char *base, const btc_identity *identity, reader **out,
                              btc_error *err) {
  reader *r = &s->reader[0];
  for (size_t i = 0; i < READERS; i++)
    if (s->reader[i].used < r->used) r = &s->reader[i];
  drop(r);
  btc_manifest_options o = {.duplicates_too = true, .dir = *base ? base : NULL};
  btc_status st = btc_manifest_open(path, &o, &r->m, err);
  if (st != BTC_OK) return st;
  r->path = btc_strdup(path);
  r->base = btc_strdup(base);
  r->identity = *identity;
  r->folder = identity->of[1].inode != 0;
  *out = r;
  if (r->path && r->base) return BTC_OK;
  drop(r);
  return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
}

btc_status btc_shelf_reader(btc_shelf *s, const char *path, const char *base, const btc_identity *identity, const char *pos,
                            btc_manifest **out, btc_error *err) {
  reader *r = find_reader(s, path, base, identity, pos);
  btc_status st = r ? BTC_OK : open_reader(s, path, base, identity, &r, err);
  if (st != BTC_OK) return st;
  r->used = ++s->clock;
  *out = r->m;
  st = btc_manifest_seek(r->m, pos, err);
  if (st == BTC_ERR_IO) drop(r); /* a stale handle of a file server: opened anew next time */
  return st;
}

/* ---- hashing ---- */

#define SLICE (1u << 20)

struct btc_hashing {
  char *path;
  int fd; /* -1: a folder */
  btc_sha256 hash;
  uint8_t *buffer; /* [SLICE] */
};

btc_status btc_hashing_begin(const char *path, const btc_identity *identity, btc_hashing **out, btc_error *err) {
  btc_hashing *h = *out = btc_alloc_zero(1, sizeof *h);
  if (!h) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  h->fd = -1;
  h->path = btc_strdup(path);
  h->buffer = btc_alloc(SLICE, 1);
  btc_status st = h->path && h->buffer ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  btc_sha256_init(&h->hash);
  if (st == BTC_OK && !identity->of[1].inode) {
    h->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (h->fd < 0) st = stat_failed(path, err);
  }
  if (st != BTC_OK) btc_hashing_end(out);
  return st;
}

static void to_hex(btc_sha256 *hash, char hex[65]) {
  uint8_t bytes[32];
  btc_sha256_final(hash, bytes);
  for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
}

btc_status btc_hashing_step(btc_hashing *h, bool *done, char hex[65], btc_error *err) {
  *done = false;
  if (h->fd < 0) {
    btc_manifest *m;
    btc_status st = btc_manifest_open(h->path, NULL, &m, err);
    if (st == BTC_OK) st = btc_manifest_folder_sha256(m, hex, err);
    btc_manifest_close(&m);
    *done = st == BTC_OK;
    return st;
  }
  ssize_t n;
  do n = read(h->fd, h->buffer, SLICE);
  while (n < 0 && errno == EINTR);
  if (n < 0) return btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", h->path, strerror(errno));
  btc_sha256_update(&h->hash, h->buffer, (size_t)n);
  *done = n == 0;
  if (*done) to_hex(&h->hash, hex);
  return BTC_OK;
}

void btc_hashing_end(btc_hashing **hashing) {
  btc_hashing *h = *hashing;
  *hashing = NULL;
  if (!h) return;
  if (h->fd >= 0) close(h->fd);
  free(h->buffer);
  free(h->path);
  free(h);
}
