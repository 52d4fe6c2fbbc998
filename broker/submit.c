/* Check, verify, submit. */
#define _GNU_SOURCE
#include "submit.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "expand.h"
#include "grant.h"
#include "recover.h"

enum {
  MAX_ITEMS = 1000,
  MAX_DUPS = 10000,
  MAX_PARAMS = 64 << 10,
  MAX_KEY = 256,
  MAX_PATH = 4095,
  RETRY_MS = 1000,
  MAX_DELAY_DAYS = 366
};

typedef struct submission {
  btc_broker *b;
  Btc__Envelope *envelope;
  const Btc__Submit *m;
  char jid[BTC_JID], entry[64], route[16];
  char *dups;
  char **item; /* in normal form */
  size_t n_items;
  btc_submit_done done;
  void *ctx;
  btc_call *call; /* for the journal, or NULL */
} submission;

void btc_new_jid(btc_broker *b, char jid[BTC_JID]) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  snprintf(jid, BTC_JID, "%011llx%06llx", (unsigned long long)t.tv_sec * 1000 + (unsigned long long)t.tv_nsec / 1000000,
           (unsigned long long)btc_broker_random(b) & 0xffffff);
}

/* ---- item texts ---- */

char *btc_item_problem(const char *id, const char *problem) {
  btc_manifest_item bad = {.kind = BTC_MANIFEST_BAD, .id = id, .problem = problem};
  return btc_manifest_item_text(&bad, NULL);
}

/* A text that says itself that it is no item: clients send the bad lines of their manifests so. */
static char *own_problem(const char *text, size_t len, const char *fallback_id) {
  json_error_t why;
  if (!memmem(text, len, "\"problem\"", 9)) return NULL;
  json_t *o = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
  const char *problem = json_string_value(json_object_get(o, "problem")), *id = json_string_value(json_object_get(o, "id"));
  char *normal = NULL;
  if (problem && json_object_size(o) <= 2 && (!id || strlen(id) <= BTC_MANIFEST_MAX_ID))
    normal = btc_item_problem(id && *id ? id : fallback_id, problem);
  json_decref(o);
  return normal;
}

char *btc_item_normal(btc_manifest **parser, const char *text, size_t len, const char *fallback_id) {
  btc_manifest_item item;
  btc_error err;
  if (len > BTC_IO_MAX_TEXT) return btc_item_problem(fallback_id, "the item is longer than 192 KiB");
  char *normal = own_problem(text, len, fallback_id);
  if (normal) return normal;
  if (btc_manifest_parse_line(parser, text, len, 0, "", &item, &err) != BTC_OK) return NULL;
  if (!*item.id) item.id = fallback_id;
  if (item.kind == BTC_MANIFEST_ITEM && (item.before[0] != '/' || item.after[0] != '/'))
    return btc_item_problem(item.id, "paths must be absolute");
  return btc_manifest_item_text(&item, NULL);
}

/* ---- the end ---- */

static void finish(submission *s, const btc_submit_outcome *o) {
  s->done(s->ctx, o);
  for (size_t i = 0; i < s->n_items; i++) free(s->item[i]);
  free(s->item);
  free(s->call);
  free(s->dups);
  btc_wire_free(&s->envelope);
  free(s);
}

static void refuse(submission *s, const char *why) {
  btc_submit_outcome o = {.end = BTC_SUBMIT_REFUSED, .jid = "", .message = why};
  finish(s, &o);
}

static void later(submission *s, const char *why, uint32_t retry_ms) {
  btc_submit_outcome o = {.end = BTC_SUBMIT_LATER, .jid = "", .message = why, .retry_ms = retry_ms ? retry_ms : RETRY_MS};
  finish(s, &o);
}

static void on_submitted(void *ctx, const redisReply *r) {
  submission *s = ctx;
  btc_broker *b = s->b;
  const char *word = btc_answer_text(r, 0);
  BTC_FAILPOINT("after_submit");
  if (btc_broker_refused("btc_submit", r)) {
    if (r && strncmp(r->str, "BAD", 3) == 0)
      refuse(s, r->str);
    else
      later(s, btc_answer_why(r), 0);
    return;
  }
  if (strcmp(word, "BUSY") == 0) {
    later(s, btc_answer_text(r, 2), (uint32_t)btc_answer_u64(r, 1));
    return;
  }
  btc_submit_outcome o = {.end = BTC_SUBMIT_DONE, .jid = btc_answer_text(r, 1), .message = "", .existed = strcmp(word, "OLD") == 0};
  if (!o.existed) {
    btc_recover_keep(b, s->call, 0);
    s->call = NULL;
    btc_log(BTC_LOG_INFO, "job-new", "jid=%s tenant=%s items=%" PRIu64 " route=%s", o.jid, *s->m->tenant ? s->m->tenant : "default",
            s->n_items ? (uint64_t)s->n_items : s->m->manifest_items, s->route);
    if (!s->n_items) btc_expander_tick(b);
  }
  finish(s, &o);
}

static void submit_now(submission *s) {
  const Btc__Submit *m = s->m;
  bool is_inline = !*m->manifest;
  btc_store_submission out = {.jid = s->jid,
                              .kind = is_inline ? "inline" : "manifest",
                              .tenant = *m->tenant ? m->tenant : "default",
                              .pri = m->priority,
                              .model_class = m->model_class,
                              .route = s->route,
                              .key = m->key,
                              .params = *m->params ? m->params : "{}",
                              .manifest = m->manifest,
                              .sha = m->manifest_sha256,
                              .total = is_inline ? s->n_items : m->manifest_items,
                              .strict = m->strict,
                              .dups = s->dups ? s->dups : "",
                              .base = m->base_dir,
                              .delay_ms = m->delay_ms,
                              .entry = s->entry,
                              .item = (const char *const *)s->item,
                              .n_items = s->n_items};
  BTC_FAILPOINT("before_submit");
  if (!btc_store_submit(s->b->store, &out, on_submitted, s)) {
    later(s, "Redis is away", 0);
    return;
  }
  s->call = btc_recover_copy(s->b, 0);
  if (is_inline && !m->delay_ms) btc_grant_wake(s->b, m->model_class, s->n_items); /* the claim follows in the same write */
}

/* ---- what the io thread checks ---- */

static void on_verified(void *ctx, const btc_io_reply *r) {
  submission *s = ctx;
  if (r->status == BTC_OK)
    submit_now(s);
  else if (r->status == BTC_ERR_NOMEM || r->status == BTC_ERR_LIMIT)
    later(s, r->message, 0);
  else
    refuse(s, r->message);
}

static void on_checked(void *ctx, const btc_io_reply *r) {
  submission *s = ctx;
  if (r->status != BTC_OK || r->n != s->n_items) {
    later(s, r->message, 0);
    return;
  }
  for (size_t i = 0; i < r->n; i++) {
    char *text = btc_strdup(r->text[i]);
    if (!text) {
      later(s, "out of memory", 0);
      return;
    }
    free(s->item[i]);
    s->item[i] = text;
  }
  submit_now(s);
}

static bool normalise(submission *s) {
  btc_manifest *parser = NULL;
  size_t n = s->m->n_items;
  bool good = true;
  s->item = btc_alloc_zero(n, sizeof *s->item);
  for (size_t i = 0; s->item && i < n && good; i++) {
    char id[24];
    snprintf(id, sizeof id, "%zu", i + 1);
    s->item[i] = btc_item_normal(&parser, s->m->items[i], strlen(s->m->items[i]), id);
    good = s->item[i] != NULL;
    s->n_items += good;
  }
  btc_manifest_close(&parser);
  return s->item && good;
}

static bool join_dups(submission *s) {
  size_t n = s->m->n_duplicates, at = 0;
  s->dups = btc_alloc(n * 21 + 1, 1);
  if (!s->dups) return false;
  s->dups[0] = 0;
  for (size_t i = 0; i < n; i++) at += (size_t)sprintf(s->dups + at, "%s%" PRIu64, i ? "," : "", s->m->duplicates[i]);
  return true;
}

/* ---- the message ---- */

static const char *check_params(const char *text) {
  json_error_t why;
  if (!*text) return NULL;
  if (strlen(text) > MAX_PARAMS) return "params: longer than 64 KiB";
  json_t *o = json_loads(text, JSON_REJECT_DUPLICATES, &why);
  const char *wrong = !json_is_object(o) ? "params: not a JSON object"
                      : json_object_get(o, "deadline_ms")
                          ? "params: there is no deadline_ms; a job that comes too late is cancelled"
                          : NULL;
  json_decref(o);
  return wrong;
}

static bool is_digest(const char *t) {
  return strlen(t) == 64 && strspn(t, "0123456789abcdef") == 64;
}

static const char *check_manifest(const Btc__Submit *m) {
  if (m->n_items) return "either a manifest or items, not both";
  if (m->manifest[0] != '/') return "manifest: the path must be absolute";
  if (strlen(m->manifest) > MAX_PATH || strlen(m->base_dir) > MAX_PATH) return "manifest: the path is too long";
  if (*m->base_dir && m->base_dir[0] != '/') return "base_dir: must be absolute";
  if (!is_digest(m->manifest_sha256)) return "manifest_sha256: must be 64 hex digits";
  if (!m->manifest_items || m->manifest_items > BTC_MANIFEST_MAX_ITEMS) return "manifest_items: must be 1 to 100,000,000";
  if (m->n_duplicates > MAX_DUPS) return "more than 10,000 items have an id that came before: give them ids of their own";
  for (size_t i = 0; i < m->n_duplicates; i++)
    if (m->duplicates[i] >= m->manifest_items || (i && m->duplicates[i] <= m->duplicates[i - 1]))
      return "duplicates: must ascend, below manifest_items";
  return NULL;
}

static const char *check(const Btc__Submit *m) {
  if (*m->tenant && !btc_name_valid(m->tenant)) return "tenant: must have 1 to 64 of the characters A-Z a-z 0-9 . _ -";
  if (m->priority > 2) return "priority: must be 0, 1 or 2";
  if (!btc_class_valid(m->model_class)) return "model_class: must have at most 128 of the characters A-Z a-z 0-9 . _ : -";
  if (strlen(m->key) > MAX_KEY) return "key: longer than 256 bytes";
  if (*m->route && strcmp(m->route, "files") != 0 && strcmp(m->route, "stream") != 0) return "route: must be files or stream";
  if (m->delay_ms > (uint64_t)MAX_DELAY_DAYS * 86400000) return "delay_ms: more than a year";
  const char *why = check_params(m->params);
  if (why) return why;
  if (*m->manifest) return check_manifest(m);
  return m->n_items < 1 || m->n_items > MAX_ITEMS ? "items: must be 1 to 1,000 (more: as a manifest)" : NULL;
}

void btc_submit_begin(btc_broker *b, Btc__Envelope *e, const char *route, const char *entry, btc_submit_done done, void *ctx) {
  submission *s = btc_alloc_zero(1, sizeof *s);
  btc_error err;
  if (!s) {
    btc_submit_outcome o = {.end = BTC_SUBMIT_LATER, .jid = "", .message = "out of memory", .retry_ms = RETRY_MS};
    btc_wire_free(&e);
    done(ctx, &o);
    return;
  }
  *s = (submission){.b = b, .envelope = e, .m = e->submit, .done = done, .ctx = ctx};
  snprintf(s->entry, sizeof s->entry, "%s", entry);
  const char *why = check(s->m);
  snprintf(s->route, sizeof s->route, "%s", *s->m->route ? s->m->route : route);
  btc_new_jid(b, s->jid);
  if (!why && !*s->m->key && !*entry) why = "key: must not be empty, or sending the message again would make another job";
  if (why) {
    refuse(s, why);
    return;
  }
  btc_status st = BTC_ERR_NOMEM;
  err.message[0] = 0;
  if (*s->m->manifest) {
    btc_io_manifest m = {s->m->manifest, s->m->manifest_sha256, s->m->base_dir};
    if (join_dups(s)) st = btc_io_verify(b->io, &m, on_verified, s, &err);
  } else if (normalise(s)) {
    if (!b->o->roots) {
      submit_now(s);
      return;
    }
    st = btc_io_check_items(b->io, (const char *const *)s->item, s->n_items, on_checked, s, &err);
  }
  if (st != BTC_OK) later(s, err.message[0] ? err.message : "out of memory", 0);
}
