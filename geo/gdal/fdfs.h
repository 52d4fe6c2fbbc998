/*
 * GDAL's only file system in the decoder: /vsibtc/before and /vsibtc/after (with the driver's extension), each a descriptor that
 * the parent opened. Every other name does not exist: there are no sidecars, no overviews or masks beside a file, no links.
 */
#ifndef GEO_GDAL_FDFS_H
#define GEO_GDAL_FDFS_H

#include "base/base.h"

#define FDFS_PREFIX "/vsibtc/"
enum { FDFS_FILES = 2 };

btc_status fdfs_install(btc_error *err); /* once */
/* File i under the name (copied) "/vsibtc/..."; takes ownership of fd. */
btc_status fdfs_add(int i, const char *name, int fd, btc_error *err);
int64_t fdfs_bytes(int i);

#endif
