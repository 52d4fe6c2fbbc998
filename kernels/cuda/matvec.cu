/* Products of a few rows: which kernel takes them. Each keeps the row promise by itself; which one it is depends on the types only.
 */
#include "kernels/cuda/matvec.h"

static bool whole_pieces(const void *p, int64_t k, btc_cuda_type t) {
  int64_t bytes = t == BTC_CUDA_F32 ? 4 : 2;
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && k * bytes % 16 == 0;
}

int btc_cuda_matvec(float *y, uint16_t *y_bf16, const void *x, btc_cuda_type x_type, int64_t m, const btc_cuda_matrix *w,
                    const btc_cuda_epilogue *e, int round, btc_cuda_stream s) {
  if (m == 0) return 0;
  const int64_t most = 1 << 24;
  const int64_t pitch = w->pitch ? w->pitch : w->cols;
  if (m < 0 || m > 1 << 16 || w->rows < 1 || w->rows > most || w->cols < 1 || pitch < w->cols || pitch > most ||
      x_type == BTC_CUDA_F16)
    return 1; /* cudaErrorInvalidValue */
  matvec_job j = {};
  j.w = w->data;
  j.x = x;
  j.y = y;
  j.y_bf16 = y_bf16;
  j.w_type = w->type;
  j.x_type = x_type;
  j.m = static_cast<int>(m);
  j.n = static_cast<int>(w->rows);
  j.k = static_cast<int>(w->cols);
  j.pitch = static_cast<int>(pitch);
  /* Eight columns are taken at a time, so rows must be whole in those. */
  j.wide = j.k % 8 == 0 && whole_pieces(w->data, j.pitch, w->type) && whole_pieces(x, j.k, x_type);
  j.round = round != 0;
  if (e) j.e = *e;
  return round && w->type == BTC_CUDA_BF16 ? btc_cuda_matvec_mma(&j, s) : btc_cuda_matvec_f32(&j, s);
}
