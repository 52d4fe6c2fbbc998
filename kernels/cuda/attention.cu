/*
 * Bidirectional attention and causal attention over the caches of several items: which kernel takes them. bf16 operands go to the
 * tensor cores (attention_mma.cu), f32 ones to plain fused multiply-adds (attention_f32.cu). Neither writes scores to memory.
 */
#include "kernels/cuda/attention.h"

enum { INVALID_VALUE = 1 /* cudaErrorInvalidValue */ };
static const int64_t MAX_WIDTH = 128, MAX_GRID = 65535, MAX_ROWS = 1 << 28;

int btc_cuda_attend(const btc_cuda_attention *a, btc_cuda_stream s) {
  if (a->n_seq == 0 || a->t == 0) return 0;
  if (a->d < 1 || a->d > MAX_WIDTH || a->heads > MAX_GRID || a->t > MAX_ROWS || a->in == BTC_CUDA_F16 || a->out == BTC_CUDA_F16)
    return INVALID_VALUE;
  attention_job j = {};
  j.all = *a;
  /* More sequences than a grid has: in pieces. */
  for (int64_t done = 0; done < a->n_seq; done += j.all.n_seq) {
    j.all = *a;
    j.all.n_seq = a->n_seq - done < MAX_GRID ? a->n_seq - done : MAX_GRID;
    int in = a->in == BTC_CUDA_F32 ? 4 : 2, out = a->out == BTC_CUDA_F32 ? 4 : 2;
    j.all.q = static_cast<const char *>(a->q) + done * a->t * a->q_stride * in;
    j.all.k = static_cast<const char *>(a->k) + done * a->t * a->k_stride * in;
    j.all.v = static_cast<const char *>(a->v) + done * a->t * a->v_stride * in;
    j.all.o = static_cast<char *>(a->o) + done * a->t * a->o_stride * out;
    int status = a->in == BTC_CUDA_F32 ? btc_cuda_attend_f32(&j, s) : btc_cuda_attend_mma(&j, s);
    if (status != 0) return status;
  }
  return 0;
}

int btc_cuda_attend_causal(const btc_cuda_causal *a, const btc_cuda_kv *kv, btc_cuda_stream s) {
  if (a->items == 0 || a->max_rows == 0) return 0;
  if (kv->d < 1 || kv->d > MAX_WIDTH || a->heads > MAX_GRID || a->items > MAX_GRID || a->max_rows > MAX_ROWS || kv->kv_heads < 1 ||
      a->heads % kv->kv_heads != 0 || kv->type == BTC_CUDA_F16 || a->out == BTC_CUDA_F16)
    return INVALID_VALUE;
  attention_job j = {};
  j.causal = true;
  j.items = *a;
  j.kv = *kv;
  return a->bf16_math ? btc_cuda_attend_mma(&j, s) : btc_cuda_attend_f32(&j, s);
}
