/*
 * The calls of docs/protocol.md section 4, typed. Each sends one FCALL on the broker's connection and returns at once: true, and
 * `answer` is called exactly once (NULL: lost, may or may not have happened); false, and it is never called (not connected, or out
 * of memory).
 *
 * Texts are copied into hiredis's buffer before the return. Thread: the loop's.
 */
#ifndef BTC_BROKER_STORE_H
#define BTC_BROKER_STORE_H

#include "broker/redis.h"
#include "manifest/manifest.h"

typedef struct btc_store btc_store;
btc_status btc_store_create(btc_redis *r, const char *prefix, btc_store **out, btc_error *err); /* borrows r */
void btc_store_destroy(btc_store **s);

typedef struct btc_store_submission {
  const char *jid, *kind, *tenant;
  uint32_t pri;
  const char *model_class, *route, *key, *params, *manifest, *sha;
  uint64_t total;
  bool strict;
  const char *dups, *base;
  uint64_t delay_ms;
  const char *entry; /* of `in`, or "" */
  const char *const *item;
  size_t n_items;
} btc_store_submission;

typedef struct btc_store_entry {
  const char *id, *key, *text;
} btc_store_entry;

typedef struct btc_store_lease {
  uint64_t cid, token;
  uint32_t mask; /* btc_start only */
} btc_store_lease;

typedef struct btc_store_chunk { /* whose results they are */
  uint64_t cid, token, lo;
  const char *jid, *wid;
  int64_t lease_ms;
} btc_store_chunk;

typedef struct btc_store_result {
  uint32_t off;
  const char *id, *record;
  const char *kind, *reason, *message; /* btc_fail only; kind is one of p t c h o */
} btc_store_result;

bool btc_store_submit(btc_store *s, const btc_store_submission *b, btc_redis_answer answer, void *ctx);
bool btc_store_ingest(btc_store *s, const char *jid, const char *tenant, uint32_t pri, const char *model_class,
                      const btc_store_entry *e, size_t n, btc_redis_answer answer, void *ctx);
bool btc_store_expand(btc_store *s, const char *jid, uint64_t cursor, const uint32_t *count, const btc_manifest_pos *pos, size_t n,
                      const char *end, btc_redis_answer answer, void *ctx);
bool btc_store_claim(btc_store *s, const char *wid, int64_t lease_ms, uint32_t credits, const char *model_class,
                     btc_redis_answer answer, void *ctx);
bool btc_store_start(btc_store *s, const char *wid, const btc_store_lease *l, size_t n, btc_redis_answer answer, void *ctx);
bool btc_store_commit(btc_store *s, const btc_store_chunk *c, const btc_store_result *r, size_t n, btc_redis_answer answer,
                      void *ctx);
bool btc_store_fail(btc_store *s, const btc_store_chunk *c, const btc_store_result *r, size_t n, btc_redis_answer answer,
                    void *ctx);
bool btc_store_release(btc_store *s, const char *wid, const btc_store_lease *l, size_t n, btc_redis_answer answer, void *ctx);
bool btc_store_extend(btc_store *s, const char *wid, int64_t lease_ms, const btc_store_lease *l, size_t n, btc_redis_answer answer,
                      void *ctx);
bool btc_store_hello(btc_store *s, const char *name, uint64_t incarnation, int64_t ttl_ms, const char *broker, const char *info,
                     btc_redis_answer answer, void *ctx);
bool btc_store_bye(btc_store *s, const char *name, uint64_t incarnation, btc_redis_answer answer, void *ctx);
/* The rest: a function with text arguments, NULL-terminated; and a plain command, argv whole. */
bool btc_store_call(btc_store *s, btc_redis_answer answer, void *ctx, const char *function, ...) __attribute__((sentinel));
bool btc_store_command(btc_store *s, btc_redis_answer answer, void *ctx, const char *command, ...) __attribute__((sentinel));
/* "<prefix><kind><rest>" in a buffer that lives until the next call: a key's name. */
const char *btc_store_key(btc_store *s, const char *kind, const char *rest);

/* A call as it was sent, in one block, to be sent again: what the journal is made of (journal.h). free it. */
typedef struct btc_call {
  struct btc_call *next;
  int64_t at_ns;  /* when Redis had answered it */
  uint64_t seq;   /* of a commit: its number; else 0 */
  uint32_t items; /* of a commit: its items; else 0 */
  size_t bytes;   /* of the block */
  int argc;
  size_t len[]; /* [argc], then the texts one behind the other */
} btc_call;
btc_call *btc_store_copy(const btc_store *s); /* of the call that was sent last; NULL: no memory */
bool btc_store_repeat(btc_store *s, const btc_call *c, btc_redis_answer answer, void *ctx);

/* ---- replies ---- */
const char *btc_answer_text(const redisReply *r, size_t i);          /* element i as text, "" when it is none */
uint64_t btc_answer_u64(const redisReply *r, size_t i);              /* element i as a number, 0 when it is none */
const char *btc_answer_field(const redisReply *r, const char *name); /* of a flat name, value, ... array; NULL: none */
uint64_t btc_answer_field_u64(const redisReply *r, const char *name);
bool btc_answer_failed(const redisReply *r);     /* NULL or an error */
const char *btc_answer_why(const redisReply *r); /* what to say about a failed one */

typedef struct btc_claimed {
  uint64_t cid, token, lo;
  const char *jid, *pos, *params;
  uint32_t n, mask, crashes;
  bool solo, is_inline;
  const redisReply *texts; /* inline: item texts in the order of the mask's bits */
} btc_claimed;
bool btc_answer_claimed(const redisReply *r, size_t i, btc_claimed *out); /* false: not a chunk */

#endif
