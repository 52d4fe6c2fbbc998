/* Between the files of the checker. */
#ifndef TEST_CHECKER_PARTS_H
#define TEST_CHECKER_PARTS_H

#include <hiredis/hiredis.h>

#include "checker.h"

typedef struct checked_job {
  char jid[72], st[8], manifest[4096], base[4096];
  bool stream, inlined, paused;
  uint64_t total, cur, done, dead, canc, live, epoch, rec;
  /* One bit an item, as Redis keeps them: idx 0 is the highest bit of the first byte. */
  uint8_t *done_bits, *dead_bits, *seen_bits, *held_bits;
  uint64_t finished_events, cancelled_events, members;
} checked_job;

typedef struct checker {
  const checker_options *o;
  checker_say say;
  void *say_ctx;
  checker_report *report;
  redisContext *redis;
  char prefix[96];
  checked_job *jobs; /* sorted by jid */
  size_t n_jobs;
  bool ev_whole; /* the event stream was never trimmed */
} checker;

void checker_violation(checker *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* A command of words; "$..." stands for the prefix and the rest. NULL when the connection is gone (then c->redis->err is set). */
redisReply *checker_words(checker *c, const char *const words[]);
#define checker_command(c, ...) checker_words(c, (const char *const[]){__VA_ARGS__, NULL})
int64_t checker_number(checker *c, const char *command, const char *key, const char *field); /* -1: not there */
checked_job *checker_job(checker *c, const char *jid);

static inline bool bit_get(const uint8_t *bits, uint64_t i) {
  return bits[i >> 3] >> (7 - (i & 7)) & 1;
}
static inline void bit_set(uint8_t *bits, uint64_t i) {
  bits[i >> 3] |= (uint8_t)(0x80 >> (i & 7));
}

/* Walks a key in pages of some hundred elements. type: "list", "set", "hash", "zset", "stream", or "keys" (all keys of the queue).
 * each: elements of one step, a stream entry as id and fields. False from `each` ends it. */
typedef bool (*checker_each)(checker *c, void *ctx, redisReply *const *element, size_t n);
btc_status checker_walk(checker *c, const char *type, const char *key, checker_each each, void *ctx, btc_error *err);

btc_status checker_jobs(checker *c, btc_error *err);    /* loads the table, checks counters and events */
btc_status checker_chunks(checker *c, btc_error *err);  /* places */
btc_status checker_records(checker *c, btc_error *err); /* streams, files, captions */

#endif
