/* Steps that come back. */
#include <string.h>

#include "pipe_parts.h"

static double ms_since(int64_t start) {
  return (double)(btc_now_ns() - start) * 1e-6;
}

static void take_row(pipe_driver *p, const pipe_group *g, pipe_job *j, const float *logits) {
  btc_error e = {0};
  if (g->kind == SHARD_DECODE) j->fed++;
  if (j->fed < j->q.result->n_ids) return; /* a token that the journal already has */
  btc_status st = btc_request_take(p->m, p->sampler, &j->q, logits, NULL, NULL, 0, &e);
  if (st != BTC_OK) btc_request_fail(&j->q, st, &e);
  p->new_token = true;
  if (j->q.done) pipe_answer(p, j);
}

static btc_status take_logits(pipe_driver *p, pipe_group *g, const uint8_t *data, size_t bytes, btc_error *err) {
  shard_step s;
  const int64_t tokens = p->m->tokens, vocab = p->m->cfg->llm.vocab;
  const double ms = ms_since(g->sent_ns);
  btc_status st = shard_step_read(p->m, btc_block_count(p->m), (uint16_t)g->kind, data, bytes, p->steps, p->o.slots, &s, err);
  if (st != BTC_OK) return st;
  if (s.n != g->rows) return btc_fail(err, BTC_ERR_FORMAT, "%d rows came back from a step of %d", s.n, g->rows);
  p->usual_ms = p->usual_ms > 0 ? 0.9 * p->usual_ms + 0.1 * ms : ms;
  g->flying = false;
  for (int k = 0; k < g->rows; k++) {
    pipe_job *j = g->row[k];
    btc_timing *t = &j->result.timing;
    *(g->kind == SHARD_PREFILL ? &t->prefill_ms : &t->generate_ms) += ms / g->rows;
    if (g->kind == SHARD_PREFILL) {
      j->prefilled = true;
      j->fed = 0;
      if (j->n_read == 2) {
        if (!s.cosine) return btc_fail(err, BTC_ERR_FORMAT, "a step came back without change maps");
        memcpy(j->result.cosine, s.cosine, (size_t)tokens * sizeof *s.cosine);
      }
    }
    take_row(p, g, j, s.flow + k * vocab);
  }
  return BTC_OK;
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
  for (int i = 0; i < p->n_groups; i++) {
    pipe_group *g = &p->group[i];
    if (g->flying && g->step == h->step && g->kind == (shard_step_kind)h->kind) return take_logits(p, g, data, bytes, err);
  }
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

btc_status pipe_check_deadlines(const pipe_driver *p, btc_error *err) {
  double most = 8 * p->usual_ms;
  if (most < p->o.step_ms) most = p->o.step_ms;
  for (int i = 0; i < p->n_groups; i++)
    if (p->group[i].flying && ms_since(p->group[i].sent_ns) > most)
      return btc_fail(err, BTC_ERR_IO, "step %llu did not come back within %.0f ms", (unsigned long long)p->group[i].step, most);
  for (int i = 0; i < PIPE_ENCODES; i++)
    if (p->encode[i].flying && ms_since(p->encode[i].sent_ns) > most)
      return btc_fail(err, BTC_ERR_IO, "images %llu did not come back within %.0f ms", (unsigned long long)p->encode[i].step, most);
  return BTC_OK;
}
