/*
 * The piece table of a tokenizer.model (SentencePiece's ModelProto), read and checked by our own bounded parser. SentencePiece
 * itself never sees the file: it gets a canonical copy of what was checked (btc_spm_serialize), so bytes that nobody looked at
 * (unknown fields, self tests, character maps) cannot reach its assertions.
 */
#ifndef BTC_TOKENIZER_MODEL_H
#define BTC_TOKENIZER_MODEL_H

#include "base/base.h"

#define BTC_SPM_MAX_BYTES (32u << 20) /* largest tokenizer.model; the 32000 pieces of Llama take 0.5 MB */
#define BTC_SPM_MAX_PIECES (1 << 20)
#define BTC_SPM_MIN_PIECES 3        /* unknown, begin, end */
#define BTC_SPM_MAX_PIECE_BYTES 256 /* Llama: 48 */

typedef enum btc_spm_type { /* values of ModelProto.SentencePiece.Type */
                            BTC_SPM_NORMAL = 1,
                            BTC_SPM_UNKNOWN = 2,
                            BTC_SPM_CONTROL = 3,
                            BTC_SPM_USER_DEFINED = 4,
                            BTC_SPM_UNUSED = 5,
                            BTC_SPM_BYTE = 6
} btc_spm_type;

typedef struct btc_spm_piece {
  const char *text; /* into the model's bytes; not terminated */
  uint16_t len;
  uint8_t type; /* btc_spm_type */
  uint8_t byte; /* value of a BTC_SPM_BYTE piece */
  float score;
} btc_spm_piece;

typedef struct btc_spm_text {
  const char *text;
  size_t len;
} btc_spm_text;

typedef struct btc_spm_model {
  uint8_t *bytes; /* the file, owned */
  btc_spm_piece *pieces;
  int32_t *sorted; /* ids in byte order of their texts */
  int32_t n_pieces, unk;
  bool byte_fallback, remove_extra_whitespaces;
  btc_spm_text bos_piece, eos_piece; /* names in trainer_spec, "<s>" and "</s>" when it has none */
} btc_spm_model;

/* Takes ownership of bytes[len] (malloc'ed), also when it fails. label names the file in messages. */
btc_status btc_spm_parse(uint8_t *bytes, size_t len, const char *label, btc_spm_model *m, btc_error *err);
void btc_spm_free(btc_spm_model *m); /* zeroes *m */

/* Id of the piece with this text, -1 when there is none. */
int32_t btc_spm_find(const btc_spm_model *m, const char *text, size_t len);

/* A ModelProto with the same pieces, identity normaliser and no dummy prefix (spec 2.6, step 4). Caller frees *out. */
btc_status btc_spm_serialize(const btc_spm_model *m, uint8_t **out, size_t *len, btc_error *err);

#endif
