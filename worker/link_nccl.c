/* NCCL's communicators: see link_nccl.h. */
#define _GNU_SOURCE
#include "link_nccl.h"

#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

_Static_assert(sizeof(ncclUniqueId) == LINK_NCCL_ID, "an id travels as NCCL has it");

enum {
  ABORT_MS = 10000,
  OLDEST = 21400, /* non-blocking communicators came with 2.14 */
  SPIN_US = 200,  /* a token's tensor takes some ten: whoever waits longer than this waits for a rank that computes */
  NAP_US = 50,
  ASK_US = 2000, /* between two questions whether to stop */
  PROOF = 32
};

/* ---- the library ---- */

typedef struct library {
  ncclResult_t (*version)(int *);
  ncclResult_t (*make_id)(ncclUniqueId *);
  ncclResult_t (*init)(ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *);
  ncclResult_t (*async_error)(ncclComm_t, ncclResult_t *);
  ncclResult_t (*abort)(ncclComm_t);
  ncclResult_t (*send)(const void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
  ncclResult_t (*receive)(void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
  ncclResult_t (*group_start)(void);
  ncclResult_t (*group_end)(void);
  const char *(*text)(ncclResult_t);
  int number;
} library;

static library lib;
static btc_error absent;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void find(void *l, const char *name, void *function) {
  void *found = dlsym(l, name);
  if (!found && absent.code == BTC_OK)
    btc_fail(&absent, BTC_ERR_UNSUPPORTED, "NCCL cannot be used: the library has no function %s", name);
  memcpy(function, &found, sizeof found); /* data and function pointers are of one size wherever dlsym is */
}

static void load(void) {
  const char *name = getenv("BTCCHAT_NCCL");
  void *l = dlopen(name && *name ? name : "libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (!l) {
    const char *why = dlerror();
    btc_fail(&absent, BTC_ERR_UNSUPPORTED, "NCCL cannot be used: %s", why ? why : "the library cannot be loaded");
    return;
  }
  find(l, "ncclGetVersion", &lib.version);
  find(l, "ncclGetUniqueId", &lib.make_id);
  find(l, "ncclCommInitRankConfig", &lib.init);
  find(l, "ncclCommGetAsyncError", &lib.async_error);
  find(l, "ncclCommAbort", &lib.abort);
  find(l, "ncclSend", &lib.send);
  find(l, "ncclRecv", &lib.receive);
  find(l, "ncclGroupStart", &lib.group_start);
  find(l, "ncclGroupEnd", &lib.group_end);
  find(l, "ncclGetErrorString", &lib.text);
  if (absent.code != BTC_OK) return;
  if (lib.version(&lib.number) != ncclSuccess || lib.number < OLDEST)
    btc_fail(&absent, BTC_ERR_UNSUPPORTED, "NCCL cannot be used: version %d is older than 2.14", lib.number);
}

int link_nccl_version(btc_error *err) {
  pthread_once(&once, load);
  if (absent.code == BTC_OK) return lib.number;
  btc_fail(err, absent.code, "%s", absent.message);
  return 0;
}

btc_status link_nccl_describe(char version[16], char *file, size_t len, btc_error *err) {
  Dl_info where;
  void *any;
  int n = link_nccl_version(err);
  if (!n) return BTC_ERR_UNSUPPORTED;
  memcpy(&any, &lib.version, sizeof any);
  snprintf(version, 16, "%d.%d.%d", n / 10000, n / 100 % 100, n % 100); /* so since 2.9 */
  snprintf(file, len, "%s", dladdr(any, &where) && where.dli_fname ? where.dli_fname : "");
  return BTC_OK;
}

/* ---- calls ---- */

struct link_nccl {
  link_nccl_options o;
  ncclComm_t comm; /* NULL: there is none yet */
  void *place;     /* of the proofs, on the device */
  btc_error failed;
};

/* A failure is kept: nothing may be put on a communicator that has failed. */
static btc_status keep(link_nccl *n, btc_status st, const char *why, const char *call, int line, btc_error *err) {
  btc_fail(&n->failed, st, "NCCL, rank %u of %u in epoch %llu: %s: %.120s (link_nccl.c:%d)", n->o.rank, n->o.ranks,
           (unsigned long long)n->o.epoch, why, call, line);
  return btc_fail(err, st, "%s", n->failed.message);
}

/* A non-blocking communicator says InProgress where a blocking one would wait: the wait that follows looks after it. */
static bool try(link_nccl *n, ncclResult_t rc, const char *call, int line, btc_error *err) {
  if (rc == ncclSuccess || rc == ncclInProgress) return true;
  keep(n, BTC_ERR_IO, lib.text(rc), call, line, err);
  return false;
}
#define TRY(n, call, err) try((n), (call), #call, __LINE__, (err))

/* Is it done? Only the communicator's own work (joining, starting), or also what it has put on the queue. */
static btc_status look(link_nccl *n, bool queue, const char *what, bool *done, btc_error *err) {
  ncclResult_t state = ncclSuccess;
  *done = false;
  if (!TRY(n, lib.async_error(n->comm, &state), err)) return err->code;
  if (state != ncclSuccess && state != ncclInProgress) return keep(n, BTC_ERR_IO, lib.text(state), what, __LINE__, err);
  if (state == ncclInProgress) return BTC_OK;
  *done = true;
  if (!queue) return BTC_OK;
  btc_status st = btc_lane_query(n->o.lane, done, err);
  if (st != BTC_OK) btc_fail(&n->failed, st, "%s", err->message);
  return st;
}

static btc_status wait_until(link_nccl *n, bool queue, const char *what, const btc_link_wait *w, btc_error *err) {
  const int64_t start = btc_now_ns();
  int64_t asked = start;
  for (;;) {
    bool done;
    btc_status st = look(n, queue, what, &done, err);
    if (st != BTC_OK || done) return st;
    int64_t now = btc_now_ns();
    if (w->deadline_ns && now >= w->deadline_ns) return keep(n, BTC_ERR_IO, "too late", what, __LINE__, err);
    if (now - asked >= (int64_t)ASK_US * 1000) {
      asked = now;
      if (w->stop && w->stop(w->ctx)) return keep(n, BTC_ERR_CANCELLED, "stopped", what, __LINE__, err);
    }
    if (now - start < (int64_t)SPIN_US * 1000)
      sched_yield();
    else
      nanosleep(&(struct timespec){.tv_nsec = NAP_US * 1000L}, NULL);
  }
}

static btc_status usable(const link_nccl *n, btc_error *err) {
  return n->failed.code == BTC_OK ? BTC_OK : btc_fail(err, n->failed.code, "%s", n->failed.message);
}

/* One tensor: put on the queue as a group, so that the calls themselves do not block. */
static btc_status begin(link_nccl *n, bool out, uint32_t peer, void *data, size_t bytes, const btc_link_wait *w, btc_error *err) {
  const char *what = out ? "ncclSend" : "ncclRecv";
  btc_error own;
  if (!err) err = &own;
  if (usable(n, err) != BTC_OK) return err->code;
  if (!TRY(n, lib.group_start(), err)) return err->code;
  cudaStream_t queue = (cudaStream_t)btc_lane_queue(n->o.lane);
  bool put = out ? TRY(n, lib.send(data, bytes, ncclUint8, (int)peer, n->comm, queue), err)
                 : TRY(n, lib.receive(data, bytes, ncclUint8, (int)peer, n->comm, queue), err);
  if (!put) {
    (void)lib.group_end(); /* the thread is not to stay within a group; the failure is the one that is kept */
    return err->code;
  }
  if (!TRY(n, lib.group_end(), err)) return err->code;
  return wait_until(n, false, what, w, err); /* started */
}

static btc_status transfer(link_nccl *n, bool out, uint32_t peer, void *data, size_t bytes, const btc_link_wait *w,
                           btc_error *err) {
  btc_error own;
  if (!err) err = &own;
  btc_status st = begin(n, out, peer, data, bytes, w, err);
  return st == BTC_OK ? wait_until(n, true, out ? "ncclSend" : "ncclRecv", w, err) : st;
}

btc_status link_nccl_send(link_nccl *n, uint32_t to, const void *data, size_t bytes, const btc_link_wait *w, btc_error *err) {
  return transfer(n, true, to, (void *)(uintptr_t)data, bytes, w, err); /* ncclSend takes it back as const */
}

btc_status link_nccl_receive(link_nccl *n, uint32_t from, void *data, size_t bytes, const btc_link_wait *w, btc_error *err) {
  return transfer(n, false, from, data, bytes, w, err);
}

btc_status link_nccl_begin(link_nccl *n, uint32_t to, const void *data, size_t bytes, const btc_link_wait *w, btc_error *err) {
  return begin(n, true, to, (void *)(uintptr_t)data, bytes, w, err);
}

btc_status link_nccl_look(link_nccl *n, bool *done, btc_error *err) {
  btc_error own;
  *done = false;
  if (!err) err = &own;
  return usable(n, err) == BTC_OK ? look(n, true, "ncclSend", done, err) : err->code;
}

static btc_status begin_out(void *ctx, uint32_t to, const void *data, size_t bytes, const btc_link_wait *w, btc_error *err) {
  return link_nccl_begin(ctx, to, data, bytes, w, err);
}

static btc_status look_out(void *ctx, bool *done, btc_error *err) {
  return link_nccl_look(ctx, done, err);
}

static btc_status carry_out(void *ctx, uint32_t to, const void *data, size_t bytes, const btc_link_wait *w, btc_error *err) {
  return link_nccl_send(ctx, to, data, bytes, w, err);
}

static btc_status carry_in(void *ctx, uint32_t from, void *data, size_t bytes, const btc_link_wait *w, btc_error *err) {
  return link_nccl_receive(ctx, from, data, bytes, w, err);
}

btc_link_carrier link_nccl_carrier(link_nccl *n) {
  return (btc_link_carrier){.ctx = n, .send = carry_out, .begin = begin_out, .look = look_out, .receive = carry_in};
}

/* ---- leaving ---- */

typedef struct leaving {
  ncclComm_t comm;
  pthread_mutex_t lock;
  pthread_cond_t ended;
  bool done, alone; /* alone: nobody waits any more, and the thread frees this */
  ncclResult_t rc;
} leaving;

static void free_leaving(leaving *x) {
  pthread_mutex_destroy(&x->lock);
  pthread_cond_destroy(&x->ended);
  free(x);
}

static void *abort_it(void *ctx) {
  leaving *x = ctx;
  ncclResult_t rc = lib.abort(x->comm);
  pthread_mutex_lock(&x->lock);
  x->rc = rc;
  x->done = true;
  pthread_cond_signal(&x->ended);
  bool alone = x->alone;
  pthread_mutex_unlock(&x->lock);
  if (alone) free_leaving(x);
  return NULL;
}

static struct timespec in_ms(int ms) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  t.tv_nsec += ms % 1000 * 1000000L;
  t.tv_sec += ms / 1000 + t.tv_nsec / 1000000000L;
  t.tv_nsec %= 1000000000L;
  return t;
}

/* In a thread of its own, which is left alone when it does not end. Takes ownership of x. */
static btc_status abort_in_thread(leaving *x, int ms, const btc_link_wait *w, btc_error *err) {
  pthread_condattr_t monotonic;
  pthread_t thread;
  pthread_mutex_init(&x->lock, NULL);
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&x->ended, &monotonic);
  pthread_condattr_destroy(&monotonic);
  if (pthread_create(&thread, NULL, abort_it, x) != 0) {
    free_leaving(x);
    return btc_fail(err, BTC_ERR_DEVICE, "NCCL: no thread in which to abort a communicator");
  }
  int64_t end = btc_now_ns() + (int64_t)ms * 1000000;
  pthread_mutex_lock(&x->lock);
  while (!x->done && btc_now_ns() < end) {
    struct timespec soon = in_ms(20);
    pthread_cond_timedwait(&x->ended, &x->lock, &soon);
    if (w && w->stop) (void)w->stop(w->ctx);
  }
  bool done = x->done;
  x->alone = !done;
  pthread_mutex_unlock(&x->lock);
  if (!done) {
    pthread_detach(thread);
    return btc_fail(err, BTC_ERR_DEVICE, "NCCL: ncclCommAbort did not end within %d ms", ms);
  }
  pthread_join(thread, NULL);
  ncclResult_t rc = x->rc;
  free_leaving(x);
  if (rc == ncclSuccess || rc == ncclInProgress) return BTC_OK;
  return btc_fail(err, BTC_ERR_DEVICE, "NCCL: ncclCommAbort: %s", lib.text(rc));
}

btc_status link_nccl_leave(link_nccl **np, const btc_link_wait *w, btc_error *err) {
  link_nccl *n = *np;
  *np = NULL;
  if (!n) return BTC_OK;
  btc_status st = BTC_OK;
  leaving *x = n->comm ? btc_alloc_zero(1, sizeof *x) : NULL;
  if (n->comm && !x) st = btc_fail(err, BTC_ERR_DEVICE, "NCCL: no memory in which to abort a communicator");
  if (x) {
    x->comm = n->comm;
    st = abort_in_thread(x, n->o.abort_ms ? n->o.abort_ms : ABORT_MS, w, err);
  }
  if (st == BTC_OK) btc_lane_free(n->o.lane, n->place); /* not before: freeing waits for what still uses it */
  free(n);
  return st;
}

/* ---- joining ---- */

/* What rank `from` sends to the next: nobody who does not know the epoch's secret can make it. */
static void make_proof(const link_nccl *n, uint32_t from, uint8_t proof[PROOF]) {
  static const char text[] = "btc nccl carrier";
  const uint64_t who[] = {n->o.epoch, from, n->o.ranks};
  const btc_link_part parts[] = {{text, sizeof text}, {who, sizeof who}, {n->o.id, sizeof n->o.id}};
  btc_link_hmac(n->o.secret, parts, 3, proof);
}

static btc_status copy(link_nccl *n, void *dst, const void *src, const btc_link_wait *w, btc_error *err) {
  btc_status st = btc_lane_copy(n->o.lane, dst, src, PROOF, err);
  return st == BTC_OK ? wait_until(n, true, "a copy", w, err) : st;
}

/* Down the line, so that a wrong rank stops all behind it. */
static btc_status prove(link_nccl *n, const btc_link_wait *w, btc_error *err) {
  uint8_t want[PROOF], got[PROOF] = {0};
  btc_status st = BTC_OK;
  if (n->o.rank) {
    make_proof(n, n->o.rank - 1, want);
    st = link_nccl_receive(n, n->o.rank - 1, n->place, PROOF, w, err);
    if (st == BTC_OK) st = copy(n, got, n->place, w, err);
    if (st == BTC_OK && memcmp(got, want, PROOF) != 0)
      st = keep(n, BTC_ERR_FORMAT, "the rank before does not know the epoch's secret", "proof", __LINE__, err);
  }
  if (st != BTC_OK || n->o.rank + 1 == n->o.ranks) return st;
  make_proof(n, n->o.rank, want);
  st = copy(n, n->place, want, w, err);
  return st == BTC_OK ? link_nccl_send(n, n->o.rank + 1, n->place, PROOF, w, err) : st;
}

static btc_status join(link_nccl *n, const btc_link_wait *w, btc_error *err) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  ncclUniqueId id;
  config.blocking = 0;
  memcpy(&id, n->o.id, sizeof id);
  if (!TRY(n, lib.init(&n->comm, (int)n->o.ranks, id, (int)n->o.rank, &config), err)) return err->code;
  btc_status st = wait_until(n, false, "ncclCommInitRankConfig", w, err);
  if (st == BTC_OK) st = btc_lane_alloc(n->o.lane, PROOF, &n->place, err);
  return st == BTC_OK ? prove(n, w, err) : st;
}

btc_status link_nccl_make_id(uint8_t out[LINK_NCCL_ID], btc_error *err) {
  ncclUniqueId id;
  if (!link_nccl_version(err)) return BTC_ERR_UNSUPPORTED;
  ncclResult_t rc = lib.make_id(&id);
  if (rc != ncclSuccess) return btc_fail(err, BTC_ERR_IO, "NCCL: ncclGetUniqueId: %s", lib.text(rc));
  memcpy(out, &id, sizeof id);
  return BTC_OK;
}

btc_status link_nccl_join(const link_nccl_options *o, const btc_link_wait *w, link_nccl **out, btc_error *err) {
  btc_error own, left;
  if (!err) err = &own;
  *out = NULL;
  if (!link_nccl_version(err)) return BTC_ERR_UNSUPPORTED;
  link_nccl *n = btc_alloc_zero(1, sizeof *n);
  if (!n) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  n->o = *o;
  btc_status st = join(n, w, err);
  if (st == BTC_OK) {
    *out = n;
    return BTC_OK;
  }
  if (link_nccl_leave(&n, w, &left) == BTC_OK) return st;
  btc_fail_prefix(err, "%s; before", left.message);
  return err->code = left.code;
}
