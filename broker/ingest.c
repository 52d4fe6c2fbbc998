/* XREADGROUP -> item texts -> (paths, by the io thread) -> btc_ingest -> XREADGROUP. */
#include "ingest.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grant.h"
#include "recover.h"
#include "submit.h"

enum { BATCH = 64, PENDING = 4, DEADLINE_MS = 6000 /* a read blocks for 1 s */, RETRY_MS = 1000, MAX_KEY = 256 };

/* Entries that become one job. */
typedef struct batch {
  struct batch *next; /* in `kept` */
  btc_broker *b;
  char tenant[BTC_NAME], model_class[BTC_CLASS];
  uint32_t pri;
  btc_call *call; /* for the journal, or NULL */
  size_t n;
  char *id[BATCH], *key[BATCH], *text[BATCH];
} batch;

struct btc_ingest {
  btc_broker *b;
  btc_manifest *parser;
  batch *open;                      /* being filled */
  batch *kept;                      /* lost their connection to Redis; sent again when there is one */
  bool reading, reading_mine, mine; /* mine: our own entries first, those that we read and did not finish */
  int pending;                      /* batches and submissions under way */
  int64_t hold_ns;                  /* no reading before */
};

btc_status btc_ingest_create(btc_broker *b, btc_error *err) {
  b->ingest = btc_alloc_zero(1, sizeof *b->ingest);
  if (!b->ingest) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  b->ingest->b = b;
  b->ingest->mine = true;
  return BTC_OK;
}

static void free_batch(batch *t) {
  if (!t) return;
  free(t->call);
  for (size_t i = 0; i < t->n; i++) {
    free(t->id[i]);
    free(t->key[i]);
    free(t->text[i]);
  }
  free(t);
}

void btc_ingest_destroy(btc_broker *b) {
  if (!b->ingest) return;
  free_batch(b->ingest->open);
  for (batch *t; (t = b->ingest->kept); free_batch(t)) b->ingest->kept = t->next;
  btc_manifest_close(&b->ingest->parser);
  free(b->ingest);
  b->ingest = NULL;
}

/* ---- what comes back ---- */

/* Not taken in: the entries stay ours in the group, and are read again after a while. */
static void hold(struct btc_ingest *g, int64_t ms) {
  g->mine = true;
  g->hold_ns = btc_loop_now_ns(g->b->loop) + ms * 1000000;
}

/* Whether it was taken in or not: an entry that is no more in the stream is not taken in again. Reading our own entries again would
 * wait for the read under way, which blocks for a second. Bounded: it still counts as under way. */
static void keep(struct btc_ingest *g, batch *t) {
  batch **at = &g->kept;
  while (*at) at = &(*at)->next;
  t->next = NULL;
  *at = t;
}

static void one_done(btc_broker *b) {
  struct btc_ingest *g = b->ingest;
  if (!g) return;
  g->pending--;
  btc_ingest_poke(b);
}

static void on_ingested(void *ctx, const redisReply *r) {
  batch *t = ctx;
  btc_broker *b = t->b;
  BTC_FAILPOINT("after_ingest");
  if (!r && b->ingest) {
    keep(b->ingest, t);
    return;
  }
  if (btc_broker_refused("btc_ingest", r)) {
    if (b->ingest) hold(b->ingest, RETRY_MS);
  } else if (strcmp(btc_answer_text(r, 0), "BUSY") == 0) {
    BTC_LOG_LIMITED(BTC_LOG_WARN, "ingest-busy", "msg=\"%s\"", btc_answer_text(r, 2));
    if (b->ingest) hold(b->ingest, (int64_t)btc_answer_u64(r, 1));
  } else {
    btc_recover_keep(b, t->call, 0);
    t->call = NULL;
  }
  free_batch(t);
  one_done(b);
}

static void ingest_now(batch *t) {
  btc_broker *b = t->b;
  btc_store_entry entry[BATCH];
  char jid[BTC_JID];
  btc_new_jid(b, jid);
  for (size_t i = 0; i < t->n; i++) entry[i] = (btc_store_entry){t->id[i], t->key[i], t->text[i]};
  BTC_FAILPOINT("before_ingest");
  if (btc_store_ingest(b->store, jid, t->tenant, t->pri, t->model_class, entry, t->n, on_ingested, t)) {
    free(t->call);
    t->call = btc_recover_copy(b, 0);
    btc_grant_wake(b, t->model_class, t->n); /* the claim follows in the same write, and shares its fsync */
    return;
  }
  keep(b->ingest, t);
}

static void send_kept(struct btc_ingest *g) {
  batch *all = g->kept;
  g->kept = NULL;
  for (batch *t; (t = all);) {
    all = t->next;
    ingest_now(t);
  }
}

static void on_checked(void *ctx, const btc_io_reply *r) {
  batch *t = ctx;
  bool good = r->status == BTC_OK && r->n == t->n;
  for (size_t i = 0; good && i < t->n; i++) {
    char *text = btc_strdup(r->text[i]);
    good = text != NULL;
    if (!good) break;
    free(t->text[i]);
    t->text[i] = text;
  }
  if (good) {
    ingest_now(t);
    return;
  }
  btc_broker *b = t->b;
  hold(b->ingest, RETRY_MS);
  free_batch(t);
  one_done(b);
}

/* ---- filling ---- */

static void send_batch(struct btc_ingest *g) {
  batch *t = g->open;
  btc_error err;
  g->open = NULL;
  if (!t || !t->n) {
    free_batch(t);
    return;
  }
  g->pending++;
  if (!g->b->o->roots) {
    ingest_now(t);
  } else if (btc_io_check_items(g->b->io, (const char *const *)t->text, t->n, on_checked, t, &err) != BTC_OK) {
    hold(g, RETRY_MS);
    free_batch(t);
    one_done(g->b);
  }
}

static bool fits(const batch *t, const char *tenant, uint32_t pri, const char *model_class) {
  return t && t->n < BATCH && t->pri == pri && strcmp(t->tenant, tenant) == 0 && strcmp(t->model_class, model_class) == 0;
}

/* text: taken over. */
static void add(struct btc_ingest *g, const char *id, const char *tenant, uint32_t pri, const char *model_class, const char *key,
                char *text) {
  if (!fits(g->open, tenant, pri, model_class)) {
    send_batch(g);
    g->open = btc_alloc_zero(1, sizeof *g->open);
    if (g->open) {
      g->open->b = g->b;
      g->open->pri = pri;
      snprintf(g->open->tenant, sizeof g->open->tenant, "%s", tenant);
      snprintf(g->open->model_class, sizeof g->open->model_class, "%s", model_class);
    }
  }
  char *id_copy = btc_strdup(id), *key_copy = btc_strdup(key);
  if (!g->open || !id_copy || !key_copy || !text) {
    free(id_copy);
    free(key_copy);
    free(text);
    hold(g, RETRY_MS);
    return;
  }
  size_t i = g->open->n++;
  g->open->id[i] = id_copy;
  g->open->key[i] = key_copy;
  g->open->text[i] = text;
}

/* ---- packed submissions ---- */

typedef struct packed {
  btc_broker *b;
  char id[64];
} packed;

static void on_packed(void *ctx, const btc_submit_outcome *o) {
  packed *p = ctx;
  struct btc_ingest *g = p->b->ingest;
  if (!g) {
    free(p);
    return;
  }
  if (o->end == BTC_SUBMIT_LATER) hold(g, o->retry_ms);
  if (o->end == BTC_SUBMIT_REFUSED) {
    add(g, p->id, "default", 1, "", "", btc_item_problem(p->id, o->message));
    send_batch(g);
  }
  btc_broker *b = p->b;
  free(p);
  one_done(b);
}

/* The bytes of a Submit as the body of an envelope, so that they meet the same bounds as a client's. */
static Btc__Envelope *unpack_submit(const char *data, size_t len, btc_error *err) {
  Btc__Envelope *e = NULL;
  uint8_t *bytes = len <= BTC_WIRE_MAX_BYTES - 16 ? btc_alloc(len + 16, 1) : NULL;
  if (!bytes) {
    btc_fail(err, BTC_ERR_LIMIT, "p: too long");
    return NULL;
  }
  static const uint8_t head[] = {0x08, BTC_WIRE_VERSION, 0x10, BTC_WIRE_MIN_VERSION, 0xc2, 0x02}; /* ver, min_ver, submit = 40 */
  size_t at = sizeof head;
  memcpy(bytes, head, sizeof head);
  for (size_t n = len;; n >>= 7) {
    bytes[at++] = (uint8_t)((n & 0x7f) | (n >= 0x80 ? 0x80 : 0));
    if (n < 0x80) break;
  }
  memcpy(bytes + at, data, len);
  btc_wire_unpack(bytes, at + len, &e, err);
  free(bytes);
  if (e && e->body_case != BTC__ENVELOPE__BODY_SUBMIT) btc_wire_free(&e);
  return e;
}

static void take_packed(struct btc_ingest *g, const char *id, const redisReply *p) {
  btc_error err;
  btc_fail(&err, BTC_ERR_FORMAT, "no Submit message");
  Btc__Envelope *e = unpack_submit(p->str, p->len, &err);
  packed *k = e ? btc_alloc_zero(1, sizeof *k) : NULL;
  if (!k) {
    char problem[300];
    snprintf(problem, sizeof problem, "p: %.256s", err.message);
    btc_wire_free(&e);
    add(g, id, "default", 1, "", "", btc_item_problem(id, problem));
    return;
  }
  k->b = g->b;
  snprintf(k->id, sizeof k->id, "%s", id);
  g->pending++;
  btc_submit_begin(g->b, e, "stream", id, on_packed, k);
}

/* ---- reading ---- */

static const redisReply *field(const redisReply *fields, const char *name) {
  for (size_t i = 0; fields->type == REDIS_REPLY_ARRAY && i + 1 < fields->elements; i += 2)
    if (strcmp(btc_answer_text(fields, i), name) == 0 && fields->element[i + 1]->type == REDIS_REPLY_STRING)
      return fields->element[i + 1];
  return NULL;
}

static const char *text_of(const redisReply *r, const char *otherwise) {
  return r && r->len ? r->str : otherwise;
}

static void take_entry(struct btc_ingest *g, const char *id, const redisReply *fields) {
  const redisReply *json = field(fields, "json"), *p = field(fields, "p");
  const char *tenant = text_of(field(fields, "tenant"), "default"), *pri = text_of(field(fields, "pri"), "1"),
             *key = text_of(field(fields, "key"), "");
  const char *model_class = text_of(field(fields, "class"), "");
  if (p) {
    take_packed(g, id, p);
    return;
  }
  const char *problem = !json                                      ? "the entry has neither json nor p"
                        : !btc_name_valid(tenant)                  ? "tenant: must have 1 to 64 of the characters A-Z a-z 0-9 . _ -"
                        : strlen(pri) != 1 || !strchr("012", *pri) ? "pri: must be 0, 1 or 2"
                        : !btc_class_valid(model_class) ? "class: must have at most 128 of the characters A-Z a-z 0-9 . _ : -"
                        : strlen(key) > MAX_KEY         ? "key: longer than 256 bytes"
                                                        : NULL;
  if (problem)
    add(g, id, "default", 1, "", "", btc_item_problem(id, problem));
  else
    add(g, id, tenant, (uint32_t)(*pri - '0'), model_class, key, btc_item_normal(&g->parser, json->str, json->len, id));
}

/* [[id, [field, value, ...]], ...]; an entry of ours that was deleted meanwhile has no fields. */
static size_t take_entries(struct btc_ingest *g, const redisReply *list) {
  size_t n = 0;
  for (size_t i = 0; list && list->type == REDIS_REPLY_ARRAY && i < list->elements; i++) {
    const redisReply *e = list->element[i];
    if (e->type != REDIS_REPLY_ARRAY || e->elements != 2 || e->element[1]->type != REDIS_REPLY_ARRAY) continue;
    take_entry(g, btc_answer_text(e, 0), e->element[1]);
    n++;
  }
  send_batch(g);
  return n;
}

static void on_read(void *ctx, const redisReply *r) {
  btc_broker *b = ctx;
  struct btc_ingest *g = b->ingest;
  if (!g) return;
  g->reading = false;
  if (r && r->type == REDIS_REPLY_ERROR) {
    BTC_LOG_LIMITED(BTC_LOG_WARN, "redis-refused", "call=XREADGROUP msg=\"%s\"", r->str);
    hold(g, RETRY_MS);
    return;
  }
  if (!r) return; /* `up` goes on */
  BTC_FAILPOINT("after_read_in");
  const redisReply *stream = r->type == REDIS_REPLY_ARRAY && r->elements == 1 ? r->element[0] : NULL;
  g->pending++; /* no reading before all of these are on their way */
  size_t n = stream && stream->elements == 2 ? take_entries(g, stream->element[1]) : 0;
  if (!n && g->reading_mine && btc_loop_now_ns(b->loop) >= g->hold_ns) g->mine = false;
  one_done(b);
}

static bool read_now(btc_broker *b, bool mine) {
  const char *key = btc_store_key(b->feed_store, "in", "");
  const char *argv[] = {"XREADGROUP", "GROUP", "brk", b->name, "COUNT", "256", "BLOCK", "1000", "STREAMS", key, mine ? "0" : ">"};
  size_t len[sizeof argv / sizeof argv[0]];
  for (size_t i = 0; i < sizeof argv / sizeof argv[0]; i++) len[i] = strlen(argv[i]);
  return btc_redis_send(b->feed, (int)(sizeof argv / sizeof argv[0]), argv, len, DEADLINE_MS, on_read, b);
}

/* One read at a time, with at most PENDING batches under way: what is in memory stays bounded. Rereading our own entries waits for
 * all of them, so that it never meets one under way. */
void btc_ingest_poke(btc_broker *b) {
  struct btc_ingest *g = b->ingest;
  if (btc_recover_busy(b)) return; /* what Redis lost comes first: an entry that is back in `in` keeps its job */
  if (btc_redis_is_up(b->redis)) send_kept(g);
  bool may =
      !g->reading && g->pending < (g->mine ? 1 : PENDING) && !b->draining && btc_redis_is_up(b->redis) && btc_redis_is_up(b->feed);
  if (may && btc_loop_now_ns(b->loop) >= g->hold_ns) g->reading = read_now(b, g->reading_mine = g->mine);
}

/* ---- entries of brokers that died ---- */

static void on_claimed(void *ctx, const redisReply *r) {
  btc_broker *b = ctx;
  struct btc_ingest *g = b->ingest;
  if (btc_broker_refused("XAUTOCLAIM", r) || r->type != REDIS_REPLY_ARRAY || r->elements < 2 || !g) return;
  size_t gone = r->elements > 2 && r->element[2]->type == REDIS_REPLY_ARRAY ? r->element[2]->elements : 0;
  if (gone)
    btc_log(BTC_LOG_ERROR, "submissions-lost", "entries=%zu msg=\"somebody deleted or trimmed entries of the stream in\"", gone);
  if (r->element[1]->type == REDIS_REPLY_ARRAY && r->element[1]->elements) g->mine = true; /* they are ours now, and read as such */
}

void btc_ingest_claim(btc_broker *b) {
  btc_store_command(b->store, on_claimed, b, "XAUTOCLAIM", btc_store_key(b->store, "in", ""), "brk", b->name, "30000", "0-0",
                    "COUNT", "64", NULL);
}
