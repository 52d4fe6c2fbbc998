/* See index.h. */
#define _GNU_SOURCE
#include "index_state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { APPLICATION = 0x62746378, VERSION = 1, PATIENCE_MS = 60000, END_BYTES = 64 << 10 };

/* Captions stand in records alone; the FTS table is only their index. Porter: "roads" finds "road". */
static const char schema[] =
    "CREATE TABLE files(name TEXT PRIMARY KEY, size INTEGER, changed_ns INTEGER, ends TEXT);"
    "CREATE TABLE records(n INTEGER PRIMARY KEY, file TEXT, id TEXT, status TEXT, changed INTEGER, score REAL, caption TEXT);"
    "CREATE INDEX records_file ON records(file);"
    "CREATE VIRTUAL TABLE captions USING fts5(caption, content='records', content_rowid='n', tokenize='porter unicode61');";

const char *btc_index_path(const btc_index *x) {
  return x->path;
}

void btc_index_close(btc_index **x) {
  if (!*x) return;
  sqlite3_close((*x)->db);
  free(*x);
  *x = NULL;
}

/* ---- opening ---- */

static int64_t number(sqlite3 *db, const char *statement) {
  sqlite3_stmt *s = NULL;
  int64_t n = -1;
  if (sqlite3_prepare_v2(db, statement, -1, &s, NULL) == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW) n = sqlite3_column_int64(s, 0);
  sqlite3_finalize(s);
  return n;
}

static btc_status connect(btc_index *x, btc_error *err) {
  char text[200];
  if (sqlite3_open_v2(x->path, &x->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL) != SQLITE_OK)
    return btc_fail(err, BTC_ERR_IO, "cannot open the index '%s': %s", x->path, x->db ? sqlite3_errmsg(x->db) : "no memory");
  sqlite3_busy_timeout(x->db, PATIENCE_MS);
  sqlite3_db_config(x->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
  /* A file that came with somebody's results may hold anything: no functions out of its schema, every cell checked. */
  snprintf(text, sizeof text, "PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON; PRAGMA cache_size=-%d; BEGIN IMMEDIATE",
           BTC_SQL_CACHE_KIB);
  return btc_sql_run(x->db, text, err);
}

/* Ours is what has our numbers and no tables, views or triggers but ours. */
static bool is_ours(sqlite3 *db) {
  return number(db, "PRAGMA application_id") == APPLICATION && number(db, "PRAGMA user_version") == VERSION &&
         number(db, "SELECT count(*) FROM sqlite_master WHERE type IN ('view','trigger')") == 0 &&
         number(db, "SELECT count(*) FROM sqlite_master WHERE type='table'") == 7;
}

static btc_status make(btc_index *x, btc_error *err) {
  char text[128];
  btc_status st = btc_sql_run(x->db, schema, err);
  snprintf(text, sizeof text, "PRAGMA application_id=%d; PRAGMA user_version=%d; COMMIT", APPLICATION, VERSION);
  return st == BTC_OK ? btc_sql_run(x->db, text, err) : st;
}

static btc_status open_here(btc_index *x, btc_error *err) {
  btc_status st = connect(x, err);
  if (st == BTC_OK && is_ours(x->db)) return btc_sql_run(x->db, "COMMIT", err);
  if (st == BTC_OK && number(x->db, "SELECT count(*) FROM sqlite_master") == 0) return make(x, err);
  if (st != BTC_OK && (!x->db || !btc_sql_is_broken(x->db))) return st;
  sqlite3_close(x->db);
  x->db = NULL;
  x->rebuilt = true;
  char journal[PATH_MAX + 16];
  snprintf(journal, sizeof journal, "%s-journal", x->path);
  if (unlink(x->path) != 0 && errno != ENOENT)
    return btc_fail(err, BTC_ERR_IO, "cannot remove '%s', which is no index of ours: %s", x->path, strerror(errno));
  unlink(journal);
  st = connect(x, err);
  return st == BTC_OK ? make(x, err) : st;
}

static btc_status cache_place(const char *where, char out[PATH_MAX], btc_error *err) {
  char real[PATH_MAX], hex[65], folder[PATH_MAX];
  const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
  if (!realpath(where, real)) return btc_fail(err, BTC_ERR_IO, "cannot open '%s': %s", where, strerror(errno));
  btc_sha256_hex(real, strlen(real), hex);
  int n = cache && *cache == '/' ? snprintf(folder, sizeof folder, "%s", cache)
                                 : snprintf(folder, sizeof folder, "%s/.cache", home ? home : "");
  if (n > 0 && n < PATH_MAX - 64) {
    (void)mkdir(folder, 0700);
    strcat(folder, "/btcchat");
    (void)mkdir(folder, 0700);
  }
  if (n < 0 || n >= PATH_MAX - 64 || access(folder, W_OK) != 0)
    return btc_fail(err, BTC_ERR_IO, "no place for the index of '%s': '%s' cannot be written", where, folder);
  snprintf(out, PATH_MAX, "%.*s/index-%.16s.db", PATH_MAX - 64, folder, hex);
  return BTC_OK;
}

btc_status btc_index_open(const char *where, btc_index **out, btc_error *err) {
  struct stat s;
  btc_status st = BTC_OK;
  btc_index *x = *out = btc_alloc_zero(1, sizeof *x);
  if (!x) return btc_fail(err, BTC_ERR_NOMEM, "no memory for the index");
  bool beside = stat(where, &s) == 0 && S_ISDIR(s.st_mode) && access(where, W_OK) == 0 &&
                snprintf(x->path, sizeof x->path, "%s/%s", where, BTC_INDEX_NAME) < PATH_MAX - 16;
  if (beside && access(x->path, F_OK) == 0 && access(x->path, W_OK) != 0) beside = false;
  if (!beside) st = cache_place(where, x->path, err);
  if (st == BTC_OK) st = open_here(x, err);
  if (st != BTC_OK) btc_index_close(out);
  return st;
}

/* ---- bringing it up to date ---- */

typedef struct file_state {
  int64_t size, changed_ns;
  char ends[65];
} file_state;

static btc_status state_of(const char *path, file_state *out, btc_error *err) {
  struct stat s;
  btc_sha256 sha;
  uint8_t *buffer = btc_alloc(END_BYTES, 1), digest[32];
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  btc_status st = BTC_OK;
  const bool seen = buffer && fd >= 0 && fstat(fd, &s) == 0;
  if (!seen)
    st = btc_fail(err, buffer ? BTC_ERR_IO : BTC_ERR_NOMEM, "cannot read '%s': %s", path, strerror(buffer ? errno : ENOMEM));
  if (seen) {
    *out = (file_state){.size = s.st_size, .changed_ns = s.st_mtim.tv_sec * INT64_C(1000000000) + s.st_mtim.tv_nsec};
    btc_sha256_init(&sha);
    for (int end = 0; end < 2; end++) {
      off_t at = end && s.st_size > END_BYTES ? s.st_size - END_BYTES : 0;
      ssize_t n = pread(fd, buffer, END_BYTES, at);
      if (n > 0) btc_sha256_update(&sha, buffer, (size_t)n);
    }
    btc_sha256_final(&sha, digest);
    for (int i = 0; i < 32; i++) snprintf(out->ends + (ptrdiff_t)2 * i, 3, "%02x", digest[i]);
  }
  if (fd >= 0) close(fd);
  free(buffer);
  return st;
}

static btc_status is_known(btc_index *x, const char *name, const file_state *f, bool *known, btc_error *err) {
  sqlite3_stmt *s = NULL;
  btc_status st = btc_sql_prepare(x->db, "SELECT 1 FROM files WHERE name=? AND size=? AND changed_ns=? AND ends=?", &s, err);
  if (st == BTC_OK) {
    btc_sql_bind(s, 1, name);
    sqlite3_bind_int64(s, 2, f->size);
    sqlite3_bind_int64(s, 3, f->changed_ns);
    btc_sql_bind(s, 4, f->ends);
    st = btc_sql_step(s, known, err);
  }
  sqlite3_finalize(s);
  return st;
}

static btc_status with_name(btc_index *x, const char *statement, const char *name, btc_error *err) {
  sqlite3_stmt *s = NULL;
  btc_status st = btc_sql_prepare(x->db, statement, &s, err);
  if (st == BTC_OK) {
    btc_sql_bind(s, 1, name);
    st = btc_sql_step(s, NULL, err);
  }
  sqlite3_finalize(s);
  return st;
}

static btc_status forget(btc_index *x, const char *name, btc_error *err) {
  btc_status st = with_name(
      x, "INSERT INTO captions(captions, rowid, caption) SELECT 'delete', n, caption FROM records WHERE file=?", name, err);
  if (st == BTC_OK) st = with_name(x, "DELETE FROM records WHERE file=?", name, err);
  return st == BTC_OK ? with_name(x, "DELETE FROM files WHERE name=?", name, err) : st;
}

static btc_status insert(sqlite3_stmt *record, sqlite3_stmt *caption, const char *name, const json_t *o, btc_error *err) {
  const json_t *changed = json_object_get(o, "changed"), *score = json_object_get(o, "score");
  const char *text = btc_results_text(o, "caption");
  btc_sql_bind(record, 1, name);
  btc_sql_bind(record, 2, btc_results_text(o, "id"));
  btc_sql_bind(record, 3, btc_results_text(o, "status"));
  if (json_is_boolean(changed))
    sqlite3_bind_int(record, 4, json_is_true(changed));
  else
    sqlite3_bind_null(record, 4);
  if (json_is_number(score))
    sqlite3_bind_double(record, 5, json_number_value(score));
  else
    sqlite3_bind_null(record, 5);
  btc_sql_bind(record, 6, text);
  btc_status st = btc_sql_step(record, NULL, err);
  sqlite3_bind_int64(caption, 1, sqlite3_last_insert_rowid(sqlite3_db_handle(record)));
  btc_sql_bind(caption, 2, text);
  return st == BTC_OK ? btc_sql_step(caption, NULL, err) : st;
}

static btc_status read_records(btc_index *x, const char *path, const char *name, bool (*cancelled)(void), btc_index_counts *out,
                               btc_error *err) {
  sqlite3_stmt *record = NULL, *caption = NULL;
  btc_results *r = NULL;
  json_t *o = NULL;
  btc_status st = btc_results_open_file(path, &r, err);
  if (st == BTC_OK)
    st = btc_sql_prepare(x->db, "INSERT INTO records(file,id,status,changed,score,caption) VALUES(?,?,?,?,?,?)", &record, err);
  if (st == BTC_OK) st = btc_sql_prepare(x->db, "INSERT INTO captions(rowid,caption) VALUES(?,?)", &caption, err);
  while (st == BTC_OK && (st = btc_results_next(r, &o, err)) == BTC_OK && o) {
    st = insert(record, caption, name, o, err);
    json_decref(o);
    if (st == BTC_OK && cancelled && cancelled()) st = btc_fail(err, BTC_ERR_CANCELLED, "interrupted");
  }
  if (r) out->bad += btc_results_bad(r, NULL);
  sqlite3_finalize(record);
  sqlite3_finalize(caption);
  btc_results_close(&r);
  return st;
}

static btc_status remember(btc_index *x, const char *name, const file_state *f, btc_error *err) {
  sqlite3_stmt *s = NULL;
  btc_status st = btc_sql_prepare(x->db, "INSERT INTO files(name,size,changed_ns,ends) VALUES(?,?,?,?)", &s, err);
  if (st == BTC_OK) {
    btc_sql_bind(s, 1, name);
    sqlite3_bind_int64(s, 2, f->size);
    sqlite3_bind_int64(s, 3, f->changed_ns);
    btc_sql_bind(s, 4, f->ends);
    st = btc_sql_step(s, NULL, err);
  }
  sqlite3_finalize(s);
  return st;
}

/* The state is taken before the file is read: what is written meanwhile is read again next time. */
static btc_status update_file(btc_index *x, const char *path, bool (*cancelled)(void), btc_index_counts *out, btc_error *err) {
  const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
  file_state f = {0};
  bool known = false;
  btc_status st = state_of(path, &f, err);
  if (st == BTC_OK) st = btc_sql_run(x->db, "BEGIN IMMEDIATE", err);
  if (st != BTC_OK) return st;
  st = is_known(x, name, &f, &known, err);
  if (st == BTC_OK && !known) {
    st = forget(x, name, err);
    if (st == BTC_OK) st = read_records(x, path, name, cancelled, out, err);
    if (st == BTC_OK) st = remember(x, name, &f, err);
    out->read++;
  }
  if (st == BTC_OK) return btc_sql_run(x->db, "COMMIT", err);
  btc_sql_run(x->db, "ROLLBACK", NULL);
  return st;
}

/* Files that are no longer there. */
static btc_status forget_gone(btc_index *x, const btc_results_files *files, btc_error *err) {
  for (bool again = true; again;) {
    char gone[NAME_MAX + 1] = "";
    sqlite3_stmt *s = NULL;
    bool row = false;
    btc_status st = btc_sql_prepare(x->db, "SELECT name FROM files", &s, err);
    while (st == BTC_OK && !*gone && (st = btc_sql_step(s, &row, err)) == BTC_OK && row) {
      bool there = false;
      for (size_t i = 0; i < files->n && !there; i++) {
        const char *slash = strrchr(files->path[i], '/');
        there = strcmp(slash ? slash + 1 : files->path[i], btc_sql_text(s, 0)) == 0;
      }
      if (!there) snprintf(gone, sizeof gone, "%s", btc_sql_text(s, 0));
    }
    sqlite3_finalize(s);
    again = *gone != 0;
    if (st == BTC_OK && again) st = forget(x, gone, err);
    if (st != BTC_OK) return st;
  }
  return BTC_OK;
}

btc_status btc_index_update(btc_index *x, const btc_results_files *files, bool (*cancelled)(void), btc_index_counts *out,
                            btc_error *err) {
  *out = (btc_index_counts){.files = files->n, .rebuilt = x->rebuilt};
  btc_status st = BTC_OK;
  for (size_t i = 0; i < files->n && st == BTC_OK; i++) st = update_file(x, files->path[i], cancelled, out, err);
  if (st == BTC_OK) st = btc_sql_run(x->db, "BEGIN IMMEDIATE", err);
  if (st == BTC_OK) st = forget_gone(x, files, err);
  if (st == BTC_OK) st = btc_sql_run(x->db, "COMMIT", err);
  if (st == BTC_OK) out->records = (uint64_t)number(x->db, "SELECT count(*) FROM records");
  return st;
}
