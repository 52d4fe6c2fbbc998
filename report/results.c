/* See results.h. */
#define _GNU_SOURCE
#include "results.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "manifest/manifest_lines.h"

struct btc_results {
  char *const *path;
  const char *one;
  size_t n, next;
  int fd;
  btc_lines lines;
  uint64_t bad;
  char first[320];
};

/* ---- which files ---- */

void btc_results_files_free(btc_results_files *f) {
  for (size_t i = 0; i < f->n; i++) free(f->path[i]);
  free(f->path);
  free(f->folder);
  *f = (btc_results_files){0};
}

static btc_status no_memory(btc_error *err) {
  return btc_fail(err, BTC_ERR_NOMEM, "no memory for the list of result files");
}

static btc_status add(btc_results_files *f, char *path, btc_error *err) {
  if (f->n == BTC_RESULTS_MAX_FILES) {
    free(path);
    return btc_fail(err, BTC_ERR_LIMIT, "'%s' has more than %d result files", f->folder, BTC_RESULTS_MAX_FILES);
  }
  char **grown = path && f->n % 64 == 0 ? btc_realloc(f->path, f->n + 64, sizeof *grown) : f->path;
  if (!path || !grown) {
    free(path);
    return no_memory(err);
  }
  f->path = grown;
  f->path[f->n++] = path;
  return BTC_OK;
}

static btc_status add_if_there(btc_results_files *f, const char *name, btc_error *err) {
  struct stat s;
  char *path = btc_path_join(f->folder, name);
  if (path && (stat(path, &s) != 0 || !S_ISREG(s.st_mode))) {
    free(path);
    return BTC_OK;
  }
  return add(f, path, err);
}

static int by_name(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool ends_with(const char *s, const char *end) {
  size_t n = strlen(s), k = strlen(end);
  return n > k && strcmp(s + n - k, end) == 0;
}

static btc_status add_matching(btc_results_files *f, const char *prefix, btc_error *err) {
  DIR *d = opendir(f->folder);
  if (!d) return btc_fail(err, BTC_ERR_IO, "cannot read the folder '%s': %s", f->folder, strerror(errno));
  btc_status st = BTC_OK;
  for (struct dirent *e; st == BTC_OK && (e = readdir(d));)
    if (*e->d_name != '.' && strncmp(e->d_name, prefix, strlen(prefix)) == 0 && ends_with(e->d_name, ".jsonl"))
      st = add_if_there(f, e->d_name, err);
  closedir(d);
  if (f->n) qsort(f->path, f->n, sizeof *f->path, by_name);
  return st;
}

static btc_status in_folder(btc_results_files *f, btc_error *err) {
  btc_status st = add_if_there(f, "results.jsonl", err);
  bool whole = f->n > 0;
  if (st == BTC_OK && !whole) st = add_matching(f, "part-", err);
  if (st == BTC_OK && f->n) st = add_if_there(f, "errors.jsonl", err);
  if (st == BTC_OK && !f->n) st = add_matching(f, "", err);
  if (st == BTC_OK && !f->n) st = btc_fail(err, BTC_ERR_FORMAT, "'%s' holds no result records (*.jsonl)", f->folder);
  return st;
}

btc_status btc_results_find(const char *where, btc_results_files *out, btc_error *err) {
  struct stat s;
  *out = (btc_results_files){0};
  if (stat(where, &s) != 0) {
    bool missing = errno == ENOENT || errno == ENOTDIR;
    return btc_fail(err, missing ? BTC_ERR_NOT_FOUND : BTC_ERR_IO, "cannot open '%s': %s", where, strerror(errno));
  }
  const char *slash = strrchr(where, '/');
  bool folder = S_ISDIR(s.st_mode);
  out->folder = folder  ? btc_strdup(where)
                : slash ? btc_strndup(where, slash == where ? 1 : (size_t)(slash - where))
                        : btc_strdup(".");
  if (!out->folder) return no_memory(err);
  btc_status st;
  if (folder) {
    st = in_folder(out, err);
  } else if (ends_with(where, ".gpkg")) {
    char *path = NULL;
    if (asprintf(&path, "%.*s.jsonl", (int)(strlen(where) - 5), where) < 0) path = NULL;
    if (path && access(path, R_OK) != 0) {
      st = btc_fail(err, BTC_ERR_NOT_FOUND, "'%s': its records should be beside it, in '%s': %s", where, path, strerror(errno));
      free(path);
    } else {
      st = add(out, path, err);
    }
  } else {
    st = add(out, btc_strdup(where), err);
  }
  if (st != BTC_OK) btc_results_files_free(out);
  return st;
}

/* ---- records ---- */

static btc_status open_at(btc_results *r, btc_error *err) {
  const char *path = r->one ? r->one : r->path[r->next];
  struct stat s;
  r->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO is refused, not waited for */
  if (r->fd < 0) return btc_fail(err, BTC_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  if (fstat(r->fd, &s) != 0 || !S_ISREG(s.st_mode)) return btc_fail(err, BTC_ERR_IO, "'%s' is not a regular file", path);
  return btc_lines_init(&r->lines, r->fd, BTC_RESULTS_MAX_LINE) ? BTC_OK
                                                                : btc_fail(err, BTC_ERR_NOMEM, "no memory to read '%s'", path);
}

static btc_status open_list(char *const *path, const char *one, size_t n, btc_results **out, btc_error *err) {
  btc_results *r = *out = btc_alloc_zero(1, sizeof *r);
  if (!r) return btc_fail(err, BTC_ERR_NOMEM, "no memory for reading records");
  *r = (btc_results){.path = path, .one = one, .n = n, .fd = -1};
  btc_status st = open_at(r, err);
  if (st != BTC_OK) btc_results_close(out);
  return st;
}

btc_status btc_results_open(const btc_results_files *files, btc_results **out, btc_error *err) {
  return open_list(files->path, NULL, files->n, out, err);
}

btc_status btc_results_open_file(const char *path, btc_results **out, btc_error *err) {
  return open_list(NULL, path, 1, out, err);
}

static void shut(btc_results *r) {
  if (r->lines.buffer) btc_lines_free(&r->lines);
  r->lines = (btc_lines){0};
  if (r->fd >= 0) close(r->fd);
  r->fd = -1;
}

void btc_results_close(btc_results **r) {
  if (!*r) return;
  shut(*r);
  free(*r);
  *r = NULL;
}

const char *btc_results_text(const json_t *record, const char *key) {
  const char *s = json_string_value(json_object_get(record, key));
  return s ? s : "";
}

static void count_bad(btc_results *r, uint64_t line, const char *why) {
  if (r->bad++ == 0)
    snprintf(r->first, sizeof r->first, "'%.200s' line %llu: %.80s", r->one ? r->one : r->path[r->next], (unsigned long long)line,
             why);
}

static const btc_json_limits line_limits = {.max_bytes = BTC_RESULTS_MAX_LINE, .max_values = 200000};

static json_t *record_of(const btc_record *line) {
  json_t *o;
  if (btc_json_parse(line->text, line->len, "record", &line_limits, &o, NULL) != BTC_OK) return NULL;
  if (json_is_string(json_object_get(o, "id")) && json_is_string(json_object_get(o, "status"))) return o;
  json_decref(o);
  return NULL;
}

btc_status btc_results_next(btc_results *r, json_t **record, btc_error *err) {
  *record = NULL;
  for (;;) {
    btc_record line;
    if (r->fd < 0) return BTC_OK;
    btc_lines_result got = btc_lines_next(&r->lines, &line);
    if (got == BTC_LINES_FAILED)
      return btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", r->one ? r->one : r->path[r->next], strerror(errno));
    if (got == BTC_LINES_END) {
      shut(r);
      if (++r->next >= r->n) return BTC_OK;
      btc_status st = open_at(r, err);
      if (st != BTC_OK) return st;
      continue;
    }
    if (got == BTC_LINES_OK && (*record = record_of(&line))) return BTC_OK;
    count_bad(r, line.line, got == BTC_LINES_OK ? "no result record" : line.problem);
  }
}

uint64_t btc_results_bad(const btc_results *r, const char **first) {
  if (first) *first = r->first;
  return r->bad;
}
