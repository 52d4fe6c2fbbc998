/* See compare.h. */
#include "compare.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "sql.h"

static const char schema[] =
    "CREATE TABLE r(side INTEGER, id TEXT, n INTEGER, status TEXT, changed INTEGER, caption TEXT, score REAL, reason TEXT,"
    " PRIMARY KEY(side, id, n)) WITHOUT ROWID";
/* n: the how-many-eth of its id */
static const char insert[] =
    "INSERT INTO r VALUES(?1, ?2, (SELECT coalesce(max(n) + 1, 0) FROM r WHERE side=?1 AND id=?2), ?3, ?4, ?5, ?6, ?7)";
static const char join[] =
    "SELECT a.id, 1, b.id IS NOT NULL, a.status, a.changed, a.caption, a.score, a.reason, b.status, b.changed, b.caption, b.score,"
    " b.reason, a.n FROM r a LEFT JOIN r b ON b.side=1 AND b.id=a.id AND b.n=a.n WHERE a.side=0 "
    "UNION ALL SELECT b.id, 0, 1, NULL, NULL, NULL, NULL, NULL, b.status, b.changed, b.caption, b.score, b.reason, b.n FROM r b"
    " WHERE b.side=1 AND NOT EXISTS (SELECT 1 FROM r a WHERE a.side=0 AND a.id=b.id AND a.n=b.n) ORDER BY 1, 14";

static void bind_text(sqlite3_stmt *s, int at, const json_t *o, const char *key) {
  btc_sql_bind(s, at, json_string_value(json_object_get(o, key)));
}

static btc_status keep(sqlite3_stmt *s, int side, const json_t *o, btc_error *err) {
  const json_t *changed = json_object_get(o, "changed"), *score = json_object_get(o, "score");
  sqlite3_clear_bindings(s);
  sqlite3_bind_int(s, 1, side);
  bind_text(s, 2, o, "id");
  bind_text(s, 3, o, "status");
  if (json_is_boolean(changed)) sqlite3_bind_int(s, 4, json_is_true(changed));
  bind_text(s, 5, o, "caption");
  if (json_is_number(score)) sqlite3_bind_double(s, 6, json_number_value(score));
  bind_text(s, 7, o, "reason");
  return btc_sql_step(s, NULL, err);
}

static btc_status load(sqlite3 *db, const btc_results_files *f, int side, bool (*cancelled)(void), btc_compare_counts *out,
                       btc_error *err) {
  sqlite3_stmt *s = NULL;
  btc_results *r = NULL;
  json_t *o = NULL;
  const char *first = "";
  btc_status st = btc_sql_prepare(db, insert, &s, err);
  if (st == BTC_OK) st = btc_results_open(f, &r, err);
  while (st == BTC_OK && (st = btc_results_next(r, &o, err)) == BTC_OK && o) {
    st = keep(s, side, o, err);
    json_decref(o);
    ++*(side ? &out->b : &out->a);
    if (st == BTC_OK && cancelled && cancelled()) st = btc_fail(err, BTC_ERR_CANCELLED, "interrupted");
  }
  if (r) {
    uint64_t bad = btc_results_bad(r, &first);
    if (bad && !out->bad) snprintf(out->first_bad, sizeof out->first_bad, "%s", first);
    out->bad += bad;
  }
  sqlite3_finalize(s);
  btc_results_close(&r);
  return st;
}

static const char *text_or_null(sqlite3_stmt *s, int column) {
  return sqlite3_column_type(s, column) == SQLITE_NULL ? NULL : btc_sql_text(s, column);
}

static btc_compare_record record_at(sqlite3_stmt *s, int column) {
  return (btc_compare_record){.status = text_or_null(s, column),
                              .has_changed = sqlite3_column_type(s, column + 1) != SQLITE_NULL,
                              .changed = sqlite3_column_int(s, column + 1) == 1,
                              .caption = text_or_null(s, column + 2),
                              .has_score = sqlite3_column_type(s, column + 3) != SQLITE_NULL,
                              .score = sqlite3_column_double(s, column + 3),
                              .reason = text_or_null(s, column + 4)};
}

static bool differ(const char *a, const char *b) {
  return a && b ? strcmp(a, b) != 0 : a != b;
}

static btc_difference judge(sqlite3_stmt *s, double tolerance) {
  btc_difference d = {.id = btc_sql_text(s, 0), .added = !sqlite3_column_int(s, 1), .removed = !sqlite3_column_int(s, 2)};
  d.a = record_at(s, 3);
  d.b = record_at(s, 8);
  if (d.added || d.removed) return d;
  d.status = differ(d.a.status, d.b.status) || differ(d.a.reason, d.b.reason);
  d.verdict = d.a.has_changed != d.b.has_changed || d.a.changed != d.b.changed;
  d.caption = differ(d.a.caption, d.b.caption);
  d.score = d.a.has_score != d.b.has_score || fabs(d.a.score - d.b.score) > tolerance;
  return d;
}

static bool count(const btc_difference *d, btc_compare_counts *out) {
  out->removed += d->removed;
  out->added += d->added;
  out->status += d->status;
  out->verdict += d->verdict;
  out->caption += d->caption;
  out->score += d->score;
  bool any = d->removed || d->added || d->status || d->verdict || d->caption || d->score;
  out->equal += !any;
  return any;
}

btc_status btc_compare(const btc_results_files *a, const btc_results_files *b, double tolerance, bool (*cancelled)(void),
                       void (*each)(void *ctx, const btc_difference *d), void *ctx, btc_compare_counts *out, btc_error *err) {
  sqlite3 *db = NULL;
  sqlite3_stmt *s = NULL;
  bool row = false;
  double sum = 0;
  uint64_t scored = 0;
  *out = (btc_compare_counts){0};
  btc_status st = btc_sql_scratch(&db, err);
  if (st == BTC_OK) st = btc_sql_run(db, schema, err);
  if (st == BTC_OK) st = load(db, a, 0, cancelled, out, err);
  if (st == BTC_OK) st = load(db, b, 1, cancelled, out, err);
  if (st == BTC_OK) st = btc_sql_prepare(db, join, &s, err);
  while (st == BTC_OK && (st = btc_sql_step(s, &row, err)) == BTC_OK && row) {
    btc_difference d = judge(s, tolerance);
    if (d.a.has_score && d.b.has_score) {
      sum += d.b.score - d.a.score;
      scored++;
    }
    if (count(&d, out)) each(ctx, &d);
  }
  if (scored) out->mean_score_delta = sum / (double)scored;
  sqlite3_finalize(s);
  sqlite3_close(db);
  return st;
}
