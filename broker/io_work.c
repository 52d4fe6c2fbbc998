/* The disk thread's work: see io_work.h. */
#define _GNU_SOURCE
#include "broker/io_work.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/shelf.h"

#define HASHINGS 8               /* manifests hashed side by side */
#define HASH_TIMES 3             /* a manifest that changes while it is hashed this often is refused */
#define EXPAND_BYTES (16u << 20) /* read by one expansion */

typedef struct hashing {
  btc_hashing *h; /* NULL: free */
  char *path;
  btc_identity identity;
  btc_io_job *waiting; /* newest first */
} hashing;

struct btc_io_work {
  btc_io_answer answer;
  void *ctx;
  char *results;
  btc_shelf *shelf;
  hashing hashing[HASHINGS];
  size_t turn; /* which of them goes on next */
};

/* ---- jobs ---- */

btc_io_job *btc_io_job_create(btc_io_kind kind) {
  btc_io_job *j = btc_alloc_zero(1, sizeof *j);
  if (j) j->kind = kind;
  return j;
}

void btc_io_job_free(btc_io_job *j) {
  if (!j) return;
  for (size_t i = 0; i < j->reply.n; i++) free(j->text[i]);
  free(j->text);
  free(j->count);
  free(j->chunk_pos);
  free(j->lines);
  free(j->path);
  free(j->base);
  free(j->sha256);
  free(j->pos);
  free(j);
}

bool btc_io_job_texts(btc_io_job *j, size_t room) {
  j->text = btc_alloc_zero(room, sizeof *j->text);
  j->reply.text = (const char *const *)j->text;
  j->text_room = j->text ? room : 0;
  return j->text != NULL;
}

bool btc_io_job_add(btc_io_job *j, char *text) {
  if (!text || j->reply.n == j->text_room) {
    free(text);
    return false;
  }
  j->text[j->reply.n++] = text;
  j->bytes += strlen(text);
  return true;
}

btc_status btc_io_work_create(const btc_io_options *o, btc_io_answer answer, void *ctx, btc_io_work **out, btc_error *err) {
  btc_io_work *w = *out = btc_alloc_zero(1, sizeof *w);
  if (!w) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  w->answer = answer;
  w->ctx = ctx;
  w->results = btc_strdup(o->results);
  btc_status st =
      o->results && !w->results ? btc_fail(err, BTC_ERR_NOMEM, "out of memory") : btc_shelf_create(o->roots, &w->shelf, err);
  if (st != BTC_OK) btc_io_work_destroy(out);
  return st;
}

static void end_hashing(hashing *h) {
  btc_hashing_end(&h->h);
  free(h->path);
  *h = (hashing){0};
}

void btc_io_work_destroy(btc_io_work **work) {
  btc_io_work *w = *work;
  *work = NULL;
  if (!w) return;
  for (size_t i = 0; i < HASHINGS; i++) {
    for (btc_io_job *j = w->hashing[i].waiting, *next; j; j = next) {
      next = j->next;
      btc_io_job_free(j);
    }
    end_hashing(&w->hashing[i]);
  }
  btc_shelf_destroy(&w->shelf);
  free(w->results);
  free(w);
}

static void reply(btc_io_work *w, btc_io_job *j, btc_status st) {
  j->reply.status = st;
  w->answer(w->ctx, j);
}

/* ---- items ---- */

/* An image outside the roots makes the item a bad line. */
static void apply_policy(btc_io_work *w, btc_manifest_item *item, char problem[64]) {
  btc_roots *roots = btc_shelf_roots(w->shelf);
  if (!roots || item->kind != BTC_MANIFEST_ITEM) return;
  const char *side = !btc_roots_allow(roots, item->before) ? "before" : !btc_roots_allow(roots, item->after) ? "after" : NULL;
  if (!side) return;
  snprintf(problem, 64, "'%s' lies outside the folders that are served", side);
  item->kind = BTC_MANIFEST_BAD;
  item->problem = problem;
}

static char *text_of(const btc_manifest_item *item) {
  char *text = btc_manifest_item_text(item, NULL);
  if (!text || strlen(text) <= BTC_IO_MAX_TEXT) return text;
  free(text);
  btc_manifest_item bad = *item;
  bad.kind = BTC_MANIFEST_BAD;
  bad.problem = "the item is over 192 KiB, which the queue does not carry";
  return btc_manifest_item_text(&bad, NULL);
}

static btc_status does_not_fit(const btc_io_job *j, btc_error *err) {
  return btc_fail(err, BTC_ERR_ARG, "'%s': the place %s is not that of item %" PRIu64, j->path, *j->pos ? j->pos : "0:1:0",
                  j->from);
}

static btc_status read_texts(btc_io_work *w, btc_io_job *j, btc_manifest *m) {
  if (btc_manifest_index(m) != j->from) return does_not_fit(j, &j->error);
  if (!btc_io_job_texts(j, j->n)) return btc_fail(&j->error, BTC_ERR_NOMEM, "out of memory");
  for (uint32_t i = 0; i < j->n; i++) {
    uint32_t bit = 1u << i;
    btc_manifest_item item = {0};
    uint64_t skipped = 1;
    bool wanted = (j->mask & bit) != 0;
    btc_status st = wanted ? btc_manifest_next(m, &item, &j->error) : btc_manifest_skip(m, 1, &skipped, &j->error);
    if (st != BTC_OK) return st;
    if (!skipped || item.kind == BTC_MANIFEST_END)
      return btc_fail(&j->error, BTC_ERR_ARG, "'%s' ends before item %" PRIu64, j->path, j->from + i);
    if (!wanted) continue;
    char problem[64];
    if (j->dup_mask & bit) btc_manifest_mark_duplicate(m, &item);
    apply_policy(w, &item, problem);
    if (!btc_io_job_add(j, text_of(&item))) return btc_fail(&j->error, BTC_ERR_NOMEM, "out of memory");
  }
  return BTC_OK;
}

static btc_status find_chunks(btc_io_job *j, btc_manifest *m) {
  if (btc_manifest_index(m) != j->from) return does_not_fit(j, &j->error);
  j->count = btc_alloc(j->max, sizeof *j->count);
  j->chunk_pos = btc_alloc(j->max, sizeof *j->chunk_pos);
  if (!j->count || !j->chunk_pos) return btc_fail(&j->error, BTC_ERR_NOMEM, "out of memory");
  btc_io_reply *r = &j->reply;
  r->count = j->count;
  r->pos = j->chunk_pos;
  j->bytes += j->max * (sizeof *j->count + sizeof *j->chunk_pos);
  uint64_t begin = btc_manifest_bytes(m);
  btc_status st = btc_manifest_tell(m, &r->end, &j->error);
  while (st == BTC_OK && r->n_chunks < j->max && j->from + r->items < j->total && btc_manifest_bytes(m) - begin < EXPAND_BYTES) {
    uint64_t left = j->total - j->from - r->items, want = left < j->n ? left : j->n, got = 0;
    j->chunk_pos[r->n_chunks] = r->end;
    st = btc_manifest_skip(m, want, &got, &j->error);
    if (st == BTC_OK) st = btc_manifest_tell(m, &r->end, &j->error);
    if (got) j->count[r->n_chunks++] = (uint32_t)got;
    r->items += got;
    r->at_end = got < want;
    if (r->at_end) break;
  }
  return st;
}

/* ---- hashing ---- */

static void forget_waiting(btc_io_work *w, hashing *h, btc_status st, const btc_error *err) {
  for (btc_io_job *j = h->waiting, *next; j; j = next) {
    next = j->next;
    j->error = *err;
    reply(w, j, st);
  }
}

static btc_status wait_for_hash(btc_io_work *w, btc_io_job *j, const btc_identity *identity) {
  if (j->hashed++ == HASH_TIMES) return btc_fail(&j->error, BTC_ERR_FORMAT, "'%s' changes while it is read", j->path);
  hashing *free_one = NULL;
  for (size_t i = 0; i < HASHINGS; i++) {
    hashing *h = &w->hashing[i];
    if (!h->h) {
      free_one = h;
      continue;
    }
    if (strcmp(h->path, j->path) != 0 || !btc_identity_equal(&h->identity, identity)) continue;
    j->next = h->waiting;
    h->waiting = j;
    return BTC_OK;
  }
  if (!free_one) return btc_fail(&j->error, BTC_ERR_LIMIT, "too many manifests are being checked: '%s' has to wait", j->path);
  btc_status st = btc_hashing_begin(j->path, identity, &free_one->h, &j->error);
  if (st != BTC_OK) return st;
  free_one->path = btc_strdup(j->path);
  free_one->identity = *identity;
  if (!free_one->path) {
    end_hashing(free_one);
    return btc_fail(&j->error, BTC_ERR_NOMEM, "out of memory");
  }
  j->next = NULL;
  free_one->waiting = j;
  return BTC_OK;
}

bool btc_io_work_is_hashing(const btc_io_work *w) {
  for (size_t i = 0; i < HASHINGS; i++)
    if (w->hashing[i].h) return true;
  return false;
}

void btc_io_work_hash(btc_io_work *w) {
  hashing *h = NULL;
  for (size_t i = 0; i < HASHINGS && !h; i++) {
    w->turn = (w->turn + 1) % HASHINGS;
    if (w->hashing[w->turn].h) h = &w->hashing[w->turn];
  }
  if (!h) return;
  bool done;
  char hex[65];
  btc_error err = {0};
  btc_status st = btc_hashing_step(h->h, &done, hex, &err);
  if (st == BTC_OK && !done) return;
  hashing ended = *h;
  *h = (hashing){0};
  if (st != BTC_OK) {
    forget_waiting(w, &ended, st, &err);
  } else {
    /* only the bytes that were hashed get the digest: what lies there now is compared again by each job that waited */
    btc_shelf_learn(w->shelf, &ended.identity, hex);
    for (btc_io_job *j = ended.waiting, *next; j; j = next) {
      next = j->next;
      btc_io_work_do(w, j);
    }
  }
  ended.waiting = NULL;
  end_hashing(&ended);
}

/* ---- requests ---- */

/* *kept: the job waits for a hash. */
static btc_status do_manifest(btc_io_work *w, btc_io_job *j, bool *kept) {
  btc_identity identity;
  const char *hex;
  bool known;
  btc_status st = btc_shelf_check(w->shelf, j->path, j->sha256, &known, &identity, &hex, &j->error);
  snprintf(j->hex, sizeof j->hex, "%s", hex);
  j->reply.sha256 = j->hex;
  if (st != BTC_OK) return st;
  if (!known) {
    st = wait_for_hash(w, j, &identity);
    *kept = st == BTC_OK;
    return st;
  }
  if (j->kind == BTC_IO_VERIFY) return BTC_OK;
  btc_manifest *m;
  st = btc_shelf_reader(w->shelf, j->path, j->base, &identity, j->pos, &m, &j->error);
  if (st != BTC_OK) return st;
  return j->kind == BTC_IO_TEXTS ? read_texts(w, j, m) : find_chunks(j, m);
}

static btc_status do_results(const btc_io_work *w, btc_io_job *j) {
  if (!w->results) return btc_fail(&j->error, BTC_ERR_NOT_FOUND, "this broker has no results folder");
  size_t len;
  bool end;
  btc_status st = btc_results_read(w->results, j->path, j->pos, j->max, j->errors, &j->lines, &len, j->cursor, &end, &j->error);
  if (st != BTC_OK) return st;
  j->reply.lines = j->lines;
  j->reply.len = len;
  j->reply.cursor = j->cursor;
  j->reply.at_end = end;
  j->bytes += len;
  return BTC_OK;
}

/* An item text in, the same or one with a problem out. */
static char *check_item(btc_io_work *w, const char *text) {
  json_t *o = json_loads(text, 0, NULL);
  const char *before = json_string_value(json_object_get(o, "before")), *after = json_string_value(json_object_get(o, "after"));
  const char *id = json_string_value(json_object_get(o, "id"));
  btc_manifest_item item = {.id = id ? id : "", .before = before ? before : "", .after = after ? after : ""};
  char problem[64], *out;
  if (!o || json_object_get(o, "problem")) {
    out = btc_strdup(text); /* what is no item is said elsewhere */
  } else {
    apply_policy(w, &item, problem);
    out = item.kind == BTC_MANIFEST_ITEM ? btc_strdup(text) : btc_manifest_item_text(&item, NULL);
  }
  json_decref(o);
  return out;
}

static btc_status do_items(btc_io_work *w, btc_io_job *j) {
  btc_roots_refresh(btc_shelf_roots(w->shelf));
  for (size_t i = 0; i < j->reply.n; i++) {
    char *checked = check_item(w, j->text[i]);
    if (!checked) return btc_fail(&j->error, BTC_ERR_NOMEM, "out of memory");
    free(j->text[i]);
    j->text[i] = checked;
  }
  return BTC_OK;
}

void btc_io_work_do(btc_io_work *w, btc_io_job *j) {
  bool kept = false;
  btc_status st;
  switch (j->kind) {
    case BTC_IO_RESULTS:
      st = do_results(w, j);
      break;
    case BTC_IO_ITEMS:
      st = do_items(w, j);
      break;
    default:
      st = do_manifest(w, j, &kept);
  }
  if (!kept) reply(w, j, st);
}
