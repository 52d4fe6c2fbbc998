/* Path policy: see roots.h. */
#define _GNU_SOURCE
#include "broker/roots.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_ROOTS 64

struct btc_roots {
  char *root[MAX_ROOTS]; /* canonical, "" for / */
  size_t n;
  char folder[PATH_MAX]; /* allowed last, as it was written: files of one folder come in rows */
};

void btc_roots_free(btc_roots **roots) {
  btc_roots *r = *roots;
  *roots = NULL;
  if (!r) return;
  for (size_t i = 0; i < r->n; i++) free(r->root[i]);
  free(r);
}

static btc_status add_root(btc_roots *r, const char *path, btc_error *err) {
  if (path[0] != '/') return btc_fail(err, BTC_ERR_ARG, "the root '%s' is not an absolute path", path);
  if (r->n == MAX_ROOTS) return btc_fail(err, BTC_ERR_LIMIT, "more than %d roots", MAX_ROOTS);
  char real[PATH_MAX];
  struct stat sb;
  if (!realpath(path, real) || stat(real, &sb) != 0)
    return btc_fail(err, errno == ENOENT ? BTC_ERR_NOT_FOUND : BTC_ERR_IO, "the root '%s': %s", path, strerror(errno));
  if (!S_ISDIR(sb.st_mode)) return btc_fail(err, BTC_ERR_ARG, "the root '%s' is not a folder", path);
  r->root[r->n] = btc_strdup(strcmp(real, "/") == 0 ? "" : real);
  if (!r->root[r->n]) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  r->n++;
  return BTC_OK;
}

btc_status btc_roots_parse(const char *text, btc_roots **out, btc_error *err) {
  *out = NULL;
  if (!text) return BTC_OK;
  btc_roots *r = btc_alloc_zero(1, sizeof *r);
  char *copy = btc_strdup(text), *save = NULL;
  if (!r || !copy) {
    free(r);
    free(copy);
    btc_fail(err, BTC_ERR_NOMEM, "out of memory");
    return BTC_ERR_NOMEM;
  }
  btc_status st = BTC_OK;
  for (char *p = strtok_r(copy, ":", &save); p && st == BTC_OK; p = strtok_r(NULL, ":", &save)) st = add_root(r, p, err);
  if (st == BTC_OK && !r->n) st = btc_fail(err, BTC_ERR_ARG, "no root in '%s'", text);
  free(copy);
  if (st != BTC_OK) btc_roots_free(&r);
  *out = r;
  return st;
}

void btc_roots_refresh(btc_roots *r) {
  if (r) r->folder[0] = 0;
}

static bool inside(const btc_roots *r, const char *real) {
  for (size_t i = 0; i < r->n; i++) {
    size_t len = strlen(r->root[i]);
    if (strncmp(r->root[i], real, len) == 0 && (real[len] == '/' || !real[len])) return true;
  }
  return false;
}

static bool climbs(const char *path) {
  for (const char *p = path; (p = strstr(p, "/..")) != NULL; p += 3)
    if (p[3] == '/' || !p[3]) return true;
  return false;
}

/* By the nearest folder that is there. */
static bool allow_missing(const btc_roots *r, const char *path) {
  char part[PATH_MAX], real[PATH_MAX];
  struct stat sb;
  if (climbs(path)) return false;
  memcpy(part, path, strlen(path) + 1);
  for (;;) {
    if (lstat(part, &sb) == 0) break; /* a link that leads nowhere fails below */
    char *slash = strrchr(part, '/');
    if ((errno != ENOENT && errno != ENOTDIR) || !slash || slash == part) return false;
    *slash = 0;
  }
  return realpath(part, real) && inside(r, real);
}

bool btc_roots_allow(btc_roots *r, const char *path) {
  if (!r) return true;
  size_t len = strlen(path);
  if (path[0] != '/' || len >= PATH_MAX) return false;
  const char *name = strrchr(path, '/');
  size_t folder = (size_t)(name - path);
  struct stat sb;
  if (folder && strlen(r->folder) == folder && memcmp(r->folder, path, folder) == 0 && strcmp(name, "/..") != 0 &&
      strcmp(name, "/.") != 0 && lstat(path, &sb) == 0 && S_ISREG(sb.st_mode))
    return true;
  char real[PATH_MAX];
  if (!realpath(path, real)) return (errno == ENOENT || errno == ENOTDIR) && allow_missing(r, path);
  if (!inside(r, real)) return false;
  /* the folder's own real path is inside a root only if the file is no link out of another place */
  char at[PATH_MAX];
  memcpy(at, path, folder);
  at[folder] = 0;
  if (folder && realpath(at, real) && inside(r, real)) memcpy(r->folder, at, folder + 1);
  return true;
}
