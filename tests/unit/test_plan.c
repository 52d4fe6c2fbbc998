/* The planner against brute force on small random instances; memory, fingerprints, sites, hysteresis, and what has no answer. */
#include "test.h"

#include <math.h>
#include <stdio.h>

#include "broker/plan.h"

#define MAX 8

typedef struct fleet {
  btc_plan_block block[64];
  btc_plan_model model;
  btc_plan_member member[64];
  char name[64][16];
  int n;
} fleet;

static uint64_t seed;
static double draw(void) { /* [0,1) */
  seed = seed * 6364136223846793005u + 1442695040888963407u;
  return (double)(seed >> 40) / (double)(1 << 24);
}
static int draw_int(int lo, int hi) {
  return lo + (int)(draw() * (hi - lo + 1));
}

static void make_model(fleet *f, int blocks) {
  *f = (fleet){.model = {.fingerprint = "m1", .block = f->block, .blocks = blocks, .slots = 2, .ms_per_price = 1}};
  for (int b = 0; b < blocks; b++) f->block[b] = (btc_plan_block){.kind = BTC_PLAN_LLM, .weight_bytes = 10, .price = 1};
}

static btc_plan_member *add(fleet *f, int64_t memory, double ms) {
  btc_plan_member *m = &f->member[f->n];
  snprintf(f->name[f->n], sizeof f->name[0], "w%02d", f->n);
  *m = (btc_plan_member){
      .name = f->name[f->n], .fingerprint = "m1", .site = "", .memory_bytes = memory, .ms = {[BTC_PLAN_LLM] = ms}};
  f->n++;
  return m;
}

static btc_plan_input input(const fleet *f) {
  return (btc_plan_input){.model = &f->model, .models = 1, .member = f->member, .members = f->n};
}

static btc_plan plan(const fleet *f) {
  btc_plan p;
  btc_error err;
  btc_plan_input in = input(f);
  assert_int_equal(btc_plan_make(&in, &p, &err), BTC_OK);
  return p;
}

static void random_fleet(fleet *f, int members, int blocks) {
  make_model(f, blocks);
  f->model.slots = draw_int(1, 4);
  f->model.fixed_bytes = draw_int(0, 5);
  int64_t total = 0;
  for (int b = 0; b < blocks; b++) {
    f->block[b] = (btc_plan_block){.kind = (btc_plan_kind)draw_int(0, BTC_PLAN_KINDS - 1),
                                   .weight_bytes = draw_int(1, 30),
                                   .kv_bytes = draw_int(0, 4),
                                   .work_bytes = draw_int(0, 10),
                                   .price = draw_int(1, 9)};
    total += f->block[b].weight_bytes + 4;
  }
  for (int i = 0; i < members; i++) {
    btc_plan_member *m = add(f, draw_int((int)total / 6, (int)total), 0);
    for (int k = 0; k < BTC_PLAN_KINDS; k++) m->ms[k] = draw() < 0.1 ? 0 : 0.5 + 4 * draw();
  }
}

/* ---- brute force ---- */

/* Best slowest stage when the members of `left` hold blocks [at, end), one each, in any order. */
static double brute_cut(const fleet *f, unsigned left, int at) {
  if (!left) return at == f->model.blocks ? 0 : INFINITY;
  double best = INFINITY;
  for (int w = 0; w < f->n; w++) {
    if (!(left >> w & 1)) continue;
    for (int to = at + 1; to <= f->model.blocks; to++) {
      if (btc_plan_stage_bytes(&f->model, at, to) > f->member[w].memory_bytes) break;
      double t = btc_plan_stage_ms(&f->model, &f->member[w], at, to), rest = brute_cut(f, left & ~(1u << w), to);
      best = fmin(best, fmax(t, rest));
    }
  }
  return best;
}

static double brute_rate(const fleet *f, unsigned set) {
  double t = brute_cut(f, set, 0);
  if (isinf(t)) return 0;
  for (int w = 0; w < f->n; w++)
    if (set >> w & 1 && set != 1u << w && !isinf(brute_cut(f, set & ~(1u << w), 0))) return 0; /* not minimal */
  return 1000 / t;
}

static double brute_groups(const double *rate, unsigned left) {
  if (!left) return 0;
  unsigned low = left & -left, rest = left ^ low;
  double best = brute_groups(rate, rest);
  for (unsigned sub = rest;; sub = (sub - 1) & rest) {
    if (rate[sub | low] > 0) best = fmax(best, rate[sub | low] + brute_groups(rate, rest ^ sub));
    if (!sub) return best;
  }
}

/* ---- what every plan must hold ---- */

static void check_valid(const fleet *f, const btc_plan *p) {
  bool used[64] = {false};
  double rate = 0;
  int members = 0;
  for (int i = 0; i < p->pipes; i++) {
    const btc_plan_pipe *pipe = &p->pipe[i];
    int at = 0;
    double slowest = 0;
    const char *site = NULL;
    assert_in_range(pipe->stages, 1, BTC_PLAN_STAGES);
    assert_true((i < p->replicas) == (pipe->stages == 1));
    for (int s = 0; s < pipe->stages; s++) {
      const btc_plan_stage *st = &pipe->stage[s];
      int w = atoi(st->member + 1);
      assert_in_range(w, 0, f->n - 1);
      assert_false(used[w]);
      used[w] = true;
      assert_string_equal(f->member[w].fingerprint, pipe->fingerprint);
      if (site) assert_string_equal(site, f->member[w].site);
      site = f->member[w].site;
      assert_int_equal(st->first, at);
      assert_true(st->last > at);
      at = st->last;
      assert_true(st->bytes <= f->member[w].memory_bytes);
      assert_int_equal(st->bytes, btc_plan_stage_bytes(&f->model, st->first, st->last));
      assert_float_equal(st->ms, btc_plan_stage_ms(&f->model, &f->member[w], st->first, st->last), 1e-9);
      slowest = fmax(slowest, st->ms);
      members++;
    }
    assert_int_equal(at, f->model.blocks);
    assert_float_equal(pipe->slowest_ms, slowest, 1e-9);
    rate += 1000 / slowest;
  }
  assert_int_equal(members + p->spares, f->n);
  assert_float_equal(p->items_per_s, rate, 1e-6 * (1 + rate));
}

static bool same_pipe(const btc_plan_pipe *a, const btc_plan_pipe *b) {
  bool same = a->stages == b->stages && a->slowest_ms == b->slowest_ms;
  for (int s = 0; same && s < a->stages; s++) {
    const btc_plan_stage *x = &a->stage[s], *y = &b->stage[s];
    same =
        strcmp(x->member, y->member) == 0 && x->first == y->first && x->last == y->last && x->ms == y->ms && x->bytes == y->bytes;
  }
  return same;
}

static void test_plan_cut_is_the_best_of_all(void **state) {
  (void)state;
  int fits = 0;
  for (int round = 0; round < 400; round++) {
    fleet f;
    seed = (uint64_t)round + 1;
    random_fleet(&f, draw_int(1, 4), draw_int(1, 7));
    const btc_plan_member *m[MAX];
    for (int i = 0; i < f.n; i++) m[i] = &f.member[i];
    btc_plan_pipe pipe;
    double brute = brute_cut(&f, (1u << f.n) - 1, 0);
    bool ok = btc_plan_cut(&f.model, m, f.n, &pipe);
    assert_true(ok == !isinf(brute));
    if (!ok) continue;
    fits++;
    assert_float_equal(pipe.slowest_ms, brute, 1e-9);
    assert_int_equal(pipe.stages, f.n);
  }
  assert_in_range(fits, 100, 390); /* both answers occur */
}

static void test_plan_groups_are_the_best_of_all(void **state) {
  (void)state;
  int pipelines = 0, several = 0;
  for (int round = 0; round < 150; round++) {
    fleet f;
    double rate[1 << 6];
    seed = (uint64_t)round + 1000;
    random_fleet(&f, draw_int(2, 6), draw_int(3, 6));
    unsigned left = 0;
    double replicas = 0;
    for (int w = 0; w < f.n; w++)
      if (f.member[w].memory_bytes >= btc_plan_stage_bytes(&f.model, 0, f.model.blocks))
        replicas += 1000 / btc_plan_stage_ms(&f.model, &f.member[w], 0, f.model.blocks);
      else
        left |= 1u << w;
    for (unsigned s = 1; s < 1u << f.n; s++) rate[s] = (s & ~left) ? 0 : brute_rate(&f, s);
    btc_plan p = plan(&f);
    check_valid(&f, &p);
    assert_float_equal(p.items_per_s, replicas + brute_groups(rate, left), 1e-6 * (1 + p.items_per_s));
    pipelines += p.pipes > p.replicas;
    several += p.pipes > p.replicas + 1;
    btc_plan_free(&p);
  }
  assert_true(pipelines > 30 && several > 3);
}

static void test_plan_many_members_hold_the_rules(void **state) {
  (void)state;
  for (int round = 0; round < 20; round++) {
    fleet f;
    seed = (uint64_t)round + 77;
    random_fleet(&f, draw_int(9, 64), draw_int(5, 40));
    for (int i = 0; i < f.n; i++) f.member[i].site = i % 3 ? "east" : "west";
    btc_plan p = plan(&f), q;
    check_valid(&f, &p);
    /* brokers hear of members in different orders and agree */
    fleet g = f;
    g.model.block = g.block;
    for (int i = 0; i < f.n; i++) g.member[i] = f.member[f.n - 1 - i];
    btc_plan_input in = input(&g);
    assert_int_equal(btc_plan_make(&in, &q, NULL), BTC_OK);
    assert_int_equal(p.pipes, q.pipes);
    for (int i = 0; i < p.pipes; i++) assert_true(same_pipe(&p.pipe[i], &q.pipe[i]));
    btc_plan_free(&p);
    btc_plan_free(&q);
  }
}

static void test_plan_order_matters(void **state) {
  (void)state;
  fleet f;
  make_model(&f, 4); /* a cheap large block first: it must go to the large slow member, whatever the order given */
  f.block[0] = (btc_plan_block){.kind = BTC_PLAN_HEAD, .weight_bytes = 100, .price = 1};
  add(&f, 30, 1)->ms[BTC_PLAN_HEAD] = 1;
  add(&f, 100, 9)->ms[BTC_PLAN_HEAD] = 3;
  btc_plan p = plan(&f);
  check_valid(&f, &p);
  assert_int_equal(p.pipes, 1);
  assert_string_equal(p.pipe[0].stage[0].member, "w01");
  assert_int_equal(p.pipe[0].stage[0].last, 1);
  btc_plan_free(&p);
}

static void test_plan_prefers_replicas_and_fewest_stages(void **state) {
  (void)state;
  fleet f;
  make_model(&f, 12);
  add(&f, 120, 1);                            /* exactly the whole model */
  for (int i = 0; i < 4; i++) add(&f, 60, 1); /* halves: two pipelines of two, never one of four */
  add(&f, 119, 1);                            /* one byte short: needs somebody */
  btc_plan p = plan(&f);
  check_valid(&f, &p);
  assert_int_equal(p.replicas, 1);
  assert_string_equal(p.pipe[0].stage[0].member, "w00");
  assert_int_equal(p.pipes, 3);
  assert_int_equal(p.spares, 1);
  assert_int_equal(p.pipe[1].stages, 2);
  assert_int_equal(p.pipe[2].stages, 2);
  btc_plan_free(&p);
}

static void test_plan_counts_keys_and_values_by_slot(void **state) {
  (void)state;
  fleet f;
  make_model(&f, 4);
  for (int b = 0; b < 4; b++) f.block[b].kv_bytes = 5, f.block[b].work_bytes = 7;
  f.model.fixed_bytes = 3;
  assert_int_equal(btc_plan_stage_bytes(&f.model, 1, 3), 2 * 10 + 2 * 2 * 5 + 7 + 3);
  add(&f, 50, 1);
  add(&f, 50, 1);
  btc_plan p = plan(&f);
  assert_int_equal(p.pipes, 1);
  btc_plan_free(&p);
  f.member[0].memory_bytes = f.member[1].memory_bytes = 49; /* one block each is not all four */
  p = plan(&f);
  assert_int_equal(p.pipes, 0);
  assert_int_equal(p.spares, 2);
  assert_true(p.items_per_s == 0);
  btc_plan_free(&p);
}

static void test_plan_never_mixes_models_or_sites(void **state) {
  (void)state;
  fleet f;
  make_model(&f, 4);
  btc_plan_model models[2] = {f.model, f.model};
  models[1].fingerprint = "m2";
  add(&f, 20, 1);
  add(&f, 20, 1)->fingerprint = "m2";
  add(&f, 20, 1)->site = "far";
  add(&f, 20, 1)->fingerprint = "unknown";
  btc_plan_input in = input(&f);
  in.model = models;
  in.models = 2;
  btc_plan p;
  assert_int_equal(btc_plan_make(&in, &p, NULL), BTC_OK);
  assert_int_equal(p.pipes, 0);
  assert_int_equal(p.spares, 4);
  btc_plan_free(&p);
  add(&f, 20, 1)->fingerprint = "m2";
  in.members = f.n;
  assert_int_equal(btc_plan_make(&in, &p, NULL), BTC_OK);
  check_valid(&f, &p);
  assert_int_equal(p.pipes, 1);
  assert_string_equal(p.pipe[0].fingerprint, "m2");
  btc_plan_free(&p);
}

static void test_plan_estimates_what_was_not_measured(void **state) {
  (void)state;
  fleet f;
  make_model(&f, 4);
  f.block[0] = (btc_plan_block){.kind = BTC_PLAN_HEAD, .weight_bytes = 10, .price = 5};
  f.block[3].price = 4; /* llm prices 1, 1, 4: mean 2 */
  f.model.ms_per_price = 100;
  btc_plan_member *m = add(&f, 40, 8);
  assert_float_equal(btc_plan_stage_ms(&f.model, m, 1, 2), 4, 1e-9); /* 8 ms is an average llm block */
  assert_float_equal(btc_plan_stage_ms(&f.model, m, 3, 4), 16, 1e-9);
  assert_float_equal(btc_plan_stage_ms(&f.model, m, 0, 1), 20, 1e-9); /* head: 5 units at llm's 4 ms a unit */
  m->ms[BTC_PLAN_LLM] = NAN;
  assert_float_equal(btc_plan_stage_ms(&f.model, m, 0, 1), 500, 1e-9);
}

/* ---- hysteresis ---- */

static btc_plan revise(const fleet *f, const btc_plan *current, bool *changed) {
  btc_plan p;
  btc_plan_input in = input(f);
  assert_int_equal(btc_plan_revise(&in, current, 0.15, &p, changed, NULL), BTC_OK);
  check_valid(f, &p);
  return p;
}

static void test_plan_keeps_through_noise_and_moves_for_gain(void **state) {
  (void)state;
  fleet f;
  bool changed;
  make_model(&f, 12);
  add(&f, 100, 1);
  add(&f, 100, 1);
  btc_plan p = plan(&f), q;
  assert_int_equal(p.pipe[0].stage[0].last, 6);
  f.member[0].ms[BTC_PLAN_LLM] = 1.19; /* best would be 5 + 7: 7.0 against 7.14 ms */
  q = revise(&f, &p, &changed);
  assert_false(changed);
  assert_float_equal(q.pipe[0].slowest_ms, 7.14, 1e-9); /* today's times are shown */
  btc_plan_free(&q);
  f.member[0].ms[BTC_PLAN_LLM] = 2; /* 4 + 8: 8 against 12 ms */
  q = revise(&f, &p, &changed);
  assert_true(changed);
  assert_float_equal(q.pipe[0].slowest_ms, 8, 1e-9);
  btc_plan_free(&q);
  btc_plan_free(&p);
}

static void test_plan_loss_disturbs_its_own_pipe_only(void **state) {
  (void)state;
  fleet f;
  bool changed;
  make_model(&f, 12);
  for (int i = 0; i < 7; i++) add(&f, 60, 1 + 0.01 * i);
  btc_plan p = plan(&f), q;
  assert_int_equal(p.pipes, 3);
  assert_int_equal(p.spares, 1);
  char lost[65], partner[65];
  snprintf(lost, sizeof lost, "%s", p.pipe[1].stage[0].member);
  snprintf(partner, sizeof partner, "%s", p.pipe[1].stage[1].member);
  int w = atoi(lost + 1);
  char was[16];
  snprintf(was, sizeof was, "%s", p.spare[0]);
  f.member[w].fingerprint = "gone"; /* as good as lost: it serves another model now */
  q = revise(&f, &p, &changed);
  assert_true(changed);
  assert_int_equal(q.pipes, 3);
  int same = 0;
  for (int i = 0; i < 3; i++)
    for (int k = 0; k < 3; k++) same += same_pipe(&p.pipe[i], &q.pipe[k]);
  assert_int_equal(same, 2); /* the others go on, to the byte */
  for (int i = 0; i < 3; i++)
    for (int s = 0; s < 2; s++)
      if (strcmp(q.pipe[i].stage[s].member, partner) == 0)
        assert_string_equal(q.pipe[i].stage[1 - s].member, was); /* the spare took the hole */
  btc_plan_free(&q);
  btc_plan_free(&p);
}

static void test_plan_uses_a_newcomer_at_once(void **state) {
  (void)state;
  fleet f;
  bool changed;
  make_model(&f, 12);
  for (int i = 0; i < 20; i++) add(&f, 120, 1);
  btc_plan p = plan(&f), q;
  add(&f, 120, 4); /* 1.25 % more */
  q = revise(&f, &p, &changed);
  assert_true(changed);
  assert_int_equal(q.replicas, 21);
  btc_plan_free(&p);
  p = revise(&f, &q, &changed);
  assert_false(changed);
  btc_plan_free(&p);
  btc_plan_free(&q);
}

static void test_plan_drops_what_no_longer_fits(void **state) {
  (void)state;
  fleet f;
  bool changed;
  make_model(&f, 12);
  add(&f, 60, 1);
  add(&f, 60, 1);
  btc_plan p = plan(&f), q;
  f.model.slots = 3;
  for (int b = 0; b < 12; b++) f.block[b].kv_bytes = 1;
  q = revise(&f, &p, &changed);
  assert_true(changed);
  assert_int_equal(q.pipes, 0);
  btc_plan_free(&q);
  f.n = 0; /* everybody left */
  q = revise(&f, &p, &changed);
  assert_int_equal(q.pipes, 0);
  btc_plan_free(&q);
  btc_plan_free(&p);
}

static void test_plan_refuses(void **state) {
  (void)state;
  fleet f;
  btc_plan p;
  btc_error err;
  make_model(&f, 3);
  btc_plan_input in = input(&f);
  assert_int_equal(btc_plan_make(&in, &p, &err), BTC_OK); /* nobody: an empty plan */
  assert_int_equal(p.pipes + p.spares, 0);
  btc_plan_free(&p);
  add(&f, 30, 1);
  add(&f, 30, 1)->name = "w00";
  in = input(&f);
  assert_int_equal(btc_plan_make(&in, &p, &err), BTC_ERR_ARG);
  assert_non_null(strstr(err.message, "w00"));
  f.model.blocks = 0;
  assert_int_equal(btc_plan_make(&in, &p, &err), BTC_ERR_ARG);
  in.members = BTC_PLAN_MEMBERS + 1;
  assert_int_equal(btc_plan_make(&in, &p, &err), BTC_ERR_ARG);
}

static void test_plan_more_members_than_blocks(void **state) {
  (void)state;
  fleet f;
  make_model(&f, 2);
  for (int i = 0; i < 5; i++) add(&f, 10, 1);
  btc_plan p = plan(&f);
  check_valid(&f, &p);
  assert_int_equal(p.pipes, 2);
  assert_int_equal(p.spares, 1);
  btc_plan_free(&p);
  btc_plan_kind k;
  assert_true(btc_plan_kind_of("vision 3", &k) && k == BTC_PLAN_VISION);
  assert_true(btc_plan_kind_of("head", &k) && k == BTC_PLAN_HEAD);
  assert_false(btc_plan_kind_of("heads", &k));
  assert_false(btc_plan_kind_of("", &k));
}

static bool refuse(size_t bytes) {
  (void)bytes;
  static int calls;
  return ++calls % 7 != 0;
}

static void test_plan_survives_no_memory(void **state) {
  (void)state;
  int failed = 0;
  for (int round = 0; round < 60; round++) {
    fleet f;
    btc_plan p;
    seed = (uint64_t)round;
    random_fleet(&f, draw_int(2, 20), 6);
    btc_plan_input in = input(&f);
    btc_alloc_hook = refuse;
    btc_status st = btc_plan_make(&in, &p, NULL);
    btc_alloc_hook = NULL;
    failed += st == BTC_ERR_NOMEM;
    if (st == BTC_OK) check_valid(&f, &p);
    btc_plan_free(&p);
  }
  assert_in_range(failed, 1, 60);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_plan_cut_is_the_best_of_all),
    cmocka_unit_test(test_plan_groups_are_the_best_of_all),
    cmocka_unit_test(test_plan_many_members_hold_the_rules),
    cmocka_unit_test(test_plan_order_matters),
    cmocka_unit_test(test_plan_prefers_replicas_and_fewest_stages),
    cmocka_unit_test(test_plan_counts_keys_and_values_by_slot),
    cmocka_unit_test(test_plan_never_mixes_models_or_sites),
    cmocka_unit_test(test_plan_estimates_what_was_not_measured),
    cmocka_unit_test(test_plan_keeps_through_noise_and_moves_for_gain),
    cmocka_unit_test(test_plan_loss_disturbs_its_own_pipe_only),
    cmocka_unit_test(test_plan_uses_a_newcomer_at_once),
    cmocka_unit_test(test_plan_drops_what_no_longer_fits),
    cmocka_unit_test(test_plan_refuses),
    cmocka_unit_test(test_plan_more_members_than_blocks),
    cmocka_unit_test(test_plan_survives_no_memory),
};
BTC_TEST_MAIN(tests)
