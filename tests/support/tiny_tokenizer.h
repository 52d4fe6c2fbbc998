/*
 * A SentencePiece model of a few hundred pieces built in memory, for tests and fuzz targets that must not depend on files.
 * Header only: fuzz targets do not link the test support library.
 */
#ifndef TINY_TOKENIZER_H
#define TINY_TOKENIZER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct tiny_model {
  uint8_t bytes[32768];
  size_t n;
} tiny_model;

enum { TINY_NORMAL = 1, TINY_UNKNOWN, TINY_CONTROL, TINY_USER, TINY_UNUSED, TINY_BYTE };
enum { TINY_UNIGRAM = 1, TINY_BPE = 2 };

/* Ids of tiny_default's pieces behind unknown, begin, end and the 256 bytes */
enum {
  TINY_BYTES = 3,
  TINY_MARKER = 259,
  TINY_A,
  TINY_B,
  TINY_C,
  TINY_AB,
  TINY_M_A,
  TINY_M_AB,
  TINY_ABC,
  TINY_MM,
  TINY_E_ACUTE,
  TINY_PIECES
};

static inline void tiny_put(tiny_model *m, const void *data, size_t n) {
  if (n > sizeof m->bytes - m->n) return;
  memcpy(m->bytes + m->n, data, n);
  m->n += n;
}

static inline void tiny_byte(tiny_model *m, unsigned value) {
  uint8_t b = (uint8_t)value;
  tiny_put(m, &b, 1);
}

static inline void tiny_varint(tiny_model *m, uint64_t v) {
  for (; v >= 0x80; v >>= 7) tiny_byte(m, (unsigned)(v & 0x7F) | 0x80);
  tiny_byte(m, (unsigned)v);
}

/* A field of bytes; number < 16 */
static inline void tiny_field(tiny_model *m, unsigned number, const void *data, size_t n) {
  tiny_byte(m, number << 3 | 2);
  tiny_varint(m, n);
  tiny_put(m, data, n);
}

static inline void tiny_piece_bytes(tiny_model *m, const char *text, size_t n, float score, unsigned type) {
  static tiny_model inner;
  inner.n = 0;
  tiny_field(&inner, 1, text, n);
  tiny_byte(&inner, 2 << 3 | 5);
  tiny_put(&inner, &score, sizeof score); /* little-endian machines only, like the whole program */
  tiny_byte(&inner, 3 << 3);
  tiny_varint(&inner, type);
  tiny_field(m, 1, inner.bytes, inner.n);
}

static inline void tiny_piece(tiny_model *m, const char *text, float score, unsigned type) {
  tiny_piece_bytes(m, text, strlen(text), score, type);
}

static inline void tiny_byte_pieces(tiny_model *m) {
  for (unsigned i = 0; i < 256; i++) {
    char text[8];
    snprintf(text, sizeof text, "<0x%02X>", i);
    tiny_piece(m, text, 0, TINY_BYTE);
  }
}

static inline void tiny_specials(tiny_model *m) {
  tiny_piece(m, "<unk>", 0, TINY_UNKNOWN);
  tiny_piece(m, "<s>", 0, TINY_CONTROL);
  tiny_piece(m, "</s>", 0, TINY_CONTROL);
}

static inline void tiny_letters(tiny_model *m) {
  static const char *const texts[] = {"\xE2\x96\x81",
                                      "a",
                                      "b",
                                      "c",
                                      "ab",
                                      "\xE2\x96\x81"
                                      "a",
                                      "\xE2\x96\x81"
                                      "ab",
                                      "abc",
                                      "\xE2\x96\x81\xE2\x96\x81",
                                      "\xC3\xA9"};
  static const float scores[] = {-20, -21, -22, -23, -1, -3, -4, -5, -2, -24};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) tiny_piece(m, texts[i], scores[i], TINY_NORMAL);
}

static inline void tiny_trainer(tiny_model *m, unsigned model_type, bool byte_fallback) {
  uint8_t inner[] = {3 << 3, (uint8_t)model_type, 0x98, 0x02, byte_fallback}; /* fields 3 and 35 */
  tiny_field(m, 2, inner, sizeof inner);
}

static inline void tiny_normalizer(tiny_model *m, bool remove_extra_whitespaces, bool escape_whitespaces, const char *charsmap) {
  static tiny_model inner;
  inner.n = 0;
  tiny_field(&inner, 1, "identity", 8);
  if (charsmap) tiny_field(&inner, 2, charsmap, strlen(charsmap));
  uint8_t flags[] = {3 << 3, 1, 4 << 3, remove_extra_whitespaces, 5 << 3, escape_whitespaces};
  tiny_put(&inner, flags, sizeof flags);
  tiny_field(m, 3, inner.bytes, inner.n);
}

static inline void tiny_default(tiny_model *m) {
  m->n = 0;
  tiny_specials(m);
  tiny_byte_pieces(m);
  tiny_letters(m);
  tiny_trainer(m, TINY_BPE, true);
  tiny_normalizer(m, false, true, NULL);
}

#endif
