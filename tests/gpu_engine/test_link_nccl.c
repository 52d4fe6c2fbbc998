/*
 * The NCCL carrier without a GPU: ranks are threads with a lane each (tests/gpu_host/fake), NCCL is tests/gpu_host/fake_nccl.
 * Whatever hangs, fails or dies ends in time, says what it was, and leaves no communicator behind.
 */
#define _GNU_SOURCE
#include "test.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "worker/link_nccl.h"

enum { MOST = 4, SOON_MS = 300, PATIENCE_MS = 60000 };

static btc_link_wait within(int ms) {
  return (btc_link_wait){.deadline_ns = btc_now_ns() + (int64_t)ms * 1000000};
}

/* ---- the library that is not NCCL ---- */

static int ask_library(const char *name) {
  static int (*function)(void);
  void *l = dlopen(getenv("BTCCHAT_NCCL"), RTLD_NOW | RTLD_LOCAL), *found = l ? dlsym(l, name) : NULL;
  if (!found) fail_msg("%s is not in %s", name, getenv("BTCCHAT_NCCL"));
  memcpy(&function, &found, sizeof function);
  int n = function();
  dlclose(l);
  return n;
}

static void fail_with(const char *what) {
  if (what)
    setenv("FAKE_NCCL_FAIL", what, 1);
  else
    unsetenv("FAKE_NCCL_FAIL");
}

static int set_up(void **state) {
  (void)state;
  setenv("FAKE_CUDA", "4", 1);
  setenv("FAKE_NCCL_DIR", test_tmp_dir(), 1);
  fail_with(NULL);
  return 0;
}

static int nothing_left(void **state) {
  (void)state;
  fail_with(NULL);
  assert_int_equal(ask_library("fake_nccl_live"), 0);
  return 0;
}

/* ---- ranks ---- */

typedef struct rank rank;
struct rank {
  link_nccl_options o;
  const char *device; /* NULL: its own */
  btc_link_wait join;
  void (*then)(rank *r); /* joined: what it does before it leaves */
  void *ctx;
  link_nccl *n;
  btc_status joined, done, left;
  atomic_bool over;
  btc_error err, left_err;
};

static void *be_a_rank(void *ctx) {
  rank *r = ctx;
  char device[16];
  snprintf(device, sizeof device, "cuda:%u", r->o.rank);
  r->joined = btc_lane_create(r->device ? r->device : device, &r->o.lane, &r->err);
  if (r->joined == BTC_OK) r->joined = link_nccl_join(&r->o, &r->join, &r->n, &r->err);
  if (r->joined == BTC_OK && r->then) r->then(r);
  r->left = link_nccl_leave(&r->n, NULL, &r->left_err);
  btc_lane_destroy(&r->o.lane);
  atomic_store(&r->over, true);
  return NULL;
}

/* Ranks of one epoch and one fresh id. */
static void make_ranks(rank *r, uint32_t n, int join_ms) {
  uint8_t id[LINK_NCCL_ID];
  btc_error err;
  if (link_nccl_make_id(id, &err) != BTC_OK) fail_msg("%s", err.message);
  memset(r, 0, n * sizeof *r);
  for (uint32_t i = 0; i < n; i++) {
    r[i].o = (link_nccl_options){.rank = i, .ranks = n, .epoch = 9, .abort_ms = PATIENCE_MS};
    r[i].join = within(join_ms);
    memcpy(r[i].o.id, id, sizeof id);
    memset(r[i].o.secret, 7, sizeof r[i].o.secret);
  }
}

static void run_ranks(rank *r, uint32_t n) {
  pthread_t thread[MOST];
  for (uint32_t i = 0; i < n; i++) assert_int_equal(pthread_create(&thread[i], NULL, be_a_rank, &r[i]), 0);
  for (uint32_t i = 0; i < n; i++) pthread_join(thread[i], NULL);
}

static void all_joined(const rank *r, uint32_t n) {
  for (uint32_t i = 0; i < n; i++)
    if (r[i].joined != BTC_OK) fail_msg("rank %u: %s", i, r[i].err.message);
}

static void failed_with(const rank *r, btc_status st, btc_status want, const char *text) {
  if (st != want || !strstr(r->err.message, text))
    fail_msg("rank %u: status %d, '%s' instead of %d, '%s'", r->o.rank, st, r->err.message, want, text);
}

/* ---- the library itself; in processes of their own, since it is loaded once ---- */

static void check_absent(const char *variable, const char *value, const char *text) {
  pid_t pid = fork();
  if (pid == 0) {
    btc_error err = {0};
    uint8_t id[LINK_NCCL_ID];
    setenv(variable, value, 1);
    bool good = link_nccl_version(&err) == 0 && strstr(err.message, text) && link_nccl_make_id(id, &err) == BTC_ERR_UNSUPPORTED;
    _exit(good ? 0 : 1);
  }
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_int_equal(status, 0);
}

static void test_link_nccl_absence_is_said(void **state) {
  (void)state;
  check_absent("BTCCHAT_NCCL", "/nowhere/libnccl.so.2", "NCCL cannot be used: /nowhere/libnccl.so.2");
  check_absent("BTCCHAT_NCCL", "libm.so.6", "no function ncclGetVersion");
  check_absent("FAKE_NCCL_VERSION", "21200", "older than 2.14");
}

/* ---- what works ---- */

typedef struct passing { /* rank 0 -> 1 -> 2: what arrives is handed on */
  size_t bytes;
  uint8_t *data[MOST];
} passing;

static void pass_on(rank *r) {
  passing *p = r->ctx;
  btc_link_wait w = within(PATIENCE_MS);
  if (r->o.rank) r->done = link_nccl_receive(r->n, r->o.rank - 1, p->data[r->o.rank], p->bytes, &w, &r->err);
  if (r->done == BTC_OK && r->o.rank + 1 < r->o.ranks)
    r->done = link_nccl_send(r->n, r->o.rank + 1, p->data[r->o.rank], p->bytes, &w, &r->err);
}

static void test_link_nccl_tensors_of_any_size(void **state) {
  (void)state;
  static const size_t sizes[] = {1, 7, 65535, 65537, 5000001};
  rank r[3];
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    passing p = {.bytes = sizes[i]};
    make_ranks(r, 3, PATIENCE_MS);
    for (int k = 0; k < 3; k++) {
      assert_non_null(p.data[k] = calloc(1, sizes[i]));
      r[k].then = pass_on;
      r[k].ctx = &p;
    }
    for (size_t b = 0; b < sizes[i]; b++) p.data[0][b] = (uint8_t)(b * 31 + i);
    run_ranks(r, 3);
    all_joined(r, 3);
    for (int k = 0; k < 3; k++) {
      assert_int_equal(r[k].done, BTC_OK);
      assert_memory_equal(p.data[k], p.data[0], sizes[i]);
    }
    for (int k = 0; k < 3; k++) free(p.data[k]);
  }
}

static void test_link_nccl_50_communicators_in_a_row(void **state) {
  (void)state;
  rank r[3];
  for (int i = 0; i < 50; i++) {
    uint8_t byte[MOST] = {(uint8_t)(i + 1)};
    passing p = {.bytes = 1, .data = {&byte[0], &byte[1], &byte[2]}};
    make_ranks(r, 3, PATIENCE_MS);
    for (int k = 0; k < 3; k++) {
      r[k].o.epoch = (uint64_t)i + 1;
      r[k].then = pass_on;
      r[k].ctx = &p;
    }
    run_ranks(r, 3);
    all_joined(r, 3);
    assert_int_equal(byte[2], i + 1);
    assert_int_equal(ask_library("fake_nccl_live"), 0);
    assert_int_equal(ask_library("fake_nccl_aborts"), 3 * (i + 1));
  }
}

static void test_link_nccl_one_rank(void **state) {
  (void)state;
  rank r;
  make_ranks(&r, 1, PATIENCE_MS);
  run_ranks(&r, 1);
  all_joined(&r, 1);
  assert_int_equal(r.left, BTC_OK);
}

/* ---- joining that fails ---- */

static void check_join(const char *fail, int ms, btc_status want0, const char *text0, btc_status want1, const char *text1) {
  rank r[2];
  make_ranks(r, 2, ms);
  fail_with(fail);
  run_ranks(r, 2);
  failed_with(&r[0], r[0].joined, want0, text0);
  failed_with(&r[1], r[1].joined, want1, text1);
  assert_int_equal(r[0].left, BTC_OK);
  assert_null(r[0].n);
}

static void test_link_nccl_joining_hangs(void **state) {
  (void)state;
  check_join("1:init-hang", SOON_MS, BTC_ERR_IO, "too late", BTC_ERR_IO, "too late: ncclCommInitRankConfig");
}

static void test_link_nccl_joining_fails(void **state) {
  (void)state;
  check_join("0:init-fail,1:init-fail", PATIENCE_MS, BTC_ERR_IO, "unhandled system error", BTC_ERR_IO, "rank 1 of 2 in epoch 9");
}

static void test_link_nccl_no_id(void **state) {
  (void)state;
  uint8_t id[LINK_NCCL_ID];
  btc_error err;
  fail_with("0:no-id");
  assert_int_equal(link_nccl_make_id(id, &err), BTC_ERR_IO);
  assert_non_null(strstr(err.message, "ncclGetUniqueId"));
}

static void check_one_card(btc_status want, const char *text) {
  rank r[2];
  make_ranks(r, 2, PATIENCE_MS);
  for (int i = 0; i < 2; i++) r[i].device = "cuda:0";
  run_ranks(r, 2);
  failed_with(&r[0], r[0].joined, want, text);
  failed_with(&r[1], r[1].joined, want, text);
}

/* NCCL itself refuses it. */
static void test_link_nccl_two_ranks_on_a_card(void **state) {
  (void)state;
  check_one_card(BTC_ERR_IO, "invalid usage");
}

static void test_link_nccl_damaged_proof(void **state) {
  (void)state;
  check_join("0:flip:1", PATIENCE_MS, BTC_OK, "", BTC_ERR_FORMAT, "does not know the epoch's secret");
}

static bool is_over(void *ctx) {
  return atomic_load(&((rank *)ctx)->over);
}

/* The rank behind the stranger hears nothing by NCCL: what tells it is the epoch's end, here that rank's. */
static void check_stranger(bool epoch) {
  rank r[3];
  make_ranks(r, 3, PATIENCE_MS);
  if (epoch)
    r[1].o.epoch++;
  else
    r[1].o.secret[3] ^= 1;
  r[2].join.stop = is_over;
  r[2].join.ctx = &r[1];
  run_ranks(r, 3);
  failed_with(&r[1], r[1].joined, BTC_ERR_FORMAT, "does not know the epoch's secret");
  failed_with(&r[2], r[2].joined, BTC_ERR_CANCELLED, "stopped");
}

static void test_link_nccl_rank_of_another_epoch(void **state) {
  (void)state;
  check_stranger(true);
}

static void test_link_nccl_rank_without_the_secret(void **state) {
  (void)state;
  check_stranger(false);
}

static bool stop_now(void *ctx) {
  ++*(int *)ctx;
  return true;
}

static void test_link_nccl_joining_is_stopped(void **state) {
  (void)state;
  rank r[2];
  int asked = 0;
  make_ranks(r, 2, PATIENCE_MS);
  fail_with("0:init-hang");
  r[1].join.deadline_ns = btc_now_ns() + (int64_t)SOON_MS * 1000000;
  r[0].join.stop = stop_now;
  r[0].join.ctx = &asked;
  run_ranks(r, 2);
  failed_with(&r[0], r[0].joined, BTC_ERR_CANCELLED, "stopped");
  assert_true(asked > 0);
}

/* ---- a tensor that fails ---- */

/* Rank 0 sends a second tensor after the proof, rank 1 receives; both within SOON_MS. */
static void one_tensor(rank *r) {
  static uint8_t data[2][100000];
  btc_link_wait w = within(SOON_MS);
  r->done = r->o.rank ? link_nccl_receive(r->n, 0, data[1], sizeof data[1], &w, &r->err)
                      : link_nccl_send(r->n, 1, data[0], sizeof data[0], &w, &r->err);
  if (r->done == BTC_OK) return;
  btc_error again;
  btc_link_wait later = within(PATIENCE_MS);
  assert_int_equal(link_nccl_send(r->n, !r->o.rank, data[0], 1, &later, &again), r->done); /* what has failed stays so */
  assert_string_equal(again.message, r->err.message);
}

static void run_tensor(rank r[2], const char *fail, int abort_ms) {
  make_ranks(r, 2, PATIENCE_MS);
  fail_with(fail);
  for (int i = 0; i < 2; i++) {
    r[i].then = one_tensor;
  }
  if (abort_ms) r[0].o.abort_ms = abort_ms;
  run_ranks(r, 2);
  all_joined(r, 2);
}

static void test_link_nccl_sending_hangs(void **state) {
  (void)state;
  rank r[2];
  run_tensor(r, "0:hang:2", 0);
  failed_with(&r[0], r[0].done, BTC_ERR_IO, "too late: ncclSend");
  failed_with(&r[1], r[1].done, BTC_ERR_IO, "too late: ncclRecv");
  assert_int_equal(r[0].left, BTC_OK);
  assert_int_equal(r[1].left, BTC_OK);
}

static void test_link_nccl_error_while_sending(void **state) {
  (void)state;
  rank r[2];
  run_tensor(r, "0:async:2", 0);
  failed_with(&r[0], r[0].done, BTC_ERR_IO, "remote process exited or there was a network error: ncclSend");
}

static void test_link_nccl_call_is_refused(void **state) {
  (void)state;
  rank r[2];
  run_tensor(r, "1:call:2", 0);
  failed_with(&r[1], r[1].done, BTC_ERR_IO, "internal error: ");
  assert_non_null(strstr(r[1].err.message, "link_nccl.c:"));
}

/* What must not happen to the process that has to end: that it waits for the abort. */
static void test_link_nccl_abort_hangs(void **state) {
  (void)state;
  rank r[2];
  run_tensor(r, "0:hang:2,0:abort-hang", SOON_MS);
  assert_int_equal(r[0].left, BTC_ERR_DEVICE);
  assert_non_null(strstr(r[0].left_err.message, "ncclCommAbort did not end within"));
  assert_int_equal(r[1].left, BTC_OK);
  fail_with(NULL); /* the helper thread goes on, and ends */
  for (int i = 0; i < PATIENCE_MS / 10 && ask_library("fake_nccl_live"); i++) usleep(10000);
}

static void test_link_nccl_abort_hangs_after_joining_failed(void **state) {
  (void)state;
  rank r[2];
  make_ranks(r, 2, SOON_MS);
  r[0].o.abort_ms = SOON_MS;
  fail_with("1:init-hang,0:abort-hang");
  run_ranks(r, 2);
  failed_with(&r[0], r[0].joined, BTC_ERR_DEVICE, "did not end within");
  assert_non_null(strstr(r[0].err.message, "too late"));
  fail_with(NULL);
  for (int i = 0; i < PATIENCE_MS / 10 && ask_library("fake_nccl_live"); i++) usleep(10000);
}

/* ---- under a link ---- */

static const char body[] = "what goes by TCP";

typedef struct linked {
  int fd, port;
  btc_link *link;
  uint8_t *data;
  size_t bytes;
  btc_link_head got;
} linked;

static btc_status open_link(rank *r) {
  linked *k = r->ctx;
  btc_link_id id = {.epoch = r->o.epoch, .from = 0, .to = 1, .ranks = 2};
  btc_link_limits l = btc_link_limits_default();
  btc_link_wait w = within(PATIENCE_MS);
  memcpy(id.secret, r->o.secret, sizeof id.secret);
  l.frame_ms = PATIENCE_MS;
  btc_status st = r->o.rank ? btc_link_accept(k->fd, &id, &l, &w, &k->link, &r->err)
                            : btc_link_connect("127.0.0.1", k->port, &id, &l, &w, &k->link, &r->err);
  btc_link_carrier c = link_nccl_carrier(r->n);
  if (st == BTC_OK) btc_link_carry(k->link, &c);
  return st;
}

static btc_status receive_frame(rank *r, linked *k) {
  const uint8_t *got;
  size_t bytes;
  btc_link_wait w = within(PATIENCE_MS);
  btc_status st = btc_link_receive(k->link, &k->got, &got, &bytes, &w, &r->err);
  if (st != BTC_OK) return st;
  if (bytes != sizeof body || memcmp(got, body, bytes) != 0 || k->got.carried != k->bytes) return BTC_ERR_INTERNAL;
  return btc_link_receive_carried(k->link, k->data, &w, &r->err);
}

static atomic_int taken;

/* Ends a rank's part. A sender that met no fault stays until the other end took everything, as ranks of a pipeline do: sent is not
   yet received, and who closes before breaks off what is under way. */
static void leave(rank *r) {
  linked *k = r->ctx;
  for (int i = 0; !r->o.rank && r->done == BTC_OK && i < PATIENCE_MS && !atomic_load(&taken); i++) usleep(1000);
  btc_link_close(&k->link);
  if (r->o.rank) atomic_store(&taken, 1);
}

/* Three frames; the carrier of either end may fail within. */
static void speak(rank *r) {
  linked *k = r->ctx;
  r->done = open_link(r);
  for (uint64_t step = 1; step <= 3 && r->done == BTC_OK; step++) {
    btc_link_wait w = within(PATIENCE_MS);
    if (r->o.rank)
      r->done = receive_frame(r, k);
    else
      r->done = btc_link_send_carried(k->link, &(btc_link_head){.step = step, .kind = 4}, &(btc_link_part){body, sizeof body}, 1,
                                      &(btc_link_part){k->data, k->bytes}, &w, &r->err);
  }
  leave(r);
}

static void run_linked(rank r[2], linked k[2], const char *fail) {
  btc_error err;
  make_ranks(r, 2, PATIENCE_MS);
  fail_with(fail);
  memset(k, 0, 2 * sizeof *k);
  atomic_store(&taken, 0);
  assert_int_equal(btc_link_listen("127.0.0.1", &k[1].fd, &k[0].port, &err), BTC_OK);
  for (int i = 0; i < 2; i++) {
    k[i].bytes = 200001;
    assert_non_null(k[i].data = calloc(1, k[i].bytes));
    r[i].then = speak;
    r[i].ctx = &k[i];
  }
  for (size_t b = 0; b < k[0].bytes; b++) k[0].data[b] = (uint8_t)(b * 7);
}

static void end_linked(linked k[2]) {
  close(k[1].fd);
  free(k[0].data);
  free(k[1].data);
}

static void test_link_nccl_under_a_link(void **state) {
  (void)state;
  rank r[2];
  linked k[2];
  run_linked(r, k, NULL);
  run_ranks(r, 2);
  all_joined(r, 2);
  for (int i = 0; i < 2; i++)
    if (r[i].done != BTC_OK) fail_msg("rank %d: %s", i, r[i].err.message);
  assert_int_equal(k[1].got.step, 3);
  assert_int_equal(k[1].got.kind, 4);
  assert_memory_equal(k[1].data, k[0].data, k[0].bytes);
  end_linked(k);
}

/* Rank 0 goes on with a tensor under way that nobody takes yet; what it begins next, or waits for, comes behind it. */
static atomic_int begun;

static void begin_and_go_on(rank *r) {
  linked *k = r->ctx;
  const btc_link_part part = {body, sizeof body}, tensor = {k->data, k->bytes};
  btc_link_wait w = within(PATIENCE_MS);
  bool done = true;
  r->done = open_link(r);
  for (int i = 0; r->o.rank && i < PATIENCE_MS && !atomic_load(&begun); i++) usleep(1000);
  for (uint64_t step = 1; step <= 2 && r->done == BTC_OK; step++) {
    if (r->o.rank) {
      r->done = receive_frame(r, k);
      continue;
    }
    r->done = btc_link_begin_carried(k->link, &(btc_link_head){.step = step, .kind = 4}, &part, 1, &tensor, &w, &r->err);
    if (r->done == BTC_OK && step == 1) r->done = btc_link_look(k->link, &done, &r->err);
    if (step == 1 && done) r->done = BTC_ERR_INTERNAL; /* nobody took it */
    atomic_store(&begun, 1);
  }
  if (!r->o.rank && r->done == BTC_OK) r->done = btc_link_settle(k->link, &w, &r->err);
  if (!r->o.rank && r->done == BTC_OK) r->done = btc_link_look(k->link, &done, &r->err);
  if (!r->o.rank && !done) r->done = BTC_ERR_INTERNAL;
  leave(r);
}

static void test_link_nccl_goes_on_with_a_tensor_under_way(void **state) {
  (void)state;
  rank r[2];
  linked k[2];
  run_linked(r, k, NULL);
  atomic_store(&begun, 0);
  for (int i = 0; i < 2; i++) r[i].then = begin_and_go_on;
  run_ranks(r, 2);
  all_joined(r, 2);
  for (int i = 0; i < 2; i++)
    if (r[i].done != BTC_OK) fail_msg("rank %d: %s: %s", i, btc_status_text(r[i].done), r[i].err.message);
  assert_int_equal(k[1].got.step, 2);
  assert_memory_equal(k[1].data, k[0].data, k[0].bytes);
  end_linked(k);
}

/* The tensor that is under way is never taken: the other end has gone, or is there and does nothing. */
static void begin_in_vain(rank *r) {
  linked *k = r->ctx;
  const btc_link_part tensor = {k->data, k->bytes};
  btc_link_wait w = within(PATIENCE_MS), soon = within(SOON_MS);
  r->done = open_link(r);
  if (!r->o.rank && r->done == BTC_OK)
    r->done = btc_link_begin_carried(k->link, &(btc_link_head){.step = 1, .kind = 4}, NULL, 0, &tensor, &w, &r->err);
  if (!r->o.rank && r->done == BTC_OK) {
    r->done =
        btc_link_settle(k->link, &soon, &r->err) == BTC_ERR_IO && strstr(r->err.message, "too late") ? BTC_OK : BTC_ERR_INTERNAL;
    atomic_store(&begun, 1);
    if (r->done == BTC_OK) r->done = btc_link_settle(k->link, &w, &r->err);
  }
  for (int i = 0; r->o.rank && i < PATIENCE_MS && !atomic_load(&begun); i++) usleep(1000);
  btc_link_close(&k->link);
}

static void test_link_nccl_tensor_under_way_is_never_taken(void **state) {
  (void)state;
  rank r[2];
  linked k[2];
  run_linked(r, k, NULL);
  atomic_store(&begun, 0);
  for (int i = 0; i < 2; i++) r[i].then = begin_in_vain;
  run_ranks(r, 2);
  all_joined(r, 2);
  failed_with(&r[0], r[0].done, BTC_ERR_IO, "rank 1 closed the link within a tensor");
  end_linked(k);
}

/* A carrier that fails at one end, with deadlines of a minute: the other is told by the link, long before. */
static void check_told(const char *fail, int told) {
  rank r[2];
  linked k[2];
  run_linked(r, k, fail);
  int64_t start = btc_now_ns();
  run_ranks(r, 2);
  all_joined(r, 2);
  failed_with(&r[!told], r[!told].done, BTC_ERR_IO, "NCCL, rank");
  failed_with(&r[told], r[told].done, BTC_ERR_IO, "closed the link");
  assert_true(btc_now_ns() - start < (int64_t)PATIENCE_MS / 2 * 1000000);
  end_linked(k);
}

static void test_link_nccl_receiver_is_told(void **state) {
  (void)state;
  check_told("0:async:3", 1);
}

static void test_link_nccl_sender_is_told(void **state) {
  (void)state;
  check_told("1:call:3", 0);
}

/* A process that is killed within a tensor. NCCL raises nothing. */
static void test_link_nccl_peer_is_killed(void **state) {
  (void)state;
  rank r[2];
  linked k[2];
  run_linked(r, k, "1:kill:3");
  pid_t pid = fork();
  if (pid == 0) {
    be_a_rank(&r[1]);
    _exit(0);
  }
  close(k[1].fd);
  k[1].fd = -1;
  be_a_rank(&r[0]);
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  failed_with(&r[0], r[0].done, BTC_ERR_IO, "closed the link within a tensor");
  assert_int_equal(r[0].left, BTC_OK);
  end_linked(k);
}

/* A frame that announces a tensor, to a link without a carrier. */
static void send_one(rank *r) {
  linked *k = r->ctx;
  btc_link_wait w = within(PATIENCE_MS);
  const uint8_t *got;
  size_t bytes;
  r->done = open_link(r);
  if (r->done != BTC_OK) return;
  if (r->o.rank) {
    btc_link_carry(k->link, &(btc_link_carrier){0});
    r->done = btc_link_receive(k->link, &k->got, &got, &bytes, &w, &r->err);
  } else {
    r->done =
        btc_link_send_carried(k->link, &(btc_link_head){.step = 1}, NULL, 0, &(btc_link_part){k->data, k->bytes}, &w, &r->err);
  }
  btc_link_close(&k->link);
}

static void test_link_nccl_tensor_for_a_link_without(void **state) {
  (void)state;
  rank r[2];
  linked k[2];
  run_linked(r, k, NULL);
  r[0].then = r[1].then = send_one;
  run_ranks(r, 2);
  failed_with(&r[1], r[1].done, BTC_ERR_FORMAT, "a carrier that this link has not");
  failed_with(&r[0], r[0].done, BTC_ERR_IO, "closed the link");
  end_linked(k);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_link_nccl_absence_is_said), /* first: the others load the library */
    cmocka_unit_test_setup_teardown(test_link_nccl_tensors_of_any_size, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_50_communicators_in_a_row, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_one_rank, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_joining_hangs, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_joining_fails, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_no_id, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_two_ranks_on_a_card, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_damaged_proof, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_rank_of_another_epoch, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_rank_without_the_secret, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_joining_is_stopped, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_sending_hangs, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_error_while_sending, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_call_is_refused, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_abort_hangs, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_abort_hangs_after_joining_failed, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_under_a_link, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_goes_on_with_a_tensor_under_way, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_tensor_under_way_is_never_taken, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_receiver_is_told, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_sender_is_told, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_peer_is_killed, set_up, nothing_left),
    cmocka_unit_test_setup_teardown(test_link_nccl_tensor_for_a_link_without, set_up, nothing_left),
};

BTC_TEST_MAIN(tests)
