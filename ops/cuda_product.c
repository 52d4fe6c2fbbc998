/*
 * Matrix products on a CUDA device. Many rows go to cuBLASLt, few rows to our own kernel.
 *
 * The row promise (ops.h). cuBLASLt's choice of algorithm depends on the number of rows, so it is asked once a shape of weight and
 * epilogue, for MODEL_ROWS rows, and that algorithm is used for every number of rows: the first of its proposals that the library
 * itself would also run with one row, and with as many as the tower has. It gets no workspace and may use no reduction
 * scheme: a result element is then summed by one thread block, along the columns in the tile's own order, which knows nothing of
 * the other rows. Columns are padded with zeros to 16 bytes, so that alignment asks for no other algorithm. The test of the
 * promise on a card is in bench/gpu.sh.
 *
 * Where the library has no such algorithm, our own kernel for few rows takes them all: the same promise, slowly, and the log says
 * so.
 *
 * What cuBLASLt cannot fuse (a scale, exact GELU, a residual inside the activation) goes by way of `dot`, a window of rows at a
 * time.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "ops/cuda_parts.h"

enum { MODEL_ROWS = 4096, CANDIDATES = 16, MOST_FEW = 1 << 16 };
#define WINDOW_BYTES ((size_t)BTC_DEVICE_WINDOWS / 2) /* of operand and dot each */

struct cuda_plan {
  int64_t n, k; /* k 0: free */
  cublasLtEpilogue_t epilogue;
  bool residual, y_bf16, bias_bf16, usable;
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t weight;
  cublasLtMatmulAlgo_t algo;
};

btc_status cuda_products_open(cuda_backend *c, btc_error *err) {
  btc_status st = cuda_lt_load(&c->lt, err);
  if (st != BTC_OK) return st;
  if (!LT_TRY(c, c->lt->create(&c->handle))) return cuda_failure(c, err);
  c->plan = btc_alloc_zero(CUDA_PLANS, sizeof *c->plan);
  if (!c->plan) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for plans of products");
  void *p;
  if ((st = cuda_alloc(c->base, WINDOW_BYTES, &c->operand, err)) != BTC_OK) return st;
  st = cuda_alloc(c->base, WINDOW_BYTES, &p, err);
  c->dot = p;
  return st;
}

void cuda_products_close(cuda_backend *c) {
  for (int i = 0; c->plan && i < CUDA_PLANS; i++) {
    if (c->plan[i].desc) (void)c->lt->desc_destroy(c->plan[i].desc);
    if (c->plan[i].weight) (void)c->lt->layout_destroy(c->plan[i].weight);
  }
  free(c->plan);
  if (c->handle) (void)c->lt->destroy(c->handle);
  if (c->operand) (void)cudaFree(c->operand);
  if (c->dot) (void)cudaFree(c->dot);
}

/* ---- plans ---- */

static cudaDataType_t operand_type(const cuda_backend *c) {
  return c->bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

static cudaDataType_t result_type(const cuda_plan *p) {
  return p->y_bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

static bool has_bias(const cuda_plan *p) {
  return p->epilogue == CUBLASLT_EPILOGUE_BIAS || p->epilogue == CUBLASLT_EPILOGUE_RELU_BIAS ||
         p->epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;
}

/* Row-major [rows, cols] is column-major [cols, rows]: y^T = w x^T, where w's memory is the transposed operand. The library may
 * judge an epilogue by its bias, so that some place on the device stands for it until there is one. */
static bool describe(cuda_backend *c, cuda_plan *p) {
  const cublasOperation_t transposed = CUBLAS_OP_T;
  const void *somewhere = c->dot;
  const cudaDataType_t bias = p->bias_bf16 ? CUDA_R_16BF : CUDA_R_32F;
  return LT_TRY(c, c->lt->desc_create(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F)) &&
         LT_TRY(c, c->lt->desc_set(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed)) &&
         LT_TRY(c, c->lt->desc_set(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &p->epilogue, sizeof p->epilogue)) &&
         LT_TRY(c, c->lt->desc_set(p->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias, sizeof bias)) &&
         (!has_bias(p) || LT_TRY(c, c->lt->desc_set(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &somewhere, sizeof somewhere))) &&
         LT_TRY(c, c->lt->layout_create(&p->weight, operand_type(c), (uint64_t)p->k, (uint64_t)p->n, p->k));
}

static bool set_limits(cuda_backend *c, const cuda_plan *p, cublasLtMatmulPreference_t want) {
  const uint64_t workspace = 0;
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE, sixteen = 16;
  uint32_t result = (uint32_t)(p->n * (p->y_bf16 ? 2 : 4)) & -(uint32_t)(p->n * (p->y_bf16 ? 2 : 4)); /* of a row's start */
  if (result > 16) result = 16;
  return LT_TRY(c, c->lt->preference_set(want, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace)) &&
         LT_TRY(c, c->lt->preference_set(want, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions)) &&
         LT_TRY(c, c->lt->preference_set(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &sixteen, sizeof sixteen)) &&
         LT_TRY(c, c->lt->preference_set(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &sixteen, sizeof sixteen)) &&
         LT_TRY(c, c->lt->preference_set(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &result, sizeof result)) &&
         LT_TRY(c, c->lt->preference_set(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &result, sizeof result));
}

typedef struct layouts {
  cublasLtMatrixLayout_t x, y;
} layouts;

static bool describe_rows(cuda_backend *c, const cuda_plan *p, int64_t m, layouts *l) {
  *l = (layouts){NULL, NULL};
  return LT_TRY(c, c->lt->layout_create(&l->x, operand_type(c), (uint64_t)p->k, (uint64_t)m, p->k)) &&
         LT_TRY(c, c->lt->layout_create(&l->y, result_type(p), (uint64_t)p->n, (uint64_t)m, p->n));
}

static void forget_rows(cuda_backend *c, layouts *l) {
  if (l->x) (void)c->lt->layout_destroy(l->x);
  if (l->y) (void)c->lt->layout_destroy(l->y);
}

/* Whether the algorithm runs with any number of rows, as far as a few of them tell, and without a workspace. */
static bool runs_with_any_rows(cuda_backend *c, const cuda_plan *p, const cublasLtMatmulAlgo_t *algo) {
  static const int64_t some[] = {1, 7, 35, 218, 253, 729, 1458, 8192, 23328};
  bool good = true;
  for (size_t i = 0; good && i < sizeof some / sizeof some[0]; i++) {
    cublasLtMatmulHeuristicResult_t r = {0};
    layouts l;
    good = describe_rows(c, p, some[i], &l) &&
           c->lt->check(c->handle, p->desc, p->weight, l.x, l.y, l.y, algo, &r) == CUBLAS_STATUS_SUCCESS && r.workspaceSize == 0;
    forget_rows(c, &l);
  }
  return good;
}

/* usable stays false when the library has no algorithm for the combination. */
static void choose(cuda_backend *c, cuda_plan *p) {
  cublasLtMatmulPreference_t want = NULL;
  cublasLtMatmulHeuristicResult_t found[CANDIDATES];
  layouts l = {NULL, NULL};
  int n = 0;
  bool ok =
      describe(c, p) && describe_rows(c, p, MODEL_ROWS, &l) && LT_TRY(c, c->lt->preference_create(&want)) && set_limits(c, p, want);
  if (ok) ok = c->lt->heuristic(c->handle, p->desc, p->weight, l.x, l.y, l.y, want, CANDIDATES, found, &n) == CUBLAS_STATUS_SUCCESS;
  for (int i = 0; ok && i < n && !p->usable; i++) {
    if (found[i].state != CUBLAS_STATUS_SUCCESS || !runs_with_any_rows(c, p, &found[i].algo)) continue;
    p->algo = found[i].algo;
    p->usable = true;
  }
  if (!p->usable && p->epilogue == CUBLASLT_EPILOGUE_DEFAULT)
    btc_log(BTC_LOG_WARN, "slow-products", "device=cuda:%d outputs=%lld inputs=%lld why=\"cuBLASLt has no algorithm for them\"",
            c->device, (long long)p->n, (long long)p->k);
  forget_rows(c, &l);
  if (want) (void)c->lt->preference_destroy(want);
}

static cuda_plan *plan_for(cuda_backend *c, const cuda_plan *want) {
  size_t at = (size_t)(want->n * 31 + want->k * 17 + want->epilogue * 7 + want->residual * 3 + want->y_bf16 * 2 + want->bias_bf16) %
              CUDA_PLANS;
  for (int tries = 0; tries < CUDA_PLANS; tries++, at = (at + 1) % CUDA_PLANS) {
    cuda_plan *p = &c->plan[at];
    if (!p->k) {
      *p = *want;
      choose(c, p);
    }
    if (p->n == want->n && p->k == want->k && p->epilogue == want->epilogue && p->residual == want->residual &&
        p->y_bf16 == want->y_bf16 && p->bias_bf16 == want->bias_bf16)
      return p->usable ? p : NULL;
  }
  return NULL;
}

/* The whole epilogue in the library: false when it cannot. */
static bool fusable(const btc_epilogue *e, bool y_bf16, cublasLtEpilogue_t *out) {
  if (e->scale || (e->residual && (e->act != BTC_ACT_NONE || y_bf16 || e->residual_rows))) return false;
  switch (e->act) {
    case BTC_ACT_NONE:
      *out = e->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
      return true;
    case BTC_ACT_RELU:
      *out = e->bias ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_RELU;
      return true;
    case BTC_ACT_GELU_TANH:
      *out = e->bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
      return true;
    default:
      return false;
  }
}

/* ---- running ---- */

static void multiply(cuda_backend *c, cuda_plan *p, void *y, const void *x, int64_t m, const void *w, const void *bias,
                     const float *residual) {
  const float one = 1, zero = 0;
  layouts l;
  if (has_bias(p) && !LT_TRY(c, c->lt->desc_set(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias))) return;
  if (describe_rows(c, p, m, &l))
    LT_TRY(c, c->lt->matmul(c->handle, p->desc, &one, w, p->weight, x, l.x, residual ? &one : &zero, residual ? residual : y, l.y,
                            y, l.y, &p->algo, NULL, 0, c->stream));
  forget_rows(c, &l);
}

/* Rows of x as the product wants them: in its type, padded, at an address it can read well. */
static const void *operand(cuda_backend *c, const void *x, bool packed, int64_t m, const cuda_constant *k) {
  const size_t size = c->bf16 ? 2 : 4, row = (size_t)k->cols * size;
  bool ready = packed || !c->bf16;
  if (ready && k->pitch == k->cols && (uintptr_t)x % 16 == 0) return x;
  void *dense = k->pitch == k->cols ? c->operand : c->dot;
  if (!ready && !CUDA_TRY(c, btc_cuda_to_bf16(dense, x, BTC_CUDA_F32, m * k->cols, c->stream))) return NULL;
  const void *from = ready ? x : dense;
  if (from == c->operand) return from;
  if (k->pitch != k->cols && !CUDA_TRY(c, cudaMemsetAsync(c->operand, 0, (size_t)(m * k->pitch) * size, c->stream))) return NULL;
  if (!CUDA_TRY(c, cudaMemcpy2DAsync(c->operand, (size_t)k->pitch * size, from, row, row, (size_t)m, cudaMemcpyDeviceToDevice,
                                     c->stream)))
    return NULL;
  return c->operand;
}

typedef struct product {
  const cuda_constant *k;
  btc_epilogue e; /* with addresses on the device */
  cuda_plan *fused, *plain;
  bool y_bf16;
  const float *host_bias;
  const void *fused_bias; /* in the type the fused plan wants */
} product;

static void apply(cuda_backend *c, const product *p, void *y, int64_t m, const float *residual) {
  btc_cuda_epilogue last = {.bias = p->e.bias,
                            .scale = p->e.scale,
                            .residual = residual,
                            .residual_rows = p->e.residual_rows,
                            .act = (btc_cuda_act)p->e.act,
                            .residual_first = p->e.residual_first};
  CUDA_TRY(c, btc_cuda_epilogue_apply(p->y_bf16 ? NULL : y, p->y_bf16 ? y : NULL, c->dot, m, p->k->rows, &last, c->stream));
}

btc_cuda_matrix cuda_matrix(const cuda_backend *c, const cuda_constant *k) {
  return (btc_cuda_matrix){
      .data = k->product, .type = c->bf16 ? BTC_CUDA_BF16 : BTC_CUDA_F32, .rows = k->rows, .cols = k->cols, .pitch = k->pitch};
}

/* Rows of x in either type, straight to y. */
static void multiply_few(cuda_backend *c, const product *p, void *y, const btc_cuda_rows *x) {
  const btc_cuda_matrix matrix = cuda_matrix(c, p->k);
  const btc_cuda_epilogue last = {.bias = p->e.bias,
                                  .scale = p->e.scale,
                                  .residual = p->e.residual,
                                  .residual_rows = p->e.residual_rows,
                                  .act = (btc_cuda_act)p->e.act,
                                  .residual_first = p->e.residual_first};
  CUDA_TRY(c, btc_cuda_matvec(p->y_bf16 ? NULL : y, p->y_bf16 ? y : NULL, x, &matrix, &last, c->bf16, c->stream));
}

/* The residual of row i, where a window begins. */
static const float *residual_at(const product *p, int64_t i) {
  const int64_t period = p->e.residual_rows;
  return p->e.residual ? p->e.residual + (period ? i % period : i) * p->k->rows : NULL;
}

/* Rows [i, i+m). */
static void run_window(cuda_backend *c, const product *p, float *y, const float *x, int64_t i, int64_t m) {
  const int64_t n = p->k->rows, cols = p->k->cols;
  const bool x_bf16 = p->e.x_packed && c->bf16;
  if (!p->fused && !p->plain) {
    product part = *p;
    part.e.residual = residual_at(p, i);
    const btc_cuda_rows few = {.x = x_bf16 ? (const void *)((const uint16_t *)x + i * cols) : x + i * cols,
                               .type = x_bf16 ? BTC_CUDA_BF16 : BTC_CUDA_F32,
                               .m = m};
    multiply_few(c, &part, p->y_bf16 ? (void *)((uint16_t *)y + i * n) : y + i * n, &few);
    return;
  }
  const void *from = x_bf16 ? (const void *)((const uint16_t *)x + i * cols) : x + i * cols;
  void *to = p->y_bf16 ? (void *)((uint16_t *)y + i * n) : y + i * n;
  const float *residual = residual_at(p, i);
  const void *rows = operand(c, from, x_bf16, m, p->k);
  if (!rows) return;
  if (p->fused) {
    multiply(c, p->fused, to, rows, m, p->k->product, p->fused_bias, residual);
  } else {
    multiply(c, p->plain, c->dot, rows, m, p->k->product, NULL, NULL);
    if (c->failed.code == BTC_OK) apply(c, p, to, m, residual);
  }
}

/* Most rows whose operand and dot fit their windows, and that a kernel for few rows takes at once. */
static int64_t window_rows(const product *p) {
  int64_t row = p->k->pitch > p->k->rows ? p->k->pitch : p->k->rows, m = (int64_t)(WINDOW_BYTES / sizeof(float)) / row;
  return m < 1 ? 1 : m < MOST_FEW ? m : MOST_FEW;
}

/* Where the window that begins with row i ends: one over several times a repeated residual ends with the last of its rows, and a
 * smaller one before its first row comes again. */
static int64_t window_end(const btc_epilogue *e, int64_t i, int64_t most, int64_t m) {
  const int64_t period = e->residual ? e->residual_rows : 0;
  if (period && most >= period) most -= most % period;
  if (period && most < period && most > period - i % period) most = period - i % period;
  return m - i < most ? m : i + most;
}

/* The library wants a bias in the type of the result. Rounded ones serve where they lose nothing, as those of a bf16 checkpoint;
 * others may be refused, and then the product goes the way without. */
static void fuse(cuda_backend *c, product *p, cublasLtEpilogue_t kind) {
  cuda_plan want = {.n = p->k->rows, .k = p->k->pitch, .epilogue = kind, .residual = p->e.residual, .y_bf16 = p->y_bf16};
  const uint16_t *rounded = p->y_bf16 ? cuda_rounded(c, p->host_bias) : NULL;
  p->fused_bias = p->e.bias;
  if (rounded) {
    want.bias_bf16 = true;
    p->fused_bias = rounded;
    p->fused = plan_for(c, &want);
    if (p->fused) return;
    want.bias_bf16 = false;
    p->fused_bias = p->e.bias;
  }
  p->fused = plan_for(c, &want);
}

static void multiply_many(cuda_backend *c, product *p, float *y, const float *x, int64_t m) {
  cublasLtEpilogue_t kind;
  cuda_plan want = {.n = p->k->rows, .k = p->k->pitch, .epilogue = CUBLASLT_EPILOGUE_DEFAULT};
  if (fusable(&p->e, p->y_bf16, &kind)) fuse(c, p, kind);
  if (!p->fused) p->plain = plan_for(c, &want);
  bool in_place = p->fused && p->k->pitch == p->k->cols && (uintptr_t)x % 16 == 0 && (p->e.x_packed || !c->bf16);
  const int64_t most = in_place ? m : window_rows(p);
  for (int64_t i = 0, end; i < m && c->failed.code == BTC_OK; i = end) {
    end = window_end(&p->e, i, most, m);
    run_window(c, p, y, x, i, end - i);
  }
}

/* The product, with the epilogue's vectors where the device has them. false: it cannot be made. */
static bool prepare(cuda_backend *c, product *p, const cuda_constant *k, const btc_epilogue *e) {
  *p = (product){.k = k, .e = *e, .y_bf16 = e->y_packed && c->bf16, .host_bias = e->bias};
  if (c->failed.code != BTC_OK) return false;
  if (!k || !k->product) return cuda_note(c, cudaErrorInvalidValue, "a product with a weight that is not held", __FILE__, __LINE__);
  p->e.bias = cuda_vector(c, e->bias);
  p->e.scale = cuda_vector(c, e->scale);
  p->e.residual = cuda_vector(c, e->residual);
  return true;
}

void cuda_multiply_many(cuda_backend *c, const cuda_constant *k, float *y, const float *x, int64_t m, const btc_epilogue *e) {
  product p;
  if (prepare(c, &p, k, e)) multiply_many(c, &p, y, x, m);
}

void cuda_multiply_few(cuda_backend *c, const cuda_constant *k, float *y, const btc_cuda_rows *x, const btc_epilogue *e) {
  product p;
  if (prepare(c, &p, k, e)) multiply_few(c, &p, y, x);
}

void cuda_matmul(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e) {
  cuda_backend *c = b->self;
  cuda_multiply_many(c, cuda_find(c, w->data), y, x, m, e);
}

void cuda_matvec(btc_backend *b, float *y, const float *x, int64_t m, const btc_weight *w, const btc_epilogue *e) {
  cuda_backend *c = b->self;
  const btc_cuda_rows rows = {.x = x, .type = e->x_packed && c->bf16 ? BTC_CUDA_BF16 : BTC_CUDA_F32, .m = m};
  cuda_multiply_few(c, cuda_find(c, w->data), y, &rows, e);
}
