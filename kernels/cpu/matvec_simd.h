/* Kernel text of matvec.c. Every dot product is one vector of running sums over k and its lanes folded in one order, whatever
 * the tile it was computed in: that is the row promise. */

inl void dot_tile(float *out, int64_t ld_out, const float *x, int64_t x_stride, const char *w, int mode, int64_t w_bytes, int64_t k,
                  int mt, int nt) {
  V acc[4][8];
  for (int i = 0; i < mt; i++)
    for (int j = 0; j < nt; j++) acc[i][j] = vzero();
  int64_t at = 0, size = (int64_t)load_size(mode);
  for (; at + VW <= k; at += VW)
    for (int j = 0; j < nt; j++) {
      V wj = vload_as(w + j * w_bytes + at * size, mode);
      __builtin_prefetch(w + (j + nt) * w_bytes + at * size, 0,
                         2); /* the next tile's: rows are too short for the hardware to foresee */
      for (int i = 0; i < mt; i++) acc[i][j] = vfma(vload(x + i * x_stride + at), wj, acc[i][j]);
    }
  if (at < k)
    for (int j = 0; j < nt; j++) {
      V wj = vload_as_n(w + j * w_bytes + at * size, mode, k - at);
      for (int i = 0; i < mt; i++) acc[i][j] = vfma(vload_n(x + i * x_stride + at, k - at), wj, acc[i][j]);
    }
  for (int i = 0; i < mt; i++)
    for (int j = 0; j < nt; j++) out[i * ld_out + j] = vsum(acc[i][j]);
}

/* mt rows of x against `rows` stored rows, nt at a time */
inl void dot_rows(float *out, int64_t ld_out, const float *x, int64_t x_stride, const char *w, int mode, int64_t w_bytes,
                  int64_t rows, int64_t k, int mt, int nt) {
  int64_t j = 0;
  for (; j + nt <= rows; j += nt) dot_tile(out + j, ld_out, x, x_stride, w + j * w_bytes, mode, w_bytes, k, mt, nt);
  for (; j < rows; j++) dot_tile(out + j, ld_out, x, x_stride, w + j * w_bytes, mode, w_bytes, k, mt, 1);
}

/* A group of stored rows stays in cache while all rows of x pass. Eight to twelve running sums hide the latency of a multiply-add.
 */
enum { DOT_ROWS = 24 };

inl void dots_mode(float *out, int64_t ld_out, const float *x, int64_t x_stride, int64_t m, const char *w, int mode,
                   int64_t w_stride, int64_t rows, int64_t k) {
  int64_t w_bytes = w_stride * (int64_t)load_size(mode);
  for (int64_t j = 0; j < rows; j += DOT_ROWS) {
    int64_t here = btc_min64(rows - j, DOT_ROWS), i = 0;
    const char *wj = w + j * w_bytes;
    for (; i + 4 <= m; i += 4) dot_rows(out + i * ld_out + j, ld_out, x + i * x_stride, x_stride, wj, mode, w_bytes, here, k, 4, 3);
    float *to = out + i * ld_out + j;
    const float *xi = x + i * x_stride;
    if (m - i == 3) dot_rows(to, ld_out, xi, x_stride, wj, mode, w_bytes, here, k, 3, 4);
    if (m - i == 2) dot_rows(to, ld_out, xi, x_stride, wj, mode, w_bytes, here, k, 2, 6);
    if (m - i == 1) dot_rows(to, ld_out, xi, x_stride, wj, mode, w_bytes, here, k, 1, 8);
  }
}

fn void dots(float *out, int64_t ld_out, const float *x, int64_t x_stride, int64_t m, const void *w, btc_cpu_type type, bool bf16,
             int64_t w_stride, int64_t rows, int64_t k) {
  switch (load_mode(type, bf16)) {
    case LOAD_F32:
      dots_mode(out, ld_out, x, x_stride, m, w, LOAD_F32, w_stride, rows, k);
      break;
    case LOAD_F16:
      dots_mode(out, ld_out, x, x_stride, m, w, LOAD_F16, w_stride, rows, k);
      break;
    case LOAD_BF16:
      dots_mode(out, ld_out, x, x_stride, m, w, LOAD_BF16, w_stride, rows, k);
      break;
    case LOAD_F32_ROUND:
      dots_mode(out, ld_out, x, x_stride, m, w, LOAD_F32_ROUND, w_stride, rows, k);
      break;
    default:
      dots_mode(out, ld_out, x, x_stride, m, w, LOAD_F16_ROUND, w_stride, rows, k);
      break;
  }
}

fn void round_bf16(float *y, const float *x, int64_t n) {
  int64_t i = 0;
  for (; i + VW <= n; i += VW) vstore(y + i, vround_bf16(vload(x + i)));
  if (i < n) vstore_n(y + i, vround_bf16(vload_n(x + i, n - i)), n - i);
}
