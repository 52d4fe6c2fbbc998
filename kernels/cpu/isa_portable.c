/* Plain C with 4-float vectors of the compiler: any processor. A product and its sum are rounded separately here. */
#include "simd.h"

#include "gemm_simd.h"
#include "matvec_simd.h"
#include "attention_simd.h"
#include "rows_simd.h"

#define ISA_NAME "portable"
#include "isa_table.h"

const btc_cpu_isa btc_cpu_isa_portable = ISA_TABLE;
