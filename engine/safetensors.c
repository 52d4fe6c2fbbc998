/* safetensors files: see safetensors.h. The reader trusts nothing of the header but what it has checked here. */
#define _GNU_SOURCE
#include "safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/json.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are little-endian and used in place");

/* The format allows headers of 100 MB. Ten values a tensor: room for 200,000 tensors; the full model has under 800. */
static const btc_json_limits header_limits = {100u << 20, 2000000};

struct btc_safetensors {
  char *label;
  const uint8_t *bytes; /* the file */
  size_t len;
  bool mapped;
  char *names;             /* all names, each terminated */
  btc_tensor_view *tensor; /* in order of data */
  size_t n;
  const btc_tensor_view **by_name;
  char stamp[BTC_STAMP];
};

enum { SETTLED_S = 2 /* coarser times than any file system's, and a clock that is a little off */ };

static const struct {
  const char *name;
  btc_dtype type;
  uint64_t size;
} dtypes[] = {{"F32", BTC_F32, 4}, {"F16", BTC_F16, 2}, {"BF16", BTC_BF16, 2}, {"I64", BTC_I64, 8}};

void btc_shape_text(int rank, const int64_t *dim, char *out, size_t size) {
  size_t at = (size_t)snprintf(out, size, "[");
  for (int i = 0; i < rank && at < size; i++) at += (size_t)snprintf(out + at, size - at, i ? ", %" PRId64 : "%" PRId64, dim[i]);
  if (at < size) snprintf(out + at, size - at, "]");
}

#define REFUSE(fmt, ...) btc_fail(err, BTC_ERR_FORMAT, "'%s': tensor '%.256s': " fmt, f->label, v->name, __VA_ARGS__)

/* Fills dtype, rank and dims; *bytes is their product. */
static btc_status read_shape(const btc_safetensors *f, const json_t *entry, btc_tensor_view *v, uint64_t *bytes, btc_error *err) {
  const json_t *dtype = json_object_get(entry, "dtype"), *shape = json_object_get(entry, "shape");
  if (!json_is_string(dtype)) return REFUSE("%s", "its dtype is not a string");
  size_t d = 0, known = sizeof dtypes / sizeof dtypes[0];
  while (d < known && strcmp(dtypes[d].name, json_string_value(dtype)) != 0) d++;
  if (d == known)
    return btc_fail(err, BTC_ERR_UNSUPPORTED, "'%s': tensor '%.256s': dtype '%.32s' is not supported (F32, F16, BF16, I64 are)",
                    f->label, v->name, json_string_value(dtype));
  v->dtype = dtypes[d].type;
  *bytes = dtypes[d].size;
  if (!json_is_array(shape)) return REFUSE("%s", "its shape is not an array");
  if (json_array_size(shape) > BTC_TENSOR_MAX_RANK)
    return REFUSE("%zu dimensions, at most %d are supported", json_array_size(shape), BTC_TENSOR_MAX_RANK);
  v->rank = (int)json_array_size(shape);
  for (int i = 0; i < v->rank; i++) {
    const json_t *dim = json_array_get(shape, (size_t)i);
    if (!json_is_integer(dim) || json_integer_value(dim) < 0) return REFUSE("dimension %d is not a size", i);
    v->dim[i] = json_integer_value(dim);
    if (__builtin_mul_overflow(*bytes, (uint64_t)v->dim[i], bytes)) return REFUSE("%s", "its shape is too large");
  }
  return BTC_OK;
}

static btc_status read_entry(const btc_safetensors *f, const json_t *entry, const uint8_t *data, uint64_t data_len,
                             btc_tensor_view *v, btc_error *err) {
  if (!json_is_object(entry)) return REFUSE("%s", "its header entry is not an object");
  uint64_t want = 0;
  btc_status st = read_shape(f, entry, v, &want, err);
  if (st != BTC_OK) return st;
  const json_t *offsets = json_object_get(entry, "data_offsets");
  const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
  if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
    return REFUSE("%s", "its data_offsets are not two integers");
  int64_t begin = json_integer_value(first), end = json_integer_value(last);
  if (begin < 0 || end < begin) return REFUSE("its data_offsets [%" PRId64 ", %" PRId64 "] are not a range", begin, end);
  if ((uint64_t)end > data_len)
    return REFUSE("its data_offsets [%" PRId64 ", %" PRId64 "] leave the file, which has %" PRIu64 " bytes of data", begin, end,
                  data_len);
  if ((uint64_t)(end - begin) != want)
    return REFUSE("%" PRId64 " bytes of data, its dtype and shape need %" PRIu64, end - begin, want);
  v->data = data + begin;
  v->bytes = want;
  return BTC_OK;
}

static int by_place(const void *a, const void *b) {
  const btc_tensor_view *x = a, *y = b;
  if (x->data != y->data) return (const char *)x->data < (const char *)y->data ? -1 : 1;
  if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1; /* empty ones first: they overlap nothing */
  return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b) {
  return strcmp((*(const btc_tensor_view *const *)a)->name, (*(const btc_tensor_view *const *)b)->name);
}

static btc_status check_overlap(const btc_safetensors *f, btc_error *err) {
  const btc_tensor_view *last = NULL;
  for (size_t i = 0; i < f->n; i++) {
    const btc_tensor_view *v = &f->tensor[i];
    if (!v->bytes) continue;
    if (last && (const uint8_t *)v->data < (const uint8_t *)last->data + last->bytes)
      return REFUSE("its data overlaps that of '%.256s'", last->name);
    last = v;
  }
  return BTC_OK;
}

/* Room for all entries and copies of their names, so that the JSON tree can be freed. */
static btc_status allocate(btc_safetensors *f, json_t *header, btc_error *err) {
  size_t name_bytes = 1;
  const char *name;
  json_t *entry;
  json_object_foreach(header, name, entry) name_bytes += strlen(name) + 1;
  size_t n = json_object_size(header);
  f->names = btc_alloc(name_bytes, 1);
  f->tensor = btc_alloc_zero(n, sizeof *f->tensor);
  f->by_name = btc_alloc_zero(n, sizeof *f->by_name);
  if (!f->names || !f->tensor || !f->by_name)
    return btc_fail(err, BTC_ERR_NOMEM, "'%s': not enough memory for %zu tensors", f->label, n);
  return BTC_OK;
}

static btc_status read_entries(btc_safetensors *f, json_t *header, const uint8_t *data, uint64_t data_len, btc_error *err) {
  btc_status st = allocate(f, header, err);
  if (st != BTC_OK) return st;
  char *free_name = f->names;
  const char *name;
  json_t *entry;
  json_object_foreach(header, name, entry) {
    if (strcmp(name, "__metadata__") == 0) continue;
    btc_tensor_view *v = &f->tensor[f->n];
    v->name = strcpy(free_name, name);
    v->path = f->label;
    free_name += strlen(name) + 1;
    if ((st = read_entry(f, entry, data, data_len, v, err)) != BTC_OK) return st;
    f->n++;
  }
  qsort(f->tensor, f->n, sizeof *f->tensor, by_place);
  for (size_t i = 0; i < f->n; i++) f->by_name[i] = &f->tensor[i];
  qsort(f->by_name, f->n, sizeof *f->by_name, by_name);
  return check_overlap(f, err);
}

static btc_status parse(btc_safetensors *f, btc_error *err) {
  if (f->len < 8) return btc_fail(err, BTC_ERR_FORMAT, "'%s': %zu bytes, too short for a safetensors file", f->label, f->len);
  uint64_t header_len = 0;
  for (int i = 0; i < 8; i++) header_len |= (uint64_t)f->bytes[i] << (8 * i);
  if (header_len > f->len - 8)
    return btc_fail(err, BTC_ERR_FORMAT,
                    "'%s': not a safetensors file or cut short: a header of %" PRIu64 " bytes in a file of %zu", f->label,
                    header_len, f->len);
  json_t *header;
  btc_status st = btc_json_parse((const char *)f->bytes + 8, (size_t)header_len, f->label, &header_limits, &header, err);
  if (st != BTC_OK) return st;
  st = read_entries(f, header, f->bytes + 8 + header_len, f->len - 8 - header_len, err);
  json_decref(header);
  return st;
}

static void make_stamp(const struct stat *sb, char out[BTC_STAMP]) {
  const int64_t changed = sb->st_ctim.tv_sec > sb->st_mtim.tv_sec ? sb->st_ctim.tv_sec : sb->st_mtim.tv_sec;
  if (time(NULL) - changed <= SETTLED_S) return;
  snprintf(out, BTC_STAMP, "%ju %ju %jd %jd.%09ld %jd.%09ld", (uintmax_t)sb->st_dev, (uintmax_t)sb->st_ino, (intmax_t)sb->st_size,
           (intmax_t)sb->st_mtim.tv_sec, sb->st_mtim.tv_nsec, (intmax_t)sb->st_ctim.tv_sec, sb->st_ctim.tv_nsec);
}

static btc_status map_file(const char *path, const uint8_t **bytes, size_t *len, char stamp[BTC_STAMP], btc_error *err) {
  /* O_NONBLOCK: opening a FIFO must not wait for a writer that never comes */
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0)
    return btc_fail(err, errno == ENOENT || errno == ENOTDIR ? BTC_ERR_NOT_FOUND : BTC_ERR_IO, "cannot open '%s': %s", path,
                    strerror(errno));
  btc_status st = BTC_OK;
  struct stat sb;
  if (fstat(fd, &sb) != 0) {
    st = btc_fail(err, BTC_ERR_IO, "cannot stat '%s': %s", path, strerror(errno));
  } else if (!S_ISREG(sb.st_mode)) {
    st = btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", path, S_ISDIR(sb.st_mode) ? "is a directory" : "not a regular file");
  } else if (sb.st_size < 8) {
    st = btc_fail(err, BTC_ERR_FORMAT, "'%s': %lld bytes, too short for a safetensors file", path, (long long)sb.st_size);
  } else {
    void *p = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED)
      st = btc_fail(err, errno == ENOMEM ? BTC_ERR_NOMEM : BTC_ERR_IO, "cannot map '%s': %s", path, strerror(errno));
    *bytes = p;
    *len = (size_t)sb.st_size;
    make_stamp(&sb, stamp);
  }
  close(fd);
  return st;
}

static btc_status open_bytes(const uint8_t *bytes, size_t len, bool mapped, const char *label, btc_safetensors **out,
                             btc_error *err) {
  btc_status st = BTC_ERR_NOMEM;
  btc_safetensors *f = btc_alloc_zero(1, sizeof *f);
  if (!f) {
    if (mapped) munmap((void *)bytes, len);
    return btc_fail(err, st, "'%s': out of memory", label);
  }
  *f = (btc_safetensors){.label = btc_strdup(label), .bytes = bytes, .len = len, .mapped = mapped};
  st = f->label ? parse(f, err) : btc_fail(err, st, "'%s': out of memory", label);
  if (st != BTC_OK) btc_safetensors_close(&f);
  *out = f;
  return st;
}

btc_status btc_safetensors_open(const char *path, btc_safetensors **out, btc_error *err) {
  const uint8_t *bytes = NULL;
  size_t len = 0;
  *out = NULL;
  char stamp[BTC_STAMP] = "";
  btc_status st = map_file(path, &bytes, &len, stamp, err);
  if (st == BTC_OK) st = open_bytes(bytes, len, true, path, out, err);
  if (st == BTC_OK && *out) memcpy((*out)->stamp, stamp, sizeof stamp);
  return st;
}

btc_status btc_safetensors_open_memory(const void *data, size_t len, const char *label, btc_safetensors **out, btc_error *err) {
  *out = NULL;
  return open_bytes(data, len, false, label, out, err);
}

void btc_safetensors_close(btc_safetensors **file) {
  btc_safetensors *f = *file;
  *file = NULL;
  if (!f) return;
  if (f->mapped) munmap((void *)f->bytes, f->len);
  free(f->label);
  free(f->names);
  free(f->tensor);
  free(f->by_name);
  free(f);
}

void btc_safetensors_stamp(const btc_safetensors *f, char out[BTC_STAMP]) {
  memcpy(out, f->stamp, sizeof f->stamp);
}

size_t btc_safetensors_count(const btc_safetensors *f) {
  return f->n;
}

const btc_tensor_view *btc_safetensors_at(const btc_safetensors *f, size_t i) {
  return &f->tensor[i];
}

const btc_tensor_view *btc_safetensors_find(const btc_safetensors *f, const char *name) {
  const btc_tensor_view key = {.name = name}, *p = &key;
  const btc_tensor_view **found = bsearch(&p, f->by_name, f->n, sizeof *f->by_name, by_name);
  return found ? *found : NULL;
}

uint64_t btc_safetensors_file_bytes(const btc_safetensors *f) {
  return f->len;
}
