/* The driver's items and steps: see pipe.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pipe_parts.h"

pipe_options pipe_options_default(void) {
  return (pipe_options){.device = "cpu",
                        .batch = 4,
                        .max_tokens = 128,
                        .open_ms = 60000,
                        .form_ms = 10000,
                        .step_ms = 60000,
                        .wedge_ms = 3000,
                        .max_breaks = 6,
                        .fail_rank = -1};
}

int pipe_batch_slots(const pipe_driver *p) {
  return p->n_groups * p->o.batch;
}

/* ---- where to cut ---- */

btc_status pipe_even_cuts(const btc_model *m, int ranks, int *cuts, btc_error *err) {
  const int n = btc_block_count(m);
  const btc_load load = {.images = 2, .blocks = 1, .positions = m->block_tokens + 64, .pairs = m->change.layers >= 0};
  double total = 0, sum = 0;
  if (ranks < 1 || ranks > n || ranks > PIPE_MAX_RANKS)
    return btc_fail(err, BTC_ERR_ARG, "%d ranks for a model of %d blocks", ranks, n);
  for (int i = 0; i < n; i++) total += btc_block_flops(m, i, &load);
  cuts[0] = 0;
  for (int i = 0, r = 1; r < ranks; r++) {
    int most = n - (ranks - r);
    do sum += btc_block_flops(m, i++, &load);
    while (i < most && sum + 0.5 * btc_block_flops(m, i, &load) < total * r / ranks);
    cuts[r] = i;
  }
  cuts[ranks] = n;
  return BTC_OK;
}

/* ---- life ---- */

static btc_status check_options(const pipe_driver *p, const int *cuts, btc_error *err) {
  const pipe_options *o = &p->o;
  if (o->batch < 1 || o->batch > 256 || p->n_groups < 1 || p->n_groups > 256 || pipe_batch_slots(p) > 256)
    return btc_fail(err, BTC_ERR_ARG, "%d groups of %d items are more than 256 items", p->n_groups, o->batch);
  if (o->max_tokens < 1 || o->max_tokens > 65536)
    return btc_fail(err, BTC_ERR_ARG, "max tokens %d is not between 1 and 65536", o->max_tokens);
  bool good = cuts[0] == 0 && cuts[p->n_ranks] == btc_block_count(p->m);
  for (int r = 0; r < p->n_ranks; r++) good = good && cuts[r] < cuts[r + 1];
  return good ? BTC_OK
              : btc_fail(err, BTC_ERR_ARG, "the cuts do not divide %d blocks among %d ranks", btc_block_count(p->m), p->n_ranks);
}

static int processors(void) {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

static btc_status make_groups(pipe_driver *p, btc_error *err) {
  size_t batch = (size_t)p->o.batch;
  p->group = btc_alloc_zero((size_t)p->n_groups, sizeof *p->group);
  p->steps = btc_alloc_zero(batch, sizeof *p->steps);
  bool good = p->group && p->steps;
  for (int g = 0; good && g < p->n_groups; g++) {
    p->group[g].slot = btc_alloc(batch, sizeof(int));
    p->group[g].order = btc_alloc(batch, sizeof(int));
    good = p->group[g].slot && p->group[g].order;
    for (size_t i = 0; good && i < batch; i++) p->group[g].slot[i] = -1;
  }
  return good ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a pipeline");
}

static btc_status open_all(pipe_driver *p, const int *cuts, btc_error *err) {
  p->n_groups = p->o.groups ? p->o.groups : p->n_ranks + 1;
  btc_status st = btc_model_open(p->model_dir, &p->m, err);
  if (st == BTC_OK) st = check_options(p, cuts, err);
  if (st != BTC_OK) return st;
  btc_shard_drop_weights(p->m);
  p->precision = p->o.precision;
  if (p->precision == BTC_PRECISION_AUTO) p->precision = btc_cpu_has_bf16() ? BTC_PRECISION_BF16 : BTC_PRECISION_F32;
  if (!p->o.threads) p->o.threads = processors() > p->n_ranks ? processors() / p->n_ranks : 1;
  for (int r = 0; r < p->n_ranks; r++) {
    p->rank[r].first = cuts[r];
    p->rank[r].last = cuts[r + 1];
  }
  snprintf(p->describe, sizeof p->describe, "pipeline of %d ranks, %s, %d threads each, %s", p->n_ranks, p->o.device, p->o.threads,
           p->precision == BTC_PRECISION_BF16 ? "bf16" : "f32");
  st = make_groups(p, err);
  if (st == BTC_OK) st = btc_sampler_create(btc_tokenizer_vocab(p->m->tok), &p->sampler, err);
  if (st == BTC_OK) st = btc_link_listen("127.0.0.1", &p->listen_fd, &p->port, err);
  return st == BTC_OK ? pipe_form(p, err) : st;
}

btc_status pipe_create(const char *model, const int *cuts, int ranks, const pipe_options *o, pipe_driver **out, btc_error *err) {
  btc_error own;
  if (!err) err = &own;
  *out = NULL;
  if (ranks < 1 || ranks > PIPE_MAX_RANKS)
    return btc_fail(err, BTC_ERR_ARG, "%d ranks are not between 1 and %d", ranks, PIPE_MAX_RANKS);
  pipe_driver *p = btc_alloc_zero(1, sizeof *p);
  if (!p) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a pipeline");
  p->o = o ? *o : pipe_options_default();
  p->n_ranks = ranks;
  p->listen_fd = -1;
  for (int r = 0; r < PIPE_MAX_RANKS; r++) p->rank[r] = (pipe_rank){.control = -1, .pidfd = -1};
  p->model_dir = btc_strdup(model);
  btc_status st = p->model_dir ? open_all(p, cuts, err) : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  if (st != BTC_OK) pipe_destroy(&p);
  *out = p;
  return st;
}

void pipe_destroy(pipe_driver **pp) {
  pipe_driver *p = *pp;
  if (!p) return;
  btc_link_close(&p->in);
  btc_link_close(&p->out);
  for (int r = 0; r < p->n_ranks; r++) pipe_rank_end(&p->rank[r]);
  if (p->listen_fd >= 0) close(p->listen_fd);
  for (int g = 0; p->group && g < p->n_groups; g++) {
    free(p->group[g].slot);
    free(p->group[g].order);
  }
  free(p->group);
  free(p->steps);
  free(p->pixels);
  free(p->words);
  free(p->model_dir);
  btc_sampler_destroy(&p->sampler);
  btc_model_close(&p->m);
  free(p);
  *pp = NULL;
}

btc_model *pipe_model(pipe_driver *p) {
  return p->m;
}

btc_precision pipe_precision(const pipe_driver *p) {
  return p->precision;
}

const char *pipe_describe(const pipe_driver *p) {
  return p->describe;
}

pipe_state pipe_get_state(const pipe_driver *p) {
  pipe_state s = {.epoch = p->epoch, .ranks = p->n_ranks, .run_ms = p->run_ms, .breaks = p->breaks, .form_ms = p->form_ms};
  for (int r = 0; r < p->n_ranks; r++) {
    s.pid[r] = p->rank[r].pid;
    if (p->rank[r].page) s.busy_ms[r] = (double)p->rank[r].page->busy_ns * 1e-6;
  }
  snprintf(s.cause, sizeof s.cause, "%.*s", (int)sizeof s.cause - 1, p->cause.message);
  return s;
}

/* ---- steps out ---- */

static btc_status send_step(pipe_driver *p, shard_step *s, btc_error *err) {
  btc_link_part parts[3];
  btc_status st = shard_step_write(s, &p->words, &p->words_room, parts, err);
  if (st == BTC_OK) st = btc_link_queue(p->out, &(btc_link_head){.step = p->step + 1, .kind = (uint16_t)s->kind}, parts, 3, err);
  if (st == BTC_OK) p->step++;
  return st;
}

/* Room in all ranks for whatever this run may send. Nothing flies: what slots hold is lost when they grow. */
static btc_status reserve(pipe_driver *p, btc_error *err) {
  int64_t most = p->reserved, prompt = p->reserved_prompt;
  int images = p->reserved_images;
  for (size_t i = 0; i < p->n_items; i++) {
    const pipe_item *it = &p->items[i];
    if (it->q.done) continue;
    if (it->prompt_positions + it->q.max_tokens > most) most = it->prompt_positions + it->q.max_tokens;
    if (it->prompt_positions > prompt) prompt = it->prompt_positions;
    if (it->q.step.n_images > images) images = it->q.step.n_images;
  }
  if (most == p->reserved && prompt == p->reserved_prompt && images == p->reserved_images) return BTC_OK;
  p->reserved = most;
  p->reserved_prompt = prompt;
  p->reserved_images = images;
  /* what a full group of them needs at any cut; a video's many visual blocks fit its own positions */
  for (int i = 0; i < p->o.batch; i++) p->steps[i] = (btc_stage_item){.n_images = images, .positions = prompt, .slot = i};
  return send_step(p, &(shard_step){.kind = SHARD_RESERVE, .n = p->o.batch, .items = p->steps, .slot_positions = most}, err);
}

static btc_status load_images(pipe_driver *p, pipe_item *it, int64_t at, btc_error *err) {
  const btc_config *c = p->m->cfg;
  const btc_item *ask = it->q.item;
  const int64_t side = c->vision.image, image = 3 * side * side, need = (at + ask->n_images) * image;
  if (need > p->pixel_floats) {
    float *grown = btc_realloc(p->pixels, (size_t)need, sizeof *grown);
    if (!grown) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for %lld MB of pixels", (long long)(need >> 18));
    p->pixels = grown;
    p->pixel_floats = need;
  }
  btc_status st = BTC_OK;
  it->q.result->phase = BTC_PHASE_IMAGE;
  for (int i = 0; st == BTC_OK && i < ask->n_images; i++) {
    btc_image im = {0};
    if (p->o.progress) __atomic_add_fetch(p->o.progress, 1, __ATOMIC_RELAXED);
    st = btc_request_load(p->m, ask, i, &im, err);
    if (st == BTC_OK) btc_image_normalise(&im, c->pre.rescale, c->pre.mean, c->pre.std, p->pixels + (at + i) * image);
    btc_image_free(&im);
  }
  if (st == BTC_OK) it->q.result->phase = BTC_PHASE_MODEL;
  return st;
}

static void close_item(pipe_driver *p, pipe_item *it) {
  btc_request_finish(p->m, &it->q);
  btc_request_release(&it->q);
  p->done_items++;
  p->new_token = true;
}

/* Pixels of an item that is to be prefilled, and its answer when it is new. False: it has failed and is closed. */
static bool ready_item(pipe_driver *p, pipe_item *it, int64_t image_at) {
  btc_error e = {0};
  int64_t start = btc_now_ns();
  btc_status st = load_images(p, it, image_at, &e);
  if (st == BTC_OK && !it->opened) {
    st = btc_request_open(p->m, &it->q, &e);
    it->opened = st == BTC_OK;
  }
  it->q.result->timing.decode_ms += (double)(btc_now_ns() - start) * 1e-6;
  if (st == BTC_OK) return true;
  btc_request_fail(&it->q, st, &e);
  close_item(p, it);
  return false;
}

static int next_waiting(pipe_driver *p) {
  while (p->next_item < p->n_items && p->items[p->next_item].q.done) p->next_item++;
  return p->next_item < p->n_items ? (int)p->next_item++ : -1;
}

static int base_slot(const pipe_driver *p, const pipe_group *g) {
  return (int)(g - p->group) * p->o.batch;
}

static int live_slots(const pipe_driver *p, const pipe_group *g) {
  int n = 0;
  for (int i = 0; i < p->o.batch; i++) n += g->slot[i] >= 0;
  return n;
}

/* New items enter when half of the group's share is free: each entry costs those within a prefill. */
static void admit(pipe_driver *p, pipe_group *g) {
  int live = live_slots(p, g);
  if (2 * live > p->share) return;
  for (int i = 0; i < p->o.batch && live < p->share; i++) {
    if (g->slot[i] >= 0) continue;
    if ((g->slot[i] = next_waiting(p)) < 0) return;
    live++;
  }
}

/* Rows of the next prefill of the group: items that this epoch's ranks have not seen. */
static void gather_prefill(pipe_driver *p, pipe_group *g) {
  int64_t images = 0;
  g->rows = 0;
  for (int i = 0; i < p->o.batch; i++) {
    if (g->slot[i] < 0 || p->items[g->slot[i]].prefilled) continue;
    pipe_item *it = &p->items[g->slot[i]];
    if (!ready_item(p, it, images)) {
      g->slot[i] = -1;
      continue;
    }
    images += it->q.item->n_images;
    p->steps[g->rows] = it->q.step;
    p->steps[g->rows].past = 0;
    p->steps[g->rows].positions = it->prompt_positions;
    p->steps[g->rows].slot = base_slot(p, g) + i;
    g->order[g->rows++] = i;
  }
}

static void gather_decode(pipe_driver *p, pipe_group *g) {
  g->rows = 0;
  for (int i = 0; i < p->o.batch; i++) {
    if (g->slot[i] < 0) continue;
    const pipe_item *it = &p->items[g->slot[i]];
    p->steps[g->rows] = (btc_stage_item){.n_images = it->q.item->n_images,
                                         .positions = 1,
                                         .past = it->prompt_positions + it->fed,
                                         .token = it->q.answer[it->fed],
                                         .slot = base_slot(p, g) + i};
    g->order[g->rows++] = i;
  }
}

/* Sends the group's next step, if it has one. */
static btc_status advance(pipe_driver *p, pipe_group *g, btc_error *err) {
  shard_step s = {.items = p->steps};
  do {
    admit(p, g);
    gather_prefill(p, g);
  } while (!g->rows && !live_slots(p, g) && p->next_item < p->n_items); /* all that entered were bad */
  s.kind = SHARD_PREFILL;
  if (g->rows) {
    s.flow = p->pixels;
    s.flow_floats = btc_flow_floats(p->m, 0, p->steps, g->rows, false);
  } else {
    gather_decode(p, g);
    s.kind = SHARD_DECODE;
  }
  if (!g->rows) return BTC_OK;
  s.n = g->rows;
  btc_status st = send_step(p, &s, err);
  g->flying = true;
  g->kind = s.kind;
  g->step = p->step;
  g->sent_ns = btc_now_ns();
  return st;
}

/* ---- logits in ---- */

static void take_row(pipe_driver *p, pipe_group *g, int row, const float *logits) {
  int slot = g->order[row];
  pipe_item *it = &p->items[g->slot[slot]];
  btc_error e = {0};
  if (g->kind == SHARD_DECODE) it->fed++;
  if (it->fed < it->q.result->n_ids) return; /* a token that the journal already has */
  btc_status st = btc_request_take(p->m, p->sampler, &it->q, logits, NULL, 0, &e);
  if (st != BTC_OK) btc_request_fail(&it->q, st, &e);
  p->new_token = true;
  if (!it->q.done) return;
  g->slot[slot] = -1;
  close_item(p, it);
}

static btc_status take_logits(pipe_driver *p, pipe_group *g, const uint8_t *data, size_t bytes, btc_error *err) {
  shard_step s;
  const int64_t tokens = p->m->tokens, vocab = p->m->cfg->llm.vocab;
  btc_status st = shard_step_read(p->m, btc_block_count(p->m), (uint16_t)g->kind, data, bytes, p->steps, p->o.batch, &s, err);
  if (st != BTC_OK) return st;
  const float *maps = s.cosine;
  double ms = (double)(btc_now_ns() - g->sent_ns) * 1e-6;
  if (s.n != g->rows) return btc_fail(err, BTC_ERR_FORMAT, "%d rows came back from a step of %d", s.n, g->rows);
  p->usual_ms = p->usual_ms > 0 ? 0.9 * p->usual_ms + 0.1 * ms : ms;
  g->flying = false;
  for (int k = 0; k < g->rows; k++) {
    pipe_item *it = &p->items[g->slot[g->order[k]]];
    btc_timing *t = &it->q.result->timing;
    *(g->kind == SHARD_PREFILL ? &t->prefill_ms : &t->generate_ms) += ms / g->rows;
    if (g->kind == SHARD_PREFILL) {
      it->prefilled = true;
      it->fed = 0;
      if (it->q.item->n_images == 2) {
        if (!maps) return btc_fail(err, BTC_ERR_FORMAT, "a step came back without change maps");
        memcpy(it->q.result->cosine, maps, (size_t)tokens * sizeof *maps);
        maps += tokens;
      }
    }
    take_row(p, g, k, s.flow + k * vocab);
  }
  return BTC_OK;
}

static btc_status take_frames(pipe_driver *p, btc_error *err) {
  for (;;) {
    btc_link_head h;
    const uint8_t *data;
    size_t bytes;
    btc_status st = btc_link_take(p->in, &h, &data, &bytes, err);
    if (st != BTC_OK || !data) return st;
    if (h.kind == SHARD_RESERVE) continue;
    pipe_group *g = NULL;
    for (int i = 0; i < p->n_groups; i++)
      if (p->group[i].flying && p->group[i].step == h.step && p->group[i].kind == (shard_step_kind)h.kind) g = &p->group[i];
    if (!g) return btc_fail(err, BTC_ERR_FORMAT, "step %llu came back, but was not sent", (unsigned long long)h.step);
    if ((st = take_logits(p, g, data, bytes, err)) != BTC_OK) return st;
  }
}

/* ---- the loop ---- */

static void wait_events(pipe_driver *p) {
  struct pollfd f[2 + 2 * PIPE_MAX_RANKS];
  int n = 0;
  f[n++] = (struct pollfd){.fd = btc_link_fd(p->in), .events = POLLIN};
  f[n++] = (struct pollfd){.fd = btc_link_flushed(p->out) ? -1 : btc_link_fd(p->out), .events = POLLOUT};
  for (int r = 0; r < p->n_ranks; r++) {
    f[n++] = (struct pollfd){.fd = p->rank[r].control, .events = POLLIN};
    f[n++] = (struct pollfd){.fd = p->rank[r].pidfd, .events = POLLIN};
  }
  poll(f, (nfds_t)n, 20);
}

static btc_status check_deadlines(pipe_driver *p, btc_error *err) {
  double most = 8 * p->usual_ms;
  if (most < p->o.step_ms) most = p->o.step_ms;
  for (int i = 0; i < p->n_groups; i++)
    if (p->group[i].flying && (double)(btc_now_ns() - p->group[i].sent_ns) * 1e-6 > most)
      return btc_fail(err, BTC_ERR_IO, "step %llu did not come back within %.0f ms", (unsigned long long)p->group[i].step, most);
  return BTC_OK;
}

/* One turn: whatever can be sent, done and taken now. An error ends the epoch. */
static btc_status turn(pipe_driver *p, btc_error *err) {
  btc_status st = BTC_OK;
  for (int i = 0; st == BTC_OK && i < p->n_groups; i++) {
    if (p->group[i].flying) continue;
    st = advance(p, &p->group[i], err);
    if (st == BTC_OK) st = btc_link_flush(p->out, err);
  }
  if (st != BTC_OK || p->done_items == p->n_items) return st;
  wait_events(p);
  st = btc_link_flush(p->out, err);
  if (st == BTC_OK) st = take_frames(p, err);
  if (st == BTC_OK) st = check_deadlines(p, err);
  pipe_has_fault(p);
  return st;
}

/* The ranks know nothing any more; the journal does. */
static void rewind_items(pipe_driver *p) {
  for (int i = 0; i < p->n_groups; i++) p->group[i].flying = false;
  for (size_t i = 0; i < p->n_items; i++) p->items[i].prefilled = false;
}

static btc_status recover(pipe_driver *p, int *futile, btc_error *err) {
  p->breaks++;
  *futile = p->new_token ? 1 : *futile + 1;
  p->new_token = false;
  rewind_items(p);
  pipe_wait_for_death(p);
  if (*futile > p->o.max_breaks)
    return btc_fail(err, p->cause.code, "the pipeline broke %d times without a new token, last: %s", *futile, p->cause.message);
  return pipe_form(p, err);
}

static btc_status run_items(pipe_driver *p, btc_error *err) {
  int futile = 0;
  while (p->done_items < p->n_items) {
    if (p->o.cancel && *p->o.cancel) {
      pipe_break(p, BTC_ERR_CANCELLED, "stopped on request"); /* steps that fly belong to nobody now */
      return btc_fail(err, BTC_ERR_CANCELLED, "stopped on request");
    }
    btc_status st = p->fault ? BTC_OK : reserve(p, err);
    if (!p->fault && st == BTC_OK) st = turn(p, err);
    if (st != BTC_OK) pipe_break(p, st, "%s", err->message);
    if (p->fault && p->done_items < p->n_items && (st = recover(p, &futile, err)) != BTC_OK) return st;
  }
  return BTC_OK;
}

/* Prompts of all items: what is wrong with them, and how long they are. */
static void read_items(pipe_driver *p, const btc_item *items, btc_result *results) {
  for (size_t i = 0; i < p->n_items; i++) {
    pipe_item *it = &p->items[i];
    btc_error e = {0};
    it->q = (btc_request){.item = &items[i], .result = &results[i]};
    btc_status st = btc_request_read(p->m, &it->q, p->o.max_tokens, &e);
    it->prompt_positions = it->q.step.positions;
    if (st == BTC_OK) continue;
    btc_request_fail(&it->q, st, &e);
    close_item(p, it);
  }
}

btc_status pipe_run(pipe_driver *p, const btc_item *items, size_t n, btc_result *results, btc_error *err) {
  btc_error own;
  if (!err) err = &own;
  int64_t start = btc_now_ns();
  memset(results, 0, n * sizeof *results);
  p->items = n ? btc_alloc_zero(n, sizeof *p->items) : NULL;
  p->n_items = n;
  p->next_item = p->done_items = 0;
  btc_status st = n && !p->items ? btc_fail(err, BTC_ERR_NOMEM, "not enough memory for %zu items", n) : BTC_OK;
  if (st == BTC_OK && p->items) {
    size_t share = (n + (size_t)p->n_groups - 1) / (size_t)p->n_groups;
    p->share = share < (size_t)p->o.batch ? (int)share : p->o.batch;
    read_items(p, items, results);
    st = run_items(p, err);
  }
  for (size_t i = 0; i < n; i++) {
    if (p->items && p->items[i].q.done) continue;
    results[i].status = st;
    results[i].error = *err;
    if (p->items) btc_request_release(&p->items[i].q);
  }
  for (int g = 0; g < p->n_groups; g++)
    for (int i = 0; i < p->o.batch; i++) p->group[g].slot[i] = -1;
  free(p->items);
  p->items = NULL;
  p->n_items = 0;
  p->run_ms += (double)(btc_now_ns() - start) * 1e-6;
  return st;
}

btc_status pipe_check(pipe_driver *p, btc_error *err) {
  pipe_watch(p);
  if (!p->fault) return BTC_OK;
  p->breaks++;
  rewind_items(p);
  pipe_wait_for_death(p);
  return pipe_form(p, err);
}
