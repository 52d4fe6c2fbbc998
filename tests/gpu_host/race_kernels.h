/*
 * Kernels for the test of the race detector: each right, and wrong in the ways its enum names. Each returns the launch's result.
 * Blocks of 64 threads unless said otherwise.
 */
#ifndef BTC_TEST_RACE_KERNELS_H
#define BTC_TEST_RACE_KERNELS_H

#ifdef __cplusplus
extern "C" {
#endif

enum { RACE_RIGHT };

/* *y = the sum of x[64], by halves in shared memory. */
enum { SUM_NO_BARRIER = 1 /* between the halves */ };
int race_sum(int *y, const int *x, int wrong);

/* Lanes reverse x[64] in their warp through shared memory. */
enum {
  REVERSE_NO_SYNCWARP = 1,
  REVERSE_HALF_MASKS /* each half of a warp meets for itself */,
  REVERSE_SHUFFLE /* no memory barrier */
};
int race_reverse(int *y, const int *x, int wrong);

/* y[64] = sums of x[4][64] shifted by each of 0..3 places through one buffer of 64. */
enum { SHIFT_NO_BARRIER_BEHIND = 1 /* the next write into the buffer comes while others read */ };
int race_shift(int *y, const int *x, int wrong);

/* y[128] = 1 from two blocks. */
enum { BLOCKS_OVERLAP = 1 /* by one word, with the same value */, BLOCKS_READ /* what the other one writes */ };
int race_blocks(int *y, int wrong);

/* *sum = all of x[3][64], each doubled in parts[3][64] first; the last of three blocks joins. *arrived is 0 before and after. */
enum {
  LAST_NO_FENCE = 1,
  LAST_NO_BARRIER,
  LAST_NO_FENCE_OF_READER,
  LAST_PLAIN_COUNT, /* in place of the atomic */
  LAST_ONE_FENCE    /* right as well: of thread 0, behind the barrier */
};
int race_last_block(int *sum, int *parts, unsigned *arrived, const int *x, int wrong);

/* y[64] = sums of x[4][64], each row reversed, through two buffers that cp.async fills. */
enum { COPY_NO_WAIT = 1, COPY_WAIT_FOR_OLDER, COPY_NO_BARRIER /* behind the wait */, COPY_TOO_EARLY /* into what others read */ };
int race_copies(int *y, const int *x, int wrong);

/* Of 128 threads, warps 0 and 1 meet at a named barrier and swap values; warps 2 and 3 go their own way. */
enum { NAMED_OUTSIDER = 1 /* warp 2 reads what the two swap */ };
int race_named(int *y, const int *x, int wrong);

/* 64 threads count in shared memory, thread 0 writes the count to *y. */
enum { COUNT_NO_BARRIER = 1, COUNT_PLAIN };
int race_count(int *y, int wrong);

/* Neighbours write the halves and the quarters of words; y has 64 of each. */
enum { PIECES_OVERLAP = 1 /* a thread writes its neighbour's byte too */ };
int race_pieces(unsigned short *halves, unsigned char *quarters, int wrong);

/* y[64] = x[64] + 1 by a launch, then y[64] *= 2 by an early one. */
enum { EARLY_READ = 1, EARLY_WRITE, EARLY_CONSTANT /* read as such, though behind the wait */ };
int race_early(int *y, const int *x, int wrong);

/* y[64] = x[64] + 1, then the next of each as a constant. */
enum { CONSTANT_WRITTEN = 1 /* that of y */ };
int race_constant(int *y, const int *x, int wrong);

#ifdef __cplusplus
}
#endif

#endif
