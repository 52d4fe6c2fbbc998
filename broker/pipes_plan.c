/* One plan, made in a thread: see pipes_parts.h. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/pipes_parts.h"

enum { MAX_STRIKES = 2 };
static const double hysteresis = 0.15;

typedef struct names { /* of a member; sessions may end meanwhile */
  char name[BTC_NAME], site[sizeof((btc_pipe_caps *)0)->site];
} names;

struct btc_planning {
  pthread_t thread;
  atomic_bool ready;
  btc_plan_model *model;   /* [members] */
  btc_plan_member *member; /* [members] */
  names *names;            /* [members] */
  char (*class)[BTC_CLASS];
  btc_plan_pipe *held;
  btc_plan_input in;
  btc_plan current, next;
  btc_status st;
  btc_error err;
};

static void *run(void *ctx) {
  btc_planning *p = ctx;
  bool changed;
  p->st = btc_plan_revise(&p->in, &p->current, hysteresis, &p->next, &changed, &p->err);
  atomic_store(&p->ready, true);
  return NULL;
}

static void free_planning(btc_planning *p) {
  for (int i = 0; p->model && i < p->in.models; i++) free((void *)p->model[i].block);
  free(p->model);
  free(p->member);
  free(p->names);
  free(p->class);
  free(p->held);
  free(p);
}

/* The model of this class, copied at its first member. NULL: no memory, or another model under the same name: keep away from it. */
static const btc_plan_model *model_for(btc_planning *p, const btc_session *s) {
  int k = 0;
  while (k < p->in.models && strcmp(p->class[k], s -> model_class) != 0) k++;
  btc_plan_model *m = &p->model[k];
  if (k == p->in.models) {
    btc_plan_block *copy = btc_alloc((size_t)s->pipe->blocks, sizeof *copy);
    if (!copy) return NULL;
    memcpy(copy, s->pipe->block, (size_t)s->pipe->blocks * sizeof *copy);
    snprintf(p->class[k], sizeof p->class[k], "%s", s->model_class);
    *m = (btc_plan_model){.fingerprint = p->class[k], .block = copy, .blocks = s->pipe->blocks, .ms_per_price = 1};
    p->in.models++;
  }
  if (m->blocks != s->pipe->blocks) return NULL;
  if (s->pipe->slots > m->slots) m->slots = s->pipe->slots;
  if (s->pipe->fixed_bytes > m->fixed_bytes) m->fixed_bytes = s->pipe->fixed_bytes;
  return m;
}

static void gather(btc_planning *p, const btc_broker *b, int most) {
  for (const btc_session *s = b->sessions; s && p->in.members < most; s = s->next) {
    if (!btc_pipe_takes_part(s) || s->pipe->strikes >= MAX_STRIKES) continue;
    const btc_plan_model *model = model_for(p, s);
    if (!model) continue;
    names *n = &p->names[p->in.members];
    btc_plan_member *m = &p->member[p->in.members++];
    snprintf(n->name, sizeof n->name, "%s", s->name);
    snprintf(n->site, sizeof n->site, "%s", s->pipe->site);
    *m = (btc_plan_member){
        .name = n->name, .fingerprint = model->fingerprint, .site = n->site, .memory_bytes = s->pipe->memory_bytes};
    memcpy(m->ms, s->pipe->ms, sizeof m->ms);
  }
}

btc_status btc_planning_start(const btc_broker *b, const btc_plan_pipe *held, int n_held, btc_planning **out, btc_error *err) {
  int most = 0;
  *out = NULL;
  for (const btc_session *s = b->sessions; s && most < BTC_PLAN_MEMBERS; s = s->next) most += btc_pipe_takes_part(s);
  btc_planning *p = btc_alloc_zero(1, sizeof *p);
  if (!p) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  size_t n = (size_t)most + 1;
  p->model = btc_alloc_zero(n, sizeof *p->model);
  p->member = btc_alloc_zero(n, sizeof *p->member);
  p->names = btc_alloc_zero(n, sizeof *p->names);
  p->class = btc_alloc_zero(n, sizeof *p->class);
  p->held = btc_alloc_zero((size_t)n_held + 1, sizeof *p->held);
  bool good = p->model && p->member && p->names && p->class && p->held;
  if (good) {
    memcpy(p->held, held, (size_t)n_held * sizeof *held);
    p->current = (btc_plan){.pipe = p->held, .pipes = n_held};
    p->in = (btc_plan_input){.model = p->model, .member = p->member};
    gather(p, b, most);
    good = pthread_create(&p->thread, NULL, run, p) == 0;
  }
  if (!good) {
    free_planning(p);
    return btc_fail(err, BTC_ERR_NOMEM, "no memory, or no thread, to plan with");
  }
  *out = p;
  return BTC_OK;
}

bool btc_planning_ready(const btc_planning *p) {
  return p && atomic_load(&p->ready);
}

btc_status btc_planning_end(btc_planning **pp, btc_plan *out, btc_error *err) {
  btc_planning *p = *pp;
  *pp = NULL;
  if (!p) return BTC_OK;
  pthread_join(p->thread, NULL);
  btc_status st = p->st;
  if (st != BTC_OK)
    btc_fail(err, st, "%s", p->err.message);
  else if (out)
    *out = p->next;
  else
    btc_plan_free(&p->next);
  free_planning(p);
  return st;
}
