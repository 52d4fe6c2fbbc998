/*
 * Bytes of an image file in order, through one small buffer. Plain reads, no mapping: a file that shrinks while it is read
 * ends in an error message instead of a signal, and a 2 GiB file costs 64 KiB. Also says what a file is that we cannot read.
 */
#define _GNU_SOURCE
#include "image_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER_BYTES ((size_t)64 << 10)

static btc_status check_regular(int fd, const char *path, btc_error *err) {
  struct stat sb;
  if (fstat(fd, &sb) != 0) return btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  if (S_ISDIR(sb.st_mode)) return btc_fail(err, BTC_ERR_IO, "cannot read '%s': it is a directory, not an image file", path);
  if (!S_ISREG(sb.st_mode)) return btc_fail(err, BTC_ERR_IO, "cannot read '%s': it is not a regular file", path);
  if ((uint64_t)sb.st_size > BTC_IMAGE_MAX_FILE_BYTES) {
    return btc_fail(err, BTC_ERR_LIMIT, "'%s' has %lld bytes, more than the %llu an image file may have", path,
                    (long long)sb.st_size, BTC_IMAGE_MAX_FILE_BYTES);
  }
  return BTC_OK;
}

btc_status btc_image_reader_open(btc_image_reader *r, const char *path, btc_error *err) {
  *r = (btc_image_reader){.fd = -1};
  /* O_NONBLOCK: opening a FIFO without a writer must not wait. It means nothing to a regular file. */
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) {
    bool missing = errno == ENOENT || errno == ENOTDIR;
    return btc_fail(err, missing ? BTC_ERR_NOT_FOUND : BTC_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  }
  btc_status status = check_regular(fd, path, err);
  if (status == BTC_OK && !(r->buffer = btc_alloc(BUFFER_BYTES, 1))) {
    status = btc_fail(err, BTC_ERR_NOMEM, "no memory to read '%s'", path);
  }
  if (status != BTC_OK) {
    close(fd);
    return status;
  }
  r->fd = fd;
  btc_image_reader_fill(r);
  if (r->error) {
    status = btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", path, strerror(r->error));
    btc_image_reader_close(r);
  }
  return status;
}

void btc_image_reader_open_memory(btc_image_reader *r, const void *data, size_t len) {
  *r = (btc_image_reader){.fd = -1, .at = data};
  r->end = len ? r->at + len : r->at;
}

bool btc_image_reader_fill(btc_image_reader *r) {
  if (r->fd < 0 || r->error) return false;
  size_t have = 0;
  while (have < BUFFER_BYTES) {
    ssize_t n = read(r->fd, r->buffer + have, BUFFER_BYTES - have);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) r->error = errno;
    if (n <= 0) break;
    have += (size_t)n;
  }
  r->at = r->buffer;
  r->end = r->buffer + have;
  return have > 0;
}

void btc_image_reader_close(btc_image_reader *r) {
  if (r->fd >= 0) close(r->fd);
  free(r->buffer);
  *r = (btc_image_reader){.fd = -1};
}

/* ---- what is it ---- */

typedef struct magic {
  uint8_t offset, len;
  const char *bytes, *name;
  bool image; /* a picture format we do not read, as opposed to no picture at all */
} magic;

static const magic known[] = {
    {0, 4, "II*\0", "a TIFF image", true},
    {0, 4, "MM\0*", "a TIFF image", true},
    {0, 4, "II+\0", "a BigTIFF image", true},
    {0, 4, "MM\0+", "a BigTIFF image", true},
    {0, 4, "GIF8", "a GIF image", true},
    {8, 4, "WEBP", "a WebP image", true},
    {4, 8, "jP  \r\n\x87\n", "a JPEG 2000 image", true},
    {0, 4, "\xff\x4f\xff\x51", "a JPEG 2000 codestream", true},
    {0, 2, "\xff\x0a", "a JPEG XL image", true},
    {4, 8, "JXL \r\n\x87\n", "a JPEG XL image", true},
    {4, 8, "ftypavif", "an AVIF image", true},
    {4, 8, "ftyphei", "a HEIF image", true},
    {4, 8, "ftypmif1", "a HEIF image", true},
    {0, 4, "8BPS", "a Photoshop image", true},
    {0, 4, "NITF", "a NITF image", true},
    {0, 4, "qoif", "a QOI image", true},
    {0, 4, "\x8aMNG", "an MNG animation", true},
    {0, 4, "\0\0\1\0", "a Windows icon", true},
    {0, 4, "\x76\x2f\x31\x01", "an OpenEXR image", true},
    {0, 7, "\x89PNG\n\x1a\n", "a PNG damaged by a text-mode transfer (line ends were changed)", false},
    {0, 8, "\x89PNG\r\r\n\x1a", "a PNG damaged by a text-mode transfer (line ends were changed)", false},
    {0, 4, "\x89HDF", "an HDF5 or NetCDF file", false},
    {0, 3, "CDF", "a NetCDF file", false},
    {0, 4, "GRIB", "a GRIB file", false},
    {0, 4, "%PDF", "a PDF document", false},
    {0, 4, "PK\3\4", "a ZIP archive", false},
    {0, 2, "\x1f\x8b", "a gzip archive", false},
    {0, 6,
     "\xfd"
     "7zXZ\0",
     "an xz archive", false},
    {0, 4,
     "\x7f"
     "ELF",
     "a program", false},
    {4, 4, "ftyp", "an MP4 or MOV video", false},
    {0, 6, "\x93NUMPY", "a NumPy array", false},
};

static bool has_magic(const uint8_t *p, size_t n, const magic *m) {
  return n >= (size_t)m->offset + m->len && memcmp(p + m->offset, m->bytes, m->len) == 0;
}

static bool is_bmp(const uint8_t *p, size_t n) { /* two letters are too few: the reserved words must be zero too */
  return n >= 14 && p[0] == 'B' && p[1] == 'M' && memcmp(p + 6, "\0\0\0\0", 4) == 0;
}

static bool is_netpbm(const uint8_t *p, size_t n) {
  return n >= 3 && p[0] == 'P' && p[1] >= '1' && p[1] <= '7' && (p[2] == '\n' || p[2] == ' ' || p[2] == '\r' || p[2] == '\t');
}

static bool is_text(const uint8_t *p, size_t n) {
  if (n > 512) n = 512;
  for (size_t i = 0; i < n; i++) {
    if (p[i] < 0x20 ? !strchr("\t\n\r\f", p[i]) || p[i] == 0 : p[i] == 0x7f) return false;
  }
  return true;
}

static btc_status not_read(btc_image_job *job, bool image, const char *what) {
  return btc_fail(job->err, image ? BTC_ERR_UNSUPPORTED : BTC_ERR_FORMAT, "'%s' is %s; only PNG and JPEG are read", job->label,
                  what);
}

btc_status btc_image_sniff(const btc_image_reader *r, btc_image_job *job, btc_image_kind *kind) {
  static const uint8_t png[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'}, jpeg[3] = {0xff, 0xd8, 0xff};
  const uint8_t *p = r->at;
  size_t n = (size_t)(r->end - r->at);
  if (n == 0) return btc_fail(job->err, BTC_ERR_FORMAT, "'%s' is empty (0 bytes)", job->label);
  if (memcmp(p, png, n < sizeof png ? n : sizeof png) == 0) {
    if (n < sizeof png) return btc_fail(job->err, BTC_ERR_FORMAT, "'%s' is a truncated PNG: it has %zu bytes", job->label, n);
    *kind = BTC_IMAGE_KIND_PNG;
    return BTC_OK;
  }
  if (memcmp(p, jpeg, n < sizeof jpeg ? n : sizeof jpeg) == 0) {
    if (n < sizeof jpeg) return btc_fail(job->err, BTC_ERR_FORMAT, "'%s' is a truncated JPEG: it has %zu bytes", job->label, n);
    *kind = BTC_IMAGE_KIND_JPEG;
    return BTC_OK;
  }
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
    if (has_magic(p, n, &known[i])) return not_read(job, known[i].image, known[i].name);
  }
  if (is_bmp(p, n)) return not_read(job, true, "a BMP image");
  if (is_netpbm(p, n)) return not_read(job, true, "a PNM image");
  if (is_text(p, n)) return not_read(job, false, "text, not an image");
  return not_read(job, false, "not an image of a kind we know");
}
