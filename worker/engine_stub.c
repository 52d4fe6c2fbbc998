/*
 * An engine without a model: captions by hash of the item after a set delay, and faults by hash of its id, so that the queue can be
 * tested at thousands of items a second and every outcome be foretold.
 */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "item.h"

#define TRIED_SLOTS 65536 /* ids whose first try has failed; a power of two; older ones are forgotten when slots collide */

typedef struct stub_engine {
  worker_engine base;
  int64_t us;
  char *roots;
  stub_faults faults;
  uint64_t *tried; /* [TRIED_SLOTS] */
  uint64_t random;
} stub_engine;

/* ---- what an item does ---- */

static uint64_t big_endian(const uint8_t *p) {
  uint64_t v = 0;
  for (int i = 0; i < 8; i++) v = v << 8 | p[i];
  return v;
}

static uint64_t hash_of(const char *const parts[], size_t n) {
  btc_sha256 s;
  uint8_t digest[32];
  btc_sha256_init(&s);
  for (size_t i = 0; i < n; i++) {
    if (i) btc_sha256_update(&s, "\n", 1);
    btc_sha256_update(&s, parts[i], strlen(parts[i]));
  }
  btc_sha256_final(&s, digest);
  return big_endian(digest);
}

void engine_stub_caption(const char *before, const char *after, const char *id, char out[24]) {
  snprintf(out, 24, "stub:%016llx", (unsigned long long)hash_of((const char *const[]){before, after, id}, 3));
}

stub_fault stub_fault_of(const stub_faults *f, const char *id) {
  const double shares[] = {f->crash, f->bad, f->transient, f->hang, f->grow, f->lost};
  double u = (double)hash_of((const char *const[]){"fault", id}, 2) * 0x1p-64, sum = 0;
  for (int i = 0; i < 6; i++)
    if (u < (sum += shares[i])) return (stub_fault)(STUB_CRASH + i);
  return STUB_FINE;
}

static double *share_of(stub_faults *f, const char *key, size_t n) {
  static const char *const names[] = {"crash", "bad", "transient", "hang", "grow", "lost", "flaky"};
  double *const shares[] = {&f->crash, &f->bad, &f->transient, &f->hang, &f->grow, &f->lost, &f->flaky};
  for (int i = 0; i < 7; i++)
    if (strlen(names[i]) == n && memcmp(names[i], key, n) == 0) return shares[i];
  return NULL;
}

btc_status stub_faults_parse(const char *text, stub_faults *out, btc_error *err) {
  *out = (stub_faults){0};
  for (const char *p = text ? text : ""; *p; p += *p == ',') {
    size_t n = strcspn(p, "=,"), rest = strcspn(p, ",");
    const char *value = p + n + 1;
    double *share = share_of(out, p, n);
    char *end = NULL;
    if (p[n] == '=' && n == 5 && !memcmp(p, "marks", 5) && rest - 6 < sizeof out->marks) {
      snprintf(out->marks, sizeof out->marks, "%.*s", (int)(rest - 6), value);
    } else {
      if (!share || p[n] != '=' || (*share = strtod(value, &end), end == value || end != p + rest) || !(*share >= 0 && *share <= 1))
        return btc_fail(
            err, BTC_ERR_ARG,
            "stub faults: '%.*s' is not crash, bad, transient, hang, grow, lost or flaky = a share between 0 and 1, or marks=DIR",
            (int)rest, p);
    }
    p += rest;
  }
  if (out->crash + out->bad + out->transient + out->hang + out->grow + out->lost > 1)
    return btc_fail(err, BTC_ERR_ARG, "stub faults: the shares add up to more than 1");
  return BTC_OK;
}

/* ---- faults ---- */

/* Alternates between the two ways that programs die. Neither a core file nor a sanitizer's report: this crash is meant. */
static _Noreturn void crash(const char *id) {
  int number = strlen(id) % 2 ? SIGSEGV : SIGABRT;
  setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
  fprintf(stderr, "stub: item '%s' crashes the engine\n", id);
  signal(number, SIG_DFL);
  raise(number);
  _exit(70);
}

static _Noreturn void hang(void) {
  for (;;) pause();
}

/* Until the kernel kills it; a machine with that much to spare sees a crash. */
static _Noreturn void grow(const char *id) {
  const size_t step = 1u << 20;
  for (int i = 0; i < 1024; i++) {
    void *p = malloc(step);
    if (!p) break;
    memset(p, i + 1, step);
    __asm__ volatile("" : : "r"(p) : "memory"); /* the writes are meant */
  }
  crash(id);
}

static bool first_try(stub_engine *e, const char *id) {
  uint64_t h = hash_of((const char *const[]){"tried", id}, 2);
  if (e->faults.marks[0]) {
    char path[600];
    snprintf(path, sizeof path, "%s/%016llx", e->faults.marks, (unsigned long long)h);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd >= 0) close(fd);
    return fd >= 0;
  }
  bool fresh = e->tried[h % TRIED_SLOTS] != h;
  e->tried[h % TRIED_SLOTS] = h;
  return fresh;
}

/* xorshift64*: nobody needs to foretell it */
static bool flaky(stub_engine *e) {
  e->random ^= e->random >> 12;
  e->random ^= e->random << 25;
  e->random ^= e->random >> 27;
  return (double)(e->random * 2685821657736338717u) * 0x1p-64 < e->faults.flaky;
}

static void work(const stub_engine *e) {
  struct timespec t = {.tv_sec = e->us / 1000000, .tv_nsec = e->us % 1000000 * 1000};
  while (e->us && nanosleep(&t, &t) != 0 && errno == EINTR) {
  }
}

/* ---- answers ---- */

static const record_model stub_model = {.name = "stub", .fingerprint = "stub", .dtype = "none"};

static void succeed(work_item *it, worker_answer *a) {
  char caption[24];
  engine_stub_caption(it->paths[0], it->paths[1], it->id, caption);
  btc_result_clear(&it->result);
  it->result = (btc_result){.status = BTC_OK, .text = btc_strdup(caption), .n_ids = 16};
  it->result.score = 0.5;
  if (it->result.text) a->record = item_record(NULL, &stub_model, it);
}

static void fail_item(work_item *it, worker_answer *a, Btc__Outcome outcome, const char *reason) {
  a->outcome = outcome;
  a->reason = it->reason = reason;
  a->message = btc_strdup(it->result.error.message);
  a->record = item_record(NULL, &stub_model, it);
}

static void answer(stub_engine *e, work_item *it, worker_answer *a, const worker_sink *sink) {
  stub_fault fault = it->bad ? STUB_FINE : stub_fault_of(&e->faults, it->id);
  if (fault == STUB_CRASH || fault == STUB_HANG || fault == STUB_GROW) sink->flush(sink->ctx);
  if (fault == STUB_CRASH) crash(it->id);
  if (fault == STUB_HANG) hang();
  if (fault == STUB_GROW) grow(it->id);
  item_refuse_outside(it, e->roots);
  if (it->bad) {
    fail_item(it, a, BTC__OUTCOME__OUTCOME_PERMANENT, item_reason(it));
  } else if (fault == STUB_BAD) {
    it->result.status =
        btc_fail(&it->result.error, BTC_ERR_FORMAT, "'%s': the stub takes this item for a broken image", it->paths[0]);
    fail_item(it, a, BTC__OUTCOME__OUTCOME_PERMANENT, "decode");
  } else if ((fault == STUB_TRANSIENT && first_try(e, it->id)) || (fault == STUB_FINE && e->faults.flaky > 0 && flaky(e))) {
    it->result.status = btc_fail(&it->result.error, BTC_ERR_IO, "'%s': the stub fails this try", it->paths[0]);
    fail_item(it, a, BTC__OUTCOME__OUTCOME_TRANSIENT, "internal");
  } else {
    succeed(it, a);
  }
}

static btc_status run(worker_engine *base, const worker_item *items, size_t n, const worker_sink *sink, btc_error *err) {
  stub_engine *e = (stub_engine *)base;
  for (size_t i = 0; i < n; i++) {
    work_item it;
    worker_answer a = {.outcome = BTC__OUTCOME__OUTCOME_OK, .reason = ""};
    btc_status st = item_from_spec(&it, items[i].spec, items[i].params, err);
    work(e);
    if (st == BTC_OK && !it.bad && stub_fault_of(&e->faults, it.id) == STUB_LOST && first_try(e, it.id))
      st = btc_fail(err, BTC_ERR_DEVICE, "the stub lost its device at item '%s'", it.id);
    if (st == BTC_OK) {
      answer(e, &it, &a, sink);
      a.id = it.id;
      it.id = NULL;
    }
    item_clear(&it);
    if (st == BTC_OK && (!a.id || !a.record)) st = btc_fail(err, BTC_ERR_NOMEM, "out of memory");
    if (st != BTC_OK) {
      worker_answer_clear(&a);
      return st;
    }
    __atomic_add_fetch(&base->progress, 1, __ATOMIC_RELAXED);
    sink->done(sink->ctx, i, &a);
  }
  return BTC_OK;
}

/* ---- birth and death ---- */

static void destroy(worker_engine *base) {
  stub_engine *e = (stub_engine *)base;
  free(e->tried);
  free(e->roots);
  free(e);
}

btc_status engine_stub_create(const btc_worker_options *o, worker_engine **out, btc_error *err) {
  *out = NULL;
  stub_engine *e = btc_alloc_zero(1, sizeof *e);
  if (!e) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  e->base = (worker_engine){.batch = o->batch, .model_class = "stub", .model_name = "stub", .run = run, .destroy = destroy};
  e->us = o->stub_us;
  e->random = (uint64_t)btc_now_ns() ^ (uint64_t)getpid() << 40 ^ 1;
  e->roots = btc_strdup(o->roots);
  e->tried = btc_alloc_zero(TRIED_SLOTS, sizeof *e->tried);
  btc_status st = e->tried && (e->roots || !o->roots) ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  if (st == BTC_OK) st = stub_faults_parse(o->stub_faults, &e->faults, err);
  if (st != BTC_OK)
    destroy(&e->base);
  else
    *out = &e->base;
  return st;
}
