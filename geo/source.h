/*
 * The path policy: which file a name may open, decided and done in the parent, before GDAL knows of it. What is judged is the file
 * that was opened (its path in /proc/self/fd), not the name, so no link can be changed in between. The decoder gets the descriptor
 * and has no file system of its own, so it can reach no sidecar; the one sidecar that counts, the world file, is read here.
 */
#ifndef GEO_SOURCE_H
#define GEO_SOURCE_H

#include "geo/geo.h"

typedef struct geo_source {
  int fd;             /* -1: a path of a network file system, or none */
  const char *driver; /* "GTiff", "JP2OpenJPEG", "PNG", "JPEG": by the first bytes, never by the name */
  char *path;         /* as given */
  int64_t bytes;
  bool has_world;
  double world[6]; /* GDAL's order, from the world file */
} geo_source;

/* Reasons: NOT_FOUND, POLICY (outside the roots, a virtual path, no regular file, no permission), DECODE (no such image).
 * World files: the path with .tfw/.tifw, .pgw/.pngw, .jgw/.jpgw, .j2w/.jp2w or .wld, as the driver says, under the same policy; one
 * that is there and cannot be read is an error. */
btc_status geo_source_open(const char *path, const char *roots, bool allow_vsi, geo_source *s, btc_geo_failure *f);
void geo_source_close(geo_source *s);

/* Six numbers, one a line: pixel sizes and the centre of the first pixel. False: it is no world file. */
bool geo_world_parse(const char *text, double geotransform[6]);

#endif
