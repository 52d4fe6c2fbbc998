/*
 * What a worker says of the part of a model that it can hold, and plans as Redis keeps them: refused, or such that the planner
 * makes something of it that holds together. Input: mode, then an envelope (even) or a plan's text (odd).
 */
#include <stdlib.h>
#include <string.h>

#include "broker/pipes.h"
#include "proto/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void plan_with(const btc_pipe_caps *c) {
  static const char *const names[] = {"a", "b", "c"};
  const btc_plan_model model = {.fingerprint = "m",
                                .block = c->block,
                                .blocks = c->blocks,
                                .slots = c->slots,
                                .fixed_bytes = c->fixed_bytes,
                                .ms_per_price = 1};
  btc_plan_member members[3];
  btc_plan plan;
  btc_error err;
  for (int i = 0; i < 3; i++) {
    members[i] = (btc_plan_member){.name = names[i], .fingerprint = "m", .site = c->site, .memory_bytes = c->memory_bytes};
    memcpy(members[i].ms, c->ms, sizeof c->ms);
  }
  const btc_plan_input in = {.model = &model, .models = 1, .member = members, .members = 3};
  if (btc_plan_make(&in, &plan, &err) != BTC_OK) return;
  for (int i = 0; i < plan.pipes; i++) {
    int at = 0;
    for (int k = 0; k < plan.pipe[i].stages; k++) {
      const btc_plan_stage *s = &plan.pipe[i].stage[k];
      if (s->first != at || s->last <= s->first || s->bytes > c->memory_bytes) abort();
      at = s->last;
    }
    if (at != c->blocks) abort();
  }
  btc_plan_free(&plan);
}

static void try_envelope(const uint8_t *data, size_t size) {
  Btc__Envelope *e;
  btc_error err;
  if (btc_wire_unpack(data, size, &e, &err) != BTC_OK) return;
  if (e->body_case == BTC__ENVELOPE__BODY_HELLO) {
    btc_pipe_caps *c = btc_pipe_caps_of(e->hello);
    if (c) plan_with(c);
    btc_pipe_caps_free(&c);
  }
  if (e->body_case == BTC__ENVELOPE__BODY_HEARTBEAT) {
    btc_pipe_caps c = {0};
    btc_pipe_caps_beat(&c, e->heartbeat->pipe);
    if (memchr(c.load.pipe, 0, sizeof c.load.pipe) == NULL || c.load.busy < 0 || c.load.busy > 1) abort();
  }
  btc_wire_free(&e);
}

static void try_plan(const uint8_t *data, size_t size) {
  static btc_pipe_plan plan, again;
  char *text = malloc(size + 1);
  if (!text) return;
  memcpy(text, data, size);
  text[size] = 0;
  if (btc_pipe_plan_read(text, &plan)) {
    char *written = btc_pipe_plan_text(&plan);
    if (written && (!btc_pipe_plan_read(written, &again) || again.pipe.stages != plan.pipe.stages)) abort();
    free(written);
  }
  free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  btc_log_set_level(BTC_LOG_ERROR + 1);
  if (size < 1) return 0;
  if (data[0] & 1)
    try_plan(data + 1, size - 1);
  else
    try_envelope(data + 1, size - 1);
  return 0;
}
