/*
 * isa: the kernels as one instruction set runs them, and the state behind btc_cpu. Private to kernels/cpu.
 * *_simd.h is kernel text, included once by each of isa_portable.c, isa_avx2.c and isa_avx512.c; the .c file named after an
 * operator family cuts its work into tasks and calls through this table.
 */
#ifndef BTC_KERNELS_CPU_ISA_H
#define BTC_KERNELS_CPU_ISA_H

#include "kernels.h"
#include "pool.h"

enum {
  GEMM_KC = 256,           /* elements of the inner dimension a packed block holds */
  GEMM_WORDS = 384,        /* and words of it, when they hold pairs of bf16 */
  GEMM_NB = 96,            /* most outputs of a task: a multiple of every nr */
  GEMM_CHUNK_ROWS = 770,   /* rows of x packed at a time, so 729 of an image are one chunk */
  MATVEC_ROWS = 64,        /* rows of x one pass over a weight serves */
  MATVEC_NB = 48,          /* weight rows of a task: a multiple of the 24 of a group */
  ATTENTION_KEYS = 256,    /* most keys of a block */
  ATTENTION_WIDTH = 256,   /* widest head of the blocked kernel */
  ATTENTION_QUERIES = 252, /* queries of a task: three tasks for the 729 of an image */
  CAUSAL_KEYS = 48,        /* keys of a block of the row-wise kernel: a multiple of 24 and of the widest vector */
  CAUSAL_QUERIES = 16,     /* query rows of a task of the row-wise kernel */
  ATTENTION_SUB_MAX = 28,  /* queries whose scores are held at a time */
  NR_MAX = 32,
  MR_MAX = 14
};

/* Rows of one head, for the row-wise attention kernel: query row i sees keys [0, first_count + i*step]. */
typedef struct btc_cpu_rows {
  const float *q;
  float *o;
  const void *k, *v;
  btc_cpu_type type;
  int64_t q_stride, o_stride, k_stride, v_stride;
  int64_t rows, count, step; /* keys seen by the first row; how many more each next one sees: 0 or 1 */
  int64_t d;
  float scale;
} btc_cpu_rows;

/* What a tile asks of memory while it multiplies, a little at every step: packed rows as long as its own, and two runs of stored
 * weights of kc floats. Asked for all at once, they made the tile's own loads wait (6 % on Zen 4). Any readable address is fine. */
typedef struct btc_cpu_ahead {
  const float *x;
  const char *w[2];
} btc_cpu_ahead;

typedef struct btc_cpu_isa {
  const char *name;
  int mr, nr; /* the register tile of products */

  /* Copies rows x kc elements to dst[kc][mr], missing rows as zeros. */
  void (*pack_x)(float *dst, const float *x, int64_t ld, int64_t rows, int64_t kc, bool bf16);
  /* Widens rows x kc stored elements (rows ld elements apart) to dst[panels][kc][nr], missing rows of the last panel as zeros. */
  void (*pack_w)(float *dst, const void *w, btc_cpu_type type, bool bf16, int64_t ld, int64_t rows, int64_t kc);
  /* c[mr][nr] = or += a[kc][mr] b[kc][nr], each output one chain of fused multiply-adds over k. Only the first `rows` are wanted;
   * some of the others may be written too. */
  void (*tile)(const float *a, const float *b, int64_t kc, float *c, int64_t ldc, bool add, int64_t rows, btc_cpu_ahead ahead);
  /* The three of above with both operands in bf16, two to a word: kc counts elements (up to 2 GEMM_WORDS) when packing, words in
   * the tile. `rounded` has room for [rows][words of kc]. */
  void (*pack_x_pairs)(float *dst, const float *x, int64_t ld, int64_t rows, int64_t kc);
  void (*pack_w_pairs)(float *dst, float *rounded, const void *w, btc_cpu_type type, int64_t ld, int64_t rows, int64_t kc);
  void (*tile_pairs)(const float *a, const float *b, int64_t words, float *c, int64_t ldc, bool add, int64_t rows,
                     btc_cpu_ahead ahead);
  /* y[rows][n, stride ldy] = epilogue(c[rows][n, stride ldc]); the epilogue's members start at y's first element. */
  void (*finish)(float *y, int64_t ldy, const float *c, int64_t ldc, int64_t rows, int64_t n, const btc_cpu_epilogue *e);
  /* out[m][ld_out] = the dot products of m rows of x with `rows` stored rows of k elements. */
  void (*dots)(float *out, int64_t ld_out, const float *x, int64_t x_stride, int64_t m, const void *w, btc_cpu_type type, bool bf16,
               int64_t w_stride, int64_t rows, int64_t k);
  void (*round_bf16)(float *y, const float *x, int64_t n);

  /* One (sequence, head, block of queries); scratch of btc_cpu_attention_scratch() floats. */
  void (*attend)(const btc_cpu_attention *a, int64_t seq, int64_t head, int64_t query, int64_t rows, float *scratch);
  /* The same with queries, keys, values and weights rounded to bf16. Weights add up to one before they are rounded when all keys
   * are one block, and otherwise are what the running maximum makes of them. */
  void (*attend_rounded)(const btc_cpu_attention *a, int64_t seq, int64_t head, int64_t query, int64_t rows, float *scratch);
  /* The same, multiplied in pairs. */
  void (*attend_pairs)(const btc_cpu_attention *a, int64_t seq, int64_t head, int64_t query, int64_t rows, float *scratch);
  void (*attend_rows)(const btc_cpu_rows *r);
  void (*store_kv)(void *dst, btc_cpu_type type, const float *x, int64_t n);

  void (*layernorm)(float *y, const float *x, int64_t n, const float *weight, const float *bias, float eps);
  void (*rmsnorm)(float *y, const float *x, int64_t n, const float *weight, float eps);
  float (*cosine_concat)(float *z, const float *s1, const float *s2, int64_t n);
  void (*rope)(float *x, int64_t heads, int64_t d, const float *cos, const float *sin);
  void (*add)(float *y, const float *a, const float *b, int64_t n);
  void (*silu_mul)(float *y, const float *gate, const float *up, int64_t n);
  void (*widen)(float *y, const void *w, btc_cpu_type type, int64_t n);
} btc_cpu_isa;

extern const btc_cpu_isa btc_cpu_isa_portable;
#if defined(__x86_64__)
extern const btc_cpu_isa btc_cpu_isa_avx2;
extern const btc_cpu_isa btc_cpu_isa_avx512;
#endif

struct btc_cpu {
  const btc_cpu_isa *isa;
  btc_pool *pool;
  int threads;
  bool bf16;
  bool pairs;  /* products multiply pairs of bf16: one instruction where btc_cpu_multiplies_bf16() */
  float *rows; /* packed or rounded rows of x, shared by the threads */
  size_t rows_floats;
  float *scratch; /* scratch_floats for each thread */
  size_t scratch_floats;
};

static inline float *btc_cpu_scratch(const btc_cpu *c, int worker) {
  return c->scratch + (size_t)worker * c->scratch_floats;
}

static inline int64_t btc_ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

static inline int64_t btc_min64(int64_t a, int64_t b) {
  return a < b ? a : b;
}

static inline size_t btc_cpu_type_size(btc_cpu_type t) {
  return t == BTC_CPU_F32 ? 4 : 2;
}

#endif
