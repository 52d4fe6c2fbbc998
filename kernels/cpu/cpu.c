/* The state of the CPU kernels: which instruction set runs, the threads, all scratch. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>

#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* Not among the names clang's run-time support knows. */
static bool has_f16c(void) {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

/* The compiler's run-time support reads cpuid and also checks that the system saves the wide registers. */
static bool has_avx2(void) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static bool has_avx512(void) {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static const btc_cpu_isa *best_isa(void) {
  return has_avx512() ? &btc_cpu_isa_avx512 : has_avx2() ? &btc_cpu_isa_avx2 : &btc_cpu_isa_portable;
}

bool btc_cpu_multiplies_bf16(void) {
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#else
static const btc_cpu_isa *best_isa(void) {
  return &btc_cpu_isa_portable;
}

bool btc_cpu_multiplies_bf16(void) {
  return false;
}
#endif

static size_t max_size(size_t a, size_t b) {
  return a > b ? a : b;
}

/* Floats one thread needs for the greediest operator; a multiple of a cache line. */
static size_t scratch_floats(void) {
  size_t gemm = 2 * GEMM_NB * GEMM_WORDS + (GEMM_CHUNK_ROWS + MR_MAX) * GEMM_NB;
  size_t matvec = MATVEC_ROWS * MATVEC_NB;
  size_t keys = ATTENTION_KEYS + NR_MAX, width = ATTENTION_WIDTH + NR_MAX, queries = ATTENTION_QUERIES + MR_MAX;
  size_t attention = queries * (2 * width + 2) + 3 * keys * width + 2 * ATTENTION_SUB_MAX * keys;
  return (max_size(gemm, max_size(matvec, attention)) + 31) / 16 * 16;
}

enum { HUGE_PAGE = 2 << 20 };

/* Packed blocks are walked in strides that touch a page every few lines: in 4 KB pages a tenth of the time goes into address
 * translation. The advice may be refused; nothing depends on it. */
static float *alloc_floats(size_t n) {
  size_t bytes;
  if (__builtin_mul_overflow(n, sizeof(float), &bytes) || bytes > SIZE_MAX - HUGE_PAGE) return NULL;
  bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  if (btc_alloc_hook && !btc_alloc_hook(bytes)) return NULL;
  void *p = aligned_alloc(HUGE_PAGE, bytes);
#if defined(__linux__)
  if (p) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return p;
}

btc_status btc_cpu_create(int threads, int64_t max_k, bool bf16, btc_cpu **out, btc_error *err) {
  *out = NULL;
  btc_cpu *c = btc_alloc_zero(1, sizeof *c);
  if (!c) return btc_fail(err, BTC_ERR_NOMEM, "no memory for the processor's kernels");
  c->isa = best_isa();
  c->threads = threads;
  c->bf16 = bf16;
  c->pairs = bf16 && btc_cpu_multiplies_bf16();
  size_t k = (size_t)btc_ceil_div(max_k, GEMM_KC) * GEMM_KC;
  c->rows_floats = (GEMM_CHUNK_ROWS + MR_MAX) * k;
  c->scratch_floats = scratch_floats();
  c->rows = alloc_floats(c->rows_floats);
  c->scratch = alloc_floats(c->scratch_floats * (size_t)threads);
  btc_status s = BTC_OK;
  if (!c->rows || !c->scratch)
    s = btc_fail(err, BTC_ERR_NOMEM, "no memory for the scratch of %d thread%s and %lld columns", threads, threads == 1 ? "" : "s",
                 (long long)max_k);
  else
    s = btc_pool_create(threads, &c->pool, err);
  if (s != BTC_OK) {
    btc_cpu_destroy(c);
    return s;
  }
  *out = c;
  return BTC_OK;
}

void btc_cpu_destroy(btc_cpu *c) {
  if (!c) return;
  btc_pool_destroy(c->pool);
  free(c->scratch);
  free(c->rows);
  free(c);
}

const char *btc_cpu_isa_name(const btc_cpu *c) {
  return c->pairs ? "avx512-bf16" : c->isa->name;
}
