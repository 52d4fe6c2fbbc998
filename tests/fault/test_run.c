/* btcchat run: killed at any moment and started again it ends with the files of an undisturbed run; nobody else works in its folder
 * meanwhile. */
#define _GNU_SOURCE
#include "test.h"

#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "base/base.h"
#include "daemon.h"
#include "program.h"

static const char *path_of(const char *name) {
  static char path[8][256];
  static int turn;
  turn = (turn + 1) % 8;
  snprintf(path[turn], sizeof path[0], "%s/%s", test_tmp_dir(), name);
  return path[turn];
}

static const char *write_manifest(const char *name, int n) {
  const char *path = path_of(name);
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  for (int i = 0; i < n; i++) fprintf(f, "{\"id\":\"r%04d\",\"before\":\"a.png\",\"after\":\"b.png\"}\n", i);
  fputs("{\"id\":\"r0001\",\"before\":\"a.png\",\"after\":\"b.png\"}\nnonsense\n", f); /* a duplicate and a bad line */
  fclose(f);
  return path;
}

/* Records without timing_ms, a line each. */
static char *records(const char *dir) {
  char path[300], *out = NULL;
  uint8_t *data;
  size_t len, out_len;
  btc_error err;
  snprintf(path, sizeof path, "%s/results.jsonl", dir);
  if (btc_file_read(path, 64 << 20, &data, &len, &err) != BTC_OK) fail_msg("%s", err.message);
  FILE *f = open_memstream(&out, &out_len);
  for (char *line = (char *)data, *end; *line; line = end + 1) {
    end = strchr(line, '\n');
    assert_non_null(end);
    json_t *o = json_loadb(line, (size_t)(end - line), 0, NULL);
    assert_non_null(o);
    json_object_del(o, "timing_ms");
    char *text = json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS);
    fprintf(f, "%s\n", text);
    free(text);
    json_decref(o);
  }
  fclose(f);
  free(data);
  return out;
}

static program_result run_in(const char *manifest, const char *dir, int want) {
  program_result r = RUN("run", manifest, "-o", dir, "-j", "2", "--engine", "stub", "--stub-us", "2000");
  if (r.code != want) fail_msg("exit code %d, not %d: %s", r.code, want, r.err);
  return r;
}

static void expect(program_result r, const char *text) {
  if (!strstr(r.err, text)) fail_msg("'%s' lacks '%s'", r.err, text);
  program_clear(&r);
}

static void start_in(daemon_process *d, const char *manifest, const char *dir) {
  daemon_init(d, "run",
              (const char *const[]){"run", manifest, "-o", dir, "-j", "2", "--engine", "stub", "--stub-us", "2000", NULL});
  daemon_start(d);
}

static void test_run_killed_at_any_moment(void **state) {
  (void)state;
  const int kills = 20;
  const char *manifest = write_manifest("killed.jsonl", 1500), *calm = path_of("calm"), *wild = path_of("wild");
  daemon_process d;
  unsigned random = (unsigned)getpid();
  print_message("seed %u\n", random);
  expect(run_in(manifest, calm, 3), "1500 done, 2 failed");
  for (int i = 0; i < kills; i++) {
    random = random * 1664525u + 1013904223u;
    start_in(&d, manifest, wild);
    test_sleep_ms((int)((random >> 8) % 900));
    daemon_kill(&d);
  }
  program_result r = run_in(manifest, wild, 3); /* at most what its workers held when they were killed is done again */
  program_clear(&r);
  char *a = records(calm), *b = records(wild);
  assert_string_equal(a, b);
  free(a);
  free(b);
  expect(run_in(manifest, wild, 3), "is finished"); /* nothing is done, and the exit code is the same */
}

static void test_run_folder_has_one_owner(void **state) {
  (void)state;
  char dir[256], begun[300], published[300];
  const char *manifest = write_manifest("owner.jsonl", 8000);
  daemon_process d;
  snprintf(dir, sizeof dir, "%s", path_of("owner"));
  snprintf(begun, sizeof begun, "%s/.btcchat/job.json", dir);
  snprintf(published, sizeof published, "%s/results.jsonl", dir);
  start_in(&d, manifest, dir);
  for (int i = 0; i < 400 && access(begun, F_OK) != 0; i++) test_sleep_ms(25);
  expect(run_in(manifest, dir, 1), "another 'btcchat run'");
  daemon_signal(&d, SIGINT);
  assert_int_equal(daemon_wait(&d, 60000), 130);
  assert_int_not_equal(access(published, F_OK), 0); /* nothing half-done is published */
  expect(run_in(manifest, dir, 3), "8000 done, 2 failed");
}

static void test_run_refuses_another_manifest_or_model(void **state) {
  (void)state;
  const char *manifest = write_manifest("first.jsonl", 10), *other = write_manifest("second.jsonl", 10), *dir = path_of("first");
  program_result r = run_in(manifest, dir, 3);
  program_clear(&r);
  expect(run_in(other, dir, 1), "another manifest");
  expect(RUN("run", manifest, "-o", dir, "--engine", "stub", "--stub-faults", "bad=0.5"), "another model");
  expect(RUN("run", manifest, "-o", dir, "--engine", "stub", "--prompt", "What?"), "another prompt");
  write_manifest("first.jsonl", 11);
  expect(run_in(manifest, dir, 1), "other contents");
}

static void test_run_socket_paths_are_short(void **state) {
  (void)state;
  char dir[512];
  const char *manifest = write_manifest("long.jsonl", 20);
  snprintf(dir, sizeof dir, "%s/%0100d, with blanks", test_tmp_dir(), 7);
  expect(run_in(manifest, dir, 3), "20 done, 2 failed");
}

static void test_run_bad_arguments(void **state) {
  (void)state;
  const char *manifest = write_manifest("args.jsonl", 1);
  expect(RUN("run", manifest), "-o DIR");
  expect(RUN("run", "-o", path_of("x")), "MANIFEST");
  expect(RUN("run", path_of("none.jsonl"), "-o", path_of("x")), "none.jsonl");
  expect(RUN("run", manifest, "-o", path_of("x"), "-m", path_of("nomodel")), "nomodel");
  expect(RUN("run", manifest, "-o", path_of("x"), "--strict", "--engine", "stub"), "line 3");
  assert_int_not_equal(access(path_of("x"), F_OK), 0); /* refused before anything was made */
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_run_killed_at_any_moment),
    cmocka_unit_test(test_run_folder_has_one_owner),
    cmocka_unit_test(test_run_refuses_another_manifest_or_model),
    cmocka_unit_test(test_run_socket_paths_are_short),
    cmocka_unit_test(test_run_bad_arguments),
};
BTC_TEST_MAIN(tests)
