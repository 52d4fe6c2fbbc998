/* Parts and sidecars: see sink_part.h. */
#define _GNU_SOURCE
#include "broker/sink_part.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "broker/sink_items.h"

#define MAX_NUMBER 999999
#define MAX_CONFLICTS 16

typedef struct entry {
  uint64_t idx;
  size_t at, len; /* its record in the buffer; len 0: only to be acknowledged */
} entry;

struct btc_part_job {
  char *jid, *path;
  int dir;
  btc_items sealed; /* items in parts */
  btc_items held;   /* items in the buffer */
  uint32_t last;    /* highest number in use */
  uint32_t last_sealed;
  char *buffer;
  size_t len, room;
  btc_stream_id *id; /* [entries_room] */
  entry *entry;      /* [entries_room] */
  size_t n, entries_room, records;
  bool stale;     /* the folder must be read again before anything is added or sealed */
  uint64_t token; /* in names of temporary files: process ids repeat on other machines */
};

static btc_status failed(const btc_part_job *j, const char *what, const char *name, btc_error *err) {
  return btc_fail(err, BTC_ERR_IO, "cannot %s '%s/%s': %s", what, j->path, name, strerror(errno));
}

/* ---- reading the folder ---- */

static btc_status no_memory(btc_error *err) {
  return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
}

/* Size of a part, -1 when it is not there. */
static off_t part_size(const btc_part_job *j, const char *name) {
  struct stat sb;
  return fstatat(j->dir, name, &sb, AT_SYMLINK_NOFOLLOW) == 0 ? sb.st_size : -1;
}

static btc_status read_number(btc_part_job *j, uint32_t number, btc_error *err) {
  char part[40], sidecar[40];
  snprintf(part, sizeof part, "part-%06" PRIu32 ".jsonl", number);
  snprintf(sidecar, sizeof sidecar, ".part-%06" PRIu32 ".json", number);
  off_t size = part_size(j, part);
  if (size < 0) { /* begun and never finished: closed, so that its owner, should it still live, cannot finish it behind our back */
    int fd = openat(j->dir, part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0 && errno != EEXIST) return failed(j, "create", part, err);
    if (fd >= 0) close(fd);
    size = part_size(j, part);
  }
  if (number > j->last) j->last = number;
  if (size <= 0) return BTC_OK;
  if (number > j->last_sealed) j->last_sealed = number;
  return btc_items_read(&j->sealed, j->dir, j->path, sidecar, err);
}

/* "part-000001.jsonl" -> 1, 0 for other names. */
static uint32_t number_of(const char *name, const char *prefix, const char *suffix) {
  size_t a = strlen(prefix), len = strlen(name);
  if (len != a + 6 + strlen(suffix) || strncmp(name, prefix, a) != 0 || strcmp(name + a + 6, suffix) != 0) return 0;
  if (strspn(name + a, "0123456789") != 6) return 0;
  return (uint32_t)strtoul(name + a, NULL, 10);
}

static btc_status read_folder(btc_part_job *j, btc_error *err) {
  int fd = openat(j->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *d = fd < 0 ? NULL : fdopendir(fd);
  if (!d) {
    if (fd >= 0) close(fd);
    return failed(j, "read", ".", err);
  }
  btc_status st = BTC_OK;
  const struct dirent *e;
  while (st == BTC_OK && (errno = 0, e = readdir(d)) != NULL) {
    uint32_t sidecar = number_of(e->d_name, ".part-", ".json"), part = number_of(e->d_name, "part-", ".jsonl");
    size_t len = strlen(e->d_name);
    if (e->d_name[0] == '.' && len > 4 && strcmp(e->d_name + len - 4, ".tmp") == 0)
      unlinkat(j->dir, e->d_name, 0); /* of a sink that died; one that lives sees its link fail and reads the folder again */
    else if (sidecar)
      st = read_number(j, sidecar, err);
    else if (part > j->last)
      j->last = part;
  }
  if (st == BTC_OK && errno) st = failed(j, "read", ".", err);
  closedir(d);
  /* what was found here lets entries leave Redis, so it must last: whoever named it may have died before syncing the folder */
  if (st == BTC_OK && fsync(j->dir) != 0) st = failed(j, "sync", ".", err);
  return st;
}

static int open_folder(const char *results, const char *path) {
  if (mkdir(path, 0755) == 0) {
    int parent = open(results, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (parent >= 0) {
      fsync(parent);
      close(parent);
    }
  } else if (errno != EEXIST) {
    return -1;
  }
  return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

btc_status btc_part_open(const char *results, const char *jid, btc_part_job **out, btc_error *err) {
  btc_part_job *j = *out = btc_alloc_zero(1, sizeof *j);
  if (!j) return no_memory(err);
  j->dir = -1;
  if (getrandom(&j->token, sizeof j->token, 0) != (ssize_t)sizeof j->token) j->token = (uint64_t)btc_now_ns() * (uint64_t)getpid();
  j->jid = btc_strdup(jid);
  j->path = btc_path_join(results, jid);
  bool copied = j->jid && j->path;
  btc_status st = copied ? BTC_OK : no_memory(err);
  if (copied) {
    j->dir = open_folder(results, j->path);
    if (j->dir < 0) st = btc_fail(err, BTC_ERR_IO, "cannot make the folder '%s': %s", j->path, strerror(errno));
  }
  if (st == BTC_OK) st = read_folder(j, err);
  if (st != BTC_OK) btc_part_close(out);
  return st;
}

void btc_part_close(btc_part_job **job) {
  btc_part_job *j = *job;
  *job = NULL;
  if (!j) return;
  if (j->dir >= 0) close(j->dir);
  btc_items_free(&j->sealed);
  btc_items_free(&j->held);
  free(j->buffer);
  free(j->id);
  free(j->entry);
  free(j->jid);
  free(j->path);
  free(j);
}

/* ---- the buffer ---- */

static bool grow(btc_part_job *j, size_t bytes) {
  if (j->len + bytes > j->room) {
    size_t room = j->room ? j->room : 65536;
    while (room < j->len + bytes) room *= 2;
    char *wider = btc_realloc(j->buffer, room, 1);
    if (!wider) return false;
    j->buffer = wider;
    j->room = room;
  }
  if (j->n == j->entries_room) {
    size_t room = j->entries_room ? j->entries_room * 2 : 256;
    btc_stream_id *ids = btc_realloc(j->id, room, sizeof *ids);
    if (ids) j->id = ids;
    entry *entries = ids ? btc_realloc(j->entry, room, sizeof *entries) : NULL;
    if (!entries) return false;
    j->entry = entries;
    j->entries_room = room;
  }
  return true;
}

btc_status btc_part_add(btc_part_job *j, btc_stream_id id, uint64_t idx, const char *json, size_t len, btc_part_added *how,
                        btc_error *err) {
  *how = BTC_PART_ALREADY;
  if (j->stale) return btc_fail(err, BTC_ERR_IO, "'%s' must be read again", j->path);
  if (btc_items_has(&j->sealed, idx)) return BTC_OK;
  bool again = btc_items_has(&j->held, idx);
  if (!grow(j, len + 1) || (!again && !btc_items_add(&j->held, idx))) return no_memory(err);
  *how = BTC_PART_TAKEN;
  j->id[j->n] = id;
  j->entry[j->n] = (entry){.idx = idx, .at = j->len, .len = again ? 0 : len + 1};
  j->n++;
  if (again) return BTC_OK;
  memcpy(j->buffer + j->len, json, len);
  for (char *p = j->buffer + j->len, *end = p + len; p < end; p++)
    if (*p == '\n' || *p == '\r') *p = ' '; /* a record is one line; in JSON these can stand only between tokens */
  j->buffer[j->len + len] = '\n';
  j->len += len + 1;
  j->records++;
  return BTC_OK;
}

const btc_stream_id *btc_part_entries(const btc_part_job *j, size_t *n) {
  *n = j->n;
  return j->id;
}

void btc_part_clear(btc_part_job *j) {
  btc_items_free(&j->held);
  j->n = j->len = j->records = 0;
  if (j->room > 1u << 20) {
    free(j->buffer);
    j->buffer = NULL;
    j->room = 0;
  }
}

/* Another sink wrote here: what it sealed need not be sealed again. */
static btc_status read_again(btc_part_job *j, btc_error *err) {
  j->stale = true;
  btc_items_free(&j->sealed);
  btc_items_free(&j->held);
  btc_status st = read_folder(j, err);
  if (st != BTC_OK) return st;
  size_t len = 0;
  j->records = 0;
  for (size_t i = 0; i < j->n; i++) {
    entry *e = &j->entry[i];
    if (e->len && btc_items_has(&j->sealed, e->idx)) e->len = 0;
    if (!e->len) continue;
    if (!btc_items_add(&j->held, e->idx)) return no_memory(err);
    memmove(j->buffer + len, j->buffer + e->at, e->len);
    e->at = len;
    len += e->len;
    j->records++;
  }
  j->len = len;
  j->stale = false;
  return BTC_OK;
}

/* ---- sealing ---- */

static btc_status write_file(const btc_part_job *j, const char *name, const void *data, size_t len, btc_error *err) {
  int fd = openat(j->dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return failed(j, "create", name, err);
  btc_status st = BTC_OK;
  for (const char *p = data; len && st == BTC_OK;) {
    ssize_t n = write(fd, p, len);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      if (!n) errno = ENOSPC;
      st = failed(j, "write", name, err);
      break;
    }
    p += n;
    len -= (size_t)n;
  }
  if (st == BTC_OK && fsync(fd) != 0) st = failed(j, "sync", name, err);
  if (close(fd) != 0 && st == BTC_OK) st = failed(j, "close", name, err);
  return st;
}

static btc_status sync_folder(const btc_part_job *j, btc_error *err) {
  return fsync(j->dir) == 0 ? BTC_OK : failed(j, "sync", ".", err);
}

/* Gives the file its name unless another has it. A file server may say "exists" to a repeated request of our own: then it is our
 * file. File systems without hard links get a rename that does not replace either. */
static btc_status take_name(const btc_part_job *j, const char *tmp, const char *name, bool *taken, btc_error *err) {
  *taken = linkat(j->dir, tmp, j->dir, name, 0) == 0;
  if (*taken) return BTC_OK;
  if (errno == EEXIST) {
    struct stat a, b;
    *taken = fstatat(j->dir, tmp, &a, AT_SYMLINK_NOFOLLOW) == 0 && fstatat(j->dir, name, &b, AT_SYMLINK_NOFOLLOW) == 0 &&
             a.st_ino == b.st_ino && a.st_dev == b.st_dev;
    return BTC_OK;
  }
  if (errno == ENOENT) return BTC_OK; /* the temporary file is gone: another sink tidied the folder */
  if (errno != EPERM && errno != EOPNOTSUPP && errno != ENOSYS && errno != EMLINK) return failed(j, "name", name, err);
  *taken = renameat2(j->dir, tmp, j->dir, name, RENAME_NOREPLACE) == 0;
  return *taken || errno == EEXIST || errno == ENOENT ? BTC_OK : failed(j, "name", name, err);
}

static char *sidecar_text(const btc_part_job *j, size_t *len) {
  char *text = NULL;
  btc_stream_id first = j->id[0], last = j->id[j->n - 1];
  uint32_t crc = btc_crc32(j->buffer, j->len);
  FILE *f = open_memstream(&text, len);
  if (!f) return NULL;
  fprintf(f,
          "{\"v\":1,\"first\":\"%" PRIu64 "-%" PRIu64 "\",\"last\":\"%" PRIu64 "-%" PRIu64
          "\",\"count\":%zu,\"bytes\":%zu,\"crc32\":\"%08" PRIx32 "\",\"idx\":\"",
          first.ms, first.seq, last.ms, last.seq, j->records, j->len, crc);
  btc_items_print(&j->held, f);
  fputs("\"}\n", f);
  bool bad = ferror(f) != 0;
  if (fclose(f) == 0 && !bad) return text;
  free(text);
  return NULL;
}

/* *done false without an error: another sink was faster. */
static btc_status seal_number(btc_part_job *j, uint32_t number, bool *done, btc_error *err) {
  char part[40], sidecar[40], part_tmp[80], sidecar_tmp[80];
  snprintf(part, sizeof part, "part-%06" PRIu32 ".jsonl", number);
  snprintf(sidecar, sizeof sidecar, ".part-%06" PRIu32 ".json", number);
  snprintf(part_tmp, sizeof part_tmp, ".part-%06" PRIu32 ".jsonl.%016" PRIx64 ".tmp", number, ++j->token);
  snprintf(sidecar_tmp, sizeof sidecar_tmp, ".part-%06" PRIu32 ".json.%016" PRIx64 ".tmp", number, j->token);
  size_t len;
  char *text = sidecar_text(j, &len);
  *done = false;
  if (!text) return no_memory(err);
  BTC_FAILPOINT("sink_before_part");
  btc_status st = write_file(j, part_tmp, j->buffer, j->len, err);
  BTC_FAILPOINT("sink_part_written");
  if (st == BTC_OK) st = write_file(j, sidecar_tmp, text, len, err);
  BTC_FAILPOINT("sink_sidecar_written");
  bool mine = false;
  if (st == BTC_OK) st = take_name(j, sidecar_tmp, sidecar, &mine, err);
  if (st == BTC_OK && mine) st = sync_folder(j, err);
  BTC_FAILPOINT("sink_sidecar_named");
  if (st == BTC_OK && mine) st = take_name(j, part_tmp, part, done, err);
  BTC_FAILPOINT("sink_part_named");
  if (st == BTC_OK && *done) st = sync_folder(j, err);
  BTC_FAILPOINT("sink_part_synced");
  unlinkat(j->dir, part_tmp, 0);
  unlinkat(j->dir, sidecar_tmp, 0);
  free(text);
  return st;
}

btc_status btc_part_seal(btc_part_job *j, int *conflicts, btc_error *err) {
  *conflicts = 0;
  btc_status st = j->stale ? read_again(j, err) : BTC_OK;
  if (st != BTC_OK) return st;
  while (j->records) {
    if (j->last >= MAX_NUMBER) return btc_fail(err, BTC_ERR_LIMIT, "'%s' has %d parts", j->path, MAX_NUMBER);
    bool done;
    st = seal_number(j, j->last + 1, &done, err);
    if (st == BTC_OK && done) break;
    if (st == BTC_OK && ++*conflicts > MAX_CONFLICTS)
      st = btc_fail(err, BTC_ERR_IO, "'%s': another sink writes here all the time", j->path);
    /* after an error too: the number may be taken by our own sidecar, and a part that was named but not synced is a part */
    j->stale = true;
    if (st != BTC_OK || (st = read_again(j, err)) != BTC_OK) return st;
  }
  if (j->records) {
    j->last_sealed = ++j->last;
    if (!btc_items_merge(&j->sealed, &j->held)) {
      j->stale = true;
      return no_memory(err);
    }
  }
  return st;
}

void btc_part_temporary(btc_part_job *j, const char *name, char out[BTC_PART_NAME]) {
  snprintf(out, BTC_PART_NAME, ".%s.%016" PRIx64 ".tmp", name, ++j->token);
}

btc_status btc_part_rename(btc_part_job *j, const char *tmp, const char *name, btc_error *err) {
  if (renameat(j->dir, tmp, j->dir, name) == 0) return BTC_OK;
  if (errno == ENOENT) return btc_fail(err, BTC_ERR_CANCELLED, "another sink works on '%s'", j->path);
  return failed(j, "rename", name, err);
}

btc_status btc_part_publish(btc_part_job *j, const char *name, const void *data, size_t len, bool (*go_on)(void *ctx), void *ctx,
                            btc_error *err) {
  char tmp[BTC_PART_NAME];
  btc_part_temporary(j, name, tmp);
  btc_status st = write_file(j, tmp, data, len, err);
  BTC_FAILPOINT("sink_publish_written");
  if (st == BTC_OK && !go_on(ctx)) st = btc_fail(err, BTC_ERR_CANCELLED, "not any more");
  BTC_FAILPOINT("sink_publish_checked");
  if (st == BTC_OK) st = btc_part_rename(j, tmp, name, err);
  if (st == BTC_OK) return sync_folder(j, err);
  unlinkat(j->dir, tmp, 0);
  return st;
}

/* ---- what it holds ---- */

const char *btc_part_jid(const btc_part_job *j) {
  return j->jid;
}
size_t btc_part_waiting(const btc_part_job *j) {
  return j->records;
}
size_t btc_part_waiting_bytes(const btc_part_job *j) {
  return j->len;
}
uint64_t btc_part_sealed(const btc_part_job *j) {
  return j->sealed.count;
}
uint32_t btc_part_number(const btc_part_job *j) {
  return j->last_sealed;
}
size_t btc_part_memory(const btc_part_job *j) {
  return j->room + j->entries_room * (sizeof *j->id + sizeof *j->entry) + btc_items_memory(&j->sealed) + btc_items_memory(&j->held);
}
int btc_part_dir(const btc_part_job *j) {
  return j->dir;
}
