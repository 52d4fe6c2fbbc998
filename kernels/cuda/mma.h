/*
 * Tensor-core and asynchronous-copy instructions, one function each: on the device the PTX instruction, on the host shim plain C++
 * that moves the same fragments between the lanes of a warp (PTX ISA 8.x, "Matrix Fragments for mma.m16n8k16/m16n8k8" and
 * "ldmatrix"). All need sm_80. Every lane of the warp calls them together.
 *
 * With g = lane / 4 and t = lane % 4, pairs of neighbouring columns in one word, the lower column in the low half:
 *   A [16 x 16]: a0 = row g, columns 2t..; a1 = row g+8, columns 2t..; a2 = row g, columns 2t+8..; a3 = row g+8, columns 2t+8..
 *   B [16 x 8]:  b0 = rows 2t.. of column g; b1 = rows 2t+8.. of column g
 *   C [16 x 8]:  c0, c1 = row g, columns 2t, 2t+1; c2, c3 = row g+8
 */
#ifndef BTC_KERNELS_CUDA_MMA_H
#define BTC_KERNELS_CUDA_MMA_H

#include "kernels/cuda/device.h"

#ifndef __CUDACC__

/* d += a b for k columns of a; the host adds in the order of k, the device in an order of its own: close, not the same bits. */
BTC_SHIM_FLAT void btc_shim_mma(float c[4], const uint32_t *a, const uint32_t *b, int k, const char *file, int line) {
  struct fragment {
    uint32_t a[4], b[2];
  } mine = {};
  for (int i = 0; i < k / 4; i++) mine.a[i] = a[i];
  for (int i = 0; i < k / 8; i++) mine.b[i] = b[i];
  const unsigned char *table = btc_shim_exchange(BTC_FULL_WARP, &mine, sizeof mine, file, line);
  int g = btc_shim_lane() / 4, t = btc_shim_lane() % 4;
  for (int i = 0; i < 4; i++) {
    int high = i / 2, column = 2 * t + i % 2; /* row g + 8 * high */
    float sum = 0;
    for (int j = 0; j < k; j += 2) {
      int half = j / 8, lane = j % 8 / 2;
      uint32_t x = btc_shim_from<fragment>(table, g * 4 + lane).a[half * 2 + high];
      uint32_t y = btc_shim_from<fragment>(table, column * 4 + lane).b[half];
      sum = fmaf(bf16_low(x), bf16_low(y), sum);
      sum = fmaf(bf16_high(x), bf16_high(y), sum);
    }
    c[i] += sum;
  }
}

/* Lane 8 i + r names row r of matrix i: eight bf16. Read before the exchange, as the instruction does, so that a lane that runs
 * ahead cannot change what another one sees. */
BTC_SHIM_FLAT void btc_shim_ldmatrix(uint32_t *r, int count, bool transposed, const void *row, const char *file, int line) {
  struct eight {
    uint16_t x[8];
  } mine = {};
  btc_shim_check_aligned(row, sizeof mine, file, line); /* of the other lanes as well: it is a valid address */
  if (btc_shim_lane() < count * 8) memcpy(&mine, row, sizeof mine);
  const unsigned char *table = btc_shim_exchange(BTC_FULL_WARP, &mine, sizeof mine, file, line);
  int g = btc_shim_lane() / 4, t = btc_shim_lane() % 4;
  for (int i = 0; i < count; i++) {
    uint32_t low, high;
    if (transposed) {
      low = btc_shim_from<eight>(table, i * 8 + 2 * t).x[g];
      high = btc_shim_from<eight>(table, i * 8 + 2 * t + 1).x[g];
    } else {
      low = btc_shim_from<eight>(table, i * 8 + g).x[2 * t];
      high = btc_shim_from<eight>(table, i * 8 + g).x[2 * t + 1];
    }
    r[i] = low | high << 16;
  }
}

/* Behind a warp operation's last parameter: where it was called. */
#define BTC_CALLED_FROM , BTC_SHIM_HERE

#else

#define BTC_CALLED_FROM

BTC_DEVICE uint32_t shared_address(const void *p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

#endif

/* c[16 x 8] += a[16 x 16] b[16 x 8] in bf16 with f32 sums. */
BTC_DEVICE void mma_16816(float *c, const uint32_t *a, const uint32_t *b BTC_CALLED_FROM) {
#ifdef __CUDACC__
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  btc_shim_mma(c, a, b, 16, file, line);
#endif
}

/* The same for eight columns of a: a0, a1 and b0 only. */
BTC_DEVICE void mma_1688(float *c, const uint32_t *a, const uint32_t *b BTC_CALLED_FROM) {
#ifdef __CUDACC__
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
#else
  btc_shim_mma(c, a, b, 8, file, line);
#endif
}

/* r[i] = matrix i of four (x4) or two (x2) in shared memory; lane 8 i + r passes the 16-byte aligned address of its row r. Lane l
 * gets elements 2t, 2t+1 of row g; transposed, those of column g. Lanes 16..31 of x2 pass any valid address. */
BTC_DEVICE void ldmatrix_x4(uint32_t *r, const void *row BTC_CALLED_FROM) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
#else
  btc_shim_ldmatrix(r, 4, false, row, file, line);
#endif
}

BTC_DEVICE void ldmatrix_x2(uint32_t *r, const void *row BTC_CALLED_FROM) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)));
#else
  btc_shim_ldmatrix(r, 2, false, row, file, line);
#endif
}

BTC_DEVICE void ldmatrix_x4_trans(uint32_t *r, const void *row BTC_CALLED_FROM) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
#else
  btc_shim_ldmatrix(r, 4, true, row, file, line);
#endif
}

BTC_DEVICE void ldmatrix_x2_trans(uint32_t *r, const void *row BTC_CALLED_FROM) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)));
#else
  btc_shim_ldmatrix(r, 2, true, row, file, line);
#endif
}

/* 16 bytes from global to shared memory, both 16-byte aligned, past L1; the first `valid` (0..16) are read, the rest become zero.
 * In shared memory only after cp_async_wait and a barrier. */
BTC_DEVICE void cp_async_16(void *dst, const void *src, int valid) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(valid) : "memory");
#else
  btc_shim_cp_async(dst, src, 16, valid);
#endif
}

BTC_DEVICE void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  btc_shim_cp_async_commit();
#endif
}

/* Waits until at most `pending` of this thread's committed groups are under way. */
template <int pending>
BTC_DEVICE void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#else
  btc_shim_cp_async_wait(pending);
#endif
}

#endif
