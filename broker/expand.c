/* SRANDMEMBER todo -> HMGET job -> positions (io thread) -> btc_expand -> again while there is room. */
#include "expand.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grant.h"
#include "jobs.h"

enum { JOBS = 32 /* worked on at once */, CHUNK = 32, WORK_S = 10, UNKNOWN_CHUNK = 8 };

/* One job under expansion; all its steps are answers to the one before. */
typedef struct expansion {
  struct expansion *next;
  btc_broker *b;
  char jid[BTC_JID], pos[BTC_MANIFEST_POS_TEXT], model_class[BTC_CLASS];
  uint64_t cursor, total;
  uint32_t chunk_items, max_chunks;
} expansion;

struct btc_expander {
  expansion *first;
  size_t n;
  bool looking;
};

btc_status btc_expander_create(btc_broker *b, btc_error *err) {
  b->expander = btc_alloc_zero(1, sizeof *b->expander);
  return b->expander ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
}

void btc_expander_destroy(btc_broker *b) {
  if (!b->expander) return;
  while (b->expander->first) {
    expansion *next = b->expander->first->next;
    free(b->expander->first);
    b->expander->first = next;
  }
  free(b->expander);
  b->expander = NULL;
}

static void end(expansion *x) {
  struct btc_expander *all = x->b->expander;
  for (expansion **at = &all->first; *at; at = &(*at)->next)
    if (*at == x) {
      *at = x->next;
      break;
    }
  all->n--;
  free(x);
}

/* A chunk is about 10 s of one worker's work, so that a lost one costs little and slow workers are not given much; a small job is
 * spread over all workers. */
static uint32_t chunk_items(const btc_broker *b, uint64_t total) {
  double rate = 0;
  uint64_t workers = 0, known = 0;
  for (btc_session *s = b->sessions; s; s = s->next) {
    workers++;
    known += s->items_per_s > 0;
    rate += s->items_per_s;
  }
  double items = known ? rate / (double)known * WORK_S : UNKNOWN_CHUNK;
  uint64_t share = total / (8 * (workers ? workers : 1));
  if ((double)share < items) items = (double)share;
  return items < 1 ? 1 : items > CHUNK ? CHUNK : (uint32_t)items;
}

static void look_at(expansion *x);

static void on_expanded(void *ctx, const redisReply *r) {
  expansion *x = ctx;
  btc_broker *b = x->b;
  BTC_FAILPOINT("after_expand");
  if (btc_broker_refused("btc_expand", r) || r->type != REDIS_REPLY_INTEGER || r->integer < 0) {
    end(x);
    return;
  }
  if ((uint64_t)r->integer < x->total && !b->draining)
    look_at(x); /* is there room for more? */
  else
    end(x);
}

static void on_positions(void *ctx, const btc_io_reply *r) {
  expansion *x = ctx;
  btc_broker *b = x->b;
  if (r->status != BTC_OK) {
    btc_jobs_unreadable(b, x->jid, r);
    end(x);
  } else if (!r->n_chunks) {
    btc_io_reply shorter = {.status = BTC_ERR_FORMAT, .message = "the manifest has fewer items than the job"};
    if (r->at_end) btc_jobs_unreadable(b, x->jid, &shorter);
    end(x);
  } else {
    BTC_FAILPOINT("before_expand");
    if (btc_store_expand(b->store, x->jid, x->cursor, r->count, r->pos, r->n_chunks, r->end.text, on_expanded, x))
      btc_grant_wake(b, x->model_class, r->items); /* the claims follow in the same write */
    else
      end(x);
  }
}

static void on_info(void *ctx, const btc_job_info *info) {
  expansion *x = ctx;
  btc_error err;
  if (info) {
    btc_io_manifest m = btc_job_manifest(info);
    if (btc_io_expand(x->b->io, &m, x->pos, x->cursor, x->total, x->chunk_items, x->max_chunks, on_positions, x, &err) == BTC_OK)
      return;
    BTC_LOG_LIMITED(BTC_LOG_WARN, "io-refused", "jid=%s msg=\"%s\"", x->jid, err.message);
  }
  end(x);
}

static void begin(expansion *x, uint64_t room) {
  btc_broker *b = x->b;
  x->chunk_items = chunk_items(b, x->total);
  x->max_chunks = room > BTC_IO_CHUNKS ? BTC_IO_CHUNKS : (uint32_t)room;
  if (!btc_jobs_get(b, x->jid, on_info, x)) end(x);
}

/* Chunks that wait for their time (failed items) count as live too: they must not stop a job that has nothing else ready. */
static void on_ready_list(void *ctx, const redisReply *r) {
  expansion *x = ctx;
  uint64_t quarter = (uint64_t)x->b->o->window_chunks / 4 + 1;
  bool dry = !btc_answer_failed(r) && r->type == REDIS_REPLY_INTEGER && (uint64_t)r->integer < quarter;
  if (dry)
    begin(x, quarter);
  else
    end(x);
}

static void on_job(void *ctx, const redisReply *r) {
  expansion *x = ctx;
  btc_broker *b = x->b;
  if (btc_broker_refused("HMGET job", r)) {
    end(x);
    return;
  }
  uint64_t live = btc_answer_u64(r, 4), window = (uint64_t)b->o->window_chunks;
  x->cursor = btc_answer_u64(r, 1);
  x->total = btc_answer_u64(r, 2);
  snprintf(x->pos, sizeof x->pos, "%s", btc_answer_text(r, 3));
  snprintf(x->model_class, sizeof x->model_class, "%s", btc_answer_text(r, 6));
  if (strcmp(btc_answer_text(r, 0), "RUN") != 0 || x->cursor >= x->total) {
    if (!btc_store_expand(b->store, x->jid, x->cursor, NULL, NULL, 0, x->pos, NULL, NULL))
      BTC_LOG_LIMITED(BTC_LOG_DEBUG, "todo-kept", "jid=%s", x->jid);
    end(x); /* that call took it off the list */
  } else if (btc_answer_u64(r, 5)) {
    end(x); /* paused */
  } else if (live + window / 8 < window) {
    begin(x, window - live);
  } else {
    char list[BTC_CLASS + BTC_NAME + 16];
    snprintf(list, sizeof list, "%s:%s:%s", x->model_class, btc_answer_text(r, 7), btc_answer_text(r, 8));
    bool more =
        live < 8 * window && btc_store_command(b->store, on_ready_list, x, "LLEN", btc_store_key(b->store, "rdy:", list), NULL);
    if (!more) end(x);
  }
}

static void look_at(expansion *x) {
  const char *key = btc_store_key(x->b->store, "job:", x->jid);
  if (!btc_store_command(x->b->store, on_job, x, "HMGET", key, "st", "cur", "total", "pos", "live", "paused", "class", "pri",
                         "tenant", NULL))
    end(x);
}

static bool is_busy(const struct btc_expander *all, const char *jid) {
  for (const expansion *x = all->first; x;
       x = x->next) /* NOLINT(clang-analyzer-unix.Malloc): end() takes it out of the list first */
    if (strcmp(x->jid, jid) == 0) return true;
  return false;
}

static void on_todo(void *ctx, const redisReply *r) {
  btc_broker *b = ctx;
  struct btc_expander *all = b->expander;
  if (!all) return;
  all->looking = false;
  if (btc_broker_refused("todo", r)) return;
  for (size_t i = 0; i < r->elements && all->n < JOBS; i++) {
    const char *jid = btc_answer_text(r, i);
    expansion *x = is_busy(all, jid) ? NULL : btc_alloc_zero(1, sizeof *x);
    if (!x) continue;
    x->b = b;
    snprintf(x->jid, sizeof x->jid, "%s", jid);
    x->next = all->first;
    all->first = x;
    all->n++;
    look_at(x); /* NOLINT(clang-analyzer-unix.Malloc): end() takes it off the list before it is freed */
  }
}

void btc_expander_tick(btc_broker *b) {
  struct btc_expander *all = b->expander;
  if (all->looking || b->draining || all->n >= JOBS || btc_redis_lag_ms(b->redis) > 2000) return;
  all->looking = btc_store_command(b->store, on_todo, b, "SRANDMEMBER", btc_store_key(b->store, "todo", ""), "32", NULL);
}
