/* Status texts and error messages. */
#include "base.h"

#include <stdio.h>
#include <string.h>

static const char *const texts[] = {
    [BTC_OK] = "ok",
    [BTC_ERR_ARG] = "bad argument",
    [BTC_ERR_NOT_FOUND] = "not found",
    [BTC_ERR_IO] = "input/output error",
    [BTC_ERR_FORMAT] = "malformed data",
    [BTC_ERR_MODEL] = "inconsistent checkpoint",
    [BTC_ERR_UNSUPPORTED] = "not supported",
    [BTC_ERR_LIMIT] = "over a limit",
    [BTC_ERR_NOMEM] = "out of memory",
    [BTC_ERR_CANCELLED] = "cancelled",
    [BTC_ERR_DEVICE] = "device lost",
    [BTC_ERR_INTERNAL] = "internal error",
};
_Static_assert(sizeof texts / sizeof texts[0] == BTC_STATUS_COUNT, "every status has its text");

const char *btc_status_text(btc_status s) {
  return (unsigned)s < BTC_STATUS_COUNT ? texts[s] : "unknown status";
}

/* Names come out of files we do not trust; a newline or an escape sequence in one must not reach a terminal or a log. */
static void make_printable(char *s) {
  for (; *s; s++)
    if ((unsigned char)*s < 0x20 || *s == 0x7f) *s = '?';
}

btc_status btc_fail(btc_error *err, btc_status code, const char *fmt, ...) {
  if (!err) return code;
  va_list ap;
  va_start(ap, fmt);
  err->code = code;
  vsnprintf(err->message, sizeof err->message, fmt, ap);
  va_end(ap);
  make_printable(err->message);
  return code;
}

btc_status btc_fail_prefix(btc_error *err, const char *fmt, ...) {
  if (!err) return BTC_ERR_INTERNAL;
  char prefix[BTC_ERROR_TEXT / 2], rest[BTC_ERROR_TEXT];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(prefix, sizeof prefix, fmt, ap);
  va_end(ap);
  make_printable(prefix);
  memcpy(rest, err->message, sizeof rest);
  size_t used = strlen(prefix);
  memcpy(err->message, prefix, used);
  snprintf(err->message + used, sizeof err->message - used, ": %.*s", (int)(sizeof err->message - used - 3), rest);
  return err->code;
}
