/* Places in a manifest, and single items as texts: what the queue needs of manifests. See manifest.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "manifest_state.h"

/* ---- places ---- */

uint64_t btc_manifest_index(const btc_manifest *m) {
  return m->items;
}

uint64_t btc_manifest_bytes(const btc_manifest *m) {
  return m->format == FORMAT_FOLDERS ? 0 : btc_lines_offset(&m->lines);
}

btc_status btc_manifest_tell(const btc_manifest *m, btc_manifest_pos *pos, btc_error *err) {
  if (!m->seekable) return btc_fail(err, BTC_ERR_ARG, "'%s' can be read only once", m->path);
  uint64_t a = m->lines.line, b = m->format == FORMAT_FOLDERS ? 0 : btc_lines_offset(&m->lines);
  if (m->format == FORMAT_FOLDERS) a = m->next_before, b = m->next_after;
  snprintf(pos->text, sizeof pos->text, "%" PRIu64 ":%" PRIu64 ":%" PRIu64, m->items, a, b); /* at most 62 bytes */
  return BTC_OK;
}

/* Three decimal numbers of at most 18 digits with colons between, and nothing else. */
static bool parse_pos(const char *s, uint64_t part[3]) {
  for (int i = 0; i < 3; i++) {
    size_t digits = strspn(s, "0123456789");
    if (!digits || digits > 18 || s[digits] != (i < 2 ? ':' : 0)) return false;
    part[i] = strtoull(s, NULL, 10);
    s += digits + 1;
  }
  return true;
}

/* A line begins behind a newline, or where the file ends. */
static bool at_line_start(const btc_manifest *m, uint64_t offset) {
  char before = 0, here;
  if (offset <= m->begin_bytes) return offset == m->begin_bytes;
  if (pread(m->fd, &before, 1, (off_t)offset - 1) != 1) return false;
  return before == '\n' || pread(m->fd, &here, 1, (off_t)offset) == 0;
}

static btc_status seek_lines(btc_manifest *m, const char *pos, const uint64_t part[3], btc_error *err) {
  uint64_t line = part[1], offset = part[2];
  if (!part[0] && offset <= m->begin_bytes) line = m->begin_line, offset = m->begin_bytes;
  if (line < m->begin_line || part[0] > BTC_MANIFEST_MAX_ITEMS || !at_line_start(m, offset))
    return btc_fail(err, BTC_ERR_ARG, "'%s': the place %.64s is not one of this manifest", m->path, pos);
  if (!btc_lines_seek(&m->lines, offset, line)) return btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", m->path, strerror(errno));
  return BTC_OK;
}

btc_status btc_manifest_seek(btc_manifest *m, const char *pos, btc_error *err) {
  uint64_t part[3] = {0};
  if (!m->seekable || !m->duplicates_too) return btc_fail(err, BTC_ERR_ARG, "'%s' can be read only from its beginning", m->path);
  if (*pos && !parse_pos(pos, part)) return btc_fail(err, BTC_ERR_ARG, "'%s': '%.64s' is not a place in a manifest", m->path, pos);
  btc_status st = BTC_OK;
  if (m->format != FORMAT_FOLDERS) {
    st = seek_lines(m, pos, part, err);
  } else if (part[1] > m->before.n || part[2] > m->after.n || part[0] > part[1] + part[2] || part[0] < part[1] ||
             part[0] < part[2]) {
    st = btc_fail(err, BTC_ERR_ARG, "'%s': the place %.64s is not one of this manifest", m->path, pos);
  } else {
    m->next_before = (size_t)part[1];
    m->next_after = (size_t)part[2];
  }
  if (st != BTC_OK) return st;
  m->items = part[0];
  m->ended = false;
  return BTC_OK;
}

btc_status btc_manifest_skip(btc_manifest *m, uint64_t n, uint64_t *skipped, btc_error *err) {
  *skipped = 0;
  if (!m->duplicates_too) return btc_fail(err, BTC_ERR_ARG, "'%s': items that are passed over would not be compared", m->path);
  for (; *skipped < n && !m->ended; ++*skipped) {
    const char *name;
    int order;
    btc_record r;
    if (m->format == FORMAT_FOLDERS) {
      m->ended = !btc_manifest_next_names(m, &name, &order);
      if (m->ended) break;
      continue;
    }
    btc_lines_result got = m->format == FORMAT_CSV ? btc_lines_next_csv(&m->lines, &r) : btc_lines_next(&m->lines, &r);
    m->ended = got == BTC_LINES_END || got == BTC_LINES_FAILED;
    if (got == BTC_LINES_FAILED) return btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", m->path, strerror(errno));
    if (m->ended) break;
    if (m->items == BTC_MANIFEST_MAX_ITEMS)
      return btc_fail(err, BTC_ERR_LIMIT, "'%s': more than %d items", m->path, BTC_MANIFEST_MAX_ITEMS);
    m->items++;
  }
  return BTC_OK;
}

void btc_manifest_mark_duplicate(btc_manifest *m, btc_manifest_item *item) {
  item->duplicate = true;
  btc_manifest_bad(m, item, "the id '%.128s' was used before", m->id);
}

bool btc_manifest_is_folder(const btc_manifest *m) {
  return m->format == FORMAT_FOLDERS;
}

btc_status btc_manifest_folder_sha256(const btc_manifest *m, char hex[65], btc_error *err) {
  if (m->format != FORMAT_FOLDERS) return btc_fail(err, BTC_ERR_ARG, "'%s' is not a folder", m->path);
  btc_sha256 hash;
  uint8_t digest[32];
  btc_sha256_init(&hash);
  for (int side = 0; side < 2; side++) {
    const btc_names *l = side ? &m->after : &m->before;
    for (size_t i = 0; i < l->n; i++) {
      const char *name = btc_names_at(l, i);
      btc_sha256_update(&hash, side ? "B/" : "A/", 2);
      btc_sha256_update(&hash, name, strlen(name) + 1);
    }
  }
  btc_sha256_final(&hash, digest);
  for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
  return BTC_OK;
}

/* ---- one JSON text ---- */

static btc_status reader_for_texts(btc_manifest **out, const char *dir, btc_error *err) {
  btc_manifest *m = *out;
  if (!m) {
    *out = m = btc_alloc_zero(1, sizeof *m);
    if (!m) {
      btc_fail(err, BTC_ERR_NOMEM, "out of memory");
      return BTC_ERR_NOMEM;
    }
    m->fd = -1;
    m->duplicates_too = true;
    m->path = btc_strdup("item");
    m->before_path = btc_alloc(PATH_MAX, 1);
    m->after_path = btc_alloc(PATH_MAX, 1);
  }
  if (!m->dir || strcmp(m->dir, dir) != 0) {
    free(m->dir);
    m->dir = btc_strdup(dir);
  }
  if (m->path && m->before_path && m->after_path && m->dir) return BTC_OK;
  btc_manifest_close(out);
  btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  return BTC_ERR_NOMEM;
}

btc_status btc_manifest_parse_line(btc_manifest **reader, const char *text, size_t len, uint64_t line, const char *dir,
                                   btc_manifest_item *item, btc_error *err) {
  btc_status st = reader_for_texts(reader, dir, err);
  if (st != BTC_OK) return st;
  btc_manifest *m = *reader;
  *item = (btc_manifest_item){.id = m->id, .line = line};
  m->own_id = false;
  m->id[0] = 0;
  if (line) snprintf(m->id, sizeof m->id, "%" PRIu64, line);
  if (len > BTC_MANIFEST_MAX_LINE) {
    btc_manifest_bad(m, item, "the line is longer than 1 MiB");
    return BTC_OK;
  }
  free(m->text);
  m->text = btc_alloc(len + 1, 1);
  if (!m->text) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  memcpy(m->text, text, len);
  m->text[len] = 0;
  st = btc_manifest_json_item(m, &(btc_record){.line = line, .text = m->text, .len = len}, item, err);
  if (st == BTC_OK && item->meta) /* a single text may span lines; outside strings a newline is a blank, inside it is no JSON */
    for (char *c = m->meta; *c; c++)
      if (*c == '\n' || *c == '\r') *c = ' ';
  return st;
}

/* ---- an item as text ---- */

static int set_path(json_t *o, const char *key, const char *path, const char *base) {
  char *joined = base && path[0] != '/' ? btc_path_join(base, path) : btc_strdup(path);
  int failed = !joined || json_object_set_new(o, key, json_string(joined)) != 0;
  free(joined);
  return failed;
}

static json_t *item_object(const btc_manifest_item *item, const char *base) {
  json_t *o = json_object();
  int failed = json_object_set_new(o, "id", json_string(item->id));
  if (item->kind != BTC_MANIFEST_ITEM) {
    char problem[400];
    int n = item->line ? snprintf(problem, sizeof problem, "line %" PRIu64 ": ", item->line) : 0;
    snprintf(problem + n, sizeof problem - (size_t)n, "%s", item->problem);
    failed |= json_object_set_new(o, "problem", json_string(problem));
  } else {
    failed |= set_path(o, "before", item->before, base) | set_path(o, "after", item->after, base);
    if (item->prompt) failed |= json_object_set_new(o, "prompt", json_string(item->prompt));
    const int64_t *w = item->window;
    if (item->has_window)
      failed |= json_object_set_new(o, "window",
                                    json_pack("[I,I,I,I]", (json_int_t)w[0], (json_int_t)w[1], (json_int_t)w[2], (json_int_t)w[3]));
  }
  if (!failed) return o;
  json_decref(o);
  return NULL;
}

char *btc_manifest_item_text(const btc_manifest_item *item, const char *base) {
  json_t *o = item_object(item, base);
  char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
  json_decref(o);
  if (!text || !item->meta || item->kind != BTC_MANIFEST_ITEM) return text;
  size_t len = strlen(text), meta = strlen(item->meta);
  char *wider = btc_realloc(text, len + meta + 10, 1);
  if (!wider) {
    free(text);
    return NULL;
  }
  memcpy(wider + len - 1, ",\"meta\":", 8); /* numbers in meta stay as they were written */
  memcpy(wider + len + 7, item->meta, meta);
  memcpy(wider + len + 7 + meta, "}", 2);
  return wider;
}
