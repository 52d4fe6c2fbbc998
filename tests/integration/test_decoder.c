/*
 * The sandboxed decoder through geo/scene.h: what a window shows lies on the right ground whatever the after image's grid, files
 * that are not what they seem are refused with their reason, nothing beside an image is opened, and a decoder that dies costs one
 * window. The images are drawn by tests/tools/scene_inputs.py from a formula over the ground.
 */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "geo/scene.h"
#include "test.h"

enum { SIDE = 512 };

static char dir[256];
static uint8_t before[SIDE * SIDE * 3], after[SIDE * SIDE * 3], valid[2][SIDE * SIDE];

static const char *in(const char *name) {
  static char paths[8][400];
  static int turn;
  char *p = paths[turn++ % 8];
  snprintf(p, sizeof paths[0], "%s%s%s", name[0] == '/' ? "" : dir, name[0] == '/' ? "" : "/", name);
  return p;
}

/* Draws a group of images; before.tif is there always. Skips without GDAL for Python or without the helper. */
static void needs_images(const char *group) {
  char script[400];
  int status = 0;
  static int turn;
  snprintf(dir, sizeof dir, "%s/%d", test_tmp_dir(), turn++);
  assert_int_equal(mkdir(dir, 0755), 0);
  snprintf(script, sizeof script, "%s/tests/tools/scene_inputs.py", getenv("BTCCHAT_SOURCE"));
  pid_t pid = fork();
  if (pid == 0) {
    execl("/usr/bin/python3", "python3", script, dir, group, (char *)NULL);
    _exit(77);
  }
  assert_int_equal(waitpid(pid, &status, 0), pid);
  if (!getenv("BTCCHAT_GEO") || (WIFEXITED(status) && WEXITSTATUS(status) == 77)) skip();
  if (status != 0) fail_msg("no images to test with");
}

static btc_scene *open_with(const char *a, const char *b, const btc_scene_options *o) {
  btc_scene *s = NULL;
  btc_geo_failure f = {0};
  if (btc_scene_open(in(a), in(b), o, &s, &f) != BTC_OK) fail_msg("%s: %s", btc_geo_reason_text(f.reason), f.error.message);
  return s;
}

static btc_scene *open_pair(const char *a, const char *b) {
  btc_scene_options o = btc_scene_options_defaults();
  return open_with(a, b, &o);
}

static void read_all(btc_scene *s, int w, int h) {
  btc_geo_failure f = {0};
  memset(valid, 7, sizeof valid);
  if (btc_scene_read(s, 0, 0, w, h, before, after, valid[0], valid[1], &f) != BTC_OK) fail_msg("%s", f.error.message);
}

/* Mean difference of the two dates where both are valid; after moved by (dx, dy) pixels. */
static double difference(int dx, int dy, double *share) {
  double sum = 0;
  long n = 0;
  for (int y = 2; y < SIDE - 2; y++)
    for (int x = 2; x < SIDE - 2; x++) {
      int i = y * SIDE + x, j = (y + dy) * SIDE + x + dx;
      if (!valid[0][i] || !valid[1][j]) continue;
      for (int b = 0; b < 3; b++) sum += abs(before[3 * i + b] - after[3 * j + b]);
      n += 3;
    }
  *share = (double)n / (3.0 * (SIDE - 4) * (SIDE - 4));
  return n ? sum / (double)n : 255;
}

/* ---- the right ground ---- */

/* The waves change by some 10 levels a pixel, so half a pixel of error is seen at once. */
static void judge_ground(const char *name, double least_share, double most_difference) {
  double share, moved;
  btc_scene_options o = btc_scene_options_defaults();
  o.stretch = strcmp(name, "mercator16.tif") == 0 || strcmp(name, "rotated.tif") == 0 ? BTC_STRETCH_EACH : BTC_STRETCH_NONE;
  o.percentile_low = 0;
  o.percentile_high = 100;
  btc_scene *s = open_with("before.tif", name, &o);
  read_all(s, SIDE, SIDE);
  double here = difference(0, 0, &share);
  if (here > most_difference || share < least_share) fail_msg("%s: difference %.2f, share %.3f", name, here, share);
  for (int k = 0; k < 4; k++) {
    static const int step[4][2] = {{1, 0}, {-1, 0}, {0, 1}, {0, -1}};
    double ignored;
    moved = difference(step[k][0], step[k][1], &ignored);
    if (moved < 2.5 * here + 1) fail_msg("%s: as good one pixel away: %.2f, %.2f", name, here, moved);
  }
  btc_scene_close(&s);
}

static void test_decoder_same_grid(void **state) {
  (void)state;
  needs_images("aligned");
  judge_ground("before.tif", 1, 0);
  judge_ground("same.jp2", 1, 0);
  judge_ground("same.png", 1, 0);
  judge_ground("offset.tif", 0.74, 0);
}

static void test_decoder_layouts_of_tiff(void **state) {
  (void)state;
  needs_images("layouts");
  static const char *const names[] = {"strips.tif", "strip.tif", "lines.tif", "big.tif"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) judge_ground(names[i], 1, 0);
}

static void test_decoder_other_grids(void **state) {
  (void)state;
  needs_images("aligned");
  judge_ground("half.tif", 0.99, 2.5);
  judge_ground("fine.tif", 0.99, 1.5);
  judge_ground("degrees.tif", 0.99, 2.5);
  judge_ground("mercator16.tif", 0.99, 2.5);
  judge_ground("rotated.tif", 0.95, 2.5);
}

static void test_decoder_other_gsd(void **state) {
  double share;
  (void)state;
  needs_images("aligned");
  btc_scene_options o = btc_scene_options_defaults();
  o.gsd_m = 4;
  o.stretch = BTC_STRETCH_NONE;
  btc_scene *s = open_with("before.tif", "fine.tif", &o);
  const btc_scene_info *i = btc_scene_get_info(s);
  assert_int_equal(i->width, SIDE / 2);
  assert_int_equal(i->height, SIDE / 2);
  assert_true(fabs(i->gsd_m - 4) < 1e-9 && fabs(i->geotransform[1] - 4) < 1e-9 && i->geotransform[0] == 500000);
  read_all(s, SIDE, SIDE); /* beyond the grid nothing is valid */
  double d = difference(0, 0, &share);
  assert_true(d < 2.5 && share > 0.24 && share < 0.26);
  btc_scene_close(&s);
}

/* A window of any place equals that part of the whole. */
static void test_decoder_windows_agree(void **state) {
  (void)state;
  needs_images("aligned");
  static uint8_t part[200 * 100 * 3], part_valid[200 * 100];
  static const char *const names[] = {"offset.tif", "degrees.tif"};
  for (int k = 0; k < 2; k++) {
    btc_scene *s = open_pair("before.tif", names[k]);
    btc_geo_failure f = {0};
    long far = 0;
    read_all(s, SIDE, SIDE);
    assert_int_equal(btc_scene_read(s, 411, 333, 200, 100, NULL, part, NULL, part_valid, &f), BTC_OK);
    for (int y = 0; y < 100; y++)
      for (int x = 0; x < 200; x++) {
        bool inside = 411 + x < SIDE && 333 + y < SIDE;
        int i = (333 + y) * SIDE + 411 + x;
        if (!inside) continue;
        assert_int_equal(part_valid[y * 200 + x], valid[1][i]);
        far += abs(part[3 * (y * 200 + x)] - after[3 * i]) > 3; /* positions are to within an eighth of a pixel */
      }
    assert_true(far == 0);
    btc_scene_close(&s);
  }
}

static void test_decoder_what_is_missing(void **state) {
  (void)state;
  needs_images("holes");
  static const char *const names[] = {"nodata", "alpha", "mask", "nan"};
  for (int k = 0; k < 8; k++) {
    char name[64];
    snprintf(name, sizeof name, "hole_%s%s.tif", names[k % 4], k < 4 ? "" : "_warped");
    btc_scene *s = open_pair("before.tif", name);
    assert_int_equal(btc_scene_get_info(s)->after.direct, k < 4);
    read_all(s, SIDE, SIDE);
    for (int y = 10; y < SIDE - 10; y++)
      for (int x = 10; x < SIDE - 10; x++) {
        if (k >= 4 && (abs(x - 100) < 3 || abs(x - 200) < 3)) continue; /* the edge of the hole, half a pixel away */
        bool hole = x >= 100 && x < 200;
        int i = y * SIDE + x;
        if (valid[1][i] != !hole) fail_msg("%s: pixel %d, %d is %svalid", name, x, y, hole ? "" : "not ");
        if (hole) assert_int_equal(after[3 * i], 0);
      }
    btc_scene_close(&s);
  }
}

static void test_decoder_shift(void **state) {
  (void)state;
  needs_images("shifts");
  static const struct {
    const char *name;
    double x, y;
  } cases[] = {{"rough.tif", 0, 0}, {"shifted.tif", 3.4, -2.25}, {"shifted_more.tif", -17, 9.5}};
  for (size_t k = 0; k < 3; k++) {
    double share;
    btc_scene_options o = btc_scene_options_defaults();
    o.shift = BTC_SHIFT_APPLY;
    btc_scene *s = open_with("rough.tif", cases[k].name, &o);
    const btc_scene_info *i = btc_scene_get_info(s);
    if (!i->shift_estimated || !i->shift_applied || fabs(i->shift_x - cases[k].x) > 0.1 || fabs(i->shift_y - cases[k].y) > 0.1)
      fail_msg("%s: shift %.2f, %.2f", cases[k].name, i->shift_x, i->shift_y);
    assert_true(i->shift_confidence > 0.5);
    read_all(s, SIDE, SIDE);
    double d = difference(0, 0, &share);
    if (d > 3.5 || share < 0.9) fail_msg("%s: difference %.2f after the shift, share %.2f", cases[k].name, d, share);
    btc_scene_close(&s);
  }
  btc_scene_options o = btc_scene_options_defaults();
  o.shift = BTC_SHIFT_APPLY;
  btc_scene *s = open_with("rough.tif", "before.tif", &o); /* nothing in common: nothing to undo */
  assert_false(btc_scene_get_info(s)->shift_applied);
  assert_true(btc_scene_get_info(s)->shift_confidence < BTC_SCENE_MIN_CONFIDENCE);
  btc_scene_close(&s);
}

/* ---- what is not what it seems ---- */

static btc_geo_reason reason_of(const char *a, const char *b, const char *roots) {
  btc_scene *s = NULL;
  btc_geo_failure f = {0};
  btc_scene_options o = btc_scene_options_defaults();
  o.roots = roots;
  if (btc_scene_open(in(a), in(b), &o, &s, &f) == BTC_OK) {
    btc_scene_close(&s);
    return BTC_GEO_NONE;
  }
  assert_true(strlen(f.error.message) > 10);
  return f.reason;
}

static void test_decoder_refuses(void **state) {
  (void)state;
  needs_images("hostile");
  static const struct {
    const char *name;
    btc_geo_reason reason;
  } cases[] = {{"vrt.tif", BTC_GEO_DECODE},
               {"vrt.png", BTC_GEO_DECODE},
               {"words.tif", BTC_GEO_DECODE},
               {"nothing.tif", BTC_GEO_DECODE},
               {"sparse.tif", BTC_GEO_DIMS},
               {"empty.tif", BTC_GEO_DIMS},
               {"block.tif", BTC_GEO_DIMS},
               {"bomb.png", BTC_GEO_DIMS},
               {"pipe.tif", BTC_GEO_POLICY},
               {".", BTC_GEO_POLICY},
               {"absent.tif", BTC_GEO_NOT_FOUND},
               {"MEM:::DATAPOINTER=4096,PIXELS=9,LINES=9", BTC_GEO_NOT_FOUND},
               {"/vsicurl/http://127.0.0.1:9/a.tif", BTC_GEO_POLICY},
               {"/vsizip//tmp/a.zip/a.tif", BTC_GEO_POLICY},
               {"/vsimem/a.tif", BTC_GEO_POLICY},
               {"/vsistdin/", BTC_GEO_POLICY},
               {"/vsisubfile/0_9,/etc/passwd", BTC_GEO_POLICY},
               {"far.tif", BTC_GEO_NO_OVERLAP},
               {"bare.png", BTC_GEO_BAD_REQUEST}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    btc_geo_reason r = reason_of("before.tif", cases[i].name, NULL);
    if (r != cases[i].reason)
      fail_msg("%s: '%s' in place of '%s'", cases[i].name, btc_geo_reason_text(r), btc_geo_reason_text(cases[i].reason));
  }
  assert_int_equal(reason_of("bare.png", "bare.png", NULL), BTC_GEO_NONE);
}

static void test_decoder_stays_inside_the_roots(void **state) {
  (void)state;
  needs_images("sidecars");
  char inside[400];
  snprintf(inside, sizeof inside, "%s", in("inside"));
  assert_int_equal(reason_of("inside/a.tif", "inside/a.tif", inside), BTC_GEO_NONE);
  assert_int_equal(reason_of("inside/a.tif", "inside/link.tif", inside), BTC_GEO_POLICY);
  assert_int_equal(reason_of("inside/a.tif", "inside/dir/secret.tif", inside), BTC_GEO_POLICY);
  assert_int_equal(reason_of("inside/a.tif", "inside/../outside/secret.tif", inside), BTC_GEO_POLICY);
  assert_int_equal(reason_of("inside/a.tif", "outside/secret.tif", inside), BTC_GEO_POLICY);
  assert_int_equal(reason_of("inside/a.tif", "inside/w.png", inside), BTC_GEO_POLICY); /* its world file is a link out */
  assert_int_equal(reason_of("inside/a.tif", "inside/link.tif", NULL), BTC_GEO_NONE);
}

/* A server of the folder on loopback; returns its port. It ends when `*end` is closed. */
static int serve(pid_t *pid, int *end) {
  int in_pipe[2], out_pipe[2];
  char script[400], port[16] = "";
  snprintf(script, sizeof script, "%s/tests/tools/range_server.py", getenv("BTCCHAT_SOURCE"));
  assert_int_equal(pipe(in_pipe) | pipe(out_pipe), 0);
  *pid = fork();
  if (*pid == 0) {
    dup2(in_pipe[0], 0);
    dup2(out_pipe[1], 1);
    close(in_pipe[1]);
    close(out_pipe[0]);
    execl("/usr/bin/python3", "python3", script, dir, (char *)NULL);
    _exit(77);
  }
  close(in_pipe[0]);
  close(out_pipe[1]);
  for (size_t n = 0; n < sizeof port - 1 && !strchr(port, '\n'); n++) /* whole, or the server's print fails */
    assert_int_equal(read(out_pipe[0], port + n, 1), 1);
  close(out_pipe[0]);
  *end = in_pipe[1];
  return (int)strtol(port, NULL, 10);
}

/* The same pixels over the network as from the disk, when it is allowed. */
static void test_decoder_network_paths_when_allowed(void **state) {
  (void)state;
  needs_images("none");
  char url[128];
  double share;
  pid_t pid;
  int end, port = serve(&pid, &end);
  btc_scene_options o = btc_scene_options_defaults();
  snprintf(url, sizeof url, "/vsicurl/http://127.0.0.1:%d/before.tif", port);
  o.stretch = BTC_STRETCH_NONE;
  o.allow_vsi = true;
  btc_scene *s = open_with("before.tif", url, &o);
  read_all(s, SIDE, SIDE);
  assert_true(difference(0, 0, &share) == 0);
  assert_true(share == 1);
  btc_scene_close(&s);
  snprintf(url, sizeof url, "/vsicurl/http://127.0.0.1:%d/absent.tif", port);
  btc_geo_failure f = {0};
  assert_int_not_equal(btc_scene_open(in("before.tif"), url, &o, &s, &f), BTC_OK);
  assert_true(f.reason == BTC_GEO_NOT_FOUND || f.reason == BTC_GEO_DECODE);
  close(end);
  assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* Links to a canary stand at every name that GDAL looks for beside an image. */
static void test_decoder_opens_nothing_else(void **state) {
  (void)state;
  needs_images("sidecars");
  _Alignas(struct inotify_event) char events[4096];
  int watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
  assert_true(watch >= 0);
  assert_true(inotify_add_watch(watch, in("outside/secret.tif"), IN_OPEN | IN_ACCESS) >= 0);
  btc_scene *s = open_pair("inside/a.tif", "inside/a.tif");
  read_all(s, SIDE, SIDE);
  btc_scene_close(&s);
  s = open_pair("inside/a.png", "inside/a.png");
  read_all(s, SIDE, SIDE);
  btc_scene_close(&s);
  assert_int_equal(read(watch, events, sizeof events), -1);
  btc_geo_failure f; /* and the watch does see */
  btc_scene_options o = btc_scene_options_defaults();
  assert_int_equal(btc_scene_open(in("inside/a.tif"), in("inside/link.tif"), &o, &s, &f), BTC_OK);
  btc_scene_close(&s);
  assert_true(read(watch, events, sizeof events) > 0);
  close(watch);
}

static void assert_line(const char *file, const char *line) {
  char path[64], text[16384];
  snprintf(path, sizeof path, "/proc/%s", file);
  FILE *f = fopen(path, "r");
  assert_non_null(f);
  text[fread(text, 1, sizeof text - 1, f)] = 0;
  fclose(f);
  if (!strstr(text, line)) fail_msg("%s has no line '%s'", path, line);
}

static void test_decoder_is_shut_in(void **state) {
  (void)state;
  needs_images("none");
  btc_scene *s = open_pair("before.tif", "half.tif");
  char status[32], limits[32];
  snprintf(status, sizeof status, "%d/status", btc_scene_pid(s));
  snprintf(limits, sizeof limits, "%d/limits", btc_scene_pid(s));
  assert_line(status, "Seccomp:\t2\n");
  assert_line(status, "NoNewPrivs:\t1\n");
  assert_line(limits, "Max file size             0                    0                    bytes");
  assert_line(limits, "Max core file size        0                    0                    bytes");
  btc_scene_close(&s);
}

/* ---- its end ---- */

static void test_decoder_truncated_costs_windows(void **state) {
  (void)state;
  needs_images("hostile");
  btc_scene *s = open_pair("before.tif", "cut.tif");
  btc_geo_failure f = {0};
  int good = 0, bad = 0;
  for (int k = 0; k < 16; k++) {
    btc_status st = btc_scene_read(s, k % 4 * 128, k / 4 * 128, 128, 128, before, after, valid[0], valid[1], &f);
    if (st != BTC_OK) assert_int_equal(f.reason, BTC_GEO_DECODE);
    good += st == BTC_OK;
    bad += st != BTC_OK;
  }
  assert_true(good > 0 && bad > 0);
  assert_int_equal(btc_scene_starts(s), 1);
  btc_scene_close(&s);
}

static void *kill_soon(void *pid) {
  usleep(200000);
  kill(*(pid_t *)pid, SIGKILL);
  return NULL;
}

static void test_decoder_killed_in_a_read(void **state) {
  (void)state;
  needs_images("none");
  btc_scene *s = open_pair("before.tif", "half.tif");
  btc_geo_failure f = {0};
  pthread_t killer;
  pid_t pid = btc_scene_pid(s);
  read_all(s, SIDE, SIDE);
  double share, first = difference(0, 0, &share);
  kill(pid, SIGSTOP); /* so that the read is sure to be going on */
  assert_int_equal(pthread_create(&killer, NULL, kill_soon, &pid), 0);
  assert_int_not_equal(btc_scene_read(s, 0, 0, 64, 64, before, after, NULL, NULL, &f), BTC_OK);
  assert_int_equal(f.reason, BTC_GEO_CRASH);
  pthread_join(killer, NULL);
  read_all(s, SIDE, SIDE); /* the next window has another decoder, and the same pixels */
  assert_int_equal(btc_scene_starts(s), 2);
  assert_true(difference(0, 0, &share) == first);
  btc_scene_close(&s);
}

static void test_decoder_that_hangs(void **state) {
  (void)state;
  needs_images("none");
  btc_scene_options o = btc_scene_options_defaults();
  o.read_ms = 300;
  btc_scene *s = open_with("before.tif", "before.tif", &o);
  btc_geo_failure f = {0};
  kill(btc_scene_pid(s), SIGSTOP);
  assert_int_not_equal(btc_scene_read(s, 0, 0, 64, 64, before, after, NULL, NULL, &f), BTC_OK);
  assert_int_equal(f.reason, BTC_GEO_TIMEOUT);
  assert_int_equal(btc_scene_pid(s), 0);
  btc_scene_close(&s);
}

static void test_decoder_out_of_memory(void **state) {
  (void)state;
  needs_images("none");
#if !defined(__SANITIZE_ADDRESS__) /* there the limit is not set */
  btc_scene_options o = btc_scene_options_defaults();
  btc_scene *s = NULL;
  btc_geo_failure f = {0};
  o.memory_bytes = 1 << 20;
  btc_status st = btc_scene_open(in("before.tif"), in("half.tif"), &o, &s, &f);
  if (st == BTC_OK) st = btc_scene_read(s, 0, 0, 2000, 2000, NULL, NULL, NULL, NULL, &f);
  assert_int_not_equal(st, BTC_OK);
  assert_true(f.reason == BTC_GEO_OOM || f.reason == BTC_GEO_CRASH || f.reason == BTC_GEO_DECODE);
  btc_scene_close(&s);
#endif
}

/* A helper that answers nonsense, as one might that a file has taken over. */
static void test_decoder_that_lies(void **state) {
  (void)state;
  needs_images("none");
  static const char *const lies[] = {"printf '\\377\\377\\377\\377' >&3", "printf '\\2\\0\\0\\0{}' >&3",
                                     "printf '\\2\\0\\0\\0[]' >&3", "printf '\\377\\0\\0\\0{' >&3", "exit 3"};
  char own[512], path[400];
  snprintf(own, sizeof own, "%s", getenv("BTCCHAT_GEO"));
  for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
    snprintf(path, sizeof path, "%s", in("liar"));
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "#!/bin/sh\n%s\n", lies[i]);
    fclose(f);
    chmod(path, 0755);
    setenv("BTCCHAT_GEO", path, 1);
    btc_geo_reason r = reason_of("before.tif", "before.tif", NULL);
    setenv("BTCCHAT_GEO", own, 1);
    if (r != BTC_GEO_CRASH) fail_msg("%s: %s", lies[i], btc_geo_reason_text(r));
  }
  setenv("BTCCHAT_GEO", in("no-such-helper"), 1);
  assert_int_equal(reason_of("before.tif", "before.tif", NULL), BTC_GEO_INTERNAL);
  setenv("BTCCHAT_GEO", own, 1);
}

/* ---- real files ---- */

static void test_decoder_edge_files(void **state) {
  (void)state;
  needs_images("none");
  skip_without_shared();
  static const struct {
    const char *name;
    btc_geo_reason reason;
    int lost; /* of its windows of 256 pixels; -1: at least one */
  } cases[] = {{"389225main_sw_1965_1024.jpg", BTC_GEO_NONE, 0},
               {"RGB.byte.gcp.vrt", BTC_GEO_DECODE, 0},
               {"RGB.byte.tif", BTC_GEO_NONE, 0},
               {"RGBA.uint16.tif", BTC_GEO_NONE, 0},
               {"all-nodata.tif", BTC_GEO_NONE, 0},
               {"alpha.tif", BTC_GEO_NONE, 0},
               {"byte.tif", BTC_GEO_NONE, 0},
               {"cogeo.tif", BTC_GEO_NONE, 0},
               {"compdcs.vrt", BTC_GEO_DECODE, 0},
               {"corrupt.tif", BTC_GEO_NONE, -1},
               {"float_nan.tif", BTC_GEO_NONE, 0},
               {"float_raster_with_nodata.tif", BTC_GEO_NONE, 0},
               {"goes.tif", BTC_GEO_NONE, 0},
               {"rgb1.tif", BTC_GEO_NONE, 0},
               {"rgb2.tif", BTC_GEO_NONE, 0},
               {"rotated.tif", BTC_GEO_NONE, 0}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char path[400];
    snprintf(path, sizeof path, "data/edge/%s", cases[i].name);
    snprintf(path, sizeof path, "%s", shared_path(path));
    assert_int_equal(reason_of(path, path, NULL), cases[i].reason);
    if (cases[i].reason != BTC_GEO_NONE) continue;
    btc_scene *s = open_pair(path, path);
    const btc_scene_info *info = btc_scene_get_info(s);
    int lost = 0;
    long seen = 0;
    for (int y = 0; y < info->height; y += 256)
      for (int x = 0; x < info->width; x += 256) {
        btc_geo_failure f = {0};
        btc_status st = btc_scene_read(s, x, y, 256, 256, before, after, valid[0], valid[1], &f);
        if (st != BTC_OK) assert_int_equal(f.reason, BTC_GEO_DECODE);
        lost += st != BTC_OK;
        for (int k = 0; st == BTC_OK && k < 256 * 256; k++) seen += valid[0][k];
      }
    if ((lost != cases[i].lost && cases[i].lost >= 0) || (cases[i].lost < 0 && !lost)) fail_msg("%s: %d windows lost", path, lost);
    assert_int_equal(seen == 0, strcmp(cases[i].name, "all-nodata.tif") == 0);
    assert_int_equal(btc_scene_starts(s), 1);
    btc_scene_close(&s);
  }
}

static void test_decoder_landsat_pair(void **state) {
  (void)state;
  needs_images("none");
  const char *b7 = "/usr/lib/R/site-library/satellite/extdata/LE07_L1TP_195025_20010730_20170204_01_T1_B3.TIF";
  const char *b8 = "/usr/lib/R/site-library/satellite/extdata/LC08_L1TP_195025_20130707_20170503_01_T1_B4.TIF";
  if (access(b7, R_OK) != 0 || access(b8, R_OK) != 0) skip();
  btc_scene *s = open_pair(b7, b8);
  const btc_scene_info *i = btc_scene_get_info(s);
  assert_int_equal(i->stretch, BTC_STRETCH_EACH); /* 8-bit values of 2001 against 16-bit ones of 2013 */
  assert_true(i->before.high[0] < 256 && i->after.low[0] > 1000);
  btc_scene_close(&s);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_decoder_same_grid),
    cmocka_unit_test(test_decoder_layouts_of_tiff),
    cmocka_unit_test(test_decoder_other_grids),
    cmocka_unit_test(test_decoder_other_gsd),
    cmocka_unit_test(test_decoder_windows_agree),
    cmocka_unit_test(test_decoder_what_is_missing),
    cmocka_unit_test(test_decoder_shift),
    cmocka_unit_test(test_decoder_refuses),
    cmocka_unit_test(test_decoder_stays_inside_the_roots),
    cmocka_unit_test(test_decoder_network_paths_when_allowed),
    cmocka_unit_test(test_decoder_opens_nothing_else),
    cmocka_unit_test(test_decoder_is_shut_in),
    cmocka_unit_test(test_decoder_truncated_costs_windows),
    cmocka_unit_test(test_decoder_killed_in_a_read),
    cmocka_unit_test(test_decoder_that_hangs),
    cmocka_unit_test(test_decoder_out_of_memory),
    cmocka_unit_test(test_decoder_that_lies),
    cmocka_unit_test(test_decoder_edge_files),
    cmocka_unit_test(test_decoder_landsat_pair),
};

BTC_TEST_MAIN(tests)
