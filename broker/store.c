/* Argument vectors for FCALL, grown once and used again; and what replies mean. */
#define _GNU_SOURCE
#include "store.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NUMBER = 24 };

struct btc_store {
  btc_redis *redis;
  char prefix[96], key[256];
  /* the vector in hand; a NULL value stands for the number in the same row, as rows move when they grow */
  int n, cap;
  const char **v;
  size_t *len;
  char (*number)[MAX_NUMBER];
  bool bad;
};

btc_status btc_store_create(btc_redis *r, const char *prefix, btc_store **out, btc_error *err) {
  btc_store *s = *out = btc_alloc_zero(1, sizeof *s);
  if (!s) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  s->redis = r;
  snprintf(s->prefix, sizeof s->prefix, "%s", prefix);
  return BTC_OK;
}

void btc_store_destroy(btc_store **store) {
  btc_store *s = *store;
  *store = NULL;
  if (!s) return;
  free((void *)s->v);
  free(s->len);
  free(s->number);
  free(s);
}

/* ---- the vector ---- */

static bool grow(btc_store *s) {
  int cap = s->cap ? s->cap * 2 : 256;
  const char **v = btc_realloc((void *)s->v, (size_t)cap, sizeof *v);
  if (v) s->v = v;
  size_t *len = btc_realloc(s->len, (size_t)cap, sizeof *len);
  if (len) s->len = len;
  char(*number)[MAX_NUMBER] = btc_realloc(s->number, (size_t)cap, sizeof *number);
  if (number) s->number = number;
  if (!v || !len || !number) return false;
  s->cap = cap;
  return true;
}

static void text(btc_store *s, const char *t) {
  if (s->n == s->cap && !grow(s)) s->bad = true;
  if (s->bad) return;
  s->v[s->n] = t ? t : "";
  s->len[s->n] = t ? strlen(t) : 0;
  s->n++;
}

static void number(btc_store *s, uint64_t x) {
  if (s->n == s->cap && !grow(s)) s->bad = true;
  if (s->bad) return;
  s->v[s->n] = NULL;
  s->len[s->n] = (size_t)snprintf(s->number[s->n], MAX_NUMBER, "%" PRIu64, x);
  s->n++;
}

static void begin(btc_store *s, const char *function) {
  s->n = 0;
  s->bad = false;
  text(s, "FCALL");
  text(s, function);
  text(s, "1");
  text(s, s->prefix);
}

static bool send(btc_store *s, btc_redis_answer answer, void *ctx) {
  if (s->bad) return false;
  for (int i = 0; i < s->n; i++)
    if (!s->v[i]) s->v[i] = s->number[i];
  return btc_redis_send(s->redis, s->n, s->v, s->len, 0, answer, ctx);
}

/* ---- calls ---- */

bool btc_store_submit(btc_store *s, const btc_store_submission *b, btc_redis_answer answer, void *ctx) {
  begin(s, "btc_submit");
  text(s, b->jid);
  text(s, b->kind);
  text(s, b->tenant);
  number(s, b->pri);
  text(s, b->model_class);
  text(s, b->route);
  text(s, b->key);
  text(s, b->params);
  text(s, b->manifest);
  text(s, b->sha);
  number(s, b->total);
  number(s, b->strict);
  text(s, b->dups);
  text(s, b->base);
  number(s, b->delay_ms);
  text(s, b->entry);
  for (size_t i = 0; i < b->n_items; i++) text(s, b->item[i]);
  return send(s, answer, ctx);
}

bool btc_store_ingest(btc_store *s, const char *jid, const char *tenant, uint32_t pri, const char *model_class,
                      const btc_store_entry *e, size_t n, btc_redis_answer answer, void *ctx) {
  begin(s, "btc_ingest");
  text(s, jid);
  text(s, tenant);
  number(s, pri);
  text(s, model_class);
  for (size_t i = 0; i < n; i++) {
    text(s, e[i].id);
    text(s, e[i].key);
    text(s, e[i].text);
  }
  return send(s, answer, ctx);
}

bool btc_store_expand(btc_store *s, const char *jid, uint64_t cursor, const uint32_t *count, const btc_manifest_pos *pos, size_t n,
                      const char *end, btc_redis_answer answer, void *ctx) {
  begin(s, "btc_expand");
  text(s, jid);
  number(s, cursor);
  for (size_t i = 0; i < n; i++) {
    number(s, count[i]);
    text(s, pos[i].text);
  }
  text(s, end);
  return send(s, answer, ctx);
}

bool btc_store_claim(btc_store *s, const char *wid, int64_t lease_ms, uint32_t credits, const char *model_class,
                     btc_redis_answer answer, void *ctx) {
  begin(s, "btc_claim");
  text(s, wid);
  number(s, (uint64_t)lease_ms);
  number(s, credits);
  text(s, model_class);
  return send(s, answer, ctx);
}

static void leases(btc_store *s, const btc_store_lease *l, size_t n, bool masks) {
  for (size_t i = 0; i < n; i++) {
    number(s, l[i].cid);
    number(s, l[i].token);
    if (masks) number(s, l[i].mask);
  }
}

bool btc_store_start(btc_store *s, const char *wid, const btc_store_lease *l, size_t n, btc_redis_answer answer, void *ctx) {
  begin(s, "btc_start");
  text(s, wid);
  leases(s, l, n, true);
  return send(s, answer, ctx);
}

static void chunk(btc_store *s, const btc_store_chunk *c) {
  number(s, c->cid);
  number(s, c->token);
  text(s, c->jid);
  number(s, c->lo);
  number(s, (uint64_t)c->lease_ms);
  text(s, c->wid);
}

bool btc_store_commit(btc_store *s, const btc_store_chunk *c, const btc_store_result *r, size_t n, btc_redis_answer answer,
                      void *ctx) {
  begin(s, "btc_commit");
  chunk(s, c);
  for (size_t i = 0; i < n; i++) {
    number(s, r[i].off);
    text(s, r[i].id);
    text(s, r[i].record);
  }
  return send(s, answer, ctx);
}

bool btc_store_fail(btc_store *s, const btc_store_chunk *c, const btc_store_result *r, size_t n, btc_redis_answer answer,
                    void *ctx) {
  begin(s, "btc_fail");
  chunk(s, c);
  for (size_t i = 0; i < n; i++) {
    number(s, r[i].off);
    text(s, r[i].kind);
    text(s, r[i].id);
    text(s, r[i].reason);
    text(s, r[i].message);
    text(s, r[i].record);
  }
  return send(s, answer, ctx);
}

bool btc_store_release(btc_store *s, const char *wid, const btc_store_lease *l, size_t n, btc_redis_answer answer, void *ctx) {
  begin(s, "btc_release");
  text(s, wid);
  leases(s, l, n, false);
  return send(s, answer, ctx);
}

bool btc_store_extend(btc_store *s, const char *wid, int64_t lease_ms, const btc_store_lease *l, size_t n, btc_redis_answer answer,
                      void *ctx) {
  begin(s, "btc_extend");
  text(s, wid);
  number(s, (uint64_t)lease_ms);
  leases(s, l, n, false);
  return send(s, answer, ctx);
}

bool btc_store_hello(btc_store *s, const char *name, uint64_t incarnation, int64_t ttl_ms, const char *broker, const char *info,
                     btc_redis_answer answer, void *ctx) {
  begin(s, "btc_hello");
  text(s, name);
  number(s, incarnation);
  number(s, (uint64_t)ttl_ms);
  text(s, broker);
  text(s, info);
  return send(s, answer, ctx);
}

bool btc_store_bye(btc_store *s, const char *name, uint64_t incarnation, btc_redis_answer answer, void *ctx) {
  begin(s, "btc_bye");
  text(s, name);
  number(s, incarnation);
  return send(s, answer, ctx);
}

btc_call *btc_store_copy(const btc_store *s) {
  size_t n = (size_t)s->n, bytes = sizeof(btc_call) + n * sizeof(size_t);
  for (size_t i = 0; i < n; i++) bytes += s->len[i];
  btc_call *c = btc_alloc(bytes, 1);
  if (!c) return NULL;
  *c = (btc_call){.bytes = bytes, .argc = s->n};
  char *text = (char *)(c->len + n);
  for (size_t i = 0; i < n; i++) {
    c->len[i] = s->len[i];
    memcpy(text, s->v[i], s->len[i]);
    text += s->len[i];
  }
  return c;
}

bool btc_store_repeat(btc_store *s, const btc_call *c, btc_redis_answer answer, void *ctx) {
  const char *at = (const char *)(c->len + c->argc);
  while (s->cap < c->argc)
    if (!grow(s)) return false;
  for (int i = 0; i < c->argc; i++) {
    s->v[i] = at;
    s->len[i] = c->len[i];
    at += c->len[i];
  }
  return btc_redis_send(s->redis, c->argc, s->v, s->len, 0, answer, ctx);
}

bool btc_store_call(btc_store *s, btc_redis_answer answer, void *ctx, const char *function, ...) {
  va_list ap;
  va_start(ap, function);
  begin(s, function);
  for (const char *t; (t = va_arg(ap, const char *));) text(s, t);
  va_end(ap);
  return send(s, answer, ctx);
}

bool btc_store_command(btc_store *s, btc_redis_answer answer, void *ctx, const char *command, ...) {
  va_list ap;
  va_start(ap, command);
  s->n = 0;
  s->bad = false;
  text(s, command);
  for (const char *t; (t = va_arg(ap, const char *));) text(s, t);
  va_end(ap);
  return send(s, answer, ctx);
}

const char *btc_store_key(btc_store *s, const char *kind, const char *rest) {
  snprintf(s->key, sizeof s->key, "%s%s%s", s->prefix, kind, rest);
  return s->key;
}

/* ---- replies ---- */

static const redisReply *element(const redisReply *r, size_t i) {
  return r && r->type == REDIS_REPLY_ARRAY && i < r->elements ? r->element[i] : NULL;
}

const char *btc_answer_text(const redisReply *r, size_t i) {
  const redisReply *e = element(r, i);
  return e && (e->type == REDIS_REPLY_STRING || e->type == REDIS_REPLY_STATUS) ? e->str : "";
}

uint64_t btc_answer_u64(const redisReply *r, size_t i) {
  const redisReply *e = element(r, i);
  if (e && e->type == REDIS_REPLY_INTEGER) return e->integer < 0 ? 0 : (uint64_t)e->integer;
  return e && e->type == REDIS_REPLY_STRING ? strtoull(e->str, NULL, 10) : 0;
}

const char *btc_answer_field(const redisReply *r, const char *name) {
  for (size_t i = 0; r && r->type == REDIS_REPLY_ARRAY && i + 1 < r->elements; i += 2)
    if (strcmp(btc_answer_text(r, i), name) == 0) return btc_answer_text(r, i + 1);
  return NULL;
}

uint64_t btc_answer_field_u64(const redisReply *r, const char *name) {
  const char *t = btc_answer_field(r, name);
  return t ? strtoull(t, NULL, 10) : 0;
}

bool btc_answer_failed(const redisReply *r) {
  return !r || r->type == REDIS_REPLY_ERROR;
}

const char *btc_answer_why(const redisReply *r) {
  return r ? r->str : "the connection to Redis was lost";
}

bool btc_answer_claimed(const redisReply *r, size_t i, btc_claimed *out) {
  const redisReply *c = element(r, i);
  if (!c || c->type != REDIS_REPLY_ARRAY || c->elements < 11) return false;
  *out = (btc_claimed){.cid = btc_answer_u64(c, 0),
                       .token = btc_answer_u64(c, 1),
                       .jid = btc_answer_text(c, 2),
                       .lo = btc_answer_u64(c, 3),
                       .n = (uint32_t)btc_answer_u64(c, 4),
                       .mask = (uint32_t)btc_answer_u64(c, 5),
                       .solo = btc_answer_u64(c, 6) != 0,
                       .crashes = (uint32_t)btc_answer_u64(c, 7),
                       .pos = btc_answer_text(c, 8),
                       .is_inline = strcmp(btc_answer_text(c, 9), "inline") == 0,
                       .params = btc_answer_text(c, 10),
                       .texts = element(c, 11)};
  return out->cid && out->n >= 1 && out->n <= 32 && out->mask;
}
