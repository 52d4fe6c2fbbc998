/*
 * One event a line on stderr, key=value, in logfmt: `t=2026-11-25T07:28:06.123Z level=info event=worker-up worker=w1 ...`. Any
 * thread. Free text goes through btc_log_quote, so that nothing in it can break a line or forge a key.
 */
#ifndef BTC_BASE_LOG_H
#define BTC_BASE_LOG_H

#include <stddef.h>
#include <stdint.h>

typedef enum btc_log_level { BTC_LOG_DEBUG, BTC_LOG_INFO, BTC_LOG_WARN, BTC_LOG_ERROR } btc_log_level;

/* Lines below the level are not written; INFO until set. */
void btc_log_set_level(btc_log_level least);
/* fmt: the keys behind event=, e.g. "worker=%s chunks=%d"; "" for none. */
void btc_log(btc_log_level level, const char *event, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* A repeating event: at most 5 lines in 10 s from one place in the code; the next line says how many were left out. */
typedef struct btc_log_gate {
  int64_t window_ns;
  unsigned lines, left_out;
} btc_log_gate;
void btc_log_gated(btc_log_gate *gate, btc_log_level level, const char *event, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
#define BTC_LOG_LIMITED(level, event, ...)            \
  do {                                                \
    static btc_log_gate gate_;                        \
    btc_log_gated(&gate_, level, event, __VA_ARGS__); \
  } while (0)

/* "text" with quotes around it; quotes and control characters inside become ' and ?, the rest is cut to fit. Returns buf. */
const char *btc_log_quote(char *buf, size_t size, const char *text);

#endif
