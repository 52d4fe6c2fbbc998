/*
 * geo: scenes out of GeoTIFF, COG, JPEG 2000, PNG and JPEG, and layers that a GIS opens. The public face of the folder; scene.h has
 * the reading, layer.h the writing.
 *
 * No code of ours links GDAL but the helper program btcchat-geo, which is another process: `decode` reads files that we do not
 * trust, in a sandbox (gdal/sandbox.h), `write` writes what we computed. What comes back over the socket is checked like any file.
 * The helper is looked for in $BTCCHAT_GEO, then beside the running program, then in ../libexec/btcchat from there.
 */
#ifndef BTC_GEO_H
#define BTC_GEO_H

#include "base/base.h"

/* Why a scene or a window has no caption: the words of the result record (docs/formats.md). */
typedef enum btc_geo_reason {
  BTC_GEO_NONE = 0,
  BTC_GEO_NOT_FOUND,   /* no such file */
  BTC_GEO_DECODE,      /* bytes that do not follow their format, or a format that is not read */
  BTC_GEO_DIMS,        /* over a limit on size, bands, block or ratio; grids that cannot be put on each other */
  BTC_GEO_NODATA,      /* too few valid pixels */
  BTC_GEO_NO_OVERLAP,  /* the two images show no common ground */
  BTC_GEO_POLICY,      /* outside the roots, a virtual path, not a regular file, a file without permission */
  BTC_GEO_TIMEOUT,     /* the decoder was over its time and was killed */
  BTC_GEO_OOM,         /* over its memory */
  BTC_GEO_CRASH,       /* the decoder died */
  BTC_GEO_BAD_REQUEST, /* options that contradict each other or the file */
  BTC_GEO_CANCELLED,
  BTC_GEO_INTERNAL, /* no helper, no sandbox, or a bug of ours */
  BTC_GEO_REASON_COUNT
} btc_geo_reason;

/* "not-found", "no-overlap" and so on; "" for BTC_GEO_NONE. Never NULL. Any thread. */
const char *btc_geo_reason_text(btc_geo_reason r);

/* What functions of this folder fill in when they fail. */
typedef struct btc_geo_failure {
  btc_geo_reason reason;
  btc_error error;
} btc_geo_failure;

/* Fills *f (if not NULL) and returns code. */
btc_status btc_geo_fail(btc_geo_failure *f, btc_geo_reason reason, btc_status code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Path of the helper, malloc'ed, caller frees; NULL (with *f) when it was not built or not installed. Any thread. */
char *btc_geo_program(btc_geo_failure *f);

#endif
