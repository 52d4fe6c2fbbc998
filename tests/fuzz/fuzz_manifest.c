/* Any bytes as a manifest file (JSONL or CSV, as its first line decides): every item or bad line is well formed, and reading from
 * any place that was told gives what reading on gave. The first byte asks for strictness. */
#define _GNU_SOURCE
#include <sys/mman.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "manifest/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool is_utf8(const char *s) {
  size_t len = strlen(s);
  return btc_utf8_valid(s, len) == len;
}

static void check(const btc_manifest_item *item, uint64_t *line) {
  if (item->line < *line || !item->id || !item->id[0] || strlen(item->id) > BTC_MANIFEST_MAX_ID || !is_utf8(item->id)) abort();
  *line = item->line + 1;
  if (item->kind == BTC_MANIFEST_BAD) {
    if (!item->problem || !item->problem[0] || strchr(item->problem, '\n') || !is_utf8(item->problem)) abort();
    return;
  }
  if (item->problem || !item->before || !item->after || !item->before[0] || !item->after[0]) abort();
  if (!is_utf8(item->before) || !is_utf8(item->after)) abort();
  if (item->has_window && (item->window[0] < 0 || item->window[2] < 1 || item->window[3] < 1)) abort();
  if (item->meta) {
    json_t *v = json_loads(item->meta, JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_object(v)) abort();
    json_decref(v);
  }
}

/* The item's text: an object, with the id it had. */
static char *checked_text(const btc_manifest_item *item) {
  char *text = btc_manifest_item_text(item, "/base");
  if (!text || strchr(text, '\n')) abort();
  json_t *o = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
  const char *id = json_string_value(json_object_get(o, "id"));
  if (!id || strcmp(id, item->id) != 0 || !json_object_get(o, "problem") == (item->kind == BTC_MANIFEST_BAD)) abort();
  json_decref(o);
  return text;
}

/* Reads on with one reader, and item by item from told places with another. */
static void check_places(const char *path) {
  btc_manifest *a, *b;
  btc_manifest_options o = {.duplicates_too = true};
  btc_manifest_item item;
  btc_manifest_pos pos, after;
  btc_error err;
  uint64_t skipped;
  if (btc_manifest_open(path, &o, &a, &err) != BTC_OK) return;
  if (btc_manifest_open(path, &o, &b, &err) != BTC_OK) abort();
  for (int i = 0; i < 200; i++) {
    if (btc_manifest_tell(a, &pos, &err) != BTC_OK || btc_manifest_next(a, &item, &err) != BTC_OK) abort();
    if (item.kind == BTC_MANIFEST_END) break;
    char *text = checked_text(&item);
    if (btc_manifest_tell(a, &after, &err) != BTC_OK || btc_manifest_seek(b, pos.text, &err) != BTC_OK) abort();
    if (btc_manifest_next(b, &item, &err) != BTC_OK) abort();
    char *again = checked_text(&item);
    if (strcmp(text, again) != 0) abort();
    free(text);
    free(again);
    if (btc_manifest_seek(b, pos.text, &err) != BTC_OK || btc_manifest_skip(b, 1, &skipped, &err) != BTC_OK || skipped != 1)
      abort();
    if (btc_manifest_tell(b, &pos, &err) != BTC_OK || strcmp(pos.text, after.text) != 0) abort();
  }
  btc_manifest_close(&a);
  btc_manifest_close(&b);
}

static void check_single(const uint8_t *data, size_t size) {
  btc_manifest *m = NULL;
  btc_manifest_item item;
  if (btc_manifest_parse_line(&m, (const char *)data, size, 0, "/d", &item, NULL) != BTC_OK) abort();
  if (item.kind == BTC_MANIFEST_END || item.line) abort();
  free(checked_text(&item));
  char pos[70] = {0};
  memcpy(pos, data, size < 69 ? size : 69);
  (void)btc_manifest_seek(m, pos, NULL);
  btc_manifest_close(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static int fd = -1;
  char path[64];
  if (size < 1) return 0;
  if (fd < 0) fd = memfd_create("manifest", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data + 1, size - 1, 0) != (ssize_t)(size - 1)) abort();
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  check_single(data + 1, size - 1);
  check_places(path);
  btc_manifest *m;
  btc_manifest_item item;
  btc_error err = {0};
  uint64_t line = 1;
  if (btc_manifest_open(path, &(btc_manifest_options){.strict = data[0] & 1}, &m, &err) != BTC_OK)
    return err.message[0] ? 0 : (abort(), 0);
  while (btc_manifest_next(m, &item, &err) == BTC_OK && item.kind != BTC_MANIFEST_END) check(&item, &line);
  if (err.message[0] && (!(data[0] & 1) || strchr(err.message, '\n'))) abort();
  btc_manifest_close(&m);
  return 0;
}
