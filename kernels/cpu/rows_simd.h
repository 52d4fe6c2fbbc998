/* Kernel text of norm.c, elementwise.c and layout.c: what works along one row. */

/* Four vectors of running sums, folded pairwise: error of a sum of n about n/(4 VW) roundings. F(j) is the term at element j,
 * written with LOAD(p, j). */
#define SUM_OVER(result, n, TERM)                                                  \
  do {                                                                             \
    V sum_[4] = {vzero(), vzero(), vzero(), vzero()};                              \
    int64_t j_ = 0;                                                                \
    for (; j_ + 4 * VW <= (n); j_ += 4 * VW)                                       \
      for (int u_ = 0; u_ < 4; u_++) sum_[u_] = TERM(j_ + u_ * VW, VW, sum_[u_]);  \
    for (; j_ < (n); j_ += VW) sum_[0] = TERM(j_, btc_min64((n)-j_, VW), sum_[0]); \
    (result) = vsum(vadd(vadd(sum_[0], sum_[1]), vadd(sum_[2], sum_[3])));         \
  } while (0)

inl V load_part(const float *p, int64_t n) {
  return n == VW ? vload(p) : vload_n(p, n);
}

inl void store_part(float *p, V x, int64_t n) {
  if (n == VW)
    vstore(p, x);
  else
    vstore_n(p, x, n);
}

fn void layernorm(float *y, const float *x, int64_t n, const float *weight, const float *bias, float eps) {
  float total, squares;
#define TERM(j, here, acc) vadd(acc, load_part(x + (j), here))
  SUM_OVER(total, n, TERM);
#undef TERM
  V mean = vset(total / (float)n);
  /* lanes behind the end must add nothing, though mean is not 0 */
  float last[VW];
#define TERM(j, here, acc) \
  vfma(vsub(load_part(x + (j), here), load_part(last, here)), vsub(load_part(x + (j), here), load_part(last, here)), acc)
  vstore(last, mean);
  SUM_OVER(squares, n, TERM);
#undef TERM
  V scale = vset(1.0f / sqrtf(squares / (float)n + eps));
  for (int64_t j = 0; j < n; j += VW) {
    int64_t here = btc_min64(n - j, VW);
    V z = vmul(vsub(load_part(x + j, here), mean), scale);
    store_part(y + j, vadd(vmul(z, load_part(weight + j, here)), load_part(bias + j, here)), here);
  }
}

fn void rmsnorm(float *y, const float *x, int64_t n, const float *weight, float eps) {
  float squares;
#define TERM(j, here, acc) vfma(load_part(x + (j), here), load_part(x + (j), here), acc)
  SUM_OVER(squares, n, TERM);
#undef TERM
  V scale = vset(1.0f / sqrtf(squares / (float)n + eps));
  for (int64_t j = 0; j < n; j += VW) {
    int64_t here = btc_min64(n - j, VW);
    store_part(y + j, vmul(vmul(load_part(x + j, here), scale), load_part(weight + j, here)), here);
  }
}

fn float cosine_concat(float *z, const float *s1, const float *s2, int64_t n) {
  float dot, n1, n2;
#define TERM(j, here, acc) vfma(load_part(s1 + (j), here), load_part(s2 + (j), here), acc)
  SUM_OVER(dot, n, TERM);
#undef TERM
#define TERM(j, here, acc) vfma(load_part(s1 + (j), here), load_part(s1 + (j), here), acc)
  SUM_OVER(n1, n, TERM);
#undef TERM
#define TERM(j, here, acc) vfma(load_part(s2 + (j), here), load_part(s2 + (j), here), acc)
  SUM_OVER(n2, n, TERM);
#undef TERM
  float length1 = sqrtf(n1), length2 = sqrtf(n2);
  float cosine = dot / ((length1 > 1e-8f ? length1 : 1e-8f) * (length2 > 1e-8f ? length2 : 1e-8f));
  for (int64_t j = 0; j < n; j += VW) {
    int64_t here = btc_min64(n - j, VW);
    store_part(z + j, vadd(load_part(s1 + j, here), vset(cosine)), here);
    store_part(z + n + j, vadd(load_part(s2 + j, here), vset(cosine)), here);
  }
  return cosine;
}

fn void rope(float *x, int64_t heads, int64_t d, const float *cos, const float *sin) {
  int64_t half = d / 2;
  for (int64_t h = 0; h < heads; h++)
    for (int64_t j = 0; j < half; j += VW) {
      int64_t here = btc_min64(half - j, VW);
      float *low = x + h * d + j, *high = low + half;
      V l = load_part(low, here), u = load_part(high, here), c = load_part(cos + j, here), s = load_part(sin + j, here);
      store_part(low, vsub(vmul(l, c), vmul(u, s)), here);
      store_part(high, vadd(vmul(u, c), vmul(l, s)), here);
    }
}

fn void add_rows(float *y, const float *a, const float *b, int64_t n) {
  for (int64_t j = 0; j < n; j += VW) {
    int64_t here = btc_min64(n - j, VW);
    store_part(y + j, vadd(load_part(a + j, here), load_part(b + j, here)), here);
  }
}

fn void silu_mul(float *y, const float *gate, const float *up, int64_t n) {
  for (int64_t j = 0; j < n; j += VW) {
    int64_t here = btc_min64(n - j, VW);
    V g = load_part(gate + j, here);
    store_part(y + j, vmul(vmul(g, vsigmoid(g)), load_part(up + j, here)), here);
  }
}

fn void widen(float *y, const void *w, btc_cpu_type type, int64_t n) {
  int mode = load_mode(type, false);
  const char *from = w;
  for (int64_t j = 0; j < n; j += VW, from += VW * load_size(mode)) {
    int64_t here = btc_min64(n - j, VW);
    store_part(y + j, here == VW ? vload_as(from, mode) : vload_as_n(from, mode, here), here);
  }
}
