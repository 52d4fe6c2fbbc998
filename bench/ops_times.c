/*
 * Where a backend's time goes: btcchat-bench-ops DEVICE [small] [decode]. The products of gpu_shapes.h, and every part of a decode
 * step's layer as a step runs it (a device repeats it from a recording), in bf16 over random weights. Each of a part's repetitions
 * has weights of its own, so that none are found in a cache. Prints a JSON object a line. small: a little of everything, to try the
 * program; decode: no products. Exit status 1 with the reason when there is no such device or it fails.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_shapes.h"
#include "ops/ops.h"

enum { LAYERS = 16, MOST_ITEMS = 32, ROUNDS = 5, MOST_CALLS = 512, CONTEXT = 4096 };
#define ROUND_NS INT64_C(30000000)

typedef struct sizes {
  int64_t hidden, heads, mlp, vocab, position, capacity, layers;
  int64_t shrink; /* of the products */
} sizes;

static const sizes full = {2560, 20, 6912, 32000, 262, 320, LAYERS, 1}, small = {128, 1, 256, 100, 5, 8, 2, 32};
enum { HEAD_DIM = 128 };

typedef struct layer {
  btc_weight heads[3], o, gated[2], down;
} layer;

typedef struct bench {
  const sizes *z;
  btc_backend *be;
  uint16_t *stored; /* random bf16: matrices are places in it, each with an address of its own */
  float *floats;    /* random, [floats_n] */
  size_t stored_n, floats_n, next;
  layer layer[LAYERS];
  btc_weight head;
  btc_kv kv[LAYERS * MOST_ITEMS];
  const float *norm, *cos, *sin;
  float *h, *normed, *made, *o; /* of the backend's memory */
  btc_pick *picks;
  int64_t items;
} bench;

static void stop(const char *why) {
  fprintf(stderr, "btcchat-bench-ops: %s\n", why);
  exit(1);
}

static void must(btc_status st, const btc_error *err) {
  if (st != BTC_OK) stop(err->message);
}

/* ---- memory ---- */

static uint64_t state = 1;
static uint32_t random_bits(void) {
  state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
  return (uint32_t)(state >> 33);
}

/* Weights of 2^-9 to 2^-5 and rows of 1: what is added to a row again and again stays small. */
static void fill(bench *b, size_t stored_n, size_t floats_n) {
  b->stored_n = stored_n;
  b->floats_n = floats_n;
  b->stored = malloc(stored_n * sizeof *b->stored);
  b->floats = malloc(floats_n * sizeof *b->floats);
  if (!b->stored || !b->floats) stop("out of memory");
  for (size_t i = 0; i < stored_n; i++) {
    uint32_t r = random_bits();
    b->stored[i] = (uint16_t)((r & 1) << 15 | (118 + (r >> 1 & 3)) << 7 | (r >> 3 & 127));
  }
  for (size_t i = 0; i < floats_n; i++) b->floats[i] = (float)(random_bits() >> 7) * 0x1p-23f - 1.0f;
}

static btc_weight new_matrix(bench *b, int64_t rows, int64_t cols) {
  btc_weight w = {b->stored + b->next, BTC_BF16, rows, cols};
  b->next += 64;
  if (b->next + (size_t)(rows * cols) > b->stored_n) stop("too many matrices for one block of random weights");
  return w;
}

static void hold_matrix(bench *b, const btc_weight *w, int n) {
  btc_error err = {0};
  must(n == 1 ? btc_backend_hold(b->be, w, true, &err) : btc_backend_hold_together(b->be, w, n, true, &err), &err);
}

static const float *hold_floats(bench *b, int64_t rows, int64_t cols) {
  btc_error err = {0};
  const btc_weight w = {b->floats + b->next, BTC_F32, rows, cols};
  b->next += 64;
  if (b->next + (size_t)(rows * cols) > b->floats_n) stop("too many vectors");
  must(btc_backend_hold(b->be, &w, false, &err), &err);
  return w.data;
}

static void *take(bench *b, int64_t bytes) {
  btc_error err = {0};
  void *p = NULL;
  must(btc_backend_alloc(b->be, (size_t)bytes, &p, &err), &err);
  return p;
}

/* Random rows of so many floats in all. */
static float *take_rows(bench *b, int64_t n) {
  float *p = take(b, n * (int64_t)sizeof *p);
  for (int64_t i = 0, k; i < n; i += k) {
    k = n - i < (int64_t)b->floats_n ? n - i : (int64_t)b->floats_n;
    btc_op_copy(b->be, p + i, b->floats, (size_t)k * sizeof *p);
  }
  return p;
}

/* ---- time ---- */

typedef void work(bench *b, const void *what);

static int64_t run(bench *b, work *w, const void *what, int64_t calls) {
  btc_error err = {0};
  int64_t start = btc_now_ns();
  for (int64_t i = 0; i < calls; i++) w(b, what);
  must(btc_backend_finish(b->be, &err), &err);
  return btc_now_ns() - start;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Median nanoseconds of a call, of rounds of so many calls that starting and waiting do not count. */
static double time_ns(bench *b, work *w, const void *what) {
  double ns[ROUNDS];
  (void)run(b, w, what, 3); /* plans are made, and a recording */
  int64_t one = run(b, w, what, 1), calls = one ? ROUND_NS / one : MOST_CALLS;
  calls = calls < 1 ? 1 : calls > MOST_CALLS ? MOST_CALLS : calls;
  for (int i = 0; i < ROUNDS; i++) ns[i] = (double)run(b, w, what, calls) / (double)calls;
  qsort(ns, ROUNDS, sizeof ns[0], by_value);
  return ns[ROUNDS / 2];
}

/* ---- products of many rows ---- */

typedef struct wide_product {
  btc_weight w;
  btc_epilogue e;
  int64_t m;
  float *x, *y;
} wide_product;

static void multiply(bench *b, const void *what) {
  const wide_product *p = what;
  btc_op_matmul(b->be, p->y, p->x, p->m, &p->w, &p->e);
}

static void time_product(bench *b, const gpu_shape *s) {
  const int64_t m = s->m / b->z->shrink / b->z->shrink + 1, n = s->n / b->z->shrink, k = s->k / b->z->shrink;
  wide_product p = {.m = b->z->shrink == 1 ? s->m : m, .w = new_matrix(b, n, k)};
  float *rows = take_rows(b, p.m * k);
  hold_matrix(b, &p.w, 1);
  p.x = take(b, p.m * k * (int64_t)sizeof(float));
  p.y = take(b, p.m * n * (int64_t)sizeof(float));
  btc_op_rmsnorm_packed(b->be, p.x, rows, p.m, k, hold_floats(b, 1, k), 1e-5f);
  p.e = (btc_epilogue){.bias = s->bias ? hold_floats(b, 1, n) : NULL,
                       .residual = s->added ? p.y : NULL,
                       .act = s->gelu ? BTC_ACT_GELU_TANH : BTC_ACT_NONE,
                       .x_packed = true,
                       .y_packed = s->y_bf16};
  const double ns = time_ns(b, multiply, &p);
  printf("{\"product\":\"%s\",\"m\":%lld,\"n\":%lld,\"k\":%lld,\"ms\":%.4f,\"tflops\":%.2f}\n", s->name, (long long)p.m,
         (long long)n, (long long)k, ns * 1e-6, 2e-3 * (double)p.m * (double)n * (double)k / ns);
  btc_backend_free(b->be, rows);
  btc_backend_free(b->be, p.x);
  btc_backend_free(b->be, p.y);
}

/* ---- a decode step's layer ---- */

/* Products of the items' rows behind a norm; the caller names the matrices. */
static btc_products of_rows(const bench *b, int n) {
  return (btc_products){
      .n = n, .x = b->h, .m = b->items, .norm = b->norm, .eps = 1e-5f, .normed = b->normed, .y = b->made, .few = true};
}

static btc_products heads_of(const bench *b, int64_t i) {
  btc_products p = of_rows(b, 3);
  for (int k = 0; k < 3; k++) p.w[k] = &b->layer[i].heads[k];
  return p;
}

/* As the decoder does it: what makes queries, keys and values also rotates and stores them. */
static void attend(const bench *b, int64_t i) {
  const btc_products p = heads_of(b, i);
  btc_op_products_attend(b->be, &p,
                         &(btc_attention_items){.o = b->o,
                                                .m = b->items,
                                                .layer = i,
                                                .heads = b->z->heads,
                                                .cos = b->cos,
                                                .sin = b->sin,
                                                .scale = 1.0f / sqrtf(HEAD_DIM)});
}

/* Of that, queries, keys and values alone. */
static void make_heads(const bench *b, int64_t i) {
  const btc_products p = heads_of(b, i);
  btc_op_products(b->be, &p);
}

static void project(const bench *b, int64_t i) {
  btc_op_matvec(b->be, b->h, b->o, b->items, &b->layer[i].o, &(btc_epilogue){.x_packed = true, .residual = b->h});
}

static void make_gated(const bench *b, int64_t i) {
  btc_products p = of_rows(b, 2);
  for (int k = 0; k < 2; k++) p.w[k] = &b->layer[i].gated[k];
  btc_op_products_gated(b->be, b->o, &p);
}

static void close_layer(const bench *b, int64_t i) {
  btc_op_matvec(b->be, b->h, b->o, b->items, &b->layer[i].down, &(btc_epilogue){.x_packed = true, .residual = b->h});
}

static void whole_layer(const bench *b, int64_t i) {
  attend(b, i);
  project(b, i);
  make_gated(b, i);
  close_layer(b, i);
}

static void choose(const bench *b, int64_t i) {
  (void)i;
  btc_products p = of_rows(b, 1);
  p.w[0] = &b->head;
  btc_op_products(b->be, &p);
  btc_op_pick(b->be, b->picks, b->made, b->z->vocab, b->items, b->z->vocab);
}

typedef struct part {
  const char *name;
  void (*issue)(const bench *b, int64_t layer);
  bool once;       /* a step, not a layer */
  uint64_t number; /* of its recordings */
} part;

static const part parts[] = {{"norm, query, key, value, rotation, cache, attention", attend, false, 1},
                             {"of these norm, query, key, value", make_heads, false, 2},
                             {"out and residual", project, false, 3},
                             {"norm, gate, up, SiLU", make_gated, false, 4},
                             {"down and residual", close_layer, false, 5},
                             {"a layer", whole_layer, false, 6},
                             {"head and pick, a step", choose, true, 7}};
enum { PARTS = sizeof parts / sizeof parts[0] };

static void issue(const bench *b, const part *p) {
  for (int64_t i = 0; i < (p->once ? 1 : b->z->layers); i++) p->issue(b, i);
}

static void step(bench *b, const void *what) {
  const part *p = what;
  if (btc_op_sequence_begin(b->be, p->number << 32 | (uint64_t)b->items)) return;
  issue(b, p);
  if (!btc_op_sequence_end(b->be)) issue(b, p);
}

static double matrix_bytes(const btc_weight *w) {
  return 2.0 * (double)w->rows * (double)w->cols;
}

/* Bytes that a part has to read: weights, keys and values. */
static double bytes_of(const bench *b, const part *p) {
  const layer *l = &b->layer[0];
  const double heads = 3 * matrix_bytes(&l->heads[0]),
               keys = 4.0 * (double)(b->items * (b->z->position + 1) * b->z->heads * HEAD_DIM);
  const double each[] = {heads + keys, heads, matrix_bytes(&l->o), 2 * matrix_bytes(&l->gated[0]), matrix_bytes(&l->down)};
  if (p->once) return matrix_bytes(&b->head);
  return p->number < 6 ? each[p->number - 1] : each[0] + each[2] + each[3] + each[4];
}

static void time_decode(bench *b, int64_t items) {
  int64_t pos[MOST_ITEMS], rows[MOST_ITEMS];
  btc_kv kv[LAYERS * MOST_ITEMS];
  b->items = items;
  for (int64_t i = 0; i < items; i++) {
    pos[i] = b->z->position;
    rows[i] = 1;
    for (int64_t l = 0; l < b->z->layers; l++) kv[l * items + i] = b->kv[l * MOST_ITEMS + i];
  }
  const btc_items all = {.n = items, .layers = b->z->layers, .kv = kv, .pos = pos, .rows = rows};
  btc_op_set_items(b->be, &all);
  for (int i = 0; i < PARTS; i++) {
    const double ns = time_ns(b, step, &parts[i]) / (parts[i].once ? 1.0 : (double)b->z->layers);
    printf("{\"decode\":\"%s\",\"items\":%lld,\"us\":%.2f,\"gbs\":%.0f}\n", parts[i].name, (long long)items, ns * 1e-3,
           bytes_of(b, &parts[i]) / ns);
  }
}

static void make_layers(bench *b) {
  const sizes *z = b->z;
  const int64_t q = z->heads * HEAD_DIM, one = z->capacity * q;
  for (int64_t i = 0; i < z->layers; i++) {
    layer *l = &b->layer[i];
    for (int k = 0; k < 3; k++) l->heads[k] = new_matrix(b, q, z->hidden);
    for (int k = 0; k < 2; k++) l->gated[k] = new_matrix(b, z->mlp, z->hidden);
    l->o = new_matrix(b, z->hidden, q);
    l->down = new_matrix(b, z->hidden, z->mlp);
    hold_matrix(b, l->heads, 3);
    hold_matrix(b, l->gated, 2);
    hold_matrix(b, &l->o, 1);
    hold_matrix(b, &l->down, 1);
    for (int64_t k = 0; k < MOST_ITEMS; k++) {
      btc_kv *kv = &b->kv[i * MOST_ITEMS + k];
      *kv = (btc_kv){.k = take(b, 4 * one), .dtype = BTC_BF16, .kv_heads = z->heads, .capacity = z->capacity, .d = HEAD_DIM};
      kv->v = (uint16_t *)kv->k + one;
      btc_op_copy(b->be, kv->k, b->stored, (size_t)(4 * one)); /* weights are as good as keys and values */
    }
  }
  b->head = new_matrix(b, z->vocab, z->hidden);
  hold_matrix(b, &b->head, 1);
  b->norm = hold_floats(b, 1, z->hidden);
  b->cos = hold_floats(b, CONTEXT, HEAD_DIM / 2);
  b->sin = hold_floats(b, CONTEXT, HEAD_DIM / 2);
  const int64_t widest = 3 * q > 2 * z->mlp ? 3 * q : 2 * z->mlp;
  b->h = take_rows(b, MOST_ITEMS * z->hidden);
  b->normed = take_rows(b, MOST_ITEMS * z->hidden);
  b->o = take_rows(b, MOST_ITEMS * (q > z->mlp ? q : z->mlp));
  b->made = take_rows(b, MOST_ITEMS * (widest > z->vocab ? widest : z->vocab));
  b->picks = take(b, MOST_ITEMS * (int64_t)sizeof *b->picks);
}

static void give_back(bench *b) {
  void *const all[] = {b->h, b->normed, b->o, b->made, b->picks};
  for (int64_t i = 0; i < LAYERS * MOST_ITEMS; i++) btc_backend_free(b->be, b->kv[i].k);
  for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) btc_backend_free(b->be, all[i]);
  btc_backend_destroy(&b->be);
  free(b->stored);
  free(b->floats);
}

int main(int argc, char **argv) {
  static bench b;
  btc_error err = {0};
  bool little = false, decode = false;
  for (int i = 2; i < argc; i++) {
    little |= !strcmp(argv[i], "small");
    decode |= !strcmp(argv[i], "decode");
  }
  if (argc != 2 + little + decode) stop("usage: btcchat-bench-ops DEVICE [small] [decode]");
  b.z = little ? &small : &full;
  const btc_backend_options o = {.kind = argv[1],
                                 .compute = BTC_COMPUTE_BF16,
                                 .max_cols = b.z->mlp,
                                 .max_items = MOST_ITEMS,
                                 .max_layers = b.z->layers,
                                 .max_positions = CONTEXT,
                                 .heads = b.z->heads,
                                 .head_dim = HEAD_DIM};
  must(btc_backend_create(&o, &b.be, &err), &err);
  fill(&b, (size_t)1 << (little ? 20 : 27), (size_t)1 << 20);
  for (int i = 0; i < GPU_SHAPES && !decode; i++) time_product(&b, &gpu_shapes[i]);
  make_layers(&b);
  time_decode(&b, 1);
  time_decode(&b, MOST_ITEMS);
  give_back(&b);
  return 0;
}
