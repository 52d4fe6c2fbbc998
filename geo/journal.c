/* See journal.h. */
#define _GNU_SOURCE
#include "journal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct file_head {
  char magic[8], key[64];
  uint64_t count;
  uint32_t version, cells;
} file_head;

typedef struct entry_head {
  uint64_t index;
  uint32_t record_bytes, cell_bytes; /* cell_bytes: all cells or none */
  uint8_t digest[8];                 /* of the three above and the bytes: a torn entry does not look whole */
} entry_head;

enum { VERSION = 1 };
static const char magic[8] = {'B', 'T', 'C', 'S', 'C', 'E', 'N', 'E'};

struct btc_journal {
  int fd;
  char *path;
  file_head head;
  uint64_t finished, end; /* end: bytes of whole entries */
  uint64_t *offset;       /* [count] of the entry; 0: none */
  uint8_t *scratch;       /* [most_bytes] of one entry */
};

static btc_status system_error(const btc_journal *j, const char *what, btc_error *err) {
  return btc_fail(err, BTC_ERR_IO, "cannot %s '%s': %s", what, j->path, strerror(errno));
}

static bool read_at(int fd, void *to, size_t n, uint64_t at) {
  for (size_t done = 0; done < n;) {
    ssize_t got = pread(fd, (char *)to + done, n - done, (off_t)(at + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    done += (size_t)got;
  }
  return true;
}

static bool write_at(int fd, const void *from, size_t n, uint64_t at) {
  for (size_t done = 0; done < n;) {
    ssize_t put = pwrite(fd, (const char *)from + done, n - done, (off_t)(at + done));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    done += (size_t)put;
  }
  return true;
}

static void digest_of(const entry_head *h, const void *bytes, uint8_t out[8]) {
  uint8_t whole[32];
  btc_sha256 s;
  btc_sha256_init(&s);
  btc_sha256_update(&s, h, offsetof(entry_head, digest));
  btc_sha256_update(&s, bytes, (size_t)h->record_bytes + h->cell_bytes);
  btc_sha256_final(&s, whole);
  memcpy(out, whole, 8);
}

static size_t most_bytes(const btc_journal *j) {
  return BTC_JOURNAL_MAX_RECORD + (size_t)j->head.cells * sizeof(uint16_t);
}

/* The entry at `at`, its bytes in scratch; false: there is no whole one. */
static bool read_entry(const btc_journal *j, uint64_t at, entry_head *h) {
  uint8_t digest[8];
  if (!read_at(j->fd, h, sizeof *h, at)) return false;
  bool sane = h->index < j->head.count && h->record_bytes <= BTC_JOURNAL_MAX_RECORD &&
              (h->cell_bytes == 0 || h->cell_bytes == j->head.cells * sizeof(uint16_t));
  if (!sane || !read_at(j->fd, j->scratch, (size_t)h->record_bytes + h->cell_bytes, at + sizeof *h)) return false;
  digest_of(h, j->scratch, digest);
  return memcmp(digest, h->digest, sizeof digest) == 0;
}

/* Walks the whole entries and cuts off what follows them. */
static btc_status scan(btc_journal *j, btc_error *err) {
  entry_head h;
  j->end = sizeof j->head;
  while (read_entry(j, j->end, &h)) {
    if (!j->offset[h.index]) j->finished++;
    j->offset[h.index] = j->end;
    j->end += sizeof h + h.record_bytes + h.cell_bytes;
  }
  return ftruncate(j->fd, (off_t)j->end) == 0 ? BTC_OK : system_error(j, "cut", err);
}

static btc_status check_head(btc_journal *j, bool afresh, btc_error *err) {
  file_head found;
  bool begun = read_at(j->fd, &found, sizeof found, 0);
  if (begun && memcmp(&found, &j->head, sizeof found) == 0 && !afresh) return scan(j, err);
  if (begun && !afresh) return btc_fail(err, BTC_ERR_ARG, "'%s' belongs to a run with other scenes, options or model", j->path);
  if (ftruncate(j->fd, 0) != 0 || !write_at(j->fd, &j->head, sizeof j->head, 0)) return system_error(j, "write", err);
  j->end = sizeof j->head;
  return BTC_OK;
}

btc_status btc_journal_open(const char *path, const char *key, uint64_t count, uint32_t cells, bool afresh, btc_journal **out,
                            btc_error *err) {
  *out = NULL;
  btc_journal *j = btc_alloc_zero(1, sizeof *j);
  if (!j) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a journal");
  j->head = (file_head){.count = count, .version = VERSION, .cells = cells};
  memcpy(j->head.magic, magic, sizeof magic);
  memcpy(j->head.key, key, sizeof j->head.key);
  j->path = btc_strdup(path);
  j->offset = btc_alloc_zero(count, sizeof *j->offset);
  j->scratch = btc_alloc(most_bytes(j), 1);
  j->fd = j->path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666) : -1;
  btc_status st = BTC_OK;
  if (!j->path || !j->offset || !j->scratch)
    st = btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a journal of %llu windows", (unsigned long long)count);
  else if (j->fd < 0)
    st = system_error(j, "open", err);
  else if (flock(j->fd, LOCK_EX | LOCK_NB) != 0)
    st = btc_fail(err, BTC_ERR_LIMIT, "another run is writing '%s'", path);
  else
    st = check_head(j, afresh, err);
  if (st == BTC_OK)
    *out = j;
  else
    btc_journal_close(&j);
  return st;
}

void btc_journal_close(btc_journal **jp) {
  btc_journal *j = *jp;
  if (!j) return;
  if (j->fd >= 0) close(j->fd);
  free(j->path);
  free(j->offset);
  free(j->scratch);
  free(j);
  *jp = NULL;
}

uint64_t btc_journal_finished(const btc_journal *j) {
  return j->finished;
}

bool btc_journal_has(const btc_journal *j, uint64_t index) {
  return index < j->head.count && j->offset[index];
}

btc_status btc_journal_append(btc_journal *j, uint64_t index, const char *record, const uint16_t *cells, btc_error *err) {
  size_t n = strlen(record), cell_bytes = cells ? j->head.cells * sizeof *cells : 0;
  if (index >= j->head.count || j->offset[index])
    return btc_fail(err, BTC_ERR_ARG, "window %llu is finished already, or none of the scene's", (unsigned long long)index);
  if (n > BTC_JOURNAL_MAX_RECORD) return btc_fail(err, BTC_ERR_LIMIT, "a record of %zu bytes is too long", n);
  uint8_t *whole = btc_alloc(sizeof(entry_head) + n + cell_bytes, 1);
  if (!whole) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a record");
  entry_head h = {.index = index, .record_bytes = (uint32_t)n, .cell_bytes = (uint32_t)cell_bytes};
  memcpy(whole + sizeof h, record, n);
  if (cells) memcpy(whole + sizeof h + n, cells, cell_bytes);
  digest_of(&h, whole + sizeof h, h.digest);
  memcpy(whole, &h, sizeof h);
  btc_status st = BTC_OK;
  if (!write_at(j->fd, whole, sizeof h + n + cell_bytes, j->end)) {
    st = system_error(j, "write", err);
    if (ftruncate(j->fd, (off_t)j->end) != 0) st = system_error(j, "write and then cut", err);
  } else {
    j->offset[index] = j->end;
    j->end += sizeof h + n + cell_bytes;
    j->finished++;
  }
  free(whole);
  return st;
}

btc_status btc_journal_read(btc_journal *j, uint64_t index, char **record, uint16_t *cells, bool *has_cells, btc_error *err) {
  entry_head h;
  if (record) *record = NULL;
  if (!btc_journal_has(j, index) || !read_entry(j, j->offset[index], &h))
    return btc_fail(err, BTC_ERR_IO, "'%s': the entry of window %llu cannot be read", j->path, (unsigned long long)index);
  if (record && !(*record = btc_strndup((const char *)j->scratch, h.record_bytes)))
    return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a record");
  if (cells && h.cell_bytes) memcpy(cells, j->scratch + h.record_bytes, h.cell_bytes);
  if (has_cells) *has_cells = h.cell_bytes != 0;
  return BTC_OK;
}

btc_status btc_journal_sync(btc_journal *j, btc_error *err) {
  return fdatasync(j->fd) == 0 ? BTC_OK : system_error(j, "sync", err);
}
