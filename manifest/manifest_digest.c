/* One pass over the items, one over the bytes: see manifest_digest.h. */
#define _GNU_SOURCE
#include "manifest_digest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PROGRESS_EVERY = 65536, BLOCK = 1 << 18 };

void btc_manifest_summary_free(btc_manifest_summary *s) {
  free(s->path);
  free(s->duplicates);
  *s = (btc_manifest_summary){0};
}

static bool cancelled(const btc_manifest_digest_options *o) {
  return o->cancel && *o->cancel;
}

static btc_status add_duplicate(btc_manifest_summary *s, uint64_t index, btc_error *err) {
  if (s->n_duplicates == BTC_MANIFEST_MAX_DUPLICATES)
    return btc_fail(err, BTC_ERR_LIMIT, "'%s': more than %d items bring an id that came before; the queue takes at most so many",
                    s->path, BTC_MANIFEST_MAX_DUPLICATES);
  if (!s->duplicates) s->duplicates = btc_alloc(BTC_MANIFEST_MAX_DUPLICATES, sizeof *s->duplicates);
  if (!s->duplicates) return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", s->path);
  s->duplicates[s->n_duplicates++] = index;
  return BTC_OK;
}

static btc_status count(btc_manifest *m, const btc_manifest_digest_options *o, btc_manifest_summary *s, btc_error *err) {
  for (;;) {
    btc_manifest_item item;
    btc_status st = btc_manifest_next(m, &item, err);
    if (st != BTC_OK) return st;
    if (item.kind == BTC_MANIFEST_END) break;
    if (item.kind == BTC_MANIFEST_BAD && !s->bad++)
      snprintf(s->problem, sizeof s->problem, "line %" PRIu64 ": %s", item.line, item.problem);
    if (item.duplicate && (st = add_duplicate(s, s->items, err)) != BTC_OK) return st;
    if (++s->items % PROGRESS_EVERY) continue;
    if (cancelled(o)) return btc_fail(err, BTC_ERR_CANCELLED, "interrupted");
    if (o->progress) o->progress(o->ctx, s->items, btc_manifest_progress(m));
  }
  return s->items ? BTC_OK : btc_fail(err, BTC_ERR_ARG, "'%s' holds no items", s->path);
}

static btc_status hash_file(const char *path, const btc_manifest_digest_options *o, btc_manifest_summary *s, btc_error *err) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
  uint8_t *block = btc_alloc(BLOCK, 1), digest[32];
  btc_sha256 hash;
  btc_status st = BTC_OK;
  ssize_t n = -1;
  btc_sha256_init(&hash);
  if (!block) {
    st = btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", path);
  } else {
    while (fd >= 0 && !cancelled(o) && ((n = read(fd, block, BLOCK)) > 0 || (n < 0 && errno == EINTR)))
      if (n > 0) btc_sha256_update(&hash, block, (size_t)n), s->bytes += (uint64_t)n;
    if (cancelled(o))
      st = btc_fail(err, BTC_ERR_CANCELLED, "interrupted");
    else if (n < 0)
      st = btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  }
  btc_sha256_final(&hash, digest);
  for (int i = 0; i < 32; i++) snprintf(s->sha256 + 2 * i, 3, "%02x", digest[i]);
  free(block);
  if (fd >= 0) close(fd);
  return st;
}

static bool same_file(const struct stat *a, const struct stat *b) {
  return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
         a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* The pass over the items and the one over the bytes must have seen the same file; the broker compares the digest again. */
static btc_status read_both(const btc_manifest_digest_options *o, btc_manifest_summary *s, btc_error *err) {
  btc_manifest *m = NULL;
  struct stat before, after;
  if (stat(s->path, &before) != 0) return btc_fail(err, BTC_ERR_IO, "cannot open '%s': %s", s->path, strerror(errno));
  if (!S_ISREG(before.st_mode) && !S_ISDIR(before.st_mode))
    return btc_fail(err, BTC_ERR_ARG,
                    "'%s' is neither a file nor a folder; brokers read a manifest again, so it must lie on storage they see",
                    s->path);
  btc_status st =
      btc_manifest_open(s->path, &(btc_manifest_options){.strict = o->strict, .dir = o->dir, .cancel = o->cancel}, &m, err);
  if (st == BTC_OK) st = count(m, o, s, err);
  if (st == BTC_OK && btc_manifest_is_folder(m)) {
    st = btc_manifest_folder_sha256(m, s->sha256, err);
  } else if (st == BTC_OK) {
    st = hash_file(s->path, o, s, err);
    if (st == BTC_OK && (stat(s->path, &after) != 0 || !same_file(&before, &after)))
      st = btc_fail(err, BTC_ERR_IO, "'%s' changed while it was read", s->path);
  }
  btc_manifest_close(&m);
  return st;
}

btc_status btc_manifest_digest(const char *path, const btc_manifest_digest_options *options, btc_manifest_summary *out,
                               btc_error *err) {
  static const btc_manifest_digest_options none = {0};
  *out = (btc_manifest_summary){0};
  out->path = realpath(path, NULL);
  if (!out->path)
    return btc_fail(err,
                    errno == ENOENT || errno == ENOTDIR ? BTC_ERR_NOT_FOUND
                    : errno == ENOMEM                   ? BTC_ERR_NOMEM
                                                        : BTC_ERR_IO,
                    "cannot open '%s': %s", path, strerror(errno));
  return read_both(options ? options : &none, out, err);
}
