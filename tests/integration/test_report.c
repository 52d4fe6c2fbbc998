/*
 * btcchat report, find and diff from outside. The page is judged in headless Chromium (tests/tools/gallery_page.py); where there is
 * none, those tests are skipped and counted.
 */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "program.h"
#include "test.h"

static const char *in(const char *name) {
  static char paths[8][400];
  static int turn;
  char *p = paths[turn++ % 8];
  snprintf(p, sizeof paths[0], "%s/%s", test_tmp_dir(), name);
  return p;
}

static void write_text(const char *name, const char *text) {
  FILE *f = fopen(in(name), "we");
  assert_non_null(f);
  assert_true(fputs(text, f) >= 0);
  assert_int_equal(fclose(f), 0);
}

static void expect(program_result r, int code, const char *out, const char *err) {
  if (r.code != code) fail_msg("exit code %d, not %d: %s%s", r.code, code, r.out, r.err);
  if (out && !strstr(r.out, out)) fail_msg("'%s' is not in: %s", out, r.out);
  if (err && !strstr(r.err, err)) fail_msg("'%s' is not in: %s", err, r.err);
  program_clear(&r);
}

#define ONE "{\"v\":1,\"id\":\"one\",\"status\":\"ok\",\"caption\":\"many houses are built\",\"changed\":true,\"score\":0.2}\n"
#define TWO "{\"v\":1,\"id\":\"two\",\"status\":\"ok\",\"caption\":\"the scene is the same\",\"changed\":false,\"score\":0.01}\n"
#define EVIL_ID "evil</script><img src=x onerror=alert(1)>"
#define EVIL                                                                                         \
  "{\"v\":1,\"id\":\"" EVIL_ID                                                                       \
  "\",\"status\":\"ok\",\"caption\":\"</script><img src=x onerror=\\\"document.title='hacked'\\\"> " \
  "a road\",\"changed\":true,\"score\":0.4}\n"
#define BROKEN "{\"v\":1,\"id\":\"broken\",\"status\":\"failed\",\"reason\":\"not-found\",\"message\":\"cannot open it\"}\n"

static void make_folder(const char *name) {
  assert_int_equal(mkdir(in(name), 0755), 0);
}

/* ---- find ---- */

static void test_find_matches_forms_phrases_and_beginnings(void **state) {
  (void)state;
  make_folder("found");
  write_text("found/results.jsonl", ONE TWO EVIL BROKEN);
  expect(RUN("find", in("found"), "house"), 0, "one\t0.200\tmany houses are built", NULL);
  expect(RUN("find", in("found"), "roa*"), 0, "a road", NULL);
  expect(RUN("find", in("found"), "\"houses built\""), 0, "", "none of 4 records matches");
  expect(RUN("find", in("found"), "\"houses are\"", "--json"), 0, "\"id\":\"one\"", NULL);
  expect(RUN("find", in("found"), "same", "--changed"), 0, "", "none of 4");
  expect(RUN("find", in("found"), "caption:NEAR(a AND"), 0, "", "none of 4");
  expect(RUN("find", in("found"), "()"), 2, NULL, "no word");
}

static void test_find_sees_new_and_changed_files(void **state) {
  (void)state;
  make_folder("parts");
  write_text("parts/part-000001.jsonl", ONE);
  expect(RUN("find", in("parts"), "road"), 0, "", "none of 1");
  write_text("parts/part-000002.jsonl", EVIL);
  expect(RUN("find", in("parts"), "road"), 0, "a road", NULL);
  write_text("parts/part-000001.jsonl", TWO);
  expect(RUN("find", in("parts"), "houses"), 0, "", "none of 2");
  assert_int_equal(unlink(in("parts/part-000002.jsonl")), 0);
  expect(RUN("find", in("parts"), "road"), 0, "", "none of 1");
}

static void test_find_makes_a_broken_index_anew(void **state) {
  (void)state;
  make_folder("rebuilt");
  write_text("rebuilt/results.jsonl", ONE "no record\n");
  write_text("rebuilt/.btcchat-index.db",
             "this is not a database, and it is longer than a header of one is: 100 bytes and some more");
  program_result r = RUN("find", in("rebuilt"), "houses");
  assert_int_equal(r.code, 3);
  assert_non_null(strstr(r.out, "many houses"));
  assert_non_null(strstr(r.err, "made anew"));
  assert_non_null(strstr(r.err, "1 lines are no result records"));
  program_clear(&r);
  expect(RUN("find", in("nowhere"), "houses"), 1, NULL, "cannot open");
}

/* ---- diff ---- */

static void test_diff_names_every_difference(void **state) {
  (void)state;
  write_text("a.jsonl", ONE TWO BROKEN);
  write_text("b.jsonl",
             "{\"v\":1,\"id\":\"two\",\"status\":\"ok\",\"caption\":\"a road\",\"changed\":true,\"score\":0.02}\n" BROKEN EVIL);
  expect(RUN("diff", in("a.jsonl"), in("a.jsonl")), 0, "3 equal", NULL);
  program_result r = RUN("diff", in("a.jsonl"), in("b.jsonl"));
  assert_int_equal(r.code, 1);
  assert_non_null(strstr(r.out, "- one: \"many houses are built\" changed 0.200\n"));
  assert_non_null(strstr(r.out, "+ evil"));
  assert_non_null(strstr(r.out, "! two: \"the scene is the same\" unchanged 0.010 -> \"a road\" changed 0.020\n"));
  assert_non_null(strstr(r.out, "1 equal, 1 removed, 1 added; different in status 0, verdict 1, caption 1, score 1"));
  program_clear(&r);
  expect(RUN("diff", in("a.jsonl"), in("b.jsonl"), "--json", "-q"), 1, "{\"summary\":{\"a\":3,\"b\":3,\"equal\":1", NULL);
}

static void test_diff_tolerates_and_refuses(void **state) {
  (void)state;
  write_text("c.jsonl", TWO);
  write_text("d.jsonl",
             "{\"v\":1,\"id\":\"two\",\"status\":\"ok\",\"caption\":\"the scene is the same\",\"changed\":false,\"score\":0.02}\n");
  write_text("e.jsonl", TWO "{\"id\":\n");
  expect(RUN("diff", in("c.jsonl"), in("d.jsonl"), "--tolerance", "0.015"), 0, "1 equal", NULL);
  expect(RUN("diff", in("c.jsonl"), in("d.jsonl")), 1, "score 1", NULL);
  expect(RUN("diff", in("c.jsonl"), in("e.jsonl")), 2, NULL, "line 2");
  expect(RUN("diff", in("c.jsonl"), in("none.jsonl")), 2, NULL, "cannot open");
}

/* ---- report ---- */

static int page(const char *gallery, const char *check) {
  char script[400];
  snprintf(script, sizeof script, "%s/tests/tools/gallery_page.py", getenv("BTCCHAT_SOURCE"));
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) {
    execl("/usr/bin/python3", "python3", script, in(gallery), test_tmp_dir(), check, (char *)NULL);
    _exit(77);
  }
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void check_page(const char *gallery, const char *check) {
  int code = page(gallery, check);
  if (code == 77) skip();
  assert_int_equal(code, 0);
}

static void make_pair_gallery(void) {
  char manifest[4096];
  const char *s = getenv("BTCCHAT_SOURCE");
  snprintf(manifest, sizeof manifest,
           "{\"id\":\"one\",\"before\":\"%s/samples/houses_before.png\",\"after\":\"%s/samples/houses_after.png\"}\n"
           "{\"id\":\"two\",\"before\":\"%s/samples/unchanged_before.png\",\"after\":\"%s/samples/unchanged_after.png\"}\n"
           "{\"id\":\"" EVIL_ID
           "\",\"before\":\"%s/samples/road_before.png\",\"after\":\"%s/samples/road_after.png\"}\n"
           "{\"id\":\"broken\",\"before\":\"none.png\",\"after\":\"none.png\"}\n",
           s, s, s, s, s, s);
  write_text("m.jsonl", manifest);
  write_text("r.jsonl", ONE TWO EVIL BROKEN);
  expect(RUN("report", in("r.jsonl"), "--manifest", in("m.jsonl"), "-o", in("gallery"), "--title", "Test <b>gallery</b>"), 0, NULL,
         "4 records in");
}

static void test_report_page_works_from_disk(void **state) {
  (void)state;
  make_pair_gallery();
  check_page("gallery", "pair");
}

static void test_report_replaces_only_galleries(void **state) {
  (void)state;
  write_text("r2.jsonl", ONE);
  make_folder("precious");
  write_text("precious/file", "mine");
  expect(RUN("report", in("r2.jsonl"), "-o", in("precious"), "--replace"), 1, NULL, "is no gallery");
  expect(RUN("report", in("r2.jsonl"), "-o", in("g2")), 0, NULL, "without images");
  expect(RUN("report", in("r2.jsonl"), "-o", in("g2")), 1, NULL, "--replace");
  expect(RUN("report", in("r2.jsonl"), "-o", in("g2"), "--replace"), 0, NULL, "1 records");
  assert_int_equal(access(in("precious/file"), F_OK), 0);
  assert_int_equal(access(in("g2/data/0001.js"), F_OK), 0);
  expect(RUN("report", in("r2.jsonl")), 2, NULL, "-o DIR");
}

/* The page asks nobody, except the server of the tiles that were asked for. */
static void test_report_page_trusts_only_the_tiles_server(void **state) {
  (void)state;
  static const struct {
    const char *tiles, *allowed;
  } cases[] = {{NULL, "img-src 'self' data:\""},
               {"https://{s}.tiles.example:8443/{z}/{x}/{y}.png", "img-src 'self' data: https://*.tiles.example:8443\""},
               {"http://127.0.0.1/{z}/{x}/{y}.png", "img-src 'self' data: http://127.0.0.1\""}};
  write_text("r4.jsonl", ONE);
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char name[16], page[32], text[4096] = "";
    snprintf(name, sizeof name, "g4-%zu", i);
    snprintf(page, sizeof page, "%s/index.html", name);
    expect(RUN("report", in("r4.jsonl"), "-o", in(name), cases[i].tiles ? "--tiles" : NULL, cases[i].tiles), 0, NULL, "1 records");
    FILE *f = fopen(in(page), "re");
    assert_non_null(f);
    assert_true(fread(text, 1, sizeof text - 1, f) > 0);
    fclose(f);
    if (!strstr(text, cases[i].allowed)) fail_msg("no %s in: %s", cases[i].allowed, text);
  }
  expect(RUN("report", in("r4.jsonl"), "-o", in("g4"), "--tiles", "https://x; script-src *\"/{z}"), 1, NULL, "no address of tiles");
}

static void test_report_counts_missing_images(void **state) {
  (void)state;
  write_text("m3.jsonl", "{\"id\":\"one\",\"before\":\"gone.png\",\"after\":\"gone.png\"}\n");
  write_text("r3.jsonl", ONE);
  expect(RUN("report", in("r3.jsonl"), "--manifest", in("m3.jsonl"), "-o", in("g3")), 3, NULL, "gone.png");
}

static void test_report_of_10000_records_stays_quick_and_has_a_map(void **state) {
  (void)state;
  FILE *f = fopen(in("many.jsonl"), "we");
  assert_non_null(f);
  for (int i = 0; i < 10000; i++)
    fprintf(f,
            "{\"v\":1,\"id\":\"r%d\",\"status\":\"ok\",\"caption\":\"a road %d is built\",\"changed\":%s,\"score\":%.4f,\"crs\":"
            "\"EPSG:4326\",\"bbox\":[%.4f,%.4f,%.4f,%.4f]}\n",
            i, i, i % 3 ? "true" : "false", i / 10000.0, 10 + i % 100 * 0.01, 50 + i / 100 * 0.01, 10.01 + i % 100 * 0.01,
            50.01 + i / 100 * 0.01);
  assert_int_equal(fclose(f), 0);
  expect(RUN("report", in("many.jsonl"), "-o", in("many")), 0, NULL, "10000 records");
  check_page("many", "many");
  check_page("many", "map");
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_find_matches_forms_phrases_and_beginnings),
      cmocka_unit_test(test_find_sees_new_and_changed_files),
      cmocka_unit_test(test_find_makes_a_broken_index_anew),
      cmocka_unit_test(test_diff_names_every_difference),
      cmocka_unit_test(test_diff_tolerates_and_refuses),
      cmocka_unit_test(test_report_page_works_from_disk),
      cmocka_unit_test(test_report_replaces_only_galleries),
      cmocka_unit_test(test_report_page_trusts_only_the_tiles_server),
      cmocka_unit_test(test_report_counts_missing_images),
      cmocka_unit_test(test_report_of_10000_records_stays_quick_and_has_a_map),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
