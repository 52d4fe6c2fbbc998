/*
 * Pipelines on paper: btcchat-bench-pipes [options]. Plans fleets with the broker's own planner and runs every pipeline of the plan
 * in a discrete-event simulation, so that the expected items/s and the bubble are known before a machine is rented.
 *
 * The schedule simulated: an item is prefilled in chunks, which run through the stages one after another; live slots form groups
 * (micro-batches) with one decode step in flight each, entering at the first stage with language blocks, before waiting chunks;
 * every stage and every link works in the order of that stage (numbered steps), one thing at a time; sending overlaps computing;
 * tokens return from the last stage after a latency. Since order is fixed at the entry, the time of a step at a stage is a maximum
 * of two earlier ones and no event queue is needed.
 *
 * Block prices: the full-size model's (docs/performance.md), or `btcchat inspect --json MODEL` with --blocks. A member's speed is
 * its GFLOP/s (prefill) and GB/s (decode reads weights once a step, whatever the rows).
 */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "broker/plan.h"

#define MAX_SLOTS 256
#define MAX_CHUNKS 64
#define MAX_FLEET 64

typedef struct settings {
  const char *blocks;
  int items, tokens, slots, groups, chunks, stages, positions;
  double gflops, gbs, mbit, latency_ms;
  bool equal, through, check;
} settings;

/* ---- the model ---- */

typedef struct model_table {
  btc_plan_block block[BTC_PLAN_BLOCKS];
  double flop[BTC_PLAN_BLOCKS];
  int n;
  double feature_bytes, hidden_bytes, row_bytes; /* what crosses a cut: before splice, after it, and for one decoded row */
} model_table;

static void add_block(model_table *m, btc_plan_kind kind, double flop, double bytes, const settings *s) {
  if (m->n == BTC_PLAN_BLOCKS) return;
  /* keys and values: bf16, as wide as the model (its layers have 12.4 of the width's squares each); working memory by experience */
  double width = kind == BTC_PLAN_LLM ? sqrt(bytes / 2 / 12.1) : 0;
  m->block[m->n] = (btc_plan_block){
      .kind = kind, .weight_bytes = (int64_t)bytes, .kv_bytes = (int64_t)(4 * width * s->positions), .work_bytes = 64 << 20};
  m->flop[m->n++] = flop;
}

/* 26 of 27 vision blocks of width 1152, 32 language layers of width 2560, as engine/stage.c prices them for a pair of 253
 * positions. */
static void full_size(model_table *m, const settings *s) {
  const double t = 729, c = 1152, mlp = 4304, p = 253, d = 2560, ff = 6912, vocab = 32000;
  add_block(m, BTC_PLAN_PATCH, 2 * 2 * t * 588 * c, 2 * (588 + t + 1) * c, s);
  for (int i = 0; i < 26; i++)
    add_block(m, BTC_PLAN_VISION, 2 * t * (8 * c * c + 4 * c * mlp + 4 * t * c), 2 * (4 * c * c + 2 * c * mlp + 9 * c + mlp), s);
  add_block(m, BTC_PLAN_CHANGE, 17.4e9, 51e6, s);
  add_block(m, BTC_PLAN_SPLICE, 0, 2 * vocab * d, s);
  for (int i = 0; i < 32; i++)
    add_block(m, BTC_PLAN_LLM, 2 * p * (4 * d * d + 3 * d * ff) + 2 * p * p * d, 2 * (4 * d * d + 3 * d * ff + 2 * d), s);
  add_block(m, BTC_PLAN_HEAD, 2 * d * vocab, 2 * (vocab + 1) * d, s);
  m->feature_bytes = 2 * t * c * 4;
  m->hidden_bytes = p * d * 4;
  m->row_bytes = d * 4;
}

static bool read_blocks(model_table *m, const settings *s) {
  json_t *doc;
  btc_error err;
  if (btc_json_read(s->blocks, &btc_json_config_limits, &doc, &err) != BTC_OK) {
    fprintf(stderr, "btcchat-bench-pipes: %s\n", err.message);
    return false;
  }
  const json_t *list = json_object_get(doc, "blocks");
  size_t n = json_array_size(list), i = 0;
  for (; i < n && i < BTC_PLAN_BLOCKS; i++) {
    const json_t *b = json_array_get(list, i);
    const char *name = json_string_value(json_object_get(b, "name"));
    double bytes = json_number_value(json_object_get(b, "weight_bytes")),
           flop = json_number_value(json_object_get(b, "flop_per_pair"));
    btc_plan_kind kind;
    if (!name || !btc_plan_kind_of(name, &kind) || !(bytes >= 0) || !(flop >= 0)) break;
    add_block(m, kind, flop, bytes, s);
  }
  json_decref(doc);
  m->feature_bytes = 6.7e6; /* the sizes of the full model's cuts: never too small */
  m->hidden_bytes = 2.6e6;
  m->row_bytes = 10240;
  if (n && i == n) return true;
  fprintf(stderr, "btcchat-bench-pipes: '%s': expected the output of `btcchat inspect --json`\n", s->blocks);
  return false;
}

/* ---- members ---- */

typedef struct speed {
  double gflops, gbs;
} speed;

static bool decodes(const btc_plan_block *b) {
  return b->kind == BTC_PLAN_LLM || b->kind == BTC_PLAN_HEAD;
}

/* One decode step of `rows` through a block. Weights are two bytes and cost two operations a row, so bytes are operations too. */
static double decode_ms(const btc_plan_block *b, const speed *v, int rows) {
  if (!decodes(b) || rows == 0) return 0;
  return (double)b->weight_bytes * 1e-6 * fmax(1 / v->gbs, rows / v->gflops);
}

static double prefill_ms(const model_table *m, int b, const speed *v) {
  return m->flop[b] * 1e-6 / v->gflops;
}

/* What a member would measure: an item's prefill, and its share of the decode steps that it is part of. */
static double item_ms(const model_table *m, int b, const speed *v, const settings *s, int groups) {
  int rows = s->slots / groups > 0 ? s->slots / groups : 1;
  return prefill_ms(m, b, v) + (s->tokens - 1) * decode_ms(&m->block[b], v, rows) / rows;
}

static void measure(const model_table *m, const speed *v, const settings *s, double ms[BTC_PLAN_KINDS]) {
  int count[BTC_PLAN_KINDS] = {0};
  for (int k = 0; k < BTC_PLAN_KINDS; k++) ms[k] = 0;
  for (int b = 0; b < m->n; b++) {
    ms[m->block[b].kind] += item_ms(m, b, v, s, s->groups ? s->groups : 2);
    count[m->block[b].kind]++;
  }
  for (int k = 0; k < BTC_PLAN_KINDS; k++)
    if (count[k]) ms[k] /= count[k];
}

/* ---- one pipeline ---- */

typedef struct stage {
  double prefill_ms;            /* a whole item */
  double read_ms, row_ms;       /* a decode step: max(read_ms, rows * row_ms) */
  double item_bytes, row_bytes; /* sent to the next stage */
  double free_at, link_free_at, busy_ms;
} stage;

typedef struct slot {
  enum { FREE, PREFILL, LIVE } state;
  double ready;               /* FREE, LIVE: from when on */
  double arrival[MAX_CHUNKS]; /* PREFILL: of its chunks at the entry */
  int chunk, tokens, order;
} slot;

typedef struct sim {
  const settings *s;
  stage st[BTC_PLAN_STAGES];
  int stages, entry, groups, admitted, done;
  slot slot[MAX_SLOTS];
  double group_free_at[MAX_SLOTS], end;
} sim;

typedef struct outcome {
  double items_per_s, bubble, imbalance, idle; /* idle: of the busiest stage, what scheduling loses beyond imbalance */
} outcome;

/* Runs one step through stages [from, to). Returns when it has arrived behind them. */
static double run_step(sim *x, int from, int to, double t, double items, int rows) {
  for (int i = from; i < to; i++) {
    stage *g = &x->st[i];
    double cost = items * g->prefill_ms + (rows ? fmax(g->read_ms, rows * g->row_ms) : 0);
    g->free_at = fmax(t, g->free_at) + cost;
    g->busy_ms += cost;
    t = g->free_at;
    if (i == x->stages - 1) break;
    g->link_free_at = fmax(t, g->link_free_at) + (items * g->item_bytes + rows * g->row_bytes) / (x->s->mbit * 125);
    t = g->link_free_at + x->s->latency_ms;
  }
  if (t > x->end) x->end = t;
  return t;
}

static double back_ms(const sim *x) { /* tokens, last stage to the driver */
  return x->stages > 1 ? x->s->latency_ms : 0;
}

/* Admits a waiting item into the slot that was free first; what lies before the entry runs ahead. */
static void admit(sim *x, slot *free_slot) {
  free_slot->state = PREFILL;
  free_slot->chunk = 0;
  free_slot->order = x->admitted++;
  free_slot->tokens = x->s->tokens;
  for (int c = 0; c < x->s->chunks; c++) free_slot->arrival[c] = run_step(x, 0, x->entry, free_slot->ready, 1.0 / x->s->chunks, 0);
}

static void prefill_chunk(sim *x, slot *p, double t) {
  double end = run_step(x, x->entry, x->stages, t, 1.0 / x->s->chunks, 0);
  if (++p->chunk < x->s->chunks) return;
  p->state = --p->tokens > 0 ? LIVE : FREE;
  p->ready = end + back_ms(x);
  if (p->state == FREE) x->done++;
}

static void decode_group(sim *x, int g, double t) {
  int rows = 0;
  for (int i = g; i < x->s->slots; i += x->groups) rows += x->slot[i].state == LIVE && x->slot[i].ready <= t;
  double end = run_step(x, x->entry, x->stages, t, 0, rows) + back_ms(x);
  for (int i = g; i < x->s->slots; i += x->groups) {
    slot *p = &x->slot[i];
    if (p->state != LIVE || p->ready > t) continue;
    p->ready = end;
    if (--p->tokens > 0) continue;
    p->state = FREE;
    x->done++;
  }
  x->group_free_at[g] = end;
}

/* Next in time: a group's step before a chunk before an admission, when they could begin at once. False: all is done. */
static bool next_event(sim *x) {
  double entry_free = x->st[x->entry].free_at, group_t = INFINITY, chunk_t = INFINITY, admit_t = INFINITY;
  int group = -1;
  slot *chunk = NULL, *empty = NULL;
  for (int i = 0; i < x->s->slots; i++) {
    slot *p = &x->slot[i];
    double t = fmax(entry_free, p->ready);
    if (p->state == LIVE && fmax(t, x->group_free_at[i % x->groups]) < group_t) {
      group = i % x->groups;
      group_t = fmax(t, x->group_free_at[group]);
    }
    if (p->state == PREFILL && (!chunk || p->order < chunk->order)) chunk = p;
    if (p->state == FREE && (!empty || p->ready < empty->ready)) empty = p;
  }
  if (chunk) chunk_t = fmax(entry_free, chunk->arrival[chunk->chunk]);
  if (empty && x->admitted < x->s->items) admit_t = x->entry ? fmax(x->st[0].free_at, empty->ready) : empty->ready;
  if (admit_t <= fmin(group_t, chunk_t) && isfinite(admit_t))
    admit(x, empty);
  else if (group_t <= chunk_t && isfinite(group_t))
    decode_group(x, group, group_t);
  else if (chunk)
    prefill_chunk(x, chunk, chunk_t);
  else
    return false;
  return true;
}

static outcome run_pipe(sim *x) {
  double sum = 0, most = 0;
  x->groups = x->s->groups ? x->s->groups : x->stages;
  if (x->groups > x->s->slots) x->groups = x->s->slots;
  while (next_event(x))
    ;
  for (int i = 0; i < x->stages; i++) {
    sum += x->st[i].busy_ms;
    most = fmax(most, x->st[i].busy_ms);
  }
  if (x->done != x->s->items)
    fprintf(stderr, "btcchat-bench-pipes: %d of %d items simulated: a bug\n", x->done, x->s->items), exit(1);
  return (outcome){x->done * 1000 / x->end, 1 - sum / (x->stages * x->end), most * x->stages / sum - 1, 1 - most / x->end};
}

static outcome simulate(const model_table *m, const btc_plan_pipe *p, const speed v[BTC_PLAN_STAGES], const settings *s) {
  static sim x;
  x = (sim){.s = s, .stages = p->stages, .entry = -1};
  for (int i = 0; i < p->stages; i++) {
    stage *g = &x.st[i];
    bool language = false;
    for (int b = p->stage[i].first; b < p->stage[i].last; b++) {
      g->prefill_ms += prefill_ms(m, b, &v[i]);
      if (!decodes(&m->block[b])) continue;
      g->read_ms += (double)m->block[b].weight_bytes * 1e-6 / v[i].gbs;
      g->row_ms += (double)m->block[b].weight_bytes * 1e-6 / v[i].gflops;
      language = true;
    }
    if (language && x.entry < 0) x.entry = i;
    bool spliced = p->stage[i].last == m->n || decodes(&m->block[p->stage[i].last]);
    g->item_bytes = spliced ? m->hidden_bytes : m->feature_bytes;
    g->row_bytes = x.entry >= 0 ? m->row_bytes : 0;
  }
  if (x.entry < 0 || s->through) x.entry = 0;
  return run_pipe(&x);
}

/* ---- what is printed ---- */

static btc_plan_model plan_model(const model_table *m, const settings *s) {
  return (btc_plan_model){
      .fingerprint = "model", .block = m->block, .blocks = m->n, .slots = s->slots, .fixed_bytes = 64 << 20, .ms_per_price = 1};
}

/* Equal shards: groups against the bubble. */
static double equal_shards(model_table *m, const settings *s) {
  btc_plan_member member[BTC_PLAN_STAGES];
  const btc_plan_member *list[BTC_PLAN_STAGES];
  speed v[BTC_PLAN_STAGES];
  char name[BTC_PLAN_STAGES][8];
  double idle = 1;
  printf(
      "%d members of %.0f GFLOP/s and %.0f GB/s as one pipeline, %d items of %d tokens, %d slots, %d chunks, links of %.0f Mbit/s "
      "and %.2f ms\n",
      s->stages, s->gflops, s->gbs, s->items, s->tokens, s->slots, s->chunks, s->mbit, s->latency_ms);
  printf("%-7s %10s %10s %10s %10s  %s\n", "groups", "items/s", "bubble", "imbalance", "beyond", "cut");
  for (int groups = 1; groups <= 4 * s->stages && groups <= s->slots; groups *= 2) {
    settings one = *s;
    btc_plan_pipe p;
    btc_plan_model pm = plan_model(m, s);
    one.groups = groups;
    for (int i = 0; i < s->stages; i++) {
      snprintf(name[i], sizeof name[i], "e%d", i);
      v[i] = (speed){s->gflops, s->gbs};
      member[i] = (btc_plan_member){.name = name[i], .fingerprint = "model", .site = "", .memory_bytes = INT64_MAX / 4};
      measure(m, &v[i], &one, member[i].ms);
      list[i] = &member[i];
    }
    if (!btc_plan_cut(&pm, list, s->stages, &p)) return 1;
    outcome o = simulate(m, &p, v, &one);
    printf("%-7d %10.4f %9.1f%% %9.1f%% %9.1f%% ", groups, o.items_per_s, 100 * o.bubble, 100 * o.imbalance, 100 * o.idle);
    for (int i = 0; i < p.stages; i++) printf(" %d", p.stage[i].last);
    printf("\n");
    if (groups >= s->stages) idle = fmin(idle, o.idle);
  }
  return idle;
}

static uint64_t random_state;
static double draw(void) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (double)(random_state >> 40) / (double)(1 << 24);
}

/* Members of mixed speed (0.5 to 2 times the given one) and memory (2 to 8 GB), planned and simulated. */
static void fleet(const model_table *m, const settings *s, int n) {
  static const double gigabytes[] = {2, 3, 4, 6, 8};
  btc_plan_member member[MAX_FLEET];
  speed v[MAX_FLEET], of[BTC_PLAN_STAGES];
  char name[MAX_FLEET][8];
  double planned = 0, got = 0, bubble = 0;
  int stages = 0, pipes = 0;
  random_state = 7;
  for (int i = 0; i < n; i++) {
    double factor = pow(4, draw()) / 2;
    snprintf(name[i], sizeof name[i], "w%02d", i);
    v[i] = (speed){s->gflops * factor, s->gbs * factor};
    member[i] = (btc_plan_member){
        .name = name[i], .fingerprint = "model", .site = "", .memory_bytes = (int64_t)(gigabytes[(int)(draw() * 5)] * 1e9)};
    measure(m, &v[i], s, member[i].ms);
  }
  btc_plan p;
  btc_plan_model pm = plan_model(m, s);
  btc_plan_input in = {.model = &pm, .models = 1, .member = member, .members = n};
  btc_error err;
  int64_t start = btc_now_ns();
  if (btc_plan_make(&in, &p, &err) != BTC_OK) fprintf(stderr, "btcchat-bench-pipes: %s\n", err.message), exit(1);
  double plan_ms = (double)(btc_now_ns() - start) * 1e-6;
  for (int i = 0; i < p.pipes; i++) {
    for (int k = 0; k < p.pipe[i].stages; k++) of[k] = v[atoi(p.pipe[i].stage[k].member + 1)];
    outcome o = simulate(m, &p.pipe[i], of, s);
    planned += 1000 / p.pipe[i].slowest_ms;
    got += o.items_per_s;
    if (p.pipe[i].stages == 1) continue;
    pipes++;
    stages += p.pipe[i].stages;
    bubble += o.bubble;
  }
  printf("%-8d %9d %10d %10.1f %7d %12.3f %12.3f %8.1f%% %8.1f\n", n, p.replicas, pipes, pipes ? (double)stages / pipes : 0,
         p.spares, planned, got, pipes ? 100 * bubble / pipes : 0, plan_ms);
  btc_plan_free(&p);
}

/* ---- the program ---- */

static void usage(FILE *f) {
  fprintf(f,
          "Usage: btcchat-bench-pipes [OPTIONS]\n"
          "  --blocks FILE    block prices: output of `btcchat inspect --json` (the full-size model's)\n"
          "  --equal          all blocks alike: the schedule alone, without imbalance\n"
          "  --stages N       members of the equal pipeline, 2..8 (4)\n"
          "  --groups N       decode groups (micro-batches) in fleets; 0: as many as stages (0)\n"
          "  --slots N        items with live keys and values, 1..256 (16)\n"
          "  --chunks N       steps that a prefill is split into, 1..64 (8)\n"
          "  --items N        items of a pipeline (300)\n"
          "  --tokens N       tokens of a caption (20)\n"
          "  --gflops N       speed of a member in products (400)\n"
          "  --gbs N          its memory, GB/s (42)\n"
          "  --mbit N         bandwidth of a link, Mbit/s (1000)\n"
          "  --latency N      of a link, ms (0.2)\n"
          "  --through        decode steps pass stages without language blocks too\n"
          "  --check          fail when the busiest of the equal stages idles more than 15 %%\n");
}

static bool number(const char *text, double least, double most, double *out) {
  char *end;
  *out = strtod(text, &end);
  return end != text && !*end && *out >= least && *out <= most;
}

enum { BLOCKS = 1, EQUAL, STAGES, GROUPS, SLOTS, CHUNKS, ITEMS, TOKENS, GFLOPS, GBS, MBIT, LATENCY, THROUGH, CHECK, HELP };

static const struct option options[] = {
    {"blocks", 1, 0, BLOCKS},   {"equal", 0, 0, EQUAL},   {"stages", 1, 0, STAGES}, {"groups", 1, 0, GROUPS},
    {"slots", 1, 0, SLOTS},     {"chunks", 1, 0, CHUNKS}, {"items", 1, 0, ITEMS},   {"tokens", 1, 0, TOKENS},
    {"gflops", 1, 0, GFLOPS},   {"gbs", 1, 0, GBS},       {"mbit", 1, 0, MBIT},     {"latency", 1, 0, LATENCY},
    {"through", 0, 0, THROUGH}, {"check", 0, 0, CHECK},   {"help", 0, 0, HELP},     {0}};

static bool set_option(settings *s, int c, const char *arg) {
  double v = 0;
  switch (c) {
    case BLOCKS:
      s->blocks = arg;
      return true;
    case EQUAL:
      s->equal = true;
      return true;
    case THROUGH:
      s->through = true;
      return true;
    case CHECK:
      s->check = true;
      return true;
    case STAGES:
      return number(arg, 2, BTC_PLAN_STAGES, &v) && (s->stages = (int)v, true);
    case GROUPS:
      return number(arg, 0, MAX_SLOTS, &v) && (s->groups = (int)v, true);
    case SLOTS:
      return number(arg, 1, MAX_SLOTS, &v) && (s->slots = (int)v, true);
    case CHUNKS:
      return number(arg, 1, MAX_CHUNKS, &v) && (s->chunks = (int)v, true);
    case ITEMS:
      return number(arg, 1, 1e6, &v) && (s->items = (int)v, true);
    case TOKENS:
      return number(arg, 1, 1e4, &v) && (s->tokens = (int)v, true);
    case GFLOPS:
      return number(arg, 1e-3, 1e9, &s->gflops);
    case GBS:
      return number(arg, 1e-3, 1e9, &s->gbs);
    case MBIT:
      return number(arg, 1e-3, 1e9, &s->mbit);
    case LATENCY:
      return number(arg, 0, 1e6, &s->latency_ms);
    default:
      return false;
  }
}

int main(int argc, char **argv) {
  settings s = {.items = 300,
                .tokens = 20,
                .slots = 16,
                .chunks = 8,
                .stages = 4,
                .positions = 384,
                .gflops = 400,
                .gbs = 42,
                .mbit = 1000,
                .latency_ms = 0.2};
  static model_table m;
  for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
    if (c == HELP) return usage(stdout), 0;
    if (set_option(&s, c, optarg)) continue;
    if (c != '?') fprintf(stderr, "btcchat-bench-pipes: '%s' is out of range\n", optarg);
    return usage(stderr), 2;
  }
  if (optind != argc) return usage(stderr), 2;
  if (s.blocks && !read_blocks(&m, &s)) return 1;
  if (!s.blocks) full_size(&m, &s);
  if (s.equal)
    for (int b = 0; b < m.n; b++) {
      m.block[b] = (btc_plan_block){.kind = BTC_PLAN_LLM, .weight_bytes = 100000000};
      m.flop[b] = 40e9;
    }
  btc_plan_model pm = plan_model(&m, &s); /* prices: a member's of the given speed */
  for (int b = 0; b < m.n; b++) m.block[b].price = item_ms(&m, b, &(speed){s.gflops, s.gbs}, &s, 2);
  printf("model: %d blocks, %.2f GB to hold\n", m.n, (double)btc_plan_stage_bytes(&pm, 0, m.n) * 1e-9);
  double idle = equal_shards(&m, &s);
  printf("\n%-8s %9s %10s %10s %7s %12s %12s %9s %8s\n", "members", "replicas", "pipelines", "stages", "spares", "planned/s",
         "simulated/s", "bubble", "plan ms");
  for (int n = 8; n <= MAX_FLEET; n *= 2) fleet(&m, &s, n);
  if (s.check && idle > 0.15)
    return fprintf(stderr, "btcchat-bench-pipes: %.1f %% beyond imbalance, at most 15 %% allowed\n", 100 * idle), 1;
  return 0;
}
