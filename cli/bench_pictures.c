/* See bench_pictures.h. */
#define _GNU_SOURCE
#include "bench_pictures.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/image.h"

enum { SIDE = 256 };

static btc_status write_picture(const char *path, uint32_t seed, btc_error *err) {
  uint8_t *rgb = btc_alloc((size_t)3 * SIDE * SIDE, 1), *data = NULL;
  size_t len;
  if (!rgb) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  for (size_t i = 0; i < (size_t)3 * SIDE * SIDE; i++) {
    seed = seed * 1664525u + 1013904223u;
    rgb[i] = (uint8_t)(seed >> 24);
  }
  btc_image im = {.width = SIDE, .height = SIDE, .rgb = rgb};
  btc_status st = btc_image_encode_png(&im, &data, &len, err);
  if (st == BTC_OK) st = btc_file_publish(path, data, len, err);
  free(data);
  free(rgb);
  return st;
}

btc_status bench_pictures_make(bench_pictures *p, int n, btc_error *err) {
  snprintf(p->dir, sizeof p->dir, "/tmp/btcchat-bench-XXXXXX");
  if (!mkdtemp(p->dir)) {
    p->dir[0] = 0;
    return btc_fail(err, BTC_ERR_IO, "cannot make a folder for pictures");
  }
  if (!(p->files = btc_alloc_zero((size_t)n, sizeof *p->files))) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  for (; p->n < n; p->n++) {
    char name[32];
    snprintf(name, sizeof name, "%d.png", p->n);
    if (!(p->files[p->n] = btc_path_join(p->dir, name))) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
    btc_status st = write_picture(p->files[p->n], (uint32_t)p->n + 1, err);
    if (st == BTC_OK) continue;
    free(p->files[p->n]);
    return st;
  }
  return BTC_OK;
}

void bench_pictures_remove(bench_pictures *p) {
  for (int i = 0; i < p->n; i++) {
    unlink(p->files[i]);
    free(p->files[i]);
  }
  free(p->files);
  if (p->dir[0]) rmdir(p->dir);
}
