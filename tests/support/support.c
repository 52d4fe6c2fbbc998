#define _GNU_SOURCE
#include "test.h"

#include <ftw.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

const char *shared_path(const char *relative) {
  static char path[4096];
  const char *root = getenv("BTCCHAT_SHARED");
  snprintf(path, sizeof path, "%s/%s", root ? root : "../shared", relative);
  return path;
}

void skip_without_shared(void) {
  struct stat sb;
  if (stat(shared_path("vectors/README.md"), &sb) != 0) {
    print_message("skipped: no golden vectors at %s (set BTCCHAT_SHARED)\n", shared_path("vectors"));
    skip();
  }
}

static char tmp_dir[64];

static int remove_entry(const char *path, const struct stat *sb, int flag, struct FTW *ftw) {
  (void)sb, (void)flag, (void)ftw;
  return remove(path);
}

static void remove_tmp_dir(void) {
  nftw(tmp_dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

const char *test_tmp_dir(void) {
  if (!tmp_dir[0]) {
    strcpy(tmp_dir, "/tmp/btcchat-test-XXXXXX");
    assert_non_null(mkdtemp(tmp_dir));
    atexit(remove_tmp_dir);
  }
  return tmp_dir;
}
