/*
 * The Llama SentencePiece tokenizer with legacy=false rules (spec 2.6), behind a C face.
 */
#ifndef BTC_TOKENIZER_H
#define BTC_TOKENIZER_H

#include "base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

#define BTC_TOKENIZER_MAX_BYTES (1u << 20) /* longest text encoded in one call */

typedef struct btc_tokenizer btc_tokenizer;

/* Opens <dir>/tokenizer.model (and reads special_tokens_map.json / tokenizer_config.json / added_tokens.json beside it where
 * present). A hostile or truncated model is refused with a clear error naming the file; nothing aborts. */
btc_status btc_tokenizer_open(const char *dir, btc_tokenizer **out, btc_error *err);
/* The same from the bytes of a tokenizer.model; label names it in messages (fuzzing, tests). */
btc_status btc_tokenizer_open_memory(const void *data, size_t len, const char *label, btc_tokenizer **out, btc_error *err);
void btc_tokenizer_close(btc_tokenizer **t);

int32_t btc_tokenizer_vocab(const btc_tokenizer *t);
int32_t btc_tokenizer_bos(const btc_tokenizer *t);
int32_t btc_tokenizer_eos(const btc_tokenizer *t);

/* Encodes text[len] to ids with BOS first. Any bytes but NUL (BTC_ERR_ARG); each byte outside UTF-8 counts as one U+FFFD, as
 * sentencepiece does. BTC_ERR_LIMIT when longer than BTC_TOKENIZER_MAX_BYTES. *ids is malloc'ed, caller frees. Any thread. */
btc_status btc_tokenizer_encode(const btc_tokenizer *t, const char *text, size_t len, int32_t **ids, size_t *n, btc_error *err);

/* Decodes n ids: specials skipped, one leading marker removed, markers to spaces, byte pieces joined to UTF-8 with each invalid
 * byte its own U+FFFD (spec 2.6). Ids out of range are an error. *text is malloc'ed and 0-terminated
 * (*len excludes it; text may hold NULs). Any thread. */
btc_status btc_tokenizer_decode(const btc_tokenizer *t, const int32_t *ids, size_t n, char **text, size_t *len, btc_error *err);

#ifdef __cplusplus
}
#endif
#endif
