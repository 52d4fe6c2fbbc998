/*
 * kernels/cuda: operators over raw device pointers for one CUDA device. Knows no tensors and no model. ops/cuda*.c maps the
 * contracts of ops.h onto it; the mathematics, shapes and the row promise are stated there. This header needs no CUDA header.
 *
 * Every function puts its work on stream `s`, does not wait, and returns the cudaError_t of the launch as an int (0 = success).
 * Nothing here allocates, and the only state is btc_cuda_overlap's: scratch is the caller's, so all of it can be captured into a
 * graph. Sizes of 0 rows are fine and launch nothing. Pointers are device memory, 16-byte aligned unless said otherwise; rows need
 * not be (odd widths work, more slowly). Any thread.
 *
 * The row promise: an output row is a function of its own inputs only, bit for bit; no grid, tile or split depends on how many
 * rows stand beside it. Kernels are compiled without contraction (-fmad=false) and write fused multiply-adds where they want
 * them, so the host shim computes the same bits.
 *
 * Outputs called y_bf16 (NULL: not wanted) get the same rows rounded to bf16, dense: what the next matrix product reads. Where
 * both y and y_bf16 exist, y may be NULL when only the rounded rows are wanted.
 */
#ifndef BTC_KERNELS_CUDA_H
#define BTC_KERNELS_CUDA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st *btc_cuda_stream; /* a cudaStream_t */

typedef enum btc_cuda_type { BTC_CUDA_F32, BTC_CUDA_F16, BTC_CUDA_BF16 } btc_cuda_type; /* values as btc_dtype's */
typedef enum btc_cuda_act { BTC_CUDA_NONE, BTC_CUDA_GELU_TANH, BTC_CUDA_GELU_ERF, BTC_CUDA_RELU } btc_cuda_act; /* as btc_act's */

/* y = act(dot * scale[n] + bias[n]) + residual[m,n], or the residual inside act when residual_first. NULL members are skipped.
 * residual may be y. residual_rows > 0: residual has that many rows and row m uses row m % residual_rows (learned positions,
 * the same for every image). */
typedef struct btc_cuda_epilogue {
  const float *bias, *scale, *residual;
  int64_t residual_rows;
  btc_cuda_act act;
  int residual_first;
} btc_cuda_epilogue;

/* ---- launch.cu ---- */

/* Whether a launch may begin while the one before it ends, where the device can do that (sm_90 and later): for all devices of the
 * process, from now on; recorded graphs stay as they are. At first: yes. No result changes. */
void btc_cuda_overlap(int allow);
int btc_cuda_overlaps(void); /* whether launches on the calling thread's device do */

/* ---- convert.cu ---- */

/* Stored dtype to f32 (exact) or to bf16 (nearest even); n elements. */
int btc_cuda_to_f32(float *y, const void *x, btc_cuda_type t, int64_t n, btc_cuda_stream s);
int btc_cuda_to_bf16(uint16_t *y, const void *x, btc_cuda_type t, int64_t n, btc_cuda_stream s);

/* ---- norm.cu: statistics in f32, two passes over a row held in registers or re-read, fixed order ---- */

int btc_cuda_layernorm(float *y, uint16_t *y_bf16, const float *x, int64_t m, int64_t n, const float *weight, const float *bias,
                       float eps, btc_cuda_stream s);
int btc_cuda_rmsnorm(float *y, uint16_t *y_bf16, const float *x, int64_t m, int64_t n, const float *weight, float eps,
                     btc_cuda_stream s);
/* z[t, 2c] = concat(s1, s2) + cosine; cosine (may be NULL) [t]; z_bf16 as y_bf16. */
int btc_cuda_cosine_concat(float *z, uint16_t *z_bf16, float *cosine, const float *s1, const float *s2, int64_t t, int64_t c,
                           btc_cuda_stream s);

/* ---- elementwise.cu ---- */

/* y[m, n] = epilogue(dot[m, n]), for what the matrix library cannot fuse. y or y_bf16 may be NULL; y may be dot. */
int btc_cuda_epilogue_apply(float *y, uint16_t *y_bf16, const float *dot, int64_t m, int64_t n, const btc_cuda_epilogue *e,
                            btc_cuda_stream s);
int btc_cuda_add(float *y, const float *a, const float *b, int64_t n, btc_cuda_stream s);
/* y[i] = a[i] + b[i % period], i < n, a multiple of period; y may be a. */
int btc_cuda_add_repeated(float *y, const float *a, const float *b, int64_t n, int64_t period, btc_cuda_stream s);
/* Rows of gate and up, F32 or BF16, at row strides (elements), so that one product may have made both side by side. */
typedef struct btc_cuda_gate {
  const void *gate, *up;
  btc_cuda_type type;
  int64_t gate_stride, up_stride;
} btc_cuda_gate;
/* silu(gate)*up over [m, n]; y, y_bf16 dense [m, n]. y may be gate when that is F32 and gate_stride == n. */
int btc_cuda_silu_mul(float *y, uint16_t *y_bf16, const btc_cuda_gate *g, int64_t m, int64_t n, btc_cuda_stream s);
/* In place on x[m, heads*d]; row i has position row_pos[i] (device). cos/sin [max_pos, d/2]. */
int btc_cuda_rope(float *x, int64_t stride, int64_t m, int64_t heads, int64_t d, const int32_t *row_pos, const float *cos,
                  const float *sin, btc_cuda_stream s);

/* ---- layout.cu ---- */

/* Of `images` images of [3, side, side]: dst[images*g*g, 3*p*p]. dst or dst_bf16 may be NULL. */
int btc_cuda_unfold_patches(float *dst, uint16_t *dst_bf16, const float *x, int64_t images, int64_t side, int64_t p, int64_t g,
                            btc_cuda_stream s);
/* x[n, g*g, c]: n maps after one another. dst or dst_bf16 may be NULL. */
int btc_cuda_unfold_3x3(float *dst, uint16_t *dst_bf16, const float *x, int64_t n, int64_t g, int64_t c, btc_cuda_stream s);
int btc_cuda_space_to_depth(float *dst, const float *x, int64_t n, int64_t g, int64_t c, btc_cuda_stream s);
/* y[m, cols] = rows of table [rows, cols]; ids on the device, in range. */
int btc_cuda_embed(float *y, const void *table, btc_cuda_type t, int64_t cols, const int32_t *ids, int64_t m, btc_cuda_stream s);

/* ---- kv_cache.cu, attention*.cu ---- */

/* Keys and values of one layer of `items` items: k and v are device arrays of pointers, one an item, each to
 * [kv_heads, capacity, d] in type (f32 or bf16), at 16 bytes as everything here. */
typedef struct btc_cuda_kv {
  void *const *k, *const *v;
  btc_cuda_type type;
  int64_t kv_heads, capacity, d;
} btc_cuda_kv;

/* Row i of k and v [m, kv_heads*d] (row strides in elements) goes to item row_item[i], position row_pos[i] (both device). */
int btc_cuda_kv_store(const btc_cuda_kv *kv, const int32_t *row_item, const int32_t *row_pos, const float *k, int64_t k_stride,
                      const float *v, int64_t v_stride, int64_t m, btc_cuda_stream s);
/* btc_cuda_rope on q and k, then btc_cuda_kv_store of k and v, in one launch (k is not written back). */
int btc_cuda_rope_store(float *q, int64_t q_stride, int64_t heads, const float *k, int64_t k_stride, const float *v,
                        int64_t v_stride, int64_t m, const btc_cuda_kv *kv, const int32_t *row_item, const int32_t *row_pos,
                        const float *cos, const float *sin, btc_cuda_stream s);

/* Bidirectional, n_seq sequences of t tokens; strides in elements; head h owns channels [h*d, h*d+d). in: F32 (f32 arithmetic) or
 * BF16 (tensor cores, f32 sums); out: F32 or BF16. v may be k. */
typedef struct btc_cuda_attention {
  const void *q, *k, *v;
  void *o;
  btc_cuda_type in, out;
  int64_t q_stride, k_stride, v_stride, o_stride;
  int64_t n_seq, t, heads, d;
  float scale;
} btc_cuda_attention;
int btc_cuda_attend(const btc_cuda_attention *a, btc_cuda_stream s);

/* Causal attention of `items` items: query rows first_row[b] .. first_row[b] + rows[b] - 1 are positions pos[b], pos[b]+1, ... of
 * item b and see keys 0..own position, which must be stored. q [rows, heads*d] (f32, row stride in elements), o dense [rows,
 * heads*d] in `out`. max_rows: the most rows of one item (sizes the grid). bf16_math: tensor cores on bf16 operands; otherwise f32.
 * A row's bits depend on neither the number of its item's rows nor the other items; those of btc_cuda_attend_decode are others. */
typedef struct btc_cuda_causal {
  const float *q;
  void *o;
  btc_cuda_type out;
  int64_t q_stride, heads, items, max_rows;
  const int32_t *first_row; /* device [items], or [items+1] where rows is NULL; for decode NULL means 0, 1, 2, ... */
  const int32_t *rows;      /* device [items]; NULL: up to the next item's first row */
  const int32_t *pos;       /* device [items] */
  float scale;
  int bf16_math;
} btc_cuda_causal;
int btc_cuda_attend_causal(const btc_cuda_causal *a, const btc_cuda_kv *kv, btc_cuda_stream s);

/* One query row an item: row first_row[b] is position pos[b] of item b; rows and max_rows are not read. f32 arithmetic. max_pos:
 * every pos is below it (sizes the grid; a graph is captured with the capacity). scratch: btc_cuda_decode_scratch bytes. done: a
 * count for each item and kv head, [items * kv_heads], zero before a launch and after it. Launches that share either do not
 * overlap. */
size_t btc_cuda_decode_scratch(int64_t items, int64_t heads, int64_t d, int64_t max_pos);
int btc_cuda_attend_decode(const btc_cuda_causal *a, const btc_cuda_kv *kv, int64_t max_pos, uint32_t *done, void *scratch,
                           btc_cuda_stream s);

/* ---- matvec*.cu ---- */

/* A matrix on the device, [rows, cols] row-major; data 16-byte aligned. */
typedef struct btc_cuda_matrix {
  const void *data;
  btc_cuda_type type;
  int64_t rows, cols;
  int64_t pitch; /* elements from row to row; 0: cols */
} btc_cuda_matrix;

/* Rows of x for few-row products, dense [m, cols], F32 or BF16. norm: they are F32, and normalised on the way as btc_cuda_rmsnorm
 * does it, bit for bit; where btc_cuda_matvec_norms says so, the product does that itself. */
typedef struct btc_cuda_rows {
  const void *x;
  btc_cuda_type type;
  int64_t m;
  const float *norm; /* [cols]; NULL: none */
  float eps;
} btc_cuda_rows;
int btc_cuda_matvec_norms(const btc_cuda_rows *x, const btc_cuda_matrix *w, int round);

/* y[m, rows] = epilogue(x[m, cols] w^T) for few rows: each weight is read once for up to 32 rows (8 in f32 arithmetic). round: both
 * operands are rounded to bf16, products and sums in f32; else f32 arithmetic. The bits of a row depend on none of the other rows;
 * those of an F32 x with `round` are those of the same rows given as BF16. y or y_bf16 may be NULL. */
int btc_cuda_matvec(float *y, uint16_t *y_bf16, const btc_cuda_rows *x, const btc_cuda_matrix *w, const btc_cuda_epilogue *e,
                    int round, btc_cuda_stream s);
/* w is two matrices of rows/2: y[m, rows/2] = silu(x gate^T) * (x up^T), bit for bit btc_cuda_matvec and btc_cuda_silu_mul of F32.
 */
int btc_cuda_matvec_gated(float *y, uint16_t *y_bf16, const btc_cuda_rows *x, const btc_cuda_matrix *w, int round,
                          btc_cuda_stream s);

/* As btc_cuda_rope_store has them. */
typedef struct btc_cuda_rotation {
  const int32_t *row_item, *row_pos;
  const float *cos, *sin;
  int64_t heads; /* of queries */
} btc_cuda_rotation;
/* w is the rows of the query heads, the key heads and the value heads: queries [m, heads*d] rotated to q, keys (rotated) and values
 * to the cache, bit for bit btc_cuda_matvec and btc_cuda_rope_store. Where btc_cuda_matvec_rotates says so. */
int btc_cuda_matvec_rotates(const btc_cuda_matrix *w, int64_t d, int round);
int btc_cuda_matvec_rotated(float *q, int64_t q_stride, const btc_cuda_rows *x, const btc_cuda_matrix *w, const btc_cuda_kv *kv,
                            const btc_cuda_rotation *r, int round, btc_cuda_stream s);

/* ---- sample.cu: the choices of engine/sampler.c ---- */

typedef struct btc_cuda_pick {
  int32_t id;
  int32_t broken; /* 0; 1: not a number or +infinity among the logits, at `id`; 2: nothing but minus infinity */
  double logprob; /* ln of the id's share in the softmax of all logits */
} btc_cuda_pick;

typedef struct btc_cuda_sampling {
  float temperature; /* 0: greedy, the rest is not read */
  float top_p;       /* 1 or more: off */
  int32_t top_k;     /* 0: off */
  int32_t reserved;
  double uniform; /* the item's own draw in [0, 1), made by the caller's generator */
} btc_cuda_sampling;

/* One pick a row of logits [m, vocab], the rows `stride` floats apart; settings and picks [m] are device arrays. settings NULL: all
 * greedy. scratch: btc_cuda_sample_scratch bytes (0 when greedy). */
size_t btc_cuda_sample_scratch(int64_t m, int64_t vocab);
int btc_cuda_sample(btc_cuda_pick *picks, const float *logits, int64_t stride, int64_t m, int64_t vocab,
                    const btc_cuda_sampling *settings, void *scratch, btc_cuda_stream s);

/* ---- resize.cu: bit for bit the CPU's (spec 3.2, 3.3) ---- */

/* A picture of 8-bit samples on its canvas; canvas pixels outside it are 127. Squash: canvas = picture; pad: a square canvas. */
typedef struct btc_cuda_picture {
  const uint8_t *rgb; /* device [height, width, channels] */
  int64_t width, height, left, top, canvas_width, canvas_height;
  int32_t channels; /* 1 or 3 */
} btc_cuda_picture;

/* n pictures, at most BTC_CUDA_PICTURES, to pixels [n, 3, side, side] f32: resized, then (rescale * value - mean) / std as the
 * CPU's table does. scratch: btc_cuda_resize_scratch bytes of each, a multiple of 16, one after another. */
#define BTC_CUDA_PICTURES 8
size_t btc_cuda_resize_scratch(const btc_cuda_picture *p, int64_t side);
int btc_cuda_resize(float *pixels, const btc_cuda_picture *p, int n, int64_t side, double rescale, const float mean[3],
                    const float std[3], void *scratch, btc_cuda_stream s);

#ifdef __cplusplus
}
#endif

#endif
