/* See measure.h. */
#define _GNU_SOURCE
#include "measure.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "engine/forward.h"
#include "engine/kv_cache.h"

enum { ROUNDS = 3, PREFILL_ROWS = 64, DECODE_ROWS = 4, TEXT_POSITIONS = 64 /* of a prompt beside its picture */ };

static int64_t usual_positions(const btc_model *m, const measure_options *o) {
  int64_t n = m->block_tokens + TEXT_POSITIONS + o->max_tokens;
  return n < m->cfg->llm.context ? n : m->cfg->llm.context;
}

/* ---- time ---- */

typedef struct bench { /* one block by itself */
  btc_stage *stage;
  btc_stage_item items[DECODE_ROWS];
  int block, n;
  float *in, *out;
} bench;

static void close_bench(bench *b) {
  btc_stage_destroy(&b->stage);
  free(b->in);
  free(b->out);
}

static btc_status open_bench(const btc_model *m, const measure_options *o, int block, const btc_stage_item *it, bench *b,
                             btc_error *err) {
  const btc_stage_options so = {
      .backend = o->device, .threads = o->threads, .compute = o->bf16 ? BTC_COMPUTE_BF16 : BTC_COMPUTE_F32, .slots = DECODE_ROWS};
  *b = (bench){.block = block, .n = 1};
  b->items[0] = *it;
  btc_status st = btc_stage_create(m, block, block + 1, &so, &b->stage, err);
  if (st == BTC_OK) st = btc_stage_reserve(b->stage, it, 1, it->positions + 1, err);
  int64_t in = btc_flow_floats(m, block, it, 1, false), out = btc_flow_floats(m, block + 1, it, 1, false);
  int64_t least = DECODE_ROWS * (m->width > m->cfg->llm.vocab ? m->width : m->cfg->llm.vocab);
  b->in = btc_alloc((size_t)(in > least ? in : least), sizeof *b->in);
  b->out = btc_alloc((size_t)(out > least ? out : least), sizeof *b->out);
  if (st == BTC_OK && (!b->in || !b->out)) st = btc_fail(err, BTC_ERR_NOMEM, "not enough memory to time the model's blocks");
  /* numbers of the usual size: speed must not hang on denormals or on zeros */
  for (int64_t i = 0; b->in && i < (in > least ? in : least); i++) b->in[i] = (float)((i * 37 % 101) - 50) * 0.02f;
  if (st != BTC_OK) close_bench(b);
  return st;
}

static double ms_since(int64_t start) {
  return (double)(btc_now_ns() - start) * 1e-6;
}

/* The fastest of a few rounds: others only add to it. */
static btc_status time_prefill(bench *b, double *ms, btc_error *err) {
  btc_status st = BTC_OK;
  for (int i = 0; st == BTC_OK && i < ROUNDS; i++) {
    int64_t start = btc_now_ns();
    st = btc_stage_prefill(b->stage, b->items, b->n, b->in, b->out, err);
    double t = ms_since(start);
    if (i == 0 || t < *ms) *ms = t;
  }
  return st;
}

static btc_status time_decode(bench *b, int64_t past, double *ms, btc_error *err) {
  btc_status st = BTC_OK;
  for (int i = 0; i < DECODE_ROWS; i++) b->items[i] = (btc_stage_item){.positions = 1, .past = past, .slot = i};
  st = btc_stage_reserve(b->stage, b->items, DECODE_ROWS, past + 1, err);
  for (int i = 0; st == BTC_OK && i < ROUNDS; i++) {
    int64_t start = btc_now_ns();
    st = btc_stage_decode(b->stage, b->items, DECODE_ROWS, b->in, b->out, err);
    double t = ms_since(start) / DECODE_ROWS;
    if (i == 0 || t < *ms) *ms = t;
  }
  return st;
}

/* Milliseconds of a pair with a usual answer in block i. */
static btc_status time_block(const btc_model *m, const measure_options *o, int i, double *ms, btc_error *err) {
  const btc_block_kind kind = btc_block_at(m, i).kind;
  const int64_t positions = usual_positions(m, o) - o->max_tokens, rows = positions < PREFILL_ROWS ? positions : PREFILL_ROWS;
  btc_stage_item it = {.n_images = kind == BTC_BLOCK_CHANGE && m->change.layers >= 0 ? 2 : 1, .positions = rows};
  bench b;
  double decode = 0;
  *ms = 0;
  if (kind == BTC_BLOCK_SPLICE) return BTC_OK; /* copies: next to nothing */
  btc_status st = open_bench(m, o, i, &it, &b, err);
  if (st != BTC_OK) return st;
  st = time_prefill(&b, ms, err);
  if (st == BTC_OK && kind >= BTC_BLOCK_LLM) st = time_decode(&b, rows, &decode, err);
  close_bench(&b);
  if (kind <= BTC_BLOCK_VISION) *ms *= 2;
  if (kind == BTC_BLOCK_LLM) *ms *= (double)positions / (double)rows;
  *ms += (MEASURE_TOKENS - 1) * decode;
  return st;
}

btc_status measure_kinds(const btc_model *m, const measure_options *o, double ms[MEASURE_KINDS], btc_error *err) {
  btc_status st = BTC_OK;
  bool seen[MEASURE_KINDS] = {false};
  memset(ms, 0, MEASURE_KINDS * sizeof *ms);
  for (int i = 0; st == BTC_OK && i < btc_block_count(m); i++) {
    btc_block_kind kind = btc_block_at(m, i).kind;
    if (seen[kind]) continue;
    seen[kind] = true;
    st = time_block(m, o, i, &ms[kind], err);
  }
  return st;
}

/* ---- kept times ---- */

/* Times belong to a machine and to how it is used: a home directory may be everybody's. */
static char *kept_path(const measure_options *o) {
  char text[512], hex[65], name[96], host[64] = "", *home = NULL, *path = NULL;
  const char *cache = getenv("XDG_CACHE_HOME"), *user = getenv("HOME");
  gethostname(host, sizeof host - 1);
  snprintf(text, sizeof text, "prices 1\n%s\n%s\n%s %d %d", o->class, host, o->device, o->threads, o->bf16);
  btc_sha256_hex(text, strlen(text), hex);
  snprintf(name, sizeof name, "btcchat/prices-%.32s.json", hex);
  if (cache && *cache == '/')
    home = btc_strdup(cache);
  else if (user && *user == '/')
    home = btc_path_join(user, ".cache");
  if (home) path = btc_path_join(home, name);
  free(home);
  return path;
}

static bool read_kept(const char *path, double ms[MEASURE_KINDS]) {
  json_t *doc;
  float kept[MEASURE_KINDS];
  if (btc_json_read(path, &btc_json_config_limits, &doc, NULL) != BTC_OK) return false;
  const btc_json_object o = {.value = doc, .label = path, .key_prefix = ""};
  bool good = btc_json_get_numbers(&o, "ms", BTC_JSON_REQUIRED, MEASURE_KINDS, kept, NULL) == BTC_OK;
  for (int k = 0; good && k < MEASURE_KINDS; k++) {
    good = kept[k] >= 0 && kept[k] < 1e9f;
    ms[k] = kept[k];
  }
  json_decref(doc);
  return good;
}

/* What cannot be kept is measured again. */
static void keep(const char *path, const double ms[MEASURE_KINDS]) {
  char *dir = btc_strdup(path), *slash = dir ? strrchr(dir, '/') : NULL, text[256];
  size_t n = (size_t)snprintf(text, sizeof text, "{\"ms\": [");
  if (slash) *slash = 0;
  if (slash && (mkdir(dir, 0700) == 0 || errno == EEXIST)) {
    for (int k = 0; k < MEASURE_KINDS; k++) n += (size_t)snprintf(text + n, sizeof text - n, "%s%.6g", k ? ", " : "", ms[k]);
    n += (size_t)snprintf(text + n, sizeof text - n, "]}\n");
    btc_file_publish(path, text, n, NULL);
  }
  free(dir);
}

static btc_status times(const btc_model *m, const measure_options *o, double ms[MEASURE_KINDS], btc_error *err) {
  char *path = kept_path(o);
  btc_status st = BTC_OK;
  if (!path || !read_kept(path, ms)) {
    st = measure_kinds(m, o, ms, err);
    if (st == BTC_OK && path) keep(path, ms);
  }
  free(path);
  return st;
}

/* ---- bytes ---- */

static int64_t max64(int64_t a, int64_t b) {
  return a > b ? a : b;
}

static int64_t scratch_floats(const btc_model *m, btc_block_kind kind, const measure_options *o) {
  const int64_t images = max64(BTC_VISION_ROWS / m->tokens, 1);
  switch (kind) {
    case BTC_BLOCK_PATCH:
      return btc_patch_scratch(m, images);
    case BTC_BLOCK_VISION:
      return btc_vision_scratch(m, images);
    case BTC_BLOCK_CHANGE: /* with the features that are kept for it, and those of one item side by side */
      return m->tokens * m->hidden * (3 + o->places) + max64(btc_change_scratch(m, 1), btc_projector_scratch(m, 1));
    case BTC_BLOCK_LLM:
      return btc_llm_scratch(m, max64(BTC_LLM_ROWS, o->slots));
    default:
      return 2 * o->slots * m->width;
  }
}

/* Working memory of a block: its scratch, and its flow in the stage's two buffers, the rank's own, and the two links'; with a
 * carrier three of the rank's own: one that arrives, one that is computed, one that leaves. */
static int64_t work_bytes(const btc_model *m, int i, const measure_options *o) {
  const btc_stage_item it = {.n_images = 2, .positions = usual_positions(m, o)};
  int64_t flow = max64(i ? btc_flow_floats(m, i, &it, 1, false) : 0, btc_flow_floats(m, i + 1, &it, 1, false));
  if (i == 0) flow = max64(flow, btc_flow_floats(m, 0, &it, 1, false) / 2); /* pixels are in one place, their samples in one link */
  flow = max64(flow, o->slots * m->cfg->llm.vocab * (btc_block_at(m, i).kind == BTC_BLOCK_HEAD));
  return 4 * (scratch_floats(m, btc_block_at(m, i).kind, o) + 5 * flow);
}

/* A process with the program, the tokenizer, rotation tables and all small vectors. */
static int64_t fixed_bytes(const btc_model *m) {
  const btc_llm_config *l = &m->cfg->llm;
  const int64_t vectors = 4 * (m->tokens * m->hidden + 12 * m->hidden * m->cfg->vision.blocks + 2 * l->hidden * l->layers);
  return ((int64_t)16 << 20) + 4 * l->context * l->head_dim + 128 * l->vocab + vectors;
}

static Btc__PipeBlock describe(const btc_model *m, int i, const measure_options *o, const double ms[MEASURE_KINDS]) {
  const btc_llm_config *l = &m->cfg->llm;
  const btc_block b = btc_block_at(m, i);
  const btc_load load = {.images = 2, .blocks = 1, .positions = usual_positions(m, o), .pairs = m->change.layers >= 0};
  Btc__PipeBlock x = BTC__PIPE_BLOCK__INIT;
  x.kind = b.kind;
  x.count = 1;
  x.weight_bytes = (uint64_t)b.weight_bytes;
  if (b.kind == BTC_BLOCK_LLM)
    x.kv_bytes =
        (uint64_t)btc_kv_cache_slot_bytes(1, l->kv_heads, l->head_dim, o->bf16 ? BTC_BF16 : BTC_F32, usual_positions(m, o));
  x.work_bytes = (uint64_t)work_bytes(m, i, o);
  x.price = btc_block_flops(m, i, &load) * 1e-9;
  x.ms = ms[b.kind];
  return x;
}

static bool same(const Btc__PipeBlock *a, const Btc__PipeBlock *b) {
  return a->kind == b->kind && a->weight_bytes == b->weight_bytes && a->kv_bytes == b->kv_bytes && a->work_bytes == b->work_bytes;
}

btc_status measure_member(const btc_model *m, const measure_options *o, measure_result *out, btc_error *err) {
  const size_t blocks = (size_t)btc_block_count(m);
  double ms[MEASURE_KINDS];
  uint64_t work = 0;
  *out = (measure_result){.slots = (uint32_t)o->slots + 1}; /* and one for the beginning that all prompts share */
  btc_status st = times(m, o, ms, err);
  if (st != BTC_OK) return st;
  out->block = btc_alloc_zero(blocks, sizeof *out->block);
  out->list = btc_alloc_zero(blocks, sizeof *out->list);
  if (!out->block || !out->list) {
    measure_free(out);
    return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  }
  out->fixed_bytes = out->whole_bytes = (uint64_t)fixed_bytes(m);
  for (size_t i = 0; i < blocks; i++) {
    Btc__PipeBlock x = describe(m, (int)i, o, ms);
    out->whole_bytes += x.weight_bytes + out->slots * x.kv_bytes;
    if (x.work_bytes > work) work = x.work_bytes;
    if (out->n && same(&out->block[out->n - 1], &x)) {
      out->block[out->n - 1].count++;
      continue;
    }
    out->list[out->n] = &out->block[out->n];
    out->block[out->n++] = x;
  }
  out->whole_bytes += work;
  return BTC_OK;
}

void measure_free(measure_result *r) {
  free(r->block);
  free(r->list);
  *r = (measure_result){0};
}
