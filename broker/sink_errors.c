/* Dead letters become records: see sink_errors.h. */
#define _GNU_SOURCE
#include "broker/sink_errors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "broker/sink_items.h"
#include "manifest/manifest.h"

#define PAGE 128 /* letters asked for at once */

typedef struct errors {
  btc_sink_redis *redis;
  const btc_errors_source *source;
  btc_manifest *manifest; /* NULL until a letter needs it */
  bool looked;            /* it was tried */
  FILE *out;
  uint64_t n;
} errors;

/* ---- one letter ---- */

/* The item's own line: its id, and meta, which records carry. */
static bool find_item(errors *e, const json_t *letter, uint64_t idx, btc_manifest_item *item) {
  const char *pos = json_string_value(json_object_get(letter, "pos"));
  json_int_t lo = json_integer_value(json_object_get(letter, "lo"));
  btc_manifest_options o = {.duplicates_too = true, .dir = *e->source->base ? e->source->base : NULL};
  if (!e->looked && *e->source->manifest && btc_manifest_open(e->source->manifest, &o, &e->manifest, NULL) != BTC_OK)
    e->manifest = NULL;
  e->looked = true;
  uint64_t skipped, behind = idx - (uint64_t)lo;
  if (!e->manifest || !pos || lo < 0 || (uint64_t)lo > idx) return false;
  return btc_manifest_seek(e->manifest, pos, NULL) == BTC_OK && btc_manifest_skip(e->manifest, behind, &skipped, NULL) == BTC_OK &&
         skipped == behind && btc_manifest_next(e->manifest, item, NULL) == BTC_OK && item->kind != BTC_MANIFEST_END;
}

static json_t *letter_text(const json_t *letter, const char *key, const char *otherwise) {
  const char *s = json_string_value(json_object_get(letter, key));
  return json_string(s && *s ? s : otherwise);
}

/* A record for an item that took its worker along before anybody said its id. The number of the item stands for an id that cannot
 * be found any more. */
static char *make_record(errors *e, const json_t *letter, uint64_t idx) {
  btc_manifest_item item = {0};
  char number[24];
  snprintf(number, sizeof number, "%" PRIu64, idx + 1);
  const char *id = json_string_value(json_object_get(letter, "id"));
  bool found = !(id && *id) && find_item(e, letter, idx, &item);
  json_t *record = json_object();
  json_object_set_new(record, "v", json_integer(1));
  json_object_set_new(record, "id", json_string(id && *id ? id : found ? item.id : number));
  json_object_set_new(record, "status", json_string("failed"));
  json_object_set_new(record, "reason", letter_text(letter, "reason", "internal"));
  json_object_set_new(record, "message", letter_text(letter, "message", "the item could not be done"));
  if (found && item.meta) json_object_set_new(record, "meta", json_loads(item.meta, 0, NULL));
  char *text = json_dumps(record, JSON_COMPACT);
  json_decref(record);
  return text;
}

static btc_status write_letter(errors *e, const redisReply *value, uint64_t idx, btc_error *err) {
  if (value->type != REDIS_REPLY_STRING) return BTC_OK; /* put back by a replay meanwhile */
  json_t *letter = json_loadb(value->str, value->len, JSON_DECODE_ANY, NULL);
  const char *record = json_string_value(json_object_get(letter, "record"));
  char *made = record && *record ? btc_strdup(record) : make_record(e, letter, idx);
  json_decref(letter);
  if (!made) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  for (char *c = made; *c; c++)
    if (*c == '\n' || *c == '\r') *c = ' ';
  bool written = fputs(made, e->out) >= 0 && fputc('\n', e->out) != EOF;
  free(made);
  e->n++;
  return written ? BTC_OK : btc_fail(err, BTC_ERR_IO, "cannot write errors.jsonl: %s", strerror(errno));
}

/* ---- all of them ---- */

static int by_value(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

/* Numbers of the dead items, ascending; malloc'ed. */
static btc_status list_dead(errors *e, uint64_t **dead, size_t *n, btc_error *err) {
  char key[80];
  *dead = NULL;
  *n = 0;
  snprintf(key, sizeof key, "@dd:%s", e->source->jid);
  redisReply *r = btc_sink_redis_say(e->redis, "HKEYS", key, (const char *)NULL);
  btc_status st = btc_reply_failed(r, err) ? BTC_ERR_IO : BTC_OK;
  if (st == BTC_OK && r->type == REDIS_REPLY_ARRAY && r->elements) {
    *dead = btc_alloc(r->elements, sizeof **dead);
    if (!*dead) st = btc_fail(err, BTC_ERR_NOMEM, "out of memory");
    for (size_t i = 0; *dead && i < r->elements; i++) (*dead)[(*n)++] = strtoull(btc_reply_text(r, i), NULL, 10);
    if (*n) qsort(*dead, *n, sizeof **dead, by_value);
  }
  if (r) freeReplyObject(r);
  return st;
}

static btc_status write_page(errors *e, const uint64_t *dead, size_t n, btc_error *err) {
  char key[80], number[PAGE][24];
  const char *argv[PAGE + 2] = {"HMGET", key};
  snprintf(key, sizeof key, "%sdd:%s", btc_sink_redis_prefix(e->redis), e->source->jid);
  for (size_t i = 0; i < n; i++) {
    snprintf(number[i], sizeof number[i], "%" PRIu64, dead[i]);
    argv[2 + i] = number[i];
  }
  redisReply *r = btc_sink_redis_call(e->redis, (int)n + 2, argv);
  btc_status st = btc_reply_failed(r, err) ? BTC_ERR_IO : BTC_OK;
  for (size_t i = 0; st == BTC_OK && r->type == REDIS_REPLY_ARRAY && i < r->elements && i < n; i++)
    st = write_letter(e, r->element[i], dead[i], err);
  if (r) freeReplyObject(r);
  return st;
}

static btc_status write_all(errors *e, const uint64_t *dead, size_t n, btc_error *err) {
  btc_status st = BTC_OK;
  for (size_t at = 0; at < n && st == BTC_OK; at += PAGE) {
    if (!e->source->go_on(e->source->ctx)) return btc_fail(err, BTC_ERR_CANCELLED, "the duty has passed on");
    st = write_page(e, dead + at, n - at < PAGE ? n - at : PAGE, err);
  }
  return st;
}

static btc_status crc_of(int dir, const char *tmp, uint32_t *crc, btc_error *err) {
  uint8_t buffer[65536];
  int fd = openat(dir, tmp, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return btc_fail(err, BTC_ERR_IO, "cannot read errors.jsonl: %s", strerror(errno));
  *crc = 0;
  ssize_t n;
  while ((n = read(fd, buffer, sizeof buffer)) > 0) *crc = btc_crc32_more(*crc, buffer, (size_t)n);
  close(fd);
  return n == 0 ? BTC_OK : btc_fail(err, BTC_ERR_IO, "cannot read errors.jsonl: %s", strerror(errno));
}

btc_status btc_errors_publish(btc_sink_redis *redis, btc_part_job *folder, const btc_errors_source *source, uint64_t *n,
                              uint32_t *crc32, btc_error *err) {
  errors e = {.redis = redis, .source = source};
  int dir = btc_part_dir(folder);
  char tmp[BTC_PART_NAME];
  uint64_t *dead;
  size_t n_dead;
  *n = 0;
  *crc32 = 0;
  btc_status st = list_dead(&e, &dead, &n_dead, err);
  int fd = -1;
  if (st == BTC_OK && n_dead) {
    btc_part_temporary(folder, "errors.jsonl", tmp);
    fd = openat(dir, tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    e.out = fd < 0 ? NULL : fdopen(fd, "w");
    st = e.out ? write_all(&e, dead, n_dead, err) : btc_fail(err, BTC_ERR_IO, "cannot create errors.jsonl: %s", strerror(errno));
    if (st == BTC_OK && (fflush(e.out) != 0 || fsync(fd) != 0))
      st = btc_fail(err, BTC_ERR_IO, "cannot sync errors.jsonl: %s", strerror(errno));
    BTC_FAILPOINT("sink_errors_written");
    if (st == BTC_OK) st = crc_of(dir, tmp, crc32, err);
    if (e.out)
      fclose(e.out);
    else if (fd >= 0)
      close(fd);
  }
  btc_manifest_close(&e.manifest);
  free(dead);
  /* asked when the file is there: see btc_part_publish */
  if (st == BTC_OK && !source->go_on(source->ctx)) st = btc_fail(err, BTC_ERR_CANCELLED, "the duty has passed on");
  if (st == BTC_OK && e.n) st = btc_part_rename(folder, tmp, "errors.jsonl", err);
  if (st == BTC_OK && !e.n) unlinkat(dir, "errors.jsonl", 0);
  if (n_dead && (st != BTC_OK || !e.n)) unlinkat(dir, tmp, 0);
  BTC_FAILPOINT("sink_errors_named");
  if (st == BTC_OK && fsync(dir) != 0) st = btc_fail(err, BTC_ERR_IO, "cannot sync the job's folder: %s", strerror(errno));
  *n = e.n;
  return st;
}
