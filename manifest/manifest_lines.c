/* Bounded lines and CSV records: see manifest_lines.h. */
#define _GNU_SOURCE
#include "manifest_lines.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK 65536 /* bytes asked of read() at once */
#define LOOK_MS 200 /* how often a reader that waits for a pipe looks whether it is to stop */

bool btc_lines_init(btc_lines *l, int fd, size_t max_line) {
  *l = (btc_lines){.fd = fd, .max = max_line, .line = 1};
  l->buffer = btc_alloc(max_line + CHUNK + 1, 1);
  l->fields = btc_alloc(max_line + CHUNK + 1, 1);
  return l->buffer && l->fields;
}

void btc_lines_free(btc_lines *l) {
  free(l->buffer);
  free(l->fields);
  l->buffer = l->fields = NULL;
}

uint64_t btc_lines_offset(const btc_lines *l) {
  return l->bytes - (l->end - l->start);
}

bool btc_lines_seek(btc_lines *l, uint64_t offset, uint64_t line) {
  uint64_t held = l->bytes - l->end; /* where the buffer begins in the file */
  l->line = line;
  if (offset >= btc_lines_offset(l) && offset <= l->bytes && offset > 3) { /* forward only: ends of lines behind were overwritten */
    l->start = (size_t)(offset - held);
    return true;
  }
  if (lseek(l->fd, (off_t)offset, SEEK_SET) < 0) return false;
  l->start = l->end = 0;
  l->bytes = offset;
  l->eof = false;
  return true;
}

/* read() that a signal does not end, unless the reader is to stop: a pipe may have nothing to say for ever. */
static ssize_t read_some(btc_lines *l, char *to, size_t n) {
  for (;;) {
    struct pollfd ready = {.fd = l->fd, .events = POLLIN};
    if (l->cancel && *l->cancel) return errno = EINTR, -1;
    int events = l->cancel ? poll(&ready, 1, LOOK_MS) : 1;
    if (events == 0 || (events < 0 && errno == EINTR)) continue;
    ssize_t got = read(l->fd, to, n);
    if (got >= 0 || errno != EINTR) return got;
  }
}

/* Reads one more chunk behind `end`; false on an error. There is room as long as at most max bytes are unread. */
static bool more(btc_lines *l) {
  if (l->start) {
    memmove(l->buffer, l->buffer + l->start, l->end - l->start);
    l->end -= l->start;
    l->start = 0;
  }
  ssize_t n = read_some(l, l->buffer + l->end, CHUNK);
  if (n < 0) return false;
  l->eof = n == 0;
  bool first = l->bytes == 0;
  l->end += (size_t)n;
  l->bytes += (uint64_t)n;
  while (first && l->end && l->end < 3 && !l->eof) { /* a pipe may deliver the mark in pieces */
    n = read_some(l, l->buffer + l->end, CHUNK - l->end);
    if (n < 0) return false;
    l->eof = n == 0;
    l->end += (size_t)n;
    l->bytes += (uint64_t)n;
  }
  if (first && l->end >= 3 && memcmp(l->buffer, "\xef\xbb\xbf", 3) == 0) l->start = 3;
  return true;
}

/* Makes the line at `start` complete in the buffer. *len excludes its newline; *whole includes it. BAD: longer than max. */
static btc_lines_result complete_line(btc_lines *l, size_t *len, size_t *whole) {
  size_t seen = 0;
  for (;;) {
    size_t have = l->end - l->start;
    const char *nl = have > seen ? memchr(l->buffer + l->start + seen, '\n', have - seen) : NULL;
    if (nl || (l->eof && have)) {
      *len = nl ? (size_t)(nl - l->buffer) - l->start : have;
      *whole = *len + (nl ? 1 : 0);
      return *len > l->max ? BTC_LINES_BAD : BTC_LINES_OK;
    }
    if (l->eof) return BTC_LINES_END;
    if (have > l->max) return *len = *whole = have, BTC_LINES_BAD;
    seen = have;
    if (!more(l)) return BTC_LINES_FAILED;
  }
}

/* Drops what is left of a line that was too long. */
static bool drop_line(btc_lines *l) {
  for (;;) {
    const char *nl = l->end > l->start ? memchr(l->buffer + l->start, '\n', l->end - l->start) : NULL;
    if (nl) {
      l->start = (size_t)(nl - l->buffer) + 1;
      return true;
    }
    l->start = l->end;
    if (l->eof) return true;
    if (!more(l)) return false;
  }
}

static bool blank(const char *s, size_t len) {
  for (size_t i = 0; i < len; i++)
    if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r') return false;
  return true;
}

static btc_lines_result too_long(btc_lines *l, btc_record *out) {
  *out = (btc_record){.line = l->line++, .problem = "the line is longer than 1 MiB"};
  return drop_line(l) ? BTC_LINES_BAD : BTC_LINES_FAILED;
}

/* Skips blank lines; on OK the line at start has len bytes and is not taken yet. */
static btc_lines_result find_line(btc_lines *l, size_t *len, size_t *whole) {
  for (;;) {
    btc_lines_result r = complete_line(l, len, whole);
    if (r != BTC_LINES_OK || !blank(l->buffer + l->start, *len)) return r;
    l->start += *whole;
    l->line++;
  }
}

btc_lines_result btc_lines_next(btc_lines *l, btc_record *out) {
  size_t len, whole;
  btc_lines_result r = find_line(l, &len, &whole);
  if (r == BTC_LINES_BAD) return too_long(l, out);
  if (r != BTC_LINES_OK) return r;
  char *text = l->buffer + l->start;
  l->start += whole;
  if (len && text[len - 1] == '\r') len--;
  text[len] = 0; /* over the line's end; at the end of the file there is a spare byte */
  *out = (btc_record){.line = l->line++, .text = text, .len = len};
  return BTC_LINES_OK;
}

const char *btc_lines_peek(btc_lines *l, size_t *len) {
  size_t whole;
  btc_lines_result r = find_line(l, len, &whole);
  return r == BTC_LINES_OK || r == BTC_LINES_BAD ? l->buffer + l->start : NULL;
}

/* ---- CSV ---- */

typedef enum parsed { PARSED, PARSED_MORE, PARSED_BAD } parsed;

typedef struct csv {
  const char *in;
  size_t len, at; /* unread bytes; cursor */
  bool eof;
  char *out; /* where unquoted bytes go */
  btc_record *record;
} csv;

/* One quoted field; the cursor is behind the opening quote and ends behind the closing one. */
static parsed quoted(csv *c) {
  for (;;) {
    if (c->at == c->len) return c->eof ? (c->record->problem = "a quote is not closed", PARSED_BAD) : PARSED_MORE;
    char b = c->in[c->at++];
    if (b != '"') {
      *c->out++ = b;
    } else if (c->at == c->len && !c->eof) {
      return PARSED_MORE; /* closing, or the first of a doubled one */
    } else if (c->at < c->len && c->in[c->at] == '"') {
      *c->out++ = c->in[c->at++];
    } else {
      return PARSED;
    }
  }
}

static parsed plain(csv *c) {
  for (; c->at < c->len; c->at++) {
    char b = c->in[c->at];
    if (b == ',' || b == '\n' || (b == '\r' && c->at + 1 < c->len && c->in[c->at + 1] == '\n')) return PARSED;
    if (b == '\r' && c->at + 1 == c->len) {
      if (c->eof) return PARSED;
      return PARSED_MORE;
    }
    if (b == '"') return c->record->problem = "a quote inside a field that does not begin with one", PARSED_BAD;
    *c->out++ = b;
  }
  return c->eof ? PARSED : PARSED_MORE;
}

/* The record at the cursor: fields into record; the cursor ends behind its line end. */
static parsed parse_record(csv *c) {
  btc_record *r = c->record;
  for (;;) {
    if (r->n_fields == BTC_CSV_MAX_FIELDS) return r->problem = "too many fields", PARSED_BAD;
    char *start = c->out;
    bool quote = c->at < c->len && c->in[c->at] == '"';
    if (quote) c->at++;
    parsed p = quote ? quoted(c) : plain(c);
    if (p != PARSED) return p;
    if (memchr(start, 0, (size_t)(c->out - start))) return r->problem = "a NUL byte", PARSED_BAD;
    *c->out++ = 0;
    r->field[r->n_fields++] = start;
    bool cr = c->at < c->len && c->in[c->at] == '\r';
    if (cr) c->at++;
    if (c->at == c->len) return c->eof ? PARSED : PARSED_MORE;
    char b = c->in[c->at++];
    if (b == '\n') return PARSED;
    if (b != ',' || cr) return r->problem = "text behind a closing quote", PARSED_BAD;
  }
}

btc_lines_result btc_lines_next_csv(btc_lines *l, btc_record *out) {
  size_t len, whole;
  btc_lines_result r = find_line(l, &len, &whole);
  if (r == BTC_LINES_BAD) return too_long(l, out);
  if (r != BTC_LINES_OK) return r;
  for (;;) {
    *out = (btc_record){.line = l->line};
    csv c = {.in = l->buffer + l->start, .len = l->end - l->start, .eof = l->eof, .out = l->fields, .record = out};
    parsed p = parse_record(&c);
    if (p == PARSED_MORE && c.len > l->max) p = (out->problem = "a quote is not closed within 1 MiB", PARSED_BAD);
    if (p == PARSED_MORE) {
      if (!more(l)) return BTC_LINES_FAILED;
      continue;
    }
    /* a bad record takes its first line only, so that a stray quote does not swallow the lines behind it */
    size_t take = p == PARSED ? c.at : whole;
    for (size_t i = 0; i < take; i++) l->line += c.in[i] == '\n';
    l->start += take;
    return p == PARSED ? BTC_LINES_OK : BTC_LINES_BAD;
  }
}
