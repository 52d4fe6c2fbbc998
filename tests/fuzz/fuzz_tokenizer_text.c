/* Input: first as text to encode, then as ids to decode, with a good model. Well-formed text must come back unchanged. */
#include <stdlib.h>
#include <string.h>

#include "engine/prompt.h"
#include "engine/marker.h"
#include "tests/support/tiny_tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static btc_tokenizer *tokenizer(void) {
  static btc_tokenizer *t;
  static tiny_model m;
  if (t) return t;
  tiny_default(&m);
  if (btc_tokenizer_open_memory(m.bytes, m.n, "tiny", &t, NULL) != BTC_OK) abort();
  return t;
}

static bool has_special(const char *text) {
  return strstr(text, "<s>") || strstr(text, "</s>") || strstr(text, "<unk>") || strstr(text, BTC_MARKER);
}

static void encode(const char *text, size_t size) {
  int32_t *ids;
  size_t n, len;
  char *back;
  btc_status st = btc_tokenizer_encode(tokenizer(), text, size, &ids, &n, NULL);
  if (st != (memchr(text, 0, size) ? BTC_ERR_ARG : BTC_OK)) abort();
  if (st != BTC_OK) return;
  if (btc_tokenizer_decode(tokenizer(), ids, n, &back, &len, NULL) != BTC_OK) abort();
  if (btc_utf8_valid(back, len) != len) abort();
  if (btc_utf8_valid(text, size) == size && !has_special(text) && (len != size || memcmp(back, text, len) != 0)) abort();
  free(back);
  free(ids);
  if (btc_prompt_encode(tokenizer(), text, &ids, &n, NULL) != BTC_OK) abort();
  free(ids);
}

static void decode(const uint8_t *data, size_t size) {
  int32_t ids[512];
  size_t n = 0, len;
  char *text;
  for (size_t i = 0; i + 1 < size && n < 512; i += 2)
    ids[n++] = (data[i] | data[i + 1] << 8) % (TINY_PIECES + 1) - (data[i] == 255);
  bool good = true;
  for (size_t i = 0; i < n; i++) good = good && ids[i] >= 0 && ids[i] < TINY_PIECES;
  btc_status st = btc_tokenizer_decode(tokenizer(), ids, n, &text, &len, NULL);
  if (st != (good ? BTC_OK : BTC_ERR_ARG)) abort();
  if (st == BTC_OK && (text[len] != 0 || btc_utf8_valid(text, len) != len)) abort();
  free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char *text = malloc(size + 1);
  if (!text) return 0;
  memcpy(text, data, size);
  text[size] = 0;
  encode(text, size);
  free(text);
  decode(data, size);
  return 0;
}
