/* Whole files: read with a bound, publish by temporary, fsync and rename (a crash leaves the old file or the new one). */
#define _GNU_SOURCE
#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

btc_status btc_file_read(const char *path, size_t max_bytes, uint8_t **data, size_t *len, btc_error *err) {
  *data = NULL;
  *len = 0;
  /* O_NONBLOCK: opening a FIFO must not wait for a writer that never comes */
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0)
    return btc_fail(err, errno == ENOENT || errno == ENOTDIR ? BTC_ERR_NOT_FOUND : BTC_ERR_IO, "cannot open '%s': %s", path,
                    strerror(errno));
  uint8_t *buf = NULL;
  btc_status st = BTC_OK;
  struct stat sb;
  if (fstat(fd, &sb) != 0) {
    st = btc_fail(err, BTC_ERR_IO, "cannot stat '%s': %s", path, strerror(errno));
    goto out;
  }
  if (!S_ISREG(sb.st_mode)) {
    st = btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", path, S_ISDIR(sb.st_mode) ? "is a directory" : "not a regular file");
    goto out;
  }
  if ((uint64_t)sb.st_size > max_bytes) {
    st =
        btc_fail(err, BTC_ERR_LIMIT, "'%s' is too large: %lld bytes, at most %zu are read", path, (long long)sb.st_size, max_bytes);
    goto out;
  }
  size_t size = (size_t)sb.st_size, got = 0;
  buf = btc_alloc(size + 1, 1);
  if (!buf) {
    st = btc_fail(err, BTC_ERR_NOMEM, "cannot read '%s': not enough memory for %zu bytes", path, size);
    goto out;
  }
  while (got < size) {
    ssize_t n = read(fd, buf + got, size - got);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      st = btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", path, n < 0 ? strerror(errno) : "file shrank while being read");
      goto out;
    }
    got += (size_t)n;
  }
  buf[size] = 0;
  *data = buf;
  *len = size;
  buf = NULL;
out:
  free(buf);
  close(fd);
  return st;
}

static btc_status write_all(int fd, const char *path, const uint8_t *p, size_t len, btc_error *err) {
  while (len) {
    ssize_t n = write(fd, p, len);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return btc_fail(err, BTC_ERR_IO, "cannot write '%s': %s", path, n < 0 ? strerror(errno) : "nothing was written");
    p += n;
    len -= (size_t)n;
  }
  return BTC_OK;
}

/* A temporary beside path, renamed over it. */
static btc_status replace_file(const char *path, const void *data, size_t len, btc_error *err) {
  char *tmp = NULL;
  if (asprintf(&tmp, "%s.tmp.%ld", path, (long)getpid()) < 0)
    return btc_fail(err, BTC_ERR_NOMEM, "cannot write '%s': out of memory", path);
  btc_status st;
  unlink(tmp); /* what a killed process of the same number may have left */
  int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) {
    st = btc_fail(err, BTC_ERR_IO, "cannot create '%s': %s", tmp, strerror(errno));
    free(tmp);
    return st;
  }
  st = write_all(fd, tmp, data, len, err);
  if (st == BTC_OK && fsync(fd) != 0) st = btc_fail(err, BTC_ERR_IO, "cannot sync '%s': %s", tmp, strerror(errno));
  if (close(fd) != 0 && st == BTC_OK) st = btc_fail(err, BTC_ERR_IO, "cannot close '%s': %s", tmp, strerror(errno));
  if (st == BTC_OK && rename(tmp, path) != 0)
    st = btc_fail(err, BTC_ERR_IO, "cannot rename '%s' to '%s': %s", tmp, path, strerror(errno));
  if (st != BTC_OK) unlink(tmp);
  free(tmp);
  return st;
}

/* Devices and pipes are written to: a rename would put a plain file in the place of, say, /dev/null. */
static btc_status write_through(const char *path, const void *data, size_t len, btc_error *err) {
  int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) return btc_fail(err, BTC_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  btc_status st = write_all(fd, path, data, len, err);
  if (close(fd) != 0 && st == BTC_OK) st = btc_fail(err, BTC_ERR_IO, "cannot close '%s': %s", path, strerror(errno));
  return st;
}

btc_status btc_file_publish(const char *path, const void *data, size_t len, btc_error *err) {
  struct stat sb;
  if (stat(path, &sb) != 0) return replace_file(path, data, len, err); /* nothing there yet */
  if (S_ISDIR(sb.st_mode)) return btc_fail(err, BTC_ERR_IO, "cannot write '%s': %s", path, strerror(EISDIR));
  if (!S_ISREG(sb.st_mode)) return write_through(path, data, len, err);
  char *target = realpath(path, NULL); /* a link stays a link: what it points to is replaced */
  btc_status st = replace_file(target ? target : path, data, len, err);
  free(target);
  return st;
}

char *btc_path_join(const char *dir, const char *name) {
  if (name[0] == '/' || !dir[0]) return btc_strdup(name);
  size_t d = strlen(dir), n = strlen(name);
  while (d > 1 && dir[d - 1] == '/') d--;
  char *p = btc_alloc(d + n + 2, 1);
  if (!p) return NULL;
  memcpy(p, dir, d);
  size_t at = d;
  if (dir[d - 1] != '/') p[at++] = '/';
  memcpy(p + at, name, n + 1);
  return p;
}
