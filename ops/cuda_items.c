/*
 * Rows of many items on a CUDA device, and recorded steps.
 *
 * What a step's rows mean (positions, items, tokens, places of keys and values) lies in one block of device memory at fixed
 * places, sent before the step. So a decode step's kernels read everything that changes from there, and a recording of them
 * (a CUDA graph) can be repeated as it is. Where recording fails, steps are issued one kernel after the other.
 *
 * The block is written in pinned memory and sent from there. Several such copies are taken in turn, so that the next step is
 * prepared while the device still works on the ones before.
 */
#include <string.h>

#include "base/log.h"
#include "ops/cuda_parts.h"

/* Places in the block, for the most items, layers and rows. Up to `head` lies what every step needs, behind it what belongs to the
 * rows of a prefill; item_row and item_pos are the same for steps of one row an item. */
typedef struct places {
  size_t k, v, ids, first_row, pos, item_row, item_pos, head, row_item, row_pos, end;
} places;

static size_t up(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

/* Of one prefill: 64 items of 4096 positions have tables of 2 MB. */
static int64_t most_rows(const cuda_backend *c) {
  const int64_t all = c->o.max_items * c->o.max_positions, most = 1 << 18;
  return all < most ? all : most;
}

static places places_of(const cuda_backend *c) {
  size_t items = (size_t)c->o.max_items, layers = (size_t)(c->o.max_layers ? c->o.max_layers : 1), rows = (size_t)most_rows(c);
  places p = {0};
  p.v = up(items * layers * sizeof(void *));
  p.ids = p.v + up(items * layers * sizeof(void *));
  p.first_row = p.ids + up(items * sizeof(int32_t));
  p.pos = p.first_row + up((items + 1) * sizeof(int32_t));
  p.item_row = p.pos + up(items * sizeof(int32_t));
  p.item_pos = p.item_row + up(items * sizeof(int32_t));
  p.head = p.item_pos + up(items * sizeof(int32_t));
  p.row_item = p.head;
  p.row_pos = p.row_item + up(rows * sizeof(int32_t));
  p.end = p.row_pos + up(rows * sizeof(int32_t));
  return p;
}

static btc_status open_tables(cuda_backend *c, btc_error *err) {
  void *p = NULL;
  c->table_bytes = places_of(c).end;
  btc_status st = cuda_alloc(c->base, c->table_bytes, &p, err);
  c->table = p;
  if (st != BTC_OK) return st;
  for (int i = 0; i < CUDA_TABLES; i++) {
    if ((st = cuda_staging_take(c, c->table_bytes, &c->table_copy[i], err)) != BTC_OK) return st;
    if (!CUDA_TRY(c, cudaEventCreateWithFlags(&c->table_sent[i], cudaEventDisableTiming))) return cuda_failure(c, err);
  }
  c->table_host = c->table_copy[0].at;
  return BTC_OK;
}

btc_status cuda_items_open(cuda_backend *c, btc_error *err) {
  if (c->o.max_items < 1) return BTC_OK;
  void *p = NULL;
  btc_status st = open_tables(c, err);
  if (st != BTC_OK) return st;
  if ((st = cuda_alloc(c->base, (size_t)c->o.max_positions * sizeof *c->ids, &p, err)) != BTC_OK) return st;
  c->ids = p;
  c->decode_bytes = btc_cuda_decode_scratch(c->o.max_items, c->o.heads, c->o.head_dim, c->o.max_positions);
  if ((st = cuda_alloc(c->base, c->decode_bytes, &p, err)) != BTC_OK) return st;
  c->decode_scratch = p;
  const size_t counts = (size_t)(c->o.max_items * c->o.heads) * sizeof *c->decode_done;
  if ((st = cuda_alloc(c->base, counts, &p, err)) != BTC_OK) return st;
  c->decode_done = p;
  return CUDA_TRY(c, cudaMemsetAsync(p, 0, counts, c->stream)) ? BTC_OK : cuda_failure(c, err);
}

void cuda_items_close(cuda_backend *c) {
  for (int i = 0; i < c->n_recordings; i++) (void)cudaGraphExecDestroy(c->recording[i].exec);
  if (c->table) (void)cudaFree(c->table);
  if (c->ids) (void)cudaFree(c->ids);
  if (c->decode_scratch) (void)cudaFree(c->decode_scratch);
  if (c->decode_done) (void)cudaFree(c->decode_done);
  for (int i = 0; i < CUDA_TABLES; i++) {
    if (c->table_sent[i]) (void)cudaEventDestroy(c->table_sent[i]);
    cuda_staging_free(&c->table_copy[i]);
  }
}

/* first_row and pos for rows [first, first+m) of all: those of the items that have some of them, cut to the window; the others
 * have no row. */
static void fill_window(cuda_backend *c, int64_t first, int64_t m) {
  const places p = places_of(c);
  const btc_items *t = &c->base->items;
  int32_t *starts = (int32_t *)(c->table_host + p.first_row), *pos = (int32_t *)(c->table_host + p.pos);
  int64_t start = 0;
  c->max_rows = 0;
  for (int64_t i = 0; i < t->n; start += t->rows[i++]) {
    int64_t from = start - first, to = from + t->rows[i];
    int64_t a = from < 0 ? 0 : from > m ? m : from, z = to < 0 ? 0 : to > m ? m : to;
    starts[i] = (int32_t)a;
    starts[i + 1] = (int32_t)z;
    pos[i] = (int32_t)(t->pos[i] + a - from);
    if (z - a > c->max_rows) c->max_rows = z - a;
  }
  c->window_first = first;
  c->window_rows = m;
}

static void send(cuda_backend *c, size_t from, size_t to) {
  if (c->failed.code == BTC_OK && from < to)
    CUDA_TRY(c, cudaMemcpyAsync(c->table + from, c->table_host + from, to - from, cudaMemcpyHostToDevice, c->stream));
}

/* The next copy in turn, which may still be on its way to the device. */
static void take_table(cuda_backend *c) {
  c->table_at = (c->table_at + 1) % CUDA_TABLES;
  c->table_host = c->table_copy[c->table_at].at;
  if (c->failed.code == BTC_OK) CUDA_TRY(c, cudaEventSynchronize(c->table_sent[c->table_at]));
}

static void mark_sent(cuda_backend *c) {
  if (c->failed.code == BTC_OK) CUDA_TRY(c, cudaEventRecord(c->table_sent[c->table_at], c->stream));
}

static void fill_rows(cuda_backend *c, const btc_items *t, const places *p) {
  int32_t *row_item = (int32_t *)(c->table_host + p->row_item), *row_pos = (int32_t *)(c->table_host + p->row_pos);
  int64_t rows = 0;
  for (int64_t i = 0; i < t->n; i++)
    for (int64_t r = 0; r < t->rows[i] && rows < most_rows(c); r++, rows++) {
      row_item[rows] = (int32_t)i;
      row_pos[rows] = (int32_t)(t->pos[i] + r);
    }
  c->n_rows = rows;
}

static void fill_items(cuda_backend *c, const btc_items *t, const places *p) {
  int32_t *item_row = (int32_t *)(c->table_host + p->item_row), *item_pos = (int32_t *)(c->table_host + p->item_pos);
  for (int64_t i = 0; i < t->n * t->layers; i++) {
    const size_t at = (size_t)i * sizeof t->kv[i].k;
    memcpy(c->table_host + p->k + at, &t->kv[i].k, sizeof t->kv[i].k);
    memcpy(c->table_host + p->v + at, &t->kv[i].v, sizeof t->kv[i].v);
  }
  for (int64_t i = 0; i < t->n; i++) {
    item_row[i] = (int32_t)i;
    item_pos[i] = (int32_t)t->pos[i];
  }
  if (t->ids) memcpy(c->table_host + p->ids, t->ids, (size_t)t->n * sizeof *t->ids);
}

void cuda_set_items(btc_backend *b, const btc_items *t) {
  cuda_backend *c = b->self;
  const places p = places_of(c);
  if (!c->table) return; /* a backend made without items */
  int64_t rows = 0;
  for (int64_t i = 0; i < t->n; i++) rows += t->rows[i];
  if (t->n > c->o.max_items || rows > most_rows(c)) {
    cuda_note(c, cudaErrorInvalidValue, "more rows than the tables hold", __FILE__, __LINE__);
    return;
  }
  take_table(c);
  fill_items(c, t, &p);
  fill_rows(c, t, &p);
  if (t->layers) c->kv = t->kv[0];
  c->n_items = t->n;
  fill_window(c, 0, c->n_rows);
  send(c, 0, p.head);
  if (!t->ids) {
    send(c, p.row_item, p.row_item + (size_t)c->n_rows * sizeof(int32_t));
    send(c, p.row_pos, p.row_pos + (size_t)c->n_rows * sizeof(int32_t));
  }
  mark_sent(c);
}

/* Rows [first, first+m) as the kernels see them. Only a call for another window than the last costs anything. */
static void set_window(cuda_backend *c, int64_t first, int64_t m) {
  const places p = places_of(c);
  if (first == c->window_first && m == c->window_rows) return;
  take_table(c);
  fill_window(c, first, m);
  send(c, p.first_row, p.item_row);
  mark_sent(c);
}

typedef struct attention {
  btc_cuda_kv kv;
  btc_cuda_causal causal; /* but for the queries */
  btc_cuda_rotation rotation;
} attention;

/* false: it cannot be computed. */
static bool describe(cuda_backend *c, const btc_attention_items *a, attention *out) {
  const places p = places_of(c);
  const size_t at = (size_t)(a->layer * c->n_items) * sizeof(void *);
  set_window(c, a->first, a->m);
  *out = (attention){
      .kv = {.k = (void *const *)(c->table + p.k + at),
             .v = (void *const *)(c->table + p.v + at),
             .type = (btc_cuda_type)c->kv.dtype,
             .kv_heads = c->kv.kv_heads,
             .capacity = c->kv.capacity,
             .d = c->kv.d},
      .causal = {.o = a->o,
                 .out = c->bf16 ? BTC_CUDA_BF16 : BTC_CUDA_F32,
                 .heads = a->heads,
                 .items = c->n_items,
                 .max_rows = c->max_rows,
                 .first_row = (const int32_t *)(c->table + p.first_row),
                 .pos = (const int32_t *)(c->table + p.pos),
                 .scale = a->scale,
                 .bf16_math = c->bf16},
      .rotation = {.row_item = (const int32_t *)(c->table + (a->prefill ? p.row_item : p.item_row)) + a->first,
                   .row_pos = (const int32_t *)(c->table + (a->prefill ? p.row_pos : p.item_pos)) + a->first,
                   .cos = cuda_vector(c, a->cos),
                   .sin = cuda_vector(c, a->sin),
                   .heads = a->heads},
  };
  if (c->failed.code != BTC_OK) return false;
  /* A cache larger than the context the backend was made for would make more splits than the scratch has room for. */
  if (!a->prefill && btc_cuda_decode_scratch(c->n_items, a->heads, c->kv.d, c->kv.capacity) > c->decode_bytes)
    return cuda_note(c, cudaErrorInvalidValue, "keys and values beyond the backend's positions", __FILE__, __LINE__);
  return true;
}

static void attend(cuda_backend *c, attention *job, const float *q, int64_t q_stride, bool prefill) {
  job->causal.q = q;
  job->causal.q_stride = q_stride;
  if (!prefill)
    CUDA_TRY(c, btc_cuda_attend_decode(&job->causal, &job->kv, c->kv.capacity, c->decode_done, c->decode_scratch, c->stream));
  else
    CUDA_TRY(c, btc_cuda_attend_causal(&job->causal, &job->kv, c->stream));
}

void cuda_attention_items(btc_backend *b, const btc_attention_items *a) {
  cuda_backend *c = b->self;
  attention job;
  if (!describe(c, a, &job)) return;
  const btc_cuda_rotation *r = &job.rotation;
  if (CUDA_TRY(c, btc_cuda_rope_store(a->q, a->q_stride, a->heads, a->k, a->k_stride, a->v, a->v_stride, a->m, &job.kv, r->row_item,
                                      r->row_pos, r->cos, r->sin, c->stream)))
    attend(c, &job, a->q, a->q_stride, a->prefill);
}

/* One launch makes queries, keys and values of a decode step and puts them where attention finds them. */
bool cuda_products_attend(btc_backend *b, const btc_products *p, const btc_attention_items *a) {
  cuda_backend *c = b->self;
  cuda_constant whole;
  attention job;
  if (!p->few || a->prefill || p->bias[0] || !cuda_together(c, p, &whole)) return false;
  const btc_cuda_matrix w = cuda_matrix(c, &whole);
  if (!btc_cuda_matvec_rotates(&w, c->kv.d, c->bf16)) return false;
  if (!describe(c, a, &job)) return true;
  const btc_cuda_rows rows = cuda_few_rows(b, p, &whole);
  const int64_t q_stride = a->heads * c->kv.d;
  if (c->failed.code == BTC_OK &&
      CUDA_TRY(c, btc_cuda_matvec_rotated(p->y, q_stride, &rows, &w, &job.kv, &job.rotation, c->bf16, c->stream)))
    attend(c, &job, p->y, q_stride, false);
  return true;
}

void cuda_embed_items(btc_backend *b, float *y, const btc_weight *table) {
  cuda_backend *c = b->self;
  const cuda_constant *k = cuda_find(c, table->data);
  if (c->failed.code == BTC_OK && k)
    CUDA_TRY(c, btc_cuda_embed(y, k->exact, (btc_cuda_type)table->dtype, table->cols,
                               (const int32_t *)(c->table + places_of(c).ids), c->n_items, c->stream));
}

/* ---- recordings ---- */

static void begin_recording(cuda_backend *c, uint64_t key) {
  if (c->no_recording || c->failed.code != BTC_OK) return;
  if (c->n_recordings == CUDA_RECORDINGS) { /* the memory they refer to has changed since: all of them are old */
    for (int i = 0; i < c->n_recordings; i++) CUDA_TRY(c, cudaGraphExecDestroy(c->recording[i].exec));
    c->n_recordings = 0;
  }
  if (cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
    (void)cudaGetLastError();
    c->no_recording = true;
    return;
  }
  c->recording_now = c->n_recordings;
  c->recording[c->n_recordings].key = key;
}

/* Kernels are loaded when they are first launched, which a recording may not survive: so a sequence runs once before it is
 * recorded. */
static bool was_issued(cuda_backend *c, uint64_t key) {
  for (int i = 0; i < CUDA_RECORDINGS; i++)
    if (c->issued[i] == key + 1) return true;
  c->issued[c->next_issued] = key + 1; /* 0: none */
  c->next_issued = (c->next_issued + 1) % CUDA_RECORDINGS;
  return false;
}

bool cuda_sequence_begin(btc_backend *b, uint64_t key) {
  cuda_backend *c = b->self;
  for (int i = 0; i < c->n_recordings; i++) {
    if (c->recording[i].key != key) continue;
    if (c->failed.code == BTC_OK) CUDA_TRY(c, cudaGraphLaunch(c->recording[i].exec, c->stream));
    return true;
  }
  if (was_issued(c, key)) begin_recording(c, key);
  return false;
}

/* A failure while recording is not one of the step's: nothing has run. The step is issued plainly, and later ones are recorded
 * without overlap, or when that was not the reason not at all. */
static void record_less(cuda_backend *c) {
  if (btc_cuda_overlaps())
    btc_cuda_overlap(0);
  else
    c->no_recording = true;
  btc_log(BTC_LOG_WARN, "slow-steps", "device=cuda:%d why=\"a decode step could not be recorded\" next=\"%s\"", c->device,
          c->no_recording ? "steps are issued" : "launches do not overlap");
}

bool cuda_sequence_end(btc_backend *b) {
  cuda_backend *c = b->self;
  cudaGraph_t graph = NULL;
  if (c->recording_now < 0) return true;
  cuda_recording *r = &c->recording[c->recording_now];
  c->recording_now = -1;
  bool ended = cudaStreamEndCapture(c->stream, &graph) == cudaSuccess && graph;
  bool good = ended && c->failed.code == BTC_OK && cudaGraphInstantiate(&r->exec, graph, 0) == cudaSuccess;
  if (graph) (void)cudaGraphDestroy(graph);
  if (!good) {
    (void)cudaGetLastError();
    record_less(c);
    if (!c->lost) c->failed = (btc_error){0};
    return false;
  }
  c->n_recordings++;
  CUDA_TRY(c, cudaGraphLaunch(r->exec, c->stream));
  return true;
}
