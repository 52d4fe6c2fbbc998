/* Manifests: see manifest.h. Lines come from manifest_lines.c, folders and the ids seen so far from manifest_pairs.c. */
#define _GNU_SOURCE
#include "manifest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "manifest_state.h"

#define MAX_PIXELS 2147483647 /* largest window coordinate */

static const char *const column_names[COLUMNS] = {"before", "after", "id"};

/* ---- one item ---- */

static bool is_utf8(const char *s) {
  size_t len = strlen(s);
  return btc_utf8_valid(s, len) == len;
}

void btc_manifest_bad(btc_manifest *m, btc_manifest_item *item, const char *fmt, ...) {
  if (item->kind == BTC_MANIFEST_BAD) return;
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(m->problem, sizeof m->problem, fmt, ap);
  va_end(ap);
  bool utf8 = is_utf8(m->problem); /* quoted text may have been cut inside a character */
  for (char *c = m->problem; *c; c++)
    if ((unsigned char)*c < 0x20 || *c == 0x7f || (!utf8 && (unsigned char)*c >= 0x80)) *c = '?';
  item->kind = BTC_MANIFEST_BAD;
  item->problem = m->problem;
}

static bool has_control(const char *s) {
  for (; *s; s++)
    if ((unsigned char)*s < 0x20 || *s == 0x7f) return true;
  return false;
}

static void set_id(btc_manifest *m, btc_manifest_item *item, const char *id) {
  size_t len = strlen(id);
  m->own_id = len && len <= BTC_MANIFEST_MAX_ID && !has_control(id) && is_utf8(id);
  if (m->own_id)
    memcpy(m->id, id, len + 1);
  else
    btc_manifest_bad(m, item, "the id must have 1 to %d bytes of UTF-8 without control characters", BTC_MANIFEST_MAX_ID);
}

/* The path from the working directory, into a buffer of PATH_MAX bytes. */
static const char *resolve(btc_manifest *m, btc_manifest_item *item, const char *key, const char *path, char *out) {
  bool alone = path[0] == '/' || !m->dir[0];
  int n = snprintf(out, PATH_MAX, "%s%s%s", alone ? "" : m->dir, alone ? "" : "/", path);
  if (!path[0])
    btc_manifest_bad(m, item, "'%s' is empty", key);
  else if (n < 0 || n >= PATH_MAX)
    btc_manifest_bad(m, item, "the path '%s' is too long", key);
  return out;
}

/* ---- JSON lines ---- */

/* Behind the string that begins at s. The text is valid JSON. */
static const char *skip_string(const char *s) {
  for (s++; *s != '"'; s++)
    if (*s == '\\') s++;
  return s + 1;
}

/* Where the value of "meta" stands in the line and how long it is; so numbers in it are copied as written. NULL when the key is
 * written with escapes. */
static const char *find_meta(const char *s, size_t *len) {
  int depth = 0;
  const char *value = NULL;
  for (; *s; s++) {
    if (*s == '"') {
      bool key = depth == 1 && strncmp(s, "\"meta\"", 6) == 0;
      s = skip_string(s);
      s += strspn(s, " \t\r\n");
      if (key && *s == ':') value = s + 1 + strspn(s + 1, " \t\r\n");
      s--;
    } else if (*s == '{' || *s == '[') {
      depth++;
    } else if (*s == '}' || *s == ']') {
      if (--depth == 1 && value && value < s) {
        *len = (size_t)(s - value) + 1;
        return value;
      }
    }
  }
  return NULL;
}

static const char *json_text(btc_manifest *m, btc_manifest_item *item, const char *key, bool required) {
  const json_t *v = json_object_get(m->doc, key);
  if (json_is_string(v)) return json_string_value(v);
  if (required && !v)
    btc_manifest_bad(m, item, "'%s' is missing", key);
  else if (required || (v && !json_is_null(v)))
    btc_manifest_bad(m, item, "'%s' is not a string", key);
  return NULL;
}

static void read_window(btc_manifest *m, btc_manifest_item *item) {
  const json_t *w = json_object_get(m->doc, "window");
  if (!w || json_is_null(w)) return;
  bool good = json_is_array(w) && json_array_size(w) == 4;
  for (size_t i = 0; i < 4 && good; i++) {
    const json_t *v = json_array_get(w, i);
    item->window[i] = json_integer_value(v);
    good = json_is_integer(v) && item->window[i] >= (i < 2 ? 0 : 1) && item->window[i] <= MAX_PIXELS;
  }
  if (!good) btc_manifest_bad(m, item, "'window' must be [x, y, width, height] in pixels");
  item->has_window = good;
}

static btc_status read_meta(btc_manifest *m, btc_manifest_item *item, const char *line, btc_error *err) {
  const json_t *v = json_object_get(m->doc, "meta");
  if (!v || json_is_null(v)) return BTC_OK;
  if (!json_is_object(v)) {
    btc_manifest_bad(m, item, "'meta' is not an object");
    return BTC_OK;
  }
  size_t len = 0;
  const char *text = find_meta(line, &len);
  free(m->meta);
  m->meta = text ? btc_strndup(text, len) : json_dumps(v, JSON_COMPACT);
  item->meta = m->meta;
  return m->meta ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", m->path);
}

static void check_keys(btc_manifest *m, btc_manifest_item *item) {
  static const char *const known[] = {"id", "before", "after", "prompt", "window", "meta"};
  const char *key;
  json_t *v;
  json_object_foreach(m->doc, key, v) {
    size_t i = 0;
    while (i < sizeof known / sizeof known[0] && strcmp(known[i], key) != 0) i++;
    if (i == sizeof known / sizeof known[0]) btc_manifest_bad(m, item, "unknown key '%.64s'", key);
  }
}

btc_status btc_manifest_json_item(btc_manifest *m, const btc_record *r, btc_manifest_item *item, btc_error *err) {
  json_error_t why;
  json_decref(m->doc);
  m->doc = json_loadb(r->text, r->len, JSON_REJECT_DUPLICATES, &why);
  if (!m->doc && json_error_code(&why) == json_error_out_of_memory)
    return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", m->path);
  if (!m->doc)
    btc_manifest_bad(m, item, "not valid JSON: %s", why.text);
  else if (!json_is_object(m->doc))
    btc_manifest_bad(m, item, "not a JSON object");
  if (item->kind == BTC_MANIFEST_BAD) return BTC_OK;
  const char *id = json_text(m, item, "id", false);
  if (id) set_id(m, item, id);
  check_keys(m, item);
  const char *before = json_text(m, item, "before", true), *after = json_text(m, item, "after", true);
  item->prompt = json_text(m, item, "prompt", false);
  read_window(m, item);
  if (before) item->before = resolve(m, item, "before", before, m->before_path);
  if (after) item->after = resolve(m, item, "after", after, m->after_path);
  return read_meta(m, item, r->text, err);
}

/* errno says why, unless the caller asked to stop. */
static btc_status no_reading(const btc_manifest *m, const char *what, btc_error *err) {
  if (m->cancel && *m->cancel) return btc_fail(err, BTC_ERR_CANCELLED, "interrupted");
  return btc_fail(err, errno == ENOENT || errno == ENOTDIR ? BTC_ERR_NOT_FOUND : BTC_ERR_IO, "cannot %s '%s': %s", what, m->path,
                  strerror(errno));
}

/* ---- CSV ---- */

static btc_status csv_header(btc_manifest *m, btc_error *err) {
  btc_record r;
  btc_lines_result got = btc_lines_next_csv(&m->lines, &r);
  if (got == BTC_LINES_FAILED) return no_reading(m, "read", err);
  for (int c = 0; c < COLUMNS; c++) m->column[c] = -1;
  bool good = got == BTC_LINES_OK;
  for (size_t f = 0; good && f < r.n_fields; f++) {
    int c = 0;
    while (c < COLUMNS && strcmp(column_names[c], r.field[f]) != 0) c++;
    good = c < COLUMNS && m->column[c] < 0;
    if (good) m->column[c] = (int)f;
  }
  if (!good || m->column[COLUMN_BEFORE] < 0 || m->column[COLUMN_AFTER] < 0)
    return btc_fail(err, BTC_ERR_FORMAT, "'%s': a CSV manifest begins with the line before,after or before,after,id", m->path);
  return BTC_OK;
}

static void csv_item(btc_manifest *m, const btc_record *r, btc_manifest_item *item) {
  size_t want = m->column[COLUMN_ID] < 0 ? 2 : 3;
  if (want == 3 && (size_t)m->column[COLUMN_ID] < r->n_fields && r->field[m->column[COLUMN_ID]][0])
    set_id(m, item, r->field[m->column[COLUMN_ID]]);
  if (r->n_fields != want) {
    btc_manifest_bad(m, item, "%zu fields, the header has %zu", r->n_fields, want);
    return;
  }
  for (size_t f = 0; f < want; f++)
    if (!is_utf8(r->field[f])) btc_manifest_bad(m, item, "not valid UTF-8");
  item->before = resolve(m, item, "before", r->field[m->column[COLUMN_BEFORE]], m->before_path);
  item->after = resolve(m, item, "after", r->field[m->column[COLUMN_AFTER]], m->after_path);
}

/* ---- folders ---- */

bool btc_manifest_next_names(btc_manifest *m, const char **name, int *order) {
  bool a = m->next_before < m->before.n, b = m->next_after < m->after.n;
  if (!a && !b) return false;
  const char *x = a ? btc_names_at(&m->before, m->next_before) : NULL, *y = b ? btc_names_at(&m->after, m->next_after) : NULL;
  *order = !a ? 1 : !b ? -1 : strcmp(x, y);
  *name = *order <= 0 ? x : y;
  if (*order <= 0) m->next_before++;
  if (*order >= 0) m->next_after++;
  m->items++;
  return true;
}

static bool next_pair(btc_manifest *m, btc_manifest_item *item) {
  const char *name;
  int order;
  if (!btc_manifest_next_names(m, &name, &order)) return false;
  item->line = m->items;
  snprintf(m->id, sizeof m->id, "%" PRIu64, item->line);
  if (!is_utf8(name))
    btc_manifest_bad(m, item, "a file name that is not valid UTF-8");
  else
    set_id(m, item, name);
  if (order) btc_manifest_bad(m, item, "there is no '%s' of this name", order < 0 ? "B" : "A");
  char relative[4 * NAME_MAX]; /* some file systems count characters */
  snprintf(relative, sizeof relative, "A/%s", name);
  item->before = resolve(m, item, "before", relative, m->before_path);
  relative[0] = 'B';
  item->after = resolve(m, item, "after", relative, m->after_path);
  return true;
}

/* ---- opening ---- */

static btc_status open_folders(btc_manifest *m, btc_error *err) {
  btc_status st = BTC_OK;
  for (int side = 0; side < 2 && st == BTC_OK; side++) {
    const char *name = side ? "B" : "A";
    char *path = btc_path_join(m->dir, name);
    if (!path) return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", m->path);
    st = btc_names_read(side ? &m->after : &m->before, path, BTC_MANIFEST_MAX_ITEMS, err);
    if (st == BTC_ERR_NOT_FOUND)
      st =
          btc_fail(err, BTC_ERR_FORMAT, "'%s': a folder as manifest needs folders A and B inside; there is no '%s'", m->path, name);
    free(path);
  }
  return st;
}

/* A first line without braces that names both columns can only be a header. */
static bool looks_like_csv(btc_manifest *m) {
  size_t len = strlen(m->path);
  if (len > 4 && strcasecmp(m->path + len - 4, ".csv") == 0) return true;
  const char *line = btc_lines_peek(&m->lines, &len);
  return line && !memchr(line, '{', len) && memmem(line, len, "before", 6) && memmem(line, len, "after", 5) &&
         memchr(line, ',', len);
}

/* A picture or an archive given by mistake: a thousand bad lines would say less than one message. */
static bool looks_binary(btc_manifest *m) {
  size_t len;
  const char *line = btc_lines_peek(&m->lines, &len);
  if (!line || !len || line[0] == '{') return false;
  const size_t cut = len > BTC_MANIFEST_MAX_LINE ? 3 : 0; /* a line that is too long may end within a character */
  return memchr(line, 0, len) || btc_utf8_valid(line, len) < len - cut;
}

static btc_status open_lines(btc_manifest *m, btc_error *err) {
  if (!btc_lines_init(&m->lines, m->fd, BTC_MANIFEST_MAX_LINE)) return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", m->path);
  m->lines.cancel = m->cancel;
  if (looks_binary(m))
    return btc_fail(err, BTC_ERR_FORMAT, "'%s' is not a manifest: it begins with bytes that are no UTF-8 text", m->path);
  m->format = looks_like_csv(m) ? FORMAT_CSV : FORMAT_JSONL;
  btc_status st = m->format == FORMAT_CSV ? csv_header(m, err) : BTC_OK;
  m->begin_line = m->lines.line;
  m->begin_bytes = btc_lines_offset(&m->lines);
  return st;
}

/* Folder of a file's path: "" for the working directory. */
static char *folder_of(const char *path) {
  const char *slash = strrchr(path, '/');
  if (!slash) return btc_strdup("");
  return btc_strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

static btc_status open_source(btc_manifest *m, const char *path, const char *dir, btc_error *err) {
  bool in = strcmp(path, "-") == 0;
  m->path = btc_strdup(in ? "standard input" : path);
  m->before_path = btc_alloc(PATH_MAX, 1);
  m->after_path = btc_alloc(PATH_MAX, 1);
  if (!m->path || !m->before_path || !m->after_path) return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", path);
  m->fd = in ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
  struct stat sb;
  if (m->fd < 0 || fstat(m->fd, &sb) != 0) return no_reading(m, "open", err);
  bool folders = S_ISDIR(sb.st_mode);
  m->size = S_ISREG(sb.st_mode) ? sb.st_size : 0;
  m->seekable = !in && (folders || S_ISREG(sb.st_mode));
  m->dir = folders ? btc_strdup(path) : dir ? btc_strdup(dir) : in ? btc_strdup("") : folder_of(path);
  if (!m->dir) return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", path);
  m->format = FORMAT_FOLDERS;
  return folders ? open_folders(m, err) : open_lines(m, err);
}

btc_status btc_manifest_open(const char *path, const btc_manifest_options *options, btc_manifest **out, btc_error *err) {
  *out = NULL;
  btc_manifest *m = btc_alloc_zero(1, sizeof *m);
  if (!m) return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", path);
  m->fd = -1;
  m->strict = options && options->strict;
  m->duplicates_too = options && options->duplicates_too;
  m->cancel = options ? options->cancel : NULL;
  btc_status st = open_source(m, path, options ? options->dir : NULL, err);
  if (st != BTC_OK) btc_manifest_close(&m);
  *out = m;
  return st;
}

void btc_manifest_close(btc_manifest **manifest) {
  btc_manifest *m = *manifest;
  *manifest = NULL;
  if (!m) return;
  if (m->fd > STDIN_FILENO) close(m->fd);
  btc_lines_free(&m->lines);
  btc_names_free(&m->before);
  btc_names_free(&m->after);
  btc_id_set_free(&m->ids);
  json_decref(m->doc);
  free(m->before_path);
  free(m->after_path);
  free(m->meta);
  free(m->text);
  free(m->dir);
  free(m->path);
  free(m);
}

/* ---- reading ---- */

static btc_status next_line(btc_manifest *m, btc_manifest_item *item, btc_error *err) {
  btc_record r = {0};
  btc_lines_result got = m->format == FORMAT_CSV ? btc_lines_next_csv(&m->lines, &r) : btc_lines_next(&m->lines, &r);
  if (got == BTC_LINES_FAILED) return no_reading(m, "read", err);
  if (got == BTC_LINES_END) {
    item->kind = BTC_MANIFEST_END;
    return BTC_OK;
  }
  if (m->items == BTC_MANIFEST_MAX_ITEMS)
    return btc_fail(err, BTC_ERR_LIMIT, "'%s': more than %d items", m->path, BTC_MANIFEST_MAX_ITEMS);
  m->items++;
  item->line = r.line;
  snprintf(m->id, sizeof m->id, "%" PRIu64, r.line);
  if (got == BTC_LINES_BAD) {
    btc_manifest_bad(m, item, "%s", r.problem);
    return BTC_OK;
  }
  if (m->format == FORMAT_JSONL) return btc_manifest_json_item(m, &r, item, err);
  csv_item(m, &r, item);
  return BTC_OK;
}

/* Names of one folder are distinct already. A line number that stands for the id of a bad line claims nothing. */
static btc_status check_duplicate(btc_manifest *m, btc_manifest_item *item, btc_error *err) {
  if (m->duplicates_too || m->format == FORMAT_FOLDERS || (item->kind == BTC_MANIFEST_BAD && !m->own_id)) return BTC_OK;
  bool fresh;
  btc_status st = btc_id_set_add(&m->ids, m->id, BTC_MANIFEST_MAX_ITEMS, &fresh, err);
  if (st != BTC_OK) {
    btc_fail_prefix(err, "'%s'", m->path);
    return st;
  }
  if (!fresh) btc_manifest_mark_duplicate(m, item);
  return BTC_OK;
}

btc_status btc_manifest_next(btc_manifest *m, btc_manifest_item *item, btc_error *err) {
  *item = (btc_manifest_item){.id = m->id};
  m->own_id = false;
  if (m->ended) {
    item->kind = BTC_MANIFEST_END;
    return BTC_OK;
  }
  btc_status st = BTC_OK;
  if (m->format != FORMAT_FOLDERS)
    st = next_line(m, item, err);
  else if (!next_pair(m, item))
    item->kind = BTC_MANIFEST_END;
  if (st == BTC_OK && item->kind != BTC_MANIFEST_END) st = check_duplicate(m, item, err);
  if (st == BTC_OK && item->kind == BTC_MANIFEST_BAD && m->strict)
    st = btc_fail(err, BTC_ERR_FORMAT, "'%s' %s %" PRIu64 " (id '%.128s'): %s", m->path,
                  m->format == FORMAT_FOLDERS ? "pair" : "line", item->line, m->id, item->problem);
  m->ended = st != BTC_OK || item->kind == BTC_MANIFEST_END;
  return st;
}

double btc_manifest_progress(const btc_manifest *m) {
  if (m->ended) return 1;
  if (m->format == FORMAT_FOLDERS) {
    size_t total = m->before.n + m->after.n;
    return total ? (double)(m->next_before + m->next_after) / (double)total : 1;
  }
  if (!m->size) return -1;
  double done = (double)btc_lines_offset(&m->lines) / (double)m->size;
  return done < 1 ? done : 1;
}
