/*
 * What an engine child runs: items in, answers out, one after the other through a sink. One thread. An engine either takes batches
 * (run), or items at any time while others are still under way (add and step). Nothing here knows the agent, a socket or the queue.
 */
#ifndef BTC_WORKER_ENGINE_H
#define BTC_WORKER_ENGINE_H

#include "agent.h"
#include "item.h"
#include "measure.h"
#include "ops/ops.h"
#include "proto/btcchat.pb-c.h"

/* Borrowed for the call of run or add. */
typedef struct worker_item {
  const char *spec, *params; /* item text, and the job's parameters: JSON objects */
} worker_item;

/* id, message and record are malloc'ed; whoever gets an answer frees it with worker_answer_clear. */
typedef struct worker_answer {
  Btc__Outcome outcome; /* OK, PERMANENT or TRANSIENT */
  char *id;
  const char *reason; /* static text; "" when OK */
  char *message, *record;
} worker_answer;
void worker_answer_clear(worker_answer *a);

typedef struct worker_sink {
  void *ctx;
  void (*done)(void *ctx, uint64_t which, worker_answer *a); /* takes an answer: of items[which] of a run, or of a ticket */
  void (*flush)(void *ctx);                                  /* everything said so far leaves the process */
  void (*note)(void *ctx, const char *text);                 /* a sentence for the worker's log; may be NULL */
} worker_sink;

typedef struct worker_engine worker_engine;
struct worker_engine {
  int batch;            /* items that run takes at once */
  char model_class[96]; /* "sha256:...-bf16"; "stub" */
  char model_name[128];
  char known[BTC_KNOWN]; /* of the model's files, see btc_checkpoint_known; "": nothing */
  bool recognised;       /* they were, by what an earlier child had said, and not read */
  uint64_t progress;     /* atomic: grows while run works; any thread may read it */
  measure_result caps;   /* of a part of the model; no blocks: the engine holds all of it */
  /* The devices it computes on, at most room of them; NULL or 0: the CPU, or not known. Any thread, while the engine works. */
  size_t (*devices)(const worker_engine *e, btc_device_info *out, size_t room);
  int wake_fd; /* readable: step has something to do although no item is open; 0: none */
  /* Answers each of n <= batch items once. On an error the items not answered are the caller's to report. DEVICE, also from add and
   * step: the device is lost; what is not answered is no item's fault, and nothing more can be computed in this process. */
  btc_status (*run)(worker_engine *e, const worker_item *items, size_t n, const worker_sink *sink, btc_error *err);
  /* Instead of run: up to room more items are added, of which open are not answered yet; every step brings all of them on and
   * answers those that are done. add answers at once what there is nothing to compute for; on an error the item is the caller's to
   * report. step answers every open item before it fails (not with DEVICE), and may be called again. */
  size_t (*room)(const worker_engine *e);
  size_t (*open)(const worker_engine *e);
  btc_status (*add)(worker_engine *e, const worker_item *item, uint64_t ticket, const worker_sink *sink, btc_error *err);
  btc_status (*step)(worker_engine *e, const worker_sink *sink, btc_error *err);
  void (*destroy)(worker_engine *e);
};

btc_precision engine_precision(const btc_worker_options *o);
btc_status engine_model_create(const btc_worker_options *o, worker_engine **out, btc_error *err);
/* A pipeline of o->pipe ranks in processes of their own. */
btc_status engine_pipe_create(const btc_worker_options *o, worker_engine **out, btc_error *err);
/* The driver of pipelines that span workers, which its agent forms; the whole model when that fits o->memory_mib. */
btc_status engine_member_create(const btc_worker_options *o, worker_engine **out, btc_error *err);
btc_status engine_stub_create(const btc_worker_options *o, worker_engine **out, btc_error *err);

/* ---- the stub's behaviour, for checkers ---- */

/* "stub:" and the first 16 hex digits of sha256("before\nafter\nid"). */
void engine_stub_caption(const char *before, const char *after, const char *id, char out[24]);

typedef enum stub_fault { STUB_FINE, STUB_CRASH, STUB_BAD, STUB_TRANSIENT, STUB_HANG, STUB_GROW, STUB_LOST } stub_fault;
/* Shares of ids: "crash=0.01,bad=0.01,transient=0.02,hang=0.001". An id's fault is decided by u = (first 8 bytes, big-endian, of
 * sha256("fault\n" + id)) / 2^64: u < crash crashes the child, u < crash + bad is bad input, and so on in this order. transient
 * fails at its first try: of this child, or with marks=DIR of all workers that share the folder. grow takes memory until it is
 * killed, at most 1 GiB. lost (last in the order) loses the device at such a first try. flaky=P: every try of any other id fails
 * transiently with chance P. */
typedef struct stub_faults {
  double crash, bad, transient, hang, grow, lost, flaky;
  char marks[512];
} stub_faults;
btc_status stub_faults_parse(const char *text, stub_faults *out, btc_error *err); /* ARG names what is wrong; NULL or "": none */
stub_fault stub_fault_of(const stub_faults *f, const char *id);

#endif
