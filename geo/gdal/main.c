/* btcchat-geo: the only program of ours that links GDAL. Started by btcchat with a socket as descriptor 3 (geo/process.h). */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "geo/gdal/modes.h"
#include "geo/process.h"

static const struct mode {
  const char *name;
  int (*run)(int socket, int argc, char **argv);
} modes[] = {{"decode", geo_decode_main}, {"write", geo_write_main}};

int main(int argc, char **argv) {
  int type;
  socklen_t len = sizeof type;
  if (getsockopt(GEO_PROCESS_FD, SOL_SOCKET, SO_TYPE, &type, &len) != 0 || argc < 2) {
    fprintf(stderr, "btcchat-geo: this is a helper of btcchat, which starts it: see `btcchat scene --help`\n");
    return 2;
  }
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
    if (strcmp(argv[1], modes[i].name) == 0) return modes[i].run(GEO_PROCESS_FD, argc - 2, argv + 2);
  fprintf(stderr, "btcchat-geo: no mode '%s'\n", argv[1]);
  return 2;
}
