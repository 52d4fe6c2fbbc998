/*
 * Reads every window of a scene as `btcchat scene` does, without a model: btcchat-bench-geo BEFORE AFTER [TILE OVERLAP [MOST_S]].
 * Prints one JSON object: windows, seconds, megabytes of both dates' RGB handed over a second, processor seconds and peak memory of
 * this program and of the decoder. Stops after MOST_S seconds of windows.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "geo/grid.h"
#include "geo/scene.h"

static long peak_kib(int pid) {
  char path[64], line[256];
  long kib = 0;
  snprintf(path, sizeof path, "/proc/%d/status", pid);
  FILE *f = fopen(path, "r");
  while (f && fgets(line, sizeof line, f))
    if (strncmp(line, "VmHWM:", 6) == 0) kib = strtol(line + 6, NULL, 10);
  if (f) fclose(f);
  return kib;
}

static double child_seconds(void) { /* of those that have ended */
  struct rusage u;
  getrusage(RUSAGE_CHILDREN, &u);
  return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

int main(int argc, char **argv) {
  btc_scene *s = NULL;
  btc_geo_failure f = {0};
  btc_grid g;
  btc_scene_options o = btc_scene_options_defaults();
  if (argc < 3) return fprintf(stderr, "usage: btcchat-bench-geo BEFORE AFTER [TILE OVERLAP [MOST_S]]\n"), 2;
  long tile = argc > 4 ? atol(argv[3]) : 256, overlap = argc > 4 ? atol(argv[4]) : 64;
  double most = argc > 5 ? atof(argv[5]) : 1e9;
  int64_t t0 = btc_now_ns();
  if (btc_scene_open(argv[1], argv[2], &o, &s, &f) != BTC_OK) return fprintf(stderr, "%s\n", f.error.message), 1;
  int64_t t1 = btc_now_ns();
  const btc_scene_info *i = btc_scene_get_info(s);
  if (btc_grid_make(i->width, i->height, tile, overlap, &g, &f.error) != BTC_OK) return fprintf(stderr, "%s\n", f.error.message), 1;
  size_t pixels = (size_t)g.tile * (size_t)g.tile;
  uint8_t *memory = calloc(pixels, 8);
  if (!memory) return 1;
  int64_t done = 0, failed = 0;
  for (; done < g.count && (double)(btc_now_ns() - t1) < most * 1e9; done++) {
    btc_window w = btc_grid_window(&g, btc_grid_visit(&g, i->stripe_width, done));
    failed += btc_scene_read(s, (int)w.x, (int)w.y, (int)w.width, (int)w.height, memory, memory + 3 * pixels, memory + 6 * pixels,
                             memory + 7 * pixels, &f) != BTC_OK;
  }
  double seconds = (double)(btc_now_ns() - t1) / 1e9;
  long decoder = peak_kib(btc_scene_pid(s));
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  long own = u.ru_maxrss;
  int stripe = i->stripe_width, width = i->width, height = i->height;
  btc_scene_close(&s);
  double mb = (double)done * (double)pixels * 6 / 1e6;
  printf(
      "{\"width\":%d,\"height\":%d,\"stripe\":%d,\"windows\":%lld,\"of\":%lld,\"failed\":%lld,\"open_s\":%.2f,\"seconds\":%.2f,"
      "\"windows_s\":%.1f,\"mb_s\":%.1f,\"decoder_cpu_s\":%.2f,\"decoder_peak_mb\":%.0f,\"own_peak_mb\":%.0f}\n",
      width, height, stripe, (long long)done, (long long)g.count, (long long)failed, (double)(t1 - t0) / 1e9, seconds,
      (double)done / seconds, mb / seconds, child_seconds(), (double)decoder / 1024, (double)own / 1024);
  free(memory);
  return failed ? 1 : 0;
}
