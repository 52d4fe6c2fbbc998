/* What the disk thread does with a request: reading items, finding chunks, hashing, results. Private to io.c; one thread. */
#ifndef BTC_BROKER_IO_WORK_H
#define BTC_BROKER_IO_WORK_H

#include "broker/io.h"
#include "broker/results.h"

#define BTC_IO_MAX_ITEMS 1000

typedef enum btc_io_kind { BTC_IO_TEXTS, BTC_IO_EXPAND, BTC_IO_VERIFY, BTC_IO_RESULTS, BTC_IO_ITEMS } btc_io_kind;

/* A request and its answer. */
typedef struct btc_io_job {
  struct btc_io_job *next;
  btc_io_kind kind;
  btc_io_done done;
  void *done_ctx;
  /* asked; results: path is the jid, pos the cursor */
  char *path, *base, *sha256, *pos;
  uint64_t from, total;
  uint32_t n, max, mask, dup_mask;
  bool errors;
  int hashed; /* how often its manifest was hashed for it */
  /* answered */
  btc_io_reply reply;
  btc_error error;
  size_t bytes; /* that the answer takes */
  char **text;  /* [text_room] */
  size_t text_room;
  uint32_t *count;
  btc_manifest_pos *chunk_pos;
  char hex[65], *lines, cursor[BTC_RESULTS_CURSOR];
} btc_io_job;

btc_io_job *btc_io_job_create(btc_io_kind kind); /* NULL: no memory */
void btc_io_job_free(btc_io_job *j);
bool btc_io_job_texts(btc_io_job *j, size_t room);
/* Takes ownership of text; false: it is NULL. */
bool btc_io_job_add(btc_io_job *j, char *text);

typedef struct btc_io_work btc_io_work;
typedef void (*btc_io_answer)(void *ctx, btc_io_job *j); /* hands the job over */

btc_status btc_io_work_create(const btc_io_options *o, btc_io_answer answer, void *ctx, btc_io_work **out, btc_error *err);
void btc_io_work_destroy(btc_io_work **w); /* with the jobs it keeps */
/* Answers j, now or after its manifest was hashed. */
void btc_io_work_do(btc_io_work *w, btc_io_job *j);
bool btc_io_work_is_hashing(const btc_io_work *w);
void btc_io_work_hash(btc_io_work *w); /* one slice of one manifest */

#endif
