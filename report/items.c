/* See items.h. */
#define _GNU_SOURCE
#include "items.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "manifest/manifest.h"
#include "manifest/manifest_lines.h"
#include "sql.h"

struct btc_items {
  sqlite3 *db;
  sqlite3_stmt *find;
};

static btc_status keep(sqlite3_stmt *s, const btc_manifest_item *item, btc_error *err) {
  sqlite3_clear_bindings(s);
  btc_sql_bind(s, 1, item->id);
  btc_sql_bind(s, 2, item->before);
  btc_sql_bind(s, 3, item->after);
  for (int i = 0; item->has_window && i < 4; i++) sqlite3_bind_int64(s, 4 + i, item->window[i]);
  return btc_sql_step(s, NULL, err);
}

static btc_status load(btc_items *t, const char *manifest, btc_error *err) {
  const btc_manifest_options o = {.duplicates_too = true};
  btc_manifest *m = NULL;
  btc_manifest_item item = {0};
  sqlite3_stmt *s = NULL;
  btc_status st = btc_manifest_open(manifest, &o, &m, err);
  if (st == BTC_OK) st = btc_sql_prepare(t->db, "INSERT OR IGNORE INTO items VALUES(?,?,?,?,?,?,?)", &s, err);
  while (st == BTC_OK && (st = btc_manifest_next(m, &item, err)) == BTC_OK && item.kind != BTC_MANIFEST_END)
    if (item.kind == BTC_MANIFEST_ITEM) st = keep(s, &item, err);
  sqlite3_finalize(s);
  if (m) btc_manifest_close(&m);
  return st;
}

btc_status btc_items_open(const char *manifest, btc_items **out, btc_error *err) {
  btc_items *t = *out = btc_alloc_zero(1, sizeof *t);
  if (!t) return btc_fail(err, BTC_ERR_NOMEM, "no memory for items");
  btc_status st = btc_sql_scratch(&t->db, err);
  if (st == BTC_OK)
    st = btc_sql_run(t->db,
                     "CREATE TABLE items(id TEXT PRIMARY KEY, before TEXT, after TEXT, x INTEGER, y INTEGER, w INTEGER, h INTEGER)"
                     " WITHOUT ROWID",
                     err);
  if (st == BTC_OK) st = load(t, manifest, err);
  if (st == BTC_OK) st = btc_sql_prepare(t->db, "SELECT before, after, x, y, w, h FROM items WHERE id=?", &t->find, err);
  if (st != BTC_OK) btc_items_close(out);
  return st;
}

btc_status btc_items_find(btc_items *t, const char *id, bool *found, btc_item_files *out, btc_error *err) {
  sqlite3_reset(t->find);
  btc_sql_bind(t->find, 1, id);
  *out = (btc_item_files){0};
  btc_status st = btc_sql_step(t->find, found, err);
  if (st != BTC_OK || !*found) return st;
  out->before = btc_sql_text(t->find, 0);
  out->after = btc_sql_text(t->find, 1);
  out->has_window = sqlite3_column_type(t->find, 2) != SQLITE_NULL;
  for (int i = 0; i < 4; i++) out->window[i] = sqlite3_column_int64(t->find, 2 + i);
  return BTC_OK;
}

void btc_items_close(btc_items **t) {
  if (!*t) return;
  sqlite3_finalize((*t)->find);
  sqlite3_close((*t)->db);
  free(*t);
  *t = NULL;
}

/* ---- scenes ---- */

btc_status btc_scene_table_read(const char *gpkg, json_t **out, btc_error *err) {
  sqlite3 *db = NULL;
  sqlite3_stmt *s = NULL;
  bool row = false;
  int rows = 0;
  *out = NULL;
  if (sqlite3_open_v2(gpkg, &db, SQLITE_OPEN_READONLY, NULL) != SQLITE_OK) {
    sqlite3_close(db);
    return btc_fail(err, BTC_ERR_IO, "cannot open '%s'", gpkg);
  }
  json_t *o = json_object();
  btc_status st = btc_sql_run(db, "PRAGMA trusted_schema=OFF", err);
  if (st == BTC_OK) st = btc_sql_prepare(db, "SELECT key, value FROM scene LIMIT 100", &s, err);
  while (st == BTC_OK && (st = btc_sql_step(s, &row, err)) == BTC_OK && row && rows++ < 100)
    json_object_set_new(o, btc_sql_text(s, 0), json_string(btc_sql_text(s, 1)));
  sqlite3_finalize(s);
  sqlite3_close(db);
  if (st != BTC_OK) {
    json_decref(o);
    return btc_fail(err, BTC_ERR_FORMAT, "'%s' is no GeoPackage of btcchat scene: it has no table scene", gpkg);
  }
  *out = o;
  return BTC_OK;
}

/* ---- rings ---- */

struct btc_rings {
  int fd;
  btc_lines lines;
  json_t *next; /* feature */
};

static const btc_json_limits feature_limits = {.max_bytes = 1 << 20, .max_values = 10000};

static void advance(btc_rings *r) {
  btc_record line;
  json_decref(r->next);
  r->next = NULL;
  for (btc_lines_result got; !r->next && (got = btc_lines_next(&r->lines, &line)) != BTC_LINES_END && got != BTC_LINES_FAILED;) {
    size_t n = got == BTC_LINES_OK ? line.len : 0;
    while (n && (line.text[n - 1] == ',' || line.text[n - 1] == ' ')) n--;
    if (n && btc_json_parse(line.text, n, "feature", &feature_limits, &r->next, NULL) != BTC_OK) r->next = NULL;
    if (r->next && !json_is_object(json_object_get(r->next, "geometry"))) {
      json_decref(r->next);
      r->next = NULL;
    }
  }
}

btc_status btc_rings_open(const char *geojson, btc_rings **out, btc_error *err) {
  btc_rings *r = *out = btc_alloc_zero(1, sizeof *r);
  if (!r) return btc_fail(err, BTC_ERR_NOMEM, "no memory for rings");
  r->fd = open(geojson, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (r->fd < 0 || !btc_lines_init(&r->lines, r->fd, 1 << 20)) {
    btc_status st = btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", geojson, strerror(errno));
    btc_rings_close(out);
    return st;
  }
  advance(r);
  return BTC_OK;
}

json_t *btc_rings_take(btc_rings *r, const char *id) {
  const char *there = json_string_value(json_object_get(json_object_get(r->next, "properties"), "id"));
  if (!there || strcmp(there, id) != 0) return NULL;
  json_t *ring = json_incref(json_array_get(json_object_get(json_object_get(r->next, "geometry"), "coordinates"), 0));
  advance(r);
  return ring;
}

void btc_rings_close(btc_rings **r) {
  if (!*r) return;
  json_decref((*r)->next);
  if ((*r)->lines.buffer) btc_lines_free(&(*r)->lines);
  if ((*r)->fd >= 0) close((*r)->fd);
  free(*r);
  *r = NULL;
}
