/* AVX2 with FMA and F16C: x86-64-v3, all of ours since 2013. */
#if defined(__x86_64__)
#define SIMD_AVX2
#include "simd.h"

#include "gemm_simd.h"
#include "matvec_simd.h"
#include "attention_simd.h"
#include "rows_simd.h"

#define ISA_NAME "avx2+fma"
#include "isa_table.h"

const btc_cpu_isa btc_cpu_isa_avx2 = ISA_TABLE;
#endif
