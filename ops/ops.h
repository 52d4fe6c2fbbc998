/*
 * ops: tensors and the operators of the model over a backend: cpu, plain, or cuda where it was built. engine/ sees only this
 * header.
 *
 * Activations are float32, row-major and dense, [rows, width] unless said otherwise. Matrices (btc_weight) stay in the
 * dtype and place of the checkpoint file. Small vectors (biases, norms, positions) are float32.
 *
 * Promise of every operator (performance.md): each row of an output is a function of its own inputs only, bit for bit. It does
 * not depend on how many other rows are computed with it, on where they stand, or on the number of threads.
 * No operator allocates after btc_backend_create; scratch is sized there or lives on the stack.
 *
 * Operands live in the backend's memory (btc_backend_alloc), which for cpu and plain is the host's own: there any pointer will do.
 * A device backend works behind the caller's back: an operator only starts, and what goes wrong is said by btc_backend_finish.
 * Constants (weights and vectors of the model) stay where they are and are declared with btc_backend_hold before they are used.
 *
 * Thread: one btc_backend is used by one thread at a time (it runs its own pool of threads). Weights may be shared.
 * Shapes are the caller's duty (they were checked when the checkpoint was opened); operators assert nothing about sizes
 * beyond what is stated and accept any positive size, odd tails included.
 */
#ifndef BTC_OPS_H
#define BTC_OPS_H

#include <stddef.h>
#include <stdint.h>

#include "base/base.h"

typedef enum btc_dtype { BTC_F32, BTC_F16, BTC_BF16, BTC_I64 } btc_dtype;
size_t btc_dtype_size(btc_dtype t);      /* bytes per element */
const char *btc_dtype_name(btc_dtype t); /* "f32", "f16", "bf16", "i64" */

/* Converts n elements of a stored dtype (f32, f16, bf16) to float32; exact. src need not be aligned. */
void btc_to_f32(float *dst, const void *src, btc_dtype t, size_t n);
/* Rounds to nearest even; NaN stays NaN. */
uint16_t btc_f32_to_bf16(float x);
float btc_bf16_to_f32(uint16_t x);
float btc_f16_to_f32(uint16_t x);

/* A stored matrix [rows = outputs, cols = inputs], row-major as in the file, borrowed from the mmap for the backend's life. */
typedef struct btc_weight {
  const void *data;
  btc_dtype dtype;
  int64_t rows, cols;
} btc_weight;

typedef enum btc_act { BTC_ACT_NONE, BTC_ACT_GELU_TANH, BTC_ACT_GELU_ERF, BTC_ACT_RELU } btc_act;

/* What happens to a product before it is stored: y = act(dot * scale[n] + bias[n]) + residual[m,n]. NULL members are skipped.
 * residual_first: y = act(dot * scale[n] + bias[n] + residual[m,n]) instead (change extraction, spec 1.3 step 6).
 * residual may be y itself. */
typedef struct btc_epilogue {
  const float *bias;     /* [n] */
  const float *scale;    /* [n] */
  const float *residual; /* [m, n], or [residual_rows, n] */
  int64_t residual_rows; /* 0: m; else row i of y takes row i % residual_rows (the same positions for every image) */
  btc_act act;
  bool residual_first;
  bool x_packed, y_packed; /* see btc_op_layernorm_packed; the cpu does not look at them */
} btc_epilogue;

/* BTC_COMPUTE_F32: stored weights widened exactly, float32 products and sums.
 * BTC_COMPUTE_BF16: both operands of every matrix product rounded to bf16, float32 sums (spec 1.7). Those of bidirectional
 * attention (queries, keys, values, weights) are rounded too where the processor multiplies pairs of bf16, and stay float32
 * elsewhere. */
typedef enum btc_compute { BTC_COMPUTE_F32, BTC_COMPUTE_BF16 } btc_compute;

typedef struct btc_backend btc_backend;

typedef struct btc_device_info {
  int index;                    /* N of "cuda:N" */
  char name[96];                /* "NVIDIA H200" */
  int major, minor, processors; /* compute capability, multiprocessors */
  uint64_t memory_bytes, free_bytes;
  double busy;   /* 0..1: share of the last moments in which anybody's work ran; negative: the driver does not tell */
  char card[44]; /* "GPU-0123...": the card's own name, the same on every machine that asks for it */
} btc_device_info;

typedef struct btc_backend_options {
  const char *kind; /* "cpu" (the fast path), "plain" (the reference loops, slow: ground truth), "cuda" or "cuda:N" */
  int threads;      /* 1..256; 0 = all processors the process may run on */
  btc_compute compute;
  int64_t max_cols; /* largest `cols` of any weight and any unfold; scratch is sized by it */
  /* What btc_op_set_items and its fellows will be given at most; 0: they are not used. Only a device's scratch is sized by them. */
  int64_t max_items, max_layers, max_positions, heads, head_dim;
  int64_t picture_side; /* of btc_op_resize_normalise; 0: it is not used. As above */
} btc_backend_options;

/* No such device, or a driver that does not answer: UNSUPPORTED, with the reason. */
btc_status btc_backend_create(const btc_backend_options *o, btc_backend **out, btc_error *err);
void btc_backend_destroy(btc_backend **b);              /* NULL is fine; sets *b to NULL */
const char *btc_backend_describe(const btc_backend *b); /* e.g. "cpu, 2 threads, avx2+fma, f32"; lives as long as b */
int btc_backend_threads(const btc_backend *b);
/* The device it computes on, with memory and use as they are now. false: the host, or it does not answer. Any thread, also beside
 * the one that uses b. */
bool btc_backend_device(const btc_backend *b, btc_device_info *out);
/* true when this CPU multiplies bf16 natively, so that bf16 is the right default. Any thread. */
bool btc_cpu_has_bf16(void);

/* ---- devices ---- */

/* Whether a device name ("cpu", "plain", "cuda", "cuda:3") is one this build knows; the device itself may be missing. */
bool btc_device_known(const char *kind);
int btc_device_index(const char *kind);     /* N of "cuda:N"; 0 without a number */
bool btc_device_has_bf16(const char *kind); /* bf16 is the right default there */
/* CUDA devices that can be used; 0 and a sentence in *err: "no CUDA device: ...". Any thread. */
int btc_device_count(btc_error *err);
btc_status btc_device_query(int index, btc_device_info *out, btc_error *err); /* opens the device: takes a moment */
/* What "auto" (or NULL) means: "cuda" when a device can be used, else "cpu". Other names are returned as they are. */
const char *btc_device_choose(const char *kind);

/*
 * A lane: memory and a queue of work on a CUDA device beside any backend, for what passes between devices (worker/link_nccl.h).
 * Its memory may be read and written by backends of the same device. Nothing here waits for the device, but that freeing memory
 * waits for what still uses it. Thread: one, the one that made it.
 */
typedef struct btc_lane btc_lane;
btc_status btc_lane_create(const char *device, btc_lane **out,
                           btc_error *err); /* as a backend's kind; UNSUPPORTED: no such device */
void btc_lane_destroy(btc_lane **l);        /* NULL is fine; its memory is freed before */
void *btc_lane_queue(const btc_lane *l);    /* cudaStream_t */
/* Its device, with memory and use as they are now. false: it does not answer. */
bool btc_lane_device(const btc_lane *l, btc_device_info *out);
btc_status btc_lane_alloc(btc_lane *l, size_t bytes, void **out, btc_error *err); /* NOMEM; aligned for anything */
void btc_lane_free(btc_lane *l, void *p);                                         /* NULL is fine */
/* Puts a copy on the queue: between any two places of host and device memory. Host memory stays as it is until it is done. */
btc_status btc_lane_copy(btc_lane *l, void *dst, const void *src, size_t bytes, btc_error *err);
/* Is all done that was put on the queue? DEVICE: the device is lost, and the process had better end. */
btc_status btc_lane_query(btc_lane *l, bool *done, btc_error *err);

/* ---- memory ---- */

bool btc_backend_on_host(const btc_backend *b); /* its memory is the host's: pointers may be followed, copies are free of waits */
/* Of a device: rows of one product that keep it busy, and bytes of its memory that a backend takes for products. */
#define BTC_DEVICE_ROWS 24576 /* 33 images: enough tiles for every multiprocessor, a few times over */
#define BTC_DEVICE_WINDOWS ((int64_t)128 << 20)
/* Rows of one product that keep the device busy, for callers that cut their work; 0: no wish. */
int64_t btc_backend_rows(const btc_backend *b);
btc_status btc_backend_alloc(btc_backend *b, size_t bytes, void **out, btc_error *err); /* NOMEM; aligned for anything */
void btc_backend_free(btc_backend *b, void *p);                                         /* NULL is fine */
/* Declares a constant of the host's memory, which must stay as it is for the backend's life: a device copies it. product: it is
 * the `w` of products and is kept in the type they are computed in; else its bytes are kept (vectors, tables). Again: nothing. */
btc_status btc_backend_hold(btc_backend *b, const btc_weight *w, bool product, btc_error *err);
/* Declares n constants that btc_op_products is given together, in this order: matrices of as many columns, or their biases (float32
 * vectors). Each can also be used alone. */
btc_status btc_backend_hold_together(btc_backend *b, const btc_weight *w, int n, bool product, btc_error *err);
/* Waits until all that was started is done. The first failure since the last call: NOMEM, or DEVICE when the device is lost (then
 * every later call fails the same way, and the process had better end). */
btc_status btc_backend_finish(btc_backend *b, btc_error *err);
/* Bytes between any two places of host and backend memory, in order with the operators. Host memory that is written has its bytes
 * after btc_backend_finish; host memory that is read may be reused at once. */
void btc_op_copy(btc_backend *b, void *dst, const void *src, size_t bytes);
/* rows pieces of `width` bytes, the starts dst_pitch and src_pitch bytes apart. */
void btc_op_copy_2d(btc_backend *b, void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, int64_t rows);
/* A sequence of operators with the same operands each time, of which only what btc_op_set_items says differs. true: it has been
 * started from a recording of an earlier time with this key, and the caller issues nothing. false: the caller issues it and then
 * calls btc_op_sequence_end. No copies from or to the host within.
 * sequence_end false: nothing of what was issued has been started, and the caller issues it once more, without beginning anew. */
bool btc_op_sequence_begin(btc_backend *b, uint64_t key);
bool btc_op_sequence_end(btc_backend *b);

/* ---- pictures ---- */

/*
 * A parcel: what is on its way to a device while it computes. As much memory of the host, pinned where that can be had, as of the
 * device, and a copy beside the operators. On a host nothing travels, and a parcel is NULL.
 */
typedef struct btc_parcel btc_parcel;
btc_status btc_parcel_create(btc_backend *b, size_t bytes, btc_parcel **out, btc_error *err); /* NOMEM */
void btc_parcel_destroy(btc_backend *b, btc_parcel **p); /* NULL is fine; waits for its journey; sets *p to NULL */
/* Starts the journey of at most the parcel's bytes, which may be changed at once afterwards. Waits only while an earlier journey of
 * the same parcel lasts; what was there before may still be read by operators. */
void btc_op_send(btc_backend *b, btc_parcel *p, const void *src, size_t bytes);

/* 8-bit samples. pad: first made square, with a background of 127 (spec 3.2); else each side is resized for itself. */
typedef struct btc_picture {
  const uint8_t *rgb; /* host memory, [height, width, 3]; a device does not look at it */
  btc_parcel *parcel; /* a device: the same, sent; may be sent anew once the operator has been called */
  int64_t width, height;
  bool pad;
} btc_picture;

typedef struct btc_shades {
  double rescale;
  float mean[3], std[3];
} btc_shades;

/* What a device takes: neither side longer than four of the square's, and no more samples than four squares have. So no picture
 * takes more bytes than its square as float32, on its way or while it waits, and the copies of a batch take a small part of the
 * time in which a tower computes one. Larger ones are made the square while they are read. */
#define BTC_PICTURE_SQUARES 4
bool btc_picture_fits(int64_t width, int64_t height, int64_t side);
size_t btc_picture_bytes(int64_t side); /* of the largest that fits */
/* pixels [n, 3, side, side] of n pictures: Pillow's 8-bit bicubic resize, then (float32(value * rescale) - mean) / std
 * (spec 3.1, 3.3). Bit for bit the same on every backend. A host resizes by plain loops, and is better given what already is the
 * square. */
void btc_op_resize_normalise(btc_backend *b, float *pixels, const btc_picture *p, int64_t n, int64_t side, const btc_shades *s);
/* Its second half without a backend, on the host: out [3, n] of rgb [n, 3]. Any thread. */
void btc_normalise(float *out, const uint8_t *rgb, int64_t n, const btc_shades *s);

/* What a device had to do otherwise than it should, to be said once: every call but the first answers NULL. */
const char *btc_backend_remark(btc_backend *b);

/* ---- products ---- */

/* y[m, w.rows] = epilogue(x[m, w.cols] * w^T). For many rows (vision, prefill). x and y must not overlap. */
void btc_op_matmul(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e);
/* The same mathematics for few rows (decode): reads each weight once for all m rows. Its sums run in another order than
 * btc_op_matmul's; the row promise holds within each of the two. */
void btc_op_matvec(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e);

/*
 * Products of the same rows with several matrices: y [m, all their rows] = x w^T of each. On a host one part lies behind the other;
 * a device makes all of them at once where they were held together (btc_backend_hold_together), and then a row's parts lie side by
 * side: btc_products_part tells. norm: x is normalised first, as btc_op_rmsnorm_packed does it, and `normed` is room for that.
 * few: as btc_op_matvec, else as btc_op_matmul; on a host bit for bit what those make of each matrix.
 */
#define BTC_PRODUCTS 3
typedef struct btc_products {
  int n; /* 1..BTC_PRODUCTS */
  const btc_weight *w[BTC_PRODUCTS];
  const float *bias[BTC_PRODUCTS]; /* [rows] of each; NULL: none */
  const float *x;                  /* [m, cols] */
  int64_t m;
  const float *norm; /* [cols]; NULL: none, eps and normed are not read */
  float eps;
  float *normed;           /* [m, cols] */
  float *y;                /* overlaps none of them */
  bool few;                /* see above */
  bool x_packed, y_packed; /* as btc_epilogue's; with a norm x is not packed */
} btc_products;

/* Part i of y: its row r begins r * stride elements behind `at`. */
typedef struct btc_product_part {
  float *at;
  int64_t stride;
} btc_product_part;
btc_product_part btc_products_part(const btc_backend *b, const btc_products *p, int i);
void btc_op_products(btc_backend *b, const btc_products *p);
/* out[m, rows] = silu(part 0) * part 1 of two matrices with as many rows; out is packed. y is room for the parts and holds nothing
 * of use afterwards; on a host out may be y. The parts may be rounded to bf16 on a device that multiplies in bf16. */
void btc_op_products_gated(btc_backend *b, float *out, const btc_products *p);

/* ---- norms (statistics in float32) ---- */
/* y = (x-mean)/sqrt(var+eps)*weight+bias per row; biased variance. y may be x. Spec 1.2, 1.3, 1.4. */
void btc_op_layernorm(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, const float *bias,
                      float eps);
/* y = x*rsqrt(mean(x^2)+eps)*weight per row. y may be x. Spec 1.6. */
void btc_op_rmsnorm(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, float eps);
/* The same for rows that only products (x_packed) and bidirectional attention (packed) read: y may hold them in the type those
 * compute in, at the same place, in no more memory. The reader must say so; no result changes. y is not x. */
void btc_op_layernorm_packed(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, const float *bias,
                             float eps);
void btc_op_rmsnorm_packed(btc_backend *b, float *y, const float *x, int64_t m, int64_t n, const float *weight, float eps);

/* ---- attention ---- */
/* Bidirectional, over n_seq independent sequences of t tokens. q,k,v,o are [n_seq*t, ...] with row strides in elements;
 * head h owns channels [h*d, h*d+d). o = softmax(q k^T * scale) v. v may be k. o must overlap nothing. Spec 1.2, 1.3. */
typedef struct btc_attention {
  const float *q, *k, *v;
  float *o;
  int64_t q_stride, k_stride, v_stride, o_stride;
  int64_t n_seq, t, heads, d;
  float scale;
  bool packed; /* q, k and v are packed, and so will be o (btc_op_layernorm_packed); strides count elements as ever */
} btc_attention;
void btc_op_attention(btc_backend *b, const btc_attention *a);

/* Keys and values of one layer of one item: [kv_heads, capacity, d] each, in kv dtype (f32 or bf16). */
typedef struct btc_kv {
  void *k, *v;
  btc_dtype dtype;
  int64_t kv_heads, capacity, d;
} btc_kv;

/* Stores rows k[m, kv_heads*d], v[m, kv_heads*d] (row strides in elements) at positions [pos, pos+m). */
void btc_op_kv_store(btc_backend *b, const btc_kv *kv, int64_t pos, const float *k, int64_t k_stride, const float *v,
                     int64_t v_stride, int64_t m);
/* Causal attention of one item: query row i (position pos+i) sees keys [0, pos+i]. q [m, heads*d], o [m, heads*d].
 * Query head h reads kv head h / (heads/kv_heads). Spec 1.6. A query row's result does not depend on m. */
void btc_op_attention_causal(btc_backend *b, float *o, const float *q, int64_t q_stride, int64_t m, int64_t pos, int64_t heads,
                             const btc_kv *kv, float scale);

/* Rows of n items, one item after another: rows[i] rows of item i at positions pos[i], pos[i]+1, ... of its keys and values. */
typedef struct btc_items {
  int64_t n, layers;
  const btc_kv *kv;          /* [layers, n] */
  const int64_t *pos, *rows; /* [n] */
  const int32_t *ids;        /* [all rows] for btc_op_embed_items; NULL: not used */
} btc_items;
/* What the next calls mean by items. The cpu borrows it until the next call; a device copies it. Within the backend's options. */
void btc_op_set_items(btc_backend *b, const btc_items *items);
/* For rows [first, first+m) of all the items' rows: rotary embedding of q and k, keys and values stored, causal attention. The
 * pointers are at row `first`; q [m, heads*d] and k [m, kv_heads*d] may be overwritten; o [m, heads*d] is dense and packed.
 * Without prefill all items have one row, and a device may sum in another order (as btc_op_matvec does). On the cpu
 * bit for bit btc_op_rope, btc_op_kv_store and btc_op_attention_causal of each item. */
typedef struct btc_attention_items {
  float *q, *k, *o;
  const float *v;
  int64_t q_stride, k_stride, v_stride; /* of rows, in elements */
  int64_t first, m, layer, heads;
  const float *cos, *sin; /* as for btc_op_rope */
  float scale;
  bool prefill;
} btc_attention_items;
void btc_op_attention_items(btc_backend *b, const btc_attention_items *a);
/* The same of the parts of p, three matrices of m rows of x; q, k, v and their strides of `a` are not read. A device may have no
 * use for p's y. */
void btc_op_products_attend(btc_backend *b, const btc_products *p, const btc_attention_items *a);
/* y[all rows, n] = rows `ids` of a stored table. */
void btc_op_embed_items(btc_backend *b, float *y, const btc_weight *table);

/* What is wrong with a row of logits. A device does not tell the two kinds of not-finite apart, a host does. */
typedef enum btc_pick_fault {
  BTC_PICK_SOUND,
  BTC_PICK_NOT_FINITE, /* not a number or +infinity among them */
  BTC_PICK_NOTHING,    /* nothing but minus infinity */
  BTC_PICK_NAN,
  BTC_PICK_INFINITE,
  BTC_PICK_FAULTS /* their number */
} btc_pick_fault;

/* What a row of logits is sure to become without a draw. */
typedef struct btc_pick {
  int32_t id;     /* of the largest, the lowest of equal ones; not finite: the first that is not */
  int32_t broken; /* btc_pick_fault */
  double logprob; /* ln of the id's share in the softmax */
} btc_pick;
/* picks[m] of logits [m, vocab], the rows `stride` floats apart. On a device only: a host's logits need no journey. */
void btc_op_pick(btc_backend *b, btc_pick *picks, const float *logits, int64_t stride, int64_t m, int64_t vocab);

/* Half-split rotary embedding in place on x[m, heads*d] (row stride in elements); cos/sin [max_pos, d/2]; row i has
 * position pos+i. Spec 1.6. */
void btc_op_rope(btc_backend *b, float *x, int64_t stride, int64_t m, int64_t heads, int64_t d, int64_t pos, const float *cos,
                 const float *sin);

/* ---- elementwise ---- */
void btc_op_add(btc_backend *b, float *y, const float *a, const float *c, int64_t n); /* y = a + c; y may be a or c */
/* y[i] = a[i] + c[i % period] for i < n, a multiple of period; y may be a. */
void btc_op_add_repeated(btc_backend *b, float *y, const float *a, const float *c, int64_t n, int64_t period);
void btc_op_silu_mul(btc_backend *b, float *y, const float *gate, const float *up,
                     int64_t n); /* y = silu(gate)*up; in place allowed */

/* ---- layout ---- */
/* All over n images or maps, one after another. dst of the unfolds and z of the cosine are packed (btc_op_layernorm_packed): only
 * products read them. */
/* Patches: dst[n*g*g, 3*p*p], row t = r*g+c of an image holds x[ch][p*r+ky][p*c+kx] in (ch,ky,kx) order, as the rows of the
 * patch convolution's weight. x [n, 3, side, side]; pixels beyond g*p are not read. Spec 1.2 step 1. */
void btc_op_unfold_patches(btc_backend *b, float *dst, const float *x, int64_t n, int64_t side, int64_t p, int64_t g);
/* 3x3 neighbourhoods, zero padding 1: dst[n*g*g, c*9] in (channel,ky,kx) order from x[n*g*g, c]. Spec 1.3 step 6. */
void btc_op_unfold_3x3(btc_backend *b, float *dst, const float *x, int64_t n, int64_t g, int64_t c);
/* 2x2 space to channel with one zero row/column appended when g is odd: dst[n*h*h, 4*c], h=(g+1)/2, column-major tokens of x[n*g*g,
 * c]. Spec 1.4. */
void btc_op_space_to_depth(btc_backend *b, float *dst, const float *x, int64_t n, int64_t g, int64_t c);
/* z[t, 2c] = concat(s1[t], s2[t]) + cosine(s1[t], s2[t]); the cosine also goes to cos[t] if not NULL. eps 1e-8. Spec 1.3 steps 3-4.
 */
void btc_op_cosine_concat(btc_backend *b, float *z, float *cos, const float *s1, const float *s2, int64_t t, int64_t c);
/* y[m, n] = rows of a stored table; ids in [0, table.rows). Spec 4.4. */
void btc_op_embed(btc_backend *b, float *y, const btc_weight *table, const int32_t *ids, int64_t m);

#endif
