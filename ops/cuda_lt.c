/* cuBLASLt, loaded when the first CUDA backend is created: the library is large, and a program that uses the CPU has no need of it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "ops/cuda_parts.h"

static cuda_lt functions;
static btc_error failure;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void find(void *library, const char *name, void *function) {
  void *found = dlsym(library, name);
  if (!found && failure.code == BTC_OK) btc_fail(&failure, BTC_ERR_UNSUPPORTED, "libcublasLt has no function %s", name);
  memcpy(function, &found, sizeof found); /* data and function pointers are of one size wherever dlsym is */
}

static void load(void) {
  char name[32] = "libcublasLt.so." BTC_CUBLASLT_MAJOR;
  void *l = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (!l) {
    const char *why = dlerror();
    btc_fail(&failure, BTC_ERR_UNSUPPORTED, "the CUDA device cannot be used: %s", why ? why : name);
    return;
  }
  find(l, "cublasLtCreate", &functions.create);
  find(l, "cublasLtDestroy", &functions.destroy);
  find(l, "cublasLtMatmulDescCreate", &functions.desc_create);
  find(l, "cublasLtMatmulDescDestroy", &functions.desc_destroy);
  find(l, "cublasLtMatmulDescSetAttribute", &functions.desc_set);
  find(l, "cublasLtMatrixLayoutCreate", &functions.layout_create);
  find(l, "cublasLtMatrixLayoutDestroy", &functions.layout_destroy);
  find(l, "cublasLtMatmulPreferenceCreate", &functions.preference_create);
  find(l, "cublasLtMatmulPreferenceDestroy", &functions.preference_destroy);
  find(l, "cublasLtMatmulPreferenceSetAttribute", &functions.preference_set);
  find(l, "cublasLtMatmulAlgoGetHeuristic", &functions.heuristic);
  find(l, "cublasLtMatmulAlgoCheck", &functions.check);
  find(l, "cublasLtMatmul", &functions.matmul);
}

btc_status cuda_lt_load(const cuda_lt **out, btc_error *err) {
  pthread_once(&once, load);
  if (failure.code != BTC_OK) return btc_fail(err, failure.code, "%s", failure.message);
  *out = &functions;
  return BTC_OK;
}
