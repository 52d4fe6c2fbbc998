/* What every test file includes. A file's tests run all at once, or one by name: `test_lease test_lease_expires`. */
#ifndef BTC_TEST_H
#define BTC_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Runs the array `tests`; argv[1], if given, is a cmocka name filter. */
#define BTC_TEST_MAIN(tests)                          \
  int main(int argc, char **argv) {                   \
    if (argc > 1) cmocka_set_test_filter(argv[1]);    \
    return cmocka_run_group_tests(tests, NULL, NULL); \
  }

/* Folder with the golden vectors, from BTCCHAT_SHARED (set by ctest), e.g. shared_path("vectors/prompts.json"). The returned
 * text lives until the next call. Tests that need it call skip_without_shared() first, which skips and is counted. */
const char *shared_path(const char *relative);
void skip_without_shared(void);
/* A fresh temporary directory; removed at exit with all it holds. */
const char *test_tmp_dir(void);

#endif
