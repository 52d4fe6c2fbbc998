#define _GNU_SOURCE
#include "sample_pairs.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "test.h"

static const char *const samples[] = {"houses", "building", "road", "removed", "unchanged", "landsat"};
enum { SAMPLES = sizeof samples / sizeof samples[0], MOST = 4096 };

const char *sample_manifest(const char *name, int n) {
  static char paths[4][256];
  static int turn;
  char *path = paths[turn++ % 4];
  const char *source = getenv("BTCCHAT_SOURCE");
  snprintf(path, sizeof paths[0], "%s/%s", test_tmp_dir(), name);
  FILE *f = fopen(path, "we");
  assert_non_null(f);
  for (int i = 0; i < n; i++) {
    const char *s = samples[i % SAMPLES];
    bool swap = i % 7 == 3;
    fprintf(f, "{\"id\":\"%04d\",\"before\":\"%s/samples/%s_%s.png\",\"after\":\"%s/samples/%s_%s.png\"}\n", i, source, s,
            swap ? "after" : "before", source, i == 5 ? "no-such" : s, swap ? "before" : "after");
  }
  assert_int_equal(fclose(f), 0);
  return path;
}

static int by_id(const void *a, const void *b) {
  const json_t *const *x = a, *const *y = b;
  return strcmp(json_string_value(json_object_get(*x, "id")), json_string_value(json_object_get(*y, "id")));
}

char *records_comparable(const char *lines) {
  static json_t *all[MOST];
  json_t *sorted = json_array();
  size_t n = 0;
  for (const char *at = lines; *at; at += strcspn(at, "\n") + (at[strcspn(at, "\n")] == '\n')) {
    assert_true(n < MOST);
    assert_non_null(all[n] = json_loadb(at, strcspn(at, "\n"), 0, NULL));
    json_object_del(all[n++], "timing_ms");
  }
  qsort(all, n, sizeof *all, by_id);
  for (size_t i = 0; i < n; i++) json_array_append_new(sorted, all[i]);
  char *text = json_dumps(sorted, JSON_INDENT(1) | JSON_SORT_KEYS);
  json_decref(sorted);
  assert_non_null(text);
  return text;
}
