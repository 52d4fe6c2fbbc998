#include "race_kernels.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/mma.h"

enum { N = 64, BUFFERS = 2, ROWS = 4, LAST_BLOCKS = 3 };

static int thread_index() {
  return static_cast<int>(threadIdx.x);
}

static void sum(int *y, const int *x, int wrong) {
  BTC_SHARED(int, part, N);
  int i = thread_index();
  part[i] = x[i];
  for (int half = N / 2; half > 0; half /= 2) {
    if (wrong != SUM_NO_BARRIER || half == N / 2) __syncthreads();
    if (i < half) part[i] += part[i + half];
  }
  if (i == 0) *y = part[0];
}

int race_sum(int *y, const int *x, int wrong) {
  return BTC_LAUNCH(sum, 1, N, 0, nullptr, y, x, wrong);
}

static void reverse(int *y, const int *x, int wrong) {
  BTC_SHARED(int, tile, N);
  int i = thread_index();
  tile[i] = x[i];
  if (wrong == RACE_RIGHT) __syncwarp();
  if (wrong == REVERSE_HALF_MASKS) __syncwarp(i % 32 < 16 ? 0xffffu : 0xffff0000u);
  int zero = wrong == REVERSE_SHUFFLE ? __shfl_sync(BTC_FULL_WARP, 0, 0) : 0;
  y[i] = tile[i ^ 31] + zero;
}

int race_reverse(int *y, const int *x, int wrong) {
  return BTC_LAUNCH(reverse, 1, N, 0, nullptr, y, x, wrong);
}

static void shift(int *y, const int *x, int wrong) {
  BTC_SHARED(int, row, N);
  int i = thread_index(), all = 0;
  for (int r = 0; r < ROWS; r++) {
    row[i] = x[r * N + i];
    __syncthreads();
    all += row[(i + r) % N];
    if (wrong != SHIFT_NO_BARRIER_BEHIND) __syncthreads();
  }
  y[i] = all;
}

int race_shift(int *y, const int *x, int wrong) {
  return BTC_LAUNCH(shift, 1, N, 0, nullptr, y, x, wrong);
}

static void blocks(int *y, int wrong) {
  int i = static_cast<int>(blockIdx.x) * N + thread_index();
  y[i] = 1;
  if (wrong == BLOCKS_OVERLAP && i == 0) y[N] = 1;
  if (wrong == BLOCKS_READ && i == 0) y[0] = y[2 * N - 1] ? 1 : 0;
}

int race_blocks(int *y, int wrong) {
  return BTC_LAUNCH(blocks, 2, N, 0, nullptr, y, wrong);
}

/* How many blocks were there before this one. */
static unsigned arrive(unsigned *arrived, int wrong) {
  if (wrong != LAST_PLAIN_COUNT) return atomicInc(arrived, LAST_BLOCKS - 1);
  unsigned before = *arrived;
  *arrived = before == LAST_BLOCKS - 1 ? 0 : before + 1;
  return before;
}

static void last_block(int *all, int *parts, unsigned *arrived, const int *x, int wrong) {
  BTC_SHARED(unsigned, before, 1);
  int i = static_cast<int>(blockIdx.x) * N + thread_index();
  parts[i] = 2 * x[i];
  if (wrong != LAST_NO_FENCE && wrong != LAST_ONE_FENCE) __threadfence();
  if (wrong != LAST_NO_BARRIER) __syncthreads();
  if (threadIdx.x == 0) {
    if (wrong == LAST_ONE_FENCE) __threadfence();
    before[0] = arrive(arrived, wrong);
  }
  __syncthreads();
  if (before[0] != LAST_BLOCKS - 1 || threadIdx.x != 0) return;
  if (wrong != LAST_NO_FENCE_OF_READER) __threadfence();
  *all = 0;
  for (int j = 0; j < LAST_BLOCKS * N; j++) *all += parts[j];
}

int race_last_block(int *all, int *parts, unsigned *arrived, const int *x, int wrong) {
  return BTC_LAUNCH(last_block, LAST_BLOCKS, N, 0, nullptr, all, parts, arrived, x, wrong);
}

/* Sixteen threads bring a row of 64. */
static void bring(int *row, const int *x) {
  if (threadIdx.x < N / 4) cp_async_16(row + threadIdx.x * 4, x + threadIdx.x * 4, 16);
  cp_async_commit();
}

static void copies(int *y, const int *x, int wrong) {
  BTC_SHARED(int, rows, BUFFERS *N);
  int i = thread_index(), all = 0;
  bring(rows, x);
  for (int r = 0; r < ROWS; r++) {
    if (wrong == COPY_TOO_EARLY && r + 1 < ROWS) bring(rows + (r + 1) % BUFFERS * N, x + (r + 1) * N);
    if (wrong == COPY_WAIT_FOR_OLDER)
      cp_async_wait<1>();
    else if (wrong != COPY_NO_WAIT)
      cp_async_wait<0>();
    if (wrong != COPY_NO_BARRIER) __syncthreads();
    if (wrong != COPY_TOO_EARLY && r + 1 < ROWS) bring(rows + (r + 1) % BUFFERS * N, x + (r + 1) * N);
    all += rows[r % BUFFERS * N + N - 1 - i];
  }
  y[i] = all;
}

int race_copies(int *y, const int *x, int wrong) {
  return BTC_LAUNCH(copies, 1, N, 0, nullptr, y, x, wrong);
}

static void named(int *y, const int *x, int wrong) {
  BTC_SHARED(int, tile, 128);
  int i = thread_index();
  tile[i] = x[i];
  int from = i ^ 31;
  if (i < 64) {
    btc_named_barrier(1, 64);
    from = i ^ 63;
  } else {
    __syncwarp();
    if (wrong == NAMED_OUTSIDER && i == 64) from = 0;
  }
  y[i] = tile[from];
}

int race_named(int *y, const int *x, int wrong) {
  return BTC_LAUNCH(named, 1, 128, 0, nullptr, y, x, wrong);
}

static void count(int *y, int wrong) {
  BTC_SHARED(int, n, 1);
  if (threadIdx.x == 0) n[0] = 0;
  __syncthreads();
  if (wrong == COUNT_PLAIN)
    n[0]++;
  else
    atomicAdd(n, 1);
  if (wrong != COUNT_NO_BARRIER) __syncthreads();
  if (threadIdx.x == 0) *y = n[0];
}

int race_count(int *y, int wrong) {
  return BTC_LAUNCH(count, 1, N, 0, nullptr, y, wrong);
}

static void pieces(unsigned short *halves, unsigned char *quarters, int wrong) {
  int i = thread_index();
  halves[i] = static_cast<unsigned short>(i);
  quarters[i] = static_cast<unsigned char>(i);
  if (wrong == PIECES_OVERLAP && i == 33) quarters[34] = 34;
}

int race_pieces(unsigned short *halves, unsigned char *quarters, int wrong) {
  return BTC_LAUNCH(pieces, 1, N, 0, nullptr, halves, quarters, wrong);
}

static void add_one(int *y, const int *x) {
  y[thread_index()] = x[thread_index()] + 1;
}

static void twice(int *y, const int *x, int wrong) {
  int i = thread_index(), v = wrong == EARLY_READ ? y[i] : x[i] + 1;
  if (wrong == EARLY_WRITE) y[i] = v;
  await_launch_before();
  if (wrong == EARLY_CONSTANT) v = __ldg(y + i);
  y[i] += v;
}

int race_early(int *y, const int *x, int wrong) {
  int status = BTC_LAUNCH(add_one, 1, N, 0, nullptr, y, x);
  return status != 0 ? status : BTC_LAUNCH_EARLY(twice, 1, N, 0, nullptr, y, x, wrong);
}

static void constant(int *y, const int *x, int wrong) {
  int i = thread_index();
  y[i] = x[i] + 1;
  __syncthreads();
  int next = wrong == CONSTANT_WRITTEN ? __ldg(y + (i ^ 1)) : __ldg(x + (i ^ 1)) + 1;
  __syncthreads();
  y[i] = next;
}

int race_constant(int *y, const int *x, int wrong) {
  return BTC_LAUNCH(constant, 1, N, 0, nullptr, y, x, wrong);
}
