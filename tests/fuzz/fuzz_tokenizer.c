/* Input: the bytes of a tokenizer.model. What opens must encode and decode. */
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const char text[] = " ab  abc<s>\xE2\x96\x81 \xC3\xA9\xFF</s> <unk>\n0123 the <0x41>";
  btc_tokenizer *t;
  btc_error err = {0};
  btc_status st = btc_tokenizer_open_memory(data, size, "fuzz/tokenizer.model", &t, &err);
  if (st != BTC_OK) {
    if (t || st == BTC_ERR_INTERNAL || !strstr(err.message, "tokenizer.model")) abort();
    return 0;
  }
  int32_t *ids;
  size_t n, len;
  char *back;
  if (btc_tokenizer_encode(t, text, sizeof text - 1, &ids, &n, NULL) != BTC_OK) abort();
  if (n < 1 || ids[0] != btc_tokenizer_bos(t)) abort();
  if (btc_tokenizer_decode(t, ids, n, &back, &len, NULL) != BTC_OK) abort();
  free(back);
  free(ids);
  int32_t last = btc_tokenizer_vocab(t) - 1, some[] = {0, last, last / 2, 5, last};
  for (size_t i = 0; i < 5; i++)
    if (some[i] > last) some[i] = 0;
  if (btc_tokenizer_decode(t, some, 5, &back, &len, NULL) != BTC_OK) abort();
  free(back);
  btc_tokenizer_close(&t);
  return 0;
}
