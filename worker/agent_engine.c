/*
 * The agent and its child: starting it again and again, feeding it ahead of need, and telling slow from stuck. A child that dies
 * costs the items it had started; the rest stays in hand.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "agent_member.h"
#include "base/failpoint.h"

enum {
  MOST_BACKOFF_MS = 5000,
  HOPELESS_STARTS = 5,
  LOAD_PATIENCE = 10 /* stall windows for loading a model */,
  MOST_LOSSES = 5 /* of a device in a row that are nobody's fault */,
  RUN_BYTES = 1 << 20
};

/* ---- starting ---- */

static int64_t backoff_ms(int failures) {
  if (failures <= 0) return 0;
  int64_t ms = INT64_C(100) << (failures < 7 ? failures - 1 : 6);
  return ms < MOST_BACKOFF_MS ? ms : MOST_BACKOFF_MS;
}

static const child_calls calls;

static void start_later(agent *a) {
  int failures = a->failed_starts > a->idle_deaths ? a->failed_starts : a->idle_deaths;
  if (a->device_losses > failures) failures = a->device_losses;
  btc_timer_after_ms(a->restart_timer, backoff_ms(failures));
}

void engine_start(agent *a) {
  btc_error err;
  child_calls mine = calls;
  mine.ctx = a;
  a->child_ready = false;
  a->devices.n = 0;
  a->load_failure[0] = 0;
  a->child_progress = 0;
  a->child_started_ns = a->progress_ns = btc_now_ns();
  child_extra storage;
  const child_extra *extra;
  btc_status st = member_before_child(a, &storage, &extra, &err);
  btc_worker_options o = *a->o;
  o.known = a->known[0] ? a->known : NULL;
  if (st == BTC_OK) st = child_start(a->loop, NULL, &o, &mine, extra, &a->child, &err);
  member_after_child(a, extra);
  if (st == BTC_OK) return;
  if (a->phase == AGENT_LOADING) {
    agent_fail(a, err.code, "%s", err.message);
    return;
  }
  a->failed_starts++;
  agent_log(a, "engine-not-started", "why=\"%s\"", err.message);
  start_later(a);
}

static void on_restart(void *ctx) {
  agent *a = ctx;
  if (!a->child && a->phase <= AGENT_WORKING) engine_start(a);
}

/* ---- what the child says ---- */

static btc_status first_ready(agent *a, const Btc__ChildReady *r, btc_error *err) {
  a->batch = r->batch && r->batch <= 256 ? r->batch : 1;
  a->credits = a->o->credits > 0 ? (size_t)a->o->credits : 2 * a->batch;
  snprintf(a->model_class, sizeof a->model_class, "%s", r->model_class);
  snprintf(a->model_name, sizeof a->model_name, "%s", r->model_name);
  /* one batch runs, the next is in the child already; some room for grants that cross a change of credits */
  return ledger_create(a->credits + 2 * LEDGER_CHUNK_ITEMS, 2 * a->batch, &a->ledger, err);
}

static void on_ready(void *ctx, const Btc__ChildReady *r) {
  agent *a = ctx;
  btc_error err;
  if (r->failed) {
    snprintf(a->load_failure, sizeof a->load_failure, "%s", r->message);
    return;
  }
  if (member_child_ready(a, r, &err) != BTC_OK) {
    agent_fail(a, err.code, "%s", err.message);
    return;
  }
  btc_devices_set(&a->devices, r->devices, r->n_devices);
  if (a->phase == AGENT_LOADING) {
    if (first_ready(a, r, &err) != BTC_OK) {
      agent_fail(a, err.code, "%s", err.message);
      return;
    }
    a->phase = AGENT_WORKING;
    link_connect(a);
  } else if (strcmp(a->model_class, r->model_class) != 0) {
    agent_fail(a, BTC_ERR_MODEL, "the model's files have changed: it is now %s; start the worker again", r->model_class);
    return;
  }
  snprintf(a->known, sizeof a->known, "%s", r->known);
  a->child_ready = true;
  a->failed_starts = 0;
  a->progress_ns = btc_now_ns();
  agent_log(a, "engine-ready", "model=\"%s\" class=%s files=%s batch=%zu credits=%zu", a->model_name, a->model_class,
            r->recognised ? "known" : "read", a->batch, a->credits);
  if (a->welcomed) link_want_beat(a);
}

static void moved(agent *a, uint64_t by) {
  a->progress += by;
  a->progress_ns = btc_loop_now_ns(a->loop);
}

static void on_started(void *ctx, const Btc__ChildStarted *s) {
  agent *a = ctx;
  for (size_t i = 0; i < s->n_ticket; i++) ledger_start(a->ledger, s->ticket[i], btc_loop_now_ns(a->loop));
  if (s->note && s->note[0]) agent_log(a, "engine-note", "what=\"%s\"", s->note);
  if (s->n_devices) btc_devices_set(&a->devices, s->devices, s->n_devices);
  if (s->progress > a->child_progress || s->n_ticket) moved(a, 1);
  a->child_progress = s->progress;
  if (!s->n_ticket) return;
  link_want_beat(a); /* the broker learns which items a crash would put under suspicion */
  BTC_FAILPOINT("worker_started");
}

static void on_done(void *ctx, const Btc__ChildDone *d) {
  agent *a = ctx;
  btc_error err;
  int64_t now = btc_loop_now_ns(a->loop), started = 0;
  if (ledger_settle(a->ledger, d->ticket, d->result, now, &started, &err) != BTC_OK)
    agent_log(a, "result-lost", "why=\"%s\"", err.message);
  moved(a, 1);
  a->items_done++;
  a->idle_deaths = a->device_losses = 0;
  if (started) {
    double ms = (double)(now - started) * 1e-6;
    a->item_ms += (ms - a->item_ms) * (a->item_ms > 0 ? 0.1 : 1);
  }
  BTC_FAILPOINT("worker_done");
}

/* ---- its end ---- */

/* Why the first child did not come up is why the worker does not: there is no use in trying again. */
static void fail_to_load(agent *a, const child_death *d) {
  if (a->load_failure[0])
    agent_fail(a, BTC_ERR_MODEL, "the engine cannot start: %s", a->load_failure);
  else
    agent_fail(a, BTC_ERR_INTERNAL, "the engine cannot start: %s", d->message);
}

/* A device fails whatever it is given, so the next child gets the same items, without a word to the queue; one that does not come
 * back makes the next starts fail, and then they go to other workers. An item that loses the device each time would never end: it
 * is treated as one that crashes its engine, with those beside it. */
static bool take_items_back(agent *a, const child_death *d) {
  if (d->end != CHILD_NO_DEVICE || ++a->device_losses > MOST_LOSSES) return false;
  size_t started = ledger_take_back(a->ledger);
  agent_log(a, "device-lost", "items-kept=%zu in-a-row=%d why=\"%s\"", started, a->device_losses, d->message);
  return true;
}

static void settle_items(agent *a, const child_death *d) {
  static const char *const reasons[] = {"crash", "crash", "oom", "timeout", "crash"};
  static const Btc__Outcome outcomes[] = {BTC__OUTCOME__OUTCOME_CRASH, BTC__OUTCOME__OUTCOME_CRASH, BTC__OUTCOME__OUTCOME_OOM,
                                          BTC__OUTCOME__OUTCOME_TIMEOUT, BTC__OUTCOME__OUTCOME_CRASH};
  size_t started = ledger_child_gone(a->ledger, outcomes[d->end], reasons[d->end], d->message, btc_loop_now_ns(a->loop));
  a->idle_deaths = started ? 0 : a->idle_deaths + 1;
  agent_log(a, "engine-died", "ready=%d started-items=%zu why=\"%s\"", d->ready, started, d->message);
}

static void on_died(void *ctx, const child_death *d) {
  agent *a = ctx;
  child_destroy(&a->child);
  a->child_ready = false;
  member_child_died(a);
  if (a->phase == AGENT_LOADING) {
    fail_to_load(a, d);
    return;
  }
  if (!take_items_back(a, d)) settle_items(a, d);
  if (!d->ready) a->failed_starts++;
  if (a->load_failure[0]) agent_log(a, "engine-not-ready", "why=\"%s\"", a->load_failure);
  if (a->failed_starts == HOPELESS_STARTS) link_release_chunks(a, false);
  link_want_beat(a);
  if (a->phase == AGENT_WORKING) start_later(a);
}

static const child_calls calls = {.ready = on_ready, .started = on_started, .done = on_done, .died = on_died};

/* ---- slow or stuck ---- */

static int64_t stall_ns(const agent *a) {
  double window = (double)a->o->stall_ms, slow = 10 * a->item_ms;
  if (!a->child_ready) window *= LOAD_PATIENCE;
  return (int64_t)((window > slow ? window : slow) * 1e6);
}

static int64_t watch_interval_ms(const agent *a) {
  int64_t ms = a->o->stall_ms / 10;
  return ms < 10 ? 10 : ms > 1000 ? 1000 : ms;
}

/* A check that comes late means that this process was stopped itself: what the child said meanwhile is not read yet. */
static void on_watch(void *ctx) {
  agent *a = ctx;
  int64_t now = btc_loop_now_ns(a->loop), interval = watch_interval_ms(a);
  bool late = a->watch_ns && now - a->watch_ns > 5 * interval * AGENT_MS;
  bool busy = !a->child_ready || (a->ledger && ledger_given(a->ledger));
  a->watch_ns = now;
  btc_timer_after_ms(a->watch_timer, interval);
  if (!a->child || !busy || late || (a->child_ready && member_waits(a))) a->progress_ns = now;
  if (now - a->progress_ns <= stall_ns(a)) return;
  agent_log(a, "engine-stalled", "silent-ms=%lld", (long long)((now - a->progress_ns) / AGENT_MS));
  a->progress_ns = now;
  child_kill(a->child, true);
}

/* ---- feeding ---- */

bool engine_hopeless(const agent *a) {
  return a->failed_starts >= HOPELESS_STARTS;
}

size_t engine_free_items(const agent *a) {
  if (a->phase != AGENT_WORKING || engine_hopeless(a) || member_waits(a) || btc_outbox_full(a->outbox)) return 0;
  size_t open = ledger_open(a->ledger);
  return a->credits > open ? a->credits - open : 0;
}

static void send_run(agent *a, Btc__ChildItem **items, size_t n) {
  Btc__ChildRun run = BTC__CHILD_RUN__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_CHILD_RUN);
  btc_error err;
  e.child_run = &run;
  run.items = items;
  run.n_items = n;
  if (child_send(a->child, &e, &err) == BTC_OK) return;
  agent_log(a, "engine-not-fed", "why=\"%s\"", err.message);
  child_kill(a->child, false); /* its death puts the items back */
}

void engine_feed(agent *a) {
  enum { MOST = 64 };
  Btc__ChildItem items[MOST], *list[MOST];
  if (!a->child_ready || a->phase != AGENT_WORKING || member_waits(a)) return;
  if (!ledger_given(a->ledger)) a->progress_ns = btc_loop_now_ns(a->loop); /* idle time is no stall */
  for (bool more = true; more;) {
    size_t n = 0, bytes = 0;
    ledger_chunk *c;
    ledger_item *it;
    while (n < MOST && bytes < RUN_BYTES && !btc_outbox_full(a->outbox) && (it = ledger_next(a->ledger, &c))) {
      ledger_give(a->ledger, c, it);
      btc__child_item__init(&items[n]);
      items[n].ticket = it->ticket;
      items[n].spec = it->spec;
      items[n].params = c->params;
      bytes += strlen(it->spec) + strlen(c->params);
      list[n] = &items[n];
      n++;
    }
    if (n) send_run(a, list, n);
    more = n == MOST || bytes >= RUN_BYTES;
  }
}

/* ---- life ---- */

btc_status engine_open(agent *a, btc_error *err) {
  a->restart_timer = btc_timer_create(a->loop, on_restart, a);
  a->watch_timer = btc_timer_create(a->loop, on_watch, a);
  if (!a->restart_timer || !a->watch_timer) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  btc_timer_after_ms(a->watch_timer, watch_interval_ms(a));
  return BTC_OK;
}

void engine_close(agent *a) {
  child_destroy(&a->child);
}

/* ---- what heartbeats tell of it ---- */

uint64_t engine_resident_bytes(const agent *a) {
  char path[64];
  unsigned long long size, resident = 0;
  int pid = a->child ? child_pid(a->child) : 0;
  snprintf(path, sizeof path, "/proc/%d/statm", pid);
  FILE *f = pid ? fopen(path, "re") : NULL;
  if (f && fscanf(f, "%llu %llu", &size, &resident) != 2) resident = 0; /* NOLINT(cert-err34-c): the kernel writes it */
  if (f) fclose(f);
  return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

void engine_update_rate(agent *a) {
  int64_t now = btc_loop_now_ns(a->loop);
  double seconds = (double)(now - a->rate_ns) * 1e-9;
  if (seconds < 0.9) return;
  double rate = (double)(a->items_done - a->items_done_at_beat) / seconds;
  a->items_per_s += (rate - a->items_per_s) * (a->rate_ns ? 0.3 : 1);
  a->items_done_at_beat = a->items_done;
  a->rate_ns = now;
}
