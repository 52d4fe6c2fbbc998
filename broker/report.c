/* Requests that only read: jobs, records, dead letters, workers. Lists are gathered from several answers of Redis that come in
 * order. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "jobs.h"
#include "request.h"

enum { MAX_LIST = 1000, DEFAULT_LIST = 20, MAX_DEAD = 1000, RESULT_BYTES = 1 << 20, MAX_RESULT_BYTES = 4 << 20 };

static void away(btc_request *q) {
  btc_request_later(q, "Redis is away", 0);
}

/* ---- status ---- */

static double seconds_since(uint64_t wall_ms) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  double s = (double)t.tv_sec + (double)t.tv_nsec / 1e9 - (double)wall_ms / 1e3;
  return s > 0 ? s : 0;
}

static void set_text(char **field, const char *text) {
  char *copy = btc_strdup(text ? text : "");
  if (!copy) return; /* it stays as it was: protobuf-c's empty text */
  if (*field != (char *)protobuf_c_empty_string) free(*field);
  *field = copy;
}

static Btc__Job *make_job(btc_broker *b, const char *jid, const redisReply *r) {
  Btc__Job *j = btc_alloc_zero(1, sizeof *j);
  if (!j) return NULL;
  btc__job__init(j);
  set_text(&j->jid, jid);
  set_text(&j->state, btc_answer_field(r, "st"));
  set_text(&j->tenant, btc_answer_field(r, "tenant"));
  set_text(&j->manifest, btc_answer_field(r, "manifest"));
  set_text(&j->message, btc_answer_field(r, "msg"));
  j->priority = (uint32_t)btc_answer_field_u64(r, "pri");
  j->total = btc_answer_field_u64(r, "total");
  j->done = btc_answer_field_u64(r, "done");
  j->dead = btc_answer_field_u64(r, "dead");
  j->cancelled = btc_answer_field_u64(r, "canc");
  j->expanded = btc_answer_field_u64(r, "cur");
  j->recorded = btc_answer_field_u64(r, "rec");
  j->sealed = true;
  j->paused = btc_answer_field_u64(r, "paused") != 0;
  j->finish_epoch = (uint32_t)btc_answer_field_u64(r, "epoch");
  j->created_ms = btc_answer_field_u64(r, "created");
  j->finished_ms = btc_answer_field_u64(r, "finished");
  j->retries = btc_answer_field_u64(r, "retries");
  j->crashes = btc_answer_field_u64(r, "crashes");
  uint64_t ended = j->done + j->dead + j->cancelled;
  double age = j->finished_ms > j->created_ms ? (double)(j->finished_ms - j->created_ms) / 1e3 : seconds_since(j->created_ms);
  if (strcmp(j->state, "RUN") == 0) {
    j->items_per_s = btc_jobs_rate(b, jid, ended, age);
    if (j->items_per_s > 0 && j->total > ended) j->eta_s = (double)(j->total - ended) / j->items_per_s;
  } else if (age > 0) {
    j->items_per_s = (double)j->done / age;
  }
  return j;
}

static void free_status(btc_request *q) {
  btc__status_reply__free_unpacked(q->status, NULL);
  q->status = NULL;
}

static void status_done(btc_request *q) {
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_STATUS_REPLY);
  Btc__StatusReply *reply = q->status;
  if (q->finished) { /* something was lost on the way: ask again */
    free_status(q);
    away(q);
    return;
  }
  e.status_reply = reply;
  btc_request_send(q, &e);
  btc__status_reply__free_unpacked(reply, NULL);
}

static void status_part(btc_request *q) {
  if (--q->left == 0) status_done(q);
}

typedef struct job_part {
  btc_request *q;
  char jid[BTC_JID];
} job_part;

static void on_job(void *ctx, const redisReply *r) {
  job_part *p = ctx;
  btc_request *q = p->q;
  if (btc_answer_failed(r)) q->finished = true;
  const char *tenant = btc_answer_failed(r) ? NULL : btc_answer_field(r, "tenant");
  bool wanted = tenant && q->status->n_jobs < q->limit && btc_request_sees(q, tenant);
  Btc__Job *j = wanted ? make_job(q->b, p->jid, r) : NULL;
  if (j) q->status->jobs[q->status->n_jobs++] = j;
  free(p);
  if (q->left == 1 && q->jid[0] && !q->status->n_jobs) set_text(&q->status->message, "there is no such job");
  status_part(q);
}

static void ask_job(btc_request *q, const char *jid) {
  job_part *p = btc_alloc_zero(1, sizeof *p);
  if (p) {
    p->q = q;
    snprintf(p->jid, sizeof p->jid, "%s", jid);
    q->left++;
    if (btc_store_command(q->b->store, on_job, p, "HGETALL", btc_store_key(q->b->store, "job:", jid), NULL)) return;
    q->left--;
    free(p);
  }
  q->finished = true;
}

static void on_jobs(void *ctx, const redisReply *r) {
  btc_request *q = ctx;
  if (btc_answer_failed(r)) q->finished = true;
  for (size_t i = 0; !btc_answer_failed(r) && i < r->elements; i++) ask_job(q, btc_answer_text(r, i));
  status_part(q);
}

static void on_totals(void *ctx, const redisReply *r) {
  btc_request *q = ctx;
  Btc__StatusReply *s = q->status;
  if (btc_answer_failed(r)) q->finished = true;
  s->ready = btc_answer_u64(r, 0);
  s->leased = btc_answer_u64(r, 1);
  s->delayed = btc_answer_u64(r, 2);
  s->suspects = btc_answer_u64(r, 3);
  s->paused = btc_answer_u64(r, 4) != 0;
  if (s->paused) set_text(&s->message, "the queue is paused");
  status_part(q);
}

static void on_workers_count(void *ctx, const redisReply *r) {
  btc_request *q = ctx;
  if (!btc_answer_failed(r) && r->type == REDIS_REPLY_INTEGER) q->status->workers = (uint32_t)r->integer;
  status_part(q);
}

void btc_report_status(btc_broker *b, const btc_message *m) {
  const Btc__StatusRequest *in = m->envelope->status_request;
  btc_request *q = btc_request_new(b, m);
  if (!q) return;
  q->limit = !in->limit ? DEFAULT_LIST : in->limit > MAX_LIST ? MAX_LIST : in->limit;
  snprintf(q->jid, sizeof q->jid, "%.64s", in->jid);
  q->status = btc_alloc_zero(1, sizeof *q->status);
  if (q->status) {
    btc__status_reply__init(q->status);
    q->status->jobs = btc_alloc_zero(q->limit + 1, sizeof *q->status->jobs);
  }
  if (!q->status || !q->status->jobs) {
    free_status(q);
    away(q);
    return;
  }
  char last[24];
  /* who sees only some jobs gets them from among the newest */
  snprintf(last, sizeof last, "%u", (btc_request_is_limited(q) ? MAX_LIST : q->limit) - 1);
  q->status->in_reply_to = q->req_id;
  q->status->items_per_s = btc_metrics_get(b->metrics, BTC_METRIC_ITEMS_PER_SECOND);
  set_text(&q->status->broker, b->name);
  q->left = 1; /* until all are sent */
  q->left += btc_store_call(b->store, on_totals, q, "btc_totals", NULL);
  q->left += btc_store_command(b->store, on_workers_count, q, "SCARD", btc_store_key(b->store, "workers", ""), NULL);
  if (*q->jid)
    ask_job(q, q->jid);
  else
    q->left += btc_store_command(b->store, on_jobs, q, "ZREVRANGE", btc_store_key(b->store, "jobs", ""), "0", last, NULL);
  if (q->left == 1) q->finished = true; /* nothing could be sent */
  status_part(q);
}

/* ---- results ---- */

static void results_reply(btc_request *q, const char *lines, const char *cursor, bool end, const char *message) {
  Btc__ResultsReply reply = BTC__RESULTS_REPLY__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_RESULTS_REPLY);
  reply.in_reply_to = q->req_id;
  reply.lines = (char *)lines;
  reply.cursor = (char *)cursor;
  reply.end = end;
  reply.message = (char *)message;
  e.results_reply = &reply;
  btc_request_send(q, &e);
}

/* The finish whose errors.jsonl a cursor "PART:OFFSET:EPOCH:OFFSET" (results.h) has begun; 0 before that. */
static uint64_t errors_epoch(const char *cursor) {
  const char *colon = strchr(cursor, ':');
  colon = colon ? strchr(colon + 1, ':') : NULL;
  return colon ? strtoull(colon + 1, NULL, 10) : 0;
}

/* The end is behind errors.jsonl of the job's last finish, or behind the last part when nothing is dead. */
static void on_lines(void *ctx, const btc_io_reply *r) {
  btc_request *q = ctx;
  if (r->status == BTC_ERR_ARG || r->status == BTC_ERR_NOT_FOUND) {
    results_reply(q, "", q->cursor, true, r->message);
    return;
  }
  if (r->status != BTC_OK) {
    btc_request_later(q, r->message, 0);
    return;
  }
  bool errors = !q->count || errors_epoch(r->cursor) >= q->epoch;
  results_reply(q, r->lines ? r->lines : "", r->cursor, r->at_end && q->finished && errors, "");
}

static void on_results_job(void *ctx, const redisReply *r) {
  btc_request *q = ctx;
  btc_error err;
  if (btc_answer_failed(r)) {
    btc_request_later(q, btc_answer_why(r), 0);
    return;
  }
  const char *state = btc_answer_text(r, 0);
  if (btc_request_is_limited(q) && (!*state || !btc_request_sees(q, btc_answer_text(r, 6)))) {
    results_reply(q, "", "", true, "there is no such job"); /* also one that Redis has forgotten: whose it was nobody knows then */
    return;
  }
  bool known = *state, over = strcmp(state, "FIN") == 0 || strcmp(state, "CXD") == 0;
  if (strcmp(btc_answer_text(r, 5), "stream") == 0) {
    results_reply(q, "", "", true, "the records of this job go to the stream out, not to files");
    return;
  }
  if (!q->b->o->results) {
    results_reply(q, "", "", true, "this broker has no results folder");
    return;
  }
  q->finished = !known || (over && btc_answer_u64(r, 1) >= btc_answer_u64(r, 2)); /* Redis forgets jobs, files stay */
  q->count = known ? btc_answer_u64(r, 3) : 0;
  q->epoch = btc_answer_u64(r, 4);
  if (btc_io_results(q->b->io, q->jid, q->cursor, q->limit, q->finished, on_lines, q, &err) != BTC_OK)
    btc_request_later(q, err.message, 0);
}

void btc_report_results(btc_broker *b, const btc_message *m) {
  const Btc__ResultsRequest *in = m->envelope->results_request;
  btc_request *q = btc_request_new(b, m);
  if (!q) return;
  q->limit = !in->max_bytes ? RESULT_BYTES : in->max_bytes > MAX_RESULT_BYTES ? MAX_RESULT_BYTES : in->max_bytes;
  if (!btc_name_valid(in->jid) || strlen(in->cursor) >= sizeof q->cursor) {
    results_reply(q, "", "", true, "not a job's id, or not a cursor");
    return;
  }
  snprintf(q->jid, sizeof q->jid, "%s", in->jid);
  snprintf(q->cursor, sizeof q->cursor, "%s", in->cursor);
  const char *key = btc_store_key(b->store, "job:", q->jid);
  if (!btc_store_command(b->store, on_results_job, q, "HMGET", key, "st", "rec", "done", "dead", "epoch", "route", "tenant", NULL))
    away(q);
}

/* ---- dead letters ---- */

static int by_number(const void *x, const void *y) {
  uint64_t a = *(const uint64_t *)x, b = *(const uint64_t *)y;
  return a < b ? -1 : a > b;
}

static void dead_reply(btc_request *q, Btc__DeadReply *reply) {
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_DEAD_REPLY);
  reply->in_reply_to = q->req_id;
  reply->next = q->after;
  reply->end = q->finished;
  e.dead_reply = reply;
  btc_request_send(q, &e);
}

static Btc__DeadItem *make_dead(uint64_t idx, const char *text) {
  json_error_t why;
  json_t *o = json_loads(text, 0, &why);
  Btc__DeadItem *d = o ? btc_alloc_zero(1, sizeof *d) : NULL;
  if (d) {
    btc__dead_item__init(d);
    d->idx = idx;
    d->attempts = (uint32_t)json_integer_value(json_object_get(o, "attempts"));
    set_text(&d->id, json_string_value(json_object_get(o, "id")));
    set_text(&d->reason, json_string_value(json_object_get(o, "reason")));
    set_text(&d->message, json_string_value(json_object_get(o, "message")));
    set_text(&d->worker, json_string_value(json_object_get(o, "worker")));
    set_text(&d->record, json_string_value(json_object_get(o, "record")));
  }
  json_decref(o);
  return d;
}

/* HMGET dd:<jid> in the order of q's numbers, which stand in the text list that was sent; the first of them is q->count. */
typedef struct dead_page {
  btc_request *q;
  size_t n;
  uint64_t idx[];
} dead_page;

static void on_dead(void *ctx, const redisReply *r) {
  dead_page *p = ctx;
  btc_request *q = p->q;
  Btc__DeadReply *reply = btc_answer_failed(r) ? NULL : btc_alloc_zero(1, sizeof *reply);
  if (reply) {
    btc__dead_reply__init(reply);
    reply->items = btc_alloc_zero(p->n + 1, sizeof(Btc__DeadItem *));
  }
  if (!reply || !reply->items) {
    free(reply);
    btc_request_later(q, btc_answer_failed(r) ? btc_answer_why(r) : "out of memory", 0);
    free(p);
    return;
  }
  size_t bytes = 0;
  for (size_t i = 0; i < p->n && i < r->elements; i++) {
    const char *text = btc_answer_text(r, i);
    bytes += strlen(text);
    if (bytes > MAX_RESULT_BYTES && i) {
      q->finished = false;
      break;
    }
    q->after = p->idx[i] + 1;
    Btc__DeadItem *d = *text ? make_dead(p->idx[i], text) : NULL;
    if (d) reply->items[reply->n_items++] = d;
  }
  dead_reply(q, reply);
  btc__dead_reply__free_unpacked(reply, NULL);
  free(p);
}

static bool ask_dead(dead_page *p) {
  btc_request *q = p->q;
  size_t argc = p->n + 2;
  const char **argv = btc_alloc(argc, sizeof *argv);
  size_t *len = btc_alloc(argc, sizeof *len);
  char(*number)[24] = btc_alloc(p->n, sizeof *number);
  bool sent = false;
  if (argv && len && number) {
    argv[0] = "HMGET";
    argv[1] = btc_store_key(q->b->store, "dd:", q->jid);
    for (size_t i = 0; i < p->n; i++) {
      snprintf(number[i], sizeof number[i], "%" PRIu64, p->idx[i]);
      argv[i + 2] = number[i];
    }
    for (size_t i = 0; i < argc; i++) len[i] = strlen(argv[i]);
    sent = btc_redis_send(q->b->redis, (int)argc, argv, len, 0, on_dead, p);
  }
  free((void *)argv);
  free(len);
  free(number);
  return sent;
}

static void on_dead_keys(void *ctx, const redisReply *r) {
  btc_request *q = ctx;
  Btc__DeadReply none = BTC__DEAD_REPLY__INIT;
  if (btc_answer_failed(r)) {
    btc_request_later(q, btc_answer_why(r), 0);
    return;
  }
  dead_page *p = btc_alloc_zero(1, sizeof *p + r->elements * sizeof p->idx[0]);
  if (!p) {
    away(q);
    return;
  }
  p->q = q;
  for (size_t i = 0; i < r->elements; i++) {
    uint64_t idx = btc_answer_u64(r, i);
    if (idx >= q->after) p->idx[p->n++] = idx;
  }
  qsort(p->idx, p->n, sizeof p->idx[0], by_number);
  q->finished = p->n <= q->limit;
  if (!q->finished) p->n = q->limit;
  if (!p->n) {
    free(p);
    dead_reply(q, &none);
  } else if (!ask_dead(p)) {
    free(p);
    away(q);
  }
}

static void dead_seen(btc_request *q, bool seen) {
  Btc__DeadReply none = BTC__DEAD_REPLY__INIT;
  q->finished = true;
  if (!seen)
    dead_reply(q, &none);
  else if (!btc_store_command(q->b->store, on_dead_keys, q, "HKEYS", btc_store_key(q->b->store, "dd:", q->jid), NULL))
    away(q);
}

void btc_report_dead(btc_broker *b, const btc_message *m) {
  const Btc__DeadRequest *in = m->envelope->dead_request;
  btc_request *q = btc_request_new(b, m);
  if (!q) return;
  q->limit = !in->limit || in->limit > MAX_DEAD ? MAX_DEAD : in->limit;
  q->after = in->after;
  snprintf(q->jid, sizeof q->jid, "%s", btc_name_valid(in->jid) ? in->jid : "-");
  btc_request_gate(q, dead_seen);
}

/* ---- workers ---- */

typedef struct worker_part {
  btc_request *q;
  char name[BTC_NAME];
} worker_part;

static uint64_t number_of(const json_t *o, const char *key) {
  json_int_t n = json_integer_value(json_object_get(o, key));
  return n > 0 ? (uint64_t)n : 0;
}

static uint64_t ms_since(uint64_t wall_ms) {
  return wall_ms ? (uint64_t)(seconds_since(wall_ms) * 1e3) : 0;
}

static Btc__Device *make_device(const json_t *o) {
  Btc__Device *d = btc_alloc_zero(1, sizeof *d);
  const json_t *busy = json_object_get(o, "busy");
  if (!d) return NULL;
  btc__device__init(d);
  set_text(&d->name, json_string_value(json_object_get(o, "name")));
  d->memory_bytes = number_of(o, "memory_bytes");
  d->free_bytes = number_of(o, "free_bytes");
  d->busy_known = json_is_number(busy);
  d->busy = json_number_value(busy);
  return d;
}

/* Freed with the message. */
static void add_devices(Btc__WorkerInfo *w, const json_t *list) {
  size_t n = json_array_size(list);
  if (!n || !(w->devices = btc_alloc_zero(n, sizeof *w->devices))) return;
  for (size_t i = 0; i < n; i++) {
    Btc__Device *d = make_device(json_array_get(list, i));
    if (d) w->devices[w->n_devices++] = d;
  }
}

static Btc__WorkerInfo *make_worker(const char *name, const redisReply *r) {
  json_error_t why;
  json_t *o = json_loads(btc_answer_text(r, 1), 0, &why);
  Btc__WorkerInfo *w = btc_alloc_zero(1, sizeof *w);
  if (w) {
    btc__worker_info__init(w);
    set_text(&w->worker, name);
    set_text(&w->broker, btc_answer_text(r, 0));
    set_text(&w->state, json_string_value(json_object_get(o, "state")));
    set_text(&w->engine, json_string_value(json_object_get(o, "engine")));
    set_text(&w->model_name, json_string_value(json_object_get(o, "model_name")));
    set_text(&w->model_class, json_string_value(json_object_get(o, "model_class")));
    set_text(&w->program, json_string_value(json_object_get(o, "program")));
    w->credits = (uint32_t)number_of(o, "credits");
    w->in_hand = (uint32_t)number_of(o, "in_hand");
    w->items_done = number_of(o, "items_done");
    w->items_per_s = json_number_value(json_object_get(o, "items_per_s"));
    w->rss_bytes = number_of(o, "rss_bytes");
    w->age_ms = ms_since(number_of(o, "born_ms"));
    w->last_seen_ms = ms_since(number_of(o, "seen_ms"));
    add_devices(w, json_object_get(o, "devices"));
  }
  json_decref(o);
  return w;
}

static void workers_done(btc_request *q) {
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_WORKERS_REPLY);
  Btc__WorkersReply *reply = q->workers;
  e.workers_reply = reply;
  btc_request_send(q, &e);
  btc__workers_reply__free_unpacked(reply, NULL);
}

static void on_worker(void *ctx, const redisReply *r) {
  worker_part *p = ctx;
  btc_request *q = p->q;
  Btc__WorkerInfo *w = !btc_answer_failed(r) && *btc_answer_text(r, 0) ? make_worker(p->name, r) : NULL;
  if (w) q->workers->workers[q->workers->n_workers++] = w;
  free(p);
  if (--q->left == 0) workers_done(q);
}

static void ask_worker(btc_request *q, const char *name) {
  worker_part *p = btc_alloc_zero(1, sizeof *p);
  if (!p) return;
  p->q = q;
  snprintf(p->name, sizeof p->name, "%s", name);
  q->left++;
  if (btc_store_command(q->b->store, on_worker, p, "HMGET", btc_store_key(q->b->store, "wk:", name), "broker", "info", NULL))
    return;
  q->left--;
  free(p);
}

static void on_names(void *ctx, const redisReply *r) {
  btc_request *q = ctx;
  if (btc_answer_failed(r)) {
    btc_request_later(q, btc_answer_why(r), 0);
    return;
  }
  size_t n = r->elements < MAX_LIST ? r->elements : MAX_LIST;
  q->workers = btc_alloc_zero(1, sizeof *q->workers);
  if (q->workers) {
    btc__workers_reply__init(q->workers);
    q->workers->in_reply_to = q->req_id;
    q->workers->workers = btc_alloc_zero(n + 1, sizeof(Btc__WorkerInfo *));
  }
  if (!q->workers || !q->workers->workers) {
    free(q->workers);
    away(q);
    return;
  }
  q->left = 1;
  for (size_t i = 0; i < n; i++) ask_worker(q, btc_answer_text(r, i));
  if (--q->left == 0) workers_done(q);
}

void btc_report_workers(btc_broker *b, const btc_message *m) {
  btc_request *q = btc_request_new(b, m);
  if (q && !btc_store_command(b->store, on_names, q, "SMEMBERS", btc_store_key(b->store, "workers", ""), NULL)) away(q);
}
