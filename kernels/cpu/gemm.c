/*
 * Products of many rows. x is packed once a chunk of rows, shared by the threads; a task is a block of outputs for a run of
 * rows: it widens its part of the weights (a block of columns at a time, into cache) and multiplies all its rows with it. Every
 * output is, for each block of columns in order, one chain of fused multiply-adds, added to the blocks before: the same whatever
 * the row stands next to. That is the row promise, kept by construction.
 */
#include "isa.h"

typedef struct job {
  const btc_cpu *c;
  const btc_cpu_matrix *w;
  const btc_cpu_epilogue *e;
  const float *x;
  float *y;
  int64_t first, rows;                           /* the chunk */
  int64_t panels;                                /* of mr rows in the chunk */
  int64_t panel_floats;                          /* of a packed panel */
  int64_t panels_a_task, column_blocks, columns; /* columns: outputs of a task */
} job;

enum { PACK_PANELS = 8, CACHED_PANELS = 16 };

/* Columns of a packed block. Blocks of even sizes, since a short last one would pay for its sums' way to the cache and back with
 * less work; multiples of what packing moves at once. */
static int64_t block_columns(const btc_cpu *c, int64_t k) {
  int64_t blocks = btc_ceil_div(k, c->pairs ? 2 * GEMM_WORDS : GEMM_KC);
  return btc_ceil_div(btc_ceil_div(k, blocks), 32) * 32;
}

/* The packed rows of panel p for the columns of `block`: [columns or pairs of them][mr] */
static float *packed(const job *j, int64_t block, int64_t p) {
  return j->c->rows + (size_t)((block * j->panels + p) * j->panel_floats);
}

static void pack_panel(const job *j, int64_t p) {
  const btc_cpu *c = j->c;
  int64_t k = j->w->k, mr = c->isa->mr, most = block_columns(c, k), rows = btc_min64(j->rows - p * mr, mr);
  for (int64_t at = 0; at < k; at += most) {
    const float *x = j->x + (j->first + p * mr) * k + at;
    if (c->pairs)
      c->isa->pack_x_pairs(packed(j, at / most, p), x, k, rows, btc_min64(k - at, most));
    else
      c->isa->pack_x(packed(j, at / most, p), x, k, rows, btc_min64(k - at, most), c->bf16);
  }
}

static void pack_task(void *arg, int64_t task, int worker) {
  (void)worker;
  const job *j = arg;
  int64_t end = btc_min64((task + 1) * PACK_PANELS, j->panels);
  for (int64_t p = task * PACK_PANELS; p < end; p++) pack_panel(j, p);
}

/* Stored weights that are packed next, row by row: they come from memory, in runs too short for the hardware to foresee. */
typedef struct coming {
  const char *data;
  int64_t row_bytes, rows, row;
} coming;

static coming coming_block(const job *j, int64_t n0, int64_t at) {
  int64_t k = j->w->k, n = j->w->n, size = (int64_t)btc_cpu_type_size(j->w->type);
  if (n0 >= n) n0 = 0;
  return (coming){
      .data = (const char *)j->w->data + (n0 * k + at) * size, .row_bytes = k * size, .rows = btc_min64(n - n0, j->columns)};
}

static const char *coming_row(coming *c) {
  if (c->row < c->rows - 1) c->row++;
  return c->data + c->row * c->row_bytes;
}

/* A prefetch of a page of the file that is not mapped yet is dropped, so pages are mapped first, by reading a byte of each: a first
 * prefill took 8 % more processor time without. */
static void map_pages(const job *j, int64_t n0) {
  enum { PAGE = 4096 };
  int64_t n = j->w->n;
  if (n0 >= n) return;
  size_t row = (size_t)j->w->k * btc_cpu_type_size(j->w->type), bytes = (size_t)btc_min64(n - n0, j->columns) * row;
  const volatile char *from = (const char *)j->w->data + (size_t)n0 * row;
  for (size_t at = 0; at < bytes; at += PAGE) (void)from[at];
}

/* dot products of panels [p0, p1) with `width` <= GEMM_NB outputs from n0, to sums[rows][GEMM_NB]; next_n0: this thread's next
 * columns, as a guess */
static void multiply(const job *j, float *sums, float *weights, float *rounded, int64_t p0, int64_t p1, int64_t n0, int64_t width,
                     int64_t next_n0) {
  const btc_cpu_isa *isa = j->c->isa;
  bool pairs = j->c->pairs;
  int64_t k = j->w->k, mr = isa->mr, nr = isa->nr, most = block_columns(j->c, k);
  map_pages(j, next_n0);
  for (int64_t at = 0; at < k; at += most) {
    int64_t kc = btc_min64(k - at, most), words = pairs ? btc_ceil_div(kc, 2) : kc;
    const char *w = (const char *)j->w->data + (size_t)(n0 * k + at) * btc_cpu_type_size(j->w->type);
    if (pairs)
      isa->pack_w_pairs(weights, rounded, w, j->w->type, k, width, kc);
    else
      isa->pack_w(weights, w, j->w->type, j->c->bf16, k, width, kc);
    coming next = at + most < k ? coming_block(j, n0, at + most) : coming_block(j, next_n0, 0);
    for (int64_t c0 = p0; c0 < p1; c0 += CACHED_PANELS) {
      int64_t c1 = btc_min64(c0 + CACHED_PANELS, p1);
      for (int64_t n = 0; n < width; n += nr)
        for (int64_t p = c0; p < c1; p++) {
          btc_cpu_ahead ahead = {packed(j, at / most, btc_min64(p + 1, p1 - 1)), {coming_row(&next), coming_row(&next)}};
          (pairs ? isa->tile_pairs : isa->tile)(packed(j, at / most, p), weights + n * words, words,
                                                sums + (p - p0) * mr * GEMM_NB + n, GEMM_NB, at > 0, j->rows - p * mr, ahead);
        }
    }
  }
}

static const float *offset(const float *p, int64_t by) {
  return p ? p + by : NULL;
}

static void multiply_task(void *arg, int64_t task, int worker) {
  const job *j = arg;
  int64_t mr = j->c->isa->mr, n = j->w->n;
  int64_t p0 = task / j->column_blocks * j->panels_a_task, p1 = btc_min64(p0 + j->panels_a_task, j->panels);
  int64_t n0 = task % j->column_blocks * j->columns, width = btc_min64(n - n0, j->columns);
  float *weights = btc_cpu_scratch(j->c, worker), *rounded = weights + GEMM_NB * GEMM_WORDS, *sums = rounded + GEMM_NB * GEMM_WORDS;
  multiply(j, sums, weights, rounded, p0, p1, n0, width, n0 + j->c->threads * j->columns);
  int64_t at = (j->first + p0 * mr) * n + n0;
  btc_cpu_epilogue e = *j->e;
  e.scale = offset(e.scale, n0);
  e.bias = offset(e.bias, n0);
  e.residual = offset(e.residual, at);
  j->c->isa->finish(j->y + at, n, sums, GEMM_NB, btc_min64(p1 * mr, j->rows) - p0 * mr, width, &e);
}

/* Outputs of a task: as many as fit, but so that the threads end together. */
static int64_t choose_columns(const btc_cpu *c, int64_t n) {
  int64_t best = GEMM_NB, least = INT64_MAX;
  for (int64_t columns = GEMM_NB; columns >= GEMM_NB / 2; columns -= c->isa->nr) {
    int64_t blocks = btc_ceil_div(n, columns), longest = btc_ceil_div(blocks, c->threads) * columns;
    if (blocks % c->threads == 1 || c->threads == 1) longest -= blocks * columns - n; /* the short block comes last */
    if (longest < least) best = columns, least = longest;
  }
  return best;
}

void btc_cpu_matmul(btc_cpu *c, float *y, const float *x, int64_t m, const btc_cpu_matrix *w, const btc_cpu_epilogue *e) {
  static const btc_cpu_epilogue none;
  int64_t mr = c->isa->mr, k = btc_ceil_div(w->k, GEMM_KC) * GEMM_KC;
  int64_t most = btc_min64(GEMM_CHUNK_ROWS, (int64_t)(c->rows_floats / (size_t)k)) / mr * mr;
  int64_t chunks = btc_ceil_div(m, most), chunk = btc_ceil_div(btc_ceil_div(m, chunks), mr) * mr;
  job j = {.c = c, .w = w, .e = e ? e : &none, .x = x, .y = y, .columns = choose_columns(c, w->n)};
  j.column_blocks = btc_ceil_div(w->n, j.columns);
  j.panel_floats = mr * block_columns(c, w->k) / (c->pairs ? 2 : 1);
  for (j.first = 0; j.first < m; j.first += chunk) {
    j.rows = btc_min64(m - j.first, chunk);
    j.panels = btc_ceil_div(j.rows, mr);
    /* Rows are divided only when there are too few columns to keep the threads busy: each part widens the weights again. */
    int64_t parts = btc_min64(btc_ceil_div(2 * c->threads, j.column_blocks), btc_ceil_div(j.panels, 4));
    if (c->threads == 1) parts = 1;
    j.panels_a_task = btc_ceil_div(j.panels, parts);
    btc_pool_run(c->pool, btc_ceil_div(j.panels, PACK_PANELS), pack_task, &j);
    btc_pool_run(c->pool, j.column_blocks * btc_ceil_div(j.panels, j.panels_a_task), multiply_task, &j);
  }
}
