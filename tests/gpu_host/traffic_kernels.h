/* Kernels of one warp for the test of the shim's traffic counts. Each returns the launch's result. */
#ifndef BTC_TEST_TRAFFIC_KERNELS_H
#define BTC_TEST_TRAFFIC_KERNELS_H

#ifdef __cplusplus
extern "C" {
#endif

/* Lane i reads word i * stride of shared memory, stride 0..33. */
int traffic_words(float *y, int stride);
/* Lane i reads four words from i * stride * 4 on, in one access. */
int traffic_pieces(float *y, int stride);
/* ldmatrix of four matrices whose rows of eight bf16 are `pitch` bf16 apart. */
int traffic_matrices(unsigned *y, int pitch);
/* Lane i reads x[i * stride] in global memory. */
int traffic_global(float *y, const float *x, int stride);

#ifdef __cplusplus
}
#endif

#endif
