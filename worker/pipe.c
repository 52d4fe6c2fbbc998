/* The driver's life and its items: see pipe.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine/prompt.h"
#include "pipe_parts.h"

enum { AHEAD = 8, CHUNK = 128, GPU_CHUNK = 2048 };

pipe_options pipe_options_default(void) {
  return (pipe_options){.device = "cpu",
                        .slots = 16,
                        .max_tokens = 128,
                        .open_ms = 60000,
                        .form_ms = 10000,
                        .step_ms = 600000,
                        .wedge_ms = 3000,
                        .max_breaks = 6,
                        .fail_rank = -1};
}

bool pipe_tensors_named(const char *name, pipe_tensors *out) {
  *out = PIPE_TENSORS_AUTO;
  if (!name || !strcmp(name, "auto")) return true;
  *out = !strcmp(name, "tcp") ? PIPE_TENSORS_TCP : PIPE_TENSORS_NCCL;
  return *out == PIPE_TENSORS_TCP || !strcmp(name, "nccl");
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

static btc_status check_options(const pipe_options *o, btc_error *err) {
  if (o->slots < 1 || o->slots > 256 || o->groups < 0 || o->ahead < 0 || o->ahead > 256 || o->chunk < 0)
    return btc_fail(err, BTC_ERR_ARG, "%d slots in %d groups, %d ahead: 1 to 256 can be; chunks of %d positions", o->slots,
                    o->groups, o->ahead, o->chunk);
  if (o->max_tokens < 1 || o->max_tokens > 65536)
    return btc_fail(err, BTC_ERR_ARG, "max tokens %d is not between 1 and 65536", o->max_tokens);
  return BTC_OK;
}

static btc_status check_cuts(const btc_model *m, const int *cuts, int ranks, btc_error *err) {
  bool good = cuts[0] == 0 && cuts[ranks] == btc_block_count(m);
  for (int r = 0; r < ranks; r++) good = good && cuts[r] < cuts[r + 1];
  return good ? BTC_OK : btc_fail(err, BTC_ERR_ARG, "the cuts do not divide %d blocks among %d ranks", btc_block_count(m), ranks);
}

static int processors(void) {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

btc_status pipe_make_groups(pipe_driver *p, int ranks, btc_error *err) {
  int n = p->o.groups ? p->o.groups : ranks + 1;
  if (n > p->slots) n = p->slots;
  for (int g = 0; g < p->n_groups; g++) free(p->group[g].row);
  free(p->group);
  p->n_groups = 0;
  if (!(p->group = btc_alloc_zero((size_t)n, sizeof *p->group)))
    return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a pipeline");
  for (; p->n_groups < n; p->n_groups++)
    if (!(p->group[p->n_groups].row = btc_alloc_zero((size_t)p->o.slots, sizeof(pipe_job *))))
      return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a pipeline");
  return BTC_OK;
}

static btc_status make_tables(pipe_driver *p, btc_error *err) {
  const size_t slots = (size_t)p->o.slots;
  const int64_t frames = p->m->cfg->num_video_frames;
  p->n_jobs = p->o.slots + p->o.ahead;
  p->n_pictures = 2 * p->n_jobs + 8;
  if (p->n_pictures < 2 * frames) p->n_pictures = (int)(2 * frames);
  if (p->n_pictures > SHARD_MAX_PLACES)
    return btc_fail(err, BTC_ERR_UNSUPPORTED, "a model that takes %lld frames", (long long)frames);
  p->jobs = btc_alloc_zero((size_t)p->n_jobs, sizeof *p->jobs);
  p->pictures = btc_alloc_zero((size_t)p->n_pictures, sizeof *p->pictures);
  p->places = btc_alloc((size_t)p->n_pictures, sizeof *p->places);
  p->slot = btc_alloc_zero(slots, sizeof(pipe_job *));
  p->steps = btc_alloc_zero(slots, sizeof *p->steps);
  if (!p->jobs || !p->pictures || !p->places || !p->slot || !p->steps)
    return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a pipeline");
  p->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return p->bell >= 0 ? BTC_OK : btc_fail(err, BTC_ERR_IO, "cannot make an event: %s", strerror(errno));
}

/* The ids before the first image are the same in every prompt; a caption tells how long prompts usually are. */
static btc_status make_prefix(pipe_driver *p, btc_error *err) {
  char *text = NULL;
  size_t n = 0;
  btc_status st = btc_prompt_question(btc_prompt_caption, 1, &text, err);
  if (st == BTC_OK) st = btc_prompt_encode(p->m->tok, text, &p->prefix, &n, err);
  free(text);
  if (st != BTC_OK) return st;
  while (p->n_prefix < (int64_t)n && p->prefix[p->n_prefix] != BTC_IMAGE_ID) p->n_prefix++;
  const int64_t context = p->m->cfg->llm.context, usual = (int64_t)n - 1 + p->m->block_tokens + p->o.max_tokens;
  if (p->n_prefix >= context) p->n_prefix = 0;
  p->usual_positions = usual < context ? usual : context;
  return BTC_OK;
}

/* Everything but ranks. */
static btc_status open_driver(pipe_driver *p, btc_error *err) {
  btc_status st = check_options(&p->o, err);
  if (st == BTC_OK) st = btc_model_open(p->model_dir, &p->m, err);
  if (st != BTC_OK) return st;
  btc_shard_drop_weights(p->m);
  if (!p->o.chunk) p->o.chunk = strncmp(p->o.device, "cuda", 4) == 0 ? GPU_CHUNK : CHUNK;
  if (!p->o.ahead) p->o.ahead = p->o.slots < AHEAD ? p->o.slots : AHEAD;
  p->precision = p->o.precision;
  if (p->precision == BTC_PRECISION_AUTO) p->precision = btc_device_has_bf16(p->o.device) ? BTC_PRECISION_BF16 : BTC_PRECISION_F32;
  st = make_tables(p, err);
  if (st == BTC_OK) st = make_prefix(p, err);
  if (st == BTC_OK) st = btc_sampler_create(btc_tokenizer_vocab(p->m->tok), &p->sampler, err);
  return st == BTC_OK ? pipe_reader_start(p, err) : st;
}

static void describe(pipe_driver *p) {
  const bool bf16 = p->precision == BTC_PRECISION_BF16;
  char tensors[64] = "";
  const int v = p->rank[0].process.nccl;
  if (p->nccl) snprintf(tensors, sizeof tensors, ", tensors by NCCL %d.%d.%d", v / 10000, v / 100 % 100, v % 100);
  snprintf(p->describe, sizeof p->describe, "pipeline of %d ranks, %s, %d threads each, %s%s", p->n_ranks, p->o.device,
           p->o.threads, bf16 ? "bf16" : "f32", tensors);
}

static btc_status open_ranks(pipe_driver *p, const int *cuts, btc_error *err) {
  const int change = shard_change_block(p->m);
  btc_status st = check_cuts(p->m, cuts, p->n_ranks, err);
  if (st == BTC_OK) st = pipe_make_groups(p, p->n_ranks, err);
  if (st != BTC_OK) return st;
  if (!p->o.threads) p->o.threads = processors() > p->n_ranks ? processors() / p->n_ranks : 1;
  for (int r = 0; r < p->n_ranks; r++) {
    p->rank[r].first = cuts[r];
    p->rank[r].last = cuts[r + 1];
    if (cuts[r] <= change) p->entry = r;
  }
  if (!strcmp(p->o.device, "cuda") && !(p->cards = btc_device_count(err))) return err->code;
  st = btc_link_listen("127.0.0.1", &p->listen_fd, &p->port, err);
  if (st == BTC_OK) st = pipe_form(p, err);
  if (st == BTC_OK) describe(p);
  return st;
}

static btc_status new_driver(const char *model, const pipe_options *o, pipe_driver **out, btc_error *err) {
  pipe_driver *p = *out = btc_alloc_zero(1, sizeof *p);
  if (!p) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a pipeline");
  p->o = o ? *o : pipe_options_default();
  p->slots = p->o.slots;
  p->listen_fd = p->bell = p->control = p->links_fd = -1;
  pthread_mutex_init(&p->lock, NULL);
  pthread_mutex_init(&p->pages, NULL);
  pthread_cond_init(&p->to_read, NULL);
  p->model_dir = btc_strdup(model);
  return p->model_dir ? open_driver(p, err) : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
}

btc_status pipe_create(const char *model, const int *cuts, int ranks, const pipe_options *o, pipe_driver **out, btc_error *err) {
  btc_error own;
  if (!err) err = &own;
  *out = NULL;
  if (ranks < 1 || ranks > PIPE_MAX_RANKS)
    return btc_fail(err, BTC_ERR_ARG, "%d ranks are not between 1 and %d", ranks, PIPE_MAX_RANKS);
  btc_status st = new_driver(model, o, out, err);
  if (st == BTC_OK && *out) {
    (*out)->n_ranks = ranks;
    st = open_ranks(*out, cuts, err);
  }
  if (st != BTC_OK) pipe_destroy(out);
  return st;
}

btc_status pipe_create_remote(const char *model, int control, int links_fd, const pipe_options *o, pipe_driver **out,
                              btc_error *err) {
  btc_status st = new_driver(model, o, out, err);
  if (st == BTC_OK && *out) {
    (*out)->remote = true;
    (*out)->control = control;
    (*out)->links_fd = links_fd;
    snprintf((*out)->describe, sizeof(*out)->describe, "driver of a pipeline of several workers");
    st = pipe_make_groups(*out, PIPE_MAX_RANKS, err);
  }
  if (st != BTC_OK) pipe_destroy(out);
  return st;
}

void pipe_destroy(pipe_driver **pp) {
  pipe_driver *p = *pp;
  if (!p) return;
  pipe_close_links(p);
  pipe_reader_stop(p);
  for (int r = 0; r < p->n_ranks && !p->remote; r++) shard_process_end(&p->rank[r].process);
  if (p->listen_fd >= 0) close(p->listen_fd);
  if (p->bell >= 0) close(p->bell);
  for (int g = 0; g < p->n_groups; g++) free(p->group[g].row);
  for (int i = 0; p->jobs && i < p->n_jobs; i++) {
    btc_request_release(&p->jobs[i].q);
    btc_result_clear(&p->jobs[i].result);
    free(p->jobs[i].place);
  }
  for (int i = 0; p->pictures && i < p->n_pictures; i++) btc_image_free(&p->pictures[i].im);
  void *const blocks[] = {p->group, p->jobs, p->pictures, p->places, p->slot, p->steps, p->words, p->prefix, p->model_dir};
  for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) free(blocks[i]);
  btc_sampler_destroy(&p->sampler);
  btc_model_close(&p->m);
  pthread_mutex_destroy(&p->lock);
  pthread_mutex_destroy(&p->pages);
  pthread_cond_destroy(&p->to_read);
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
  pipe_state s = {.epoch = p->epoch,
                  .ranks = p->n_ranks,
                  .nccl = p->nccl,
                  .slots = p->slots,
                  .run_ms = p->run_ms,
                  .breaks = p->breaks,
                  .form_ms = p->form_ms,
                  .images = p->n_images,
                  .encoded = p->n_encoded,
                  .chunks = p->n_chunks,
                  .decodes = p->n_decodes,
                  .amid = p->n_amid,
                  .encode_bytes = p->n_encode_bytes,
                  .rows = p->n_rows,
                  .row_bytes = p->n_row_bytes,
                  .reused = p->n_reused};
  for (int r = 0; r < p->n_ranks && !p->remote; r++) {
    s.pid[r] = p->rank[r].process.pid;
    if (p->rank[r].process.page) s.busy_ms[r] = (double)p->rank[r].process.page->busy_ns * 1e-6;
  }
  snprintf(s.cause, sizeof s.cause, "%.*s", (int)sizeof s.cause - 1, p->cause.message);
  return s;
}
