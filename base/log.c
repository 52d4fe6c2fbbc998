/* Lines are built in one buffer and written in one call, so that those of several threads and processes do not mix. */
#define _GNU_SOURCE
#include "log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"

enum { MAX_LINE = 2048, GATE_LINES = 5 };
#define GATE_NS 10000000000LL

static btc_log_level least_level = BTC_LOG_INFO;
static pthread_mutex_t gate_lock = PTHREAD_MUTEX_INITIALIZER;

void btc_log_set_level(btc_log_level least) {
  least_level = least;
}

const char *btc_log_quote(char *buf, size_t size, const char *text) {
  size_t at = 0;
  if (size < 3) return "";
  buf[at++] = '"';
  for (const char *c = text ? text : ""; *c && at < size - 2; c++)
    buf[at++] = (unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c == '"' ? '\'' : *c;
  buf[at++] = '"';
  buf[at] = 0;
  return buf;
}

static void write_line(btc_log_level level, const char *event, unsigned left_out, const char *fmt, va_list ap) {
  static const char *const names[] = {"debug", "info", "warn", "error"};
  char line[MAX_LINE];
  struct timespec t;
  struct tm utc;
  clock_gettime(CLOCK_REALTIME, &t);
  gmtime_r(&t.tv_sec, &utc);
  size_t at = strftime(line, sizeof line, "t=%Y-%m-%dT%H:%M:%S", &utc);
  at += (size_t)snprintf(line + at, sizeof line - at, ".%03ldZ level=%s event=%s", t.tv_nsec / 1000000, names[level], event);
  if (left_out) at += (size_t)snprintf(line + at, sizeof line - at, " left_out=%u", left_out);
  if (*fmt && at < sizeof line - 2) {
    line[at++] = ' ';
    int n = vsnprintf(line + at, sizeof line - at - 1, fmt, ap);
    size_t room = sizeof line - at - 2;
    at += n < 0 ? 0 : (size_t)n < room ? (size_t)n : room;
  }
  for (size_t i = 0; i < at; i++)
    if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f) line[i] = '?';
  line[at++] = '\n';
  if (write(STDERR_FILENO, line, at) < 0) return; /* nobody is left to be told */
}

void btc_log(btc_log_level level, const char *event, const char *fmt, ...) {
  if (level < least_level) return;
  va_list ap;
  va_start(ap, fmt);
  write_line(level, event, 0, fmt, ap);
  va_end(ap);
}

void btc_log_gated(btc_log_gate *gate, btc_log_level level, const char *event, const char *fmt, ...) {
  if (level < least_level) return;
  int64_t now = btc_now_ns();
  pthread_mutex_lock(&gate_lock);
  if (!gate->window_ns || now - gate->window_ns > GATE_NS) {
    gate->window_ns = now;
    gate->lines = 0;
  }
  bool pass = gate->lines < GATE_LINES;
  unsigned left_out = pass ? gate->left_out : 0;
  if (pass) gate->left_out = 0;
  gate->lines += pass;
  gate->left_out += !pass;
  pthread_mutex_unlock(&gate_lock);
  if (!pass) return;
  va_list ap;
  va_start(ap, fmt);
  write_line(level, event, left_out, fmt, ap);
  va_end(ap);
}
