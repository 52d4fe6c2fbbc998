/* The modes of the helper program btcchat-geo. Each serves requests on the socket until its other end closes, and returns the
 * program's exit code. args: what stands behind the mode. */
#ifndef GEO_GDAL_MODES_H
#define GEO_GDAL_MODES_H

int geo_decode_main(int socket, int argc, char **argv);
int geo_write_main(int socket, int argc, char **argv); /* geo/layer.h */

#endif
