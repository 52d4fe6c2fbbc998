/* Descriptors as files: see fdfs.h. */
#define _GNU_SOURCE
#include "geo/gdal/fdfs.h"

#include <cpl_vsi.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct file {
  char name[64];
  int fd;
  int64_t bytes;
} files[FDFS_FILES] = {{.fd = -1}, {.fd = -1}};

typedef struct handle {
  const struct file *file;
  vsi_l_offset at;
  int eof;
} handle;

static const struct file *find(const char *name) {
  /* GDAL hands names over with or without the prefix */
  size_t n = strlen(FDFS_PREFIX);
  const char *bare = strncmp(name, FDFS_PREFIX, n) == 0 ? name + n : name;
  for (int i = 0; i < FDFS_FILES; i++)
    if (files[i].fd >= 0 && strcmp(files[i].name, bare) == 0) return &files[i];
  return NULL;
}

static int on_stat(void *ctx, const char *name, VSIStatBufL *sb, int flags) {
  (void)ctx;
  (void)flags;
  const struct file *file = find(name);
  memset(sb, 0, sizeof *sb);
  if (!file) return -1;
  sb->st_mode = S_IFREG | 0400;
  sb->st_size = file->bytes;
  return 0;
}

static void *on_open(void *ctx, const char *name, const char *access) {
  (void)ctx;
  const struct file *file = access[0] == 'r' && !strchr(access, '+') ? find(name) : NULL;
  handle *h = file ? calloc(1, sizeof *h) : NULL;
  if (h) h->file = file;
  return h;
}

static vsi_l_offset on_tell(void *p) {
  return ((handle *)p)->at;
}

static int on_seek(void *p, vsi_l_offset offset, int whence) {
  handle *h = p;
  vsi_l_offset base = whence == SEEK_CUR ? h->at : whence == SEEK_END ? (vsi_l_offset)h->file->bytes : 0;
  h->at = base + offset;
  h->eof = 0;
  return 0;
}

static size_t on_read(void *p, void *buffer, size_t size, size_t count) {
  handle *h = p;
  size_t want, got = 0;
  if (__builtin_mul_overflow(size, count, &want) || !want) return 0;
  if (h->at > (vsi_l_offset)INT64_MAX - want) want = 0;
  while (got < want) {
    ssize_t n = pread(h->file->fd, (char *)buffer + got, want - got, (off_t)(h->at + got));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    got += (size_t)n;
  }
  h->eof = got < size * count;
  h->at += got;
  return got / size;
}

static int on_eof(void *p) {
  return ((handle *)p)->eof;
}

static int on_close(void *p) {
  free(p);
  return 0;
}

btc_status fdfs_install(btc_error *err) {
  VSIFilesystemPluginCallbacksStruct *c = VSIAllocFilesystemPluginCallbacksStruct();
  if (!c) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  c->stat = on_stat;
  c->open = on_open;
  c->tell = on_tell;
  c->seek = on_seek;
  c->read = on_read;
  c->eof = on_eof;
  c->close = on_close;
  c->nBufferSize = 64 << 10; /* PNG and JPEG read a few KiB at a time */
  c->nCacheSize = 4 << 20;
  int e = VSIInstallPluginHandler(FDFS_PREFIX, c);
  VSIFreeFilesystemPluginCallbacksStruct(c);
  return e == 0 ? BTC_OK : btc_fail(err, BTC_ERR_INTERNAL, "GDAL takes no file system of ours");
}

btc_status fdfs_add(int i, const char *name, int fd, btc_error *err) {
  struct stat sb;
  const char *bare = name + strlen(FDFS_PREFIX);
  if (fstat(fd, &sb) != 0 || !S_ISREG(sb.st_mode)) return btc_fail(err, BTC_ERR_IO, "not a regular file");
  snprintf(files[i].name, sizeof files[i].name, "%s", bare);
  files[i].fd = fd;
  files[i].bytes = sb.st_size;
  return BTC_OK;
}

int64_t fdfs_bytes(int i) {
  return files[i].fd >= 0 ? files[i].bytes : 0;
}
