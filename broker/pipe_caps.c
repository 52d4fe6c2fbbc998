/* Members' own words, checked; plans as JSON. See pipes.h. */
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/pipes.h"

enum { MAX_SLOTS = 65536 };
static const uint64_t max_bytes = (uint64_t)1 << 50; /* sums of 512 blocks times 65,536 slots must not wrap: kv is bounded below */

/* ---- Hello ---- */

static bool number_ok(double x) {
  return isfinite(x) && x >= 0 && x < 1e12;
}

static const char *refuse(const Btc__Hello *h) {
  size_t blocks = 0;
  if (!h->slots || h->slots > MAX_SLOTS) return "slots";
  if (h->memory_bytes > max_bytes || h->fixed_bytes > max_bytes) return "memory";
  if (strlen(h->site) >= sizeof((btc_pipe_caps *)0)->site || strlen(h->model_class) >= sizeof((btc_plan_pipe *)0)->fingerprint)
    return "site or class";
  if (!*h->endpoint || strlen(h->endpoint) >= sizeof((btc_pipe_caps *)0)->endpoint) return "endpoint";
  if (h->n_blocks > BTC_PLAN_BLOCKS) return "blocks";
  for (size_t i = 0; i < h->n_blocks; i++) {
    const Btc__PipeBlock *b = h->blocks[i];
    if (b->kind >= BTC_PLAN_KINDS || !b->count || b->count > BTC_PLAN_BLOCKS) return "block kind or count";
    if (b->weight_bytes > max_bytes || b->work_bytes > max_bytes || b->kv_bytes > max_bytes / MAX_SLOTS) return "block bytes";
    if (!number_ok(b->price) || !number_ok(b->ms)) return "block price";
    blocks += b->count;
  }
  return blocks > BTC_PLAN_BLOCKS ? "number of blocks" : NULL;
}

btc_pipe_caps *btc_pipe_caps_of(const Btc__Hello *h) {
  if (!h->n_blocks) return NULL;
  const char *why = refuse(h);
  if (why) {
    BTC_LOG_LIMITED(BTC_LOG_WARN, "pipe-member-refused", "worker=%s what=\"%s\"", h->worker, why);
    return NULL;
  }
  btc_pipe_caps *c = btc_alloc_zero(1, sizeof *c);
  int count[BTC_PLAN_KINDS] = {0};
  if (c) c->block = btc_alloc(BTC_PLAN_BLOCKS, sizeof *c->block);
  if (!c || !c->block) {
    btc_pipe_caps_free(&c);
    return NULL;
  }
  for (size_t i = 0; i < h->n_blocks; i++) {
    const Btc__PipeBlock *b = h->blocks[i];
    for (uint32_t k = 0; k < b->count; k++)
      c->block[c->blocks++] = (btc_plan_block){(btc_plan_kind)b->kind, (int64_t)b->weight_bytes, (int64_t)b->kv_bytes,
                                               (int64_t)b->work_bytes, b->price};
    c->ms[b->kind] += b->ms * b->count;
    count[b->kind] += (int)b->count;
  }
  for (int k = 0; k < BTC_PLAN_KINDS; k++)
    if (count[k]) c->ms[k] /= count[k];
  c->slots = (int)h->slots;
  c->memory_bytes = (int64_t)h->memory_bytes;
  c->fixed_bytes = (int64_t)h->fixed_bytes;
  snprintf(c->site, sizeof c->site, "%s", h->site);
  snprintf(c->endpoint, sizeof c->endpoint, "%s", h->endpoint);
  snprintf(c->card, sizeof c->card, "%s", h->card);
  c->nccl = *h->card && strlen(h->card) < sizeof c->card ? h->nccl : 0; /* no card that could be told from others: not by NCCL */
  return c;
}

void btc_pipe_caps_free(btc_pipe_caps **c) {
  if (*c) free((*c)->block);
  free(*c);
  *c = NULL;
}

void btc_pipe_caps_beat(btc_pipe_caps *c, const Btc__PipeLoad *l) {
  if (!c || !l || strlen(l->pipe) >= sizeof c->load.pipe || !number_ok(l->busy) || l->busy > 1 || !number_ok(l->ms)) return;
  snprintf(c->load.pipe, sizeof c->load.pipe, "%s", l->pipe);
  c->load.epoch = l->epoch;
  c->load.busy = l->busy;
  c->load.ms = l->ms;
}

/* ---- plans ---- */

char *btc_pipe_plan_text(const btc_pipe_plan *p) {
  json_t *stages = json_array();
  for (int i = 0; i < p->pipe.stages; i++) {
    const btc_plan_stage *s = &p->pipe.stage[i];
    char inc[24]; /* up to 64 bits: a text */
    snprintf(inc, sizeof inc, "%" PRIu64, p->incarnation[i]);
    json_array_append_new(stages, json_pack("{s:s,s:s,s:i,s:i,s:f,s:I}", "worker", s->member, "inc", inc, "first", s->first, "last",
                                            s->last, "ms", s->ms, "bytes", (json_int_t)s->bytes));
  }
  json_t *o = json_pack("{s:s,s:o}", "class", p->pipe.fingerprint, "stages", stages);
  char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
  json_decref(o);
  return text;
}

bool btc_pipe_plan_read(const char *text, btc_pipe_plan *out) {
  json_error_t err;
  json_t *o = json_loads(text, 0, &err), *stages = json_object_get(o, "stages");
  const char *class = json_string_value(json_object_get(o, "class"));
  size_t n = json_array_size(stages);
  bool ok = class && strlen(class) < sizeof out->pipe.fingerprint && n >= 1 && n <= BTC_PLAN_STAGES;
  memset(out, 0, sizeof *out);
  for (size_t i = 0; ok && i < n; i++) {
    const char *worker, *inc;
    json_int_t bytes = 0;
    btc_plan_stage *s = &out->pipe.stage[i];
    ok = json_unpack(json_array_get(stages, i), "{s:s,s:s,s:i,s:i,s:F,s:I}", "worker", &worker, "inc", &inc, "first", &s->first,
                     "last", &s->last, "ms", &s->ms, "bytes", &bytes) == 0 &&
         btc_name_valid(worker) && s->first >= 0 && s->last > s->first && s->last <= BTC_PLAN_BLOCKS;
    if (!ok) break;
    snprintf(s->member, sizeof s->member, "%s", worker);
    out->incarnation[i] = strtoull(inc, NULL, 10);
    s->bytes = bytes;
    if (s->ms > out->pipe.slowest_ms) out->pipe.slowest_ms = s->ms;
  }
  out->pipe.stages = ok ? (int)n : 0;
  if (ok) snprintf(out->pipe.fingerprint, sizeof out->pipe.fingerprint, "%s", class);
  json_decref(o);
  return ok;
}
