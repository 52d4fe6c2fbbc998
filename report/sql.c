/* See sql.h. */
#include "sql.h"

#include <stdio.h>

static btc_status fail(sqlite3 *db, btc_error *err) {
  const char *name = db ? sqlite3_db_filename(db, "main") : NULL;
  btc_status st = BTC_ERR_INTERNAL;
  switch (db ? sqlite3_errcode(db) & 0xff : SQLITE_NOMEM) {
    case SQLITE_NOMEM:
      st = BTC_ERR_NOMEM;
      break;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      st = BTC_ERR_FORMAT;
      break;
    case SQLITE_IOERR:
    case SQLITE_FULL:
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_BUSY:
      st = BTC_ERR_IO;
      break;
    default:
      break;
  }
  if (!name || !*name) name = "scratch database";
  return btc_fail(err, st, "'%s': %s", name, db ? sqlite3_errmsg(db) : "no memory");
}

bool btc_sql_is_broken(sqlite3 *db) {
  int code = sqlite3_errcode(db) & 0xff;
  return code == SQLITE_CORRUPT || code == SQLITE_NOTADB || code == SQLITE_ERROR || code == SQLITE_SCHEMA;
}

btc_status btc_sql_run(sqlite3 *db, const char *statements, btc_error *err) {
  return sqlite3_exec(db, statements, NULL, NULL, NULL) == SQLITE_OK ? BTC_OK : fail(db, err);
}

btc_status btc_sql_scratch(sqlite3 **out, btc_error *err) {
  char text[160];
  btc_status st = BTC_OK;
  if (sqlite3_open("", out) != SQLITE_OK) st = fail(*out, err);
  snprintf(text, sizeof text, "PRAGMA cache_size=-%d; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN", BTC_SQL_CACHE_KIB);
  if (st == BTC_OK) st = btc_sql_run(*out, text, err);
  if (st != BTC_OK) {
    sqlite3_close(*out);
    *out = NULL;
  }
  return st;
}

btc_status btc_sql_prepare(sqlite3 *db, const char *statement, sqlite3_stmt **out, btc_error *err) {
  return sqlite3_prepare_v2(db, statement, -1, out, NULL) == SQLITE_OK ? BTC_OK : fail(db, err);
}

btc_status btc_sql_step(sqlite3_stmt *s, bool *row, btc_error *err) {
  int code = sqlite3_step(s);
  if (row) *row = code == SQLITE_ROW;
  if (code == SQLITE_ROW) return BTC_OK;
  btc_status st = code == SQLITE_DONE ? BTC_OK : fail(sqlite3_db_handle(s), err);
  sqlite3_reset(s);
  return st;
}

void btc_sql_bind(sqlite3_stmt *s, int at, const char *text) {
  if (text)
    sqlite3_bind_text(s, at, text, -1, SQLITE_STATIC);
  else
    sqlite3_bind_null(s, at);
}

const char *btc_sql_text(sqlite3_stmt *s, int column) {
  const unsigned char *t = sqlite3_column_text(s, column);
  return t ? (const char *)t : "";
}
