/*
 * Products of the full-size model that its time goes to, for 32 pictures a pass of the tower and 8096 positions a prefill: what
 * ops_times.c times as the backend computes them and gpu_products.c as cuBLASLt would at best. Operands bf16, sums f32.
 */
#ifndef BENCH_GPU_SHAPES_H
#define BENCH_GPU_SHAPES_H

#include <stdbool.h>
#include <stdint.h>

/* y [m, n] = x [m, k] w^T, then the bias and GELU (tanh); y in bf16, or in f32 with or without y added. */
typedef struct gpu_shape {
  const char *name;
  int64_t m, n, k;
  bool bias, gelu, added, y_bf16;
} gpu_shape;

enum { GPU_SHAPES = 8 };
static const gpu_shape gpu_shapes[GPU_SHAPES] = {
    {"vision query, key, value", 23328, 3456, 1152, true, false, false, true},
    {"vision out", 23328, 1152, 1152, true, false, true, false},
    {"vision fc1", 23328, 4304, 1152, true, true, false, true},
    {"vision fc2", 23328, 1152, 4304, true, false, true, false},
    {"prefill query, key, value", 8096, 7680, 2560, false, false, false, false},
    {"prefill out", 8096, 2560, 2560, false, false, true, false},
    {"prefill gate, up", 8096, 13824, 2560, false, false, false, true},
    {"prefill down", 8096, 2560, 6912, false, false, true, false},
};

#endif
