/* Pictures of noise for benches: files in a folder of their own. */
#ifndef BTC_CLI_BENCH_PICTURES_H
#define BTC_CLI_BENCH_PICTURES_H

#include "base/base.h"

typedef struct bench_pictures {
  char dir[64];
  char **files; /* [n] */
  int n;
} bench_pictures;

/* Zero it first; remove frees, also after an error. */
btc_status bench_pictures_make(bench_pictures *p, int n, btc_error *err);
void bench_pictures_remove(bench_pictures *p);

#endif
