/* Steps that come back. */
#include <string.h>

#include "pipe_parts.h"

static double ms_since(int64_t start) {
  return (double)(btc_now_ns() - start) * 1e-6;
}

static void took(pipe_driver *p, double ms) {
  p->usual_ms = p->usual_ms > 0 ? 0.9 * p->usual_ms + 0.1 * ms : ms;
}

/* The next row of a step that came back: a pick, or the logits at *drawn, which then moves on. */
static btc_status take_row(pipe_driver *p, pipe_job *j, const shard_step *s, int k, const float **drawn, btc_error *err) {
  btc_error e = {0};
  const float *logits = *drawn;
  const bool greedy = s->items[k].greedy;
  if (greedy != j->q.step.greedy)
    return btc_fail(err, BTC_ERR_FORMAT, "row %d came back %s logits", k, greedy ? "without" : "with");
  if (!greedy) *drawn += p->m->cfg->llm.vocab;
  if (j->fed < j->q.result->n_ids) return BTC_OK; /* a token that the journal already has */
  btc_status st = btc_request_take(p->m, p->sampler, &j->q, logits, &s->picks[k], NULL, 0, &e);
  if (st != BTC_OK) btc_request_fail(&j->q, st, &e);
  p->new_token = true;
  if (j->q.done) pipe_answer(p, j);
  return BTC_OK;
}

static btc_status take_rows(pipe_driver *p, pipe_group *g, const uint8_t *data, size_t bytes, btc_error *err) {
  shard_step s;
  const double ms = ms_since(g->sent_ns);
  btc_status st = shard_step_read(p->m, btc_block_count(p->m), SHARD_DECODE, data, bytes, p->steps, p->o.slots, &s, err);
  if (st != BTC_OK) return st;
  if (s.n != g->rows) return btc_fail(err, BTC_ERR_FORMAT, "%d rows came back from a step of %d", s.n, g->rows);
  took(p, ms);
  g->flying = false;
  p->n_rows += s.n;
  p->n_row_bytes += (int64_t)bytes;
  const float *drawn = s.flow;
  for (int k = 0; k < g->rows && st == BTC_OK; k++) {
    pipe_job *j = g->row[k];
    j->result.timing.generate_ms += ms / g->rows;
    j->fed++;
    st = take_row(p, j, &s, k, &drawn, err);
  }
  return st;
}

/* Change maps come with a prompt's first chunk, logits with its last. */
static btc_status take_chunk(pipe_driver *p, pipe_chunk *c, const uint8_t *data, size_t bytes, btc_error *err) {
  shard_step s;
  pipe_job *j = c->job;
  btc_status st = shard_step_read(p->m, btc_block_count(p->m), SHARD_PREFILL, data, bytes, p->steps, p->o.slots, &s, err);
  if (st != BTC_OK) return st;
  if (s.n != 1) return btc_fail(err, BTC_ERR_FORMAT, "%d rows came back from a chunk of a prompt", s.n);
  took(p, ms_since(c->sent_ns));
  c->flying = false;
  if (!s.chunk && j->n_read == 2) {
    if (!s.cosine) return btc_fail(err, BTC_ERR_FORMAT, "a step came back without change maps");
    memcpy(j->result.cosine, s.cosine, (size_t)p->m->tokens * sizeof *s.cosine);
  }
  if (s.items[0].past + s.items[0].positions < j->end) return BTC_OK;
  if (!s.n_picks) return btc_fail(err, BTC_ERR_FORMAT, "a prompt came back without a pick");
  j->result.timing.prefill_ms += ms_since(j->sent_ns);
  j->prefilled = true;
  j->fed = 0;
  return take_row(p, j, &s, 0, &(const float *){s.flow}, err);
}

static void take_encode(pipe_driver *p, pipe_encode *e) {
  const double ms = ms_since(e->sent_ns) / e->n;
  e->flying = false;
  p->n_encoded += e->n;
  pthread_mutex_lock(&p->lock);
  for (int i = 0; i < e->n; i++) {
    p->pictures[e->place[i]].state = PICTURE_READY;
    if (e->job[i]->order == e->order[i]) e->job[i]->result.timing.vision_ms += ms;
  }
  pthread_cond_signal(&p->to_read);
  pthread_mutex_unlock(&p->lock);
}

static btc_status take_frame(pipe_driver *p, const btc_link_head *h, const uint8_t *data, size_t bytes, btc_error *err) {
  if (h->kind == SHARD_RESERVE || h->kind == SHARD_PREPARE) return BTC_OK;
  for (int i = 0; i < PIPE_ENCODES && h->kind == SHARD_ENCODE; i++) {
    if (!p->encode[i].flying || p->encode[i].step != h->step) continue;
    take_encode(p, &p->encode[i]);
    return BTC_OK;
  }
  if (h->kind == SHARD_PREFILL && p->beginning_flies && h->step == p->beginning) {
    p->beginning_flies = false;
    return BTC_OK;
  }
  for (int i = 0; i < PIPE_CHUNKS && h->kind == SHARD_PREFILL; i++)
    if (p->chunk[i].flying && p->chunk[i].step == h->step) return take_chunk(p, &p->chunk[i], data, bytes, err);
  for (int i = 0; i < p->n_groups && h->kind == SHARD_DECODE; i++)
    if (p->group[i].flying && p->group[i].step == h->step) return take_rows(p, &p->group[i], data, bytes, err);
  return btc_fail(err, BTC_ERR_FORMAT, "step %llu came back, but was not sent", (unsigned long long)h->step);
}

btc_status pipe_take_frames(pipe_driver *p, btc_error *err) {
  for (;;) {
    btc_link_head h;
    const uint8_t *data;
    size_t bytes;
    btc_status st = btc_link_take(p->in, &h, &data, &bytes, err);
    if (st != BTC_OK || !data) return st;
    if ((st = take_frame(p, &h, data, bytes, err)) != BTC_OK) return st;
  }
}

static btc_status late(const char *what, uint64_t step, double ms, btc_error *err) {
  return btc_fail(err, BTC_ERR_IO, "%s %llu did not come back within %.0f ms", what, (unsigned long long)step, ms);
}

btc_status pipe_check_deadlines(const pipe_driver *p, btc_error *err) {
  double most = 8 * p->usual_ms;
  if (most < p->o.step_ms) most = p->o.step_ms;
  for (int i = 0; i < p->n_groups; i++)
    if (p->group[i].flying && ms_since(p->group[i].sent_ns) > most) return late("step", p->group[i].step, most, err);
  for (int i = 0; i < PIPE_CHUNKS; i++)
    if (p->chunk[i].flying && ms_since(p->chunk[i].sent_ns) > most) return late("prompt", p->chunk[i].step, most, err);
  for (int i = 0; i < PIPE_ENCODES; i++)
    if (p->encode[i].flying && ms_since(p->encode[i].sent_ns) > most) return late("images", p->encode[i].step, most, err);
  return BTC_OK;
}
