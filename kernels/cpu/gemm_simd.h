/* Kernel text of gemm.c: packing, the register tile, the epilogue. */

#if defined(SIMD_AVX512)
#define MR 14
#else
#define MR 6
#endif
#define NR (2 * VW)

fn void pack_x(float *dst, const float *x, int64_t ld, int64_t rows, int64_t kc, bool bf16) {
  for (int64_t i = 0; i < MR; i++) {
    float *to = dst + i * GEMM_KC;
    if (i >= rows) {
      memset(to, 0, (size_t)kc * sizeof *to);
    } else if (!bf16) {
      memcpy(to, x + i * ld, (size_t)kc * sizeof *to);
    } else {
      int64_t k = 0;
      for (; k + VW <= kc; k += VW) vstore(to + k, vround_bf16(vload(x + i * ld + k)));
      if (k < kc) vstore_n(to + k, vround_bf16(vload_n(x + i * ld + k, kc - k)), kc - k);
    }
  }
}

#if defined(SIMD_AVX2) || defined(SIMD_AVX512)
/* 8 rows by 8 columns to columns, dst rows `stride` apart. */
inl void transpose8(float *dst, int64_t stride, const __m256 *r) {
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; i++) {
    _mm256_storeu_ps(dst + i * stride, _mm256_permute2f128_ps(u[i], u[i + 4], 0x20));
    _mm256_storeu_ps(dst + (i + 4) * stride, _mm256_permute2f128_ps(u[i], u[i + 4], 0x31));
  }
}

inl __m256 load8(const char *p, int mode) {
#if defined(SIMD_AVX2)
  return vload_as(p, mode);
#else
  float wide[VW];
  char part[VW * 4] = {0};
  memcpy(part, p, 8 * load_size(mode));
  vstore(wide, vload_as(part, mode));
  return _mm256_loadu_ps(wide);
#endif
}

/* Columns [0, kc rounded down to 8) of 8 rows; returns how many were done. */
inl int64_t pack_8_rows(float *dst, const char *w, int mode, int64_t ld_bytes, int64_t kc) {
  int64_t k = 0;
  for (; k + 8 <= kc; k += 8) {
    __m256 r[8];
    for (int i = 0; i < 8; i++) r[i] = load8(w + i * ld_bytes + k * (int64_t)load_size(mode), mode);
    transpose8(dst + k * NR, NR, r);
  }
  return k;
}
#define PACK_ROWS 8
#else
inl int64_t pack_4_rows(float *dst, const char *w, int mode, int64_t ld_bytes, int64_t kc) {
  int64_t k = 0;
  for (; k + VW <= kc; k += VW) {
    float r[4][VW];
    for (int i = 0; i < 4; i++) vstore(r[i], vload_as(w + i * ld_bytes + k * (int64_t)load_size(mode), mode));
    for (int j = 0; j < VW; j++)
      for (int i = 0; i < 4; i++) dst[(k + j) * NR + i] = r[i][j];
  }
  return k;
}
#define pack_8_rows pack_4_rows
#define PACK_ROWS 4
#endif

inl void pack_w_mode(float *dst, const char *w, int mode, int64_t ld, int64_t rows, int64_t kc) {
  int64_t ld_bytes = ld * (int64_t)load_size(mode);
  for (int64_t n = 0; n < rows; n += NR, dst += kc * NR) {
    int64_t here = btc_min64(rows - n, NR), i = 0;
    for (; i + PACK_ROWS <= here; i += PACK_ROWS) {
      const char *from = w + (n + i) * ld_bytes;
      int64_t k = pack_8_rows(dst + i, from, mode, ld_bytes, kc);
      for (; k < kc; k++)
        for (int64_t j = 0; j < PACK_ROWS; j++)
          vstore_n(dst + k * NR + i + j, vload_as_n(from + j * ld_bytes + k * (int64_t)load_size(mode), mode, 1), 1);
    }
    for (; i < here; i++)
      for (int64_t k = 0; k < kc; k++)
        vstore_n(dst + k * NR + i, vload_as_n(w + (n + i) * ld_bytes + k * (int64_t)load_size(mode), mode, 1), 1);
    for (; i < NR; i++)
      for (int64_t k = 0; k < kc; k++) dst[k * NR + i] = 0;
  }
}

fn void pack_w(float *dst, const void *w, btc_cpu_type type, bool bf16, int64_t ld, int64_t rows, int64_t kc) {
  switch (load_mode(type, bf16)) {
    case LOAD_F32: pack_w_mode(dst, w, LOAD_F32, ld, rows, kc); break;
    case LOAD_F16: pack_w_mode(dst, w, LOAD_F16, ld, rows, kc); break;
    case LOAD_BF16: pack_w_mode(dst, w, LOAD_BF16, ld, rows, kc); break;
    case LOAD_F32_ROUND: pack_w_mode(dst, w, LOAD_F32_ROUND, ld, rows, kc); break;
    default: pack_w_mode(dst, w, LOAD_F16_ROUND, ld, rows, kc); break;
  }
}

fn void tile(const float *a, const float *b, int64_t kc, float *c, int64_t ldc, bool add) {
  V acc[MR][2];
  for (int i = 0; i < MR; i++) acc[i][0] = acc[i][1] = vzero();
  for (int64_t k = 0; k < kc; k++) {
    V b0 = vload(b + k * NR), b1 = vload(b + k * NR + VW);
    for (int i = 0; i < MR; i++) {
      V x = vset(a[i * GEMM_KC + k]);
      acc[i][0] = vfma(x, b0, acc[i][0]);
      acc[i][1] = vfma(x, b1, acc[i][1]);
    }
  }
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < 2; j++) {
      float *to = c + i * ldc + j * VW;
      vstore(to, add ? vadd(vload(to), acc[i][j]) : acc[i][j]);
    }
}

/* 0.5 x (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3) */
inl V gelu_tanh(V x) {
  V u2 = vmul(vmul(vset(1.5957691216f), x), vfma(vmul(vset(0.044715f), x), x, vset(1.0f)));
  return vmul(x, vsigmoid(u2));
}

inl V gelu_erf(V x) {
  float lane[VW];
  vstore(lane, x);
  for (int i = 0; i < VW; i++) lane[i] = 0.5f * lane[i] * (1.0f + erff(lane[i] * 0.70710678f));
  return vload(lane);
}

inl V activate(V x, btc_cpu_act act) {
  if (act == BTC_CPU_GELU_TANH) return gelu_tanh(x);
  if (act == BTC_CPU_GELU_ERF) return gelu_erf(x);
  return act == BTC_CPU_RELU ? vmax(vzero(), x) : x;
}

inl V finish_vector(V dot, V scale, V bias, V residual, const btc_cpu_epilogue *e) {
  if (e->scale) dot = vmul(dot, scale);
  if (e->bias) dot = vadd(dot, bias);
  if (e->residual && e->residual_first) dot = vadd(dot, residual);
  dot = activate(dot, e->act);
  return e->residual && !e->residual_first ? vadd(dot, residual) : dot;
}

fn void finish(float *y, const float *c, int64_t n, const btc_cpu_epilogue *e) {
  V none = vzero();
  int64_t j = 0;
  for (; j + VW <= n; j += VW)
    vstore(y + j, finish_vector(vload(c + j), e->scale ? vload(e->scale + j) : none, e->bias ? vload(e->bias + j) : none,
                                e->residual ? vload(e->residual + j) : none, e));
  if (j == n) return;
  int64_t rest = n - j;
  vstore_n(y + j, finish_vector(vload_n(c + j, rest), e->scale ? vload_n(e->scale + j, rest) : none, e->bias ? vload_n(e->bias + j, rest) : none,
                                e->residual ? vload_n(e->residual + j, rest) : none, e), rest);
}
