/* Any bytes as a safetensors file: refused, or every tensor lies inside the bytes and is found by its name. */
#include <stdlib.h>
#include <string.h>

#include "engine/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  btc_safetensors *f;
  btc_error err;
  if (btc_safetensors_open_memory(data, size, "input", &f, &err) != BTC_OK) {
    if (f || !err.message[0] || strchr(err.message, '\n')) abort();
    return 0;
  }
  const uint8_t *last = data;
  for (size_t i = 0; i < btc_safetensors_count(f); i++) {
    const btc_tensor_view *v = btc_safetensors_at(f, i);
    const uint8_t *p = v->data;
    if (p < data || v->bytes > size || p > data + size - v->bytes) abort();
    if (v->bytes && p < last) abort(); /* in order, no overlap */
    if (v->bytes) last = p + v->bytes;
    if (v->rank < 0 || v->rank > BTC_TENSOR_MAX_RANK) abort();
    if (btc_safetensors_find(f, v->name) != v) abort();
  }
  btc_safetensors_close(&f);
  return 0;
}
