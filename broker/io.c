/* The disk thread: see io.h. Requests go in through one list, answers come back through another and an eventfd; what is read and
 * how is io_work.c. */
#define _GNU_SOURCE
#include "broker/io_work.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MAX_ANSWER_BYTES (64u << 20) /* answers that wait for the loop; the thread pauses above */

typedef struct list {
  btc_io_job *first, *last;
} list;

struct btc_io {
  btc_loop *loop;
  size_t max_pending, pending; /* pending: the loop's thread only */
  int wake;                    /* eventfd: answers are there */
  pthread_t thread;
  bool started;
  btc_io_work *work; /* the thread's own */

  pthread_mutex_t lock; /* of all below */
  pthread_cond_t change;
  bool stop;
  list asked, answered;
  size_t answered_bytes;
};

static void push(list *l, btc_io_job *j) {
  j->next = NULL;
  if (l->last)
    l->last->next = j;
  else
    l->first = j;
  l->last = j;
}

static btc_io_job *pop(list *l) {
  btc_io_job *j = l->first;
  if (!j) return NULL;
  l->first = j->next;
  if (!l->first) l->last = NULL;
  return j;
}

/* ---- the thread ---- */

/* The next request, NULL when there is none and `wait` is false or the end has come. */
static btc_io_job *next_request(btc_io *io, bool wait, bool *stop) {
  pthread_mutex_lock(&io->lock);
  while (!io->stop && ((wait && !io->asked.first) || io->answered_bytes > MAX_ANSWER_BYTES))
    pthread_cond_wait(&io->change, &io->lock);
  btc_io_job *j = io->stop ? NULL : pop(&io->asked);
  *stop = io->stop;
  pthread_mutex_unlock(&io->lock);
  return j;
}

static void give_answer(void *ctx, btc_io_job *j) {
  btc_io *io = ctx;
  pthread_mutex_lock(&io->lock);
  push(&io->answered, j);
  io->answered_bytes += j->bytes;
  pthread_mutex_unlock(&io->lock);
  uint64_t one = 1;
  while (write(io->wake, &one, sizeof one) < 0 && errno == EINTR) continue;
}

static void *run(void *ctx) {
  btc_io *io = ctx;
  bool stop = false;
  while (!stop) {
    btc_io_job *j = next_request(io, !btc_io_work_is_hashing(io->work), &stop);
    if (j)
      btc_io_work_do(io->work, j); /* answers, or keeps it until its manifest is hashed */
    else if (!stop)
      btc_io_work_hash(io->work); /* a slice, only while nobody else asks */
  }
  return NULL;
}

/* ---- the loop's side ---- */

static void take_answers(void *ctx, int events) {
  (void)events;
  btc_io *io = ctx;
  uint64_t n;
  while (read(io->wake, &n, sizeof n) < 0 && errno == EINTR) continue;
  pthread_mutex_lock(&io->lock);
  list all = io->answered;
  io->answered = (list){0};
  io->answered_bytes = 0;
  pthread_cond_signal(&io->change);
  pthread_mutex_unlock(&io->lock);
  for (btc_io_job *j; (j = pop(&all)) != NULL;) {
    io->pending--;
    j->reply.message = j->reply.status == BTC_OK ? "" : j->error.message;
    j->done(j->done_ctx, &j->reply);
    btc_io_job_free(j);
  }
}

btc_status btc_io_create(btc_loop *loop, const btc_io_options *o, btc_io **out, btc_error *err) {
  btc_io *io = *out = btc_alloc_zero(1, sizeof *io);
  if (!io) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  pthread_mutex_init(&io->lock, NULL);
  pthread_cond_init(&io->change, NULL);
  io->loop = loop;
  io->max_pending = o->max_pending ? o->max_pending : 4096;
  io->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  btc_status st = io->wake < 0 ? btc_fail(err, BTC_ERR_IO, "cannot make an eventfd: %s", strerror(errno)) : BTC_OK;
  if (st == BTC_OK) st = btc_io_work_create(o, give_answer, io, &io->work, err);
  if (st == BTC_OK) st = btc_loop_set_fd(loop, io->wake, BTC_LOOP_READ, take_answers, io, err);
  if (st == BTC_OK) {
    sigset_t all, before; /* signals are the loop's */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&io->thread, NULL, run, io);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    io->started = !failed;
    if (failed) st = btc_fail(err, BTC_ERR_IO, "cannot start the disk thread: %s", strerror(failed));
  }
  if (st != BTC_OK) btc_io_destroy(out);
  return st;
}

void btc_io_destroy(btc_io **disk) {
  btc_io *io = *disk;
  *disk = NULL;
  if (!io) return;
  pthread_mutex_lock(&io->lock);
  io->stop = true;
  pthread_cond_signal(&io->change);
  pthread_mutex_unlock(&io->lock);
  if (io->started) pthread_join(io->thread, NULL);
  if (io->wake >= 0) {
    btc_loop_set_fd(io->loop, io->wake, 0, NULL, NULL, NULL);
    close(io->wake);
  }
  for (btc_io_job *j; (j = pop(&io->asked)) != NULL;) btc_io_job_free(j);
  for (btc_io_job *j; (j = pop(&io->answered)) != NULL;) btc_io_job_free(j);
  btc_io_work_destroy(&io->work);
  pthread_cond_destroy(&io->change);
  pthread_mutex_destroy(&io->lock);
  free(io);
}

size_t btc_io_pending(const btc_io *io) {
  return io->pending;
}

/* Takes ownership of j (NULL: there was no memory). */
static btc_status ask(btc_io *io, btc_io_job *j, btc_io_done done, void *ctx, btc_error *err) {
  if (!j) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  if (io->pending >= io->max_pending) {
    btc_io_job_free(j);
    return btc_fail(err, BTC_ERR_LIMIT, "%zu requests wait for the disk", io->pending);
  }
  j->done = done;
  j->done_ctx = ctx;
  io->pending++;
  pthread_mutex_lock(&io->lock);
  push(&io->asked, j);
  pthread_cond_signal(&io->change);
  pthread_mutex_unlock(&io->lock);
  return BTC_OK;
}

static btc_io_job *manifest_job(btc_io_kind kind, const btc_io_manifest *m, const char *pos) {
  btc_io_job *j = btc_io_job_create(kind);
  if (!j) return NULL;
  const char *sha256 = m->sha256 ? m->sha256 : "", *base = m->base ? m->base : "";
  j->path = btc_strdup(m->path);
  j->base = btc_strdup(base);
  j->sha256 = btc_strdup(kind == BTC_IO_VERIFY && !*sha256 ? "?" : sha256);
  j->pos = btc_strdup(pos);
  if (j->path && j->base && j->sha256 && j->pos) return j;
  btc_io_job_free(j);
  return NULL;
}

btc_status btc_io_texts(btc_io *io, const btc_io_manifest *m, const char *pos, uint64_t lo, uint32_t n, uint32_t mask,
                        uint32_t dup_mask, btc_io_done done, void *ctx, btc_error *err) {
  if (n < 1 || n > BTC_IO_CHUNK) return btc_fail(err, BTC_ERR_ARG, "a chunk of %u items", n);
  btc_io_job *j = manifest_job(BTC_IO_TEXTS, m, pos);
  if (j) {
    j->from = lo;
    j->n = n;
    j->mask = mask;
    j->dup_mask = dup_mask;
  }
  return ask(io, j, done, ctx, err);
}

btc_status btc_io_expand(btc_io *io, const btc_io_manifest *m, const char *pos, uint64_t from, uint64_t total, uint32_t chunk_items,
                         uint32_t max_chunks, btc_io_done done, void *ctx, btc_error *err) {
  if (chunk_items < 1 || chunk_items > BTC_IO_CHUNK || max_chunks < 1 || max_chunks > BTC_IO_CHUNKS)
    return btc_fail(err, BTC_ERR_ARG, "%u chunks of %u items", max_chunks, chunk_items);
  btc_io_job *j = manifest_job(BTC_IO_EXPAND, m, pos);
  if (j) {
    j->from = from;
    j->total = total;
    j->n = chunk_items;
    j->max = max_chunks;
  }
  return ask(io, j, done, ctx, err);
}

btc_status btc_io_verify(btc_io *io, const btc_io_manifest *m, btc_io_done done, void *ctx, btc_error *err) {
  return ask(io, manifest_job(BTC_IO_VERIFY, m, ""), done, ctx, err);
}

btc_status btc_io_results(btc_io *io, const char *jid, const char *cursor, uint32_t max_bytes, bool errors, btc_io_done done,
                          void *ctx, btc_error *err) {
  btc_io_job *j = manifest_job(BTC_IO_RESULTS, &(btc_io_manifest){.path = jid}, cursor);
  if (j) {
    j->max = max_bytes;
    j->errors = errors;
  }
  return ask(io, j, done, ctx, err);
}

btc_status btc_io_check_items(btc_io *io, const char *const *item_texts, size_t n, btc_io_done done, void *ctx, btc_error *err) {
  if (n < 1 || n > BTC_IO_MAX_ITEMS) return btc_fail(err, BTC_ERR_ARG, "%zu items", n);
  btc_io_job *j = btc_io_job_create(BTC_IO_ITEMS);
  if (j && !btc_io_job_texts(j, n)) btc_io_job_free(j), j = NULL;
  for (size_t i = 0; j && i < n; i++) {
    if (btc_io_job_add(j, btc_strdup(item_texts[i]))) continue;
    btc_io_job_free(j);
    j = NULL;
  }
  return ask(io, j, done, ctx, err);
}

uint32_t btc_io_dup_mask(const uint64_t *duplicates, size_t n_duplicates, uint64_t lo, uint32_t n) {
  size_t a = 0, b = n_duplicates; /* the first duplicate >= lo */
  while (a < b) {
    size_t mid = a + (b - a) / 2;
    if (duplicates[mid] < lo)
      a = mid + 1;
    else
      b = mid;
  }
  uint32_t mask = 0;
  for (; a < n_duplicates && duplicates[a] - lo < n && duplicates[a] - lo < 32; a++) mask |= 1u << (duplicates[a] - lo);
  return mask;
}
