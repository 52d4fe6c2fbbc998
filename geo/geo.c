/* Reasons, failures, and where the helper program is. */
#define _GNU_SOURCE
#include "geo/geo.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const reasons[] = {"",        "not-found", "decode", "dims",        "nodata",    "no-overlap", "policy",
                                      "timeout", "oom",       "crash",  "bad-request", "cancelled", "internal"};
_Static_assert(sizeof reasons / sizeof *reasons == BTC_GEO_REASON_COUNT, "a text for each reason");

const char *btc_geo_reason_text(btc_geo_reason r) {
  return (unsigned)r < BTC_GEO_REASON_COUNT ? reasons[r] : reasons[BTC_GEO_INTERNAL];
}

btc_status btc_geo_fail(btc_geo_failure *f, btc_geo_reason reason, btc_status code, const char *fmt, ...) {
  if (!f) return code;
  char text[BTC_ERROR_TEXT];
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  f->reason = reason;
  return btc_fail(&f->error, code, "%s", text);
}

static char *runnable(const char *dir, const char *name) {
  char path[PATH_MAX];
  int n = snprintf(path, sizeof path, "%s/%s", dir, name);
  return n < (int)sizeof path && access(path, X_OK) == 0 ? btc_strdup(path) : NULL;
}

char *btc_geo_program(btc_geo_failure *f) {
  const char *set = getenv("BTCCHAT_GEO");
  if (set && *set) {
    if (access(set, X_OK) == 0) return btc_strdup(set);
    btc_geo_fail(f, BTC_GEO_INTERNAL, BTC_ERR_NOT_FOUND, "BTCCHAT_GEO names '%s', which cannot be run", set);
    return NULL;
  }
  char own[PATH_MAX];
  ssize_t n = readlink("/proc/self/exe", own, sizeof own - 1);
  char *found = NULL, *slash;
  if (n > 0) {
    own[n] = 0;
    if ((slash = strrchr(own, '/'))) *slash = 0;
    found = runnable(own, "btcchat-geo");
    if (!found) found = runnable(own, "../libexec/btcchat/btcchat-geo");
  }
  if (!found)
    btc_geo_fail(f, BTC_GEO_INTERNAL, BTC_ERR_UNSUPPORTED,
                 "there is no btcchat-geo beside this program, which reads and writes scenes: build or install it, or name it in "
                 "BTCCHAT_GEO");
  return found;
}
