/* Sets of item numbers: see sink_items.h. */
#define _GNU_SOURCE
#include "broker/sink_items.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"

#define PAGE 4096 /* items */
#define WORDS (PAGE / 64)
#define MAX_SIDECAR (4u << 20)

void btc_items_free(btc_items *s) {
  for (size_t i = 0; i < s->pages; i++) free(s->page[i]);
  free(s->page);
  *s = (btc_items){0};
}

bool btc_items_has(const btc_items *s, uint64_t idx) {
  uint64_t p = idx / PAGE;
  return p < s->pages && s->page[p] && (s->page[p][idx % PAGE / 64] >> (idx % 64) & 1);
}

/* The page of idx, made when it is not there. */
static uint64_t *page_of(btc_items *s, uint64_t idx) {
  size_t p = (size_t)(idx / PAGE);
  if (idx >= BTC_ITEMS_MAX) return NULL;
  if (p >= s->pages) {
    size_t pages = s->pages ? s->pages : 16;
    while (pages <= p) pages *= 2;
    uint64_t **wider = btc_realloc(s->page, pages, sizeof *wider);
    if (!wider) return NULL;
    memset(wider + s->pages, 0, (pages - s->pages) * sizeof *wider);
    s->page = wider;
    s->pages = pages;
  }
  if (!s->page[p]) {
    s->page[p] = btc_alloc_zero(WORDS, sizeof **s->page);
    s->used += s->page[p] != NULL;
  }
  return s->page[p];
}

bool btc_items_add(btc_items *s, uint64_t idx) {
  uint64_t *page = page_of(s, idx), bit = 1ull << (idx % 64);
  if (!page) return false;
  uint64_t *word = &page[idx % PAGE / 64];
  s->count += !(*word & bit);
  *word |= bit;
  return true;
}

bool btc_items_merge(btc_items *s, const btc_items *more) {
  for (size_t p = 0; p < more->pages; p++) {
    if (!more->page[p]) continue;
    uint64_t *page = page_of(s, (uint64_t)p * PAGE);
    if (!page) return false;
    for (size_t i = 0; i < WORDS; i++) {
      s->count += (uint64_t)__builtin_popcountll(more->page[p][i] & ~page[i]);
      page[i] |= more->page[p][i];
    }
  }
  return true;
}

size_t btc_items_memory(const btc_items *s) {
  return s->pages * sizeof *s->page + s->used * WORDS * sizeof(uint64_t);
}

static void print_range(FILE *f, uint64_t first, uint64_t end, bool *begun) {
  fprintf(f, "%s%" PRIu64, *begun ? "," : "", first);
  if (end - first > 1) fprintf(f, "-%" PRIu64, end - 1);
  *begun = true;
}

void btc_items_print(const btc_items *s, FILE *f) {
  bool begun = false, in = false;
  uint64_t first = 0, idx = 0;
  for (size_t p = 0; p < s->pages; p++) {
    if (!s->page[p] && !in) continue;
    for (size_t i = 0; i < PAGE; i++) {
      idx = (uint64_t)p * PAGE + i;
      bool there = s->page[p] && (s->page[p][i / 64] >> (i % 64) & 1);
      if (there && !in) first = idx;
      if (!there && in) print_range(f, first, idx, &begun);
      in = there;
    }
  }
  if (in) print_range(f, first, idx + 1, &begun);
}

btc_status btc_items_parse(btc_items *s, const char *text, btc_error *err) {
  while (*text) { /* NOLINT(clang-analyzer-core.NullDereference): callers hold a string */
    uint64_t bound[2];
    for (int i = 0; i < 2; i++) {
      size_t digits = strspn(text, "0123456789");
      if (!digits || digits > 9) return btc_fail(err, BTC_ERR_ARG, "not a list of item numbers at '%.16s'", text);
      bound[i] = strtoull(text, NULL, 10);
      text += digits;
      if (i) break;
      if (*text == '-')
        text++;
      else
        bound[1] = bound[0], i = 1;
    }
    if (bound[1] < bound[0] || bound[1] >= BTC_ITEMS_MAX) return btc_fail(err, BTC_ERR_ARG, "item numbers out of range");
    for (uint64_t idx = bound[0]; idx <= bound[1]; idx++)
      if (!btc_items_add(s, idx)) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
    if (*text && *text++ != ',') return btc_fail(err, BTC_ERR_ARG, "not a list of item numbers at '%.16s'", text - 1);
    if (text[-1] == ',' && !*text) return btc_fail(err, BTC_ERR_ARG, "a list of item numbers that ends with a comma");
  }
  return BTC_OK;
}

/* The whole of a small file, malloc'ed and terminated. */
static char *read_small(int dir, const char *name, size_t *len) {
  int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return NULL;
  char *text = btc_alloc(MAX_SIDECAR + 1, 1);
  *len = 0;
  ssize_t n = 0;
  while (text && *len < MAX_SIDECAR && (n = read(fd, text + *len, MAX_SIDECAR - *len)) != 0) {
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) break;
    *len += (size_t)n;
  }
  int why = errno;
  close(fd);
  errno = why;
  if (text && n >= 0) return text[*len] = 0, text;
  free(text);
  return NULL;
}

btc_status btc_items_read(btc_items *s, int dir, const char *path, const char *name, btc_error *err) {
  size_t len;
  char *text = read_small(dir, name, &len);
  if (!text) {
    btc_fail(err, BTC_ERR_IO, "cannot read '%s/%s': %s", path, name, strerror(errno));
    return BTC_ERR_IO;
  }
  static const btc_json_limits limits = {.max_bytes = MAX_SIDECAR, .max_values = MAX_SIDECAR};
  json_t *doc = NULL;
  btc_status st = btc_json_parse(text, len, name, &limits, &doc, err);
  const char *idx = json_string_value(json_object_get(doc, "idx"));
  if (st == BTC_OK && !idx) st = btc_fail(err, BTC_ERR_FORMAT, "no 'idx'");
  if (st == BTC_OK) st = btc_items_parse(s, idx, err);
  json_decref(doc);
  free(text);
  if (st == BTC_OK || st == BTC_ERR_NOMEM) return st;
  btc_fail_prefix(err, "'%s/%s' is no sidecar", path, name);
  return BTC_ERR_FORMAT;
}

uint32_t btc_crc32(const void *data, size_t len) {
  return btc_crc32_more(0, data, len);
}

uint32_t btc_crc32_more(uint32_t before, const void *data, size_t len) {
  static uint32_t table[256];
  static bool ready;
  if (!ready) { /* one thread only: the sink's */
    for (uint32_t i = 0; i < 256; i++) {
      uint32_t c = i;
      for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
      table[i] = c;
    }
    ready = true;
  }
  uint32_t crc = ~before;
  for (const uint8_t *p = data, *end = p + len; p < end; p++) crc = table[(crc ^ *p) & 0xff] ^ (crc >> 8);
  return ~crc;
}
