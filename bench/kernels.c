/*
 * btcchat-bench-kernels: the machine's roofs and our operators at the shapes of the full-size model (docs/performance.md), in one
 * run, because machines differ from day to day and only ratios of one run count. Best of several rounds of each.
 */
#define _GNU_SOURCE
#include <dnnl.h>
#include <getopt.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "ops/ops.h"

static double seconds_a_case = 0.5;
static clockid_t clock_used = CLOCK_MONOTONIC;
static int threads;
static bool json;
static const char *only = "";                   /* measure cases whose name contains this */
static double flop_roof, pairs_roof, byte_roof; /* per second; flop_roof is that of the products being measured */

static void *must(void *p) {
  if (p) return p;
  fputs("btcchat-bench-kernels: out of memory\n", stderr);
  exit(1);
}

/* ---- timing and printing ---- */

typedef void timed(void *arg);

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(clock_used, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static double best_seconds(timed *f, void *arg) {
  double best = INFINITY, spent = 0;
  f(arg); /* warm-up: pages, caches, first use */
  for (int round = 0; round < 3 || (spent < seconds_a_case && round < 1000); round++) {
    int64_t start = now_ns();
    f(arg);
    double s = (double)(now_ns() - start) * 1e-9;
    spent += s;
    best = s < best ? s : best;
  }
  return best;
}

/* flops and bytes of one call; 0 where they say nothing. The ratio is to the roof that binds. */
static void report(const char *name, double seconds, double flops, double bytes) {
  static bool any;
  double bound = fmax(flop_roof > 0 ? flops / flop_roof : 0, byte_roof > 0 ? bytes / byte_roof : 0),
         ratio = seconds > 0 ? bound / seconds : 0;
  if (json)
    printf("%s\n  {\"name\": \"%s\", \"ms\": %.4f, \"gflops\": %.2f, \"gbytes\": %.2f, \"of_roof\": %.3f}", any ? "," : "", name,
           seconds * 1e3, flops / seconds * 1e-9, bytes / seconds * 1e-9, ratio);
  else
    printf("%-44s %10.3f ms %9.1f GFLOP/s %7.2f GB/s %5.0f %%\n", name, seconds * 1e3, flops / seconds * 1e-9,
           bytes / seconds * 1e-9, ratio * 100);
  fflush(stdout);
  any = true;
}

static void measure(const char *name, timed *f, void *arg, double flops, double bytes) {
  if (strstr(name, only)) report(name, best_seconds(f, arg), flops, bytes);
}

/* ---- roofs ---- */

typedef struct roof_job {
  const float *data;
  size_t floats;
  float result;
} roof_job;

static void run_threads(void *(*f)(void *), roof_job *jobs) {
  pthread_t ids[256];
  for (int i = 1; i < threads; i++)
    if (pthread_create(&ids[i], NULL, f, &jobs[i])) exit(1);
  f(&jobs[0]);
  for (int i = 1; i < threads; i++) pthread_join(ids[i], NULL);
}

enum { FMA_ROUNDS = 100000 };

#if defined(__x86_64__)
/* Twelve independent chains: more than latency times throughput of any core we know. */
#define FMA12(C)                                                                                                               \
  "vfmadd231ps %12, %12, %0\n\tvfmadd231ps %12, %12, %1\n\tvfmadd231ps %12, %12, %2\n\tvfmadd231ps %12, %12, %3\n\t"           \
  "vfmadd231ps %12, %12, %4\n\tvfmadd231ps %12, %12, %5\n\tvfmadd231ps %12, %12, %6\n\tvfmadd231ps %12, %12, %7\n\t"           \
  "vfmadd231ps %12, %12, %8\n\tvfmadd231ps %12, %12, %9\n\tvfmadd231ps %12, %12, %10\n\tvfmadd231ps %12, %12, %11" : "+" C(a), \
                                                                                                                     "+" C(b), \
                                                                                                                     "+" C(c), \
                                                                                                                     "+" C(d), \
                                                                                                                     "+" C(e), \
                                                                                                                     "+" C(f), \
                                                                                                                     "+" C(g), \
                                                                                                                     "+" C(h), \
                                                                                                                     "+" C(i), \
                                                                                                                     "+" C(j), \
                                                                                                                     "+" C(k), \
                                                                                                                     "+" C(l)  \
      : C(x)

__attribute__((target("avx512f"))) static double fma_512(float *result) {
  __m512 x = _mm512_set1_ps(0.5f), a = x, b = x, c = x, d = x, e = x, f = x, g = x, h = x, i = x, j = x, k = x, l = x;
  for (int r = 0; r < FMA_ROUNDS; r++) __asm__ volatile(FMA12("v"));
  *result = _mm512_reduce_add_ps(a);
  return 2.0 * 16 * 12 * FMA_ROUNDS;
}

__attribute__((target("avx512f,avx512bf16"))) static double pairs_512(float *result) {
  __m512 x = _mm512_set1_ps(0.5f), a[12];
  for (int i = 0; i < 12; i++) a[i] = x;
#pragma GCC unroll 12
  for (int r = 0; r < FMA_ROUNDS; r++) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) __asm__ volatile("vdpbf16ps %1, %1, %0" : "+v"(a[i]) : "v"(x));
  }
  *result = _mm512_reduce_add_ps(a[0]);
  return 2.0 * 32 * 12 * FMA_ROUNDS;
}

__attribute__((target("avx2,fma"))) static double fma_256(float *result) {
  __m256 x = _mm256_set1_ps(0.5f), a = x, b = x, c = x, d = x, e = x, f = x, g = x, h = x, i = x, j = x, k = x, l = x;
  for (int r = 0; r < FMA_ROUNDS; r++) __asm__ volatile(FMA12("x"));
  *result = _mm256_cvtss_f32(a);
  return 2.0 * 8 * 12 * FMA_ROUNDS;
}

static double fma_rounds(float *result) {
  if (__builtin_cpu_supports("avx512f")) return fma_512(result);
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? fma_256(result) : 0;
}

static double pairs_rounds(float *result) {
  return btc_cpu_has_bf16() ? pairs_512(result) : 0;
}
#else
static double fma_rounds(float *result) {
  *result = 0;
  return 0;
}

static double pairs_rounds(float *result) {
  *result = 0;
  return 0;
}
#endif

static void *fma_thread(void *arg) {
  fma_rounds(&((roof_job *)arg)->result);
  return NULL;
}

static void fma_all(void *arg) {
  run_threads(fma_thread, arg);
}

static void *pairs_thread(void *arg) {
  pairs_rounds(&((roof_job *)arg)->result);
  return NULL;
}

static void pairs_all(void *arg) {
  run_threads(pairs_thread, arg);
}

/* Four places at once: one ascending stream leaves memory idle on some machines. */
static void *read_thread(void *arg) {
  roof_job *j = arg;
  typedef float vec __attribute__((vector_size(16)));
  const vec *v = (const vec *)(const void *)j->data;
  size_t quarter = j->floats / 16;
  vec sum[8] = {0};
  for (size_t i = 0; i + 4 <= quarter; i += 4)
    for (size_t s = 0; s < 4; s++)
      for (size_t u = 0; u < 4; u++) sum[(s & 1) * 4 + u] += v[s * quarter + i + u];
  for (int u = 1; u < 8; u++) sum[0] += sum[u];
  j->result = sum[0][0] + sum[0][1] + sum[0][2] + sum[0][3];
  return NULL;
}

static void read_all(void *arg) {
  run_threads(read_thread, arg);
}

static void measure_roofs(const float *data, size_t floats) {
  static roof_job jobs[256];
  float ignored;
  double flops = fma_rounds(&ignored) * threads;
  for (int i = 0; i < threads; i++)
    jobs[i] = (roof_job){data + floats / (size_t)threads / 16 * 16 * (size_t)i, floats / (size_t)threads / 16 * 16, 0};
  double s = best_seconds(read_all, jobs);
  byte_roof = (double)floats * 4 / s;
  report("roof: memory read", s, 0, (double)floats * 4);
  s = best_seconds(fma_all, jobs);
  flop_roof = flops / s;
  report("roof: f32 multiply-adds in registers", s, flops, 0);
  flops = pairs_rounds(&ignored) * threads;
  if (flops == 0) return;
  s = best_seconds(pairs_all, jobs);
  pairs_roof = flops / s;
  double f32_roof = flop_roof;
  flop_roof = pairs_roof;
  report("roof: bf16 multiply-adds in registers", s, flops, 0);
  flop_roof = f32_roof;
}

/* ---- products ---- */

typedef struct product {
  btc_backend *b;
  bool few_rows;
  float *y;
  const float *x;
  int64_t m;
  btc_weight w;
  btc_epilogue e;
} product;

static void run_product(void *arg) {
  product *p = arg;
  (p->few_rows ? btc_op_matvec : btc_op_matmul)(p->b, p->y, p->x, p->m, &p->w, &p->e);
}

/* oneDNN's own threads and blocking, as the peer */
static void run_dnnl(void *arg) {
  product *p = arg;
  dnnl_sgemm('N', 'T', p->m, p->w.rows, p->w.cols, 1.0f, p->x, p->w.cols, p->w.data, p->w.cols, 0.0f, p->y, p->w.rows);
}

typedef struct bf16_peer {
  dnnl_engine_t engine;
  dnnl_stream_t stream;
  dnnl_primitive_t primitive;
  dnnl_exec_arg_t args[3];
} bf16_peer;

/* Weights in place as [n,k]; false where this processor or this oneDNN has no such product. */
static bool make_dnnl_bf16(bf16_peer *d, const product *p) {
  const dnnl_dims_t x_dims = {p->m, p->w.cols}, w_dims = {p->w.cols, p->w.rows}, y_dims = {p->m, p->w.rows};
  dnnl_memory_desc_t md[3];
  dnnl_matmul_desc_t desc;
  dnnl_primitive_desc_t pd = NULL;
  const void *data[3] = {p->x, p->w.data, p->y};
  const int kinds[3] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
  bool ok = dnnl_memory_desc_init_by_tag(&md[0], 2, x_dims, dnnl_bf16, dnnl_ab) == dnnl_success &&
            dnnl_memory_desc_init_by_tag(&md[1], 2, w_dims, dnnl_bf16, dnnl_ba) == dnnl_success &&
            dnnl_memory_desc_init_by_tag(&md[2], 2, y_dims, dnnl_f32, dnnl_ab) == dnnl_success &&
            dnnl_matmul_desc_init(&desc, &md[0], &md[1], NULL, &md[2]) == dnnl_success &&
            dnnl_primitive_desc_create(&pd, &desc, NULL, d->engine, NULL) == dnnl_success &&
            dnnl_primitive_create(&d->primitive, pd) == dnnl_success;
  for (int i = 0; ok && i < 3; i++) {
    d->args[i].arg = kinds[i];
    ok = dnnl_memory_create(&d->args[i].memory, &md[i], d->engine, (void *)(uintptr_t)data[i]) == dnnl_success;
  }
  if (pd) dnnl_primitive_desc_destroy(pd);
  return ok;
}

static void run_dnnl_bf16(void *arg) {
  bf16_peer *d = arg;
  dnnl_primitive_execute(d->primitive, d->stream, 3, d->args);
  dnnl_stream_wait(d->stream);
}

static void bench_dnnl_bf16(const char *name, product *p, double flops, double bytes) {
  bf16_peer d = {0};
  if (dnnl_engine_create(&d.engine, dnnl_cpu, 0) != dnnl_success) return;
  if (dnnl_stream_create(&d.stream, d.engine, dnnl_stream_default_flags) == dnnl_success && make_dnnl_bf16(&d, p))
    measure(name, run_dnnl_bf16, &d, flops, bytes);
  for (int i = 0; i < 3; i++)
    if (d.args[i].memory) dnnl_memory_destroy(d.args[i].memory);
  if (d.primitive) dnnl_primitive_destroy(d.primitive);
  if (d.stream) dnnl_stream_destroy(d.stream);
  dnnl_engine_destroy(d.engine);
}

typedef struct shape {
  const char *name;
  int64_t m, n, k;
  btc_act act;
} shape;

static const shape wide_shapes[] = {
    {"vision q/k/v/out", 1458, 1152, 1152, BTC_ACT_NONE}, {"vision fc1 + gelu", 1458, 4304, 1152, BTC_ACT_GELU_TANH},
    {"vision fc2", 1458, 1152, 4304, BTC_ACT_NONE},       {"projector 1 + gelu", 196, 2560, 4608, BTC_ACT_GELU_ERF},
    {"projector 2", 196, 2560, 2560, BTC_ACT_NONE},       {"change 3x3", 729, 576, 5184, BTC_ACT_RELU},
    {"prefill q/k/v/o", 253, 2560, 2560, BTC_ACT_NONE},   {"prefill gate/up", 253, 6912, 2560, BTC_ACT_NONE},
    {"prefill down", 253, 2560, 6912, BTC_ACT_NONE},
};

static const shape few_shapes[] = {
    {"decode q/k/v/o", 1, 2560, 2560, BTC_ACT_NONE}, {"decode gate/up", 1, 6912, 2560, BTC_ACT_NONE},
    {"decode down", 1, 2560, 6912, BTC_ACT_NONE},    {"decode head", 1, 32000, 2560, BTC_ACT_NONE},
    {"decode gate/up", 2, 6912, 2560, BTC_ACT_NONE}, {"decode gate/up", 4, 6912, 2560, BTC_ACT_NONE},
    {"decode gate/up", 8, 6912, 2560, BTC_ACT_NONE}, {"decode gate/up", 16, 6912, 2560, BTC_ACT_NONE},
};

static const btc_backend *bf16_backend; /* the one of bf16 products, for the peer's sake */

static void bench_wide(btc_backend *b, const shape *s, float *y, const float *x, const float *data, btc_dtype type) {
  char name[96];
  product p = {b, false, y, x, s->m, {data, type, s->n, s->k}, {.bias = data, .act = s->act}};
  double flops = 2.0 * (double)s->m * (double)s->n * (double)s->k, bytes = (double)(s->n * s->k) * (double)btc_dtype_size(type);
  snprintf(name, sizeof name, "%s %s [%lld,%lld]x[%lld]", s->name, btc_dtype_name(type), (long long)s->m, (long long)s->k,
           (long long)s->n);
  measure(name, run_product, &p, flops, bytes);
  if (b == bf16_backend) {
    snprintf(name, sizeof name, "  %s by oneDNN bf16, no epilogue, packed x", s->name);
    bench_dnnl_bf16(name, &p, flops, bytes);
  }
  if (type != BTC_F32) return;
  snprintf(name, sizeof name, "  %s by oneDNN, no epilogue", s->name);
  measure(name, run_dnnl, &p, flops, bytes);
}

/* Successive calls walk through the data, so that no weight is still in a cache from the call before. */
typedef struct walk {
  product p;
  const char *data;
  size_t bytes, offset;
} walk;

static void run_walk(void *arg) {
  walk *w = arg;
  size_t size = (size_t)(w->p.w.rows * w->p.w.cols) * btc_dtype_size(w->p.w.dtype);
  if (w->offset + size > w->bytes) w->offset = 0;
  w->p.w.data = w->data + w->offset;
  w->offset += size;
  run_product(&w->p);
}

static void bench_few(btc_backend *b, const shape *s, float *y, const float *x, const float *data, size_t floats, btc_dtype type) {
  char name[96];
  walk w = {{b, true, y, x, s->m, {data, type, s->n, s->k}, {.act = s->act}}, (const char *)data, floats * 4, 0};
  double flops = 2.0 * (double)s->m * (double)s->n * (double)s->k, bytes = (double)(s->n * s->k) * (double)btc_dtype_size(type);
  snprintf(name, sizeof name, "%s %s [%lld,%lld]x[%lld]", s->name, btc_dtype_name(type), (long long)s->m, (long long)s->k,
           (long long)s->n);
  measure(name, run_walk, &w, flops, bytes);
}

/* ---- attention and rows ---- */

static void run_attention(void *arg) {
  void **a = arg;
  btc_op_attention(a[0], a[1]);
}

typedef struct causal {
  btc_backend *b;
  float *o;
  const float *q;
  int64_t m, pos;
  btc_kv kv;
} causal;

static void run_causal(void *arg) {
  causal *c = arg;
  btc_op_attention_causal(c->b, c->o, c->q, 2560, c->m, c->pos, 20, &c->kv, 0.088f);
}

static void bench_attention(btc_backend *b, float *y, const float *x) {
  btc_attention a = {x, x + 1458 * 1152, x + 2 * 1458 * 1152, y, 1152, 1152, 1152, 1152, 2, 729, 16, 72, 0.1178511f, false};
  void *args[] = {b, &a};
  measure("vision attention, 2 x 16 heads, 729 x 72", run_attention, args, 4.0 * 2 * 16 * 729 * 729 * 72, 0);
  causal c = {b, y, x, 253, 0, {(void *)(uintptr_t)(x + 2000000), (void *)(uintptr_t)(x + 3500000), BTC_F32, 20, 512, 128}};
  measure("prefill attention, 20 heads, 253 x 128", run_causal, &c, 4.0 * 20 * 253 * 254 / 2 * 128, 0);
  c.m = 1, c.pos = 300;
  measure("decode attention, 20 heads, 301 x 128", run_causal, &c, 4.0 * 20 * 301 * 128, 2.0 * 20 * 301 * 128 * 4);
}

typedef struct rows {
  btc_backend *b;
  float *y;
  const float *x;
  int64_t m, n;
} rows;

static void run_layernorm(void *arg) {
  rows *r = arg;
  btc_op_layernorm(r->b, r->y, r->x, r->m, r->n, r->x, r->x, 1e-6f);
}

static void run_silu(void *arg) {
  rows *r = arg;
  btc_op_silu_mul(r->b, r->y, r->x, r->x, r->m * r->n);
}

static void bench_rows(btc_backend *b, float *y, const float *x) {
  rows r = {b, y, x, 1458, 1152};
  measure("layernorm [1458,1152]", run_layernorm, &r, 0, 2.0 * 1458 * 1152 * 4);
  r = (rows){b, y, x, 253, 6912};
  measure("silu [253,6912]", run_silu, &r, 0, 3.0 * 253 * 6912 * 4);
}

/* ---- program ---- */

static btc_backend *backend(btc_compute compute) {
  btc_backend_options o = {.kind = "cpu", .threads = threads, .compute = compute, .max_cols = 6912};
  btc_backend *b;
  btc_error err;
  if (btc_backend_create(&o, &b, &err) == BTC_OK) return b;
  fprintf(stderr, "btcchat-bench-kernels: %s\n", err.message);
  exit(1);
}

static void bench_all(btc_compute compute, float *y, const float *x, const float *data, size_t floats) {
  btc_backend *b = backend(compute);
  bf16_backend = compute == BTC_COMPUTE_BF16 ? b : NULL;
  if (bf16_backend && pairs_roof > 0) flop_roof = pairs_roof;
  if (!json) printf("-- %s\n", btc_backend_describe(b));
  for (size_t i = 0; i < sizeof wide_shapes / sizeof wide_shapes[0]; i++) {
    if (compute == BTC_COMPUTE_F32) bench_wide(b, &wide_shapes[i], y, x, data, BTC_F32);
    bench_wide(b, &wide_shapes[i], y, x, data, BTC_BF16);
  }
  for (size_t i = 0; i < sizeof few_shapes / sizeof few_shapes[0]; i++) bench_few(b, &few_shapes[i], y, x, data, floats, BTC_BF16);
  bench_attention(b, y, x);
  if (compute == BTC_COMPUTE_F32) bench_rows(b, y, x);
  btc_backend_destroy(&b);
}

static int usage(FILE *to, int code) {
  fputs(
      "usage: btcchat-bench-kernels [--threads N] [--seconds S] [--only TEXT] [--cpu-time] [--json]\n"
      "  --threads N  threads, 1 to 256 (default: all processors)\n"
      "  --seconds S  time spent on each case (default 0.5)\n"
      "  --only TEXT  the cases whose names contain TEXT\n"
      "  --cpu-time   time of the calling thread alone: for one thread on a machine shared with others\n"
      "  --json       machine-readable output\n",
      to);
  return code;
}

static bool read_options(int argc, char **argv) {
  static const struct option options[] = {{"threads", required_argument, NULL, 't'}, {"seconds", required_argument, NULL, 's'},
                                          {"json", no_argument, NULL, 'j'},          {"only", required_argument, NULL, 'o'},
                                          {"cpu-time", no_argument, NULL, 'c'},      {0}};
  for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
    char *end = NULL;
    if (c == 't') threads = (int)strtol(optarg, &end, 10);
    if (c == 's') seconds_a_case = strtod(optarg, &end);
    if (c == 'o') only = optarg;
    if (c == 'j') json = true;
    if (c == 'c') clock_used = CLOCK_THREAD_CPUTIME_ID;
    if (c == '?' || (end && (*end || end == optarg)) || threads < 0 || threads > 256 ||
        !(seconds_a_case >= 0 && seconds_a_case <= 3600))
      return false;
  }
  return optind == argc;
}

int main(int argc, char **argv) {
  if (!read_options(argc, argv)) return usage(stderr, 2);
  btc_backend *b = backend(BTC_COMPUTE_F32);
  threads = btc_backend_threads(b);
  btc_backend_destroy(&b);
  size_t floats = 64 << 20; /* 256 MiB: beyond any cache we run on */
  float *data = must(aligned_alloc(64, floats * sizeof *data)), *x = must(aligned_alloc(64, (size_t)(1458 * 4304) * sizeof *x));
  float *y = must(aligned_alloc(64, (size_t)(1458 * 4304) * sizeof *y));
  for (size_t i = 0; i < floats; i++) data[i] = (float)((i * 2654435761u >> 8 & 0xffff) + 1) * 0x1p-17f;
  for (size_t i = 0; i < 1458 * 4304; i++) x[i] = (float)(i * 40503u >> 3 & 0xffff) * 0x1p-16f - 0.5f;
  if (json) printf("[");
  measure_roofs(data, floats);
  bench_all(BTC_COMPUTE_F32, y, x, data, floats);
  bench_all(BTC_COMPUTE_BF16, y, x, data, floats);
  if (json) printf("\n]\n");
  free(data);
  free(x);
  free(y);
  return 0;
}
