/* `btcchat pipes`: what Redis holds, so that every broker can answer. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/pipes.h"

typedef struct row {
  Btc__PipeInfo info;
  Btc__PipeStageInfo stage[BTC_PLAN_STAGES], *list[BTC_PLAN_STAGES];
  btc_pipe_plan plan;
} row;

/* "ms busy ms busy ..." as the leader wrote it, or "". */
static void take_load(row *w, const char *text) {
  double busy = 0;
  int known = 0;
  for (int i = 0; i < w->plan.pipe.stages; i++) {
    char *end;
    w->stage[i].ms = strtod(text, &end);
    w->stage[i].busy = strtod(end, &end);
    text = end;
    busy += w->stage[i].busy;
    known += w->stage[i].busy > 0;
  }
  if (known && known == w->plan.pipe.stages) w->info.bubble = 1 - busy / known;
}

static void fill(row *w, const redisReply *e) {
  btc__pipe_info__init(&w->info);
  bool readable = btc_pipe_plan_read(btc_answer_text(e, 5), &w->plan);
  w->info.pipe = (char *)btc_answer_text(e, 0);
  w->info.epoch = strtoull(btc_answer_text(e, 1), NULL, 10);
  w->info.state = (char *)btc_answer_text(e, 2);
  w->info.since_ms = strtoull(btc_answer_text(e, 3), NULL, 10);
  w->info.message = (char *)(readable ? btc_answer_text(e, 4) : "its plan cannot be read");
  w->info.model_class = w->plan.pipe.fingerprint;
  if (w->plan.pipe.slowest_ms > 0) w->info.items_per_s = 1000 / w->plan.pipe.slowest_ms;
  for (int i = 0; i < w->plan.pipe.stages; i++) {
    const btc_plan_stage *s = &w->plan.pipe.stage[i];
    btc__pipe_stage_info__init(&w->stage[i]);
    w->stage[i].worker = (char *)s->member;
    w->stage[i].first = (uint32_t)s->first;
    w->stage[i].last = (uint32_t)s->last;
    w->stage[i].planned_ms = s->ms;
    w->stage[i].bytes = (uint64_t)s->bytes;
    w->list[i] = &w->stage[i];
  }
  w->info.stages = w->list;
  w->info.n_stages = (size_t)w->plan.pipe.stages;
  take_load(w, btc_answer_text(e, 6));
}

static int by_id(const void *a, const void *b) {
  const Btc__PipeInfo *x = *(Btc__PipeInfo *const *)a, *y = *(Btc__PipeInfo *const *)b;
  size_t n = strlen(x->pipe), m = strlen(y->pipe); /* p2 before p10 */
  return n != m ? (n < m ? -1 : 1) : strcmp(x->pipe, y->pipe);
}

static void on_pipes(void *ctx, const redisReply *r) {
  btc_request *q = ctx;
  if (btc_broker_refused("btc_pipes", r) || r->type != REDIS_REPLY_ARRAY) {
    btc_request_later(q, "Redis is away", 0);
    return;
  }
  row *rows = btc_alloc_zero(r->elements + 1, sizeof *rows);
  Btc__PipeInfo **list = btc_alloc_zero(r->elements + 1, sizeof *list);
  if (!rows || !list) {
    free(rows);
    free(list);
    btc_request_later(q, "not enough memory", 0);
    return;
  }
  for (size_t i = 0; i < r->elements; i++) {
    fill(&rows[i], r->element[i]);
    list[i] = &rows[i].info;
  }
  qsort(list, r->elements, sizeof *list, by_id);
  Btc__PipesReply reply = BTC__PIPES_REPLY__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_PIPES_REPLY);
  reply.in_reply_to = q->req_id;
  reply.pipes = list;
  reply.n_pipes = r->elements;
  e.pipes_reply = &reply;
  btc_request_send(q, &e);
  free(rows);
  free(list);
}

void btc_pipes_report(btc_broker *b, const btc_message *m) {
  btc_request *q = btc_request_new(b, m);
  if (q && !btc_store_call(b->store, on_pipes, q, "btc_pipes", NULL)) btc_request_later(q, "Redis is away", 0);
}
