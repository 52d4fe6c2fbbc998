/* Products of a few rows: which kernel takes them. Each keeps the row promise by itself; which one it is depends on the types only.
 */
#include "kernels/cuda/matvec.h"

static const int INVALID = 1; /* cudaErrorInvalidValue */

static bool whole_pieces(const void *p, int64_t k, btc_cuda_type t) {
  int64_t bytes = t == BTC_CUDA_F32 ? 4 : 2;
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && k * bytes % 16 == 0;
}

static bool on_tensor_cores(const btc_cuda_matrix *w, int round) {
  return round && w->type == BTC_CUDA_BF16;
}

/* false: sizes that no kernel takes. */
static bool describe(matvec_job *j, const btc_cuda_rows *x, const btc_cuda_matrix *w, int round) {
  const int64_t most = 1 << 24, pitch = w->pitch ? w->pitch : w->cols;
  *j = {};
  if (x->m < 0 || x->m > 1 << 16 || w->rows < 1 || w->rows > most || w->cols < 1 || pitch < w->cols || pitch > most ||
      x->type == BTC_CUDA_F16 || (x->norm && x->type != BTC_CUDA_F32))
    return false;
  j->w = w->data;
  j->x = x->x;
  j->w_type = w->type;
  j->x_type = x->type;
  j->m = static_cast<int>(x->m);
  j->n = static_cast<int>(w->rows);
  j->k = static_cast<int>(w->cols);
  j->pitch = static_cast<int>(pitch);
  /* Eight columns are taken at a time, so rows must be whole in those. */
  j->wide = j->k % 8 == 0 && whole_pieces(w->data, pitch, w->type) && whole_pieces(x->x, j->k, x->type);
  j->round = round != 0;
  j->norm = x->norm;
  j->eps = x->eps;
  return true;
}

static int run(const matvec_job *j, const btc_cuda_matrix *w, btc_cuda_stream s) {
  if (j->m == 0) return 0;
  const bool tensor_cores = on_tensor_cores(w, j->round);
  if (j->norm && !(tensor_cores && btc_cuda_matvec_mma_norms(j))) return INVALID;
  return tensor_cores ? btc_cuda_matvec_mma(j, s) : btc_cuda_matvec_f32(j, s);
}

int btc_cuda_matvec_norms(const btc_cuda_rows *x, const btc_cuda_matrix *w, int round) {
  matvec_job j;
  return x->norm && describe(&j, x, w, round) && on_tensor_cores(w, round) && btc_cuda_matvec_mma_norms(&j);
}

int btc_cuda_matvec(float *y, uint16_t *y_bf16, const btc_cuda_rows *x, const btc_cuda_matrix *w, const btc_cuda_epilogue *e,
                    int round, btc_cuda_stream s) {
  matvec_job j;
  if (!describe(&j, x, w, round)) return INVALID;
  j.y = y;
  j.y_bf16 = y_bf16;
  if (e) j.e = *e;
  return run(&j, w, s);
}

int btc_cuda_matvec_gated(float *y, uint16_t *y_bf16, const btc_cuda_rows *x, const btc_cuda_matrix *w, int round,
                          btc_cuda_stream s) {
  matvec_job j;
  if (w->rows % 2 || !describe(&j, x, w, round)) return INVALID;
  j.kind = MATVEC_GATED;
  j.y = y;
  j.y_bf16 = y_bf16;
  return run(&j, w, s);
}

/* A block of the tensor cores' kernel takes eight channels and the eight that they are rotated with. */
int btc_cuda_matvec_rotates(const btc_cuda_matrix *w, int64_t d, int round) {
  return d > 0 && d % (on_tensor_cores(w, round) ? 16 : 2) == 0;
}

int btc_cuda_matvec_rotated(float *q, int64_t q_stride, const btc_cuda_rows *x, const btc_cuda_matrix *w, const btc_cuda_kv *kv,
                            const btc_cuda_rotation *r, int round, btc_cuda_stream s) {
  matvec_job j;
  if (!describe(&j, x, w, round) || !btc_cuda_matvec_rotates(w, kv->d, round) || w->rows != (r->heads + 2 * kv->kv_heads) * kv->d)
    return INVALID;
  j.kind = MATVEC_ROTATED;
  j.y = q;
  j.y_stride = q_stride;
  j.kv = *kv;
  j.rotation = *r;
  return run(&j, w, s);
}
