/*
 * btcchat scene from outside: layers, map and records lie on the ground they speak of (judged by GDAL and rasterio, in
 * tests/tools/scene_files.py), a run that is killed ends as if it had not been, nothing half-written is left, and the queue gives
 * the same files. Scenes are mosaics of the samples, with changes only where the script put them.
 */
#define _GNU_SOURCE
#include <jansson.h>
#include <linux/capability.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cluster.h"
#include "engine/image.h"
#include "program.h"
#include "test.h"

static char dir[256];

static const char *in(const char *name) {
  static char paths[8][400];
  static int turn;
  char *p = paths[turn++ % 8];
  snprintf(p, sizeof paths[0], "%s/%s", dir, name);
  return p;
}

static const char *source(const char *name) {
  static char paths[4][400];
  static int turn;
  char *p = paths[turn++ % 4];
  snprintf(p, sizeof paths[0], "%s/%s", getenv("BTCCHAT_SOURCE"), name);
  return p;
}

/* Runs the script and returns its exit code. */
static int script(const char *what, const char *a, const char *b, const char *c) {
  const char *path = source("tests/tools/scene_files.py");
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) {
    execl("/usr/bin/python3", "python3", path, what, a, b, c, (char *)NULL);
    _exit(77);
  }
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int setup(void **state) {
  (void)state;
  snprintf(dir, sizeof dir, "%s", test_tmp_dir());
  int code = script("make", dir, source("samples"), NULL);
  if (code != 0 && code != 77) fail_msg("no scenes to test with");
  if (code == 77) dir[0] = 0;
  return 0;
}

static void needs_scenes(void) {
  if (!*dir) skip();
}

static program_result scene(const char *before, const char *after, const char *out, const char *more) {
  program_result r = RUN("scene", in(before), in(after), "-o", in(out), "-t", "1", "--json", more);
  if (r.code != 0) fail_msg("exit code %d: %s", r.code, r.err);
  return r;
}

static long count(const program_result *r, const char *key, const char *inner) {
  json_t *o = json_loads(r->out, 0, NULL);
  const json_t *v = json_object_get(o, key);
  if (inner) v = json_object_get(v, inner);
  assert_true(json_is_integer(v));
  long n = (long)json_integer_value(v);
  json_decref(o);
  return n;
}

static bool exists(const char *name) {
  struct stat s;
  return stat(in(name), &s) == 0;
}

/* ---- ground ---- */

static void check_case(const char *before, const char *after, const char *out, const char *more, long unchanged) {
  char gpkg[64];
  needs_scenes();
  snprintf(gpkg, sizeof gpkg, "%s.gpkg", out);
  program_result r = scene(before, after, gpkg, more);
  assert_int_equal(count(&r, "windows", NULL), 20);
  assert_int_equal(count(&r, "failed", NULL), 0);
  if (unchanged >= 0) assert_int_equal(count(&r, "skipped", "unchanged"), unchanged);
  assert_true(count(&r, "changed", NULL) >= 3);
  program_clear(&r);
  char work[64];
  snprintf(work, sizeof work, "%s.scene-work", out);
  assert_false(exists(work));
  assert_int_equal(script("check", in(out), in(before), in(after)), 0);
}

static void test_scene_on_one_grid(void **state) {
  (void)state;
  check_case("before.tif", "same.tif", "same", NULL, 9);
}

static void test_scene_in_another_zone_and_resolution(void **state) {
  (void)state;
  check_case("before.tif", "warped.tif", "warped", NULL, 0);
}

static void test_scene_of_16_bits_in_mercator(void **state) {
  (void)state;
  check_case("before16.tif", "mercator16.tif", "mercator16", NULL, 0);
}

static void test_scene_that_is_shifted_leaves_out_what_is_not_common(void **state) {
  (void)state;
  needs_scenes();
  program_result r = scene("before.tif", "shifted.tif", "shifted.gpkg", NULL);
  assert_true(count(&r, "skipped", "no-overlap") >= 4); /* the first column of windows: 390 pixels are missing on the left */
  assert_true(count(&r, "skipped", "nodata") > 0);
  program_clear(&r);
  assert_int_equal(script("check", in("shifted"), in("before.tif"), in("shifted.tif")), 0);
}

static void test_scene_with_a_hole_hides_it_in_both(void **state) {
  (void)state;
  needs_scenes();
  program_result r = scene("before.tif", "hole.tif", "hole.gpkg", NULL);
  assert_int_equal(count(&r, "skipped", "nodata"), 4); /* one column; the next lacks 108 of 256 pixels */
  program_clear(&r);
  assert_int_equal(script("check", in("hole"), in("before.tif"), in("hole.tif")), 0);
}

static void test_scene_of_real_pairs(void **state) {
  (void)state;
  needs_scenes();
  skip_without_shared();
  char shared[300];
  snprintf(shared, sizeof shared, "%s", shared_path("."));
  assert_int_equal(script("levir", dir, shared, NULL), 0);
  program_result r = scene("levir_before.tif", "levir_after.tif", "levir.gpkg", NULL);
  assert_int_equal(count(&r, "ok", NULL), 20);
  program_clear(&r);
  assert_int_equal(script("check", in("levir"), in("levir_before.tif"), in("levir_after.tif")), 0);
}

/* ---- dates, estimate, refusals ---- */

static void test_scene_records_have_dates(void **state) {
  (void)state;
  needs_scenes();
  program_result r =
      RUN("scene", in("before.tif"), in("same.tif"), "-o", in("dates.gpkg"), "--after-date", "2021-06-02", "--tile", "512");
  assert_int_equal(r.code, 0);
  program_clear(&r);
  json_t *o = json_load_file(in("dates.jsonl"), JSON_DISABLE_EOF_CHECK, NULL);
  const json_t *dates = json_object_get(o, "dates");
  assert_string_equal(json_string_value(json_object_get(dates, "before")), "2019-05-31T10:20:30"); /* TIFFTAG_DATETIME */
  assert_string_equal(json_string_value(json_object_get(dates, "after")), "2021-06-02");
  json_decref(o);
}

static void test_scene_dry_run_writes_nothing(void **state) {
  (void)state;
  needs_scenes();
  program_result r = RUN("scene", in("before.tif"), in("same.tif"), "--dry-run", "--json", "-o", in("dry.gpkg"));
  assert_int_equal(r.code, 0);
  json_t *o = json_loads(r.out, 0, NULL);
  assert_int_equal(json_integer_value(json_object_get(o, "windows")), 20);
  assert_int_equal(json_integer_value(json_object_get(o, "columns")), 5);
  assert_true(json_number_value(json_object_get(o, "memory_mb")) > 1);
  json_decref(o);
  program_clear(&r);
  assert_false(exists("dry.gpkg") || exists("dry.scene-work"));
}

static void test_scene_on_a_coarser_grid(void **state) {
  (void)state;
  needs_scenes();
  double gsd[2];
  long width[2];
  for (int i = 0; i < 2; i++) {
    char text[32];
    if (i) snprintf(text, sizeof text, "%g", 2 * gsd[0]);
    program_result r =
        RUN("scene", in("before.tif"), in("same.tif"), "--dry-run", "--json", "-o", in("coarse.gpkg"), "--gsd", i ? text : "0");
    assert_int_equal(r.code, 0);
    json_t *o = json_loads(r.out, 0, NULL);
    gsd[i] = json_number_value(json_object_get(o, "gsd_m"));
    width[i] = (long)json_integer_value(json_object_get(o, "width"));
    json_decref(o);
    program_clear(&r);
  }
  assert_true(gsd[0] > 0 && fabs(gsd[1] - 2 * gsd[0]) < 1e-9);
  assert_in_range(width[1], width[0] / 2, (width[0] + 1) / 2);
}

/* The mean of a channel of the first picture of a gallery. */
static double mean(const char *gallery, int channel) {
  char path[128];
  btc_image im;
  btc_error err;
  double sum = 0;
  snprintf(path, sizeof path, "%s/images/000/000000-before.jpg", gallery);
  if (btc_image_decode_file(in(path), NULL, &im, &err) != BTC_OK) fail_msg("%s", err.message);
  for (int64_t i = 0; i < im.width * im.height; i++) sum += im.rgb[3 * i + channel];
  sum /= (double)(im.width * im.height);
  btc_image_free(&im);
  return sum;
}

static void test_scene_gallery_shows_what_the_model_saw(void **state) {
  (void)state;
  needs_scenes();
  program_result r = scene("before.tif", "same.tif", "rgb.gpkg", NULL);
  program_clear(&r);
  r = RUN("scene", in("before.tif"), in("same.tif"), "-o", in("bgr.gpkg"), "--bands", "3,2,1", "--stretch", "0,510");
  assert_int_equal(r.code, 0);
  program_clear(&r);
  static const char *const names[] = {"rgb", "bgr"};
  for (int i = 0; i < 2; i++) {
    char gpkg[32], gallery[32];
    snprintf(gpkg, sizeof gpkg, "%s.gpkg", names[i]);
    snprintf(gallery, sizeof gallery, "%s-gallery", names[i]);
    r = RUN("report", in(gpkg), "-o", in(gallery));
    if (r.code) fail_msg("report: %s", r.err);
    program_clear(&r);
  }
  assert_true(fabs(mean("rgb-gallery", 0) - mean("rgb-gallery", 2)) > 8); /* else nothing is shown by this */
  for (int k = 0; k < 3; k++) assert_true(fabs(mean("rgb-gallery", k) - 2 * mean("bgr-gallery", 2 - k)) < 5);
}

static void expect_refusal(const char *const args[], int code, const char *word) {
  program_result r = program_run(args, NULL);
  assert_int_equal(r.code, code);
  if (!strstr(r.err, word)) fail_msg("no '%s' in: %s", word, r.err);
  program_clear(&r);
}
#define REFUSED(code, word, ...) expect_refusal((const char *const[]){"scene", __VA_ARGS__, NULL}, code, word)

static void test_scene_refuses_in_words(void **state) {
  (void)state;
  needs_scenes();
  REFUSED(2, "OUT.gpkg", in("before.tif"), in("same.tif"));
  REFUSED(2, "NAME.gpkg", in("before.tif"), in("same.tif"), "-o", in("x.tif"));
  REFUSED(2, "overlap", in("before.tif"), in("same.tif"), "-o", in("x.gpkg"), "--overlap", "256");
  REFUSED(2, "dates", in("before.tif"), in("same.tif"), "-o", in("x.gpkg"), "--before-date", "May 2019");
  REFUSED(2, "bands", in("before.tif"), in("same.tif"), "-o", in("x.gpkg"), "--bands", "1,2");
  REFUSED(1, "not-found", in("before.tif"), in("nowhere.tif"), "-o", in("x.gpkg"));
  REFUSED(1, "no-overlap", in("before.tif"), in("elsewhere.tif"), "-o", in("x.gpkg"));
  REFUSED(1, "nowhere/x.scene-work", in("before.tif"), in("same.tif"), "-o", in("nowhere/x.gpkg"));
  assert_false(exists("x.gpkg") || exists("x.scene-work"));
}

/* ---- interruptions ---- */

static long journal_size(const char *name) {
  struct stat s;
  return stat(in(name), &s) == 0 ? (long)s.st_size : 0;
}

static void start(daemon_process *d, const char *name, const char *out, const char *more) {
  daemon_init(
      d, name,
      (const char *const[]){"scene", in("before.tif"), in("warped.tif"), "-o", in(out), "-t", "1", "--overlap", "160", more, NULL});
  daemon_start(d);
}

/* Kills it when its journal has grown past so many bytes. */
static int kill_at(daemon_process *d, const char *journal, long bytes, int number) {
  for (int i = 0; i < 3000 && daemon_alive(d) && journal_size(journal) < bytes; i++) test_sleep_ms(10);
  daemon_signal(d, number);
  return d->pid ? daemon_wait(d, 60000) : d->code;
}

static void test_scene_goes_on_after_every_kill(void **state) {
  (void)state;
  needs_scenes();
  daemon_process d;
  start(&d, "whole", "whole.gpkg", NULL);
  assert_int_equal(daemon_wait(&d, 100000), 0);
  long grown = 0;
  for (int i = 0; i < 6; i++) { /* at the first entry, in the middle, and by Ctrl-C, which must end it in order */
    start(&d, "killed", "killed.gpkg", NULL);
    int code = kill_at(&d, "killed.scene-work/journal", grown + 3000 + 5000 * i, i % 3 == 2 ? SIGINT : SIGKILL);
    if (i % 3 == 2 && !exists("killed.gpkg")) assert_int_equal(code, 130);
    if (exists("killed.gpkg")) break;
    assert_true(journal_size("killed.scene-work/journal") > grown);
    grown = journal_size("killed.scene-work/journal");
  }
  if (!exists("killed.gpkg")) {
    start(&d, "killed", "killed.gpkg", NULL);
    assert_int_equal(daemon_wait(&d, 100000), 0);
    assert_true(daemon_said(&d, "going on"));
  }
  assert_false(exists("killed.scene-work"));
  assert_int_equal(script("equal", in("whole.jsonl"), in("killed.jsonl"), NULL), 0);
  program_result r = RUN("scene", in("before.tif"), in("warped.tif"), "-o", in("killed.gpkg"));
  assert_int_equal(r.code, 1); /* finished: nothing is done twice unless asked for */
  assert_non_null(strstr(r.err, "--overwrite"));
  program_clear(&r);
}

static void test_scene_leaves_another_runs_work_alone(void **state) {
  (void)state;
  needs_scenes();
  daemon_process d;
  start(&d, "other", "other.gpkg", NULL);
  kill_at(&d, "other.scene-work/journal", 3000, SIGKILL);
  program_result r = RUN("scene", in("before.tif"), in("warped.tif"), "-o", in("other.gpkg"), "--overlap", "161");
  assert_int_equal(r.code, 1);
  assert_non_null(strstr(r.err, "--restart"));
  program_clear(&r);
  assert_true(journal_size("other.scene-work/journal") >= 3000);
  start(&d, "other", "other.gpkg", "--restart");
  assert_int_equal(daemon_wait(&d, 100000), 0);
  assert_false(daemon_said(&d, "going on"));
}

/* No file may grow past so many bytes: what a full disk looks like. */
static void fails_with_small_files(rlim_t bytes, const char *more) {
  struct rlimit old, low;
  getrlimit(RLIMIT_FSIZE, &old);
  low = (struct rlimit){.rlim_cur = bytes, .rlim_max = old.rlim_max};
  setrlimit(RLIMIT_FSIZE, &low);
  program_result r = RUN("scene", in("before.tif"), in("same.tif"), "-o", in("full.gpkg"), "-t", "1", more);
  setrlimit(RLIMIT_FSIZE, &old);
  if (r.code != 1) fail_msg("exit code %d: %s", r.code, r.err);
  program_clear(&r);
}

static void test_scene_full_disk_leaves_nothing_half_written(void **state) {
  (void)state;
  needs_scenes();
  static const rlim_t limits[] = {2000, 60000}; /* in the journal; in the outputs */
  for (int i = 0; i < 2; i++) {
    fails_with_small_files(limits[i], NULL);
    static const char *const names[] = {"full.gpkg",
                                        "full.geojson",
                                        "full.jsonl",
                                        "full.heat.tif",
                                        "full.scene-work/layer.gpkg",
                                        "full.scene-work/records.jsonl",
                                        "full.scene-work/heat.raw"};
    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++)
      if (exists(names[k])) fail_msg("%s was left", names[k]);
  }
  program_result r = RUN("scene", in("before.tif"), in("same.tif"), "-o", in("full.gpkg"), "-t", "1");
  assert_int_equal(r.code, 0);
  assert_non_null(strstr(r.err, "20 of 20 windows are finished")); /* only the outputs were made again */
  program_clear(&r);
  assert_int_equal(script("check", in("full"), in("before.tif"), in("same.tif")), 0);
  static const char *const outputs[] = {"full.gpkg", "full.geojson", "full.jsonl", "full.heat.tif"};
  enum { OUTPUTS = sizeof outputs / sizeof outputs[0] };
  struct stat old[OUTPUTS], now;
  for (int k = 0; k < OUTPUTS; k++) assert_int_equal(stat(in(outputs[k]), &old[k]), 0);
  fails_with_small_files(60000, "--overwrite");
  for (int k = 0; k < OUTPUTS; k++) { /* the old ones are all still there */
    assert_int_equal(stat(in(outputs[k]), &now), 0);
    assert_int_equal(now.st_ino, old[k].st_ino);
    assert_int_equal(now.st_size, old[k].st_size);
  }
}

/* Root may write everywhere unless it gives that right up, which holds for what it starts; for others nothing changes. */
static void test_scene_says_where_it_may_not_write(void **state) {
  (void)state;
  needs_scenes();
  (void)prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0);
  assert_int_equal(mkdir(in("shut"), 0755), 0);
  program_result r = RUN("scene", in("before.tif"), in("same.tif"), "-o", in("shut/x.gpkg"), "-t", "1", "--tile", "512");
  assert_int_equal(r.code, 0);
  program_clear(&r);
  assert_int_equal(chmod(in("shut"), 0555), 0);
  static const char *const commands[][4] = {{"scene", "same.tif", "shut/y.gpkg", "shut/y.scene-work"},
                                            {"report", NULL, "shut/gallery", "shut/gallery"},
                                            {"plan", NULL, "shut/plan.jsonl", "shut/plan.jsonl"}};
  for (int i = 0; i < 3; i++) {
    const char *const *c = commands[i], *from = i == 0 ? in("before.tif") : i == 1 ? in("shut/x.gpkg") : dir;
    r = c[1] ? RUN(c[0], from, in(c[1]), "-o", in(c[2])) : RUN(c[0], from, "-o", in(c[2]));
    if (r.code != 1 || !strstr(r.err, "Permission denied") || !strstr(r.err, c[3])) fail_msg("%s: %d, %s", c[0], r.code, r.err);
    program_clear(&r);
  }
  assert_int_equal(chmod(in("shut"), 0755), 0);
}

/* ---- the queue ---- */

static void test_scene_over_the_queue_is_the_same(void **state) {
  (void)state;
  needs_scenes();
  static char model[400];
  cluster c;
  snprintf(model, sizeof model, "%s", source("models/nano"));
  cluster_start(&c, &(cluster_options){.workers = 2, .model = model});
  program_result r = RUN("scene", in("before.tif"), in("hole.tif"), "-o", in("here.gpkg"), "-t", "1");
  assert_int_equal(r.code, 0);
  program_clear(&r);
  r = RUN("scene", in("before.tif"), in("hole.tif"), "-o", in("there.gpkg"), "--broker", c.clients);
  if (r.code != 0) {
    cluster_show(&c);
    fail_msg("exit code %d: %s", r.code, r.err);
  }
  program_clear(&r);
  cluster_stop(&c);
  assert_int_equal(script("equal", in("here.jsonl"), in("there.jsonl"), NULL), 0);
  assert_int_equal(script("check", in("there"), in("before.tif"), in("hole.tif")), 0);
  assert_false(exists("there.scene-work"));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_scene_on_one_grid),
    cmocka_unit_test(test_scene_in_another_zone_and_resolution),
    cmocka_unit_test(test_scene_of_16_bits_in_mercator),
    cmocka_unit_test(test_scene_that_is_shifted_leaves_out_what_is_not_common),
    cmocka_unit_test(test_scene_with_a_hole_hides_it_in_both),
    cmocka_unit_test(test_scene_of_real_pairs),
    cmocka_unit_test(test_scene_records_have_dates),
    cmocka_unit_test(test_scene_dry_run_writes_nothing),
    cmocka_unit_test(test_scene_on_a_coarser_grid),
    cmocka_unit_test(test_scene_gallery_shows_what_the_model_saw),
    cmocka_unit_test(test_scene_refuses_in_words),
    cmocka_unit_test(test_scene_goes_on_after_every_kill),
    cmocka_unit_test(test_scene_leaves_another_runs_work_alone),
    cmocka_unit_test(test_scene_full_disk_leaves_nothing_half_written),
    cmocka_unit_test(test_scene_says_where_it_may_not_write),
    cmocka_unit_test(test_scene_over_the_queue_is_the_same),
};

int main(int argc, char **argv) {
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, setup, NULL);
}
