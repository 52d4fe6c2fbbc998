/* What the readers of archives share (archive.h). */
#ifndef BTC_ARCHIVE_STAC_H
#define BTC_ARCHIVE_STAC_H

#include "archive.h"

/* The image's texts are copied. */
btc_status btc_archive_add(btc_archive *a, const btc_archive_image *im, btc_error *err);
void btc_archive_leave_out(btc_archive *a, const char *name, const char *why);
/* A date at the beginning of s: the bytes it takes, 0: there is none. */
size_t btc_archive_date(const char *s, char date[11], int64_t *day);
btc_status btc_archive_read_stac(const char *path, const char *asset, btc_archive *out, btc_error *err);

#endif
