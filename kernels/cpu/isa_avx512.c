/* AVX-512 F, BW, DQ and VL. */
#if defined(__x86_64__)
#define SIMD_AVX512
#include "simd.h"

#include "gemm_simd.h"
#include "matvec_simd.h"
#include "attention_simd.h"
#include "rows_simd.h"

#define ISA_NAME "avx512"
#include "isa_table.h"

const btc_cpu_isa btc_cpu_isa_avx512 = ISA_TABLE;
#endif
