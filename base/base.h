/*
 * base: what every other folder leans on, and nothing of the model: status codes and error texts, the clock,
 * whole-file reading and publishing, SHA-256, bounded JSON. A leaf: it includes nothing of ours.
 *
 * Convention (all folders): functions that can fail return btc_status and take a btc_error *, which may be NULL.
 * Libraries never print and never exit.
 */
#ifndef BTC_BASE_H
#define BTC_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What went wrong, from the caller's point of view. */
typedef enum btc_status {
  BTC_OK = 0,
  BTC_ERR_ARG,         /* the caller passed something that can never work */
  BTC_ERR_NOT_FOUND,   /* a file or a directory is not there */
  BTC_ERR_IO,          /* the system refused: permission, a directory in place of a file, a full disk */
  BTC_ERR_FORMAT,      /* bytes that do not follow their format: truncated, corrupt, wrong kind of file */
  BTC_ERR_MODEL,       /* a checkpoint whose parts contradict each other or the model we run */
  BTC_ERR_UNSUPPORTED, /* well formed, but something we do not do */
  BTC_ERR_LIMIT,       /* over a stated bound: image too large, prompt too long for the context */
  BTC_ERR_NOMEM,       /* memory could not be had */
  BTC_ERR_CANCELLED,   /* the caller asked to stop */
  BTC_ERR_DEVICE,      /* a device failed for good: whatever used it had better end */
  BTC_ERR_INTERNAL,    /* a bug of ours */
  BTC_STATUS_COUNT
} btc_status;

/* Short lower-case text of a status, e.g. "not found". Never NULL. Any thread. */
const char *btc_status_text(btc_status s);

#define BTC_ERROR_TEXT 1024 /* bytes of message kept, terminator included */

typedef struct btc_error {
  btc_status code;
  char message[BTC_ERROR_TEXT]; /* one line: names the file, tensor or key, and the reason */
} btc_error;

/* Fills *err (if not NULL) and returns code, so that callers write `return btc_fail(err, ...)`. Control characters of
 * the formatted text are replaced by '?', so that names out of hostile files cannot break a line. */
btc_status btc_fail(btc_error *err, btc_status code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " in front of the message already in *err; keeps the code. Returns err->code. */
btc_status btc_fail_prefix(btc_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- memory ---- */

/* malloc/calloc/realloc with overflow-checked products; NULL when there is no memory. The caller frees with free().
 * Fault tests replace the function behind them (btc_alloc_hook) to make the Nth call fail. */
void *btc_alloc(size_t count, size_t size);            /* uninitialised */
void *btc_alloc_zero(size_t count, size_t size);       /* zeroed */
void *btc_realloc(void *p, size_t count, size_t size); /* like realloc; on NULL the old block is still owned */
char *btc_strdup(const char *s);                       /* NULL when s is NULL or there is no memory */
char *btc_strndup(const char *s, size_t n);
/* Called before every allocation above; false makes it fail. NULL (the default) allows all. Set it before threads start. */
extern bool (*btc_alloc_hook)(size_t bytes);

/* ---- clock ---- */
int64_t btc_now_ns(void); /* CLOCK_MONOTONIC, nanoseconds */
/* For benchmarks on a busy machine: from now on btc_now_ns is the processor time of this process. Before any other thread runs. */
void btc_clock_processor_time(void);

/* ---- files ---- */

/* Reads a whole regular file of at most max_bytes. *data is malloc'ed (one extra 0 byte behind the end), caller frees.
 * Errors name the path: NOT_FOUND, IO (directory, permission), LIMIT (too large), NOMEM. */
btc_status btc_file_read(const char *path, size_t max_bytes, uint8_t **data, size_t *len, btc_error *err);

/* Publishes a file: writes "path.tmp.PID", fsyncs, renames over path. Nothing half-written is ever visible as path.
 * Links are followed; devices and pipes are written to, not replaced. */
btc_status btc_file_publish(const char *path, const void *data, size_t len, btc_error *err);

/* "dir/name" in fresh memory (caller frees), or NULL when there is no memory. name is returned alone if it is absolute
 * or dir is empty. */
char *btc_path_join(const char *dir, const char *name);

/* ---- UTF-8 ---- */

/* Bytes (1..4) of the well-formed character at p, 0 when there is none: overlong forms, surrogates, values over U+10FFFF and
 * truncated sequences are not characters (Unicode 15, table 3-7). left > 0. */
size_t btc_utf8_char(const char *p, size_t left);
/* Offset of the first byte that is not part of a well-formed character; n when there is none. */
size_t btc_utf8_valid(const char *p, size_t n);

/* ---- SHA-256 (FIPS 180-4) ---- */
typedef struct btc_sha256 {
  uint32_t state[8];
  uint64_t bytes;
  uint8_t block[64];
} btc_sha256;
void btc_sha256_init(btc_sha256 *s);
void btc_sha256_update(btc_sha256 *s, const void *data, size_t len);
void btc_sha256_final(btc_sha256 *s, uint8_t digest[32]);
void btc_sha256_hex(const void *data, size_t len, char hex[65]); /* lower-case, terminated */
extern bool btc_sha256_portable_only;                            /* tests: do not use the CPU's SHA instructions */

#ifdef __cplusplus
}
#endif
#endif
