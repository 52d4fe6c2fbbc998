/* Kernel text of gemm.c: packing, the register tile, the epilogue. */

/* A tile of MR rows by NV vectors fills the registers: accumulators, one vector of each column, one element spread out. Packed rows
 * lie side by side, element by element: as MR separate streams they were 10 % slower on Zen 3, and 6 rows by 2 vectors there were
 * 5 % slower than 4 by 3. */
#if defined(SIMD_AVX512)
#define MR 14
#define NV 2
#elif defined(SIMD_AVX2)
#define MR 4
#define NV 3
#else
#define MR 6
#define NV 2
#endif
#define NR (NV * VW)

#if defined(SIMD_AVX2)
/* Columns [0, kc rounded down to 8) of 4 rows; returns how many were done. */
inl int64_t pack_x_4_rows(float *dst, const float *x, int64_t ld, int64_t kc, bool bf16) {
  int64_t k = 0;
  for (; k + 8 <= kc; k += 8) {
    V r[4], s[4];
    for (int i = 0; i < 4; i++) r[i] = bf16 ? vround_bf16(vload(x + i * ld + k)) : vload(x + i * ld + k);
    V low01 = _mm256_unpacklo_ps(r[0], r[1]), low23 = _mm256_unpacklo_ps(r[2], r[3]);
    V high01 = _mm256_unpackhi_ps(r[0], r[1]), high23 = _mm256_unpackhi_ps(r[2], r[3]);
    s[0] = _mm256_shuffle_ps(low01, low23, 0x44); /* columns 0 and 4 */
    s[1] = _mm256_shuffle_ps(low01, low23, 0xee);
    s[2] = _mm256_shuffle_ps(high01, high23, 0x44);
    s[3] = _mm256_shuffle_ps(high01, high23, 0xee);
    vstore(dst + k * 4, _mm256_permute2f128_ps(s[0], s[1], 0x20));
    vstore(dst + k * 4 + 8, _mm256_permute2f128_ps(s[2], s[3], 0x20));
    vstore(dst + k * 4 + 16, _mm256_permute2f128_ps(s[0], s[1], 0x31));
    vstore(dst + k * 4 + 24, _mm256_permute2f128_ps(s[2], s[3], 0x31));
  }
  return k;
}
#endif

#if defined(SIMD_AVX512)
/* 16 rows by n columns to columns, of which MR elements are kept: the last one must not spill into what follows it. */
inl void store_columns(float *dst, const V *r, int64_t n) {
  V t[16], u[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) { /* u[i+c]: column c of each quarter, rows i..i+3 */
    u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; i++) { /* quarters q of column 4q+i are gathered */
    V low = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x44), high = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xee);
    V low2 = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x44), high2 = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xee);
    t[i] = _mm512_shuffle_f32x4(low, low2, 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(low, low2, 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(high, high2, 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(high, high2, 0xdd);
  }
  if (n == 16)
    for (int k = 0; k < 15; k++) vstore(dst + k * MR, t[k]);
  else
    for (int k = 0; k < n - 1; k++) vstore(dst + k * MR, t[k]);
  vstore_n(dst + (n - 1) * MR, t[n - 1], MR);
}

inl V load_row(const float *x, int64_t n) {
  return n >= VW ? vload(x) : n > 0 ? vload_n(x, n) : vzero();
}

inl void pack_x_columns(float *dst, const float *x, int64_t ld, int64_t rows, int64_t kc, bool bf16) {
  for (int64_t k = 0; k < kc; k += VW) {
    V r[16];
    for (int i = 0; i < 16; i++) {
      r[i] = i < MR && i < rows ? load_row(x + i * ld + k, kc - k) : vzero();
      if (bf16) r[i] = vround_bf16(r[i]);
    }
    store_columns(dst + k * MR, r, btc_min64(kc - k, VW));
  }
}

/* Two vectors of bf16 in upper halves to one of words, in order */
inl V join_halves(V a, V b) {
  __m256i low = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(a), 16));
  __m256i high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(b), 16));
  return _mm512_castsi512_ps(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
}

inl void pack_x_words(float *dst, const float *x, int64_t ld, int64_t rows, int64_t kc) {
  for (int64_t k = 0; k < kc; k += 2 * VW) {
    V r[16];
    for (int i = 0; i < 16; i++) {
      const float *from = x + i * ld + k;
      r[i] = vzero();
      if (i < MR && i < rows)
        r[i] = join_halves(vround_bf16(load_row(from, kc - k)), vround_bf16(load_row(from + VW, kc - k - VW)));
    }
    store_columns(dst + k / 2 * MR, r, btc_min64(btc_ceil_div(kc - k, 2), VW));
  }
}
#endif

fn void pack_x(float *dst, const float *x, int64_t ld, int64_t rows, int64_t kc, bool bf16) {
#if defined(SIMD_AVX512)
  pack_x_columns(dst, x, ld, rows, kc, bf16);
#else
  int64_t first = 0;
#if defined(SIMD_AVX2)
  if (rows >= MR) first = pack_x_4_rows(dst, x, ld, kc, bf16);
#endif
  for (int64_t i = 0; i < MR; i++)
    for (int64_t k = first; k < kc; k += VW) {
      float part[VW];
      int64_t here = btc_min64(kc - k, VW);
      V v = i >= rows ? vzero() : here == VW ? vload(x + i * ld + k) : vload_n(x + i * ld + k, here);
      vstore(part, bf16 ? vround_bf16(v) : v);
      for (int64_t j = 0; j < here; j++) dst[(k + j) * MR + i] = part[j];
    }
#endif
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
  if (mode == LOAD_F32) return _mm256_loadu_ps((const float *)(const void *)p);
  if (mode == LOAD_F16) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
  if (mode == LOAD_BF16)
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)), 16));
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

/* The last kc < 8 columns of PACK_ROWS rows: as above, on copies that may be read and written beyond their ends. */
inl void pack_rest(float *dst, const char *w, int mode, int64_t ld_bytes, int64_t kc) {
  char rows[PACK_ROWS][8 * 4] = {{0}};
  float columns[8 * NR];
  for (int i = 0; i < PACK_ROWS; i++) memcpy(rows[i], w + i * ld_bytes, (size_t)kc * load_size(mode));
  pack_8_rows(columns, rows[0], mode, sizeof rows[0], 8);
  for (int64_t k = 0; k < kc; k++) memcpy(dst + k * NR, columns + k * NR, PACK_ROWS * sizeof *dst);
}

inl void pack_w_mode(float *dst, const char *w, int mode, int64_t ld_bytes, int64_t rows, int64_t kc) {
  for (int64_t n = 0; n < rows; n += NR, dst += kc * NR) {
    int64_t here = btc_min64(rows - n, NR), i = 0;
    for (; i + PACK_ROWS <= here; i += PACK_ROWS) {
      const char *from = w + (n + i) * ld_bytes;
      int64_t k = pack_8_rows(dst + i, from, mode, ld_bytes, kc);
      if (k < kc) pack_rest(dst + k * NR + i, from + k * (int64_t)load_size(mode), mode, ld_bytes, kc - k);
    }
    for (; i < here; i++)
      for (int64_t k = 0; k < kc; k++)
        vstore_n(dst + k * NR + i, vload_as_n(w + (n + i) * ld_bytes + k * (int64_t)load_size(mode), mode, 1), 1);
    for (; i < NR; i++)
      for (int64_t k = 0; k < kc; k++) dst[k * NR + i] = 0;
  }
}

fn void pack_w(float *dst, const void *w, btc_cpu_type type, bool bf16, int64_t ld, int64_t rows, int64_t kc) {
  ld *= (int64_t)btc_cpu_type_size(type);
  switch (load_mode(type, bf16)) {
    case LOAD_F32:
      pack_w_mode(dst, w, LOAD_F32, ld, rows, kc);
      break;
    case LOAD_F16:
      pack_w_mode(dst, w, LOAD_F16, ld, rows, kc);
      break;
    case LOAD_BF16:
      pack_w_mode(dst, w, LOAD_BF16, ld, rows, kc);
      break;
    case LOAD_F32_ROUND:
      pack_w_mode(dst, w, LOAD_F32_ROUND, ld, rows, kc);
      break;
    default:
      pack_w_mode(dst, w, LOAD_F16_ROUND, ld, rows, kc);
      break;
  }
}

/* ---- the same in pairs of bf16: a 32-bit word holds two neighbours of a row, and is moved like a float ---- */

inl void round_row(uint16_t *dst, const char *x, int mode, int64_t n) {
  int64_t k = 0, size = (int64_t)load_size(mode);
  for (; k + VW <= n; k += VW) vstore_top(dst + k, vload_as(x + k * size, mode));
  if (k < n) vstore_top_n(dst + k, vload_as_n(x + k * size, mode, n - k), n - k);
  if (n % 2) dst[n] = 0;
}

fn void pack_x_pairs(float *dst, const float *x, int64_t ld, int64_t rows, int64_t kc) {
#if defined(SIMD_AVX512)
  pack_x_words(dst, x, ld, rows, kc);
#else
  uint16_t row[2 * GEMM_WORDS + 1];
  int64_t words = btc_ceil_div(kc, 2);
  for (int64_t i = 0; i < MR; i++) {
    if (i < rows)
      round_row(row, (const char *)(x + i * ld), LOAD_F32_ROUND, kc);
    else
      memset(row, 0, sizeof row);
    for (int64_t k = 0; k < words; k++) memcpy(dst + k * MR + i, row + 2 * k, sizeof *dst);
  }
#endif
}

/* Rows that are not bf16 already, or whose last pair is half empty, go through `rounded` [rows][words] first. */
fn void pack_w_pairs(float *dst, float *rounded, const void *w, btc_cpu_type type, int64_t ld, int64_t rows, int64_t kc) {
  int64_t words = btc_ceil_div(kc, 2), ld_bytes = ld * (int64_t)btc_cpu_type_size(type);
  const char *from = w;
  if (type != BTC_CPU_BF16 || kc % 2) {
    for (int64_t n = 0; n < rows; n++) {
      uint16_t *to = (uint16_t *)(void *)(rounded + n * words);
      if (type == BTC_CPU_F32)
        round_row(to, from + n * ld_bytes, LOAD_F32_ROUND, kc);
      else if (type == BTC_CPU_F16)
        round_row(to, from + n * ld_bytes, LOAD_F16_ROUND, kc);
      else
        round_row(to, from + n * ld_bytes, LOAD_BF16, kc);
    }
    from = (const char *)rounded;
    ld_bytes = words * (int64_t)sizeof *rounded;
  }
  pack_w_mode(dst, from, LOAD_F32, ld_bytes, rows, words);
}

/* ---- the register tile ---- */

/* The first `rows` of a tile, known when this is compiled: an output is the same chain whatever the tile's height. */
#define TILE_BODY(MULTIPLY)                                                  \
  V acc[MR][NV];                                                             \
  for (int i = 0; i < rows; i++) {                                           \
    for (int j = 0; j < NV; j++) acc[i][j] = vzero();                        \
    __builtin_prefetch(c + i * ldc, 1); /* wanted in some 500 ns */          \
  }                                                                          \
  for (int64_t k = 0; k < kc; k++) {                                         \
    V w[NV];                                                                 \
    for (int j = 0; j < NV; j++) w[j] = vload(b + k * NR + j * VW);          \
    __builtin_prefetch(ahead.x + k * MR);                                    \
    __builtin_prefetch(ahead.w[0] + k * 4, 0, 2);                            \
    __builtin_prefetch(ahead.w[1] + k * 4, 0, 2);                            \
    for (int i = 0; i < rows; i++) {                                         \
      V x = vset(a[k * MR + i]);                                             \
      for (int j = 0; j < NV; j++) acc[i][j] = MULTIPLY(x, w[j], acc[i][j]); \
    }                                                                        \
  }                                                                          \
  for (int i = 0; i < rows; i++)                                             \
    for (int j = 0; j < NV; j++) {                                           \
      float *to = c + i * ldc + j * VW;                                      \
      vstore(to, add ? vadd(vload(to), acc[i][j]) : acc[i][j]);              \
    }

/* A last tile of few rows costs a quarter, a half or three quarters of a full one: 253 rows are 18 tiles of 14 and one row. */
#define TILE_BY_ROWS(BODY)                          \
  if (rows > MR * 3 / 4)                            \
    BODY(a, b, kc, c, ldc, add, MR, ahead);         \
  else if (rows > MR / 2)                           \
    BODY(a, b, kc, c, ldc, add, MR * 3 / 4, ahead); \
  else if (rows > (MR + 3) / 4)                     \
    BODY(a, b, kc, c, ldc, add, MR / 2, ahead);     \
  else                                              \
    BODY(a, b, kc, c, ldc, add, (MR + 3) / 4, ahead);

inl void tile_body(const float *a, const float *b, int64_t kc, float *c, int64_t ldc, bool add, int rows,
                   btc_cpu_ahead ahead){TILE_BODY(vfma)}

fn void tile(const float *a, const float *b, int64_t kc, float *c, int64_t ldc, bool add, int64_t rows, btc_cpu_ahead ahead) {
  TILE_BY_ROWS(tile_body)
}

#define MULTIPLY_PAIRS(x, y, sum) vpairs(sum, x, y)
static inline TARGET_PAIRS __attribute__((always_inline)) void tile_pairs_body(const float *a, const float *b, int64_t kc, float *c,
                                                                               int64_t ldc, bool add, int rows,
                                                                               btc_cpu_ahead ahead) {
  TILE_BODY(MULTIPLY_PAIRS)
}

static TARGET_PAIRS void tile_pairs(const float *a, const float *b, int64_t kc, float *c, int64_t ldc, bool add, int64_t rows,
                                    btc_cpu_ahead ahead){TILE_BY_ROWS(tile_pairs_body)}

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

inl void finish_row(float *y, const float *c, int64_t n, const btc_cpu_epilogue *e) {
  V none = vzero();
  int64_t j = 0;
  for (; j + VW <= n; j += VW)
    vstore(y + j, finish_vector(vload(c + j), e->scale ? vload(e->scale + j) : none, e->bias ? vload(e->bias + j) : none,
                                e->residual ? vload(e->residual + j) : none, e));
  if (j == n) return;
  int64_t rest = n - j;
  vstore_n(y + j,
           finish_vector(vload_n(c + j, rest), e->scale ? vload_n(e->scale + j, rest) : none,
                         e->bias ? vload_n(e->bias + j, rest) : none, e->residual ? vload_n(e->residual + j, rest) : none, e),
           rest);
}

inl void finish_rows(float *y, int64_t ldy, const float *c, int64_t ldc, int64_t rows, int64_t n, btc_cpu_epilogue e) {
  for (int64_t i = 0; i < rows; i++, y += ldy, c += ldc) {
    finish_row(y, c, n, &e);
    if (e.residual) e.residual += ldy;
  }
}

/* The common cases get loops without decisions. */
fn void finish(float *y, int64_t ldy, const float *c, int64_t ldc, int64_t rows, int64_t n, const btc_cpu_epilogue *e) {
  btc_cpu_epilogue plain = {.bias = e->bias, .act = e->act};
  if (e->scale || e->residual || (e->bias && e->act != BTC_CPU_GELU_TANH && e->act != BTC_CPU_NONE))
    finish_rows(y, ldy, c, ldc, rows, n, *e);
  else if (e->bias && e->act == BTC_CPU_GELU_TANH)
    plain.act = BTC_CPU_GELU_TANH, finish_rows(y, ldy, c, ldc, rows, n, plain);
  else
    finish_rows(y, ldy, c, ldc, rows, n, plain);
}
