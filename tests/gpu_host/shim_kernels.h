/* Kernels with and without faults, for the test of the shim itself. Each returns the launch's result. */
#ifndef BTC_TEST_SHIM_KERNELS_H
#define BTC_TEST_SHIM_KERNELS_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

int shim_reverse(int *y, const int *x, int n);            /* through shared memory, one block of n threads */
int shim_reverse_no_barrier(int *y, const int *x, int n); /* the same with its barrier forgotten */
int shim_early_exit(int n);                               /* thread 0 ends before a barrier */
int shim_branch_barrier(int n);                           /* even and odd threads at barriers of their own */
int shim_branch_shuffle(int n);                           /* lanes at two shuffles */
int shim_outside_mask(void);                              /* a shuffle from a lane that is not in the mask */
int shim_poison(float *y);                                /* reads shared memory nobody wrote */
int shim_behind_dynamic(size_t bytes);                    /* writes one byte behind dynamic shared memory */
int shim_too_much_static(void);
int shim_grid_of_zero(void);
int shim_much_dynamic(size_t allowed, size_t used); /* allows some dynamic shared memory and launches with some */
int shim_static_and_dynamic(size_t bytes);          /* beside 40000 static ones */
int shim_matrix_row(int skew);                      /* ldmatrix of a row that many words off */
int shim_vector(float *y, const float *x);          /* four floats at once, from and to any address */
int shim_scan(int *y, const int *x);                /* 64 threads: inclusive sums by shuffles and a named barrier */
int shim_copies(int *y, const int *x, int waited);  /* cp.async of 32 words, with and without its wait */
int shim_early(int *y, int awaiting);               /* an early launch in which so many of 32 threads wait for the one before */
int shim_late(int *y);                              /* the same kernel in a launch that needs no waiting */
int shim_votes(unsigned *y);                        /* ballot of odd lanes; exchange in half a warp */
/* 64 threads a block add x[blocks * 64] in parts[blocks * 64]; the last block to arrive writes *sum. *arrived: 0, and 0 again. */
int shim_last_block(int *sum, int *parts, unsigned *arrived, const int *x, int blocks);

#ifdef __cplusplus
}
#endif

#endif
