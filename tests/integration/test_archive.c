/* btcchat plan from outside: pairs out of dated names and out of STAC items; and names that hold no date. */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program.h"
#include "report/archive.h"
#include "test.h"

static void check_name(const char *name, const char *date, const char *tile) {
  char got_date[11] = "", got_tile[256] = "";
  int64_t day;
  bool found = btc_archive_name(name, got_date, &day, got_tile);
  assert_int_equal(found, date != NULL);
  if (!date) return;
  assert_string_equal(got_date, date);
  assert_string_equal(got_tile, tile);
}

static void test_archive_names(void **state) {
  (void)state;
  check_name("site_2019-05-31.tif", "2019-05-31", "site");
  check_name("20200101T101010_harbour.png", "2020-01-01", "_harbour");
  check_name("2020-02-29.png", "2020-02-29", "all");
  check_name("S2A_MSIL2A_20190531T102031_N0212_R065_T32TQM_20190531T131513.jp2", "2019-05-31", "T32TQM");
  check_name("LC08_L1TP_195026_20130707_20170503_01_T1_B4.TIF", "2013-07-07", "195026");
  check_name("site_2019-02-29.tif", NULL, NULL);
  check_name("site_123456789.tif", NULL, NULL);
  check_name("", NULL, NULL);
  check_name("2019", NULL, NULL);
}

static void touch(const char *folder, const char *name, const char *text) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *f = fopen(path, "we");
  assert_non_null(f);
  assert_true(fputs(text, f) >= 0);
  assert_int_equal(fclose(f), 0);
}

static void test_archive_pairs_by_interval(void **state) {
  (void)state;
  char dir[400];
  snprintf(dir, sizeof dir, "%s/dated", test_tmp_dir());
  assert_int_equal(mkdir(dir, 0755), 0);
  touch(dir, "a_2019-01-01.png", "");
  touch(dir, "a_2019-06-01.png", "");
  touch(dir, "a_2020-01-01.png", "");
  touch(dir, "b_2019-01-01.png", "");
  program_result r = RUN("plan", dir);
  assert_int_equal(r.code, 0);
  assert_non_null(strstr(r.out, "\"id\":\"a/2019-01-01_2019-06-01\""));
  assert_non_null(strstr(r.out, "\"id\":\"a/2019-06-01_2020-01-01\""));
  assert_non_null(strstr(r.err, "4 images of 2 tiles: 2 pairs"));
  program_clear(&r);
  r = RUN("plan", dir, "--interval", "300..400");
  assert_non_null(strstr(r.out, "a/2019-01-01_2020-01-01"));
  assert_non_null(strstr(r.out, "\"days\":365"));
  assert_non_null(strstr(r.err, ": 1 pairs"));
  program_clear(&r);
  r = RUN("plan", dir, "--pairing", "first-last", "--interval", "400");
  assert_int_equal(r.code, 0);
  assert_int_equal(r.out_len, 0);
  program_clear(&r);
  r = RUN("plan", dir, "--interval", "5..2");
  assert_int_equal(r.code, 2);
  program_clear(&r);
}

static void folder(const char *dir, const char *name) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  assert_int_equal(mkdir(path, 0755), 0);
}

/* By place and by time, and both: the same pairs. */
static void test_archive_reads_folders_in_folders(void **state) {
  (void)state;
  static const struct {
    const char *folders[4], *files[4], *pair;
  } cases[] = {{{"harbour", "airport"},
                {"harbour/2019-01-01.png", "harbour/2020-01-01.png", "airport/2019-01-01.png", "airport/2020-01-01.png"},
                "harbour/2019-01-01_2020-01-01"},
               {{"2019-01-01", "2020-01-01"},
                {"2019-01-01/harbour.png", "2020-01-01/harbour.png", "2019-01-01/airport.png", "2020-01-01/airport.png"},
                "harbour/2019-01-01_2020-01-01"},
               {{"2019", "2019/01", "2020", "2020/01"},
                {"2019/01/harbour_20190101.png", "2020/01/harbour_20200101.png", "2019/01/airport_20190101.png",
                 "2020/01/airport_20200101.png"},
                "harbour/2019-01-01_2020-01-01"},
               {{"north", "north/2019-01-01", "north/2020-01-01", "south"},
                {"north/2019-01-01/a.png", "north/2020-01-01/a.png", "south/a_2019-01-01.png", "south/a_2020-01-01.png"},
                "north/a/2019-01-01_2020-01-01"},
               {{"x", "y"},
                {"x/LC08_L1TP_195026_20190101_20190115_01_T1.TIF", "y/LC08_L1TP_195026_20200101_20200115_01_T1.TIF",
                 "x/LC08_L1TP_195027_20190101_20190115_01_T1.TIF", "y/LC08_L1TP_195027_20200101_20200115_01_T1.TIF"},
                "195026/2019-01-01_2020-01-01"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char dir[400];
    snprintf(dir, sizeof dir, "%s/deep%zu", test_tmp_dir(), i);
    assert_int_equal(mkdir(dir, 0755), 0);
    for (size_t k = 0; k < 4 && cases[i].folders[k]; k++) folder(dir, cases[i].folders[k]);
    for (size_t k = 0; k < 4; k++) touch(dir, cases[i].files[k], "");
    char loop[500];
    snprintf(loop, sizeof loop, "%s/%s/loop", dir, cases[i].folders[0]);
    assert_int_equal(symlink("..", loop), 0);
    program_result r = RUN("plan", dir);
    assert_int_equal(r.code, 0);
    if (!strstr(r.out, cases[i].pair) || !strstr(r.err, "4 images of 2 tiles: 2 pairs"))
      fail_msg("%s: %s%s", cases[i].pair, r.out, r.err);
    program_clear(&r);
  }
}

static void test_archive_reads_stac_items(void **state) {
  (void)state;
  char path[400];
  touch(test_tmp_dir(), "items.json",
        "{\"type\":\"FeatureCollection\",\"features\":["
        "{\"id\":\"b\",\"properties\":{\"datetime\":\"2020-06-01T00:00:00Z\",\"eo:cloud_cover\":5,\"landsat:wrs_path\":\"195\","
        "\"landsat:wrs_row\":\"026\"},\"assets\":{\"data\":{\"href\":\"https://host/b.tif\"}}},"
        "{\"id\":\"a\",\"properties\":{\"datetime\":\"2019-06-01T00:00:00Z\",\"eo:cloud_cover\":3,\"landsat:wrs_path\":195,"
        "\"landsat:wrs_row\":26},\"assets\":{\"data\":{\"href\":\"a.tif\"}}},"
        "{\"id\":\"cloudy\",\"properties\":{\"datetime\":\"2019-09-01T00:00:00Z\",\"eo:cloud_cover\":90,\"grid:code\":\"WRS2-"
        "195026\"},"
        "\"assets\":{\"visual\":{\"href\":\"c.tif\"}}},{\"id\":\"empty\"}, 5, null]}");
  snprintf(path, sizeof path, "%s/items.json", test_tmp_dir());
  program_result r = RUN("plan", path, "--cloud-limit", "20");
  assert_int_equal(r.code, 0);
  assert_non_null(strstr(r.out, "\"id\":\"195026/2019-06-01_2020-06-01\""));
  assert_non_null(strstr(r.out, "/a.tif\",\"after\":\"https://host/b.tif\""));
  assert_non_null(strstr(r.err, "1 pairs; 1 too cloudy; 3 left out"));
  program_clear(&r);
#define AERIAL(id, year, x)                                                                                            \
  "{\"id\":\"" id "\",\"properties\":{\"datetime\":\"" year "-06-01T00:00:00Z\",\"proj:epsg\":26910,\"proj:bbox\":[" x \
  ",5,2,6]},\"assets\":{\"data\":{\"href\":\"" id ".tif\"}}}"
  touch(test_tmp_dir(), "items.json",
        "{\"features\":[" AERIAL("p", "2019", "1") "," AERIAL("q", "2021", "1") "," AERIAL("r", "2021", "1.5") "]}");
  r = RUN("plan", path);
  assert_non_null(strstr(r.out, "\"id\":\"EPSG:26910/1,5,2,6/2019-06-01_2021-06-01\""));
  assert_non_null(strstr(r.err, "3 images of 2 tiles: 1 pairs"));
  program_clear(&r);
  touch(test_tmp_dir(), "items.json", /* the same ground, by its box and by its grid; one that says where, but not when */
        "{\"features\":[" AERIAL("p", "2019", "1") ","
        "{\"id\":\"s\",\"properties\":{\"datetime\":\"2021-06-01T00:00:00Z\",\"proj:code\":\"EPSG:26910\",\"proj:shape\":[2,4],"
        "\"proj:transform\":[0.25,0,1,0,-0.5,6]},\"assets\":{\"data\":{\"href\":\"s.tif\"}}},"
        "{\"id\":\"t\",\"properties\":{\"proj:epsg\":26910},\"assets\":{\"data\":{\"href\":\"t.tif\"}}}]}");
  r = RUN("plan", path);
  assert_non_null(strstr(r.out, "\"id\":\"EPSG:26910/1,5,2,6/2019-06-01_2021-06-01\""));
  assert_non_null(strstr(r.err, "2 images of 1 tiles: 1 pairs"));
  assert_non_null(strstr(r.err, "1 left out, the first: t (no date)"));
  program_clear(&r);
  touch(test_tmp_dir(), "items.json", "{\"features\":3}");
  r = RUN("plan", path);
  assert_int_equal(r.code, 1);
  assert_non_null(strstr(r.err, "no ItemCollection"));
  program_clear(&r);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_archive_names),
      cmocka_unit_test(test_archive_pairs_by_interval),
      cmocka_unit_test(test_archive_reads_folders_in_folders),
      cmocka_unit_test(test_archive_reads_stac_items),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
