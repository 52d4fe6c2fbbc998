/* Checker: records. Sealed files, `res`, `out` and what integrators took must together hold each done item once, with the right
 * caption. */
#define _GNU_SOURCE
#include <dirent.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checker_parts.h"
#include "manifest/manifest.h"

/* ---- captions ---- */

typedef struct expected {
  uint64_t id, caption; /* first 8 bytes of the SHA-256 of the id; what the stub engine's caption says */
  bool taken;
} expected;

typedef struct captions {
  expected *item; /* sorted by id; NULL: not compared */
  size_t n;
} captions;

enum { MAX_COMPARED = 5000000 };

static uint64_t hash(const char *text, size_t n) {
  btc_sha256 s;
  uint8_t digest[32];
  uint64_t v = 0;
  btc_sha256_init(&s);
  btc_sha256_update(&s, text, n);
  btc_sha256_final(&s, digest);
  for (int i = 0; i < 8; i++) v = v << 8 | digest[i];
  return v;
}

static int by_id(const void *a, const void *b) {
  const expected *x = a, *y = b;
  return x->id < y->id ? -1 : x->id > y->id;
}

static bool expect_item(expected *e, const char *text) {
  json_t *o = json_loads(text, 0, NULL);
  const char *id = json_string_value(json_object_get(o, "id")), *before = json_string_value(json_object_get(o, "before"));
  const char *after = json_string_value(json_object_get(o, "after"));
  char *input = NULL;
  bool good = id != NULL;
  if (good) e->id = hash(id, strlen(id));
  if (good && before && after) {
    good = asprintf(&input, "%s\n%s\n%s", before, after, id) >= 0;
    if (good) e->caption = hash(input, strlen(input));
    free(input);
  }
  json_decref(o);
  return good;
}

/* What the stub engine must say of each item of the job's manifest. */
static void load_captions(const checked_job *j, captions *cap) {
  btc_manifest *m = NULL;
  btc_manifest_item item;
  btc_manifest_options options = {.duplicates_too = true, .dir = *j->base ? j->base : NULL};
  if (j->inlined || j->total == 0 || j->total > MAX_COMPARED || btc_manifest_open(j->manifest, &options, &m, NULL) != BTC_OK)
    return;
  cap->item = btc_alloc_zero((size_t)j->total, sizeof *cap->item);
  while (cap->item && cap->n < j->total && btc_manifest_next(m, &item, NULL) == BTC_OK && item.kind != BTC_MANIFEST_END) {
    char *text = btc_manifest_item_text(&item, options.dir);
    if (text) (void)expect_item(&cap->item[cap->n], text);
    free(text);
    cap->n++;
  }
  if (cap->n) qsort(cap->item, cap->n, sizeof *cap->item, by_id);
  btc_manifest_close(&m);
}

static void check_caption(checker *c, const checked_job *j, captions *cap, const char *id, const char *caption) {
  expected key = {.id = hash(id, strlen(id))}, *e = bsearch(&key, cap->item, cap->n, sizeof key, by_id);
  char *end;
  uint64_t v = strncmp(caption, "stub:", 5) == 0 ? strtoull(caption + 5, &end, 16) : 0;
  if (!e) {
    checker_violation(c, "job %s: a record of '%s', which is not in its manifest", j->jid, id);
    return;
  }
  while (e > cap->item && e[-1].id == key.id) e--;
  for (; e < cap->item + cap->n && e->id == key.id; e++) {
    if (e->taken || e->caption != v) continue;
    e->taken = true;
    c->report->captions++;
    return;
  }
  checker_violation(c, "job %s: '%s' has the caption '%s', wrong or a second time", j->jid, id, caption);
}

/* ---- one record ---- */

typedef struct parsed {
  json_t *o;
  const char *id, *status, *caption;
} parsed;

static bool parse(checker *c, const char *jid, const char *text, size_t len, parsed *p) {
  p->o = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
  p->id = json_string_value(json_object_get(p->o, "id"));
  p->status = json_string_value(json_object_get(p->o, "status"));
  p->caption = json_string_value(json_object_get(p->o, "caption"));
  if (p->id && p->status) return true;
  checker_violation(c, "job %s: not a record: %.100s", jid, text);
  json_decref(p->o);
  p->o = NULL;
  return false;
}

static void see(checker *c, checked_job *j, uint64_t idx, const char *where) {
  if (idx >= j->total) {
    checker_violation(c, "job %s: %s holds item %" PRIu64 ", which it does not have", j->jid, where, idx);
    return;
  }
  if (!bit_get(j->done_bits, idx)) checker_violation(c, "job %s: %s holds item %" PRIu64 ", which is not done", j->jid, where, idx);
  if (bit_get(j->seen_bits, idx)) checker_violation(c, "job %s: item %" PRIu64 " a second time, in %s", j->jid, idx, where);
  bit_set(j->seen_bits, idx);
  c->report->records++;
}

/* ---- files ---- */

/* "0-31,64": marks each, returns how many. */
static uint64_t see_ranges(checker *c, checked_job *j, const char *ranges, const char *where) {
  uint64_t n = 0;
  for (const char *s = ranges; *s;) {
    char *end;
    uint64_t from = strtoull(s, &end, 10), to = from;
    if (*end == '-') to = strtoull(end + 1, &end, 10);
    if (end == s || to < from || to - from > j->total) {
      checker_violation(c, "job %s: %s has the items '%.50s'", j->jid, where, s);
      return n;
    }
    for (uint64_t i = from; i <= to; i++, n++) see(c, j, i, where);
    s = *end == ',' ? end + 1 : end;
    if (s == end && *s) return n;
  }
  return n;
}

static uint64_t check_lines(checker *c, checked_job *j, captions *cap, const char *path, bool dead) {
  FILE *f = fopen(path, "r");
  char *line = NULL;
  size_t room = 0;
  uint64_t n = 0;
  if (!f) {
    checker_violation(c, "job %s: %s cannot be read", j->jid, path);
    return 0;
  }
  for (ssize_t len; (len = getline(&line, &room, f)) > 0; n++) {
    parsed p;
    if (line[len - 1] != '\n') checker_violation(c, "job %s: %s ends within a line", j->jid, path);
    if (!parse(c, j->jid, line, (size_t)len, &p)) continue;
    bool failed = strcmp(p.status, "failed") == 0;
    if (dead != failed) checker_violation(c, "job %s: %s has a record of '%s' with status %s", j->jid, path, p.id, p.status);
    if (!dead && c->o->stub && cap->item) check_caption(c, j, cap, p.id, p.caption ? p.caption : "");
    json_decref(p.o);
  }
  free(line);
  fclose(f);
  return n;
}

static void check_part(checker *c, checked_job *j, captions *cap, const char *dir, const char *name) {
  char path[4096];
  int stem = (int)strlen(name) - 6; /* .jsonl */
  snprintf(path, sizeof path, "%s/%s", dir, name);
  uint64_t lines = check_lines(c, j, cap, path, false);
  if (!lines) return; /* a number that a sink died over, closed by the next one (broker/sink_part.c): its sidecar says nothing */
  snprintf(path, sizeof path, "%s/.%.*s.json", dir, stem, name);
  json_t *side = json_load_file(path, 0, NULL);
  const char *ranges = json_string_value(json_object_get(side, "idx"));
  int64_t count = json_integer_value(json_object_get(side, "count"));
  if (!ranges)
    checker_violation(c, "job %s: no items in %s", j->jid, path);
  else if (see_ranges(c, j, ranges, name) != lines || count != (int64_t)lines)
    checker_violation(c, "job %s: %s has %" PRIu64 " lines, its sidecar says %" PRId64 " (%s)", j->jid, name, lines, count, ranges);
  json_decref(side);
}

static void check_folder(checker *c, checked_job *j, captions *cap) {
  char dir[2048], path[2200];
  bool errors = false;
  snprintf(dir, sizeof dir, "%s/%s", c->o->results, j->jid);
  DIR *d = opendir(dir);
  for (struct dirent *e; d && (e = readdir(d));) {
    size_t len = strlen(e->d_name);
    if (strncmp(e->d_name, "part-", 5) == 0 && len > 11 && strcmp(e->d_name + len - 6, ".jsonl") == 0)
      check_part(c, j, cap, dir, e->d_name);
    errors = errors || strcmp(e->d_name, "errors.jsonl") == 0;
  }
  if (d) closedir(d);
  if (!c->o->at_end) return;
  snprintf(path, sizeof path, "%s/errors.jsonl", dir);
  uint64_t n = errors ? check_lines(c, j, cap, path, true) : 0;
  if (n != j->dead)
    checker_violation(c, "job %s: errors.jsonl has %" PRIu64 " records of %" PRIu64 " dead items", j->jid, n, j->dead);
  if (j->rec != j->done)
    checker_violation(c, "job %s: %" PRIu64 " records counted as sealed of %" PRIu64 " done", j->jid, j->rec, j->done);
}

/* ---- streams ---- */

static void check_entry(checker *c, checked_job *j, const char *where, uint64_t idx, const char *json, size_t len) {
  parsed p;
  if (len == 0) return; /* a dead item whose id nobody knows */
  if (!parse(c, j->jid, json, len, &p)) return;
  /* What was dead may have been replayed: a failed record says nothing about the item's end. */
  if (strcmp(p.status, "failed") != 0) see(c, j, idx, where);
  if (p.caption && c->o->stub && (strlen(p.caption) != 21 || strncmp(p.caption, "stub:", 5) != 0))
    checker_violation(c, "job %s: item %" PRIu64 " has the caption '%s'", j->jid, idx, p.caption);
  json_decref(p.o);
}

static bool each_stream_entry(checker *c, void *ctx, redisReply *const *element, size_t n) {
  const char *where = ctx, *jid = "";
  const redisReply *json = NULL;
  uint64_t idx = 0;
  for (size_t i = 1; i + 1 < n; i += 2) {
    if (strcmp(element[i]->str, "jid") == 0) jid = element[i + 1]->str;
    if (strcmp(element[i]->str, "idx") == 0) idx = strtoull(element[i + 1]->str, NULL, 10);
    if (strcmp(element[i]->str, "json") == 0) json = element[i + 1];
  }
  checked_job *j = checker_job(c, jid);
  /* Between sealing and deleting an entry is in both places. */
  bool sealed_too =
      j && strcmp(where, "res") == 0 && c->o->results && !c->o->at_end && idx < j->total && bit_get(j->seen_bits, idx);
  if (!json)
    checker_violation(c, "%s: entry %s has no record", where, element[0]->str);
  else if (!j)
    checker_violation(c, "%s: entry %s is of job '%s', which is not there", where, element[0]->str, jid);
  else if (j->stream != (strcmp(where, "out") == 0))
    checker_violation(c, "job %s: a record in %s", jid, where);
  else if (!sealed_too)
    check_entry(c, j, where, idx, json->str, json->len);
  return true;
}

static void read_drained(checker *c) {
  FILE *f = fopen(c->o->drained, "r");
  char *line = NULL, jid[72];
  size_t room = 0;
  uint64_t idx, epoch;
  int at = 0;
  if (!f) checker_violation(c, "'%s' cannot be read", c->o->drained);
  for (ssize_t len; f && (len = getline(&line, &room, f)) > 0;) {
    checked_job *j = sscanf(line, "%71s %" SCNu64 " %" SCNu64 " %n", jid, &idx, &epoch, &at) >= 3 ? checker_job(c, jid) : NULL;
    if (j) /* without a record the blank before it went with the line's end */
      check_entry(c, j, "what was taken from out", idx, line + at, len > at ? (size_t)(len - at - 1) : 0);
    else
      checker_violation(c, "'%s': line '%.50s'", c->o->drained, line);
  }
  free(line);
  if (f) fclose(f);
}

static bool out_was_read(checker *c) {
  redisReply *r = checker_command(c, "XINFO", "GROUPS", "$out");
  bool read = r && r->type == REDIS_REPLY_ARRAY && r->elements > 0;
  if (r) freeReplyObject(r);
  return read;
}

btc_status checker_records(checker *c, btc_error *err) {
  for (size_t i = 0; i < c->n_jobs && c->o->results; i++) {
    captions cap = {0};
    if (c->jobs[i].stream) continue;
    if (c->o->stub) load_captions(&c->jobs[i], &cap);
    check_folder(c, &c->jobs[i], &cap);
    free(cap.item);
  }
  btc_status st = checker_walk(c, "stream", "$res", each_stream_entry, "res", err);
  /* With what an integrator took, entries that are still in `out` would be seen twice: it took them all, or none of this is asked.
   */
  if (st == BTC_OK && !c->o->drained) st = checker_walk(c, "stream", "$out", each_stream_entry, "out", err);
  if (st == BTC_OK && c->o->drained) read_drained(c);
  if (st != BTC_OK) return st;
  if (c->o->at_end && c->o->results && checker_number(c, "XLEN", "$res", NULL) != 0)
    checker_violation(c, "res has entries at the end");
  bool trimmed = !c->o->drained && out_was_read(c);
  for (size_t i = 0; i < c->n_jobs; i++) {
    const checked_job *j = &c->jobs[i];
    uint64_t missing = 0, first = 0;
    for (uint64_t k = 0; k < j->total && !(j->stream && trimmed); k++)
      if (bit_get(j->done_bits, k) && !bit_get(j->seen_bits, k) && missing++ == 0) first = k;
    if (missing)
      checker_violation(c, "job %s: %" PRIu64 " records of done items are missing, the first is %" PRIu64, j->jid, missing, first);
  }
  return BTC_OK;
}
