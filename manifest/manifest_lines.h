/*
 * Lines and CSV records out of a file descriptor, each of bounded length. A line that is too long, or a quote that never ends,
 * costs that line only: reading goes on behind it.
 */
#ifndef BTC_MANIFEST_LINES_H
#define BTC_MANIFEST_LINES_H

#include "base/base.h"

#define BTC_CSV_MAX_FIELDS 8

typedef struct btc_lines {
  int fd;
  char *buffer; /* [max + slack], bytes at start..end are unread */
  size_t max, start, end;
  bool eof;
  uint64_t line;              /* number of the line at `start`, from 1 */
  uint64_t bytes;             /* read so far */
  char *fields;               /* [max + 1]: unquoted fields of a CSV record */
  const volatile int *cancel; /* may be set after btc_lines_init: when it becomes non-zero reading fails with EINTR */
} btc_lines;

typedef enum btc_lines_result { BTC_LINES_OK, BTC_LINES_BAD, BTC_LINES_END, BTC_LINES_FAILED } btc_lines_result;

typedef struct btc_record {
  uint64_t line; /* its first line */
  char *text;    /* OK, of a line: without its end, terminated; may hold NULs */
  size_t len;
  const char *problem; /* BAD */
  size_t n_fields;     /* OK, of a CSV record */
  char *field[BTC_CSV_MAX_FIELDS];
} btc_record;

/* Does not own fd. false: no memory. Release with btc_lines_free. */
bool btc_lines_init(btc_lines *l, int fd, size_t max_line);
void btc_lines_free(btc_lines *l);

/* Where in the file the next line begins; going on at such a place, which is line `line`: false, errno says why. */
uint64_t btc_lines_offset(const btc_lines *l);
bool btc_lines_seek(btc_lines *l, uint64_t offset, uint64_t line);

/* The next line that is not blank; texts live until the next call. FAILED: errno says why. */
btc_lines_result btc_lines_next(btc_lines *l, btc_record *out);
/* The next CSV record (RFC 4180) that is not blank. Fields hold no NUL. */
btc_lines_result btc_lines_next_csv(btc_lines *l, btc_record *out);
/* The next line without taking it, of one that is too long what is there of it; NULL at the end or when reading fails. */
const char *btc_lines_peek(btc_lines *l, size_t *len);

#endif
