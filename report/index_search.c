/* Searching in the index: people's words to FTS5's query language, in which every word becomes a quoted string. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>

#include "index_state.h"

typedef struct text_out {
  char *at;
  size_t left;
} text_out;

static void put(text_out *o, char c) {
  if (o->left < 2) return;
  *o->at++ = c;
  o->left--;
}

/* One word or quoted phrase from *p as "text" or "text"*. false: it has no letter or digit, so FTS5 would find nothing with it. */
static bool put_term(text_out *o, const char **p) {
  text_out before = *o;
  bool quoted = **p == '"', any = false;
  if (quoted) ++*p;
  put(o, '"');
  for (; **p && (quoted ? **p != '"' : **p != ' ' && **p != '\t' && **p != '"'); ++*p) {
    unsigned char c = (unsigned char)**p;
    if (c == '*' && ((*p)[1] == 0 || (*p)[1] == ' ' || (*p)[1] == '\t') && !quoted) continue;
    any |= c >= 0x80 || (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
    put(o, (char)c);
  }
  bool prefix = !quoted && (*p)[-1] == '*';
  if (quoted && **p == '"') ++*p;
  put(o, '"');
  if (prefix) put(o, '*');
  if (!any) *o = before;
  return any;
}

static btc_status query_of(const char *words, char *out, size_t len, btc_error *err) {
  text_out o = {out, len};
  bool any = false;
  size_t n = strlen(words);
  if (n > BTC_INDEX_MAX_QUERY) return btc_fail(err, BTC_ERR_ARG, "the words to look for are over %d bytes", BTC_INDEX_MAX_QUERY);
  if (btc_utf8_valid(words, n) != n) return btc_fail(err, BTC_ERR_ARG, "the words to look for are no UTF-8");
  for (const char *p = words; *p;) {
    if (*p == ' ' || *p == '\t') {
      p++;
      continue;
    }
    if (put_term(&o, &p)) {
      any = true;
      put(&o, ' ');
    }
  }
  *o.at = 0;
  return any ? BTC_OK : btc_fail(err, BTC_ERR_ARG, "'%s' holds no word to look for", words);
}

static const char select_hits[] =
    "SELECT r.id, r.status, r.caption, snippet(captions, 0, ?3, ?4, '...', 40), r.file, r.changed, r.score "
    "FROM captions JOIN records r ON r.n = captions.rowid WHERE captions MATCH ?1 ORDER BY rank LIMIT ?2";
static const char select_changed[] =
    "SELECT r.id, r.status, r.caption, snippet(captions, 0, ?3, ?4, '...', 40), r.file, r.changed, r.score "
    "FROM captions JOIN records r ON r.n = captions.rowid WHERE captions MATCH ?1 AND r.changed = 1 ORDER BY rank LIMIT ?2";

btc_status btc_index_search(btc_index *x, const btc_index_query *q, bool (*hit)(void *ctx, const btc_index_hit *h), void *ctx,
                            btc_error *err) {
  char query[4 * BTC_INDEX_MAX_QUERY + 8]; /* a term of one byte becomes four */
  sqlite3_stmt *s = NULL;
  bool row = true;
  btc_status st = query_of(q->words, query, sizeof query, err);
  if (st == BTC_OK) st = btc_sql_prepare(x->db, q->changed_only ? select_changed : select_hits, &s, err);
  if (st == BTC_OK) {
    btc_sql_bind(s, 1, query);
    sqlite3_bind_int64(s, 2, q->limit > INT64_MAX ? INT64_MAX : (int64_t)q->limit);
    btc_sql_bind(s, 3, q->mark_begin);
    btc_sql_bind(s, 4, q->mark_end);
  }
  while (st == BTC_OK && (st = btc_sql_step(s, &row, err)) == BTC_OK && row) {
    btc_index_hit h = {.id = btc_sql_text(s, 0),
                       .status = btc_sql_text(s, 1),
                       .caption = btc_sql_text(s, 2),
                       .snippet = btc_sql_text(s, 3),
                       .file = btc_sql_text(s, 4),
                       .has_changed = sqlite3_column_type(s, 5) != SQLITE_NULL,
                       .changed = sqlite3_column_int(s, 5) == 1,
                       .has_score = sqlite3_column_type(s, 6) != SQLITE_NULL,
                       .score = sqlite3_column_double(s, 6)};
    if (!hit(ctx, &h)) break;
  }
  sqlite3_finalize(s);
  return st;
}
