/*
 * SQLite with our errors. Databases here are caches and scratch space: what is in one can always be made again. Thread: one a
 * database.
 */
#ifndef BTC_REPORT_SQL_H
#define BTC_REPORT_SQL_H

#include <sqlite3.h>

#include "base/base.h"

#define BTC_SQL_CACHE_KIB 16384 /* what a database may keep in memory; the rest is in its file */

/* A scratch database in a file of SQLite's own that has no name and ends with the process. *out: sqlite3_close. */
btc_status btc_sql_scratch(sqlite3 **out, btc_error *err);
/* Runs statements without results. IO (disk full, permission), FORMAT (broken file), NOMEM, INTERNAL. */
btc_status btc_sql_run(sqlite3 *db, const char *statements, btc_error *err);
/* *out: sqlite3_finalize. */
btc_status btc_sql_prepare(sqlite3 *db, const char *statement, sqlite3_stmt **out, btc_error *err);
/* One step. *row tells whether there is a row; when there is none the statement is reset. */
btc_status btc_sql_step(sqlite3_stmt *s, bool *row, btc_error *err);
/* A text, NULL for NULL; borrowed until the statement's next step or reset. */
void btc_sql_bind(sqlite3_stmt *s, int at, const char *text);
/* "" for NULL; borrowed until the next step. */
const char *btc_sql_text(sqlite3_stmt *s, int column);
/* Whether this failure means that the file is no database of ours. */
bool btc_sql_is_broken(sqlite3 *db);

#endif
