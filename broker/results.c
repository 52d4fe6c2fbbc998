/* Reading sealed parts: see results.h. */
#define _GNU_SOURCE
#include "broker/results.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"

#define MAX_PARTS 1000000
#define MAX_LINE (7u << 20) /* an envelope carries 8 MiB */
#define MAX_READ (4u << 20)

bool btc_results_jid_valid(const char *jid) {
  size_t len = strlen(jid);
  return len && len <= 64 && jid[0] != '.' &&
         strspn(jid, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == len;
}

static btc_status check_jid(const char *jid, btc_error *err) {
  return btc_results_jid_valid(jid) ? BTC_OK : btc_fail(err, BTC_ERR_ARG, "'%.64s' is not a job's id", jid);
}

/* ---- parts ---- */

/* The number of a part file, 0 for any other name. */
static uint32_t part_number(const char *name) {
  if (strncmp(name, "part-", 5) != 0 || strspn(name + 5, "0123456789") != 6 || strcmp(name + 11, ".jsonl") != 0) return 0;
  return (uint32_t)strtoul(name + 5, NULL, 10);
}

static int by_number(const void *a, const void *b) {
  uint32_t x = ((const btc_results_part *)a)->number, y = ((const btc_results_part *)b)->number;
  return (x > y) - (x < y);
}

static btc_status add_part(int dir, const char *name, uint32_t number, btc_results_part **parts, size_t *n, btc_error *err) {
  struct stat sb;
  if (fstatat(dir, name, &sb, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(sb.st_mode)) return BTC_OK;
  if (*n == MAX_PARTS) return btc_fail(err, BTC_ERR_LIMIT, "more than %d parts", MAX_PARTS);
  if ((*n & (*n - 1)) == 0) { /* full at powers of two */
    btc_results_part *wider = btc_realloc(*parts, *n ? *n * 2 : 1, sizeof *wider);
    if (!wider) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
    *parts = wider;
  }
  (*parts)[(*n)++] = (btc_results_part){.number = number, .bytes = (uint64_t)sb.st_size};
  return BTC_OK;
}

btc_status btc_results_list(const char *results, const char *jid, btc_results_part **parts, size_t *n, btc_error *err) {
  *parts = NULL;
  *n = 0;
  btc_status st = check_jid(jid, err);
  if (st != BTC_OK) return st;
  char *path = btc_path_join(results, jid);
  if (!path) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  DIR *d = opendir(path);
  if (!d && errno != ENOENT) st = btc_fail(err, BTC_ERR_IO, "cannot open the folder '%s': %s", path, strerror(errno));
  const struct dirent *e;
  while (d && st == BTC_OK && (errno = 0, e = readdir(d)) != NULL) {
    uint32_t number = part_number(e->d_name);
    if (number) st = add_part(dirfd(d), e->d_name, number, parts, n, err);
  }
  if (d && st == BTC_OK && errno) st = btc_fail(err, BTC_ERR_IO, "cannot read the folder '%s': %s", path, strerror(errno));
  if (d) closedir(d);
  free(path);
  if (st != BTC_OK) {
    free(*parts);
    *parts = NULL;
    *n = 0;
  } else if (*n) {
    qsort(*parts, *n, sizeof **parts, by_number);
  }
  return st;
}

/* ---- reading ---- */

typedef struct cursor {
  uint32_t part;
  uint64_t offset;
  int64_t epoch; /* -1: errors.jsonl not begun */
  uint64_t errors_offset;
} cursor;

static bool parse_cursor(const char *text, cursor *c) {
  *c = (cursor){.part = 1, .epoch = -1};
  if (!*text) return true;
  uint64_t number[4];
  int n = 0;
  for (bool more = true; more; n++) { /* two or four numbers with colons between */
    size_t digits = strspn(text, "0123456789");
    if (n == 4 || !digits || digits > (n % 2 ? 18 : 9)) return false;
    number[n] = strtoull(text, NULL, 10);
    more = text[digits] == ':';
    if (!more && text[digits]) return false;
    text += digits + more;
  }
  if ((n != 2 && n != 4) || number[0] < 1) return false;
  c->part = (uint32_t)number[0];
  c->offset = number[1];
  if (n == 2) return true;
  c->epoch = (int64_t)number[2];
  c->errors_offset = number[3];
  return true;
}

static void print_cursor(const cursor *c, char out[BTC_RESULTS_CURSOR]) {
  int n = snprintf(out, BTC_RESULTS_CURSOR, "%" PRIu32 ":%" PRIu64, c->part, c->offset);
  if (c->epoch >= 0) snprintf(out + n, (size_t)(BTC_RESULTS_CURSOR - n), ":%" PRId64 ":%" PRIu64, c->epoch, c->errors_offset);
}

typedef struct reader {
  const char *results, *jid;
  size_t max;
  char *lines;
  size_t len, room;
  bool full; /* what comes next does not fit */
} reader;

static bool reserve(reader *r, size_t room) {
  if (room + 1 <= r->room) return true;
  char *wider = btc_realloc(r->lines, room + 1, 1);
  if (!wider) return false;
  r->lines = wider;
  r->room = room + 1;
  return true;
}

static ssize_t read_at(int fd, char *to, size_t want, uint64_t offset) {
  size_t got = 0;
  while (got < want) {
    ssize_t n = pread(fd, to + got, want - got, (off_t)(offset + got));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -1;
    if (!n) break;
    got += (size_t)n;
  }
  return (ssize_t)got;
}

/* Exactly the line at offset, which is longer than what was asked for. */
static btc_status take_long_line(reader *r, int fd, const char *name, uint64_t left, uint64_t *offset, btc_error *err) {
  for (size_t limit = 65536;; limit *= 4) {
    if (limit > MAX_LINE) limit = MAX_LINE;
    if (limit > left) limit = (size_t)left;
    if (!reserve(r, limit)) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
    ssize_t got = read_at(fd, r->lines, limit, *offset);
    if (got < 0) return btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", name, strerror(errno));
    const char *nl = memchr(r->lines, '\n', (size_t)got);
    if (nl) {
      r->len = (size_t)(nl - r->lines) + 1;
      *offset += r->len;
      return BTC_OK;
    }
    if ((uint64_t)limit == left) return btc_fail(err, BTC_ERR_FORMAT, "'%s' does not end with a whole line", name);
    if (limit == MAX_LINE) return btc_fail(err, BTC_ERR_LIMIT, "'%s': a line of more than 7 MiB", name);
  }
}

/* Whole lines of fd from *offset on, until the reader is full or the file ends. */
static btc_status take_lines(reader *r, int fd, const char *name, uint64_t size, uint64_t *offset, btc_error *err) {
  while (*offset < size && !r->full) {
    size_t room = r->max - r->len, want = size - *offset < room ? (size_t)(size - *offset) : room;
    if (!reserve(r, r->len + want)) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
    ssize_t got = read_at(fd, r->lines + r->len, want, *offset);
    if (got < 0) return btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", name, strerror(errno));
    const char *nl = got ? memrchr(r->lines + r->len, '\n', (size_t)got) : NULL;
    if (!nl) {
      r->full = true;
      return r->len ? BTC_OK : take_long_line(r, fd, name, size - *offset, offset, err);
    }
    size_t take = (size_t)(nl - (r->lines + r->len)) + 1;
    r->len += take;
    *offset += take;
    r->full = r->len >= r->max;
  }
  return BTC_OK;
}

/* *exists: the file is there; then lines from *offset on. An offset that is not at a line's start: ARG, or with restart from the
 * beginning. */
static btc_status read_file(reader *r, const char *name, bool restart, uint64_t *offset, bool *exists, uint64_t *size,
                            btc_error *err) {
  *exists = false;
  char *path = NULL;
  if (asprintf(&path, "%s/%s/%s", r->results, r->jid, name) < 0) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  btc_status st = BTC_OK;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  struct stat sb;
  if (fd < 0) {
    if (errno != ENOENT && errno != ENOTDIR) st = btc_fail(err, BTC_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  } else if (fstat(fd, &sb) != 0 || !S_ISREG(sb.st_mode)) {
    st = btc_fail(err, BTC_ERR_IO, "'%s' is not a regular file", path);
  } else {
    char before = '\n';
    *exists = true;
    *size = (uint64_t)sb.st_size;
    bool good = *offset <= *size && (!*offset || (read_at(fd, &before, 1, *offset - 1) == 1 && before == '\n'));
    if (!good && restart) *offset = 0;
    if (!good && !restart)
      st = btc_fail(err, BTC_ERR_ARG, "the cursor does not fit '%s'", name);
    else
      st = take_lines(r, fd, name, *size, offset, err);
  }
  if (fd >= 0) close(fd);
  free(path);
  return st;
}

static btc_status read_parts(reader *r, cursor *c, btc_error *err) {
  for (;;) {
    char name[32];
    bool exists;
    uint64_t size = 0;
    cursor at = *c;
    snprintf(name, sizeof name, "part-%06" PRIu32 ".jsonl", at.part);
    btc_status st = read_file(r, name, false, &at.offset, &exists, &size, err);
    if (st != BTC_OK) return st;
    if (!exists && at.offset) return btc_fail(err, BTC_ERR_ARG, "the cursor names part %" PRIu32 ", which is not there", at.part);
    if (!exists) return BTC_OK;
    *c = at;
    if (c->offset < size) return BTC_OK; /* full */
    /* a number is decided (part or abandoned) before the next one is used, so the next part is the next number */
    *c = (cursor){.part = at.part + 1, .epoch = at.epoch, .errors_offset = at.errors_offset};
  }
}

/* The epoch of the finish whose errors.jsonl is there, -1 when none. */
static int64_t finished_epoch(const reader *r) {
  char *path = NULL;
  int64_t epoch = -1;
  json_t *doc = NULL;
  if (asprintf(&path, "%s/%s/.finished.json", r->results, r->jid) < 0) return -1;
  if (btc_json_read(path, &btc_json_config_limits, &doc, NULL) == BTC_OK) {
    const json_t *v = json_object_get(doc, "epoch");
    if (json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) < 1000000000) epoch = json_integer_value(v);
  }
  json_decref(doc);
  free(path);
  return epoch;
}

static btc_status read_errors(reader *r, cursor *c, btc_error *err) {
  int64_t epoch = finished_epoch(r);
  if (epoch < 0) return BTC_OK;
  if (c->epoch != epoch) c->errors_offset = 0;
  c->epoch = epoch;
  bool exists;
  uint64_t size;
  return read_file(r, "errors.jsonl", true, &c->errors_offset, &exists, &size, err);
}

btc_status btc_results_read(const char *results, const char *jid, const char *text, size_t max_bytes, bool errors, char **lines,
                            size_t *len, char next[BTC_RESULTS_CURSOR], bool *at_end, btc_error *err) {
  *lines = NULL;
  *len = 0;
  *at_end = false;
  cursor c;
  btc_status st = check_jid(jid, err);
  if (st != BTC_OK) return st;
  if (!parse_cursor(text, &c)) return btc_fail(err, BTC_ERR_ARG, "'%.64s' is not a cursor", text);
  reader r = {.results = results, .jid = jid, .max = max_bytes < 1 ? 1 : max_bytes > MAX_READ ? MAX_READ : max_bytes};
  if (!reserve(&r, 0)) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  st = read_parts(&r, &c, err);
  if (st == BTC_OK && errors && !r.full) st = read_errors(&r, &c, err);
  if (st != BTC_OK) {
    free(r.lines);
    return st;
  }
  r.lines[r.len] = 0;
  *lines = r.lines;
  *len = r.len;
  *at_end = !r.full;
  print_cursor(&c, next);
  return BTC_OK;
}

/* ---- counting ---- */

static btc_status count_file(const char *results, const char *jid, const char *name, uint64_t *n, btc_error *err) {
  char *path = NULL, buffer[65536];
  if (asprintf(&path, "%s/%s/%s", results, jid, name) < 0) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  btc_status st = fd >= 0 || errno == ENOENT ? BTC_OK : btc_fail(err, BTC_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  ssize_t got;
  while (fd >= 0 && (got = read(fd, buffer, sizeof buffer)) != 0) {
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      st = btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
      break;
    }
    for (const char *p = buffer; (p = memchr(p, '\n', (size_t)(buffer + got - p))) != NULL; p++) ++*n;
  }
  if (fd >= 0) close(fd);
  free(path);
  return st;
}

btc_status btc_results_count(const char *results, const char *jid, uint64_t *records, uint64_t *errors, btc_error *err) {
  *records = *errors = 0;
  btc_results_part *parts;
  size_t n;
  btc_status st = btc_results_list(results, jid, &parts, &n, err);
  for (size_t i = 0; i < n && st == BTC_OK; i++) {
    char name[32];
    snprintf(name, sizeof name, "part-%06" PRIu32 ".jsonl", parts[i].number);
    st = count_file(results, jid, name, records, err);
  }
  free(parts);
  return st == BTC_OK ? count_file(results, jid, "errors.jsonl", errors, err) : st;
}
