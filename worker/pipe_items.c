/* The driver's items and turns: see pipe.h. */
#define _GNU_SOURCE
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pipe_parts.h"

enum { WAIT_MS = 20 };

int pipe_open(const pipe_driver *p) {
  return p->open;
}

int pipe_room(const pipe_driver *p) {
  return p->n_jobs - p->open;
}

int pipe_wake_fd(const pipe_driver *p) {
  return p->control;
}

int pipe_places(const pipe_driver *p) {
  return p->n_pictures;
}

bool pipe_is_failing(const pipe_driver *p) {
  return p->failing;
}

btc_status pipe_submit(pipe_driver *p, const btc_item *item, void *tag, btc_error *err) {
  if (p->open == p->n_jobs) return btc_fail(err, BTC_ERR_LIMIT, "%d items are open, which is all that fit", p->open);
  pthread_mutex_lock(&p->lock);
  pipe_job *j = pipe_first(p, PIPE_FREE, 0);
  *j = (pipe_job){.state = PIPE_WAITING, .order = ++p->arrivals, .tag = tag};
  j->q = (btc_request){.item = item, .result = &j->result};
  p->open++;
  p->n_images += item->n_images;
  pthread_cond_signal(&p->to_read);
  pthread_mutex_unlock(&p->lock);
  return BTC_OK;
}

/* ---- answers ---- */

void pipe_answer(pipe_driver *p, pipe_job *j) {
  btc_request_finish(p->m, &j->q);
  btc_request_release(&j->q);
  pthread_mutex_lock(&p->lock);
  if (j->state == PIPE_LIVE) {
    p->slot[j->q.step.slot] = NULL;
    p->live--;
  }
  pipe_drop_pictures(p, j);
  free(j->place);
  btc_result r = j->result;
  void *tag = j->tag;
  *j = (pipe_job){.state = PIPE_FREE};
  p->open--;
  pthread_cond_signal(&p->to_read);
  pthread_mutex_unlock(&p->lock);
  p->o.done(p->o.ctx, tag, &r);
}

/* Items that cannot be read are over before the ranks see them. */
static void answer_failed(pipe_driver *p) {
  for (;;) {
    pthread_mutex_lock(&p->lock);
    pipe_job *j = pipe_first(p, PIPE_FAILED, 0);
    pthread_mutex_unlock(&p->lock);
    if (!j) return;
    p->new_token = true;
    pipe_answer(p, j);
  }
}

static pipe_job *earliest_open(pipe_driver *p) {
  pipe_job *first = NULL;
  for (int i = 0; i < p->n_jobs; i++)
    if (p->jobs[i].state != PIPE_FREE && (!first || p->jobs[i].order < first->order)) first = &p->jobs[i];
  return first;
}

/* Nothing stays behind. What is being read is waited for: files of items are local or fail in time. */
static btc_status answer_all(pipe_driver *p, btc_status st, const btc_error *err) {
  for (;;) {
    pthread_mutex_lock(&p->lock);
    pipe_job *j = earliest_open(p);
    bool failed = j && j->state == PIPE_FAILED, reading = j && j->state == PIPE_READING;
    if (j && j->state == PIPE_WAITING) j->state = PIPE_READ; /* out of the reading thread's sight */
    pthread_mutex_unlock(&p->lock);
    if (!j) return st;
    if (reading) {
      struct pollfd bell = {.fd = p->bell, .events = POLLIN};
      uint64_t rings;
      if (poll(&bell, 1, WAIT_MS) > 0 && read(p->bell, &rings, sizeof rings) < 0) continue;
      continue;
    }
    if (!failed) btc_request_fail(&j->q, st, err);
    p->failing = !failed;
    pipe_answer(p, j);
    p->failing = false;
  }
}

/* ---- a turn ---- */

static void wait_events(pipe_driver *p) {
  struct pollfd f[5 + 2 * PIPE_MAX_RANKS];
  uint64_t rings;
  int n = 0;
  f[n++] = (struct pollfd){.fd = p->bell, .events = POLLIN};
  f[n++] = (struct pollfd){.fd = p->control, .events = POLLIN};
  f[n++] = (struct pollfd){.fd = p->in ? btc_link_fd(p->in) : -1, .events = POLLIN};
  f[n++] = (struct pollfd){.fd = !p->out || btc_link_flushed(p->out) ? -1 : btc_link_fd(p->out), .events = POLLOUT};
  f[n++] = (struct pollfd){.fd = !p->side || btc_link_flushed(p->side) ? -1 : btc_link_fd(p->side), .events = POLLOUT};
  for (int r = 0; r < p->n_ranks && !p->remote; r++) {
    f[n++] = (struct pollfd){.fd = p->rank[r].process.control, .events = POLLIN};
    f[n++] = (struct pollfd){.fd = p->rank[r].process.pidfd, .events = POLLIN};
  }
  if (poll(f, (nfds_t)n, WAIT_MS) > 0 && f[0].revents && read(p->bell, &rings, sizeof rings) < 0) return;
}

/* Whatever can be sent, done and taken now. An error ends the epoch. */
static btc_status turn(pipe_driver *p, btc_error *err) {
  btc_status st = pipe_send_steps(p, err);
  if (st != BTC_OK || !p->open) return st;
  wait_events(p);
  st = btc_link_flush(p->out, err);
  if (st == BTC_OK && p->side) st = btc_link_flush(p->side, err);
  if (st == BTC_OK) st = pipe_take_frames(p, err);
  if (st == BTC_OK) st = pipe_check_deadlines(p, err);
  pipe_has_fault(p);
  return st;
}

void pipe_forget_prompt(pipe_job *j) {
  j->prefilled = false;
  j->sent = 0;
  j->chunks = 0;
}

void pipe_start_epoch(pipe_driver *p) {
  p->formed = p->beginning_flies = p->reserved = false;
  p->step[0] = p->step[1] = 0;
  for (int g = 0; g < p->n_groups; g++) p->group[g].flying = false;
  for (int i = 0; i < PIPE_ENCODES; i++) p->encode[i].flying = false;
  for (int i = 0; i < PIPE_CHUNKS; i++) p->chunk[i].flying = false;
  p->filling = NULL;
  for (int i = 0; i < p->o.slots; i++)
    if (p->slot[i]) pipe_forget_prompt(p->slot[i]);
  pthread_mutex_lock(&p->lock);
  for (int i = 0; i < p->n_pictures; i++)
    if (p->pictures[i].state > PICTURE_THERE) p->pictures[i].state = PICTURE_THERE;
  pthread_cond_signal(&p->to_read);
  pthread_mutex_unlock(&p->lock);
}

/* The epoch is over. Counts it, unless the ranks were not asked for anything. */
static btc_status mourn(pipe_driver *p, btc_error *err) {
  bool was_formed = p->formed;
  pipe_start_epoch(p);
  if (!was_formed) return BTC_OK;
  p->breaks++;
  if (!p->open) return BTC_OK;
  if (p->cause.code == BTC_ERR_NOMEM && !p->remote) return pipe_shrink(p, &p->cause, err);
  p->futile = p->new_token ? 1 : p->futile + 1;
  p->new_token = false;
  if (p->futile <= p->o.max_breaks) return BTC_OK;
  p->futile = 0;
  return btc_fail(err, p->cause.code, "the pipeline broke %d times without a new token, last: %s", p->o.max_breaks + 1,
                  p->cause.message);
}

/* A whole epoch, as far as it is ours to make. *idle: an agent has not ordered one. */
static btc_status make_whole(pipe_driver *p, bool *idle, btc_error *err) {
  btc_status st = BTC_OK;
  *idle = false;
  if (!p->remote) pipe_wait_for_death(p);
  if (p->fault && p->formed) st = mourn(p, err);
  if (st != BTC_OK) return st;
  if (p->remote) return pipe_remote_form(p, idle, err);
  return p->fault || !p->formed ? pipe_form(p, err) : BTC_OK;
}

static btc_status step(pipe_driver *p, btc_error *err) {
  bool idle;
  answer_failed(p);
  if (p->o.cancel && *p->o.cancel) {
    pipe_break(p, BTC_ERR_CANCELLED, "stopped on request"); /* steps that fly belong to nobody now */
    return btc_fail(err, BTC_ERR_CANCELLED, "stopped on request");
  }
  if (p->remote) pipe_remote_watch(p);
  if (p->dropped) {
    p->dropped = false;
    return btc_fail(err, BTC_ERR_CANCELLED, "the pipe is driven by another worker now");
  }
  btc_status st = !p->formed || p->fault ? make_whole(p, &idle, err) : BTC_OK;
  if (st != BTC_OK) return st;
  if (!p->formed) {
    if (p->open) wait_events(p);
    return BTC_OK;
  }
  st = turn(p, err);
  if (st != BTC_OK) pipe_break(p, st, "%s", err->message);
  return BTC_OK;
}

btc_status pipe_step(pipe_driver *p, btc_error *err) {
  btc_error own;
  if (!err) err = &own;
  int64_t start = btc_now_ns();
  bool open = p->open > 0;
  btc_status st = step(p, err);
  if (open) p->run_ms += (double)(btc_now_ns() - start) * 1e-6;
  return st == BTC_OK ? st : answer_all(p, st, err);
}

btc_status pipe_check(pipe_driver *p, btc_error *err) {
  bool idle;
  pipe_watch(p);
  return p->fault || !p->formed ? make_whole(p, &idle, err) : BTC_OK;
}

/* ---- a run ---- */

static void keep_result(void *ctx, void *tag, btc_result *r) {
  (void)ctx;
  *(btc_result *)tag = *r;
}

btc_status pipe_run(pipe_driver *p, const btc_item *items, size_t n, btc_result *results, btc_error *err) {
  btc_error own = {0};
  const pipe_options before = p->o;
  size_t next = 0;
  btc_status st = BTC_OK;
  if (!err) err = &own;
  *err = own;
  memset(results, 0, n * sizeof *results);
  p->o.done = keep_result;
  while (st == BTC_OK && (next < n || p->open)) {
    while (st == BTC_OK && next < n && pipe_room(p)) {
      st = pipe_submit(p, &items[next], &results[next], err);
      next += st == BTC_OK;
    }
    if (st == BTC_OK) st = pipe_step(p, err);
  }
  for (; st != BTC_OK && next < n; next++) {
    results[next].status = st;
    results[next].error = *err;
  }
  p->o.done = before.done;
  return st;
}
